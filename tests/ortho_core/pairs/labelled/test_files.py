"""Sets of labelled images in their own files, against the arrays that these were written from."""

import json
import pickle
import shutil

import numpy as np
import pytest

from ortho_core.errors import BadRow, UserError
from ortho_core.pairs.labelled import arrays as class_arrays
from ortho_core.pairs.labelled.files import CIFAR10
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import PairFields
from ortho_core.storage.local import LocalStore
from ortho_core.storage.open import open_store
from tests.ortho_core.pairs.labelled.class_sets import (
    colour,
    grey,
    labels_of,
    write_cifar,
    write_class_json,
    write_folders,
    write_idx,
    write_labelled_parquet,
    write_sheets,
)
from tests.ortho_core.pairs.made import read_all

NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibex", "jay"]


def content(location, size):
    """Prompts, and images (n, Y, X, 3), of a whole set in shards of four rows."""
    pairs = PairSet(location)
    rows = read_all(pairs, 4)
    assert pairs.rows() == len(rows)
    assert [row.row for row in rows] == list(range(len(rows)))
    assert len({row.sample_id for row in rows}) == len(rows)
    return [row.prompt for row in rows], np.stack(pairs.images(rows, (size, size)))


def as_rgb(images):
    return np.stack([images] * 3, -1) if images.ndim == 3 else images


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_give_what_torchvision_reads_in_them(tmp_path, zipped):
    from torchvision.datasets.mnist import read_image_file, read_label_file

    train, test = grey(11), grey(6, seed=1)
    for split, images in (("train", train), ("t10k", test)):
        write_idx(tmp_path / "plain", split, images, labels_of(len(images)))
        write_idx(tmp_path / "set", split, images, labels_of(len(images)), zipped)
    for split, name in (("", "train"), ("/train", "train"), ("/test", "t10k")):
        prompts, images = content(f"{tmp_path / 'set'}{split}", 28)
        expected = read_image_file(str(tmp_path / "plain" / f"{name}-images-idx3-ubyte")).numpy()
        labels = read_label_file(str(tmp_path / "plain" / f"{name}-labels-idx1-ubyte"))
        np.testing.assert_array_equal(images, as_rgb(expected))
        assert prompts == [str(int(label)) for label in labels]


def test_both_forms_of_one_idx_file_are_one_file(tmp_path):
    for zipped in (False, True):
        write_idx(tmp_path, "train", grey(5), labels_of(5), zipped)
    assert PairSet(tmp_path).rows() == 5


def test_cifars_binary_batches_are_read_in_the_order_of_their_numbers(tmp_path):
    images, labels = colour(12), labels_of(12)
    for number, part in ((1, slice(0, 5)), (2, slice(5, 7)), (10, slice(7, 12))):
        write_cifar(tmp_path / f"data_batch_{number}.bin", images[part], labels[part])
    write_cifar(tmp_path / "test_batch.bin", images[:3], labels[:3])
    prompts, pixels = content(tmp_path, 32)
    np.testing.assert_array_equal(pixels, images)
    assert prompts == [CIFAR10[label] for label in labels]
    assert PairSet(tmp_path / "test").rows() == 3


def test_a_sheet_has_one_image_to_a_line_and_the_labels_of_all_sheets_are_one_list(tmp_path):
    images, labels = colour(9), labels_of(9)
    write_sheets(tmp_path, "train", {"data_batch_1.png": images[:4], "data_batch_2.png": images[4:]}, labels)
    write_sheets(tmp_path, "test", {"test_batch.png": images[:2]}, labels[:2])
    prompts, pixels = content(tmp_path / "train", 32)
    np.testing.assert_array_equal(pixels, images)
    assert prompts == [CIFAR10[label] for label in labels]
    assert content(tmp_path / "test", 32)[0] == prompts[:2]


def test_of_a_json_file_per_class_the_last_seventh_is_the_test_split(tmp_path):
    images = {label: grey(n, seed=label) for label, n in ((0, 14), (1, 7), (10, 8))}
    for label, mine in images.items():
        write_class_json(tmp_path, label, mine)
    prompts, pixels = content(tmp_path, 28)
    assert prompts == ["0"] * 12 + ["1"] * 6 + ["10"] * 7
    np.testing.assert_array_equal(pixels, as_rgb(np.concatenate([images[0][:12], images[1][:6], images[10][:7]])))
    prompts, pixels = content(tmp_path / "test", 28)
    assert prompts == ["0", "0", "1", "10"]
    np.testing.assert_array_equal(pixels, as_rgb(np.concatenate([images[0][12:], images[1][6:], images[10][7:]])))


