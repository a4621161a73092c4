"""What the machine of membership decides, event by event."""

from itertools import pairwise

import pytest
from strategies import ALICE, BOB, CAROL, MALLORY, WALL_MS, signed_advert, signed_renewal

from shoal.crypto.errors import VerificationError
from shoal.crypto.identity import generate
from shoal.protocol import dialling, membership, pace
from shoal.protocol.adverts import AdvertTable
from shoal.protocol.announcing import SETTLING_S
from shoal.protocol.dialling import LINKS_WANTED, SCOUT_FIRST_S, Places
from shoal.protocol.limits import RENEWALS_LIMIT, TOLD_WHEN_FULL_LIMIT
from shoal.protocol.membership import (
    COMING_IN_LIMIT_S,
    GREETING_DELAY_S,
    ROUNDS_LIMIT,
    Member,
)
from shoal.protocol.membership_events import (
    Blame,
    Changed,
    Compare,
    Compared,
    Connected,
    Dial,
    DialFailed,
    Dialled,
    Disconnect,
    Give,
    Gone,
    Gossip,
    Heard,
    Issue,
    Issued,
    Linked,
    Lost,
    Needed,
    NotCompared,
    NotIssued,
    Tick,
    Unreached,
)
from shoal.protocol.messages import Adverts, Digest, Done

HERE = ("/ip4/10.0.0.1/tcp/1",)
NOTHING = Adverts(adverts=())
CROWD = [generate() for _ in range(8)]


class Driven:
    """A member, its clock, and what it wanted done."""

    def __init__(self, bootstrap=None, remembered=None, identity=ALICE):
        self.now_s = 0.0
        self.identity = identity
        self.log = []
        self.refused = 0
        self.member = Member(
            identity.peer_id,
            Places(dict(bootstrap or {}), remembered or {}, lambda: 0.5, 0.0),
            sign=identity.sign,
            draw=lambda: 0.5,
            now_s=0.0,
        )
        self.first = self.tell(Issued(signed_advert(identity)))

    @property
    def wall_ms(self):
        return WALL_MS + int(self.now_s * 1000)

    def tell(self, event, kind=object):
        effects = self.member.receive(event, self.now_s, self.wall_ms)
        self.log += [(self.now_s, effect) for effect in effects]
        return [effect for effect in effects if isinstance(effect, kind)]

    def wait(self, seconds, kind=object):
        """Tick whenever it is due, for so long; gives the effects."""
        until_s, effects = self.now_s + seconds, []
        for _ in range(10_000):
            self.now_s = max(self.now_s, min(until_s, self.member.next_deadline_s))
            effects += self.tell(Tick(), kind)
            if self.now_s >= until_s:
                return effects
        raise AssertionError("it ticks without end")

    def dialled(self, peer):
        """When ``peer`` was dialled."""
        return [at_s for at_s, e in self.log if isinstance(e, Dial) and e.peer == peer.peer_id]

    def refuse(self, seconds):
        """Let time pass in which every dial fails."""
        for _ in range(int(seconds * 4)):
            self.wait(0.25)
            new, self.refused = self.log[self.refused :], len(self.log)
            for _, effect in new:
                if isinstance(effect, Dial):
                    self.tell(DialFailed(effect.peer))

    def link(self, node, answer=NOTHING):
        """Let ``node`` connect and compare."""
        compares = self.tell(Connected(node.peer_id), Compare)
        compares += self.wait(GREETING_DELAY_S, Compare)
        (compare,) = [e for e in compares if e.peer == node.peer_id]
        return self.tell(Compared(compare.peer, answer))

    def hear(self, node, **changes):
        return self.member.hear_gossip(
            MALLORY.peer_id, signed_advert(node, **changes), self.now_s, self.wall_ms
        )

    def hold(self, *nodes):
        for node in nodes:
            self.hear(node)


def of(*nodes):
    return Adverts(adverts=tuple((signed_advert(node), 0.0) for node in nodes))


def holding(*nodes):
    table = AdvertTable()
    table.take(of(*nodes), now_s=0.0, wall_ms=WALL_MS)
    return table


