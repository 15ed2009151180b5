"""The line about what the sizes of the images take of the pictures of a set."""

from ortho_core.framing.frame import Frame
from ortho_core.framing.framing import Framing, lost
from ortho_core.framing.image_size import text_of
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.survey.framed import Taken, some_sizes
from rayjobs.reports.words import counted, percent
from rayjobs.verb.console import say


def say_taken(pairs: PairSet, framing: Framing) -> None:
    """Print what a crop takes of some pictures, and how many of them are enlarged; nothing if there is nothing to say."""
    pictures = some_sizes(pairs)
    if pictures and (line := line_of(Taken.of(framing, pictures), framing)):
        say(line)


def line_of_one(frame: Frame) -> str:
    """What the crop takes of one picture, after its name; empty if nothing is cut off or enlarged."""
    share = lost(frame.original_width, frame.original_height, frame.size)
    said = []
    if share > 0:
        said.append(f"the crop to {text_of(frame.size)} cuts off {percent(share)} of it (--size for another shape)")
    if frame.enlarged > 1:
        said.append(f"it is enlarged {frame.enlarged:.1f} times")
    return f"has {frame.original_width}×{frame.original_height} pixels: {'; '.join(said)}" if said else ""


def line_of(taken: Taken, framing: Framing) -> str:
    """The line; empty if there is one size, and nothing is cut off or enlarged."""
    several = not framing.is_one_size
    said = []
    if several:
        sizes = ", ".join(f"{text} {count}" for text, count in taken.sizes.items())
        said.append(f"{counted(len(framing.sizes), 'size')} of about {text_of(framing.main)} pixels ({sizes})")
    if taken.most_lost > 0:
        verb = "stretching changes the shape by" if framing.crop == "none" else "the crop cuts off"
        rest = ""
        if several:
            rest = f"; one square would cut off {percent(taken.square_lost)}"
        elif taken.mean_lost > 0.02:
            rest = "; --buckets auto cuts off less"
        where = "" if several else f" to {text_of(framing.main)}"
        said.append(
            f"{verb} {percent(taken.mean_lost)} of a picture on average, {percent(taken.most_lost)} at most{where}{rest}"
        )
    if taken.too_extreme:
        more = counted(taken.too_extreme, "picture would lose", "pictures would lose")
        said.append(f"{more} more than {framing.most_lost:.0%} and cannot be used (--max-crop)")
    if taken.enlarged:
        smaller = counted(taken.enlarged, "picture is smaller and is", "pictures are smaller and are")
        said.append(f"{smaller} enlarged, up to {taken.most_enlarged:.1f} times")
    if not said:
        return ""
    return f"images, {counted(taken.pictures, 'picture')} looked at: " + "; ".join(said)
