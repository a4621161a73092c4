"""The state on a real disk: what a restart, a kill, a bad file and a full disk leave."""

import os
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import trio
from challenge_samples import ALICE, MALLORY, WALL_MS, signed_proof
from journal_samples import end_one
from trio.testing import wait_all_tasks_blocked

from shoal.compute.capability import VERSION, Measurement
from shoal.crypto.content import BlobId, blob_id_of
from shoal.crypto.peer_id import PeerId
from shoal.node import capability_records, remembered_peers
from shoal.node.errors import JobError, StoreError
from shoal.node.owner import Pause
from shoal.node.proofs import ProofBook, checked
from shoal.node.records import (
    Answer,
    Ended,
    Failure,
    Job,
    JobId,
    JobSpec,
    JobState,
    Policy,
    Unit,
    UnitState,
)
from shoal.node.remembered_peers import AWAY_S, PEERS_LIMIT, RememberedPeer, remembered
from shoal.node.state import ANSWERS_LIMIT, open_state
from shoal.node.state_file import open_database
from shoal.protocol.device_offers import ClassRate

PROGRAM = blob_id_of(b"program")
PEER = PeerId("12D3KooWpeer")


def make_job(name="0001", units=3, state=JobState.RUNNING):
    spec = JobSpec(
        policy=Policy.MAP,
        program=PROGRAM,
        units=tuple({"x": blob_id_of(n.to_bytes(4))} for n in range(units)),
        label="évaluation",
    )
    job = Job(
        id=JobId(name),
        policy=spec.policy,
        program=PROGRAM,
        numeric_class=spec.numeric_class,
        label=spec.label,
        state=state,
        created_at=1000.5,
        ended_at=None,
        units_total=units,
        units_done=0,
        units_failed=0,
    )
    rows = [
        Unit(job=job.id, index=n, state=UnitState.QUEUED, inputs=inputs)
        for n, inputs in enumerate(spec.units)
    ]
    return job, spec, rows


def ended(unit, state=UnitState.DONE, receipt=None, **changes):
    if receipt is not None:
        changes["receipt"] = blob_id_of(receipt)
    return msgspec.structs.replace(unit, state=state, **changes)


def at(unit, place):
    """A unit that has ended, as the journal gives it: the ``place``-th of its job to end."""
    return msgspec.structs.replace(unit, ended=place)


@pytest.fixture
async def state(tmp_path):
    async with open_state(tmp_path / "state.sqlite") as state:
        yield state


async def test_a_restart_finds_jobs_units_receipts_answers_and_peers_as_they_were(tmp_path):
    job, spec, units = make_job()
    done = ended(
        units[0],
        receipt=b"signed",
        outputs={"y": blob_id_of(b"y")},
        provider=PEER,
        attempts=2,
        seconds=1.25,
    )
    failed = ended(units[1], UnitState.FAILED, failure=Failure("nan", "NaN at node 17", "look"))
    answer = Answer(job.id, PEER, 1001.0, "busy", "2 units run")
    async with open_state(tmp_path / "state.sqlite") as state:
        await state.add_job(job, spec, units)
        assert await end_one(state, done, b"signed")
        assert await end_one(state, failed, None)
        await state.add_answer(answer)
        await state.remember_peer(PEER, ("/ip4/127.0.0.1/tcp/1",), 1002.0)
        sequence = await state.next_sequence(5000)
    async with open_state(tmp_path / "state.sqlite") as state:
        now = msgspec.structs.replace(job, units_done=1, units_failed=1)
        assert await state.job(job.id) == now
        assert await state.running_jobs() == [now]
        assert await state.spec(job.id) == msgspec.structs.replace(spec, units=())
        first, second = (at(unit, place) for place, unit in enumerate((done, failed)))
        assert await state.units(job.id, 0, 10) == [first, second, units[2]]
        assert await state.open_units(job.id) == [units[2]]
        assert await state.receipt_ids(job.id) == [done.receipt]
        assert await state.receipt(done.receipt) == b"signed"
        assert await state.answers(job.id) == [answer]
        (known,) = await remembered(state, 5)
        assert known == RememberedPeer(PEER, ("/ip4/127.0.0.1/tcp/1",), 1002.0)
        assert await state.next_sequence(5000) == sequence + 1


