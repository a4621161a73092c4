"""Why a job stands where it stands, in words and with the next thing to do.

Pure: turns what peers answered to a job's calls, and what this node knows of them, into
causes (`node.causes`), ranked by what would get the job running soonest. Answers alike are
told once for all who gave them. How a job went that has ended is `node.account`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shoal.crypto.peer_id import PeerId
from shoal.node.causes import (
    ERRORS,
    FALSE_RESULT,
    FALSE_RESULTS,
    IN_DEBT,
    KERNELS_OF_FRIENDS,
    LOW_STANDING,
    NO_CARD,
    NO_SANDBOX,
    OTHER_ERROR,
    REFUSALS,
    Cause,
    Explanation,
    Remedy,
    Words,
)
from shoal.node.not_asked import misfits, nobody, not_asked
from shoal.node.outlook import Doing, Outlook, PeerOutlook
from shoal.node.pending_checks import pending
from shoal.node.records import Answer, Job
from shoal.node.refusal_figures import Refuser, with_figures
from shoal.node.surroundings import Surroundings
from shoal.node.wording import count, duration, names
from shoal.protocol.negotiation_messages import Reason

_REASONS = frozenset(reason.value for reason in Reason)
_AWARDED = frozenset({"awarded", "bid"})

UNITS_TOLD = 8


def explain(job: Job, answers: Sequence[Answer], around: Surroundings) -> Explanation:
    """Why a job stands where it stands: one that has not ended, or that nobody bid for."""
    latest = _latest(answers)
    causes = [
        *nobody(job, around),
        *_refused(job, latest, around),
        *not_asked(job, latest, around),
        *misfits(around),
        *_working(around),
        *pending(job, around),
    ]
    if not around.leases:
        causes += _passed_over(around)
        causes = causes or [_unanswered(job, around)]
    return Explanation(
        job=job,
        headline=_progress(job, around),
        causes=tuple(sorted(causes, key=lambda cause: cause.remedy.rank)),
        answers=tuple(answers),
        outlook=around.outlook,
    )


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


def _unanswered(job: Job, around: Surroundings) -> Cause:
    asked = [p for p in around.known if around.offers(p, job.numeric_class)]
    who = "this node alone" if asked == [around.own] else count(len(asked), "node")
    if job.state.final:
        verb = "offers" if len(asked) == 1 else "offer"
        return Cause(
            "unanswered",
            f"{who} {verb} the class {job.numeric_class} now, and had not answered when the "
            "job ended",
            "submit it again",
            Remedy.HERE,
            tuple(asked),
        )
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


_UNTRUSTED = {
    "kernels are taken": KERNELS_OF_FRIENDS,
    "sandbox": NO_SANDBOX,
    "those who serve": IN_DEBT,
    "standing": LOW_STANDING,
}
"""By what a provider's own words have in them, since the reason is one for all."""


def _words(answer: Answer) -> Words:
    if answer.verdict == Reason.UNTRUSTED_REQUESTER:
        for mark, words in _UNTRUSTED.items():
            if mark in answer.detail:
                return words
    if answer.verdict == Reason.NO_DEVICE and "takes a GPU" in answer.detail:
        return NO_CARD
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
        _fill(step, job, peers, around),
        remedy,
        peers,
    )


def _fill(step: str, job: Job, peers: Sequence[PeerId], around: Surroundings) -> str:
    """A step with the names and figures of this case."""
    if len(peers) > 1:
        step = step.replace("its operator", "their operators")
        step = step.replace("its owner gives", "their owners give")
    if job.state.final:
        again = f"another job asks {'it' if len(peers) == 1 else 'them'} anew"
    else:
        again = _again(peers, around.outlook, len(peers) == 1)
    return (
        step.replace("{own}", around.own).replace("{peer}", peers[0]).replace("{again}", again)
    )


def _again(peers: Sequence[PeerId], outlook: Outlook | None, one: bool) -> str:
    who = "it is" if one else "they are"
    for peer in outlook.peers if outlook else ():
        if peer.peer in peers and peer.again_in_s is not None:
            return f"{who} asked again in {duration(peer.again_in_s)}"
    return f"{who} asked again by itself" if one else f"{who} asked again by themselves"


def _passed_over(around: Surroundings) -> list[Cause]:
    """Peers that this daemon's other jobs keep busy, where that is all that is to be said."""
    outlook = around.outlook
    if outlook is None or not outlook.units_waiting or outlook.share >= 1.0:
        return []
    peers = [one.peer for one in outlook.peers if one.doing is Doing.PASSED_OVER]
    if not peers:
        return []
    verb = "works" if len(peers) == 1 else "work"
    return [
        Cause(
            "other_jobs",
            f"{names(peers, around.own)} {verb} for other jobs of this daemon first; this job "
            f"has {outlook.share:.0%} of the turns",
            "nothing need be done; one that is submitted with a higher `--priority` gets more",
            Remedy.WAIT,
            tuple(peers),
        )
    ]


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
