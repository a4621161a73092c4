"""A PyTorch module as a program: what a submitter calls before anything is submitted.

torch traces the module and writes ONNX, and `shoal.compute.convert` makes the program
of it, with the scale axes of its products where a precision is given. Nothing of
Python is left in the result: a module whose result depends on Python that torch cannot
trace is refused, and the error names the operator and the module where it lies.

Needs the extra ``torch``. What a module computes is exported as it is: call ``module.eval()``
first for inference, or Dropout is refused because it draws random numbers.
"""

from __future__ import annotations

import ast
import inspect
import logging
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from onnx import NodeProto

from shoal.compute.convert import PROGRAM_OPSET, Program, convert
from shoal.compute.errors import ProgramError
from shoal.compute.graph import printable, walk

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import FrameType

    from onnx import ModelProto
    from torch.export import ExportedProgram

Precision: TypeAlias = Literal["x20", "x16", "x8"]
ExampleInputs: TypeAlias = "torch.Tensor | Sequence[torch.Tensor] | Mapping[str, torch.Tensor]"


def program(
    module: torch.nn.Module,
    example_inputs: ExampleInputs,
    *,
    precision: Precision | None = None,
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
) -> Program:
    """Export a module.

    Args:
        module: What is to be computed, in the mode (train or eval) it is to run in.
        example_inputs: Arguments of ``module.forward``: one tensor, several in order, or
            by name. Their values do not matter; sizes that are not in ``dynamic_axes``
            become fixed.
        precision: ``x20``, ``x16`` or ``x8`` for the exact class; without one, the
            program runs in the other classes only.
        dynamic_axes: For each input by name: axis to symbol, such as
            ``{"x": {0: "batch"}}``. One symbol is one size throughout a run. The
            example's size there must be at least 2: torch takes 0 and 1 for fixed ones.

    Returns:
        The program. Its inputs are named as the parameters of ``forward``, its outputs
        by the keys of the dict that ``forward`` gives, otherwise ``output`` or
        ``output_0``, ``output_1``, ….

    Raises:
        ProgramError: With code ``untraceable`` or ``no_onnx_operator``, naming operator
            and module, where torch cannot export; with the code of the rule that is
            broken where the result is not a program.

    Example:
        >>> program(torch.nn.Linear(4, 2).eval(), torch.zeros(2, 4), precision="x20",
        ...         dynamic_axes={"input": {0: "batch"}})  # doctest: +SKIP
    """
    model = to_onnx(module, example_inputs, dynamic_axes=dynamic_axes)
    try:
        return convert(model.SerializeToString(), precision)
    except ProgramError as error:
        raise _placed_in_module(error, model) from error


def to_onnx(
    module: torch.nn.Module,
    example_inputs: ExampleInputs,
    *,
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
) -> ModelProto:
    """Export a module as `program` does, as the ONNX model that the program is made of.

    Raises:
        ProgramError: With code ``untraceable`` or ``no_onnx_operator``.
    """
    axes = dynamic_axes or {}
    exported = _trace(module, _by_name(module, example_inputs), axes)
    model = _translate(module, exported)
    _name_outputs(model, _output_names(exported))
    _name_symbols(model, axes)
    return model


def _by_name(module: torch.nn.Module, inputs: ExampleInputs) -> dict[str, torch.Tensor]:
    """The example inputs by the names of ``forward``'s parameters."""
    if not isinstance(inputs, torch.Tensor) and hasattr(inputs, "keys"):
        return _apart(inputs)
    tensors = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)
    try:
        return _apart(inspect.signature(module.forward).bind(*tensors).arguments)
    except TypeError as error:
        raise ProgramError(
            f"the example inputs are not those of {type(module).__name__}.forward: {error}",
            code="wrong_example_inputs",
        ) from None


