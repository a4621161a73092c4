"""Whom a job does not even call for bids, and why: told beside what others answered.

Pure, a part of `node.explain`: by what adverts say, nobody at all included, and by the
versions that connected peers speak.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shoal.compute.kernel_manifest import KERNEL_CLASS
from shoal.crypto.peer_id import PeerId
from shoal.node.causes import NO_CARD, REFUSALS, UPGRADE, Cause, Remedy
from shoal.node.records import Answer, Job
from shoal.node.surroundings import Surroundings
from shoal.node.wording import duration, names
from shoal.protocol.negotiation_messages import Reason

LOST_TOLD = 3

_REASONS = frozenset(reason.value for reason in Reason)


# --- nobody to ask -----------------------------------------------------------------


def nobody(job: Job, around: Surroundings) -> list[Cause]:
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
                NO_CARD.step
                if job.numeric_class == KERNEL_CLASS
                else f"submit it again with `--class {_nearest(offered)}`, or connect to more "
                "nodes: `shoal peers --connect ADDRESS`",
                Remedy.HERE,
            )
        )
    if not others and not around.misfits:
        causes.append(_all_lost(around) if around.lost else _alone(around))
    return causes


def _alone(around: Surroundings) -> Cause:
    why = f" ({around.alone.rstrip('.')})" if around.alone else ""
    return Cause(
        "no_peer",
        f"No other node is known to this one{why}",
        "connect to one with `shoal peers --connect ADDRESS`, or set `bootstrap`",
        Remedy.HERE,
    )


def _all_lost(around: Surroundings) -> Cause:
    """Who was known before, when and how each was lost."""
    told = [
        f"{one.peer} was lost {duration(one.ago_s)} ago ({one.why})"
        for one in around.lost[:LOST_TOLD]
    ]
    more = len(around.lost) - len(told)
    return Cause(
        "no_peer",
        f"No other node is known to this one any more: {', '.join(told)}"
        + (f", and {more} more before" if more else ""),
        "look there whether its daemon runs (“shoal status”, else “shoal up”), or connect to "
        "another node with `shoal peers --connect ADDRESS`",
        Remedy.HERE,
        tuple(one.peer for one in around.lost[:LOST_TOLD]),
    )


def _nearest(offered: frozenset[str]) -> str:
    return "fp32" if "fp32" in offered else min(offered)


# --- not asked at all --------------------------------------------------------------


def not_asked(job: Job, latest: Mapping[PeerId, Answer], around: Surroundings) -> list[Cause]:
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
    other_triton: dict[str, list[PeerId]] = {}
    for peer in [around.own, *others]:
        one = around.known.get(peer)
        if one is None or peer in closed or job.numeric_class not in one.classes:
            continue
        if not around.offers(peer, job.numeric_class):
            other_triton.setdefault(one.triton, []).append(peer)
    offered = any(job.numeric_class in one.classes for one in around.known.values())
    return [
        *([_closed(closed, around)] if closed else ()),
        *(_no_device(peer, around) for peer in idle),
        # Where nobody offers it that is told once, for all.
        *(_lacking(job, classes, lacking[classes], around) for classes in lacking if offered),
        *(_other_triton(version, peers, around) for version, peers in other_triton.items()),
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
        "other nodes do"
        if job.numeric_class == KERNEL_CLASS
        else f"other nodes do; or submit it again with `--class {_nearest(classes)}`",
        Remedy.HERE,
        tuple(peers),
    )


def _other_triton(version: str, peers: Sequence[PeerId], around: Surroundings) -> Cause:
    """Nodes that run kernels of another version of Triton than the one that lowered this."""
    one = len(peers) == 1
    return Cause(
        "triton_version",
        f"{names(peers, around.own)} {'is' if one else 'are'} not asked, for the kernel needs "
        f"triton {around.triton}, and {'it has' if one else 'they have'} {version}",
        f"lower it with triton {version} and submit it again, or connect to a node that has "
        f"{around.triton}: `shoal peers --connect ADDRESS`",
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


def misfits(around: Surroundings) -> list[Cause]:
    """Connected peers of another version, and who has to upgrade."""
    causes = []
    for peer, why in sorted(around.misfits.items()):
        if "protocol" not in why:
            continue  # no node of shoal at all
        says, _, advice = why.partition(": ")
        here = "this node" in advice
        causes.append(
            Cause(
                "version",
                f"{peer} {says}, which this node does not",
                f"upgrade this node: `{UPGRADE}` in a newer checkout of shoal, then `shoal "
                "down` and `shoal up`"
                if here
                else f"its operator must upgrade it: “{UPGRADE}” in a newer checkout of shoal, "
                "then “shoal down” and “shoal up”",
                Remedy.HERE if here else Remedy.THERE,
                (peer,),
            )
        )
    return causes
