"""When names are asked for again, and what is told of a node that is alone."""

import pytest

from shoal.crypto.identity import generate
from shoal.node.addresses import parse_address
from shoal.node.joining_plan import (
    RESOLVE_AGAIN_S,
    RESOLVE_ALONE_S,
    RESOLVE_FAILED_LIMIT_S,
    TELL_AGAIN_S,
    Resolving,
    sentence,
    to_tell,
)
from shoal.node.status_views import SeedView

PEER = generate().peer_id
PLACE = parse_address(f"/ip4/192.0.2.1/tcp/1/p2p/{PEER}")


def seed(source="setting", error="", error_at=None):
    return SeedView(text="x", source=source, peer=PEER, error=error, error_at=error_at)


def test_a_name_is_asked_for_at_once_and_not_twice_at_a_time():
    name = Resolving()
    assert name.due(0.0, alone=False)
    name.asking = True
    assert not name.due(1e9, alone=True)


def test_a_name_that_was_resolved_is_asked_for_seldom_and_sooner_by_a_node_that_is_alone():
    name = Resolving()
    name.resolved([PLACE], 100.0)
    assert not name.due(100.0 + RESOLVE_ALONE_S - 1, alone=True)
    assert name.due(100.0 + RESOLVE_ALONE_S, alone=True)
    assert not name.due(100.0 + RESOLVE_AGAIN_S - 1, alone=False)
    assert name.due(100.0 + RESOLVE_AGAIN_S, alone=False)


def test_a_name_that_is_not_resolved_is_asked_for_ever_more_seldom_and_for_ever():
    name, now_s, waits = Resolving(), 0.0, []
    for _ in range(2000):
        name.failed("no", now_s)
        asked_s = now_s
        while not name.due(now_s, alone=True):
            now_s += 1.0
        waits.append(now_s - asked_s)
    assert waits[:4] == [2.0, 4.0, 8.0, 16.0]
    assert max(waits) == waits[-1] == RESOLVE_FAILED_LIMIT_S


def test_what_a_name_stood_for_stays_while_nobody_answers():
    name = Resolving()
    name.resolved([PLACE], 1.0)
    name.failed("no answer", 2.0)
    assert (name.found, name.error) == ((PLACE,), "no answer")


def test_a_failure_is_told_at_once_and_then_every_few_minutes():
    told = []
    told_at_s = float("-inf")
    for now_s in range(1000):  # it fails each second
        if to_tell(now_s, told_at_s, now_s):
            told_at_s = now_s
            told.append(now_s)
    assert told == [0, TELL_AGAIN_S, 2 * TELL_AGAIN_S, 3 * TELL_AGAIN_S]
    assert not to_tell(5.0, 6.0, 1e9), "it has not failed again"


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        ([], "no bootstrap peer is set, none is remembered"),
        ([seed()], "joining: 1 bootstrap peer being tried"),
        (
            [seed(error="old", error_at=1.0), seed(error="refused", error_at=2.0), seed()],
            "alone: 2 bootstrap peers tried, the last failed: refused",
        ),
        (
            [seed(error="refused", error_at=2.0), seed("lan", error="x"), seed("remembered")],
            "refused; 1 peer of earlier times or nearby tried too",
        ),
        (
            [seed("remembered", error="refused", error_at=1.0)],
            "set; 1 peer of earlier times or nearby tried, the last failed: refused",
        ),
        ([seed("remembered"), seed("lan")], "2 peers of earlier times or nearby being tried"),
    ],
)
def test_a_node_that_is_alone_says_why(seeds, words):
    assert words in sentence(seeds, 0)


def test_a_node_that_has_a_link_says_nothing():
    assert sentence([seed(error="refused", error_at=1.0)], 1) == ""
