"""Modules of other packages that a daemon does not enter, imported when something does.

``import libp2p`` imports every transport, directory and store that it has, with all that they
need: a quarter of what a daemon's start costs. The modules in `DEFERRED` are stood in for until
then. What is imported from a stand-in is a `Later`: it is called, subclassed and asked for
attributes as the thing that it stands for, and imports its module at that. Nothing of what
these modules do is changed.

Not fit to be deferred: what stands behind an ``except``, which wants classes; what its
importers use while they are imported themselves; and what is first wanted where something has
gone wrong, such as what renders tracebacks, since files may have run out by then.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import dns._features

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFERRED: Final[dict[str, str]] = {
    "Crypto": "private networks, and peers with RSA keys, enter it",
    "hypercorn.protocol.h2": "clients of the local API speak HTTP/1.1",
    "hypercorn.protocol.ws_stream": "it has no WebSockets",
    "libp2p.discovery": "shoal has its own (`node.joining`, `node.lan`)",
    "libp2p.peer.persistent": "no book of peers is kept in a database",
    "libp2p.relay": "no relays, nor the DHT that they bring",
    "libp2p.security.secio.transport": "Noise alone",
    "libp2p.security.tls.autotls.acme": "no certificate is asked for over the web",
    "libp2p.security.tls.autotls.broker": "likewise",
    "libp2p.transport.quic.stream": "TCP alone",
    "libp2p.transport.quic.transport": "likewise",
    "libp2p.transport.quic.utils": "likewise",
    "libp2p.transport.websocket": "likewise",
}
"""What is deferred, with all that is below it, and when it is entered, or why it is not."""

_DNS_WITHOUT: Final = ("doh", "doq")
"""Ways to ask for names that dnspython brings HTTP and QUIC for; shoal asks as ever."""

_entered: set[str] = set()


def install() -> None:
    """Defer what of `DEFERRED` is imported from now on, in this process."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    _entered.update(part for part in map(_part_of, sys.modules) if part is not None)
    sys.meta_path.insert(0, _Finder())
    for feature in _DNS_WITHOUT:
        dns._features.force(feature, enabled=False)  # noqa: SLF001  # meant for such a case


def entered() -> frozenset[str]:
    """Which of `DEFERRED` have been imported after all, or before."""
    return frozenset(_entered)


class Later:
    """Something of a deferred module, under the name that it has there."""

    def __init__(self, module: str, name: str) -> None:
        self.__module = module
        self.__name = name

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call what it stands for."""
        return self.__itself()(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__itself(), name)

    def __instancecheck__(self, value: object) -> bool:
        """Nothing is of a class whose module was never imported."""
        return _part_of(self.__module) in _entered and isinstance(value, self.__itself())

    def __mro_entries__(self, _bases: tuple[object, ...]) -> tuple[Any]:
        return (self.__itself(),)

    def __itself(self) -> Any:
        module = _enter(self.__module)
        try:
            return getattr(module, self.__name)
        except AttributeError:  # a module below it, which nothing has imported yet
            return import_module(f"{self.__module}.{self.__name}")


class _StandIn(ModuleType):
    """In place of a deferred module."""

    def __getattr__(self, name: str) -> Later:
        if name.startswith("__"):  # what the import system looks for
            raise AttributeError(name)
        return Later(self.__name__, name)


class _Finder(MetaPathFinder, Loader):
    """Finds stand-ins, before anything else is looked for."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002  # as the import system calls it
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        part = _part_of(fullname)
        if part is None or part in _entered:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def _part_of(module: str) -> str | None:
    """Which of `DEFERRED` a module belongs to."""
    while module and module not in DEFERRED:
        module = module.rpartition(".")[0]
    return module or None


def _enter(module: str) -> ModuleType:
    """Import a deferred module in place of what stands in for it."""
    part = _part_of(module)
    if part is not None and part not in _entered:
        _entered.add(part)
        stand_ins = [name for name, each in sys.modules.items() if isinstance(each, _StandIn)]
        for name in stand_ins:
            if _part_of(name) == part:
                del sys.modules[name]
    return import_module(module)
