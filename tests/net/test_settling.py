"""Receipts are acknowledged, whatever is lost, and who does not acknowledge gets no more."""

from types import SimpleNamespace

import pytest
import trio
from job_nodes import FRIEND
from test_unit_batches import ask, distinct, lease_for, node, unit_of
from trio.testing import wait_all_tasks_blocked

from shoal.crypto import identity
from shoal.crypto.content import blob_id_of
from shoal.crypto.envelope import Statement
from shoal.crypto.errors import VerificationError
from shoal.node import acknowledging
from shoal.node import settling as settling_module
from shoal.node.acknowledging import UNSETTLED_LIMIT, WAITS_S
from shoal.node.conduct import Conduct
from shoal.node.errors import NetworkError
from shoal.node.ledger_file import check_lines, write_lines
from shoal.node.result_standing import Deed
from shoal.node.settling import FORGOTTEN_S, GRACE_S, Settling
from shoal.node.standings import Standings
from shoal.node.state import open_state
from shoal.protocol.checking_messages import Acknowledge
from shoal.protocol.codec import encode
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.messages import Done
from shoal.protocol.negotiation_messages import Reason, UnitResult
from shoal.protocol.statements import Acknowledgement, open_acknowledgement, open_receipt
from shoal.protocol.versions import OWN

__all__ = ["node"]  # the fixture

PRICE = 2.0


class Clock:
    now = 1.7e9

    def __call__(self):
        return self.now


class Control:
    """The control streams of one node, as far as acknowledgements go."""

    def __init__(self, key):
        self.key = key
        self.peers = {}
        self.lost = 0
        self.answers_lost = 0
        self.theirs = OWN
        self.said = []
        self.versions = SimpleNamespace(of=lambda _peer: self.theirs)

    async def request(self, peer, body, timeout_s):
        await trio.lowlevel.checkpoint()
        if self.lost:
            self.lost -= 1
            raise NetworkError("it is gone", code="link_lost")
        self.said.append(body)
        try:
            answer = await self.peers[peer].settling.acknowledged(self.key.peer_id, body)
        except VerificationError as error:
            raise RemoteProtocolError(error.message, code=error.code) from None
        if self.answers_lost:
            self.answers_lost -= 1
            raise NetworkError("it is gone", code="link_lost")
        return answer


class Party:
    """A node as `Settling` needs it."""

    def __init__(self, clock):
        self.key, self.clock = identity.generate(), clock
        self.control = Control(self.key)

    async def open(self, journal):
        own = self.key.peer_id
        self.settling = Settling(self.clock)
        self.standings = Standings(own, Conduct(own), clock=self.clock)
        self.journal = journal
        await self.settling.bind(
            SimpleNamespace(
                peer_id=own,
                identity=self.key,
                control=self.control,
                journal=journal,
                standings=self.standings,
            )
        )


@pytest.fixture
async def pair(tmp_path, nursery):
    clock = Clock()
    async with (
        open_state(tmp_path / "one.sqlite") as one,
        open_state(tmp_path / "two.sqlite") as two,
    ):
        requester, provider = Party(clock), Party(clock)
        await requester.open(one)
        await provider.open(two)
        requester.control.peers[provider.key.peer_id] = provider
        nursery.start_soon(requester.settling.run)
        yield requester, provider, clock


def side_of(requester, provider, award=b"an award"):
    return SimpleNamespace(
        requester=requester.key.peer_id,
        provider=provider.key.peer_id,
        award=SimpleNamespace(price=PRICE),
        award_id=blob_id_of(award),
        award_bytes=award,
    )


def receipts(first, count=1):
    return [b"receipt %d" % number for number in range(first, first + count)]


def by_unit(envelopes):
    return {f"unit of {envelope!r}"[:64]: envelope for envelope in envelopes}


def exchange(requester, provider, envelopes, *, lost=False):
    """A message answered by the provider; its answer may be lost on the way."""
    side = side_of(requester, provider)
    provider.settling.answered(side, by_unit(envelopes), 0.5)
    if not lost:
        requester.settling.received(side, envelopes, 0.5)


