"""Every command that README, docs, hints and errors name is one that the command line takes.

They are parsed as they stand, by the parser that would run them; placeholders such as JOB
are texts like any other.
"""

import ast
import re
import shlex
from pathlib import Path

import cyclopts
import pytest

from shoal.node.cli import make_app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = sorted(
    path for folder in ("node", "compute", "crypto") for path in (ROOT / folder).rglob("*.py")
)
TYPED = re.compile(r"^(?:\S*\$ +|[^\S\n]*)(shoal [a-z](?:[^\n#\\]|\\\n|#\S)*)", re.MULTILINE)
"""A line of a page's code: with a prompt or without, up to its comment, over its breaks."""

QUOTED = re.compile(r"`+(shoal(?: [a-z][^`]*)?)`+|“(shoal(?: [a-z][^”]*)?)”")
VALUES = {"NUMBER": "1", "K": "1", "N": "1", "TIME": "1h"}
"""What stands where a placeholder is of something that the parser reads as a number."""


@pytest.fixture(scope="module")
def app():
    return make_app(whole=True)


def parse(app, command):
    """Have the command line read one, and do nothing; raises CycloptsError."""
    tokens = [VALUES.get(token, token) for token in shlex.split(command)[1:]]
    app.parse_args(tokens, exit_on_error=False, print_error=False)


def wrong(app, command, *, whole):
    """What is wrong with it; "" where nothing is.

    Args:
        whole: Not only the name of a command, as in "`shoal job fetch` brings its outputs".
    """
    try:
        parse(app, command)
    except cyclopts.MissingArgumentError as error:
        named = not re.search(" (?:-|[A-Z])", command) or "--input" in str(error)
        return "" if named and not whole else str(error)
    except cyclopts.CycloptsError as error:
        return str(error)
    return ""


def quoted(text):
    """Commands in quotes, without those that are cut short."""
    found = [one or other for one, other in QUOTED.findall(text)]
    return [" ".join(command.split()) for command in found if "…" not in command]


def texts(module):
    """Texts of a module, with 1 for what is filled in."""
    tree = ast.parse(module.read_text())
    inner = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    for node in ast.walk(tree):
        match node:
            case ast.JoinedStr(values=values):
                yield "".join(v.value if isinstance(v, ast.Constant) else "1" for v in values)
            case ast.Constant(value=str(text)) if id(node) not in inner:
                yield re.sub(r"\{\w+\}", "1", text)


def lines_of(page):
    """Lines with a command in the blocks of code of a page."""
    blocks = re.findall(
        r"^```(?:console|sh|bash)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE
    )
    return [
        " ".join(line.replace("\\\n", " ").split())
        for block in blocks
        for line in TYPED.findall(block)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_are_taken_as_they_stand(app, page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found = {line: wrong(app, line, whole=True) for line in lines_of(page)}
    found |= {command: wrong(app, command, whole=False) for command in quoted(text)}
    assert {command: why for command, why in found.items() if why} == {}


def test_the_commands_of_readme_are_found_at_all():
    found = lines_of(ROOT / "README.md")
    assert len(found) > 25
    assert "shoal map model.onnx --input x=big.npy --batch 32 --output many" in found
    assert any(line.endswith("/p2p/FIRST_ID") and "--home second" in line for line in found)


def test_the_commands_that_hints_and_errors_name_are_taken_as_they_stand(app):
    found = {
        (str(module.relative_to(ROOT)), command): wrong(app, command, whole=False)
        for module in MODULES
        for text in texts(module)
        for command in quoted(text)
    }
    assert len(found) > 100
    assert {command: why for command, why in found.items() if why} == {}


@pytest.mark.parametrize(
    "command",
    ["shoal befriend PEER", "shoal peers --for 2h", "shoal job show", "shoal run a b"],
)
def test_a_command_that_there_is_not_would_be_seen(app, command):
    assert wrong(app, command, whole=True)
