"""What the kernel shows of graphics cards and of the container around this process.

It knows a card that no driver runs, and a device node that was not handed to the
container: that is what explains why a vendor's library finds nothing. Everything
is read below a root, so that tests can give the trees of other machines.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_DISPLAY, _ACCELERATOR = "0x03", "0x12"  # PCI classes; others are a card's audio or USB


@dataclass(frozen=True, slots=True)
class PciCard:
    """A card on the PCI bus.

    Attributes:
        address: Such as ``0000:41:00.0``.
        model: Vendor and device id, such as ``10de:2330``.
        driver: The kernel's driver that runs it, or "".
    """

    address: str
    model: str
    driver: str


def pci_cards(root: Path, vendor: str) -> tuple[PciCard, ...]:
    """The graphics cards and accelerators of a vendor.

    Args:
        root: Where /sys is.
        vendor: Its PCI id, such as ``0x10de``.
    """
    return tuple(
        PciCard(
            address=place.name,
            model=f"{vendor}:{read_text(place / 'device').strip()}".replace("0x", ""),
            driver=link_name(place / "driver"),
        )
        for place in sorted(root.glob("sys/bus/pci/devices/*"))
        if read_text(place / "vendor").strip() == vendor
        and read_text(place / "class").startswith((_DISPLAY, _ACCELERATOR))
    )


def in_container(root: Path) -> bool:
    """Whether this looks like the inside of a container."""
    return (
        (root / ".dockerenv").exists()
        or (root / "run/.containerenv").exists()
        or "container=" in read_text(root / "proc/1/environ")
    )


def named(cards: tuple[PciCard, ...]) -> str:
    """Cards for a sentence: ``10de:2330 at 0000:41:00.0``, and how many more."""
    first = f"{cards[0].model} at {cards[0].address}"
    return first if len(cards) == 1 else f"{first}, and {len(cards) - 1} more"


def link_name(path: Path) -> str:
    """The last part of what a link points to, or ""."""
    try:
        return path.readlink().name
    except OSError:
        return ""


def read_number(path: Path) -> int:
    """A decimal number in a file; 0 where there is none."""
    text = read_text(path).strip()
    return int(text) if text.isdecimal() else 0


def read_text(path: Path) -> str:
    """What is in a file; "" where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
