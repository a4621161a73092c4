"""Names resolved: hosts to IP addresses, and ``/dnsaddr`` names to peers' addresses.

Hosts go through the system's resolver, so that /etc/hosts and whatever else the
machine is set up with count. It blocks, for half a minute where no server answers,
and cannot be stopped: so it runs in threads of our own, few of them, and a name
that one still waits for takes no second one. A resolver that hangs costs
`LOOKUPS_AT_ONCE` threads and nothing else. TXT records are asked for over trio's
sockets, by dnspython.

Nothing is cached: how long an answer holds is the system resolver's to know.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from shoal.node.addresses import Address, DnsAddress
from shoal.node.dnsaddr import RECORDS_LIMIT, Unfolding
from shoal.node.errors import NetworkError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

LOOKUPS_AT_ONCE = 4
"""Threads that a resolver can hang in; the daemon's others are for its disk."""

LOOKUP_LIMIT_S = 4.0
"""For one name: less than a dial may take, so that its other addresses get their turn."""

UNFOLD_LIMIT_S = 8.0
"""For a name and all that it leads to; no question is begun after that."""

ANSWERS_LIMIT = 8
"""IP addresses taken of one name."""

_FAMILIES = {"dns": socket.AF_UNSPEC, "dns4": socket.AF_INET, "dns6": socket.AF_INET6}
_UNKNOWN = {socket.EAI_NONAME, socket.EAI_NODATA}
_HINT = "check the name, and whether this machine resolves others (`getent hosts NAME`)"


class _Lookup:
    """One question to the system's resolver, and whoever waits for its answer."""

    def __init__(self) -> None:
        self.begun = False
        self.done = trio.Event()
        self.found: list[str] = []
        self.failure: OSError | None = None


class Names:
    """The resolver of one daemon.

    Args:
        servers: IP addresses of the DNS servers to ask for TXT records; the system's
            where not given.
        port: Theirs.
    """

    def __init__(self, servers: Sequence[str] = (), port: int = 53) -> None:
        self._servers, self._port = servers, port
        self._threads = trio.CapacityLimiter(LOOKUPS_AT_ONCE)
        self._pending: dict[tuple[str, str], _Lookup] = {}

    async def hosts(self, address: Address, limit_s: float = LOOKUP_LIMIT_S) -> list[Address]:
        """The IP addresses of a host, each with the port and peer of ``address``.

        What is no name already is given back as it is. Cancel-safe.

        Raises:
            NetworkError: ``name_unknown`` where there is no such name, ``name_unresolved``
                where no answer came in time.
        """
        if address.kind not in _FAMILIES:
            return [address]
        with trio.move_on_after(limit_s):
            lookup = await self._looked_up((address.kind, address.host))
            if lookup.failure is not None:
                raise _refused(address.host, lookup.failure)
            return [
                Address("ip6" if ":" in host else "ip4", host, address.port, address.peer)
                for host in lookup.found
            ]
        raise _unresolved(address.host, f"no answer within {limit_s:.1f} s")

    async def _looked_up(self, asked: tuple[str, str]) -> _Lookup:
        lookup = self._pending.get(asked)
        if lookup is not None:
            await lookup.done.wait()
            return lookup
        lookup = self._pending[asked] = _Lookup()
        token = trio.lowlevel.current_trio_token()

        def finish() -> None:
            if self._pending.get(asked) is lookup:
                del self._pending[asked]
            lookup.done.set()

        def ask() -> None:
            lookup.begun = True
            try:
                lookup.found = _ask_system(*asked)
            except OSError as error:
                lookup.failure = error
            except UnicodeError as error:  # a label that IDNA has no form for
                lookup.failure = OSError(str(error))
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(finish)

        try:
            # Where the wait is cancelled the thread goes on, and keeps its place until
            # it has ended: that is what bounds them.
            await trio.to_thread.run_sync(ask, abandon_on_cancel=True, limiter=self._threads)
        finally:
            if not lookup.begun:
                lookup.failure = OSError("every thread waits for an earlier name")
                finish()
        await lookup.done.wait()
        return lookup

    async def peers(self, name: DnsAddress) -> list[Address]:
        """The addresses that a ``/dnsaddr`` name stands for, each with its peer.

        Raises:
            NetworkError: ``name_unknown``, ``name_unresolved``, or ``name_empty`` where
                none of its records is an address of use here.
        """
        unfolding, failure = Unfolding(name), None
        deadline_s = trio.current_time() + UNFOLD_LIMIT_S
        while (question := unfolding.question()) and trio.current_time() < deadline_s:
            try:
                unfolding.answered(await self._texts(question))
            except NetworkError as error:  # one dead branch does not spoil the others
                unfolding.answered(())
                failure = failure or error
        if not unfolding.found:
            raise failure or NetworkError(
                f"no record of _dnsaddr.{name.name} is an address to join through "
                f"({unfolding.unusable} of no use here)",
                code="name_empty",
                hint="one reads dnsaddr=/ip4/192.0.2.7/tcp/4711/p2p/PEER_ID; only TCP is "
                "spoken here",
            )
        return list(unfolding.found)

    async def _texts(self, name: str) -> list[str]:
        """The TXT records of a name."""
        dns = await self._dnspython()
        try:
            resolver = dns.asyncresolver.Resolver(configure=not self._servers)
        except dns.resolver.NoResolverConfiguration:
            raise _unresolved(name, "this machine has no DNS server set") from None
        if self._servers:
            resolver.nameservers, resolver.port = list(self._servers), self._port
        try:
            with trio.fail_after(LOOKUP_LIMIT_S + 1.0):
                answer = await resolver.resolve(
                    f"{name.removesuffix('.')}.", "TXT", lifetime=LOOKUP_LIMIT_S
                )
        except dns.resolver.NXDOMAIN:
            raise NetworkError(
                f"there is no name {name}", code="name_unknown", hint=_HINT
            ) from None
        except dns.resolver.NoAnswer:
            raise NetworkError(
                f"{name} has no TXT records", code="name_unknown", hint=_HINT
            ) from None
        except (dns.exception.DNSException, OSError, trio.TooSlowError) as error:
            why = str(error).partition(":")[0][:120] or "no answer"
            raise _unresolved(name, why) from None
        return [
            b"".join(record.strings).decode("ascii", "replace")
            for record, _ in zip(answer, range(RECORDS_LIMIT), strict=False)
        ]

    async def _dnspython(self) -> ModuleType:
        """Imported when it is needed, and in a thread: it takes a third of a second."""
        return await trio.to_thread.run_sync(_import_dnspython)


def _import_dnspython() -> ModuleType:
    import dns.asyncresolver
    import dns.exception
    import dns.resolver

    return dns


def _ask_system(kind: str, host: str) -> list[str]:
    """Ask the system's resolver, which blocks; raises OSError."""
    found = socket.getaddrinfo(host, None, _FAMILIES[kind], socket.SOCK_STREAM)
    hosts = dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found)
    return [host for host in hosts if "%" not in host][:ANSWERS_LIMIT]


def _refused(host: str, error: OSError) -> NetworkError:
    if isinstance(error, socket.gaierror) and error.errno in _UNKNOWN:
        return NetworkError(f"there is no name {host}", code="name_unknown", hint=_HINT)
    return _unresolved(host, error.strerror or str(error))


def _unresolved(host: str, why: str) -> NetworkError:
    return NetworkError(f"{host} is not resolved: {why}", code="name_unresolved", hint=_HINT)