async def until(condition):
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110  # of others' states, which tell nobody
            await trio.sleep(0.01)


async def test_what_was_answered_is_acknowledged_and_both_ledgers_say_so(pair):
    requester, provider, _ = pair
    for number in range(3):
        exchange(requester, provider, receipts(10 * number, 4))
    theirs = provider.settling.ledger
    await until(lambda: theirs.row(requester.key.peer_id, "given").acknowledged_units == 12)
    given = theirs.row(requester.key.peer_id, "given")
    assert (given.units, given.credits, given.seconds) == (12, 24.0, 1.5)
    await until(
        lambda: (
            requester.settling.ledger.row(provider.key.peer_id, "taken").acknowledged_credits
            == 24.0
        )
    )
    assert requester.settling.ledger.since_start["taken"].units == 12
    assert (theirs.since_start["given"].credits, theirs.since_start["taken"].units) == (24.0, 0)
    assert provider.settling.unsettled_messages == 0
    assert len(requester.control.said) == 1  # gathered: three messages, one signature
    await provider.settling.write()
    assert await provider.journal.unacknowledged() == []
    (kept,) = await provider.journal.acknowledgements(requester.key.peer_id)
    assert kept.award == b"an award"
    assert len(open_acknowledgement(kept.envelope).receipts) == 12
    assert [row.acknowledged_units for row in await provider.journal.ledger()] == [12]
    assert requester.standings.of(provider.key.peer_id).reasons[0].deed is Deed.DELIVERED


async def test_no_message_has_more_receipts_than_fit_and_many_go_at_once(pair):
    requester, provider, _ = pair
    started_s = trio.current_time()
    for number in range(5):
        exchange(requester, provider, receipts(100 * number, 64))
    theirs = provider.settling.ledger
    await until(lambda: theirs.row(requester.key.peer_id, "given").acknowledged_units == 320)
    assert trio.current_time() - started_s < WAITS_S
    assert len(requester.control.said) == 2
    own = requester.settling.ledger
    await until(lambda: own.row(provider.key.peer_id, "taken").acknowledged_units == 320)


async def test_who_never_acknowledges_gets_no_more_after_a_grace_and_loses_standing(pair):
    requester, provider, clock = pair
    peer = requester.key.peer_id
    for number in range(UNSETTLED_LIMIT):
        assert provider.settling.unsettled(peer) is None
        exchange(requester, provider, receipts(number), lost=True)
    assert provider.settling.unsettled(peer) is None  # they may be on their way
    clock.now += GRACE_S
    before = provider.standings.of(peer).value
    why, award = provider.settling.unsettled(peer)
    assert f"{UNSETTLED_LIMIT} messages" in why
    assert award == blob_id_of(b"an award")
    assert provider.standings.of(peer).value < before
    after = provider.standings.of(peer).value
    assert provider.settling.unsettled(peer) is not None
    assert provider.standings.of(peer).value == after  # counted once


async def test_a_lost_acknowledgement_is_given_when_the_provider_asks_for_it(pair):
    requester, provider, clock = pair
    requester.control.lost = 1000
    for number in range(UNSETTLED_LIMIT):
        exchange(requester, provider, receipts(number))
    await until(lambda: requester.control.lost < 1000)
    clock.now += GRACE_S
    _, award = provider.settling.unsettled(requester.key.peer_id)
    requester.control.lost = 0
    requester.settling.asked_for(provider.key.peer_id, award)
    await until(lambda: provider.settling.unsettled(requester.key.peer_id) is None)
    ledger = requester.settling.ledger
    await until(
        lambda: ledger.row(provider.key.peer_id, "taken").acknowledged_units == UNSETTLED_LIMIT
    )


