"""A large program goes to eight providers, and its requester sends it about once."""

from shared_programs import sent_to_providers


def test_the_requester_sends_a_model_to_eight_providers_at_most_twice():
    assert sent_to_providers(8) <= 2  # the units' inputs among it
