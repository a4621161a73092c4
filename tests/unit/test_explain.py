import re
from pathlib import Path

import msgspec
import pytest

from shoal.node import causes
from shoal.node.causes import ERRORS, FALSE_RESULTS, REFUSALS, Remedy
from shoal.node.explain import explain
from shoal.node.outlook import Doing, Outlook, PeerOutlook
from shoal.node.records import Answer, Job, JobState, Policy
from shoal.node.surroundings import Lost, Neighbour, Surroundings
from shoal.protocol.negotiation_messages import Reason

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
README = Path(__file__).parents[2] / "README.md"
OFFERING = Neighbour(classes=frozenset({"fp32", "exact"}))


def around(*peers, **others):
    """This node and some others, all of which work; ``others`` are the rest of the fields."""
    known = dict.fromkeys(("own", *peers), OFFERING) | others.pop("known", {})
    return Surroundings("own", known, **others)


def answer(verdict, at=1.0, peer="peer", detail=""):
    return Answer("j", peer, at, verdict, detail)


def lines(*answers, job=JOB, place=None):
    """The lines about causes."""
    text = explain(job, answers, place or around("peer")).summary
    return text.splitlines()[1:]


def line(*answers, job=JOB, place=None):
    (only,) = lines(*answers, job=job, place=place)
    return only


# --- answers ---------------------------------------------------------------------


@pytest.mark.parametrize("words", [*REFUSALS.values(), *ERRORS.values()])
def test_every_answer_has_its_words_for_one_and_many_and_a_next_step(words):
    assert words.one
    assert words.many
    assert words.step


def test_every_reason_to_refuse_has_its_words():
    assert set(REFUSALS) == set(Reason)


@pytest.mark.parametrize("reason", list(Reason))
def test_a_refusal_is_told_with_its_peer_its_words_and_what_would_change_it(reason):
    text = line(answer(reason.value, detail="the detail"))
    words = REFUSALS[reason]
    assert text.startswith(f"peer {words.one.replace('{class}', 'fp32')}")
    assert ("the detail" in text) == words.told
    assert ": " in text
    assert text.endswith(".")
    assert "{" not in text


@pytest.mark.parametrize("code", list(ERRORS))
def test_a_peer_that_cannot_be_reached_is_told_with_what_would_change_it(code):
    text = line(answer(code, detail="peer did this"))
    assert text.startswith(f"peer {ERRORS[code].one}")
    assert ("(did this)" in text) == ERRORS[code].told
    assert "{" not in text


def test_memory_is_told_in_figures_with_the_command_that_fits_and_the_setting_there():
    said = "a unit may use 2147483648 bytes here, not 8589934592"
    text = line(answer("too_large", detail=said))
    assert "gives a unit 2 GiB of memory, and this job asks for 8 GiB" in text
    assert "`shoal map … --memory-limit 2GiB`" in text
    assert 'set `memory = "8GiB"` there' in text
    run = msgspec.structs.replace(JOB, policy=Policy.RUN)
    own = line(answer("too_large", detail=said, peer="own"), job=run)
    assert own.startswith("this node gives a unit 2 GiB")
    assert "`shoal run … --memory-limit 2GiB`" in own
    assert "`shoal down`" in own


def test_a_size_that_is_no_round_one_is_told_in_what_a_setting_takes():
    said = "a unit may use 1500000001 bytes here, not 3221225472"
    text = line(answer("too_large", detail=said))
    assert "1.4 GiB of memory" in text
    assert "--memory-limit 1500000001`" in text


def test_time_and_price_are_told_in_figures_too():
    text = line(answer("too_large", detail="a unit may take 60 s here, not 300"))
    assert "gives a unit 60 s, and this job asks for 300 s" in text
    assert "--time-limit 60s`" in text
    assert 'set `time_limit = "300s"` there' in text
    price = "a unit of it is worth 1.02 credits, and those of 50 or more are taken here"
    text = line(answer("price", detail=price))
    assert (
        "takes only units worth 50 credits or more, and one of this job is worth 1.02" in text
    )
    assert "set `min_price = 1.02` there, then “shoal reload”" in text


