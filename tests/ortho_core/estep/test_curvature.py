import torch

from ortho_core.estep.curvature import CurvatureModel, Sensitivity, measure
from ortho_core.generators.protocol import Condition
from ortho_core.noise.coordinates import Parameters
from ortho_core.noise.seeded import seeded_normal
from ortho_core.noise.spaces import Free, Rotations

SHAPE = (2, 4, 4)


class Linear:
    """A generator that is a matrix: its sensitivity is known."""

    latent_shape = SHAPE
    image_size = SHAPE[1:]
    device = torch.device("cpu")
    loaded_fingerprint = None

    def __init__(self, matrix):
        self.matrix = matrix
        self.trainable = torch.nn.Identity()

    def encode_images(self, images): ...
    def decode(self, latents): ...
    def count_truncated(self, prompts): ...
    def park(self, *, text=False, autoencoder=False): ...
    def save(self, folder, card=None): ...

    def base_noise(self, seeds):
        return seeded_normal(seeds, SHAPE)

    def encode_prompts(self, prompts):
        return Condition({"nothing": torch.zeros(len(prompts), 1)})

    def denoise(self, noise, condition):
        return (noise.flatten(1) @ self.matrix.T).view_as(noise)


def test_measure_finds_the_directions_that_the_generator_answers_to():
    axes, _ = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))
    strength = torch.full((32,), 0.05)
    strength[:2] = torch.tensor([6.0, 3.0])
    found = measure(Linear(torch.diag(strength) @ axes.T), 2, 16, samples=4096)
    directions = found.directions.flatten(1)
    torch.testing.assert_close(directions @ directions.T, torch.eye(2), atol=1e-4, rtol=0)
    torch.testing.assert_close((directions.flip(0) @ axes[:, :2]).abs(), torch.eye(2), atol=0.05, rtol=0)
    torch.testing.assert_close(found.strength.flip(0), torch.tensor([36.0, 9.0]), rtol=0.1, atol=0)
    assert abs(found.floor - float(strength.square().mean())) < 0.1 * found.floor


def test_tiny_turbo_answers_to_one_direction_far_more_than_to_the_mean_one(generator):
    found = measure(generator, 4, 8)
    assert found.strength[-1] > 100 * found.floor
    assert found.strength[0] < 10 * found.floor


def test_measure_does_not_depend_on_what_was_drawn_before(generator):
    torch.manual_seed(1)
    first = measure(generator, 3, 8)
    torch.manual_seed(2)
    again = measure(generator, 3, 8)
    assert torch.equal(first.directions, again.directions)
    assert torch.equal(first.strength, again.strength)


def test_the_metric_inverts_its_model_of_the_hessian():
    stream = torch.Generator().manual_seed(0)
    axes, _ = torch.linalg.qr(torch.randn(32, 3, generator=stream))
    sensitivity = Sensitivity(axes.T.reshape(3, *SHAPE), torch.tensor([1.0, 4.0, 20.0]), 0.7)
    base = seeded_normal([3, 8], SHAPE)
    for space in (Rotations(SHAPE, 2), Rotations(SHAPE, 1, 2), Free(SHAPE)):
        metric = CurvatureModel(sensitivity, Parameters(space), 5)
        metric.reset(torch.tensor([4, 1]), base)
        r = space.pull_back(base, sensitivity.directions).double()
        floor = 0.7 * 32 / space.reach**2
        model = torch.eye(space.parameters) * floor + r @ torch.diag(sensitivity.strength.double()) @ r.mT
        vectors = torch.randn(5, space.parameters, generator=stream)
        expected = floor * torch.linalg.solve(model, vectors[[4, 1], :, None].double())[..., 0]
        torch.testing.assert_close(metric(vectors)[[4, 1]].double(), expected, rtol=1e-4, atol=1e-5)
