"""One swarm of three real daemons for all end-to-end tests, mended before each.

No daemon offers the class exact but where the fixture ``exact`` is asked for by a test that
starts it, or ``exact_swarm`` for the swarm, since it takes each of them long: see `kernels`.
"""

from pathlib import Path

import pytest
from daemons import mend, shoal
from kernels import turn

from shoal.crypto import identity
from shoal.node.demo.swarm import Node, Swarm


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Whatever a test of this folder starts, for itself or for others, waits for `turn`."""
    if Path(__file__).parent not in item.path.parents:  # it is called for all tests there are
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in turn().environment.items():
            patch.setenv(name, value)
        return (yield)


@pytest.fixture(scope="module")
def exact():
    """Daemons that are started come to offer the class exact, ten seconds of a core later."""
    with turn().free():
        yield


@pytest.fixture(scope="module")
def exact_swarm():
    """The daemons of the swarm do too: all three, and from then on."""
    with turn().given():
        yield


@pytest.fixture(scope="session")
def attacker_key():
    """The key of a peer that every daemon of the swarm has on its allow list."""
    return identity.generate()


@pytest.fixture(scope="session")
def _swarm(attacker_key):
    with Swarm(3, settings=[f"--allow={attacker_key.peer_id}", "--serve=friends"]) as swarm:
        swarm.start_all()
        yield swarm


@pytest.fixture
def swarm(_swarm):
    """Three daemons that know each other, whatever the test before did to them."""
    mend(_swarm)
    return _swarm


@pytest.fixture
def node(swarm):
    """A daemon of the swarm that is not the first."""
    return swarm.nodes[1]


@pytest.fixture
def stranger(tmp_path_factory):
    """A daemon that knows nobody, is on nobody's allow list, and takes no work."""
    home = tmp_path_factory.mktemp("stranger")
    key = identity.generate()
    identity.save(key, home / "identity.key")
    stranger = Node(4, home, key.peer_id)
    flags = ("--detach", "--listen=/ip4/127.0.0.1/tcp/0", "--provide=false")
    started = shoal("up", *flags, "--json", node=stranger)
    assert started.code == 0, started
    stranger.address = started.json["addresses"][0]
    yield stranger
    ended = shoal("down", node=stranger)
    assert ended.code == 0, ended
