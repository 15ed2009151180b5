"""Match a folder of images and fine-tune the model on the matched noise."""

# %%
from pathlib import Path

from ortho_core import (
    MStep,
    MStepConfig,
    assign_noise,
    generate_images,
    labelled_rows,
    load_generator,
    matched_batches,
    read_pairs,
)

MODEL, OUT = "models/tiny-turbo", "runs/fine-tuned"
# Your own data: a folder of images with captions beside them, or any other pair set (docs/guides/pair-sets.md).
PAIRS, ROWS = "examples/digits", 32

generator = load_generator(MODEL, device="auto")
pairs = read_pairs(PAIRS, generator.image_size, ROWS)
before = generate_images(generator, pairs.prompts[:8])
print(pairs)

# %%
# The E-step, with the model frozen.
assigned = assign_noise(generator, pairs.images, pairs.prompts)
print(assigned)

# %%
# The M-step: the model learns the image at its matched noise, and keeps its output at other noise.
step = MStep(generator, MStepConfig(lr=3e-4))
for number, batch in enumerate(matched_batches(step, assigned, epochs=5, batch_size=8), 1):
    outcome = step.update(batch)
    if number % 5 == 0:
        print(f"update {number}: {outcome.terms}")
generator.save(OUT)

# %%
after = generate_images(generator, pairs.prompts[:8])
picture = labelled_rows({"images": pairs.images[:8], "before": before, "after": after}, scale=2)
Path("runs").mkdir(exist_ok=True)
picture.save("runs/match_and_fine_tune.png")
picture