async def test_a_unit_that_ended_stays_ended_and_is_counted_once(state):
    job, spec, units = make_job()
    await state.add_job(job, spec, units)
    first = ended(units[0], receipt=b"first")
    assert await end_one(state, first, b"first")
    assert not await end_one(state, ended(units[0], receipt=b"second"), b"second")
    assert not await end_one(state, ended(units[0], UnitState.FAILED), None)
    assert await state.units(job.id, 0, 1) == [at(first, 0)]
    assert await state.receipt_ids(job.id) == [first.receipt]
    now = await state.job(job.id)
    assert (now.units_done, now.units_failed) == (1, 0)


async def test_many_ends_at_once_are_counted_once_each(state):
    job, spec, units = make_job(units=20)
    await state.add_job(job, spec, units)
    won = []

    async def end(unit):
        won.append(await end_one(state, ended(unit), None))

    async with trio.open_nursery() as nursery:
        for unit in units * 3:
            nursery.start_soon(end, unit)
    assert won.count(True) == 20
    assert (await state.job(job.id)).units_done == 20


async def test_a_job_that_ends_cancels_its_open_units_and_never_changes_again(state):
    job, spec, units = make_job()
    await state.add_job(job, spec, units)
    await end_one(state, ended(units[0]), None)
    failure = Failure("no_quorum", "nobody agreed")
    now = await state.end_job(job.id, JobState.FAILED, 2000.0, failure)
    assert (now.state, now.ended_at, now.failure) == (JobState.FAILED, 2000.0, failure)
    assert (now.units_done, now.units_failed) == (1, 0)
    assert [u.state for u in await state.units(job.id, 1, 9)] == [UnitState.CANCELLED] * 2
    assert not await end_one(state, ended(units[1]), None)
    assert await state.end_job(job.id, JobState.DONE, 3000.0) == now
    assert await state.running_jobs() == []


async def test_ids_that_begin_alike_are_kept_apart(state):
    job, spec, (unit, other, _) = make_job()
    tensors = {BlobId("a" * 12 + digit * 52): digit.encode() for digit in "bc"}
    await state.add_job(job, spec, [unit, other], tensors)
    receipts = [BlobId("d" * 12 + digit * 52) for digit in "ef"]
    ends = [
        Ended(
            msgspec.structs.replace(
                of, state=UnitState.DONE, outputs={"y": tensor}, receipt=receipt
            ),
            receipt.encode(),
        )
        for of, tensor, receipt in zip((unit, other), tensors, receipts, strict=True)
    ]
    await state.end_units(ends)
    for tensor, data in tensors.items():
        assert await state.tensors([tensor]) == {tensor: data}
        assert await state.tensor_sizes([tensor]) == {tensor: 1}
    for receipt in receipts:
        assert await state.receipt(receipt) == receipt.encode()


async def test_no_id_is_looked_for_in_all_rows(state):
    """Or each unit of a large job would cost as much as the job has units."""
    job, spec, units = make_job()
    tensor = blob_id_of(b"y")
    statements = []
    state._database.set_trace_callback(statements.append)
    await state.add_job(job, spec, units, {tensor: b"y"})
    await state.end_units([Ended(ended(units[0], receipt=b"r"), b"r", {tensor: b"y"})])
    await state.tensors([tensor])
    await state.tensor_sizes([tensor])
    await state.receipt(blob_id_of(b"r"))
    state._database.set_trace_callback(None)
    looked = [text for text in statements if "substr(id" in text]
    assert len(looked) >= 5
    for text in looked:
        plan = state._database.execute(f"EXPLAIN QUERY PLAN {text}").fetchall()
        steps = [row["detail"] for row in plan]
        assert any("_by_id (<expr>=?)" in step for step in steps), (text, steps)
        assert not any(step.startswith("SCAN ") and "CONSTANT" not in step for step in steps)


