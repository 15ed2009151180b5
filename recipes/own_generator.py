"""A generator of your own: run the E-step and the M-step with your own network."""

# %%
import torch
from torch import Tensor, nn

from ortho_core import (
    AssignConfig,
    BaseGenerator,
    Condition,
    MStep,
    MStepConfig,
    assign_noise,
    generate_images,
    labelled_rows,
    matched_batches,
    read_pairs,
)


# Your own model: how it encodes prompts, and its one step. With an autoencoder, add `encode_images` and `decode`.
class ColourGenerator(BaseGenerator):
    colours = ("red", "green", "blue", "yellow", "orange", "purple", "cyan")

    def encode_prompts(self, prompts: list[str]) -> Condition:
        rows = [[float(colour in prompt) for colour in self.colours] for prompt in prompts]
        return Condition({"colour": torch.tensor(rows, device=self.device)})

    def denoise(self, noise: Tensor, condition: Condition) -> Tensor:
        colour = condition.tensors["colour"][:, :, None, None].expand(-1, -1, *noise.shape[2:])
        return self.trainable(torch.cat([noise, colour], 1))


torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(10, 64, 5, padding=2), nn.SiLU(), nn.Conv2d(64, 3, 5, padding=2), nn.Tanh())
generator = ColourGenerator(network, latent_shape=(3, 32, 32), image_size=(32, 32))
pairs = read_pairs("examples/digits", generator.image_size, 16)

# %%
# Two cycles: the second search starts from the noise of the first, with the trained model.
assigned = assign_noise(generator, pairs.images, pairs.prompts, AssignConfig(patch_size=4))
for cycle in (1, 2):
    step = MStep(generator, MStepConfig(lr=2e-3, preserve_latent_weight=0))
    losses = [step.update(batch).terms.loss for batch in matched_batches(step, assigned, epochs=25)]
    assigned = assign_noise(generator, pairs.images, pairs.prompts, AssignConfig(patch_size=4), start=assigned)
    print(f"cycle {cycle}: M-step {losses[0]:.3f} → {losses[-1]:.3f}; {assigned}")

# %%
made = generate_images(generator, pairs.prompts[:8], noise=assigned.noise[:8])
labelled_rows({"images": pairs.images[:8], "assigned noise": made}, scale=2)
