"""What a provider holds is used for who has it, and for nobody who knows its id alone.

A real daemon provides; Alice, Bob and Mallory are requesters in the test's own
process, all three on its allow list.
"""

import os
import secrets
from contextlib import AsyncExitStack

import models
import numpy as np
import pytest
import trio
from attacker import make_award, make_call
from requester import LIMIT_S, open_requester

from shoal.compute.convert import convert
from shoal.compute.tensor import to_blob
from shoal.crypto import identity
from shoal.crypto.content import blob_id_of, chunk_list_of
from shoal.node.demo.swarm import Swarm
from shoal.node.frames import receive_frame, send_frame
from shoal.protocol.blob_messages import (
    BlobFound,
    BlobNext,
    BlobProof,
    BlobProve,
    BlobRequest,
)
from shoal.protocol.negotiation_messages import Reason, Refusal, UnitRequest

MIB = 1 << 20
KIB = 1 << 10
NAMES = ("alice", "bob", "mallory")
IDENTITY = convert(models.identity())
DENSE = convert(models.dense())
SMALL = to_blob(models.rows(3))


@pytest.fixture(scope="module")
def keys():
    return {name: identity.generate() for name in NAMES}


@pytest.fixture(scope="module")
def swarm(keys):
    flags = [f"--allow={key.peer_id}" for key in keys.values()]
    with Swarm(1, settings=flags) as swarm:
        swarm.start_all()
        yield swarm


@pytest.fixture
async def people(swarm, keys, tmp_path):
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                open_requester(tmp_path / name, keys[name], swarm.nodes[0])
            )
            for name in NAMES
        ]


