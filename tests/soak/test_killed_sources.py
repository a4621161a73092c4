"""2 GiB from three sources of which two are killed: hardly anything is sent again."""

from bulk_nodes import MIB
from killed_sources import bytes_received_through_kills

SIZE_BYTES = 2048 * MIB


async def test_of_a_large_transfer_at_most_a_hundredth_is_sent_again(tmp_path):
    received = await bytes_received_through_kills(tmp_path, SIZE_BYTES, limit_s=300)
    assert received <= 1.01 * SIZE_BYTES
