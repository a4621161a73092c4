"""Results are checked by others before they are delivered, and liars found out."""

import pytest
import trio
from checking_nodes import (
    LIMIT_S,
    CallsItNaN,
    Colludes,
    KeepsOutputs,
    Lies,
    Peer,
    RefusesToVerify,
    Roughly,
    SaysAnotherThingEachTime,
    ThinksTwice,
    TurnsFalse,
    Waits,
    given,
    nearly_right,
    open_peers,
    open_requester,
    right,
)

from shoal.crypto.content import blob_id_of
from shoal.node import arrivals, checks, look_back, pipeline, repeating, submission
from shoal.node.again import spec_again
from shoal.node.assurance import Ground
from shoal.node.checking import RETRY_S
from shoal.node.checks import Stage
from shoal.node.errors import JobError
from shoal.node.holding import RELEASE_S
from shoal.node.look_back import HOLD_S
from shoal.node.records import Ban, UnitState, new_job_id
from shoal.node.result_standing import Deed
from shoal.node.running_jobs import prepare
from shoal.node.units_assured import units_assured
from shoal.protocol.statements import open_award, open_receipt
from shoal.protocol.verification.draw import list_id, salt_hash


@pytest.fixture
async def node(tmp_path):
    async with open_requester(tmp_path) as node:
        yield node


async def until(condition):
    with trio.fail_after(60):
        while not await condition():  # noqa: ASYNC110  # of others' states, which tell nobody
            await trio.sleep(0.02)


async def assert_right(node, units, numbers):
    assert [unit.state for unit in units] == [UnitState.DONE] * len(numbers)
    for unit, number in zip(units, numbers, strict=True):
        assert await node.output(unit) == right(given(number))


async def checks_of(node, units):
    found = await node.journal.checks(units[0].job)
    return {(check.unit, check.verifier, check.level, check.verdict) for check in found}


async def test_a_result_that_is_drawn_is_run_by_another_one_before_it_is_delivered(node):
    async with open_peers(node, Peer, Peer) as (one, two):
        units = await node.run(range(20), verify="sample:1")
        await assert_right(node, units, range(20))
        found = await checks_of(node, units)
    other = {one.peer: two.peer, two.peer: one.peer}
    assert found == {(u.index, other[u.provider], "re-run", "agrees") for u in units}
    assert node.worker.ran == 0
    good = [peer for peer, deed in node.standings.notes if deed is Deed.CHECKED_GOOD]
    assert sorted(good) == sorted(unit.provider for unit in units)


async def test_who_checks_is_not_told_that_it_does(node):
    async with open_peers(node, Peer, Peer) as (one, two):
        units = await node.run(range(6), verify="sample:1")
        names = [*one.asked, *two.asked]
        assert len(names) == len(set(names)) == 12
        checks = [name for name in names if not name.startswith(units[0].job)]
        assert len(checks) == 6
        for name in checks:
            job, _, index = name.partition("/")
            assert len(job) == len(units[0].job)
            assert int(index) < 6
        for peer in (one, two):
            awards = [open_award(award) for award in peer.awards.values()]
            assert all(award.salt_hash and award.candidates for award in awards)


async def test_a_false_result_is_not_delivered_and_its_provider_is_accused_and_left_alone(node):
    async with open_peers(node, Lies, Peer) as (liar, _):
        units = await node.run(range(20), verify="sample:1")
        await assert_right(node, units, range(20))
        assert liar.peer not in {unit.provider for unit in units}
        assert node.accused
        assert {who for who, _, _ in node.accused} == {liar.peer}
        answers = await node.journal.answers(units[0].job)
        assert (liar.peer, "found_false") in {(a.peer, a.verdict) for a in answers}
        before = len(liar.asked)
        await node.run(range(30, 40), verify="sample:1")
        assert len(liar.asked) == before
    for unit in units:
        envelope = await node.journal.receipt(unit.receipt)
        assert open_receipt(envelope).outputs == tuple(unit.outputs.items())


