"""Numbers as people read them in the daemon's sentences."""

import pytest

from shoal.node.wording import binary_size


@pytest.mark.parametrize(
    ("size_bytes", "said"),
    [
        (1, "1 byte"),
        (512, "512 bytes"),
        (1 << 30, "1 GiB"),
        (12_000_000_000, "11.2 GiB"),
        (8_000_000_000_000, "7451 GiB"),
        (1023 << 20, "1023 MiB"),
    ],
)
def test_a_size_is_said_without_an_exponent(size_bytes, said):
    assert binary_size(size_bytes) == said
