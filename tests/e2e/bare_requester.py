"""A requester without jobs: a `BulkNode` that leases and hands over units, word by word.

For what no daemon says by itself, such as several sources of one input.
"""

import secrets

import trio
from attacker import make_award, make_call, wall_ms

from shoal.crypto.envelope import Statement
from shoal.protocol.channel_messages import ChannelWanted
from shoal.protocol.checking_messages import Acknowledge
from shoal.protocol.codec import encode
from shoal.protocol.messages import Adverts, Digest, Done
from shoal.protocol.negotiation_messages import Bid, Lease, UnitRequest, UnitResult
from shoal.protocol.statements import Acknowledgement, open_receipt, statement_id
from shoal.protocol.versions import OWN

ANSWER_LIMIT_S = 300.0


class BareRequester:
    """Has units run by daemons that it is allowed at.

    Args:
        node: A `BulkNode`, which serves what it grants.
    """

    def __init__(self, node):
        self.node = node
        self._units = 0
        answer_as_a_daemon(node)

    async def connect(self, daemon):
        """Connect to a daemon, again after it was started again."""
        place = daemon.address.rpartition("/p2p/")[0]
        await self.node.network.connect(daemon.peer, [place], 5.0)

    async def ask(self, daemon, body):
        return await self.node.control.request(daemon.peer, body, ANSWER_LIMIT_S)

    async def run(self, daemon, program, inputs, *, memory_bytes=1 << 30, **how):
        """Lease, hand over one unit, and acknowledge its receipt; gives the answer.

        Args:
            daemon: Where; it may have just started.
            program: As `convert` gives it.
            inputs: Ids by name, of blobs that this node holds or others keep.
            memory_bytes: What it may use.
            how: More fields of the `UnitRequest`.
        """
        call = await self._lease(daemon, program, memory_bytes)
        for blob in program.blobs.values():
            await self.node.store.put_bytes(blob)
        self.node.rights.grant(call, daemon.peer, [*program.blobs, *inputs.values()])
        self._units += 1
        name = f"u{self._units}"
        request = UnitRequest(call=call, unit=name, inputs=tuple(inputs.items()), **how)
        answer = await self.ask(daemon, request)
        if isinstance(answer, UnitResult):
            await self._acknowledge(daemon, answer)
        return answer

    async def _acknowledge(self, daemon, result):
        said = Acknowledgement(
            protocol=OWN,
            award=open_receipt(result.receipt).award,
            receipts=(statement_id(result.receipt),),
            requester=self.node.peer,
            provider=daemon.peer,
            issued_at_ms=wall_ms(),
        )
        envelope = self.node.key.sign(Statement.ACKNOWLEDGEMENT, encode(said))
        assert isinstance(await self.ask(daemon, Acknowledge(envelope)), Done)

    async def _lease(self, daemon, program, memory_bytes):
        limits = {"memory_bytes": memory_bytes, "time_limit_s": 120.0}
        with trio.fail_after(ANSWER_LIMIT_S):
            while True:  # it looks for executors first, and tells nobody when it has them
                call = make_call(program.program_id, secrets.token_hex(16), **limits)
                bid = await self.ask(daemon, call)
                if isinstance(bid, Bid):
                    break
                await trio.sleep(0.1)
        award = make_award(self.node.key, daemon.peer, call, bid)
        lease = await self.ask(daemon, award)
        assert isinstance(lease, Lease), lease
        return call.call


def answer_as_a_daemon(node):
    """Have a `BulkNode` answer as a daemon does that has nothing to tell."""

    async def answer(peer, body):
        if isinstance(body, ChannelWanted):
            return await node.channels.answer(peer, body)
        return Adverts(adverts=()) if isinstance(body, Digest) else Done()

    node.control.answer_with(answer)
