"""Why a job stands where it stands, in words and with the next thing to do.

Pure: turns what peers answered to a job's calls, and what this node knows of them, into
causes (`node.causes`), ranked by what would get the job running soonest. Answers alike are
told once for all who gave them. How a job went that has ended is `node.account`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shoal.crypto.peer_id import PeerId
from shoal.node.causes import (
    ERRORS,
    FALSE_RESULT,
    FALSE_RESULTS,
    NO_SANDBOX,
    OTHER_ERROR,
    REFUSALS,
    Cause,
    Explanation,
    Remedy,
    Words,
)
from shoal.node.outlook import Doing, Outlook, PeerOutlook
from shoal.node.records import Answer, Job
from shoal.node.refusal_figures import Refuser, with_figures
from shoal.node.wording import count, duration, names
from shoal.protocol.messages import Reason

_REASONS = frozenset(reason.value for reason in Reason)
_AWARDED = frozenset({"awarded", "bid"})

UNITS_TOLD = 8


@dataclass(frozen=True, slots=True)
class Neighbour:
    """What a node's valid advert says, as far as it decides who is called.

    Attributes:
        providing: Whether it takes work of peers now.
        classes: The numeric classes that it offers.
    """

    providing: bool = True
    classes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a node knows beside a job's own answers.

    Attributes:
        own: This node's id.
        known: The nodes with a valid advert, this one included.
        misfits: Connected peers of another version of the protocol, each with what it
            speaks and who has to upgrade.
        leases: How many leases the job holds now.
        alone: Why no other node is known, where this node found out.
        outlook: The job's plan at this moment.
    """

    own: PeerId
    known: Mapping[PeerId, Neighbour]
    leases: int = 0
    misfits: Mapping[PeerId, str] = field(default_factory=dict)
    alone: str = ""
    outlook: Outlook | None = None


def explain(job: Job, answers: Sequence[Answer], around: Surroundings) -> Explanation:
    """Why a job that has not ended stands where it stands."""
    latest = _latest(answers)
    causes = [
        *_nobody(job, around),
        *_refused(job, latest, around),
        *_not_asked(job, latest, around),
        *_misfits(around),
        *_working(around),
    ]
    if not causes and not around.leases:
        causes = [_unanswered(job, around)]
    return Explanation(
        job=job,
        headline=_progress(job, around),
        causes=tuple(sorted(causes, key=lambda cause: cause.remedy.rank)),
        answers=tuple(answers),
        outlook=around.outlook,
    )


def refusals(job: Job, answers: Sequence[Answer], around: Surroundings) -> list[Cause]:
    """What peers answered in place of a lease, and no more than that."""
    return _refused(job, _latest(answers), around)


def _latest(answers: Sequence[Answer]) -> dict[PeerId, Answer]:
    """The newest answer of each peer, but for those who gave a lease."""
    newest = {answer.peer: answer for answer in sorted(answers, key=lambda answer: answer.at)}
    return {peer: one for peer, one in newest.items() if one.verdict not in _AWARDED}


def _progress(job: Job, around: Surroundings) -> str:
    ended = job.units_done + job.units_failed
    words = f"{ended} of {count(job.units_total, 'unit')} {_have(ended)} ended"
    outlook = around.outlook
    if outlook is None:
        return f"{words}, {count(around.leases, 'lease')} {_is(around.leases)} held."
    parts = [f"{count(around.leases, 'lease')} {_is(around.leases)} held"]
    parts.append(f"{outlook.units_out} {_is(outlook.units_out)} with a peer")
    if outlook.units_waiting:
        waiting = outlook.units_waiting
        parts.append(f"{waiting} {'waits' if waiting == 1 else 'wait'} for one")
    if outlook.units_awaiting:
        awaiting = outlook.units_awaiting
        verb = "awaits" if awaiting == 1 else "await"
        parts.append(f"{awaiting} {verb} outputs of others that have not ended")
    if job.open:
        parts.append("more may be added")
    if outlook.ends_in_s is not None:
        parts.append(f"it ends in about {duration(outlook.ends_in_s)}")
    text = f"{words}: {', '.join(parts)}."
    if outlook.share < 1.0:
        text += f" It has {outlook.share:.0%} of the turns, beside this daemon's other jobs."
    return text


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def _have(number: int) -> str:
    return "has" if number == 1 else "have"


# --- nobody to ask -----------------------------------------------------------------


