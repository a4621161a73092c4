"""The looser profile, in real processes: what a card's worker may do, and what it may not."""

from pathlib import Path

import pytest
from test_sandbox import REFUSALS, locked_in

from shoal.compute.sandbox import features, strangers_welcome

pytestmark = pytest.mark.skipif(
    not strangers_welcome(features()),
    reason="this kernel does not offer a whole sandbox: `shoal doctor` says what is missing",
)

LOCK = """
import ctypes, mmap, os, subprocess, sys, threading
from pathlib import Path
from shoal.compute.sandbox import GPU, HardLimits, lock_in, of_card_worker
from shoal.compute.card_meter import CardMeter
from shoal.compute.sandbox.kernel import call
scratch, key = sys.argv[1:]
parent = os.getppid()
program = Path(scratch, "program")
program.write_text("#!/bin/sh\\n"); program.chmod(0o700)
meter = CardMeter()
lock = lock_in(GPU, of_card_worker(scratch)).close(meter, HardLimits(1 << 30))
"""

DEEDS = (
    REFUSALS
    + LOCK
    + """
def run(path):
    return subprocess.run([path], check=False).returncode

def write(path):
    with open(path, "w") as file:
        file.write("x")

def thread():
    started = threading.Thread(target=lambda: None)
    started.start()
    started.join()

def code():
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()

def ioctl(number):
    import fcntl
    with open("/dev/null") as null:
        fcntl.ioctl(null, number)

print(json.dumps({
    "lock": str(lock), "complete": lock.complete,
    "write in its directory": refusal(write, scratch + "/made"),
    "make a directory there": refusal(os.mkdir, scratch + "/folder"),
    "run a compiler": refusal(run, "/bin/true"),
    "start a thread": refusal(thread),
    "map executable memory": refusal(code),
    "read what Python is made of": refusal(os.listdir, sys.prefix),
    "use a device": refusal(write, "/dev/null"),
    "ask a driver": refusal(ioctl, 0x4B01),  # no such device: but it got there
    "yield": refusal(os.nice, 1),
    "run what it wrote": refusal(run, str(program)),
    "read the key": refusal(open, key),
    "write beside the key": refusal(write, key + ".new"),
    "write elsewhere": refusal(write, "/tmp/shoal-gpu-was-here"),
    "read passwords": refusal(open, "/etc/shadow"),
    "make a device": refusal(os.mknod, scratch + "/node", 0o20600, 0x0103),
    "make a socket": refusal(socket.socket),
    "make a socket of its own": refusal(lambda: socket.socket(socket.AF_UNIX)),
    "connect to another program": refusal(
        lambda: socket.socket(socket.AF_UNIX).connect("/run/docker.sock")
    ),
    "send it a datagram": refusal(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)),
    "by a pair of sockets": refusal(
        lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ),
    "listen at a path": refusal(
        lambda: socket.socket(socket.AF_UNIX).bind(scratch + "/socket")
    ),
    "do it by a ring": refusal(lambda: call("io_uring_setup", 8, bytes(120))),
    "signal the daemon": refusal(os.kill, parent, 0),
    "open the daemon": refusal(os.pidfd_open, parent),
    "trace the daemon": refusal(lambda: call("ptrace", 16, parent, 0, 0)),
    "read its environment": refusal(open, f"/proc/{parent}/environ"),
    "limit the daemon": refusal(lambda: __import__("resource").prlimit(parent, 7)),
    "slow the daemon down": refusal(os.setpriority, os.PRIO_PROCESS, parent, 19),
    "leave the session": refusal(os.setsid),
    "leave the group": refusal(os.setpgid, 0, 0),
    "make a namespace": refusal(lambda: call("unshare", 0x10000000)),
    "have signals sent": refusal(ioctl, 0x8901),
    "fill the disk": refusal(lambda: os.truncate(scratch + "/made", 2 << 30)),
}))
"""
)

MAY = {
    "write in its directory", "make a directory there", "run a compiler", "start a thread",
    "map executable memory", "read what Python is made of", "use a device", "yield",
    "make a socket of its own",
}  # fmt: skip
BY_LANDLOCK = {
    "run what it wrote", "read the key", "write beside the key", "write elsewhere",
    "read passwords", "make a device", "listen at a path", "read its environment",
}  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    (folder / "scratch").mkdir()
    (folder / "identity.key").write_text("secret")
    arguments = [str(folder / "scratch"), str(folder / "identity.key")]
    return locked_in(f"import json\nsys.argv = ['', *{arguments!r}]\n" + DEEDS)


