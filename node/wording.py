"""Numbers, names and times as people read them, in the daemon's own sentences."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.crypto.peer_id import PeerId

_NAMED = 3
_BINARY = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def count(number: int, noun: str) -> str:
    """``1 unit``, ``2 units``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def spans(numbers: Sequence[int]) -> str:
    """Ascending numbers, those in a row from the first to the last: ``3, 5 to 9``."""
    rows: list[list[int]] = []
    for number in numbers:
        if rows and number == rows[-1][-1] + 1:
            rows[-1][1:] = [number]
        else:
            rows.append([number])
    return ", ".join(" to ".join(map(str, row)) for row in rows)


def names(peers: Sequence[PeerId], own: PeerId) -> str:
    """Some peers: all of few, the first of many."""
    told = ["this node" if peer == own else peer for peer in peers]
    if len(told) == 1:
        return told[0]
    if len(told) <= _NAMED:
        return f"{', '.join(told[:-1])} and {told[-1]}"
    return f"{len(told)} peers ({', '.join(told[:_NAMED])} and {len(told) - _NAMED} more)"


def binary_size(size_bytes: int, *, exact: bool = False) -> str:
    """``2 GiB``; ``exact`` gives what a setting or an option takes, and not more than that."""
    for name, unit in _BINARY:
        if size_bytes >= unit:
            if exact:
                if size_bytes % unit == 0:
                    return f"{size_bytes // unit}{name}"
                continue
            size = size_bytes / unit
            return f"{size:.0f} {name}" if size >= 1000 else f"{size:.3g} {name}"
    return f"{size_bytes}" if exact else count(size_bytes, "byte")


def duration(duration_s: float) -> str:
    """``0.2 s``, ``3 min``, ``2 h 5 min``."""
    if duration_s < 100:
        return f"{duration_s:.2g} s" if duration_s < 10 else f"{duration_s:.0f} s"
    minutes = round(duration_s / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
