"""Who may have which program's blobs from a provider, and whom a requester names."""

from strategies import ALICE, BOB, CAROL, MALLORY

from shoal.crypto.content import blob_id_of
from shoal.node.bulk.plan import Role
from shoal.node.program_shares import Awarded, ProgramShares
from shoal.protocol.limits import PROGRAM_SOURCES_LIMIT

REQUESTER, EARLIER, LATER, STRANGER = (who.peer_id for who in (ALICE, BOB, CAROL, MALLORY))
PROGRAM, BLOB = blob_id_of(b"a program"), blob_id_of(b"a blob")


def shared():
    shares = ProgramShares()
    shares.lease("award", REQUESTER, PROGRAM, [EARLIER])
    shares.lists(REQUESTER, PROGRAM, [BLOB])
    return shares


def test_who_was_named_before_or_after_may_have_what_came_and_nobody_else():
    shares = shared()
    assert shares.share(REQUESTER, PROGRAM, LATER)
    assert not shares.allows(EARLIER, BLOB, REQUESTER)  # it is not here for this requester
    shares.came(REQUESTER, PROGRAM, BLOB)
    assert shares.allows(EARLIER, BLOB, REQUESTER)
    assert shares.allows(LATER, BLOB, REQUESTER)
    assert not shares.allows(STRANGER, BLOB, REQUESTER)
    assert not shares.allows(EARLIER, BLOB, STRANGER)
    assert not shares.allows(EARLIER, BLOB, None)
    assert shares.peers(REQUESTER, PROGRAM) == {EARLIER: Role.BEFORE, LATER: Role.AFTER}


def test_what_arrives_is_served_while_it_does_so_for_that_requester():
    shares = shared()
    with shares.arriving(REQUESTER, BLOB):
        assert shares.allows(EARLIER, BLOB, REQUESTER)
        assert not shares.allows(EARLIER, BLOB, STRANGER)
    assert not shares.allows(EARLIER, BLOB, REQUESTER)


def test_a_right_to_one_program_is_none_to_another_of_the_same_requester():
    shares = shared()
    other = blob_id_of(b"another program")
    shares.lease("another award", REQUESTER, other, [LATER])
    shares.came(REQUESTER, PROGRAM, BLOB)
    assert not shares.allows(LATER, BLOB, REQUESTER)


def test_sharing_lasts_as_long_as_any_lease_of_the_program():
    shares = shared()
    shares.lease("again", REQUESTER, PROGRAM, [])
    shares.came(REQUESTER, PROGRAM, BLOB)
    shares.end("award")
    assert shares.allows(EARLIER, BLOB, REQUESTER)
    shares.end("again")
    assert not shares.allows(EARLIER, BLOB, REQUESTER)
    assert not shares.share(REQUESTER, PROGRAM, LATER)
    shares.end("again")  # does nothing


def test_a_requester_cannot_have_a_provider_remember_ever_more_peers():
    shares = shared()
    for number in range(4):
        named = [f"peer {number}/{n}" for n in range(PROGRAM_SOURCES_LIMIT)]
        shares.lease(f"award {number}", REQUESTER, PROGRAM, named)
    assert len(shares.peers(REQUESTER, PROGRAM)) == PROGRAM_SOURCES_LIMIT
    for number in range(3 * PROGRAM_SOURCES_LIMIT):
        shares.share(REQUESTER, PROGRAM, f"peer {number}")
    assert len(shares.peers(REQUESTER, PROGRAM)) == PROGRAM_SOURCES_LIMIT


def test_a_requester_names_the_others_with_the_same_program_and_the_latest_of_many():
    awarded = Awarded()
    awarded.add("1", EARLIER, PROGRAM)
    awarded.add("2", STRANGER, BLOB)
    awarded.add("3", LATER, PROGRAM)
    assert awarded.others(LATER, PROGRAM) == [EARLIER]
    awarded.remove("1")
    assert awarded.others(LATER, PROGRAM) == []
    for number in range(2 * PROGRAM_SOURCES_LIMIT):
        awarded.add(f"award {number}", f"peer {number}", PROGRAM)
    others = awarded.others(LATER, PROGRAM)
    assert len(others) == PROGRAM_SOURCES_LIMIT
    assert others[-1] == f"peer {2 * PROGRAM_SOURCES_LIMIT - 1}"
