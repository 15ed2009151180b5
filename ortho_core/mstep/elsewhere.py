"""Prompts outside the pair set, at which fine-tuning should not change the model."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import product

from ortho_core.class_names import class_number
from ortho_core.errors import BadRow

#: Common subjects of text-to-image prompts, and the manners in which they are shown.
SUBJECTS = (
    *(
        "a dog on a beach",
        "a cat asleep on a chair",
        "a horse in a field",
        "a bird on a branch",
        "a fish in clear water",
    ),
    *(
        "an elephant at a river",
        "a butterfly on a flower",
        "a fox in the snow",
        "sheep on a hill",
        "a tiger in tall grass",
    ),
    *(
        "an old man with a beard",
        "a young woman laughing",
        "a child with a balloon",
        "a crowd in a market",
        "a chef in a kitchen",
    ),
    *(
        "a violinist on a stage",
        "a runner in the rain",
        "friends at a table",
        "a nurse at work",
        "the portrait of a queen",
    ),
    *(
        "a city street at night",
        "a village in the mountains",
        "a lighthouse in a storm",
        "a wooden bridge over a stream",
    ),
    *(
        "a castle on a hill",
        "a modern glass building",
        "a barn in the snow",
        "an empty train station",
        "the inside of a library",
    ),
    *(
        "a forest in autumn",
        "a desert under the stars",
        "a waterfall in a jungle",
        "a frozen lake",
        "a field of sunflowers",
    ),
    *("waves at sunset", "clouds over a valley", "a garden with roses", "an old tree", "mushrooms on the ground"),
    *(
        "a bowl of fruit",
        "a cup of coffee on a desk",
        "a slice of chocolate cake",
        "a plate of pasta",
        "a bottle on a table",
    ),
    *("an open book", "a pair of shoes", "a clock on a wall", "a bicycle against a wall", "an armchair by a window"),
    *("an old car", "a sailing boat", "an airplane in the sky", "a steam train", "a motorcycle on a road"),
    *(
        "a robot in a workshop",
        "a dragon above a city",
        "a spaceship over a planet",
        "a knight in armour",
        "a map of an island",
    ),
    *("a guitar", "a chess board", "a poster with large letters", "a pattern of blue stripes", "an empty room"),
)
MANNERS = ("{}", "a photo of {}", "{}, oil painting", "{}, watercolour", "a pencil drawing of {}", "{}, digital art")


def general_prompts() -> tuple[str, ...]:
    """Every subject in every manner, as examples of prompts that have nothing to do with the pairs."""
    return tuple(manner.format(subject) for subject, manner in product(SUBJECTS, MANNERS))


def unseen_classes(classes: Sequence[str], prompts: Iterable[str]) -> tuple[str, ...]:
    """The classes that no prompt names; a prompt may be a class's name or its number."""
    seen = set()
    for prompt in set(prompts):
        with suppress(BadRow):
            seen.add(class_number(prompt, classes))
    return tuple(name for number, name in enumerate(classes) if number not in seen)
