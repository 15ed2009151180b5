"""Prompt embeddings in shards: what is read is what was written, and a shard with a fault is told."""

import pickle
import re

import pytest
import torch
from safetensors import safe_open

from ortho_core.errors import UserError
from ortho_core.framing.frame import Frame
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.prompt_keys import number_of, prompt_key
from ortho_core.generators.prompt_store import FRAME_IDS, PromptStore, encoding_fingerprint
from ortho_core.storage.open import open_store
from tests.small_pipelines import save_stable_diffusion

SIZE = (32, 24)


def rows_of(*prompts):
    """As a text encoder in half precision would give them."""
    drawn = torch.Generator().manual_seed(len(prompts))
    return {
        prompt: {
            "encoder_hidden_states": torch.randn(3, 4, generator=drawn).bfloat16(),
            "text_embeds": torch.randn(2, generator=drawn),
            FRAME_IDS: torch.tensor([7.0, 7, 7, 7, 7, 7]).half(),
        }
        for prompt in prompts
    }


def published(location, *groups, fingerprint="fp"):
    """A store with one shard for each group of prompts, and all rows."""
    store, rows = PromptStore(location, fingerprint), {}
    for group in groups:
        rows |= rows_of(*group)
        assert store.publish(store.name_of(store.next_number(), group), rows_of(*group))
    return store, rows


@pytest.fixture
def two(tmp_path):
    """Two shards, of three prompts and of one."""
    return published(tmp_path, ["a", "b", "ü" * 300], ["c"])


def shard_files(store):
    return sorted(open_store(store.folder.location).path.glob("*.safetensors"))


def test_rows_come_back_bit_for_bit_with_the_frame_of_the_size_asked_for(two):
    store, rows = two
    other = pickle.loads(pickle.dumps(store))
    found = other.rows(["c", "missing", "ü" * 300, "a"], SIZE)
    assert list(found) == ["c", "ü" * 300, "a"]
    for prompt, row in found.items():
        assert row.keys() == rows[prompt].keys()
        for name in ("encoder_hidden_states", "text_embeds"):
            assert row[name].dtype == rows[prompt][name].dtype
            assert torch.equal(row[name], rows[prompt][name])
        assert (row[FRAME_IDS].dtype, row[FRAME_IDS].tolist()) == (torch.float16, [*Frame.plain(SIZE)])
    assert (len(other), other.row_bytes()) == (4, 3 * 4 * 2 + 2 * 4)
    assert sorted(number_of(prompt_key(prompt)) for prompt in rows) == other.numbers.tolist()


def test_a_shard_is_a_file_that_the_library_reads_with_the_keys_in_its_header(two):
    store, rows = two
    first, second = shard_files(store)
    assert re.fullmatch(r"prompts-000000-[0-9a-f]{8}\.safetensors", first.name)
    assert second.name.startswith("prompts-000001-")
    with safe_open(first, "pt") as stored:
        about = stored.metadata()
        assert about["keys"] == "".join(prompt_key(prompt).hex() for prompt in list(rows)[:3])
        assert sorted(stored.keys()) == ["encoder_hidden_states", "text_embeds"]  # no other size's frame
        assert torch.equal(stored.get_tensor("text_embeds")[1], rows["b"]["text_embeds"])


def test_the_first_writer_of_a_shard_wins(two):
    store, _ = two
    name = store.name_of(0, ["a", "b", "ü" * 300])
    before = (store.folder.path / name).read_bytes()
    changed = {prompt: {n: t + 1 for n, t in row.items()} for prompt, row in rows_of("a", "b", "ü" * 300).items()}
    assert not store.publish(name, changed)
    assert (store.folder.path / name).read_bytes() == before


def test_two_prompts_with_equal_first_bits_are_told_apart(two, monkeypatch):
    store, rows = two
    store.open()
    store._numbers[:] = 5
    monkeypatch.setattr(
        "ortho_core.generators.prompt_store.number_of", lambda key: 5 if len(key) == 32 else number_of(key)
    )
    found = store.rows(["a", "c", "missing"], SIZE)
    assert list(found) == ["a", "c"]
    assert all(torch.equal(found[name]["text_embeds"], rows[name]["text_embeds"]) for name in found)


def test_a_bucket_gives_the_rows_of_a_disk(two, s3):
    store, _ = two
    there, _ = published(s3(), ["a", "b", "ü" * 300], ["c"])
    there.open()
    ours, theirs = (each.rows(["a", "c"], SIZE) for each in (store, there))
    assert all(torch.equal(ours[p][name], theirs[p][name]) for p in ("a", "c") for name in ours[p])


def cut_short(content):
    return content[:-5]


def without_end_of_header(content):
    return content[:100]


def another_format(content):
    return content.replace(b"ortho-prompts-1", b"ortho-prompts-9")


