"""``shoal pause`` and ``shoal resume``, and how the owner's settings are shown."""

import time
from collections.abc import Iterable
from typing import Annotated

from cyclopts import Parameter

from shoal.node.cli.options import Daemon, read_time_s
from shoal.node.cli.output import duration_text, note, print_json, print_table, size_text
from shoal.node.status_views import OwnerView, StanceView

LET_IN = "`shoal allow PEER_ID` lets one in; “shoal identity show” prints its id there"


def pause(
    *,
    device: str | None = None,
    for_: Annotated[str | None, Parameter(name="--for")] = None,
    daemon: Daemon | None = None,
) -> None:
    """Take no more work: none of peers, or with --device none at all on that device.

    Units that run get 10 s to end and are then handed back, so that other nodes run
    them. Without --device your own jobs still run here. A pause outlasts restarts.

    Args:
        device: Empty this device alone, of your own units too; as `shoal devices` names it.
        for_: End the pause by itself after this time, such as 45m or 2h.
    """
    daemon = daemon or Daemon()
    for_s = None if for_ is None else read_time_s("--for", for_)
    with daemon.client() as client:
        found = client.pause(device, for_s=for_s)
    _print(found, as_json=daemon.as_json)
    if not daemon.as_json:
        ends = "" if for_s is None else f" in {duration_text(for_s)} or"
        again = "shoal resume" if device is None else f"shoal resume --device {device}"
        note(f"units that run get 10 s to end; the pause ends{ends} with `{again}`")


def resume(*, device: str | None = None, daemon: Daemon | None = None) -> None:
    """End a pause: that of one device, or without --device every one.

    Args:
        device: As `shoal devices` names it.
    """
    daemon = daemon or Daemon()
    with daemon.client() as client:
        found = client.resume(device)
    _print(found, as_json=daemon.as_json)
    if not daemon.as_json and any(not stance.peers for stance in found.stances):
        note("see `shoal status` for what still keeps peers' work away")


def owner_pairs(found: OwnerView) -> Iterable[tuple[str, object]]:
    """The lines of ``shoal status`` about the owner's settings."""
    for stance in found.stances:
        yield "takes work", f"{stance.device}: {stance_text(stance, found.provide)}"
    yield "serves", serves_text(found)
    cores = f"{found.cores} core{'' if found.cores == 1 else 's'}"
    yield "gives", f"{cores}, {size_text(found.memory_bytes)} of memory"
    if found.schedule:
        hours = ", ".join(found.schedule)
        if found.schedule_changes_at is not None:
            hours += f" (changes {_moment(found.schedule_changes_at)})"
        yield "schedule", hours
    if found.step_back is not None and found.provide:
        use = "" if found.use is None else f"; they use {found.use:.0%} now"
        yield (
            "steps back",
            f"where your own processes use {found.step_back:.0%} of the CPU{use}",
        )


def serves_text(found: OwnerView) -> str:
    """Whom a node works for beside its own user."""
    if not found.provide:
        return "its own user only (`provide = false`)"
    friends = f"{found.allowed} allowed peer{'' if found.allowed == 1 else 's'}"
    if nobody := nobody_served(found):
        who = f"nobody but its own user: {nobody}; {LET_IN}"
    elif found.serve == "friends":
        who = friends
    elif found.sandboxed:
        strangers = "anyone" if found.serve == "anyone" else f"those who serve, and {friends}"
        who = f"{strangers}, strangers in a sandbox"
    else:
        who = f"{friends}; strangers once its worker is locked in a sandbox"
    who += f"; {found.denied} denied" if found.denied else ""
    return who + (f"; for {found.min_price:g} credits or more" if found.min_price else "")


def nobody_served(found: OwnerView) -> str:
    """Why the settings let in no peer, though they mean to; "" where they let in some."""
    if found.provide and found.serve == "friends" and not found.allowed:
        return '`serve` is "friends", and no peer is allowed'
    return ""


def stance_text(stance: StanceView, provide: bool = True) -> str:
    """What a device takes, in some words."""
    if stance.peers:
        return "of peers and its own" if provide else "its own only"
    ends = "" if stance.until is None else f", until {_moment(stance.until)}"
    why = {"paused": "paused", "schedule": "by the schedule", "stepping_back": "stepping back"}
    rest = "its own only" if stance.own else "none"
    return f"{rest}, {why.get(stance.cause or '', stance.sentence)}{ends}"


def _print(found: OwnerView, *, as_json: bool) -> None:
    if as_json:
        print_json({"owner": found})
        return
    print_table(
        ("DEVICE", "TAKES WORK"),
        ((stance.device, stance_text(stance, found.provide)) for stance in found.stances),
    )


def _moment(at_s: float) -> str:
    """A time of the wall clock, and how far away it is."""
    clock = time.strftime("%a %Y-%m-%d %H:%M", time.localtime(at_s))
    return f"{clock}, in {duration_text(max(0.0, at_s - time.time()))}"
