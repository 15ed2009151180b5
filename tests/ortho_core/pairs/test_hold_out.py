"""Which rows a part of a set has."""

import hashlib

import pytest

from ortho_core.errors import UserError
from ortho_core.pairs.hold_out import Part, check_part, held_out_of


def chosen(total: int, held: int) -> list[int]:
    """The held-out records as the definition has them."""
    records = []
    for i in range(held):
        first, end = i * total // held, (i + 1) * total // held
        drawn = int.from_bytes(hashlib.blake2b(f"{i}/{held}".encode(), digest_size=8).digest(), "little")
        records.append(first + drawn % (end - first))
    return records


@pytest.mark.parametrize(("total", "held"), [(2, 1), (10, 3), (10, 9), (97, 20), (512, 26), (1000, 128)])
def test_counts_are_those_of_the_chosen_records(total, held):
    records = set(chosen(total, held))
    assert len(records) == held
    for name, expected in (("heldout", records), ("training", set(range(total)) - records)):
        part = Part.of(f"{name}:{held}", total)
        assert part.records == len(expected)
        for first in range(0, total, 7):
            for end in (first + 1, first + 5, total):
                end = min(end, total)
                within = set(filter(part.within(first, end), range(first, end)))
                assert within == {record for record in expected if first <= record < end}
                assert part.count(first, end) == len(within)


def test_fewer_of_the_held_out_records_are_some_of_them_from_all_over():
    part = Part(False, 1000, 90, 8)
    all_held = chosen(1000, 90)
    taken = list(filter(part.within(0, 1000), range(1000)))
    assert taken == [all_held[j * 90 // 8] for j in range(8)]
    assert part.count(0, 1000) == part.records == 8
    assert [part.count(0, end) for end in range(1001)] == [sum(t < end for t in taken) for end in range(1001)]


def test_counting_takes_no_time_that_grows_with_the_rows():
    part = Part.of("heldout:5%", 10**8)
    assert part.records == 5 * 10**6
    assert part.count(0, 10**8) == sum(part.count(at, at + 10**7) for at in range(0, 10**8, 10**7))


def test_a_share_is_rounded_and_leaves_something_on_both_sides():
    assert [held_out_of("5%", total) for total in (2, 9, 10, 30, 50, 512)] == [1, 1, 1, 2, 3, 26]
    assert held_out_of("99.9%", 10) == 9
    assert held_out_of("200", 512) == 200


@pytest.mark.parametrize(
    ("share", "total", "says"),
    [
        ("5%", 1, "the pair set has only 1 row"),
        ("0%", 9, "more than 0 %"),
        ("100%", 9, "less than 100 %"),
        ("9", 9, "accepted: 1 to 8"),
    ],
)
def test_what_cannot_be_held_out_is_refused(share, total, says):
    with pytest.raises(UserError, match=says):
        held_out_of(share, total)


@pytest.mark.parametrize("text", ["5%", "test:5%", "heldout:", "heldout:-5%", "heldout:5 %"])
def test_what_names_no_part_is_refused(text):
    with pytest.raises(ValueError, match="accepted: training:5%"):
        check_part(text)
