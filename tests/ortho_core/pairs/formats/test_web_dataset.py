import gzip
import io
import json
import tarfile

import pytest

from ortho_core.errors import BadRow, UserError
from ortho_core.pairs.formats.web_dataset import MAX_TEXT
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import PairFields
from tests.ortho_core.pairs.made import line, outcomes, png, read_all, refusal, write_tar


def prompts(folder, **fields) -> list[str]:
    rows = read_all(PairSet(folder, PairFields(**fields)))
    return [row[1].reason if isinstance(row, tuple) else row.prompt for row in rows]


def test_shards_cover_every_sample_once_and_can_begin_anywhere(tmp_path):
    for file, rows in enumerate((range(7), range(7, 8), range(8, 20))):
        write_tar(
            tmp_path / f"{file}.tar",
            {name: what for i in rows for name, what in ((f"{i:02d}.png", png(i)), (f"{i:02d}.txt", f"prompt {i}"))},
        )
    pairs = PairSet(tmp_path)
    assert pairs.rows() == 20
    for size in (1, 2, 5, 100):
        shards = pairs.shards(size)
        for shard in shards[::-1]:
            for row in pairs.read(shard):
                assert (row.sample_id, row.prompt) == (f"{row.row:06d}_{row.row:02d}", f"prompt {row.row}")
                assert pairs.fetch(row) == pairs.fetch_image(row.image, "x") == png(row.row)
        assert [row.row for row in read_all(pairs, size)] == list(range(20))


def test_prompts_come_from_text_members_or_from_json(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        {
            "0.png": png(),
            "0.txt": "\ufeffin a text",
            "1.json": '{"caption": "in JSON"}',
            "1.png": png(),
            "2.jpg": png(),
            "2.prompt": "of two",
            "2.json": '{"caption": "of three", "text": "of four"}',
            "3.webp": png(),
            "3.json": '{"width": 8}',
            "4.png": png(),
        },
    )
    assert prompts(tmp_path) == ["in a text", "in JSON", "of two", "missing-prompt", "missing-prompt"]
    assert prompts(tmp_path, prompt_field="text")[2] == "of four"


def test_members_can_be_chosen(tmp_path):
    members = {"0.orig.png": png(1), "0.png": png(2), "0.txt": "x", "0.long.txt": "y", "0.json": '{"key": "own"}'}
    write_tar(tmp_path / "a.tar", members)
    pairs = PairSet(tmp_path, PairFields(prompt_field="long.txt", image_field="orig.png", id_field="key"))
    (row,) = read_all(pairs)
    assert (row.sample_id, row.prompt, pairs.fetch(row)) == ("own", "y", png(1))
    assert outcomes(tmp_path, id_field="__key__") == ["0"]


def test_json_does_not_name_the_sample(tmp_path):
    write_tar(tmp_path / "a.tar", {"0.png": png(), "0.json": '{"text": "x", "__key__": "other", "__stem__": "other"}'})
    assert outcomes(tmp_path) == ["000000_0"]
    assert outcomes(tmp_path, id_field="__key__") == ["0"]


def test_keys_have_folders_and_names_dotted_endings(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        {
            "./train.v2/0001.seg.png": b"not this one",
            "./train.v2/0001.PNG": png(1),
            "./train.v2/0001.txt": "one",
            "test/0001.png": png(2),
            "test/0001.txt": "two",
            "test/._0002.png": b"what a Mac leaves",
            "test/README": "not a sample",
        },
    )
    pairs = PairSet(tmp_path)
    assert [(row.prompt, pairs.fetch(row)) for row in read_all(pairs)] == [("one", png(1)), ("two", png(2))]
    assert outcomes(tmp_path, id_field="__key__") == ["train.v2/0001", "test/0001"]


def test_every_bad_sample_has_its_reason_and_the_good_ones_survive(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        {
            "00.txt": "no image",
            "01.png": png(),
            "01.txt": "x" * (MAX_TEXT + 1),
            "02.png": png(),
            "02.txt": b"caf\xe9",
            "03.png": png(),
            "03.json": "{",
            "04.png": png(),
            "04.json": '[["txt", "x"]]',
            "05.png": b"",
            "05.txt": "x",
            "06.png": png()[:40],
            "06.txt": "x",
            "07.png": png(),
            "07.json": json.dumps({"txt": "x", "pad": "y" * MAX_TEXT}),
            "08.png": png(),
            "08.txt": " ",
            "09.png": png(),
            "09.json": '{"txt": "caf\\ud83d"}',
            "10.png": png(),
            "10.txt": "x" * 20_000,
        },
    )
    expected = [
        *("missing-image", "too-large", "not-text", "not-json", "not-json", "undecodable-image", "undecodable-image"),
        *("too-large", "missing-prompt", "not-text", "000010_10"),
    ]
    assert outcomes(tmp_path) == expected
    assert outcomes(tmp_path, rows_per_shard=1) == expected