def _apart(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same inputs, each a tensor of its own: the tracer takes one object for one input."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in inputs.items():
        again = isinstance(tensor, torch.Tensor) and id(tensor) in seen
        apart[name] = tensor.clone() if again else tensor
        seen.add(id(tensor))
    return apart


def _trace(
    module: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    dynamic_axes: Mapping[str, Mapping[int, str]],
) -> ExportedProgram:
    if unknown := dynamic_axes.keys() - inputs.keys():
        raise ProgramError(
            f"{min(unknown)!r} in dynamic_axes is no input of {type(module).__name__}",
            code="unknown_input",
            hint=f"its inputs are {', '.join(inputs)}",
        )
    shapes = {
        name: dict.fromkeys(dynamic_axes.get(name, ()), torch.export.Dim.DYNAMIC)
        for name in inputs
    }
    try:
        return torch.export.export(module, (), dict(inputs), dynamic_shapes=shapes)
    # Tracing runs the user's own Python, which may raise anything.
    except Exception as error:
        place, operator = _place_of(error, module)
        raise ProgramError(
            f"{_within(place, operator)} cannot be traced: {_first_line(error)}",
            code="untraceable",
            hint="the steps may not depend on the values of tensors (branch with "
            "torch.where), and a size that differs from run to run is named in dynamic_axes",
            node=place,
            operator=operator,
        ) from error


def _translate(module: torch.nn.Module, exported: ExportedProgram) -> ModelProto:
    try:
        with _quiet():
            onnx_program = torch.onnx.export(
                exported,
                dynamo=True,
                opset_version=PROGRAM_OPSET,
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        place, operator = _place_of(error, module)
        raise ProgramError(
            f"{_within(place, operator)} cannot be written as ONNX: "
            f"{_first_line(_causes(error)[-1])}",
            code="no_onnx_operator",
            hint="write it with operators that ONNX has",
            node=place,
            operator=operator,
        ) from error
    assert onnx_program is not None
    return onnx_program.model_proto


def _name_outputs(model: ModelProto, names: Sequence[str]) -> None:
    """Give the outputs their names (torch's own way to do it may name two values alike)."""
    graph = model.graph
    fixed = {value.name for value in (*graph.input, *graph.initializer)}
    renamed = {
        output.name: f"{name}_output" if name in fixed else name
        for output, name in zip(graph.output, names, strict=True)
        if output.name not in fixed
    }
    for value in {name for node in graph.node for name in node.output}:
        if value in renamed.values() and value not in renamed:
            renamed[value] = f"{value}_inside"
    for site in walk(graph):
        if isinstance(site.part, NodeProto):
            for values in (site.part.input, site.part.output):
                values[:] = [renamed.get(value, value) for value in values]
    for output in graph.output:
        output.name = renamed.get(output.name, output.name)
    graph.ClearField("value_info")


def _name_symbols(model: ModelProto, dynamic_axes: Mapping[str, Mapping[int, str]]) -> None:
    """Write the user's symbols where torch has its own, such as ``s77``."""
    ports = (*model.graph.input, *model.graph.output)
    symbols = {
        port.type.tensor_type.shape.dim[axis].dim_param: symbol
        for port in model.graph.input
        for axis, symbol in dynamic_axes.get(port.name, {}).items()
    }
    for port in ports:
        for dim in port.type.tensor_type.shape.dim:
            if dim.dim_param:  # an expression, such as "2*s77", where it is computed
                dim.dim_param = re.sub(
                    r"\w+", lambda word: symbols.get(word[0], word[0]), dim.dim_param
                )


def _output_names(exported: ExportedProgram) -> list[str]:
    given = exported.call_spec.out_spec
    count = len(exported.graph_signature.user_outputs)
    if given is not None and given.type is dict and len(given.context) == count:
        return [str(key) for key in given.context]
    return ["output"] if count == 1 else [f"output_{index}" for index in range(count)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from warning, at each export, that torchvision is not installed."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _place_of(error: BaseException, module: torch.nn.Module) -> tuple[str, str]:
    """The innermost module and operator that an error of the exporter came from.

    Torch's errors do not carry them, so they are read from the frames that the error
    passed: a frame that traces has the module as ``self`` and the operator as ``func``,
    and one that translates has the traced node.
    """
    names = {id(part): name for name, part in module.named_modules()}
    place, operator = "", ""
    for frame in _frames(error):
        values = frame.f_locals
        node, called, owner = values.get("node"), values.get("func"), values.get("self")
        if isinstance(node, torch.fx.Node) and node.op == "call_function":
            scopes = list(node.meta.get("nn_module_stack", {}).values())
            path, kind = scopes[-1] if scopes else ("", type(module))
            kind_name = kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__
            place, operator = f"{path} ({kind_name})".strip(), str(node.target)
        elif isinstance(called, torch._ops.OpOverload):  # noqa: SLF001  # it has no public name
            operator = str(called)
        elif frame.f_code.co_name == "__torch_function__":
            operator = getattr(called, "__qualname__", operator)
        if isinstance(owner, torch.nn.Module) and id(owner) in names:
            place = f"{names[id(owner)]} ({type(owner).__name__})".strip()
            operator = ""
    return place, operator


def _frames(error: BaseException) -> Iterator[FrameType]:
    """The frames that an error and its causes passed, the cause that came first last."""
    for cause in _causes(error):
        trace = cause.__traceback__
        while trace is not None:
            yield trace.tb_frame
            trace = trace.tb_next


def _causes(error: BaseException) -> list[BaseException]:
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    return causes


def _placed_in_module(error: ProgramError, model: ModelProto) -> ProgramError:
    """The same error, its sentence naming the module that the node was exported from."""
    for node in model.graph.node:
        scopes = next(
            (p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), ""
        )
        if error.node and error.node in {node.name, *node.output} and scopes:
            path = next(reversed(ast.literal_eval(scopes)[:-1]), "")
            return ProgramError(
                f"in module {path or 'the outermost'!r}: {error.message}",
                code=error.code,
                hint="call module.eval() before exporting, or draw outside"
                if error.code == "random_operator"
                else error.hint,
                node=error.node,
                operator=error.operator,
            )
    return error


def _within(place: str, operator: str) -> str:
    what = f"operator {operator}" if operator else "a step"
    return f"{what} in module {place!r}" if place else f"{what} of the module"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return printable(lines[0] if lines else type(error).__name__, 300)
