"""The data path: submit, negotiate, fetch, execute, sign, verify, deliver.

Read from top to bottom. Every step is one function and calls one module; who
calls the steps are `node.jobs` on the requester's side (submit, negotiate,
hand over, verify, deliver) and `node.provider` on the provider's (fetch,
execute, sign), each with the modules that it is made of. A call is answered by
`node.provider` too, as `node.bidding` says: a refusal, or a bid and its price.
A node that runs its own user's work goes through the same steps and signs the
same receipts.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import trio

from shoal.compute import manifest as manifests
from shoal.compute import programs
from shoal.compute.exact.spec import SPEC_VERSION
from shoal.compute.frames import UnitLimits
from shoal.compute.in_file import InFile
from shoal.compute.unit_runs import Execution, Outcome, UnitRun
from shoal.crypto.content import BlobId, blob_id_of
from shoal.crypto.envelope import Statement
from shoal.crypto.errors import VerificationError
from shoal.crypto.merkle import root_over
from shoal.crypto.peer_id import PeerId
from shoal.node import (
    arrivals,
    bidding,
    ending_leases,
    given_units,
    input_sources,
    made_outputs,
    program_sources,
    submission,
    unit_messages,
)
from shoal.node.house import (
    RELEASE_TIME_LIMIT_S,
    House,
    fitting,
    hold,
    inputs_of,
    manifest_of,
    outputs_of,
    program_blobs,
    program_of,
    unit_name,
    wall_ms,
)
from shoal.node.records import (
    Ended,
    GivenUnit,
    Job,
    JobSpec,
    Unit,
    UnitState,
    Written,
    new_job_id,
)
from shoal.node.wanted import Wanted, wanted_of
from shoal.protocol.codec import encode
from shoal.protocol.limits import INLINE_LIMIT_BYTES
from shoal.protocol.negotiation import Deliver, RequesterSide
from shoal.protocol.negotiation_messages import (
    AwardOffer,
    Bid,
    Call,
    Lease,
    Refusal,
    UnitRequest,
    UnitResult,
    UnitsResult,
)
from shoal.protocol.statements import (
    Award,
    Receipt,
    UnitError,
    check_receipt,
    open_receipt,
)
from shoal.protocol.verification.draw import list_id, salt_hash
from shoal.protocol.versions import OWN
from shoal.protocol.vocabulary import SIGNED_TOGETHER_SINCE

if TYPE_CHECKING:
    from shoal.node.checks import Draw
    from shoal.protocol.negotiation import ProviderSide

BID_TIME_LIMIT_S = 3.0

AWARD_TIME_LIMIT_S = 10.0
HAND_OVER_GRACE_S = 60.0
"""Beyond the units' own limits, for fetching the program and a cold worker."""


# 1. submit: the requester's daemon takes a job ----------------------------------


async def submit(house: House, spec: JobSpec, given: Sequence[GivenUnit] | None = None) -> Job:
    """Check a job whole, before anything of it runs, and write it down.

    One that was submitted before under the same id is given as it stands. More units come to
    an open one by `submission.add_units`.

    Args:
        house: This node.
        spec: The job.
        given: Its units, or the first of an open job, in place of those in ``spec``.

    Raises:
        ProgramError: The program is not held or an input does not fit it.
        StoreError: An input is not held, or there is no room to note the job.
        JobError: An input is an output of no unit that there is, ``bad_verify``,
            ``bad_proofs`` or ``job_id_taken``.
    """
    given, began_s = spec.units if given is None else given, trio.current_time()
    submission.check_policy(spec)
    if (before := await submission.submitted_before(house, spec, given)) is not None:
        return before
    manifest = await program_of(house.store, spec.program)
    programs.check_class(manifest, spec.numeric_class)
    job_id = spec.id or new_job_id()
    taken = await given_units.take(house, manifest, job_id, given, 0)
    job = submission.new_job(spec, job_id, len(given))
    try:
        await house.journal.add_job(job, spec, taken.units, taken.tensors)
    except BaseException:
        house.store.unpin(job_id)
        raise
    house.timings.added(job_id, 0, len(given), began_s)
    return job


