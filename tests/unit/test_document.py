import re
from pathlib import Path
from typing import Annotated, get_args, get_origin

import pytest

from shoal.protocol import challenge, limits, messages
from shoal.protocol.document import diagram, document
from shoal.protocol.negotiation import PROVIDER, REQUESTER, State

COMMITTED = Path(__file__).parents[2] / "docs" / "PROTOCOL.md"
TEXT = document()


def test_the_committed_document_is_what_the_code_says():
    assert COMMITTED.read_text(encoding="utf-8") == TEXT, (
        "docs/PROTOCOL.md is not what the code says any more; write it anew with `make docs` "
        "(python -m shoal.protocol.document > docs/PROTOCOL.md)"
    )


def test_every_message_and_every_limit_is_in_it():
    for kind in get_args(messages.RequestBody) + get_args(messages.ResponseBody):
        assert f"\n### {kind.__name__}\n" in TEXT
        for name in kind.__struct_fields__:
            assert f"\n| `{name}` |" in TEXT
    for name in vars(limits):
        if name.isupper():
            assert f"\n| `{name}` |" in TEXT, f"{name} has no reason under it"


def test_no_two_types_share_their_bounds_so_that_each_has_one_name():
    named = [value for value in vars(limits).values() if get_origin(value) is Annotated]
    assert len(named) > 10
    assert len(named) == len(set(named))


def test_every_link_inside_it_leads_somewhere():
    anchors = {
        title.lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    }
    anchors |= set(re.findall(r'<a id="(.*?)">', TEXT))
    links = set(re.findall(r"\]\(#(.*?)\)", TEXT))
    assert links
    assert links <= anchors


@pytest.mark.parametrize("table", [REQUESTER, PROVIDER, challenge.VERIFIER, challenge.PROVER])
def test_a_diagram_shows_each_transition_of_its_table(table):
    lines = diagram(table).splitlines()
    for (before, way, message), after in table.items():
        (line,) = [line for line in lines if line.startswith(f"    {before} --> {after}:")]
        said = dict(part.split(" ", 1) for part in line.split(": ", 1)[1].split("; "))
        assert message.__name__ in said[way].split(", ")
    assert f"    [*] --> {State.IDLE}" in lines
    assert f"    {State.ENDED} --> [*]" in lines
