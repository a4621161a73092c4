"""Settings that are read again: what counts at once, what waits for a restart, and that
settings in error change nothing."""

from dataclasses import fields, replace

import pytest

from shoal.node.config import Config, load
from shoal.node.errors import ConfigError
from shoal.node.reload import LiveConfig, change, view
from shoal.node.settings import SETTINGS

PEER = "12D3KooWS4g1ygNaqQbqCrTRs5ENekL3NVAedaxoJDEHNRhQQT9M"

LIVE = {
    *("bootstrap", "allow", "deny", "serve", "min_price", "time_limit", "schedule"),
    *("step_back", "provide", "blob_quota", "log_level", "drain"),
    *("results_quota", "results_keep"),
}
OTHERS = {
    "bulk": '"off"',
    "bulk_announce": '"shoal.example:5711"',
    "bootstrap": f'["/ip4/1.2.3.4/tcp/1/p2p/{PEER}"]',
    "allow": f'["{PEER}"]',
    "deny": f'["{PEER}"]',
    "schedule": '["sat 10:00-12:00"]',
    "serve": '"friends"',
    "min_price": "7",
    "time_limit": '"2m"',
    "step_back": '"99%"',
    "provide": "false",
    "cores": "1",
    "memory": '"1GB"',
    "niceness": "7",
    "units_per_card": "1",
    "lan": "false",
    "blob_quota": '"3GB"',
    "results_quota": '"1GB"',
    "results_keep": '"3d"',
    "log_level": '"error"',
    "drain": '"7s"',
    "listen": '["/ip4/127.0.0.1/tcp/1"]',
    "socket": '"/tmp/other"',
    "name": '"other"',
    "log_file": '"/tmp/log"',
    "socket_group": '"other"',
    "metrics": '"9999"',
}
"""For every setting of the file a value that is not its default."""


@pytest.fixture
def home(tmp_path):
    return tmp_path


@pytest.fixture
def reread(home):
    """What the daemon does to read its settings again: one flag was given at its start."""

    def read():
        return load({"home": home, "min_price": "3"}, {"SHOAL_NICENESS": "9"})

    return read


def write(home, text):
    (home / "config.toml").write_text(text)


def test_which_settings_are_live():
    assert {setting.name for setting in SETTINGS if setting.live} == LIVE


@pytest.mark.parametrize("name", OTHERS)
def test_a_setting_that_was_changed_counts_at_once_if_it_is_live_and_waits_if_not(home, name):
    running = load({"home": home}, {})
    write(home, f"{name} = {OTHERS[name]}\n")
    found = load({"home": home}, {})
    (setting,) = (setting for setting in SETTINGS if setting.name == name)
    result = change(running, found)
    if name == "cores" and running.cores == 1:
        pytest.skip("this machine has one core")
    assert (result.changed, result.needs_restart) == (
        ((name,), ()) if name in LIVE else ((), (name,))
    )
    counted = found if name in LIVE else running
    assert getattr(result.config, setting.attribute) == getattr(counted, setting.attribute)
    assert result.config.sources[name] == ("file" if name in LIVE else "default")
    rest = {f.name for f in fields(Config)} - {setting.attribute, "sources", "warnings"}
    assert all(getattr(result.config, f) == getattr(running, f) for f in rest)
    told = view(result)
    assert told.unchanged == len(SETTINGS) - 1


def test_every_setting_is_looked_at():
    assert {setting.name for setting in SETTINGS} - {"home"} == OTHERS.keys()


def test_a_machine_that_has_changed_under_a_default_is_nothing_to_restart_for(home):
    running = load({"home": home}, {})
    found = replace(running, memory_bytes=running.memory_bytes // 2)
    assert change(running, found).needs_restart == ()


async def test_settings_in_error_change_nothing_and_the_error_is_kept_until_they_are_mended(
    home, reread
):
    applied = []
    settings = LiveConfig(reread(), reread, applied.append)
    before = settings()
    write(home, 'serve = "friends"\ndeny = ["nobody"]\n')
    with pytest.raises(ConfigError, match="nobody"):
        await settings.reload()
    assert settings() is before
    assert settings.complaint.code == "bad_setting"
    assert applied == []
    write(home, f'serve = "friends"\ndeny = ["{PEER}"]\n')
    result = await settings.reload()
    assert set(result.changed) == {"serve", "deny"}
    assert (settings().serve, settings().deny) == ("friends", (PEER,))
    assert settings.complaint is None
    assert applied == [result]


async def test_what_was_given_at_the_start_goes_before_the_file_again(home, reread):
    settings = LiveConfig(reread(), reread)
    write(home, "min_price = 9\nniceness = 11\ndrain = 20\n")
    result = await settings.reload()
    assert (result.changed, result.needs_restart) == (("drain",), ())
    assert (settings().min_price, settings().niceness, settings().drain_s) == (3.0, 9, 20.0)


async def test_a_setting_taken_out_of_the_file_goes_back_to_its_default(home, reread):
    write(home, 'log_level = "debug"\nname = "attic"\n')
    settings = LiveConfig(reread(), reread)
    write(home, "")
    result = await settings.reload()
    assert (result.changed, result.needs_restart) == (("log_level",), ("name",))
    assert settings().log_level == "info"
    assert settings.needs_restart == ("name",)
    write(home, 'name = "attic"\n')
    await settings.reload()
    assert settings.needs_restart == ()
