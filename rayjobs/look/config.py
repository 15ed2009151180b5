"""Options of `ortho look`."""

from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict

from ortho_core.framing.framing import STEPS_A_SIDE, USUAL_MOST_LOST, Framing, auto_sizes
from ortho_core.framing.image_size import AUTO, NONE, Buckets, size_of
from ortho_core.marks import conduct, decides, resolved
from ortho_core.pairs.rows import PairFields
from ortho_core.storage.location import OutputPath, PairsLocation
from rayjobs.verb.options import Nameless

#: The number of pixels that divides the sides of SDXL's images, and that of small models.
SDXL_STEP, SMALL_STEP = 32, 8


class LookJob(PairFields):
    """Inspect a pair set before training on it: `ortho look PAIRS`. Needs no model and no cluster."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pairs: Annotated[PairsLocation, Nameless()] = resolved(
        description="the pair set: a folder, a file, a pattern or a URL; the name --pairs may be left out"
    )
    out: OutputPath = conduct(
        Path("runs/look"), description="folder for report.html and summary.json; those of an earlier look are replaced"
    )
    rows: int = decides(
        1000, ge=1, description="rows to look at, spread over the whole set; a smaller set is read whole"
    )
    size: int = decides(
        512, ge=1, description="side in pixels of the model's square images, to report crops and enlargements"
    )
    buckets: Buckets = decides(
        AUTO,
        description="sizes of images whose crops are reported beside those of the square: auto (those of SDXL with the area of "
        "the square), none, or a list such as 512x512,640x448",
    )

    def framing(self) -> Framing | None:
        """The sizes of `--buckets`; None: none."""
        if self.buckets == NONE:
            return None
        if self.buckets != AUTO:
            sizes = tuple(size for text in self.buckets.split(",") if (size := size_of(text)) is not None)
            return Framing(sizes, most_lost=USUAL_MOST_LOST)
        needed = SDXL_STEP if self.size >= STEPS_A_SIDE * SDXL_STEP // 2 else SMALL_STEP
        step = needed * max(1, round(self.size / STEPS_A_SIDE / needed))
        sizes = auto_sizes(self.size, step)
        return Framing(sizes, most_lost=USUAL_MOST_LOST) if len(sizes) > 1 else None
