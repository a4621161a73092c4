"""A worker that was taken over: every deed is refused or stopped, and the next unit runs.

``misbehaving_worker.py`` locks itself in exactly as production does and then does what
it is told; ``misbehaviour.py`` plays the daemon. All deeds of one user go through one
process, as root and as an ordinary user.
"""

import json
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

import as_nobody
import pytest

import shoal
from shoal.compute.sandbox import features, strangers_welcome
from shoal.compute.supervisor import open_worker

pytestmark = pytest.mark.skipif(
    not strangers_welcome(features()),
    reason="this kernel does not offer a whole sandbox: `shoal doctor` says what is missing",
)

HERE = Path(__file__).parent

REFUSED = {
    # deed, where or on what: what refuses it
    ("open a file outside", ""): "EPERM",
    ("write a file", "HOME"): "EPERM",
    ("read the node s key", "KEY"): "EPERM",
    ("see whether a file is there", "KEY"): "EPERM",
    ("list a directory", "HOME"): "EPERM",
    ("delete a file", "KEY"): "EPERM",
    ("fill the disk by a new file", "HOME"): "EPERM",
    ("fill the disk by an open file", ""): "EFBIG",
    ("make a memory file", ""): "EPERM",
    ("make a socket", ""): "EPERM",
    ("connect", "ADDRESS"): "EPERM",
    ("connect to another program", "SOCKET"): "EPERM",
    ("listen", ""): "EPERM",
    ("run a program", ""): "EPERM",
    ("spawn a program", ""): "EPERM",
    ("fork bomb", ""): "EPERM",
    ("thread bomb", ""): "RuntimeError: can't start new thread",
    ("trace the daemon", ""): "EPERM",
    ("read the daemon s memory", ""): "EPERM",
    ("signal the daemon", ""): "EPERM",
    ("signal a thread of the daemon", ""): "EPERM",
    ("have the kernel signal the daemon", ""): "EPERM",
    ("have the kernel signal the daemon by ioctl", ""): "EPERM",
    ("limit the daemon", ""): "EPERM",
    ("slow the daemon down", ""): "EPERM",
    ("outlive the daemon", ""): "EPERM",
    ("map executable memory", ""): "EPERM",
    ("make memory executable", ""): "EPERM",
    ("raise its memory limit", ""): "EPERM",
    ("raise its limit of open files", ""): "EPERM",
    ("raise its file size limit", ""): "EPERM",
    ("load another filter", ""): "EPERM",
    ("take capabilities", ""): "EPERM",
    ("become another user", ""): "EPERM",
    ("make every other system call", ""): "EPERM",
    ("use the new call for threads", ""): "ENOSYS",
    ("fill memory", ""): "stopped below 1024 MiB: True",
    ("find memory to write code into", ""): "0 of True",
    ("truncate its shared memory", ""): "EPERM",
}

STOPPED = {
    "spin": "time_limit",
    "sleep": "time_limit",
    "stop itself": "time_limit",
    "die": "worker_died: the worker ended with status 3",
    "crash": "worker_died: the worker was killed by SIGSEGV",
    "hang up": "worker_died",
    "answer nonsense": "worker_nonsense",
    "answer without end": "worker_nonsense",
    "announce more than it may send": "worker_nonsense",
}
if platform.machine() == "x86_64":
    STOPPED["call like a 32 bit program"] = "worker_died: the worker was killed by SIGSYS"
    STOPPED["call like an x32 program"] = "worker_died: the worker was killed by SIGSYS"

ALLOWED = {
    "use memory that is data": "done",
    "use a memory file of the daemon s": "hello",
    "talk without end": "done",
    "rewrite an output after handing it over": "honest",
    "hand the daemon files": "done",
}

