"""`ortho download`: download models of the catalogue into the folders where other commands look for them. No cluster."""

import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType

from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]
from safetensors import SafetensorError

from ortho_core.errors import UserError
from ortho_core.generators.imports import quick_imports
from ortho_core.generators.origin import RECORD, read_record
from ortho_core.storage.hashes import content_hash
from ortho_core.storage.store import one_line
from rayjobs.download.catalog import (
    find_older,
    is_here,
    merge_record,
    missing_files,
    needed,
    select,
    write_record,
)
from rayjobs.download.config import DownloadJob
from rayjobs.download.hub import INCOMPLETE, Hub
from rayjobs.verb.catalog import Catalog, Entry, ModelFile, read_catalog
from rayjobs.verb.console import Progress, aligned, amount, say

MB = 1_000_000


class Meter:
    """Counts the bytes that arrive, in place of huggingface_hub's bars."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.bytes = 0

    def __call__(self, **_: object) -> "Meter":
        return self

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        pass

    def update(self, arrived: int) -> None:
        before, self.bytes = self.bytes, self.bytes + arrived
        self.progress.advance(self.bytes // MB - before // MB)


def chosen(job: DownloadJob) -> tuple[Catalog, list[str]]:
    """The catalogue and the names of the requested models. Raises UserError."""
    catalog = read_catalog(job.catalog)
    names = job.only or (("all",) if job.list or job.offline else ())
    if not names:
        raise UserError(f"--only is required; accepted: all, {', '.join(catalog)} (--list describes them)")
    names = tuple(catalog) if "all" in names else names
    select(catalog, names)
    return catalog, list(names)


def describe(job: DownloadJob) -> dict[str, object]:
    """What a dry run prints. Uses no network."""
    catalog, names = chosen(job)
    models, total = {}, 0
    for name in needed(names, catalog, job.out):
        entry, missing = catalog[name], missing_files(name, catalog[name], job.out)
        linked = find_older(entry, missing, job.older)
        fetched = [file for file in missing if file.path not in linked]
        total += sum(file.bytes_about for file in fetched)
        models[name] = {
            "from": f"{entry.repository} at {entry.revision}",
            "to": str(job.out / entry.folder),
            "files": [file.path for file in fetched],
            "linked": {path: str(place) for path, place in linked.items()},
            "bytes_about": sum(file.bytes_about for file in fetched),
            "license": f"{entry.license.id} (commercial use: {entry.license.commercial})",
        }
        if entry.unverified:
            models[name]["unverified"] = entry.unverified
        if entry.assemble:
            models[name]["assembled"] = str(job.out / entry.model_folder)
    return {"models": models, "bytes_to_download_about": total, "out": str(job.out)}


def run(job: DownloadJob) -> int:
    """Download what is missing. Returns 0; with --offline, 1 if something is missing. Raises UserError."""
    catalog, names = chosen(job)
    if job.list:
        print(table(catalog, names, job.out, job.older))
        return 0
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    todo = needed(names, catalog, job.out)
    if not todo:
        say(f"download: {', '.join(names)}: nothing to do, all in {job.out}")
        return 0
    try:
        absent = work_off(todo, catalog, None if job.offline else Hub.of(job.mirror), job.out, job.older)
    except (OSError, SafetensorError) as error:
        raise UserError(f"--out {job.out}: {one_line(error)}") from error
    for line in absent:
        say(line)
    if absent:
        say(f"download: {len(absent)} files are missing; copy them there, and run the same command again")
    return 1 if absent else 0


def work_off(todo: Iterable[str], catalog: Catalog, hub: Hub | None, root: Path, older: Path) -> list[str]:
    """Obtain each entry, and assemble it where needed; without a hub, returns a line for each missing file."""
    if hub is not None:
        root.mkdir(parents=True, exist_ok=True)
    absent: list[str] = []
    for name in todo:
        entry = catalog[name]
        # Another process that downloads the same entry waits here, and then has nothing to do.
        with WeakFileLock(root / f".{name}.lock") if hub is not None else nullcontext():
            lacking = obtain(name, entry, hub, root, older)
            absent += lacking
            complete = not lacking and not needed(entry.requires, catalog, root)
            if entry.assemble and complete and not is_here(name, catalog, root):
                build(name, entry, root)
    return absent


def obtain(name: str, entry: Entry, hub: Hub | None, root: Path, older: Path) -> list[str]:
    """Get the entry's files, linked from `older` or downloaded; without a hub, returns a line for each missing file."""
    staging, folder = root / f".{name}.downloading", root / entry.folder
    missing = missing_files(name, entry, root)
    recorded = read_record(folder).get(name, {}).get("files", {})
    for file in missing:
        if (folder / file.path).exists() and file.path not in recorded:
            raise UserError(
                f"{folder / file.path} is not the file of {name}, which has {file.size} bytes; it is not replaced: move it away"
            )
    linked = link_older(missing, find_older(entry, missing, older), staging)
    rest = [file for file in missing if file.path not in linked]
    if rest and hub is None:
        return [wanted_by_hand(name, entry, file, root) for file in rest]
    if rest and hub is not None:
        download(name, entry, rest, hub, staging)
    if missing:
        settle(staging, folder)
    return []


