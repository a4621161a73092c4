import pytest
from strategies import (
    ALICE,
    BOB,
    CAROL,
    MALLORY,
    WALL_MS,
    signed_advert,
    signed_renewal,
)

from shoal.crypto.errors import VerificationError
from shoal.crypto.identity import generate
from shoal.protocol import adverts, hearsay, marks
from shoal.protocol.adverts import AdvertTable, Verdict
from shoal.protocol.limits import ADVERTS_PER_MESSAGE_LIMIT, CLOCK_TOLERANCE_MS
from shoal.protocol.messages import Adverts, Digest
from shoal.protocol.statements import open_renewal

LIFETIME_S = 60.0


@pytest.fixture
def table():
    return AdvertTable()


def accept(table, envelope, *, age_s=0.0, now_s=0.0, wall_ms=WALL_MS):
    return table.accept(envelope, age_s=age_s, now_s=now_s, wall_ms=wall_ms)[0]


def sequence_of(table, node=ALICE):
    entry = table.get(node.peer_id)
    return entry and entry.advert.sequence


def test_a_new_advert_is_held(table):
    assert accept(table, signed_advert()) is Verdict.NEW
    assert len(table) == 1
    assert [entry.advert.peer for entry in table] == [ALICE.peer_id]


def test_a_copy_is_known(table):
    accept(table, signed_advert())
    assert accept(table, signed_advert(), now_s=5.0) is Verdict.KNOWN
    assert table.get(ALICE.peer_id).born_at_s == 0.0


def test_a_copy_does_not_make_an_advert_younger(table):
    accept(table, signed_advert(), age_s=50.0)
    accept(table, signed_advert(), age_s=0.0)
    assert [entry.advert.peer for entry in table.expire(10.0)] == [ALICE.peer_id]


def test_a_newer_advert_replaces_an_older_one_and_never_the_reverse(table):
    accept(table, signed_advert(sequence=1))
    assert accept(table, signed_advert(sequence=3)) is Verdict.NEW
    assert accept(table, signed_advert(sequence=2)) is Verdict.STALE
    assert accept(table, signed_advert(sequence=1)) is Verdict.STALE
    assert sequence_of(table) == 3


def test_two_adverts_of_one_sequence_are_not_both_taken(table):
    accept(table, signed_advert(agent="one"))
    assert accept(table, signed_advert(agent="another")) is Verdict.STALE
    assert table.get(ALICE.peer_id).advert.agent == "one"


@pytest.mark.parametrize(
    "forged",
    [
        signed_advert(ALICE, signer=MALLORY, sequence=9),
        signed_advert(sequence=9)[:-1] + b"\0",
        b"",
        b"nonsense",
    ],
)
def test_a_forged_advert_raises_and_changes_nothing(table, forged):
    accept(table, signed_advert())
    with pytest.raises(VerificationError):
        accept(table, forged)
    assert sequence_of(table) == 1
    assert len(table) == 1


@pytest.mark.parametrize("age_s", [LIFETIME_S, LIFETIME_S + 1])
def test_an_advert_older_than_its_lifetime_is_expired(table, age_s):
    assert accept(table, signed_advert(), age_s=age_s) is Verdict.EXPIRED
    assert len(table) == 0


@pytest.mark.parametrize(
    ("clock_off_ms", "verdict"),
    [
        (0, Verdict.NEW),
        (-CLOCK_TOLERANCE_MS, Verdict.NEW),
        (-CLOCK_TOLERANCE_MS - 1, Verdict.EXPIRED),
        (CLOCK_TOLERANCE_MS + 59_999, Verdict.NEW),
        (CLOCK_TOLERANCE_MS + 60_000, Verdict.EXPIRED),
    ],
)
def test_a_wrong_clock_hides_no_node_but_a_replay_of_long_ago_is_expired(
    table, clock_off_ms, verdict
):
    assert accept(table, signed_advert(), wall_ms=WALL_MS + clock_off_ms) is verdict


