"""Kill -9 right before and right after each write of a job's life: nothing is lost or twice.

The process is `journal_life`; each is killed at another of its commits, a second one goes
on with the same file to the end, and what both of them gave out is what an undisturbed one
gave out. In between, the file as the killed one left it has to be sound.
"""

import signal
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
from journal_life import EARLIER, OTHER, UNITS
from journal_samples import check_sound

from shoal.node.records import UnitState
from shoal.node.state import open_state

LIFE = Path(__file__).with_name("journal_life.py")


class Told(NamedTuple):
    """How a life ended, and what it told, by the first word of each line."""

    code: int
    lines: dict[str, list[list[str]]]


def lines_of(path):
    return Path(f"{path}.told").read_text().splitlines()


async def live(lives, writes):
    """Live from (state, kill at, when), each in a process; gives by state how that went."""
    ended = await trio.run_process(
        [sys.executable, str(LIFE), writes],
        stdin="".join(f"{path} {kill_at} {when}\n" for path, kill_at, when in lives).encode(),
        capture_stdout=True,
        capture_stderr=True,
    )
    told = {}
    for line in ended.stdout.decode().splitlines():
        path, code = line.split()
        assert int(code) in {0, -signal.SIGKILL}, ended.stderr.decode()
        said = {}
        for words in lines_of(path):
            word, *rest = words.split()
            said.setdefault(word, []).append(rest)
        told[Path(path)] = Told(int(code), said)
    return told


def given_by(said):
    """What was given out, by unit: a client asks for a page again after a restart."""
    given = {}
    for index, *what in said.get("given", []):
        assert given.setdefault(index, what) == what  # the same each time
    return given


async def look(path):
    """What has to hold of the file as a kill left it, and what it says of the jobs."""
    check_sound(path)
    async with open_state(path) as state:
        jobs = {job.id: job for job in await state.jobs(10)}
        for job in jobs.values():
            units = await state.units(job.id, 0, 100)
            for unit in units:
                if unit.state is UnitState.DONE:
                    assert await state.tensors(unit.outputs.values())
                    assert await state.receipt(unit.receipt)
                checks = await state.checks(job.id, unit.index)
                if job.id != OTHER:
                    run = unit.state is UnitState.DONE
                    assert [check.unit for check in checks] == [unit.index] * run
                if unit.state is UnitState.QUEUED:
                    for ref in unit.awaits.values():  # no unit waits for one that has ended
                        (source,) = await state.units(ref.job, ref.unit, 1)
                        assert source.state is UnitState.QUEUED
            open_units = [u for u in units if u.state is UnitState.QUEUED]
            ready = [u.index for u in open_units if not u.awaits]
            assert [u.index for u in await state.open_units(job.id)] == ready
            assert ready or not open_units or EARLIER in jobs  # somebody can go on
    return jobs


@pytest.mark.parametrize("writes", ["grouped", "small"])
async def test_a_job_whose_daemon_is_killed_at_any_write_is_delivered_as_if_it_were_not(
    tmp_path, writes
):
    path = tmp_path / "undisturbed.sqlite"
    undisturbed = (await live([(path, 0, "-")], writes))[path].lines
    given, forgotten = given_by(undisturbed), dict(undisturbed["forget"])
    assert len(given) == UNITS
    assert sum(what[0] == "failed" for what in given.values()) == 2  # one, and who awaits it
    commits = int(undisturbed["commits"][0][0])
    assert commits > 30
    kills = [
        (tmp_path / f"{at}-{when}.sqlite", at, when)
        for at in range(1, commits + 1)
        for when in ("before", "after")
    ]
    with trio.fail_after(300):
        first = await live(kills, writes)
        assert {told.code for told in first.values()} == {-signal.SIGKILL}
        assert len(first) == len(kills)
        for path in first:
            await look(path)
        second = await live([(path, 0, "-") for path in first], writes)
        for path, (code, lines) in second.items():
            assert code == 0
            assert set(await look(path)) == {OTHER}
            for word, before in first[path].lines.items():
                lines[word] = before + lines.get(word, [])
            assert given_by(lines) == given, path.name
            assert dict(lines["forget"]) == forgotten, path.name


async def test_a_daemon_may_be_killed_again_and_again(tmp_path):
    path = tmp_path / "state.sqlite"
    given = {}
    with trio.fail_after(120):
        for turn in range(60):
            writes = ("grouped", "small")[turn % 2]
            told = (await live([(path, 3 + turn % 7, "after")], writes))[path]
            given |= given_by(told.lines)
            check_sound(path)
            if told.code == 0:
                break
    assert told.code == 0
    assert len(given) == UNITS
