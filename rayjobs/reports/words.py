"""Numbers and lists as text. Imports nothing heavy, so that a verb without a model starts at once."""

from collections.abc import Sequence


def duration(seconds: float) -> str:
    """`48 s`, `2 min 37 s`, `3 h 05 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def counted(count: int, one: str, many: str = "") -> str:
    """`1 cycle`, `1,200 cycles`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def percent(share: float) -> str:
    """`3%`; `under 1%` and `over 99%` where rounding would give 0 % or 100 %."""
    return "under 1%" if 0 < share < 0.01 else "over 99%" if 0.99 < share < 1 else f"{share:.0%}"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
