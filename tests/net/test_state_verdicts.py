"""What the journal keeps of others' conduct in work, and within which bounds."""

import msgspec
import pytest
import trio
from ended_disputes import dispute_outcomes
from journal_samples import done, make_job, make_unit, make_units, tensor_id

from shoal.crypto.content import blob_id_of
from shoal.crypto.peer_id import PeerId
from shoal.node import journal_ledger, journal_verdicts
from shoal.node.journal_ledger import KeptAcknowledgement, Settled, Unacknowledged
from shoal.node.ledger import LedgerRow
from shoal.node.records import Ban, Check, JobId, JobState
from shoal.node.result_standing import Deed, ResultStanding
from shoal.node.state import open_state

JOB = JobId("0001")
PEER, VERIFIER, MALLORY = (PeerId(f"12D3KooW{name}") for name in ("peer", "checks", "mallory"))


@pytest.fixture
async def state(tmp_path):
    async with open_state(tmp_path / "state.sqlite") as opened:
        yield opened


def check(unit=0, verdict="agrees", *, job=JOB, at=5.0, verifier=VERIFIER):
    return Check(job, unit, "re-run", verifier, verdict, tensor_id(9), at)


def ban(peer=MALLORY, since=1000.0, until=2000.0, *, own=True):
    return Ban(peer, blob_id_of(peer.encode()), since, until, "one operator is wrong", own)


async def with_units(state, count=3, name="0001", **changes):
    job, spec = make_job(name)
    await state.add_job(
        msgspec.structs.replace(job, **changes), spec, make_units(count, job=name)
    )


# --- checks ---


async def test_checks_are_written_with_the_end_of_their_unit_or_not_at_all(state):
    await with_units(state)
    ended = msgspec.structs.replace(done(make_unit(0)), checks=(check(),))
    assert (await state.end_units([ended])).new == (True,)
    assert await state.checks(JOB) == [check()]
    again = msgspec.structs.replace(done(make_unit(0)), checks=(check(verdict="differs"),))
    assert (await state.end_units([again])).new == (False,)
    assert await state.checks(JOB) == [check()]


async def test_checks_of_one_unit_are_bounded_and_go_with_it(state, monkeypatch):
    monkeypatch.setattr(journal_verdicts, "CHECKS_LIMIT", 3)
    await with_units(state)
    await state.add_checks([check(at=float(n)) for n in range(5)])
    await state.add_checks([check(1), check(7), check(job=JobId("0099"))])  # of no unit
    assert [c.at for c in await state.checks(JOB, 0)] == [2.0, 3.0, 4.0]
    assert [c.unit for c in await state.checks(JOB)] == [0, 0, 0, 1]
    await state.end_units([done(make_unit(0))])
    await state.reopen_unit(JOB, 0)  # what was checked is not its result any more
    assert [c.unit for c in await state.checks(JOB)] == [1]


async def test_what_a_peer_ran_is_found_while_it_can_be_run_again(state):
    await with_units(state, 4)
    await with_units(state, 2, "0002")
    ends = [done(make_unit(n)) for n in range(3)] + [done(make_unit(0, job="0002"))]
    await state.end_units(ends)
    assert await state.unfetched_units_by(MALLORY) == []
    peer = ends[0].unit.provider
    everything = [(JOB, 0), (JOB, 1), (JOB, 2), ("0002", 0)]
    assert await state.unfetched_units_by(peer) == [(*unit, peer) for unit in everything]
    await state.note_fetched(JOB, [1])
    await state.end_job(JobId("0002"), JobState.CANCELLED, 9.0)
    assert await state.unfetched_units_by(peer) == [(JOB, 0, peer), (JOB, 2, peer)]


async def test_what_was_fetched_or_has_ended_meanwhile_stays_as_it_is(state):
    await with_units(state, 3)
    await with_units(state, 1, "0002")
    await state.end_units(
        [*(done(make_unit(n)) for n in range(3)), done(make_unit(0, job="0002"))]
    )
    await state.note_fetched(JOB, [1])
    await state.end_job(JobId("0002"), JobState.DONE, 9.0)
    assert await state.reopen_unit(JOB, 0, unseen=True)
    assert not await state.reopen_unit(JOB, 1, unseen=True)
    assert not await state.reopen_unit(JobId("0002"), 0, unseen=True)
    assert (await state.job(JobId("0002"))).state is JobState.DONE
    assert await state.reopen_unit(JOB, 1)


async def test_what_a_peer_vouched_for_is_found_too(state):
    await with_units(state, 4)
    ends = [done(make_unit(n)) for n in range(4)]
    await state.end_units(ends)
    await state.add_checks([check(0, verifier=MALLORY), check(1, verifier=MALLORY)])
    await state.add_checks([check(2, verifier=MALLORY, verdict="differs")])
    await state.note_fetched(JOB, [1])
    assert await state.unfetched_units_by(MALLORY) == [(JOB, 0, ends[0].unit.provider)]


