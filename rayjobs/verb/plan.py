"""The folder that a run claims for its plan."""

from pathlib import Path

from ortho_core.errors import UserError
from ortho_core.records.plan import PLAN_FILE, Plan, differences, parse_plan, plan_text
from ortho_core.storage.open import open_store
from ortho_core.storage.store import NotAFile, Store
from ortho_core.text.parsing import NotParsedError, parse_json
from rayjobs.verb.console import say


def replace_text(path: Path, text: str) -> None:
    """Replace a small local file at once: a reader sees the old or the new content, never a part."""
    open_store(path.parent).replace(path.name, text.encode())


def claim(location: str | Path, plan: Plan) -> Store:
    """Make a folder the output of `plan`, or check that it is; what dead processes left in it half written is swept.

    Raises UserError naming what differs.
    """
    folder = open_store(location)
    folder.sweep()
    try:
        if not folder.exists(PLAN_FILE):
            foreign = [name for name in folder.entries() if name != PLAN_FILE]
            if (
                foreign and not folder.exists(PLAN_FILE) and not _made_by(folder, plan)
            ):  # a second driver may have made it by now
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
            say(f"{location}/{PLAN_FILE} is damaged: written anew, since all else there is of the same run")
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
    """Whether the text of a plan is no JSON any more, and not merely another's."""
    try:
        parse_json(text)
    except NotParsedError:
        return True
    return False


def _made_by(folder: Store, plan: Plan) -> bool:
    """Whether what else is there says that it is of this run: parts by their names, a summary by its content."""
    own, names = plan.run_fingerprint, folder.names()
    if any(own in name for name in (*names, *folder.child("parts").names())):
        return True
    return any(own.encode() in folder.read(name) for name in names if name.endswith("summary.json"))
