"""Receipts that this node may have to answer for, in the journal; see `node.defending`.

They come many times a second, and so those of a second are one row: a process that is
killed loses the last second of them. What bounds them is `node.defending`, which says from
which row on there is something to keep.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from shoal.protocol.limits import EnvelopeBytes


class Given(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A receipt that was given, and what else it takes to run its unit again.

    Attributes:
        receipt: Its envelope, which names requester, program and inputs.
        time_limit_s: Of its unit, as it was called for.
        memory_bytes: Likewise.
        stages: The leaves of the stages that it commits to.
        until: When it may be forgotten, in seconds since the epoch.
    """

    receipt: EnvelopeBytes
    time_limit_s: float
    memory_bytes: int
    stages: tuple[bytes, ...]
    until: float


def save(
    database: sqlite3.Connection, number: int, given: Sequence[Given], oldest: int
) -> None:
    """Write a row of receipts, and forget the rows before ``oldest``."""
    database.execute("DELETE FROM given_receipts WHERE number < ?", (oldest,))
    database.execute(
        "INSERT INTO given_receipts (number, receipts) VALUES (?, ?)",
        (number, msgspec.msgpack.encode(given)),
    )


def read(database: sqlite3.Connection) -> list[tuple[int, list[Given]]]:
    """All rows with their numbers, oldest first; one that cannot be read is empty."""
    rows = database.execute("SELECT number, receipts FROM given_receipts ORDER BY number")
    return [(row["number"], _given(row["receipts"])) for row in rows]


def _given(data: bytes) -> list[Given]:
    try:
        return msgspec.msgpack.decode(data, type=list[Given])
    except msgspec.MsgspecError:
        return []
