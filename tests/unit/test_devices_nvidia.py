"""Why NVML gives no card, and which of its cards CUDA hides: decisions on values alone."""

import pytest

from shoal.compute.devices import nvidia
from shoal.compute.devices.inventory import Device
from shoal.compute.devices.kernel import PciCard
from shoal.compute.devices.nvidia import Surroundings, why_none
from shoal.compute.devices.visibility import MAYBE, visible

CARD = PciCard("0000:41:00.0", "10de:2330", "nvidia")
NOUVEAU = PciCard("0000:41:00.0", "10de:2330", "nouveau")
NO_LIBRARY = nvidia.LIBRARY_NOT_FOUND


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("status", "around", "code", "reason", "hint"),
    [
        (NO_LIBRARY, Surroundings(), "absent", "no NVIDIA card", ""),
        (
            NO_LIBRARY,
            Surroundings(cards=(NOUVEAU,)),
            "driver_missing",
            "a card is there (10de:2330 at 0000:41:00.0), and NVIDIA's driver is not installed",
            "ubuntu-drivers install",
        ),
        (
            NO_LIBRARY,
            Surroundings(cards=(CARD,), nodes=("/dev/nvidia0",), container=True),
            "library_missing",
            "sees the cards' nodes (/dev/nvidia0, …), but not the driver's library",
            "--gpus all",
        ),
        (
            NO_LIBRARY,
            Surroundings(cards=(CARD,), container=True),
            "not_passed",
            "which this container was not given",
            "--gpus all",
        ),
        (
            NO_LIBRARY,
            Surroundings(cards=(CARD,), nodes=("/dev/nvidia0",), module="550.54.15"),
            "library_missing",
            "the driver 550.54.15 is loaded, and its library libnvidia-ml.so.1 is not found",
            "libnvidia-compute-550",
        ),
        (NO_LIBRARY, Surroundings(wsl=True), "library_missing", "WSL", "/usr/lib/wsl/lib"),
        (
            NO_LIBRARY,
            Surroundings(cards=(PciCard("0000:41:00.0", "10de:2330", "vfio-pci"),)),
            "passed_on",
            "handed to virtual machines",
            "inside that machine",
        ),
        (
            nvidia.DRIVER_NOT_LOADED,
            Surroundings(cards=(CARD,)),
            "driver_not_loaded",
            "NVML is there and the driver is not loaded, though a card is there",
            "`sudo modprobe nvidia`",
        ),
        (
            nvidia.DRIVER_NOT_LOADED,
            Surroundings(cards=(NOUVEAU,)),
            "driver_not_loaded",
            "not loaded",
            "blacklist",
        ),
        (
            nvidia.DRIVER_NOT_LOADED,
            Surroundings(cards=(CARD,), container=True),
            "driver_not_loaded",
            "not loaded",
            "on the host",
        ),
        (
            nvidia.DRIVER_NOT_LOADED,
            Surroundings(),
            "driver_not_loaded",
            "no NVIDIA card is on the PCI bus",
            "no card",
        ),
        (
            nvidia.VERSION_MISMATCH,
            Surroundings(module="550.54.15"),
            "driver_mismatch",
            "the loaded driver 550.54.15 and its library",
            "reboot",
        ),
        (
            nvidia.VERSION_MISMATCH,
            Surroundings(container=True),
            "driver_mismatch",
            "different versions",
            "start the container anew",
        ),
        (
            nvidia.NO_PERMISSION,
            Surroundings(nodes=("/dev/nvidia0", "/dev/nvidia1")),
            "no_permission",
            "/dev/nvidia0, /dev/nvidia1",
            "ls -l /dev/nvidia0 /dev/nvidia1",
        ),
        (999, Surroundings(), "nvml_failed", "NVML fails: Unknown Error", "nvidia-smi"),
    ],
)
def test_what_keeps_a_card_from_being_found_is_named_with_the_next_step(
    status, around, code, reason, hint
):
    missing = why_none(status, "Unknown Error", around)
    assert missing.code == code
    assert reason in missing.reason
    assert hint in missing.hint
    assert bool(missing.hint) == bool(hint)


def test_the_codes_are_those_of_nvml():
    import pynvml

    assert pynvml.NVML_ERROR_NOT_SUPPORTED == nvidia.NOT_SUPPORTED
    assert pynvml.NVML_ERROR_NO_PERMISSION == nvidia.NO_PERMISSION
    assert pynvml.NVML_ERROR_DRIVER_NOT_LOADED == nvidia.DRIVER_NOT_LOADED
    assert pynvml.NVML_ERROR_LIBRARY_NOT_FOUND == nvidia.LIBRARY_NOT_FOUND
    assert pynvml.NVML_ERROR_GPU_IS_LOST == nvidia.GPU_IS_LOST
    assert pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH == nvidia.VERSION_MISMATCH