def test_words_of_another_form_are_told_as_they_came():
    assert "(ask for less)" in line(answer("too_large", detail="ask for less."))


def test_who_is_not_trusted_is_told_the_line_for_the_others_settings():
    assert "“shoal allow own”" in line(answer("untrusted_requester"))
    detail = "strangers are served from within a sandbox only, and this node has none"
    assert "“shoal doctor” there" in line(answer("untrusted_requester", detail=detail))


def test_a_peer_that_is_cut_is_told_with_the_reason_and_how_to_let_it_back_in():
    text = line(answer("peer_cut", detail="peer is cut: it flooded"))
    assert "it flooded" in text
    assert "`shoal peers --forgive peer`" in text


@pytest.mark.parametrize("code", sorted(FALSE_RESULTS))
def test_a_false_result_is_called_so(code):
    (cause,) = explain(JOB, [answer(code, detail="no signature")], around("peer")).causes
    assert (cause.code, cause.remedy) == ("false_result", Remedy.NOBODY)
    assert "gave a result that is false (no signature)" in cause.sentence


def test_an_error_without_words_of_its_own_is_told_as_it_came():
    assert "peer could not be used (gave up)" in line(answer("odd", detail="peer gave up"))


def test_only_the_newest_answer_of_a_peer_counts():
    assert (
        lines(answer("awarded", at=2.0), answer("busy", at=1.0), place=around("peer", leases=1))
        == []
    )
    assert "busy" in line(answer("awarded", at=1.0), answer("busy", at=2.0))


def test_answers_alike_are_told_once_for_all_who_gave_them():
    peers = [f"peer{number}" for number in range(12)]
    said = [answer("denied", peer=peer) for peer in peers]
    text = line(*said, place=around(*peers))
    assert text.startswith("12 peers (peer0, peer1, peer2 and 9 more) have this node on their")
    assert "their operators" in text
    two = lines(
        answer("busy", peer="peer0", detail="a"), answer("busy", peer="peer1", detail="b")
    )
    assert len(two) == 2


def test_own_and_others_answers_are_told_apart():
    own, other = lines(answer("paused", peer="own"), answer("paused"))
    assert own.startswith("this node takes no work")
    assert "`shoal resume`" in own
    assert "“shoal resume”" in other


def test_what_gets_the_job_running_soonest_comes_first():
    said = [
        answer("denied", peer="a"),
        answer("paused", peer="b"),
        answer("paused", peer="own"),
        answer("busy", peer="c"),
        answer("bad_receipt", peer="d"),
    ]
    found = explain(JOB, said, around("a", "b", "c", "d")).causes
    assert [cause.peers for cause in found] == [("c",), ("own",), ("b",), ("a",), ("d",)]
    assert [cause.remedy for cause in found] == list(Remedy)


def test_a_peer_that_refused_and_is_gone_is_told_so():
    text = line(answer("untrusted_requester", peer="gone"))
    assert "not known any more" in text
    assert "“shoal up”" in text


# --- nobody to ask ---------------------------------------------------------------


def test_a_lonely_node_is_told_how_to_find_others_and_why_it_is_alone():
    text = "\n".join(lines(place=around(alone="Its bootstrap peer does not answer.")))
    assert "No other node is known to this one (Its bootstrap peer does not answer)" in text
    assert "`shoal peers --connect ADDRESS`" in text
    assert "No other node" not in "\n".join(lines())


