"""How this node finds its network: the tasks, and what is told of them.

Addresses that were set are dialled by `node.membership`, for ever; here ``/dnsaddr``
names are resolved into such addresses, again and again, the local network is listened
to, what fails is told, and who can be reached is remembered for the next start.

| way in | where it comes from | who dials |
|---|---|---|
| an address with a peer id | the setting, an invitation | membership, for ever |
| ``/dnsaddr/NAME`` | the setting | resolved here, then as above |
| peers of earlier times | the state | membership, until they are met |
| nodes nearby | mDNS (`node.lan`) | membership, until they are met |
| other nodes' adverts | gossip and anti-entropy | membership, while links are wanting |
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
import trio

from shoal.node import remembered_peers
from shoal.node.addresses import Address, DnsAddress, parse_bootstrap
from shoal.node.errors import ConfigError, NetworkError, StoreError
from shoal.node.introductions import DIAL_TIME_LIMIT_S
from shoal.node.joining_plan import (
    KEEP_AGAIN_S,
    KEEP_FROM_S,
    Entry,
    Resolving,
    Source,
    sentence,
    to_tell,
)
from shoal.node.lan import Lan
from shoal.node.remembered_peers import RememberedPeer
from shoal.node.status_views import JoiningView, SeedView

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from shoal.crypto.peer_id import PeerId
    from shoal.node.known_peers import Places
    from shoal.node.membership import Membership
    from shoal.node.network import Network
    from shoal.node.state import State

TICK_S = 1.0
KEEP_INTERVAL_S = 30.0
SHOWN_LIMIT = 16
"""Peers of earlier times, and nearby, that the status lists; each."""

CONNECT_PEERS_LIMIT = 3
"""Peers tried of one name that a person gives, who waits for the answer."""

log = structlog.get_logger(__name__)


class Joining:
    """The ways into the network. `run` is its task.

    Args:
        places: Where to look, from `node.known_peers.find_seeds`.
        fingerprint: Of the private network that this node is in, or "".
        lan: Whether to be found on the local network, and to look there.
        joins_by: Told of the peers that the operator has named, by whatever name.
    """

    def __init__(
        self,
        places: Places,
        network: Network,
        membership: Membership,
        journal: State,
        *,
        fingerprint: str = "",
        lan: bool = True,
        joins_by: Callable[[Collection[PeerId]], None] = lambda _peers: None,
    ) -> None:
        own = membership.own
        self._entries = [one for one in places.entries if one.place.peer != own]
        self._remembered = [row for row in places.remembered if row.peer != own]
        self._network = network
        self._membership = membership
        self._journal = journal
        self._joins_by = joins_by
        self._names = {
            one.place: Resolving() for one in self._entries if isinstance(one.place, DnsAddress)
        }
        self._nearby: dict[PeerId, tuple[str, ...]] = {}
        self._told_at_s: dict[str, float] = {}
        self._kept: dict[PeerId, tuple[RememberedPeer, float]] = {}
        self._lan = Lan(own, fingerprint, network.addresses, self._hear_nearby) if lan else None

    async def run(self) -> None:
        """Resolve, listen, tell and remember, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_remembering)
            if self._lan is not None:
                nursery.start_soon(self._lan.run)
            while True:
                now_s = trio.current_time()
                alone = not self._network.connected()
                for name, resolving in self._names.items():
                    if resolving.due(now_s, alone=alone):
                        resolving.asking = True
                        nursery.start_soon(self._resolve, name, resolving)
                self._tell(now_s)
                await trio.sleep(TICK_S)

    def follow(self, texts: Sequence[str]) -> None:
        """Join by these places of the setting from now on; checked by `parse_bootstrap`."""
        before = self._bootstrap()
        held = {entry.text for entry in self._entries}
        kept = [e for e in self._entries if e.source is not Source.SETTING or e.text in texts]
        new = [
            Entry(text, Source.SETTING, parse_bootstrap(text))
            for text in texts
            if text not in held
        ]
        self._entries = [e for e in (*kept, *new) if e.place.peer != self._membership.own]
        for entry in new:
            if isinstance(entry.place, DnsAddress):
                self._names.setdefault(entry.place, Resolving())
            for peer, addresses in _by_peer([entry.place]).items():
                self._membership.hear_of(peer, addresses, "bootstrap")
        places = {entry.place for entry in self._entries}
        for gone in self._names.keys() - places:
            del self._names[gone]
        self._moved(before)

    def _bootstrap(self) -> frozenset[PeerId]:
        """The peers that the places which were set lead to."""
        shown = (peer for entry in self._entries for _, peer, _ in self._shown(entry))
        return frozenset(peer for peer in shown if peer is not None)

    def _moved(self, before: frozenset[PeerId]) -> None:
        """Let go of the peers that the places which were set lead to no more."""
        now = self._bootstrap()
        for peer in before - now:
            self._membership.forget_bootstrap(peer)
        self._joins_by(now)

    async def connect(self, text: str) -> PeerId:
        """Link to a peer where a person says that one is; gives the peer.

        Raises:
            ConfigError: It is no address, or this node's own.
            NetworkError: A name is not resolved, or nobody is reached there.
        """
        place = parse_bootstrap(text)
        if isinstance(place, DnsAddress):
            found: Sequence[Address] = await self._network.dialing.names.peers(place)
        else:
            found = [place]
        by_peer = _by_peer(found)
        if by_peer.pop(self._membership.own, None) and not by_peer:
            raise ConfigError(
                f"{text} is this node itself",
                code="own_address",
                hint="give the address that `shoal status` prints on the other machine",
            )
        failures = []
        for peer, addresses in list(by_peer.items())[:CONNECT_PEERS_LIMIT]:
            try:
                await self._network.connect(peer, addresses, DIAL_TIME_LIMIT_S)
            except NetworkError as error:
                failures.append(error)
            else:
                self._membership.hear_of(peer, addresses, "told")
                return peer
        raise failures[-1]

    # -- tasks --

    async def _resolve(self, name: DnsAddress, resolving: Resolving) -> None:
        try:
            found = await self._network.dialing.names.peers(name)
        except NetworkError as error:
            resolving.failed(error.message, trio.current_time())
        else:
            if self._names.get(name) is not resolving:  # it was taken out of the setting
                return
            before = self._bootstrap()
            resolving.resolved(found, trio.current_time())
            self._moved(before)
            for peer, addresses in _by_peer(found).items():
                self._membership.hear_of(peer, addresses, "bootstrap")
        finally:
            resolving.asking = False

    def _hear_nearby(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        self._nearby.pop(peer, None)
        self._nearby[peer] = addresses
        while len(self._nearby) > SHOWN_LIMIT:
            del self._nearby[next(iter(self._nearby))]
        self._membership.hear_of(peer, addresses, "lan")

    def _tell(self, now_s: float) -> None:
        """Log what fails of the places that were set, each seldom."""
        for entry in self._entries:
            for text, peer, error, failed_at_s in self._failures(entry):
                if peer in self._membership.links:
                    continue
                if to_tell(failed_at_s, self._told_at_s.get(text, -math.inf), now_s):
                    self._told_at_s[text] = now_s
                    log.warning(
                        "a bootstrap peer cannot be reached; trying goes on",
                        place=text,
                        source=entry.source.value,
                        error=error,
                    )

    def _failures(self, entry: Entry) -> Iterator[tuple[str, PeerId | None, str, float]]:
        """What failed of one entry: (text, peer, why, when)."""
        for text, peer, _ in self._shown(entry):
            if peer is None:
                continue
            record = self._network.dialing.book.of(peer)
            if record.failure:
                yield text, peer, record.failure, record.at_s
        resolving = (
            self._names.get(entry.place) if isinstance(entry.place, DnsAddress) else None
        )
        if resolving is not None and resolving.error:
            yield entry.text, None, resolving.error, resolving.at_s

    def _shown(self, entry: Entry) -> Iterator[tuple[str, PeerId | None, Source]]:
        """The lines of one entry: itself, and what a name stands for."""
        yield entry.text, entry.place.peer, entry.source
        if isinstance(entry.place, DnsAddress):
            for peer, addresses in _by_peer(self._names[entry.place].found).items():
                yield f"{addresses[0]}/p2p/{peer}", peer, Source.DNSADDR

    async def _keep_remembering(self) -> None:
        """Write down where the links are, so that the next start finds them."""
        failing = False
        while True:
            await trio.sleep(KEEP_INTERVAL_S)
            rows = self._worth_keeping(trio.current_time())
            if not rows:
                continue
            try:
                at_s = time.time()
                await remembered_peers.keep(
                    self._journal, [replace(row, seen_at_s=at_s) for row in rows]
                )
            except StoreError as error:  # a full disk: tried again, and nothing else is lost
                if not failing:
                    log.warning("peers are not remembered", error=str(error))
                failing = True
            else:
                failing = False
                for row in rows:
                    self._kept[row.peer] = (row, trio.current_time())

    def _worth_keeping(self, now_s: float) -> list[RememberedPeer]:
        rows = []
        links = self._membership.links
        for gone in self._kept.keys() - links.keys():
            del self._kept[gone]
        for peer, link in links.items():
            if now_s - link.since_s < KEEP_FROM_S:
                continue
            entry = self._membership.table.get(peer)
            worked = self._network.dialing.book.of(peer).worked
            row = RememberedPeer(
                peer,
                entry.advert.addresses if entry else (),
                0.0,
                worked.without_peer() if worked else "",
            )
            kept, kept_at_s = self._kept.get(peer, (None, -math.inf))
            if kept != row or now_s - kept_at_s >= KEEP_AGAIN_S:
                rows.append(row)
        return rows

    # -- views --

    def view(self) -> JoiningView:
        """How this node finds its network, for `shoal status`."""
        seeds = [
            self._seed(text, source, peer)
            for entry in self._entries
            for text, peer, source in self._shown(entry)
        ]
        seeds += self._seeds_of(
            Source.REMEMBERED, ((row.peer, row.places) for row in self._remembered)
        )
        seeds += self._seeds_of(Source.LAN, self._nearby.items())
        return JoiningView(
            sentence=sentence(seeds, len(self._membership.links)),
            seeds=tuple(seeds),
            lan="off" if self._lan is None else self._lan.state,
        )

    def _seeds_of(
        self, source: Source, found: Iterable[tuple[PeerId, tuple[str, ...]]]
    ) -> list[SeedView]:
        return [
            self._seed(f"{addresses[0]}/p2p/{peer}", source, peer)
            for peer, addresses in list(found)[:SHOWN_LIMIT]
            if addresses
        ]

    def _seed(self, text: str, source: Source, peer: PeerId | None) -> SeedView:
        error, at_s = "", -math.inf
        if peer is not None:
            record = self._network.dialing.book.of(peer)
            error, at_s = record.failure, record.at_s
        for entry in self._entries:
            if entry.text == text and isinstance(entry.place, DnsAddress):
                error, at_s = self._names[entry.place].error, self._names[entry.place].at_s
        linked = peer in self._membership.links
        return SeedView(
            text=text,
            source=source.value,
            peer=peer,
            linked=linked,
            error="" if linked else error,
            error_at=time.time() - (trio.current_time() - at_s) if error else None,
        )


def _by_peer(addresses: Iterable[Address | DnsAddress]) -> dict[PeerId, tuple[str, ...]]:
    """Addresses by the peer that is there, without its id."""
    found: dict[PeerId, list[str]] = {}
    for address in addresses:
        if isinstance(address, Address) and address.peer is not None:
            found.setdefault(address.peer, []).append(address.without_peer())
    return {peer: tuple(places) for peer, places in found.items()}
