"""Real processes that lock themselves in: each layer alone, all, and with one missing."""

import errno
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import parser

from shoal.compute.convert import convert
from shoal.compute.frames import UnitLimits
from shoal.compute.sandbox import features, strangers_welcome
from shoal.compute.sandbox.kernel import AARCH64, X86_64
from shoal.compute.supervisor import open_worker
from shoal.compute.tensor import to_blob

HERE = Path(__file__).parent
OUTER = str(HERE / "outer_sandbox.py")
LIMITS = UnitLimits(time_s=20.0, memory_bytes=1 << 28, output_bytes=1 << 20)


def locked_in(script, **options):
    """Run a script in a process of its own; gives what it printed as JSON."""
    prelude = f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", prelude + script],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


pytestmark = pytest.mark.skipif(
    not strangers_welcome(features()),
    reason="this kernel does not offer a whole sandbox: `shoal doctor` says what is missing",
)

REFUSALS = """
import errno, json, os, socket
def refusal(deed, *arguments):
    try:
        deed(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
"""


def test_landlock_alone_refuses_files_tcp_and_signals():
    found = locked_in(
        REFUSALS
        + """
from shoal.compute.sandbox import landlock
from shoal.compute.sandbox.kernel import call
server = socket.create_server(("127.0.0.1", 0))
one, two = socket.socket(), socket.socket()
hidden = socket.socket(socket.AF_UNIX)
call("prctl", 38, 1, 0, 0, 0)
abi = landlock.restrict()
print(json.dumps({
    "abi": abi,
    "read": refusal(os.open, "/etc/passwd", os.O_RDONLY),
    "write": refusal(os.open, "/tmp/there", os.O_WRONLY | os.O_CREAT),
    "list": refusal(os.listdir, "/"),
    "run": refusal(os.execv, "/bin/true", ["true"]),
    "connect": refusal(one.connect, server.getsockname()),
    "bind": refusal(two.bind, ("127.0.0.1", 0)),
    "signal": refusal(os.kill, os.getppid(), 0),
}))
"""
    )
    abi = found.pop("abi")
    expected = dict.fromkeys(["read", "write", "list", "run"], "EACCES")
    expected |= dict.fromkeys(["connect", "bind"], "EACCES" if abi >= 4 else "done")
    expected["signal"] = "EPERM" if abi >= 6 else "done"
    assert found == expected


def test_with_a_second_thread_a_lock_is_not_complete_and_says_why():
    found = locked_in(
        """
import json, threading, time
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
from shoal.compute.sandbox import CPU, lock_in
lock = lock_in(CPU)
print(json.dumps([lock.complete, str(lock)]), flush=True)
import os; os._exit(0)
"""
    )
    complete, said = found
    assert not complete
    assert re.fullmatch(r"landlock \d+, seccomp; landlock: 2 threads run already.*", said)


@pytest.mark.parametrize(
    ("call", "error", "name", "hint"),
    [
        ("landlock_create_ruleset", errno.ENOSYS, "landlock", "Linux 5.13"),
        ("landlock_create_ruleset", errno.EOPNOTSUPP, "landlock", "lsm="),
        ("landlock_create_ruleset", errno.EPERM, "landlock", "outer sandbox"),
        ("seccomp", errno.ENOSYS, "seccomp", "CONFIG_SECCOMP_FILTER"),
        ("seccomp", errno.EPERM, "seccomp", "outer sandbox"),
    ],
)
def test_a_feature_that_is_not_offered_is_named_with_the_next_step(call, error, name, hint):
    found = locked_in(
        f"""
import json
from outer_sandbox import refuse
from shoal.compute.sandbox import features, strangers_welcome
refuse({call!r}, {error})
found = features()
missing = [[f.name, f.hint] for f in found if not f.offered]
print(json.dumps([strangers_welcome(found), missing]))
"""
    )
    welcome, missing = found
    assert not welcome
    assert [name] == [feature for feature, _ in missing]
    assert hint in missing[0][1]


