import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ortho_core.errors import BadRow, UserError
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import PairFields
from tests.ortho_core.pairs.made import outcomes, png, read_all, write_images, write_parquet

STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def not_utf8(*texts: bytes) -> pa.Array:
    """A column that says it is text, as a careless writer makes it."""
    raw = pa.array(texts, pa.binary())
    return pa.StringArray.from_buffers(len(raw), raw.buffers()[1], raw.buffers()[2])


@pytest.mark.parametrize("rows_per_group", [1, 3, 100])
def test_row_groups_and_shards_need_not_fit(tmp_path, rows_per_group):
    for file, rows in enumerate((range(7), range(7, 8), range(8, 20))):
        texts, images = [f"prompt {i}" for i in rows], [png(i) for i in rows]
        write_parquet(tmp_path / f"{file}.parquet", rows_per_group, prompt=texts, image=images)
    pairs = PairSet(tmp_path)
    assert pairs.rows() == 20
    for size in (1, 2, 5, 100):
        rows = read_all(pairs, size)
        assert [(row.row, row.prompt, row.content) for row in rows] == [(i, f"prompt {i}", png(i)) for i in range(20)]


def test_a_shard_longer_than_what_is_read_at_a_time_is_whole(tmp_path):
    write_parquet(tmp_path / "a.parquet", 50, prompt=[f"prompt {i}" for i in range(200)], image=[b"x"] * 200)
    for size in (33, 90, 200):
        assert [row.prompt for row in read_all(PairSet(tmp_path), size)] == [f"prompt {i}" for i in range(200)]


def test_a_reference_fetches_the_bytes_that_were_read(tmp_path):
    structs = pa.array([{"bytes": png(i), "path": f"{i}.png"} for i in range(10)], STRUCT)
    write_parquet(tmp_path / "a.parquet", 3, prompt=["x"] * 10, image=structs)
    write_parquet(tmp_path / "b.parquet", 4, prompt=["y"] * 10, image=structs)
    pairs = PairSet(tmp_path)
    rows = read_all(pairs, 4)
    assert [row.image for row in rows[::9]] == ["a.parquet#0", "a.parquet#9", "b.parquet#8"]
    for row in [*rows[::-1], *rows[::3]]:
        assert pairs.fetch_image(row.image, "x") == row.content == png(row.row % 10)


def test_a_reference_to_no_row_is_a_bad_row(tmp_path):
    write_parquet(tmp_path / "a.parquet", prompt=["x", "y"], image=[png(), None])
    write_parquet(tmp_path.parent / "outside.parquet", prompt=["x"], image=[png()])
    pairs = PairSet(tmp_path)
    for image, reason in (
        ("a.parquet#1", "missing-image"),
        ("a.parquet#2", "missing-image"),
        ("none.parquet#0", "missing-image"),
        ("a.parquet#x", "missing-image"),
        ("../outside.parquet#0", "outside-root"),
        (f"{tmp_path.parent}/outside.parquet#0", "outside-root"),
    ):
        with pytest.raises(BadRow) as raised:
            pairs.fetch_image(image, "row 0")
        assert (image, raised.value.reason) == (image, reason)


def test_structs_of_bytes_and_path_are_named_by_the_path(tmp_path):
    images = [
        {"bytes": png(), "path": "photos\\0008.jpg"},
        {"bytes": png(), "path": None},
        {"bytes": None, "path": "a.png"},
        {"bytes": None, "path": None},
        {"bytes": b"", "path": "a.png"},
        None,
    ]
    write_images(tmp_path, "a.png")
    write_parquet(tmp_path / "set.parquet", prompt=["x"] * 6, image=pa.array(images, STRUCT))
    assert outcomes(tmp_path) == [
        *("000000_0008", "000001_set", "000002_a"),
        *("missing-image", "undecodable-image", "missing-image"),
    ]


def test_paths_and_urls_start_from_the_image_root(tmp_path, s3):
    from ortho_core.storage.open import open_store

    write_images(tmp_path, "a.png")
    column = ["a.png", "b.png", "../a.png", None, "a.parquet#0"]
    write_parquet(tmp_path / "local" / "a.parquet", prompt=["x"] * 5, image=column)
    found = outcomes(tmp_path / "local", image_root=str(tmp_path))
    assert found == ["000000_a", "missing-image", "outside-root", "missing-image", "missing-image"]
    bucket = open_store(s3())
    bucket.replace("images/a.png", png())
    urls = [f"{bucket.location}/images/a.png", f"{bucket.location}/b.png", "https://elsewhere/a.png"]
    write_parquet(tmp_path / "urls" / "a.parquet", caption=["x"] * 3, url=urls)
    assert outcomes(tmp_path / "urls") == ["outside-root"] * 3
    found = outcomes(tmp_path / "urls", image_root=bucket.location)
    assert found == ["000000_a", "missing-image", "outside-root"]


def test_null_values_are_bad_rows(tmp_path):
    write_parquet(
        tmp_path / "a.parquet",
        prompt=[None, "x", "", "x", "x"],
        image=[png(), None, png(), png(), png()],
        key=["a", "b", "c", None, "e"],
    )
    assert outcomes(tmp_path, id_field="key") == [
        "missing-prompt",
        "missing-image",
        "missing-prompt",
        "missing-id",
        "e",
    ]


