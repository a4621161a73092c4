"""``/dnsaddr`` names unfolded: which TXT records to ask for, and what they say.

A network that publishes its way in under a name can move without anybody's
settings changing: ``/dnsaddr/shoal.example`` stands for the TXT records of
``_dnsaddr.shoal.example``, each of which is ``dnsaddr=`` and a multiaddr with a
peer id, or another ``/dnsaddr`` name. Source: the libp2p specification "addressing".

Whoever answers for a name chooses the records, so everything is bounded, and
what is no address of use here (another transport, another peer than the one asked
for) is left out. Pure: asking is `node.names`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.node.addresses import Address, DnsAddress, parse_bootstrap
from shoal.node.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

DEPTH_LIMIT = 3
"""Names that lead on to names: public networks use two."""

QUESTIONS_LIMIT = 12
"""In one unfolding; each is answered within seconds or given up."""

RECORDS_LIMIT = 64
"""Of one answer: a DNS answer over TCP could hold thousands."""

ADDRESSES_LIMIT = 32
"""Of one unfolding: enough for eight peers with four addresses each."""

_PREFIX = "dnsaddr="


class Unfolding:
    """What a ``/dnsaddr`` name stands for, as far as the answers have come.

    Attributes:
        found: Addresses, each with its peer, in the order of the records.
        unusable: How many records held nothing of use here.
    """

    def __init__(self, name: DnsAddress) -> None:
        self.found: dict[Address, None] = {}  # a set that keeps its order
        self.unusable = 0
        self._waiting: list[tuple[DnsAddress, int]] = [(name, 1)]
        self._asked: set[DnsAddress] = set()
        self._asking: tuple[DnsAddress, int] | None = None

    def question(self) -> str | None:
        """The next name whose TXT records are wanted; None at the end."""
        while self._waiting and len(self._asked) < QUESTIONS_LIMIT:
            if len(self.found) >= ADDRESSES_LIMIT:
                return None
            self._asking = self._waiting.pop(0)
            name = self._asking[0]
            if name not in self._asked:
                self._asked.add(name)
                return f"_dnsaddr.{name.name}"
        return None

    def answered(self, records: Iterable[str]) -> None:
        """Take in the records of the last question."""
        assert self._asking is not None, "nothing was asked"
        name, depth = self._asking
        for record, _ in zip(records, range(RECORDS_LIMIT), strict=False):
            self._take(record, name, depth)

    def _take(self, record: str, within: DnsAddress, depth: int) -> None:
        if not record.startswith(_PREFIX):
            return  # the name may hold records of other kinds as well
        try:
            entry = parse_bootstrap(record.removeprefix(_PREFIX))
        except ConfigError:
            self.unusable += 1
            return
        if within.peer and entry.peer not in (None, within.peer):
            return
        match entry:
            case Address():
                if len(self.found) < ADDRESSES_LIMIT:
                    self.found[entry] = None
            case DnsAddress(name, peer) if depth < DEPTH_LIMIT:
                self._waiting.append((DnsAddress(name, peer or within.peer), depth + 1))
            case _:
                self.unusable += 1