@pytest.mark.parametrize("restarted", [False, True], ids=["", "provider_restarted"])
async def test_an_acknowledgement_whose_answer_is_lost_counts_once_at_either_side(
    pair, monkeypatch, restarted
):
    monkeypatch.setattr(acknowledging, "RETRY_S", 0.1)
    requester, provider, clock = pair
    peer = requester.key.peer_id
    requester.control.answers_lost = 1
    exchange(requester, provider, receipts(0, 3))
    await until(lambda: requester.control.said and not requester.control.answers_lost)
    if restarted:
        await provider.settling.write()
        provider.settling = Settling(clock)
        await provider.open(provider.journal)
    own, theirs = requester.settling.ledger, provider.settling.ledger
    with trio.fail_after(60):
        await until(lambda: own.row(provider.key.peer_id, "taken").acknowledged_units == 3)
    assert own.row(provider.key.peer_id, "taken").acknowledged_credits == 3 * PRICE
    assert theirs.row(peer, "given").acknowledged_units == 3
    await provider.settling.write()
    assert len(await provider.journal.acknowledgements(peer)) == 1


async def test_what_is_looked_up_beside_what_is_owed_is_not_counted_again(pair, monkeypatch):
    requester, provider, _ = pair
    exchange(requester, provider, receipts(0, 3))
    row = requester.settling.ledger.row
    await until(lambda: row(provider.key.peer_id, "taken").acknowledged_units == 3)

    async def look_up(_peer, award, awards):
        awards[award] = [*map(blob_id_of, receipts(0, 3)), *awards.get(award, ())]

    monkeypatch.setattr(requester.settling._owes, "_look_up", look_up)
    exchange(requester, provider, receipts(3, 2))
    requester.settling.asked_for(provider.key.peer_id, blob_id_of(b"an award"))
    await until(lambda: row(provider.key.peer_id, "taken").acknowledged_units >= 5)
    assert row(provider.key.peer_id, "taken").acknowledged_units == 5


async def test_a_restarted_requester_acknowledges_what_its_journal_has(node, tmp_path):
    """Its receipts are real ones: of a lease that a friend had with a real provider."""
    clock = Clock()
    requester, provider = Party(clock), Party(clock)
    requester.key, provider.key = FRIEND, node.key
    call = await lease_for(node)
    answers = [
        (await ask(node, call, unit_of(call, f"j/{k}", blob)))[0]
        for k, blob in enumerate(distinct(UNSETTLED_LIMIT))
    ]
    envelopes = [answer.receipt for answer in answers]
    award = open_receipt(envelopes[0]).award
    async with open_state(tmp_path / "two.sqlite") as two:

        async def found(peer, limit):
            return envelopes if peer == node.key.peer_id else []

        await requester.open(
            SimpleNamespace(ledger=_nothing, unacknowledged=_nothing, receipts_from=found)
        )
        requester.control = Control(FRIEND)
        await requester.open(requester.journal)
        await provider.open(two)
        requester.control.peers[provider.key.peer_id] = provider
        side = side_of(requester, provider)
        side.award_id = award
        for envelope in envelopes:
            provider.settling.answered(side, by_unit([envelope]), 0.1)
        clock.now += GRACE_S
        _, wanted = provider.settling.unsettled(FRIEND.peer_id)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(requester.settling.run)
            requester.settling.asked_for(provider.key.peer_id, wanted)
            await until(lambda: provider.settling.unsettled(FRIEND.peer_id) is None)
            nursery.cancel_scope.cancel()
        assert provider.settling.ledger.row(FRIEND.peer_id, "given").acknowledged_units == 8


async def _nothing():
    return []


async def test_what_nobody_can_acknowledge_is_waited_for_no_longer_and_stays_in_the_ledger(
    pair,
):
    requester, provider, clock = pair
    peer = requester.key.peer_id
    for number in range(UNSETTLED_LIMIT):
        exchange(requester, provider, receipts(number), lost=True)
    await provider.settling.write()
    assert len(await provider.journal.unacknowledged()) == UNSETTLED_LIMIT
    provider.settling = Settling(clock)  # the provider is restarted, and remembers
    await provider.open(provider.journal)
    clock.now += GRACE_S
    assert provider.settling.unsettled(peer) is not None
    clock.now += FORGOTTEN_S
    await provider.settling.write()
    assert provider.settling.unsettled(peer) is None
    assert await provider.journal.unacknowledged() == []
    (row,) = await provider.journal.ledger()
    assert (row.units, row.acknowledged_units) == (UNSETTLED_LIMIT, 0)


