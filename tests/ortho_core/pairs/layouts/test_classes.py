import pytest

from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import PairFields
from tests.ortho_core.pairs.made import line, outcomes, png, prompts, refusal, write_captions, write_images, write_lines


def write_classes(folder, *names, images=3):
    write_images(folder, *(f"{name}/{i}.png" for name in names for i in range(images)))
    return folder


def test_folders_that_nothing_speaks_against_are_classes(tmp_path):
    write_classes(tmp_path, "cat", "dog", "with_mask", "no_mask")
    assert prompts(tmp_path) == {f"{c}/{i}.png": c for c in ("cat", "dog", "no_mask", "with_mask") for i in range(3)}
    assert line(tmp_path) == (
        "4 class folders: 12 images; the prompt is the folder's name: cat, dog, no_mask, ...; nothing left aside"
    )


def test_images_of_every_suffix_that_is_decoded_are_read_and_the_others_counted(tmp_path):
    from PIL import Image

    picture = Image.new("RGB", (8, 8), "red")
    for name, form in {"cat/a.avif": "AVIF", "cat/b.PNG": "PNG", "dog/c.jfif": "JPEG", "dog/d.jp2": "JPEG2000"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture.save(tmp_path / name, form)
    for name in ("cat/e.cr2", "dog/f.svg", "dog/g.svg", ".hidden.png"):
        (tmp_path / name).write_bytes(b"x")
    assert outcomes(tmp_path) == ["000000_a", "000001_b", "000002_c", "000003_d"]
    assert "left aside: 2 .svg (no decoder), 1 .cr2 (no decoder), 1 hidden name" in line(tmp_path)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"images": ["train/0.png", "test/0.png"], "classes": []}, "test, train have names of splits"),
        ({"images": ["preview.png"]}, "1 image is at another depth"),
        ({"images": ["cat/black/0.png"]}, "1 image is at another depth"),
        ({"classes": ["10_cat", "5_dog"]}, "10_cat, 5_dog look like kohya's REPEATS_name"),
        ({"images": ["samples/0.png"]}, "samples is not a class name"),
        ({"classes": ["images", "masks"]}, "images, masks are not class names"),
        ({"files": {"cat/0.txt": "a cat"}}, "there is 1 image with a caption file each (.txt)"),
        ({"files": {"notes.txt": "a note"}}, "there is 1 text file"),
        (
            {"files": {"prompt.json": '{"source": "cat/0.png", "prompt": "x"}'}},
            "prompt.json may contain captions of the images",
        ),
        ({"classes": ["source", "target"]}, "source, target are not class names"),
        ({"classes": ["instance_images", "class_images"]}, "class_images, instance_images are not class names"),
        (
            {"classes": ["00000", "00001"]},
            "00000, 00001 are not class names",
        ),  # parts, as img2dataset and FFHQ have them
        ({"classes": ["2023-01", "2023-02"]}, "2023-01, 2023-02 are not class names"),
        ({"classes": ["part1", "part_2"]}, "part1, part_2 are not class names"),
        ({"classes": ["trainA", "trainB"]}, "trainA, trainB have names of splits"),
        ({"classes": ["DIV2K_train_HR", "DIV2K_valid_HR"]}, "have names of splits"),
        ({"files": {"run/plan.json": '{"run_fingerprint": "0"}'}}, "run/ is the output of `ortho`"),
    ],
)
def test_what_speaks_against_classes_is_told_with_the_option_that_takes_them_all_the_same(tmp_path, more, says):
    write_classes(tmp_path, *more.get("classes", ["cat", "dog"]))
    write_images(tmp_path, *more.get("images", []))
    for name, text in more.get("files", {}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    said = refusal(tmp_path)
    assert says in said
    assert "--layout classes" in said
    assert ".png" in said  # what lies there
    top = {image.split("/")[0] for image in prompts(tmp_path, layout="classes")}
    assert set(prompts(tmp_path, layout="classes").values()) == top


def test_images_left_aside_by_the_choice_are_counted(tmp_path):
    write_classes(tmp_path, "cat", "dog")
    write_images(tmp_path, "preview.png", "cat/black/0.png", "cat/black/1.png")
    said = line(tmp_path, layout="classes")
    assert "6 images" in said
    assert "3 images in the folder itself, cat/black/ (another split, or not a class)" in said


def test_a_folder_of_metadata_is_no_set_of_classes(tmp_path):
    write_classes(tmp_path, "cat", "dog")
    write_lines(tmp_path / "metadata.jsonl", {"file_name": "cat/0.png", "text": "a cat"})
    assert prompts(tmp_path) == {"cat/0.png": "a cat"}


def test_splits_with_classes_stand_for_training_and_each_can_be_asked_for(tmp_path):
    for split in ("train", "val", "test"):
        write_classes(tmp_path / split, "cat", "dog", images=2)
    assert prompts(tmp_path) == prompts(tmp_path / "train") == prompts(tmp_path, split="train")
    assert set(prompts(tmp_path)) == {"cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"}
    assert "split train" in line(tmp_path)
    assert "8 images in test/cat/, test/dog/, val/cat/, ... (another split, or not a class)" in line(tmp_path)
    assert PairSet(tmp_path, PairFields(split="validation")).root.location == str(tmp_path / "val")
    assert "no split 'dev2'" in refusal(tmp_path, split="dev2", layout="classes")


def test_one_folder_of_images_has_no_prompts(tmp_path):
    write_classes(tmp_path, "images")
    assert "no pair set at" in refusal(tmp_path)
    assert "--prompt TEXT" in refusal(tmp_path)
    assert set(prompts(tmp_path, prompt="a red square").values()) == {"a red square"}


def test_images_alone_get_the_one_prompt_wherever_they_lie(tmp_path):
    write_images(tmp_path, "a.png", "sub/b.png", "sub/deep/c.png", "masks/a.png", "a_mask.png")
    assert prompts(tmp_path, prompt="x") == {"a.png": "x", "sub/b.png": "x", "sub/deep/c.png": "x"}
    said = line(tmp_path, prompt="x")
    assert said.startswith("images in 3 folders: 3 images; --prompt 'x' for all; left aside: ")
    assert "1 image in masks/ (masks or conditions)" in said
    assert "1 image beside others" in said
    others = {PairSet(tmp_path, PairFields(prompt=prompt)).fingerprint() for prompt in ("x", "y")}
    assert len(others) == 2


def test_one_prompt_is_for_folders_of_any_name(tmp_path):
    write_classes(tmp_path, "train", "test", images=1)
    assert len(prompts(tmp_path, prompt="x")) == 2
    assert prompts(tmp_path, prompt="x", split="test") == {"test/0.png": "x"}


def test_a_choice_that_nothing_fits_is_refused(tmp_path):
    write_captions(tmp_path, {"a.png": "x"})
    for layout, says in {
        "classes": "no folder of images",
        "images": "--layout images: give the prompt",
        "metadata": "no file in",
        "labelled": "has no files of labelled images",
        "parquet": "no .parquet file",
        "arrow": "no .arrow file",
        "webdataset": "no .tar file",
    }.items():
        assert says in refusal(tmp_path, layout=layout)
    (tmp_path / "a.txt").unlink()
    assert "no image in" in refusal(tmp_path, layout="captions")


def test_numbered_json_beside_images_is_no_file_of_labelled_images(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
        (tmp_path / f"{i}.json").write_text(f'{{"prompt": "number {i}"}}')
    assert prompts(tmp_path) == {f"{i}.png": f"number {i}" for i in range(3)}


@pytest.mark.parametrize(
    "names",
    [
        ("0", "1", "11"),
        ("001.Albatross", "002.Auk"),
        ("n01440764", "n01443537"),
        ("NORMAL", "PNEUMONIA"),
        ("bullet train", "tree pose"),
    ],
)
def test_numbers_and_words_that_classes_have_are_classes(tmp_path, names):
    write_classes(tmp_path, *names, images=1)
    assert prompts(tmp_path) == {f"{name}/0.png": name for name in names}


def test_the_one_folder_that_an_archive_unpacks_to_is_no_class(tmp_path):
    write_classes(tmp_path, *(f"afhq/{split}/{name}" for split in ("train", "val") for name in ("cat", "dog")))
    assert set(prompts(tmp_path).values()) == {"cat", "dog"}
    assert line(tmp_path).startswith("2 class folders in afhq/: 6 images")
    assert "left aside: 6 images in afhq/train/cat/, afhq/train/dog/" in line(tmp_path, split="val")


def test_split_folders_may_have_the_names_that_sets_give_them(tmp_path):
    write_classes(tmp_path, "training_set/cats", "training_set/dogs", "test_set/cats")
    assert set(prompts(tmp_path)) == {f"{c}/{i}.png" for c in ("cats", "dogs") for i in range(3)}
    assert "split train; left aside: 3 images in test_set/cats/" in line(tmp_path)
