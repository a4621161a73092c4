"""From a user's `@triton.jit` function to a program: the submitter's side of a kernel job.

Part of *submit*. Triton's front end reads the function's Python and writes Triton IR; the
passes that follow inline what it calls. No card is needed, and none is chosen: the text is
the same for every vendor. Debug locations are left out, for they carry the author's paths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend

from shoal.compute.errors import ProgramError
from shoal.compute.graph import printable
from shoal.compute.kernel_manifest import (
    FLOATS,
    INTEGERS,
    Argument,
    Extent,
    KernelManifest,
    KernelProgram,
    decode,
    program_of,
    type_of,
)
from shoal.compute.manifest import Port
from shoal.compute.user_kernels.rules import check_text, entry_of
from shoal.crypto.content import blob_id_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Number: TypeAlias = "int | float | str"
"""A number, or the symbol whose size it is."""

_FRONT_END: Final = GPUTarget("cuda", 80, 32)
"""By whose limits the text is written: the oldest card, which has no tensor descriptors, so
that these become pointers. Nothing of the target is left in the text."""

_OPTIONS: Final[dict[str, Any]] = {
    # Every vendor's: TF32 is there on NVIDIA's cards alone, and is asked for by name.
    "default_dot_input_precision": "ieee",
    "allowed_dot_input_precisions": ("ieee", "tf32"),
    "supported_fp8_dtypes": ("fp8e5",),  # the one that every card converts
    "sanitize_overflow": False,
}
_ALIGNED_BYTES: Final = 16
"""Tensors begin at such an address on every provider, and loads of whole vectors need that."""


def lower(
    function: Any,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    numbers: Mapping[str, Number | tuple[str, Number]],
    constants: Mapping[str, Any],
    grid: Sequence[Extent],
    warps: int,
    stages: int,
) -> KernelProgram:
    """Lower a kernel.

    Args:
        function: What `@triton.jit` gave.
        inputs: Of each parameter that is a tensor which comes in.
        outputs: Of each that goes out; one of both changes in place.
        numbers: Of each that is a number; with Triton's type before it, or as an ``i32``
            (``i64`` where it is larger) or ``fp32``.
        constants: Of each that is a ``tl.constexpr``.
        grid: How many programs run.
        warps: That run one of them.
        stages: Loads under way ahead.

    Raises:
        ProgramError: ``not_a_kernel``, ``wrong_parameters``, ``not_lowered`` where Triton
            does not take the function, or the code of the rule that is broken.
    """
    if not isinstance(function, triton.JITFunction):
        raise _no_kernel(function)
    ports = {port.name: port for port in (*outputs, *inputs)}
    _check_parameters(function, ports, numbers, constants)
    arguments = tuple(
        Argument(name, f"*{type_of(ports[name].dtype)}", None)
        if name in ports
        else Argument(name, *_typed(numbers[name]))
        for name in function.arg_names
        if name not in constants
    )
    text = lower_text(function, arguments, constants)
    manifest = KernelManifest(
        kernel=blob_id_of(text),
        triton=triton.__version__,
        entry=entry_of(check_text(text)),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        arguments=arguments,
        grid=tuple(grid),
        warps=warps,
        stages=stages,
    )
    program = program_of(manifest, text)
    decode(program.blobs[program.program_id])  # what a worker would refuse is refused here
    return program


def lower_text(
    function: Any, arguments: Sequence[Argument], constants: Mapping[str, Any]
) -> bytes:
    """The Triton IR of a kernel, as text.

    Raises:
        ProgramError: ``not_lowered``.
    """
    backend = make_backend(_FRONT_END)
    options = backend.parse_options(dict(_OPTIONS))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    types = {argument.name: argument.type for argument in arguments}
    source = ASTSource(
        fn=function,
        signature={name: types.get(name, "constexpr") for name in function.arg_names},
        constexprs=dict(constants),
        attrs={
            (function.arg_names.index(argument.name),): [["tt.divisibility", _ALIGNED_BYTES]]
            for argument in arguments
            if _is_aligned(argument)
        },
    )
    try:
        module = source.make_ir(
            _FRONT_END,
            options,
            backend.get_codegen_implementation(options),
            backend.get_module_map(),
            context,
        )
        backend.make_ttir(module, {}, options, _FRONT_END.arch)
    # Triton reads the user's own Python, and may raise anything at it.
    except Exception as error:
        raise ProgramError(
            f"Triton does not take {function.__name__}: {_last_line(error)}",
            code="not_lowered",
            hint="it fails alike where Triton compiles it for a card: see the error's cause",
        ) from error
    text: str = module.str_nodebug()
    return text.rstrip("\n").encode() + b"\n"


def _is_aligned(argument: Argument) -> bool:
    value = argument.value
    return value is None or (isinstance(value, int) and value % _ALIGNED_BYTES == 0)


def _typed(number: Number | tuple[str, Number]) -> tuple[str, Number]:
    """A number with its type; a float's is written as one.

    Raises:
        ProgramError: ``wrong_parameters``: it is no number.
    """
    kind, value = number if isinstance(number, tuple) else ("", number)
    if hasattr(value, "item"):  # numpy's, or torch's
        value = value.item()
    if isinstance(value, bool):
        value = int(value)
    if not isinstance(value, int | float | str):
        raise _wrong(f"{type(value).__name__} is no number and no symbol")
    if not kind and isinstance(value, float):
        kind = "fp32"
    elif not kind:
        kind = "i32" if isinstance(value, str) or value in INTEGERS["i32"] else "i64"
    return kind, float(value) if kind in FLOATS and not isinstance(value, str) else value


def _check_parameters(
    function: Any,
    ports: Mapping[str, Port],
    numbers: Mapping[str, object],
    constants: Mapping[str, object],
) -> None:
    name, given = function.__name__, [*ports, *numbers, *constants]
    for parameter in function.params:
        says = given.count(parameter.name)
        if says != 1:
            raise _wrong(
                f"the parameter {parameter.name!r} of {name} is "
                + ("not given" if not says else "given twice")
            )
        if parameter.is_constexpr != (parameter.name in constants):
            verb = "is" if parameter.is_constexpr else "is no"
            raise _wrong(f"{parameter.name!r} {verb} tl.constexpr in {name}")
    if unknown := set(given) - set(function.arg_names):
        raise _wrong(f"{name} has no parameter {min(unknown)!r}")


def _wrong(message: str) -> ProgramError:
    return ProgramError(
        message,
        code="wrong_parameters",
        hint="name each parameter once: in inputs or outputs, in numbers, or in constants",
    )


def _no_kernel(function: object) -> ProgramError:
    kind = type(function).__name__
    if kind == "InterpretedFunction":
        return ProgramError(
            "TRITON_INTERPRET is set, so that kernels here are Python and cannot be lowered",
            code="not_a_kernel",
            hint="unset TRITON_INTERPRET before triton is imported",
        )
    hint = "decorate it with @triton.jit"
    if hasattr(function, "fn"):
        hint = "give the function that it wraps (.fn), and one choice of its constants"
    return ProgramError(f"a {kind} is no Triton kernel", code="not_a_kernel", hint=hint)


def _last_line(error: BaseException) -> str:
    """What Triton says last: before that, it shows the function's source."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return printable(lines[-1].strip() if lines else type(error).__name__, 300)
