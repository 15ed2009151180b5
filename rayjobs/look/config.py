"""Options of `ortho look`."""

from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict

from ortho_core.marks import conduct, decides, resolved
from ortho_core.pairs.rows import PairFields
from ortho_core.storage.location import OutputPath, PairsLocation
from rayjobs.verb.options import Nameless


class LookJob(PairFields):
    """Show a pair set before anything is trained on it: `ortho look PAIRS`. No model, no cluster."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pairs: Annotated[PairsLocation, Nameless()] = resolved(
        description="the pair set: a folder, a file, a pattern or a URL; also without --pairs before it"
    )
    out: OutputPath = conduct(
        Path("runs/look"), description="folder for report.html and summary.json, which replace those of an earlier look"
    )
    rows: int = decides(
        1000, ge=1, description="rows to look at, spread over the whole set; all of them where it has no more"
    )
    size: int = decides(
        512, ge=1, description="side in pixels of the square that a model would be given, for crops and enlargements"
    )
