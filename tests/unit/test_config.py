"""Settings: their sources in order, their checks, and where the socket is."""

import json
import os
import re
import stat
import tomllib
from dataclasses import fields, replace

import pytest

from shoal.node.config import Config, file_text, load, unknown_variables
from shoal.node.errors import ConfigError
from shoal.node.home import open_home
from shoal.node.setting_values import read_duration_s, read_metrics_place, read_size_bytes
from shoal.node.settings import SETTINGS

PEER = "12D3KooWS4g1ygNaqQbqCrTRs5ENekL3NVAedaxoJDEHNRhQQT9M"


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def write(home, text):
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(text)


def refusal(flags, environment=None):
    with pytest.raises(ConfigError) as caught:
        load(flags, environment or {})
    return caught.value


def test_flags_go_before_variables_before_the_file_before_defaults(home):
    write(home, 'name = "file"\ncores = 2\nlog_level = "error"\n')
    found = load({"home": home, "name": "flag"}, {"SHOAL_NAME": "var", "SHOAL_CORES": "1"})
    assert (found.name, found.cores, found.log_level, found.provide) == (
        "flag",
        1,
        "error",
        True,
    )
    assert [found.sources[n] for n in ("name", "cores", "log_level", "provide")] == [
        "flag",
        "environment",
        "file",
        "default",
    ]


def test_a_flag_that_was_not_given_and_an_empty_variable_do_not_count(home):
    write(home, 'name = "file"\n')
    assert load({"home": home, "name": None}, {"SHOAL_NAME": ""}).name == "file"


def test_an_unknown_key_is_refused_with_a_suggestion(home):
    write(home, "bootstrp = []\n")
    error = refusal({"home": home})
    assert error.code == "unknown_setting"
    assert "config.toml" in error.message
    assert error.hint == "did you mean 'bootstrap'?"


def test_an_unknown_key_like_no_other_is_refused_with_the_list(home):
    write(home, "qqq = 1\n")
    assert "blob_quota" in refusal({"home": home}).hint


def test_the_home_cannot_be_set_in_the_file_that_lies_in_it(home):
    write(home, 'home = "/elsewhere"\n')
    assert refusal({"home": home}).code == "unknown_setting"


def test_a_file_that_is_not_toml_is_refused(home):
    write(home, "cores = = 2")
    assert refusal({"home": home}).code == "config_malformed"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("memory = 8GB\n", 'quote it: memory = "8GB"'),
        ("cores = 2\nname = attic  # upstairs", 'quote it: name = "attic"'),
        ("cores = 2\nallow = [\n", "mend line 2"),
        ("cores = 2\nlisten\n", "mend line 2"),
    ],
)
def test_a_line_that_is_not_toml_is_named_with_what_to_write(home, text, hint):
    write(home, text)
    assert refusal({"home": home}).hint.startswith(hint)


@pytest.mark.parametrize(
    ("flags", "environment", "text", "place", "hint"),
    [
        ({"cores": "many"}, {}, "", '--cores: "many"', "`--cores 4`"),
        ({}, {"SHOAL_CORES": "x"}, "", 'SHOAL_CORES: "x"', "`SHOAL_CORES=4`"),
        ({}, {}, "cores = true", "cores in {file}: true", "`cores = 4`"),
        ({}, {}, "name = 3", "name in {file}: 3", '`name = "attic"`'),
        ({}, {}, "allow = ['x']", 'allow in {file}: ["x"]', '`allow = ["PEER_ID"]`'),
    ],
)
def test_a_bad_value_is_answered_with_one_as_it_should_be_written(
    home, flags, environment, text, place, hint
):
    write(home, text)
    error = refusal({"home": home, **flags}, environment)
    assert error.message.startswith(place.format(file=home / "config.toml"))
    assert hint in error.hint


def test_a_file_that_is_not_text_is_refused(home):
    home.mkdir()
    (home / "config.toml").write_bytes(b"\xff\xfe\x00")
    assert refusal({"home": home}).code == "config_malformed"


