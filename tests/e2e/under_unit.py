"""A command under the filter of system calls that a unit of systemd gives it.

python under_unit.py UNIT COMMAND…

systemd says which calls its groups of calls are, the C compiler their numbers. What else
a unit asks for needs systemd itself, and is not here.
"""

import configparser
import ctypes
import errno
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from shoal.compute.sandbox.kernel import architecture
from shoal.compute.sandbox.seccomp import Filter, fails, load

NO_NEW_PRIVILEGES = 38


def filtered(unit):
    """The names of the calls that a unit lets through."""
    words = re.findall(r"^SystemCallFilter=(.*)$", Path(unit).read_text(), re.MULTILINE)
    return set().union(*(expanded(word) for line in words for word in line.split()))


def expanded(word):
    """The calls of a group, and of the groups in it."""
    if not word.startswith("@"):
        return {word}
    command = ["systemd-analyze", "syscall-filter", "--no-pager", word]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    words = [line.strip() for line in listed.splitlines()[1:]]
    return set().union(*(expanded(each) for each in words if each and each[0] != "#"))


def numbers():
    """The number of each system call here."""
    command = ["gcc", "-E", "-dM", "-include", "sys/syscall.h", "-x", "c", os.devnull]
    defined = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {
        name: int(number)
        for name, number in re.findall(r"^#define __NR_(\w+) (\d+)$", defined, re.MULTILINE)
    }


def environment(unit):
    """What a unit puts into the environment."""
    found = re.findall(r"^Environment=(\w+)=(.*)$", Path(unit).read_text(), re.MULTILINE)
    return dict(found)


def service(unit):
    """The settings of a unit's service that are given once."""
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str
    parser.read(unit)
    return parser["Service"]


if __name__ == "__main__":
    here = replace(architecture(), syscalls=numbers())
    allowed = dict.fromkeys(filtered(sys.argv[1]), ())
    ctypes.CDLL(None).prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    load(Filter(allowed, otherwise=fails(errno.EPERM)), here)
    os.execv(sys.argv[2], sys.argv[2:])
