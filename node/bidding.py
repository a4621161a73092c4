"""How a provider answers a call, what it asks, and how a requester chooses.

Pure functions of values; the pipeline gathers the values and carries out what
is decided here. Prices are in credits (1 credit = 10^12 exact multiply-adds);
they order bids and nothing is paid.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from shoal.crypto.peer_id import PeerId
from shoal.protocol.limits import LEASE_UNITS_LIMIT
from shoal.protocol.messages import Bid, Call, Reason, Refusal

BASE_PRICE = 1.0
"""Credits for one unit on an idle device that holds the program, until the work
of a program is counted in multiply-adds."""

BYTES_PER_CREDIT = 100e6
"""Moving this many bytes delays a device about as long as a unit of one credit."""

BID_VALID_S = 15.0
LEASE_IDLE_S = 30.0
LEASES_LIMIT = 32
"""Leases that one device serves at once; each waits for the one worker."""

IN_FLIGHT = 2
"""One unit runs while the next one's inputs arrive."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a node offers at this moment, to whom.

    ``executors`` names the executor of each numeric class that is offered.
    ``providing`` and ``allowed`` are about peers; work of the node's own user
    is always taken.
    """

    device: str
    executors: Mapping[str, str]
    memory_bytes: int
    providing: bool
    draining: bool
    own: PeerId
    allowed: Collection[PeerId]
    leases: int
    units_waiting: int


def refusal(call: Call, requester: PeerId, terms: Terms) -> Refusal | None:
    """Why this node does not bid on ``call``, or None where it does.

    The order is from what the requester cannot change to what passes by itself.
    """
    reason: tuple[Reason, str] | None = None
    if requester not in {terms.own, *terms.allowed}:
        reason = (
            Reason.UNTRUSTED_REQUESTER,
            "the operator has not put you on this node's allow list",
        )
    elif not terms.providing and requester != terms.own:
        reason = (Reason.NOT_PROVIDING, "this node submits work and takes none")
    elif terms.draining:
        reason = (Reason.DRAINING, "this node is shutting down")
    elif not terms.executors:
        reason = (Reason.NO_DEVICE, "no executor of this node works, or none was probed yet")
    elif call.numeric_class not in terms.executors:
        offered = ", ".join(sorted(terms.executors))
        reason = (Reason.CLASS_NOT_OFFERED, f"offered here: {offered}")
    elif call.memory_bytes > terms.memory_bytes:
        reason = (
            Reason.TOO_LARGE,
            f"a unit may use {terms.memory_bytes} bytes here, not {call.memory_bytes}",
        )
    elif terms.leases >= LEASES_LIMIT:
        reason = (Reason.BUSY, f"{terms.leases} leases are running")
    return Refusal(call=call.call, reason=reason[0], detail=reason[1]) if reason else None


def price(call: Call, terms: Terms, held_bytes: int) -> float:
    """Credits for one unit of ``call``.

    Grows with the units that wait here already and with the bytes that would
    have to be fetched first, spread over the units of the call.

    Args:
        call: What is asked for.
        terms: What this node offers now.
        held_bytes: How much of the program this node holds already.
    """
    missing_bytes = max(0, call.program_bytes - held_bytes)
    fetch = (missing_bytes / call.units + call.input_bytes) / BYTES_PER_CREDIT
    return BASE_PRICE * (1.0 + terms.units_waiting) + fetch


def bid(call: Call, terms: Terms, held_bytes: int, nonce: str) -> Bid:
    """The bid of a node that has no reason to refuse; ``nonce`` is drawn for it alone."""
    return Bid(
        call=call.call,
        nonce=nonce,
        device=terms.device,
        executor=terms.executors[call.numeric_class],
        price=price(call, terms, held_bytes),
        units_max=LEASE_UNITS_LIMIT,
        in_flight_max=IN_FLIGHT,
        valid_s=BID_VALID_S,
    )


def choose(
    bids: Mapping[PeerId, Bid], units_waiting: int, proven: Collection[PeerId] = ()
) -> Sequence[PeerId]:
    """Whose bids to award, best first.

    The cheapest, and no more of them than units wait: each provider works on
    one unit at a time, so more leases than units would only stand idle.
    At equal prices those go first whose claims are ``proven`` (`node.proofs`). What is
    equal still is ordered by peer id, so that the choice can be repeated.
    """
    ranked = sorted(bids, key=lambda peer: (bids[peer].price, peer not in proven, peer))
    return ranked[:units_waiting]


def rank(requester: PeerId, terms: Terms) -> int:
    """Whose units go first where several wait: the owner's, then friends', then others'."""
    return 0 if requester == terms.own else 1 if requester in terms.allowed else 2
