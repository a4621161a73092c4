"""Where a unit's time went, as it is printed."""

import pytest

from shoal.node.cli.jobs import show
from shoal.node.cli.timing import print_timing
from shoal.node.errors import ConfigError
from shoal.node.timing_view import UnitTiming


def test_each_step_is_a_line_with_its_share(capsys):
    print_timing(UnitTiming("j", 0, "p", 3, {"handed_over": 0.003, "written": 0.001}, 0.004))
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert lines[1][:4] == ["handed", "over", "3.000", "75%"]
    assert lines[2][:3] == ["written", "1.000", "25%"]
    assert lines[3][:3] == ["all", "4.000", "100%"]
    assert "3 units went in one message" in out + err


def test_timing_is_asked_of_one_unit():
    with pytest.raises(ConfigError) as caught:
        show("1" * 27, timing=True)
    assert "--unit N" in caught.value.hint
