"""Units per second of the smallest units at a provider: one in a message, and 64.

The provider, its worker and its signatures, without a link: messages go in and out as
structs, and each answer is encoded once more, as for the wire. Beside it the same in this
process. What a second goes into is told in processor time, of the daemon's thread and of
the worker, which a busy machine changes less than the wall clock; and how long the
daemon's loop kept others waiting meanwhile.

    python tests/bench/batches.py [--units 2048] [--exact]
"""

from __future__ import annotations

import argparse
import logging
import resource
import secrets
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import structlog
import trio
from onnx import parser

from shoal.compute import manifest as manifests
from shoal.compute.convert import convert
from shoal.compute.executors.onnxruntime import OnnxRuntime
from shoal.compute.loading import load
from shoal.compute.supervisor import open_worker
from shoal.compute.tensor import from_blob, to_blob
from shoal.crypto import identity
from shoal.crypto.content import blob_id_of
from shoal.crypto.envelope import Statement
from shoal.node.bidding import LEASE_IDLE_S, Terms
from shoal.node.blob_transfer import Rights
from shoal.node.blobs import open_store
from shoal.node.control import open_control
from shoal.node.house import House, wall_ms
from shoal.node.network import open_network
from shoal.node.provider import open_provider
from shoal.node.state import open_state
from shoal.protocol.codec import encode
from shoal.protocol.limits import BATCH_UNITS_LIMIT, LEASE_UNITS_LIMIT
from shoal.protocol.messages import Response
from shoal.protocol.negotiation_messages import (
    AwardOffer,
    Call,
    Refusal,
    Release,
    UnitRefusal,
    UnitRequest,
    UnitResult,
    UnitsRequest,
    UnitsResult,
)
from shoal.protocol.statements import Award
from shoal.protocol.versions import OWN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from shoal.compute.convert import Program
    from shoal.node.provider import Provider

TARGET_PER_S = 1500
MESSAGES_OUT = 2
FRIEND = identity.generate()
MODEL = parser.parse_model(
    '<ir_version: 8, opset_import: ["" : 18]>g (float[n] x) => (float[n] y) { y = Add(x, x) }'
).SerializeToString()


@asynccontextmanager
async def open_house(home: Path, *, exact: bool) -> AsyncIterator[tuple[House, Provider]]:
    """A provider as in a daemon, with a friend that it never meets."""
    key = identity.generate()

    def terms() -> Terms:
        return Terms(
            device="cpu",
            executors={"fp32": "onnxruntime", "exact": "numba"},
            memory_bytes=1 << 32,
            providing=True,
            draining=False,
            own=key.peer_id,
            allowed={FRIEND.peer_id},
            leases=0,
            units_waiting=0,
        )

    async def reach(_peer: str) -> None:
        pass

    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        network = await enter(open_network(key, ["/ip4/127.0.0.1/tcp/0"]))
        worker = await enter(open_worker(threads=1))
        if exact:
            await worker.enable_exact()
        house = House(
            identity=key,
            network=network,
            control=await enter(open_control(network, "bench/1")),
            store=await enter(open_store(home / "blobs", 1 << 30)),
            rights=Rights(),
            journal=await enter(open_state(home / "state.sqlite")),
            worker=worker,
            reach=reach,
            terms=terms,
        )
        yield house, await enter(open_provider(house))


async def lease_of(house: House, provider: Provider, program: Program) -> Call:
    """What the friend gets by a call and an award."""
    for blob in program.blobs.values():
        await house.store.put_bytes(blob)
    house.known.note(FRIEND.peer_id, program.blobs)
    precision = manifests.decode(program.blobs[program.program_id]).precision
    call = Call(
        call=secrets.token_hex(16),
        program=program.program_id,
        numeric_class="exact" if precision else "fp32",
        precision=precision,
        units=LEASE_UNITS_LIMIT,
        input_bytes=1000,
        program_bytes=1000,
        time_limit_s=60.0,
        memory_bytes=1 << 28,
    )
    bid = await provider.answer(FRIEND.peer_id, call)
    award = Award(
        protocol=OWN,
        call=call.call,
        nonce=bid.nonce,
        requester=FRIEND.peer_id,
        provider=house.peer_id,
        program=call.program,
        numeric_class=call.numeric_class,
        precision=call.precision,
        units_max=bid.units_max,
        price=bid.price,
        idle_s=LEASE_IDLE_S,
        issued_at_ms=wall_ms(),
    )
    envelope = FRIEND.sign(Statement.AWARD, encode(award))
    await provider.answer(FRIEND.peer_id, AwardOffer(call=call.call, award=envelope))
    return call


