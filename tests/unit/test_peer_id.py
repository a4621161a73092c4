import base58
import pytest
from libp2p.crypto.ed25519 import Ed25519PrivateKey as Libp2pKey
from libp2p.peer.id import ID
from strategies import ALICE, BOB

from shoal.crypto.errors import VerificationError
from shoal.crypto.peer_id import check_peer_id, peer_id_of, public_key_of


@pytest.mark.parametrize("identity", [ALICE, BOB])
def test_libp2p_gives_the_same_key_the_same_name(identity):
    theirs = ID.from_pubkey(Libp2pKey.from_bytes(identity.seed).get_public_key())
    assert identity.peer_id == theirs.to_base58()


@pytest.mark.parametrize("key", [bytes(32), b"\xff" * 32, bytes(range(32))])
def test_the_key_is_read_out_of_the_name(key):
    peer_id = peer_id_of(key)
    assert len(peer_id) == 52
    assert peer_id.startswith("12D3KooW")
    assert public_key_of(peer_id) == key
    assert check_peer_id(peer_id) == peer_id


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_key_of_another_size_has_no_name(size):
    with pytest.raises(VerificationError) as caught:
        peer_id_of(bytes(size))
    assert caught.value.code == "bad_public_key"


PEER = peer_id_of(bytes(range(32)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        PEER[:-1],
        PEER + "1",
        "1" + PEER[:-1],
        PEER[:-1] + "0",  # no digit of base58
        PEER[:-1] + "\n",
        PEER[:-1] + " ",
        " " + PEER[1:],
        "é" * 52,
        "\ud800" * 52,
        "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",  # an RSA peer id
        base58.b58encode(
            bytes([0, 0x24, 8, 2, 0x12, 0x20]) + bytes(32)
        ).decode(),  # another type
        "12D3KooW" + "z" * 44,  # the right look, another protobuf
    ],
)
def test_what_is_not_an_ed25519_peer_id_is_refused(text):
    with pytest.raises(VerificationError) as caught:
        public_key_of(text)
    assert caught.value.code == "bad_peer_id"
    assert "12D3KooW" in caught.value.hint
