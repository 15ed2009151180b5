"""The pass over a run's prompts: each is encoded once, by whatever number of workers, whatever happens on the way."""

import errno
import shutil
import threading
from collections import Counter

import pytest
import torch

from ortho_core.errors import BadRow, RunFailed, UserError
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.generators.prompt_store import FRAME_IDS
from ortho_core.pairs.pair_set import PairSet
from rayjobs.pool import prompt_pass
from rayjobs.pool.prompt_pass import Encoding, PromptTask, PromptWorker, fill, prompts_of
from rayjobs.pool.worker import DEATHS, Counted
from tests.rayjobs.encodings import count_encodings
from tests.rayjobs.pool.lengths import LengthsJob
from tests.small_pipelines import save_stable_diffusion

PROMPTS = [f"a handwritten number {number}" for number in range(20)]
HERE = (0, 0)


@pytest.fixture
def encoding(tiny_turbo, tmp_path):
    return Encoding(str(tmp_path / "embeddings"), ModelFolder.open(tiny_turbo), "float32")


@pytest.fixture
def encoded(monkeypatch) -> Counter[str]:
    """How often the pass has encoded each prompt, in this process."""
    return count_encodings(monkeypatch)["pass"]


def job(workers=HERE):
    return LengthsJob("out", workers)


def run(encoding, prompts, workers=HERE):
    """Prompts come in pieces of five."""
    pieces = [prompts[start : start + 5] for start in range(0, len(prompts), 5)]
    fill(job(workers), workers, encoding, lambda: iter(pieces), "assign")
    return encoding.store("cpu")


def assert_stored(store, prompts, generator):
    """Exactly these prompts are stored, each once, with the rows that a cache without a store gives."""
    store.open()
    assert len(store) == len(set(prompts))
    rows = store.rows(prompts, generator.image_size)
    expected = PromptCache(generator)(list(prompts)).tensors
    for name, tensor in expected.items():
        assert torch.equal(torch.stack([rows[prompt][name] for prompt in prompts]), tensor), name


def test_each_prompt_is_encoded_once_and_what_is_there_is_not_encoded_again(encoding, encoded, generator, capsys):
    store = run(encoding, [*PROMPTS[:12], *PROMPTS[:12]])
    assert encoded == dict.fromkeys(PROMPTS[:12], 1)
    assert_stored(store, PROMPTS[:12], generator)
    said = capsys.readouterr().err
    each = sum(t.nbytes for name, t in store.rows(PROMPTS[:1], (8, 8))[PROMPTS[0]].items() if name != FRAME_IDS)
    assert f"prompts: 12 different prompts are encoded for {encoding.location}, {each / 1e3:.1f} kB each, " in said
    assert "prompts: 12/12 prompts" in said
    assert f"prompts: 12 are in {store.folder.location}\n" in said
    encoded.clear()
    run(encoding, PROMPTS[:12])
    assert (encoded, capsys.readouterr().err) == ({}, "")
    run(encoding, PROMPTS)
    assert encoded == dict.fromkeys(PROMPTS[12:], 1)
    assert_stored(store, PROMPTS, generator)
    assert sorted(file.name for file in store.folder.path.iterdir()) == store.names()  # no lease, nothing half written


def test_two_workers_leave_each_prompt_once_with_the_bits_of_one(ray_session, encoding, generator, capsys):
    store = run(encoding, [*PROMPTS, *PROMPTS], (1, 2))
    assert_stored(store, PROMPTS, generator)
    assert len(store.names()) == 3
    assert "prompts: 20/20 prompts" in capsys.readouterr().err


def test_only_the_prompts_of_a_missing_shard_are_encoded_again(encoding, encoded, generator):
    store = run(encoding, PROMPTS)
    first, *others = (store.folder.path / name for name in store.names())
    made = {file: file.stat().st_mtime_ns for file in others}
    assert len(made) == 2
    first.unlink()
    encoded.clear()
    run(encoding, PROMPTS)
    assert encoded == dict.fromkeys(PROMPTS[:8], 1)
    assert {file: file.stat().st_mtime_ns for file in others} == made
    assert_stored(store, PROMPTS, generator)


def test_a_damaged_shard_is_told_in_one_line_and_made_again(encoding, encoded, generator, capsys):
    store = run(encoding, PROMPTS)
    damaged = store.folder.path / store.names()[1]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    encoded.clear()
    capsys.readouterr()
    run(encoding, PROMPTS)
    assert f"prompts: {damaged} is damaged (it has " in capsys.readouterr().err.splitlines()[0]
    assert encoded == dict.fromkeys(PROMPTS[8:16], 1)
    assert_stored(store, PROMPTS, generator)


def test_a_task_whose_shard_is_there_is_not_encoded(encoding, encoded):
    """As after a worker that died between its file and its receipt."""
    task, attempts = PromptTask(3, tuple(PROMPTS[:9])), Counted()
    worker = PromptWorker(encoding, "cpu", 1, attempts)
    receipts = [worker.work(PromptTask.of_row(task.to_row())) for _ in range(2)]
    assert receipts[0] == receipts[1]
    assert (receipts[0].assigned, receipts[0].error) == (9, "")
    assert (encoded, attempts.so_far(3)) == (dict.fromkeys(PROMPTS[:9], 1), 1)


