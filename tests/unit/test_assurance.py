import msgspec
import pytest

from shoal.node.assurance import WEAKER, Ground, JobAssurance, assure
from shoal.node.cli.assurance import print_unit, print_units
from shoal.node.records import Check, Job, JobState, Policy, Unit, UnitState

JOB = Job(
    id="j",
    policy=Policy.MAP,
    program="a" * 64,
    numeric_class="exact",
    label="",
    state=JobState.DONE,
    created_at=10.0,
    ended_at=22.5,
    units_total=1,
    units_done=1,
    units_failed=0,
)
FP32 = msgspec.structs.replace(JOB, numeric_class="fp32")
DONE = Unit("j", 0, UnitState.DONE, {}, {}, "b" * 64, "ann", 1, 0.5)

BLIND = "drawn by lot and without knowing what it was compared with"


def check(verifier, verdict="agrees", level="re-run"):
    return Check("j", 0, level, verifier, verdict, None, 1.0)


def sentences(assured):
    return (assured.ran, assured.checked, assured.rules_out, assured.leaves)


def test_a_unit_that_a_drawn_verifier_ran_again():
    assured = assure(JOB, DONE, [check("bob")], "own")
    assert (assured.ground, assured.verifiers, assured.weaker) == (
        Ground.RE_RUN,
        ("bob",),
        False,
    )
    assert sentences(assured) == (
        "ann ran it",
        f"bob ran it too, {BLIND}, and gave the same bits",
        "a lie of its provider alone: not a bit differs",
        "that ann and bob are in league and lied alike",
    )


def test_a_unit_with_a_receipt_alone_may_be_a_lie_that_can_be_proved():
    assured = assure(JOB, DONE, [], "own")
    assert assured.ground is Ground.RECEIPT
    assert "signature, award, program and inputs" in assured.checked
    assert "gave a wrong result" in assured.leaves
    assert "prove" in assured.leaves


def test_a_quorum_names_all_who_would_have_to_be_in_league():
    checks = [check(peer, level="quorum") for peer in ("bob", "eve")]
    assured = assure(JOB, DONE, checks, "own")
    assert assured.ground is Ground.QUORUM
    assert assured.leaves == "that ann, bob and eve are in league and lied alike"


def test_what_this_node_ran_itself_leaves_nothing_to_others():
    for unit, checks in (
        (DONE, [check("own", level="own")]),
        (DONE, [check("bob"), check("own", level="own")]),
        (msgspec.structs.replace(DONE, provider="own"), []),
    ):
        assured = assure(JOB, unit, checks, "own")
        assert assured.ground is Ground.OWN
        assert assured.leaves == "that this machine itself is wrong"
        assert assured.run_again_here is (unit.provider != "own")


def test_a_units_own_run_and_a_peers_that_ran_again_here_are_told_apart(capsys):
    own = msgspec.structs.replace(DONE, provider="own")
    found = [assure(JOB, own, [], "own"), assure(JOB, DONE, [check("own", level="own")], "own")]
    print_units([own, DONE], found)
    _, first, second = capsys.readouterr().out.splitlines()
    assert (" own run " in first, " re-run here " in second) == (True, True)
    print_unit(DONE, found[1])
    assert "It does not rule out that this machine itself is wrong." in capsys.readouterr().out


def test_who_gave_another_result_and_who_gave_none_is_told():
    checks = [check("bob", "differs"), check("eve", "no_answer"), check("own", level="own")]
    assured = assure(JOB, DONE, checks, "own")
    assert assured.differed == ("bob",)
    assert "this node ran it again and got the same bits" in assured.checked
    assert "bob gave another result, which was not used" in assured.checked
    assert "eve was to check it and gave no answer" in assured.checked


def test_who_was_silent_at_first_and_agreed_later_is_a_verifier_like_any_other():
    assured = assure(JOB, DONE, [check("bob", "no_answer"), check("bob")], "own")
    assert assured.verifiers == ("bob",)
    assert "no answer" not in assured.checked


