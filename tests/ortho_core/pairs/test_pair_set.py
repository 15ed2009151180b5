import pickle
import shutil

import pytest

from ortho_core.errors import BadRow, UserError
from ortho_core.pairs import pair_set
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Pair, PairFields
from ortho_core.storage.local import LocalStore
from ortho_core.storage.open import open_store
from tests.ortho_core.pairs.made import (
    KINDS,
    outcomes,
    png,
    read_all,
    write_images,
    write_lines,
    write_parquet,
    write_set,
    write_tar,
)

PROMPTS = [f"prompt {i}" for i in range(11)]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, tmp_path):
    return write_set(kind, tmp_path / "set", PROMPTS)


def upload(folder, url) -> str:
    store = open_store(url)
    for name, _ in LocalStore(folder).find(""):
        store.replace(name, (folder / name).read_bytes())
    return url


def contents(location) -> list[tuple[str, str, bytes]]:
    pairs = PairSet(location)
    return [(row.sample_id, row.prompt, pairs.fetch(row)) for row in read_all(pairs, 4)]


def test_shards_cover_every_row_once_in_order_whatever_their_size(folder):
    pairs = PairSet(folder)
    assert pairs.rows() == len(PROMPTS)
    for size in (1, 4, 11, 100):
        shards = pairs.shards(size)
        assert [shard.index for shard in shards] == list(range(len(shards)))
        assert [shard.first for shard in shards] == [sum(s.rows for s in shards[:i]) for i in range(len(shards))]
        rows = [row for shard in shards for row in pairs.read(shard)]
        assert [(row.row, row.prompt) for row in rows] == list(enumerate(PROMPTS))


def test_prompts_are_those_of_the_rows_and_no_image_is_read_for_them(folder, kind, monkeypatch):
    pairs = PairSet(folder)
    shards = pairs.shards(4)
    monkeypatch.setattr(pairs.format, "fetch", None)
    if kind == "parquet":  # whose records have the images
        monkeypatch.setattr(pairs.format, "read", None)
    assert [prompt for shard in shards for prompt in pairs.prompts(shard)] == PROMPTS


@pytest.mark.parametrize("caption", [None, "first", "longest", "random", "all"])
def test_prompts_are_chosen_among_captions_as_for_the_rows(caption, tmp_path):
    """Rows without a usable prompt are left out, here and there."""
    captions = [["a", "a longer one", "b"], "alone", [], " ", ["c" * 20, "d"], ["only"]]
    write_images(tmp_path, *(f"{n}.png" for n in range(6)))
    write_lines(tmp_path / "pairs.jsonl", *({"prompt": c, "image": f"{n}.png"} for n, c in enumerate(captions)))
    for part in (None, "heldout:3", "training:3"):
        pairs = PairSet(tmp_path, PairFields(caption=caption, part=part, max_prompt_length=15))
        shards = pairs.shards(2)
        rows = [row.prompt for shard in shards for row in pairs.read(shard) if isinstance(row, Pair)]
        assert [prompt for shard in shards for prompt in pairs.prompts(shard)] == rows
        assert rows


def test_a_set_gives_the_same_from_a_folder_and_from_a_bucket(folder, s3):
    local = contents(folder)
    assert [(prompt, image) for _, prompt, image in local] == [(p, png(i)) for i, p in enumerate(PROMPTS)]
    assert len({name for name, *_ in local}) == len(PROMPTS)
    for url in (s3(), s3() + "/deep/folder/"):
        assert contents(upload(folder, url)) == local
        assert PairSet(url).fingerprint() == PairSet(folder).fingerprint()


def test_one_file_is_a_set(folder, kind, s3):
    name = kind if kind.endswith("jsonl") else f"part-1.{kind}"
    local = contents(folder / name)
    assert [prompt for _, prompt, _ in local] == (PROMPTS if kind.endswith("jsonl") else PROMPTS[5:])
    assert contents(f"{upload(folder, s3())}/{name}") == local


def test_a_pattern_takes_the_files_of_its_folder_that_match(folder, kind, s3):
    pattern = {"pairs.jsonl": "*rs.jsonl", "metadata.jsonl": "meta????.jsonl"}.get(kind, f"*.{kind}")
    (folder / "below").mkdir()
    for file in sorted(folder.glob(pattern)):
        shutil.copy(file, folder / "below" / file.name)
    for location in (folder, upload(folder, s3())):
        assert [prompt for _, prompt, _ in contents(f"{location}/{pattern}")] == PROMPTS
        if not kind.endswith("jsonl"):
            assert [prompt for _, prompt, _ in contents(f"{location}/part-[1-9].{kind}")] == PROMPTS[5:]


