"""Kernel jobs among real daemons of which none has a GPU: they refuse, and say why."""

import numpy as np
import pytest
import trio
import user_kernels
from attacker import ask, make_call, open_greeted
from daemons import eventually, shoal

from shoal.node.demo.swarm import Swarm
from shoal.node.errors import DaemonError
from shoal.node.network import open_network
from shoal.protocol.negotiation_messages import Bid, Reason, Refusal

X = np.ones((2, 8), np.float32)
WORDS_LIMIT_S = 60
CANARIES_LIMIT_S = 120


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return user_kernels.lowered(tmp_path_factory.mktemp("kernels"))[0]


@pytest.fixture
def job(node, programs):
    """A kernel job that nobody can take."""
    with node.client() as client:
        submitted = client.submit(programs["softmax"], [{"x": X}])
        yield submitted
        client.cancel(submitted.id)


def test_a_kernel_job_waits_for_a_gpu_and_why_says_so(node, job):
    assert job.numeric_class == "kernel"  # nobody had to say it

    def told():
        ended = shoal("job", "why", job.id, node=node)
        assert ended.code == 0, ended
        text = " ".join(ended.stdout.split())
        return text if "No known node offers the numeric class kernel" in text else None

    text = eventually(told, WORDS_LIMIT_S)
    assert "fp32" in text
    assert "a node with a GPU" in text
    assert "--class" not in text


def test_a_job_that_is_not_to_wait_fails_with_the_reason(node, programs, tmp_path):
    programs["softmax"].save(tmp_path / "softmax.kernel")
    np.save(tmp_path / "x.npy", X)
    inputs = f"--input=x={tmp_path / 'x.npy'}"
    ended = shoal("run", tmp_path / "softmax.kernel", inputs, "--fail-fast", node=node)
    assert ended.code != 0
    text = " ".join(ended.stderr.split())
    assert "offers the class kernel" in text
    assert "a node with a GPU" in text


@pytest.mark.parametrize(
    ("name", "numeric_class", "inputs", "code"),
    [
        ("softmax", "exact", {"x": X}, "class_mismatch"),
        ("softmax", "fp32", {"x": X}, "class_mismatch"),
        ("softmax", "kernel", {}, "missing_input"),
        ("softmax", "kernel", {"x": X[0]}, "wrong_shape"),
        ("softmax", "kernel", {"x": X.astype(np.float16)}, "wrong_dtype"),
        ("product", "kernel", {"a": X, "b": X}, "wrong_shape"),
    ],
)
def test_what_does_not_fit_the_kernel_is_refused_when_it_is_submitted(
    node, programs, name, numeric_class, inputs, code
):
    from shoal.compute.errors import ProgramError

    with node.client() as client, pytest.raises((DaemonError, ProgramError)) as refused:
        client.submit(programs[name], [inputs], numeric_class=numeric_class)
    assert refused.value.code == code


def test_a_program_of_the_daemons_is_run_again_by_its_id(node, programs):
    with node.client() as client:
        prepared = client.prepare(programs["softmax"])
        again = client.prepare(prepared.program_id)
    assert again.manifest == programs["softmax"].manifest


@pytest.fixture
def friends_node(exact, attacker_key):
    """A daemon that serves the attacker; until its canaries are in, it says that it is busy."""
    with Swarm(1, settings=[f"--allow={attacker_key.peer_id}", "--serve=friends"]) as swarm:
        swarm.start_all()
        yield swarm.nodes[0]


async def test_a_node_without_a_gpu_refuses_the_call_of_a_friend(
    friends_node, programs, attacker_key
):
    node = friends_node
    place = node.address.rpartition("/p2p/")[0]
    program = programs["softmax"].program_id
    async with open_network(attacker_key, ["/ip4/127.0.0.1/tcp/0"]) as network:
        await network.connect(node.peer, [place], 5.0)
        stream = await open_greeted(network, node.peer)
        for attempt in range(CANARIES_LIMIT_S):
            call = make_call(program, f"{attempt:032x}", numeric_class="kernel")
            refused = await ask(stream, call)
            assert isinstance(refused, Refusal)
            if refused.reason is not Reason.BUSY:
                break
            await trio.sleep(1)
        assert refused.reason is Reason.NO_DEVICE
        assert "takes a GPU, and this node has none" in refused.detail
        assert isinstance(await ask(stream, make_call(program, "b" * 32)), Bid)
