"""Which cards an environment variable such as ``CUDA_VISIBLE_DEVICES`` leaves to programs.

The vendors' management libraries show every card, and their runtimes only those that
the variable names, by index or by UUID, up to the first that they do not know. The
runtime's indices follow its own order: CUDA's puts the fastest card first unless
``CUDA_DEVICE_ORDER=PCI_BUS_ID``, so that an index tells nothing where cards differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

MAYBE: Final = "maybe"
Visible: TypeAlias = "bool | str"
"""True, False, or `MAYBE`."""


def visible(
    value: str | None, uuids: Sequence[str], *, index_is_place: bool = True
) -> list[Visible]:
    """Say for each card whether programs see it.

    Args:
        value: The variable's value; None where it is not set.
        uuids: Each card's UUID, in the order of the bus.
        index_is_place: Whether the runtime counts in that order too.

    Returns:
        True, False or `MAYBE` for each card.
    """
    if value is None:
        return [True] * len(uuids)
    found: set[int] = set()
    by_index = False
    for text in value.split(","):
        wanted = text.strip()
        if wanted.isdecimal() and int(wanted) < len(uuids):
            found.add(int(wanted))
            by_index = True
            continue
        matches = [n for n, uuid in enumerate(uuids) if wanted and uuid.startswith(wanted)]
        if len(matches) != 1:
            break  # the runtime, too, reads no further
        found.add(matches[0])
    if by_index and not index_is_place and len(found) < len(uuids):
        return [MAYBE] * len(uuids)
    return [n in found for n in range(len(uuids))]
