"""The folder that a run claims for its plan."""

from pathlib import Path

from ortho_core.errors import UserError
from ortho_core.records.plan import PLAN_FILE, Plan, differences, parse_plan
from ortho_core.storage.open import open_store
from ortho_core.storage.store import NotAFile, Store


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
            if foreign and not folder.exists(PLAN_FILE):  # a second driver may have made it by now
                raise UserError(
                    f"{location} is not empty and was not made by `ortho {plan.verb}` ({foreign[0]}, ...); choose another"
                )
            folder.create(PLAN_FILE, plan.text().encode())
        text = folder.read(PLAN_FILE)
    except NotAFile as error:
        raise UserError(f"{location}/{PLAN_FILE}: {error.strerror}; move it away, or delete it") from error
    except OSError as error:
        raise UserError(f"cannot write to {location}: {error.strerror or error}") from error
    try:
        there = parse_plan(text, f"{location}/{PLAN_FILE}", type(plan))
    except UserError as error:
        raise UserError(f"{error}; delete the folder or choose another") from error
    if differing := differences(there.content(), plan.content()):
        raise UserError(
            f"{location} holds the output of another run; choose another folder, or repeat that run: "
            + "; ".join(differing)
        )
    return folder
