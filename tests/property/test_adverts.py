"""A network of advert tables with lost messages and nodes that come and go.

Beside the tables runs a model: who lives, and the newest advert each signed.
"""

from functools import cache

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from strategies import ALICE, BOB, CAROL, MALLORY, WALL_MS, signed_advert

from shoal.protocol.adverts import AdvertTable
from shoal.protocol.codec import decode, encode
from shoal.protocol.messages import Adverts, Digest

NODES = (ALICE, BOB, CAROL, MALLORY)
LIFETIME_S = 60.0
TRANSIT_S = 0.5
nodes = st.integers(0, len(NODES) - 1)
envelope_of = cache(lambda node, sequence: signed_advert(NODES[node], sequence=sequence))


class Network(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.now_s = 0.0
        self.tables = [AdvertTable() for _ in NODES]
        self.sequences = [0] * len(NODES)
        self.issued_at_s = [0.0] * len(NODES)
        self.alive = [True] * len(NODES)
        self.gone: list[dict[str, int]] = [{} for _ in NODES]
        for node in range(len(NODES)):
            self.advertise(node, lost_to=set())

    def take(self, at, envelope, age_s):
        self.tables[at].accept(
            envelope, age_s=age_s, now_s=self.now_s, wall_ms=WALL_MS + int(self.now_s * 1000)
        )

    @rule(node=nodes, lost_to=st.sets(nodes))
    def advertise(self, node, lost_to):
        """By gossip, which loses what it loses. Clocks stand still for the signature."""
        if not self.alive[node]:
            return
        self.sequences[node] += 1
        self.issued_at_s[node] = self.now_s
        for at in range(len(NODES)):
            if at == node or (at not in lost_to and self.alive[at]):
                self.take(at, envelope_of(node, self.sequences[node]), 0.0)

    @rule(asker=nodes, asked=nodes, lost=st.sampled_from([None, "digest", "answer", "wanted"]))
    def reconcile(self, asker, asked, lost):
        if asker == asked or not (self.alive[asker] and self.alive[asked]) or lost == "digest":
            return
        digest = decode(encode(self.tables[asker].digest()), Digest)
        answer = decode(encode(self.tables[asked].answer(digest, self.now_s)), Adverts)
        self.now_s += TRANSIT_S
        if lost == "answer":
            return
        wall_ms = WALL_MS + int(self.now_s * 1000)
        self.tables[asker].take(answer, now_s=self.now_s, wall_ms=wall_ms)
        if lost != "wanted":
            given = decode(encode(self.tables[asker].give(answer.wanted, self.now_s)), Adverts)
            self.tables[asked].take(given, now_s=self.now_s, wall_ms=wall_ms)

    @rule(seconds=st.floats(0.1, 40.0))
    def wait(self, seconds):
        self.now_s += seconds
        for at, table in enumerate(self.tables):
            held = {entry.advert.peer: entry.advert.sequence for entry in table}
            self.gone[at] |= {
                e.advert.peer: held[e.advert.peer] for e in table.expire(self.now_s)
            }

    @rule(node=nodes)
    def die(self, node):
        self.alive[node] = False

    @rule(by=nodes, dead=nodes)
    def bury(self, by, dead):
        peer = NODES[dead].peer_id
        entry = self.tables[by].get(peer)
        if not self.alive[dead] and self.tables[by].bury(peer):
            self.gone[by][peer] = entry.advert.sequence

    @rule(node=nodes)
    def come_back(self, node):
        if not self.alive[node]:
            self.alive[node], self.tables[node], self.gone[node] = True, AdvertTable(), {}
            self.advertise(node, lost_to=set(range(len(NODES))))

    @rule(node=nodes, at=nodes, back=st.integers(1, 3))
    def replay(self, node, at, back):
        """An attacker hands an old advert round as if it were fresh."""
        if self.sequences[node] > back:
            newest = self.tables[at].get(NODES[node].peer_id)
            self.take(at, envelope_of(node, self.sequences[node] - back), 0.0)
            if newest is not None:
                assert self.tables[at].get(NODES[node].peer_id) == newest or (
                    newest.advert.sequence < self.sequences[node] - back
                )

    @invariant()
    def nothing_is_held_that_was_never_signed_or_twice(self):
        for table in self.tables:
            held = [entry.advert.peer for entry in table]
            assert len(held) == len(set(held)) <= len(NODES)
            for entry in table:
                node = [n.peer_id for n in NODES].index(entry.advert.peer)
                assert entry.advert.sequence <= self.sequences[node]
                assert entry.envelope == envelope_of(node, entry.advert.sequence)

    @invariant()
    def what_died_stays_dead_until_it_speaks_again(self):
        for at, table in enumerate(self.tables):
            for entry in table:
                assert entry.advert.sequence > self.gone[at].get(entry.advert.peer, -1)
                assert entry.expires_at_s > self.now_s - TRANSIT_S * len(NODES)

    def teardown(self):
        """Once no message is lost any more, everybody finds everybody who lives."""
        for node in range(len(NODES)):
            self.advertise(node, lost_to=set(range(len(NODES))))
        living = [node for node in range(len(NODES)) if self.alive[node]]
        self.all_reconcile(living)
        for at in living:
            found = {entry.advert.peer: entry.advert.sequence for entry in self.tables[at]}
            wanted = {NODES[node].peer_id: self.sequences[node] for node in living}
            assert wanted.items() <= found.items()
        self.wait(LIFETIME_S + 1)  # with nobody renewing, all of it dies, handed round or not
        self.all_reconcile(living)
        assert [len(self.tables[at]) for at in living] == [0] * len(living)

    def all_reconcile(self, living):
        for _ in range(2):
            for asker in living:
                for asked in living:
                    self.reconcile(asker, asked, None)


Network.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_tables_converge_and_forget_whatever_gets_lost = Network.TestCase
