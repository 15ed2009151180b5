"""WebDataset: tar files, with or without the lists that img2dataset leaves beside them."""

from ortho_core.errors import NoPairSet
from ortho_core.pairs.formats.web_dataset import WebDataset
from ortho_core.pairs.layouts.layout import Opened, Reading, of_split
from ortho_core.pairs.listing import Listing, count
from ortho_core.pairs.rows import LayoutName, PairFields


class Tars:
    name: LayoutName = "webdataset"
    what = "WebDataset files"
    options = frozenset({"prompt_field", "image_field", "id_field", "image_root", "caption", "split"})

    def recognise(self, listing: Listing, fields: PairFields) -> Reading | None:
        files = listing.names_of(".tar")
        return Reading(self.name, count(len(files), ".tar file")) if files else None

    def open(self, listing: Listing, fields: PairFields) -> Opened:
        if not listing.names_of(".tar"):
            raise NoPairSet(f"no .tar file in {listing.root.location}: found {listing.inventory()}")
        files, notes = of_split(listing.of(".tar"), lambda file: file[0], fields.split, listing.root.location)
        source = f".{fields.prompt_field}" if fields.prompt_field else ".txt, or a field of .json, of each sample"
        return Opened(
            listing.root,
            WebDataset(listing.root, files, fields),
            f"WebDataset, {count(len(files), '.tar file')}",
            f"captions from {source}",
            notes,
        )
