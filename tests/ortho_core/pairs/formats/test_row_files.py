"""CSV, TSV, JSON and JSON lines: what people and their programs write, row by row."""

import csv
import json

import pytest

from ortho_core.errors import UserError
from ortho_core.pairs.pair_set import PairSet
from tests.ortho_core.pairs.made import line, outcomes, prompts, read_all, refusal, write_images

ROWS = [(f"{i:03d}.png", f'"{i}" is, quoted;\nand of two lines é' if i % 3 else f"plain {i}") for i in range(40)]


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path, *(name for name, _ in ROWS))
    return tmp_path


def write_csv(file, rows=ROWS, header=("file_name", "text"), encoding="utf-8", **dialect):
    with file.open("w", encoding=encoding, newline="") as stream:
        csv.writer(stream, **dialect).writerows([header, *rows] if header else rows)
    return file


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    "dialect", [{}, {"delimiter": ";"}, {"delimiter": "\t"}, {"lineterminator": "\n"}, {"quoting": csv.QUOTE_ALL}]
)
def test_csv_of_every_program_gives_its_rows_from_wherever_a_shard_begins(folder, encoding, dialect):
    file = write_csv(folder / "a.csv", encoding=encoding, **dialect)
    assert prompts(file) == dict(ROWS)
    for size in (1, 7, 100):
        assert [row.prompt for row in read_all(PairSet(file), size)] == [text for _, text in ROWS]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    "kind", ["lines", "list", "indented list", "object", "object of objects", "lines under another name"]
)
def test_json_of_every_shape_gives_its_rows_from_wherever_a_shard_begins(folder, encoding, kind, monkeypatch):
    monkeypatch.setattr("ortho_core.pairs.formats.json_documents.CHUNK", 50)
    monkeypatch.setattr("ortho_core.pairs.formats.text_lines.CHUNK", 50)
    records = [{"image": name, "caption": text, "n": i} for i, (name, text) in enumerate(ROWS)]
    content = {
        "lines": "\n".join(json.dumps(record, ensure_ascii=i % 2 == 0) for i, record in enumerate(records)),
        "list": json.dumps(records, ensure_ascii=False),
        "indented list": json.dumps(records, indent=2),
        "object": json.dumps(dict(ROWS), ensure_ascii=False),
        "object of objects": json.dumps({record["image"]: {"caption": record["caption"]} for record in records}),
        "lines under another name": "\n".join(map(json.dumps, records)),
    }[kind]
    file = folder / ("a.jsonl" if kind == "lines" else "a.json")
    file.write_text(content, encoding=encoding)
    if kind == "lines under another name":
        monkeypatch.undo()  # the second line is looked for in the first piece
    for size in (1, 7, 100):
        assert [(row.image, row.prompt) for row in read_all(PairSet(file), size)] == ROWS
    assert len(prompts(file)) == 40


def test_a_row_with_a_wrong_number_of_columns_costs_itself_alone(folder):
    (folder / "a.csv").write_text(
        "file_name,text\n000.png,good\n001.png,an unquoted, caption\n002.png\n\n003.png,with an empty end,,\n004.png,good\n"
    )
    assert outcomes(folder / "a.csv") == ["000000_000", "wrong-columns", "wrong-columns", "000003_003", "000004_004"]
    bad = [row[1] for row in read_all(PairSet(folder / "a.csv")) if isinstance(row, tuple)]
    assert str(bad[0]) == "row 1: 3 columns, not 2; a caption that contains the delimiter needs quotes"


def test_a_quote_that_is_never_closed_does_not_eat_the_file_in_silence(folder):
    rows = "".join(f'{i:03d}.png,"{"x" * 9_000} {i}"\n' for i in range(30))
    (folder / "a.csv").write_text('file_name,text\n000.png,good\n001.png,"never closed\n' + rows.replace('"', ""))
    assert outcomes(folder / "a.csv")[:2] == ["000000_000", "not-csv"]
    assert "40 images in its folders" in line(folder, layout="metadata")
    (folder / "a.csv").write_text('file_name,text\n000.png,good\n001.png,"never closed\n002.png,lost\n')
    assert outcomes(folder / "a.csv") == ["000000_000", "not-csv"]


def test_text_that_is_not_utf_8_costs_its_row_alone(folder):
    (folder / "a.csv").write_bytes(b"file_name,text\n000.png,good\n001.png,caf\xe9\n002.png,good too\n")
    assert outcomes(folder / "a.csv") == ["000000_000", "not-text", "000002_002"]


def test_a_file_without_a_header_is_read_where_one_of_two_columns_is_of_images(folder):
    write_csv(folder / "a.csv", header=None)
    assert prompts(folder / "a.csv") == dict(ROWS)
    assert "the file has no header" in line(folder / "a.csv")
    write_csv(folder / "a.csv", [(text, name) for name, text in ROWS], header=None)
    assert prompts(folder / "a.csv") == dict(ROWS)
    write_csv(folder / "a.csv", [(name, text, "3") for name, text in ROWS], header=None)
    assert "its first row is '000.png, plain 0, 3'" in refusal(folder / "a.csv")


def test_cells_that_hold_lists_are_several_captions(folder):
    write_csv(
        folder / "a.csv",
        [("000.png", '["one", "two"]'), ("001.png", "['it''s', 'b']".replace("''", "\\'")), ("002.png", "[a dog]")],
    )
    assert prompts(folder / "a.csv") == {"000.png": "one", "001.png": "it's", "002.png": "[a dog]"}


def test_other_columns_and_spaces_in_the_header_do_not_matter(folder):
    write_csv(
        folder / "a.csv",
        [("0", 512, name, text) for name, text in ROWS],
        header=("", "width", " image_name", " Caption "),
    )
    assert prompts(folder / "a.csv") == dict(ROWS)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[1, 2]", "a list, but not of objects"),
        ('{"images": [], "annotations": []}', "an object with images, annotations; accepted: image names"),
        ('"text"', "begins with"),
        ("", "begins with"),
        ("[", "is not JSON from byte 1 on"),
    ],
)
def test_json_that_holds_no_rows_is_refused_in_one_line(folder, content, says):
    (folder / "a.json").write_text(content)
    assert says in refusal(folder / "a.json")


def test_json_that_is_damaged_later_is_told_with_the_place(folder):
    whole = json.dumps([{"image": name, "caption": text} for name, text in ROWS])
    for damaged in (whole[:900], whole.replace("}, {", "}; {")):
        (folder / "a.json").write_text(damaged)
        with pytest.raises(UserError, match=r"a\.json is not JSON from byte \d+ on") as raised:
            PairSet(folder / "a.json").rows()
        assert "\n" not in str(raised.value)


def test_items_that_are_no_objects_are_bad_rows(folder):
    (folder / "a.json").write_text('[{"image": "000.png", "text": "x"}, 7, null, {"image": "001.png", "text": "y"}]')
    assert outcomes(folder / "a.json") == ["000000_000", "not-json", "not-json", "000003_001"]


@pytest.mark.slow
def test_memory_does_not_grow_with_a_json_list(tmp_path):
    import tracemalloc

    def peak(rows):
        with (tmp_path / "a.json").open("w") as stream:
            stream.write("[" + ",".join(f'{{"image": "{i}.png", "text": "{"x" * 200}"}}' for i in range(rows)) + "]")
        tracemalloc.start()
        assert PairSet(tmp_path / "a.json").rows() == rows
        high = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return high

    assert peak(40_000) < 1.5 * peak(10_000)
