"""Protocol errors: ours and theirs are different things, as in h11."""

from __future__ import annotations

from shoal.crypto.errors import ShoalError


class LocalProtocolError(ShoalError):
    """This node tried to say something that the state machine forbids: a bug here."""

    code = "local_protocol"


class RemoteProtocolError(ShoalError):
    """A peer said something malformed, out of turn or over a limit.

    It does not mean that the connection is bad: only that this peer's words on
    this matter are not to be used.
    """

    code = "remote_protocol"


class VersionError(RemoteProtocolError):
    """A peer speaks another version, in which what is wanted cannot be said.

    Nobody broke a rule. The sentence says which of the two to upgrade.
    """

    code = "version_unsupported"
