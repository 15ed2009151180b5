import pytest
from pydantic import ValidationError

from ortho_core.errors import BadRow
from ortho_core.pairs.rows import Failure, PairFields, PairRecord, make_pair
from ortho_core.records.parts import PartAbout

NAMES = ("prompt", "image", None)
KEYED = ("prompt", "image", "key")


def record(prompt="x", image="a.png", key=None, names=NAMES, **more) -> PairRecord:
    return PairRecord(prompt, image, names, key, **more)


def reason(of: PairRecord) -> str:
    with pytest.raises(BadRow, match=r"^row 7") as raised:
        make_pair(7, of)
    return raised.value.reason


def test_a_pair_is_named_by_its_row_and_its_image():
    assert make_pair(7, record(image="images/0008.final.png")).sample_id == "000007_0008.final"
    assert make_pair(7, record(image="s3://bucket/a/cat.jpg")).sample_id == "000007_cat"
    assert make_pair(7, record(image="images\\cat.jpg")).sample_id == "000007_cat"
    assert make_pair(7, record(image="a.tar#512+9", stem="0001")).sample_id == "000007_0001"
    assert make_pair(1_234_567, record(image="images/0008.png")).sample_id == "1234567_0008"


@pytest.mark.parametrize("prompt", [None, "", " \n", 7, [], ["", None], b"x", {"raw": "x"}])
def test_a_prompt_is_a_text_that_says_something(prompt):
    assert reason(record(prompt)) == "missing-prompt"


@pytest.mark.parametrize("image", [None, "", 7, {"bytes": None, "path": None}])
def test_an_image_is_a_path(image):
    assert reason(record(image=image)) == "missing-image"


def test_a_row_can_bring_its_own_id():
    assert make_pair(7, record(key="cat-1", names=KEYED)).sample_id == "cat-1"
    assert make_pair(7, record(key=17, names=KEYED)).sample_id == "17"
    for key in (None, "", True, 1.5, ["a"]):
        assert reason(record(key=key, names=KEYED)) == "missing-id"


def test_half_a_character_is_no_text_wherever_it_is():
    for name in ("prompt", "image", "key"):
        assert reason(record(**{"key": "k", name: "caf\ud83d"}, names=KEYED)) == "not-text"


def test_of_several_captions_one_is_the_prompt():
    captions = ["", "short", "the longest of them", None, "middling"]
    chosen = {choice: make_pair(7, record(captions), choice).prompt for choice in (None, "first", "longest")}
    assert chosen == {None: "short", "first": "short", "longest": "the longest of them"}
    drawn = [make_pair(row, record(captions), "random").prompt for row in range(300)]
    assert drawn == [make_pair(row, record(captions), "random").prompt for row in range(300)]
    assert all(70 < drawn.count(text) < 130 for text in ("short", "the longest of them", "middling"))
    every = [make_pair(row, record(captions, key="k", names=KEYED), "all", row) for row in range(3)]
    assert [(pair.prompt, pair.sample_id) for pair in every] == [
        ("short", "k"),
        ("the longest of them", "k#1"),
        ("middling", "k#2"),
    ]


def test_messages_say_what_was_found():
    with pytest.raises(BadRow, match=r"^row 7: field 'prompt' is missing, not a text \(the row has image, words\)$"):
        make_pair(7, record(None, fields=["words", "image"]))
    with pytest.raises(BadRow, match=r"^row 7: field 'prompt' is \[0, 0, 0") as raised:
        make_pair(7, record([0] * 10_000))
    assert len(str(raised.value)) < 200


def test_field_names_are_not_empty():
    with pytest.raises(ValidationError):
        PairFields(prompt_field="")


def test_what_is_published_of_a_bad_row_can_be_written_and_has_no_secret():
    failure = Failure("a\ud83d", 3, "not-text", "m\udcff", "https://u:secret@h/\ud83d.png?sig=secret")
    about = PartAbout(shard=0, revision=0, run_fingerprint="f", written=1.0, failures=(failure,))
    assert PartAbout.model_validate_json(about.model_dump_json()) == about
    assert failure.image == "https://user:***@h/\\ud83d.png?sig=***"
