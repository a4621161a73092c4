"""Whether the node's ports are free, or taken, and by whom as far as the kernel tells."""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import TYPE_CHECKING

import psutil

from shoal.crypto.errors import ShoalError
from shoal.node.addresses import Address, parse_address
from shoal.node.cli.checkup.findings import Finding, failure, ok, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shoal.node.cli.checkup.patient import Patient

_OTHER_PORT = "choose another with `listen` in the settings file or --listen"


def ports(patient: Patient) -> Iterator[Finding]:
    """What the daemon listens on, or whether a daemon could listen where it should."""
    if patient.status is not None:
        yield from _of_the_daemon(patient.status.addresses, patient.status.pid)
        return
    if patient.holder() is not None:
        return  # a daemon that does not answer has them, on which ones it would have to say
    listen = patient.setting("listen")
    for text in listen if isinstance(listen, list) else []:
        try:
            yield _trial(parse_address(str(text)))
        except ShoalError as error:
            yield failure("port", error.message, error.hint)


def bulk(patient: Patient) -> Iterator[Finding]:
    """Whether large blobs have a port, and where peers are told that it is."""
    status = patient.status
    if status is None:
        return
    if not status.bulk:
        yield warning(
            "bulk",
            "large blobs have no port of their own, and go at a tenth of the speed",
            'take `bulk = "off"` out of the settings file, then restart the daemon',
        )
        return
    at = f", which peers are told to dial at {status.bulk_announced}"
    yield ok("bulk", f"port {status.bulk}{at if status.bulk_announced else ''}")


def _of_the_daemon(addresses: tuple[str, ...], pid: int) -> Iterator[Finding]:
    if not addresses:
        yield failure("port", "the daemon listens nowhere", _OTHER_PORT)
    for text in addresses:
        address = parse_address(text)
        holders = _holders(address.port)
        if holders and pid not in holders and None not in holders:
            yield failure(
                "port",
                f"the daemon says that it listens on {address}, and that port is "
                f"{_by_whom(holders)}'s",
                "restart the daemon: `shoal down`, then `shoal up`",
            )
        else:
            yield ok("port", f"listening on {text}")


def _trial(address: Address) -> Finding:
    kind = socket.AF_INET6 if address.kind == "ip6" else socket.AF_INET
    with contextlib.closing(socket.socket(kind)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if kind is socket.AF_INET6:  # as the daemon does, so that both families fit one port
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((address.host, address.port))
            probe.listen(1)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                why = error.strerror or str(error)
                return failure("port", f"{address} cannot be listened on: {why}", _OTHER_PORT)
            holders = _holders(address.port)
            return failure(
                "port",
                f"{address} is taken by {_by_whom(holders)}",
                f"end that, or {_OTHER_PORT}",
            )
    return ok("port", f"{address} is free")


def _holders(port: int) -> set[int | None]:
    """The processes that listen on a port; None stands for one that is not ours to see."""
    try:
        found = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return set()
    return {
        one.pid
        for one in found
        if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port
    }


def _by_whom(pids: set[int | None]) -> str:
    names = []
    for pid in sorted(pid for pid in pids if pid is not None):
        try:
            names.append(f"{psutil.Process(pid).name()} (process {pid})")
        except psutil.Error:
            names.append(f"process {pid}")
    return ", ".join(names) or "a process that this user may not see"