def test_a_node_whose_peers_were_all_lost_is_told_who_when_and_how():
    lost = [Lost(f"peer{n}", 40.0 * (n + 1), "its connection ended") for n in range(5)]
    text = "\n".join(lines(place=around(alone="No seed answers.", lost=lost[:1])))
    assert "No other node is known to this one any more" in text
    assert "peer0 was lost 40 s ago (its connection ended)" in text
    assert "look there whether its daemon runs" in text
    assert "`shoal peers --connect ADDRESS`" in text
    many = "\n".join(lines(place=around(lost=lost)))
    assert "peer2 was lost 2 min ago (its connection ended), and 2 more before" in many
    assert "lost" not in "\n".join(lines(place=around("peer", lost=lost)))


def test_a_class_that_nobody_offers_is_told_once_with_those_that_are_offered():
    job = msgspec.structs.replace(JOB, numeric_class="low")
    text = line(job=job)
    assert text.startswith("No known node offers the numeric class low; offered: exact, fp32:")
    assert "`--class fp32`" in text


KERNEL_JOB = msgspec.structs.replace(JOB, numeric_class="kernel")


def test_where_nobody_has_a_gpu_a_kernel_job_is_told_to_find_one_and_no_other_class():
    text = line(job=KERNEL_JOB)
    assert text.startswith(
        "No known node offers the numeric class kernel; offered: exact, fp32:"
    )
    assert "a node with a GPU" in text
    assert "`shoal peers --connect ADDRESS`" in text
    assert "--class" not in text


def test_a_refusal_for_want_of_a_gpu_is_told_as_such():
    detail = "class kernel takes a GPU, and this node has none that is used"
    place = around(known={"peer": Neighbour(classes=frozenset({"kernel"}))})
    text = line(answer("no_device", detail=detail), job=KERNEL_JOB, place=place)
    assert text.startswith(f"peer has no GPU for it ({detail})")
    assert "a node with a GPU" in text


def test_nodes_with_another_triton_than_a_kernel_s_are_not_asked_and_it_says_so():
    def card(triton):
        return Neighbour(classes=frozenset({"kernel", "fp32"}), triton=triton)

    known = {"a": card("3.6.0"), "b": card("3.6.0"), "old": card(""), "it": card("3.7.1")}
    place = around(known={"own": OFFERING, **known}, triton="3.7.1")
    text = "\n".join(lines(job=KERNEL_JOB, place=place))
    assert (
        "a and b are not asked, for the kernel needs triton 3.7.1, and they have 3.6.0: lower "
        "it with triton 3.6.0 and submit it again, or connect to a node that has 3.7.1" in text
    )
    assert "old" not in text
    assert " it " not in text.replace("lower it with", "").replace("submit it again", "")
    alone = around(known={"own": card("3.6.0")}, triton="3.7.1")
    (cause,) = explain(KERNEL_JOB, [], alone).causes[-1:]
    assert cause.code == "triton_version"
    assert "it has 3.6.0" in cause.sentence


def test_a_refusal_of_a_strangers_kernel_names_the_allow_list():
    detail = "kernels are taken only of peers on this node's allow list"
    place = around(known={"peer": Neighbour(classes=frozenset({"kernel"}))})
    text = line(answer("untrusted_requester", detail=detail), job=KERNEL_JOB, place=place)
    assert text.startswith("peer takes kernels only of nodes that are on its allow list")
    assert "“shoal allow own”" in text


def test_peers_without_a_gpu_are_told_where_others_have_one():
    others = {"peer": Neighbour(classes=frozenset({"kernel"})), "cpu": OFFERING}
    text = line(job=KERNEL_JOB, place=around(known=others))
    assert text.startswith("cpu does not offer the numeric class kernel, only exact, fp32")
    assert "--class" not in text


def test_peers_that_lack_a_class_that_others_offer_are_told():
    job = msgspec.structs.replace(JOB, numeric_class="exact")
    lacking = Neighbour(classes=frozenset({"fp32"}))
    text = line(job=job, place=around(known={"peer": lacking}))
    assert text.startswith("peer does not offer the numeric class exact, only fp32")