def test_an_expired_advert_does_not_push_out_a_good_one(table):
    accept(table, signed_advert(sequence=1))
    assert accept(table, signed_advert(sequence=2), age_s=LIFETIME_S) is Verdict.EXPIRED
    assert sequence_of(table) == 1


def test_an_advert_dies_when_its_lifetime_ends_wherever_it_spent_it(table):
    accept(table, signed_advert(), age_s=20.0, now_s=100.0)
    assert table.expire(139.9) == ()
    assert [entry.advert.peer for entry in table.expire(140.0)] == [ALICE.peer_id]
    assert len(table) == 0


def test_what_expired_is_not_brought_back_by_a_slower_peer(table):
    accept(table, signed_advert())
    table.expire(LIFETIME_S)
    assert accept(table, signed_advert(), age_s=1.0, now_s=LIFETIME_S) is Verdict.STALE


def test_only_a_newer_advert_brings_a_buried_node_back(table):
    accept(table, signed_advert(sequence=5))
    assert table.bury(ALICE.peer_id)
    assert not table.bury(ALICE.peer_id)
    assert accept(table, signed_advert(sequence=5)) is Verdict.STALE
    assert accept(table, signed_advert(sequence=6)) is Verdict.NEW


def test_a_full_table_takes_no_new_node_but_renews_the_ones_it_has(table, monkeypatch):
    monkeypatch.setattr(adverts, "DIGEST_LIMIT", 2)
    accept(table, signed_advert(ALICE))
    accept(table, signed_advert(BOB))
    assert accept(table, signed_advert(CAROL)) is Verdict.FULL
    assert accept(table, signed_advert(ALICE, sequence=2)) is Verdict.NEW
    table.bury(BOB.peer_id)
    assert accept(table, signed_advert(CAROL)) is Verdict.NEW


def test_graves_are_bounded_and_the_oldest_are_forgotten(table, monkeypatch):
    monkeypatch.setattr(marks, "GRAVE_LIMIT", 1)
    for node in (ALICE, BOB):
        accept(table, signed_advert(node))
        table.bury(node.peer_id)
    assert accept(table, signed_advert(BOB)) is Verdict.STALE
    assert accept(table, signed_advert(ALICE)) is Verdict.NEW


def holding(*held):
    """A table that holds these (node, sequence)."""
    table = AdvertTable()
    for node, sequence in held:
        assert accept(table, signed_advert(node, sequence=sequence)) is Verdict.NEW
    return table


def test_an_answer_holds_what_the_other_lacks_and_asks_for_what_is_newer_there(table):
    accept(table, signed_advert(ALICE, sequence=2))
    accept(table, signed_advert(BOB, sequence=2))
    accept(table, signed_advert(CAROL, sequence=2))
    other = holding((ALICE, 1), (BOB, 2), (CAROL, 3), (MALLORY, 0))
    answer = table.answer(other.digest(), now_s=7.0)
    assert answer.adverts == ((signed_advert(ALICE, sequence=2), 7.0),)
    given = other.give(answer.wanted, now_s=0.0).adverts
    assert {envelope for envelope, _ in given} == {
        signed_advert(CAROL, sequence=3),
        signed_advert(MALLORY, sequence=0),
    }


def test_equal_tables_give_each_other_nothing(table):
    accept(table, signed_advert())
    assert table.answer(table.digest(), now_s=0.0) == Adverts(adverts=())


def test_a_buried_node_is_not_asked_for_again(table):
    accept(table, signed_advert(sequence=2))
    table.bury(ALICE.peer_id)
    assert table.answer(holding((ALICE, 2)).digest(), now_s=0.0).wanted == b""
    assert table.answer(holding((ALICE, 3)).digest(), now_s=0.0).wanted != b""


def test_a_buried_node_that_is_met_is_listed_again(table):
    accept(table, signed_advert())
    table.bury(ALICE.peer_id)
    table.meet(ALICE.peer_id)
    assert accept(table, signed_advert()) is Verdict.NEW


def test_an_age_never_goes_below_zero(table):
    accept(table, signed_advert(), now_s=10.0)
    assert table.aged([ALICE.peer_id], now_s=9.0).adverts == ((signed_advert(), 0.0),)