def test_a_folder_per_class_names_it_with_splits_or_without(tmp_path):
    images, labels = colour(10, 8), labels_of(10)
    write_folders(tmp_path / "flat", images, labels, NAMES)
    order = np.argsort(labels, kind="stable")
    prompts, pixels = content(tmp_path / "flat", 8)
    assert prompts == [NAMES[label] for label in labels[order]]
    np.testing.assert_array_equal(pixels, images[order])
    write_folders(tmp_path / "split" / "train", images, labels, NAMES)
    write_folders(tmp_path / "split" / "test", images[:4], labels[:4], NAMES)
    assert content(tmp_path / "split", 8)[0] == prompts
    assert content(tmp_path / "split" / "train", 8)[0] == prompts
    assert PairSet(tmp_path / "split" / "test").rows() == 4


def test_class_numbers_in_parquet_are_prompts_by_the_names_that_the_file_has(tmp_path):
    images, labels = colour(6), labels_of(6)
    write_labelled_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", images, labels, NAMES)
    write_labelled_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", images[:2], labels[:2], None)
    prompts, pixels = content(tmp_path / "train", 32)
    assert prompts == [NAMES[label] for label in labels]
    np.testing.assert_array_equal(pixels, images)
    assert content(tmp_path / "test", 32)[0] == [str(label) for label in labels[:2]]
    pairs = PairSet(tmp_path / "data")
    assert pairs.rows() == 8


def test_a_set_in_a_bucket_reads_the_same_and_so_does_a_pickled_one(tmp_path, s3):
    write_idx(tmp_path / "idx", "t10k", grey(9), labels_of(9), zipped=True)
    write_folders(tmp_path / "folders", colour(9, 8), labels_of(9), NAMES)
    for name, split, size in (("idx", "/test", 28), ("folders", "", 8)):
        url = s3()
        for file, _ in LocalStore(tmp_path / name).find(""):
            open_store(url).replace(file, (tmp_path / name / file).read_bytes())
        local, remote = PairSet(f"{tmp_path / name}{split}"), PairSet(f"{url}{split}")
        assert local.fingerprint() == remote.fingerprint()
        shards = local.shards(4)
        rows = [row for shard in shards for row in local.read(shard)]
        sent = len(pickle.dumps(local))
        local.images(rows, (size, size))
        assert len(pickle.dumps(local)) == sent < 1_500
        for other in (remote, pickle.loads(pickle.dumps(local))):
            assert [row for shard in shards for row in other.read(shard)] == rows
            assert all(other.fetch_image(row.image, "x") == local.fetch(row) for row in rows)


def test_the_fingerprint_changes_with_images_labels_and_split(tmp_path):
    def of(images, labels, split="train"):
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        return PairSet(f"{write_idx(tmp_path / 'set', split, images, labels)}").fingerprint()

    first, labels = grey(5), labels_of(5)
    made = [of(first, labels), of(grey(5, seed=1), labels), of(first, labels[::-1]), of(first[:4], labels[:4])]
    assert len(set(made)) == 4
    assert of(first, labels) == made[0]


def test_files_that_were_used_last_are_the_ones_kept(tmp_path, monkeypatch):
    images = colour(6)
    for number in (1, 2, 3):
        write_cifar(tmp_path / f"data_batch_{number}.bin", images[2 * number - 2 : 2 * number], np.zeros(2, int))
    pairs = PairSet(tmp_path)
    monkeypatch.setattr(class_arrays, "KEPT_BYTES", 2 * images[:2].nbytes)
    for number in (1, 2, 1, 3):
        pairs.fetch_image(f"data_batch_{number}.bin#1", "x")
    assert list(pairs.format._pixels) == ["data_batch_1.bin", "data_batch_3.bin"]


