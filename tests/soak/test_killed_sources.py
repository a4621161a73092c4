"""2 GiB between whole daemons, of which those that send are killed, or the one that takes.

In `make soak-short` it is 512 MiB. The figures are printed: ``pytest -s``.
"""

import os

from bulk_nodes import MIB
from killed_holders import take_and_be_killed_half_way, take_while_holders_are_killed

LONG = float(os.environ.get("SHOAL_SOAK_S", "60")) >= 600
SIZE_BYTES = (2048 if LONG else 512) * MIB


async def test_of_a_large_transfer_at_most_a_hundredth_is_sent_again(tmp_path):
    end = await take_while_holders_are_killed(tmp_path, SIZE_BYTES)
    assert SIZE_BYTES < end.received <= 1.01 * SIZE_BYTES
    assert end.by_stream < MIB


async def test_a_taker_that_is_killed_half_way_is_sent_nothing_again(tmp_path):
    end = await take_and_be_killed_half_way(tmp_path, SIZE_BYTES)
    assert end.received <= end.missing_at_most
    assert end.by_stream < MIB  # a proof of what it has, not its bytes