def test_asking_for_one_advert_many_times_gives_it_once(table):
    accept(table, signed_advert())
    wanted = table.digest().held * ADVERTS_PER_MESSAGE_LIMIT
    assert table.give(wanted, now_s=0.0).adverts == ()
    assert len(table.aged([ALICE.peer_id] * 3, now_s=0.0).adverts) == 1


def test_marks_that_end_in_the_middle_are_read_as_far_as_they_go(table):
    accept(table, signed_advert())
    answer = table.answer(Digest(held=table.digest().held + b"half a mark"), now_s=0.0)
    assert answer == Adverts(adverts=())


def test_what_a_peer_will_not_take_does_not_crowd_out_what_it_lacks(table, monkeypatch):
    monkeypatch.setattr(adverts, "ADVERTS_PER_MESSAGE_LIMIT", 1)
    accept(table, signed_advert(ALICE), now_s=0.0)  # dead; the peer has buried it
    accept(table, signed_advert(BOB), now_s=5.0)
    answer = table.answer(Digest(held=b""), now_s=6.0)
    assert answer.adverts == ((signed_advert(BOB), 1.0),)
    assert answer.more


# --- renewals --------------------------------------------------------------------


def renew(table, envelope, *, age_s=0.0, now_s=0.0, wall_ms=WALL_MS):
    opened = open_renewal(envelope)
    return table.renew(envelope, opened, age_s=age_s, now_s=now_s, wall_ms=wall_ms)


def test_a_renewal_sets_back_the_age_and_may_change_the_lifetime(table):
    accept(table, signed_advert())
    assert renew(table, signed_renewal(lifetime_s=100.0), age_s=5.0, now_s=50.0) is Verdict.NEW
    assert table.expire(144.9) == ()
    assert [entry.advert.peer for entry in table.expire(145.0)] == [ALICE.peer_id]


def test_a_renewal_counts_once_and_an_older_one_never(table):
    accept(table, signed_advert())
    assert renew(table, signed_renewal(number=2), now_s=10.0) is Verdict.NEW
    assert renew(table, signed_renewal(number=2), now_s=20.0) is Verdict.KNOWN
    assert renew(table, signed_renewal(number=1), now_s=20.0) is Verdict.KNOWN
    assert table.get(ALICE.peer_id).born_at_s == 10.0


@pytest.mark.parametrize(
    "renewal",
    [signed_renewal(BOB), signed_renewal(sequence=2), signed_renewal(sequence=0)],
    ids=["of a node that is not held", "of a newer advert", "of an older advert"],
)
def test_a_renewal_of_another_advert_changes_nothing(table, renewal):
    accept(table, signed_advert())
    assert renew(table, renewal, now_s=10.0) is Verdict.STALE
    assert table.get(ALICE.peer_id).born_at_s == 0.0


@pytest.mark.parametrize("renewal", [signed_advert(), b"", signed_renewal()[:-1]])
def test_a_forged_renewal_raises(renewal):
    with pytest.raises(VerificationError):
        open_renewal(renewal)


def test_where_only_renewals_differ_only_renewals_are_given(table):
    other = holding((ALICE, 1))
    accept(table, signed_advert())
    renew(table, signed_renewal(number=3), now_s=4.0)
    answer = table.answer(other.digest(), now_s=6.0)
    assert (answer.adverts, answer.renewals) == ((), ((signed_renewal(number=3), 2.0),))
    assert other.give(table.answer(other.digest(), 6.0).wanted, 6.0) == Adverts(adverts=())
    wanted = other.answer(table.digest(), now_s=6.0).wanted
    assert table.give(wanted, now_s=6.0).renewals == answer.renewals
    assert table.give(wanted, now_s=6.0).adverts == ()
    assert other.take(answer, now_s=100.0, wall_ms=WALL_MS) == []
    assert other.get(ALICE.peer_id).born_at_s == 98.0


