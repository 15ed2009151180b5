import pickle

from ortho_core.errors import BadRow, UserError


def test_a_bad_row_keeps_its_reason_between_processes():
    again = pickle.loads(pickle.dumps(BadRow("not-text", "row 7 is no text")))
    assert (type(again), again.reason, str(again)) == (BadRow, "not-text", "row 7 is no text")
    assert isinstance(again, UserError)  # outside a run, it is told like any other mistake
