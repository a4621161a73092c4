"""A table that liars try to fill with nodes that do not exist.

Signatures are stubbed, so that keys are cheap here as they are to a liar. Honest links
tell of honest nodes, each of which at least two of them know; hostile links tell of as
many invented ones as they please, in any order, and repeat what they heard.
"""

from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shoal.crypto.peer_id import peer_id_of
from shoal.protocol import adverts, hearsay
from shoal.protocol.adverts import AdvertTable, Verdict
from shoal.protocol.statements import Advert

TABLE_LIMIT, HEARSAY_LIMIT = 32, 10
HONEST_LINKS = [peer_id_of(bytes([k]) * 32) for k in range(1, 4)]
LIARS = [peer_id_of(bytes([k]) * 32) for k in range(4, 7)]
WALL_MS = 1_800_000_000_000


class Besieged(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.signed = {}
        self.table = AdvertTable(open_advert=self.signed.__getitem__)
        self.count = 0
        self.settled = set()
        self.patches = [
            mock.patch.object(adverts, "DIGEST_LIMIT", TABLE_LIMIT),
            mock.patch.object(hearsay, "HEARSAY_LIMIT", HEARSAY_LIMIT),
        ]
        for patch in self.patches:
            patch.start()

    def teardown(self):
        for patch in self.patches:
            patch.stop()

    def make(self):
        self.count += 1
        peer = peer_id_of(b"%08d" % self.count * 4)
        envelope = b"%d" % self.count
        self.signed[envelope] = Advert(
            peer=peer,
            sequence=1,
            issued_at_ms=WALL_MS,
            lifetime_s=60.0,
            protocol=(1, 0),
            agent="",
            addresses=(),
            devices=(),
            numeric_classes=(),
            providing=False,
        )
        return peer, envelope

    def tell(self, envelope, source):
        return self.table.accept(
            envelope, age_s=0.0, now_s=0.0, wall_ms=WALL_MS, source=source
        )[0]

    @initialize()
    def a_network(self):
        for _ in range(5):
            self.honest_node(HONEST_LINKS[0], HONEST_LINKS[1])

    @rule(source=st.sampled_from(LIARS), many=st.integers(1, 30))
    def invent(self, source, many):
        for _ in range(many):
            self.tell(self.make()[1], source)

    @rule(first=st.sampled_from(HONEST_LINKS), second=st.sampled_from(HONEST_LINKS))
    def honest_node(self, first, second):
        """A node joins, and two honest links tell of it, one after the other."""
        if first == second or len(self.settled) >= TABLE_LIMIT:
            return
        peer, envelope = self.make()
        assert self.tell(envelope, first) is Verdict.NEW
        self.tell(envelope, second)
        self.settled.add(peer)

    @rule()
    def met_node(self):
        """A node that this one is linked to gives its own advert."""
        if len(self.settled) >= TABLE_LIMIT:
            return
        peer, envelope = self.make()
        assert self.tell(envelope, peer) is Verdict.NEW
        self.settled.add(peer)

    @rule()
    def one_leaves(self):
        if len(self.settled) > 3:
            self.table.bury(self.settled.pop())

    @invariant()
    def whoever_was_met_or_told_of_twice_stays(self):
        assert self.settled <= {entry.advert.peer for entry in self.table}

    @invariant()
    def the_table_and_each_liars_part_of_it_are_bounded(self):
        held = {entry.advert.peer for entry in self.table}
        assert len(held) <= TABLE_LIMIT
        assert len(held - self.settled) <= HEARSAY_LIMIT * len(LIARS)

    @invariant()
    def what_is_remembered_of_hearsay_is_of_nodes_that_are_held(self):
        noted = {peer for told in self.table._hearsay._of.values() for peer in told}
        assert noted == set(self.table._hearsay.told_by) <= {e.advert.peer for e in self.table}


Besieged.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_honest_nodes_stay_and_enter_whatever_liars_make_up = Besieged.TestCase