def a_large_tensor():
    """2 MiB and a little, unlike any other."""
    random = np.random.default_rng(secrets.randbits(64))
    return to_blob(random.normal(size=(MIB // 8, models.WIDTH)).astype(np.float32))


def a_large_model():
    """A model with 4 MiB of weights, unlike any other, and an input for it."""
    random = np.random.default_rng(secrets.randbits(64))
    model = models.gather(random.normal(size=MIB).astype(np.float32))
    return convert(model), to_blob(np.array([0, 5, 7]))


# --- who has it --------------------------------------------------------------------------


async def test_the_same_job_again_sends_no_bytes_and_after_a_restart_a_proof(people, swarm):
    alice, *_ = people
    tensor = a_large_tensor()
    output, sent = await alice.run(IDENTITY, tensor)
    assert output == blob_id_of(tensor)
    assert sent > len(tensor)
    _, sent = await alice.run(IDENTITY, tensor)
    assert sent == 0
    (provider,) = swarm.nodes
    await trio.to_thread.run_sync(restart, swarm, provider)
    await alice.connect()
    _, sent = await alice.run(IDENTITY, tensor)
    assert 0 < sent < 8 * KIB


def restart(swarm, node):
    node.kill()
    swarm.start(node)
    swarm.wait_ready(node)


async def test_two_units_of_one_requester_that_need_the_same_blob_at_once_want_it_once(people):
    alice, *_ = people
    program, x = a_large_model()
    _, sent = await alice.run(program, x, units=4)
    assert sent < 1.5 * sum(map(len, program.blobs.values()))


async def test_an_output_of_an_earlier_unit_is_an_input_that_is_not_sent(people):
    alice, *_ = people
    output, _ = await alice.run(DENSE, a_large_tensor())
    again, sent = await alice.run(DENSE, await alice.house.store.get_bytes(output))
    assert again != output
    assert sent == 0


async def test_who_has_the_same_model_proves_it_and_is_not_asked_to_send_it(people):
    alice, bob, mallory = people
    program, x = a_large_model()
    size_bytes = sum(map(len, program.blobs.values()))
    unknown = await bob.price_of(blob_id_of(os.urandom(9)), size_bytes)
    mine, sent = await alice.run(program, x)
    assert sent > size_bytes
    assert await bob.price_of(program.program_id, size_bytes) == unknown
    same, sent = await bob.run(program, x)
    assert same == mine
    assert 0 < sent < 16 * KIB
    assert await bob.price_of(program.program_id, size_bytes) < unknown
    assert await mallory.price_of(program.program_id, size_bytes) == unknown


# --- who only knows its id ------------------------------------------------------------------


async def ask(mallory, program_id, x_id, *blobs):
    """Lease and hand over one unit, whatever its requester has; gives the answer."""
    request, provider = mallory.house.control.request, mallory.provider.peer
    call = make_call(program_id, secrets.token_hex(16))
    bid = await request(provider, call, LIMIT_S)
    await request(provider, make_award(mallory.house.identity, provider, call, bid), LIMIT_S)
    unit = UnitRequest(call=call.call, unit="u", inputs=(("x", x_id),), blobs=blobs)
    return await request(provider, unit, LIMIT_S)


def grant_all(mallory, *blob_ids):
    """Mallory's own node serves whatever of this it has."""
    mallory.house.rights.grant("all", mallory.provider.peer, [*IDENTITY.blobs, *blob_ids])


def without_ids(answer, blob_id):
    assert isinstance(answer, Refusal), answer
    assert answer.reason is Reason.DATA_MISSING
    return answer.detail.replace(blob_id[:16], "ID").replace(blob_id, "ID")


@pytest.mark.parametrize("grants", [False, True])
async def test_a_stranger_gets_no_result_over_anothers_tensor_and_no_other_error_than_for_none(
    people, grants
):
    alice, _, mallory = people
    tensor = a_large_tensor()
    secret, nothing = blob_id_of(tensor), blob_id_of(os.urandom(9))
    await alice.run(IDENTITY, tensor)
    await mallory.run(IDENTITY, SMALL)  # the program is hers
    grant_all(mallory, *((secret, nothing) if grants else ()))
    held = await ask(mallory, IDENTITY.program_id, secret)
    not_held = await ask(mallory, IDENTITY.program_id, nothing)
    assert without_ids(held, secret) == without_ids(not_held, nothing)
    assert "does not serve" in held.detail


async def test_a_stranger_gets_no_result_of_anothers_program(people):
    alice, _, mallory = people
    program, x = a_large_model()
    await alice.run(program, x)
    nothing = blob_id_of(os.urandom(9))
    held = await ask(mallory, program.program_id, blob_id_of(x), x)
    not_held = await ask(mallory, nothing, blob_id_of(x), x)
    assert without_ids(held, program.program_id) == without_ids(not_held, nothing)


async def test_not_even_the_output_of_anothers_unit_may_be_used(people):
    alice, _, mallory = people
    output, _ = await alice.run(DENSE, a_large_tensor())
    await mallory.run(IDENTITY, SMALL)
    grant_all(mallory, output)
    without_ids(await ask(mallory, IDENTITY.program_id, output), output)


async def test_a_stranger_with_the_chunk_list_who_guesses_the_proof_gets_nothing(people):
    alice, _, mallory = people
    tensor = a_large_tensor()
    secret, chunks = blob_id_of(tensor), chunk_list_of(tensor)
    await alice.run(IDENTITY, tensor)
    await mallory.run(IDENTITY, SMALL)
    heard = []

    async def guesses(stream):
        await receive_frame(stream, BlobRequest)
        listed = chunks.encode()
        await send_frame(stream, BlobFound(list_bytes=len(listed)))
        await stream.send_all(listed)
        heard.append(await receive_frame(stream, BlobNext))
        if isinstance(heard[-1], BlobProve):
            await send_frame(stream, BlobProof(proof=secrets.token_bytes(32)))
        else:
            await stream.send_all(bytes(len(tensor)))

    mallory.house.network.handle("/shoal/blob/1", guesses)
    answer = await ask(mallory, IDENTITY.program_id, secret)
    assert isinstance(answer, Refusal), answer
    assert [type(word).__name__ for word in heard] == ["BlobProve", "BlobSend"]
    _, sent = await alice.run(IDENTITY, tensor)  # which is there as it was
    assert sent == 0


async def test_two_who_share_a_tensor_are_both_served(
    people,
):
    alice, bob, _ = people
    tensor = a_large_tensor()
    await alice.run(IDENTITY, tensor)
    output, sent = await bob.run(IDENTITY, tensor)
    assert output == blob_id_of(tensor)
    assert sent < 16 * KIB
