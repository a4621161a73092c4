"""Errors of the daemon and its clients: configuration, network, local API."""

from __future__ import annotations

from shoal.crypto.content import BlobId
from shoal.crypto.errors import ShoalError


class ConfigError(ShoalError):
    """A setting, an address or an installation that cannot work as given."""

    code = "config"


class NetworkError(ShoalError):
    """A peer, a connection or a stream that did not do what was asked of it."""

    code = "network"


class PeerError(ShoalError):
    """A peer that is not known here, or of which what is asked makes no sense."""

    code = "peer"


class StreamClosedError(NetworkError):
    """The peer ended its side of a stream, between two messages and on purpose."""

    code = "stream_closed"


class InputMissingError(NetworkError):
    """An input of a unit that nobody who was asked has, or gives.

    Attributes:
        blob_id: Which.
    """

    code = "input_missing"

    def __init__(self, message: str, blob_id: BlobId) -> None:
        super().__init__(message)
        self.blob_id = blob_id


class OtherNetworkError(NetworkError):
    """The other side of a connection is not in the private network that this node is in."""

    code = "other_network"


class DaemonUnreachableError(ShoalError):
    """No daemon answers on the local socket."""

    code = "daemon_unreachable"


class StoreError(ShoalError):
    """A blob that is not held, or that there is no room for."""

    code = "store"


class JobError(ShoalError):
    """A job that does not exist, or cannot do what is asked of it."""

    code = "job"


def job_id_taken(job_id: str) -> JobError:
    """Make the error of a submission under the id of another job."""
    return JobError(
        f"job {job_id} is another one than this",
        code="job_id_taken",
        hint="submit it without an id, and it gets one of its own; only what is submitted "
        "again unchanged is the same job",
    )


class RequestError(ShoalError):
    """A request to the local API that cannot be understood."""

    code = "bad_request"


class DaemonError(ShoalError):
    """The daemon refused a client's request; code, sentence and hint are the daemon's.

    Attributes:
        status: The HTTP status that came with it.
    """

    code = "daemon"

    def __init__(self, message: str, *, hint: str = "", code: str, status: int) -> None:
        super().__init__(message, hint=hint, code=code)
        self.status = status


class JobFailedError(ShoalError):
    """A job that a client waited for ended without its results."""

    code = "job_failed"


class WaitTimeoutError(ShoalError):
    """The time that a client gave is over. It does not mean that the job failed."""

    code = "timeout"
