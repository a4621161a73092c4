"""What all that is known of a peer decides: share, checks, whether it is served."""

from types import SimpleNamespace

import pytest
import trio

from shoal.crypto.content import blob_id_of
from shoal.crypto.peer_id import PeerId
from shoal.node import bidding, explain
from shoal.node.causes import IN_DEBT, LOW_STANDING, REFUSALS
from shoal.node.conduct import Conduct
from shoal.node.ledger import ALLOWANCE_CREDITS, LEEWAY, Ledger, LedgerRow
from shoal.node.records import Answer, Ban, JobId
from shoal.node.result_standing import NEW, Deed
from shoal.node.serving import withheld
from shoal.node.settling import Settling
from shoal.node.standing import Offence
from shoal.node.standings import REFUSED_BELOW, Standings
from shoal.protocol.negotiation_messages import Reason

OWN, PEER, FRIEND = (PeerId(name) for name in ("own", "peer", "friend"))


class Clock:
    now = 1.7e9

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def standings(clock):
    await trio.lowlevel.checkpoint()
    return Standings(OWN, Conduct(OWN, [FRIEND]), friends=lambda: [FRIEND], clock=clock)


async def test_a_newcomer_is_always_checked_and_checks_nobody(standings):
    assert standings.probability(PEER) == 1.0
    assert not standings.may_verify(PEER)
    assert standings.share(PEER) == NEW.value
    assert standings.refusal(PEER) is None
    assert not standings.doubted(PEER)
    assert standings.page(PEER).reasons == ()


async def test_results_found_right_are_checked_less_and_let_a_peer_check_others(standings):
    standings.note(PEER, Deed.CHECKED_GOOD, times=10)
    assert standings.probability(PEER) == pytest.approx(1 / 10)
    assert standings.may_verify(PEER)
    assert standings.share(PEER) > 0.9
    standings.note(PEER, Deed.CHECKED_GOOD, times=510)
    assert 0.04 < standings.probability(PEER) < 0.06
    page = standings.page(PEER)
    assert (page.reasons[0].code, page.reasons[0].count) == ("checked_good", 520)


async def test_this_node_trusts_itself_and_friends_may_check_from_the_start(standings):
    standings.note(OWN, Deed.VOTED_DOWN)
    assert standings.share(OWN) == 1.0
    assert standings.probability(OWN) == 0.0
    assert standings.may_verify(FRIEND)
    standings.note(FRIEND, Deed.VOTED_DOWN)
    assert not standings.may_verify(FRIEND)
    assert standings.refusal(FRIEND) is None  # its owner's word goes before


async def test_bad_deeds_cost_share_then_rank_then_service_and_time_makes_good(
    standings, clock
):
    standings.note(PEER, Deed.VOTED_DOWN)
    assert standings.doubted(PEER)
    assert standings.refusal(PEER) is None
    standings.note(PEER, Deed.WITHHELD, detail="a leaf of receipt ab")
    assert standings.share(PEER) < REFUSED_BELOW
    assert "gave nothing of what a dispute asked for" in standings.refusal(PEER)
    page = standings.page(PEER)
    assert not page.served
    assert page.reasons[0].detail == "a leaf of receipt ab"
    clock.now += 60 * 86400.0
    assert standings.refusal(PEER) is None


async def test_whoever_is_slow_loses_a_little_and_the_reason_is_told(standings):
    standings.note(PEER, Deed.CHECKED_GOOD, times=20)
    before = standings.share(PEER)
    standings.note(PEER, Deed.SLOW, detail="in job 1a20")
    once = standings.share(PEER)
    assert before - 0.03 < once < before
    assert standings.may_verify(PEER)
    for _ in range(19):
        standings.note(PEER, Deed.SLOW, detail="in job 1a20")
    page = standings.page(PEER)
    assert not page.may_verify  # half of its work was slow
    (slow,) = (reason for reason in page.reasons if reason.code == "slow")
    assert (slow.count, slow.detail) == (20, "in job 1a20")
    assert slow.sentence == "was far slower than others or than before"
    assert standings.refusal(PEER) is None  # its own units are run as before


