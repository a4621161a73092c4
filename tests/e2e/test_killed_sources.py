"""A transfer goes on when its sources are killed; the long form is in `tests/soak`."""

from bulk_nodes import MIB
from killed_sources import bytes_received_through_kills

SIZE_BYTES = 256 * MIB


async def test_a_transfer_survives_two_of_its_three_sources(tmp_path):
    received = await bytes_received_through_kills(tmp_path, SIZE_BYTES, limit_s=60)
    # Of each source that was killed the chunk on its way, and one or two at the end.
    assert received <= SIZE_BYTES + 5 * MIB
