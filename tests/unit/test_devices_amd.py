"""AMD's cards as the kernel shows them, on trees of /sys as other machines have them."""

import pytest

from shoal.compute.devices import amd, amdsmi
from shoal.compute.devices.amd import Surroundings, why_none
from shoal.compute.devices.inventory import Device
from shoal.compute.devices.kernel import PciCard

CARD = PciCard("0000:c1:00.0", "1002:74a1", "amdgpu")

KFD_NODE = """\
cpu_cores_count 0
simd_count 1216
gfx_target_version {version}
vendor_id 4098
device_id 29857
location_id {location}
domain {domain}
drm_render_minor 128
unique_id 12345678901234567890
"""


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def no_library(monkeypatch):
    """As on a machine without ROCm; the tests with a stub library are end-to-end tests."""

    def missing(*_):
        raise amdsmi.LibraryMissingError("libamd_smi.so is not found")

    monkeypatch.setattr(amdsmi, "_load", missing)
    for variable in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(variable, raising=False)


def machine(root, **more):
    """One MI300X at 0000:c1:00.0 and the display of a mainboard."""
    place = "sys/devices/pci0000:c0/0000:c1:00.0/"
    tree(
        root,
        {
            "sys/class/drm/card0/device/vendor": "0x8086\n",
            "sys/class/drm/card1-DP-1/device/vendor": "0x1002\n",
            place + "vendor": "0x1002\n",
            place + "device": "0x74a1\n",
            place + "class": "0x120000\n",
            place + "unique_id": "a1b2c3d4e5f60718\n",
            place + "product_name": "Instinct MI300X\n",
            place + "mem_info_vram_total": "206141652992\n",
            place + "mem_info_vram_used": "141652992\n",
            "sys/module/amdgpu/version": "6.8.5\n",
            # bus c1, device 0, function 0
            "sys/class/kfd/kfd/topology/nodes/0/properties": "gfx_target_version 0\n",
            "sys/class/kfd/kfd/topology/nodes/1/properties": KFD_NODE.format(
                version=90402, location=0xC100, domain=0
            ),
            "dev/kfd": "",
            **more,
        },
    )
    for link in ("sys/class/drm/card1/device", "sys/bus/pci/devices/0000:c1:00.0"):
        (root / link).parent.mkdir(parents=True, exist_ok=True)
        (root / link).symlink_to(root / place)
    return root


def test_without_amdsmi_the_kernel_shows_name_memory_driver_and_target(tmp_path):
    inventory = amd.detect_amd(machine(tmp_path))
    (gpu,) = inventory.devices
    assert (gpu.id, gpu.name, gpu.kind, gpu.driver) == (
        *("gpu0", "Instinct MI300X", "amd"),
        "6.8.5",
    )
    assert (gpu.memory_bytes, gpu.memory_free_bytes) == (206141652992, 206000000000)
    assert (gpu.target, gpu.pci) == ("gfx942", "0000:c1:00.0")
    assert gpu.uuid == "GPU-a1b2c3d4e5f60718"
    assert gpu.missing == ()
    assert "libamd_smi.so is not found" in gpu.note


@pytest.mark.parametrize(
    ("version", "target"),
    [(90010, "gfx90a"), (90402, "gfx942"), (100306, "gfx1036"), (110000, "gfx1100")],
)
def test_a_target_is_written_as_compilers_write_it(tmp_path, version, target):
    node = KFD_NODE.format(version=version, location=0x4308, domain=1)
    tree(tmp_path, {"sys/class/kfd/kfd/topology/nodes/3/properties": node})
    assert amd._targets(tmp_path) == {"0001:43:01": target}


def test_a_card_that_only_its_pci_id_names_is_named_by_that(tmp_path):
    place = "sys/class/drm/card2/device/"
    tree(tmp_path, {place + "vendor": "0x1002\n", place + "device": "0x73bf\n"})
    (gpu,) = amd.detect_amd(tmp_path).devices
    assert gpu.name == "AMD GPU 1002:73bf"
    assert (gpu.memory_bytes, gpu.memory_free_bytes, gpu.target) == (0, 0, "")


def test_a_card_without_the_device_node_through_which_it_computes_says_so(tmp_path):
    root = machine(tmp_path)
    (root / "dev/kfd").unlink()
    (lack,) = amd.detect_amd(root).devices[0].missing
    assert lack.code == "no_kfd"
    assert "amdgpu-dkms" in lack.hint
    (root / ".dockerenv").touch()
    (lack,) = amd.detect_amd(root).devices[0].missing
    assert "--device /dev/kfd" in lack.hint


def test_a_user_who_may_not_open_the_device_node_is_told_the_groups(tmp_path, monkeypatch):
    root = machine(tmp_path)
    monkeypatch.setattr("os.access", lambda *_: False)  # root may open all
    (lack,) = amd.detect_amd(root).devices[0].missing
    assert lack.code == "no_permission"
    assert "usermod -aG render,video" in lack.hint


@pytest.mark.parametrize("variable", ["ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"])
def test_what_rocm_s_variables_hide_is_listed_and_marked(variable):
    cards = tuple(
        Device(
            id=f"gpu{n}", kind="amd", name="A", memory_bytes=1, memory_free_bytes=1, uuid=uuid
        )
        for n, uuid in enumerate(("GPU-1", "GPU-2"))
    )

    def hidden(value):
        return [bool(device.missing) for device in amd.hide(cards, {variable: value})]

    assert hidden("1") == [True, False]
    assert hidden("GPU-1") == [False, True]
    assert amd.hide(cards, {}) == cards


def test_a_name_by_an_id_that_is_not_known_hides_nothing():
    card = Device(id="gpu0", kind="amd", name="A", memory_bytes=1, memory_free_bytes=1)
    assert amd.hide((card,), {"ROCR_VISIBLE_DEVICES": "GPU-1"}) == (card,)


@pytest.mark.parametrize(
    ("around", "code", "reason", "hint"),
    [
        (Surroundings(), "absent", "no AMD card", ""),
        (
            Surroundings(cards=(CARD,)),
            "driver_not_loaded",
            "a card is there (1002:74a1 at 0000:c1:00.0), and the driver amdgpu is not loaded",
            "modprobe amdgpu",
        ),
        (
            Surroundings(cards=(CARD,), driver="6.8.5"),
            "driver_not_loaded",
            "does not run it",
            "amdgpu-dkms",
        ),
        (
            Surroundings(cards=(CARD,), driver="6.8.5", container=True),
            "not_passed",
            "which this container was not given",
            "--device /dev/kfd --device /dev/dri",
        ),
        (
            Surroundings(cards=(PciCard("0000:c1:00.0", "1002:74a1", "vfio-pci"),)),
            "passed_on",
            "virtual machines",
            "inside that machine",
        ),
    ],
)
def test_what_keeps_a_card_from_being_found_is_named_with_the_next_step(
    around, code, reason, hint
):
    missing = why_none(around)
    assert missing.code == code
    assert reason in missing.reason
    assert hint in missing.hint
    assert bool(missing.hint) == bool(hint)


def test_a_place_on_the_bus_is_unpacked_as_the_library_packs_it():
    assert amdsmi.address_of(0x0001_C1_0B) == "0001:c1:01.3"