@pytest.mark.parametrize("order", ["given", "ended"])
async def test_what_was_read_is_noted_in_either_order_by_an_index_of_its_own(state, order):
    job, spec, units = make_job()
    await state.add_job(job, spec, units)
    await state.end_units([Ended(ended(units[index])) for index in (2, 0, 1)])
    statements = []
    state._database.set_trace_callback(statements.append)
    await state.note_read(job.id, 1, order)
    state._database.set_trace_callback(None)
    (noted,) = [text for text in statements if text.startswith("UPDATE units")]
    (step,) = state._database.execute(f"EXPLAIN QUERY PLAN {noted}").fetchall()
    assert "(job=? AND " in step["detail"]
    rows = state._database.execute("SELECT place FROM units WHERE fetched ORDER BY place")
    assert [row["place"] for row in rows] == {"given": [0, 1], "ended": [0, 2]}[order]


async def test_jobs_are_listed_newest_first_and_units_by_page(state):
    for name in ("0001", "0003", "0002"):
        job, spec, units = make_job(name, units=5)
        await state.add_job(job, spec, units)
    assert [job.id for job in await state.jobs(2)] == ["0003", "0002"]
    assert [job.id for job in await state.running_jobs()] == ["0001", "0002", "0003"]
    assert [unit.index for unit in await state.units(JobId("0002"), 3, 9)] == [3, 4]


async def test_what_is_not_there_is_named_with_the_next_step(state):
    missing = JobId("nowhere")
    for asked in (
        state.job(missing),
        state.spec(missing),
        state.end_job(missing, JobState.CANCELLED, 0.0),
    ):
        with pytest.raises(JobError, match="nowhere") as caught:
            await asked
        assert caught.value.code == "no_such_job"
        assert caught.value.hint
    with pytest.raises(JobError) as caught:
        await state.receipt(blob_id_of(b""))
    assert caught.value.code == "no_such_receipt"


async def test_the_newest_answers_of_each_job_are_kept(state):
    for name in ("0001", "0002"):
        await state.add_job(*make_job(name))
    other = Answer(JobId("0002"), PEER, 0.0, "busy")
    await state.add_answer(other)
    for number in range(ANSWERS_LIMIT + 3):
        await state.add_answer(Answer(JobId("0001"), PEER, float(number), "bid"))
    kept = await state.answers(JobId("0001"))
    assert [answer.at for answer in kept] == [float(n + 3) for n in range(ANSWERS_LIMIT)]
    assert await state.answers(JobId("0002")) == [other]


async def test_the_peers_seen_last_are_remembered(state):
    for number in range(PEERS_LIMIT + 2):
        await state.remember_peer(PeerId(f"peer {number}"), ("/old",), float(number))
    await state.remember_peer(PeerId("peer 5"), ("/new",), 9999.0)
    newest, *others = await remembered(state, PEERS_LIMIT * 2)
    assert (newest.peer, newest.addresses) == ("peer 5", ("/new",))
    assert len(others) == PEERS_LIMIT - 1
    assert others[-1].peer == "peer 2"


async def test_what_is_known_of_a_peer_is_kept_where_less_is_known_now(state):
    await remembered_peers.keep(state, [RememberedPeer(PEER, ("/a",), 10.0, "/worked")])
    await state.remember_peer(PEER, (), 20.0)
    assert await remembered(state, 5) == [RememberedPeer(PEER, ("/a",), 20.0, "/worked")]


async def test_a_peer_counts_once_more_when_it_comes_back_and_not_when_it_flaps(state):
    for seen_at_s in (0.0, 1.0, 2.0, 2.0 + AWAY_S, 3.0 + AWAY_S):
        await state.remember_peer(PEER, ("/a",), seen_at_s)
    (known,) = await remembered(state, 5)
    assert known.met == 2


