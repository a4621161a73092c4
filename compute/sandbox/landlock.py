"""Landlock: this thread and those it starts lose the file system, TCP and one another.

Without a single rule everything that the kernel's Landlock knows of is refused; a rule
gives some rights back beneath one path. The packages that wrap Landlock are young, and
more code than the three calls that are needed here.

Landlock holds for the calling thread and those that it starts later, so a process must
do this while it has one thread.

Source: https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import os
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shoal.compute.sandbox.kernel import call

if TYPE_CHECKING:
    from collections.abc import Sequence

_VERSION_FLAG: Final = 1

_FILE_RIGHTS_OF_ABI: Final = {1: 13, 2: 14, 3: 15, 5: 16}
"""How many file rights are known from which ABI on: refer, truncate and ioctl came later."""

_BIND_AND_CONNECT_TCP: Final = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS: Final = 0b11
_NETWORK_ABI, _SCOPE_ABI = 4, 6
_PATH_BENEATH: Final = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = (1 << n for n in range(4))
REMOVE_DIR, REMOVE_FILE, _, MAKE_DIR, MAKE_REG = (1 << n for n in range(4, 9))
MAKE_SYM, REFER, TRUNCATE, IOCTL_DEV = (1 << n for n in range(12, 16))

READ: Final = READ_FILE | READ_DIR
USE_DEVICE: Final = READ_FILE | READ_DIR | WRITE_FILE | IOCTL_DEV
OWN: Final = (
    READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM | REFER
    | TRUNCATE
)  # fmt: skip
"""Of a directory of one's own; not to run what was written there."""

_OF_FILES: Final = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""The rights that a rule about a single file may give."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What stays allowed at a path, and beneath it where it is a directory."""

    path: str
    rights: int


def abi() -> int:
    """The ABI that the kernel offers, at least 1.

    Raises:
        OSError: ENOSYS where the kernel was built without it, EOPNOTSUPP where it
            was not enabled at boot, EPERM where an outer sandbox hides it.
    """
    return call("landlock_create_ruleset", None, 0, _VERSION_FLAG)


def ruleset(offered_abi: int) -> bytes:
    """The ``struct landlock_ruleset_attr`` that handles all an ABI knows.

    Args:
        offered_abi: What `abi` gave.
    """
    file_rights = max(n for since, n in _FILE_RIGHTS_OF_ABI.items() if since <= offered_abi)
    fields = [(1 << file_rights) - 1]
    if offered_abi >= _NETWORK_ABI:
        fields.append(_BIND_AND_CONNECT_TCP)
    if offered_abi >= _SCOPE_ABI:
        fields.append(_ABSTRACT_SOCKETS_AND_SIGNALS)
    return struct.pack(f"={len(fields)}Q", *fields)


def restrict(rules: Sequence[Rule] = ()) -> int:
    """Take everything else from this thread; ``no_new_privs`` must be set.

    Args:
        rules: What stays; those about paths that are not there count for nothing.

    Returns:
        The ABI.

    Raises:
        OSError: As for `abi`; E2BIG where 16 layers are stacked already.
    """
    offered_abi = abi()
    attributes = ruleset(offered_abi)
    descriptor = call("landlock_create_ruleset", attributes, len(attributes), 0)
    try:
        (handled,) = struct.unpack_from("=Q", attributes)
        for rule in rules:
            with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                _add(descriptor, rule, handled)
        call("landlock_restrict_self", descriptor, 0)
    finally:
        os.close(descriptor)
    return offered_abi


def _add(ruleset_descriptor: int, rule: Rule, handled: int) -> None:
    path = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    try:
        rights = rule.rights & handled
        if not stat.S_ISDIR(os.fstat(path).st_mode):
            rights &= _OF_FILES
        beneath = struct.pack("=Qi", rights, path)
        call("landlock_add_rule", ruleset_descriptor, _PATH_BENEATH, beneath, 0)
    finally:
        os.close(path)
