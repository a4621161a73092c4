"""A worker that locks itself in as every worker does, and then misbehaves when told to.

The test build of ``shoal.compute.worker``: its `main`, with a class of workers that knows
deeds. Where it is asked to convert a model and gets ``deed:NAME:ARGUMENT`` it does the
deed; the blob that it answers with is the name of the errno that refused it, or what it
achieved. Everything else it does like any worker. The supervisor starts it by
``open_worker(entry=(this file,))``; with ``unlocked`` behind the file's name it does not
lock itself in, which shows that the deeds are possible where nothing refuses them.

To add a deed: write a function here, and a line in the table of
``test_misbehaving_worker.py``.
"""

# Bare calls, so that what is refused is what is named:
# ruff: noqa: PTH108, PTH116, PTH123, PTH208

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import tempfile
import threading
import time

import msgspec

from shoal.compute import frames, worker
from shoal.compute.sandbox import Lock
from shoal.compute.sandbox.kernel import architecture
from shoal.compute.sandbox.profiles import CPU

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
PAGE = mmap.PAGESIZE
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
READ, WRITE, EXECUTE = mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC

CHANNEL = int(sys.argv[-1])
DAEMON = os.getppid()
DEEDS = {}
KEPT = []

OPENED_BEFORE = tempfile.TemporaryFile()  # what a library might have left open  # noqa: SIM115
SOCKETS = [socket.socket(), socket.socket(), socket.socket(socket.AF_UNIX)]
CODE = LIBC.mmap(None, PAGE, READ | WRITE | EXECUTE, PRIVATE, -1, 0)  # as libffi has it
# mov eax, 20 (getpid); int 0x80; ret: the system call of a 32-bit program
ctypes.memmove(CODE, b"\xb8\x14\x00\x00\x00\xcd\x80\xc3", 8)


class Misbehaving(worker.Worker):
    """Does deeds."""

    def convert(self, request, attachments):
        (model,) = attachments
        if bytes(model[:5]) != b"deed:":
            return super().convert(request, attachments)
        name, _, argument = bytes(model[5:]).decode().partition(":")
        try:
            outcome = DEEDS[name](argument) or "done"
        except OSError as error:
            outcome = errno.errorcode[error.errno]
        except (RuntimeError, MemoryError) as error:
            outcome = f"{type(error).__name__}: {error}"
        return frames.Converted("0" * 64, ("outcome",)), [outcome.encode()]


def deed(function):
    DEEDS[function.__name__.replace("_", " ")] = function
    return function


def c(function, *arguments):
    """Call a function of the C library, whose failure is an errno."""
    result = function(*arguments)
    if result in (-1, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "")
    return result


# --- files ---


@deed
def open_a_file_outside(_):
    os.close(os.open("/etc/passwd", os.O_RDONLY))


@deed
def write_a_file(directory):
    os.close(os.open(f"{directory}/written", os.O_WRONLY | os.O_CREAT))


@deed
def read_the_node_s_key(path):
    os.close(os.open(path, os.O_RDONLY))


@deed
def see_whether_a_file_is_there(path):
    os.stat(path)


@deed
def list_a_directory(directory):
    os.listdir(directory)


@deed
def delete_a_file(path):
    os.unlink(path)


@deed
def fill_the_disk_by_a_new_file(directory):
    with open(f"{directory}/full", "wb") as file:
        file.truncate(1 << 20)


@deed
def fill_the_disk_by_an_open_file(_):
    os.write(OPENED_BEFORE.fileno(), b"more")


@deed
def make_a_memory_file(_):
    os.close(os.memfd_create("full"))


# --- the network ---


@deed
def make_a_socket(_):
    socket.socket().close()


@deed
def connect(address):
    host, _, port = address.encode().rpartition(b":")  # text would need another module
    SOCKETS[0].connect((host, int(port)))


@deed
def listen(_):
    SOCKETS[1].bind((b"127.0.0.1", 0))
    SOCKETS[1].listen()


@deed
def connect_to_another_program(path):
    SOCKETS[2].connect(path)


# --- processes ---


@deed
def run_a_program(_):
    os.execv("/bin/true", ["true"])


@deed
def spawn_a_program(_):
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)


@deed
def fork_bomb(_):
    for _ in range(3):  # enough to show: without a sandbox nothing would stop the fourth
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)


@deed
def thread_bomb(_):
    for _ in range(3):
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()