# 2. negotiate: call for bids, choose, award --------------------------------------


@dataclass(frozen=True, slots=True)
class Need:
    """What a job needs of a provider; the same for all its calls."""

    job: Job
    spec: JobSpec
    manifest: programs.AnyManifest
    program_bytes: int
    input_bytes: int

    @property
    def wanted(self) -> Wanted:
        """What its units look for in adverts."""
        return wanted_of(self.manifest, self.spec.numeric_class)


async def call_for_bid(
    house: House, need: Need, peer: PeerId, units: int
) -> RequesterSide | Refusal:
    """Ask one peer for a bid on ``units`` units; gives the conversation, or its refusal.

    Raises:
        NetworkError: It is banned, cannot be reached, or gave no answer in time.
        RemoteProtocolError: It answered with anything but a bid or a refusal.
    """
    side = RequesterSide(requester=house.peer_id, provider=peer)
    call = Call(
        call=secrets.token_hex(16),
        program=need.spec.program,
        numeric_class=need.spec.numeric_class,
        precision=need.manifest.precision,
        units=units,
        input_bytes=need.input_bytes,
        program_bytes=need.program_bytes,
        time_limit_s=need.spec.time_limit_s,
        memory_bytes=need.spec.memory_limit_bytes,
    )
    house.check_ban(peer)
    await house.reach(peer)
    side.send(call, trio.current_time())
    answer = fitting(await house.control.request(peer, call, BID_TIME_LIMIT_S), Bid | Refusal)
    side.receive(answer, trio.current_time())
    return answer if isinstance(answer, Refusal) else side


def sign_award(
    house: House,
    need: Need,
    side: RequesterSide,
    draw: Draw | None = None,
    sources: Sequence[PeerId] = (),
) -> AwardOffer:
    """Sign the award of a bid, which is to be sent next.

    Args:
        house: This node.
        need: What the job needs.
        side: The conversation, which stands at a bid.
        draw: By what verifiers of its receipts are drawn: the award commits to it. None
            where nothing is checked.
        sources: Peers that have the program too: see `node.program_sources`.

    Raises:
        NetworkError: The provider is banned.
    """
    assert side.call is not None
    assert side.bid is not None
    house.check_ban(side.provider)
    statement = Award(
        protocol=OWN,
        call=side.call.call,
        nonce=side.bid.nonce,
        requester=house.peer_id,
        provider=side.provider,
        program=need.spec.program,
        numeric_class=need.spec.numeric_class,
        precision=need.manifest.precision,
        units_max=side.bid.units_max,
        price=side.bid.price,
        idle_s=bidding.LEASE_IDLE_S,
        issued_at_ms=wall_ms(),
        candidates=list_id(draw.candidates) if draw else None,
        salt_hash=salt_hash(draw.salt) if draw else None,
    )
    envelope = house.identity.sign(Statement.AWARD, encode(statement))
    offer = AwardOffer(call=side.call.call, award=envelope, sources=tuple(sources))
    side.send(offer, trio.current_time())
    assert side.award_id is not None
    program = [need.spec.program, *program_blobs(need.manifest)]
    house.rights.grant(side.award_id, side.provider, program)
    return offer


async def await_lease(house: House, side: RequesterSide, offer: AwardOffer) -> Refusal | None:
    """Send an award; a refusal is given back, a lease is noted.

    Raises:
        NetworkError: The provider cannot be reached.
        RemoteProtocolError: It answered with anything but a lease or a refusal.
    """
    answer = fitting(
        await house.control.request(side.provider, offer, AWARD_TIME_LIMIT_S), Lease | Refusal
    )
    side.receive(answer, trio.current_time())
    return answer if isinstance(answer, Refusal) else None