def test_an_empty_member_is_empty_on_an_object_store_too(s3, tmp_path):
    from ortho_core.storage.open import open_store

    store = open_store(s3())
    store.replace("a.tar", write_tar(tmp_path / "a.tar", {"0.png": b"", "0.txt": "x"}).read_bytes())
    assert outcomes(store.location) == ["undecodable-image"]


def test_links_and_folders_inside_a_tar_are_passed_over(tmp_path):
    (tmp_path / "secret.png").write_bytes(png())
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind, target in (
            ("0.png", tarfile.SYMTYPE, str(tmp_path / "secret.png")),
            ("1.png", tarfile.LNKTYPE, "../secret.png"),
            ("2.png", tarfile.DIRTYPE, ""),
            ("3.png", tarfile.FIFOTYPE, ""),
        ):
            about = tarfile.TarInfo(name)
            about.type, about.linkname = kind, target
            archive.addfile(about)
            about = tarfile.TarInfo(name.replace("png", "txt"))
            about.size = 1
            archive.addfile(about, io.BytesIO(b"x"))
    assert outcomes(tmp_path, layout="webdataset") == ["missing-image"] * 4


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
def test_long_names_keep_their_samples_together(tmp_path, form):
    keys = [f"{'folder' * 30}/é{'x' * 120}-{i}" for i in range(5)]
    members = {name: what for i, key in enumerate(keys) for name, what in ((f"{key}.png", png(i)), (f"{key}.txt", key))}
    write_tar(tmp_path / "a.tar", members, form)
    pairs = PairSet(tmp_path)
    for size in (1, 2, 5):
        rows = read_all(pairs, size)
        assert [row.prompt for row in rows] == keys
        assert [pairs.fetch(row) for row in rows] == [png(i) for i in range(5)]


def samples_of(count: int) -> dict[str, bytes | str]:
    return {
        n: what for i in range(count) for n, what in ((f"{i}.txt", f"prompt {i}"), (f"{i}.png", png(i) + bytes(2_000)))
    }


@pytest.mark.parametrize("damage", ["in a file", "in a header", "header", "compressed", "text", "empty"])
def test_a_damaged_tar_is_named_in_one_line(tmp_path, damage):
    write_tar(tmp_path / "a.tar", samples_of(1))
    whole = write_tar(tmp_path / "b.tar", samples_of(3)).read_bytes()
    with tarfile.open(tmp_path / "b.tar") as archive:
        last = archive.getmembers()[-1]
    content = {
        "in a file": whole[: last.offset_data + 100],
        "in a header": whole[: last.offset + 100],
        "header": whole[: last.offset] + b"\xff" * 512 + whole[last.offset + 512 :],
        "compressed": gzip.compress(whole),
        "text": b"this is not a tar file" * 100,
        "empty": b"",
    }
    (tmp_path / "b.tar").write_bytes(content[damage])
    for ask in (PairSet.rows, PairSet.fingerprint, lambda pairs: pairs.shards(8)):
        with pytest.raises(UserError, match=r"b\.tar is not a readable, uncompressed tar file") as raised:
            ask(PairSet(tmp_path))
        assert "\n" not in str(raised.value)


def test_a_tar_that_ends_without_a_mark_is_whole(tmp_path):
    file = write_tar(tmp_path / "a.tar", samples_of(3))
    with tarfile.open(file) as archive:
        archive.getmembers()
        end = archive.offset
    file.write_bytes(file.read_bytes()[:end])
    assert prompts(tmp_path) == ["prompt 0", "prompt 1", "prompt 2"]