POSSIBLE_UNLOCKED = {
    # All that an unlocked worker can be let do without harm.
    "open a file outside", "write a file", "read the node s key",
    "see whether a file is there", "list a directory", "fill the disk by a new file",
    "fill the disk by an open file", "make a memory file", "make a socket", "connect",
    "listen", "connect to another program", "spawn a program", "fork bomb", "thread bomb",
    "signal the daemon", "signal a thread of the daemon", "have the kernel signal the daemon",
    "have the kernel signal the daemon by ioctl", "limit the daemon",
    "slow the daemon down", "outlive the daemon", "map executable memory",
    "make memory executable",
}  # fmt: skip

FORGED = "answer before it is asked"

USERS = ["as root", "as an ordinary user"]


def outcomes(user, *flags):
    """What came of all deeds, as one user."""
    found = run_as(user, *flags)
    if isinstance(found, str):
        pytest.skip(found)
    assert found.returncode == 0, found.stderr[-2000:]
    return json.loads(found.stdout)


@cache
def run_as(user, *flags):
    """The process that did it, or why there is none."""
    everything = dict(REFUSED.keys())
    everything |= dict.fromkeys([*ALLOWED, *STOPPED, FORGED], "")
    wanted = {d: a for d, a in everything.items() if not flags or d in POSSIBLE_UNLOCKED}
    command = [sys.executable, "-P", str(HERE / "misbehaviour.py"), *flags]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(shoal.__file__).parents[1]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    options = {
        "check": False,
        "input": json.dumps(wanted),
        "capture_output": True,
        "text": True,
        "timeout": 120,
    }
    if os.getuid() != 0 and user == "as root":
        return "the tests do not run as root"
    if os.getuid() != 0 or user == "as root":
        return subprocess.run(command, env=environment, **options)  # noqa: PLW1510  # options
    try:
        return as_nobody.run(command, env=environment | {"HOME": "/tmp"}, **options)
    except PermissionError as error:
        return f"root may not become an ordinary user here: {error}"


@pytest.mark.parametrize("user", USERS)
def test_the_worker_is_locked_in_before_it_misbehaves(user):
    found = outcomes(user)
    assert found["sandbox"].startswith("landlock ")
    assert found["sandbox"].endswith(", seccomp")
    assert (found["uid"] == 0) == (user == "as root")


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(("deed", "refusal"), [(d, r) for (d, _), r in REFUSED.items()])
def test_a_deed_is_refused_and_the_next_unit_runs(user, deed, refusal):
    assert outcomes(user)[deed] == [refusal, True]


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(("deed", "code"), STOPPED.items())
def test_a_deed_is_stopped_and_named_and_the_next_unit_runs(user, deed, code):
    said, next_unit = outcomes(user)[deed]
    assert said.startswith(code)
    assert next_unit is True


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(("deed", "outcome"), ALLOWED.items())
def test_what_a_unit_needs_is_allowed_and_harms_nobody(user, deed, outcome):
    assert outcomes(user)[deed] == [outcome, True]


@pytest.mark.parametrize("user", USERS)
def test_an_answer_that_was_not_asked_for_ends_the_worker_and_the_next_unit_runs(user):
    assert outcomes(user)[FORGED] == ["done", True]


@pytest.mark.parametrize("user", USERS)
def test_nothing_was_written_and_the_key_is_still_there(user):
    assert outcomes(user)["left"] == ["identity.key", "socket"]


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("deed", sorted(POSSIBLE_UNLOCKED))
def test_the_same_deed_succeeds_where_nothing_is_locked(user, deed):
    assert outcomes(user, "unlocked")[deed] == ["done", True]


async def test_a_worker_that_was_taken_over_holds_nothing_of_another_requester():
    async with open_worker(threads=1, entry=(str(HERE / "misbehaving_worker.py"),)) as worker:

        async def do(requester, deed):
            converted = await worker.convert(requester, f"deed:{deed}".encode())
            return converted.blobs["outcome"].decode()

        await do("ann", "keep a secret:of ann's")
        assert await do("ann", "find the last requester s secret:") == "of ann's"
        assert await do("bob", "find the last requester s secret:") == "nothing"
        assert await do("ann", "find the last requester s secret:") == "of ann's"