def test_a_peer_whose_advert_takes_no_work_is_told_though_it_was_never_asked():
    closed = Neighbour(providing=False, classes=OFFERING.classes)
    place = around(known={"peer": closed, "own": closed})
    assert line(place=place).startswith("peer is not asked")
    assert "not asked" not in line(answer("paused"), place=place)  # it said why


def test_who_offers_nothing_is_told_where_to_look_for_the_reason():
    idle = Neighbour()
    own, other = lines(place=around(known={"peer": idle, "own": idle}))
    assert own.startswith("this node has shown no device that works")
    assert "`shoal devices`" in own
    assert other.startswith("peer has shown no device")
    assert "“shoal devices”" in other


def test_peers_of_another_version_are_told_with_who_upgrades():
    place = around(
        "peer",
        misfits={
            "old": "speaks protocol 0: its operator must upgrade it",
            "new": "speaks protocol 2: upgrade this node",
            "else": "is no node of shoal: it runs kubo",
        },
    )
    here, there = lines(place=place)
    assert here.startswith("new speaks protocol 2")
    assert "upgrade this node: `pip install -c constraints.txt .` in a newer checkout" in here
    assert there.startswith("old speaks protocol 0")
    assert "“pip install -c constraints.txt .” in a newer checkout" in there


def test_a_job_that_was_just_submitted_says_that_nothing_was_answered():
    assert line().startswith("2 nodes can be asked, and nothing was answered yet")


# --- progress --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("leases", "words"),
    [(1, "1 lease is held."), (2, "2 leases are held."), (0, "0 leases are held.")],
)
def test_progress_is_told_first(leases, words):
    found = explain(JOB, [], around("peer", leases=leases))
    assert found.headline == f"4 of 10 units have ended, {words}"
    one = msgspec.structs.replace(JOB, units_total=1, units_done=1, units_failed=0)
    assert explain(one, [], around()).headline.startswith("1 of 1 unit has ended")


def test_the_plan_is_told_with_who_has_what_and_when_it_ends():
    outlook = Outlook(
        units_waiting=1,
        units_out=2,
        units_awaiting=3,
        share=0.5,
        ends_in_s=40.0,
        peers=(
            PeerOutlook("peer", Doing.LEASED, units_out=(4, 5), units_done=3, unit_s=0.25),
            PeerOutlook("busy", Doing.RESTING, again_in_s=1.5, why="busy"),
            PeerOutlook("asked", Doing.ASKED),
        ),
    )
    place = around("peer", "busy", "asked", leases=1, outlook=outlook)
    found = explain(JOB, [answer("busy", peer="busy")], place)
    assert found.headline == (
        "4 of 10 units have ended: 1 lease is held, 2 are with a peer, 1 waits for one, 3 "
        "await outputs of others that have not ended, it ends in about 40 s. It has 50% of the "
        "turns, beside this daemon's other jobs."
    )
    text = found.summary
    assert "it is asked again in 1.5 s" in text
    assert "peer has units 4, 5, did 3 before, 0.25 s each." in text
    assert "asked was asked, and has not answered yet." in text


def test_a_job_behind_others_of_its_daemon_is_told_its_share():
    peers = (PeerOutlook("peer", Doing.PASSED_OVER), PeerOutlook("own", Doing.PASSED_OVER))
    outlook = Outlook(units_waiting=1, units_out=0, share=0.25, peers=peers)
    text = line(place=around("peer", outlook=outlook))
    assert text.startswith("peer and this node work for other jobs of this daemon first")
    assert "25% of the turns" in text
    assert "`--priority`" in text


def test_nobody_is_told_to_install_shoal_from_where_it_is_not():
    """There is no package of it elsewhere: README installs it from a checkout."""
    code = Path(causes.__file__).parents[1]
    for file in [*code.rglob("*.py"), *README.parent.glob("docs/*.md"), README]:
        for advice in re.findall(r"pip install [^`”\n]*", file.read_text()):
            assert not re.search(r"\bshoal\b(?!/)", advice), (file, advice)
    assert f"$ {causes.UPGRADE}" in README.read_text()
