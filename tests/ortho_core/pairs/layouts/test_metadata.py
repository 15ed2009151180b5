import json
import unicodedata

import pyarrow as pa
import pytest

from ortho_core.pairs import PairFields, PairSet
from tests.ortho_core.pairs.made import (
    line,
    outcomes,
    prompts,
    refusal,
    write_captions,
    write_images,
    write_lines,
    write_parquet,
)

PROMPTS = {f"{i:03d}.png": f"caption {i}" for i in range(6)}


def write_table(folder, name, rows, image="file_name", prompt="text"):
    """Rows of (image, prompt) as a file of any kind."""
    folder.mkdir(parents=True, exist_ok=True)
    records = [{image: path, prompt: text} for path, text in rows.items()]
    if name.endswith(".jsonl"):
        write_lines(folder / name, *records)
    elif name.endswith(".json"):
        (folder / name).write_text(json.dumps(records))
    elif name.endswith(".parquet"):
        write_parquet(folder / name, **{key: [record[key] for record in records] for key in (image, prompt)})
    else:
        part = "\t" if name.endswith(".tsv") else ","
        (folder / name).write_text("".join(f"{a}{part}{b}\n" for a, b in {image: prompt, **rows}.items()))


KINDS = [
    "metadata.jsonl",
    "metadata.csv",
    "metadata.parquet",
    "captions.csv",
    "data.tsv",
    "rows.json",
    "anything.jsonl",
]


@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_rows_beside_the_images_is_found_whatever_its_kind_and_name(tmp_path, name):
    write_images(tmp_path, *PROMPTS)
    write_table(tmp_path, name, PROMPTS)
    for location in (tmp_path, tmp_path / name):
        assert prompts(location) == PROMPTS
    assert line(tmp_path).startswith(f"rows in {name}: 6 rows; captions from ")
    assert "6 images lie there; nothing left aside" in line(tmp_path)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet", "pairs.jsonl", "captions.csv"])
def test_split_folders_each_have_their_own_rows_and_their_own_paths(tmp_path, name):
    for split in ("train", "test"):
        write_images(tmp_path / split, *PROMPTS)
        write_table(tmp_path / split, name, {path: f"{split}: {text}" for path, text in PROMPTS.items()})
    both = prompts(tmp_path)
    assert both == {
        f"{split}/{path}": f"{split}: {text}" for split in ("test", "train") for path, text in PROMPTS.items()
    }
    assert "the splits test, train are all read (--split names one)" in line(tmp_path)
    assert prompts(tmp_path, split="train") == {k: v for k, v in both.items() if k.startswith("train/")}
    assert prompts(tmp_path / "test") == {path: f"test: {text}" for path, text in PROMPTS.items()}
    assert "no split 'val'" in refusal(tmp_path, split="val")
    fingerprints = {PairSet(tmp_path, PairFields(split=split)).fingerprint() for split in (None, "train", "test")}
    assert len(fingerprints) == 3


def test_files_named_by_splits_are_splits(tmp_path):
    write_images(tmp_path, *PROMPTS)
    write_table(tmp_path, "train.csv", dict(list(PROMPTS.items())[:4]))
    write_table(tmp_path, "test.csv", dict(list(PROMPTS.items())[4:]))
    assert len(prompts(tmp_path)) == 6
    assert len(prompts(tmp_path, split="train")) == 4
    assert len(prompts(tmp_path / "test")) == 2


@pytest.mark.parametrize(
    "names", [("image", "caption"), ("Filename", "TEXT"), ("image path", "Description"), ("img", "txt")]
)
@pytest.mark.parametrize("file", ["pairs.jsonl", "metadata.jsonl", "a.csv", "a.json", "a.parquet"])
def test_fields_may_have_the_names_that_people_use_in_every_kind_of_file(tmp_path, file, names):
    write_images(tmp_path, *PROMPTS)
    write_table(tmp_path, file, PROMPTS, *names)
    assert prompts(tmp_path) == PROMPTS


def test_rows_without_a_caption_are_refused_with_the_fields_that_they_have(tmp_path):
    write_images(tmp_path, *PROMPTS)
    for file in ("pairs.jsonl", "metadata.csv"):
        write_table(tmp_path, file, PROMPTS, "image", "words")
        said = refusal(tmp_path / file)
        assert f"{file} has the fields image, words, and none of them is the prompt" in said
        assert "--prompt-field names one" in said
        assert prompts(tmp_path / file, prompt_field="words") == PROMPTS


@pytest.mark.parametrize("file", ["metadata.jsonl", "captions.csv", "pairs.json"])
def test_bare_names_are_looked_for_in_the_folder_of_images(tmp_path, file):
    write_images(tmp_path / "images", *PROMPTS)
    write_table(tmp_path, file, PROMPTS)
    assert prompts(tmp_path) == {f"images/{path}": text for path, text in PROMPTS.items()}
    assert "in images/" in line(tmp_path)


def test_paths_of_a_file_in_a_folder_of_its_own_may_start_from_the_sets(tmp_path):
    write_images(tmp_path / "images", *PROMPTS)
    write_table(tmp_path / "annotations", "captions.csv", {f"images/{path}": text for path, text in PROMPTS.items()})
    assert prompts(tmp_path) == {f"images/{path}": text for path, text in PROMPTS.items()}


def test_captions_may_lie_apart_from_an_image_root(tmp_path):
    write_images(tmp_path / "elsewhere", *PROMPTS)
    write_table(tmp_path / "set", "metadata.csv", PROMPTS)
    assert prompts(tmp_path / "set", image_root=str(tmp_path / "elsewhere")) == PROMPTS


