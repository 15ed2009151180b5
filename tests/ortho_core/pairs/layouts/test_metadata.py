import json
import unicodedata

import pyarrow as pa
import pytest

from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import PairFields
from tests.ortho_core.pairs.made import (
    line,
    outcomes,
    prompts,
    read_all,
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
    assert "6 images in its folders; nothing left aside" in line(tmp_path)


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
        assert "the first of several captions is used (--caption chooses)" in line(tmp_path)
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
    assert "first.csv, second.jsonl all contain rows: name one" in refusal(tmp_path)
    assert prompts(tmp_path / "second.jsonl") == PROMPTS
    (tmp_path / "second.jsonl").unlink()
    write_table(tmp_path, "notes.csv", {"height": "12"}, "key", "value")
    assert prompts(tmp_path) == PROMPTS
    assert "notes.csv (not the rows)" in line(tmp_path)


def test_images_that_no_folder_of_rows_has_are_counted(tmp_path):
    write_images(tmp_path, *(f"train/{path}" for path in PROMPTS), "train/more.png", "extra/a.png", "extra/b.png")
    write_table(tmp_path / "train", "metadata.csv", PROMPTS)
    assert "6 rows" in line(tmp_path)
    assert "7 images in its folders; left aside: 2 images in extra/ (no rows refer to this folder)" in line(tmp_path)


def test_structs_that_name_a_file_are_paths(tmp_path):
    write_images(tmp_path, "a.png")
    write_lines(tmp_path / "pairs.jsonl", {"text": "x", "image": {"path": "a.png", "bytes": None}})
    column = pa.array([{"path": "a.png", "bytes": None}], pa.struct({"path": pa.string(), "bytes": pa.binary()}))
    write_parquet(tmp_path / "other" / "a.parquet", text=["x"], image=column)
    assert outcomes(tmp_path) == outcomes(tmp_path / "other", image_root=str(tmp_path)) == ["000000_a"]


COCO = {
    "info": {"year": 2017},
    "images": [{"id": 7, "file_name": "a.png", "height": 8}, {"id": 9, "file_name": "b.png"}],
    "annotations": [
        {"image_id": 9, "id": 1, "caption": "b first"},
        {"image_id": 7, "id": 2, "caption": "a"},
        {"image_id": 9, "id": 3, "caption": "b again"},
    ],
}


def test_cocos_captions_are_several_of_the_image_whose_id_they_name(tmp_path):
    write_images(tmp_path / "train2017", "a.png", "b.png")
    file = write_lines(tmp_path / "annotations/captions_train2017.json", COCO)
    write_lines(
        tmp_path / "annotations/instances_train2017.json", {"images": COCO["images"], "annotations": [{"image_id": 7}]}
    )
    assert prompts(tmp_path, 1) == {"train2017/a.png": "a", "train2017/b.png": "b first"}
    assert [row.prompt for row in read_all(PairSet(tmp_path, PairFields(caption="all")), 2)] == [
        "a",
        "b first",
        "b again",
    ]
    assert "the first of several captions is used" in line(tmp_path)
    before = PairSet(tmp_path).fingerprint()
    file.write_text(file.read_text().replace("b again", "b other"))
    assert PairSet(tmp_path).fingerprint() != before


@pytest.mark.parametrize("key", ["data", "images", "annotations"])
def test_rows_of_json_may_lie_under_a_key(tmp_path, key):
    write_images(tmp_path, *PROMPTS)
    rows = [{"image": name, "caption": text} for name, text in PROMPTS.items()]
    (tmp_path / "a.json").write_text(
        json.dumps({"version": [1, 2], "license": {"id": 1}, key: rows, "end": []}, indent=1)
    )
    assert prompts(tmp_path, 2) == PROMPTS


@pytest.mark.parametrize("kohya", [False, True])
def test_names_without_suffixes_find_their_images(tmp_path, kohya):
    write_images(tmp_path, "img/a.png", "img/b.JPG", "img/c.v2.png")
    rows = {"a": "one", "b": "two", "c.v2": "three"}
    (tmp_path / "meta.json").write_text(
        json.dumps({name: {"caption": text, "tags": "x"} if kohya else text for name, text in rows.items()})
    )
    assert prompts(tmp_path) == {"img/a.png": "one", "img/b.JPG": "two", "img/c.v2.png": "three"}
    assert ("there is also tags (--prompt-field)" in line(tmp_path)) == kohya


def test_an_object_of_other_things_is_no_file_of_rows(tmp_path):
    write_images(tmp_path, "1/1.png", "2/2.png")
    (tmp_path / "cat_to_name.json").write_text('{"1": "rose", "2": "lily"}')
    assert "none of the first images of cat_to_name.json was found, for example '1'" in refusal(tmp_path)
    assert "none of the first images" in refusal(tmp_path / "cat_to_name.json")


def test_cells_in_a_text_file_are_rows(tmp_path):
    write_images(tmp_path / "Images", "1.jpg", "2.jpg")
    write_lines(tmp_path / "captions.txt", "image,caption", "1.jpg,one", "2.jpg,two")
    write_lines(tmp_path / "README.txt", "what this is")
    assert prompts(tmp_path) == {"Images/1.jpg": "one", "Images/2.jpg": "two"}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("c.csv", "image_id,caption\na,one\n", "c.csv has the fields image_id, caption, and none of them is the image"),
        (
            "c.csv",
            "image,caption\n/home/me/a.png,one\n",
            "none of the first images of c.csv was found, for example '/home/me/a.png'",
        ),
        ("c.tsv", "one\thttps://x.org/a.png\n", "for example 'https://x.org/a.png' (URLs are not downloaded)"),
        (
            "c.csv",
            "image,caption\na.png,caf\xe9\n".encode("latin-1"),
            "none of its first rows can be read: not text in UTF-8",
        ),
        (
            "c.json",
            '{"image": {"0": "a.png"}, "caption": {"0": "one"}}',
            "c.json: it is an object with image, caption; accepted",
        ),
        (
            "c.csv",
            "version https://git-lfs.github.com/spec/v1\noid 1\n",
            "a git-lfs pointer, not the file itself",
        ),
    ],
)
def test_a_refusal_says_why_a_file_of_rows_is_none(tmp_path, name, content, says):
    write_images(tmp_path, "a.png")
    write_lines(tmp_path / name, content)
    assert says in refusal(tmp_path)


def test_excels_first_line_and_blanks_around_cells_are_passed_over(tmp_path):
    write_images(tmp_path, "a.png")
    write_lines(tmp_path / "c.csv", "sep=;", "image ; text", " a.png ; one ")
    assert prompts(tmp_path) == {"a.png": "one"}


@pytest.mark.parametrize("name", ["metadata.parquet", "train.parquet"])
def test_images_of_parquet_are_looked_for_as_those_of_other_files(tmp_path, name):
    write_images(tmp_path, "images/a.png", "images/b.png")
    write_table(tmp_path, name, {"a.png": "one", "b.png": "two"})
    assert prompts(tmp_path) == {"images/a.png": "one", "images/b.png": "two"}
    assert "these in images/" in line(tmp_path)