def test_a_directory_in_place_of_the_file_is_refused(home):
    (home / "config.toml").mkdir(parents=True)
    assert refusal({"home": home}).code == "config_unreadable"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("listen", "localhost:4711"),
        ("listen", "/ip4/0.0.0.0/udp/4711"),
        ("bootstrap", "/ip4/1.2.3.4/tcp/4711"),
        ("bootstrap", "/ip4/1.2.3.4/tcp/4711/p2p/nobody"),
        ("bootstrap", f"/ip4/1.2.3.400/tcp/4711/p2p/{PEER}"),
        ("bootstrap", "/dnsaddr/no name"),
        ("bootstrap", "/dnsaddr/shoal.example/p2p/nobody"),
        ("lan", "perhaps"),
        ("allow", "somebody"),
        ("provide", "maybe"),
        ("cores", "0"),
        ("cores", "many"),
        ("cores", "-1"),
        ("memory", "8 potatoes"),
        ("memory", "0"),
        ("blob_quota", "-5GB"),
        ("log_level", "loud"),
        ("name", "a\nb"),
    ],
)
def test_a_bad_value_is_refused_and_its_place_named(home, name, value):
    error = refusal({"home": home}, {f"SHOAL_{name.upper()}": value})
    assert error.code == "bad_setting"
    assert f"SHOAL_{name.upper()}" in error.message
    assert json.dumps(value) in error.message


@pytest.mark.parametrize("text", ["cores = true", "listen = 4711", "name = 3", "allow = [1]"])
def test_a_value_of_the_wrong_type_in_the_file_is_refused(home, text):
    write(home, text)
    assert refusal({"home": home}).code == "bad_setting"


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("20GB", 20 * 1000**3), ("512 MiB", 512 << 20), ("1.5kB", 1500), ("7", 7), (7, 7)],
)
def test_sizes_are_read_as_people_write_them(text, size_bytes):
    assert read_size_bytes(text) == size_bytes


def test_more_places_to_join_through_than_can_be_dialled_are_refused(home):
    many = [f"/dnsaddr/n{number}.example" for number in range(65)]
    assert "more than 64" in refusal({"home": home, "bootstrap": many}).message


def test_places_to_join_through_have_many_forms(home):
    forms = (
        f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}",
        f"/ip6/2001:db8::1/tcp/1/p2p/{PEER}",
        *(f"/{kind}/shoal.example/tcp/1/p2p/{PEER}" for kind in ("dns", "dns4", "dns6")),
        "/dnsaddr/shoal.example",
        f"/dnsaddr/shoal.example/p2p/{PEER}",
    )
    assert load({"home": home}, {"SHOAL_BOOTSTRAP": ",".join(forms)}).bootstrap == forms


def test_lists_come_as_toml_lists_repeated_flags_or_text_with_commas(home):
    one, two = f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}", f"/ip4/1.2.3.4/tcp/2/p2p/{PEER}"
    write(home, f'bootstrap = ["{one}", "{two}"]\n')
    for found in (
        load({"home": home}, {}),
        load({"home": home, "bootstrap": [one, two, one]}, {}),
        load({"home": home}, {"SHOAL_BOOTSTRAP": f"{one}, {two}"}),
    ):
        assert found.bootstrap == (one, two)


def test_the_socket_is_in_a_home_that_was_chosen(home):
    runtime = {"XDG_RUNTIME_DIR": "/run/user/7"}
    assert load({"home": home}, runtime).socket == home / "shoal.sock"
    assert load({}, runtime | {"SHOAL_HOME": str(home)}).socket == home / "shoal.sock"


def test_the_socket_of_the_default_home_is_in_the_runtime_directory():
    assert (
        str(load({}, {"XDG_RUNTIME_DIR": "/run/user/7"}).socket)
        == "/run/user/7/shoal/shoal.sock"
    )
    assert load({}, {}).socket == load({}, {}).home / "shoal.sock"


def test_a_socket_that_was_told_goes_before_all(home):
    environment = {"SHOAL_SOCKET": "/a.sock", "XDG_RUNTIME_DIR": "/run/user/7"}
    assert str(load({"home": home}, environment).socket) == "/a.sock"
    assert str(load({"socket": "/b.sock"}, environment).socket) == "/b.sock"


def test_a_socket_path_over_the_systems_limit_is_refused(tmp_path):
    assert refusal({"home": tmp_path / ("x" * 120)}).code == "socket_path_too_long"


def test_every_setting_has_a_field_and_every_field_a_setting():
    named = {setting.field or setting.name for setting in SETTINGS}
    assert named == {field.name for field in fields(Config)} - {"sources", "warnings"}


def in_the_file(mark):
    """Settings of the commented file, by the mark that their lines begin with."""
    return dict(re.findall(f"^{mark}([a-z_]+) = (.*)$", file_text(), re.MULTILINE))