def fewer_keys(content):
    """One key less; the header keeps its length."""
    at = content.index(b'"keys":"') + len(b'"keys":"')
    end = content.index(b'"', at)
    return (
        content[:at]
        + content[at + 64 : end]
        + b'"'
        + content[end + 1 : content.index(b"}", end) + 1]
        + b" " * 64
        + (content[content.index(b"}", end) + 1 :])
    )


@pytest.mark.parametrize("damage", [cut_short, without_end_of_header, another_format, fewer_keys])
def test_a_damaged_shard_is_told_and_removed_by_who_encodes_again(damage, two):
    store, _ = two
    first, second = shard_files(store)
    first.write_bytes(damage(first.read_bytes()))
    with pytest.raises(UserError, match=rf"{first} is damaged \(.+\): delete it, and the same command encodes") as told:
        store.open()
    assert "\n" not in str(told.value)
    (line,) = store.open_sound()
    assert line.startswith(f"{first} is damaged (")
    assert shard_files(store) == [second]
    assert list(store.rows(["a", "c"], SIZE)) == ["c"]


def test_a_changed_number_is_found_when_its_row_is_read(two):
    store, _ = two
    first, _ = shard_files(store)
    content = bytearray(first.read_bytes())
    content[-1] ^= 1  # in the last row of the last tensor
    first.write_bytes(content)
    assert list(store.rows(["a", "b"], SIZE)) == ["a", "b"]
    with pytest.raises(UserError, match=rf"{first} is damaged \(row 2 has another checksum\): delete it, and the same"):
        store.rows(["ü" * 300], SIZE)


def test_a_shard_that_goes_while_it_is_in_use_is_told(two):
    store, _ = two
    store.open()
    shard_files(store)[1].unlink()
    with pytest.raises(UserError, match=r"prompts-000001-\w+\.safetensors cannot be read: .*; delete it"):
        store.rows(["c"], SIZE)


def test_a_shard_of_another_encoding_is_refused_and_stays(two, tmp_path):
    store, _ = two
    other, _ = published(tmp_path, ["a"], fingerprint="other")
    (foreign,) = shard_files(other)
    foreign.rename(store.folder.path / foreign.name)
    for read in (store.open, store.open_sound):
        with pytest.raises(UserError, match=r"has the embeddings of another encoding \(other\): move it away"):
            read()
    assert (store.folder.path / foreign.name).exists()


def test_other_files_in_the_folder_are_left_alone(two):
    store, _ = two
    for name in ("notes.txt", "prompts-1.safetensors", "prompts-000009-xyz.safetensors"):
        (store.folder.path / name).write_text("notes")
    assert (store.open_sound(), len(store.names()), store.next_number()) == ([], 2, 2)


def test_whatever_decides_the_numbers_is_in_the_fingerprint(tiny_turbo, tmp_path):
    model = ModelFolder.open(tiny_turbo)
    usual = encoding_fingerprint(model, torch.float32, "cpu")
    other = save_stable_diffusion(tiny_turbo, tmp_path / "other")
    differing = {
        encoding_fingerprint(model, torch.float16, "cpu"),
        encoding_fingerprint(model, torch.float32, "cuda:1"),
        encoding_fingerprint(model, torch.float32, "cpu", 16),
        encoding_fingerprint(ModelFolder.open(other), torch.float32, "cpu"),
    }
    assert len(differing | {usual}) == 5
    assert encoding_fingerprint(model.at((64, 64)), torch.float32, torch.device("cpu")) == usual
    # The trained network is not part of it.
    generator = load_generator(model)
    generator.trainable.conv_out.bias.data += 1
    generator.save(tmp_path / "trained")
    assert encoding_fingerprint(ModelFolder.open(tmp_path / "trained"), torch.float32, "cpu") == usual
    assert PromptStore.of(tmp_path, model, "auto", "cpu").fingerprint == usual


def test_checkpoints_in_one_file_count_by_the_whole_file(tiny_turbo, tmp_path):
    """Their text encoders are in the file, not in the folder of configurations."""
    generator = load_generator(ModelFolder.open(tiny_turbo))
    generator.save(tmp_path / "model", single_file=True)
    file = tmp_path / "model" / "single_file.safetensors"
    beside = tmp_path / "checkpoint.safetensors"
    file.rename(beside)
    (tmp_path / "model").rename(tmp_path / "checkpoint")
    opened = ModelFolder.open(beside)
    before = encoding_fingerprint(opened, torch.float32, "cpu")
    content = bytearray(beside.read_bytes())
    content[-1] ^= 1
    beside.write_bytes(content)
    changed = ModelFolder.open(beside)
    assert encoding_fingerprint(changed, torch.float32, "cpu") != before
    # Evaluation hands conditions on from one model to the next by this one.
    assert changed.text_fingerprint != opened.text_fingerprint
