"""Fraud proofs between nodes: believed once judged, passed on, and paid for by false accusers.

The nodes have real links, stores and journals. What judges is the tests' own: a proof says in
itself what there is to find out about it.
"""

from functools import partial

import pytest
import trio
from conviction_nodes import (
    BLOBS,
    LIAR,
    NOW_S,
    OTHER,
    a_proof,
    accuse,
    by_id,
    open_node,
    open_nodes,
    until,
)

from shoal.compute.errors import ComputeError
from shoal.crypto import identity
from shoal.crypto.content import blob_id_of
from shoal.crypto.envelope import Statement, seal, seal_many
from shoal.node import convictions as module
from shoal.node.believed_proofs import readable_since
from shoal.node.bidding import Terms, closed
from shoal.node.convictions import BAN_S, Convictions
from shoal.node.docket import End
from shoal.node.errors import NetworkError, PeerError
from shoal.node.house import hold
from shoal.node.peer_versions import PeerVersions
from shoal.protocol.checking_messages import Accusations, AccusationsWanted
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.limits import FRAUD_PROOF_LIMIT_BYTES
from shoal.protocol.messages import Done, Problem
from shoal.protocol.negotiation_messages import Reason
from shoal.protocol.verification import fraud_proof
from shoal.protocol.verification.fraud_proof import FraudProof


async def say_nothing(*_):
    await trio.lowlevel.checkpoint()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "LOOK_INTERVAL_S", 0.05)
    monkeypatch.setattr(module, "COMPARE_INTERVAL_S", 3600.0)


# --- what is proved spreads --------------------------------------------------------


async def test_a_proof_goes_from_link_to_link_and_each_judges_it_before_it_bans(tmp_path):
    async with open_nodes(tmp_path, 3) as (first, middle, last):
        await first.meets(middle)
        await middle.meets(last)
        verdict = await first.convictions.convict(a_proof(), by_id())
        assert verdict.outcome == "convicted"
        await until(lambda: last.bans() and middle.bans())
        for node in (first, middle, last):
            assert node.judged == [blob_id_of(a_proof())]
            assert node.banned == [LIAR]
            assert node.told == [(LIAR, "node 7 is another sum")]
            (view,) = node.convictions.proofs()
            assert (view.own, view.public) == (node is first, True)
            assert await node.convictions.proof(view.id) == a_proof()
        assert not first.bans(OTHER)


async def test_whoever_comes_later_hears_of_it_when_it_links(tmp_path):
    async with open_nodes(tmp_path, 2) as (first, second):
        await first.convictions.convict(a_proof(), by_id())
        await second.meets(first)
        await until(second.bans)


async def test_who_is_accused_before_anything_is_known_of_it_is_banned_once_it_is(tmp_path):
    later = identity.generate().peer_id
    proof = a_proof(later)
    async with open_nodes(tmp_path, 2) as (first, second):
        first.known.add(later)
        await first.convictions.convict(proof, by_id())
        await second.meets(first)
        await trio.sleep(0.3)
        assert not second.judged
        second.known.add(later)
        await until(lambda: second.bans(later))


async def test_a_word_that_was_lost_is_heard_when_links_compare(tmp_path, monkeypatch):
    async with open_nodes(tmp_path, 2) as (first, second):
        await second.meets(first)
        await trio.sleep(0.5)
        monkeypatch.setattr(Convictions, "_tell", say_nothing)
        await first.convictions.convict(a_proof(), by_id())
        await trio.sleep(0.5)
        assert not second.bans()
        monkeypatch.setattr(module, "COMPARE_INTERVAL_S", 0.1)
        await until(second.bans)


async def test_one_proof_of_a_peer_is_enough(tmp_path):
    async with open_nodes(tmp_path, 2) as (first, second):
        await first.meets(second)
        await first.convictions.convict(a_proof(), by_id())
        await until(second.bans)
        another = a_proof(note="another")
        await first.publishes(another)
        assert await first.says(second, accuse(another)) == Done()
        await trio.sleep(0.3)
        assert second.judged == [blob_id_of(a_proof())]


