import pytest
from pydantic import ValidationError

from ortho_core.errors import BadRow
from ortho_core.pairs import PairFields
from ortho_core.pairs.rows import make_pair

NAMES = ("prompt", "image", None)


def reason(values, names=NAMES) -> str:
    with pytest.raises(BadRow, match=r"^row 7") as raised:
        make_pair(7, values, names)
    return raised.value.reason


def test_a_pair_is_named_by_its_row_and_its_image():
    values = {"prompt": "x", "image": "images/0008.final.png"}
    assert make_pair(7, values, NAMES).sample_id == "000007_0008.final"
    assert make_pair(7, {**values, "image": "s3://bucket/a/cat.jpg"}, NAMES).sample_id == "000007_cat"
    assert make_pair(1_234_567, values, NAMES).sample_id == "1234567_0008.final"


@pytest.mark.parametrize("prompt", [None, "", " \n", 7, ["x"], b"x"])
def test_a_prompt_is_a_text_that_says_something(prompt):
    assert reason({"prompt": prompt, "image": "a.png"}) == "missing-prompt"


@pytest.mark.parametrize("image", [None, "", 7, {"bytes": None, "path": None}])
def test_an_image_is_a_path(image):
    assert reason({"prompt": "x", "image": image}) == "missing-image"


def test_a_row_can_bring_its_own_id():
    names = ("prompt", "image", "key")
    values = {"prompt": "x", "image": "a.png"}
    assert make_pair(7, {**values, "key": "cat-1"}, names).sample_id == "cat-1"
    assert make_pair(7, {**values, "key": 17}, names).sample_id == "17"
    for key in (None, "", True, 1.5, ["a"]):
        assert reason({**values, "key": key}, names) == "missing-id"


def test_half_a_character_is_no_text_wherever_it_is():
    values = {"prompt": "x", "image": "a.png", "key": "k"}
    for name in values:
        assert reason({**values, name: "caf\ud83d"}, ("prompt", "image", "key")) == "not-text"


def test_messages_say_what_was_found():
    with pytest.raises(BadRow, match=r"^row 7: field 'prompt' is missing, not a text$"):
        make_pair(7, {"image": "a.png"}, NAMES)
    with pytest.raises(BadRow, match=r"^row 7: field 'prompt' is \[0, 0, 0") as raised:
        make_pair(7, {"prompt": [0] * 10_000, "image": "a.png"}, NAMES)
    assert len(str(raised.value)) < 200


def test_field_names_are_not_empty():
    with pytest.raises(ValidationError):
        PairFields(prompt_field="")
