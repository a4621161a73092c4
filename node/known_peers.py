"""What this node knows of its peers: where to look for them, whom to call, what they claim.

The table of adverts and the links are `node.membership`'s, the proofs `node.proofs`';
here the two are put together for whoever asks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
import trio

from shoal.crypto.peer_id import PeerId
from shoal.node import remembered_peers
from shoal.node.addresses import Address, parse_bootstrap
from shoal.node.bidding import distrusted, withheld
from shoal.node.device_lines import line_of
from shoal.node.house import wall_ms
from shoal.node.joining_plan import Entry, Source
from shoal.node.membership import REMEMBERED_LIMIT, Membership, Seeds
from shoal.node.peer_views import PeerView
from shoal.node.scheduling.state import Facts
from shoal.node.surroundings import Neighbour, Surroundings
from shoal.node.swarm_key import PUBLIC
from shoal.node.wanted import Wanted, class_of, is_offered, triton_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from shoal.node.bidding import Terms
    from shoal.node.conduct import Conduct
    from shoal.node.config import Config
    from shoal.node.network_statistics import Traffic
    from shoal.node.outlook import Outlook
    from shoal.node.peer_versions import PeerVersions
    from shoal.node.proofs import ProofBook
    from shoal.node.records import Ban
    from shoal.node.remembered_peers import RememberedPeer
    from shoal.node.standings import Standings
    from shoal.node.state import State
    from shoal.node.surroundings import OpenDispute, PendingChecks
    from shoal.node.swarm_key import SwarmKey

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Places:
    """Where this node looks for its network, as it was set and as it is remembered."""

    entries: tuple[Entry, ...]
    remembered: tuple[RememberedPeer, ...]

    def seeds(self) -> Seeds:
        """What can be dialled at once; names of other names are `node.joining`'s."""
        bootstrap: dict[PeerId, tuple[str, ...]] = {}
        for entry in self.entries:
            if isinstance(entry.place, Address) and entry.place.peer:
                peer = entry.place.peer
                bootstrap[peer] = (*bootstrap.get(peer, ()), entry.place.without_peer())
        return Seeds(bootstrap, {row.peer: row.places for row in self.remembered})


async def find_seeds(config: Config, swarm_key: SwarmKey | None, journal: State) -> Places:
    """Where this node looks for its network: as configured, and as remembered.

    Raises:
        ConfigError: A bootstrap address is none.
        StoreError: The state cannot be read.
    """
    # What is remembered of another network is of no use in this one, and its peers
    # have no business to hear from this node.
    if await journal.enter_network(int(swarm_key.fingerprint[:15], 16) if swarm_key else 0):
        log.warning(
            "this node is in another network than at its last start",
            network=swarm_key.name if swarm_key else PUBLIC,
        )
    entries: dict[str, Entry] = {}
    for source, texts in (
        (Source.SETTING, config.bootstrap),
        (Source.INVITATION, swarm_key.bootstrap if swarm_key else ()),
    ):
        for text in texts:
            entries.setdefault(text, Entry(text, source, parse_bootstrap(text)))
    remembered = await remembered_peers.remembered(journal, REMEMBERED_LIMIT)
    return Places(tuple(entries.values()), tuple(remembered))


def providers(
    membership: Membership, ban_of: Callable[[PeerId], Ban | None], wanted: Wanted
) -> list[PeerId]:
    """Who may be called for bids: this node itself, links, then others, that offer it."""
    own = membership.own
    found = [
        peer
        for entry in membership.table
        if (entry.advert.providing or entry.advert.peer == own)
        and is_offered(wanted, entry.advert.numeric_classes, entry.advert.triton)
        and ban_of(peer := PeerId(entry.advert.peer)) is None
    ]
    return sorted(found, key=lambda peer: (peer != own, peer not in membership.links))


def is_proven(membership: Membership, book: ProofBook, peer: PeerId, device: str) -> bool:
    """Whether any claim about a peer's device counts as proven; this node knows its own.

    Of equal cards in one line, whichever bids: the claim is about each of them.
    """
    entry = membership.table.get(peer)
    if peer == membership.own or entry is None:
        return peer == membership.own
    line = line_of(entry.advert.devices, device)
    claims = book.claims(entry.advert, wall_ms())
    return line is not None and any(c.proven and c.device == line.id for c in claims)