def link_older(files: Iterable[ModelFile], places: Mapping[str, Path], staging: Path) -> set[str]:
    """Link the files of `places` into the staging folder; returns their paths. Prints which files have another checksum."""
    linked = set()
    for file in files:
        place = places.get(file.path)
        if place is None:
            continue
        if file.sha256 is not None and content_hash(place) != file.sha256:
            say(f"download: {place} does not have the catalogue's SHA-256 and is not used")
            continue
        target = staging / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(place.resolve(), target)
        except OSError:  # another file system
            target.symlink_to(place.resolve())
        say(f"download: {file.path} is linked from {place}")
        linked.add(file.path)
    return linked


def settle(staging: Path, folder: Path) -> None:
    """Move the staging folder to `folder`: in one step, or file by file if `folder` exists already."""
    for leftover in staging.rglob(f"*{INCOMPLETE}"):
        leftover.unlink()
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        staging.rename(folder)
        return
    for file in [path for path in staging.rglob("*") if not path.is_dir() and path.name != RECORD]:
        target = folder / file.relative_to(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
    merge_record(staging, folder)
    shutil.rmtree(staging)


def build(name: str, entry: Entry, root: Path) -> None:
    """Assemble the pipeline of an entry whose files are not a complete pipeline."""
    # diffusers takes seconds to import, and most models need none of it.
    with quick_imports():
        from rayjobs.download.assemble import assemble

    assembly, recipe = entry.assemble, entry.recipe
    assert assembly is not None
    assert recipe is not None
    into = root / assembly.into
    if into.is_dir() and any(into.iterdir()):
        raise UserError(f"{into} exists and is not a model folder; it is not replaced: move it away")
    say(f"download: assembling {into} from {root / entry.folder} and {root / assembly.base}")
    assemble(
        assembly.how,
        root / assembly.base,
        root / entry.folder / entry.files[0].path,
        into,
        recipe,
        finish=lambda folder: merge_record(root / entry.folder, folder, name),
    )


def wanted_by_hand(name: str, entry: Entry, file: ModelFile, root: Path) -> str:
    size = f", {amount(file.bytes_about)}" if file.bytes_about else ""
    source = f"{entry.repository} at {entry.revision}{size}"
    return f"download: {name} lacks {root / entry.folder / file.path}: {file.path} of {source}"


def download(name: str, entry: Entry, files: list[ModelFile], hub: Hub, staging: Path) -> None:
    """Download files into the staging folder, verify them, and record each. Raises UserError."""
    revision = hub.look_up(entry.repository, entry.revision)
    for file in files:
        published = revision.files.get(file.path)
        if published is None:
            raise UserError(f"{entry.repository} has no file {file.path} at {revision.commit}, which {name} needs")
        if file.size is not None and published.size not in {None, file.size}:
            raise UserError(
                f"{entry.repository}/{file.path} at {hub.endpoint} has {published.size} bytes; the catalogue has {file.size}"
            )
    sizes = {file.path: revision.files[file.path].size or file.bytes_about for file in files}
    staging.mkdir(parents=True, exist_ok=True)
    arrived = sum(path.stat().st_size for file in files for path in (staging / file.path).parent.glob(f"{file.name}*"))
    total, room = sum(sizes.values()), shutil.disk_usage(staging).free
    if total - arrived > room:
        raise UserError(f"{staging.parent} has {amount(room)} free, but {name} needs {amount(total - arrived)} more")
    say(f"download: {name}, {amount(total)} of {entry.repository} at {revision.commit[:12]}")
    say(f"download: licence {entry.license.id}, commercial use: {entry.license.commercial}; {entry.license.allows}")
    if entry.unverified:
        say(f"download: not verified in the catalogue: {entry.unverified}")
    progress = Progress(f"download {name}", total // MB, "MB", done=arrived // MB)
    meter = Meter(progress)
    known = read_record(staging).get(name, {})
    fetched = known.get("files", {}) if known.get("commit") == revision.commit else {}
    for file in files:
        to = staging / file.path
        if file.path in fetched and to.is_file():
            continue
        sha256 = hub.fetch(
            entry.repository, revision.commit, file.path, revision.files[file.path], file.sha256, to, meter
        )
        record = {file.path: {"size": to.stat().st_size, "sha256": sha256}}
        write_record(staging, name, entry, revision.commit, record)
    progress.close()


def table(catalog: Catalog, names: Sequence[str], root: Path, older: Path) -> str:
    """The table of `--list`, one line for each entry: name, title, size, licence, and place on this machine.

    Below it is a line for each entry that was not verified as a whole.
    """
    rows = [("name", "what", "size", "licence (commercial use)", "where")]
    for name in names:
        entry = catalog[name]
        missing = missing_files(name, entry, root)
        if is_here(name, catalog, root):
            where = f"here: {root / entry.model_folder}"
        elif not missing:
            where = f"to be assembled from {root / entry.folder}"
        else:
            linkable = len(find_older(entry, missing, older))
            where = (
                f"in {older}"
                if linkable == len(missing)
                else f"missing: {len(missing) - linkable} of {len(entry.files)} files"
            )
        size = ("" if all(file.size is not None for file in entry.files) else "~") + amount(entry.bytes_about)
        rows.append((name, entry.title, size, f"{entry.license.id} ({entry.license.commercial})", where))
    notes = [f"{name}: not verified: {catalog[name].unverified}" for name in names if catalog[name].unverified]
    return "\n".join([aligned(rows), *notes])