def messages_of(call: Call, units: int, each: int) -> Iterator[UnitRequest | UnitsRequest]:
    """That many units, so many in a message; none is like another."""
    for first in range(0, units, each):
        some = []
        for number in range(first, first + each):
            x = to_blob(np.full(16, number, np.float32))
            inputs = (("x", blob_id_of(x)),)
            some.append(UnitRequest(call.call, f"{call.call}/{number}", inputs, (x,)))
        yield some[0] if each == 1 else UnitsRequest(call.call, tuple(some))


def processor_s(pid: int | None = None) -> float:
    """Processor time of a process so far; this one's by default."""
    if pid is None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def measure(house: House, provider: Provider, program: Program, units: int, each: int):
    """Print one line of the table."""
    call = await lease_of(house, provider, program)
    messages = messages_of(call, units + each, each)
    await provider.answer(FRIEND.peer_id, next(messages))  # the program is prepared
    prepared = list(messages)
    waiting = iter(prepared)
    late_s: list[float] = []

    async def feed() -> None:
        for message in waiting:
            answer = await provider.answer(FRIEND.peer_id, message)
            assert ran(answer), answer
            encode(Response(id=1, body=answer))

    async def others() -> None:
        while True:
            before = time.perf_counter()
            await trio.sleep(0.005)
            late_s.append(time.perf_counter() - before - 0.005)

    pid = house.worker.pids[FRIEND.peer_id]
    here_s, there_s, began_s = processor_s(), processor_s(pid), time.perf_counter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        async with trio.open_nursery() as feeders:
            for _ in range(MESSAGES_OUT):
                feeders.start_soon(feed)
        nursery.cancel_scope.cancel()
    took_s = time.perf_counter() - began_s
    await provider.answer(FRIEND.peer_id, Release(call=call.call))
    late_s.sort()
    print(
        f"  {each:3d} in a message   {units / took_s:9.0f}  {1e6 * took_s / units:9.0f} "
        f"{1e6 * (processor_s() - here_s) / units:9.0f} "
        f"{1e6 * (processor_s(pid) - there_s) / units:9.0f} "
        f"{1e3 * late_s[len(late_s) // 2]:9.1f} {1e3 * late_s[-1]:7.1f}"
        + (f"   target >= {TARGET_PER_S} on a quiet machine" if each > 1 else "")
    )


def ran(answer: UnitResult | UnitsResult | Refusal) -> bool:
    """Whether no unit of it was refused."""
    answers = answer.answers if isinstance(answer, UnitsResult) else (answer,)
    return not any(isinstance(one, Refusal | UnitRefusal) for one in answers)


def in_process_us(calls: int) -> float:
    """The same from blob to blob in this process, and nothing signed."""
    program = convert(MODEL)
    executor = OnnxRuntime(threads=1)
    prepared = executor.prepare(load(program.program_id, program.blobs))
    blobs = [to_blob(np.full(16, number, np.float32)) for number in range(calls)]
    before_s = processor_s()
    for blob in blobs:
        to_blob(executor.run(prepared, {"x": from_blob(blob)})["y"])
    return 1e6 * (processor_s() - before_s) / calls


def signature_us(calls: int) -> float:
    """One signature over as many bytes as a receipt has."""
    before_s = processor_s()
    for _ in range(calls):
        FRIEND.sign(Statement.RECEIPT, bytes(700))
    return 1e6 * (processor_s() - before_s) / calls


async def main(units: int, *, exact: bool) -> None:
    """Print the table."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    program = convert(MODEL, "x20" if exact else None)
    print(f"in this process: {in_process_us(2000):.0f} us of processor time a unit (fp32)")
    print(f"one signature:   {signature_us(2000):.0f} us")
    print("a provider and its worker: microseconds of a unit, by the clock and of processor")
    print("time; how late the daemon's loop was for others, in ms")
    print("                      units/s   by clock    daemon    worker  late p50     max")
    with tempfile.TemporaryDirectory() as home:
        async with open_house(Path(home), exact=exact) as (house, provider):
            for each, count in ((1, units // 8), (BATCH_UNITS_LIMIT, units)):
                await measure(house, provider, program, count, each)


if __name__ == "__main__":
    parser_ = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser_.add_argument("--units", type=int, default=2048)
    parser_.add_argument("--exact", action="store_true")
    arguments = parser_.parse_args()
    trio.run(lambda: main(arguments.units, exact=arguments.exact))