async def test_where_nobody_may_verify_the_node_runs_the_unit_itself(node):
    async with open_peers(node, Peer, Lies, verify=False) as (_, liar):
        units = await node.run(range(12), verify="sample:1")
        await assert_right(node, units, range(12))
        found = await checks_of(node, units)
    assert liar.peer not in {unit.provider for unit in units}
    for unit in units:
        ((who, verdict),) = {(each[1], each[3]) for each in found if each[0] == unit.index}
        by_itself = (liar.peer, "differs") if unit.provider == node.peer else None
        assert (who, verdict) == (by_itself or (node.peer, "agrees"))
    assert {who for who, _, _ in node.accused} == {liar.peer}


async def test_a_false_verifier_is_found_out_too(node):
    async with open_peers(node, Peer, Lies) as (honest, liar):
        honest.price, liar.price = 0.1, 50.0
        units = await node.run(range(10), verify="sample:1")
        await assert_right(node, units, range(10))
        assert {who for who, _, _ in node.accused} == {liar.peer}
        assert {unit.provider for unit in units} == {honest.peer}


async def test_a_verifier_that_takes_no_award_is_passed_over(node):
    async with open_peers(node, Peer, RefusesToVerify):
        units = await node.run(range(5), verify="sample:1")
        await assert_right(node, units, range(5))
        found = await checks_of(node, units)
    assert {(level, verdict) for _, _, level, verdict in found} == {
        ("re-run", "no_answer"),
        ("own", "agrees"),
    }


async def test_a_false_error_is_found_out(node):
    async with open_peers(node, CallsItNaN, Peer) as (liar, _):
        units = await node.run(range(8), verify="sample:1")
        await assert_right(node, units, range(8))
        assert {who for who, _, _ in node.accused} == {liar.peer}


async def test_an_error_that_others_confirm_fails_the_unit_at_once(node):
    async with open_peers(node, Peer, Peer) as (one, two):
        (unit,) = await node.run([-1], verify="sample:1")
        found = await checks_of(node, [unit])
        assert len([*one.asked, *two.asked]) == 2
    assert unit.state is UnitState.FAILED
    assert unit.failure.code == "nan"
    assert {verdict for *_, verdict in found} == {"agrees"}
    assert node.accused == []


async def test_an_undrawn_error_is_looked_into_before_the_unit_fails(node):
    async with open_peers(node, CallsItNaN) as (liar,):
        node.standings.p[liar.peer] = 0.0
        (unit,) = await node.run([3], verify="auto")
        await assert_right(node, [unit], [3])
    assert {who for who, _, _ in node.accused} == {liar.peer}


@pytest.mark.parametrize("verify", ["auto", "sample:0.001"])
async def test_an_undrawn_error_that_cannot_be_looked_into_fails_the_unit(node, verify):
    node.runs_itself = False
    async with open_peers(node, CallsItNaN) as (liar,):
        node.standings.p[liar.peer] = 0.0
        (unit,) = await node.run([3], verify=verify)
        assert unit.state is UnitState.FAILED


@pytest.mark.parametrize("kinds", [(Peer, Peer, Peer), (Lies, Peer, Peer, Peer)])
async def test_a_quorum_takes_as_many_results_as_it_says(node, kinds):
    async with open_peers(node, *kinds):
        units = await node.run(range(9), verify="quorum:3")
        await assert_right(node, units, range(9))
        found = await checks_of(node, units)
    assert {level for *_, level, _ in found} <= {"quorum", "own"}
    for unit in units:
        agreeing = [each for each in found if each[0] == unit.index and each[3] == "agrees"]
        assert len(agreeing) >= 2 or any(each[2] == "own" for each in agreeing)


async def test_a_quorum_of_two_is_told_as_a_quorum(node):
    async with open_peers(node, Peer, Peer):
        units = await node.run(range(4), verify="quorum:2")
    assert {each[2:] for each in await checks_of(node, units)} == {("quorum", "agrees")}
    job = await node.journal.job(units[0].job)
    counted = await units_assured(node.journal, job, node.peer)
    assert counted.units == {Ground.QUORUM: 4}


