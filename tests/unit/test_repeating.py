"""How often a provider is asked again for what it has answered."""

from shoal.node.repeating import SHARE, is_due


def test_a_newcomer_is_asked_again_after_each_message():
    assert all(is_due(newcomer=True, draw=draw) for draw in (0.0, SHARE, 0.999))


def test_who_is_known_is_asked_again_after_a_share_of_its_messages():
    assert is_due(newcomer=False, draw=SHARE * 0.99)
    assert not is_due(newcomer=False, draw=SHARE)