# --- links ---------------------------------------------------------------------------


def test_a_peer_becomes_a_link_once_it_has_compared():
    node = Driven()
    assert node.tell(Connected(BOB.peer_id), Compare) == []  # it dialled: it asks first
    assert [e.peer for e in node.wait(GREETING_DELAY_S, Compare)] == [BOB.peer_id]
    assert not node.member.links
    assert node.tell(Compared(BOB.peer_id, of(BOB)), Linked) == [
        Linked(BOB.peer_id, ("/ip4/127.0.0.1/tcp/4001",))
    ]
    assert list(node.member.links) == [BOB.peer_id]


def test_a_peer_that_does_not_compare_is_asked_again_less_and_less_often():
    node = Driven()
    node.tell(Connected(BOB.peer_id))
    asked_at_s = []
    for _ in range(6):
        while not node.wait(0.25, Compare):
            pass
        asked_at_s.append(node.now_s)
        node.tell(NotCompared(BOB.peer_id))
    gaps = [after - before for before, after in pairwise(asked_at_s)]
    assert gaps == sorted(gaps)
    assert gaps[-1] > 8 * gaps[0]
    assert not node.member.links


def test_a_peer_that_sends_a_forged_advert_is_blamed_and_no_link():
    node = Driven()
    forged = Adverts(adverts=((signed_advert(BOB, signer=MALLORY), 0.0),))
    (effect,) = node.link(BOB, forged)
    assert isinstance(effect, Blame)
    assert effect.peer == BOB.peer_id
    assert not node.member.links
    assert node.wait(3, Compare) != []  # it may do better


def test_what_a_peer_wants_is_given():
    node = Driven()
    wanted = AdvertTable().answer(node.member.table.digest(), 0.0).wanted
    effects = node.link(BOB, Adverts(adverts=(), wanted=wanted))
    assert [e.adverts.adverts for e in effects if isinstance(e, Give)] == [
        ((signed_advert(ALICE), GREETING_DELAY_S),)
    ]


def test_while_there_is_more_tables_are_compared_again_at_once_and_not_for_ever():
    node = Driven()
    more = Adverts(adverts=of(BOB, CAROL).adverts, more=True)
    assert [type(e) for e in node.link(BOB, more)] == [Linked, Compare]
    assert node.tell(Compared(BOB.peer_id, more), Compare) == []  # nothing new came


def test_a_peer_that_always_has_more_is_asked_at_the_usual_pace_in_the_end():
    node = Driven()
    node.link(BOB, of(BOB))
    node.wait(3.1)
    for number in range(1, 1000):
        renewal = signed_renewal(BOB, number=number)
        answer = Adverts(adverts=(), renewals=((renewal, 0.0),), more=True)
        if not node.tell(Compared(BOB.peer_id, answer), Compare):
            break
    assert number == ROUNDS_LIMIT + 1
    assert node.wait(3.1, Compare) != []


def coming_in():
    """A node whose table comes from BOB, who has more, while CAROL is connected."""
    node = Driven()
    node.link(BOB, Adverts(adverts=of(BOB).adverts, more=True))
    node.tell(Connected(CAROL.peer_id))
    assert node.wait(2 * GREETING_DELAY_S, Compare) == []
    return node


@pytest.mark.parametrize("end", [Compared(BOB.peer_id, NOTHING), NotCompared(BOB.peer_id)])
def test_a_table_comes_in_from_one_link_at_a_time(end):
    node = coming_in()
    asked = holding(CAROL, MALLORY).digest()
    answer = node.member.answer(CAROL.peer_id, asked, node.now_s, node.wall_ms)
    assert not answer.wanted
    assert [e.peer for e in node.tell(end, Compare)] == [CAROL.peer_id]
    answer = node.member.answer(CAROL.peer_id, asked, node.now_s, node.wall_ms)
    assert answer.wanted


def test_a_link_that_always_has_more_and_is_slow_keeps_a_node_from_no_other():
    node = coming_in()
    more = Adverts(adverts=of(MALLORY).adverts, more=True)
    assert [e.peer for e in node.tell(Compared(BOB.peer_id, more), Compare)] == [BOB.peer_id]
    assert [e.peer for e in node.wait(COMING_IN_LIMIT_S, Compare)] == [CAROL.peer_id]