def test_text_that_is_not_utf8_costs_its_row_alone(tmp_path):
    texts = not_utf8(b"good", b"caf\xe9", b"good too")
    write_parquet(tmp_path / "a" / "a.parquet", prompt=texts, image=[png(i) for i in range(3)])
    assert outcomes(tmp_path / "a") == ["000000_a", "not-text", "000002_a"]
    paths = not_utf8(b"0.png", b"caf\xe9.png", b"2.png")
    structs = pa.StructArray.from_arrays([pa.array([png(i) for i in range(3)]), paths], ["bytes", "path"])
    write_parquet(tmp_path / "b" / "b.parquet", prompt=["x"] * 3, image=structs)
    pairs = PairSet(tmp_path / "b")
    assert outcomes(tmp_path / "b") == ["000000_0", "not-text", "000002_2"]
    assert pairs.fetch_image("b.parquet#2", "row 2") == png(2)


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_texts_and_bytes_of_other_types_are_read(tmp_path, kind):
    write_parquet(
        tmp_path / "a.parquet", text=pa.array(["x", "y"], kind), image=pa.array([png()] * 2, pa.large_binary())
    )
    assert outcomes(tmp_path) == ["000000_a", "000001_a"]


def test_columns_can_be_chosen(tmp_path):
    write_parquet(tmp_path / "a.parquet", prompt=["x"], words=["y"], image=[b""], picture=[png()])
    (row,) = read_all(PairSet(tmp_path, PairFields(prompt_field="words", image_field="picture")))
    assert (row.prompt, row.content) == ("y", png())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "no column 'prompt, text, caption, txt, ...'; it has words, image"),
        ({"prompt_field": "tags"}, "no column 'tags'; it has words, image (--prompt-field names one)"),
        ({"prompt_field": "words", "id_field": "key"}, "no column 'key'"),
        ({"prompt_field": "words", "image_field": "photo"}, "--image-field names one"),
    ],
)
def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path, fields, message):
    write_parquet(tmp_path / "a.parquet", words=["x"], image=[png()])
    with pytest.raises(UserError) as raised:
        PairSet(tmp_path, PairFields(**fields)).rows()
    assert message in str(raised.value)
    assert "a.parquet" in str(raised.value)


def test_one_file_of_other_columns_is_named(tmp_path):
    write_parquet(tmp_path / "a.parquet", prompt=["x"], image=[png()])
    write_parquet(tmp_path / "b.parquet", prompt=["x"], photo=[png()])
    with pytest.raises(UserError, match=r"b\.parquet has no column"):
        PairSet(tmp_path).shards(8)


@pytest.mark.parametrize("damage", ["empty", "cut", "footer", "text"])
def test_a_damaged_file_is_named_in_one_line(tmp_path, damage):
    write_parquet(tmp_path / "a.parquet", prompt=["x"], image=[png()])
    whole = write_parquet(tmp_path / "b.parquet", prompt=["x"], image=[png()]).read_bytes()
    content = {
        "empty": b"",
        "cut": whole[:-20],
        "footer": whole[:-40] + b"\xff" * 32 + whole[-8:],
        "text": b"this is not a Parquet file at all",
    }
    (tmp_path / "b.parquet").write_bytes(content[damage])
    for ask in (PairSet.rows, PairSet.fingerprint, lambda pairs: pairs.shards(8)):
        with pytest.raises(UserError, match=r"b\.parquet is not a readable Parquet file") as raised:
            ask(PairSet(tmp_path))
        assert "\n" not in str(raised.value)


def test_damaged_pages_end_the_shard_with_a_message(tmp_path):
    texts = [f"a prompt that is not repeated, number {i}" for i in range(500)]
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": texts, "image": [png(i % 256) for i in range(500)]}), file, use_dictionary=False)
    content = bytearray(file.read_bytes())
    content[4:400] = b"\xff" * 396
    file.write_bytes(content)
    pairs = PairSet(tmp_path)
    with pytest.raises(UserError, match=r"cannot read .*a\.parquet") as raised:
        read_all(pairs)
    assert "\n" not in str(raised.value)


def test_a_file_behind_a_link_is_read_and_fetched(tmp_path):
    # a download cache keeps a set as links into its store of contents
    write_parquet(tmp_path / "contents" / "0123", prompt=["x"], image=[png(7)])
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.parquet").symlink_to(tmp_path / "contents" / "0123")
    pairs = PairSet(tmp_path / "set")
    (row,) = read_all(pairs)
    assert pairs.fetch_image(row.image, "row 0") == row.content == png(7)


def test_a_file_without_rows_is_passed_over(tmp_path):
    empty = pa.array([], pa.string())
    write_parquet(tmp_path / "a.parquet", prompt=empty, image=empty.cast(pa.binary()))
    with pytest.raises(UserError, match="has no rows"):
        PairSet(tmp_path).shards(8)
    write_parquet(tmp_path / "b.parquet", prompt=["x"], image=[png()])
    assert outcomes(tmp_path) == ["000000_b"]


def test_rows_in_turns_from_several_groups_cost_one_read_of_each(tmp_path, monkeypatch):
    images = [bytes([i]) * 100 for i in range(40)]
    write_parquet(tmp_path / "a.parquet", 10, prompt=["x"] * 40, image=images)
    pairs = PairSet(tmp_path)
    reads = []
    read = pairs.format._read_images
    pairs.format._groups._read = lambda *asked: (reads.append(asked[1]), read(*asked))[1]
    order = [3, 13, 23, 33, 4, 14, 24, 34, 3, 13]
    assert [pairs.fetch_image(f"a.parquet#{i}", "x") for i in order] == [images[i] for i in order]
    assert reads == [3, 13, 23, 33]
    monkeypatch.setattr("ortho_core.pairs.formats.parquet.GROUPS_BYTES", 2500)
    for row in (5, 15, 25, 35):  # two groups stay
        pairs.fetch_image(f"a.parquet#{row}", "x")
    reads.clear()
    for row in (26, 36, 16):
        pairs.fetch_image(f"a.parquet#{row}", "x")
    assert reads == [16]
