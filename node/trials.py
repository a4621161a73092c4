"""How a node reads a fraud proof, and has it judged: what `node.convictions` is given.

The form and the signatures are checked in the daemon, by `protocol.verification.fraud_proof`,
since that is cheap and says whom a proof is against. Whatever computes is the worker's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shoal.compute.frames import UnitLimits
from shoal.crypto.peer_id import PeerId
from shoal.node.believed_proofs import Charge
from shoal.protocol.verification import fraud_proof
from shoal.protocol.verification.fraud_proof import Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shoal.compute.device_worker import Worker
    from shoal.crypto.content import BlobId

JUDGING_PROCESSOR_S: Final = 600.0
"""For one proof: an operator takes a second, a whole unit some ten seconds."""

JUDGING_LIMIT_S: Final = 1800.0
"""The same by the clock. At the lowest priority, on a machine whose owner uses all of it, a
second of a processor takes half a minute to be had."""

ANSWER_LIMIT_BYTES: Final = 1 << 20
"""A verdict is a sentence."""


def charge_of(proof: bytes) -> Charge:
    """Check all of a proof that needs no computing.

    Raises:
        VerificationError: It is none, or of a version that is not known here.
    """
    case = fraud_proof.examine(fraud_proof.decode(proof))
    return Charge(case.accused, case.award.issued_at_ms / 1000)


async def judged_by(
    worker: Worker,
    memory_bytes: int,
    proof: bytes,
    blobs: Mapping[BlobId, bytes],
    *,
    own: bool = False,
) -> Verdict:
    """Judge a proof in the worker: others' behind everything else that this machine does.

    Args:
        worker: This node's.
        memory_bytes: What judging may use.
        proof: The proof.
        blobs: What it needs, as far as it is at hand.
        own: It is of this node's own disputes.

    Raises:
        ComputeError: A limit was met, or the worker failed.
    """
    limits = UnitLimits(JUDGING_LIMIT_S, memory_bytes, ANSWER_LIMIT_BYTES)
    found = await worker.judge(proof, blobs, limits, JUDGING_PROCESSOR_S, own=own)
    accused = None if found.accused is None else PeerId(found.accused)
    return Verdict(Outcome(found.outcome), accused, found.sentence)