async def test_a_quorum_of_too_few_takes_this_node_in(node):
    async with open_peers(node, Peer):
        units = await node.run(range(4), verify="quorum:2")
        found = await checks_of(node, units)
    assert {each[2:] for each in found} == {("own", "agrees")}


@pytest.mark.parametrize("numeric_class", ["exact", "fp32"])
async def test_a_run_of_this_node_in_place_of_a_quorum_is_told(node, numeric_class):
    async with open_peers(node, Peer):
        units = await node.run(range(4), numeric_class, verify="quorum:7")
    job = await node.journal.job(units[0].job)
    counted = await units_assured(node.journal, job, node.peer)
    assert job.verify == "quorum:7"
    assert (counted.quorum, counted.below_quorum) == (7, 4)
    assert "4 units were run by fewer than the 7 nodes" in counted.own_runs


async def test_two_receipts_for_one_award_that_differ_go_to_the_disputes_together(node):
    async with open_peers(node, SaysAnotherThingEachTime) as (liar,):
        # Beside another it might be found false as a verifier first, and not be asked again.
        job = await node.submit(range(6), verify="sample:1")

        async def it_is_accused_by_two_receipts():  # one may come too late to be compared
            return (liar.peer, True) in {(who, other) for who, other, _ in node.accused}

        async def all_are_done():
            return (await node.journal.job(job.id)).units_done == 6

        await until(it_is_accused_by_two_receipts)
        async with open_peers(node, Peer):
            await until(all_are_done)
        await assert_right(node, await node.journal.units(job.id, 0, 6), range(6))


async def test_who_gives_what_is_right_and_signs_another_thing_when_asked_again_is_accused(
    node,
):
    async with open_peers(node, ThinksTwice, verify=False) as (liar,):
        async with open_peers(node, Peer):
            units = await node.run(range(20), verify="sample:1")
        await assert_right(node, units, range(20))

        async def it_is_accused():
            return bool(node.accused)

        await until(it_is_accused)
        assert {(who, other) for who, other, _ in node.accused} == {(liar.peer, True)}


async def test_who_says_the_same_when_asked_again_is_not_accused(node):
    async with open_peers(node, Peer, Peer, verify=False) as peers:
        units = await node.run(range(20), verify="sample:1")
        await assert_right(node, units, range(20))
        assert sum(peer.repeated for peer in peers) > 0
    assert node.accused == []


async def test_who_keeps_the_outputs_that_it_signed_for_loses_standing(node):
    async with open_peers(node, KeepsOutputs, Peer) as (withholder, _):
        units = await node.run(range(10), verify="sample:1")
        await assert_right(node, units, range(10))
        assert (withholder.peer, Deed.NO_ANSWER) in node.standings.notes
        assert node.accused == []


async def test_a_receipt_by_which_nobody_could_be_convicted_counts_for_nothing(node):
    async with open_peers(node, LiesByAnotherSpec, Peer) as (_, honest):
        units = await node.run(range(4), verify="receipt")
        await assert_right(node, units, range(4))
        assert {unit.provider for unit in units} == {honest.peer}


class LiesByAnotherSpec(Lies):
    price, exact_spec = 0.1, "2"


async def test_a_verifier_that_keeps_outputs_that_differ_loses_standing(node):
    async with open_peers(node, Peer, SaysOtherAndKeepsIt) as (_, withholder):
        withholder.price = 50.0
        units = await node.run([1], verify="sample:1")
        await assert_right(node, units, [1])
        assert node.standings.notes.count((withholder.peer, Deed.NO_ANSWER)) == 1
        assert node.accused == []


class SaysOtherAndKeepsIt(KeepsOutputs):
    def gives(self, blob):
        return nearly_right(blob)