async def hand_over(
    house: House,
    need: Need,
    side: RequesterSide,
    units: Sequence[Unit],
    sources: Mapping[int, unit_messages.Sources] = MappingProxyType({}),
    *,
    trace: bool = False,
    answered: trio.Event | None = None,
) -> dict[int, UnitResult | Refusal]:
    """Give units to the provider in one message and wait until all of them have ended.

    No more of them than `side.room`, `side.bid.batch_max` and
    `unit_messages.units_per_message` allow. Inputs that do not fit into the message go by
    blob stream; ``sources`` says, by the index of a unit, which of them come from other
    peers. With ``trace`` the receipts commit to the stages of what ran. ``answered`` is set
    once the award has been answered, where units may go out before.

    Cancelling it tells the provider that nobody waits any more for those that are out;
    one alone is cancelled by `Cancel`, and the others' answers come all the same.

    Returns:
        The answer of each unit that was not cancelled meanwhile, by its index.

    Raises:
        NetworkError: The provider is banned, went away, or is over the units' time limit.
        RemoteProtocolError: It broke the protocol.
    """
    assert side.call is not None
    assert side.award_id is not None
    house.check_ban(side.provider)
    names = {unit_name(unit): unit for unit in units}
    message = await unit_messages.write_request(
        house, side, units, sources, keep=need.spec.outputs_stay, trace=trace
    )
    fits = (UnitResult if isinstance(message, UnitRequest) else UnitsResult) | Refusal
    side.send(message, trio.current_time())
    timeout_s = need.spec.time_limit_s * len(side.units) + HAND_OVER_GRACE_S
    try:
        try:
            got = await house.control.request(side.provider, message, timeout_s)
        finally:
            if answered is not None:  # what it says of them counts once there is a lease
                await answered.wait()
        answer = fitting(got, fits)
    except trio.Cancelled:
        with trio.move_on_after(RELEASE_TIME_LIMIT_S, shield=True):
            await ending_leases.cancel(house, side, list(names))
        raise
    effects = side.receive(answer, trio.current_time(), *names)
    delivered = [effect for effect in effects if isinstance(effect, Deliver)]
    return {names[effect.unit.unit].index: effect.answer for effect in delivered}


# --- from here on the provider -----------------------------------------------------
# 3. fetch: program and inputs, checked chunk by chunk --------------------------------


async def fetch_program(house: House, side: ProviderSide) -> programs.AnyManifest:
    """Hold every blob of a program; what its requester sent or proved is not sent again.

    The blobs stay until the award lets go.

    Raises:
        NetworkError: The requester went away.
        ProgramError: The manifest is malformed.
    """
    assert side.call is not None
    assert side.award_id is not None
    store, program = house.store, BlobId(side.call.program)
    limit_bytes = manifests.MANIFEST_LIMIT_BYTES
    await hold(house, side.requester, program, side.award_id, limit_bytes)
    manifest = await manifest_of(store, program)
    programs.check_class(manifest, side.call.numeric_class)
    await program_sources.hold_blobs(house, side.requester, program, side.award_id, manifest)
    return manifest


async def fetch_inputs(
    house: House, side: ProviderSide, manifest: programs.AnyManifest, request: UnitRequest
) -> dict[str, bytes | InFile]:
    """The input tensors of one unit, by name: inline ones as they came, others fetched.

    Those from `LARGE_BYTES` on stay in their files.

    What is fetched stays until `inputs_of` the unit lets go. Together they may
    have as many bytes as the unit may use of memory.

    Raises:
        InputMissingError: Nobody gives an input.
        NetworkError: The requester went away.
        ProgramError: An input is missing, unknown, or of another dtype or shape,
            or all of them are too large.
    """
    tensors = await input_sources.take(house, side, request)
    specs = {name: input_sources.spec_of(tensor) for name, tensor in tensors.items()}
    manifests.check_inputs(manifest, specs)
    return tensors


# 4. execute: in the worker's process -------------------------------------------------


