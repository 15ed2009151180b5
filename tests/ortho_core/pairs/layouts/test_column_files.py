import json
import pickle
import shutil

import pyarrow as pa
import pytest

from ortho_core.errors import UserError
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import PairFields
from ortho_core.storage.local import LocalStore
from ortho_core.storage.open import open_store
from tests.ortho_core.pairs.made import (
    line,
    outcomes,
    png,
    prompts,
    read_all,
    refusal,
    write_images,
    write_parquet,
    write_tar,
)

STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def test_of_img2datasets_parquet_the_bytes_are_read_and_not_the_address(tmp_path):
    urls = [f"https://example.com/{i}.jpg" for i in range(4)]
    write_parquet(
        tmp_path / "00000.parquet",
        url=urls,
        caption=list("abcd"),
        status=["success"] * 4,
        jpg=[png(i) for i in range(4)],
    )
    (tmp_path / "00000_stats.json").write_text('{"count": 4}')
    pairs = PairSet(tmp_path)
    assert [(row.prompt, row.content) for row in read_all(pairs)] == [(c, png(i)) for i, c in enumerate("abcd")]
    assert "images from column jpg" in pairs.line()
    assert prompts(tmp_path, image_field="url")["https://example.com/0.jpg"] == "outside-root"


def test_of_img2datasets_tars_the_lists_beside_them_are_no_pairs(tmp_path):
    for shard in ("00000", "00001"):
        members = {
            f"{shard}{i}.{kind}": what for i in range(2) for kind, what in (("jpg", png(i)), ("txt", f"{shard} {i}"))
        }
        write_tar(tmp_path / f"{shard}.tar", members)
        write_parquet(tmp_path / f"{shard}.parquet", url=["u"] * 2, caption=["c"] * 2, key=["k"] * 2)
        (tmp_path / f"{shard}_stats.json").write_text('{"count": 2}')
    assert list(prompts(tmp_path).values()) == ["00000 0", "00000 1", "00001 0", "00001 1"]


@pytest.mark.parametrize(
    "names", [("TEXT", "image"), ("sentences", "img"), ("Description", "image_bytes"), ("txt", "png")]
)
def test_columns_may_have_the_names_that_people_use(tmp_path, names):
    write_parquet(tmp_path / "a.parquet", **{names[0]: ["x", "y"], names[1]: [png(), png(1)]})
    assert list(prompts(tmp_path).values()) == ["x", "y"]


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.string())])
def test_a_column_of_lists_gives_one_caption_a_choice_or_all(tmp_path, kind):
    captions = pa.array([["one", "a longer one"], ["two"], [], ["", "three"]], kind)
    write_parquet(tmp_path / "a.parquet", 2, image=[png(i) for i in range(4)], caption=captions)
    assert list(prompts(tmp_path).values()) == ["one", "two", "missing-prompt", "three"]
    assert "the first of several captions is used (--caption chooses)" in line(tmp_path)
    assert next(iter(prompts(tmp_path, caption="longest").values())) == "a longer one"
    for size in (1, 2, 100):
        every = PairSet(tmp_path, PairFields(caption="all"))
        rows = read_all(every, size)
        found = [row[1].reason if isinstance(row, tuple) else (row.row, row.prompt, row.content) for row in rows]
        assert found == [
            (0, "one", png(0)),
            (1, "a longer one", png(0)),
            (2, "two", png(1)),
            "missing-prompt",
            (4, "three", png(3)),
        ]
        assert every.rows() == 5


def test_other_columns_of_images_and_captions_are_named(tmp_path):
    images = [{"bytes": png(), "path": None}]
    write_parquet(
        tmp_path / "a.parquet",
        conditioning_image=pa.array(images, STRUCT),
        image=pa.array(images, STRUCT),
        text=["x"],
        caption=["y"],
    )
    said = line(tmp_path)
    assert "images from column image; columns conditioning_image contain images too, and are not read" in said
    assert "captions from column text" in said
    assert "there is also caption (--prompt-field)" in said


