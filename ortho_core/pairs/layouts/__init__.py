"""The layouts of pair sets: one module each, and the list of all."""

from ortho_core.pairs.layouts.captions import Captions
from ortho_core.pairs.layouts.classes import Classes
from ortho_core.pairs.layouts.column_files import ArrowSets, ParquetSets
from ortho_core.pairs.layouts.images import Images
from ortho_core.pairs.layouts.labelled_files import LabelledFiles
from ortho_core.pairs.layouts.layout import Layout, Opened, Reading
from ortho_core.pairs.layouts.metadata import Metadata
from ortho_core.pairs.layouts.tars import Tars

__all__ = ["LAYOUTS", "Layout", "Opened", "Reading"]

#: All layouts, in the order in which messages name them.
LAYOUTS: tuple[Layout, ...] = (
    Metadata(),
    ParquetSets(),
    ArrowSets(),
    Tars(),
    LabelledFiles(),
    Captions(),
    Classes(),
    Images(),
)
