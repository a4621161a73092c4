"""Detection on this machine, and on trees of /sys as other machines have them."""

import os
import subprocess
import sys

import pytest

from shoal.compute import devices
from shoal.compute.cgroups import CgroupLimits, read_limits


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_cpu_comes_first_and_is_used_by_onnx_runtime():
    inventory = devices.detect()
    cpu = inventory.devices[0]
    assert (cpu.id, cpu.kind, cpu.executors) == ("cpu", "cpu", ("onnxruntime",))
    assert 1 <= cpu.cores <= cpu.threads <= len(os.sched_getaffinity(0))
    assert 0 < cpu.memory_free_bytes <= cpu.memory_bytes
    assert cpu.name


def test_every_kind_of_gpu_is_there_or_missing_with_a_reason():
    inventory = devices.detect()
    found = {device.kind for device in inventory.devices}
    missing = {missing.kind: missing.reason for missing in inventory.missing}
    assert found | missing.keys() == {"cpu", "nvidia", "amd"}
    assert not found & missing.keys()
    assert all(missing.values())


def test_fewer_cpus_by_affinity_are_fewer_threads():
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from shoal.compute.devices import detect\n"
        "cpu = detect().devices[0]; print(cpu.cores, cpu.threads)"
    )
    assert subprocess.check_output([sys.executable, "-c", script]).split() == [b"1", b"1"]


def test_a_cgroup_s_limits_are_the_cpu_s():
    cpu = devices._cpu(CgroupLimits(memory_bytes=1 << 28, memory_used_bytes=1 << 27, cpus=0.5))
    assert (cpu.cores, cpu.threads) == (1, 1)
    assert (cpu.memory_bytes, cpu.memory_free_bytes) == (1 << 28, 1 << 27)
    assert "0.5 CPUs" in cpu.note


def test_the_tightest_limit_of_nested_version_2_groups_counts(tmp_path):
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/outer/inner\n",
            "sys/fs/cgroup/outer/memory.max": "1000000\n",
            "sys/fs/cgroup/outer/memory.current": "300000\n",
            "sys/fs/cgroup/outer/memory.stat": "anon 5\ninactive_file 100000\n",
            "sys/fs/cgroup/outer/cpu.max": "max 100000\n",
            "sys/fs/cgroup/outer/inner/memory.max": "max\n",
            "sys/fs/cgroup/outer/inner/cpu.max": "150000 100000\n",
        },
    )
    assert read_limits(root) == CgroupLimits(1_000_000, 200_000, 1.5)


def test_limits_of_version_1_groups_are_read(tmp_path):
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/a\n2:cpu,cpuacct:/b\n7:pids:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "5000\n",
            "sys/fs/cgroup/memory/a/memory.usage_in_bytes": "4000\n",
            "sys/fs/cgroup/memory/a/memory.stat": "total_inactive_file 1000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/b/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu,cpuacct/b/cpu.cfs_period_us": "100000\n",
        },
    )
    assert read_limits(root) == CgroupLimits(5000, 3000, 2.0)


@pytest.mark.parametrize("text", ["", "garbage", "0::/not/mounted/here\n"])
def test_without_cgroups_nothing_is_limited(tmp_path, text):
    assert read_limits(tree(tmp_path, {"proc/self/cgroup": text})) == CgroupLimits()


def test_amd_gpus_are_read_from_sysfs_as_present_and_unused(tmp_path):
    card = "class/drm/card1/device/"
    root = tree(
        tmp_path,
        {
            "class/drm/card0/device/vendor": "0x8086\n",
            "class/drm/card1-DP-1/device/vendor": "0x1002\n",
            card + "vendor": "0x1002\n",
            card + "product_name": "Instinct MI300X\n",
            card + "mem_info_vram_total": "206141652992\n",
            card + "mem_info_vram_used": "141652992\n",
            "module/amdgpu/version": "6.8.5\n",
        },
    )
    (gpu,) = devices._amd(root)
    assert (gpu.name, gpu.kind, gpu.driver) == ("Instinct MI300X", "amd", "6.8.5")
    assert (gpu.memory_bytes, gpu.memory_free_bytes) == (206141652992, 206000000000)
    assert gpu.executors == ()
    assert "unused" in gpu.note


def test_instruction_sets_have_one_name_on_every_machine(tmp_path):
    x86 = tree(tmp_path / "x86", {"cpuinfo": "model name\t: AMD EPYC\nflags\t\t: fpu avx2\n"})
    arm = tree(tmp_path / "arm", {"cpuinfo": "processor\t: 0\nFeatures\t: fp asimd sve\n"})
    assert devices._cpu_name_and_flags(x86 / "cpuinfo") == ("AMD EPYC", {"fpu", "avx2"})
    assert devices._cpu_name_and_flags(arm / "cpuinfo")[1] == {"fp", "asimd", "sve"}


def test_what_the_daemon_imports_brings_no_heavy_library():
    script = (
        "import sys\n"
        "import shoal.compute.devices, shoal.compute.manifest, shoal.compute.supervisor\n"
        "import shoal.compute.tensor\n"
        "print([m for m in ('numpy', 'onnx', 'onnxruntime', 'torch') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", script]).strip() == b"[]"
