"""Command lines as processes of their own, forked from one that has imported shoal already.

Most of what a command costs is Python's start and its imports: half a second of a core,
hundreds of times. So the tests of this folder have one process that does no more than
import, and each command is a fork of it: with the arguments, the environment, the directory
and the streams that it would have, it calls `shoal.node.cli.main` and ends as Python ends.
That ``shoal`` starts from nothing is for the tests that start it themselves, as those that
send it signals do, and for whatever runs where Python or the loader of programs would start
otherwise than here.
"""

import atexit
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

SHOAL = (sys.executable, "-P", "-m", "shoal.node.cli")
READ_AT_START = ("PYTHON", "LD_", "LC_", "LANG", "TZ")
"""Beginnings of what counts when a process starts, and so is the same for all forks."""

MESSAGE_LIMIT_BYTES = 1 << 17
"""What goes to a fork in one piece; a longer command starts from nothing too."""

CLIENTS = ("h11", "shoal.node.private_network")
"""What a client imports when it is first used."""

OPEN_FILES = 256
"""Up to which a fork closes what it has from its parent."""


def run(arguments, *, environment, timeout_s=60):
    """As `subprocess.run` of ``shoal`` with these arguments: its code and what it printed.

    Raises:
        subprocess.TimeoutExpired: It had not ended by then, and was killed.
    """
    arguments = [str(argument) for argument in arguments]
    order = {"arguments": arguments, "environment": environment, "directory": str(Path.cwd())}
    message = json.dumps(order).encode()
    fits = len(message) <= MESSAGE_LIMIT_BYTES
    if fits and _at_start(environment) == _forks().at_start:
        return _forks().run(arguments, message, timeout_s)
    return subprocess.run(
        [*SHOAL, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env=environment,
    )


def _at_start(environment):
    return {k: v for k, v in environment.items() if k.startswith(READ_AT_START)}


class Forks:
    """The process that has imported shoal, and how a command is asked of it."""

    def __init__(self):
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.at_start = _at_start(os.environ)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        atexit.register(self.close)

    def close(self):
        """End it: it is told no more."""
        self._ours.close()
        self._process.wait(60)

    def run(self, arguments, message, timeout_s):
        """See `run`; by several threads at once as well."""
        with ExitStack() as stack:
            told, tells = socket.socketpair()
            stack.enter_context(told)
            streams = []
            with tells, Path(os.devnull).open("rb") as nothing:
                ends = [nothing.fileno()]
                for _ in ("stdout", "stderr"):
                    ours, theirs = os.pipe()
                    streams.append(os.fdopen(ours, "rb"))
                    ends.append(theirs)
                socket.send_fds(self._ours, [message], [*ends, tells.fileno()])
                for end in ends[1:]:
                    os.close(end)
            readers = [_Reader(stream) for stream in streams]
            told.settimeout(timeout_s)
            answers = stack.enter_context(told.makefile("r"))
            pid = int(answers.readline())
            try:
                code = int(answers.readline())
                out, err = (reader.all_said(timeout_s) for reader in readers)
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired([*SHOAL, *arguments], timeout_s) from None
        return subprocess.CompletedProcess([*SHOAL, *arguments], code, out, err)


class _Reader(threading.Thread):
    """Reads what a command prints, until nobody has the other end any more."""

    def __init__(self, stream):
        super().__init__(daemon=True)
        self._stream = stream
        self._said = b""
        self.start()

    def run(self):
        with self._stream:
            self._said = self._stream.read()

    def all_said(self, timeout_s):
        self.join(timeout_s)
        if self.is_alive():  # whom the command has left behind holds it
            raise TimeoutError
        return self._said.decode()


_forks = cache(Forks)


# --- that process ------------------------------------------------------------------------


def serve(orders):
    """Fork for each order; gives True in a fork, which is to run what it was told."""
    while True:
        message, fds, _, _ = socket.recv_fds(orders, MESSAGE_LIMIT_BYTES, 4)
        while _ended():
            pass
        if not message:
            return False
        if os.fork() == 0:
            break
        for fd in fds:
            os.close(fd)
    *streams, tells = fds
    pid = os.fork()
    if pid:  # whose parent tells how it ended
        for fd in streams:
            os.close(fd)
        with suppress(BrokenPipeError):  # the test waits for it no longer
            os.write(tells, b"%d\n" % pid)
            _, status = os.waitpid(pid, 0)
            os.write(tells, b"%d\n" % os.waitstatus_to_exitcode(status))
        os._exit(0)
    become(json.loads(message), streams)
    return True


def _ended():
    """Whether a fork has ended that nobody had asked about."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0]
    except ChildProcessError:
        return 0


def become(order, streams):
    """Take on what a process has that is started with this order."""
    for fd, stream in enumerate(streams):
        os.dup2(stream, fd)
    os.closerange(3, OPEN_FILES)
    sys.stdin, sys.stdout, sys.stderr = (
        open(fd, mode, closefd=False)  # noqa: SIM115  # until it ends
        for fd, mode in enumerate("rww")
    )
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["directory"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [find_spec("shoal.node.cli.__main__").origin, *order["arguments"]]


def main():
    from shoal.node import cli

    for heavy in ("numpy", "onnx", "shoal.compute.convert", "shoal.compute.sandbox", *CLIENTS):
        import_module(heavy)
    cli.make_app(whole=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the tests, which end it
    gc.freeze()
    orders = socket.socket(fileno=int(sys.argv[1]))
    if serve(orders):
        orders.detach()  # closed with all others, or another file's by now
        return cli.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
