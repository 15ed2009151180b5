"""Match one image: find the noise that the model maps closest to it."""

# %%
from pathlib import Path

from ortho_core import AssignConfig, assign_noise, generate_images, labelled_rows, load_generator

MODEL = "models/tiny-turbo"
# Your own data: an image file of any size, and its prompt.
IMAGE, PROMPT = "examples/digits/images/0000.png", "a red handwritten three on a white background"

generator = load_generator(MODEL, device="auto")

# %%
# The E-step: one rotation of the noise's patches for the image, at most 12 evaluations of the model.
assigned = assign_noise(generator, IMAGE, PROMPT, AssignConfig(steps=12))
print(assigned)

# %%
before = generate_images(generator, PROMPT, noise=assigned.base_noise)
after = generate_images(generator, PROMPT, noise=assigned.noise)
picture = labelled_rows({"target": assigned.images, "base noise": before, "assigned noise": after}, scale=3)
Path("runs").mkdir(exist_ok=True)
picture.save("runs/match_one_image.png")
picture