def test_separators_of_windows_and_both_ways_of_writing_é_find_their_images(tmp_path):
    write_images(
        tmp_path, "sub/a.png", unicodedata.normalize("NFD", "café.png"), unicodedata.normalize("NFC", "naïve.png")
    )
    rows = ["sub\\a.png", unicodedata.normalize("NFC", "café.png"), unicodedata.normalize("NFD", "naïve.png")]
    write_lines(tmp_path / "pairs.jsonl", *[{"prompt": "x", "image": name} for name in rows])
    assert outcomes(tmp_path) == ["000000_a", "000001_" + rows[1][:-4], "000002_" + rows[2][:-4]]


def test_paths_of_another_machine_are_outside(tmp_path):
    write_images(tmp_path / "set", "a.png")
    write_images(tmp_path, "a.png")
    names = ["C:\\data\\a.png", "\\\\server\\a.png", "..\\a.png", "sub\\..\\..\\a.png", "/elsewhere/data/a.png"]
    write_lines(tmp_path / "set" / "pairs.jsonl", *[{"prompt": "x", "image": name} for name in names])
    assert outcomes(tmp_path / "set") == ["outside-root"] * 5


def test_lists_of_captions_are_one_a_choice_or_all(tmp_path):
    write_images(tmp_path, "a.png", "b.png")
    rows = [{"image": "a.png", "captions": ["one", "a longer one"]}, {"image": "b.png", "captions": ["two"]}]
    for file in ("pairs.jsonl", "list.json"):
        (tmp_path / "pairs.jsonl").unlink(missing_ok=True)
        write_lines(tmp_path / file, *(rows if file.endswith("l") else [json.dumps(rows)]))
        assert prompts(tmp_path) == {"a.png": "one", "b.png": "two"}
        assert "of several captions the first is taken (--caption chooses)" in line(tmp_path)
        assert prompts(tmp_path, caption="longest")["a.png"] == "a longer one"
        for size in (1, 2, 3):
            assert outcomes(tmp_path, size, caption="all") == ["000000_a", "000001_a", "000002_b"]


def test_ids_of_rows_that_all_captions_make_stay_different(tmp_path):
    write_images(tmp_path, "a.png")
    rows = [{"image": "a.png", "caption": ["x", "y"], "key": key} for key in ("k", "l", "k")]
    write_lines(tmp_path / "pairs.jsonl", *rows)
    expected = ["k", "k#1", "l", "l#1", "duplicate-id", "duplicate-id"]
    for size in (1, 3, 100):
        assert outcomes(tmp_path, size, caption="all", id_field="key") == expected


def test_pairs_win_over_all_else_and_metadata_that_says_no_caption_yields_to_captions(tmp_path):
    write_captions(tmp_path, PROMPTS)
    write_lines(tmp_path / "metadata.jsonl", *[{"file_name": path, "bbox": [1, 2]} for path in PROMPTS])
    assert prompts(tmp_path) == PROMPTS
    assert "left aside: 1 .jsonl" in line(tmp_path)
    write_table(tmp_path, "metadata.jsonl", dict.fromkeys(PROMPTS, "of the metadata"))
    said = refusal(tmp_path)
    assert "can be read in 2 ways" in said
    assert "--layout metadata: rows in metadata.jsonl" in said
    assert "--layout captions: 6 images with a caption file each (.txt)" in said
    assert set(prompts(tmp_path, layout="metadata").values()) == {"of the metadata"}
    assert prompts(tmp_path, layout="captions") == PROMPTS
    write_table(tmp_path, "pairs.jsonl", {"000.png": "of the pairs"})
    assert prompts(tmp_path) == {"000.png": "of the pairs"}


def test_two_files_of_rows_side_by_side_are_refused(tmp_path):
    write_images(tmp_path, *PROMPTS)
    write_table(tmp_path, "first.csv", PROMPTS)
    write_table(tmp_path, "second.jsonl", PROMPTS)
    assert "first.csv, second.jsonl all hold rows: name one" in refusal(tmp_path)
    assert prompts(tmp_path / "second.jsonl") == PROMPTS
    (tmp_path / "second.jsonl").unlink()
    write_table(tmp_path, "notes.csv", {"height": "12"}, "key", "value")
    assert prompts(tmp_path) == PROMPTS
    assert "notes.csv (not the rows)" in line(tmp_path)


def test_images_that_no_folder_of_rows_has_are_counted(tmp_path):
    write_images(tmp_path, *(f"train/{path}" for path in PROMPTS), "train/more.png", "extra/a.png", "extra/b.png")
    write_table(tmp_path / "train", "metadata.csv", PROMPTS)
    assert "6 rows" in line(tmp_path)
    assert "7 images lie there; left aside: 2 images in extra/ (no rows are read there)" in line(tmp_path)


def test_structs_that_name_a_file_are_paths(tmp_path):
    write_images(tmp_path, "a.png")
    write_lines(tmp_path / "pairs.jsonl", {"text": "x", "image": {"path": "a.png", "bytes": None}})
    column = pa.array([{"path": "a.png", "bytes": None}], pa.struct({"path": pa.string(), "bytes": pa.binary()}))
    write_parquet(tmp_path / "other" / "a.parquet", text=["x"], image=column)
    assert outcomes(tmp_path) == outcomes(tmp_path / "other", image_root=str(tmp_path)) == ["000000_a"]