def _nobody(job: Job, around: Surroundings) -> list[Cause]:
    """Why there is nobody to ask, where that is so."""
    causes: list[Cause] = []
    others = {peer: one for peer, one in around.known.items() if peer != around.own}
    offered = frozenset(name for one in around.known.values() for name in one.classes)
    if offered and job.numeric_class not in offered:
        causes.append(
            Cause(
                Reason.CLASS_NOT_OFFERED.value,
                f"No known node offers the numeric class {job.numeric_class}; offered: "
                f"{', '.join(sorted(offered))}",
                f"submit it again with `--class {_nearest(offered)}`, or connect to more "
                "nodes: `shoal peers --connect ADDRESS`",
                Remedy.HERE,
            )
        )
    if not others and not around.misfits:
        why = f" ({around.alone.rstrip('.')})" if around.alone else ""
        causes.append(
            Cause(
                "no_peer",
                f"No other node is known to this one{why}",
                "connect to one with `shoal peers --connect ADDRESS`, or set `bootstrap`",
                Remedy.HERE,
            )
        )
    return causes


def _nearest(offered: frozenset[str]) -> str:
    return "fp32" if "fp32" in offered else min(offered)


def _unanswered(job: Job, around: Surroundings) -> Cause:
    asked = [p for p, one in around.known.items() if job.numeric_class in one.classes]
    who = "this node alone" if asked == [around.own] else count(len(asked), "node")
    return Cause(
        "unanswered",
        f"{who} can be asked, and nothing was answered yet",
        "wait some seconds and ask again",
        Remedy.WAIT,
        tuple(asked),
    )


# --- answers -----------------------------------------------------------------------


def _refused(job: Job, latest: Mapping[PeerId, Answer], around: Surroundings) -> list[Cause]:
    """What peers answered in place of a lease, told once for those who answered alike."""
    alike: dict[tuple[str, str, bool, bool], list[Answer]] = {}
    for answer in latest.values():
        own = answer.peer == around.own
        gone = not own and answer.verdict in _REASONS and answer.peer not in around.known
        detail = answer.detail.replace(answer.peer, "it") if _words(answer).told else ""
        alike.setdefault((answer.verdict, detail, own, gone), []).append(answer)
    return [
        _cause(job, verdict, group, around, gone=gone)
        for (verdict, _, _, gone), group in alike.items()
    ]


def _words(answer: Answer) -> Words:
    if answer.verdict == Reason.UNTRUSTED_REQUESTER and "sandbox" in answer.detail:
        return NO_SANDBOX
    if answer.verdict in _REASONS:
        return REFUSALS[Reason(answer.verdict)]
    if answer.verdict in FALSE_RESULTS:
        return FALSE_RESULT
    return ERRORS.get(answer.verdict, OTHER_ERROR)


def _cause(
    job: Job, verdict: str, group: Sequence[Answer], around: Surroundings, *, gone: bool
) -> Cause:
    """One cause of answers that are alike."""
    peers = tuple(answer.peer for answer in group)
    words, detail = _words(group[0]), group[0].detail
    own = peers == (around.own,)
    who = names(peers, around.own)
    if gone:
        return Cause(
            "gone",
            f"{who} {words.one if len(peers) == 1 else words.many}, and {_is(len(peers))} not "
            "known any more",
            "look there whether its daemon runs (“shoal status”, else “shoal up”)",
            Remedy.THERE,
            peers,
        )
    says = words.one if len(peers) == 1 else words.many
    step = (own and words.here) or words.step
    figures = with_figures(job, verdict, detail, Refuser(own, len(peers) > 1))
    remedy = words.remedy
    if figures is not None:
        says, step = figures
    elif words.told and detail:
        said = detail.removeprefix(f"{peers[0]} ").removeprefix("it ")
        says += f" ({said.rstrip('.')})"
    if own and words.here and remedy is not Remedy.WAIT:
        remedy = Remedy.HERE
    return Cause(
        "false_result" if verdict in FALSE_RESULTS else verdict,
        f"{who} {says.replace('{class}', job.numeric_class)}",
        _fill(step, peers, around),
        remedy,
        peers,
    )


def _fill(step: str, peers: Sequence[PeerId], around: Surroundings) -> str:
    """A step with the names and figures of this case."""
    if len(peers) > 1:
        step = step.replace("its operator", "their operators")
        step = step.replace("its owner gives", "their owners give")
    return (
        step.replace("{own}", around.own)
        .replace("{peer}", peers[0])
        .replace("{again}", _again(peers, around.outlook, len(peers) == 1))
    )


def _again(peers: Sequence[PeerId], outlook: Outlook | None, one: bool) -> str:
    who = "it is" if one else "they are"
    for peer in outlook.peers if outlook else ():
        if peer.peer in peers and peer.again_in_s is not None:
            return f"{who} asked again in {duration(peer.again_in_s)}"
    return f"{who} asked again by itself" if one else f"{who} asked again by themselves"


