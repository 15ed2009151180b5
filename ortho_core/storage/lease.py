"""One driver at a time per output folder: a driver holds a lease and renews it; another may take over when renewals stop.

Leases are files `.lease/N.json` in the output folder. The driver that creates N + 1 holds the folder; creating a file is atomic
on disks, NFS and object stores. The holder rewrites its file every `BEAT_S` seconds. A waiting driver takes over when the file
has not changed for `EXPIRES_S` seconds of its own clock, so clocks need not agree. It does not wait for a holder that was a
process of this machine and has ended. A holder that finds a later lease, or could not renew its own in time, has lost the folder
and must not write.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from ortho_core.errors import RunFailed
from ortho_core.storage.local import LocalStore
from ortho_core.storage.open import open_store
from ortho_core.storage.processes import born, this_machine
from ortho_core.storage.store import Store
from ortho_core.text.parsing import NotParsedError, json_object

#: Seconds between two renewals; seconds without renewal until the lease expires. The holder gives up earlier, after GIVEN_UP_S.
BEAT_S, EXPIRES_S = 5.0, 30.0
GIVEN_UP_S = 20.0
#: Seconds between two checks of another driver's lease, and between two checks of a worker's own lease.
LOOK_S = 1.0
LEASES = ".lease"


class LeaseLost(RunFailed):
    """Another driver has the folder."""


@dataclass
class Ticket:
    """The lease as the holder's workers know it; they check it before they write."""

    location: str
    number: int
    _looked: float = field(default=-LOOK_S, compare=False)

    def check(self) -> None:
        """Raises LeaseLost if a later lease exists. Reads the folder at most once in `LOOK_S` seconds."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        if max(_numbers(open_store(self.location).child(LEASES)), default=self.number) > self.number:
            raise LeaseLost(_taken(self.location))
        self._looked = now


class Lease:
    """A held folder, renewed by a thread until it is released."""

    def __init__(self, location: str, number: int, about: dict[str, object]) -> None:
        self.ticket = Ticket(location, number)
        self._folder = open_store(location).child(LEASES)
        self._about, self._renewed, self._lost = about, time.monotonic(), False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises LeaseLost if another driver has the folder, or may have by now."""
        if self._lost or time.monotonic() - self._renewed > GIVEN_UP_S:
            raise LeaseLost(_taken(self.ticket.location))

    def release(self, done: bool) -> None:
        """End the lease, so that others need not wait; remove its files if the run is `done`. A lost lease is not touched."""
        self._over.set()
        self._thread.join()
        with suppress(LeaseLost, OSError):
            self.check()
            if not done:
                self._write(released=True)
                return
            self._folder.remove(_name(self.ticket.number))
            if isinstance(self._folder, LocalStore):
                Path(self._folder.location).rmdir()

    def _write(self, **more: object) -> None:
        self._folder.replace(_name(self.ticket.number), json.dumps(self._about | more).encode())

    def _beat(self) -> None:
        beats = 0
        while not self._over.wait(BEAT_S):
            beats += 1
            try:
                if max(_numbers(self._folder), default=self.ticket.number) > self.ticket.number:
                    self._lost = True
                if (
                    time.monotonic() - self._renewed > EXPIRES_S
                ):  # the process was suspended: another driver may be at work
                    self._lost = True
                if self._lost:
                    return
                self._write(beats=beats)
                self._renewed = time.monotonic()
            except OSError:  # a file server that does not answer for some time
                continue


@contextmanager
def held(location: str | Path, verb: str, say: Callable[[str], None]) -> Iterator[Lease]:
    """Hold the lease on a folder during the block; the caller has claimed the folder's plan before. Waits for another driver that
    holds it, and reports that once through `say`.

    Raises OSError if the folder cannot be written to.
    """
    lease = _acquire(open_store(location), verb, say)
    try:
        yield lease
    except BaseException:
        lease.release(done=False)
        raise
    lease.release(done=True)


def _acquire(place: Store, verb: str, say: Callable[[str], None]) -> Lease:
    folder, me, waited = place.child(LEASES), _me(verb), False
    folder.sweep()
    watched: tuple[int, bytes] | None = None
    since = time.monotonic()
    while True:
        numbers = _numbers(folder)
        last = max(numbers, default=0)
        text = b""
        if last:
            with suppress(FileNotFoundError):
                text = folder.read(_name(last))
        if (last, text) != watched:
            watched, since = (last, text), time.monotonic()
        about = _about(text)
        if not last or about.get("released") or _gone(about) or time.monotonic() - since > EXPIRES_S:
            with suppress(FileNotFoundError):  # another driver has just removed the folder of the leases
                if folder.create(_name(last + 1), json.dumps(me).encode()):
                    for old in numbers:
                        folder.remove(_name(old))
                    return Lease(place.location, last + 1, me)
            continue
        if not waited:
            say(
                f"{verb}: {place.location} is being worked on by {about.get('who', 'another driver')}; waiting until it ends "
                f"or has not renewed its lease for {EXPIRES_S:.0f} s"
            )
            waited = True
        time.sleep(LOOK_S)


def _name(number: int) -> str:
    return f"{number}.json"


def _numbers(folder: Store) -> list[int]:
    return sorted(int(stem) for name in folder.names() if (stem := name.removesuffix(".json")).isdecimal())


def _about(text: bytes) -> dict[str, object]:
    with suppress(NotParsedError):
        return json_object(text, "")
    return {}  # not a lease of Ortho: it expires like any other


def _me(verb: str) -> dict[str, object]:
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    return {
        "id": uuid.uuid4().hex,
        "who": f"`ortho {verb}` on {socket.gethostname()} (process {os.getpid()}, since {since})",
        "machine": this_machine(),
        "pid": os.getpid(),
        "born": born(os.getpid()),
    }


def _gone(about: dict[str, object]) -> bool:
    """Whether the holder was a process of this machine and has ended."""
    machine, pid = about.get("machine"), about.get("pid")
    if not machine or machine != this_machine() or not isinstance(pid, int):
        return False
    return born(pid) != about.get("born")


def _taken(location: str) -> str:
    return f"another driver has taken {location} over, because this one did not renew its lease in time; it continues the run"