def test_files_below_the_folder_count_and_hidden_ones_do_not(tmp_path):
    for name in ("b.tar", "sub/a.tar", ".hidden.tar", ".hidden/a.tar"):
        write_tar(tmp_path / name, {f"{name}/0.png": png(), f"{name}/0.txt": name})
    assert [row.prompt for row in read_all(PairSet(tmp_path))] == ["b.tar", "sub/a.tar"]


def test_a_folder_may_be_named_like_a_file_and_pairs_win_over_metadata(tmp_path):
    write_parquet(tmp_path / "set.parquet" / "part-0.parquet", prompt=["x"], image=[png()])
    assert outcomes(tmp_path / "set.parquet") == ["000000_part-0"]
    write_lines(tmp_path / "metadata.jsonl", {"text": "x", "file_name": "a.png"})
    write_lines(tmp_path / "pairs.jsonl", *[{"prompt": "x", "image": "a.png"}] * 2)
    assert PairSet(tmp_path).rows() == 2


def test_files_of_several_kinds_are_refused(tmp_path):
    write_tar(tmp_path / "a.tar", {"0.png": png(), "0.txt": "x"})
    write_parquet(tmp_path / "b.parquet", prompt=["x"], image=[png()])
    with pytest.raises(UserError, match=r"several kinds \(.parquet, .tar\).* as in /.*/\*\.tar"):
        PairSet(tmp_path / "*")
    for location in (tmp_path, f"{tmp_path}/"):
        with pytest.raises(UserError) as raised:
            PairSet(location)
        assert "can be read in 2 ways: found 1 .tar, 1 .parquet in 1 folder" in str(raised.value)
        assert "--layout parquet: 1 .parquet file; --layout webdataset: 1 .tar file" in str(raised.value)
    assert PairSet(tmp_path / "*.tar").rows() == 1
    assert PairSet(tmp_path, PairFields(layout="webdataset")).rows() == 1
    write_lines(tmp_path / "c.jsonl", {})
    write_lines(tmp_path / "d.jsonl", {})
    with pytest.raises(UserError, match=r"matches 2 \.jsonl files"):
        PairSet(tmp_path / "*.jsonl")


@pytest.mark.parametrize("name", ["", "none", "none.jsonl", "none.parquet", "none.tar", "*.tar", "a.txt", "*.txt"])
def test_where_there_is_no_set_the_message_says_what_is_one(tmp_path, name, s3):
    (tmp_path / "a.txt").touch()
    for location in (str(tmp_path), s3()):
        with pytest.raises(UserError, match="no pair set at") as raised:
            PairSet(f"{location}/{name}")
        assert location in str(raised.value)
        assert "pairs.jsonl, metadata.jsonl, .parquet or .tar" in str(raised.value)


def test_a_set_without_rows_is_refused(tmp_path):
    for content in (b"", b"\n \n"):
        (tmp_path / "pairs.jsonl").write_bytes(content)
        for ask in (PairSet.rows, PairSet.rows_per_shard, lambda pairs: pairs.shards(4)):
            with pytest.raises(UserError, match="has no rows"):
                ask(PairSet(tmp_path))


def test_what_a_storage_library_raises_is_told_in_one_line(folder, monkeypatch):
    def no_credentials(*_):
        raise RuntimeError("Unable to locate credentials\nTry this:\n  that")

    pairs = PairSet(folder)
    monkeypatch.setattr(LocalStore, "open", no_credentials)
    monkeypatch.setattr(LocalStore, "exists", no_credentials)
    for ask in (lambda: PairSet(folder), pairs.rows, pairs.fingerprint, lambda: pairs.shards(4)):
        with pytest.raises(UserError, match=r"^cannot read .*: Unable to locate credentials Try this: that$"):
            ask()


def test_the_fingerprint_changes_with_the_rows_and_the_field_names(folder, kind, tmp_path):
    fingerprint = PairSet(folder).fingerprint()
    others = [PROMPTS[:-1], [*PROMPTS[:-1], "prompt #"], ["prompt #", *PROMPTS[1:]], [*PROMPTS, "another"]]
    made = {PairSet(write_set(kind, tmp_path / f"{i}", prompts)).fingerprint() for i, prompts in enumerate(others)}
    assert len(made | {fingerprint}) == 5
    column = {"pairs.jsonl": "image", "metadata.jsonl": "image", "parquet": "prompt", "tar": "png"}[kind]
    assert PairSet(folder, PairFields(image_field=column)).fingerprint() != fingerprint
    assert PairSet(write_set(kind, tmp_path / "same", PROMPTS)).fingerprint() == fingerprint


def test_the_fingerprint_stays_when_the_set_is_moved(folder, tmp_path):
    fingerprint = PairSet(folder).fingerprint()
    shutil.move(folder, tmp_path / "elsewhere")
    assert PairSet(tmp_path / "elsewhere").fingerprint() == fingerprint


