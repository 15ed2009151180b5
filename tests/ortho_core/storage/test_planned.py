"""What was planned with against what is there at load."""

import pytest
import torch

from ortho_core.errors import UserError
from ortho_core.storage.planned import as_planned, check_planned


@pytest.mark.parametrize(
    ("now", "says"),
    [
        ({"a": "1", "b": "3"}, "b has changed since"),
        ({"a": "1"}, "b was removed since"),
        ({"a": "1", "b": "2", "c": "3"}, "c was added since"),
    ],
)
def test_the_first_that_differs_is_named_with_the_remedy_in_one_line(now, says):
    planned = {"a": "1", "b": "2"}
    check_planned(planned, dict(planned))
    with pytest.raises(UserError, match=rf"^{says} the run was planned; put back what was there, or .*--out\)$"):
        check_planned(planned, now)


def test_what_changes_while_it_is_loaded_is_found_and_explains_why_the_load_failed():
    there = {"file": "1"}
    with pytest.raises(UserError, match=r"^file has changed"), as_planned({"file": "1"}, lambda: there):
        there["file"] = "2"
    with pytest.raises(UserError, match=r"^file has changed"), as_planned({"file": "1"}, lambda: there):
        raise ValueError("of another shape")
    with pytest.raises(ValueError, match="of another shape"), as_planned({"file": "2"}, lambda: there):
        raise ValueError("of another shape")


def test_memory_that_ran_out_is_no_reason_to_read_files():
    with (
        pytest.raises(torch.OutOfMemoryError),
        as_planned({"file": "1"}, lambda: pytest.fail("files were read")),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
