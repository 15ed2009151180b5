"""What is planned and what is done: the exactly-once guarantee.

A shard of input rows is one task and one published part file. The file is the receipt: it appears whole under its name or
not at all, and the name carries the run's fingerprint. Resuming is the difference between planned and published names.
"""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ortho_core.assignments import FORMAT, part_name, part_names, read_about
from ortho_core.errors import UserError


def fingerprint(content: Any) -> str:
    """SHA-256 (16 hex digits) of JSON-ready content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def publish(path: Path, write: Callable[[Path], object]) -> bool:
    """Write beside `path`, then link into place if nothing is there. False: another writer was first, ours is discarded."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        write(aside)
        try:
            with aside.open("rb") as stream:
                os.fsync(stream.fileno())
            try:
                os.link(aside, path)
            except (FileExistsError, FileNotFoundError):
                raise
            except OSError:  # a file system without hard links: rename, which replaces an equal file at worst
                os.replace(aside, path)
        except FileExistsError:
            return False
        except FileNotFoundError:
            if path.exists():  # another driver finished the run and swept our copy away
                return False
            raise
        return True
    finally:
        aside.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Replace a small file at once: a reader sees the old or the new content, never a part."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        aside.write_text(text)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def claim(folder: Path, plan: dict[str, Any], verb: str) -> None:
    """Make `folder` the output of `plan`, or check that it is. Raises UserError naming what differs."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    file = folder / "plan.json"
    text = json.dumps(plan, indent=1) + "\n"
    if not file.exists():
        foreign = [p.name for p in folder.iterdir() if not p.name.startswith(".")]
        if foreign:
            raise UserError(
                f"{folder} is not empty and was not made by `ortho {verb}` ({foreign[0]}, ...); choose another"
            )
        publish(file, lambda aside: aside.write_text(text))
    try:
        there = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}; delete the folder or choose another") from error
    differing = differences(there, json.loads(text))
    if differing:
        raise UserError(
            f"{folder} holds the output of another run; choose another folder, or repeat that run: "
            + "; ".join(differing)
        )


def differences(there: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """One phrase per leaf that differs, `name: there → now`."""
    found = []
    for key in sorted({*there, *now} - {"run_fingerprint"}):
        a, b = there.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} was {a!r}, now {b!r}")
    return found


class Ledger:
    """The shards of one run in one folder."""

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.folder, self.plan = folder, plan
        self.parts = [folder / name for name in part_names(plan)]

    @staticmethod
    def seal(plan: dict[str, Any]) -> dict[str, Any]:
        """The plan with its own fingerprint, which part files carry in their names."""
        return {"format": FORMAT, **plan, "run_fingerprint": fingerprint(plan)}

    def path(self, shard: int) -> Path:
        return self.folder / part_name(shard, self.plan["run_fingerprint"])

    def pending(self) -> list[int]:
        """Shards without a sound part file; a part whose footer does not read is removed and done again."""
        todo = []
        for shard, path in enumerate(self.parts):
            if path.exists():
                with contextlib.suppress(UserError):
                    if read_about(path)["shard"] == shard:
                        continue
                path.unlink()
            todo.append(shard)
        return todo

    def committed(self) -> tuple[int, int]:
        """Rows of the parts that are published, and how many of them are quarantined."""
        abouts = [read_about(path) for path in self.parts if path.exists()]
        quarantined = sum(len(about["failures"]) for about in abouts)
        return sum(about["rows"] for about in abouts) + quarantined, quarantined

    def finish(self) -> dict[str, Any]:
        """Once every shard is committed: write `failures.jsonl` from the parts and return the reconciled counts."""
        assigned = quarantined = truncated = evaluations = 0
        loss = initial = 0.0
        reasons: dict[str, int] = {}

        aside = self.folder / f".failures.{uuid.uuid4().hex}.partial"
        with aside.open("w") as stream:
            for part in self.parts:
                about = read_about(part)
                assigned += about["rows"]
                truncated += about["truncated_prompts"]
                evaluations += about["evaluations"]
                loss += about["loss_sum"]
                initial += about["initial_loss_sum"]
                for failure in about["failures"]:
                    quarantined += 1
                    reasons[failure["reason"]] = reasons.get(failure["reason"], 0) + 1
                    stream.write(json.dumps(failure) + "\n")
        os.replace(aside, self.folder / "failures.jsonl")
        for leftover in self.folder.glob(".part-*.partial"):
            leftover.unlink(missing_ok=True)
        if assigned + quarantined != self.plan["rows"]:
            raise RuntimeError(f"{assigned} assigned + {quarantined} quarantined is not {self.plan['rows']} rows")
        return {
            "rows": self.plan["rows"],
            "assigned": assigned,
            "quarantined": quarantined,
            "quarantined_by_reason": reasons,
            "truncated_prompts": truncated,
            "evaluations": evaluations,
            "mean_initial_loss": initial / assigned if assigned else None,
            "mean_loss": loss / assigned if assigned else None,
        }
