"""Summaries as their readers find them."""

import pytest

from ortho_core.errors import UserError
from ortho_core.evaluation.metrics import Estimate
from rayjobs.reports.summaries import EVALUATION, Evaluation
from tests.rayjobs.reports.reported import BASE, DIRECT, figures, make_evaluation


def test_an_evaluation_is_read_as_it_was_written(tmp_path):
    make_evaluation(tmp_path, {"base": BASE, "direct": DIRECT})
    evaluation = Evaluation.read(tmp_path / EVALUATION)
    assert evaluation.metrics["direct"]["drift"] == Estimate(**figures(DIRECT)["drift"])
    (tmp_path / "again.json").write_text(evaluation.text())
    assert Evaluation.read(tmp_path / "again.json") == evaluation


@pytest.mark.parametrize(
    ("content", "said"), [(b"{", "damaged"), (b"\xff", "damaged"), (b"{}", "damaged"), (None, "cannot")]
)
def test_a_damaged_or_missing_file_is_named_in_one_line(tmp_path, content, said):
    if content is not None:
        (tmp_path / EVALUATION).write_bytes(content)
    with pytest.raises(UserError, match=said) as raised:
        Evaluation.read(tmp_path / EVALUATION)
    assert str(tmp_path / EVALUATION) in str(raised.value)
    assert "\n" not in str(raised.value)
