"""A worker inside an outer sandbox that refuses a system call, as some containers do.

python outer_sandbox.py NAME ERRNO FD
"""

import ctypes
import sys

from shoal.compute import worker
from shoal.compute.sandbox.kernel import architecture
from shoal.compute.sandbox.seccomp import Filter, load


def refuse(name, errno):
    no_new_privileges = 38
    ctypes.CDLL(None).prctl(no_new_privileges, 1, 0, 0, 0)
    load(Filter(errnos={name: errno}), architecture())


if __name__ == "__main__":
    refuse(sys.argv[1], int(sys.argv[2]))
    worker.main()
