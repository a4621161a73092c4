"""`shoal devices --json` as a process: on this machine, in a cgroup, with stub libraries.

The vendors' libraries are C stubs (``tests/stubs``), found by the loader as the real
ones are; all else is real.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import pytest
from daemons import SHOAL, clean_environment, eventually

from shoal.compute.cgroups import _directories
from shoal.compute.devices import detect
from shoal.node.client import Client

STUBS = Path(__file__).parent.parent / "stubs"
GIB = 1 << 30


def has_gpu():
    vendors = (p.read_text() for p in Path("/sys/class/drm").glob("card*/device/vendor"))
    return Path("/dev/nvidiactl").exists() or "0x1002\n" in vendors


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    """A directory with a stub for each vendor: a real machine would have them in /usr/lib."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc, which the stub libraries are built with, is not installed")
    folder = tmp_path_factory.mktemp("libraries")
    for source, library in (("nvml.c", "libnvidia-ml.so.1"), ("amd_smi.c", "libamd_smi.so")):
        subprocess.run(
            ["gcc", "-std=c11", "-shared", "-fPIC", "-o", folder / library, STUBS / source],
            check=True,
        )
    return folder


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def devices(home, *arguments, wrap=(), code=0, **variables):
    """Run ``shoal devices``, in JSON where nothing else is asked for."""
    ended = subprocess.run(
        [*wrap, *SHOAL, "devices", f"--home={home}", *(arguments or ["--json"])],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=clean_environment() | variables,
    )
    assert ended.returncode == code, ended
    return ended.stdout if arguments else json.loads(ended.stdout)