def test_the_kernel_shows_cards_nodes_driver_and_container(tmp_path):
    pci = "sys/bus/pci/devices/"
    root = tree(
        tmp_path,
        {
            pci + "0000:41:00.0/vendor": "0x10de\n",
            pci + "0000:41:00.0/device": "0x2330\n",
            pci + "0000:41:00.0/class": "0x030200\n",
            pci + "0000:41:00.1/vendor": "0x10de\n",
            pci + "0000:41:00.1/class": "0x040300\n",  # its audio
            pci + "0000:05:00.0/vendor": "0x10de\n",
            pci + "0000:05:00.0/class": "0x068000\n",  # an NVSwitch
            pci + "0000:06:00.0/vendor": "0x1002\n",
            pci + "0000:06:00.0/class": "0x030000\n",
            "dev/nvidia0": "",
            "dev/nvidiactl": "",
            "dev/nvidia-uvm": "",
            "run/.containerenv": "",
            "proc/driver/nvidia/version": (
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\n"
                "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
            ),
        },
    )
    drivers = root / "sys/bus/pci/drivers/nvidia"
    drivers.mkdir(parents=True)
    (root / pci / "0000:41:00.0/driver").symlink_to(drivers)
    assert nvidia.surroundings(root) == Surroundings(
        cards=(CARD,), nodes=("/dev/nvidia0",), module="550.54.15", container=True, wsl=False
    )


def test_the_open_driver_s_version_is_read_as_well(tmp_path):
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.51.03  Release Build\n"
    root = tree(tmp_path, {"proc/driver/nvidia/version": text})
    assert nvidia.surroundings(root).module == "575.51.03"


UUIDS = ("GPU-aaaa1111", "GPU-aaaa2222", "GPU-bbbb3333")


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (None, [True, True, True]),
        ("", [False, False, False]),
        ("-1", [False, False, False]),
        ("NoDevFiles", [False, False, False]),
        ("1", [False, True, False]),
        ("2,0", [True, False, True]),
        ("0,7,1", [True, False, False]),  # what follows one that is not there is not read
        ("GPU-bbbb", [False, False, True]),
        ("GPU-aaaa", [False, False, False]),  # of two cards: of neither
        ("GPU-aaaa2222, 0", [True, True, False]),
    ],
)
def test_a_variable_leaves_the_cards_that_it_names(value, seen):
    assert visible(value, UUIDS) == seen


def test_an_index_tells_nothing_where_the_runtime_counts_in_another_order():
    assert visible("1", UUIDS, index_is_place=False) == [MAYBE] * 3
    assert visible("0,1,2", UUIDS, index_is_place=False) == [True] * 3
    assert visible("GPU-bbbb", UUIDS, index_is_place=False) == [False, False, True]


def device(number, name="H100", uuid="", instance=None):
    card = "" if instance is None else f"gpu{number}"
    return Device(
        id=f"gpu{number}" if instance is None else f"gpu{number}-mig{instance}",
        kind="nvidia",
        name=name,
        memory_bytes=1,
        memory_free_bytes=1,
        uuid=uuid,
        card=card,
    )


def codes(devices, **environment):
    hidden = nvidia.hide(tuple(devices), environment)
    return [[lack.code for lack in device.missing] for device in hidden]


def test_cards_alike_are_counted_as_they_stand_and_others_only_if_cuda_is_told_to():
    alike = [device(0), device(1)]
    mixed = [device(0), device(1, "A100")]
    assert codes(alike) == [[], []]
    assert codes(alike, CUDA_VISIBLE_DEVICES="1") == [["hidden"], []]
    assert codes(mixed, CUDA_VISIBLE_DEVICES="1") == [["perhaps_hidden"]] * 2
    told = {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert codes(mixed, **told) == [["hidden"], []]


def test_an_instance_is_seen_by_its_uuid_and_the_first_also_by_its_card_s_index():
    parts = [device(0, uuid="MIG-a", instance=0), device(0, uuid="MIG-b", instance=1)]
    assert codes(parts, CUDA_VISIBLE_DEVICES="MIG-b") == [["hidden"], []]
    assert codes(parts, CUDA_VISIBLE_DEVICES="0") == [[], ["hidden"]]
