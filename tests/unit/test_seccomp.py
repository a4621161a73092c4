"""The filter of a worker, run by a small interpreter of BPF, on both architectures."""

import errno
import struct

import pytest

from shoal.compute.sandbox.kernel import AARCH64, X86_64
from shoal.compute.sandbox.profiles import CPU, GPU, NO_MORE_THREADS
from shoal.compute.sandbox.seccomp import (
    ALLOW,
    KILL_PROCESS,
    Filter,
    Where,
    assemble,
    encode,
    fails,
)

OWN, OTHER = 4711, 1
EPERM, ENOSYS = fails(errno.EPERM), fails(errno.ENOSYS)
THREAD_OF_GLIBC = 0x3D0F00
THREAD_OF_MUSL = 0x7D0F00
PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4

FORBIDDEN = {
    # on x86_64, on aarch64
    "open": (2, None),
    "openat": (257, 56),
    "openat2": (437, 437),
    "stat": (4, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept4": (288, 242),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "memfd_create": (319, 279),
    "ftruncate": (77, 46),
    "fallocate": (285, 47),
    "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282),
    "bpf": (321, 280),
    "keyctl": (250, 219),
    "perf_event_open": (298, 241),
    "ioctl": (16, 29),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "chroot": (161, 51),
    "shmget": (29, 194),
    "pkey_mprotect": (329, 288),
    "remap_file_pages": (216, 234),
    "personality": (135, 92),
    "sched_setaffinity": (203, 122),
    "setpriority": (141, 140),
    "setuid": (105, 146),
    "capset": (126, 91),
}


def outcome(program, architecture, number, *arguments):
    """What the kernel's interpreter would return for a call."""
    arguments = [a & (1 << 64) - 1 for a in arguments]
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=IIQ6Q", number, architecture, 0, *padded)
    held, place = 0, 0
    while True:
        step = program[place]
        place += 1
        match step.code:
            case 0x20:
                held = struct.unpack_from("=I", data, step.value)[0]
            case 0x54:
                held &= step.value
            case 0x15:
                place += step.if_true if held == step.value else step.if_false
            case 0x35:
                place += step.if_true if held >= step.value else step.if_false
            case 0x06:
                return step.value
            case code:
                raise AssertionError(code)


@pytest.fixture(params=[X86_64, AARCH64], ids=lambda here: here.name)
def here(request):
    return request.param


@pytest.fixture
def call(here):
    """What the worker's filter does with a call by name."""
    program = assemble(CPU.filter(OWN), here)
    return lambda name, *a: outcome(program, here.audit, here.syscalls[name], *a)


def test_calls_without_conditions_are_allowed(call, here):
    for name, conditions in CPU.allowed.items():
        if not conditions and name in here.syscalls:
            assert call(name, *[2**64 - 1] * 6) == ALLOW


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_call_that_is_not_listed_fails(here, name):
    number = FORBIDDEN[name][here is AARCH64]
    if number is not None:
        program = assemble(CPU.filter(OWN), here)
        assert outcome(program, here.audit, number) == EPERM


def test_every_other_number_fails(here):
    program = assemble(CPU.filter(OWN), here)
    listed = {here.syscalls.get(n) for n in (*CPU.allowed, *CPU.of_own_process, *CPU.errnos)}
    for number in set(range(2048)) - listed:
        assert outcome(program, here.audit, number) == EPERM


def test_memory_may_hold_data_and_no_code(call):
    for name in ("mmap", "mprotect"):
        assert call(name, 0, 4096, PROT_READ | PROT_WRITE) == ALLOW
        assert call(name, 0, 4096, PROT_EXEC) == EPERM
        assert call(name, 0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC) == EPERM
        assert call(name, 0, 4096, 0x01000000 | PROT_EXEC) == EPERM


def test_a_thread_may_be_started_and_no_process(call):
    new_user, untraced_vfork, child = 0x10000000, 0x4000, 17
    assert call("clone", THREAD_OF_GLIBC) == ALLOW
    assert call("clone", THREAD_OF_MUSL) == ALLOW
    assert call("clone", child) == EPERM
    assert call("clone", 0x01200000 | child) == EPERM  # what fork() of glibc asks for
    assert call("clone", THREAD_OF_GLIBC | new_user) == EPERM
    assert call("clone", THREAD_OF_GLIBC | untraced_vfork) == EPERM
    assert call("clone3", 0, 88) == ENOSYS  # so that the C library uses clone


def test_once_its_threads_run_none_can_be_started_and_no_filter_loaded(here):
    program = assemble(NO_MORE_THREADS, here)
    numbers = here.syscalls
    assert outcome(program, here.audit, numbers["clone"], THREAD_OF_GLIBC) == EPERM
    assert outcome(program, here.audit, numbers["seccomp"], 1) == EPERM
    assert outcome(program, here.audit, numbers["futex"]) == ALLOW  # the profile decides


def test_signals_and_limits_are_for_oneself(call):
    assert call("tgkill", OWN, OWN + 1, 6) == ALLOW
    for pid in (OTHER, 0, -1):
        assert call("tgkill", pid, OWN, 6) == EPERM
    assert call("prlimit64", 0) == call("prlimit64", OWN) == ALLOW
    assert call("prlimit64", OTHER) == EPERM


def test_the_kernel_is_not_asked_to_signal_others(call):
    for command in (8, 10, 15):  # F_SETOWN, F_SETSIG, F_SETOWN_EX
        assert call("fcntl", 3, command, OTHER) == EPERM
    assert call("fcntl", 3, 1030, 0) == ALLOW  # F_DUPFD_CLOEXEC, for a mapping


def test_no_hole_is_punched_into_shared_memory(call):
    remove, dont_need = 9, 4
    assert call("madvise", 0, 4096, remove) == EPERM
    assert call("madvise", 0, 4096, dont_need) == ALLOW


def test_a_worker_cannot_shake_off_its_parent(call):
    parent_death_signal, name = 1, 15
    assert call("prctl", parent_death_signal, 0) == EPERM
    assert call("prctl", name, 0) == ALLOW


def test_upper_halves_of_arguments_change_nothing(call):
    high = 1 << 32
    assert call("mmap", 0, 4096, high | PROT_EXEC) == EPERM
    assert call("prlimit64", high | OTHER) == EPERM
    assert call("prlimit64", high) == ALLOW  # an int to the kernel: this is 0


def test_calls_of_another_architecture_end_the_process(here):
    for filter_ in (CPU.filter(OWN), NO_MORE_THREADS):
        program = assemble(filter_, here)
        for audit in (0x40000003, AARCH64.audit, X86_64.audit):
            if audit != here.audit:
                assert outcome(program, audit, here.syscalls["getpid"]) == KILL_PROCESS


def test_calls_of_x32_end_the_process():
    program = assemble(CPU.filter(OWN), X86_64)
    assert outcome(program, X86_64.audit, 0x40000000 | 39) == KILL_PROCESS
    assert outcome(program, X86_64.audit, 0x40000000 - 1) == EPERM


def test_all_conditions_of_a_call_must_hold():
    rules = Filter(
        {"lseek": (Where(0, (1, 2)), Where(2, (8,), mask=0xF8))}, {}, fails(errno.EPERM)
    )
    program = assemble(rules, X86_64)
    for arguments, allowed in [
        ((1, 0, 8), True), ((2, 0, 15), True), ((3, 0, 8), False), ((1, 0, 16), False),
    ]:  # fmt: skip
        found = outcome(program, X86_64.audit, X86_64.syscalls["lseek"], *arguments)
        assert found == (ALLOW if allowed else EPERM)


def test_a_program_is_eight_bytes_an_instruction():
    program = assemble(CPU.filter(OWN), X86_64)
    assert len(encode(program)) == 8 * len(program)
    assert len(program) < 256  # the kernel takes 4096
    assert encode(program)[:8] == b"\x20\0\0\0\x04\0\0\0"  # load the architecture


# --- the looser profile ------------------------------------------------------------------


@pytest.fixture
def on_card(here):
    """What a card's worker's filter does with a call by name."""
    program = assemble(GPU.filter(OWN), here)
    return lambda name, *a: outcome(program, here.audit, here.syscalls[name], *a)


def test_a_card_s_worker_may_make_every_call_but_those_that_are_listed(here):
    program = assemble(GPU.filter(OWN), here)
    named = {
        here.syscalls[name]: error
        for name, error in GPU.errnos.items()
        if name in here.syscalls
    }
    conditional = {
        here.syscalls[name]
        for name in (*GPU.allowed, *GPU.of_own_process)
        if name in here.syscalls
    }
    assert len(named) > 50
    for number in set(range(600)) - conditional:
        expected = fails(named[number]) if number in named else ALLOW
        assert outcome(program, here.audit, number, *[2**64 - 1] * 6) == expected
    assert outcome(program, here.audit + 1, 0) == KILL_PROCESS


@pytest.mark.parametrize(
    "name",
    ["io_uring_enter", "ptrace", "kill", "setsid", "unshare", "io_uring_setup", "bpf"],
)
def test_a_card_s_worker_reaches_no_network_and_no_other_process(on_card, name):
    assert on_card(name) == EPERM


def test_a_card_s_worker_has_sockets_that_reach_nobody(on_card):
    unix, inet, netlink, stream, datagram, packets = 1, 2, 16, 1, 2, 5
    for kind in (stream, packets, stream | 0o2000000):
        assert on_card("socket", unix, kind) == ALLOW
        assert on_card("socketpair", unix, kind) == ALLOW
    assert on_card("socket", unix, datagram) == EPERM
    assert on_card("socketpair", unix, datagram) == EPERM
    for family in (inet, 10, netlink):
        assert on_card("socket", family, stream) == EPERM
    assert on_card("connect") == fails(errno.ECONNREFUSED)


def test_a_driver_is_asked_by_its_own_requests_and_no_signal_is_sent_by_any(on_card):
    for number in (0xC020462A, 0xC01C4B19, 0xC0106407, 0x30000001, 27, 0x5421):
        assert on_card("ioctl", 3, number) == ALLOW
    for number in (0x8901, 0x8902, 0x8914):
        assert on_card("ioctl", 3, number) == EPERM


def test_a_card_s_worker_starts_compilers_and_threads_and_no_namespace(on_card):
    fork_of_glibc = 0x01200011
    for flags in (THREAD_OF_GLIBC, fork_of_glibc, 0x4111):
        assert on_card("clone", flags) == ALLOW
    for namespace in (0x00020000, 0x10000000, 0x40000000, 0x02000000):
        assert on_card("clone", fork_of_glibc | namespace) == EPERM
    assert on_card("clone3") == ENOSYS


def test_a_card_s_worker_slows_down_and_limits_itself_alone(on_card):
    assert on_card("setpriority", 0, 0, 19) == ALLOW
    assert on_card("setpriority", 0, OTHER, 19) == EPERM
    assert on_card("setpriority", 2, 0, 19) == EPERM
    assert on_card("prlimit64", OWN, 9) == ALLOW
    assert on_card("prlimit64", OTHER, 9) == EPERM
    assert on_card("fcntl", 3, 8, OTHER) == EPERM  # F_SETOWN
