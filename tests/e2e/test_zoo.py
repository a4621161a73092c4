"""Every liar of the zoo among honest daemons: nothing wrong is delivered, who lies is found.

The requester and three other honest daemons know one another; a liar comes as a stranger.
Maps in the class exact, all of which is checked, must give what a local run gives, with
nothing asked of the submitter. The whole is for the soak: it takes about a minute for each
kind.
"""

import pytest
from daemons import eventually
from kinds import GANGS, KINDS, PROVIDERS, Fate
from whole_models import is_installed
from zoo import Zoo, assert_convicted, lies_told, proof_against, run_map, run_until

from shoal.node.result_standing import NEW

pytestmark = pytest.mark.usefixtures("exact")

ALONE = [name for name in PROVIDERS if not KINDS[name].ring]
MODELS = [name for name in ("magika", "minilm") if is_installed(name)]
CONVICTED = [name for name in ALONE if KINDS[name].fate is Fate.CONVICTED]
DISTRUSTED = [
    name for name in ALONE if KINDS[name].fate is Fate.DISTRUSTED and name != "false_accuser"
]


@pytest.fixture(scope="module")
def zoo():
    with Zoo(4) as swarm:
        swarm.start_all()
        yield swarm


def distrusts(node, peer):
    with node.client() as client:
        return has_lost_standing(client, peer)


def bans_of(node):
    with node.client() as client:
        return {ban.peer for ban in client.bans()}


def has_lost_standing(client, peer):
    page = client.standing(peer)
    return page.value < NEW.value or page.conduct < 1.0


def has_lied(liar):
    return any(lie != "none" for lie in lies_told(liar))


def test_who_turns_one_bit_is_convicted_and_nothing_of_it_is_delivered(zoo, tmp_path):
    check_convicted(zoo, "one_bit", "magika", tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", CONVICTED)
def test_a_kind_that_gives_wrong_results_is_convicted(zoo, kind, model, tmp_path):
    check_convicted(zoo, kind, model, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("kind", DISTRUSTED)
def test_a_kind_that_gives_nothing_false_loses_standing_and_is_not_convicted(zoo, kind):
    with zoo.liars(kind) as (liar,), zoo.requester.client() as client:
        run_until(client, "magika", lambda: has_lost_standing(client, liar.peer))
        assert proof_against(zoo.requester, liar.peer) is None


@pytest.mark.soak
def test_who_accuses_the_innocent_is_believed_by_nobody_and_loses_standing(zoo):
    with zoo.liars("false_accuser") as (liar,):
        with liar.client() as client:
            run_map(client, "magika", 0, verify="receipt")
        assert '"accused"' in liar.log_path.read_text()
        honest = [node for node in zoo.nodes if node.running and node is not liar]
        eventually(
            lambda: any(distrusts(node, liar.peer) for node in honest), 120, "it costs standing"
        )
        assert [node for node in honest if bans_of(node) & {each.peer for each in honest}] == []


@pytest.mark.soak
@pytest.mark.parametrize("gang", GANGS)
def test_who_lies_together_is_convicted_and_nothing_of_it_is_delivered(zoo, gang, tmp_path):
    with zoo.liars(gang) as liars, zoo.requester.client() as client:
        run_until(client, "magika", lambda: any(map(has_lied, liars)))
        for number, liar in enumerate(liars):
            if has_lied(liar):
                assert_convicted(zoo, liar, tmp_path / str(number))


@pytest.mark.soak
def test_a_banned_node_that_comes_back_under_another_key_is_convicted_again(zoo, tmp_path):
    for number in range(2):
        check_convicted(zoo, "sybil", "magika", tmp_path / str(number))


def check_convicted(zoo, kind, model, directory):
    with zoo.liars(kind) as (liar,), zoo.requester.client() as client:
        done = run_until(client, model, lambda: has_lied(liar) or kind == "equivocator")
        assert_convicted(zoo, liar, directory)
        false = [unit for unit in done if unit.provider == liar.peer]
        if kind != "honest_then_cheat":
            assert not false
