"""Why a job stands where it stands, in words and with the next thing to do.

Pure: turns the answers that peers gave to a job's calls into sentences. The
table below is the only place where a refusal's meaning for a person is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.crypto.peer_id import PeerId
from shoal.node.records import Answer, Job, JobState
from shoal.protocol.messages import Reason

NEXT_STEP = {
    Reason.BUSY: ("is busy with other leases", "wait; it is asked again every few seconds"),
    Reason.CLASS_NOT_OFFERED: (
        "does not offer this numeric class",
        "choose a class that `shoal peers` shows, with --class",
    ),
    Reason.DATA_MISSING: (
        "could not fetch the program or an input",
        "keep this daemon running and reachable until the job has ended",
    ),
    Reason.DENIED: (
        "has this node on its deny list",
        "only its operator can change that, by `deny`; other nodes are asked meanwhile",
    ),
    Reason.DRAINING: ("is shutting down", "wait for other peers, or connect to more"),
    Reason.EXPIRED: ("had let go of the lease", "nothing to do; it is asked again"),
    Reason.INTERNAL: (
        "failed inside, by a fault of its own",
        "its log tells its operator more; the unit goes to another node",
    ),
    Reason.NOT_PROVIDING: (
        "takes no work",
        "its operator can change that with `provide = true`",
    ),
    Reason.NO_DEVICE: (
        "has no working device",
        "its operator can look there, with “shoal devices” and “shoal doctor”",
    ),
    Reason.NO_ROOM: (
        "has no room on its disk for the program, an input or an output",
        "its operator can raise `blob_quota`; smaller units help too",
    ),
    Reason.PAUSED: (
        "takes no work for now, as its owner wishes",
        "wait, or connect to more nodes; “shoal status” there tells its owner why",
    ),
    Reason.PRICE: (
        "takes only units that are worth more",
        "make them larger with --batch, or ask its operator to lower `min_price`",
    ),
    Reason.PROGRAM_REFUSED: (
        "refused the program",
        "see the detail; `shoal run` checks a program against the same rules",
    ),
    Reason.TOO_LARGE: (
        "gives a unit less memory or time than it asks for",
        "ask for less with --memory-limit or --time-limit, or make units smaller by --batch",
    ),
    Reason.UNTRUSTED_REQUESTER: (
        "takes no work from strangers, only from peers on its allow list",
        "ask its operator to put this node's id (`shoal identity show`) into `allow`",
    ),
}
"""For each refusal: what it says about the peer, and what would change it."""

UNREACHED = {
    "both_private": (
        "cannot be dialled and neither can this node, and there is no relay",
        "make this node reachable: `shoal status` says how, under reachability",
    ),
    "not_introduced": (
        "cannot be dialled, and no peer could have it dial this node",
        "it is tried again; `shoal status` says under reachability if this node can be dialled",
    ),
}
"""For each way not to reach a node that others cannot dial: the same."""

_REASONS = frozenset(reason.value for reason in Reason)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a node knows beside a job's own answers.

    Attributes:
        own: This node's id.
        peers_known: How many other nodes have a valid advert.
        classes_offered: Numeric classes that any node offers, this one included.
        leases: How many leases the job holds now.
        closed: Peers whose adverts say that they take no work now, so that they
            are not even asked.
    """

    own: PeerId
    peers_known: int
    classes_offered: frozenset[str]
    leases: int
    closed: frozenset[PeerId] = frozenset()


def explain(job: Job, answers: Sequence[Answer], around: Surroundings) -> str:
    """One sentence for each cause, the newest answer of each peer counting."""
    if job.state.final:
        lines = [_ended(job)]
    else:
        ended = job.units_done + job.units_failed
        lines = [
            f"{ended} of {job.units_total} units have ended, {around.leases} leases are held."
        ]
        lines += _nobody(job, answers, around)
    latest = {answer.peer: answer for answer in sorted(answers, key=lambda a: a.at)}
    lines += [
        f"{peer} is not asked: its advert says that it takes no work, because its owner "
        "paused it or lets it only submit; wait, or connect to more nodes."
        for peer in sorted(around.closed - {around.own})
        if not job.state.final and not _refuses(latest.get(peer))
    ]
    for peer, answer in latest.items():
        who = "this node" if peer == around.own else peer
        if answer.verdict in _REASONS:
            says, step = NEXT_STEP[Reason(answer.verdict)]
            detail = f" ({answer.detail})" if answer.detail else ""
            lines.append(f"{who} {says}{detail}: {step}.")
        elif answer.verdict in UNREACHED:
            says, step = UNREACHED[answer.verdict]
            detail = f" ({answer.detail})" if answer.verdict == "not_introduced" else ""
            lines.append(f"{who} {says}{detail}: {step}.")
        elif answer.verdict == "peer_cut":
            lines.append(
                f"{answer.detail}; other nodes are asked, and "
                f"`shoal peers --forgive {peer}` lets it back in before."
            )
        elif answer.verdict != "awarded":
            lines.append(
                f"{who} could not be used ({answer.detail or answer.verdict}): "
                "unless its result was false, it is asked again in a few seconds; "
                "`shoal peers` shows whether it is linked."
            )
    return "\n".join(lines)


def _refuses(answer: Answer | None) -> bool:
    return answer is not None and answer.verdict in _REASONS


def _nobody(job: Job, answers: Sequence[Answer], around: Surroundings) -> list[str]:
    """Why there is nobody to ask, where that is so."""
    lines: list[str] = []
    if job.numeric_class not in around.classes_offered:
        offered = ", ".join(sorted(around.classes_offered)) or "no class at all yet"
        lines.append(
            f"No known node offers the class {job.numeric_class!r}; offered: {offered}. "
            "Choose one of these with --class, or connect to more nodes."
        )
    if not answers and around.peers_known == 0:
        lines.append(
            "No other node is known: connect to one with `shoal peers --connect ADDRESS`, "
            "or set `bootstrap`."
        )
    return lines


def _ended(job: Job) -> str:
    match job.state:
        case JobState.DONE:
            return f"The job is done: {job.units_done} units."
        case JobState.CANCELLED:
            return "The job was cancelled."
        case _:
            why = f": {job.failure.message}" if job.failure else "."
            return f"The job failed, {job.units_failed} of {job.units_total} units{why}"
