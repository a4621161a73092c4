"""The ground under the data path: the modules of one node, and what its steps share.

`node.pipeline` is the steps; here is what more than one of them needs: the
modules they call, the names under which blobs are pinned, how a blob or a
manifest is had, and how a peer's answer is taken.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from shoal.compute import programs
from shoal.compute.device_worker import Worker
from shoal.compute.errors import ProgramError
from shoal.compute.manifest import MANIFEST_LIMIT_BYTES
from shoal.compute.tensor import TensorSpec, spec_of_blob
from shoal.crypto.content import BlobId
from shoal.crypto.errors import ShoalError
from shoal.node import bidding
from shoal.node.blob_transfer import Rights
from shoal.node.bulk.transfer import Source
from shoal.node.errors import StoreError
from shoal.node.fetching import fetch_beside, fetch_from
from shoal.node.kept_outputs import KeptOutputs
from shoal.node.known_blobs import KnownBlobs
from shoal.node.lineage import Lineage
from shoal.node.notes import Seen
from shoal.node.program_shares import Awarded, ProgramShares
from shoal.node.records import JobId, Unit
from shoal.node.result_standing import StandingNow
from shoal.node.settling import Settling
from shoal.node.standing import Offence
from shoal.node.timing import Timings
from shoal.node.turns import Turns
from shoal.node.why_not import peer_banned
from shoal.protocol.checking_messages import Reveal
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.negotiation_messages import Cancel, Release

if TYPE_CHECKING:
    from shoal.compute.unit_runs import UnitRun
    from shoal.crypto.identity import Identity
    from shoal.crypto.peer_id import PeerId
    from shoal.node.blobs import BlobStore
    from shoal.node.bulk.channels import Channels
    from shoal.node.control import Control
    from shoal.node.convictions import Convictions
    from shoal.node.network import Network
    from shoal.node.records import Ban
    from shoal.node.result_standing import Deed
    from shoal.node.state import State
    from shoal.protocol.messages import ResponseBody
    from shoal.protocol.negotiation import ProviderSide
    from shoal.protocol.negotiation_messages import Call
    from shoal.protocol.statements import Receipt

RELEASE_TIME_LIMIT_S = 2.0

FETCHES_AT_ONCE = 16
"""Blob streams that this node opens to one peer at once: half of `PROTOCOL_STREAMS_LIMIT`,
beyond which that peer resets them; more side by side are no faster."""


class Standings(Protocol):
    """What is known of peers' work: see `node.standings`."""

    def note(
        self,
        peer: PeerId,
        deed: Deed,
        /,
        weight: float = 1.0,
        detail: str = "",
        *,
        times: int = 1,
    ) -> None:
        """Note what a peer did."""

    def of(self, peer: PeerId) -> StandingNow:
        """What is known of its work."""

    def may_verify(self, peer: PeerId) -> bool:
        """Whether it may check others' results."""

    def probability(self, peer: PeerId) -> float:
        """How often its results are checked under ``auto``."""

    async def write(self, journal: State) -> None:
        """Write down what has changed."""


class NoStandings:
    """Of a node that keeps none: under ``auto`` it checks nothing."""

    def note(self, _peer: PeerId, _deed: Deed, *_more: object, **_details: object) -> None:
        """Forget it."""

    def of(self, _peer: PeerId) -> StandingNow:
        """As of somebody known: nobody is tried first."""
        return StandingNow(1.0, 0, newcomer=False)

    def may_verify(self, _peer: PeerId) -> bool:
        """Nobody may."""
        return False

    def probability(self, _peer: PeerId) -> float:
        """Never."""
        return 0.0

    async def write(self, _journal: State) -> None:
        """There is nothing."""


async def _accuse_nobody(
    _award: bytes, _receipt: bytes, _other: bytes | None, _job: JobId, _unit: int
) -> None:
    """Let it be."""