async def execute(
    house: House,
    side: ProviderSide,
    manifest: programs.AnyManifest,
    units: Sequence[UnitRun],
    ended: Callable[[UnitRun], None],
) -> None:
    """Run units of one lease by its device's worker; says ``ended`` as each has its outcome.

    An error of a unit is an outcome like any other. One that is cancelled has none.

    Raises:
        StoreError: A blob of the program is not held any more.
    """
    assert side.call is not None
    call = side.call

    async def blobs() -> dict[BlobId, bytes]:
        ids = [BlobId(call.program), *program_blobs(manifest)]
        return {blob_id: await house.store.get_bytes(blob_id) for blob_id in ids}

    limits = UnitLimits(
        time_s=call.time_limit_s,
        memory_bytes=call.memory_bytes,
        output_bytes=call.memory_bytes,
    )
    assert side.bid is not None
    device = side.bid.device
    rank = bidding.rank(side.requester, house.terms())
    # A CPU's executor is known by the program; a card's serve one program in several classes.
    numeric_class = call.numeric_class if device in house.card_workers else ""
    await house.worker_on(device).run_many(
        side.requester, BlobId(call.program), blobs, units, limits, ended, rank, numeric_class
    )


# 5. sign: the receipt, and the outputs beside it --------------------------------------


@dataclass(frozen=True, slots=True)
class Unsigned:
    """What came of a unit, before it is signed.

    Attributes:
        blobs: The outputs that travel with the receipt.
        kept: Outputs that stay here for the requester, and their sizes in bytes.
    """

    request: UnitRequest
    run: UnitRun
    receipt: Receipt
    blobs: tuple[bytes, ...]
    kept: Mapping[BlobId, int]


async def write_receipt(
    house: House,
    side: ProviderSide,
    request: UnitRequest,
    run: UnitRun,
    room: int = INLINE_LIMIT_BYTES,
) -> Unsigned:
    """Write down what was run, on what, giving what; small outputs travel with the receipt.

    Args:
        house: The modules.
        side: Under which lease.
        request: The unit.
        run: What came of it; it has an outcome.
        room: How many bytes of outputs its message has room for.

    Raises:
        StoreError: There is no room for the outputs that do not travel.
    """
    assert side.award is not None
    assert side.award_id is not None
    assert side.bid is not None
    assert run.outcome is not None
    outcome = run.outcome if isinstance(run.outcome, Execution) else None
    pin_by = inputs_of(side, request.unit)
    outputs = await made_outputs.ids_of(house, pin_by, outcome.outputs) if outcome else {}
    stages = outcome.stages if outcome else ()
    receipt = Receipt(
        protocol=OWN,
        exact_spec=SPEC_VERSION if side.award.numeric_class == "exact" else "",
        award=side.award_id,
        unit=request.unit,
        program=side.award.program,
        numeric_class=side.award.numeric_class,
        precision=side.award.precision,
        inputs=request.inputs,
        outputs=tuple(sorted(outputs.items())) if outcome else None,
        error=_unit_error(run.outcome),
        trace=root_over(stages).hex() if stages else None,
        provider=house.peer_id,
        requester=side.requester,
        started_at_ms=run.started_at_ms,
        ended_at_ms=run.ended_at_ms,
        device=side.bid.device,
        runtime=outcome.runtime[:256] if outcome else "",
        stages=len(stages),
    )
    inline: tuple[bytes, ...] = ()
    kept: Mapping[BlobId, int] = {}
    if outcome:
        inline, kept = await made_outputs.place(
            house, side, outputs, outcome.outputs, room, keep=request.keep
        )
    return Unsigned(request, run, receipt, inline, kept)


