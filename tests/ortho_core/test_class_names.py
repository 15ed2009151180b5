"""Which prompts name a class."""

import pytest

from ortho_core.class_names import class_number
from ortho_core.errors import BadRow

CLASSES = ("plane", "car", "bird")


def test_a_class_is_named_by_its_name_or_its_number():
    assert [class_number(prompt, CLASSES) for prompt in ("plane", "bird", "0", "02")] == [0, 2, 0, 2]


def test_a_name_that_is_a_number_is_the_name():
    assert class_number("1", ("1", "0")) == 0


@pytest.mark.parametrize("prompt", ["", "Plane", " plane", "3", "-1", "1.0", "²", "٢"])
def test_another_prompt_is_a_bad_row_that_says_what_is_accepted(prompt):
    with pytest.raises(BadRow, match=r"accepted: plane, car, bird, or a number from 0 to 2$") as raised:
        class_number(prompt, CLASSES)
    assert raised.value.reason == "unknown-class"


def test_neither_a_long_prompt_nor_many_classes_make_a_long_message():
    with pytest.raises(BadRow, match=r"c19, \.\.\., or a number from 0 to 999$") as raised:
        class_number("x" * 10_000, [f"c{i}" for i in range(1000)])
    assert len(str(raised.value)) < 400
