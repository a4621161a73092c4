"""Words of the control stream: who can be dialled, and who has whom dialled."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from shoal.protocol import limits
from shoal.protocol.limits import (
    EnvelopeBytes,
    IpText,
    Nonce,
    PeerText,
    Port,
    Text,
)
from shoal.protocol.message_form import Message


class DialBack(Message, frozen=True, tag="dial_back"):
    """Asks a peer to dial its sender at some ports, and to say what came of it.

    It names no address: the peer dials the one that it sees the sender's connection
    come from, so that nobody can be aimed at a third party.

    Attributes:
        nonce: What the peer says once it is through; the sender sees by it that it
            has really been dialled.
    """

    nonce: Nonce
    ports: Annotated[
        tuple[Port, ...], Meta(min_length=1, max_length=limits.DIAL_BACK_PORTS_LIMIT)
    ]


class Outcome(StrEnum):
    """What came of dialling one port back: a closed list."""

    WORKED = "worked"
    REFUSED = "refused"
    NO_ANSWER = "no_answer"
    OTHER_PEER = "other_peer"
    NOT_DIALLED = "not_dialled"


class DialedBack(Message, frozen=True, tag="dialed_back"):
    """Which IP address the asker's connection comes from, and what each port did, in order."""

    seen_as: IpText
    outcomes: Annotated[
        tuple[Outcome, ...], Meta(min_length=1, max_length=limits.DIAL_BACK_PORTS_LIMIT)
    ]


class Introduce(Message, frozen=True, tag="introduce"):
    """Asks a peer that is linked to ``peer`` to have that node dial the sender.

    Attributes:
        advert: The sender's own, whose addresses are to be dialled.
    """

    peer: PeerText
    advert: EnvelopeBytes


class Introduction(Message, frozen=True, tag="introduction"):
    """Tells a node that the signer of an advert would be dialled by it, at its addresses."""

    advert: EnvelopeBytes


class NotIntroduced(Message, frozen=True, tag="not_introduced"):
    """No introduction came about, or none that led to a connection; why, for a person."""

    detail: Text