@pytest.fixture
def look(libraries, monkeypatch):
    """What the daemon sees with the stubs in the loader's way: the command less its worker."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(libraries))

    def look(limit_s=20.0, **variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return msgspec.to_builtins(detect(limit_s))

    return look


def missing(found):
    return {lack["kind"]: lack for lack in found["missing"]}


def by_id(found):
    return {device["id"]: device for device in found["devices"]}


def lacks(device):
    return [lack["code"] for lack in device["missing"]]


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
def test_with_no_gpu_the_cpu_is_all_there_is_and_nothing_is_to_be_done(home):
    found = devices(home)
    assert list(by_id(found)) == ["cpu"]
    assert {kind: lack["code"] for kind, lack in missing(found).items()} == {
        "nvidia": "absent",
        "amd": "absent",
    }
    assert not any(lack["hint"] for lack in found["missing"])
    cpu = found["devices"][0]
    assert cpu["threads"] <= len(os.sched_getaffinity(0))
    assert 0 < cpu["memory_free_bytes"] < cpu["memory_bytes"]
    assert [(a["executor"], a["evidence"]) for a in cpu["abilities"]] == [
        ("onnxruntime", "executed")
    ]
    assert not found["by_daemon"]
    assert not home.exists()  # looking makes nothing


def test_an_nvml_without_a_driver_is_explained_with_the_next_step(home, libraries):
    found = devices(home, LD_LIBRARY_PATH=str(libraries), STUB_NVML="no driver")
    assert not [device for device in found["devices"] if device["kind"] == "nvidia"]
    lack = missing(found)["nvidia"]
    assert lack["code"] == "driver_not_loaded"
    assert "NVML is there and the driver is not loaded" in lack["reason"]
    assert "modprobe nvidia" in lack["hint"]


@pytest.mark.parametrize(
    ("mode", "codes", "reason", "hint"),
    [
        ("mismatch", {"driver_mismatch"}, "of different versions", "anew"),
        ("no permission", {"no_permission"}, "may not open", "usermod"),
        ("no card", {"no_card", "not_passed"}, "no card", "`"),
        ("crash", {"look_failed"}, "killed by SIGABRT", "install its driver anew"),
    ],
)
def test_an_nvml_that_gives_no_card_is_explained(look, mode, codes, reason, hint):
    found = look(STUB_NVML=mode)
    assert not [device for device in found["devices"] if device["kind"] == "nvidia"]
    lack = missing(found)["nvidia"]
    assert lack["code"] in codes
    assert reason in lack["reason"]
    assert hint in lack["hint"]


def test_a_driver_that_hangs_is_given_up_and_the_other_vendor_is_seen(look):
    found = look(limit_s=3.0, STUB_NVML="hang")
    assert missing(found)["nvidia"]["code"] == "driver_hangs"
    assert by_id(found)["gpu0"]["name"] == "AMD Instinct MI300X"


def test_two_cards_and_mig_instances_are_devices_of_their_own(home, libraries):
    found = by_id(devices(home, LD_LIBRARY_PATH=str(libraries)))
    assert list(found) == ["cpu", "gpu0", "gpu1-mig0", "gpu1-mig3", "gpu2", "gpu3"]
    h100, small, large = found["gpu0"], found["gpu1-mig0"], found["gpu1-mig3"]
    assert h100["name"] == "NVIDIA H100 80GB HBM3"
    assert (h100["memory_bytes"], h100["memory_free_bytes"]) == (85 * 10**9, 80 * 10**9)
    assert (h100["driver"], h100["driver_supports"]) == ("550.54.15", "CUDA 12.4")
    assert (h100["target"], h100["pci"]) == ("sm_90", "0000:1b:00.0")
    assert h100["uuid"].startswith("GPU-")
    assert (small["memory_free_bytes"], large["memory_free_bytes"]) == (4 * 10**9, 20 * 10**9)
    assert (small["memory_bytes"], large["memory_bytes"]) == (5 * 10**9, 21 * 10**9)
    assert [part["name"].split()[-1] for part in (small, large)] == ["1g.5gb", "3g.20gb"]
    assert {small["card"], large["card"]} == {"gpu1"}
    assert {small["target"], large["target"]} == {"sm_80"}
    for device in (h100, small, large):
        assert (device["executors"], device["abilities"]) == ([], [])
        assert lacks(device) == ["not_probed"]
        assert device["missing"][0]["hint"]


def test_two_amd_cards_are_read_through_amdsmi(home, libraries):
    found = by_id(devices(home, LD_LIBRARY_PATH=str(libraries), STUB_NVML="no driver"))
    first, second = found["gpu0"], found["gpu1"]
    assert first["name"] == second["name"] == "AMD Instinct MI300X"
    assert (first["target"], first["driver"]) == ("gfx942", "6.14.14")
    assert (first["pci"], second["pci"]) == ("0001:c0:02.0", "0001:c1:02.0")
    assert (first["memory_bytes"], first["memory_free_bytes"]) == (206141652992, 206 * 10**9)
    assert second["memory_free_bytes"] == 205 * 10**9
    assert first["uuid"] == "62ff74a1-0000-1000-807d-1a2b3c4d5e6f"
    assert "not_probed" in lacks(first)


def test_an_older_rocm_with_shorter_structures_is_read_as_well(look):
    gpu = by_id(look(STUB_NVML="no driver", STUB_AMDSMI="rocm6.2"))["gpu0"]
    assert (gpu["name"], gpu["driver"]) == ("AMD Instinct MI300X", "6.8.5")
    assert gpu["target"] == ""  # that library does not know it, and nothing is made up


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU, which its kernel shows")
def test_a_rocm_that_is_too_old_is_not_read(look):
    assert missing(look(STUB_AMDSMI="rocm6.0"))["amd"]["code"] == "absent"


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU, which its kernel shows")
def test_an_amdsmi_that_does_not_start_is_named_with_its_error(look):
    lack = missing(look(STUB_AMDSMI="no driver"))["amd"]
    assert lack["code"] == "driver_not_loaded"
    assert "DRIVER_NOT_LOADED" in lack["reason"]
    assert "modprobe amdgpu" in lack["hint"]


def test_a_card_that_fails_keeps_its_number_and_hides_no_other(look):
    found = by_id(look(STUB_NVML="lost card", STUB_AMDSMI="busy card"))
    assert list(found) == ["cpu", "gpu0", "gpu1-mig0", "gpu1-mig3", "gpu2", "gpu3"]
    assert (lacks(found["gpu0"])[0], lacks(found["gpu2"])[0]) == ("card_failed", "card_failed")
    assert found["gpu1-mig0"]["memory_bytes"] == 5 * 10**9
    assert found["gpu3"]["name"] == "AMD Instinct MI300X"


def test_mig_mode_without_an_instance_says_how_to_make_one(look):
    (lack,) = by_id(look(STUB_NVML="no instance"))["gpu1"]["missing"]
    assert lack["code"] == "no_mig_instance"
    assert "nvidia-smi mig -cgi" in lack["hint"]


def test_a_card_that_shares_the_cpus_memory_claims_none_of_its_own(look):
    card = by_id(look(STUB_NVML="shared memory"))["gpu0"]
    assert card["memory_bytes"] == 0
    assert "shares the memory of the CPU" in card["note"]


def test_what_cuda_visible_devices_hides_is_listed_and_marked(look):
    found = by_id(look(CUDA_VISIBLE_DEVICES="GPU-63feeb45"))
    assert lacks(found["gpu0"]) == []
    assert lacks(found["gpu1-mig0"]) == ["hidden"]


def test_what_a_library_prints_does_not_end_up_in_the_answer(look):
    assert by_id(look(STUB_NVML="chatty"))["gpu0"]["kind"] == "nvidia"


def test_people_read_what_is_missing_once_with_the_next_step(home, libraries):
    text = devices(home, "--socket", home / "none", LD_LIBRARY_PATH=str(libraries))
    lines = text.splitlines()
    columns = ("DEVICE", "NAME", "MEMORY FREE", "DRIVER", "RUNS", "TAKES WORK")
    assert lines[0].split() == " ".join(columns).split()
    (unused,) = [
        n for n, line in enumerate(lines) if "what runs on cards was not looked at" in line
    ]
    assert lines[unused].startswith("gpu0, gpu1-mig0, gpu1-mig3, gpu2, gpu3: ")
    assert lines[unused + 1].startswith("  next: ")


def test_a_daemon_asks_the_libraries_each_time_and_outlives_one_that_crashes(
    home, libraries, tmp_path
):
    free = tmp_path / "free"
    free.write_text("80000000000")
    places = {"LD_LIBRARY_PATH": str(libraries), "STUB_NVML_FREE": str(free)}
    with daemon(home, **places):
        assert by_id(devices(home))["gpu0"]["memory_free_bytes"] == 80 * 10**9
        free.write_text("17")
        found = devices(home)
        assert by_id(found)["gpu0"]["memory_free_bytes"] == 17
        assert found["by_daemon"]
        free.write_text("no number")  # at which the stub aborts
        assert missing(devices(home))["nvidia"]["code"] == "look_failed"
        free.write_text("18")
        assert by_id(devices(home))["gpu0"]["memory_free_bytes"] == 18
        with Client(home=home) as client:  # asking for devices makes it ask the libraries
            eventually(lambda: client.status().sandboxed, 60, "a worker has settled in")
        eventually(lambda: by_id(devices(home))["cpu"]["executors"], 60)


@contextmanager
def daemon(home, **variables):
    command = [*SHOAL, "up", f"--home={home}", "--listen=/ip4/127.0.0.1/tcp/0"]
    with subprocess.Popen(
        command, env=clean_environment() | variables, stderr=subprocess.DEVNULL
    ) as running:
        try:
            eventually((home / "shoal.sock").exists, 60)
            yield
        finally:
            running.terminate()
            running.wait(60)


@contextmanager
def small_cgroup():
    """A group of half a core and 1 GiB below this process's own; gives its directories."""
    with ExitStack() as undo:
        made = []
        for parent in own_cgroups():
            group = parent / f"shoal-test-{os.getpid()}"
            try:
                group.mkdir()
                undo.callback(remove, group)
                for name, value in (
                    ("cpu.max", "50000 100000"),
                    ("memory.max", str(GIB)),
                    ("cpu.cfs_period_us", "100000"),
                    ("cpu.cfs_quota_us", "50000"),
                    ("memory.limit_in_bytes", str(GIB)),
                ):
                    if (group / name).exists():
                        (group / name).write_text(value)
                        made.append(name.partition(".")[0])
            except OSError as error:
                pytest.skip(f"no cgroup can be made in {parent}: {error.strerror}")
        if not {"cpu", "memory"} <= {*made}:
            pytest.skip(f"cgroups limit no more than {sorted(set(made))} here")
        yield [parent / f"shoal-test-{os.getpid()}" for parent in own_cgroups()]


