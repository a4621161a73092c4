"""Where a peer's request finds the module that knows about it.

Stands behind `node.control`, which reads requests and writes answers; `node.daemon` fills
it. What a module answers is its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from shoal.node.introductions import Introductions
from shoal.node.membership import Membership
from shoal.node.prover import Prover
from shoal.node.provider import Provider
from shoal.node.reachability import Reachability
from shoal.protocol.challenge_messages import Challenge, Draw, ProofOffer, ProofsWanted
from shoal.protocol.messages import Adverts, Digest, Hello, Problem
from shoal.protocol.negotiation_messages import (
    AwardOffer,
    Call,
    Cancel,
    Drop,
    Release,
    Share,
    UnitRequest,
    UnitsRequest,
)
from shoal.protocol.reachability_messages import DialBack, Introduce, Introduction

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from shoal.crypto.peer_id import PeerId
    from shoal.protocol.messages import RequestBody, ResponseBody

    Serving: TypeAlias = Callable[[PeerId, Any], Awaitable[ResponseBody]]
    """Answers one kind of request of a peer."""


@dataclass(slots=True)
class Dispatch:
    """The modules that answer peers."""

    membership: Membership
    provider: Provider
    prover: Prover
    reachability: Reachability
    introductions: Introductions
    served: dict[type[RequestBody], Serving] = field(default_factory=dict)
    """Who answers further requests, by the request."""

    async def answer(self, peer: PeerId, body: RequestBody) -> ResponseBody:
        """Let the module that knows about it answer a peer's request."""
        match body:
            case Digest() | Adverts():
                return await self.membership.answer(peer, body)
            case Call() | AwardOffer() | UnitRequest() | UnitsRequest() | Cancel() | Release():
                return await self.provider.answer(peer, body)
            case Share() | Drop():
                return self.provider.answer_about_kept(peer, body)
            case Challenge() | Draw() | ProofOffer() | ProofsWanted():
                return await self.prover.answer(peer, body)
            case DialBack():
                return await self.reachability.answer(peer, body)
            case Introduce() | Introduction():
                return await self.introductions.answer(peer, body)
            case Hello():
                return Problem(code="out_of_turn", message="a stream is greeted once")
        serve = self.served.get(type(body))
        if serve is None:
            word = type(body).__name__
            return Problem(code="not_served", message=f"this node does not serve {word}")
        return await serve(peer, body)
