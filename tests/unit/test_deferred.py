"""What a daemon defers: it is not there, and when it is wanted it is the thing itself."""

import json
import subprocess
import sys

import pytest

from shoal.node import deferred

IN_A_DAEMON = """
import json, sys
from shoal.node import deferred
deferred.install()
import shoal.node.daemon
"""


def told_by(code):
    """What a fresh process prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", IN_A_DAEMON + code], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_a_daemon_is_imported_without_what_it_defers():
    told = told_by(
        "stood_in = {deferred._part_of(name) for name, module in sys.modules.items()"
        " if isinstance(module, deferred._StandIn)}\n"
        "packages = {name.partition('.')[0] for name in sys.modules}\n"
        "print(json.dumps([sorted(deferred.entered()), sorted(stood_in), sorted(packages)]))"
    )
    entered, stood_in, packages = told
    assert entered == []
    assert stood_in == sorted(deferred.DEFERRED)  # else a line of the table is of no use
    unwanted = {"aioquic", "httpx", "httpx2", "requests", "trio_websocket"}
    assert unwanted & set(packages) == set()


def test_what_is_deferred_does_what_it_did_once_it_is_wanted():
    told = told_by(
        "from libp2p.crypto.rsa import RSAPublicKey, create_new_key_pair\n"
        "from libp2p.crypto.serialization import deserialize_public_key\n"
        "from libp2p.host import basic_host\n"
        "from shoal.crypto.xsalsa20 import xsalsa20\n"
        "mixed = xsalsa20(bytes(32), bytes(24))(b'words')\n"
        "pair = create_new_key_pair(2048)\n"
        "read = deserialize_public_key(pair.public_key.serialize())\n"
        "signed = pair.private_key.sign(b'words')\n"
        "print(json.dumps(["
        " read.verify(b'words', signed), read.verify(b'wards', signed),"
        " basic_host.is_private_ip('10.0.0.1'), basic_host.is_private_ip('8.8.8.8'),"
        " xsalsa20(bytes(32), bytes(24))(mixed).decode(), sorted(deferred.entered())]))"
    )
    assert told == [True, False, True, False, "words", ["Crypto", "libp2p.relay"]]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of which a part is deferred."""
    (tmp_path / "whole_of_it" / "part" / "deep").mkdir(parents=True)
    (tmp_path / "whole_of_it" / "__init__.py").write_text("from whole_of_it.part import Thing")
    (tmp_path / "whole_of_it" / "part" / "__init__.py").write_text(
        "class Thing:\n    kind = 'real'\n    def __init__(self, value): self.value = value\n"
    )
    (tmp_path / "whole_of_it" / "part" / "deep" / "__init__.py").write_text("answer = 42")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.setattr(deferred, "DEFERRED", {"whole_of_it.part": "it is a test"})
    monkeypatch.setattr(deferred, "_entered", set())
    deferred.install()
    yield "whole_of_it"
    for name in [name for name in sys.modules if name.partition(".")[0] == "whole_of_it"]:
        del sys.modules[name]


def test_a_class_is_called_subclassed_and_asked_as_itself(package):
    from whole_of_it import Thing

    assert not isinstance(3, Thing)
    assert deferred.entered() == frozenset()
    assert Thing(4).value == 4
    assert deferred.entered() == {"whole_of_it.part"}
    assert Thing.kind == "real"

    class Narrower(Thing):
        pass

    assert isinstance(Narrower(5), Thing)
    assert not isinstance(3, Thing)


def test_a_class_can_be_subclassed_before_anything_else_entered(package):
    from whole_of_it import Thing

    class Narrower(Thing):
        pass

    assert Narrower(5).value == 5


def test_a_module_below_is_found_when_it_is_wanted(package):
    from whole_of_it.part import deep

    assert deferred.entered() == frozenset()
    assert deep.answer == 42


def test_what_was_imported_before_is_left_as_it_is(tmp_path, monkeypatch, package):
    from whole_of_it import Thing

    Thing(1)
    monkeypatch.setattr(deferred, "_entered", set())
    sys.meta_path.remove(
        next(each for each in sys.meta_path if isinstance(each, deferred._Finder))
    )
    deferred.install()
    assert deferred.entered() == {"whole_of_it.part"}
    from whole_of_it.part import deep

    assert not isinstance(deep, deferred.Later)
