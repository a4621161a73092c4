"""The one module of crypto that touches files, so these tests do too."""

import os
import stat

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from libp2p.identity_utils import load_identity as libp2p_load
from libp2p.identity_utils import save_identity as libp2p_save
from libp2p.peer.id import ID
from strategies import ALICE, BOB

from shoal.crypto.envelope import Statement, open_envelope
from shoal.crypto.errors import IdentityError
from shoal.crypto.identity import generate, import_pem, load, save


@pytest.fixture
def path(tmp_path):
    return tmp_path / "home" / "identity.key"


def code_of(action, *arguments):
    with pytest.raises(IdentityError) as caught:
        action(*arguments)
    return caught.value.code


def test_what_is_saved_is_loaded(path):
    save(ALICE, path)
    assert load(path).peer_id == ALICE.peer_id
    assert load(path).seed == ALICE.seed


def test_two_new_identities_differ():
    assert generate().peer_id != generate().peer_id


def test_the_file_is_for_its_owner_alone_whatever_the_umask(path):
    before = os.umask(0)
    try:
        save(ALICE, path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_key_is_never_overwritten(path):
    save(ALICE, path)
    assert code_of(save, BOB, path) == "key_exists"
    assert load(path).peer_id == ALICE.peer_id
    assert list(path.parent.iterdir()) == [path]


def test_no_link_is_followed_to_overwrite_something_else(path, tmp_path):
    path.parent.mkdir()
    path.symlink_to(tmp_path / "elsewhere")
    assert code_of(save, ALICE, path) == "key_exists"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o666, 0o601])
def test_a_key_that_others_may_touch_is_refused(path, mode):
    save(ALICE, path)
    path.chmod(mode)
    with pytest.raises(IdentityError) as caught:
        load(path)
    assert caught.value.code == "key_exposed"
    assert caught.value.hint == f"chmod 600 {path}"


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_key_that_only_its_owner_may_touch_is_taken(path, mode):
    save(ALICE, path)
    path.chmod(mode)
    assert load(path).peer_id == ALICE.peer_id


@pytest.mark.parametrize("change", [b"", b"\0", b"x" * 36, b"x" * 37])
def test_a_file_that_is_no_key_is_refused(path, change):
    save(ALICE, path)
    path.write_bytes(change)
    assert code_of(load, path) == "key_malformed"


def test_a_key_with_something_behind_it_is_refused(path):
    save(ALICE, path)
    path.write_bytes(path.read_bytes() + b"\0")
    assert code_of(load, path) == "key_malformed"


def test_a_missing_key_says_what_to_run(path):
    with pytest.raises(IdentityError) as caught:
        load(path)
    assert caught.value.code == "key_missing"
    assert "shoal init" in caught.value.hint


def test_a_directory_is_no_key(tmp_path):
    assert code_of(load, tmp_path) == "key_unreadable"


def test_a_place_below_a_regular_file_cannot_be_written_to(tmp_path):
    """Stands for every unwritable place: it fails for root as well."""
    (tmp_path / "file").write_bytes(b"")
    assert code_of(save, ALICE, tmp_path / "file" / "identity.key") == "key_unwritable"
    assert code_of(load, tmp_path / "file" / "identity.key") == "key_unreadable"
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_read_only_directory_cannot_be_written_to(tmp_path):
    tmp_path.chmod(0o500)
    assert code_of(save, ALICE, tmp_path / "identity.key") == "key_unwritable"


def test_nothing_half_written_stays_when_writing_fails(path, monkeypatch):
    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert code_of(save, ALICE, path) == "key_unwritable"
    assert list(path.parent.iterdir()) == []


def test_libp2p_loads_ours_and_ours_loads_libp2ps(path, tmp_path):
    save(ALICE, path)
    theirs = libp2p_load(path)
    assert ID.from_pubkey(theirs.public_key).to_base58() == ALICE.peer_id
    libp2p_save(theirs, tmp_path / "theirs")
    assert load(tmp_path / "theirs").peer_id == ALICE.peer_id


@pytest.mark.parametrize("passphrase", [None, "correct horse", "Muschelhäufchen 🐚"])
def test_a_key_comes_back_from_pem(passphrase):
    pem = ALICE.export_pem(passphrase)
    assert (b"ENCRYPTED" in pem) == (passphrase is not None)
    assert import_pem(pem, passphrase).seed == ALICE.seed


@pytest.mark.parametrize(
    ("written_with", "read_with"), [("right", "wrong"), ("right", None), (None, "needless")]
)
def test_a_passphrase_that_does_not_fit_is_refused(written_with, read_with):
    assert code_of(import_pem, ALICE.export_pem(written_with), read_with) == "key_unreadable"


@pytest.mark.parametrize("passphrase", ["x" * 1024, "\ud800"])
def test_a_passphrase_that_cannot_encrypt_is_refused(passphrase):
    assert code_of(ALICE.export_pem, passphrase) == "bad_passphrase"


@pytest.mark.parametrize("pem", [b"", b"\xff\xfe", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_what_is_not_pem_is_refused(pem):
    assert code_of(import_pem, pem) == "key_unreadable"


def curve_key():
    return ec.generate_private_key(ec.SECP256R1())


def test_a_key_of_another_kind_is_refused():
    pem = curve_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert code_of(import_pem, pem) == "key_not_ed25519"


def test_a_key_of_a_kind_nobody_knows_is_refused():
    der = curve_key().private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    p256 = bytes([0x2A, 0x86, 0x48, 0xCE, 0x3D, 3, 1, 7])
    assert p256 in der
    pem = pem_of(der.replace(p256, p256[:-1] + b"\x6f"))
    assert code_of(import_pem, pem) == "key_unreadable"


def pem_of(der):
    from base64 import encodebytes

    return b"-----BEGIN PRIVATE KEY-----\n" + encodebytes(der) + b"-----END PRIVATE KEY-----\n"


def test_the_secret_is_in_no_text_of_it():
    assert repr(ALICE) == f"Identity({ALICE.peer_id})"
    assert ALICE.seed.hex() not in repr(ALICE) + str(ALICE)


def test_a_signature_names_its_node():
    opened = open_envelope(ALICE.sign(Statement.AWARD, b"payload"), Statement.AWARD)
    assert opened.signer == ALICE.peer_id
