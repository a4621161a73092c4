"""Errors of the daemon and its clients: configuration, network, local API."""

from __future__ import annotations

from shoal.crypto.errors import ShoalError


class ConfigError(ShoalError):
    """A setting, an address or an installation that cannot work as given."""

    code = "config"


class NetworkError(ShoalError):
    """A peer, a connection or a stream that did not do what was asked of it."""

    code = "network"


class StreamClosedError(NetworkError):
    """The peer ended its side of a stream, between two messages and on purpose."""

    code = "stream_closed"


class DaemonUnreachableError(ShoalError):
    """No daemon answers on the local socket."""

    code = "daemon_unreachable"