async def test_a_peer_too_old_to_read_a_proof_is_not_told_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "readable_since", lambda _: (1, 5))
    monkeypatch.setattr(PeerVersions, "of", lambda *_: (1, 4))
    async with open_nodes(tmp_path, 2) as (first, second):
        await second.meets(first)
        await first.convictions.convict(a_proof(), by_id())
        asked = partial(second.control.request, first.peer, AccusationsWanted(), 5)
        assert await asked() == Accusations()
        assert not second.ended
        monkeypatch.setattr(PeerVersions, "of", lambda *_: (1, 5))
        assert len((await asked()).accusations) == 1
        await second.convictions._compare(first.peer)
        await until(second.bans)


def test_a_proof_with_receipts_that_were_signed_together_is_for_those_who_can_read_it():
    receipts = seal_many(Statement.RECEIPT, [b"one", b"other"], identity.generate().key)
    alone = seal(Statement.RECEIPT, b"alone", identity.generate().key)
    for receipt, other, since in (
        (alone, None, (1, 0)),
        (alone, alone, (1, 0)),
        (receipts[0], None, (1, 5)),
        (alone, receipts[1], (1, 5)),
    ):
        proof = FraudProof(fraud_proof.VERSION, "unit", alone, receipt, other, None, (), (), ())
        assert readable_since(fraud_proof.encode(proof)) == since


async def test_a_peer_is_told_what_it_does_not_know_and_no_more(tmp_path):
    async with open_nodes(tmp_path, 2) as (first, second):
        for accused in (LIAR, OTHER):
            first.now_s += 1
            await first.convictions.convict(a_proof(accused), by_id())
        await second.network.connect(first.peer, first.network.addresses(), 5)
        asked = partial(second.control.request, first.peer)
        ids = [view.id for view in first.convictions.proofs()]
        everything = await asked(AccusationsWanted(), 5)
        assert [said.proof for said in everything.accusations] == ids
        rest = await asked(AccusationsWanted(known=(ids[0],)), 5)
        assert [said.accused for said in rest.accusations] == [LIAR]
        assert await asked(AccusationsWanted(known=tuple(ids)), 5) == Accusations()


# --- what a ban is ----------------------------------------------------------------


def terms(node):
    return Terms(
        device="cpu",
        executors={"exact": "exact"},
        memory_bytes=1 << 30,
        providing=True,
        draining=False,
        own=node.peer,
        allowed={LIAR},
        leases=0,
        units_waiting=0,
        ban_of=node.convictions.is_banned,
    )


async def test_a_banned_peer_is_refused_by_name_and_given_nothing_even_a_friend(tmp_path):
    async with open_node(tmp_path) as node:
        assert closed(LIAR, terms(node)) is None
        node.house.check_ban(LIAR)
        await node.convictions.convict(a_proof(), by_id())
        reason, detail = closed(LIAR, terms(node))
        assert reason is Reason.BANNED
        assert blob_id_of(a_proof()) in detail
        with pytest.raises(NetworkError, match="node 7 is another sum") as banned:
            node.house.check_ban(LIAR)
        assert banned.value.code == "peer_banned"
        assert f"--unban {LIAR}" in banned.value.hint


async def test_a_ban_survives_a_restart_with_its_proof_and_lapses(tmp_path):
    async with open_node(tmp_path) as node:
        await node.convictions.convict(a_proof(at_s=NOW_S - 100), by_id())
    async with open_node(tmp_path) as node, open_node(tmp_path / "other") as other:
        ban = node.convictions.is_banned(LIAR)
        assert (ban.since, ban.until) == (NOW_S - 100, NOW_S - 100 + BAN_S)
        await other.meets(node)
        await until(other.bans)  # it is told and served as before
        node.now_s = ban.until - 1
        assert node.bans()
        node.now_s = ban.until
        assert not node.bans()
        await until(lambda: not node.convictions.proofs())
        assert await node.house.journal.bans() == []
        answer = await node.convictions.answer(other.peer, AccusationsWanted())
        assert answer == Accusations()


async def test_a_ban_that_has_lapsed_is_no_pardon_after_a_restart(tmp_path):
    home = tmp_path / "node"
    async with open_node(home) as node:
        await node.convictions.convict(a_proof(at_s=NOW_S - BAN_S + 50), by_id())
        node.now_s += 60
        await until(lambda: not node.convictions.proofs())
        assert await node.house.journal.bans() == []
    async with open_node(home) as node, open_node(tmp_path / "teller") as teller:
        node.now_s += 100
        proof = a_proof(at_s=NOW_S + 90)
        await teller.meets(node)
        await teller.publishes(proof)
        await teller.says(node, accuse(proof))
        await until(node.bans)


