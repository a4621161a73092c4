"""The secret of a private network: its file's text, and what happens to the file."""

import os
import stat

import pytest

from shoal.node import swarm_key
from shoal.node.errors import ConfigError
from shoal.node.swarm_key import (
    SwarmKey,
    check_name,
    from_text,
    load_key,
    make_key,
    put_aside,
    replace_key,
    save_key_again,
    save_new_key,
    to_text,
)

PEER = "12D3KooWHn3bA8p3tDoZbEjJujVbkLo1t8uSprj4caNCTZZXm7ii"
ADDRESS = f"/ip4/192.0.2.7/tcp/4711/p2p/{PEER}"
KEY = SwarmKey("lab", bytes(range(32)), (ADDRESS,))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "home" / "swarm.key"


def refused(attempt, *arguments, **options):
    """The error that ``attempt`` ends with; it never holds the secret."""
    with pytest.raises(ConfigError) as caught:
        attempt(*arguments, **options)
    assert KEY.secret.hex() not in str(caught.value)
    assert caught.value.hint
    return caught.value


# --- text -------------------------------------------------------------------------


def test_the_file_begins_with_the_three_lines_that_other_libp2p_programs_read():
    lines = to_text(KEY).split("\n")
    assert lines[:3] == ["/key/swarm/psk/1.0.0/", "/base16/", KEY.secret.hex()]


def test_what_was_written_is_read_again():
    assert from_text(to_text(KEY)) == KEY
    assert from_text(to_text(KEY).replace("\n", "\r\n")) == KEY


def test_a_file_of_another_program_is_read_and_gets_a_name_of_its_own():
    text = "\n".join(to_text(KEY).split("\n")[:3])
    found = from_text(text)
    assert (found.secret, found.bootstrap) == (KEY.secret, ())
    assert found.name == f"swarm-{KEY.fingerprint[:4]}"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "does not begin with the line /key/swarm/psk/1.0.0/"),
        (to_text(KEY).replace("1.0.0", "2.0.0"), "does not begin"),
        (to_text(KEY).replace("16", "64", 1), "/base16/ in its second line"),
        ("/key/swarm/psk/1.0.0/\n/base16/\n", "64 hexadecimal digits in its third"),
        (to_text(KEY).replace("0001", "00", 1), "64 hexadecimal digits in its third"),
        (to_text(KEY).replace("0001", "00g1", 1), "64 hexadecimal digits in its third"),
        (to_text(KEY).replace("lab", "public"), "line 4"),
        (to_text(KEY).replace("/tcp/", "/udp/"), "line 5"),
    ],
)
def test_a_text_that_is_no_key_is_refused_with_what_is_wrong(text, why):
    with pytest.raises(ValueError, match=why) as caught:
        from_text(text)
    assert KEY.secret.hex()[:20] not in str(caught.value)


def test_the_secret_is_not_in_the_keys_repr():
    assert KEY.secret.hex() not in repr(KEY)
    assert repr(KEY.secret) not in repr(KEY)


def test_the_fingerprint_tells_secrets_apart_and_not_names():
    other = SwarmKey("lab", bytes(32))
    assert KEY.fingerprint != other.fingerprint
    assert KEY.fingerprint == SwarmKey("another", KEY.secret).fingerprint
    assert KEY.fingerprint not in KEY.secret.hex()


def test_new_networks_have_new_secrets_and_names():
    first, second = make_key(), make_key()
    assert first.secret != second.secret
    assert first.name != second.name
    assert make_key("lab").name == "lab"


@pytest.mark.parametrize("name", ["", " lab", "a\nb", "\x1b[2J", "x" * 49, "public", "Public"])
def test_a_name_that_would_mislead_is_refused(name):
    assert refused(check_name, name).code == "bad_network_name"


def test_new_addresses_come_first_and_none_twice():
    more = ADDRESS.replace("4711", "4712")
    assert KEY.with_bootstrap((more, ADDRESS)).bootstrap == (more, ADDRESS)
    many = tuple(ADDRESS.replace("4711", str(port)) for port in range(1, 100))
    assert KEY.with_bootstrap(many).bootstrap == many[: swarm_key.BOOTSTRAP_LIMIT]


# --- the file ---------------------------------------------------------------------


def test_a_saved_key_is_for_its_user_alone_and_is_never_overwritten(path):
    old = os.umask(0)
    try:
        save_new_key(KEY, path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_key(path, {}) == KEY
    assert refused(save_new_key, make_key(), path).code == "network_key_exists"
    assert load_key(path, {}) == KEY
    assert [each.name for each in path.parent.iterdir()] == ["swarm.key"]


def test_without_a_file_the_node_is_in_no_private_network(path):
    assert load_key(path, {}) is None


def test_without_a_file_libp2ps_guard_keeps_the_node_from_starting(path):
    assert load_key(path, {"LIBP2P_FORCE_PNET": "0"}) is None
    error = refused(load_key, path, {"LIBP2P_FORCE_PNET": "1"})
    assert error.code == "network_key_missing"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610])
def test_a_key_that_others_may_read_is_refused(path, mode):
    save_new_key(KEY, path)
    path.chmod(mode)
    error = refused(load_key, path, {})
    assert (error.code, error.hint) == ("network_key_exposed", f"chmod 600 {path}")


def test_a_key_that_is_none_is_refused(path):
    save_new_key(KEY, path)
    for data in (b"", b"\xff\xfe", b"/key/swarm/psk/1.0.0/\n/bin/\n" + KEY.secret):
        path.write_bytes(data)
        assert refused(load_key, path, {}).code == "network_key_malformed"


def test_a_place_that_cannot_be_read_or_written_is_named(tmp_path):
    (tmp_path / "swarm.key").mkdir()
    assert refused(load_key, tmp_path / "swarm.key", {}).code == "network_key_unreadable"
    (tmp_path / "file").touch()
    error = refused(save_new_key, KEY, tmp_path / "file" / "swarm.key")
    assert error.code == "network_key_unwritable"


def test_more_of_the_same_network_replaces_the_file(path):
    save_new_key(KEY, path)
    more = KEY.with_bootstrap((ADDRESS.replace("4711", "4712"),))
    save_key_again(more, path)
    assert load_key(path, {}) == more
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_another_network_puts_the_old_secret_aside_and_loses_none(path):
    save_new_key(KEY, path)
    second, third = make_key("second"), make_key("third")
    aside = replace_key(second, path)
    replace_key(KEY, path)
    again = replace_key(third, path)
    assert load_key(path, {}) == third
    assert aside == again
    assert {load_key(each, {}) for each in path.parent.iterdir()} == {KEY, second, third}


def test_killed_while_it_changes_networks_a_node_is_in_one_of_the_two(path, monkeypatch):
    save_new_key(KEY, path)
    seen = []

    def die(*_arguments):
        seen.append(load_key(path, {}))
        raise KeyboardInterrupt

    for step in ("link", "unlink"):
        with monkeypatch.context() as patched:
            patched.setattr(swarm_key.os, step, die)
            patched.setattr(swarm_key.Path, step, die, raising=False)
            with pytest.raises(KeyboardInterrupt):
                replace_key(make_key("other"), path)
        assert load_key(path, {}) == KEY
    assert seen


def test_leaving_puts_the_file_aside_also_when_it_cannot_be_read(path):
    save_new_key(KEY, path)
    aside = put_aside(path)
    assert (load_key(path, {}), load_key(aside, {})) == (None, KEY)
    path.write_bytes(b"\xff")
    assert put_aside(path).read_bytes() == b"\xff"
    assert refused(put_aside, path).code == "no_network"