async def test_conduct_on_the_wire_counts_too_and_is_among_the_reasons(clock):
    conduct = Conduct(OWN)
    standings = Standings(OWN, conduct, clock=clock)
    standings.note(PEER, Deed.CHECKED_GOOD, times=50)
    assert standings.may_verify(PEER)
    conduct.broke(PEER, Offence.BAD_BLOB)
    assert standings.share(PEER) == pytest.approx(0.65 * standings.of(PEER).value, rel=0.01)
    while conduct.refused(PEER) is None:
        conduct.broke(PEER, Offence.BAD_BLOB)
    assert standings.share(PEER) == 0.0
    assert not standings.may_verify(PEER)
    assert "bad_blob" in {reason.code for reason in standings.page(PEER).reasons}


async def test_a_ban_is_above_all_and_its_proof_is_named(standings, clock):
    standings.note(PEER, Deed.CHECKED_GOOD, times=100)
    ban = Ban(PEER, blob_id_of(b"proof"), clock.now, clock.now + 50, "one operator is wrong")
    standings.banned = lambda peer: ban if peer == PEER else None
    assert standings.of(PEER).value == 0.0
    assert standings.share(PEER) == 0.0
    assert not standings.may_verify(PEER)
    page = standings.page(PEER)
    assert page.banned_until == ban.until
    assert page.reasons[0].code == "banned"
    assert ban.proof in page.reasons[0].detail
    standings.convicted(PEER, ban.why)
    assert standings.of(PEER).convicted_until_s == ban.until
    clock.now = ban.until + 1
    standings.banned = lambda _peer: None
    assert 0.0 < standings.of(PEER).value < 1.0
    standings.lift(PEER)
    assert standings.of(PEER).value > 0.9


# --- those who serve ---


def row(direction, credits_, peer=PEER):
    return LedgerRow(peer, direction, 1, credits_, 1.0, 0, 0.0, 1.0, 1.0)


def test_two_fresh_nodes_can_begin_and_neither_may_take_for_ever():
    ledger = Ledger()
    assert ledger.why_not(PEER) is None
    ledger.add(row("given", ALLOWANCE_CREDITS))
    assert ledger.why_not(PEER) is None
    ledger.add(row("given", 1.0))
    assert "those who serve" in ledger.why_not(PEER)
    assert ledger.page("those-who-serve").in_debt == {PEER: 1.0}
    ledger.add(row("taken", 1.0))
    assert ledger.why_not(PEER) is None
    ledger.add(row("taken", 10 * ALLOWANCE_CREDITS))
    assert ledger.debt(PEER) < -LEEWAY * 10 * ALLOWANCE_CREDITS
    assert [each.peer for each in ledger.rows(PEER)] == [PEER, PEER]
    ledger.drop(PEER)
    assert ledger.rows() == []


@pytest.mark.parametrize("serve", ["anyone", "those-who-serve"])
async def test_debts_count_under_the_policy_alone_and_never_for_friends(standings, serve):
    settling = Settling()
    for peer in (PEER, FRIEND):
        settling.ledger.add(row("given", 10 * ALLOWANCE_CREDITS, peer))
    config = SimpleNamespace(allow=(FRIEND,), serve=serve)
    assert withheld(config, standings, settling, FRIEND) is None
    found = withheld(config, standings, settling, PEER)
    if serve == "anyone":
        assert found is None
    else:
        reason, detail, missing = found
        assert (reason, missing) == (Reason.UNTRUSTED_REQUESTER, None)
        assert len(detail) <= 256
        answer = Answer(JobId("1"), PEER, 1.0, reason.value, detail)
        assert explain._words(answer) is IN_DEBT


async def test_a_refusal_for_low_standing_has_words_of_its_own(standings):
    standings.note(PEER, Deed.FALSE_ACCUSATION, times=2)
    config = SimpleNamespace(allow=(), serve="anyone")
    reason, detail, _ = withheld(config, standings, Settling(), PEER)
    answer = Answer(JobId("1"), PEER, 1.0, reason.value, detail)
    assert explain._words(answer) is LOW_STANDING
    for each in (Reason.UNSETTLED, Reason.BANNED):
        assert explain._words(Answer(JobId("1"), PEER, 1.0, each.value, "")) is REFUSALS[each]


def test_who_is_doubted_waits_behind_strangers_and_friends_before_both():
    terms = SimpleNamespace(own=OWN, allowed={FRIEND}, doubted=lambda peer: peer == PEER)
    ranks = [bidding.rank(peer, terms) for peer in (OWN, FRIEND, PeerId("stranger"), PEER)]
    assert ranks == [bidding.OWN, bidding.FRIEND, bidding.STRANGER, bidding.DOUBTED]