def test_a_table_comes_in_from_another_link_when_the_first_is_lost():
    node = coming_in()
    assert [e.peer for e in node.tell(Lost(BOB.peer_id), Compare)] == [CAROL.peer_id]


def test_a_connection_that_is_no_link_is_tried_again_while_links_are_wanting():
    node = full()
    node.tell(Connected(BOB.peer_id))
    node.wait(2)
    assert BOB.peer_id not in [e.peer for _, e in node.log if isinstance(e, Compare)]
    node.tell(Lost(CROWD[0].peer_id))
    node.wait(2)
    assert BOB.peer_id in [e.peer for _, e in node.log if isinstance(e, Compare)]


def test_the_tables_of_links_are_compared_from_time_to_time():
    node = Driven()
    node.link(BOB)
    assert [e.peer for e in node.wait(3.1, Compare)] == [BOB.peer_id]
    assert node.wait(30, Compare) == []  # as long as one is under way


@pytest.mark.parametrize("addresses", [HERE, ()])
def test_a_link_that_is_lost_is_dialled_once_more_and_then_buried_and_scouted_for(addresses):
    node = Driven()
    advert = signed_advert(BOB, addresses=addresses)
    node.link(BOB, Adverts(adverts=((advert, 0.0),)))
    effects = node.tell(Lost(BOB.peer_id))
    if addresses:
        assert [e.peer for e in effects if isinstance(e, Dial)] == [BOB.peer_id]
        assert BOB.peer_id in node.member.table
        effects = node.tell(DialFailed(BOB.peer_id))
    assert [e.peer for e in effects if isinstance(e, Gone)] == [BOB.peer_id]
    assert BOB.peer_id not in node.member.table
    assert [e.peer for e in node.wait(7, Dial)] == [BOB.peer_id] * bool(addresses)


def test_a_link_that_comes_back_at_once_was_never_gone():
    node = Driven()
    node.link(BOB, of(BOB))
    node.tell(Lost(BOB.peer_id))
    node.tell(Dialled(BOB.peer_id))
    assert node.tell(Connected(BOB.peer_id), Compare) != []  # this node dialled: it asks
    before = node.member.table.get(ALICE.peer_id).number
    assert node.tell(Compared(BOB.peer_id, NOTHING), Linked) != []
    assert BOB.peer_id in node.member.table
    # Others may have buried this node when it did not answer: it says that it lives.
    assert node.member.table.get(ALICE.peer_id).number == before + 1


def test_a_buried_peer_that_connects_is_listed_again_by_its_old_advert():
    node = Driven()
    node.link(BOB, of(BOB))
    node.tell(Lost(BOB.peer_id))
    node.tell(DialFailed(BOB.peer_id))
    node.link(BOB, of(BOB))
    assert BOB.peer_id in node.member.table


def test_a_node_that_a_call_does_not_reach_is_gone_for_the_caller_and_scouted_for():
    node = Driven()
    node.hold(BOB)
    assert node.tell(Unreached(BOB.peer_id), Gone) != []
    assert BOB.peer_id not in node.member.table
    assert [e.peer for e in node.wait(7, Dial)] == [BOB.peer_id]


# --- a node that is full ----------------------------------------------------------------


def full():
    node = Driven()
    node.member.links_limit = 2
    for other in CROWD[:2]:
        node.link(other, of(other))
    return node


def test_a_full_node_takes_no_link_and_tells_of_others():
    node = full()
    node.hold(*CROWD)
    asked = Digest(held=b"")
    answer = node.member.answer(BOB.peer_id, asked, node.now_s, node.wall_ms)
    assert not answer.room
    assert 1 < len(answer.adverts) <= TOLD_WHEN_FULL_LIMIT
    assert signed_advert(ALICE) in [envelope for envelope, _ in answer.adverts]
    assert node.tell(Connected(BOB.peer_id), Compare) == []
    assert [e.peer for e in node.wait(2, Compare)] != [BOB.peer_id]
    answer = node.member.answer(CROWD[0].peer_id, asked, node.now_s, node.wall_ms)
    assert answer.room