@deed
def trace_the_daemon(_):
    attach, detach = 16, 17
    c(LIBC.ptrace, attach, DAEMON, None, None)
    c(LIBC.ptrace, detach, DAEMON, None, None)


@deed
def read_the_daemon_s_memory(_):
    buffer = ctypes.create_string_buffer(8)
    here = struct.pack("@PN", ctypes.addressof(buffer), 8)
    there = struct.pack("@PN", CODE, 8)  # anywhere: allowed, it is EFAULT or data
    c(LIBC.process_vm_readv, DAEMON, here, 1, there, 1, 0)


@deed
def signal_the_daemon(_):
    os.kill(DAEMON, signal.SIGURG)  # ignored by whoever has not asked for it


@deed
def signal_a_thread_of_the_daemon(_):
    c(LIBC.tgkill, DAEMON, DAEMON, signal.SIGURG)


@deed
def have_the_kernel_signal_the_daemon(_):
    fcntl.fcntl(CHANNEL, fcntl.F_SETOWN, DAEMON)


@deed
def have_the_kernel_signal_the_daemon_by_ioctl(_):
    fiosetown = 0x8901
    fcntl.ioctl(CHANNEL, fiosetown, struct.pack("@i", DAEMON))


@deed
def limit_the_daemon(_):
    limits = resource.prlimit(DAEMON, resource.RLIMIT_NOFILE)
    resource.prlimit(DAEMON, resource.RLIMIT_NOFILE, limits)


@deed
def slow_the_daemon_down(_):
    os.setpriority(os.PRIO_PROCESS, DAEMON, os.getpriority(os.PRIO_PROCESS, DAEMON))


@deed
def outlive_the_daemon(_):
    set_parent_death_signal = 1
    c(LIBC.prctl, set_parent_death_signal, 0)


# --- memory ---


@deed
def map_executable_memory(_):
    c(LIBC.mmap, None, PAGE, READ | EXECUTE, PRIVATE, -1, 0)


@deed
def make_memory_executable(_):
    page = c(LIBC.mmap, None, PAGE, READ | WRITE, PRIVATE, -1, 0)
    c(LIBC.mprotect, ctypes.c_void_p(page), PAGE, READ | EXECUTE)


@deed
def find_memory_to_write_code_into(_):
    with open(MAPS, "rb", closefd=False) as maps:
        permissions = [line.split()[1] for line in maps]
    found = sum(b"w" in p and b"x" in p for p in permissions)
    return f"{found} of {bool(permissions)}"


@deed
def use_memory_that_is_data(_):
    page = c(LIBC.mmap, None, PAGE, READ | WRITE, PRIVATE, -1, 0)
    c(LIBC.mprotect, ctypes.c_void_p(page), PAGE, READ)


@deed
def use_a_memory_file_of_the_daemon_s(_):
    """One that was opened before the lock, like one that is received later."""
    with mmap.mmap(LENT, PAGE, mmap.MAP_SHARED, READ | WRITE) as memory:
        memory[:5] = b"hello"
        return bytes(memory[:5]).decode()


def lent_for_the_answer():
    """The memory that the daemon lent for this answer: the one file that keeps its size."""
    for fd in range(64):
        try:
            if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
                return fd
        except OSError:
            continue
    raise RuntimeError("nothing was lent")


@deed
def truncate_its_shared_memory(_):
    os.ftruncate(lent_for_the_answer(), 0)


@deed
def rewrite_an_output_after_handing_it_over(_):
    with mmap.mmap(lent_for_the_answer(), PAGE, mmap.MAP_SHARED, READ | WRITE) as memory:
        memory[:6] = b"honest"
        converted = frames.Converted("0" * 64, ("outcome",))
        for piece in frames.encode_answer(converted, [bytes(6)], inline=False):
            os.write(CHANNEL, piece)
        time.sleep(0.2)
        memory[:6] = b"forged"
        time.sleep(0.2)
    os._exit(0)


@deed
def keep_a_secret(secret):
    KEPT.append(secret)


@deed
def find_the_last_requester_s_secret(_):
    return KEPT[-1] if KEPT else "nothing"


@deed
def fill_memory(_):
    hoard = []
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))  # as far as it goes
    try:
        while True:
            hoard.append(bytearray(16 << 20))
    except MemoryError:
        taken = len(hoard) * 16
        hoard.clear()
        return f"stopped below 1024 MiB: {taken < 1024}"


@deed
def raise_its_memory_limit(_):
    set_limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)


