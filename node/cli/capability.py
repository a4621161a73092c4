"""``shoal challenge``, and how claimed rates read in tables."""

import time
from collections.abc import Sequence

from shoal.node.capability_views import CapabilityView, ChallengeView, Claim, DeviceFigures
from shoal.node.cli.options import Daemon
from shoal.node.cli.output import (
    EXIT_FAILED,
    EXIT_OK,
    duration_text,
    note,
    print_json,
    print_pairs,
    size_text,
)


def challenge(peer: str, /, *, device: str | None = None, daemon: Daemon | None = None) -> int:
    """Have a peer show the rate that it claims, and check what it did.

    It multiplies for about a second at its claim. Where it was fast enough and every
    row that this node drew was right, it is given a signed proof for its advert.

    Args:
        peer: Its id, as `shoal peers` lists it.
        device: Which of its devices; the first that can be asked when not given.
    """
    daemon = daemon or Daemon()
    with daemon.client() as client:
        found = client.challenge(peer, device)
    if daemon.as_json:
        print_json({"challenge": found})
    else:
        _print_challenge(found)
    return EXIT_OK if found.outcome == "shown" else EXIT_FAILED


def claims_text(claims: Sequence[Claim]) -> str:
    """Claims in one cell: ``exact x20 41.2 GMAC/s proven, fp32 88 GMAC/s unproven``."""
    return ", ".join(_claim_text(claim) for claim in claims) or "-"


def measured_text(view: CapabilityView) -> str:
    """What was measured beside products, and when."""
    if view.measured_at is None and view.problem:
        return (
            f"could not be measured: {view.problem.rstrip('.')}; it is tried again every "
            "minute, and `shoal doctor` looks for causes"
        )
    of_cpu = next((each for each in view.devices if each.device == "cpu"), None)
    if view.measured_at is None and of_cpu and of_cpu.busy_since is not None:
        return f"not measured yet: {_busy_text(of_cpu)}"
    if view.measured_at is None:
        return "not measured yet; that takes some seconds, once the kernels are compiled"
    disk = f"{size_text(int(view.disk_rate))}/s" if view.disk_rate else "not measured"
    told = (
        f"memory moves {size_text(int(view.memory_rate))}/s, the store's disk writes {disk}; "
        f"measured {duration_text(max(0.0, time.time() - view.measured_at))} ago"
    )
    return f"{told}, and not since: {view.problem.rstrip('.')}" if view.problem else told


def card_texts(figures: DeviceFigures) -> list[str]:
    """What was measured of a card beside its claims; and which classes have none, and why."""
    told = []
    if figures.measured_at is not None:
        rate = f"moves {size_text(int(figures.memory_rate))}/s"
        if not figures.memory_rate:
            rate = f"was not measured: {figures.memory_problem.rstrip('.')}"
        age = duration_text(max(0.0, time.time() - figures.measured_at))
        told.append(f"memory {rate}; measured {age} ago")
    if figures.measured_at is not None and figures.problem:
        told.append(f"could not be measured since: {figures.problem.rstrip('.')}")
    if figures.measured_at is None and figures.busy_since is not None:
        told.append(f"not measured yet: {_busy_text(figures)}")
    return told + lack_texts(figures)


def doubt_texts(figures: DeviceFigures) -> list[str]:
    """Why a device's figures may be wrong, and what to do about it."""
    told = []
    if figures.beside:
        told.append(
            f"the figures may be too low: while they were taken, {figures.beside}; they are "
            "taken anew in a quiet moment, or now: `shoal devices --measure`"
        )
    if figures.measured_at is not None and figures.busy_since is not None:
        told.append(f"not measured anew, though that is due: {_busy_text(figures)}")
    return told


def _busy_text(figures: DeviceFigures) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(figures.busy_since))
    return f"the device has been busy since {since} ({figures.busy_with})"


def lack_texts(figures: DeviceFigures) -> list[str]:
    """Which classes of a device have no rate, and why."""
    reasons: dict[str, list[str]] = {}
    for each in figures.without:
        reasons.setdefault(each.why, []).append(each.numeric_class)
    return [f"no rate of {', '.join(which)}: {why}" for why, which in reasons.items()]


def _claim_text(claim: Claim) -> str:
    name = " ".join(filter(None, (claim.numeric_class, claim.precision)))
    return f"{name} {_rate_text(claim.rate)} {'proven' if claim.proven else 'unproven'}"


def _rate_text(rate: float) -> str:
    return f"{rate / 1e12:.3g} TMAC/s" if rate >= 1e12 else f"{rate / 1e9:.3g} GMAC/s"


def _print_challenge(found: ChallengeView) -> None:
    what = f"{found.device}, {found.numeric_class} {found.precision}"
    rows = [("peer", found.peer), ("device", what), ("claims", _rate_text(found.claimed))]
    if found.outcome == "shown":
        rows += [
            ("showed", f"{_rate_text(found.shown)}, a third of the claim or more is enough"),
            ("work", f"{found.multiply_adds / 1e9:.1f} G multiply-adds"),
            ("link", f"{duration_text(found.link_delay_s)} taken off"),
            ("checked", f"{found.rows_checked} rows, all right"),
        ]
    print_pairs([*rows, ("outcome", found.outcome)])
    if found.outcome == "refused":
        note(f"the peer refuses ({found.code}): {found.message}")
    elif found.outcome == "failed":
        note(f"the claim was not shown ({found.code}): {found.message}")
        if found.code == "too_slow":
            note(
                "if its machine is as fast as ever, its claim is too high, or other work slows "
                "it down now: its owner can have it measured anew by “shoal devices --measure”"
            )