def test_the_commented_file_changes_nothing_and_has_every_setting_once(home):
    text = file_text()
    assert tomllib.loads(text) == {}
    names = re.findall("^#([a-z_]+) = ", text, re.MULTILINE)
    assert names == [setting.name for setting in SETTINGS if setting.name != "home"]


def test_a_commented_line_is_the_default_and_all_of_them_load_when_uncommented(home):
    default = load({"home": home}, {})
    for name, value in in_the_file("#").items():
        setting = next(each for each in SETTINGS if each.name == name)
        write(home, f"{name} = {value}")
        found = load({"home": home}, {})
        assert getattr(found, setting.attribute) == getattr(default, setting.attribute), name
        assert found.sources[name] == ("default" if value == '""' else "file")
    write(home, re.sub("(?m)^#([a-z])", r"\1", file_text()))
    everything = load({"home": home}, {})
    assert replace(everything, sources=default.sources) == default
    assert everything.sources["niceness"] == "file"


def test_an_example_in_the_file_is_valid_and_no_default(home):
    examples, defaults = in_the_file("# Example: "), in_the_file("#")
    assert examples.keys() == defaults.keys()
    for name, value in examples.items():
        assert value != defaults[name]
        write(home, f"{name} = {value.replace('PEER_ID', PEER)}")
        assert load({"home": home}, {}).sources[name] == "file"


def test_a_setting_that_takes_a_restart_says_so_in_the_file():
    for setting in SETTINGS[1:]:
        (line,) = re.findall(f"^# Also {setting.flag} or .*", file_text(), re.MULTILINE)
        assert line.endswith("restart.") != setting.live


def test_a_value_that_is_written_stands_once_beside_its_default():
    lines = file_text({"drain": "1m", "name": ""}).splitlines()
    assert [line for line in lines if "drain =" in line] == [
        '# Example: drain = "1m"',
        '# Default: drain = "10s"',
        "drain = 60.0",
    ]
    assert '#name = ""' in lines


def test_values_written_into_the_file_are_read_back(home):
    address = f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}"
    write(home, file_text({"bootstrap": [address], "provide": "no", "memory": "2GB"}))
    found = load({"home": home}, {})
    assert (found.bootstrap, found.provide, found.memory_bytes) == (
        (address,),
        False,
        2 * 10**9,
    )


def test_variables_that_nothing_reads_are_told():
    assert unknown_variables({"SHOAL_BOOTSTRP": "x", "SHOAL_NAME": "y", "HOME": "/"}) == (
        "SHOAL_BOOTSTRP",
    )


def test_a_home_is_made_once_private_and_keeps_its_key(home):
    config = load({"home": home}, {})
    first = open_home(config)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE(config.key_path.stat().st_mode) == 0o600
    assert open_home(config).peer_id == first.peer_id


def test_a_home_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        open_home(load({"home": tmp_path / "file" / "home"}, {}))
    assert caught.value.code == "home_unwritable"
    assert "SHOAL_HOME" in caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_home_is_one_clear_error(home):
    home.mkdir(mode=0o500)
    with pytest.raises(ConfigError) as caught:
        open_home(load({"home": home}, {}))
    assert caught.value.code == "home_unwritable"


def test_the_owners_settings_are_read_from_the_file(home):
    write(
        home,
        f"""
serve = "friends"
deny = ["{PEER}"]
min_price = 2.5
time_limit = "90m"
schedule = ["mon-fri 18:00-08:00", "sat,sun 00:00-24:00"]
step_back = "off"
niceness = 5
cores = "100%"
memory = "50%"
""",
    )
    found = load({"home": home}, {})
    default = load({"home": home / "other"}, {})
    assert (found.serve, found.deny, found.min_price) == ("friends", (PEER,), 2.5)
    assert [str(window) for window in found.schedule] == [
        "mon-fri 18:00-08:00",
        "sat,sun 00:00-24:00",
    ]
    assert (found.step_back, found.niceness, found.time_limit_s) == (None, 5, 5400.0)
    assert (found.cores, found.memory_bytes) == (default.cores, default.memory_bytes)


def test_by_default_anyone_is_served_always_at_the_lowest_priority_stepping_back(home):
    found = load({"home": home}, {})
    assert (found.serve, found.deny, found.min_price) == ("anyone", (), 0.0)
    assert (found.schedule, found.step_back, found.niceness) == ((), 0.25, 19)


