import pytest
from strategies import ALICE, BOB, CAROL, MALLORY, WALL_MS, signed_advert

from shoal.crypto.errors import VerificationError
from shoal.protocol import adverts
from shoal.protocol.adverts import AdvertTable, Verdict
from shoal.protocol.limits import ADVERTS_PER_MESSAGE_LIMIT, CLOCK_TOLERANCE_MS
from shoal.protocol.messages import Digest

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
    assert table.expire(10.0) == (ALICE.peer_id,)


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
        (CLOCK_TOLERANCE_MS + 60_000, Verdict.NEW),
        (CLOCK_TOLERANCE_MS + 60_001, Verdict.EXPIRED),
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
    assert table.expire(140.0) == (ALICE.peer_id,)
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
    monkeypatch.setattr(adverts, "GRAVE_LIMIT", 1)
    for node in (ALICE, BOB):
        accept(table, signed_advert(node))
        table.bury(node.peer_id)
    assert accept(table, signed_advert(BOB)) is Verdict.STALE
    assert accept(table, signed_advert(ALICE)) is Verdict.NEW


def test_an_answer_holds_what_the_other_lacks_and_asks_for_what_is_newer_there(table):
    accept(table, signed_advert(ALICE, sequence=2))
    accept(table, signed_advert(BOB, sequence=2))
    accept(table, signed_advert(CAROL, sequence=2))
    theirs = Digest(
        held=((ALICE.peer_id, 1), (BOB.peer_id, 2), (CAROL.peer_id, 3), (MALLORY.peer_id, 0))
    )
    answer = table.answer(theirs, now_s=7.0)
    assert answer.adverts == ((signed_advert(ALICE, sequence=2), 7.0),)
    assert answer.wanted == (CAROL.peer_id, MALLORY.peer_id)


def test_a_buried_node_is_not_asked_for_again(table):
    accept(table, signed_advert(sequence=2))
    table.bury(ALICE.peer_id)
    assert table.answer(Digest(held=((ALICE.peer_id, 2),)), now_s=0.0).wanted == ()
    assert table.answer(Digest(held=((ALICE.peer_id, 3),)), now_s=0.0).wanted == (
        ALICE.peer_id,
    )


def test_an_age_never_goes_below_zero(table):
    accept(table, signed_advert(), now_s=10.0)
    assert table.aged([ALICE.peer_id], now_s=9.0) == ((signed_advert(), 0.0),)


def test_asking_for_one_advert_many_times_gives_it_once(table):
    accept(table, signed_advert())
    wanted = [ALICE.peer_id] * ADVERTS_PER_MESSAGE_LIMIT + [BOB.peer_id]
    assert len(table.aged(wanted, now_s=0.0)) == 1


def test_what_a_peer_will_not_take_does_not_crowd_out_what_it_lacks(table, monkeypatch):
    monkeypatch.setattr(adverts, "ADVERTS_PER_MESSAGE_LIMIT", 1)
    accept(table, signed_advert(ALICE), now_s=0.0)  # dead; the peer has buried it
    accept(table, signed_advert(BOB), now_s=5.0)
    assert table.answer(Digest(held=()), now_s=6.0).adverts == ((signed_advert(BOB), 1.0),)
