"""What a node says of one of its devices: in its adverts, which it signs, and in views of them.

Apart from `protocol.statements`, so that who shows devices needs nothing that signs.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from shoal.protocol import limits
from shoal.protocol.limits import ByteCount, Rate, ShortText, Text


class ClassRate(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How fast a device multiplies in one numeric class, as its node measured it.

    On the wire it is an array of its fields, in this order.

    Attributes:
        rate: Multiply-adds per second.
    """

    numeric_class: ShortText
    precision: ShortText | None
    rate: Rate


class DeviceOffer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A device as its node advertises it.

    ``executors`` is empty where the device is present and nothing on this node
    uses it.

    Attributes:
        count: How many devices there are that are equal but for their ids; ``id`` is
            the first one's.
        rates: Claims, which a challenge can put to the test; empty: not measured yet.
        memory_rate: Bytes per second that its memory moves; 0: not measured.
    """

    id: ShortText
    kind: ShortText
    name: Text
    memory_bytes: ByteCount
    executors: Annotated[tuple[ShortText, ...], Meta(max_length=8)] = ()
    rates: Annotated[tuple[ClassRate, ...], Meta(max_length=limits.RATES_LIMIT)] = ()
    memory_rate: Rate = 0.0
    count: Annotated[int, Meta(ge=1, le=limits.EQUAL_DEVICES_LIMIT)] = 1