@deed
def raise_its_limit_of_open_files(_):
    set_limit(resource.RLIMIT_NOFILE, 65)


@deed
def raise_its_file_size_limit(_):
    set_limit(resource.RLIMIT_FSIZE, 1)


# --- the sandbox itself ---


@deed
def load_another_filter(_):
    set_mode_filter = 1
    c(LIBC.syscall, architecture().syscalls["seccomp"], set_mode_filter, 0, None)


@deed
def take_capabilities(_):
    header = struct.pack("=Ii", 0x20080522, 0)
    c(LIBC.capset, header, struct.pack("=6I", 1 << 21, 1 << 21, 0, 0, 0, 0))


@deed
def become_another_user(_):
    os.setuid(1)


@deed
def make_every_other_system_call(_):
    """All that are not allowed under some condition, their arguments zero.

    Not uretprobe and uprobe: they end the caller by SIGILL before any filter is asked.
    """
    assert not unlocked()
    before_filters = {335, 336} if architecture().name == "x86_64" else set()
    names = {**CPU.allowed, **CPU.of_own_process, **CPU.errnos}
    numbers = architecture().syscalls
    allowed = {numbers[name] for name in names if name in numbers}
    seen = set()
    for number in range(1024):
        if number not in allowed | before_filters:
            ctypes.set_errno(0)
            assert LIBC.syscall(number, 0, 0, 0, 0, 0, 0) == -1, number
            seen.add(errno.errorcode[ctypes.get_errno()])
    return " ".join(seen)


@deed
def use_the_new_call_for_threads(_):
    c(LIBC.syscall, architecture().syscalls["clone3"], None, 0)


# --- what the supervisor has to stop ---


@deed
def call_like_a_32_bit_program(_):
    ctypes.CFUNCTYPE(ctypes.c_int)(CODE)()


@deed
def call_like_an_x32_program(_):
    LIBC.syscall(0x40000000 | 39)


@deed
def spin(_):
    while True:
        pass


@deed
def sleep(_):
    time.sleep(3600)


@deed
def stop_itself(_):
    c(LIBC.tgkill, os.getpid(), os.getpid(), signal.SIGSTOP)


@deed
def die(_):
    os._exit(3)


@deed
def crash(_):
    ctypes.string_at(0)


@deed
def hang_up(_):
    os.close(CHANNEL)
    time.sleep(3600)


@deed
def answer_nonsense(_):
    os.write(CHANNEL, b"\xff" * 64)
    time.sleep(3600)


@deed
def answer_before_it_is_asked(_):
    """The next unit's answer, forged: two answers to one question."""
    for piece in frames.encode_answer(frames.Converted("0" * 64, ("outcome",)), [b"done"]):
        os.write(CHANNEL, piece)


@deed
def answer_without_end(_):
    os.write(
        CHANNEL, b"".join(frames.encode_answer(frames.Converted("0" * 64, ("a",)), []))[:4]
    )
    while True:
        os.write(CHANNEL, bytes(1 << 16))


@deed
def announce_more_than_it_may_send(_):
    head = msgspec.msgpack.encode((frames.Converted("0" * 64, ("a",)), [1 << 36], True))
    os.write(CHANNEL, len(head).to_bytes(4, "little") + head)
    time.sleep(3600)


@deed
def hand_the_daemon_files(_):
    """Along with an answer; a daemon that took them would hold a file of its worker's."""
    answer = frames.encode_answer(frames.Converted("0" * 64, ("outcome",)), [b"done"])
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, CHANNEL)
    socket.send_fds(channel, [b"".join(answer)], [OPENED_BEFORE.fileno()] * 9)
    os._exit(0)


@deed
def talk_without_end(_):
    try:
        for _ in range(1000):
            os.write(2, b"blah\n" * 1000)
    except BlockingIOError:
        pass


class Unlocked(Lock):
    """Nothing is taken away."""

    def close(self, meter, limits):
        return self


def set_limit(kind, value):
    c(LIBC.setrlimit, kind, struct.pack("@QQ", value & (1 << 64) - 1, value & (1 << 64) - 1))


def unlocked():
    return "unlocked" in sys.argv


if __name__ == "__main__":
    if unlocked():
        worker.lock_in = lambda _: Unlocked(missing=("not wanted",))
    MAPS = os.open("/proc/self/maps", os.O_RDONLY)
    LENT = os.memfd_create("lent")
    os.truncate(LENT, PAGE)
    worker.main(Misbehaving)
