"""Users' kernels on a real card: their results beside torch's, and hostile ones.

It takes no daemon, and so no libp2p; `test_kernel_jobs_on_card.py` does.
"""

import msgspec
import pytest
import torch
from kernel_cases import INPUTS, assert_right, floats, lowered
from rehearsal import DEVICE, REHEARSED, leave_out
from triton.runtime.driver import driver

from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.executors.base import Evidence
from shoal.compute.executors.triton import Triton
from shoal.compute.kernel_manifest import program_of
from shoal.compute.loading import load
from shoal.crypto.content import blob_id_of

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return lowered(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def programs(texts):
    return texts[0]


@pytest.fixture(scope="module")
def executor():
    with pytest.MonkeyPatch.context() as patch:
        if REHEARSED:
            from stand_in_driver import StandInDriver

            patch.setattr(driver, "_active", StandInDriver())
            patch.setattr(torch.cuda, "synchronize", lambda _device: None)
        yield Triton(DEVICE)


def test_the_canary_runs(executor):
    leave_out("the canary of users' kernels")
    assert executor.probe().evidence is Evidence.EXECUTED


@pytest.mark.parametrize("name", INPUTS)
def test_a_kernel_gives_what_torch_gives(executor, programs, name):
    program = programs[name]
    handle = executor.prepare(load(program.program_id, program.blobs))
    for _ in range(2):  # prepared once, run as often as one likes
        assert_right(name, executor.run(handle, INPUTS[name]))


def test_outputs_are_zeros_where_the_kernel_writes_nothing(executor, programs):
    program = programs["softmax"]
    handle = executor.prepare(load(program.program_id, program.blobs))
    # Its block is 1024 wide: what is beyond is not written.
    found = executor.run(handle, {"x": floats(2, 1500)})["y"]
    assert not found[-1, 1024:].any()


def test_hostile_texts_are_refused_on_the_card_as_well(executor, programs, texts):
    good = programs["softmax"].manifest
    for text in texts[1].values():
        bad = program_of(msgspec.structs.replace(good, kernel=blob_id_of(text)), text)
        with pytest.raises((ProgramError, ComputeError)):
            executor.prepare(load(bad.program_id, bad.blobs))