def test_the_profile_is_in_force_and_is_named(found):
    assert found["complete"]
    assert found["lock"].startswith("profile gpu (looser): landlock ")


@pytest.mark.parametrize("deed", sorted(MAY))
def test_what_drivers_and_compilers_take_is_allowed(found, deed):
    assert found[deed] == "done"


@pytest.mark.parametrize("deed", sorted(BY_LANDLOCK))
def test_files_of_others_are_not_to_be_had(found, deed):
    assert found[deed] in {"EACCES", "EPERM"}


def test_all_else_is_refused(found):
    others = {deed: what for deed, what in found.items() if deed not in MAY | BY_LANDLOCK}
    del others["lock"], others["complete"]
    assert others.pop("ask a driver") == "ENOTTY"
    assert others.pop("fill the disk") == "EFBIG"
    assert others.pop("connect to another program") == "ECONNREFUSED"
    assert others == dict.fromkeys(others, "EPERM")
    assert len(others) > 10


HOME_BENEATH = """
import json
from pathlib import Path
from shoal.compute.sandbox import GPU, lock_in, of_card_worker
folder, home, link = map(Path, sys.argv[1:])
sys.path.append(str(folder))  # as a virtual environment's packages are read
lock = lock_in(GPU, of_card_worker("", home=str(link)))
print(json.dumps({
    "lock": str(lock),
    "key": refusal(open, home / "identity.key"),
    "list": refusal(os.listdir, home),
    "another requester's blob": refusal(open, home / "blobs" / "ab"),
    "package": refusal(open, folder / "lib" / "package.py"),
    "packages": refusal(os.listdir, folder / "lib"),
    "beside the home": refusal(open, folder / "var" / "beside"),
    "the way down": refusal(os.listdir, folder / "var"),
    "by a link": refusal(open, folder / "lib2" / "identity.key"),
    "by a link elsewhere": refusal(open, folder / "elsewhere"),
}))
"""


def test_a_home_that_lies_where_python_is_read_is_not_read(tmp_path):
    folder, outside = tmp_path / "venv", tmp_path / "outside"
    home = folder / "var" / "shoal"
    for directory in (home / "blobs", folder / "lib"):
        directory.mkdir(parents=True)
    files = (home / "identity.key", home / "blobs" / "ab", folder / "lib" / "package.py")
    for file in (*files, folder / "var" / "beside", outside):
        file.write_text("x")
    (folder / "lib2").symlink_to(home)
    (folder / "elsewhere").symlink_to(outside)
    link = tmp_path / "link"
    link.symlink_to(folder)
    arguments = [str(folder), str(home), str(link / "var" / "shoal")]
    found = locked_in(f"sys.argv = ['', *{arguments!r}]\n" + REFUSALS + HOME_BENEATH)
    assert found.pop("lock").startswith("profile gpu (looser): landlock ")
    may = {"package", "packages", "beside the home"}
    assert {deed for deed, what in found.items() if what == "done"} == may
    assert {what for deed, what in found.items() if deed not in may} == {"EACCES"}


def test_what_a_card_s_worker_started_ends_with_it(tmp_path):
    script = f"""
import json, os, sys, time, trio
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from shoal.compute.worker_process import Place, WorkerProcess
code = "import os, time; os.fork(); print(flush=True); time.sleep(60)"
async def main():
    process = WorkerProcess(("-c", code), Place(scratch=Path({str(tmp_path)!r})))
    def members():
        files = Path("/proc").glob("[0-9]*/stat")
        stats = [file.read_text().rpartition(")")[2].split() for file in files]
        return sum(s[2] == str(process.pid) and s[0] != "Z" for s in stats)
    while members() < 2:
        await trio.sleep(0.02)
    await process.end()
    while members():
        await trio.sleep(0.02)
    print(json.dumps([members(), os.listdir({str(tmp_path)!r})]))
trio.run(main)
"""
    assert locked_in(script) == [0, []]
