import msgspec
import pytest

from shoal.node.explain import NEXT_STEP, UNREACHED, Surroundings
from shoal.node.explain import explain as explain_in
from shoal.node.records import Answer, Failure, Job, JobState, Policy
from shoal.protocol.messages import Reason

JOB = Job(
    id="j",
    policy=Policy.MAP,
    program="a" * 64,
    numeric_class="fp32",
    label="",
    state=JobState.RUNNING,
    created_at=0.0,
    ended_at=None,
    units_total=10,
    units_done=3,
    units_failed=1,
)


def explain(job, answers, peers_known, leases, offered=("fp32",)):
    around = Surroundings("own", peers_known, frozenset(offered), leases)
    return explain_in(job, answers, around)


def answer(verdict, at=1.0, peer="peer", detail=""):
    return Answer("j", peer, at, verdict, detail)


def test_every_reason_to_refuse_has_its_words_and_a_next_step():
    assert set(NEXT_STEP) == set(Reason)
    for says, step in NEXT_STEP.values():
        assert says
        assert step


@pytest.mark.parametrize("reason", list(Reason))
def test_a_refusal_is_told_with_its_peer_its_detail_and_what_would_change_it(reason):
    text = explain(JOB, [answer(reason.value, detail="the detail")], 1, 0)
    says, step = NEXT_STEP[reason]
    for part in ("peer", says, step, "the detail"):
        assert part in text


def test_a_peer_that_is_cut_is_told_with_the_reason_and_how_to_let_it_back_in():
    text = explain(JOB, [answer("peer_cut", detail="peer is cut: it flooded")], 1, 0)
    assert "peer is cut: it flooded; other nodes are asked" in text
    assert "`shoal peers --forgive peer`" in text


def test_a_peer_whose_advert_takes_no_work_is_told_though_it_was_never_asked():
    around = Surroundings("own", 2, frozenset({"fp32"}), 0, closed=frozenset({"peer", "own"}))
    text = explain_in(JOB, [answer("awarded")], around)
    (line,) = (line for line in text.splitlines() if "not asked" in line)
    assert line.startswith("peer is not asked")
    assert "own is" not in text
    assert "not asked" not in explain_in(JOB, [answer("paused")], around)  # it said why


def test_a_lonely_node_is_told_how_to_find_others():
    assert "No other node is known" in explain(JOB, [], 0, 0)
    assert "No other node is known" not in explain(JOB, [], 2, 0)


def test_only_the_newest_answer_of_a_peer_counts():
    text = explain(JOB, [answer("awarded", at=2.0), answer("busy", at=1.0)], 1, 1)
    assert "busy" not in text


def test_an_error_in_place_of_an_answer_is_told_with_its_words():
    text = explain(JOB, [answer("no_answer", detail="peer gave no answer")], 1, 0)
    assert "peer gave no answer" in text


@pytest.mark.parametrize("code", list(UNREACHED))
def test_a_node_that_others_cannot_dial_is_told_with_what_would_change_it(code):
    text = explain(JOB, [answer(code, detail="the detail")], 1, 0)
    says, step = UNREACHED[code]
    assert f"peer {says}" in text
    assert step in text
    assert "shoal status" in text


def test_progress_is_told_first():
    assert explain(JOB, [], 1, 2).startswith("4 of 10 units have ended, 2 leases are held.")


@pytest.mark.parametrize(
    ("state", "failure", "words"),
    [
        (JobState.DONE, None, "done: 3 units"),
        (JobState.CANCELLED, None, "cancelled"),
        (JobState.FAILED, Failure("code", "the reason"), "1 of 10 units: the reason"),
    ],
)
def test_a_job_that_has_ended_says_how(state, failure, words):
    job = msgspec.structs.replace(JOB, state=state, failure=failure)
    assert words in explain(job, [answer("busy")], 0, 0)


def test_a_class_that_nobody_offers_is_the_reason_told():
    job = msgspec.structs.replace(JOB, numeric_class="int8")
    text = explain(job, [], 2, 0, offered=("fp32", "exact"))
    assert "No known node offers the class 'int8'; offered: exact, fp32." in text


def test_an_ended_job_still_tells_who_refused():
    job = msgspec.structs.replace(JOB, state=JobState.DONE)
    assert "allow list" in explain(job, [answer("untrusted_requester")], 2, 0)


def test_the_own_node_is_called_so():
    assert "this node is busy" in explain(JOB, [answer("busy", peer="own")], 2, 0)
