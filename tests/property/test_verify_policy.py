"""How often is checked what: words that are read and written, and a price on cheating."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol.errors import LocalProtocolError
from shoal.protocol.verification.policy import (
    P_MIN,
    QUORUM_LIMIT,
    QUORUM_MIN,
    UNITS_AT_STAKE,
    Verify,
    probability,
)

policies = st.one_of(
    st.sampled_from([Verify("receipt"), Verify("auto"), Verify()]),
    st.integers(QUORUM_MIN, QUORUM_LIMIT).map(lambda k: Verify("quorum", k=k)),
    st.floats(0.0, 1.0, exclude_min=True).map(lambda p: Verify("sample", p=p)),
)


@given(policies)
def test_what_a_policy_says_is_read_back(policy):
    assert Verify.parse(str(policy)) == policy
    assert Verify.parse(f" {policy}\n") == policy


def test_the_words_are_those_of_the_command_line():
    assert Verify.parse("auto") == Verify()
    assert Verify.parse("quorum:3") == Verify("quorum", k=3)
    assert [str(Verify("sample", p=p)) for p in (1.0, 0.05)] == ["sample:1", "sample:0.05"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "there is no level ''"),
        ("always", "there is no level 'always'"),
        ("Auto", "there is no level 'Auto'"),
        ("quorum", "quorum needs a number"),
        ("sample", "sample needs a number"),
        ("auto:1", "auto takes no number"),
        ("receipt:", "receipt takes no number"),
        ("quorum:1", "a quorum has 2 to 7 providers"),
        ("quorum:8", "a quorum has 2 to 7 providers"),
        ("quorum:-3", "'-3' is no number of providers"),
        ("quorum:two", "'two' is no number of providers"),
        ("quorum:99999", "'99999' is no number of providers"),
        ("sample:0", "a sample is over 0 and at most 1"),
        ("sample:1.01", "a sample is over 0 and at most 1"),
        ("sample:nan", "a sample is over 0 and at most 1"),
        ("sample:inf", "a sample is over 0 and at most 1"),
        ("sample:5%", "could not convert string to float"),
    ],
)
def test_nonsense_is_refused_by_name(text, why):
    with pytest.raises(LocalProtocolError) as refused:
        Verify.parse(text)
    assert refused.value.code == "bad_verify"
    assert why in refused.value.message
    assert "sample:0.1" in refused.value.hint


@given(st.text(max_size=80))
def test_whatever_is_said_is_a_policy_or_refused(text):
    try:
        policy = Verify.parse(text)
    except LocalProtocolError:
        return  # any other error ends the test
    assert Verify.parse(str(policy)) == policy


shares = st.floats(0.0, 1.0)
amounts = st.floats(0.0, 1e12)


@given(st.integers(0, 1 << 31), st.booleans(), shares, amounts, amounts, shares)
def test_a_probability_is_one_and_never_under_the_least(
    good, newcomer, standing, cost, reward, colluding
):
    asked = {"standing": standing, "cost": cost, "reward": reward, "colluding": colluding}
    p = probability(good_in_a_row=good, newcomer=newcomer, **asked)
    assert P_MIN <= p <= 1.0
    if newcomer:
        assert p == 1.0
    assert p >= min(1.0, 1 / max(1, good))
    assert probability(good_in_a_row=good + 1, newcomer=newcomer, **asked) <= p


@given(
    st.integers(1, 10_000),
    st.floats(0.0, 1.0),
    st.floats(0.01, 100.0),
    st.floats(0.01, 100.0),
    st.floats(0.0, 0.95),
)
def test_cheating_once_pays_nothing_on_average(good, standing, cost, reward, colluding):
    """Where p can deter at all: what is saved is at most what is lost times how surely."""
    p = probability(
        good_in_a_row=good,
        newcomer=False,
        standing=standing,
        cost=cost,
        reward=reward,
        colluding=colluding,
    )
    lost = p * (1 - colluding) * reward * (1 + UNITS_AT_STAKE * standing)
    assert p == 1.0 or lost >= cost * (1 - 1e-9)


def test_a_peer_in_good_standing_is_checked_about_once_in_twenty():
    usual = {"newcomer": False, "standing": 1.0, "cost": 1.0, "reward": 1.0, "colluding": 0.3}
    assert 0.04 < probability(good_in_a_row=1000, **usual) < 0.06
    assert probability(good_in_a_row=10, **usual) == 0.1
    assert probability(good_in_a_row=1000, **(usual | {"standing": 0.1})) > 0.2
    assert probability(good_in_a_row=1000, **(usual | {"cost": 0.01})) == P_MIN
