"""Checks of the network: bootstrap peers, the clock against theirs, links, reachability."""

from __future__ import annotations

import ctypes
import statistics
import time
from typing import TYPE_CHECKING, Final

from shoal.node.cli.checkup.bootstrap import Clock
from shoal.node.cli.checkup.findings import Finding, failure, ok, warning
from shoal.node.cli.checkup.meeting import Stage
from shoal.node.cli.output import duration_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shoal.node.cli.checkup.bootstrap import Visit
    from shoal.node.cli.checkup.patient import Patient

CLOCK_WARNING_S: Final = 30.0
"""More than a network's delays and a minute-old advert explain."""

CLOCK_FAILURE_S: Final = 1800.0
"""A quarter of what peers tolerate, and hours of a schedule are wrong by then."""

LISTED_AFTER_S: Final = 60.0
"""A node is known everywhere by then; see `membership.advert_interval_s`."""

EVIDENCE_SHOWN: Final = 3
"""Of what peers found when they dialled back; `shoal status --json` has all of it."""

_NTP: Final = "set it, best by NTP (`timedatectl set-ntp true`), and restart the daemon"
_LOST_ON_THE_WAY: Final = (Stage.RESOLVE, Stage.CONNECT)
"""Stages at which a peer may fail that is merely off; later ones are faults."""

_TIMEX_SIZE_BYTES: Final = 208
_CLOCK_UNSYNCHRONISED: Final = 5


def bootstrap(patient: Patient, visits: Sequence[Visit]) -> Iterator[Finding]:
    """Each bootstrap peer, and at which stage joining through it fails."""
    reached = any(visit.failed is None for visit in visits)
    joined = reached or bool(patient.status and patient.status.peers_linked)
    for visit in visits:
        if visit.failed is None:
            yield _passed(patient, visit)
            continue
        off = visit.failed in _LOST_ON_THE_WAY and joined
        yield (warning if off else failure)(
            "bootstrap",
            f"{visit.address}: {visit.failed} failed: {visit.reason}",
            visit.hint,
        )


def _passed(patient: Patient, visit: Visit) -> Finding:
    """A bootstrap peer that all stages went well with; does it list the daemon, too?"""
    message = (
        f"{visit.address}: resolved, connected, handshake, protocol "
        f"{visit.protocol[0]}.{visit.protocol[1]} ({visit.agent}), its advert is "
        f"{duration_text(visit.advert_age_s)} old; it lists {visit.nodes} "
        f"node{'s' if visit.nodes != 1 else ''}"
    )
    status = patient.status
    if status is None:
        return ok("bootstrap", message)
    if any(each.peer == status.peer for each in visit.clocks):
        return ok("bootstrap", f"{message}, this one among them")
    if status.uptime_s < LISTED_AFTER_S or visit.nodes > len(visit.clocks):
        return ok("bootstrap", message)
    return warning(
        "bootstrap",
        f"{message}, and this one is not among them",
        "if that lasts: see clock, for peers refuse adverts of far away times, and the log",
    )


def links(patient: Patient, visits: Sequence[Visit]) -> Iterator[Finding]:
    """Whether the daemon has joined the network, or could."""
    status = patient.status
    if status is None:
        if not visits and patient.effective and patient.holder() is None:
            yield warning(
                "peers",
                "a daemon started here would be alone: no bootstrap peer is set",
                "start it with `shoal up --bootstrap ADDRESS`, or give its address to others",
            )
        return
    if status.peers_linked:
        yield ok("peers", f"{status.peers_linked} linked, {status.peers_known} known")
    elif any(visit.failed is None for visit in visits):
        yield failure(
            "peers",
            "no peer is linked, though a bootstrap peer answers this command",
            "if that lasts for a minute, see the daemon's log",
        )
    elif visits:
        yield failure(
            "peers",
            "no peer is linked: no bootstrap peer can be joined through",
            "see bootstrap",
        )
    else:
        yield warning(
            "peers",
            "this node is alone: no bootstrap peer is set",
            "`shoal peers --connect ADDRESS` links it to one whose “shoal status” shows that "
            "address; or give this node's address to others",
        )


