"""A protocol that is spoken before the peer has agreed: what its echo may look like."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.protocol_muxer.exceptions import MultiselectClientError, ProtocolNotSupportedError

from shoal.node.libp2p_compat.streams import LazyChoice

HEADER = b"\x13/multistream/1.0.0\n"
ECHO = HEADER + b"\x08/test/1\n"


def pieces(data, cuts):
    bounds = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(bounds)]


@given(st.binary(max_size=40), st.lists(st.integers(0, 100), max_size=6))
def test_what_follows_the_echo_comes_out_whole_however_it_is_cut(rest, cuts):
    choice = LazyChoice("/test/1")
    assert choice.opening == ECHO
    heard = b""
    for piece in pieces(ECHO + rest, cuts):
        heard += piece if choice.agreed else choice.hear(piece)
    assert choice.agreed
    assert heard == rest


@given(st.lists(st.integers(0, 100), max_size=6))
def test_a_refusal_is_told_from_nonsense(cuts):
    choice = LazyChoice("/test/1")
    *first, last = filter(None, pieces(HEADER + b"\x03na\n", cuts))
    assert [choice.hear(piece) for piece in first] == [b""] * len(first)
    with pytest.raises(ProtocolNotSupportedError):
        choice.hear(last)
    assert not choice.agreed


@pytest.mark.parametrize(
    "answer", [b"\x03na\n", b"HTTP/1.1 400", HEADER + b"\x08/test/2\n", HEADER + HEADER]
)
def test_any_other_answer_is_a_fault_of_the_peers(answer):
    with pytest.raises(MultiselectClientError):
        LazyChoice("/test/1").hear(answer)
