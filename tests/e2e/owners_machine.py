"""A machine of its own for one daemon and its owner's processes, as far as Linux gives one.

Run as a program, it is the first process there: it starts the daemon with the flags
given and does what it is told by lines on stdin (``busy``, ``quiet``). Processes of
other namespaces are not to be seen in it, so that what else runs here is nobody's.
"""

import os
import subprocess
import sys
from contextlib import contextmanager

from daemons import SHOAL, clean_environment

_WAYS = (
    ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
    ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"),
)
BUSY = "while True: pass"


def way_in():
    """The command that gives a namespace of processes, or None where none does."""
    for way in _WAYS:
        tried = subprocess.run([*way, "true"], capture_output=True, check=False)
        if tried.returncode == 0:
            return way
    return None


@contextmanager
def owners_machine(way, *flags, log):
    """Start a daemon there; gives a function that says ``busy`` or ``quiet``."""
    machine = subprocess.Popen(
        [*way, sys.executable, "-P", __file__, *flags],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        text=True,
        env=clean_environment() | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )

    def say(word):
        print(word, file=machine.stdin, flush=True)

    try:
        yield say
    finally:
        machine.stdin.close()  # which ends all of it
        machine.wait(30)


def main():
    daemon = subprocess.Popen([*SHOAL, "up", *sys.argv[1:]], stdin=subprocess.DEVNULL)
    loops = []
    for line in sys.stdin:
        if line.strip() == "busy":
            # More than the cores: on a machine that others use too they get a share.
            loops = [
                subprocess.Popen([sys.executable, "-c", BUSY])
                for _ in range(2 * os.cpu_count())
            ]
        else:
            for loop in loops:
                loop.kill()
                loop.wait()
    daemon.terminate()
    daemon.wait(20)


if __name__ == "__main__":
    main()
