"""How others reach this node, judged by what peers found when they dialled it back.

Pure: reports and times go in, a verdict comes out, and whom to ask next. The asking,
the dialling and the clock are `node.reachability`'s; what a verdict means for the
node's advert is `protocol.advertising`'s.

A node asks a few peers to dial it. Each tells under which IP address it sees the
node, and what became of dialling the node's ports there. That is one peer's word, so
it is a *vote* about one place (an IP address and a port), and votes are counted by
where their peer is: all peers of one IPv4 /24 or IPv6 /48 have one vote together
(of private ranges and loopback each address has its own, since a LAN is a /24 as a
whole), and none where they disagree. A place is decided by two votes that are more
than those against. So one liar, with any number of keys at one address, decides
nothing and overturns nothing that two honest votes have decided; two liars far apart,
against a single honest peer, do.

That a dial-back worked is believed only where its nonce has come in over a connection
that the peer opened: a peer can hide that a port is open, and not invent it from afar.

| verdict | when |
|---|---|
| public | a place on the internet is decided to work |
| private | only places of private ranges are, or none can be: it listens on loopback |
| blocked | places are decided not to work, and none to work |
| unknown | none of these: what is advertised stays as it is |

A report counts for `REPORT_LIFETIME_S`, and a peer's newer one takes its place.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from ipaddress import IPv6Address, ip_address, ip_network
from itertools import groupby
from typing import NewType

from shoal.crypto.peer_id import PeerId
from shoal.protocol.reachability_messages import Outcome

Place = tuple[str, int]
"""An IP address and a TCP port."""

Group = NewType("Group", str)
"""Peers that have one vote together."""


VOTES_NEEDED = 2
ASKED_AT_ONCE = 3
ROUND_INTERVAL_S = 10.0
"""Between two rounds, while there is no verdict or links are new."""

SETTLED_INTERVAL_S = 900.0
"""Between two rounds once there is a verdict. A dial-back costs both sides 5 ms of CPU."""

PEER_INTERVAL_S = 120.0
"""Between two requests to one peer; it admits about as many (`DIAL_BACKS_PER_S`)."""

REPORT_LIFETIME_S = 3600.0
REPORTS_LIMIT = 64
"""Reports kept, the oldest going first: twenty rounds' worth."""

DIAL_BACKS_PER_S, DIAL_BACK_BURST = 1 / 90, 3.0
"""What one peer gets, and what one IP address gets for all peers there."""

DIAL_BACKS_TOTAL_PER_S, DIAL_BACKS_TOTAL_BURST = 0.5, 10.0
"""What all peers together get: 5 ms of CPU a second at most."""

_PRIVATE_RANGES = tuple(
    map(
        ip_network,
        (
            *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"),
            *("100.64.0.0/10", "fc00::/7", "fe80::/10"),
        ),
    )
)


class Verdict(StrEnum):
    """How others reach this node."""

    PUBLIC = "public"
    PRIVATE = "private"
    BLOCKED = "blocked"
    UNKNOWN = "unknown"


class Scope(IntEnum):
    """From how far away an IP address can be reached at all."""

    LOOPBACK = 0
    LAN = 1
    INTERNET = 2


