"""Sample two models at the same noise, and measure their distance from held-out images."""

# %%
from pathlib import Path

from ortho_core import generate_images, kid_between, labelled_rows, load_generator, read_pairs

# Your own data: model folders by name, and held-out pairs. match_and_fine_tune.py makes runs/fine-tuned.
MODELS = {"start": "models/tiny-turbo", "fine-tuned": "runs/fine-tuned"}
HELD_OUT, ROWS = "examples/digits/heldout.jsonl", 128

generators = {name: load_generator(folder, device="auto") for name, folder in MODELS.items() if Path(folder).is_dir()}
size = next(iter(generators.values())).image_size
held_out = read_pairs(HELD_OUT, size, ROWS)

# %%
# The same seeds give the same noise for every model.
samples = {name: generate_images(each, held_out.prompts, seeds=range(ROWS)) for name, each in generators.items()}
for name, images in samples.items():
    print(f"{name}: KID {kid_between(images, held_out.images)}")

# %%
rows = {"held-out images": held_out.images[:8]} | {name: images[:8] for name, images in samples.items()}
picture = labelled_rows(rows, scale=2)
Path("runs").mkdir(exist_ok=True)
picture.save("runs/sample_and_compare.png")
picture