async def test_peers_of_another_network_are_forgotten_and_of_the_same_are_kept(state):
    changes, counts = [], []
    for network in (0, 7, 7, 9, 0):
        changes.append(await state.enter_network(network))
        counts.append(len(await remembered(state, 5)))
        await state.remember_peer(PEER, ("/ip4/127.0.0.1/tcp/1",), 1.0)
    assert changes == [False, True, False, True, True]
    assert counts == [0, 0, 1, 0, 0]
    assert await state.next_sequence(5) == 5


async def test_pauses_outlast_a_restart_and_go_when_they_are_resumed(tmp_path):
    path, pauses = tmp_path / "state.sqlite", [Pause("", 12.5), Pause("gpu0")]
    async with open_state(path) as state:
        await state.keep_pauses([Pause("cpu")])
        await state.keep_pauses(pauses)
    async with open_state(path) as state:
        assert sorted(await state.pauses(), key=lambda pause: pause.device) == pauses
        await state.keep_pauses([])
        assert await state.pauses() == []


async def test_each_device_s_newest_figures_outlast_a_restart_and_older_kinds_are_no_trouble(
    tmp_path,
):
    path = tmp_path / "state.sqlite"
    figures = [
        Measurement(device, "key", 1.0, (ClassRate("low", None, 1e14),), version=VERSION)
        for device in ("cpu", "gpu0")
    ]
    rows = [
        ("gpu1", '{"device":"gpu1","key":"k","measured_at":1.0,"rates":[]}'),
        ("gpu2", '{"device":"gpu2"}'),
    ]
    async with open_state(path) as state:
        for each in (msgspec.structs.replace(figures[1], key="older"), *figures):
            await capability_records.keep_measurement(state, each)
        await state.transact(
            lambda database: database.executemany(
                "INSERT INTO measurements (device, figures) VALUES (?, ?)", rows
            )
        )
    async with open_state(path) as state:
        *kept, old = await capability_records.kept_measurements(state)
    assert kept == figures
    assert (old.device, old.version) == ("gpu1", 1)


async def test_on_disk_too_no_strangers_proof_displaces_one_that_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(capability_records, "BOOK_LIMIT", 2)
    counted = {ALICE.peer_id}
    async with open_state(tmp_path / "state.sqlite") as state:
        proofs = [checked(signed_proof(ALICE))]
        for number in range(3):
            at_ms = WALL_MS + 1 + number
            proofs.append(
                checked(signed_proof(MALLORY, device=f"gpu{number}", issued_at_ms=at_ms))
            )
        for proof in proofs:
            await capability_records.keep_proof(state, proof, counted)
        assert await capability_records.kept_proofs(state) == [proofs[0], proofs[-1]]


async def test_a_proof_that_cannot_be_kept_counts_all_the_same():
    class FullDisk:
        async def transact(self, _):
            raise StoreError("the disk is full")

    book, proof = ProofBook(ALICE.peer_id, frozenset()), checked(signed_proof(ALICE))
    await capability_records.take_up(FullDisk(), book, proof)
    assert book.about(proof.said.prover) == [proof]


async def test_sequences_grow_whatever_the_clock_does(state):
    given = [await state.next_sequence(wall_ms) for wall_ms in (1000, 1000, 500, 7000, 0)]
    assert given == [1000, 1001, 1002, 7000, 7001]