def own_cgroups():
    """This process's own groups, the innermost of each hierarchy that limits something."""
    innermost = []
    for directory in _directories(Path("/")):
        if not any(directory in other.parents for other in innermost):
            innermost.append(directory)
    return [
        d
        for d in innermost
        if any((d / name).exists() for name in ("cpu.cfs_quota_us", "memory.limit_in_bytes"))
        or {"cpu", "memory"} <= {*read(d / "cgroup.subtree_control").split()}
    ]


def read(path):
    return path.read_text() if path.exists() else ""


def remove(group):
    """A group whose processes have ended; the kernel may need a moment to notice."""
    deadline = time.monotonic() + 10
    while True:
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def test_in_a_cgroup_of_half_a_core_and_1_gib_the_node_has_that_and_no_more(home):
    with small_cgroup() as groups:
        join = " && ".join(f"echo $$ > {group}/cgroup.procs" for group in groups)
        wrap = ["sh", "-c", f'{join} && exec "$@"', "sh"]
        cpu = devices(home, wrap=wrap)["devices"][0]
        assert (cpu["cores"], cpu["threads"]) == (1, 1)
        assert cpu["memory_bytes"] == GIB
        assert 0 < cpu["memory_free_bytes"] < GIB
        assert cpu["note"] == (
            "limited to 0.5 CPUs by its cgroup; limited to 1.1 GB by its cgroup"
        )
        assert cpu["executors"] == ["onnxruntime"]  # the canary runs within the limits
        settings = (
            "from shoal.node.config import load\n"
            "config = load({}); print(config.cores, config.memory_bytes)"
        )
        given = subprocess.check_output(
            [*wrap, sys.executable, "-c", settings], env=clean_environment(), text=True
        )
        assert given.split() == ["1", str(GIB // 2)]
