"""Why a peer was not reached, in words that a person can act on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio

from shoal.node.errors import ConfigError, NetworkError, OtherNetworkError
from shoal.node.libp2p_compat.connections import PeerIDMismatchesPubkey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shoal.crypto.peer_id import PeerId
    from shoal.node.records import Ban


_OTHER_NETWORK_HINT = (
    "it belongs to another private network, or to none: compare `shoal status` on both "
    "machines; an invitation made there and `shoal join TOKEN` here bring this node into its "
    "network"
)
_HINT = (
    "check that its daemon runs, that the address is right, that no firewall is "
    "between and that it is in the same network, as `shoal status` shows it"
)


def unreachable(peer: PeerId, why: str, *, elsewhere: bool) -> NetworkError:
    """Make the error of a peer that none of its addresses led to.

    Args:
        peer: Who was looked for.
        why: Each address with what failed there.
        elsewhere: Whether one of them leads to a node of another network.
    """
    message = f"{peer} cannot be reached: {why}"
    if elsewhere:
        return OtherNetworkError(message, hint=_OTHER_NETWORK_HINT)
    return NetworkError(message, code="unreachable", hint=_HINT)


def peer_cut(peer: PeerId, why: str) -> NetworkError:
    """Make the error of a peer that this node has cut, wherever that is found.

    Args:
        peer: Who is cut.
        why: From `node.conduct`: what it did, and for how much longer.
    """
    return NetworkError(
        f"{peer} is cut: {why}",
        code="peer_cut",
        hint=f"`shoal peers --forgive {peer}` lets it back in before",
    )


def peer_banned(ban: Ban) -> NetworkError:
    """Make the error of a peer that a fraud proof has convicted."""
    until = time.strftime("%Y-%m-%d", time.localtime(ban.until))
    return NetworkError(
        f"{ban.peer} is banned until {until}: {ban.why}"[:400],
        code="peer_banned",
        hint=f"`shoal proof show {ban.proof}` shows by what; `shoal peers --unban {ban.peer}` "
        "lifts it",
    )


def why_not(error: BaseException, share_s: float) -> str:
    """Give the first cause that a person can act on.

    Args:
        error: What the dial failed with.
        share_s: The time that the dial was given.
    """
    causes = list(_causes(error))
    for cause in causes:
        match cause:
            case ConfigError() | NetworkError():
                return cause.message
            case trio.TooSlowError():
                return f"no answer within {share_s:.1f} s"
            case ConnectionRefusedError():
                return "connection refused"
            case PeerIDMismatchesPubkey():
                return "another peer answers there"
            case OSError(strerror=str(reason)):
                return reason
    return f"no libp2p handshake ({str(causes[-1])[:80] or type(causes[-1]).__name__})"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for member in error.exceptions:
                yield from _causes(member)
        error = error.__cause__ or error.__context__