async def test_what_a_peer_gave_before_it_was_found_false_runs_again(node):
    async with open_peers(node, TurnsFalse, Peer) as (turncoat, honest):
        honest.price = 50.0
        node.standings.p = {turncoat.peer: 0.0, honest.peer: 0.0}
        job = await node.submit(range(12), verify="auto", open=True)

        total = 12

        async def all_are_delivered():
            return (await node.journal.job(job.id)).units_done == total

        await until(all_are_delivered)
        node.standings.p[turncoat.peer] = 1.0
        while not node.accused:  # who gets the next units is the scheduler's to say
            await add(node, job, range(total, total + 4))
            total += 4
            await until(all_are_delivered)

        async def all_are_checked_or_of_another():
            found = await node.journal.checks(job.id)
            good = {check.unit for check in found if check.verdict == "agrees"}
            return all(
                unit.state is UnitState.DONE
                and (unit.provider != turncoat.peer or unit.index in good)
                for unit in await node.journal.units(job.id, 0, total)
            )

        await until(all_are_checked_or_of_another)
        units = await node.journal.units(job.id, 0, total)
        await assert_right(node, units, range(total))


async def test_what_a_peer_gave_before_others_proved_it_false_runs_again(node):
    async with open_peers(node, Lies, Peer) as (liar, honest):
        honest.price = 50.0
        node.standings.p = {liar.peer: 0.0, honest.peer: 0.0}
        job = await node.submit(range(12), verify="auto", open=True)

        async def the_liar_ran_some_and_all_are_delivered():
            units = await node.journal.units(job.id, 0, 12)
            done = [unit.provider for unit in units if unit.state is UnitState.DONE]
            return len(done) == 12 and liar.peer in done

        await until(the_liar_ran_some_and_all_are_delivered)
        node.jobs.banned(liar.peer)

        async def nothing_of_the_liars_is_left():
            units = await node.journal.units(job.id, 0, 12)
            done = all(unit.state is UnitState.DONE for unit in units)
            return done and liar.peer not in {unit.provider for unit in units}

        await until(nothing_of_the_liars_is_left)
        units = await node.journal.units(job.id, 0, 12)
        await assert_right(node, units, range(12))
        await add(node, job, range(12, 16))
        liar.price = 0.01

        async def all_are_done():
            return (await node.journal.job(job.id)).units_done == 16

        await until(all_are_done)
        units = await node.journal.units(job.id, 0, 16)
        assert liar.peer not in {unit.provider for unit in units}


async def doubted_after_a_restart(node, job):
    """Which units are doubted where a daemon takes a job up that ran when it ended."""
    spec = await node.journal.spec(job.id)
    running = await prepare(node.house, await node.journal.job(job.id), spec, resumed=True)
    return running.doubted


async def test_what_a_false_peer_gave_is_doubted_after_a_restart_too(node):
    node.runs_itself = False
    async with open_peers(node, Lies) as (liar,):
        node.standings.p = {liar.peer: 0.0}
        job = await node.submit(range(3), verify="auto", open=True)

        async def all_are_delivered():
            return (await node.journal.job(job.id)).units_done == 3

        await until(all_are_delivered)
        await be_doubted_after_a_restart(node, job, liar, {0, 1, 2})


async def test_what_a_false_peer_gave_that_waits_for_a_check_is_doubted_after_a_restart_too(
    node,
):
    node.runs_itself = False
    async with open_peers(node, Lies, Waits) as (liar, verifier):
        verifier.price = 50.0
        job = await node.submit([1], verify="sample:1", open=True)

        async def it_is_being_checked():
            return any(each.asked for each in node.jobs.pending(job.id))

        await until(it_is_being_checked)
        await be_doubted_after_a_restart(node, job, liar, {0})


async def be_doubted_after_a_restart(node, job, liar, indices):
    """Units that a peer had are doubted once it is found false, and others are not."""

    async def doubted():
        spec, now = await node.journal.spec(job.id), await node.journal.job(job.id)
        return (await prepare(node.house, now, spec, resumed=True)).doubted

    async def they_are_doubted():
        return await doubted() == indices

    assert await doubted() == set()
    node.offering.clear()
    node.jobs.banned(liar.peer)
    await until(they_are_doubted)
    await add(node, job, [7])
    assert await doubted() == indices
    await node.jobs.cancel(job.id)


