"""What is shown of this node itself: its status, what its owner lets it do, how it is reached.

Bodies of the local API (`node.api`), and what a client gets back (`node.client`); nothing
here does IO. What is shown of other nodes is `node.peer_views`'.
"""

from __future__ import annotations

import msgspec

from shoal.crypto.peer_id import PeerId


class StanceView(msgspec.Struct, frozen=True):
    """What one device takes now.

    Attributes:
        peers: Whether units of peers are taken.
        own: Whether units of this node's own user are.
        cause: ``paused``, ``schedule`` or ``stepping_back``, where peers' are not.
        until: When the cause ends by itself, in seconds since the epoch, where known.
        sentence: The same for a person, or "".
        units_at_once: How many units it runs at a time, where its memory allows; 0 where none.
    """

    device: str
    peers: bool
    own: bool
    cause: str | None = None
    until: float | None = None
    sentence: str = ""
    units_at_once: int = 0


class OwnerView(msgspec.Struct, frozen=True):
    """What the owner lets this node do, and for whom.

    Attributes:
        provide: Whether it works for peers at all.
        serve: ``anyone``, ``friends`` or ``those-who-serve``.
        sandboxed: Whether the worker is locked in, without which no stranger is served.
        allowed: How many peers are on the allow list.
        denied: How many are on the deny list.
        schedule: The hours for peers; always where it is empty.
        schedule_changes_at: When they begin or end next, in seconds since the epoch.
        step_back: From which share of the machine, used by the owner's own processes,
            nothing of peers is taken; None for never.
        use: That share as it was last measured.
    """

    provide: bool
    serve: str
    sandboxed: bool
    allowed: int
    denied: int
    min_price: float
    cores: int
    memory_bytes: int
    stances: tuple[StanceView, ...]
    schedule: tuple[str, ...] = ()
    schedule_changes_at: float | None = None
    step_back: float | None = None
    use: float | None = None


class ReloadView(msgspec.Struct, frozen=True):
    """What reading the settings again has changed, by names of settings.

    Attributes:
        changed: Those that are others now.
        needs_restart: Those that are others and count after a restart only.
        unchanged: How many stayed.
        warnings: What is set and does not hold as it stands.
    """

    changed: tuple[str, ...]
    needs_restart: tuple[str, ...]
    unchanged: int
    warnings: tuple[str, ...] = ()


class LogLevelView(msgspec.Struct, frozen=True):
    """How much the log tells now.

    Attributes:
        level: Of all modules of shoal.
        configured: The same by the settings, to which a reload goes back.
        modules: Those with a level of their own.
    """

    level: str
    configured: str
    modules: dict[str, str] = {}


class ReachabilityView(msgspec.Struct, frozen=True):
    """How others reach this node.

    Attributes:
        verdict: ``public``, ``private``, ``blocked`` or ``unknown``.
        sentence: The same for a person, with what to do.
        evidence: A line for each peer that dialled this node back, the newest first.
    """

    verdict: str
    sentence: str
    evidence: tuple[str, ...] = ()


class SeedView(msgspec.Struct, frozen=True):
    """One place by which this node joins, or looks for its network.

    Attributes:
        text: As it was set, or the address that was found.
        source: ``setting``, ``invitation``, ``dnsaddr`` (an address behind a name that
            was set), ``remembered`` or ``lan``.
        peer: Who is there; None for a name that is not resolved yet.
        linked: Whether that peer is a link now.
        error: Why the last attempt came to nothing, "" where it did not, or was not made.
        error_at: When that was, in seconds since the epoch.
    """

    text: str
    source: str
    peer: PeerId | None = None
    linked: bool = False
    error: str = ""
    error_at: float | None = None


class JoiningView(msgspec.Struct, frozen=True):
    """How this node finds its network.

    Attributes:
        sentence: Why it is alone, for a person; "" while it has a link.
        seeds: Where it looks, as set first.
        lan: What it does on its local network, for a person; "" before it has begun.
    """

    sentence: str
    seeds: tuple[SeedView, ...] = ()
    lan: str = ""


class Status(msgspec.Struct, frozen=True):
    """The answer of ``shoal status``.

    Attributes:
        units_running: Units that this node runs now, or that wait in it.
        units_out: Units of its own jobs that are in the hands of a provider now.
        phase: ``running``, or ``draining`` when it has been told to end.
        drain_ends_in_s: How long units that run still have to end, while it drains.
        settings_error: What was wrong when the settings were read last, and "" for
            nothing; those read before count.
        needs_restart: Settings that were changed and count after a restart only.
        protocol_version, protocol_minor: Of the protocol that it speaks.
        network: The name of the private network that the daemon is in, or ``public``.
        network_fingerprint: What tells networks of one name apart; "" for the public one.
        bulk: The port of bulk channels; 0 where they are off.
        bulk_announced: Where peers are told to dial it, where that is elsewhere.
    """

    peer: PeerId
    version: str
    protocol_version: int
    pid: int
    home: str
    socket: str
    addresses: tuple[str, ...]
    uptime_s: float
    peers_known: int
    peers_linked: int
    jobs_running: int
    units_served: int
    blob_bytes: int
    blob_quota_bytes: int
    peers_banned: int = 0
    network: str = "public"
    network_fingerprint: str = ""
    sandbox: str = ""
    """How the worker is locked in, and what is missing."""
    sandboxed: bool = False
    """Whether that is enough for strangers' programs."""
    owner: OwnerView | None = None
    units_running: int = 0
    units_out: int = 0
    phase: str = "running"
    drain_ends_in_s: float | None = None
    settings_error: str = ""
    needs_restart: tuple[str, ...] = ()
    reachability: ReachabilityView | None = None
    joining: JoiningView | None = None
    protocol_minor: int = 0
    bulk: int = 0
    bulk_announced: str = ""

    @property
    def protocol(self) -> str:
        """The version of the protocol, in the way that peers' are shown."""
        return f"{self.protocol_version}.{self.protocol_minor}"
