"""Landlock: this thread and those it starts lose the file system, TCP and one another.

A ruleset without a single rule: everything that the kernel's Landlock knows of is
refused. The packages that wrap Landlock are about rules for paths, young, and more
code than the two calls that are needed here.

Landlock holds for the calling thread and those that it starts later, so a process must
do this while it has one thread.

Source: https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import os
import struct
from typing import Final

from shoal.compute.sandbox.kernel import call

_VERSION_FLAG: Final = 1

_FILE_RIGHTS_OF_ABI: Final = {1: 13, 2: 14, 3: 15, 5: 16}
"""How many file rights are known from which ABI on: refer, truncate and ioctl came later."""

_BIND_AND_CONNECT_TCP: Final = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS: Final = 0b11
_NETWORK_ABI, _SCOPE_ABI = 4, 6


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


def restrict() -> int:
    """Take everything from this thread; ``no_new_privs`` must be set.

    Returns:
        The ABI.

    Raises:
        OSError: As for `abi`; E2BIG where 16 layers are stacked already.
    """
    offered_abi = abi()
    attributes = ruleset(offered_abi)
    descriptor = call("landlock_create_ruleset", attributes, len(attributes), 0)
    try:
        call("landlock_restrict_self", descriptor, 0)
    finally:
        os.close(descriptor)
    return offered_abi
