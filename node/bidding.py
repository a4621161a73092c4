"""How a provider answers a call, and what it asks.

Pure functions of values; the pipeline gathers the values and carries out what
is decided here. Prices are in credits (1 credit = 10^12 exact multiply-adds);
they order bids and nothing is paid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from shoal.compute.kernel_manifest import KERNEL_CLASS
from shoal.crypto.peer_id import PeerId
from shoal.node import owner
from shoal.protocol.limits import BATCH_UNITS_LIMIT, LEASE_UNITS_LIMIT, UNITS_IN_FLIGHT_LIMIT
from shoal.protocol.negotiation_messages import Bid, Call, Reason, Refusal

if TYPE_CHECKING:
    from shoal.node.records import Ban

BASE_PRICE = 1.0
"""Credits for one unit on an idle device that holds the program, until the work
of a program is counted in multiply-adds."""

BASE_UNIT_S = 1.0
"""So long such a unit is taken to run."""

BYTES_PER_CREDIT = 100e6
"""Moving this many bytes delays a device about as long as a unit of one credit."""

BID_VALID_S = 15.0
LEASE_IDLE_S = 30.0
LEASES_LIMIT = 32
"""Leases that one device serves at once; their units wait for its few processes."""

STRANGERS_LEASES_LIMIT = LEASES_LIMIT // 2
"""From so many on no stranger gets one: they cannot shut out the owner and friends."""

OWN, FRIEND, STRANGER, DOUBTED = range(4)
"""Ranks of requesters: whose units go first where several wait."""

Withheld: TypeAlias = tuple[Reason, str, str | None]
"""Why a requester gets nothing more: a reason, a sentence, and the award that is meant."""

ONLY_ON_CARDS = frozenset({KERNEL_CLASS, "low"})
"""Classes that no executor serves on a CPU."""

IN_FLIGHT = 2
"""One unit runs while the next one's inputs arrive; of a requester that sends no batches. More
on a device that runs several at a time."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a node offers on one device at this moment, to whom.

    ``executors`` names the executor of each numeric class that is offered.
    ``providing``, ``min_price``, ``time_limit_s`` and the lists are about peers: work of
    the node's own user is taken unless the device itself is paused. Strangers, whom the
    owner has put on neither list, are served where ``strangers`` says so and the worker
    is ``sandboxed``. ``waiting_s`` is how long the units that wait will run.
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
    waiting_s: float = 0.0
    stance: owner.Stance = owner.OPEN
    denied: Collection[PeerId] = ()
    strangers: bool = True
    sandboxed: bool = False
    min_price: float = 0.0
    time_limit_s: float = math.inf
    ban_of: Callable[[PeerId], Ban | None] = lambda _peer: None
    """The ban of a peer that was convicted, on whatever list it is."""
    starting: bool = False
    """Whether devices are still tested: what is not offered yet may be in some seconds."""
    withheld: Callable[[PeerId], Withheld | None] = lambda _peer: None
    """Why another node gets nothing more, by how it has dealt with this one."""
    doubted: Callable[[PeerId], bool] = lambda _peer: False
    """Whether a stranger's units wait behind all others'."""
    compiled: Mapping[str, str] = field(default_factory=dict)
    """The executor of each class that only compiles for the device, and takes no units."""
    at_once: int = 1
    """How many units the device runs at a time."""
    lost: str = ""
    """Why the device computes nothing more."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Multiply-adds per second that were measured there, of the classes that were."""


def choose(call: Call, requester: PeerId, offers: Sequence[Terms]) -> Terms | Refusal:
    """Which device of this node bids on ``call``; why none does.

    Of those that have no reason to refuse, the one that will be done first; where nothing
    tells two apart, a card before the CPU, which its owner has other uses for.

    Args:
        call: What is asked for.
        requester: By whom.
        offers: This node's terms on each of its devices, the CPU's first.
    """
    refusals = [(terms, refusal(call, requester, terms)) for terms in offers]
    free = [terms for terms, no in refusals if no is None]
    if free:
        fastest = max(t.rates.get(call.numeric_class, 0.0) for t in free)
        return min(
            free,
            key=lambda t: (done_s(t, call, fastest), t.leases, t.device == offers[0].device),
        )
    told = [(terms, no) for terms, no in refusals if no is not None]
    for terms, no in told:  # a device that would do, but for what passes or can be changed
        if call.numeric_class in terms.executors:
            return no
    _, no = told[0]
    if no.reason in {Reason.CLASS_NOT_OFFERED, Reason.NO_DEVICE}:
        return _not_served(call, offers) or no
    return no


