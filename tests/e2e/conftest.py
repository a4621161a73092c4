"""One swarm of three real daemons for all end-to-end tests, mended before each."""

import pytest
from daemons import mend

from shoal.crypto import identity
from shoal.node.demo.swarm import Swarm


@pytest.fixture(scope="session")
def attacker_key():
    """The key of a peer that every daemon of the swarm has on its allow list."""
    return identity.generate()


@pytest.fixture(scope="session")
def _swarm(attacker_key):
    with Swarm(3, settings=[f"--allow={attacker_key.peer_id}"]) as swarm:
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