# --- not asked at all --------------------------------------------------------------


def _not_asked(job: Job, latest: Mapping[PeerId, Answer], around: Surroundings) -> list[Cause]:
    """Peers whose adverts say that asking them would be in vain."""
    others = [peer for peer in sorted(around.known) if peer != around.own]
    closed = [
        peer
        for peer in others
        if not around.known[peer].providing and _verdict(latest, peer) not in _REASONS
    ]
    idle = [
        peer
        for peer in [around.own, *others]
        if peer in around.known
        and not around.known[peer].classes
        and peer not in closed
        and _verdict(latest, peer) != Reason.NO_DEVICE
    ]
    lacking: dict[frozenset[str], list[PeerId]] = {}
    for peer in others:
        classes = around.known[peer].classes
        if classes and job.numeric_class not in classes and peer not in closed:
            lacking.setdefault(classes, []).append(peer)
    offered = any(job.numeric_class in one.classes for one in around.known.values())
    return [
        *([_closed(closed, around)] if closed else ()),
        *(_no_device(peer, around) for peer in idle),
        # Where nobody offers it that is told once, for all.
        *(_lacking(job, classes, lacking[classes], around) for classes in lacking if offered),
    ]


def _closed(peers: Sequence[PeerId], around: Surroundings) -> Cause:
    one = len(peers) == 1
    says = (
        "is not asked, for it says that it takes no work now, as its owner wishes"
        if one
        else "are not asked, for they say that they take no work now, as their owners wish"
    )
    return Cause(
        "not_asked",
        f"{names(peers, around.own)} {says}",
        "wait, or there “shoal resume” ends a pause, and `provide = true` with “shoal reload” "
        "lets it work for others at all",
        Remedy.LATER,
        tuple(peers),
    )


def _lacking(
    job: Job, classes: frozenset[str], peers: Sequence[PeerId], around: Surroundings
) -> Cause:
    verb = "does" if len(peers) == 1 else "do"
    return Cause(
        Reason.CLASS_NOT_OFFERED.value,
        f"{names(peers, around.own)} {verb} not offer the numeric class {job.numeric_class}, "
        f"only {', '.join(sorted(classes))}",
        f"other nodes do; or submit it again with `--class {_nearest(classes)}`",
        Remedy.HERE,
        tuple(peers),
    )


def _verdict(latest: Mapping[PeerId, Answer], peer: PeerId) -> str:
    return latest[peer].verdict if peer in latest else ""


def _no_device(peer: PeerId, around: Surroundings) -> Cause:
    words = REFUSALS[Reason.NO_DEVICE]
    own = peer == around.own
    return Cause(
        Reason.NO_DEVICE.value,
        f"{names([peer], around.own)} has shown no device that works, or has just started and "
        "still tests its own",
        words.here if own else words.step,
        Remedy.HERE if own else Remedy.THERE,
        (peer,),
    )


def _misfits(around: Surroundings) -> list[Cause]:
    causes = []
    for peer, why in sorted(around.misfits.items()):
        if "protocol" not in why:
            continue  # no node of shoal at all
        says, _, advice = why.partition(": ")
        here = "this node" in advice
        upgrade = "pip install --upgrade shoal"
        causes.append(
            Cause(
                "version",
                f"{peer} {says}, which this node does not",
                f"upgrade this node: `{upgrade}`, then `shoal down` and `shoal up`"
                if here
                else f"its operator must upgrade it: “{upgrade}”, then “shoal down” and "
                "“shoal up”",
                Remedy.HERE if here else Remedy.THERE,
                (peer,),
            )
        )
    return causes


# --- at work -----------------------------------------------------------------------


def _working(around: Surroundings) -> list[Cause]:
    """Who has units now: nothing is wrong there."""
    return [
        Cause(
            "working",
            f"{names([peer.peer], around.own)} {_work(peer)}",
            remedy=Remedy.WAIT,
            peers=(peer.peer,),
            units=peer.units_out,
        )
        for peer in (around.outlook.peers if around.outlook else ())
        if peer.doing in (Doing.LEASED, Doing.ASKED)
    ]


def _work(peer: PeerOutlook) -> str:
    if peer.doing is Doing.ASKED:
        return "was asked, and has not answered yet"
    told = ", ".join(map(str, peer.units_out[:UNITS_TOLD]))
    more = " and more" if len(peer.units_out) > UNITS_TOLD else ""
    has = f"has unit{'s' if len(peer.units_out) > 1 else ''} {told}{more}"
    done = f"{has if peer.units_out else 'holds a lease'}, did {peer.units_done} before"
    return done if peer.unit_s is None else f"{done}, {duration(peer.unit_s)} each"
