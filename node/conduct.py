"""What follows from an offence: it is logged, and its peer is cut where it was one too many.

The one place through which every module reports what a peer did against the rules,
and asks whether a peer is to be dealt with at all. What counts how much is decided
in `node.standing`; here are its effects. A cut peer's connections are ended, and
with them, in the ordinary way of a link that is lost, everything that hung on them:
its units go to other providers, and those that run here for it are ended.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import structlog
import trio

from shoal.crypto.peer_id import PeerId
from shoal.node.admission import Breach
from shoal.node.errors import PeerError
from shoal.node.notes import SENTENCES, Note, Notes, Seen
from shoal.node.peer_views import CallerView, ConductView, CutView, NoteView, StandingView
from shoal.node.standing import FULL, Offence, Standing
from shoal.node.why_not import peer_cut

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shoal.node.network import Network

SWEEP_INTERVAL_S = 1.0
"""How long a cut peer that connected all the same may stay: the network refuses it at
the door, but for one that was at the door when it was cut."""

BREACHES: Final[Mapping[str, Offence]] = {
    Breach.FLOW_CONTROL: Offence.BAD_FRAME,
    Breach.BAD_FRAME: Offence.BAD_FRAME,
    Breach.STREAM_FLOOD: Offence.TOO_MANY_STREAMS,
    Breach.GOSSIP_FLOOD: Offence.GOSSIP_FLOOD,
    Breach.GOSSIP_OVERSIZED: Offence.GOSSIP_FLOOD,
    Breach.GOSSIP_MALFORMED: Offence.BAD_FRAME,
    Breach.GOSSIP_INVALID: Offence.BAD_ADVERT,
}
"""What the network ends a connection or drops a message for, where no honest node does it.

