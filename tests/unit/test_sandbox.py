"""What is decided about a sandbox without entering one."""

import pytest

from shoal.compute.sandbox import Feature, Lock, landlock, strangers_welcome
from shoal.compute.sandbox.executable import writable_and_executable
from shoal.compute.sandbox.limits import _at_most

ALL_64 = (1 << 64) - 1


@pytest.mark.parametrize(
    ("abi", "fields"),
    [
        (1, [(1 << 13) - 1]),
        (2, [(1 << 14) - 1]),
        (3, [(1 << 15) - 1]),
        (4, [(1 << 15) - 1, 3]),
        (5, [(1 << 16) - 1, 3]),
        (6, [(1 << 16) - 1, 3, 3]),
        (7, [(1 << 16) - 1, 3, 3]),
        (99, [(1 << 16) - 1, 3, 3]),  # a newer kernel knows all that an older one does
    ],
)
def test_all_that_an_abi_knows_is_taken_away(abi, fields):
    attributes = landlock.ruleset(abi)
    found = [
        int.from_bytes(attributes[i : i + 8], "little") for i in range(0, len(attributes), 8)
    ]
    assert found == fields


def test_a_lock_is_complete_with_landlock_and_a_filter_and_nothing_missing():
    assert Lock(landlock_abi=1, filtered=True).complete
    assert not Lock(landlock_abi=7).complete
    assert not Lock(filtered=True).complete
    assert not Lock(landlock_abi=7, filtered=True, missing=("3 threads ran",)).complete


def test_a_lock_says_what_holds_and_what_is_missing():
    assert str(Lock(landlock_abi=7, filtered=True)) == "landlock 7, seccomp"
    assert str(Lock()) == "not sandboxed"
    missing = ("landlock: Function not implemented",)
    assert str(Lock(filtered=True, missing=missing)) == (
        "seccomp; landlock: Function not implemented"
    )


def test_strangers_are_welcome_where_everything_required_is_offered():
    there = Feature("seccomp", offered=True, message="")
    missing = Feature("landlock", offered=False, message="")
    luxury = Feature("luxury", offered=False, message="", required=False)
    assert strangers_welcome((there, luxury))
    assert not strangers_welcome((there, missing))


def test_only_mappings_that_can_be_written_and_executed_are_found():
    maps = (
        "7f00-7f10 r-xp 00000000 fe:00 123   /usr/lib/libc.so.6\n"
        "7f10-7f20 rwxp 00000000 00:00 0 \n"
        "7f20-7f30 rw-p 00000000 00:00 0   [heap]\n"
        "7f30-7f40 rwxs 00000000 00:01 7   /a file with rw- in its name\n"
    )
    assert writable_and_executable(maps) == [(0x7F10, 0x7F20), (0x7F30, 0x7F40)]


def test_a_limit_is_never_above_the_hard_one():
    unlimited = -1
    assert _at_most(5, 9) == 5
    assert _at_most(9, 5) == 5
    assert _at_most(5, unlimited) == 5
    assert _at_most(unlimited, 5) == 5
    assert _at_most(unlimited, unlimited) == unlimited