def test_a_peer_that_lacks_a_node_gets_its_advert_and_its_renewal_as_one(table):
    accept(table, signed_advert())
    renew(table, signed_renewal(number=3), now_s=50.0)
    other = AdvertTable()
    new = other.take(table.answer(other.digest(), 55.0), now_s=0.0, wall_ms=WALL_MS)
    assert [advert.peer for advert in new] == [ALICE.peer_id]
    assert other.get(ALICE.peer_id).mark == table.get(ALICE.peer_id).mark
    assert other.get(ALICE.peer_id).born_at_s == -5.0


def test_a_renewal_brings_back_a_buried_node_and_its_advert_alone_does_not(table):
    other = holding((ALICE, 1))
    other.bury(ALICE.peer_id)
    accept(table, signed_advert())
    other.take(table.answer(other.digest(), 0.0), now_s=0.0, wall_ms=WALL_MS)
    assert len(other) == 0
    renew(table, signed_renewal(), now_s=1.0)
    other.take(table.answer(other.digest(), 1.0), now_s=1.0, wall_ms=WALL_MS)
    assert len(other) == 1


# --- liars -------------------------------------------------------------------------


@pytest.mark.parametrize("said_s", [0.0, 30.0])
def test_an_age_counts_as_at_least_what_the_issuers_clock_says_less_the_tolerance(
    table, said_s
):
    wall_ms = WALL_MS + CLOCK_TOLERANCE_MS + 50_000
    accept(table, signed_advert(), age_s=said_s, wall_ms=wall_ms)
    assert table.get(ALICE.peer_id).born_at_s == -50.0
    assert len(table.expire(10.0)) == 1


INVENTED = [generate() for _ in range(6)]


def tell(table, node, source):
    return table.accept(
        signed_advert(node), age_s=0.0, now_s=0.0, wall_ms=WALL_MS, source=source.peer_id
    )[0]


def test_one_link_fills_no_more_than_its_share_with_hearsay(table, monkeypatch):
    monkeypatch.setattr(hearsay, "HEARSAY_LIMIT", 2)
    verdicts = [tell(table, node, MALLORY) for node in INVENTED[:3]]
    assert verdicts == [Verdict.NEW, Verdict.NEW, Verdict.FULL]
    assert tell(table, ALICE, BOB) is Verdict.NEW
    asked_for = holding((ALICE, 1), (INVENTED[4], 1)).digest()
    assert table.answer(asked_for, 0.0, MALLORY.peer_id).wanted == b""


def test_what_two_links_tell_of_is_hearsay_no_more(table, monkeypatch):
    monkeypatch.setattr(hearsay, "HEARSAY_LIMIT", 1)
    tell(table, INVENTED[0], MALLORY)
    table.answer(holding((INVENTED[0], 1)).digest(), 0.0, BOB.peer_id)
    assert tell(table, INVENTED[1], MALLORY) is Verdict.NEW


def test_a_full_table_takes_a_newcomer_for_the_newest_hearsay_of_who_told_most(
    table, monkeypatch
):
    monkeypatch.setattr(adverts, "DIGEST_LIMIT", 4)
    monkeypatch.setattr(hearsay, "HEARSAY_LIMIT", 4)
    tell(table, CAROL, BOB)
    for node in INVENTED[:3]:
        tell(table, node, MALLORY)
    assert tell(table, INVENTED[3], MALLORY) is Verdict.FULL
    assert tell(table, ALICE, BOB) is Verdict.NEW
    assert INVENTED[2].peer_id not in table
    assert {CAROL.peer_id, ALICE.peer_id, INVENTED[0].peer_id} <= {
        entry.advert.peer for entry in table
    }


def test_a_node_that_is_met_enters_a_full_table_and_stays(table, monkeypatch):
    monkeypatch.setattr(adverts, "DIGEST_LIMIT", 2)
    for node in INVENTED[:2]:
        tell(table, node, MALLORY)
    assert tell(table, ALICE, ALICE) is Verdict.NEW
    assert tell(table, BOB, BOB) is Verdict.NEW
    assert tell(table, CAROL, CAROL) is Verdict.FULL
    assert {entry.advert.peer for entry in table} == {ALICE.peer_id, BOB.peer_id}