def sign(house: House, side: ProviderSide, unsigned: Sequence[Unsigned]) -> list[UnitResult]:
    """Sign receipts: all under one signature, where their requester knows that form."""
    payloads = [encode(one.receipt) for one in unsigned]
    if house.control.versions.of(side.requester) >= SIGNED_TOGETHER_SINCE:
        envelopes = house.identity.sign_many(Statement.RECEIPT, payloads)
    else:
        envelopes = [house.identity.sign(Statement.RECEIPT, payload) for payload in payloads]
    assert side.call is not None
    results = []
    for one, envelope in zip(unsigned, envelopes, strict=True):
        house.signed(side.call, one.run, one.receipt, envelope)
        results.append(
            UnitResult(
                call=one.request.call,
                unit=one.request.unit,
                receipt=envelope,
                blobs=one.blobs,
                kept=tuple(sorted(one.kept.items())),
            )
        )
    return results


def _unit_error(outcome: Outcome) -> UnitError | None:
    """What a receipt says of an error."""
    if isinstance(outcome, Execution):
        return None
    return UnitError(
        code=outcome.code[:64],
        message=outcome.message[:1024],
        node=outcome.node[:256],
        operator=outcome.operator[:64],
    )


# --- and back at the requester -----------------------------------------------------
# 6. verify: the receipt is about this unit, and signed by who ran it ---------------------


def verify(need: Need, side: RequesterSide, unit: Unit, result: UnitResult) -> Receipt:
    """Check signature, ids, award and output names (level L0).

    Raises:
        VerificationError: Any of them is wrong; the result is not used.
    """
    assert side.award is not None
    assert side.award_id is not None
    receipt = open_receipt(result.receipt)
    check_receipt(receipt, side.award_id, side.award, unit_name(unit), unit.inputs)
    if side.award.numeric_class == "exact" and receipt.exact_spec != SPEC_VERSION:
        raise VerificationError(  # nor could its signer ever be convicted by it
            f"the receipt is of version {receipt.exact_spec!r:.40} of the exact class, and "
            f"{SPEC_VERSION!r} is known here",
            code="receipt_mismatch",
        )
    if receipt.outputs is not None:
        wanted = {port.name for port in need.manifest.outputs}
        got = {name for name, _ in receipt.outputs}
        if got != wanted:
            raise VerificationError(
                f"the receipt gives outputs {sorted(got)}, the program has {sorted(wanted)}",
                code="wrong_outputs",
            )
    return receipt


# 7. deliver: the outputs are held and the units are written down, once ------------------


async def take_outputs(
    house: House,
    need: Need,
    side: RequesterSide,
    unit: Unit,
    result: UnitResult,
    receipt: Receipt,
) -> Ended:
    """Have the outputs of one unit here, the small ones in hand and others in the store.

    The latter stay until `arrivals.let_go`, which is to be called after the end was written.

    Raises:
        VerificationError: Bytes came that no output of the receipt names, or an
            output is no tensor that the program can have given.
        NetworkError: An output could not be fetched.
        StoreError: There is no room for the outputs.
    """
    outputs = {name: BlobId(blob_id) for name, blob_id in receipt.outputs or ()}
    tensors, left = await arrivals.take(house, need, side.provider, unit, outputs, result)
    done = Unit(
        job=unit.job,
        index=unit.index,
        state=UnitState.DONE,
        inputs=unit.inputs,
        outputs=outputs,
        receipt=blob_id_of(result.receipt),
        provider=side.provider,
        attempts=unit.attempts,
        seconds=unit.seconds,
    )
    return Ended(done, result.receipt, tensors, left)


async def deliver(house: House, ends: Sequence[Ended]) -> Written:
    """End units, all in one write; their outputs stay with the job.

    Raises:
        StoreError: It cannot be written down.
    """
    try:
        written = await house.journal.end_units(ends)
        for end in ends:
            house.timings.passed(end.unit.job, [end.unit.index], "written")
        for end, new in zip(ends, written.new, strict=True):
            if new and end.unit.outputs:
                for blob_id in end.unit.outputs.values() - end.tensors.keys():
                    house.store.pin(blob_id, outputs_of(end.unit.job))
        return written
    finally:
        arrivals.let_go(house, ends)
