"""Programs of one operator each, for every operator of the exact class.

`CALLS` has a function for each operator: from a `Source` of drawn values to what the
operator is called with. A good share of the calls gives a result; the rest is of every
kind of error. `programs` puts a call into a graph.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx.defs
from hypothesis import strategies as st

from exact_programs import elementwise, indexing, layout, products, rows
from exact_programs.program import Call, Failure, Program
from exact_programs.source import Source
from shoal.compute.exact.axes import PRODUCTS
from shoal.compute.exact.reading import OPSETS
from shoal.compute.exact.spec import PRECISIONS

__all__ = ["CALLS", "Failure", "Program", "programs"]

CALLS: dict[str, Callable[[Source], Call]] = {
    **elementwise.CALLS,
    **indexing.CALLS,
    **layout.CALLS,
    **products.CALLS,
    **rows.CALLS,
}


@st.composite
def programs(draw, operator: str) -> Program:
    """A program of one node, its inputs fed or constant, in any opset that has it."""
    known = [v for v in OPSETS[::-1] if onnx.defs.has(operator, v)]
    opset = draw(
        st.sampled_from([v for v in known if not onnx.defs.get_schema(operator, v).deprecated])
    )
    call = CALLS[operator](Source(draw, operator, opset))
    given = [f"i{number}" for number, array in enumerate(call.inputs) if array is not None]
    constant = draw(st.sampled_from([given[:0], given[1:2], given[1:], given]))
    precision, axis = next(iter(PRECISIONS)), None
    if operator in PRODUCTS:
        precision = draw(st.sampled_from(list(PRECISIONS)))
        axis = draw(st.sampled_from([None, "column"] + ["k"] * (operator != "Conv")))
    return Program(operator, opset, call, frozenset(constant), precision, axis)