@dataclass(frozen=True, slots=True)
class House:
    """The modules that the steps call."""

    identity: Identity
    network: Network
    control: Control
    store: BlobStore
    rights: Rights
    journal: State
    worker: Worker
    reach: Callable[[PeerId], Awaitable[None]]
    """Connect to a peer known by its advert; `NetworkError` where that fails."""
    terms: Callable[[], bidding.Terms]
    """What this node offers on its CPU at this moment."""
    cards: Callable[[], Sequence[bidding.Terms]] = tuple
    """The same of each of its cards."""
    card_workers: Mapping[str, Worker] = field(default_factory=dict)
    """Whose units run on cards, by device; ``worker`` is the CPU's, which also converts
    models and judges proofs."""
    known: KnownBlobs = field(default_factory=KnownBlobs)
    """What peers are known to have; this node's own user needs no entry."""
    kept: KeptOutputs = field(default_factory=KeptOutputs)
    """What this node's provider keeps for its requesters."""
    shares: ProgramShares = field(default_factory=ProgramShares)
    """With whom this node's provider shares its requesters' programs."""
    awarded: Awarded = field(default_factory=Awarded)
    """Which peers have the programs of this node's own jobs."""
    lineage: Lineage = field(default_factory=Lineage)
    """How often this node's own units were made anew."""
    fetching: Turns[tuple[PeerId, BlobId]] = field(default_factory=Turns)
    fetching_from: Turns[PeerId] = field(default_factory=lambda: Turns(FETCHES_AT_ONCE))
    adding: Turns[JobId] = field(default_factory=Turns)
    """Whoever adds units to a job: their indices follow one another."""
    broke: Callable[[PeerId, Offence, str], None] = lambda _peer, _offence, _detail: None
    """Report what a peer did against the rules: see `node.conduct`."""
    noted: Callable[[PeerId, Seen, str], None] = lambda _peer, _what, _detail: None
    """Note what was seen of a peer and is held against nobody: see `node.notes`."""
    channels: Channels | None = None
    """For large blobs; without them, those go by stream too."""
    convictions: Convictions | None = None
    """What is proved of peers; `ban_of` asks it."""
    signed: Callable[[Call, UnitRun, Receipt, bytes], None] = lambda *_: None
    """Told of each receipt that this node's provider signs, and of its envelope: see
    `node.defending`."""
    proven: Callable[[PeerId, str], bool] = lambda _peer, _device: False
    """Whether a peer has shown what it claims of a device, by a verifier that counts."""
    claimed_rate: Callable[[PeerId, str, str], float | None] = lambda *_: None
    """Multiply-adds per second that a peer claims of a device in a class."""
    standings: Standings = field(default_factory=NoStandings)
    accuse: Callable[[bytes, bytes, bytes | None, JobId, int], Awaitable[None]] = _accuse_nobody
    """Bring a false receipt to the disputes: award, receipt, another one for the same award
    that says another thing, and of which unit."""
    settling: Settling = field(default_factory=Settling)
    """Acknowledges receipts, and counts who did how much for whom."""

    timings: Timings = field(default_factory=Timings)
    """Where the time of this node's own units went."""

    @property
    def peer_id(self) -> PeerId:
        """This node."""
        return self.identity.peer_id

    def offers(self) -> list[bidding.Terms]:
        """What this node offers on each device, the CPU first."""
        return [self.terms(), *self.cards()]

    def terms_on(self, device: str) -> bidding.Terms:
        """What it offers on one device, whose name it has bid with."""
        cpu = self.terms()
        if device == cpu.device:
            return cpu
        return next(terms for terms in self.cards() if terms.device == device)

    def worker_on(self, device: str) -> Worker:
        """Who runs the units of a lease on that device."""
        return self.card_workers.get(device, self.worker)

    def ban_of(self, peer: PeerId) -> Ban | None:
        """The ban of a peer that nothing is asked of or given to now."""
        return self.convictions.is_banned(peer) if self.convictions is not None else None

    def check_ban(self, peer: PeerId) -> None:
        """Raise where a peer is banned.

        Raises:
            NetworkError: ``peer_banned``, saying why and until when.
        """
        ban = self.ban_of(peer)
        if ban is not None:
            raise peer_banned(ban)


# --- names ---


def outputs_of(job_id: JobId) -> str:
    """Under which name the outputs of a job are pinned."""
    return f"{job_id}/outputs"


def unit_name(unit: Unit) -> str:
    """The requester's name for a unit: the job's id and the unit's place in it."""
    return f"{unit.job}/{unit.index}"


def inputs_of(side: ProviderSide, unit: str) -> str:
    """Under which name the inputs of a unit are pinned; ``unit`` is a peer's own word."""
    return f"{side.award_id}/{unit}"


# --- programs and blobs ---


