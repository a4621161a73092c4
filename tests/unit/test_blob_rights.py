"""Who may fetch which blob."""

from shoal.crypto.content import blob_id_of
from shoal.crypto.peer_id import PeerId
from shoal.node.blob_transfer import Rights

ANNA, BERT = PeerId("anna"), PeerId("bert")
MODEL, PHOTO = blob_id_of(b"model"), blob_id_of(b"photo")


def test_a_right_is_one_peers_and_one_blobs():
    rights = Rights()
    rights.grant("lease 1", ANNA, [MODEL])
    assert rights.allows(ANNA, MODEL)
    assert not rights.allows(BERT, MODEL)
    assert not rights.allows(ANNA, PHOTO)


def test_a_right_ends_when_the_last_name_that_grants_it_is_withdrawn():
    rights = Rights()
    rights.grant("lease 1", ANNA, [MODEL])
    rights.grant("lease 1", ANNA, [MODEL, PHOTO])
    rights.grant("lease 2", ANNA, [MODEL])
    rights.withdraw("lease 1")
    assert rights.allows(ANNA, MODEL)
    assert not rights.allows(ANNA, PHOTO)
    rights.withdraw("lease 2")
    rights.withdraw("lease 2")
    assert not rights.allows(ANNA, MODEL)
