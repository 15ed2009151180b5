"""Options of `ortho look`."""

from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict

from ortho_core.marks import conduct, decides, resolved
from ortho_core.pairs.rows import PairFields
from ortho_core.storage.location import OutputPath, PairsLocation
from rayjobs.verb.options import Nameless


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
