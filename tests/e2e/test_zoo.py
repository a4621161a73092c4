"""Every liar of the zoo among honest daemons: nothing wrong is delivered, who lies is found.

The requester and three other honest daemons know one another; a liar comes as a stranger.
Maps in the class exact, all of which is checked, must give what a local run gives, with
nothing asked of the submitter. The whole is for the soak: it takes about a minute for each
kind.
"""

import pytest
from daemons import eventually, shoal
from kinds import GANGS, PLAYED, PROVIDERS, Fate
from whole_models import is_installed
from zoo import (
    CONVICTED_LIMIT_S,
    ROUNDS,
    SPREAD_LIMIT_S,
    Zoo,
    assert_convicted,
    found_out,
    lies_told,
    proof_against,
    run_for,
    run_map,
    run_until,
)

from shoal.node.result_standing import NEW, Deed

pytestmark = [pytest.mark.usefixtures("exact"), pytest.mark.soak]

ALONE = [name for name in PROVIDERS if not PLAYED[name].ring]
MODELS = [name for name in ("magika", "minilm") if is_installed(name)]
CONVICTED = [name for name in ALONE if PLAYED[name].fate is Fate.CONVICTED]
DISTRUSTED = ["invented_work", "withholder"]
RIGHT_AT_FIRST = {"honest_then_cheat", "late_equivocator"}
"""What they gave before they lied may well be delivered."""

SHORT_JOB_S = 4.0
"""Less than a peer gets that is new: who answers nothing must not begin anew with each job."""


@pytest.fixture(scope="module")
def zoo(request):
    with Zoo(4) as swarm:
        swarm.start_all()
        swarm.convicted_privately = []
        failed = request.session.testsfailed
        yield swarm
        if request.session.testsfailed > failed:
            say = request.config.pluginmanager.getplugin("terminalreporter").write_line
            say(f"the daemons' logs are kept in {swarm.keep_logs()}")


def distrusts(node, peer):
    with node.client() as client:
        return has_lost_standing(client, peer)


def deeds_of(node, peer):
    with node.client() as client:
        return {reason.code for reason in client.standing(peer).reasons}


def bans_of(node):
    with node.client() as client:
        return {ban.peer for ban in client.bans()}


def has_lost_standing(client, peer):
    page = client.standing(peer)
    return page.value < NEW.value or page.conduct < 1.0


def has_lied(liar):
    return any(lie != "none" for lie in lies_told(liar))


def any_lied_and_all_are_found_out(zoo, liars):
    lied = [liar for liar in liars if has_lied(liar)]
    return lied and all(found_out(zoo.requester, liar.peer) for liar in lied)


def test_a_private_conviction_stays_with_the_requester(zoo, tmp_path):
    with zoo.liars("one_bit") as (liar,), zoo.requester.client() as client:
        peer = liar.peer
        run_until(client, "magika", lambda: found_out(zoo.requester, peer), proofs="private")
        view = eventually(
            lambda: proof_against(zoo.requester, peer), CONVICTED_LIMIT_S, "it is convicted"
        )
    assert (view.private, view.public, view.own) == (True, False, True)
    assert peer in bans_of(zoo.requester)
    listed = shoal("proof", "list", node=zoo.requester)
    (line,) = [line for line in listed.stdout.splitlines() if line.startswith(view.id)]
    assert "this node" in line
    assert "everybody" not in line
    exported = shoal("proof", "export", view.id, tmp_path, node=zoo.requester)
    assert exported.code == 0, exported
    zoo.convicted_privately.append(peer)
    assert_nobody_else_knows(zoo)


def test_who_turns_one_bit_is_convicted_and_nothing_of_it_is_delivered(zoo, tmp_path):
    check_convicted(zoo, "one_bit", "magika", tmp_path)
    assert_nobody_else_knows(zoo)  # though others were told of this one, which came later