def test_splits_go_by_the_names_of_files_and_folders(tmp_path):
    for name in (
        "data/train-00000-of-00002",
        "data/train-00001-of-00002",
        "data/test-00000-of-00001",
        "default/validation/0000",
    ):
        write_parquet(tmp_path / f"{name}.parquet", text=[name], image=[png()])
    assert len(prompts(tmp_path)) == 4
    assert "the splits test, train, validation are all read (--split names one)" in line(tmp_path)
    assert list(prompts(tmp_path, split="train").values()) == ["data/train-00000-of-00002", "data/train-00001-of-00002"]
    assert list(prompts(tmp_path, split="valid").values()) == ["default/validation/0000"]
    assert list(prompts(tmp_path / "data" / "test").values()) == ["data/test-00000-of-00001"]


def saved(folder, **columns):
    """As the `datasets` library saves a set: this is that library."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    return datasets.Dataset.from_dict(columns)


@pytest.fixture
def arrow(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "n": datasets.Value("int64")}
    )
    rows = [{"image": {"bytes": png(i), "path": f"{i}.png"}, "text": f"prompt {i}", "n": i} for i in range(11)]
    whole = datasets.Dataset.from_list(rows, features=features)
    whole.save_to_disk(str(tmp_path / "one"), num_shards=2)
    splits = {"train": whole.select(range(7)), "test": whole.select(range(7, 11))}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "dict"))
    return tmp_path


def test_a_set_that_the_datasets_library_saved_is_read_as_it_reads_it(arrow):
    pairs = PairSet(arrow / "one")
    for size in (1, 3, 100):
        rows = read_all(pairs, size)
        assert [(row.prompt, row.content) for row in rows] == [(f"prompt {i}", png(i)) for i in range(11)]
    assert [row.sample_id for row in rows[:2]] == ["000000_0", "000001_1"]
    assert [pairs.fetch_image(row.image, "x") for row in rows[::-1]] == [png(i) for i in range(11)][::-1]
    sent = pickle.loads(pickle.dumps(pairs))
    assert [sent.fetch_image(row.image, "x") for row in rows] == [png(i) for i in range(11)]
    assert pairs.line().startswith("Arrow of the `datasets` library, 2 files: 11 images; captions from column text")
    assert outcomes(arrow / "one", id_field="n") == [str(i) for i in range(11)]


def test_its_splits_are_folders(arrow):
    assert len(prompts(arrow / "dict")) == 11
    assert "the splits test, train are all read" in line(arrow / "dict")
    assert list(prompts(arrow / "dict", split="test").values()) == [f"prompt {i}" for i in range(7, 11)]
    assert prompts(arrow / "dict" / "test") == {
        k.removeprefix("test/"): v for k, v in prompts(arrow / "dict", split="test").items()
    }


def test_it_is_the_same_in_a_bucket(arrow, s3):
    url = s3()
    for name, _ in LocalStore(arrow / "one").find(""):
        open_store(url).replace(name, (arrow / "one" / name).read_bytes())
    assert PairSet(url).fingerprint() == PairSet(arrow / "one").fingerprint()
    assert read_all(PairSet(url)) == read_all(PairSet(arrow / "one"))


def test_its_fingerprint_tells_equal_sizes_with_other_contents_apart(tmp_path):
    made = []
    for text in ("a", "b", "a"):
        saved(tmp_path, text=[text] * 3, image=[png()] * 3).save_to_disk(str(tmp_path / "set"))
        made.append(PairSet(tmp_path / "set").fingerprint())
        shutil.rmtree(tmp_path / "set")
    assert made[0] != made[1]


@pytest.mark.parametrize("writer", [pa.ipc.new_stream, pa.ipc.new_file])
@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
def test_arrow_of_both_kinds_with_batches_of_any_size(tmp_path, writer, compression):
    table = pa.table({"text": [f"prompt {i}" for i in range(10)], "image": [png(i) for i in range(10)]})
    with writer(
        str(tmp_path / "a.arrow"), table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)
    ) as out:
        out.write_table(table.slice(0, 7), max_chunksize=3)
        out.write_table(table.slice(7), max_chunksize=1)
    pairs = PairSet(tmp_path)
    for size in (1, 4, 100):
        assert [(row.prompt, row.content) for row in read_all(pairs, size)] == [
            (f"prompt {i}", png(i)) for i in range(10)
        ]


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "head"])
def test_a_damaged_arrow_file_is_named_in_one_line(tmp_path, damage):
    table = pa.table({"text": ["x"] * 50, "image": [png()] * 50})
    with pa.ipc.new_stream(str(tmp_path / "b.arrow"), table.schema) as out:
        out.write_table(table)
    whole = (tmp_path / "b.arrow").read_bytes()
    content = {
        "empty": b"",
        "text": b"not an arrow file " * 90,
        "cut": whole[:-900],
        "head": whole[:40] + b"\xff" * 60 + whole[100:],
    }
    (tmp_path / "b.arrow").write_bytes(content[damage])
    with pytest.raises(UserError, match=r"b\.arrow") as raised:
        PairSet(tmp_path).rows()
    assert "\n" not in str(raised.value)


def test_columns_of_dictionaries_are_refused_by_name(tmp_path):
    table = pa.table({"text": pa.array(["x", "y"]).dictionary_encode(), "image": [png()] * 2})
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as out:
        out.write_table(table)
    assert "has dictionary columns" in refusal(tmp_path)


def test_the_librarys_cache_files_are_left_aside(tmp_path):
    for name in ("data-00000-of-00001", "cache-1234"):
        table = pa.table({"text": [name], "image": [png()]})
        with pa.ipc.new_stream(str(tmp_path / f"{name}.arrow"), table.schema) as out:
            out.write_table(table)
    (tmp_path / "state.json").write_text(json.dumps({"_fingerprint": "0"}))
    assert list(prompts(tmp_path).values()) == ["data-00000-of-00001"]
    assert "left aside: 1 .arrow file (the `datasets` library's cache)" in line(tmp_path)


def test_metadata_in_parquet_names_images_from_its_own_folder(tmp_path):
    write_images(tmp_path, "train/a.png", "test/b.png")
    for split, name in (("train", "a.png"), ("test", "b.png")):
        write_parquet(tmp_path / split / "metadata.parquet", file_name=[name], text=[split])
    assert prompts(tmp_path) == {"test/b.png": "test", "train/a.png": "train"}


def test_folders_that_each_have_a_whole_set_are_refused_until_one_is_named(tmp_path):
    for folder, texts in (("full", ["a", "b"]), ("small", ["a"])):
        write_parquet(tmp_path / folder / "train-00000-of-00001.parquet", image=[png()] * len(texts), text=texts)
    assert "full/, small/ each contain a complete set: name one, as in --pairs .../full" in refusal(tmp_path)
    assert list(prompts(tmp_path / "full").values()) == ["a", "b"]
    assert len(prompts(tmp_path, layout="parquet")) == 3


def test_folders_of_a_partition_are_splits_or_said(tmp_path):
    for folder in ("split=train", "split=test", "more"):
        write_parquet(tmp_path / folder / "0.parquet", image=[png()], text=[folder])
    assert line(tmp_path).startswith("Parquet, 3 files in 3 folders: 3 images")
    assert list(prompts(tmp_path, split="test").values()) == ["split=test"]


def test_what_lies_in_the_place_of_a_file_is_told(tmp_path):
    (tmp_path / "a.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:7\nsize 9\n")
    assert "is not a readable Parquet file: it is a git-lfs pointer, not the file itself" in refusal(tmp_path)