async def test_a_call_cancelled_while_it_writes_writes_all_of_it(state):
    job, spec, units = make_job(units=2000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(state.add_job, job, spec, units)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert len(await state.open_units(job.id)) == 2000


async def test_a_kill_in_the_middle_leaves_whole_changes_only(tmp_path):
    path = tmp_path / "state.sqlite"
    writer = await trio.lowlevel.open_process(
        [sys.executable, "-c", _ENDLESS_WRITER, str(path)], stdout=subprocess.PIPE
    )
    said = b""
    async for some in writer.stdout:
        said += some
        if said.count(b"\n") >= 300:
            writer.kill()
    await writer.wait()
    told = said.decode().splitlines()
    async with open_state(path) as state:
        done = 0
        for job in await state.jobs(10_000):
            units = await state.units(job.id, 0, 10)
            ended_units = [unit for unit in units if unit.state is UnitState.DONE]
            assert len(units) == job.units_total == 4
            assert job.units_done == len(ended_units)
            assert await state.receipt_ids(job.id) == [unit.receipt for unit in ended_units]
            done += len(ended_units)
        assert done - len(told) in {0, 1}  # it was told after it was written
        for receipt_id in told:
            assert blob_id_of(await state.receipt(receipt_id)) == receipt_id


_ENDLESS_WRITER = """
import os, sys, trio
from pathlib import Path
import msgspec
from shoal.crypto.content import blob_id_of
from shoal.node.records import Ended, Job, JobSpec, JobState, Policy, Unit, UnitState
from shoal.node.state import open_state

async def main():
    program = blob_id_of(b"program")
    async with open_state(Path(sys.argv[1])) as state:
        for number in range(10**9):
            spec = JobSpec(Policy.MAP, program, ({},) * 4)
            job = Job(f"{number:09}", Policy.MAP, program, "fp32", "", JobState.RUNNING,
                      0.0, None, 4, 0, 0)
            units = [Unit(job.id, n, UnitState.QUEUED, {}) for n in range(4)]
            await state.add_job(job, spec, units)
            for unit in units:
                receipt = os.urandom(300)
                receipt_id = blob_id_of(receipt)
                done = msgspec.structs.replace(unit, state=UnitState.DONE, receipt=receipt_id)
                assert (await state.end_units([Ended(done, receipt)])).new[0]
                print(receipt_id, flush=True)

trio.run(main)
"""


async def refused(path):
    with pytest.raises(StoreError, match=path.name) as caught:
        async with open_state(path):
            pytest.fail("it was opened")
    assert caught.value.hint
    return caught.value.code


async def test_a_state_of_a_newer_version_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "state.sqlite"
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    before = path.read_bytes()
    assert await refused(path) == "state_too_new"
    assert path.read_bytes() == before


async def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "state.sqlite"
    path.write_bytes(b"once upon a time " * 100)
    assert await refused(path) == "state_damaged"
    assert path.read_bytes() == b"once upon a time " * 100


async def test_damage_in_the_middle_of_the_file_is_said(tmp_path):
    path = tmp_path / "state.sqlite"
    job, spec, units = make_job(units=3000)
    async with open_state(path) as state:
        await state.add_job(job, spec, units)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(os.urandom(100_000))
    async with open_state(path) as state:
        with pytest.raises(StoreError) as caught:
            await state.units(job.id, 0, 3000)
        assert caught.value.code == "state_damaged"


async def test_a_directory_in_its_place_or_none_around_it_is_said(tmp_path):
    (tmp_path / "state.sqlite").mkdir()
    assert await refused(tmp_path / "state.sqlite") == "state_unusable"
    assert await refused(tmp_path / "nowhere" / "state.sqlite") == "state_unusable"


@contextmanager
def read_only_home(*, used_before):
    """A home that this process cannot write to; root has to become someone else for that."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own are closed to other users
        home = Path(name)
        if used_before:
            open_database(home / "state.sqlite").close()
        home.chmod(0o555)
        was = os.geteuid()
        if was == 0:
            os.seteuid(65534)
        try:
            yield home
        finally:
            os.seteuid(was)
            home.chmod(0o755)


@pytest.mark.parametrize("used_before", [False, True])
async def test_a_read_only_home_is_said_before_any_work(used_before):
    with read_only_home(used_before=used_before) as home:
        assert await refused(home / "state.sqlite") == "state_unusable"


async def test_a_full_disk_is_said_and_changes_nothing(tmp_path):
    job, spec, units = make_job(units=3000)
    async with open_state(tmp_path / "state.sqlite") as state:
        before = state._database.execute("PRAGMA max_page_count = 60").fetchone()
        with pytest.raises(StoreError) as caught:
            await state.add_job(job, spec, units)
        assert caught.value.code == "disk_full"
        assert caught.value.hint
        assert await state.jobs(1) == []
        state._database.execute(f"PRAGMA max_page_count = {before[0] * 1000}")
        await state.add_job(job, spec, units)
        assert len(await state.open_units(job.id)) == 3000