def test_windows_come_as_repeated_flags_or_one_text_with_semicolons(home):
    flags = load({"home": home, "schedule": ["mon,tue 1:00-2:00", "22:00-06:00"]}, {})
    text = load({"home": home}, {"SHOAL_SCHEDULE": "mon,tue 1:00-2:00; 22:00-06:00"})
    assert flags.schedule == text.schedule
    assert len(text.schedule) == 2


def test_a_share_is_written_into_the_file_as_it_was_given(home):
    text = file_text({"cores": "50%", "step_back": "10%", "schedule": ["sat 0:00-24:00"]})
    write(home, text)
    assert 'cores = "50%"' in text
    found = load({"home": home}, {})
    assert found.step_back == 0.1
    assert [str(window) for window in found.schedule] == ["sat 00:00-24:00"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("serve", "nobody"),
        ("deny", "somebody"),
        ("min_price", "-1"),
        ("min_price", "nan"),
        ("drain", "0s"),
        ("socket_group", "a b"),
        ("metrics", "localhost:9464"),
        ("metrics", "127.0.0.1"),
        ("metrics", "0"),
        ("metrics", "70000"),
        ("time_limit", "long"),
        ("schedule", "18-8"),
        ("step_back", "25"),
        ("niceness", "0"),
        ("units_per_card", "0"),
        ("units_per_card", "17"),
        ("cores", "0%"),
        ("memory", "101%"),
    ],
)
def test_a_bad_setting_of_the_owner_is_refused_with_one_that_is_good(home, name, value):
    error = refusal({"home": home}, {f"SHOAL_{name.upper()}": value})
    assert (error.code, value in error.message) == ("bad_setting", True)
    assert f"SHOAL_{name.upper()}=" in error.hint


def test_too_many_windows_are_refused(home):
    windows = [f"mon {hour:02}:{minute:02}-23:59" for hour in range(2) for minute in range(60)]
    assert "64 windows" in refusal({"home": home, "schedule": windows}).message


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [
        ("2h", 7200),
        ("90 min", 5400),
        ("1h30m", 5400),
        ("45s", 45),
        ("1.5d", 129_600),
        ("90", 90),
        (2.5, 2.5),
    ],
)
def test_durations_are_read_as_people_write_them(text, duration_s):
    assert read_duration_s(text) == duration_s


@pytest.mark.parametrize(
    "text", ["", "h", "2x", "nan", "inf", "1e9", "2h3", "-1h", "0s", "99999d", "h2"]
)
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="is no time"):
        read_duration_s(text)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("9464", ("127.0.0.1", 9464)),
        (9464, ("127.0.0.1", 9464)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
        ("[::1]:9464", ("::1", 9464)),
    ],
)
def test_a_place_for_metrics_is_of_the_loopback_unless_an_address_is_given(text, place):
    assert read_metrics_place(text) == place


def test_more_cores_than_there_are_become_all_of_them_with_a_warning(home):
    usable = load({"home": home}, {}).cores
    found = load({"home": home, "cores": usable + 97}, {})
    assert found.cores == usable
    (warning,) = found.warnings
    assert str(usable + 97) in warning
    assert load({"home": home, "cores": usable}, {}).warnings == ()


def test_a_variable_that_no_setting_reads_is_a_warning_with_the_one_that_was_meant(home):
    environment = {"SHOAL_BOOTSTRP": "x", "SHOAL_PORT": "1", "SHOAL_NAME": "attic"}
    assert load({"home": home}, environment).warnings == (
        "no setting reads the variable SHOAL_BOOTSTRP; did you mean SHOAL_BOOTSTRAP?",
        "no setting reads the variable SHOAL_PORT",
    )


def test_those_who_serve_is_a_setting_that_a_reload_takes_up(home):
    assert load({"home": home, "serve": "Those-Who-Serve"}, {}).serve == "those-who-serve"
    assert next(one for one in SETTINGS if one.name == "serve").live


def test_friends_alone_and_none_of_them_is_a_warning_with_the_next_step(home):
    friends = {"home": home, "serve": "friends"}
    (warning,) = load(friends, {}).warnings
    assert "nobody but this node's own user is served" in warning
    assert "`shoal allow PEER_ID`" in warning
    assert load(friends | {"allow": [PEER], "deny": [PEER]}, {}).warnings == (warning,)
    assert load(friends | {"allow": [PEER]}, {}).warnings == ()
    assert load(friends | {"provide": "no"}, {}).warnings == ()
