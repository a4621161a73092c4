"""The CPU, on this machine and on trees of other ones; inventories put together."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.compute.cgroups import CgroupLimits
from shoal.compute.devices import Inventory, Missing, cpu, detect, joined
from shoal.compute.devices.inventory import Device


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def gpu(device_id, card=""):
    return Device(
        id=device_id, kind="amd", name="", memory_bytes=0, memory_free_bytes=0, card=card
    )


def test_the_cpu_comes_first_and_is_not_said_to_run_anything_before_a_canary():
    inventory = detect()
    found = inventory.devices[0]
    assert (found.id, found.kind, found.executors, found.abilities) == ("cpu", "cpu", (), ())
    assert 1 <= found.cores <= found.threads <= len(os.sched_getaffinity(0))
    assert found.numa_nodes >= 1
    assert 0 < found.memory_free_bytes <= found.memory_bytes
    assert found.name


def test_every_kind_of_gpu_is_there_or_missing_with_a_reason():
    inventory = detect()
    found = {device.kind for device in inventory.devices}
    missing = {missing.kind: missing.reason for missing in inventory.missing}
    assert found | missing.keys() == {"cpu", "nvidia", "amd"}
    assert not found & missing.keys()
    assert all(missing.values())


def test_fewer_cpus_by_affinity_are_fewer_threads():
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from shoal.compute.devices.cpu import detect_cpu, usable_threads\n"
        "cpu = detect_cpu(); print(cpu.cores, cpu.threads, usable_threads())"
    )
    assert subprocess.check_output([sys.executable, "-c", script]).split() == [b"1"] * 3


def test_a_cgroup_s_limits_are_the_cpu_s():
    limits = CgroupLimits(memory_bytes=1 << 28, memory_free_bytes=1 << 27, cpus=0.5)
    found = cpu.describe(limits, {0, 1})
    assert (found.cores, found.threads) == (1, 1)
    assert (found.memory_bytes, found.memory_free_bytes) == (1 << 28, 1 << 27)
    assert "0.5 CPUs" in found.note


def test_a_quota_above_what_the_scheduler_gives_limits_nothing():
    found = cpu.describe(CgroupLimits(cpus=64.0), {0})
    assert (found.threads, found.note) == (1, "")


def test_cores_and_numa_nodes_are_those_of_the_usable_cpus(tmp_path):
    """Two sockets of two cores with two threads each; the process may use five of eight."""
    topology = {
        f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": f"{n % 4},{n % 4 + 4}\n"
        for n in range(8)
    }
    nodes = {
        "sys/devices/system/node/node0/cpulist": "0-1,4-5\n",
        "sys/devices/system/node/node1/cpulist": "2-3,6-7\n",
        "sys/devices/system/node/node2/cpulist": "\n",  # memory alone
    }
    root = tree(tmp_path, topology | nodes)
    found = cpu.describe(CgroupLimits(), {0, 1, 4, 5, 6}, root)
    assert (found.threads, found.cores, found.numa_nodes) == (5, 3, 2)
    assert cpu.describe(CgroupLimits(), {0, 1}, root).numa_nodes == 1


def test_instruction_sets_have_one_name_on_every_machine(tmp_path):
    x86 = tree(tmp_path / "x86", {"cpuinfo": "model name\t: AMD EPYC\nflags\t\t: fpu avx2\n"})
    arm = tree(tmp_path / "arm", {"cpuinfo": "processor\t: 0\nFeatures\t: fp asimd sve\n"})
    assert cpu._name_and_flags(x86 / "cpuinfo") == ("AMD EPYC", {"fpu", "avx2"})
    assert cpu._name_and_flags(arm / "cpuinfo")[1] == {"fp", "asimd", "sve"}


def test_what_a_node_may_use_by_default_is_what_its_cgroup_allows(tmp_path):
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cpu.max": "50000 100000\n",
            "sys/fs/cgroup/memory.max": "1073741824\n",
        },
    )
    assert cpu.usable_threads(root) == 1
    assert cpu.usable_memory_bytes(root) == 1 << 30


def test_cards_are_numbered_through_over_vendors_and_instances_stay_with_their_card():
    first = Inventory((gpu("gpu0"), gpu("gpu1-mig0", "gpu1"), gpu("gpu1-mig3", "gpu1")))
    second = Inventory((gpu("gpu0"), gpu("gpu1")), (Missing("amd", "x", "y"),))
    whole = joined(cpu.detect_cpu(), [first, second])
    assert [device.id for device in whole.devices] == [
        *("cpu", "gpu0", "gpu1-mig0", "gpu1-mig3", "gpu2", "gpu3")
    ]
    assert [device.card for device in whole.devices[2:4]] == ["gpu1", "gpu1"]
    assert whole.missing == second.missing


def test_every_code_is_explained_in_the_docs_and_none_that_is_not_used():
    folder = Path(__file__).parents[2]
    source = "".join(p.read_text() for p in (folder / "compute/devices").glob("*.py"))
    for other in (
        "node/cli/devices.py",
        "compute/executors/providers.py",
        "compute/executors/table.py",
    ):
        source += (folder / other).read_text()
    made = r'(?:Lack|Missing|_missing|_nothing|_troubled)\(\s*(?:"amd",\s*|kind,\s*)?"(\w+)"'
    given = {*re.findall(made, source)} - {"nvidia"}
    assert len(given) > 15
    _, _, table = (folder / "docs/DEVICES.md").read_text().partition("## What is missing")
    told = {code for row in table.splitlines() for code in re.findall("`(\\w+)`", row[:80])}
    told -= {"missing", "code", "reason", "hint"}
    assert given - told == set()
    assert {code for code in told if f'"{code}"' not in source} == set()


@pytest.mark.parametrize("module", ["devices", "devices.abilities", "manifest", "supervisor"])
def test_what_the_daemon_imports_brings_no_heavy_library_and_no_driver(module):
    script = (
        f"import sys, shoal.compute.{module}\n"
        "heavy = ('numpy', 'onnx', 'onnxruntime', 'torch', 'pynvml')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", script]).strip() == b"[]"