def test_a_full_node_keeps_the_links_that_its_work_needs():
    node = full()
    node.tell(Needed(BOB.peer_id))
    assert [e.peer for e in node.tell(Connected(BOB.peer_id), Compare)] == [BOB.peer_id]
    assert node.tell(Compared(BOB.peer_id, Adverts(adverts=(), room=False)), Linked) != []


def test_a_connection_to_a_full_node_becomes_a_link_when_work_needs_it():
    node = Driven()
    node.tell(Connected(BOB.peer_id))
    node.wait(GREETING_DELAY_S)
    node.tell(Compared(BOB.peer_id, Adverts(adverts=(), room=False)))
    assert not node.member.links
    assert [e.peer for e in node.tell(Needed(BOB.peer_id), Compare)] == [BOB.peer_id]


def test_who_is_turned_away_leaves_and_dials_those_it_was_told_of():
    node = Driven(bootstrap={BOB.peer_id: HERE})
    assert [e.peer for e in node.first if isinstance(e, Dial)] == [BOB.peer_id]
    node.tell(Dialled(BOB.peer_id))
    node.tell(Connected(BOB.peer_id))
    told = Adverts(adverts=of(CAROL, MALLORY).adverts, room=False)
    effects = node.tell(Compared(BOB.peer_id, told))
    assert [e.peer for e in effects if isinstance(e, Disconnect)] == [BOB.peer_id]
    assert {e.peer for e in effects if isinstance(e, Dial)} == {CAROL.peer_id, MALLORY.peer_id}
    node.tell(Lost(BOB.peer_id))
    assert not node.member.links


def test_of_so_many_who_turn_this_node_away_is_kept_when_and_of_no_more(monkeypatch):
    monkeypatch.setattr(membership, "BACK_OFFS_LIMIT", 3)
    node = Driven()
    for number in range(10):
        peer = f"stranger{number}"
        node.tell(Connected(peer))
        node.wait(GREETING_DELAY_S)
        node.tell(Compared(peer, Adverts(adverts=(), room=False)))
    assert list(node.member._back_off) == ["stranger7", "stranger8", "stranger9"]


# --- dialling ------------------------------------------------------------------------------


def test_a_node_alone_tries_its_bootstrap_peers_every_few_seconds_for_ever():
    node = Driven(bootstrap={BOB.peer_id: HERE})
    node.refuse(300)
    assert max(b - a for a, b in pairwise([*node.dialled(BOB), node.now_s])) <= 3.5


def test_known_nodes_are_dialled_until_there_are_links_enough():
    node = Driven()
    node.hold(*CROWD)
    node.tell(Tick())
    dialled = [e.peer for e in node.wait(1, Dial)]
    assert len(dialled) == len(set(dialled)) == dialling.DIALS_AT_ONCE
    for other in CROWD[:LINKS_WANTED]:
        node.link(other, of(other))
    for peer in dialled:
        node.tell(Dialled(peer))
    since = len(node.log)
    node.refuse(10)
    assert not [effect for _, effect in node.log[since:] if isinstance(effect, Dial)]


@pytest.mark.parametrize("kind", ["remembered", "bootstrap"])
def test_a_peer_of_old_that_is_not_in_the_table_is_dialled_whatever_links_there_are(kind):
    node = Driven(**{kind: {BOB.peer_id: HERE}})
    for other in CROWD[:LINKS_WANTED]:
        node.link(other, of(other))
    node.tell(DialFailed(BOB.peer_id))
    node.refuse(600)
    assert max(b - a for a, b in pairwise([*node.dialled(BOB), node.now_s])) <= 80


def test_a_bootstrap_peer_in_the_table_is_left_to_others_once_there_are_links_enough():
    node = Driven(bootstrap={BOB.peer_id: HERE})
    node.tell(DialFailed(BOB.peer_id))
    node.link(CROWD[0], of(BOB, *CROWD))
    for other in CROWD[1:LINKS_WANTED]:
        node.link(other)
    node.refuse(10)
    since = len(node.dialled(BOB))
    for _ in range(10):  # its advert has not expired yet
        node.tell(Lost(MALLORY.peer_id))  # look whom to dial
        node.refuse(4)
    assert len(node.dialled(BOB)) == since


