"""A peer dialled by several addresses, in virtual time."""

import pytest
import trio

from shoal.crypto.identity import generate
from shoal.node import dialing
from shoal.node.dial_plan import HANDSHAKE_S, STAGGER_S
from shoal.node.dialing import Dialing
from shoal.node.errors import NetworkError

PEER = generate().peer_id


class World:
    """Where addresses lead, by port: seconds until it answers, or what it fails with."""

    def __init__(self, monkeypatch, **ports):
        monkeypatch.setattr(dialing, "own_interfaces", tuple)
        self.leads = {int(name.removeprefix("p")): what for name, what in ports.items()}
        self.began_s = 0.0
        self.dialled, self.handshakes = [], []
        self.connected = set()
        self.dialing = Dialing(
            self.dial, foreseen=(OSError,), connected=self.connected.__contains__
        )

    async def dial(self, peer, host, port, answered):
        self.dialled.append((trio.current_time() - self.began_s, port))
        what = self.leads[port]
        if isinstance(what, Exception):
            raise what
        if isinstance(what, tuple):  # somebody answers, and proves who it is later
            await trio.sleep(what[0])
            await answered()
            self.handshakes.append((trio.current_time() - self.began_s, port))
            what = what[1]
        await trio.sleep(what)

    async def reach(self, ports, timeout_s=5.0):
        places = [f"/ip4/8.8.8.8/tcp/{port}" for port in ports]
        began = self.began_s = trio.current_time()
        failures = await self.dialing.reach(PEER, places, timeout_s)
        return failures, trio.current_time() - began


BLACK_HOLE = float("inf")


async def test_a_black_hole_does_not_keep_the_next_address_waiting(autojump_clock, monkeypatch):
    world = World(monkeypatch, p1=BLACK_HOLE, p2=0.02)
    failures, took_s = await world.reach([1, 2])
    assert failures is None
    assert took_s == pytest.approx(STAGGER_S + 0.02)
    failures, took_s = await world.reach([1, 2])  # what worked goes first now
    assert (failures, took_s) == (None, pytest.approx(0.02))


async def test_an_address_that_refuses_is_not_waited_for(autojump_clock, monkeypatch):
    world = World(monkeypatch, p1=ConnectionRefusedError(), p2=0.02)
    failures, took_s = await world.reach([1, 2])
    assert (failures, took_s) == (None, pytest.approx(0.02))


async def test_while_a_slow_peer_proves_itself_no_other_address_is_dialled(
    autojump_clock, monkeypatch
):
    world = World(monkeypatch, p1=(0.2, 1.2), p2=(0.2, 0.2))
    failures, took_s = await world.reach([1, 2])
    assert (failures, took_s) == (None, pytest.approx(1.4))
    assert [port for _, port in world.dialled] == [1]


async def test_one_that_answers_and_proves_nothing_is_waited_for_only_so_long(
    autojump_clock, monkeypatch
):
    world = World(monkeypatch, p1=(0.2, BLACK_HOLE), p2=(0.2, 0.2))
    failures, took_s = await world.reach([1, 2])
    assert failures is None
    assert took_s == pytest.approx(0.2 + HANDSHAKE_S + 0.2 + 0.2)


async def test_of_two_that_answer_late_one_speaks_after_the_other(autojump_clock, monkeypatch):
    world = World(monkeypatch, p1=(0.5, 1.0), p2=(0.5, 1.0))
    failures, took_s = await world.reach([1, 2])
    assert (failures, took_s) == (None, pytest.approx(1.5))
    assert world.handshakes == [(pytest.approx(0.5), 1)]


async def test_where_nothing_answers_every_address_and_its_failure_is_told(
    autojump_clock, monkeypatch
):
    world = World(monkeypatch, p1=BLACK_HOLE, p2=ConnectionRefusedError())
    failures, took_s = await world.reach([1, 2, 3 << 20], timeout_s=2.0)
    assert took_s == pytest.approx(2.0, abs=0.05)
    assert {failure.text for failure in failures} == {
        "/ip4/8.8.8.8/tcp/1",
        "/ip4/8.8.8.8/tcp/2",
        f"/ip4/8.8.8.8/tcp/{3 << 20}",
    }


async def test_many_black_holes_all_get_their_turn_in_time(autojump_clock, monkeypatch):
    world = World(monkeypatch, **{f"p{port}": BLACK_HOLE for port in range(1, 13)})
    failures, took_s = await world.reach(range(1, 13))
    assert took_s <= 5.1
    assert [port for _, port in world.dialled] == list(range(1, 13))
    assert len(failures) == 12


async def test_a_peer_that_has_dialled_us_meanwhile_is_dialled_no_further(
    autojump_clock, monkeypatch
):
    world = World(monkeypatch, p1=BLACK_HOLE, p2=BLACK_HOLE, p3=BLACK_HOLE)

    async def arrives():
        await trio.sleep(0.1)
        world.connected.add(PEER)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(arrives)
        failures, took_s = await world.reach([1, 2, 3])
    assert (failures, took_s) == (None, pytest.approx(STAGGER_S))
    assert len(world.dialled) == 1


async def test_a_name_that_resolves_late_joins_and_one_that_does_not_is_told(
    autojump_clock, monkeypatch
):
    world = World(monkeypatch, p1=BLACK_HOLE, p2=0.02)

    async def hosts(name, limit_s):
        await trio.sleep(1.0)
        if name.host == "gone.example":
            raise NetworkError("there is no name gone.example")
        return [dialing.parse_address("/ip4/9.9.9.9/tcp/2")]

    monkeypatch.setattr(world.dialing.names, "hosts", hosts)
    places = ["/ip4/8.8.8.8/tcp/1", "/dns4/gone.example/tcp/9", "/dns4/here.example/tcp/2"]
    began = trio.current_time()
    assert await world.dialing.reach(PEER, places, 5.0) is None
    assert trio.current_time() - began == pytest.approx(1.02)
    (failure,) = await world.dialing.reach(PEER, places[1:2], 5.0)
    assert "no name gone.example" in str(failure.error)


async def test_an_address_that_got_no_turn_is_told_of_too(autojump_clock, monkeypatch):
    world = World(monkeypatch, **{f"p{port}": BLACK_HOLE for port in range(1, 9)})
    failures, _ = await world.reach(range(1, 9), timeout_s=0.2)
    assert len(world.dialled) < 8
    assert {failure.text for failure in failures} == {
        f"/ip4/8.8.8.8/tcp/{port}" for port in range(1, 9)
    }
    assert all(isinstance(failure.error, trio.TooSlowError) for failure in failures)


async def test_no_address_is_no_success(autojump_clock, monkeypatch):
    failures, _ = await World(monkeypatch).reach([])
    assert failures == []