# --- bans and proofs ---


async def test_a_ban_survives_and_of_two_the_longer_one_counts(tmp_path):
    path = tmp_path / "state.sqlite"
    async with open_state(path) as state:
        assert await state.add_ban(ban())
        assert await state.add_ban(ban(until=1500.0))
    async with open_state(path) as state:
        assert await state.bans() == [ban()]
        assert await state.lift_ban(MALLORY)
        assert not await state.lift_ban(MALLORY)
        assert await state.bans() == []


async def test_bans_of_made_up_keys_never_displace_one_that_own_work_showed(state, monkeypatch):
    monkeypatch.setattr(journal_verdicts, "BANS_LIMIT", 3)
    others = [ban(PeerId(f"key{n}"), own=False) for n in range(5)]
    assert await state.add_ban(ban())
    assert [await state.add_ban(each) for each in others] == [True, True, False, False, False]
    assert await state.add_ban(ban(PEER))  # own: takes the place of another's
    assert {b.peer for b in await state.bans() if b.own} == {MALLORY, PEER}
    assert len(await state.bans()) == 3
    late = ban(PeerId("late"), since=2500.0, until=3000.0, own=False)
    assert await state.add_ban(late)  # the others have lapsed
    assert await state.bans() == [late]


async def test_proofs_are_bounded_and_own_ones_stay(state, monkeypatch):
    monkeypatch.setattr(journal_verdicts, "PROOFS_LIMIT_BYTES", 300)

    async def add(name, *, own=False, size=100):
        proof = name.encode().ljust(size)
        blob_id = blob_id_of(proof)
        kept = await state.add_proof(
            blob_id, MALLORY, proof, [tensor_id(1)], "convicted", own=own, at=1.0
        )
        return blob_id, kept

    own, _ = await add("own", own=True)
    first, _ = await add("first")
    assert (await state.proof(first)).blobs == (tensor_id(1),)
    for number in range(6):
        await add(f"other {number}")
    assert await state.proof(first) is None
    assert (await state.proof(own)).own
    assert sum(len(each.proof) for each in await state.proofs()) <= 300
    await add("own 2", own=True)
    await add("own 3", own=True)
    assert not (await add("no room"))[1]
    assert {each.own for each in await state.proofs()} == {True}


async def test_a_proof_that_is_judged_again_has_its_new_verdict_and_stays_own(state):
    blob_id = blob_id_of(b"proof")
    await state.add_proof(blob_id, MALLORY, b"proof", [], "undecided", own=True)
    await state.add_proof(blob_id, MALLORY, b"proof", [], "convicted")
    kept = await state.proof(blob_id)
    assert (kept.verdict, kept.own) == ("convicted", True)


# --- disputes ---


async def test_disputes_go_on_after_a_restart_and_end_once(tmp_path):
    path = tmp_path / "state.sqlite"
    async with open_state(path) as state:
        first = await state.add_dispute(b"first")
        second = await state.add_dispute(b"second")
        assert await state.keep_dispute(second, b"second, at level 3")
    async with open_state(path) as state:
        assert await state.open_disputes() == [
            (first, b"first"),
            (second, b"second, at level 3"),
        ]
        assert await state.close_dispute(first, "convicted")
        assert not await state.close_dispute(first, "withheld")
        assert not await state.keep_dispute(first, b"again")
        assert await dispute_outcomes(state) == {first: "convicted"}
        assert [number for number, _ in await state.open_disputes()] == [second]


async def test_disputes_are_bounded_open_ones_and_ended_ones(state, monkeypatch):
    monkeypatch.setattr(journal_verdicts, "DISPUTES_LIMIT", 3)
    monkeypatch.setattr(journal_verdicts, "CLOSED_DISPUTES_LIMIT", 2)
    numbers = [await state.add_dispute(b"%d" % n) for n in range(8)]
    assert [number for number, _ in await state.open_disputes()] == numbers[-3:]
    assert await dispute_outcomes(state) == dict.fromkeys(numbers[3:5], "displaced")
    await state.close_dispute(numbers[-1], "acquitted")
    assert await state.add_dispute(b"new") > numbers[-1]


# --- standing ---


async def test_standing_is_read_again_as_it_was(tmp_path):
    path = tmp_path / "state.sqlite"
    standing = ResultStanding()
    for deed in (Deed.CHECKED_GOOD, Deed.CHECKED_GOOD, Deed.VOTED_DOWN):
        standing.note(PEER, deed, 1e9, detail="unit 3 of job 0001")
    standing.note(MALLORY, Deed.CONVICTED, 1e9)
    async with open_state(path) as state:
        await state.save_standing([standing.row(peer) for peer in standing.peers()])
    async with open_state(path) as state:
        again = ResultStanding(await state.standing_rows())
        for peer in (PEER, MALLORY):
            assert again.of(peer, 1e9 + 5) == standing.of(peer, 1e9 + 5)
        await state.save_standing([], [PEER])
        assert [row.peer for row in await state.standing_rows()] == [MALLORY]


