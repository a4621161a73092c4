"""``shoal bugreport``: what explains a fault is in it, and no secret, whatever was planted."""

import base64
import json
import os
import subprocess
import sys

import base58
import commands
import pytest
from daemons import clean_environment, shoal

from shoal.crypto import identity
from shoal.node.invitation import write_token
from shoal.node.swarm_key import make_key, save_new_key, to_text

LOOPBACK = "/ip4/127.0.0.1/tcp/0"


def report(home, output, *flags, **environment):
    done = commands.run(
        ["bugreport", f"--home={home}", f"--output={output}", *flags],
        environment=clean_environment() | environment,
    )
    assert "Traceback" not in done.stderr
    return done


def forms(secret):
    yield secret.hex()
    yield secret.hex().upper()
    yield base58.b58encode(secret).decode()
    yield base64.b64encode(secret).decode().rstrip("=")
    yield base64.urlsafe_b64encode(secret).decode().rstrip("=")


@pytest.fixture
def planted(tmp_path):
    """A home whose secrets stand in its log, in its settings and in the environment too."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    key, network, former = identity.generate(), make_key("lab"), make_key("former")
    identity.save(key, home / "identity.key")
    save_new_key(network, home / "swarm.key")
    (home / "swarm.key.left-0123456789abcdef").write_text(to_text(former))
    stranger = identity.generate()
    seeds = [key.seed, network.secret, former.secret]
    wholes = [(home / "identity.key").read_bytes()]
    address = f"/ip4/203.0.113.7/tcp/4711/p2p/{stranger.peer_id}"
    tokens = [
        write_token(each.with_bootstrap((address,))) for each in (network, make_key("unknown"))
    ]
    pem = key.export_pem().decode()
    planted = [form for secret in (*seeds, *wholes) for form in forms(secret)]
    lines = [f"the key is {form} indeed" for form in planted]
    lines += [f"joined by {token}" for token in tokens]
    lines += [json.dumps({"message": pem}), pem, repr(key.seed), str(list(key.seed))]
    lines += [
        f"linked to {stranger.peer_id} at 198.51.100.9, not {address}",
        "the last line of the log",
    ]
    (home / "daemon.log").write_text("\n".join(lines) + "\n")
    (home / "config.toml").write_text(
        f'name = "{network.secret.hex()[:60]}"\nlisten = ["{LOOPBACK}"]\n'
        f'bootstrap = ["/ip4/127.0.0.1/tcp/1/p2p/{stranger.peer_id}"]\n'
    )
    (home / "blobs").mkdir()
    (home / "blobs" / "content").write_text("what a user computes on")
    environment = {
        "SHOAL_TOKEN": tokens[0],
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
        "SHOAL_NICENESS": "7",
        "LOGNAME": "mallory",
    }
    words = [*planted, *tokens, *(token.removeprefix("shoal1_")[:60] for token in tokens)]
    words += [line for line in pem.splitlines() if "-----" not in line]
    words += [repr(key.seed)[2:-1], str(list(key.seed))[1:-1], network.secret.hex()[:60]]
    words += ["wJalrXUtnFEMI", "AWS_SECRET", "what a user computes on", "mallory"]
    words += [stranger.peer_id, "203.0.113.7", "198.51.100.9"]
    return home, words, environment


def test_no_planted_secret_is_in_the_report(planted, tmp_path):
    home, words, environment = planted
    done = report(home, tmp_path / "report.txt", **environment)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "report.txt").read_text()
    for word in words:
        assert word not in text, word
        assert word.lower() not in text.lower() or len(word) < 24, word
    for section in (
        *("versions", "doctor", "settings in force", "environment", "status", "peers"),
        *("devices", "sandbox", "limits", "files of the home", "log"),
    ):
        assert f"\n== {section}\n" in text
    assert "the last line of the log" in text
    assert "SHOAL_TOKEN is set, and nothing reads it" in text
    assert "niceness = 7  (environment)" in text
    assert "libp2p 0.8.1" in text


def test_the_report_is_for_this_user_alone_and_is_to_be_read_before_it_is_sent(
    planted, tmp_path
):
    home, _, environment = planted
    path = tmp_path / "report.txt"
    done = report(home, path, **environment)
    assert done.stdout == f"{path}\n"
    assert "read it before you send it" in done.stderr
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    again = report(home, path, **environment)
    assert again.returncode == 1
    assert "never overwritten" in again.stderr
    assert path.read_bytes() == before


def test_addresses_are_told_where_the_user_wants_it(planted, tmp_path):
    home, _, environment = planted
    report(home, tmp_path / "report.txt", "--with-addresses", **environment)
    text = (tmp_path / "report.txt").read_text()
    assert "203.0.113.7" in text
    assert "198.51.100.9" in text


def test_a_running_daemon_is_told_of(swarm, tmp_path):
    node = swarm.nodes[1]
    log_end = (node.home / "daemon.log").read_text().splitlines()[-20:]
    ended = shoal("bugreport", f"--output={tmp_path}/report.txt", "--json", node=node)
    assert ended.json["path"] == f"{tmp_path}/report.txt"
    text = (tmp_path / "report.txt").read_text()
    assert "of the daemon that runs" in text
    assert f"pid = {node.process.pid}" in text
    assert "2 known" in text
    assert log_end
    assert all(json.loads(line)["timestamp"] in text for line in log_end)
    assert "Max open files" in text
    for other in swarm.nodes:
        assert other.peer not in text
        assert f"…{other.peer[-8:]}" in text


def damage_settings(home):
    (home / "config.toml").write_bytes(b"\xff\x00 = [")


def damage_key(home):
    (home / "identity.key").write_bytes(os.urandom(20))


def damage_secret(home):
    (home / "swarm.key").write_bytes(os.urandom(200))


def damage_log(home):
    (home / "daemon.log").unlink()
    (home / "daemon.log").mkdir()


def remove_home(home):
    subprocess.run(["rm", "-r", str(home)], check=True)


def put_a_file_there(home):
    remove_home(home)
    home.write_text("no directory")


@pytest.mark.parametrize(
    "damage",
    [damage_settings, damage_key, damage_secret, damage_log, remove_home, put_a_file_there],
)
def test_a_damaged_home_is_reported_all_the_same(planted, tmp_path, damage):
    home, _, environment = planted
    damage(home)
    done = report(home, tmp_path / "report.txt", **environment)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "report.txt").read_text()
    assert "failure" in text
    assert "Python " + sys.version.split()[0] in text
    assert "\n== log\n" in text