async def program_of(store: BlobStore, program: BlobId) -> programs.AnyManifest:
    """The manifest of a program whose blobs are all held, which counts as a use of them.

    Whoever asks is about to use the program, and may bring large inputs for it before.

    Raises:
        StoreError: ``blob_missing`` where the manifest is not held, ``blobs_missing``
            where others are not, naming them.
        ProgramError: The blob is no manifest.
    """
    manifest = await manifest_of(store, program)
    blobs = program_blobs(manifest)
    missing = [blob_id for blob_id in blobs if not store.holds(blob_id)]
    if missing:
        raise StoreError(
            f"of program {program[:16]}… these blobs are not held: {', '.join(missing[:8])}",
            code="blobs_missing",
            hint="upload them first; `shoal run MODEL.onnx` does it",
        )
    store.used(blobs)
    return manifest


def program_blobs(manifest: programs.AnyManifest) -> list[BlobId]:
    """The ids of everything that a program is made of, beside its manifest."""
    return list(manifest.blob_ids)


async def manifest_of(store: BlobStore, program: BlobId) -> programs.AnyManifest:
    """A manifest that is held; a larger blob that a peer calls one is not read at all."""
    if store.size_bytes(program) > MANIFEST_LIMIT_BYTES:
        raise ProgramError(
            f"{program[:16]}… is no program: it is too large", code="bad_manifest"
        )
    return programs.decode(await store.get_bytes(program))


async def tensor_spec_of(store: BlobStore, blob_id: BlobId) -> TensorSpec:
    """The dtype and shape of a tensor that is held, from its first bytes."""
    return spec_of_blob(await store.read_chunk(blob_id, 0), store.size_bytes(blob_id))


async def hold(
    house: House,
    peer: PeerId,
    blob_id: BlobId,
    pin_by: str,
    limit_bytes: int,
    sources: Sequence[PeerId] = (),
    takers: Callable[[], Sequence[Source]] | None = None,
) -> None:
    """Hold a blob that ``peer`` has too, until ``pin_by`` lets go.

    It is asked of ``peer``, or of ``sources`` that keep it for that peer. They are to be
    reached by now, and to know protocol 1.3. Where ``takers`` get the same from the
    peer, which named them, it comes from them as far as may be.

    What is held already is used only where the peer is known to have it; else the
    peer sends it, or proves to have it (`node.fetching`). To a peer that
    has not got it, all this looks and fails the same, held or not.

    Raises:
        NetworkError: The peer cannot be reached, or refuses.
        RemoteProtocolError: It sent something else than the blob.
        StoreError: The blob is over ``limit_bytes``, or there is no room.
    """
    house.store.pin(blob_id, pin_by)
    async with house.fetching.take((peer, blob_id)):  # two units of its want it once
        if usable(house, peer, blob_id):
            return
        if takers is not None:
            await fetch_beside(house, blob_id, peer, takers, limit_bytes)
        else:
            asked = [Source(source, peer) for source in sources] or [Source(peer)]
            await fetch_from(house, blob_id, asked, limit_bytes)
        note_known(house, peer, [blob_id])


def usable(house: House, peer: PeerId, blob_id: BlobId) -> bool:
    """Whether a blob is held, and may be used for ``peer`` as it is."""
    known = (
        peer == house.peer_id
        or house.known.has(peer, blob_id)
        or house.kept.keeps(peer, blob_id)
    )
    return known and house.store.holds(blob_id)


def note_known(house: House, peer: PeerId, blob_ids: Iterable[BlobId]) -> None:
    """Note that ``peer`` has these blobs: it gave them, or is given them."""
    if peer != house.peer_id:
        house.known.note(peer, blob_ids)


# --- peers ---


async def tell(house: House, peer: PeerId, message: Cancel | Release | Reveal) -> None:
    """Say something that matters to the peer only; a lost one costs it a time-out."""
    try:
        await house.control.request(peer, message, RELEASE_TIME_LIMIT_S)
    except ShoalError:
        return


def fitting(answer: ResponseBody, kinds: Any) -> Any:
    """``answer``, if it is one of ``kinds``.

    Raises:
        RemoteProtocolError: The peer answered with another message.
    """
    if not isinstance(answer, kinds):
        raise RemoteProtocolError(
            f"an unfitting {type(answer).__name__} came as an answer", code="unfitting_answer"
        )
    return answer


def wall_ms() -> int:
    """This node's wall clock, in milliseconds since 1970; advisory on the wire."""
    return time.time_ns() // 1_000_000