def test_a_peer_that_is_heard_of_is_dialled_and_one_in_the_table_is_not():
    node = Driven()
    node.link(CAROL, of(CAROL))
    for peer in (BOB, CAROL, ALICE):
        node.tell(Heard(peer.peer_id, HERE, "lan"))
    node.refuse(10)
    assert node.dialled(BOB)
    assert not node.dialled(CAROL) + node.dialled(ALICE)


def test_a_bootstrap_peer_may_be_heard_of_later():
    node = Driven()
    effects = node.tell(Heard(BOB.peer_id, HERE, "bootstrap"), Dial)
    assert [(e.peer, e.addresses) for e in effects] == [(BOB.peer_id, HERE)]


def test_a_node_whose_advert_expired_everywhere_is_not_dialled_by_all_at_once(monkeypatch):
    monkeypatch.setattr(pace, "scouting_spread_s", lambda nodes: 100.0)
    node = Driven()  # which always draws 0.5
    node.link(CAROL)
    node.hear(BOB, lifetime_s=20.0)
    node.refuse(80)
    assert BOB.peer_id not in node.member.table
    dialled_at_s = [at_s for at_s in node.dialled(BOB) if at_s > GREETING_DELAY_S + 20]
    assert dialled_at_s[0] == pytest.approx(GREETING_DELAY_S + 20 + SCOUT_FIRST_S + 50, abs=1)


def test_scouting_is_done_one_by_one_however_many_are_lost():
    node = Driven(remembered={other.peer_id: HERE for other in CROWD})
    node.link(BOB, of(BOB))
    node.refuse(60)
    since_s = node.now_s
    node.refuse(300)
    times = sorted(t for other in CROWD for t in node.dialled(other) if t > since_s)
    assert len(times) > 30
    assert min(b - a for a, b in pairwise(times)) >= dialling.SCOUT_GAP_S - 0.25


# --- this node's own advert ------------------------------------------------------------------


def test_a_node_gossips_its_advert_once_it_has_joined_and_not_before():
    node = Driven()
    assert node.wait(20, (Issue, Gossip)) == []
    node.link(BOB)
    (issue,) = node.wait(SETTLING_S, Issue)
    assert issue.lifetime_s == 60.0
    envelope = signed_advert(ALICE, sequence=2)
    assert node.tell(Issued(envelope), Gossip) == [Gossip(envelope)]
    assert node.wait(600, (Issue, Gossip)) == []


def test_a_node_that_lost_every_link_gossips_again_when_it_has_one():
    node = Driven()
    for sequence in (2, 3):
        node.link(BOB)
        assert node.wait(SETTLING_S, Issue) != []
        assert node.tell(Issued(signed_advert(ALICE, sequence=sequence)), Gossip) != []
        node.tell(Lost(BOB.peer_id))


def test_a_node_renews_its_advert_without_signing_a_new_one():
    node = Driven()
    node.wait(600)
    entry = node.member.table.get(ALICE.peer_id)
    assert entry.envelope == signed_advert(ALICE)
    assert 25 <= entry.number <= 35
    assert entry.expires_at_s > node.now_s + 30


def test_a_node_renews_at_once_when_the_network_has_outgrown_its_lifetime(monkeypatch):
    node = Driven()
    node.link(BOB, of(BOB))
    node.wait(SETTLING_S)
    node.tell(Issued(signed_advert(ALICE, sequence=2, lifetime_s=60.0)))
    for factor, renewals in [(1.4, 0), (1.6, 1), (2.0, 1)]:
        monkeypatch.setattr(pace, "advert_lifetime_s", lambda nodes, f=factor: 60.0 * f)
        node.tell(Tick())
        assert node.member.table.get(ALICE.peer_id).number == renewals


