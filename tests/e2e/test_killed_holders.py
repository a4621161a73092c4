"""A transfer goes on when its sources are killed, or its taker; `tests/soak` has the long form.

The figures are printed: ``pytest -s tests/e2e/test_killed_holders.py``.
"""

from bulk_nodes import MIB
from killed_holders import take_and_be_killed_half_way, take_while_holders_are_killed

SIZE_BYTES = 256 * MIB


async def test_a_transfer_survives_two_of_its_three_sources(tmp_path):
    end = await take_while_holders_are_killed(tmp_path, SIZE_BYTES)
    # Of each source that was killed the chunk on its way, and one or two at the end.
    assert SIZE_BYTES < end.received <= SIZE_BYTES + 5 * MIB
    assert end.by_stream < MIB


async def test_a_taker_that_is_killed_half_way_is_sent_nothing_again(tmp_path):
    end = await take_and_be_killed_half_way(tmp_path, SIZE_BYTES)
    assert end.received <= end.missing_at_most
    assert end.by_stream < MIB  # a proof of what it has, not its bytes
