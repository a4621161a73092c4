"""What code computes, as one id: of the code itself and all that it refers to.

For `shoal.remote`: equal ids mean equal results, in every process with this Python. Code
objects are looked at, and not source files, so that what is written in a notebook counts
too. What cannot be followed is an error, never a guess; or, in a quick look within one
process, the object's identity.
"""

from __future__ import annotations

import functools
import sys
import types
from typing import Any

from shoal.crypto.content import BlobHasher

DEPTH_LIMIT = 100
"""Of objects within objects; a chain that is longer is not followed."""

_PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, type(Ellipsis))
_TRUSTED = frozenset({"torch", "numpy", "math", "builtins", "operator", "functools", "typing"})
"""Packages whose contents are told by their names: `shoal.remote` adds torch's version."""


class UnsureError(Exception):
    """Something that code refers to cannot be followed."""


def fingerprint(value: Any, *, quick: bool = False) -> str:
    """The id of a value and of all that it refers to.

    Args:
        value: A function, a torch module, or plain values and lists with those.
        quick: Tell tensors by their place in memory and torch's count of their changes,
            and what cannot be followed by its identity: for use within a process, as long
            as the value lives.

    Raises:
        UnsureError: It refers to something that cannot be followed; never where quick.
    """
    walk = _Walk(quick=quick)
    walk.take(value, 0)
    return walk.hasher.finish().blob_id


class _Walk:
    def __init__(self, *, quick: bool) -> None:
        self.hasher = BlobHasher()
        self._quick = quick
        self._seen: dict[int, int] = {}
        self._kept: list[object] = []  # so that no id is used twice

    def say(self, *words: object) -> None:
        """Put words into the hash, each with its length."""
        for word in words:
            data = word if isinstance(word, bytes) else str(word).encode()
            self.hasher.update(len(data).to_bytes(8, "little"))
            self.hasher.update(data)

    def take(self, value: Any, depth: int) -> None:
        """Put a value into the hash."""
        if isinstance(value, _PLAIN):
            self.say(type(value).__name__, repr(value))
            return
        if id(value) in self._seen:
            self.say("again", self._seen[id(value)])
            return
        if depth > DEPTH_LIMIT:
            self._give_up(value)
            return
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        name = _name(value)
        if _package(value) in _TRUSTED and name and not _is_instance(value):
            self.say("named", name)
        elif isinstance(value, list | tuple | set | frozenset | dict):
            self._take_collection(value, depth)
        elif isinstance(value, types.CodeType):
            self._take_code(value, depth)
        elif isinstance(value, types.FunctionType):
            self._take_function(value, depth)
        elif (parts := _parts(value)) is not None:
            self.say(type(value).__name__)
            self.take(parts, depth + 1)
        elif isinstance(value, type):
            self._take_class(value, depth)
        else:
            self._take_of_torch(value, depth)

    def _take_collection(self, value: Any, depth: int) -> None:
        if isinstance(value, set | frozenset):
            value = sorted(value, key=repr)
        self.say(type(value).__name__, len(value))
        for item in value.items() if isinstance(value, dict) else value:
            self.take(item, depth + 1)

    def _take_code(self, code: types.CodeType, depth: int) -> None:
        self.say("code", sys.implementation.cache_tag, code.co_code, code.co_flags)
        self.take([code.co_consts, code.co_names, code.co_varnames], depth + 1)

    def _take_function(self, function: types.FunctionType, depth: int) -> None:
        self.say("function")
        self.take(function.__code__, depth + 1)
        self.take([function.__defaults__, function.__kwdefaults__], depth + 1)
        for cell in function.__closure__ or ():
            try:
                self.take(cell.cell_contents, depth + 1)
            except ValueError:
                self.say("empty cell")
        for name in _names(function.__code__):
            if name in function.__globals__:
                self.say(name)
                self.take(function.__globals__[name], depth + 1)

    def _take_class(self, kind: type, depth: int) -> None:
        self.say("class", kind.__qualname__)
        for base in kind.__mro__[1:]:
            if base is not object:
                self.take(base, depth + 1)
        for name, part in sorted(vars(kind).items()):
            if (
                callable(part)
                or isinstance(part, staticmethod | classmethod | property)
                or not name.startswith("__")
            ):
                self.say(name)
                self.take(part, depth + 1)

    def _take_of_torch(self, value: Any, depth: int) -> None:
        torch: Any = sys.modules.get("torch")
        if torch is not None and isinstance(value, torch.Tensor):
            self._take_tensor(value)
        elif torch is not None and isinstance(value, torch.nn.Module):
            self.say("module", value.training)
            self.take(type(value), depth + 1)
            for name, part in vars(value).items():
                if part and not name.startswith("_is_") and name != "training":
                    self.say(name)
                    self.take(part, depth + 1)
        elif torch is not None and isinstance(value, torch.dtype | torch.device | torch.Size):
            self.say("torch", value)
        elif type(value).__module__ == "numpy" and hasattr(value, "tobytes"):
            self.say("array", value.dtype, value.shape, value.tobytes())
        elif isinstance(value, types.ModuleType) and _package(value) in _TRUSTED:
            self.say("package", value.__name__)
        else:
            self._give_up(value)

    def _take_tensor(self, tensor: Any) -> None:
        self.say("tensor", tensor.dtype, tuple(tensor.shape))
        if self._quick:
            self.say(tensor.data_ptr(), tensor._version)  # noqa: SLF001  # torch's own count
        else:
            from shoal.node.client.tensors import as_array, pieces_of

            for piece in pieces_of(as_array(tensor, "weight")):
                self.say(piece)

    def _give_up(self, value: object) -> None:
        if not self._quick:
            raise UnsureError(f"a {type(value).__qualname__} cannot be followed")
        self.say("identity", id(value))


def _parts(value: object) -> list[object] | None:
    """What something callable is made of, where it wraps other things; None otherwise."""
    match value:
        case types.MethodType():
            return [value.__func__, value.__self__]
        case functools.partial():
            return [value.func, value.args, value.keywords]
        case staticmethod() | classmethod():
            return [value.__func__]
        case property():
            return [value.fget]
    return None


def _names(code: types.CodeType) -> list[str]:
    """The names that code and the functions within it look up, in a fixed order."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found.update(_names(constant))
    return sorted(found)


def _package(value: Any) -> str:
    if isinstance(value, types.ModuleType):
        return value.__name__.partition(".")[0]
    module = getattr(value, "__module__", None) or ""
    return str(module).partition(".")[0]


def _name(value: Any) -> str:
    if isinstance(value, types.ModuleType):
        return value.__name__
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"


def _is_instance(value: Any) -> bool:
    """Whether it is an object of some state, and not a function, a class or a module."""
    return not (isinstance(value, type | types.ModuleType) or hasattr(value, "__qualname__"))
