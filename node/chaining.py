"""The requester's side of outputs that stay with peers: found, shared, brought here, made anew.

A unit's inputs may be outputs that were left with the peers that made them. When it is
handed over, each such peer is told to share them with the unit's provider, and the provider
is told whom to ask; no byte of them comes here. They do come when this node's user asks for
them. Where the peer that had one is gone, or has dropped it, the unit that made it is
queued again, and whatever awaits it waits again: its *lineage* is in the journal, so
nothing is lost but time. How often a unit is made anew for that is bounded, so that a peer
which says that it keeps what it does not keep cannot have it made for ever.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog
import trio

from shoal.compute.errors import ProgramError
from shoal.crypto.content import BlobId
from shoal.crypto.errors import ShoalError
from shoal.crypto.peer_id import PeerId
from shoal.node import journal_left
from shoal.node.errors import JobError, NetworkError, StoreError
from shoal.node.house import fitting, hold, manifest_of, outputs_of, tensor_spec_of
from shoal.node.lineage import RECOMPUTED_LIMIT, Left, Supply
from shoal.node.records import JobId, JobState, Unit, UnitState
from shoal.node.standing import Offence
from shoal.protocol.errors import VersionError
from shoal.protocol.limits import SHARED_IDS_LIMIT
from shoal.protocol.negotiation_messages import Drop, Share, Shared
from shoal.protocol.vocabulary import knows

if TYPE_CHECKING:
    from shoal.node.house import House

SHARE_AGAIN_S = 1.0
"""When a peer that could not be reached is asked once more."""

SHARE_LIMIT_S: Final = 5.0
"""For a peer to answer that it shares, or to be reached at all."""

COMPUTED_AGAIN: Final = "computed_again"

log = structlog.get_logger(__name__)


async def left_inputs(house: House, units: Iterable[Unit]) -> dict[BlobId, Left]:
    """Those inputs of the units that were left with peers."""
    blob_ids = {blob_id for unit in units for blob_id in unit.inputs.values()}
    holders = await house.journal.holders(blob_ids)
    return {blob_id: Left(*holder) for blob_id, holder in holders.items()}


async def supply(house: House, provider: PeerId, units: Sequence[Unit]) -> Supply:
    """See to it that ``provider`` can get what these units take of other units' outputs.

    Those that were left with peers are shared with it. To a provider that is too old to ask
    other peers, they go by way of this node.

    Raises:
        StoreError: There is no room here for what has to go by way of this node.
    """
    left = await left_inputs(house, units)
    elsewhere = {blob_id: each for blob_id, each in left.items() if each.peer != provider}
    if elsewhere and not await _asks_others(house, provider):
        lost = {id_ for id_ in elsewhere if not await _brought(house, id_, elsewhere[id_])}
        shared: set[BlobId] = set()
    else:
        shared, lost = await _share(house, elsewhere, provider)
        lost = {blob_id for blob_id in lost if not house.store.holds(blob_id)}
    sources: dict[int, tuple[tuple[BlobId, PeerId], ...]] = {}
    for unit in units:
        blob_ids = sorted(set(unit.inputs.values()))
        sources[unit.index] = tuple((id_, left[id_].peer) for id_ in blob_ids if id_ in shared)
    missing = {
        unit.index: gone
        for unit in units
        if (gone := tuple(left[id_] for id_ in set(unit.inputs.values()) & lost))
    }
    return Supply(sources, {**missing, **await _nowhere(house, units, left)})


async def _nowhere(
    house: House, units: Sequence[Unit], left: Mapping[BlobId, Left]
) -> dict[int, tuple[Left, ...]]:
    """Units of which an input was here and is no more, while a unit can make it anew."""
    absent = {
        blob_id
        for unit in units
        for blob_id in unit.inputs.values()
        if blob_id not in left and not house.store.holds(blob_id)
    }
    if absent:
        absent -= (await house.journal.tensor_sizes(absent)).keys()
    found: dict[int, tuple[Left, ...]] = {}
    for unit in units:
        if not absent.isdisjoint(unit.inputs.values()):
            makers = await house.journal.transact(partial(_makers, unit=unit))
            found[unit.index] = tuple(
                Left(house.peer_id, *makers[name], 0)
                for name, blob_id in unit.inputs.items()
                if blob_id in absent and name in makers
            )
    return {index: lost for index, lost in found.items() if lost}


async def made_by_units(
    house: House, units: Sequence[Unit], blob_ids: Collection[BlobId]
) -> set[BlobId]:
    """Those of some inputs that are outputs of units, which can make them anew."""
    found: set[BlobId] = set()
    for unit in units:
        if not found.issuperset(set(unit.inputs.values()) & set(blob_ids)):
            makers = await house.journal.transact(partial(_makers, unit=unit))
            found |= {unit.inputs[name] for name in makers if name in unit.inputs}
    return found & set(blob_ids)


def _makers(database: sqlite3.Connection, unit: Unit) -> dict[str, tuple[JobId, int]]:
    return journal_left.makers(database, unit.job, unit.index)


async def _asks_others(house: House, provider: PeerId) -> bool:
    if provider == house.peer_id:
        return True
    return knows(house.control.versions.of(provider), Share)


async def _share(
    house: House, left: Mapping[BlobId, Left], provider: PeerId
) -> tuple[set[BlobId], set[BlobId]]:
    """Have peers share what they keep; gives what is shared, and what is lost."""
    by_holder: dict[PeerId, list[BlobId]] = {}
    for blob_id, each in left.items():
        by_holder.setdefault(each.peer, []).append(blob_id)
    shared: set[BlobId] = set()
    lost: set[BlobId] = set()

    async def ask(holder: PeerId, blob_ids: list[BlobId]) -> None:
        for first in range(0, len(blob_ids), SHARED_IDS_LIMIT):
            some = blob_ids[first : first + SHARED_IDS_LIMIT]
            try:
                try:
                    missing = await _ask_to_share(house, holder, some, provider)
                except NetworkError:  # a link that hiccups has lost nothing
                    await trio.sleep(SHARE_AGAIN_S)
                    missing = await _ask_to_share(house, holder, some, provider)
            except VersionError:  # it keeps nothing: it was another version when it did
                missing = set(some)
            except NetworkError as error:
                log.info("what a peer keeps is out of reach", peer=holder, why=error.message)
                missing = set(some)
            except ShoalError as error:
                # It is there and does not do it, perhaps since it is asked too much: the
                # unit's provider will not find it there, and this node fetches it then.
                log.info("a peer does not share", peer=holder, why=error.message)
                continue
            lost.update(missing)
            shared.update(set(some) - missing)

    async with trio.open_nursery() as nursery:
        for holder, blob_ids in by_holder.items():
            nursery.start_soon(ask, holder, blob_ids)
    return shared, lost


async def _ask_to_share(
    house: House, holder: PeerId, blob_ids: Sequence[BlobId], provider: PeerId
) -> set[BlobId]:
    """Ask one peer to share; gives what it does not keep."""
    share = Share(blobs=tuple(blob_ids), peer=provider)
    try:
        with trio.fail_after(SHARE_LIMIT_S):
            await house.reach(holder)
            answer = fitting(await house.control.request(holder, share, math.inf), Shared)
    except trio.TooSlowError:
        raise NetworkError(
            f"{holder} did not answer within {SHARE_LIMIT_S:g} s", code="no_answer"
        ) from None
    return {BlobId(blob_id) for blob_id in answer.missing} & set(blob_ids)


# --- lost outputs are made anew -------------------------------------------------------


async def make_anew(house: House, lost: Iterable[Left]) -> None:
    """Queue the units again that made what was lost; what awaits them awaits them again.

    Raises:
        JobError: ``input_lost``: one of them cannot be made, or was lost too often.
    """
    for job_id, index in dict.fromkeys((each.job, each.unit) for each in lost):
        if await house.journal.reopen_unit(job_id, index):
            log.warning("lost outputs are computed again", job=job_id, unit=index)
            if house.lineage.again(job_id, index):
                continue
            why = f"its outputs were lost {RECOMPUTED_LIMIT} times with those that kept them"
            raise _lost(job_id, index, why)
        if not await _is_there_or_comes(house, job_id, index):
            raise _lost(job_id, index, "its job was cancelled or is not kept any more")


async def _is_there_or_comes(house: House, job_id: JobId, index: int) -> bool:
    """Whether a unit that was not queued again is made by now, or is being made."""
    try:
        job = await house.journal.job(job_id)
    except JobError:  # forgotten
        return False
    if job.state is JobState.CANCELLED:
        return False
    units = await house.journal.units(job_id, index, 1)
    return bool(units) and units[0].state in {UnitState.QUEUED, UnitState.DONE}


def _lost(job_id: JobId, index: int, why: str) -> JobError:
    return JobError(
        f"an input is lost, and unit {index} of job {job_id} cannot give it again: {why}",
        code="input_lost",
        hint="submit both again, without outputs_stay where peers come and go",
    )


async def not_found(house: House, unit: Unit, blob_id: BlobId) -> tuple[Left, ...]:
    """A provider found an input nowhere: have it here, to be served from here.

    The provider's word alone is not enough to make it anew: this node asks the peer that
    keeps it.

    Returns:
        What is lost, where it is: to be made anew (`wait_again`).

    Raises:
        StoreError: There is no room here for it.
    """
    left = (await left_inputs(house, [unit])).get(blob_id)
    return () if left is None or await _brought(house, blob_id, left) else (left,)


async def false_inputs(house: House, unit: Unit) -> tuple[Left, ...]:
    """A provider refused a unit by its inputs: see whether their makers gave what they must.

    Outputs that stay are not looked at here when they are made. Those that are no outputs
    of their program are found now, and it is their makers' fault.

    Returns:
        Inputs that are false, or lost: to be made anew (`wait_again`).
    """
    left = await left_inputs(house, [unit])
    return tuple([each for id_, each in left.items() if not await _brought(house, id_, each)])


async def wait_again(house: House, unit: Unit, lost: Sequence[Left]) -> None:
    """Have what a unit lost made anew, and have it come back when that is there.

    It is to be in nobody's hands, nor in memory: the journal gives it again.

    Raises:
        JobError: ``input_lost``: there is no hope for the unit.
    """
    found = await house.journal.units(unit.job, unit.index, 1)
    if found and found[0].inputs == unit.inputs and not found[0].awaits:
        await make_anew(house, lost)
    # Else its inputs are others by now, or will be. Either way it is to be read again: what
    # was lost may be there already, by another unit that needed it.
    house.journal.touched(frozenset({unit.job}))


# --- outputs that are asked for here ----------------------------------------------------


async def bring_home(house: House, blob_id: BlobId) -> None:
    """Hold an output here that was left with a peer; one that was not is no matter.

    Once it is here, and no unit waits for it, the peer may drop it.

    Raises:
        JobError: ``computed_again``: it was lost, and is being made anew; ``input_lost``
            where it cannot be.
        StoreError: There is no room for it.
    """
    if house.store.holds(blob_id):
        return
    holders = await house.journal.holders([blob_id])
    if blob_id not in holders:
        return
    left = Left(*holders[blob_id])
    if await _brought(house, blob_id, left):
        if not await house.journal.transact(lambda db: journal_left.is_awaited(db, blob_id)):
            rows = await house.journal.transact(
                lambda db: journal_left.brought_here(db, blob_id)
            )
            for job, _ in rows:
                house.store.pin(blob_id, outputs_of(job))
            await drop(house, {peer: [blob_id] for _, peer in rows})
        return
    await make_anew(house, [left])
    raise JobError(
        f"output {blob_id[:16]}… was lost with the peer that it was left with, and unit "
        f"{left.unit} of job {left.job} is run again for it",
        code=COMPUTED_AGAIN,
        hint=f"`shoal job wait {left.job}`, and ask for it again",
    )


async def _brought(house: House, blob_id: BlobId, left: Left) -> bool:
    """Try to hold an output here; False where its peer does not have it, or it is no output."""
    spec = await house.journal.spec(left.job)
    pin_by = outputs_of(left.job)
    try:
        if not house.store.holds(blob_id):
            with trio.fail_after(SHARE_LIMIT_S):
                await house.reach(left.peer)
            await hold(house, left.peer, blob_id, pin_by, spec.memory_limit_bytes)
        await _check(house, blob_id, left)
    except (trio.TooSlowError, NetworkError, ProgramError) as error:
        log.warning("a left output is not to be had", peer=left.peer, why=str(error))
        if isinstance(error, ProgramError):
            house.broke(left.peer, Offence.BAD_RESULT, error.message)
        return False
    except StoreError as error:
        if error.code != "blob_too_large":
            raise
        house.broke(left.peer, Offence.BAD_RESULT, error.message)
        return False
    except ShoalError as error:
        log.warning("a left output is not to be had", peer=left.peer, why=error.message)
        return False
    return True


async def _check(house: House, blob_id: BlobId, left: Left) -> None:
    """See that a left output is what its program can have given; raises ProgramError."""
    found = await tensor_spec_of(house.store, blob_id)
    (unit,) = await house.journal.units(left.job, left.unit, 1)
    manifest = await manifest_of(house.store, (await house.journal.job(left.job)).program)
    names = {name for name, each in (unit.outputs or {}).items() if each == blob_id}
    for port in manifest.outputs:
        if port.name in names and found.dtype != port.dtype:
            raise ProgramError(
                f"output {port.name!r} is a {found}, and {port} is wanted", code="wrong_output"
            )


# --- what is not needed any more ----------------------------------------------------------


async def let_go(house: House, job_id: JobId) -> None:
    """A job was cancelled or is forgotten: its peers need not keep its outputs.

    Those that units of other jobs take stay until these have ended.
    """
    left = await house.journal.transact(lambda db: journal_left.take_unneeded(db, job_id))
    await drop(house, left)


async def let_go_of_copies(house: House, peer: PeerId, blob_ids: Iterable[BlobId]) -> None:
    """A peer keeps outputs of a unit that another one had ended: it need not."""
    holders = await house.journal.holders(set(blob_ids))
    unwanted = [blob_id for blob_id in blob_ids if holders.get(blob_id, (None,))[0] != peer]
    if unwanted:
        await drop(house, {peer: unwanted})


async def drop(house: House, left: Mapping[PeerId, Collection[BlobId]]) -> None:
    """Tell peers what they need not keep; where one does not hear, it lets go by itself."""

    async def tell(peer: PeerId, blob_ids: Sequence[BlobId]) -> None:
        for first in range(0, len(blob_ids), SHARED_IDS_LIMIT):
            message = Drop(blobs=tuple(blob_ids[first : first + SHARED_IDS_LIMIT]))
            try:
                await house.control.request(peer, message, SHARE_LIMIT_S)
            except ShoalError as error:
                log.debug("a peer was not told to drop", peer=peer, why=error.message)
                return

    async with trio.open_nursery() as nursery:
        for peer, blob_ids in left.items():
            nursery.start_soon(tell, peer, list(blob_ids))