def done_s(terms: Terms, call: Call, fastest: float) -> float:
    """When a unit of ``call`` would be done on a device, in seconds from now: an estimate.

    After those that wait there, it runs for `BASE_UNIT_S` on the fastest device of this
    node, and on another one as much longer as that is slower in its class. A device whose
    rate is not known is taken to be as fast.

    Args:
        terms: What is offered there.
        call: What is asked for.
        fastest: The highest rate of the class among this node's devices; 0 of none.
    """
    rate = terms.rates.get(call.numeric_class, 0.0) or fastest
    return terms.waiting_s + (BASE_UNIT_S * fastest / rate if rate else BASE_UNIT_S)


def _not_served(call: Call, offers: Sequence[Terms]) -> Refusal | None:
    """Why no device serves the class of a call, where more is known than what others do."""
    lost = [terms.lost for terms in offers if terms.lost]
    asked = call.numeric_class in ONLY_ON_CARDS or any(
        call.numeric_class in terms.compiled for terms in offers
    )
    compiling = [terms.device for terms in offers if terms.compiled] if asked else []
    if compiling:
        detail = (
            f"compile-only on {', '.join(compiling)}: kernels compile for these cards here, "
            "and no runtime of this node reaches them"
        )
    elif asked and lost:
        detail = lost[0]
    elif call.numeric_class in ONLY_ON_CARDS and not any(t.executors for t in offers[1:]):
        detail = _takes_card(call)
    else:
        executors = sorted({c for terms in offers for c in terms.executors})
        if not executors:
            return None
        offered = f"offered here: {', '.join(executors)}"
        return Refusal(call.call, Reason.CLASS_NOT_OFFERED, offered)
    return Refusal(call.call, Reason.NO_DEVICE, detail[:256])


def refusal(call: Call, requester: PeerId, terms: Terms) -> Refusal | None:
    """Why this node does not bid on ``call``, or None where it does.

    The order is from what the requester cannot change to what passes by itself.
    """
    reason = closed(requester, terms)
    if reason is None:
        no_more = withheld(requester, terms)
        if no_more is not None:
            return Refusal(call.call, *no_more)
        reason = _not_there(call, terms) or _not_so(call, requester, terms)
    return Refusal(call=call.call, reason=reason[0], detail=reason[1]) if reason else None


def _not_there(call: Call, terms: Terms) -> tuple[Reason, str] | None:
    """What keeps the device from serving the class of a call."""
    if call.numeric_class in terms.executors:
        return None
    if terms.lost:
        return Reason.NO_DEVICE, terms.lost[:256]
    if terms.starting:
        return Reason.BUSY, "it has just started and still tests its devices"
    if not terms.executors:
        return Reason.NO_DEVICE, "no executor of this node works"
    if call.numeric_class in ONLY_ON_CARDS:
        return Reason.NO_DEVICE, _takes_card(call)
    offered = ", ".join(sorted(terms.executors))
    return Reason.CLASS_NOT_OFFERED, f"offered here: {offered}"


def _takes_card(call: Call) -> str:
    return f"class {call.numeric_class} takes a GPU, and this node has none that is used"


def _not_so(call: Call, requester: PeerId, terms: Terms) -> tuple[Reason, str] | None:
    """What of a call is not taken of this requester, or not now, by a device that could."""
    strange = _strange_kernel(call, requester, terms)
    if strange is not None:
        return strange
    if call.memory_bytes > terms.memory_bytes:
        return (
            Reason.TOO_LARGE,
            f"a unit may use {terms.memory_bytes} bytes here, not {call.memory_bytes}",
        )
    if requester != terms.own and call.time_limit_s > terms.time_limit_s:
        return (
            Reason.TOO_LARGE,
            f"a unit may take {terms.time_limit_s:g} s here, not {call.time_limit_s:g}",
        )
    stranger = rank(requester, terms) > FRIEND
    if terms.leases >= (STRANGERS_LEASES_LIMIT if stranger else LEASES_LIMIT):
        return Reason.BUSY, f"{terms.leases} leases are running"
    if requester != terms.own and worth(call) < terms.min_price:
        least = f"those of {terms.min_price:.4g} or more are taken here"
        return Reason.PRICE, f"a unit of it is worth {worth(call):.4g} credits, and {least}"
    return None


def _strange_kernel(call: Call, requester: PeerId, terms: Terms) -> tuple[Reason, str] | None:
    """A kernel is its author's code, on a card whose driver no sandbox covers."""
    if call.numeric_class == KERNEL_CLASS and rank(requester, terms) > FRIEND:
        return (
            Reason.UNTRUSTED_REQUESTER,
            "kernels are taken only of peers on this node's allow list",
        )
    return None