# --- ledger and acknowledgements ---


def row(peer=PEER, direction="given", units=1, price=2.0, at=10.0):
    return LedgerRow(peer, direction, units, units * price, 0.5 * units, 0, 0.0, at, at)


def unacknowledged(number, requester=PEER):
    receipt = tensor_id(number)
    return Unacknowledged(receipt, requester, tensor_id(0), (receipt,), 2.0, float(number))


def acknowledgement(number, requester=PEER):
    return KeptAcknowledgement(
        tensor_id(number), requester, b"award", b"envelope %d" % number, float(number)
    )


async def test_the_ledger_adds_up_and_both_directions_are_apart(tmp_path):
    path = tmp_path / "state.sqlite"
    async with open_state(path) as state:
        await state.add_acknowledged(Settled(rows=(row(), row(units=3, at=20.0))))
        await state.add_acknowledged(Settled(rows=(row(direction="taken", at=5.0),)))
    async with open_state(path) as state:
        given, taken = await state.ledger()
        assert (given.units, given.credits, given.since, given.at) == (4, 8.0, 10.0, 20.0)
        assert (taken.direction, taken.units) == ("taken", 1)


async def test_the_ledger_forgets_whoever_had_least_work(state, monkeypatch):
    monkeypatch.setattr(journal_ledger, "LEDGER_PEERS_LIMIT", 3)
    await state.add_acknowledged(Settled(rows=(row(units=50),)))
    for number in range(10):
        key = PeerId(f"key{number}")
        await state.add_acknowledged(Settled(rows=(row(key), row(key, "taken"))))
    kept = await state.ledger()
    assert PEER in {each.peer for each in kept}
    assert len({each.peer for each in kept}) == 3


async def test_what_is_not_acknowledged_survives_until_it_is(tmp_path):
    path = tmp_path / "state.sqlite"
    first, second = unacknowledged(1), unacknowledged(2)
    async with open_state(path) as state:
        await state.add_acknowledged(Settled(unacknowledged=(first, second)))
    async with open_state(path) as state:
        assert await state.unacknowledged() == [first, second]
        await state.add_acknowledged(
            Settled(settled=(first.id,), acknowledgements=(acknowledgement(1),))
        )
        assert await state.unacknowledged() == [second]
        assert await state.acknowledgements(PEER) == [acknowledgement(1)]
        assert await state.acknowledgements(MALLORY) == []


async def test_acknowledgements_are_bounded_for_each_peer_and_in_all(state, monkeypatch):
    monkeypatch.setattr(journal_ledger, "ACKNOWLEDGEMENTS_OF_PEER", 2)
    monkeypatch.setattr(journal_ledger, "ACKNOWLEDGEMENTS_LIMIT", 3)
    monkeypatch.setattr(journal_ledger, "UNACKNOWLEDGED_LIMIT", 2)
    for number in range(5):
        await state.add_acknowledged(
            Settled(
                unacknowledged=(unacknowledged(number),),
                acknowledgements=(acknowledgement(number),),
            )
        )
    assert [each.at for each in await state.acknowledgements()] == [3.0, 4.0]
    for number in range(10, 13):
        kept = acknowledgement(number, PeerId(f"key{number}"))
        await state.add_acknowledged(Settled(acknowledgements=(kept,)))
    assert [each.at for each in await state.acknowledgements()] == [10.0, 11.0, 12.0]
    assert [each.at for each in await state.unacknowledged()] == [3.0, 4.0]


async def test_receipts_of_one_provider_are_found_again(state):
    await with_units(state)
    ends = [done(make_unit(n)) for n in range(3)]
    await state.end_units(ends)
    provider = ends[0].unit.provider
    assert await state.receipts_from(provider, 2) == [ends[2].receipt, ends[1].receipt]
    assert await state.receipts_from(MALLORY, 9) == []
    assert len(await state.receipts_from(None, 9)) == 3


async def test_writes_of_many_tasks_at_once_are_all_there(state):
    await with_units(state, 40)
    async with trio.open_nursery() as nursery:
        for number in range(40):
            ended = msgspec.structs.replace(done(make_unit(number)), checks=(check(number),))
            nursery.start_soon(state.end_units, [ended])
            nursery.start_soon(state.add_ban, ban(PeerId(f"key{number}")))
            nursery.start_soon(state.add_acknowledged, Settled(rows=(row(),)))
    assert len(await state.checks(JOB)) == 40
    assert len(await state.bans()) == 40
    assert (await state.ledger())[0].units == 40