def assert_nobody_else_knows(zoo):
    """Of who was convicted privately the requester alone has a proof, or a ban."""
    for node in zoo.nodes:
        if node.running and node is not zoo.requester:
            for peer in zoo.convicted_privately:
                assert proof_against(node, peer) is None
                assert peer not in bans_of(node)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", CONVICTED)
def test_a_kind_that_gives_wrong_results_is_convicted(zoo, kind, model, tmp_path):
    check_convicted(zoo, kind, model, tmp_path)


@pytest.mark.parametrize("kind", DISTRUSTED)
def test_a_kind_that_gives_nothing_false_loses_standing_and_is_not_convicted(zoo, kind):
    with zoo.liars(kind) as (liar,), zoo.requester.client() as client:
        run_until(client, "magika", lambda: has_lost_standing(client, liar.peer))
        assert proof_against(zoo.requester, liar.peer) is None


def test_who_answers_just_before_its_time_is_up_is_overtaken_and_loses_standing(zoo):
    with zoo.liars("slow_roller") as (liar,), zoo.requester.client() as client:
        for _ in range(ROUNDS):
            run_for(client, "magika", SHORT_JOB_S)
            if has_lost_standing(client, liar.peer):
                break
        assert Deed.SLOW in deeds_of(zoo.requester, liar.peer)
        assert proof_against(zoo.requester, liar.peer) is None


def test_a_requester_that_never_acknowledges_is_refused_and_named(zoo):
    with zoo.liars("never_acknowledges") as (liar,), liar.client() as client:
        honest = [node for node in zoo.nodes if node.running and node is not liar]
        unsettled = []
        for _ in range(ROUNDS):  # messages that are let pass take long when busy
            run_for(client, "magika", 12.0)
            unsettled = [node for node in honest if Deed.UNSETTLED in deeds_of(node, liar.peer)]
            if unsettled:
                break
        assert unsettled, "it is refused nowhere"
        (job, *_) = client.jobs(1)
        answers, _ = client.why(job.id)
        refused = {answer.peer for answer in answers if answer.verdict == "unsettled"}
        assert {node.peer for node in unsettled} <= refused
        for node in unsettled:
            assert distrusts(node, liar.peer)
            with node.client() as other:
                rows = [row for row in other.ledger(liar.peer).rows if row.direction == "given"]
            assert [row.acknowledged_units for row in rows] == [0]
            assert rows[0].units > 0


def test_who_accuses_the_innocent_is_believed_by_nobody_and_loses_standing(zoo):
    with zoo.liars("false_accuser") as (liar,):
        with liar.client() as client:
            run_map(client, "magika", 0, verify="receipt")
        assert '"accused"' in liar.log_path.read_text()
        honest = [node for node in zoo.nodes if node.running and node is not liar]
        eventually(
            lambda: any(distrusts(node, liar.peer) for node in honest),
            SPREAD_LIMIT_S,
            "it costs standing",
        )
        assert [node for node in honest if bans_of(node) & {each.peer for each in honest}] == []


@pytest.mark.parametrize("gang", GANGS)
def test_who_lies_together_is_convicted_and_nothing_of_it_is_delivered(zoo, gang, tmp_path):
    with zoo.liars(gang) as liars, zoo.requester.client() as client:
        run_until(client, "magika", lambda: any_lied_and_all_are_found_out(zoo, liars))
        for number, liar in enumerate(liars):
            if found_out(zoo.requester, liar.peer):
                assert_convicted(zoo, liar, tmp_path / str(number))


def test_a_banned_node_that_comes_back_under_another_key_is_convicted_again(zoo, tmp_path):
    for number in range(2):
        check_convicted(zoo, "sybil", "magika", tmp_path / str(number))


def check_convicted(zoo, kind, model, directory):
    with zoo.liars(kind) as (liar,), zoo.requester.client() as client:
        done = run_until(client, model, lambda: found_out(zoo.requester, liar.peer))
        proof = assert_convicted(zoo, liar, directory)
        if kind not in RIGHT_AT_FIRST:
            assert liar.peer not in {unit.provider for unit in done}
        if kind == "late_equivocator":
            assert proof == "equivocation"
