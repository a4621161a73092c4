"""Who did how much for whom, and how peers stand, by the command line and real daemons."""

import json
import time

import models
import numpy as np
import pytest
from daemons import eventually, shoal

from shoal.node.settling import WRITE_INTERVAL_S

UNITS = 40


def rows_of(node, *peer):
    found = shoal("ledger", *peer, "--json", node=node)
    assert found.code == 0, found
    return found.json["ledger"]["rows"]


def rounded(rows):
    return [
        {name: round(v, 6) if isinstance(v, float) else v for name, v in row.items()}
        for row in rows
    ]


def settled(node, direction):
    """Whether all work of one direction is acknowledged, and there is some."""
    rows = [row for row in rows_of(node) if row["direction"] == direction]
    return sum(row["units"] for row in rows) > 0 and all(
        row["units"] == row["acknowledged_units"] for row in rows
    )


@pytest.fixture
def model(tmp_path):
    (tmp_path / "dense.onnx").write_bytes(models.dense())
    np.save(tmp_path / "x.npy", models.rows(UNITS))
    return tmp_path


def run_map(node, model):
    return shoal(
        *("map", model / "dense.onnx", f"--input=x={model}/x.npy", "--batch=1"),
        *(f"--output={model}/out", "--json"),
        node=node,
    )


def test_work_is_acknowledged_counted_at_both_ends_and_checked_by_anybody(swarm, model):
    requester = swarm.nodes[0]
    assert run_map(requester, model).code == 0
    eventually(lambda: settled(requester, "taken"), 60, "its work is acknowledged")
    taken = {row["peer"]: row for row in rows_of(requester) if row["direction"] == "taken"}
    assert taken
    for node in swarm.nodes[1:]:
        if node.peer not in taken:
            continue
        eventually(lambda node=node: settled(node, "given"), 60, "the provider knows")
        (given,) = [row for row in rows_of(node, requester.peer) if row["direction"] == "given"]
        assert given["units"] == taken[node.peer]["units"]
        assert given["credits"] == pytest.approx(taken[node.peer]["credits"])
        file = model / f"{node.number}.ledger"
        exported = shoal("ledger", "--export", file, node=node)
        assert exported.code == 0, exported
        checked = shoal("ledger", "verify", file, "--json")
        assert checked.code == 0, checked
        pairs = {
            (pair["requester"], pair["provider"]): pair
            for pair in checked.json["ledger"]["pairs"]
        }
        pair = pairs[requester.peer, node.peer]
        assert pair["acknowledged"] == given["acknowledged_units"]
        assert pair["credits"] == pytest.approx(given["acknowledged_credits"])
        lines = file.read_text().splitlines()
        statement = json.loads(lines[1])
        name = "acknowledgement" if "acknowledgement" in statement else "receipt"
        text = statement[name]
        statement[name] = text[:-10] + ("A" if text[-10] != "A" else "B") + text[-9:]
        file.write_text("\n".join([lines[0], json.dumps(statement), *lines[2:]]))
        changed = shoal("ledger", "verify", file)
        assert changed.code == 1
        assert "line 2" in changed.stderr
    shown = shoal("standing", next(iter(taken)), node=requester)
    assert shown.code == 0
    assert "share of work" in shown.stdout
    wrong = shoal("standing", "nobody", node=requester)
    assert wrong.code != 0
    assert "no peer's id" in wrong.stderr


def test_figures_and_standing_survive_a_restart(swarm, model):
    requester = swarm.nodes[0]
    assert run_map(requester, model).code == 0
    eventually(lambda: settled(requester, "taken"), 60, "its work is acknowledged")
    before = rows_of(requester)
    time.sleep(2 * WRITE_INTERVAL_S)
    requester.kill()
    swarm.start(requester)
    swarm.wait_ready(requester)
    # The same sums of credits, added in another order.
    assert rounded(rows_of(requester)) == rounded(before)