The others are none: unread bytes and data for streams that are over come of this node's
own slowness too, and a frame that does not end of a link's.
"""

log = structlog.get_logger(__name__)


class Conduct:
    """How peers behave, as this node saw it.

    Args:
        own: This node, which commits no offences.
        friends: Peers on the allow list.
        seeds: Peers that this node joins its network by.
    """

    def __init__(
        self, own: PeerId, friends: Collection[PeerId] = (), seeds: Collection[PeerId] = ()
    ) -> None:
        self.friends = frozenset(friends)
        self._seeds = frozenset(seeds)
        self._own = own
        self._standing = Standing({*friends, *seeds})
        self._notes, self._callers = Notes(), Notes()
        self._cut = trio.Event()

    def befriend(self, friends: Collection[PeerId]) -> None:
        """Take these for the allow list from now on."""
        self.friends = frozenset(friends)
        self._standing.spare(self.friends | self._seeds)

    def join_by(self, seeds: Collection[PeerId]) -> None:
        """Take these for the peers that this node joins by, from now on."""
        self._seeds = frozenset(seeds)
        self._standing.spare(self.friends | self._seeds)

    def breach(self, peer: PeerId, what: str) -> None:
        """Note what the network saw a peer do: an offence only where `BREACHES` says so."""
        offence = BREACHES.get(what)
        if offence is None:
            log.debug("a peer was cut off, and that is no offence", peer=peer, what=what)
        else:
            self.broke(peer, offence, what)

    def broke(self, peer: PeerId, offence: Offence, detail: str = "") -> None:
        """Note an offence.

        It does not block and never raises, so that it can be called from anywhere.

        Args:
            peer: Who.
            offence: What.
            detail: The same more exactly, for the log.
        """
        if peer == self._own:
            return
        now_s = trio.current_time()
        cut = self._standing.note(peer, offence, now_s)
        if cut is None:
            log.info("a peer broke the rules", peer=peer, offence=offence.value, detail=detail)
            return
        assert cut.cut_until_s is not None
        log.warning(
            "a peer is cut",
            peer=peer,
            why=cut.why,
            for_s=cut.cut_until_s - now_s,
            detail=detail,
        )
        self._cut.set()

    def noted(self, peer: PeerId, what: Seen, detail: str = "") -> None:
        """Note what was seen of a peer and is held against nobody: see `node.notes`.

        It does not block and never raises, as `broke`.
        """
        if peer == self._own:
            return
        note = self._notes.note(peer, what, detail, trio.current_time())
        if note is not None:
            log.info("noted of a peer", peer=peer, **_told(note))

    def called(self, place: str, detail: str) -> None:
        """Note that somebody called at the bulk port without a good token; as `noted`.

        Args:
            place: From where, as `admission.place_of` gives it.
            detail: What they said.
        """
        note = self._callers.note(place, Seen.UNKNOWN_CALLER, detail, trio.current_time())
        if note is not None:
            log.info("noted of a caller", place=place, **_told(note))

    def refused(self, peer: PeerId) -> str | None:
        """Why no connection of a peer is taken or opened now; None where one may be."""
        return self._standing.cut_for(peer, trio.current_time())

    def check(self, peer: PeerId) -> None:
        """Raise where a peer is cut now.

        Raises:
            NetworkError: ``peer_cut``, saying why and for how long.
        """
        why = self.refused(peer)
        if why is not None:
            raise peer_cut(peer, why)

    async def reach(self, reach: Callable[[PeerId], Awaitable[None]], peer: PeerId) -> None:
        """Connect to a peer by ``reach``, unless it is cut; raises as `check` and ``reach``."""
        self.check(peer)
        await reach(peer)

    def forgive(self, peer: PeerId) -> None:
        """Put a peer back into full standing, and forget what was noted of it.

        Raises:
            PeerError: ``no_such_offender``: nothing bad is known of it.
        """
        noted = self._notes.forget(peer)
        if not self._standing.forgive(peer) and not noted:
            raise PeerError(
                f"nothing is held against {peer[:64]}",
                code="no_such_offender",
                hint="`shoal peers` lists who is cut",
            )
        log.info("a peer was forgiven", peer=peer)

    # --- views ---

    def standing_of(self, peer: PeerId) -> StandingView | None:
        """A peer's standing, where it is not full."""
        record = self._standing.record(peer, trio.current_time())
        if record is None:
            return None
        return StandingView(
            standing=record.standing / FULL,
            why=record.why,
            offences={offence.value: count for offence, count in record.offences},
        )

    def all(self) -> list[ConductView]:
        """Everybody of whom anything is held or noted, whether its advert is known or not."""
        lowered = [record.peer for record in self._standing.records(trio.current_time())]
        peers = dict.fromkeys([*map(PeerId, self._notes), *lowered])
        return [
            ConductView(
                peer=peer,
                standing=self.standing_of(peer),
                notes=tuple(map(_note_view, self._notes.of(peer))),
            )
            for peer in peers
        ]

    def callers(self) -> list[CallerView]:
        """From where somebody called at the bulk port without a good token."""
        return [
            CallerView(place=place, note=_note_view(note))
            for place in self._callers
            for note in self._callers.of(place)
        ]

    def cuts(self) -> list[CutView]:
        """Who is cut now, the newest last."""
        now_s, now = trio.current_time(), time.time()
        return [
            CutView(
                peer=record.peer,
                since=now + record.cut_since_s - now_s,
                until=now + record.cut_until_s - now_s,
                why=record.why,
                friend=record.peer in self.friends,
            )
            for record in self._standing.records(now_s)
            if record.cut_since_s is not None and record.cut_until_s is not None
        ]

    # --- effects ---

    async def keep_cutting(self, network: Network, drop: Callable[[PeerId], None]) -> None:
        """End the connections of whoever is cut, for ever."""
        async with trio.open_nursery() as nursery:
            ending: set[PeerId] = set()

            async def end(peer: PeerId) -> None:
                try:
                    drop(peer)
                    await network.disconnect(peer)
                finally:
                    ending.discard(peer)

            while True:
                for peer in network.connected() - ending:
                    if self.refused(peer) is not None:
                        ending.add(peer)
                        nursery.start_soon(end, peer)
                with trio.move_on_after(SWEEP_INTERVAL_S):
                    await self._cut.wait()
                self._cut = trio.Event()


def _note_view(note: Note) -> NoteView:
    return NoteView(
        what=note.what.value,
        sentence=SENTENCES[note.what],
        times=note.times,
        last=time.time() + note.last_s - trio.current_time(),
        detail=note.detail,
    )


def _told(note: Note) -> dict[str, object]:
    """A note in the log, beside whom it is about."""
    return {"what": SENTENCES[note.what], "times": note.times, "detail": note.detail}


@asynccontextmanager
async def open_conduct(
    conduct: Conduct, network: Network, drop: Callable[[PeerId], None]
) -> AsyncIterator[Conduct]:
    """Cut peers for as long as the block runs.

    Args:
        conduct: Says who is cut.
        network: Whose connections end.
        drop: Told of each, before its connections end: to end what runs for it.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(conduct.keep_cutting, network, drop)
        yield conduct
        nursery.cancel_scope.cancel()
