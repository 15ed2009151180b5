"""Leases: of several drivers one, on a disk and on a real HTTP S3 server; what is dead, silent or asleep is taken over."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ortho_core.storage import lease as leases
from ortho_core.storage.lease import LEASES, LeaseLost, Ticket, held
from ortho_core.storage.open import open_store

ROOT = Path(__file__).parents[3]


@pytest.fixture
def fast(monkeypatch):
    for name, seconds in {"BEAT_S": 0.05, "EXPIRES_S": 1.0, "GIVEN_UP_S": 0.7, "LOOK_S": 0.05}.items():
        monkeypatch.setattr(leases, name, seconds)


def never(line):
    raise AssertionError(line)


def foreign(place, number=1, **about):
    """A lease of a driver on another machine."""
    content = {"who": "`ortho em` on elsewhere", "machine": "another", "pid": 1, "born": "1"} | about
    assert open_store(place).child(LEASES).create(f"{number}.json", json.dumps(content).encode())


@pytest.fixture(params=["disk", "s3"])
def place(request, tmp_path):
    return str(tmp_path / "work") if request.param == "disk" else request.getfixturevalue("s3")() + "/work"


@pytest.mark.usefixtures("fast")
def test_of_several_drivers_one_holds_the_folder_at_a_time(place):
    inside, most, said = [], [], []

    def drive(i):
        with held(place, "em", said.append) as lease:
            inside.append(i)
            most.append(len(inside))
            time.sleep(0.3)
            lease.check()
            lease.ticket.check()
            inside.remove(i)

    threads = [threading.Thread(target=drive, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [1, 1, 1]
    assert all(f"em: {open_store(place).location} is being worked on by `ortho em` on " in line for line in said)
    assert len(said) == 2
    assert not open_store(place).child(LEASES).names()


@pytest.mark.usefixtures("fast")
def test_a_lease_that_is_renewed_outlives_its_term(place):
    with held(place, "em", never) as lease:
        time.sleep(2 * leases.EXPIRES_S)
        lease.check()
        taken = []
        waiting = threading.Thread(
            target=lambda: taken.append(leases._acquire(open_store(place), "em", lambda _: None))
        )
        waiting.start()
        time.sleep(1.5 * leases.EXPIRES_S)
        assert not taken
    waiting.join(30)
    taken[0].release(done=True)


@pytest.mark.usefixtures("fast")
def test_a_driver_that_is_not_heard_of_is_waited_for_and_taken_over(place):
    foreign(place, 3)
    said, since = [], time.monotonic()
    with held(place, "em", said.append) as lease:
        assert time.monotonic() - since >= leases.EXPIRES_S
        assert lease.ticket.number == 4
        assert open_store(place).child(LEASES).names() == ["4.json"]
    assert len(said) == 1


def test_a_driver_that_was_killed_on_this_machine_is_not_waited_for(tmp_path):
    program = (
        "import os, sys; from ortho_core.storage.lease import held\n"
        f"with held({str(tmp_path)!r}, 'em', print): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert open_store(tmp_path).child(LEASES).names() == ["1.json"]
    with held(tmp_path, "em", never) as lease:
        assert lease.ticket.number == 2


@pytest.mark.parametrize("about", [{"released": True}, {"machine": None, "released": 1}])
def test_what_was_released_is_free(tmp_path, about):
    foreign(tmp_path, **about)
    with held(tmp_path, "em", never):
        pass


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"pid": "x", "machine": 7}'])
def test_a_lease_that_cannot_be_read_is_up_when_it_has_not_changed(tmp_path, content):
    open_store(tmp_path).child(LEASES).create("1.json", content)
    with held(tmp_path, "em", lambda line: None) as lease:
        assert lease.ticket.number == 2


def work_until_lost(place, meanwhile):
    with held(place, "em", never) as lease:
        meanwhile(lease)
        since = time.monotonic()
        while time.monotonic() - since < 30:
            lease.check()
            time.sleep(0.02)


@pytest.mark.usefixtures("fast")
def test_a_driver_that_slept_finds_its_folder_taken_and_touches_nothing(place):
    def another_takes_it(lease):
        foreign(place, 2)
        with pytest.raises(LeaseLost):
            Ticket(lease.ticket.location, lease.ticket.number).check()

    with pytest.raises(LeaseLost, match=r"another driver has taken .*it continues the run"):
        work_until_lost(place, another_takes_it)
    left = open_store(place).child(LEASES)
    assert "released" not in json.loads(left.read("2.json"))
    assert "released" not in json.loads(left.read("1.json"))


@pytest.mark.usefixtures("fast")
def test_a_driver_that_cannot_renew_gives_up_before_its_lease_is_up(tmp_path, monkeypatch):
    def fails(name, content):
        raise OSError("no answer")

    with pytest.raises(LeaseLost):
        work_until_lost(tmp_path, lambda lease: monkeypatch.setattr(lease._folder, "replace", fails, raising=False))
    assert leases.GIVEN_UP_S < leases.EXPIRES_S


def test_what_ended_with_an_error_is_free_at_once(tmp_path):
    with pytest.raises(ZeroDivisionError), held(tmp_path, "em", never):
        raise ZeroDivisionError
    with held(tmp_path, "em", never) as lease:
        assert lease.ticket.number == 2
    assert not (tmp_path / LEASES).exists()
