"""A small daemon in memory to stand behind the local API.

What jobs really do is others' matter: it "runs" a job by adding 1 to every input, the last
unit first.
"""

import os
from contextlib import asynccontextmanager

import msgspec
import numpy as np
import trio
from onnx import TensorProto, helper

from shoal.compute.convert import convert
from shoal.compute.devices import Device, Inventory, Missing
from shoal.compute.errors import ProgramError
from shoal.compute.manifest import decode
from shoal.compute.tensor import from_blob, to_blob
from shoal.crypto.content import BlobHasher, BlobId, blob_id_of
from shoal.crypto.peer_id import PeerId
from shoal.node.causes import Cause, Explanation, Remedy
from shoal.node.conduct import Conduct
from shoal.node.errors import ConfigError, JobError, NetworkError, PeerError, StoreError
from shoal.node.ledger import Ledger, LedgerRow
from shoal.node.ledger_file import write_lines
from shoal.node.peer_views import (
    CallerView,
    ConductView,
    CutView,
    MisfitView,
    NoteView,
    PeerView,
    ProofView,
    StandingView,
)
from shoal.node.records import (
    Answer,
    Ban,
    Failure,
    Job,
    JobId,
    JobSpec,
    JobState,
    Unit,
    UnitState,
)
from shoal.node.result_standing import Deed
from shoal.node.settings_view import SettingView
from shoal.node.standings import Standings
from shoal.node.status_views import LogLevelView, OwnerView, ReloadView, StanceView, Status

PEER = PeerId("12D3KooWS4g1ygNaqQbqCrTRs5ENekL3NVAedaxoJDEHNRhQQT9M")
MISSING = BlobId("00" * 32)
PROOF = BlobId("11" * 32)
QUOTA_BYTES = 8 << 20
RELOADED = ReloadView(changed=("deny",), needs_restart=(), unchanged=20, warnings=("w",))

OTHER, THIRD = (PeerId("12D3KooW" + letter * 44) for letter in "BC")


class MemoryStore:
    """Blobs in a dict, within `QUOTA_BYTES`."""

    def __init__(self):
        self.blobs = {}
        self.unfinished = 0

    async def put(self, chunks):
        hasher, pieces, size_bytes = BlobHasher(), [], 0
        self.unfinished += 1
        try:
            async for piece in chunks:
                await trio.lowlevel.checkpoint()
                hasher.update(piece)
                pieces.append(piece)
                size_bytes += len(piece)
                if size_bytes > QUOTA_BYTES:
                    raise StoreError(
                        "the store is full", code="quota_exceeded", hint="raise it"
                    )
        finally:
            self.unfinished -= 1
        chunk_list = hasher.finish()
        self.blobs[chunk_list.blob_id] = b"".join(pieces)
        return chunk_list

    async def put_bytes(self, data):
        self.blobs[blob_id_of(data)] = bytes(data)
        return blob_id_of(data)

    def holds(self, blob_id):
        return blob_id in self.blobs

    def size_bytes(self, blob_id):
        if blob_id not in self.blobs:
            raise StoreError(f"blob {blob_id} is not held", code="blob_missing")
        return len(self.blobs[blob_id])

    async def get_bytes(self, blob_id):
        self.size_bytes(blob_id)
        return self.blobs[blob_id]

    async def read_chunks(self, blob_id):
        data = await self.get_bytes(blob_id)
        for at in range(0, len(data), 1 << 16):
            await trio.lowlevel.checkpoint()
            yield data[at : at + (1 << 16)]