async def test_who_cancelled_units_need_not_acknowledge_them_unless_it_cancels_everything(
    pair, monkeypatch
):
    requester, provider, clock = pair
    monkeypatch.setattr(settling_module, "EXCUSED", 2 * UNSETTLED_LIMIT)
    peer, side = requester.key.peer_id, side_of(requester, provider)

    def cancelled(number):
        exchange(requester, provider, receipts(number), lost=True)
        provider.settling.excuse(side, set(by_unit(receipts(number))))

    for number in range(2 * UNSETTLED_LIMIT):
        cancelled(number)
    clock.now += GRACE_S
    assert provider.settling.unsettled(peer) is None
    exchange(requester, provider, receipts(100, UNSETTLED_LIMIT))
    given = provider.settling.ledger
    await until(lambda: given.row(peer, "given").acknowledged_units == UNSETTLED_LIMIT)
    for number in range(200, 200 + 2 * UNSETTLED_LIMIT):  # half of them is one too many
        cancelled(number)
    clock.now += GRACE_S
    assert provider.settling.unsettled(peer) is not None
    await provider.settling.write()
    (row,) = await provider.journal.ledger()
    assert (row.units, row.acknowledged_units) == (5 * UNSETTLED_LIMIT, UNSETTLED_LIMIT)
    assert len(await provider.journal.unacknowledged()) == UNSETTLED_LIMIT


async def test_an_older_requester_is_not_held_to_what_it_does_not_know(pair):
    requester, provider, clock = pair
    provider.control.theirs = (1, 3)
    for number in range(3 * UNSETTLED_LIMIT):
        exchange(requester, provider, receipts(number), lost=True)
    clock.now += 10 * GRACE_S
    assert provider.settling.unsettled(requester.key.peer_id) is None
    assert provider.settling.ledger.row(requester.key.peer_id, "given").units == 24


async def test_nobody_settles_for_another_nor_twice_nor_what_was_never_given(pair):
    requester, provider, _ = pair
    mallory = identity.generate()
    exchange(requester, provider, receipts(0), lost=True)

    def say(key, ids, requester_id, award=b"an award"):
        said = Acknowledgement(
            protocol=OWN,
            award=blob_id_of(award),
            receipts=tuple(ids),
            requester=requester_id,
            provider=provider.key.peer_id,
            issued_at_ms=1,
        )
        return Acknowledge(key.sign(Statement.ACKNOWLEDGEMENT, encode(said)))

    ids = [blob_id_of(b"receipt 0")]
    peer = requester.key.peer_id
    refused = [
        (peer, say(mallory, ids, peer)),  # not its key
        (mallory.peer_id, say(requester.key, ids, peer)),  # not its connection
        (mallory.peer_id, say(mallory, ids, mallory.peer_id)),  # not its receipts
        (peer, say(requester.key, ids, peer, b"another award")),
        (peer, say(requester.key, [blob_id_of(b"never given")], peer)),
    ]
    for sender, message in refused:
        with pytest.raises(VerificationError):
            await provider.settling.acknowledged(sender, message)
    assert provider.settling.ledger.row(peer, "given").acknowledged_units == 0
    good = say(requester.key, ids, peer)
    for _ in range(2):  # answered as before, and counted once
        assert await provider.settling.acknowledged(peer, good) == Done()
    with pytest.raises(VerificationError):  # nor is it anybody else's
        await provider.settling.acknowledged(mallory.peer_id, good)

    async def repeat():
        for _ in range(100):
            await provider.settling.acknowledged(peer, good)

    with pytest.raises(VerificationError):  # to look for it takes a while: not without end
        await repeat()
    assert provider.settling.ledger.row(peer, "given").acknowledged_units == 1


