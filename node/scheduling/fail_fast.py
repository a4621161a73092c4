"""Why a job that was not to wait has failed: what its peers answered, and what would help."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.crypto.peer_id import PeerId
from shoal.node.explain import NEXT_STEP, UNREACHED
from shoal.node.records import Answer, Failure

TOLD_LIMIT = 8
"""Peers of which the message tells: more than a person reads."""

_BY_VERDICT = {reason.value: words for reason, words in NEXT_STEP.items()} | UNREACHED


def nobody_bids(answers: Sequence[Answer], own: PeerId) -> Failure:
    """The failure of a job for which nobody bid at the first round of calls.

    Args:
        answers: What peers answered to its calls; the newest of each counts.
        own: This node.
    """
    latest = {answer.peer: answer for answer in answers}
    if not latest:
        return Failure(
            "nobody_bids",
            "no known node, this one included, offers the class of this job",
            "choose one of the classes that `shoal peers` shows, connect to more nodes with "
            "`shoal peers --connect ADDRESS`, or submit without --fail-fast to wait",
        )
    told, steps = [], []
    for answer in list(latest.values())[:TOLD_LIMIT]:
        who = "this node" if answer.peer == own else answer.peer
        says, step = _BY_VERDICT.get(
            answer.verdict, ("could not be used", "see `shoal job why`")
        )
        told.append(f"{who} {says}" + (f" ({answer.detail})" if answer.detail else ""))
        if step not in steps:
            steps.append(step)
    more = len(latest) - len(told)
    rest = f"; and {more} more" if more > 0 else ""
    return Failure(
        "nobody_bids",
        f"nobody bids: {'; '.join(told)}{rest}",
        f"{'; or '.join(steps)}; or submit without --fail-fast, and the job waits",
    )
