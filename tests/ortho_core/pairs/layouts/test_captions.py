import unicodedata

import pytest

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
    write_captions,
    write_images,
    write_lines,
)

CAPTIONS = {f"{i:03d}.png": f"caption {i}" for i in range(7)}


@pytest.mark.parametrize("suffix", [".txt", ".caption", ".TXT"])
@pytest.mark.parametrize("folder", ["", "images/", "a/b/c/"])
def test_a_text_file_beside_an_image_is_its_caption_wherever_they_lie(tmp_path, suffix, folder):
    captions = {folder + name: text + "\n" for name, text in CAPTIONS.items()}
    write_captions(tmp_path, captions, suffix)
    for size in (1, 3, 100):
        assert prompts(tmp_path, size) == {name: text.strip() for name, text in captions.items()}
    assert line(tmp_path) == (
        f"images with caption files, in 1 folder: 7 images; captions from {suffix} beside each image; nothing left aside"
    )


def test_kohyas_folders_give_their_captions_and_a_word_on_the_repeats(tmp_path):
    write_captions(tmp_path, {"10_red/000.png": "a red one", "5_blue/001.png": "a blue one"})
    assert prompts(tmp_path) == {"10_red/000.png": "a red one", "5_blue/001.png": "a blue one"}
    assert "the repeats of 10_red, 5_blue are not applied, each image is one row" in line(tmp_path)
    assert prompts(tmp_path / "5_blue") == {"001.png": "a blue one"}


def test_rows_are_named_by_number_and_image_though_folders_repeat_the_name(tmp_path):
    write_captions(tmp_path, {"b/x.png": "1", "a/x.png": "2", "a/y.JPG": "3"})
    assert outcomes(tmp_path) == ["000000_x", "000001_y", "000002_x"]


def test_the_same_from_a_bucket_and_from_another_process(tmp_path, s3):
    import pickle

    write_captions(tmp_path, {f"f{i % 3}/{name}": text for i, (name, text) in enumerate(CAPTIONS.items())})
    url = s3()
    for name, _ in LocalStore(tmp_path).find(""):
        open_store(url).replace(name, (tmp_path / name).read_bytes())
    local, remote = PairSet(tmp_path), PairSet(url)
    assert local.fingerprint() == remote.fingerprint()
    assert local.line() == remote.line()
    rows = read_all(local, 2)
    assert read_all(remote, 2) == rows
    sent = pickle.loads(pickle.dumps(local))
    assert [row for shard in local.shards(2) for row in sent.read(shard)] == rows
    assert len(pickle.dumps(local)) < 1_000


def test_an_image_without_a_caption_is_a_bad_row_and_a_caption_without_an_image_is_counted(tmp_path):
    write_captions(tmp_path, {"a.png": "x", "c.png": "z", "d.png": "  \n"})
    write_images(tmp_path, "b.png")
    (tmp_path / "readme.txt").write_text("about this set")
    assert outcomes(tmp_path) == ["000000_a", "missing-prompt", "000002_c", "missing-prompt"]
    assert "4 images; " in line(tmp_path)
    assert "1 image without a caption file will be quarantined" in line(tmp_path)
    assert "left aside: 1 text file without an image" in line(tmp_path)


def test_a_caption_may_be_named_by_the_whole_name_of_its_image(tmp_path):
    write_images(tmp_path, "a.png", "b.png")
    for name in ("a", "b"):
        (tmp_path / f"{name}.png.txt").write_text(name)
    assert prompts(tmp_path) == {"a.png": "a", "b.png": "b"}


