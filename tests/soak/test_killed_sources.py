"""2 GiB between whole daemons, of which those that send are killed, or the one that takes."""

from bulk_nodes import MIB
from killed_holders import take_and_be_killed_half_way, take_while_holders_are_killed

SIZE_BYTES = 2048 * MIB


async def test_of_a_large_transfer_at_most_a_hundredth_is_sent_again(tmp_path):
    end = await take_while_holders_are_killed(tmp_path, SIZE_BYTES)
    assert SIZE_BYTES < end.received <= 1.01 * SIZE_BYTES
    assert end.by_stream < MIB


async def test_a_taker_that_is_killed_half_way_is_sent_nothing_again(tmp_path):
    end = await take_and_be_killed_half_way(tmp_path, SIZE_BYTES)
    assert end.received <= end.missing_at_most
    assert end.by_stream < MIB  # a proof of what it has, not its bytes
