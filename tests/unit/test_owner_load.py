"""Whose processor time counts as the owner's, from lines as the kernel writes them."""

import os

import pytest

from shoal.node.owner_load import OwnersUse, Process, owners_ticks, read_process

HZ = os.sysconf("SC_CLK_TCK")


def line(pid, *, parent=1, times=(0, 0, 0, 0), nice=0, policy=0, flags=0, name="a name"):
    """A line of /proc/PID/stat; the fields that are not read are what they may be."""
    fields = [0] * 50
    fields[0], fields[1], fields[6] = "S", parent, flags
    fields[11:15] = times
    fields[16], fields[38] = nice, policy
    return f"{pid} ({name}) {' '.join(map(str, fields))}\n".encode()


def test_a_process_counts_with_the_time_of_its_children_that_have_ended():
    assert read_process(line(7, parent=3, times=(1, 2, 30, 40))) == (7, Process(3, 73, False))


def test_a_name_with_brackets_and_blanks_is_no_trap():
    assert read_process(line(7, parent=3, name="x) R 99 (y"))[1].parent == 3


@pytest.mark.parametrize("changes", [{"nice": 1}, {"nice": 19}, {"policy": 5}])
def test_a_process_of_low_priority_can_wait_and_is_not_counted(changes):
    pid, process = read_process(line(7, times=(9, 0, 0, 0), **changes))
    assert owners_ticks({pid: process}, own=99) == 0


def test_a_thread_of_the_kernel_is_nobodys():
    assert read_process(line(2, flags=0x00200000)) is None


def test_what_is_no_such_line_is_refused():
    with pytest.raises(ValueError, match="7"):
        read_process(b"7 (x) S 1 2")


def test_the_daemon_and_all_that_it_started_are_not_counted_and_others_are():
    processes = {
        1: Process(0, 1, False),
        10: Process(1, 20, False),  # the daemon
        11: Process(10, 300, False),
        12: Process(11, 4000, False),
        20: Process(1, 50_000, False),
        21: Process(20, 600_000, False),
        22: Process(99, 7_000_000, False),  # its parent was not read
    }
    assert owners_ticks(processes, own=10) == 7_650_001


def test_processes_that_are_each_others_parents_in_a_torn_reading_are_counted():
    assert owners_ticks({5: Process(6, 1, False), 6: Process(5, 2, False)}, own=10) == 3


@pytest.fixture
def machine(tmp_path):
    """A listing of processes that a test writes, and a clock that it turns."""

    class Machine:
        now_s = 100.0

        def __init__(self):
            self.use = OwnersUse(2.0, proc=tmp_path, clock=lambda: self.now_s)
            (tmp_path / "self").mkdir()

        def show(self, pid, seconds, **changes):
            (tmp_path / str(pid)).mkdir(exist_ok=True)
            ticks = int(seconds * HZ)
            (tmp_path / str(pid) / "stat").write_bytes(
                line(pid, times=(ticks, 0, 0, 0), **changes)
            )

    return Machine()


def test_the_use_is_the_share_of_all_cores_since_the_last_look(machine):
    machine.show(5, 10.0)
    assert machine.use.measure() is None  # since when?
    machine.now_s += 2.0
    machine.show(5, 11.0)
    assert machine.use.measure() == pytest.approx(0.25)
    machine.now_s += 2.0
    assert machine.use.measure() == 0.0


def test_a_process_that_ends_and_takes_its_time_along_does_not_make_use_negative(
    machine, tmp_path
):
    machine.show(5, 10.0)
    machine.show(6, 10.0)
    machine.use.measure()
    machine.now_s += 2.0
    (tmp_path / "6" / "stat").unlink()
    assert machine.use.measure() == 0.0


def test_no_more_than_the_whole_machine_is_used(machine):
    machine.show(5, 10.0)
    machine.use.measure()
    machine.now_s += 2.0
    machine.show(5, 1000.0)  # a child of hours has ended
    assert machine.use.measure() == 1.0


def test_where_nothing_can_be_read_nothing_is_said(tmp_path):
    use = OwnersUse(2.0, proc=tmp_path / "nowhere")
    assert use.measure() is None
    assert use.measure() is None
