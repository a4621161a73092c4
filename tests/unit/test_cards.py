"""Cards as values: what a worker is shown of them, what their faults mean."""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from shoal.compute import card_meter
from shoal.compute.card_meter import CardMeter
from shoal.compute.devices.cards import Card, card_of, may_be_used, only
from shoal.compute.devices.inventory import Device, Lack
from shoal.compute.errors import ComputeError
from shoal.compute.executors import table
from shoal.compute.executors.base import NumericClass
from shoal.compute.executors.card_faults import FAILED, LOST, fault_of
from shoal.compute.executors.table import Entry, check_reach, missing_packages
from shoal.compute.sandbox import of_card_worker


def device(name, kind, uuid="", card="", **more):
    return Device(
        id=name,
        kind=kind,
        name="X",
        memory_bytes=1 << 36,
        memory_free_bytes=1 << 36,
        uuid=uuid,
        card=card,
        **more,
    )


DEVICES = (
    device("cpu", "cpu"),
    device("gpu0", "nvidia", "GPU-63feeb45-94c6", target="sm_90"),
    device("gpu1-mig0", "nvidia", "MIG-c6d4f1ef-42e4", card="gpu1"),
    device("gpu2", "nvidia"),
    device("gpu3", "amd", "GPU-a1b2c3d4e5f60710", target="gfx942", pci="0001:c0:02.0"),
    device("gpu4", "amd", "62ff74a1-0000-1000-807d-1a2b3c4d5e6f"),
)


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("gpu0", {"CUDA_VISIBLE_DEVICES": "GPU-63feeb45-94c6"}),
        ("gpu1-mig0", {"CUDA_VISIBLE_DEVICES": "MIG-c6d4f1ef-42e4"}),
        ("gpu2", {"CUDA_VISIBLE_DEVICES": "2"}),
        ("gpu3", {"ROCR_VISIBLE_DEVICES": "GPU-a1b2c3d4e5f60710"}),
        ("gpu4", {"ROCR_VISIBLE_DEVICES": "1"}),
    ],
)
def test_a_worker_sees_its_own_card_alone_and_as_the_first(name, variables):
    (card,) = (each for each in DEVICES if each.id == name)
    found = only(card, DEVICES)
    assert found | variables == found
    assert found.get("HIP_VISIBLE_DEVICES", "0") == "0"
    assert ("HIP_VISIBLE_DEVICES" in found) is (card.kind == "amd")


def test_a_worker_is_told_what_its_card_is():
    assert card_of(DEVICES[4]) == Card("gpu3", "hip", "gfx942", 1 << 36, "0001:c0:02.0")
    assert card_of(DEVICES[1]).runtime == "cuda"


@pytest.mark.parametrize(
    ("code", "used"), [("hidden", False), ("card_failed", False), ("no_kfd", True)]
)
def test_a_card_that_its_owner_hides_is_left_alone(code, used):
    card = msgspec.structs.replace(DEVICES[4], missing=(Lack(code, "why", "next"),))
    assert may_be_used(card) is used
    assert may_be_used(DEVICES[4])
    assert not may_be_used(DEVICES[0])


def nodes(root, pci):
    paths = [Path(rule.path) for rule in of_card_worker("", pci, root)]
    return sorted(p.name for p in paths if root in p.parents)