async def test_a_ban_counts_from_the_award_so_that_it_does_not_go_round_for_ever(tmp_path):
    async with open_nodes(tmp_path, 2) as (first, late):
        await first.convictions.convict(a_proof(), by_id())
        late.now_s = NOW_S + BAN_S - 50
        await late.meets(first)
        await until(late.bans)
        assert late.convictions.is_banned(LIAR).until == NOW_S + BAN_S


async def test_what_is_lapsed_or_of_a_time_to_come_bans_nobody_and_blames_nobody(tmp_path):
    async with open_nodes(tmp_path, 2) as (teller, node):
        await teller.meets(node)
        for accused, at_s in ((LIAR, NOW_S - BAN_S), (OTHER, NOW_S + 86400)):
            proof = a_proof(accused, at_s=at_s)
            await teller.publishes(proof)
            await teller.says(node, accuse(proof, accused))
        await until(lambda: sum(node.ended.values()) == 2)
        assert node.ended == {End.NEEDLESS: 1, End.OPEN: 1}
        assert not node.convictions.bans()
        assert not node.blamed


async def test_the_operator_lifts_a_ban_and_others_words_do_not_bring_it_back(tmp_path):
    async with open_node(tmp_path / "first") as first:
        async with open_node(tmp_path / "node") as node:
            await first.convictions.convict(a_proof(), by_id())
            await node.meets(first)
            await until(node.bans)
            await node.convictions.unban(LIAR)
            assert not node.bans()
            with pytest.raises(PeerError) as unknown:
                await node.convictions.unban(LIAR)
            assert unknown.value.code == "not_banned"
            await first.says(node, accuse(a_proof()))
            await trio.sleep(0.3)
            assert not node.bans()
        async with open_node(tmp_path / "node") as node:  # nor after a restart
            await node.meets(first)
            await trio.sleep(0.5)
            assert not node.bans()
            await node.convictions.convict(a_proof(note="its own"), by_id())
            assert node.bans()  # but what it finds by itself does


async def test_this_node_does_not_ban_itself(tmp_path):
    async with open_node(tmp_path) as node:
        await node.convictions.convict(a_proof(node.peer), by_id())
        assert not node.bans(node.peer)
        assert not node.banned


# --- what is false, or cannot be told -----------------------------------------------


async def test_a_false_proof_gets_one_hop_far_and_costs_its_sender(tmp_path):
    async with open_nodes(tmp_path, 3) as (liar, node, friend):
        await liar.meets(node)
        await node.meets(friend)
        proof = a_proof(verdict="acquitted")
        await liar.publishes(proof)
        await liar.says(node, accuse(proof))
        await until(lambda: node.blamed)
        await liar.says(node, accuse(a_proof(OTHER), OTHER))
        await trio.sleep(0.3)
        assert node.blamed == [liar.peer]
        assert node.judged == [blob_id_of(proof)]  # nothing more of its is heard
        assert not node.convictions.bans()
        assert not friend.judged


@pytest.mark.parametrize(
    ("proof", "changes"),
    [
        (b"no proof at all", {}),
        (a_proof(OTHER), {}),  # against another than is said
    ],
)
async def test_what_is_seen_to_be_false_is_not_even_judged(tmp_path, proof, changes):
    async with open_nodes(tmp_path, 2) as (liar, node):
        await liar.meets(node)
        await liar.publishes(proof)
        await liar.says(node, accuse(proof, **changes))
        await until(lambda: node.blamed)
        assert node.blamed == [liar.peer]
        assert not node.judged


async def test_who_passes_a_proof_on_pays_for_nobody_who_sent_it_as_one_against_another(
    tmp_path,
):
    async with open_nodes(tmp_path, 3) as (liar, honest, node):
        proof = a_proof()
        for teller in (liar, honest):
            await teller.meets(node)
            await teller.publishes(proof)
        await liar.says(node, accuse(proof, OTHER))
        await until(lambda: node.blamed)
        await honest.says(node, accuse(proof))
        await until(node.bans)
        assert node.blamed == [liar.peer]