def claimed_rate(
    membership: Membership, peer: PeerId, device: str, numeric_class: str
) -> float | None:
    """Multiply-adds per second that a peer claims of a device in a class; None of no claim."""
    entry = membership.table.get(peer)
    line = line_of(entry.advert.devices, device) if entry is not None else None
    rates = (r.rate for r in (line.rates if line else ()) if r.numeric_class == numeric_class)
    return next(rates, None)


def facts_of(
    membership: Membership,
    standings: Standings,
    sent_s: Mapping[PeerId, float],
    peer: PeerId,
    wanted: Wanted,
) -> Facts:
    """What the scheduler goes by of a peer, beside bids and measured times.

    Args:
        membership: Who is known.
        standings: How they have dealt with this node.
        sent_s: When this node last sent bytes of a blob to whom.
        peer: The peer.
        wanted: What the units that it may get look for.
    """
    link, entry = membership.links.get(peer), membership.table.get(peer)
    rates = [
        rate.rate
        for device in (entry.advert.devices if entry is not None else ())
        for rate in device.rates
        if rate.numeric_class == class_of(wanted)
    ]
    own = 0.0 if peer == membership.own else None
    return Facts(
        rtt_s=link.rtt_s if link is not None else own,
        standing=standings.share(peer),
        rate=max(rates, default=None),
        said=entry.advert.sequence if entry is not None else 0,
        sent_s=sent_s.get(peer, -math.inf),
    )


def peer_views(
    membership: Membership,
    book: ProofBook,
    terms: Terms,
    conduct: Conduct,
    traffic_of: Callable[[PeerId], Traffic],
) -> list[PeerView]:
    """The other nodes whose adverts are valid now."""
    now_s = trio.current_time()
    views = []
    for entry in membership.table:
        advert, peer = entry.advert, PeerId(entry.advert.peer)
        if peer == membership.own:
            continue
        link, traffic = membership.links.get(peer), traffic_of(peer)
        views.append(
            PeerView(
                peer=peer,
                agent=advert.agent,
                addresses=advert.addresses,
                linked=link is not None,
                allowed=terms.providing
                and distrusted(peer, terms) is None
                and withheld(peer, terms) is None,
                rtt_s=link.rtt_s if link else None,
                devices=advert.devices,
                numeric_classes=advert.numeric_classes,
                advert_age_s=now_s - entry.born_at_s,
                advert_expires_in_s=entry.expires_at_s - now_s,
                providing=advert.providing,
                claims=book.claims(advert, wall_ms()),
                protocol=advert.protocol,
                standing=conduct.standing_of(peer),
                bulk_received_bytes=traffic.received,
                bulk_sent_bytes=traffic.sent,
                advert_issued_at=entry.issued_at_ms / 1000,
            )
        )
    return sorted(views, key=lambda view: view.peer)


def surroundings(
    membership: Membership,
    versions: PeerVersions,
    leases: int,
    *,
    alone: str = "",
    outlook: Outlook | None = None,
    pending: Sequence[PendingChecks] = (),
    disputes: Sequence[OpenDispute] = (),
    wanted: Wanted | None = None,
) -> Surroundings:
    """What a job is explained by, beside its answers.

    Args:
        membership: Whose adverts are valid.
        versions: Which connected peers speak another version.
        leases: How many the job holds.
        alone: Why this node has found no other, by `node.joining`.
        outlook: The job's plan now.
        pending: Its results that wait to be checked.
        disputes: Its receipts that are disputed.
        wanted: What its units look for, where that is known: of a job that runs.
    """
    return Surroundings(
        own=membership.own,
        known={
            PeerId(entry.advert.peer): Neighbour(
                providing=entry.advert.providing,
                classes=frozenset(entry.advert.numeric_classes),
                triton=entry.advert.triton,
            )
            for entry in membership.table
        },
        leases=leases,
        misfits=dict(versions.misfits),
        alone=alone,
        lost=membership.lost,
        outlook=outlook,
        pending=pending,
        disputes=disputes,
        triton=triton_of(wanted) if wanted else "",
    )