async def test_a_peer_that_the_operator_lets_back_in_gets_units_again(node):
    async with open_peers(node, Peer) as (peer,):
        node.standings.p = {peer.peer: 0.0}
        node.jobs.banned(peer.peer)
        job = await node.submit(range(4), verify="auto")
        await trio.sleep(0.5)  # it would have run some by now
        units = await node.journal.units(job.id, 0, 4)
        assert peer.peer not in {unit.provider for unit in units}
        node.jobs.forgive(peer.peer)
        again = await node.submit(range(4, 8), verify="auto")

        async def it_ran_one():
            return peer.peer in {
                unit.provider for unit in await node.journal.units(again.id, 0, 4)
            }

        await until(it_ran_one)


async def add(node, job, numbers):
    for number in numbers:
        await node.store.put_bytes(given(number))
    given_units = [{"x": blob_id_of(given(number))} for number in numbers]
    await submission.add_units(node.house, job.id, given_units)
    node.jobs.units_added(job.id)


@pytest.mark.parametrize("numeric_class", ["fp32", "kernel"])
@pytest.mark.parametrize("verify", ["sample:1", "quorum:2"])
async def test_what_is_not_exact_is_compared_within_a_tolerance(node, numeric_class, verify):
    async with open_peers(node, Peer, Roughly) as (_, rough):
        units = await node.run(range(1, 9), numeric_class=numeric_class, verify=verify)
        for number, unit in enumerate(units, 1):
            assert unit.state is UnitState.DONE
            if unit.provider == rough.peer:
                assert await node.output(unit) == nearly_right(given(number))
        assert {each[3] for each in await checks_of(node, units)} == {"agrees"}


@pytest.mark.parametrize("numeric_class", ["fp32", "kernel"])
async def test_where_it_is_not_exact_a_vote_lowers_standing_and_accuses_nobody(
    node, numeric_class
):
    async with open_peers(node, Lies, Peer, Peer) as (liar, *_):
        units = await node.run(range(8), numeric_class=numeric_class, verify="sample:1")
        await assert_right(node, units, range(8))
    assert node.accused == []
    downs = {peer for peer, deed in node.standings.notes if deed is Deed.VOTED_DOWN}
    assert downs == {liar.peer}


async def test_under_receipt_nothing_is_drawn_and_no_award_names_candidates(node):
    async with open_peers(node, Peer, Peer) as (one, two):
        units = await node.run(range(8), verify="receipt")
        assert len({*one.asked, *two.asked}) == 8  # each may be late, and be asked of both
        for peer in (one, two):
            for award in peer.awards.values():
                assert open_award(award).salt_hash is None
        assert await checks_of(node, units) == set()


async def test_under_auto_a_result_is_checked_as_often_as_its_provider_calls_for(node):
    async with open_peers(node, Peer, Peer) as (one, two):
        node.standings.p = {one.peer: 0.0, two.peer: 0.0}
        units = await node.run(range(8))
        assert await checks_of(node, units) == set()


async def test_what_verifiers_were_drawn_by_is_told_when_the_lease_is_over(node):
    async with open_peers(node, Peer, Peer) as (one, two):
        await node.run(range(4), verify="sample:1")

        async def all_is_told():
            return all(len(peer.revealed) == len(peer.awards) for peer in (one, two))

        await until(all_is_told)
        awards = [open_award(a) for peer in (one, two) for a in peer.awards.values()]
        told = [each for peer in (one, two) for each in peer.revealed]
        assert {award.salt_hash for award in awards} == {salt_hash(r.salt) for r in told}
        assert {award.candidates for award in awards} == {list_id(r.candidates) for r in told}


async def test_where_nobody_at_all_can_check_auto_delivers_at_once_as_unchecked(node):
    async with open_peers(node, Peer) as (peer,):
        node.runs_itself = False
        node.standings.p = {peer.peer: 1.0}
        with trio.fail_after(RETRY_S):
            units = await node.run(range(6), verify="auto")
        await assert_right(node, units, range(6))
        assert not await checks_of(node, units)


