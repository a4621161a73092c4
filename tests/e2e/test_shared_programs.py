"""A large program goes to several providers; the long form is in `tests/soak`.

The figures are printed: ``pytest -s tests/e2e/test_shared_programs.py``.
"""

from shared_programs import sent_to_providers


def test_the_requester_sends_a_model_to_three_providers_less_than_twice():
    assert sent_to_providers(3) <= 2  # the units' inputs among it