def test_a_worker_opens_the_device_node_of_its_own_card_and_no_other(tmp_path):
    for name in ("dev/nvidia0", "dev/nvidia1", "dev/nvidiactl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    about = tmp_path / "proc/driver/nvidia/gpus/0000:1b:00.0/information"
    about.parent.mkdir(parents=True)
    about.write_text("Model: \t\t NVIDIA H100\nDevice Minor: \t 1\n")
    (tmp_path / "sys/bus/pci/devices/0001:c0:02.0/drm/renderD129").mkdir(parents=True)
    (tmp_path / "sys/bus/pci/devices/0001:c0:02.0/drm/card2").mkdir()
    assert nodes(tmp_path, "0000:1b:00.0") == ["nvidia1"]
    assert nodes(tmp_path, "0001:c0:02.0") == ["renderD129"]
    for unknown in ("", "0000:ff:00.0"):
        assert nodes(tmp_path, unknown) == ["dri", "nvidia0", "nvidia1"]


# --- faults ----------------------------------------------------------------------------


class OutOfMemoryError(RuntimeError):
    pass


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), "memory_limit"),
        (RuntimeError("HIP out of memory. Tried to allocate 2 GiB"), "memory_limit"),
        (RuntimeError("CUDA error: out of memory"), "memory_limit"),
        (RuntimeError("Triton Error [CUDA]: out of memory"), "memory_limit"),
        (RuntimeError("hipErrorOutOfMemory"), "memory_limit"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), FAILED),
        (RuntimeError("HIP error: unspecified launch failure"), FAILED),
        (RuntimeError("CUDA error: device-side assert triggered"), FAILED),
        (RuntimeError("Triton Error [HIP]:  Code: 719, Messsage: launch failure"), FAILED),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), LOST),
        (RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"), LOST),
        (RuntimeError("No HIP GPUs are available"), LOST),
        (RuntimeError("HIP error: hipErrorNoDevice"), LOST),
        (RuntimeError("CUDA error: unknown error"), LOST),
    ],
)
def test_what_a_runtime_says_is_named_by_what_it_means(error, code):
    fault = fault_of(error, "gpu0", 1 << 30)
    assert fault.code == code
    assert "gpu0" in fault.message
    assert fault.hint


@pytest.mark.parametrize(
    "error",
    [
        ValueError("shapes (3,4) and (5,6) do not fit"),
        RuntimeError("out of memory: this is the machine's"),
        RuntimeError("the program wants an unknown error"),
        ComputeError("the program was ended on the GPU, unknown error", code="terminated"),
    ],
)
def test_what_is_no_fault_of_a_card_stays_what_it_is(error):
    assert fault_of(error, "gpu0", 1 << 30) is None


class Allocator:
    """`torch.cuda` of a card of 1000 bytes."""

    def __init__(self):
        self.fractions, self.emptied, self.reserved = [], 0, 0

    def memory_allocated(self):
        return 100

    def memory_reserved(self):
        return self.reserved

    def mem_get_info(self):
        return 700, 1000

    def set_per_process_memory_fraction(self, fraction):
        self.fractions.append(fraction)

    def empty_cache(self):
        self.emptied += 1


def test_a_unit_may_use_its_limit_beyond_what_the_process_holds_on_the_card():
    allocator = Allocator()
    meter = CardMeter(allocator)
    meter.hold(200, 100.0)
    meter.hold(5000, 100.0)
    assert allocator.fractions == [0.3, 1.0]
    meter.release()
    assert allocator.fractions[-1] == 1.0
    assert allocator.emptied == 0
    allocator.reserved = 101 + card_meter.UNUSED_BYTES
    meter.release()
    assert allocator.emptied == 1
    assert meter.memory_left_bytes() == 700 + 1 + card_meter.UNUSED_BYTES


def test_a_card_that_fails_while_its_limits_are_taken_back_does_not_hide_why():
    allocator = Allocator()

    def fails(_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    allocator.set_per_process_memory_fraction = fails
    CardMeter(allocator).release()


def test_an_executor_whose_packages_are_missing_says_what_to_install():
    entry = Entry("exact", NumericClass.EXACT, ("os", "no_such_package"), lambda _: None)
    lack = missing_packages(entry)
    assert lack.code == "package_missing"
    assert "no_such_package is not installed" in lack.reason
    assert "`pip install -c constraints.txt '.[gpu]'`" in lack.hint
    assert missing_packages(replace(entry, packages=("os",))) is None


def test_every_executor_that_reaches_cards_by_torch_names_it_among_its_packages():
    by_torch = [set(entry.packages) for entry in table.ON_CARDS if entry.by_torch]
    assert {"torch"} <= set.intersection(*by_torch)
    assert [entry.name for entry in table.ON_CARDS if not entry.by_torch] == ["onnxruntime"]


def test_a_build_of_torch_that_does_not_fit_the_card_is_named_with_the_next_step():
    torch = pytest.importorskip("torch", reason="pip install -c constraints.txt '.[gpu]'")
    wrong = "cuda" if torch.version.hip else "hip"
    with pytest.raises(ComputeError) as error:
        check_reach(Card("gpu0", wrong, "", 0))
    assert error.value.code == "card_unreachable"
    assert "built without" in error.value.message
    assert f"a build for {'CUDA' if wrong == 'cuda' else 'ROCm'}" in error.value.hint
    assert "pytorch.org/get-started" in error.value.hint
