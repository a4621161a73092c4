"""Who did how much for whom, and how peers stand, by the command line and real daemons."""

import json
import time
from base64 import b64decode

import models
import numpy as np
import pytest
from daemons import eventually, shoal

from shoal.node.acknowledging import WAITS_S
from shoal.node.settling import WRITE_INTERVAL_S
from shoal.protocol.statements import open_acknowledgement, open_award, open_receipt

UNITS = 40
FIGURES = ("units", "credits", "acknowledged_units", "acknowledged_credits")


def rows_of(node):
    found = shoal("ledger", "--json", node=node)
    assert found.code == 0, found
    return found.json["ledger"]["rows"]


def rounded(rows):
    return [
        {name: round(v, 6) if isinstance(v, float) else v for name, v in row.items()}
        for row in rows
    ]


def row_of(node, peer, direction):
    """What the ledger of a node has of one peer, or no work where it has nothing."""
    with node.client() as client:
        rows = [row for row in client.ledger(peer).rows if row.direction == direction]
    return {name: getattr(rows[0], name) if rows else 0 for name in FIGURES}


def receipts_of(node, job_id):
    """Ids of the receipts that a job has of others, by their providers."""
    found = {}
    with node.client() as client:
        for receipt_id in client.receipts(job_id):
            provider = open_receipt(client.receipt(receipt_id)).provider
            found.setdefault(provider, set()).add(receipt_id)
    found.pop(node.peer, None)
    return found


def acknowledged(exported):
    """What is acknowledged in an exported ledger, with its awards: receipts and prices."""
    _, *lines = map(json.loads, exported.splitlines())
    return {
        receipt: open_award(b64decode(line["award"])).price
        for line in lines
        if "award" in line  # a provider that was restarted has none of what was before
        for receipt in open_acknowledgement(b64decode(line["acknowledgement"])).receipts
    }


def grown(before, after):
    return {name: after[name] - before[name] for name in FIGURES}


def unchanged(node):
    """The ledger of a node, if all of it is written down and nothing comes to it."""
    rows = rows_of(node)
    time.sleep(WAITS_S + 2 * WRITE_INTERVAL_S)
    return rows if rows and rows_of(node) == rows else None


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
    """What tests before this one had cancelled or killed is given and never acknowledged."""
    requester, *others = swarm.nodes
    taken = {node.peer: row_of(requester, node.peer, "taken") for node in others}
    given = {node.peer: row_of(node, requester.peer, "given") for node in others}
    ended = run_map(requester, model)
    assert ended.code == 0, ended
    receipts = receipts_of(requester, ended.json["job"]["id"])
    assert receipts
    for node in others:
        of_job = receipts.get(node.peer)
        if not of_job:
            continue
        with node.client() as client:
            eventually(
                lambda c=client, r=of_job: acknowledged(c.export_ledger()).keys() >= r,
                60,
                "the provider is told of all of it",
            )
        file = model / f"{node.number}.ledger"
        exported = shoal("ledger", "--export", file, node=node)
        assert exported.code == 0, exported
        prices = acknowledged(file.read_bytes())
        credits_ = 0.999 * sum(prices[receipt] for receipt in of_job)
        here = row_of(node, requester.peer, "given")
        assert here["acknowledged_units"] <= here["units"]
        assert here["acknowledged_credits"] <= 1.001 * here["credits"]
        more = grown(given[node.peer], here)
        assert more["acknowledged_units"] >= len(of_job)
        assert more["acknowledged_credits"] >= credits_ > 0
        eventually(
            lambda n=node, r=of_job: (
                grown(taken[n.peer], row_of(requester, n.peer, "taken"))["acknowledged_units"]
                >= len(r)
            ),
            60,
            "the requester counts what it has acknowledged",
        )
        there = row_of(requester, node.peer, "taken")
        assert grown(taken[node.peer], there)["units"] >= len(of_job)
        checked = shoal("ledger", "verify", file, "--json")
        assert checked.code == 0, checked
        pairs = {
            (pair["requester"], pair["provider"]): pair
            for pair in checked.json["ledger"]["pairs"]
        }
        pair = pairs[requester.peer, node.peer]
        assert pair["acknowledged"] >= len(of_job)
        assert pair["credits"] >= credits_
        lines = file.read_text().splitlines()
        statement = json.loads(lines[1])
        name = "acknowledgement" if "acknowledgement" in statement else "receipt"
        text = statement[name]
        statement[name] = text[:-10] + ("A" if text[-10] != "A" else "B") + text[-9:]
        file.write_text("\n".join([lines[0], json.dumps(statement), *lines[2:]]))
        changed = shoal("ledger", "verify", file)
        assert changed.code == 1
        assert "line 2" in changed.stderr
    shown = shoal("standing", next(iter(receipts)), node=requester)
    assert shown.code == 0
    assert "share of work" in shown.stdout
    wrong = shoal("standing", "nobody", node=requester)
    assert wrong.code != 0
    assert "no peer's id" in wrong.stderr


def test_figures_and_standing_survive_a_restart(swarm, model):
    requester = swarm.nodes[0]
    assert run_map(requester, model).code == 0
    before = eventually(lambda: unchanged(requester), 60, "its work is acknowledged")
    requester.kill()
    swarm.start(requester)
    swarm.wait_ready(requester)
    # The same sums of credits, added in another order.
    assert rounded(rows_of(requester)) == rounded(before)
