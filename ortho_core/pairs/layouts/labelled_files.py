"""Labelled images in the files that well-known sets come in (IDX, CIFAR-10's batches, ...)."""

from ortho_core.errors import UserError
from ortho_core.pairs.labelled.arrays import ClassArrays
from ortho_core.pairs.labelled.files import Split, find_class_files
from ortho_core.pairs.layouts.layout import Opened, Reading
from ortho_core.pairs.listing import Listing
from ortho_core.pairs.rows import LayoutName, PairFields
from ortho_core.pairs.splits import wanted


class LabelledFiles:
    name: LayoutName = "labelled"
    what = "labelled images"
    options = frozenset({"split"})

    def recognise(self, listing: Listing, fields: PairFields) -> Reading | None:
        if not listing.labelled or not fields.with_images:
            return None
        captions = sum(listing.captions.values())
        against = (f"{captions} caption files lie beside images",) if captions else ()
        return Reading(self.name, "files of labelled images", against)

    def open(self, listing: Listing, fields: PairFields) -> Opened:
        asked = wanted(fields.split or "train")
        split: Split | None = "train" if asked == "train" else "test" if asked == "test" else None
        if split is None:
            raise UserError(f"--split {fields.split}: labelled images have train and test")
        found = find_class_files(listing.root, split)
        if found is None:
            raise UserError(f"--layout labelled: {listing.root.location} has no files of labelled images")
        return Opened(
            listing.root,
            ClassArrays(listing.root, found),
            f"labelled images in {', '.join(found.files[:3])}" + (", ..." if len(found.files) > 3 else ""),
            "the prompt is the class's " + ("name" if found.classes else "number"),
            [f"split {split}"],
        )