def test_prompts_that_kill_their_worker_again_and_again_end_the_run(encoding, encoded):
    attempts = Counted()
    for _ in range(DEATHS):
        attempts.begin(0)
    receipt = PromptWorker(encoding, "cpu", 1, attempts).work(PromptTask(0, tuple(PROMPTS[:2])))
    assert receipt.error.startswith(
        f"a worker died {DEATHS} times while it encoded 2 prompts, the first of them 'a hand"
    )
    assert not encoded


def test_another_text_encoder_has_a_folder_of_its_own(encoding, encoded, tiny_turbo, generator, tmp_path):
    place = save_stable_diffusion(tiny_turbo, tmp_path / "other")
    other = Encoding(encoding.location, ModelFolder.open(place), "float32")
    stores = [run(each, PROMPTS[:3]) for each in (encoding, other)]
    assert encoded == dict.fromkeys(PROMPTS[:3], 2)
    assert_stored(stores[0], PROMPTS[:3], generator)
    assert_stored(stores[1], PROMPTS[:3], load_generator(place))
    half = Encoding(encoding.location, encoding.model, "bfloat16")
    assert run(half, PROMPTS[:3]).rows(PROMPTS[:1], (8, 8))[PROMPTS[0]]["text_embeds"].dtype == torch.bfloat16


def test_texts_that_do_not_fit_one_round_are_encoded_in_several(encoding, encoded, generator, monkeypatch):
    monkeypatch.setattr(prompt_pass, "ROUND_BYTES", 150)
    rounds, receipts = [], prompt_pass._receipts
    monkeypatch.setattr(prompt_pass, "_receipts", lambda *given: rounds.append(len(given[3])) or receipts(*given))
    store = run(encoding, [*PROMPTS, *PROMPTS])
    assert rounds == [2, 2]
    assert encoded == dict.fromkeys(PROMPTS, 1)
    assert_stored(store, PROMPTS, generator)


def test_a_second_run_waits_for_the_first_and_encodes_what_is_left(encoding, encoded, generator, capsys):
    runs = [threading.Thread(target=run, args=(encoding, prompts)) for prompts in (PROMPTS[:12], PROMPTS[4:])]
    for each in runs:
        each.start()
    for each in runs:
        each.join()
    assert encoded == dict.fromkeys(PROMPTS, 1)
    assert_stored(encoding.store("cpu"), PROMPTS, generator)
    assert "is being worked on by `ortho assign`" in capsys.readouterr().err


def test_a_disk_without_enough_room_is_told_before_the_work(encoding, encoded, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    need = r"has 10.0 kB free, and 20 prompts need 0.1 MB \(6.3 kB each\): free some room, give a folder elsewhere"
    with pytest.raises(UserError, match=need):
        run(encoding, PROMPTS)
    assert not encoded
    assert encoding.store("cpu").names() == []
    run(encoding, PROMPTS[:1])
    assert encoded == {PROMPTS[0]: 1}


def test_a_place_that_cannot_be_written_is_told(encoding, tmp_path):
    (tmp_path / "embeddings").write_text("a file")
    with pytest.raises(UserError, match=r"--prompt-embeddings: cannot write to .*embeddings: "):
        run(encoding, PROMPTS[:1])


def test_a_shard_that_cannot_be_written_ends_the_run_and_the_next_goes_on(encoding, encoded, disk, monkeypatch):
    folder = encoding.store("cpu").folder.path
    for name, value in (("folder", str(folder / ".prompts-")), ("code", errno.ENOSPC), ("left", 1)):
        monkeypatch.setattr(disk, name, value)
    with pytest.raises(RunFailed, match=r"cannot write .*prompts-000001-.*: No space left"):
        run(encoding, PROMPTS)
    monkeypatch.setattr(disk, "folder", "")
    run(encoding, PROMPTS)
    assert encoded == dict.fromkeys(PROMPTS, 1) | dict.fromkeys(PROMPTS[8:16], 2)


def test_prompts_that_the_model_cannot_use_are_left_out(encoding, monkeypatch, generator, capsys):
    def load(*arguments, **options):
        loaded = load_generator(*arguments, **options)
        encode = loaded.encode_prompts

        def careful(prompts):
            if PROMPTS[1] in prompts:
                raise BadRow("unusable", "not this one")
            return encode(prompts)

        loaded.encode_prompts = careful
        return loaded

    monkeypatch.setattr(prompt_pass, "load_generator", load)
    store = run(encoding, PROMPTS[:9])
    assert_stored(store, [PROMPTS[0], *PROMPTS[2:9]], generator)
    assert "prompts: 8 are in " in capsys.readouterr().err


def test_a_model_that_does_not_load_ends_the_run_in_one_line(encoding, tiny_turbo, tmp_path):
    folder = shutil.copytree(tiny_turbo, tmp_path / "model")
    model = ModelFolder.open(folder)
    assert model.fingerprint
    (folder / "text_encoder" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunFailed, match=r"text_encoder/model.safetensors has changed since the run was planned"):
        run(Encoding(encoding.location, model, "float32"), PROMPTS[:1])


def test_the_prompts_of_a_pair_set_come_shard_by_shard(digits):
    pairs = PairSet(digits)
    shards = pairs.shards(100)
    found = [list(some) for some in prompts_of(pairs, shards[1:3])()]
    rows = list(pairs.read(shards[1])), list(pairs.read(shards[2]))
    assert found == [[row.prompt for row in each] for each in rows]


def test_a_store_at_a_url_is_filled_and_read(encoding, s3, generator):
    there = Encoding(s3(), encoding.model, "float32")
    store = run(there, PROMPTS[:9])
    assert_stored(store, PROMPTS[:9], generator)
