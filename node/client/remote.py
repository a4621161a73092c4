"""`shoal.remote`: a torch module or a function of tensors, called here and computed out there.

At the first call with arguments of some shapes it is exported (`shoal.export`) and kept by
what it consists of: its code, what that refers to, its weights, and the shapes. While none
of them changes nothing is exported again, nor in the next process (`program_cache`).
"""

from __future__ import annotations

import functools
import inspect
import threading
from typing import TYPE_CHECKING, Any

from shoal.node.client import flows, program_cache
from shoal.node.client.executor import Executor
from shoal.node.client.fingerprints import UnsureError, fingerprint
from shoal.node.client.flows import Options
from shoal.node.client.tensors import torch_or_error
from shoal.node.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from shoal.compute.convert import Program
    from shoal.node.client.futures import Future
    from shoal.node.client.tensors import Outputs

PROGRAMS_LIMIT = 64
"""Shapes and states of one function that are remembered in a process, the newest."""


def remote(
    target: Any = None,
    *,
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
    home: Path | str | None = None,
    socket: Path | str | None = None,
    **options: Any,
) -> Any:
    """Run a torch module, or a function of tensors, on the nodes of the network.

    Args:
        target: The module, in the mode (``eval()``) that it is to run in; or the function.
        dynamic_axes: For each input by name: axis to symbol, such as
            ``{"x": {0: "batch"}}``; other sizes are fixed, and each is a program of its own.
        home: The daemon's home; found as ``shoal status`` finds it when not given.
        socket: Its socket, in place of ``home``.
        **options: Fields of `Options`, such as ``numeric_class``.

    Raises:
        ConfigError: ``no_torch``: PyTorch is not installed.

    Example:
        >>> @shoal.remote  # doctest: +SKIP
        ... def norms(x):
        ...     return x.pow(2).sum(1).sqrt()
        >>> norms(torch.ones(3, 4))  # doctest: +SKIP
    """
    torch_or_error("shoal.remote")
    how = Options(**options)

    def wrap(target: Any) -> Remote:
        return Remote(target, how, dynamic_axes or {}, home, socket)

    return wrap if target is None else wrap(target)


class Remote:
    """What `remote` gives: called as what it was made of, with tensors in and out.

    Attributes:
        local: The module or function itself, to be run here.
    """

    def __init__(
        self,
        target: Any,
        options: Options,
        dynamic_axes: Mapping[str, Mapping[int, str]],
        home: Path | str | None,
        socket: Path | str | None,
    ) -> None:
        if not callable(target):
            raise ConfigError(
                f"a {type(target).__name__} is neither a torch module nor a function",
                code="not_callable",
            )
        self.local = target
        self._options = options
        self._axes = dynamic_axes
        self._place: dict[str, Any] = {"home": home, "socket": socket}
        self._signature = inspect.signature(getattr(target, "forward", target))
        self._programs: dict[str, Program] = {}
        self._lock = threading.Lock()
        self._executor: Executor | None = None
        if not hasattr(target, "forward"):
            functools.update_wrapper(self, target)

    def __call__(self, *tensors: Any, **named: Any) -> Any:
        """Run it once and wait.

        Raises:
            ProgramError: It cannot be exported; the sentence names operator and module.
            JobFailedError: It ended without a result.
        """
        return self._result(self.submit(*tensors, **named).result())

    def submit(self, *tensors: Any, **named: Any) -> Future:
        """Hand it over; the future's result is the outputs by name."""
        inputs = self._inputs(tensors, named)
        return self._executing().submit(self._program(inputs), **inputs)

    def map(self, *iterables: Iterable[Any], timeout: float | None = None) -> Iterator[Any]:
        """As `map` does it, on many nodes at once; results come in order."""
        rows = [self._inputs(tensors, {}) for tensors in zip(*iterables, strict=False)]
        if not rows:
            return iter(())
        executor = self._executing()
        futures = [executor.submit(self._program(inputs), **inputs) for inputs in rows]
        return (self._result(future.result(timeout)) for future in futures)

    def program_for(self, *tensors: Any, **named: Any) -> Program:
        """The program that runs for such arguments."""
        return self._program(self._inputs(tensors, named))

    def _inputs(self, tensors: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
        torch = torch_or_error("shoal.remote")
        try:
            bound = self._signature.bind(*tensors, **named).arguments
        except TypeError as error:
            raise ConfigError(f"{self._name}: {error}", code="wrong_arguments") from None
        found = {}
        for name, value in bound.items():
            try:
                found[name] = torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError):
                raise ConfigError(
                    f"{self._name}: {name!r} is a {type(value).__name__}, and no tensor",
                    code="no_tensor",
                    hint="what is not a tensor belongs into the function, or its closure",
                ) from None
        return found

    def _program(self, inputs: dict[str, Any]) -> Program:
        """The program for inputs of these shapes; exported where it is not known yet."""
        torch = torch_or_error("shoal.remote")
        specs = [
            (
                name,
                str(tensor.dtype),
                [self._axes.get(name, {}).get(i, size) for i, size in enumerate(tensor.shape)],
            )
            for name, tensor in inputs.items()
        ]
        precision = flows.precision_of(self._options)
        how = [torch.__version__, specs, precision, sorted(self._axes)]
        with self._lock:
            quick = fingerprint([self.local, how], quick=True)
            if quick in self._programs:
                return self._programs[quick]
            try:
                key = fingerprint([self.local, how])
            except UnsureError:
                key = None  # for this process only
            program = None if key is None else program_cache.load(key)
            if program is None:
                program = self._export(inputs, precision)
                if key is not None:
                    program_cache.keep(key, program)
            self._programs[quick] = program
            if len(self._programs) > PROGRAMS_LIMIT:
                del self._programs[next(iter(self._programs))]
            return program

    def _export(self, inputs: dict[str, Any], precision: Any) -> Program:
        from shoal import export

        module = self.local if hasattr(self.local, "forward") else _as_module(self.local)
        return export.program(module, inputs, precision=precision, dynamic_axes=self._axes)

    def _executing(self) -> Executor:
        with self._lock:
            if self._executor is None:
                options = {f: getattr(self._options, f) for f in Options.__struct_fields__}
                self._executor = Executor(as_="torch", **(self._place | options))
            return self._executor

    @property
    def _name(self) -> str:
        return getattr(self.local, "__name__", type(self.local).__name__)

    def _result(self, outputs: Outputs) -> Any:
        """The outputs in the form that the function gives them."""
        names = list(outputs)
        if names == ["output"]:
            return outputs["output"]
        if names == [f"output_{index}" for index in range(len(names))]:
            return tuple(outputs.values())
        return dict(outputs)


def _as_module(function: Callable[..., Any]) -> Any:
    """A function as a torch module whose ``forward`` has the same parameters."""
    torch = torch_or_error("shoal.remote")
    signature = inspect.signature(function)

    def forward(_self: Any, *tensors: Any, **named: Any) -> Any:
        return function(*tensors, **named)

    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    forward.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[own, *signature.parameters.values()]
    )
    kind = type(function.__name__, (torch.nn.Module,), {"forward": forward})
    return kind().eval()
