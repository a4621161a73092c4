"""The words of a bulk channel (`node.bulk`): requests, and answers that bytes follow.

A bulk channel is a TCP connection of its own beside libp2p's, for blobs of more than
`limits.CHANNEL_FROM_BYTES`. It is agreed on over the control stream: `ChannelWanted` has
the asker's certificate, `ChannelOffered` the server's, the port and a token for one use.
The asker dials that port at the host named in the offer, or where none is named at the
address at the other end of its libp2p connection. It sends `MAGIC` and the token, and
then begins TLS, 1.3 and nothing older. Each side takes the certificate that it was told
over the control stream and no other; they are self-signed, their names mean nothing, and
their dates hold whatever a clock says. The server makes no TLS for a token that it does
not know, that was used, or that is late: it ends the connection.

On the channel go frames as on a stream, of at most `MESSAGE_LIMIT_BYTES`, and bytes after
some of them. The asker sends requests, up to `limits.CHANNEL_AHEAD_LIMIT` ahead of the
answers, which come in the order of the requests. `ListWanted` is answered by the blob's
chunk list; `ChunksWanted` by as many of the chunks, from the first on, as the server has:
fewer, or none, where it is itself still receiving the blob. `ChunksRefused` answers
either, and the channel goes on. Rights are those of the blob stream. Either side may end
the channel whenever nothing is asked on it, and what breaks these rules ends it at once.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from shoal.protocol.blob_messages import CHUNKS_LIMIT, LIST_LIMIT_BYTES, WhyNot
from shoal.protocol.limits import (
    CHANNEL_CHUNKS_LIMIT,
    CertificateBytes,
    HexId,
    HostText,
    PeerText,
    Port,
    Token,
    TokenSeconds,
)
from shoal.protocol.message_form import Message

MAGIC = b"shoal-bulk/1"
"""What a connection to the bulk port begins with, before its token."""

MESSAGE_LIMIT_BYTES = 256
"""A request or an answer, without the bytes that follow it."""

_First = Annotated[int, Meta(ge=0, le=CHUNKS_LIMIT)]


# --- on the control stream ---


class ChannelWanted(Message, frozen=True, tag="channel_wanted"):
    """Asks for a bulk channel, which its sender will dial and show this certificate on."""

    certificate: CertificateBytes


class ChannelOffered(Message, frozen=True, tag="channel_offered"):
    """Where the channel can be dialled, and what opens it.

    Attributes:
        token: For one connection, whose asker shows the certificate that it was asked with.
        certificate: What the server will show.
        valid_s: How long the token may be used.
        host: Where to dial, if that is not where this peer is connected.
    """

    port: Port
    token: Token
    certificate: CertificateBytes
    valid_s: TokenSeconds
    host: HostText | None = None


class WhyNoChannel(StrEnum):
    """Why no bulk channel is offered: a closed list."""

    BUSY = "busy"
    OFF = "off"


class NoChannel(Message, frozen=True, tag="no_channel"):
    """There is none to be had now; blobs are to be fetched by stream."""

    reason: WhyNoChannel


# --- on the channel ---


class _ChannelMessage(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What all of them share."""


class ListWanted(_ChannelMessage, frozen=True, tag="list_wanted"):
    """The chunk list of this blob is wanted.

    Attributes:
        requester: As in `BlobRequest`.
    """

    blob: HexId
    requester: PeerText | None = None


class ListGiven(_ChannelMessage, frozen=True, tag="list_given"):
    """The chunk list comes next."""

    list_bytes: Annotated[int, Meta(ge=8, le=LIST_LIMIT_BYTES)]


class ChunksWanted(_ChannelMessage, frozen=True, tag="chunks_wanted"):
    """So many chunks of this blob are wanted, from ``first`` on.

    Attributes:
        requester: As in `BlobRequest`.
    """

    blob: HexId
    first: _First
    count: Annotated[int, Meta(ge=1, le=CHANNEL_CHUNKS_LIMIT)]
    requester: PeerText | None = None


class ChunksGiven(_ChannelMessage, frozen=True, tag="chunks_given"):
    """The bytes of so many chunks come next, from ``first`` on, as it was asked."""

    first: _First
    count: Annotated[int, Meta(ge=0, le=CHANNEL_CHUNKS_LIMIT)]


class ChunksRefused(_ChannelMessage, frozen=True, tag="chunks_refused"):
    """Nothing follows."""

    reason: WhyNot


ChannelRequest: TypeAlias = ListWanted | ChunksWanted
ChannelAnswer: TypeAlias = ListGiven | ChunksGiven | ChunksRefused