@pytest.mark.parametrize(("image", "caption"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_match_in_whichever_way_a_system_writes_them(tmp_path, image, caption):
    write_images(tmp_path, unicodedata.normalize(image, "café.png"))
    (tmp_path / unicodedata.normalize(caption, "café.txt")).write_text("x", encoding="utf-8")
    assert list(prompts(tmp_path).values()) == ["x"]


def test_captions_may_be_in_utf_16_and_what_is_neither_is_a_bad_row(tmp_path):
    write_captions(tmp_path, {"a.png": "", "b.png": "", "c.png": ""})
    (tmp_path / "a.txt").write_bytes("é".encode("utf-16"))
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfmarked")
    (tmp_path / "c.txt").write_bytes(b"caf\xe9")
    assert prompts(tmp_path) == {"a.png": "é", "b.png": "marked", "row 2": "not-text"}


def test_quotes_and_line_ends_stay_and_a_choice_takes_one_of_the_lines(tmp_path):
    write_captions(tmp_path, {"a.png": 'a "first", line\nthe longer second line\n', "b.png": "one"})
    assert prompts(tmp_path)["a.png"] == 'a "first", line\nthe longer second line'
    assert "a text file with several lines is one caption (--caption chooses among lines)" in line(tmp_path)
    assert prompts(tmp_path, caption="first")["a.png"] == 'a "first", line'
    assert prompts(tmp_path, caption="longest")["a.png"] == "the longer second line"
    for size in (1, 2, 100):
        every = read_all(PairSet(tmp_path, PairFields(caption="all")), size)
        assert [(row.row, row.prompt, row.image) for row in every] == [
            (0, 'a "first", line', "a.png"),
            (1, "the longer second line", "a.png"),
            (2, "one", "b.png"),
        ]
    assert PairSet(tmp_path, PairFields(caption="all")).rows() == 3
    assert len({PairSet(tmp_path, PairFields(caption=c)).fingerprint() for c in (None, "first", "all")}) == 3


def test_two_caption_files_of_an_image_are_refused_until_one_kind_is_chosen(tmp_path):
    write_captions(tmp_path, CAPTIONS)
    write_captions(tmp_path, {name: f"tags {i}" for i, name in enumerate(CAPTIONS)}, ".caption")
    said = refusal(tmp_path)
    assert "7 images have several; --prompt-field caption or txt chooses" in said
    assert prompts(tmp_path, prompt_field="txt") == CAPTIONS
    assert prompts(tmp_path, prompt_field="caption")["003.png"] == "tags 3"


def test_json_beside_an_image_is_read_where_there_is_no_text(tmp_path):
    for name, text in CAPTIONS.items():
        write_images(tmp_path, name)
        (tmp_path / name).with_suffix(".json").write_text(f'{{"id": 3, "caption": "{text}", "tags": ["x", "y"]}}')
    assert prompts(tmp_path) == CAPTIONS
    assert prompts(tmp_path, prompt_field="tags")["000.png"] == "x"
    write_captions(tmp_path, dict.fromkeys(CAPTIONS, "of the text"))
    assert prompts(tmp_path)["000.png"] == "of the text"


def test_masks_and_conditions_are_named_and_are_no_targets(tmp_path):
    write_captions(tmp_path, {f"images/{name}": text for name, text in CAPTIONS.items()})
    write_images(tmp_path, *(f"masks/{name}" for name in CAPTIONS), "conditioning_images/000.png")
    write_images(tmp_path, "images/000-masklabel.png", "images/001_depth.png")
    write_captions(tmp_path, {"control/000.png": "a copy of the caption"})
    assert set(prompts(tmp_path)) == {f"images/{name}" for name in CAPTIONS}
    said = line(tmp_path)
    assert "9 images in conditioning_images/, control/, masks/ (masks or conditions)" in said
    assert "2 images beside others (masks or conditions, by their names)" in said


def test_folders_of_samples_without_captions_are_counted_and_cost_no_row(tmp_path):
    write_captions(tmp_path, {f"10_dog/{name}": text for name, text in CAPTIONS.items()})
    write_images(tmp_path, *(f"samples/{i}.png" for i in range(30)), "reg/1_dog/a.png")
    assert len(prompts(tmp_path)) == 7
    assert "31 images in reg/1_dog/, samples/ (without captions)" in line(tmp_path)


def test_a_few_captions_among_many_images_are_no_reading_that_is_taken_by_itself(tmp_path):
    write_images(tmp_path, *(f"{label}/{i}.png" for label in ("cat", "dog") for i in range(9)))
    (tmp_path / "cat" / "0.txt").write_text("a note")
    said = refusal(tmp_path)
    assert "17 of 18 images have no caption file" in said
    assert "--layout captions" in said
    assert "--layout classes" in said
    assert len(prompts(tmp_path, layout="classes")) == 18
    assert outcomes(tmp_path, layout="captions").count("missing-prompt") == 8


def test_split_folders_are_all_read_or_the_one_that_is_asked_for(tmp_path):
    write_captions(tmp_path, {"train/a.png": "1", "train/sub/b.png": "2", "val/c.png": "3"})
    assert len(prompts(tmp_path)) == 3
    assert "the splits train, validation are all read (--split names one)" in line(tmp_path)
    assert prompts(tmp_path, split="train") == {"train/a.png": "1", "train/sub/b.png": "2"}
    assert prompts(tmp_path, split="validation") == prompts(tmp_path, split="val") == {"val/c.png": "3"}
    assert "no split 'test'" in refusal(tmp_path, split="test")


def test_the_fingerprint_is_of_names_and_captions(tmp_path):
    def of(captions):
        import shutil

        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        return PairSet(write_captions(tmp_path / "set", captions)).fingerprint()

    made = {of(CAPTIONS), of({**CAPTIONS, "003.png": "other"}), of({**CAPTIONS, "9.png": "x"}), of({"000.png": "x"})}
    assert len(made) == 4
    assert of(CAPTIONS) in made


def test_options_that_say_nothing_of_such_a_set_are_refused(tmp_path):
    write_captions(tmp_path, CAPTIONS)
    assert "--id-field: " in refusal(tmp_path, id_field="key")
    assert "--image-field: " in refusal(tmp_path, image_field="key")
    assert "--prompt-field words: " in refusal(tmp_path, prompt_field="words")
    ways = refusal(tmp_path, prompt="x")
    assert "can be read in 2 ways" in ways
    assert "--layout images" in ways
    assert set(prompts(tmp_path, prompt="one for all", layout="images").values()) == {"one for all"}
    assert "--prompt: " in refusal(tmp_path, prompt="x", layout="captions")


def test_img2datasets_files_are_read_by_their_captions(tmp_path):
    from tests.ortho_core.pairs.made import write_parquet

    for shard in ("00000", "00001"):
        for i in range(3):
            key = f"{shard}{i:04d}"
            write_captions(tmp_path, {f"{shard}/{key}.jpg": f"caption {key}"})
            (tmp_path / shard / f"{key}.json").write_text(
                f'{{"caption": "caption {key}", "url": "u", "status": "success"}}'
            )
        write_parquet(
            tmp_path / f"{shard}.parquet", url=["u"] * 3, caption=["x"] * 3, key=["k"] * 3, status=["success"] * 3
        )
        (tmp_path / f"{shard}_stats.json").write_text('{"count": 3, "successes": 3}')
    assert prompts(tmp_path) == {
        f"{s}/{s}000{i}.jpg": f"caption {s}000{i}" for s in ("00000", "00001") for i in range(3)
    }
    assert "left aside: 2 .json, 2 .parquet" in line(tmp_path)


def test_an_image_that_its_link_leads_out_of_the_set_is_outside(tmp_path):
    (tmp_path / "secret.png").write_bytes(png())
    write_captions(tmp_path / "set", {"a.png": "x"})
    (tmp_path / "set" / "b.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "set" / "b.txt").write_text("y")
    (tmp_path / "secret.txt").write_text("secret words")
    write_images(tmp_path / "set", "c.png")
    (tmp_path / "set" / "c.txt").symlink_to(tmp_path / "secret.txt")
    assert outcomes(tmp_path / "set") == ["000000_a", "outside-root", "outside-root"]


@pytest.mark.parametrize(
    ("images", "texts"),
    [("images", "captions"), ("", "captions"), ("train/images", "train/labels"), ("images/001.Bird", "text/001.Bird")],
)
def test_captions_may_lie_in_a_folder_beside_that_of_their_images(tmp_path, images, texts):
    write_images(tmp_path / images, "a.png", "b.jpg")
    for name in ("a", "b", "c"):
        write_lines(tmp_path / texts / f"{name}.txt", f"caption {name}")
    base = f"{images}/" if images else ""
    assert prompts(tmp_path) == {f"{base}a.png": "caption a", f"{base}b.jpg": "caption b"}
    assert f"captions from .txt in {texts}/; left aside: 1 text file without an image" in line(tmp_path)


def test_captions_that_may_be_of_two_folders_or_in_two_are_refused(tmp_path):
    write_images(tmp_path, "a/1.png", "b/1.png")
    write_lines(tmp_path / "captions/1.txt", "one")
    assert "captions/ may have the captions of a/ or b/" in refusal(tmp_path)
    (tmp_path / "b/1.png").unlink()
    write_lines(tmp_path / "tags/1.txt", "cat")
    assert "the captions of a/ may be in captions or tags" in refusal(tmp_path)


@pytest.mark.parametrize("folder", ["", "labels"])
def test_text_files_of_boxes_are_no_captions(tmp_path, folder):
    write_images(tmp_path / ("images" if folder else ""), "a.png", "b.png")
    for name in ("a", "b"):
        write_lines(tmp_path / folder / f"{name}.txt", "0 0.5 0.5 0.1 0.25", "12 0.1 0.5 0.1 0.2")
    assert "contain only numbers, like object boxes" in refusal(tmp_path)


def test_json_beside_images_that_says_no_caption_is_told(tmp_path):
    write_captions(tmp_path, {"a.png": '{"shapes": [], "note": "a cat"}'}, ".json")
    assert "have no caption in a usual field (--prompt-field names one)" in refusal(tmp_path)
    assert prompts(tmp_path, prompt_field="note") == {"a.png": "a cat"}


@pytest.mark.parametrize("folder", ["depth", "canny_images", "pose", "normal_maps"])
def test_conditions_are_no_targets_though_they_have_captions(tmp_path, folder):
    write_captions(tmp_path, {"images/a.png": "a cat", f"{folder}/a.png": "a cat"})
    assert prompts(tmp_path) == {"images/a.png": "a cat"}
    assert f"left aside: 1 image in {folder}/ (masks or conditions)" in line(tmp_path)


def test_split_folders_of_any_name_are_splits(tmp_path):
    write_captions(tmp_path, {"train2017/a.png": "one", "val2017/b.png": "two"})
    assert "the splits train, validation are all read" in line(tmp_path)
    assert prompts(tmp_path, split="train") == prompts(tmp_path, split="train2017") == {"train2017/a.png": "one"}


def test_a_snapshot_of_the_hubs_cache_is_read_though_its_files_are_links(tmp_path):
    write_captions(tmp_path / "blobs", {"1.png": "a cat"})
    write_captions(tmp_path / "other", {"1.png": "a dog"})
    for place, name in (("blobs", "in"), ("other", "out")):
        for suffix in (".png", ".txt"):
            link = tmp_path / "snapshots/0a1b" / f"{name}{suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(f"../../{place}/1{suffix}")
    assert prompts(tmp_path / "snapshots/0a1b") == {"in.png": "a cat", "row 1": "outside-root"}


def test_links_to_nowhere_are_named(tmp_path):
    write_captions(tmp_path, {"a.png": "a cat"})
    (tmp_path / "b.png").symlink_to("nowhere.png")
    assert "left aside: 1 name (b.png: not a file)" in line(tmp_path)