async def test_a_job_that_is_cancelled_waits_for_no_check(node):
    async with open_peers(node, Peer, Hangs) as (honest, _):
        job = await node.submit(range(3), verify="sample:1")

        async def it_was_asked():
            return bool(honest.asked)

        async def nothing_runs():
            return not node.jobs.running

        await until(it_was_asked)
        job = await node.jobs.cancel(job.id)
        await until(nothing_runs)
        assert job.state == "cancelled"


async def test_a_liar_is_accused_though_its_job_is_cancelled_while_it_is_asked_again(
    node, monkeypatch
):
    monkeypatch.setattr(repeating, "SHARE", 0.0)
    async with open_peers(node, NeverRepeats, Peer) as (liar, honest):
        honest.price = 50.0
        job = await node.submit([1], verify="sample:1")
        with trio.fail_after(LIMIT_S):
            await liar.asked_again.wait()
        await node.jobs.cancel(job.id)

        async def it_is_accused():
            return bool(node.accused)

        await until(it_is_accused)
        assert {who for who, _, _ in node.accused} == {liar.peer}


class NeverRepeats(Lies):
    """It lies, and gives no answer where it is asked again."""

    def __init__(self, key, network):
        super().__init__(key, network)
        self.asked_again = trio.Event()

    async def once(self, request):
        if (request.call, request.unit) in self.answers:
            self.asked_again.set()
            await trio.sleep_forever()
        return await super().once(request)


async def test_a_unit_whose_result_waits_to_be_checked_is_still_with_its_provider(node):
    async with open_peers(node, Peer, Hangs) as (honest, verifier):
        job = await node.submit(range(3), verify="sample:1")

        async def all_wait():
            units = await node.journal.units(job.id, 0, 3)
            shown = [node.jobs.as_leased(unit) for unit in units]
            return verifier.asked and {(unit.state, unit.provider) for unit in shown} == {
                (UnitState.LEASED, honest.peer)
            }

        await until(all_wait)
        assert len(set(honest.asked)) == 3
        (waits,) = node.jobs.pending(job.id)
        assert (waits.asked, waits.units) == ((verifier.peer,), (0, 1, 2))
        assert waits.stage is Stage.ASKED
        assert 0 < waits.waited_s < LIMIT_S
        await node.jobs.cancel(job.id)
        assert node.jobs.pending(job.id) == []


class Hangs(Peer):
    """It takes units and never answers."""

    price = 50.0

    async def ran(self, request):
        self.asked.append(request.unit)
        await trio.sleep_forever()


async def test_a_policy_that_says_nothing_is_refused(node):
    with pytest.raises(JobError, match="quorum") as caught:
        await node.submit([1], verify="quorum:1")
    assert caught.value.code == "bad_verify"
    assert "sample:0.1" in caught.value.hint


async def test_what_a_newcomer_gives_is_held_while_a_check_of_it_is_out(node):
    async with open_peers(node, Peer, Waits) as (newcomer, verifier):
        node.standings.able.discard(newcomer.peer)
        verifier.price = 50.0
        probabilities = iter([1.0])
        node.standings.probability = lambda _peer: next(probabilities, 0.0)
        job = await node.submit(range(12), verify="auto", open=True)

        async def several_came_back():
            queue = node.jobs._state.jobs.get(job.id)
            return queue is not None and queue.in_check >= 3

        await until(several_came_back)
        delivered = await node.journal.units(job.id, 0, 12)
        assert {unit.state for unit in delivered} == {UnitState.QUEUED}
        verifier.go.set()

        async def all_are_delivered():
            return (await node.journal.job(job.id)).units_done == 12

        await until(all_are_delivered)
        await assert_right(node, await node.journal.units(job.id, 0, 12), range(12))


