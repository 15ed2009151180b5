"""Images without captions, which all get the prompt of `--prompt`."""

from ortho_core.errors import UserError
from ortho_core.pairs.formats.image_files import ImageFiles, OnePrompt
from ortho_core.pairs.layouts.layout import Opened, Reading, of_split, rows_aside
from ortho_core.pairs.listing import Folder, Listing, count, is_control, some
from ortho_core.pairs.rows import LayoutName, PairFields


class Images:
    name: LayoutName = "images"
    what = "images without captions"
    options = frozenset({"prompt", "split"})

    def recognise(self, listing: Listing, fields: PairFields) -> Reading | None:
        images = sum(folder.images for folder in _targets(listing))
        if not images or not fields.with_images:
            return None
        against = () if fields.prompt is not None else ("they have no prompt; --prompt TEXT gives one to all",)
        return Reading(self.name, f"{count(images, 'image')} with one prompt for all", against, stated=False)

    def open(self, listing: Listing, fields: PairFields) -> Opened:
        if fields.prompt is None:
            raise UserError(
                f"--layout images: give the prompt of the images in {listing.root.location} with --prompt TEXT"
            )
        targets, notes = of_split(
            _targets(listing), lambda folder: f"{folder.path}/", fields.split, listing.root.location
        )
        read = [folder.path for folder in targets]
        rest = [folder for folder in listing.folders if folder.path not in set(read)]
        return Opened(
            listing.root,
            ImageFiles(listing.root, sorted(read), OnePrompt(fields.prompt)),
            f"images in {count(len(read), 'folder')}",
            f"--prompt {fields.prompt!r} for all",
            notes,
            not_targets(rest, "masks or conditions") + beside(targets) + rows_aside(listing),
        )


def _targets(listing: Listing) -> list[Folder]:
    return [folder for folder in listing.folders if not is_control(folder.path)]


def not_targets(folders: list[Folder], why: str) -> list[str]:
    """A note on folders whose images are not read; `why` is the reason."""
    images = sum(folder.images for folder in folders)
    places = some([folder.path + "/" if folder.path else "the folder itself" for folder in folders])
    return [f"{count(images, 'image')} in {places} ({why})"] if images else []


def beside(folders: list[Folder]) -> list[str]:
    """A note on images that belong to another image of their folder."""
    images = sum(folder.beside for folder in folders)
    return [f"{count(images, 'image')} beside others (masks or conditions, by their names)"] if images else []