def test_the_fingerprint_stays_when_an_image_that_rows_name_changes(tmp_path):
    folder = write_set("pairs.jsonl", tmp_path, PROMPTS)
    fingerprint = PairSet(folder).fingerprint()
    (folder / "images" / "0003.png").write_bytes(png(200))
    assert PairSet(folder).fingerprint() == fingerprint


def test_a_pickled_set_is_small_and_reads_the_same(folder):
    pairs = PairSet(folder)
    before = len(pickle.dumps(pairs))
    shards = pairs.shards(4)
    pairs.fingerprint()
    rows = [row for shard in shards for row in pairs.read(shard)]
    for row in rows:
        pairs.fetch_image(row.image, "x")
    sent = pickle.dumps(pairs)
    assert len(sent) == before < 1_100
    again = pickle.loads(sent)
    assert [row for shard in shards for row in again.read(shard)] == rows
    assert [again.fetch_image(row.image, "x") for row in rows] == [png(i) for i in range(len(rows))]


def test_a_set_that_shrinks_or_goes_after_the_cut_is_told(folder, kind, tmp_path):
    pairs = PairSet(folder)
    shards = pairs.shards(4)
    shorter = write_set(kind, tmp_path / "shorter", PROMPTS[:3])
    for file in shorter.glob("*.*"):
        shutil.copy(file, folder)
    with pytest.raises(UserError, match=r"set/[a-z0-9-]+\.(jsonl|parquet|tar) has changed|cannot read"):
        [row for shard in shards for row in pairs.read(shard)]
    for file in folder.glob("*.*"):
        file.unlink()
    with pytest.raises(UserError, match="cannot read"):
        list(pairs.read(shards[0]))


def test_an_object_replaced_by_a_shorter_one_is_told(s3, tmp_path):
    url = upload(write_set("pairs.jsonl", tmp_path, PROMPTS), s3())
    pairs = PairSet(url)
    shards = pairs.shards(4)
    open_store(url).replace("pairs.jsonl", b'{"prompt": "x", "image": "a.png"}\n')
    with pytest.raises(UserError, match=r"pairs\.jsonl"):
        [row for shard in shards for row in pairs.read(shard)]


class Interrupted:
    """A store's `read` that fails a number of times first."""

    def __init__(self, read, failures: int) -> None:
        self.read, self.failures, self.calls = read, failures, 0

    def __call__(self, *arguments):
        self.calls += 1
        if self.calls <= self.failures:
            raise TimeoutError("timed out")
        return self.read(*arguments)


def test_a_read_that_times_out_is_tried_again_and_then_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(pair_set, "RETRIES", (0.0, 0.0, 0.0))
    for kind in ("pairs.jsonl", "tar"):
        pairs = PairSet(write_set(kind, tmp_path / f"set-{kind[:3]}", PROMPTS))
        row = read_all(pairs)[3]
        read = pairs.root.read
        pairs.root.read = Interrupted(read, 3)
        assert pairs.fetch_image(row.image, "row 3") == png(3)
        pairs.root.read = Interrupted(read, 4)
        with pytest.raises(BadRow, match=r"^row 3: image .* cannot be read: timed out$") as raised:
            pairs.fetch_image(row.image, "row 3")
        assert raised.value.reason == "unreadable-image"
        assert pairs.root.read.calls == 4


def test_what_no_retry_will_change_is_not_tried_again(tmp_path):
    write_images(tmp_path, "a.png")
    write_lines(tmp_path / "pairs.jsonl", {"prompt": "x", "image": "a.png"})
    pairs = PairSet(tmp_path)
    for error, image in (
        (FileNotFoundError(), "a.png"),
        (PermissionError(), "a.png"),
        (OSError(36, "too long"), "a.png"),
    ):

        def fail(*_, error=error):
            raise error

        pairs.root.read = Interrupted(fail, 0)
        with pytest.raises(BadRow) as raised:
            pairs.fetch_image(image, "row 0")
        assert raised.value.reason == "missing-image"
        assert pairs.root.read.calls == 1


def test_images_come_at_the_asked_size_beside_what_is_wrong(tmp_path):
    pairs = PairSet(write_set("pairs.jsonl", tmp_path, PROMPTS))
    rows = read_all(pairs)
    (tmp_path / "images" / "0001.png").unlink()
    first, bad, last = pairs.images(rows[:3], (4, 6))
    assert bad.reason == "missing-image"
    assert first.shape == last.shape == (4, 6, 3)
    assert (first.max(), last.max()) == (0, 2)


@pytest.mark.parametrize(("rows", "size"), [(1, 64), (640_000, 64), (640_001, 65), (50_000_000, 1_024)])
def test_shards_grow_with_the_set_between_two_bounds(rows, size, tmp_path, monkeypatch):
    pairs = PairSet(write_set("pairs.jsonl", tmp_path, PROMPTS))
    monkeypatch.setattr(pairs.format, "rows", lambda: rows)
    assert pairs.rows_per_shard() == size