@pytest.mark.parametrize(
    "image", ["data_batch_1.bin#2", "data_batch_1.bin", "other.bin#0", "../x#0", "data_batch_1.bin#-1"]
)
def test_an_image_that_is_not_there_is_a_bad_row(tmp_path, image):
    write_cifar(tmp_path / "data_batch_1.bin", colour(2), labels_of(2))
    with pytest.raises(BadRow) as raised:
        PairSet(tmp_path).fetch_image(image, "row 1")
    assert raised.value.reason == "missing-image"


def faulty(tmp_path, kind):
    """A set with a fault, and what is said of it."""
    images, file = tmp_path / "train-images-idx3-ubyte", tmp_path / "data_batch_1.bin"
    if kind in ("short", "kind", "counts", "labels", "header"):
        write_idx(tmp_path, "train", grey(4), labels_of(3 if kind == "counts" else 4))
    if kind == "short":
        images.write_bytes(images.read_bytes()[:-1])
        return "train-images-idx3-ubyte has 3135 bytes of data, but its header needs 4×28×28"
    if kind == "kind":
        images.write_bytes(b"\0\0\x0d\3" + images.read_bytes()[4:])
        return "is not an IDX file of bytes with 3 axes: it begins with 00000d03"
    if kind == "header":
        images.write_bytes(images.read_bytes()[:9])
        return "has 9 bytes, less than the header"
    if kind == "counts":
        return "has 4 images, but there are 3 labels for it"
    if kind == "labels":
        (tmp_path / "train-labels-idx1-ubyte").unlink()
        return "has no labels beside it: train-labels-idx1-ubyte does not exist"
    if kind == "gzip":
        write_idx(tmp_path, "train", grey(4), labels_of(4), zipped=True)
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b\x08")
        return "train-images-idx3-ubyte.gz is not a complete gzip file"
    if kind == "records":
        write_cifar(file, colour(2), labels_of(2))
        file.write_bytes(file.read_bytes()[:-1])
        return "has 6145 bytes, not a multiple of CIFAR-10's records of 3073"
    if kind == "json":
        write_sheets(tmp_path, "train", {"data_batch_1.png": colour(3)}, labels_of(2))
        return "has 2 labels, but the train sheets have 3 images"
    if kind == "sheet":
        write_sheets(tmp_path, "train", {"data_batch_1.png": colour(3)}, labels_of(3))
        whole = (tmp_path / "data_batch_1.png").read_bytes()
        (tmp_path / "data_batch_1.png").write_bytes(whole[:200])
        return "data_batch_1.png does not decode"
    rows = {"lengths": [[1] * 4, [1] * 9], "range": [[256] * 4], "text": [["a"] * 4]}[kind]
    (tmp_path / "0.json").write_text(json.dumps({"data": rows}))
    return {
        "lengths": "images of [4, 9] pixels",
        "range": "pixels from 256 to 256",
        "text": "not a list of whole numbers",
    }[kind]


KINDS = ("short", "kind", "header", "counts", "labels", "gzip", "records", "json", "sheet", "lengths", "range", "text")


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_told_in_one_line(tmp_path, kind):
    says = faulty(tmp_path, kind)
    with pytest.raises(UserError) as raised:
        content(tmp_path, 28)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_pickled_batch_is_refused_with_the_format_to_use(tmp_path):
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": [1]}))
    with pytest.raises(UserError, match=r"is pickled and not read; accepted: the binary version"):
        PairSet(tmp_path)


def test_a_split_that_is_missing_is_told(tmp_path):
    write_idx(tmp_path, "train", grey(4), labels_of(4))
    with pytest.raises(UserError, match=r"has no test split: t10k-images-idx3-ubyte \(or \.gz\) is missing"):
        PairSet(tmp_path / "test")


def test_options_that_name_fields_are_refused(tmp_path):
    write_idx(tmp_path / "idx", "train", grey(4), labels_of(4))
    write_folders(tmp_path / "folders", colour(4, 8), labels_of(4), NAMES)
    for folder in ("idx", "folders"):
        with pytest.raises(UserError, match=r"--prompt-field: .* labelled images, which have no fields"):
            PairSet(tmp_path / folder, PairFields(prompt_field="label"))


def test_one_folder_of_images_is_not_a_class(tmp_path):
    write_folders(tmp_path, colour(2, 8), np.zeros(2, int), ["images"])
    with pytest.raises(UserError, match="no pair set at"):
        PairSet(tmp_path)
