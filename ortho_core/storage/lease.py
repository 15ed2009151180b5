"""One driver at a time in a folder: a lease that its holder renews, and that anyone may take over once it is not renewed.

Leases are files `.lease/N.json` beside what is made. Whoever creates N + 1 holds the folder: creating is exact on disks, NFS and
object stores. The holder rewrites its file every `BEAT_S`; another waits until it has watched it unchanged for `EXPIRES_S` by its
own clock, so that clocks need not agree. A holder whose process is gone from this machine is not waited for. One that finds a
later lease, or could not renew its own in time, has lost the folder and must not write.
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

#: Seconds between two renewals, and without one until the lease is up. A holder gives itself up for lost before that.
BEAT_S, EXPIRES_S = 5.0, 30.0
GIVEN_UP_S = 20.0
#: Seconds between two looks at the lease of another, and between two of a worker at its own.
LOOK_S = 1.0
LEASES = ".lease"


class LeaseLost(RunFailed):
    """Another driver has the folder."""


@dataclass
class Ticket:
    """What a holder's workers check before they write."""

    location: str
    number: int
    _looked: float = field(default=-LOOK_S, compare=False)

    def check(self) -> None:
        """Raises LeaseLost if a later lease is there. Looks at most once in `LOOK_S`."""
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
        """Others need not wait any more; what is `done` keeps no trace of it. Of a lease that was lost nothing is touched."""
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
                if time.monotonic() - self._renewed > EXPIRES_S:  # the process slept: whoever waited may be at work
                    self._lost = True
                if self._lost:
                    return
                self._write(beats=beats)
                self._renewed = time.monotonic()
            except OSError:  # a file server that does not answer for a while
                continue


@contextmanager
def held(location: str | Path, verb: str, say: Callable[[str], None]) -> Iterator[Lease]:
    """Hold a folder inside, whose plan was claimed before; wait for another driver that has it, and `say` so once.

    Raises OSError where the folder cannot be written to.
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
            with suppress(FileNotFoundError):  # another removed the folder of the leases just now
                if folder.create(_name(last + 1), json.dumps(me).encode()):
                    for old in numbers:
                        folder.remove(_name(old))
                    return Lease(place.location, last + 1, me)
            continue
        if not waited:
            say(
                f"{verb}: {place.location} is being worked on by {about.get('who', 'another driver')}; waiting until it is done "
                "or has not been heard of for half a minute"
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
    return {}  # nothing of ours: it is up when it has not changed for long enough


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
    """Whether the holder was a process of this machine and is no more."""
    machine, pid = about.get("machine"), about.get("pid")
    if not machine or machine != this_machine() or not isinstance(pid, int):
        return False
    return born(pid) != about.get("born")


def _taken(location: str) -> str:
    return f"another driver has taken {location} over, as this one was not heard of for half a minute; it goes on there"
