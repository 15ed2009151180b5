"""Labelled images in the original files of well-known sets (IDX, CIFAR-10's batches, ...)."""

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
        against = (f"there are {captions} caption files beside images",) if captions else ()
        return Reading(self.name, "files of labelled images", against)

    def open(self, listing: Listing, fields: PairFields) -> Opened:
        requested = wanted(fields.split or "train")
        split: Split | None = "train" if requested == "train" else "test" if requested == "test" else None
        if split is None:
            raise UserError(f"--split {fields.split}: labelled images have the splits train and test")
        class_files = find_class_files(listing.root, split)
        if class_files is None:
            raise UserError(f"--layout labelled: {listing.root.location} has no files of labelled images")
        return Opened(
            listing.root,
            ClassArrays(listing.root, class_files),
            f"labelled images in {', '.join(class_files.files[:3])}" + (", ..." if len(class_files.files) > 3 else ""),
            "the prompt is the class's " + ("name" if class_files.classes else "number"),
            [f"split {split}"],
        )