@pytest.mark.parametrize("level", ["receipt", "re-run", "quorum", "own"])
def test_a_class_that_is_compared_by_tolerance_is_called_weaker_at_every_level(level):
    verifier = "own" if level == "own" else "bob"
    checks = [] if level == "receipt" else [check(verifier, level=level)]
    exact, weak = assure(JOB, DONE, checks, "own"), assure(FP32, DONE, checks, "own")
    assert not exact.weaker
    assert weak.weaker
    if level == "receipt":  # nothing was compared
        assert "whoever runs the unit again can prove" not in weak.leaves
        return
    assert "tolerance" not in " ".join(sentences(exact))
    assert "tolerance" in weak.rules_out
    assert weak.leaves.endswith(WEAKER)


@pytest.mark.parametrize(
    ("state", "provider", "words"),
    [
        (UnitState.QUEUED, None, "nobody has run it yet"),
        (UnitState.LEASED, "ann", "ann runs it"),
        (UnitState.FAILED, "own", "this node ran it, and it failed"),
        (UnitState.CANCELLED, None, "it was cancelled"),
    ],
)
def test_a_unit_without_a_result_has_nothing_to_rely_on(state, provider, words):
    unit = msgspec.structs.replace(DONE, state=state, provider=provider)
    assured = assure(JOB, unit, [check("bob", "no_answer")], "own")
    assert (assured.ground, assured.ran) == (Ground.NOTHING, words)
    assert (assured.rules_out, assured.leaves) == ("", "")


def test_a_job_is_summed_up_by_its_grounds_the_strongest_first():
    counted = JobAssurance({Ground.RECEIPT: 90, Ground.RE_RUN: 9, Ground.OWN: 1}, differed=2)
    own, again, receipt, differed = counted.summary
    assert own.startswith("1 unit run or run again by this node, which rules out every")
    assert again.startswith("9 units run again by a drawn verifier")
    assert receipt.startswith("90 units with a receipt, and not run again")
    assert differed.startswith("of 2 units somebody gave another result")


@pytest.mark.parametrize(
    ("provider", "agreed", "in_place"),
    [
        ("own", [], True),
        ("ann", ["own"], True),
        ("ann", ["bob", "own"], False),  # three ran it, as was asked
        ("ann", ["bob"], False),
    ],
)
def test_a_run_of_this_nodes_own_in_place_of_a_quorum_is_told(provider, agreed, in_place):
    job = msgspec.structs.replace(JOB, verify="quorum:3")
    unit = msgspec.structs.replace(DONE, provider=provider)
    checks = [check(peer, level="own" if peer == "own" else "quorum") for peer in agreed]
    words = "its own run stands in place of the 3 nodes that quorum:3 asks for"
    assert assure(job, unit, checks, "own").checked.endswith(words) == in_place
    assert "quorum:" not in assure(JOB, unit, checks, "own").checked


def test_the_sum_says_of_how_many_units_this_nodes_run_stands_in_place_of_a_quorum():
    own, told = JobAssurance({Ground.OWN: 4}, quorum=7, below_quorum=3).summary
    assert own.startswith("4 units run or run again by this node")
    assert told == (
        "3 units were run by fewer than the 7 nodes that quorum:7 asks for: "
        "this node ran them itself, and its own run decides"
    )
    one = JobAssurance({Ground.OWN: 1}, quorum=2, below_quorum=1).own_runs
    assert one.startswith("1 unit was run by fewer than the 2 nodes")
    assert "ran it itself" in one
    assert JobAssurance({Ground.OWN: 1}, quorum=2).own_runs == ""


def test_results_that_rest_on_convicted_peers_are_named_in_the_sum():
    counted = JobAssurance({Ground.RECEIPT: 9}, doubted=(3, 5, 6, 7), doubted_units=9)
    *_, doubted = counted.summary
    assert doubted == (
        "9 results rest on peers that were convicted later and on nobody else: "
        "units 3, 5 to 7 and 5 more"
    )


def test_the_sum_of_a_weaker_class_says_so_once_there_are_results():
    assert JobAssurance({Ground.RE_RUN: 2}, weaker=True).summary[-1] == WEAKER
    assert JobAssurance({Ground.NOTHING: 2}, weaker=True).summary == [
        "2 units without a result"
    ]
