"""docs/PROGRAMS.md says what the code does: operators, codes, limits."""

import re
from pathlib import Path

from shoal.compute import convert, graph, manifest, program
from shoal.compute.loading import GRAPH_LIMIT_BYTES
from shoal.compute.tensor import RANK_LIMIT

TEXT = (Path(__file__).parents[2] / "docs" / "PROGRAMS.md").read_text(encoding="utf-8")


def section(title):
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_page_lists_the_operators_that_are_accepted_and_no_others():
    standard, ml = re.findall(r"```text\n(.*?)```", section("Accepted operators"), re.DOTALL)
    assert set(standard.split()) == program.OPERATORS[""]
    assert set(ml.split()) == program.OPERATORS[program.ML_DOMAIN]
    assert standard.split() == sorted(standard.split())


def test_the_page_lists_every_code_that_a_model_can_be_refused_with_and_no_others():
    listed = {
        code
        for row in re.findall(
            r"^\| (`.*?) \|", section("What is refused, and why"), re.MULTILINE
        )
        for code in re.findall(r"`(\w+)`", row)
    }
    rules = (
        *program.MODEL_RULES,
        *program.GRAPH_RULES,
        *program.node_rules(program.OPERATORS),
        *program.TENSOR_RULES,
    )
    raised = {rule.code for rule in rules}
    for module in (convert, graph):
        source = Path(module.__file__).read_text(encoding="utf-8")
        raised |= set(re.findall(r'code="(\w+)"', source))
    assert listed == raised


def test_the_page_tells_the_limits_and_opsets():
    limits = [
        program.NODE_COUNT_LIMIT,
        program.SUBGRAPH_DEPTH_LIMIT,
        manifest.PORT_COUNT_LIMIT,
        manifest.TENSOR_COUNT_LIMIT,
        RANK_LIMIT,
        manifest.NAME_LIMIT_BYTES,
        GRAPH_LIMIT_BYTES,
    ]
    told = re.findall(r"\| (\d+)(?: each| deep)? \|$", section("Limits"), re.MULTILINE)
    assert list(map(int, told)) == limits
    first, last = program.OPSETS[0], program.OPSETS[-1]
    assert f"opset {first} to {last}. Models below {convert.PROGRAM_OPSET} " in section("Opset")
