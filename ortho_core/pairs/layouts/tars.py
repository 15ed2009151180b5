"""WebDataset: tar files, with or without the lists that img2dataset writes beside them."""

import itertools
from collections import Counter

from ortho_core.errors import NoPairSet
from ortho_core.pairs.formats.tar_samples import gathered, samples
from ortho_core.pairs.formats.web_dataset import TEXTS, WebDataset
from ortho_core.pairs.layouts.layout import Opened, Reading, of_split
from ortho_core.pairs.listing import Listing, count
from ortho_core.pairs.rows import LayoutName, PairFields

#: Number of first samples of a file that are read to recognise it.
HEADS = 64


class Tars:
    name: LayoutName = "webdataset"
    what = "WebDataset files"
    options = frozenset({"prompt_field", "image_field", "id_field", "image_root", "caption", "split"})

    def recognise(self, listing: Listing, fields: PairFields) -> Reading | None:
        files = listing.names_of(".tar")
        if not files:
            return None
        _, against = _look(listing, files[0], fields)
        return Reading(self.name, count(len(files), ".tar file"), against)

    def open(self, listing: Listing, fields: PairFields) -> Opened:
        if not listing.names_of(".tar"):
            raise NoPairSet(f"no .tar file in {listing.root.location}: found {listing.inventory()}")
        files, notes = of_split(listing.of(".tar"), lambda file: file[0], fields.split, listing.root.location)
        source, problem = _look(listing, files[0][0], fields)
        return Opened(
            listing.root,
            WebDataset(listing.root, files, fields),
            f"WebDataset, {count(len(files), '.tar file')}",
            f"captions from {source or f'.{fields.prompt_field or TEXTS[0]}'} of each sample",
            [*notes, *problem],
        )


def _look(listing: Listing, file: str, fields: PairFields) -> tuple[str | None, tuple[str, ...]]:
    """The source of the prompts in the first samples of a file, and faults; empty for a damaged file, which is reported later."""
    format = WebDataset(listing.root, [], fields)
    try:
        with listing.root.open(file) as stream:
            seen = list(itertools.islice(samples(stream, 0), HEADS))
            if not any(map(format.is_complete, seen)):  # the members of a sample may not be adjacent
                seen = gathered(stream)
    except OSError:
        return None, ()
    good = next(filter(format.is_complete, seen), None)
    if good is not None:
        prompt, images = format.prompt_of(good), format.images_of(good)
        several = f"its samples have several images: --image-field {' or '.join(images)} chooses"
        return "a field of .json" if prompt == "json" else f".{prompt}", (several,) if len(images) > 1 else ()
    has = Counter(extension for sample in seen for extension in sample.members)
    members = ", ".join(f".{extension}" for extension, _ in has.most_common(5)) or "no members"
    return None, (
        f"no sample of {file} has both an image and a prompt (.txt, .json, .cls; --prompt-field names one): it has {members}",
    )
