"""Who may open a bulk channel, and how often."""

from shoal.crypto.peer_id import PeerId
from shoal.node.bulk.tokens import (
    CHANNELS_IN_ALL,
    CHANNELS_PER_PEER,
    ENDING_PER_PEER,
    TOKEN_LIFETIME_S,
    Tokens,
    may_open,
)

ANN, BOB = PeerId("ann"), PeerId("bob")


def token(number):
    return bytes([number]) * 24


def test_a_token_opens_one_channel_for_the_certificate_it_was_asked_with():
    tokens = Tokens()
    tokens.offer(token(1), ANN, b"hers", 0.0)
    offer = tokens.redeem(token(1), 1.0)
    assert (offer.peer, offer.certificate) == (ANN, b"hers")
    assert tokens.redeem(token(1), 1.0) is None


def test_a_token_that_is_late_unknown_or_revoked_opens_nothing():
    tokens = Tokens()
    for number, peer in ((1, ANN), (2, ANN), (3, BOB)):
        tokens.offer(token(number), peer, b"", 0.0)
    assert tokens.redeem(token(1), TOKEN_LIFETIME_S) is None
    assert tokens.redeem(token(9), 0.0) is None
    tokens.revoke(ANN)
    assert tokens.redeem(token(2), 0.0) is None
    assert tokens.redeem(token(3), 0.0) is not None


def test_a_peer_has_so_many_tokens_at_once_and_takes_none_of_another():
    tokens = Tokens()
    tokens.offer(token(0), BOB, b"", 0.0)
    for number in range(1, 2 * CHANNELS_PER_PEER + 1):
        tokens.offer(token(number), ANN, b"", 0.0)
        assert len(tokens) == 1 + min(number, CHANNELS_PER_PEER)
    assert tokens.redeem(token(CHANNELS_PER_PEER), 0.0) is None  # the oldest went first
    assert tokens.redeem(token(CHANNELS_PER_PEER + 1), 0.0) is not None
    assert tokens.redeem(token(0), 0.0) is not None


def test_tokens_that_nobody_used_are_forgotten_with_the_next_offer():
    tokens = Tokens()
    tokens.offer(token(1), ANN, b"", 0.0)
    tokens.offer(token(2), BOB, b"", TOKEN_LIFETIME_S)
    assert len(tokens) == 1


def test_where_channels_get_scarce_every_peer_still_gets_one():
    most = CHANNELS_PER_PEER + ENDING_PER_PEER
    assert may_open(most - 1, most - 1)
    assert not may_open(most, most)
    assert not may_open(1, CHANNELS_IN_ALL // 2)
    assert may_open(0, CHANNELS_IN_ALL - 1)
    assert not may_open(0, CHANNELS_IN_ALL)