def test_after_very_many_renewals_a_new_advert_is_issued():
    node = Driven()
    last = signed_renewal(ALICE, number=RENEWALS_LIMIT)
    opened = node.member.table.open_renewal(last)
    node.member.table.renew(last, opened, age_s=0.0, now_s=0.0, wall_ms=WALL_MS)
    assert len(node.wait(25, Issue)) == 1


def test_a_node_whose_own_advert_expired_issues_one():
    node = Driven()
    node.now_s = 500.0
    assert [type(effect) for effect in node.tell(Tick()) if not isinstance(effect, Dial)] == [
        Issue
    ]
    assert ALICE.peer_id not in node.member.places.absent


def test_what_changes_quickly_is_issued_no_faster_than_the_gap():
    node = Driven()
    issued = 0
    for _ in range(100):
        node.tell(Changed())
        for _issue in node.wait(0.1, Issue):
            issued += 1
            node.tell(Issued(signed_advert(ALICE, sequence=1 + issued)))
    assert issued == pytest.approx(10 / pace.advert_gap_s(1), abs=1)


def test_an_advert_that_could_not_be_issued_is_tried_again():
    node = Driven()
    node.now_s = 5.0
    assert len(node.tell(Changed(), Issue)) == 1
    assert node.tell(Changed(), Issue) == []  # one at a time
    node.tell(NotIssued())
    assert len(node.wait(25, Issue)) == 1


# --- gossip of others ----------------------------------------------------------------------


def test_news_is_passed_on_and_old_news_is_not():
    node = Driven()
    assert node.hear(BOB, sequence=2)
    assert not node.hear(BOB, sequence=1)


def test_a_forged_advert_is_not_passed_on():
    with pytest.raises(VerificationError):
        Driven().hear(BOB, signer=MALLORY)


def test_an_advert_that_came_by_comparison_first_is_passed_on_once():
    node = Driven()
    node.link(CAROL, of(BOB))
    assert node.hear(BOB)
    assert not node.hear(BOB)


def test_adverts_of_one_node_that_follow_fast_are_taken_in_and_not_passed_on():
    node = Driven()
    assert node.hear(BOB, sequence=1)
    assert not node.hear(BOB, sequence=2)
    assert node.member.table.get(BOB.peer_id).advert.sequence == 2
    node.now_s = 10.0
    assert node.hear(BOB, sequence=3)


def test_gossip_beyond_the_budget_is_taken_in_and_not_passed_on(monkeypatch):
    monkeypatch.setattr(pace, "RELAYS_BURST", 3)
    node = Driven()
    assert [node.hear(other) for other in CROWD[:5]] == [True, True, True, False, False]
    assert len(node.member.table) == 6
    node.now_s = 1.0 / pace.RELAYS_PER_S
    assert [node.hear(other) for other in CROWD[5:7]] == [True, False]


def test_in_a_large_network_a_part_of_the_nodes_passes_news_on(monkeypatch):
    monkeypatch.setattr(pace, "relay_share", lambda nodes: 0.4 if nodes > 2 else 0.6)
    node = Driven()  # which always draws 0.5
    assert node.hear(BOB)
    assert not node.hear(CAROL)
    assert CAROL.peer_id in node.member.table
    assert node.member.hear_gossip(
        CROWD[0].peer_id, signed_advert(CROWD[0]), node.now_s, node.wall_ms
    )


# --- answering ------------------------------------------------------------------------------


def test_a_digest_is_answered_and_what_is_given_is_taken():
    node = Driven()
    digest = holding(BOB).digest()
    answer = node.member.answer(BOB.peer_id, digest, node.now_s, node.wall_ms)
    assert [envelope for envelope, _ in answer.adverts] == [signed_advert(ALICE)]
    given = holding(BOB).give(answer.wanted, 0.0)
    assert node.member.answer(BOB.peer_id, given, node.now_s, node.wall_ms) == Done()
    assert BOB.peer_id in node.member.table


def test_who_answers_a_forged_advert_raises():
    forged = Adverts(adverts=((signed_advert(BOB, signer=MALLORY), 0.0),))
    with pytest.raises(VerificationError):
        Driven().member.answer(BOB.peer_id, forged, 0.0, WALL_MS)
