"""The files that a run makes from its parts at its end: tables, pictures, diagnostics. Lost or damaged ones are made again."""

from collections.abc import Iterator

from ortho_core.errors import UserError
from ortho_core.records.parts import PART
from ortho_core.records.plan import PLAN_FILE
from ortho_core.storage.receipts import FileReceipt, certified, faults_of, receipt_of
from ortho_core.storage.store import Store
from rayjobs.verb.console import say

#: The report of a run, which is written last, and the folder of its pictures.
REPORT, PICTURE_FOLDER = "report.html", "pictures"


def receipts_in(folder: Store, summary: str) -> dict[str, FileReceipt]:
    """The receipts of all files except the parts, the plan, the report, and the `summary`, which stores the receipts."""
    return {name: receipt_of(folder, name) for name in _derived(folder) if name not in (PLAN_FILE, REPORT, summary)}


def is_whole(folder: Store, summary: str, verify: bool) -> bool:
    """Whether the summary of a finished run exists, with all files that it names; prints what is missing or damaged."""
    if not folder.exists(summary):
        return False
    try:
        made = certified(folder, summary)
    except UserError:
        say(f"{folder.location}/{summary} is damaged: it is made again from the parts")
        return False
    faults = faults_of(folder, made, verify)
    for name, fault in faults.items():
        say(f"{folder.location}/{name} {fault}: it is made again from the parts")
    if verify and not faults:
        say(f"the parts and {len(made)} files in {folder.location} have the checksums they were written with")
    return not faults


def is_whole_page(folder: Store, name: str) -> bool:
    """Whether an HTML page exists and is complete."""
    return folder.exists(name) and folder.read(name, max(0, folder.size(name) - 20)).rstrip().endswith(b"</html>")


def _derived(folder: Store) -> Iterator[str]:
    yield from (name for name in folder.names() if not PART.fullmatch(name))
    yield from (f"{PICTURE_FOLDER}/{name}" for name in folder.child(PICTURE_FOLDER).names())