async def test_of_more_than_may_be_held_the_oldest_alone_are_delivered(node, monkeypatch):
    monkeypatch.setattr(look_back, "HELD_UNITS", 4)
    async with open_peers(node, Peer, Waits) as (newcomer, verifier):
        node.standings.able.discard(newcomer.peer)
        verifier.price = 50.0
        probabilities = iter([1.0])
        node.standings.probability = lambda _peer: next(probabilities, 0.0)
        job = await node.submit(range(12), verify="auto", open=True)

        async def all_came_back_and_some_are_delivered():
            queue = node.jobs._state.jobs.get(job.id)
            done = (await node.journal.job(job.id)).units_done
            return queue is not None and done and done + queue.in_check == 12

        await until(all_came_back_and_some_are_delivered)
        await trio.sleep(2 * RELEASE_S)
        assert not verifier.go.is_set()
        assert (await node.journal.job(job.id)).units_done == 12 - 4 - 1  # and one is checked


async def test_nothing_of_a_peer_in_good_standing_is_held(node):
    async with open_peers(node, Peer, Waits) as (known, verifier):
        verifier.price = 50.0
        probabilities = iter([1.0])
        node.standings.probability = lambda _peer: next(probabilities, 0.0)
        job = await node.submit(range(12), verify="auto", open=True)

        async def some_are_delivered():
            return (await node.journal.job(job.id)).units_done >= 3

        await until(some_are_delivered)
        assert not verifier.go.is_set()
        units = await node.journal.units(job.id, 0, 12)
        assert known.peer in {unit.provider for unit in units}


async def test_one_unit_of_a_newcomer_is_delivered_as_soon_as_it_is_checked(node):
    async with open_peers(node, Peer, Peer) as (newcomer, verifier):
        node.standings.able.discard(newcomer.peer)
        verifier.price = 50.0
        with trio.fail_after(HOLD_S / 2):
            units = await node.run([1], verify="auto")
        await assert_right(node, units, [1])


async def test_who_vouched_for_a_false_peer_is_looked_at_again_and_found_out(node):
    async with open_peers(node, Colludes, Colludes) as (one, two):
        job = await node.submit(range(6), verify="sample:1", open=True)

        async def all_are_delivered():
            return (await node.journal.job(job.id)).units_done == 6

        await until(all_are_delivered)
        assert not node.accused
        node.jobs.banned(one.peer)

        async def the_other_is_accused_and_nothing_of_them_is_left():
            units = await node.journal.units(job.id, 0, 6)
            left = {unit.provider for unit in units if unit.state is UnitState.DONE}
            return two.peer in {who for who, _, _ in node.accused} and not left & {
                one.peer,
                two.peer,
            }

        await until(the_other_is_accused_and_nothing_of_them_is_left)


class Taken:
    """The outputs of checks that are kept here, by the unit's name."""

    def __init__(self, job_id, monkeypatch):
        self.ever, self.now = set(), set()
        take, let_go = pipeline.take_outputs, arrivals.let_go

        async def taking(house, need, side, unit, result, receipt):
            end = await take(house, need, side, unit, result, receipt)
            if unit.job != job_id:
                self.ever.add((end.unit.job, end.unit.index, end.unit.provider))
                self.now.add((end.unit.job, end.unit.index, end.unit.provider))
            return end

        def letting_go(house, ends):
            ends = list(ends)
            self.now -= {(end.unit.job, end.unit.index, end.unit.provider) for end in ends}
            let_go(house, ends)

        monkeypatch.setattr(pipeline, "take_outputs", taking)
        monkeypatch.setattr(arrivals, "let_go", letting_go)

    async def all_are_gone(self):
        return self.ever and not self.now


async def test_what_was_run_to_look_back_is_not_kept(node, monkeypatch):
    async with open_peers(node, Colludes, Colludes) as (one, _):
        job = await node.submit(range(6), verify="sample:1", open=True)

        async def all_are_delivered():
            return (await node.journal.job(job.id)).units_done == 6

        await until(all_are_delivered)
        taken = Taken(job.id, monkeypatch)
        node.jobs.banned(one.peer)
        await until(taken.all_are_gone)