async def test_what_cannot_be_told_costs_nobody_and_is_not_looked_into_again_soon(tmp_path):
    async with open_nodes(tmp_path, 2) as (teller, node):
        await teller.meets(node)
        undecided = a_proof(verdict="undecided")
        newer = a_proof(OTHER, form=2)
        for proof, accused in ((undecided, LIAR), (newer, OTHER)):
            await teller.publishes(proof)
            for _ in range(3):
                await teller.says(node, accuse(proof, accused))
        await until(lambda: sum(node.ended.values()) == 2)
        for proof, accused in ((undecided, LIAR), (newer, OTHER)):
            await teller.says(node, accuse(proof, accused))
        await trio.sleep(0.3)
        assert node.ended == {End.OPEN: 2}
        assert len(node.judged) == 1
        assert not node.blamed


async def test_a_proof_without_its_blobs_is_left_open_and_its_other_teller_is_asked(tmp_path):
    async with open_nodes(tmp_path, 3) as (poor, rich, node):
        await poor.meets(node)
        await rich.meets(node)
        proof = a_proof()
        await poor.publishes(proof, blobs=BLOBS[:1])
        await poor.says(node, accuse(proof))
        await until(lambda: node.ended == {End.OPEN: 1})
        await rich.publishes(proof)
        await rich.says(node, accuse(proof))
        await until(node.bans)
        assert not node.blamed


async def test_a_proof_that_names_too_few_blobs_is_undecided(tmp_path):
    async with open_nodes(tmp_path, 2) as (teller, node):
        await teller.meets(node)
        await teller.publishes(a_proof())
        await teller.says(node, accuse(a_proof(), blobs=BLOBS[:2]))
        await until(lambda: node.ended == {End.OPEN: 1})
        assert not node.bans()


async def test_what_is_larger_than_it_may_be_is_not_taken_whatever_is_said_of_it(tmp_path):
    async with open_nodes(tmp_path, 2) as (teller, node):
        await teller.meets(node)
        huge = a_proof(fill="x" * FRAUD_PROOF_LIMIT_BYTES)
        await teller.publishes(huge)
        await teller.says(node, accuse(huge))  # says so: not even asked for
        await teller.says(node, accuse(huge, proof_bytes=100, blobs=BLOBS[:1]))
        await until(lambda: node.ended == {End.OPEN: 1})
        assert not node.judged
        assert not node.store.holds(blob_id_of(huge))


async def test_thousands_of_accusations_cost_a_few_tries_and_delay_nobody_elses(tmp_path):
    async with open_nodes(tmp_path, 3) as (flooder, honest, node):
        await flooder.meets(node)
        await honest.meets(node)
        flood = [accuse(a_proof(OTHER, note=number), OTHER) for number in range(2000)]
        for said in flood:
            await node.convictions.answer(flooder.peer, said)
        await honest.convictions.convict(a_proof(), by_id())
        await until(node.bans)
        assert node.ended.get(End.OPEN, 0) <= 16
        assert not node.bans(OTHER)


async def test_of_whom_nothing_is_known_no_proof_is_fetched(tmp_path):
    async with open_nodes(tmp_path, 2) as (teller, node):
        await teller.meets(node)
        stranger = identity.generate().peer_id
        proof = a_proof(stranger)
        await teller.publishes(proof)
        await teller.says(node, accuse(proof, stranger))
        await trio.sleep(0.3)
        assert not node.ended
        node.known.add(stranger)  # it advertises now
        await teller.says(node, accuse(proof, stranger))
        await until(lambda: node.bans(stranger))


async def test_only_links_are_heard(tmp_path):
    async with open_node(tmp_path) as node:
        answer = await node.convictions.answer(OTHER, accuse(a_proof()))
        assert isinstance(answer, Problem)
        assert answer.code == "not_linked"


async def test_a_proof_of_its_own_that_does_not_hold_bans_nobody(tmp_path):
    async with open_node(tmp_path) as node:
        verdict = await node.convictions.convict(a_proof(verdict="acquitted"), by_id())
        assert verdict.outcome == "acquitted"
        node.failing = True
        with pytest.raises(ComputeError):
            await node.convictions.convict(a_proof(), by_id())
        assert not node.convictions.bans()
        assert not node.convictions.proofs()


