"""A run claims its output folder by writing its plan there."""

from pathlib import Path

from ortho_core.errors import UserError
from ortho_core.records.plan import PLAN_FILE, Plan, differences, parse_plan, plan_text
from ortho_core.storage.open import open_store
from ortho_core.storage.store import NotAFile, Store
from ortho_core.text.parsing import NotParsedError, parse_json
from rayjobs.verb.console import say


def replace_text(path: Path, text: str) -> None:
    """Replace a small local file in one step: a reader sees the old or the new content, never a part."""
    open_store(path.parent).replace(path.name, text.encode())


def claim(location: str | Path, plan: Plan) -> Store:
    """Make a folder the output of `plan`, or check that it is; removes the temporary files of dead processes.

    Raises UserError if the folder belongs to another run; the message names the settings that differ.
    """
    folder = open_store(location)
    folder.sweep()
    try:
        if not folder.exists(PLAN_FILE):
            foreign = [name for name in folder.entries() if name != PLAN_FILE]
            if (
                foreign and not folder.exists(PLAN_FILE) and not _made_by(folder, plan)
            ):  # another driver may have written the plan in the meantime
                raise UserError(
                    f"{location} is not empty and was not made by `ortho {plan.verb}` ({foreign[0]}, ...); choose another"
                )
            folder.create(PLAN_FILE, plan.text().encode())
        text = plan_text(folder)
        try:
            there = parse_plan(text, f"{location}/{PLAN_FILE}", type(plan))
        except UserError as error:
            if not (is_damaged(text) and _made_by(folder, plan)):
                raise UserError(f"{error}; delete the folder or choose another") from error
            say(
                f"{location}/{PLAN_FILE} is damaged: it is written again, since the other files there are of the same run"
            )
            folder.replace(PLAN_FILE, plan.text().encode())
            there = plan
    except NotAFile as error:
        raise UserError(f"{location}/{PLAN_FILE}: {error.strerror}; move it away, or delete it") from error
    except OSError as error:
        raise UserError(f"cannot write to {location}: {error.strerror or error}") from error
    if differing := differences(there.content(), plan.content()):
        raise UserError(
            f"{location} holds the output of another run; choose another folder, or repeat that run: "
            + "; ".join(differing)
        )
    return folder


def is_damaged(text: bytes) -> bool:
    """Whether the text of a plan is not valid JSON."""
    try:
        parse_json(text)
    except NotParsedError:
        return True
    return False


def _made_by(folder: Store, plan: Plan) -> bool:
    """Whether other files in the folder have the run's fingerprint: parts in their names, a summary in its content."""
    fingerprint, names = plan.run_fingerprint, folder.names()
    if any(fingerprint in name for name in (*names, *folder.child("parts").names())):
        return True
    return any(fingerprint.encode() in folder.read(name) for name in names if name.endswith("summary.json"))