@dataclass(frozen=True, slots=True)
class Report:
    """What one peer found.

    Attributes:
        ip: Where the peer is, by this node's end of the connection.
        seen_as: Which IP address it sees this node come from.
        outcomes: What became of each port.
        shown: Ports over which it came through, as this node saw by its nonce.
    """

    peer: PeerId
    ip: str
    seen_as: str
    outcomes: tuple[tuple[int, Outcome], ...]
    shown: frozenset[int]
    at_s: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict, a sentence for it, and the places that it stands on."""

    verdict: Verdict
    sentence: str
    working: tuple[Place, ...] = ()
    failing: tuple[Place, ...] = ()
    suspect: bool = False
    """Whether anything speaks against being reached, be it decided or not."""


@dataclass(slots=True)
class Evidence:
    """The newest report of each peer."""

    _reports: dict[PeerId, Report] = field(default_factory=dict)

    def note(self, report: Report) -> None:
        """Take a report in, in place of the peer's last one.

        One without a dial leaves the last one standing, if nothing else has changed.
        """
        held = self._reports.get(report.peer)
        idle = all(outcome is Outcome.NOT_DIALLED for _, outcome in report.outcomes)
        if idle and held is not None and held.seen_as == report.seen_as:
            return
        self._reports.pop(report.peer, None)
        while len(self._reports) >= REPORTS_LIMIT:
            del self._reports[next(iter(self._reports))]
        self._reports[report.peer] = report

    def forget(self) -> None:
        """Drop everything: this node is not where it was."""
        self._reports.clear()

    def at(self, now_s: float) -> tuple[Report, ...]:
        """The reports that count now, the newest first."""
        self._reports = {
            peer: report
            for peer, report in self._reports.items()
            if now_s - report.at_s < REPORT_LIFETIME_S
        }
        return tuple(reversed(self._reports.values()))


# --- judging ------------------------------------------------------------------------


def scope_of(ip: str) -> Scope:
    """From how far away ``ip`` can be reached; an IPv4 address in IPv6 as what it is."""
    address = ip_address(ip)
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if address.is_loopback:
        return Scope.LOOPBACK
    private = any(
        address.version == each.version and address in each for each in _PRIVATE_RANGES
    )
    return Scope.LAN if private else Scope.INTERNET


def group_of(ip: str) -> Group:
    """With which other peers a peer at ``ip`` shares its vote."""
    if scope_of(ip) is not Scope.INTERNET:
        return Group(ip)
    prefix = 48 if ip_address(ip).version == 6 else 24
    return Group(str(ip_network((ip, prefix), strict=False)))


def judge(
    reports: Iterable[Report], listening: Iterable[Place], linked: Mapping[PeerId, str]
) -> Judgement:
    """Say how this node is reached.

    Args:
        reports: Those that count now.
        listening: Where it listens, wildcards expanded to the machine's addresses.
        linked: Its links, and where each of them is.
    """
    reports, listening = tuple(reports), tuple(listening)
    working, failing = _decide(reports)
    outside = [place for place in working if scope_of(place[0]) is Scope.INTERNET]
    loopback_only = bool(listening) and all(
        scope_of(ip) is Scope.LOOPBACK for ip, _ in listening
    )
    distant = any(scope_of(ip) is not Scope.LOOPBACK for ip in linked.values())
    shut_out = any(scope_of(ip) is Scope.INTERNET for ip, _ in failing)
    untried = any(scope_of(ip) is Scope.INTERNET for ip, _ in listening) and not shut_out
    suspect = not outside and (
        ((loopback_only or not listening) and distant)
        or any(
            outcome not in {Outcome.WORKED, Outcome.NOT_DIALLED}
            for report in reports
            for _, outcome in report.outcomes
        )
    )

    def judged(verdict: Verdict, sentence: str) -> Judgement:
        text = f"{verdict.value}: {sentence}"
        return Judgement(verdict, text, tuple(working), tuple(failing), suspect=suspect)

    if outside:
        return judged(
            Verdict.PUBLIC,
            f"{_peers(reports, outside, works=True)} reached us at {_at(outside)}",
        )
    if not listening:
        return judged(Verdict.PRIVATE, "it listens nowhere")
    if loopback_only:
        return judged(
            Verdict.PRIVATE, "it listens on loopback only, where nodes on this machine reach it"
        )
    if working and not untried:
        but = f"; {_failure(reports, failing)}" if failing else ""
        return judged(
            Verdict.PRIVATE,
            f"only addresses of this machine's own network answer, {_at(working)}{but}",
        )
    if failing and not working:
        return judged(Verdict.BLOCKED, _failure(reports, failing))
    return judged(Verdict.UNKNOWN, _why_unknown(reports, working, linked))


def _decide(reports: tuple[Report, ...]) -> tuple[list[Place], list[Place]]:
    """The places that are decided to work, and those that are decided not to."""
    votes: dict[Place, dict[Group, set[bool]]] = {}
    for report in reports:
        for port, outcome in report.outcomes:
            works = outcome is Outcome.WORKED
            invented = works and port not in report.shown
            if outcome is not Outcome.NOT_DIALLED and not invented:
                of_place = votes.setdefault((report.seen_as, port), {})
                of_place.setdefault(group_of(report.ip), set()).add(works)
    working, failing = [], []
    for place, groups in votes.items():
        for_it = sum(said == {True} for said in groups.values())
        against = sum(said == {False} for said in groups.values())
        if for_it >= VOTES_NEEDED and for_it > against:
            working.append(place)
        elif against >= VOTES_NEEDED and against > for_it:
            failing.append(place)
    return sorted(working, key=_nearest_last), sorted(failing, key=_nearest_last)


def _nearest_last(place: Place) -> tuple[int, Place]:
    return -scope_of(place[0]), place


def _why_unknown(
    reports: tuple[Report, ...], working: list[Place], linked: Mapping[PeerId, str]
) -> str:
    if working:
        return f"nobody outside this machine's network has dialled it; {_at(working)} answers"
    if not linked:
        return "no peer is linked that could dial this node"
    if all(scope_of(ip) is Scope.LOOPBACK for ip in linked.values()):
        return "every linked peer is on this machine, so nothing is to be learnt from them"
    groups = {group_of(report.ip) for report in reports}
    if not groups:
        return "no peer has dialled this node back yet"
    if len(groups) < VOTES_NEEDED:
        return "peers of one network only have dialled it back; those of two must agree"
    return "the peers that dialled it back do not agree"


def _failure(reports: tuple[Report, ...], failing: list[Place]) -> str:
    sentences = []
    for ip, group in groupby(failing, key=lambda place: place[0]):
        places = list(group)
        ports = [port for _, port in places]
        said = Counter(
            outcome
            for report in reports
            if report.seen_as == ip
            for port, outcome in report.outcomes
            if port in ports and outcome not in {Outcome.WORKED, Outcome.NOT_DIALLED}
        )
        ((outcome, _),) = said.most_common(1)
        named = f"port{'s' if ports[1:] else ''} {', '.join(map(str, ports))}"
        says = {
            Outcome.REFUSED: f"{named} is refused there",
            Outcome.NO_ANSWER: f"{named} gives no answer there",
            Outcome.OTHER_PEER: f"something else answers at {named} there",
        }[outcome]
        step = "open or forward it" if scope_of(ip) is Scope.INTERNET else "open it"
        sentences.append(
            f"{_peers(reports, places, works=False)} see us come from {ip}, and {says}: {step}"
        )
    return "; ".join(sentences)


def _peers(reports: tuple[Report, ...], places: list[Place], *, works: bool) -> str:
    """How many peers found it so at one of ``places``."""
    said = sum(
        any(
            (report.seen_as, port) in places and (outcome is Outcome.WORKED) is works
            for port, outcome in report.outcomes
        )
        for report in reports
    )
    return f"{said} peers"


def _at(places: Iterable[Place]) -> str:
    return " and ".join(f"{ip} port {port}" for ip, port in places)


def describe(report: Report, now_s: float) -> str:
    """One line of evidence, for a person."""
    found = ", ".join(
        f"port {port} {_SAYS[outcome]}"
        if outcome is not Outcome.WORKED or port in report.shown
        else f"port {port} works, it says, but nothing came in"
        for port, outcome in report.outcomes
    )
    return (
        f"{report.peer} at {report.ip}, {now_s - report.at_s:.0f} s ago: "
        f"sees us come from {report.seen_as}; {found}"
    )


_SAYS = {
    Outcome.WORKED: "works",
    Outcome.REFUSED: "is refused",
    Outcome.NO_ANSWER: "gives no answer",
    Outcome.OTHER_PEER: "is answered by something else",
    Outcome.NOT_DIALLED: "was not dialled",
}


# --- whom to ask ---------------------------------------------------------------------


@dataclass(slots=True)
class Asking:
    """Whom to ask for a dial-back, and when."""

    _round_at_s: float = -math.inf
    _asked_at_s: dict[PeerId, float] = field(default_factory=dict)

    def choose(
        self,
        linked: Mapping[PeerId, tuple[str, float]],
        verdict: Verdict,
        now_s: float,
    ) -> tuple[PeerId, ...]:
        """The peers to ask now, of different groups where there are, and note them as asked.

        Args:
            linked: The links: where each is, and since when, in this clock's seconds.
            verdict: As it stands.
            now_s: This node's monotonic clock.
        """
        self._asked_at_s = {p: at_s for p, at_s in self._asked_at_s.items() if p in linked}
        if now_s - self._round_at_s < ROUND_INTERVAL_S:
            return ()
        settled = verdict is not Verdict.UNKNOWN
        interval_s = SETTLED_INTERVAL_S if settled else PEER_INTERVAL_S
        quiet = settled and now_s - self._round_at_s < SETTLED_INTERVAL_S

        def due(peer: PeerId) -> bool:
            ip, since_s = linked[peer]
            asked_at_s = self._asked_at_s.get(peer, -math.inf)
            if scope_of(ip) is Scope.LOOPBACK or now_s - asked_at_s < PEER_INTERVAL_S:
                return False
            if since_s > asked_at_s > -math.inf:  # it was linked anew: one of us may have moved
                return True
            return not quiet and now_s - asked_at_s >= interval_s

        waiting = sorted(
            filter(due, linked), key=lambda peer: self._asked_at_s.get(peer, -math.inf)
        )
        first_of_group = {group_of(linked[peer][0]): peer for peer in reversed(waiting)}
        firsts = [peer for peer in waiting if peer in first_of_group.values()]
        chosen = tuple(dict.fromkeys((*firsts, *waiting)))[:ASKED_AT_ONCE]
        if chosen:
            self._round_at_s = now_s
            self._asked_at_s |= dict.fromkeys(chosen, now_s)
        return chosen

    def start_over(self) -> None:
        """Ask everybody again, a round at a time: this node is not where it was."""
        self._asked_at_s.clear()