async def test_a_full_disk_loses_no_figure(pair, monkeypatch):
    from shoal.node.errors import StoreError

    requester, provider, _ = pair
    exchange(requester, provider, receipts(0, 3), lost=True)
    real = provider.journal.add_acknowledged

    async def full(_settled):
        raise StoreError("the disk is full", code="disk_full")

    monkeypatch.setattr(provider.journal, "add_acknowledged", full)
    await provider.settling.write()
    exchange(requester, provider, receipts(5, 2), lost=True)
    monkeypatch.setattr(provider.journal, "add_acknowledged", real)
    await provider.settling.write()
    (row,) = await provider.journal.ledger()
    assert (row.units, row.credits) == (5, 10.0)
    assert len(await provider.journal.unacknowledged()) == 2


async def test_what_waits_is_bounded_at_either_side(pair, monkeypatch):
    requester, provider, _ = pair
    monkeypatch.setattr(settling_module, "MESSAGES_LIMIT", 10)
    for number in range(50):
        exchange(requester, provider, receipts(number), lost=True)
    await provider.settling.write()
    assert len(await provider.journal.unacknowledged()) == 10
    assert provider.settling.unsettled_messages == 10
    requester.control.lost = 1 << 30
    monkeypatch.setattr(acknowledging, "OWED_LIMIT", 20)
    for number in range(50):
        side = side_of(requester, provider, b"award %d" % number)
        requester.settling.received(side, receipts(number), 0.1)
    owed = requester.settling._owes._owed[provider.key.peer_id]
    assert owed.count <= 20


async def test_a_provider_refuses_units_of_who_never_acknowledges_and_takes_them_again(node):
    """The provider's own half: what it answers counts, and what it refuses runs nothing."""
    clock = Clock()
    settling = node.house.settling
    settling._clock = clock
    await settling.bind(node.house)

    def withheld(peer):
        found = settling.unsettled(peer)
        return found and (Reason.UNSETTLED, *found)

    node.withheld = withheld
    call = await lease_for(node)
    for k, blob in enumerate(distinct(UNSETTLED_LIMIT)):
        (answer,) = await ask(node, call, unit_of(call, f"j/{k}", blob))
        assert isinstance(answer, UnitResult)
    await wait_all_tasks_blocked()  # the last one is noted, too
    clock.now += GRACE_S
    served = node.provider.units_served
    (answer,) = await ask(node, call, unit_of(call, "j/more"))
    assert answer.reason is Reason.UNSETTLED
    assert node.provider.units_served == served
    award = answer.missing
    waiting = list(settling._of_receipt)
    said = Acknowledgement(
        protocol=OWN,
        award=award,
        receipts=tuple(waiting),
        requester=FRIEND.peer_id,
        provider=node.key.peer_id,
        issued_at_ms=1,
    )
    message = Acknowledge(FRIEND.sign(Statement.ACKNOWLEDGEMENT, encode(said)))
    await settling.acknowledged(FRIEND.peer_id, message)
    (answer,) = await ask(node, call, unit_of(call, "j/again"))
    assert isinstance(answer, UnitResult)
    row = settling.ledger.row(FRIEND.peer_id, "given")
    assert row.acknowledged_units == UNSETTLED_LIMIT
    assert row.seconds > 0.0


async def test_an_exported_ledger_is_checked_by_anybody_and_a_changed_one_is_not_believed(
    pair,
):
    requester, provider, clock = pair
    exchange(requester, provider, receipts(0, 5))
    ledger = provider.settling.ledger
    await until(lambda: ledger.row(requester.key.peer_id, "given").acknowledged_units == 5)
    await provider.settling.write()
    kept = await provider.journal.acknowledgements()
    bare = [type(one)(one.id, one.requester, b"", one.envelope, one.at) for one in kept]
    lines = write_lines(provider.key.peer_id, clock.now, bare, []).splitlines()
    found = check_lines(lines)
    (pair_,) = found.pairs
    assert (pair_.requester, pair_.provider) == (requester.key.peer_id, provider.key.peer_id)
    assert (pair_.acknowledged, found.bad) == (5, 0)
    for at in range(20, len(lines[1]) - 3, 37):
        changed = bytearray(lines[1])
        changed[at] ^= 1
        found = check_lines([lines[0], bytes(changed), b"{}", b"\xff"])
        assert (found.pairs, found.bad) == ((), 3)
    with pytest.raises(VerificationError):
        check_lines([b"[]"])