def ends_lease(call: Call, requester: PeerId, terms: Terms) -> tuple[Reason, str] | None:
    """Why a lease of ``call`` ends now, with a sentence; None where it goes on.

    What it gives for a unit that runs is why that unit is handed back.
    """
    if terms.lost:
        return Reason.BUSY, terms.lost[:256]  # another lease may be had at once
    return closed(requester, terms) or _strange_kernel(call, requester, terms)


def closed(requester: PeerId, terms: Terms) -> tuple[Reason, str] | None:
    """Why nothing at all of ``requester`` is taken now, with a sentence; None where some is."""
    if requester == terms.own:
        if not terms.stance.own:
            return Reason.PAUSED, owner.sentence(terms.stance)
    else:
        distrust = distrusted(requester, terms)
        if distrust is not None:
            return distrust
        if not terms.providing:
            return Reason.NOT_PROVIDING, "this node submits work and takes none"
        if terms.stance.cause is not None:
            # When its owner sits at the machine is no stranger's concern.
            known = requester in terms.allowed
            return Reason.PAUSED, owner.sentence(
                terms.stance
            ) if known else "its owner lets it take no work of strangers now"
    if terms.draining:
        return Reason.DRAINING, "this node is shutting down"
    return None


def distrusted(requester: PeerId, terms: Terms) -> tuple[Reason, str] | None:
    """Why this node does not work for ``requester``, whatever it asks; None where it may."""
    ban = terms.ban_of(requester)
    if ban is not None:
        return Reason.BANNED, f"proof {ban.proof} convicts you: {ban.why}"[:256]
    if requester in terms.denied:
        return Reason.DENIED, "this node's owner has put you on its deny list"
    if requester in {terms.own, *terms.allowed}:
        return None
    if not terms.strangers:
        return Reason.UNTRUSTED_REQUESTER, "this node serves only peers on its allow list"
    if not terms.sandboxed:
        return (
            Reason.UNTRUSTED_REQUESTER,
            "strangers are served from within a sandbox only, and this node has none",
        )
    return None


def withheld(requester: PeerId, terms: Terms) -> Withheld | None:
    """Why ``requester`` gets nothing more, by how it dealt with this node; None where it does.

    Unlike what `closed` gives it ends no unit that runs.
    """
    return None if requester == terms.own else terms.withheld(requester)


def worth(call: Call) -> float:
    """Credits for one unit of ``call`` on an idle device that holds nothing of it."""
    fetch = (call.program_bytes / call.units + call.input_bytes) / BYTES_PER_CREDIT
    return BASE_PRICE + fetch


def price(call: Call, terms: Terms, held_bytes: int) -> float:
    """Credits for one unit of ``call``.

    Grows with the seconds that others will run first and with the bytes that would
    have to be fetched, spread over the units of the call.

    Args:
        call: What is asked for.
        terms: What this node offers now.
        held_bytes: How much of the program this node holds already.
    """
    missing_bytes = max(0, call.program_bytes - held_bytes)
    fetch = (missing_bytes / call.units + call.input_bytes) / BYTES_PER_CREDIT
    return BASE_PRICE * (1.0 + terms.waiting_s / BASE_UNIT_S) + fetch


def bid(call: Call, terms: Terms, held_bytes: int, nonce: str, *, batches: bool = False) -> Bid:
    """The bid of a node that has no reason to refuse.

    Args:
        call: What is asked for.
        terms: What this node offers now.
        held_bytes: How much of the program this node holds already.
        nonce: Drawn for this bid alone.
        batches: Whether the requester knows how to send many units in one message.
    """
    return Bid(
        call=call.call,
        nonce=nonce,
        device=terms.device,
        executor=terms.executors[call.numeric_class],
        price=price(call, terms, held_bytes),
        units_max=LEASE_UNITS_LIMIT,
        in_flight_max=UNITS_IN_FLIGHT_LIMIT if batches else IN_FLIGHT - 1 + terms.at_once,
        valid_s=BID_VALID_S,
        batch_max=BATCH_UNITS_LIMIT if batches else 1,
        at_once=terms.at_once,
    )


def rank(requester: PeerId, terms: Terms) -> int:
    """Whose units go first where several wait: the owner's, then friends', then others'.

    Of those, who has done this node wrong comes last.
    """
    if requester == terms.own:
        return OWN
    if requester in terms.allowed:
        return FRIEND
    return DOUBTED if terms.doubted(requester) else STRANGER