def views(patient: Patient) -> Iterator[Finding]:
    """What the daemon itself says of joining, and of being reached; an older one may not."""
    if patient.status is None:
        return
    joining = patient.status.joining
    if joining is not None:
        if joining.sentence:  # else a peer of earlier times that is off is no trouble
            yield warning("joining", joining.sentence)
            for seed in joining.seeds:
                if seed.error and not seed.linked:
                    yield warning("joining", f"{seed.text} ({seed.source}): {seed.error}")
        if joining.lan:
            yield ok("lan", joining.lan)
    reached = patient.status.reachability
    if reached is not None:
        evidence = "".join(f"; {line}" for line in reached.evidence[:EVIDENCE_SHOWN])
        found = warning if reached.verdict == "blocked" else ok
        yield found("reached", f"{reached.sentence}{evidence}")


def clock(patient: Patient, visits: Sequence[Visit]) -> Iterator[Finding]:
    """This machine's clock against those of peers, as they say."""
    clocks = {each.peer: each for visit in visits for each in visit.clocks}
    for view in patient.peers:
        if view.advert_issued_at is not None:
            ahead_s = time.time() - view.advert_issued_at - view.advert_age_s
            clocks.setdefault(view.peer, Clock(view.peer, ahead_s))
    own = patient.peer()
    yield judge_clock([each for each in clocks.values() if each.peer != own], _kept_in_step())


def judge_clock(clocks: Sequence[Clock], kept_in_step: bool | None) -> Finding:
    """What to say of this machine's clock.

    Args:
        clocks: What peers' show.
        kept_in_step: Whether the kernel says so; None where it does not say.
    """
    now = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    if not clocks:
        kept = {True: "; the system keeps it in step", False: "; nothing keeps it in step"}
        told = kept.get(kept_in_step, "") if kept_in_step is not None else ""
        return ok("clock", f"{now}{told}; no peer was there to compare it with")
    ahead_s = statistics.median(each.ahead_s for each in clocks)
    agreeing = [each for each in clocks if abs(each.ahead_s) <= CLOCK_WARNING_S]
    if abs(ahead_s) > CLOCK_WARNING_S and len(clocks) == 1:
        return _one_of_two(clocks[0], kept_in_step)
    if abs(ahead_s) > CLOCK_WARNING_S:
        found = failure if abs(ahead_s) > CLOCK_FAILURE_S else warning
        others = f"those of {len(clocks) - len(agreeing)} of {len(clocks)} peers"
        return found("clock", f"this machine's clock is {_off(ahead_s, others)}", _NTP)
    odd = "".join(
        f"; …{each.peer[-8:]}'s is {_off(-each.ahead_s)}"
        for each in clocks
        if each not in agreeing
    )
    return ok("clock", f"{now}, as with {len(agreeing)} of {len(clocks)} peers{odd[:200]}")


def _one_of_two(clock: Clock, kept_in_step: bool | None) -> Finding:
    """With one peer to compare with, the kernel's word is all that tells whose is wrong."""
    other = f"that of …{clock.peer[-8:]}, the one peer that was asked"
    message = f"this machine's clock is {_off(clock.ahead_s, other)}"
    if kept_in_step:
        return warning(
            "clock",
            f"{message}; the system keeps this one in step, so that it is likely the peer's "
            "that is wrong",
            "tell its operator",
        )
    found = failure if abs(clock.ahead_s) > CLOCK_FAILURE_S else warning
    return found("clock", f"{message}: one of the two is wrong", _NTP)


def _off(ahead_s: float, other: str = "") -> str:
    """How far off: ``1 h 0 min ahead``; with ``other``, of whom."""
    apart = duration_text(abs(ahead_s))
    if ahead_s > 0:
        return f"{apart} ahead of {other}" if other else f"{apart} ahead"
    return f"{apart} behind {other}".rstrip()


def _kept_in_step() -> bool | None:
    """Whether the kernel's clock is disciplined, by ``adjtimex`` without a change."""
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_SIZE_BYTES))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _CLOCK_UNSYNCHRONISED
