"""Where a provider gets a unit's inputs: what is here, who keeps them, the requester.

Part of the step "fetch" of the data path. A requester may name peers that keep inputs for
it (`UnitRequest.sources`); nothing that such a peer says or does counts against the
requester, and nothing that the requester names leads this node anywhere but to peers whose
adverts it holds. A source that does not give an input is not asked again for the same
unit, a few of them are tried at most, and in the end the requester is asked itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
import trio

from shoal.compute.errors import ProgramError
from shoal.compute.in_file import LARGE_BYTES, InFile
from shoal.compute.tensor import HEADER_LIMIT_BYTES, TensorSpec, spec_of_blob
from shoal.crypto.content import BlobId, blob_id_of
from shoal.crypto.errors import ShoalError
from shoal.crypto.peer_id import PeerId
from shoal.node.errors import InputMissingError, NetworkError, StoreError
from shoal.node.house import hold, inputs_of, usable
from shoal.protocol.blob_messages import WhyNot
from shoal.protocol.errors import VersionError
from shoal.protocol.negotiation_messages import Share
from shoal.protocol.vocabulary import knows

if TYPE_CHECKING:
    from shoal.node.house import House
    from shoal.protocol.negotiation import ProviderSide
    from shoal.protocol.negotiation_messages import UnitRequest

FAILED_SOURCES_LIMIT = 4
"""Sources that do not give what they were named for, after which a unit tries no more."""

SOURCE_REACH_LIMIT_S = 10.0
"""To be connected with a source, and greeted by it."""

_MISSING = frozenset({WhyNot.NOT_HELD.value, WhyNot.NO_RIGHT.value})

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Sources:
    """The peers that one unit's requester named, and which of them failed.

    Args:
        requester: Whose unit it is.
        named: Which blob may be had where, in the order in which to try.
    """

    requester: PeerId
    named: Sequence[tuple[str, str]] = ()
    failed: set[PeerId] = field(default_factory=set)

    def of(self, blob_id: BlobId, own: PeerId) -> Iterator[PeerId]:
        """Whom to ask for a blob before the requester; to be told of failures meanwhile."""
        for blob, text in self.named:
            peer = PeerId(text)
            if len(self.failed) >= FAILED_SOURCES_LIMIT:
                return
            if blob == blob_id and peer not in {own, self.requester, *self.failed}:
                yield peer


async def take(
    house: House, side: ProviderSide, request: UnitRequest
) -> dict[str, bytes | InFile]:
    """The input tensors of one unit, by name, held until `inputs_of` the unit lets go.

    Raises:
        InputMissingError: Nobody gives an input.
        NetworkError: The requester went away.
        ProgramError: Together they have more bytes than the unit may use of memory.
    """
    assert side.call is not None
    inline = {blob_id_of(blob): blob for blob in request.blobs}
    sources = Sources(side.requester, request.sources)
    room = side.call.memory_bytes
    tensors: dict[str, bytes | InFile] = {}
    for name, text in request.inputs:
        blob_id = BlobId(text)
        if blob_id not in inline:
            await hold_input(house, sources, blob_id, inputs_of(side, request.unit), room)
            room -= house.store.size_bytes(blob_id)
        if room < 0:
            raise ProgramError(
                f"the inputs of unit {request.unit} have more than the "
                f"{side.call.memory_bytes} bytes of memory that it may use",
                code="inputs_too_large",
            )
        if blob_id in inline:
            tensors[name] = inline[blob_id]
        elif house.store.size_bytes(blob_id) < LARGE_BYTES:
            tensors[name] = await house.store.get_bytes(blob_id)
        else:
            tensors[name] = await house.store.in_file(blob_id)
    return tensors


def spec_of(tensor: bytes | InFile) -> TensorSpec:
    """Its dtype and shape, which of a large one are read from its file."""
    head = tensor.head(HEADER_LIMIT_BYTES) if isinstance(tensor, InFile) else tensor
    return spec_of_blob(head, len(tensor))


async def hold_input(
    house: House, sources: Sources, blob_id: BlobId, pin_by: str, limit_bytes: int
) -> None:
    """Hold an input of a unit until ``pin_by`` lets go.

    Raises:
        InputMissingError: Neither a source nor the requester has it, or gives it.
        NetworkError: The requester went away.
        RemoteProtocolError: It sent something else than the blob.
        StoreError: The blob is over ``limit_bytes``, or there is no room.
    """
    requester = sources.requester
    if usable(house, requester, blob_id):
        house.store.pin(blob_id, pin_by)
        return
    met = await _met(house, sources, blob_id)
    if met:
        try:
            await hold(house, requester, blob_id, pin_by, limit_bytes, met)
        except StoreError:
            raise
        except ShoalError as error:
            sources.failed.update(met)
            log.info("sources gave no input", blob=blob_id, why=error.message)
        else:
            return
    try:
        await hold(house, requester, blob_id, pin_by, limit_bytes)
    except NetworkError as error:
        if error.code not in _MISSING:
            raise
        raise InputMissingError(
            f"input {blob_id[:16]}… is not to be had: {error.message}", blob_id
        ) from None


async def _met(house: House, sources: Sources, blob_id: BlobId) -> list[PeerId]:
    """Those of a blob's sources that are there to be asked, a few at most."""
    met: list[PeerId] = []
    for source in sources.of(blob_id, house.peer_id):
        try:
            await _meet(house, source)
        except ShoalError as error:
            sources.failed.add(source)
            log.info("a source was not met", source=source, blob=blob_id, why=error.message)
        else:
            met.append(source)
        if len(met) + len(sources.failed) >= FAILED_SOURCES_LIMIT:
            break
    return met


async def _meet(house: House, source: PeerId) -> None:
    """Be connected with a peer that may be asked in another's name.

    Raises:
        NetworkError: It is not known, or cannot be reached.
        VersionError: It does not know such requests.
    """
    try:
        with trio.fail_after(SOURCE_REACH_LIMIT_S):
            await house.reach(source)
            theirs = await house.control.version_of(source)
    except trio.TooSlowError:
        raise NetworkError(
            f"{source} was not reached within {SOURCE_REACH_LIMIT_S:g} s", code="timed_out"
        ) from None
    if not knows(theirs, Share):
        raise VersionError(f"{source} is too old to keep outputs", code="peer_too_old")