async def test_a_worker_that_fails_blames_nobody(tmp_path):
    async with open_nodes(tmp_path, 2) as (teller, node):
        await teller.meets(node)
        node.failing = True
        await teller.convictions.convict(a_proof(), by_id())
        await until(lambda: node.ended == {End.OPEN: 1})
        assert not node.bans()
        assert not node.blamed


# --- what is public ---------------------------------------------------------------


async def fetched(node, other, blob):
    try:
        await hold(node.house, other.peer, blob_id_of(blob), "test", 1 << 30)
    except (NetworkError, RemoteProtocolError) as error:
        return error.code
    return "fetched"


async def test_of_a_ban_alone_proof_and_blobs_are_public(tmp_path):
    async with open_nodes(tmp_path, 2) as (node, anybody):
        await anybody.meets(node)
        secret = b"a blob of somebody's"
        await node.store.put_bytes(secret)
        await node.convictions.convict(a_proof(), by_id())
        for blob in (a_proof(), *BLOBS):
            assert await fetched(anybody, node, blob) == "fetched"
        assert await fetched(anybody, node, secret) == "no_right"
        await node.convictions.unban(LIAR)
        anybody.store.unpin("test")
        assert not node.rights.allows(anybody.peer, blob_id_of(a_proof()))


async def test_proofs_take_no_more_than_their_share_and_the_newest_stay_public(tmp_path):
    quota_bytes = 2 << 20  # of which an eighth is for proofs
    async with open_node(tmp_path, quota_bytes=quota_bytes) as node:
        sizes = [100_000, 100_000, 100_000]
        accused = [identity.generate().peer_id for _ in sizes]
        for place, (peer, size_bytes) in enumerate(zip(accused, sizes, strict=True)):
            node.now_s += 1
            blobs = [bytes([place]) * size_bytes]
            await node.convictions.convict(a_proof(peer, blobs=blobs), by_id(blobs))
        views = {view.accused: view for view in node.convictions.proofs()}
        assert [views[peer].public for peer in accused] == [False, True, True]
        assert all(node.bans(peer) for peer in accused)
        blobs = [bytes(400_000)]
        await node.convictions.convict(a_proof(OTHER, blobs=blobs), by_id(blobs))
        assert node.bans(OTHER)
        answer = await node.convictions.answer(LIAR, AccusationsWanted())
        assert {said.accused for said in answer.accusations} == set(accused[1:])


async def test_where_blobs_are_lost_over_a_restart_the_ban_stays_and_is_not_told(tmp_path):
    async with open_node(tmp_path) as node:
        await node.convictions.convict(a_proof(), by_id())
    for file in (tmp_path / "blobs").rglob("*"):
        if file.is_file():
            file.unlink()
    async with open_node(tmp_path) as node:
        assert node.bans()
        (view,) = node.convictions.proofs()
        assert not view.public
        assert await node.convictions.proof(view.id) == a_proof()
        answer = await node.convictions.answer(OTHER, AccusationsWanted())
        assert answer == Accusations()


async def test_a_private_proof_bans_here_and_goes_to_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "COMPARE_INTERVAL_S", 0.1)
    home = tmp_path / "first"
    async with open_node(tmp_path / "second") as second:
        async with open_node(home) as first:
            await first.meets(second)
            await first.convictions.convict(a_proof(), by_id(), private=True)
            assert first.bans()
            await stays_private(first, second)
            for blob in BLOBS:  # what `shoal proof export` gives its owner
                assert await first.store.get_bytes(blob_id_of(blob)) == blob
        async with open_node(home) as first:  # nor after a restart
            await first.meets(second)
            assert first.bans()
            await stays_private(first, second)
            assert await first.convictions.proof(blob_id_of(a_proof())) == a_proof()


async def stays_private(first, second):
    second.heard.clear()
    await until(lambda: second.heard)
    assert set(second.heard) == {AccusationsWanted()}  # nor that there is one
    (view,) = first.convictions.proofs()
    assert (view.own, view.private, view.public) == (True, True, False)
    answer = await first.convictions.answer(second.peer, AccusationsWanted())
    assert answer == Accusations()
    assert not first.rights.allows(second.peer, blob_id_of(a_proof()))
    await trio.sleep(0.5)
    assert not second.bans()
    assert second.judged == []