class MemoryDaemon:
    """Enough of a daemon to stand behind the API; `finish` ends a held job."""

    def __init__(self):
        self.blobs = MemoryStore()
        self.known_jobs = {}
        self.known_units = {}
        self.changed = trio.Condition()
        self.hold = False
        self.bad_settings = False
        self.ended = None
        self.small = {}
        self.keeps_small = False
        self.lost = set()
        self.ending = {}
        self.writes = []
        self.changes = 0
        self.signed = None
        self.asked = []
        self.read = []

    def status(self):
        return Status(
            peer=PEER,
            version="0.1.0",
            protocol_version=1,
            pid=os.getpid(),
            home="/home",
            socket="/home/shoal.sock",
            addresses=("/ip4/127.0.0.1/tcp/4711",),
            uptime_s=1.0,
            peers_known=1,
            peers_linked=1,
            jobs_running=0,
            units_served=0,
            blob_bytes=0,
            blob_quota_bytes=QUOTA_BYTES,
        )

    def misfits(self):
        return [MisfitView(PEER, "speaks protocol 2: upgrade this node")]

    def settings(self):
        return (SettingView("listen", ["/ip4/127.0.0.1/tcp/4711"], "flag"),)

    def peers(self):
        return [
            PeerView(
                peer=PEER,
                agent="shoal/0.1.0",
                addresses=(),
                linked=True,
                allowed=False,
                rtt_s=0.001,
                devices=(),
                numeric_classes=("fp32",),
                advert_age_s=1.0,
                advert_expires_in_s=59.0,
                standing=StandingView(0.8, "gossiped too much", {"gossip_flood": 4}),
            )
        ]

    def cuts(self):
        return [CutView(PEER, since=10.0, until=130.0, why="sent nonsense")]

    def conducts(self):
        note = NoteView("no_right", "asked for a blob that it has no right to", 3, 10.0)
        return [ConductView(PEER, None, (note,))]

    def callers(self):
        return [CallerView("192.0.2.7", NoteView("unknown_caller", "called", 1000, 10.0))]

    def forgive(self, peer):
        if peer != PEER:
            raise PeerError("nothing is held against it", code="no_such_offender")
        self.forgiven = peer

    def standing(self, peer):
        standings = Standings(PEER, Conduct(PEER), clock=lambda: 1e9)
        standings.note(PeerId(peer), Deed.VOTED_DOWN, detail="unit 3 of job 0001")
        return standings.page(PeerId(peer))

    def ledger(self, peer):
        ledger = Ledger()
        for each in (OTHER, THIRD):
            ledger.add(LedgerRow(each, "given", 900, 900.0, 9.0, 3, 3.0, 1.0, 2.0))
        return ledger.page("those-who-serve", peer)

    async def export_ledger(self, peer):
        return write_lines(PEER, 1e9, [], [])

    def bans(self):
        return [Ban(PEER, PROOF, since=10.0, until=130.0, why="lied", own=True)]

    async def unban(self, peer):
        if peer != PEER:
            raise PeerError("it is not banned", code="not_banned")
        self.unbanned = peer

    def proofs(self):
        return [ProofView(PROOF, PEER, "lied", own=True, at=1.0, proof_bytes=7)]

    async def proof(self, proof_id):
        if proof_id != PROOF:
            raise PeerError("it is not kept", code="no_such_proof")
        return b"a proof"

    async def devices(self):
        cpu = Device(id="cpu", kind="cpu", name="A", memory_bytes=1, memory_free_bytes=1)
        return Inventory((cpu,), (Missing("amd", "absent", "none"),))

    async def convert_program(self, onnx, precision):
        program = await trio.to_thread.run_sync(convert, onnx)
        for blob in program.blobs.values():
            await self.blobs.put_bytes(blob)
        return program.program_id

    async def register_program(self, program):
        manifest = decode(await self.blobs.get_bytes(program))
        missing = [blob_id for blob_id in manifest.blob_ids if not self.blobs.holds(blob_id)]
        if missing:
            raise StoreError(f"missing: {', '.join(missing)}", code="blobs_missing")
        return manifest

    async def program(self, program):
        return decode(await self.blobs.get_bytes(program))

    async def submit(self, spec, units):
        if spec.id in self.known_jobs:
            return self.known_jobs[spec.id]
        job = Job(
            id=spec.id or JobId(f"{len(self.known_jobs):026}"),
            policy=spec.policy,
            program=spec.program,
            numeric_class=spec.numeric_class,
            label=spec.label,
            state=JobState.RUNNING,
            created_at=0.0,
            ended_at=None,
            units_total=0,
            units_done=0,
            units_failed=0,
            open=spec.open,
        )
        self.known_jobs[job.id] = job
        self.known_units[job.id] = []
        self.ending[job.id] = []
        await self._add(job.id, units)
        if not self.hold:
            await self.finish(job.id)
        return self.known_jobs[job.id]

    async def _add(self, job_id, units):
        known = self.known_units[job_id]
        for unit in units:
            if "z" in unit:
                raise ProgramError(f"unit {len(known)}: there is no input z", code="no_input")
            inputs = {
                name: await self.blobs.put_bytes(given) if isinstance(given, bytes) else given
                for name, given in unit.items()
            }
            known.append(Unit(job_id, len(known), UnitState.QUEUED, inputs))
        self.writes.append(len(units))
        await self.change(job_id, units_total=len(known))

    async def add_units(self, job_id, units, at):
        job = await self.job(job_id)
        if not job.open or job.state.final:
            raise JobError("no more units", code="job_sealed")
        if at not in {None, job.units_total}:
            raise JobError(f"the next is {job.units_total}", code="wrong_place")
        await self._add(job_id, units)
        if not self.hold:
            await self.finish(job_id)
        return self.known_jobs[job_id]

    async def seal(self, job_id):
        await self.job(job_id)
        await self.change(job_id, open=False)
        if not self.hold:
            await self.finish(job_id)
        return self.known_jobs[job_id]

    async def results(self, job_id, after, limit, order):
        self.asked.append((after, order))
        ended = [unit for unit in self.known_units[job_id] if unit.outputs or unit.failure]
        if order == "ended":
            order = self.ending[job_id][after + 1 : after + 1 + limit]
            return [self.known_units[job_id][index] for index in order], after + len(order)
        found = [unit for unit in ended if unit.index > after][:limit]
        return found, found[-1].index if found else after

    async def note_read(self, job_id, until, order):
        self.read.append((until, order))

    async def small_tensors(self, ids):
        return {i: self.small[i] for i in ids if i in self.small}

    async def bring_home(self, blob_id):
        if blob_id in self.lost:
            raise JobError("it was lost", code="computed_again", hint="ask again later")

    async def cancel_units(self, job_id, indices):
        await self.job(job_id)
        units = self.known_units[job_id]
        queued = [i for i in indices if i < len(units) and units[i].state is UnitState.QUEUED]
        for index in queued:
            units[index] = msgspec.structs.replace(units[index], state=UnitState.CANCELLED)
            self.ending[job_id].append(index)
        await self.change(job_id)
        return tuple(queued)

    async def again(self, job_id, indices, verify):
        job = await self.job(job_id)
        units = self.known_units[job_id]
        inputs = tuple(dict(units[index].inputs) for index in indices)
        spec = JobSpec(job.policy, job.program, inputs, label=verify)
        return await self.submit(spec, inputs)

    async def finish(self, job_id):
        job, units = self.known_jobs[job_id], self.known_units[job_id]
        failure = (
            Failure("nan", "NaN at node 17", "check the input") if job.label == "fail" else None
        )
        for unit in reversed(tuple(units)):
            if unit.state is not UnitState.QUEUED:
                continue
            self.ending[job_id].append(unit.index)
            array = from_blob(await self.blobs.get_bytes(unit.inputs["x"]))
            blob = to_blob(array + array.dtype.type(1))
            out = await self.blobs.put_bytes(blob)
            if self.keeps_small:
                self.small[out] = blob
            units[unit.index] = msgspec.structs.replace(
                unit,
                state=UnitState.FAILED if failure else UnitState.DONE,
                outputs=None if failure else {"dir/y": out},
                failure=failure,
                provider=PEER,
                receipt=self.signed,
            )
        await self.change(
            job_id,
            state=JobState.RUNNING
            if job.open
            else JobState.FAILED
            if failure
            else JobState.DONE,
            units_done=sum(unit.state is UnitState.DONE for unit in units),
            failure=failure,
            ended_at=1.0,
        )

    async def change(self, job_id, **fields):
        self.known_jobs[job_id] = msgspec.structs.replace(self.known_jobs[job_id], **fields)
        async with self.changed:
            self.changes += 1
            self.changed.notify_all()

    async def jobs(self, limit):
        return sorted(self.known_jobs.values(), key=lambda job: job.id, reverse=True)[:limit]

    async def job(self, job_id):
        if job_id not in self.known_jobs:
            raise JobError(f"there is no job {job_id}", code="no_such_job", hint="`shoal jobs`")
        return self.known_jobs[job_id]

    async def units(self, job_id, offset, limit):
        await self.job(job_id)
        return self.known_units[job_id][offset : offset + limit]

    @asynccontextmanager
    async def watch(self, job_id):
        send, receive = trio.open_memory_channel(100)

        async def tell():
            with send:
                last, seen = None, -1
                while last is None or not last.state.final:
                    async with self.changed:
                        while seen == self.changes:
                            await self.changed.wait()
                    last, seen = self.known_jobs[job_id], self.changes
                    await send.send(last)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            yield receive
            nursery.cancel_scope.cancel()

    async def cancel(self, job_id):
        await self.job(job_id)
        await self.change(job_id, state=JobState.CANCELLED)
        return self.known_jobs[job_id]

    async def forget(self, job_id, *, unfetched_too):
        job = await self.job(job_id)
        if not unfetched_too:
            raise JobError("1 of 1 results", code="results_unfetched", hint="fetch them")
        return self.known_jobs.pop(job.id)

    async def why(self, job_id, unit=None):
        answers = (Answer(JobId(job_id), PEER, 1.0, "busy"),)
        cause = Cause("busy", "One peer is busy", "wait", Remedy.WAIT, (PEER,))
        headline = "0 units have ended." if unit is None else f"Unit {unit} waits."
        return Explanation(await self.job(job_id), headline, (cause,), answers)

    async def receipts(self, job_id):
        await self.job(job_id)
        return [blob_id_of(b"envelope")]

    async def receipt(self, receipt_id):
        if receipt_id != blob_id_of(b"envelope"):
            raise JobError("there is no such receipt", code="no_such_receipt")
        return b"envelope"

    async def pause(self, device, for_s):
        if device not in {None, "cpu"}:
            raise ConfigError(f"no device {device}", code="no_such_device", hint="it has cpu")
        self.paused = (device, for_s)
        return owner_view(cause="paused")

    async def resume(self, device):
        self.paused = ("resumed", device)
        return owner_view()

    async def reload(self):
        if self.bad_settings:
            raise ConfigError("deny: no", code="bad_setting", hint="write it well")
        return RELOADED

    def log_level(self):
        return LogLevelView("info", "info", {})

    def set_log_level(self, level, module):
        return LogLevelView(level, "info", {} if module is None else {module: level})

    def end(self, *, now):
        self.ended = now

    def metrics(self):
        return b"# TYPE shoal_tasks gauge\nshoal_tasks 7.0\n"

    async def connect(self, address):
        if "p2p" not in address:
            raise NetworkError(f"{address} cannot be reached", code="dial_failed")
        return PEER


def owner_view(cause=None):
    stance = StanceView(device="cpu", peers=cause is None, own=True, cause=cause)
    return OwnerView(
        provide=True,
        serve="anyone",
        sandboxed=False,
        allowed=0,
        denied=0,
        min_price=0.0,
        cores=1,
        memory_bytes=1,
        stances=(stance,),
    )


def model_bytes(weight_elements=0):
    """y = x + 1 over a batch of rows of 4, with a weight of this size beside it."""
    nodes = [helper.make_node("Add", ["x", "one"], ["dir/y"])]
    initializers = [helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])]
    outputs = [helper.make_tensor_value_info("dir/y", TensorProto.FLOAT, ["n", 4])]
    if weight_elements:
        values = np.arange(weight_elements, dtype=np.float32)
        initializers.append(
            helper.make_tensor(
                "w", TensorProto.FLOAT, [weight_elements], values.tobytes(), raw=True
            )
        )
        nodes.append(helper.make_node("Identity", ["w"], ["z"]))
        outputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [weight_elements]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        outputs,
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    return model.SerializeToString()


def rows(count):
    return np.arange(count * 4, dtype=np.float32).reshape(count, 4)