@pytest.mark.parametrize(
    ("call", "error", "sandbox"),
    [
        ("landlock_create_ruleset", errno.ENOSYS, r"seccomp; landlock: .*"),
        ("landlock_restrict_self", errno.EPERM, r"seccomp; landlock: .*"),
        ("seccomp", errno.EPERM, r"landlock \d+; seccomp: .*"),
    ],
)
async def test_a_worker_without_a_whole_sandbox_runs_units_and_says_what_is_missing(
    call, error, sandbox
):
    program = convert(
        parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 18]>'
            "g (float[n] x) => (float[n] y) { y = Add(x, x) }"
        ).SerializeToString()
    )

    async def fetch_blobs():
        return program.blobs

    async with open_worker(threads=2, entry=(OUTER, call, str(error))) as worker:
        assert not worker.sandboxed  # nothing is claimed before a worker has started
        x = np.ones(2, np.float32)
        ran = await worker.run(
            "ann", program.program_id, fetch_blobs, {"x": to_blob(x)}, LIMITS
        )
        assert ran.outputs["y"] == to_blob(x + x)
        assert not worker.sandboxed
        assert re.fullmatch(sandbox, worker.sandbox)


def statuses_of_threads(pid):
    texts = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return [
        dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        for text in texts
    ]


async def test_every_thread_of_a_worker_is_locked_in():
    async with open_worker(threads=3) as worker:
        await worker.probe()
        assert worker.sandboxed
        threads = statuses_of_threads(worker.pids[""])
    assert len(threads) == 4  # itself, two of ONNX Runtime's, and the watchdog
    for status in threads:
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        assert status["Seccomp_filters"] >= "2"
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0


async def test_the_memory_of_a_worker_has_a_hard_limit_that_follows_the_operator_s():
    def hard_limit(pid):
        limits = Path(f"/proc/{pid}/limits").read_text()
        return int(re.search(r"Max address space +\S+ +(\d+)", limits)[1])

    found = []
    for memory_bytes in (1 << 28, 1 << 30):
        async with open_worker(threads=1, memory_bytes=memory_bytes) as worker:
            await worker.probe()
            found.append(hard_limit(worker.pids[""]))
    more = found[1] - found[0]
    assert abs(more - 3 * ((1 << 30) - (1 << 28))) < 1 << 28  # mapped memory varies a little


def test_processor_time_beyond_a_request_s_ends_the_process():
    script = (
        "from shoal.compute.sandbox import Meter\n"
        "Meter().hold(1 << 30, 0.1)\n"
        "while True: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    assert done.returncode == -signal.SIGXCPU


def test_processor_time_within_a_request_s_is_taken_back_afterwards():
    soft = locked_in(
        """
import json, resource
from shoal.compute.sandbox import Meter
meter = Meter()
seen = []
for _ in range(2):
    meter.hold(1 << 30, 5.0)
    seen.append(resource.getrlimit(resource.RLIMIT_CPU)[0] > 0)
    meter.release()
    seen.append(resource.getrlimit(resource.RLIMIT_CPU)[0])
print(json.dumps(seen))
"""
    )
    assert soft == [True, -1, True, -1]


def numbers_in(header):
    text = Path(header).read_text()
    return {
        name: int(number)
        for name, number in re.findall(
            r"#define __NR(?:3264)?_(\w+)\s+(\d+)$", text, re.MULTILINE
        )
    }


@pytest.mark.parametrize(
    ("architecture", "headers"),
    [
        (X86_64, ["x86_64-linux-gnu/asm/unistd_64.h", "asm/unistd_64.h"]),
        (AARCH64, ["asm-generic/unistd.h"]),
    ],
)
def test_the_numbers_of_system_calls_are_those_of_the_kernel_s_headers(architecture, headers):
    present = [p for p in (Path("/usr/include", header) for header in headers) if p.exists()]
    if not present:
        pytest.skip(f"the kernel's headers for {architecture.name} are not installed")
    found = numbers_in(present[0])
    assert {name: found[name] for name in architecture.syscalls} == architecture.syscalls