async def test_what_is_said_of_a_result_that_was_withdrawn_is_not_kept(node, monkeypatch):
    async with open_peers(node, Peer, WaitsAndLies) as (honest, verifier):
        verifier.price = 50.0
        node.runs_itself = False
        job = await node.submit([1], verify="sample:1")

        async def it_is_being_checked():
            return any(each.asked for each in node.jobs.pending(job.id))

        async def nothing_is():
            return not node.jobs.pending(job.id)

        await until(it_is_being_checked)
        taken = Taken(job.id, monkeypatch)
        node.jobs.banned(honest.peer)
        await until(nothing_is)
        verifier.go.set()

        async def the_verifier_gave_its_opinion():
            return bool(verifier.answers)

        await until(the_verifier_gave_its_opinion)
        await trio.sleep(0.3)
        assert not taken.now
        await node.jobs.cancel(job.id)


class WaitsAndLies(Waits):
    def gives(self, blob):
        return nearly_right(blob)


async def test_a_ring_of_all_who_are_drawn_is_found_out_by_this_nodes_own_runs(
    node, monkeypatch
):
    monkeypatch.setattr(checks, "AUDITED", 1.0)
    async with open_peers(node, Colludes, Colludes) as (one, two):
        job = await node.submit(range(6), verify="auto", open=True)

        async def both_are_accused():
            return {who for who, _, _ in node.accused} == {one.peer, two.peer}

        async def none_of_theirs_is_left():
            done = await node.journal.units(job.id, 0, 6)
            return [
                unit.index
                for unit in done
                if unit.state is UnitState.DONE
                and await node.output(unit) != right(given(unit.index))
            ] == []

        await until(both_are_accused)
        await until(none_of_theirs_is_left)  # who was delivered before is looked back at


async def test_what_a_liar_gave_before_it_was_convicted_is_named_and_runs_again(node):
    async with open_peers(node, Lies, verify=False) as (liar,):
        node.standings.p = {liar.peer: 0.0}
        before = await node.run(range(4), verify="receipt", id=new_job_id())
        assert await node.output(before[0]) != right(given(0))
    job_id = before[0].job
    with pytest.raises(JobError) as caught:
        await spec_again(node.journal, node.peer, job_id, (), "sample:1")
    assert caught.value.code == "none_doubted"
    await node.journal.add_ban(Ban(liar.peer, blob_id_of(b"proof"), 1.0, 2e9, "lied", own=True))
    counted = await units_assured(node.journal, await node.journal.job(job_id), node.peer)
    assert counted.doubted == (0, 1, 2, 3)
    node.offering.clear()
    async with open_peers(node, Peer, Peer):
        spec = await spec_again(node.journal, node.peer, job_id, (3, 1), "sample:1")
        job = await node.jobs.submit(spec)

        async def it_is_done():
            return (await node.journal.job(job.id)).state == "done"

        await until(it_is_done)
        units = await node.journal.units(job.id, 0, 9)
        await assert_right(node, units, [3, 1])


@pytest.mark.parametrize(("units", "code"), [((9,), "no_such_unit"), ((0, 9), "no_such_unit")])
async def test_units_that_a_job_has_not_are_not_run_again(node, units, code):
    async with open_peers(node, Peer):
        ran = await node.run([1], verify="receipt")
    with pytest.raises(JobError) as caught:
        await spec_again(node.journal, node.peer, ran[0].job, units, "sample:1")
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("numeric_class", "fields", "why"),
    [
        ("exact", {"proofs": "friends"}, "nobody who gets proofs"),
        ("fp32", {"proofs": "private"}, "no proofs in the class fp32"),
        ("kernel", {"proofs": "private"}, "no proofs in the class kernel"),
        ("exact", {"proofs": "private", "verify": "receipt"}, "nobody checks"),
    ],
)
async def test_proofs_that_there_cannot_be_are_refused_by_name(
    node, numeric_class, fields, why
):
    with pytest.raises(JobError, match=why) as caught:
        await node.submit([1], numeric_class, **fields)
    assert caught.value.code == "bad_proofs"
    assert caught.value.hint


async def test_a_job_may_keep_its_proofs(node):
    job = await node.submit([1], proofs="private")
    assert (await node.journal.spec(job.id)).proofs == "private"
    await node.jobs.cancel(job.id)