def test_a_tar_damaged_after_the_cut_ends_the_shard_with_a_message(tmp_path):
    file = write_tar(tmp_path / "a.tar", samples_of(3))
    pairs = PairSet(tmp_path)
    shards = pairs.shards(2)
    content = file.read_bytes()
    for damaged in (content[:600], content[: shards[1].offset] + b"\xff" * 512 + content[shards[1].offset + 512 :]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.tar"):
            [row for shard in shards for row in pairs.read(shard)]


def test_a_reference_that_names_no_member_is_a_bad_row(tmp_path):
    write_tar(tmp_path / "set" / "a.tar", samples_of(1))
    write_tar(tmp_path / "outside.tar", samples_of(1))
    pairs = PairSet(tmp_path / "set")
    for image, reason in (
        ("0.png", "missing-image"),
        ("a.tar#512", "missing-image"),
        ("none.tar#0+5", "missing-image"),
        ("secret#0+5", "missing-image"),
        ("../outside.tar#0+5", "outside-root"),
        (f"{tmp_path}/outside.tar#0+5", "outside-root"),
    ):
        with pytest.raises(BadRow) as raised:
            pairs.fetch_image(image, "row 0")
        assert (image, raised.value.reason) == (image, reason)


def joined(folder, *names):
    """One file of several archives, one after another with the zeros that end each."""
    content = b"".join((folder / name).read_bytes() for name in names)
    for name in names:
        (folder / name).unlink()
    (folder / "joined.tar").write_bytes(content)


@pytest.mark.parametrize("rows_per_shard", [1, 2, 100])
def test_archives_that_were_joined_are_read_to_the_end_though_their_keys_repeat(tmp_path, rows_per_shard):
    for name in ("a.tar", "b.tar", "c.tar"):
        members = {f"{i}.{kind}": what for i in range(2) for kind, what in (("png", png(i)), ("txt", f"{name} {i}"))}
        write_tar(tmp_path / name, members)
    joined(tmp_path, "a.tar", "b.tar", "c.tar")
    pairs = PairSet(tmp_path)
    rows = read_all(pairs, rows_per_shard)
    assert [row.prompt for row in rows] == [f"{name} {i}" for name in ("a.tar", "b.tar", "c.tar") for i in range(2)]
    assert [pairs.fetch(row) for row in rows] == [png(0), png(1)] * 3


def test_samples_with_the_same_key_side_by_side_stay_two(tmp_path):
    for name in ("a.tar", "b.tar"):
        write_tar(tmp_path / name, {"0.png": png(), "0.txt": name})
    joined(tmp_path, "a.tar", "b.tar")
    assert prompts(tmp_path) == ["a.tar", "b.tar"]


@pytest.mark.parametrize("rows_per_shard", [1, 3, 100])
def test_members_in_any_order_are_gathered_by_their_key(tmp_path, rows_per_shard):
    import pickle

    images = {f"{i}.png": png(i) for i in range(7)}
    texts = {f"{i}.txt": f"prompt {i}" for i in range(7)}
    write_tar(tmp_path / "a.tar", images | texts)
    write_tar(tmp_path / "b.tar", {"x.png": png(9), "x.txt": "in order"})
    pairs = PairSet(tmp_path)
    assert pairs.rows() == 8
    shards = pairs.shards(rows_per_shard)
    for one in (pairs, pickle.loads(pickle.dumps(pairs))):
        rows = [row for shard in shards for row in one.read(shard)]
        assert [row.prompt for row in rows] == [*(f"prompt {i}" for i in range(7)), "in order"]
        assert [one.fetch(row) for row in rows] == [*(png(i) for i in range(7)), png(9)]


def test_a_member_whose_name_has_more_dots_is_still_an_image_where_it_is_the_only_one(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        {"0.target.png": png(1), "0.txt": "x", "1.source.png": png(), "1.target.png": png(), "1.txt": "y"},
    )
    assert outcomes(tmp_path) == ["000000_0", "missing-image"]


def test_json_members_may_call_their_text_what_people_call_it(tmp_path):
    write_tar(tmp_path / "a.tar", {"0.jpg": png(), "0.json": '{"Description": "x", "url": "u"}'})
    assert prompts(tmp_path) == ["x"]


def test_lists_and_lines_of_captions_are_a_choice(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        {"0.png": png(), "0.json": '{"caption": ["one", "longer"]}', "1.png": png(), "1.txt": "a\nbb"},
    )
    assert prompts(tmp_path) == ["one", "a\nbb"]
    assert prompts(tmp_path, caption="longest") == ["longer", "bb"]
    assert prompts(tmp_path, caption="all") == ["one", "longer", "a", "bb"]


@pytest.mark.parametrize("rows_per_shard", [1, 10])
def test_keys_may_have_dots(tmp_path, rows_per_shard):
    members = {
        f"v1.5_{i}.{suffix}": content
        for i in range(3)
        for suffix, content in (("jpg", png(i)), ("txt", f"caption {i}"))
    }
    write_tar(tmp_path / "a.tar", members)
    rows = read_all(PairSet(tmp_path), rows_per_shard)
    assert [(row.sample_id, row.prompt) for row in rows] == [(f"{i:06d}_v1.5_{i}", f"caption {i}") for i in range(3)]


def test_a_class_is_a_prompt_where_there_is_no_other(tmp_path):
    write_tar(tmp_path / "a.tar", {"0.jpg": png(), "0.cls": "3", "1.jpg": png(), "1.cls": "7"})
    assert prompts(tmp_path) == ["3", "7"]
    assert "captions from .cls of each sample" in line(tmp_path)


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"cat/0.jpg": png(), "dog/1.jpg": png()}, "no sample of a.tar has both an image and a prompt"),
        ({"images/0.jpg": png(), "captions/0.txt": "x"}, "it has .jpg, .txt"),
        ({"0.input.png": png(), "0.target.png": png(), "0.txt": "x"}, "--image-field input.png or target.png chooses"),
    ],
)
def test_samples_without_one_image_and_a_prompt_are_refused_before_any_work(tmp_path, members, says):
    write_tar(tmp_path / "a.tar", members)
    assert says in refusal(tmp_path)
    assert "--layout webdataset reads it anyway" in refusal(tmp_path)
