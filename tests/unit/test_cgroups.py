"""Limits of a process's cgroups, on trees of /proc and /sys as other machines have them."""

import pytest

from shoal.compute.cgroups import CgroupLimits, read_limits

HYBRID = """\
25 30 0:22 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:8 - tmpfs tmpfs ro,mode=755
26 25 0:23 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:14 - cgroup cgroup rw,cpu,cpuacct
33 25 0:29 / /sys/fs/cgroup/memory rw,nosuid shared:16 - cgroup cgroup rw,memory
"""
UNIFIED = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


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
    assert read_limits(root) == CgroupLimits(1_000_000, 800_000, 1.5)


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
    assert read_limits(root) == CgroupLimits(5000, 2000, 2.0)


def test_the_fullest_group_says_what_is_free_also_where_another_is_tighter(tmp_path):
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/outer/inner\n",
            "sys/fs/cgroup/outer/memory.max": "2000\n",
            "sys/fs/cgroup/outer/memory.current": "1990\n",
            "sys/fs/cgroup/outer/inner/memory.max": "1000\n",
            "sys/fs/cgroup/outer/inner/memory.current": "100\n",
        },
    )
    assert read_limits(root) == CgroupLimits(1000, 10, None)


def test_beyond_memory_high_a_group_crawls_so_that_it_is_a_limit_too(tmp_path):
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice\n",
            "proc/self/mountinfo": UNIFIED,
            "sys/fs/cgroup/user.slice/memory.max": "4294967296\n",
            "sys/fs/cgroup/user.slice/memory.high": "1073741824\n",
            "sys/fs/cgroup/user.slice/memory.current": "73741824\n",
        },
    )
    assert read_limits(root) == CgroupLimits(1 << 30, 1_000_000_000, None)


def test_half_a_core_and_a_gibibyte_of_version_2_as_systemd_writes_them(tmp_path):
    """`systemd-run -p CPUQuota=50% -p MemoryMax=1G`."""
    group = "sys/fs/cgroup/system.slice/run-u42.service/"
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/system.slice/run-u42.service\n",
            "proc/self/mountinfo": UNIFIED,
            "sys/fs/cgroup/system.slice/memory.max": "max\n",
            "sys/fs/cgroup/system.slice/cpu.max": "max 100000\n",
            group + "cpu.max": "50000 100000\n",
            group + "memory.max": "1073741824\n",
            group + "memory.high": "max\n",
            group + "memory.current": "83886080\n",
            group + "memory.stat": "anon 60817408\nfile 20971520\ninactive_file 10485760\n",
        },
    )
    limits = read_limits(root)
    assert limits == CgroupLimits(1 << 30, (1 << 30) - 73400320, 0.5)
    assert limits.whole_cpus == 1


def test_a_container_with_a_name_space_of_its_own_sees_its_limits_at_the_top(tmp_path):
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": UNIFIED,
            "sys/fs/cgroup/memory.max": "1073741824\n",
            "sys/fs/cgroup/cpu.max": "250000 100000\n",
        },
    )
    limits = read_limits(root)
    assert (limits.memory_bytes, limits.cpus, limits.whole_cpus) == (1 << 30, 2.5, 3)


def test_a_container_that_has_but_its_part_of_the_hierarchy_mounted_finds_it(tmp_path):
    """Docker with version 1: the path is the host's, the mount is the container's own part."""
    place = "/docker/0123abcd"
    mounts = (
        f"731 725 0:28 {place} /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
        f"732 725 0:29 {place} /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"
    )
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": f"8:memory:{place}/inner\n3:cpuacct,cpu:{place}\n",
            "proc/self/mountinfo": mounts,
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9000\n",
            "sys/fs/cgroup/memory/inner/memory.limit_in_bytes": "7000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
    )
    assert read_limits(root) == CgroupLimits(7000, 7000, 0.5)


def test_with_both_versions_at_once_each_controller_is_read_where_it_is(tmp_path):
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "9:memory:/m\n5:cpu,cpuacct:/c\n0::/u\n",
            "proc/self/mountinfo": HYBRID,
            "sys/fs/cgroup/unified/u/cpu.max": "100000 100000\n",
            "sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/m/memory.limit_in_bytes": "6000\n",
        },
    )
    assert read_limits(root) == CgroupLimits(6000, 6000, 1.0)


def test_a_path_outside_of_what_is_mounted_does_not_leave_it(tmp_path):
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/../../other\n",
            "proc/self/mountinfo": UNIFIED,
            "sys/fs/cgroup/memory.max": "8000\n",
            "sys/other/memory.max": "1\n",
        },
    )
    assert read_limits(root).memory_bytes == 8000


@pytest.mark.parametrize("text", ["", "garbage", "0::/not/mounted/here\n"])
@pytest.mark.parametrize("mounts", ["", UNIFIED, "garbage\n1 2 - cgroup2\n"])
def test_without_cgroups_nothing_is_limited(tmp_path, text, mounts):
    root = tree(tmp_path, {"proc/self/cgroup": text, "proc/self/mountinfo": mounts})
    assert read_limits(root) == CgroupLimits()
