"""What the benchmark on a card keeps: each row at once, and tables of what is there."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "bench"))

import gpu_exact_results as results

ABOUT = {
    "date": "2026-11-27T00:00:00+00:00",
    "commit": "abc",
    "torch": {"card": "NVIDIA H200", "runtime": "CUDA 13.0"},
    "devices": [{"kind": "cpu", "driver": ""}, {"kind": "nvidia", "driver": "580.1"}],
    "packages": {"torch": "2.11.0", "triton": "3.6.0"},
    "nvidia_smi": "",
    "rehearsed": False,
}
PEER = {"part": "products", "key": "4096 cuBLAS bf16", "ms": 1.0, "least_ms": 0.9, "most_ms": 2}
OURS = PEER | {"key": "4096 x16 digits", "ms": 5.0, "peer": PEER["key"], "least_ratio": 0.25}
FAILED = {"part": "products", "key": "4096 x8 digits", "error": "OutOfMemoryError: no"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "times.jsonl"


def keep(path, *rows):
    with results.Kept(path, ABOUT) as kept:
        for row in rows:
            kept.add(row)


def test_a_row_is_in_the_file_before_the_next_is_measured(path):
    with results.Kept(path, ABOUT) as kept:
        kept.add(PEER)
        assert results.read(path)[-1] == PEER


def test_what_was_measured_is_not_measured_again_but_what_failed_is(path):
    keep(path, PEER, FAILED)
    with results.Kept(path, ABOUT) as kept:
        assert (kept.has(PEER["key"]), kept.has(FAILED["key"])) == (True, False)


def test_a_line_that_was_being_written_is_lost_and_no_other(path):
    keep(path, PEER, OURS)
    path.write_bytes(path.read_bytes()[:-20])
    keep(path, FAILED)
    keys = [line.get("key") for line in results.read(path)]
    assert keys == [None, PEER["key"], None, FAILED["key"]]


def test_the_tables_say_where_when_and_what_was_wanted(path):
    keep(path, OURS, PEER, FAILED)
    text = results.markdown(results.read(path))
    assert text.startswith(
        "2026-11-27, NVIDIA H200, driver 580.1, torch 2.11.0, triton 3.6.0, "
    )
    assert "0.20 × 4096 cuBLAS bf16 | ≥ 0.25 MISSED |" in text
    assert "| 4096 x8 digits | OutOfMemoryError: no |" in text
    assert "rehearsal" not in text


def test_a_later_row_counts_and_one_without_its_peer_is_judged_by_nothing(path):
    keep(path, OURS, OURS | {"ms": 2.0}, FAILED | {"key": PEER["key"]})
    text = results.markdown(results.read(path))
    assert "| 4096 x16 digits | 2.000 |" in text
    assert "no 4096 cuBLAS bf16 |  |" in text
    keep(path, PEER)
    assert "0.50 × 4096 cuBLAS bf16 | ≥ 0.25 met |" in results.markdown(results.read(path))


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"most_ratio": 2.0}, "5.00 × p | ≤ 2 MISSED"),
        ({"least_share": 0.3, "work": 1.5}, "0.30 of p | ≥ 0.3 met"),
        ({}, "0.20 × p |  |"),
    ],
)
def test_a_ratio_is_of_time_of_speed_or_of_rate(path, wanted, said):
    keep(path, PEER | {"key": "p", "work": 1.0, "unit": "GB/s"})
    row = {k: v for k, v in OURS.items() if k != "least_ratio"} | {"peer": "p", "unit": "GB/s"}
    keep(path, row | wanted)
    assert said in results.markdown(results.read(path))


def test_an_environment_without_torch_or_a_card_is_told_all_the_same():
    about = ABOUT | {"torch": "ModuleNotFoundError: no torch", "devices": "broken"}
    line = results.markdown([{"about": about | {"nvidia_smi": "NVIDIA H200, 580.2, 1"}}])
    assert "no torch" in line
    assert "driver 580.2" in line
    json.dumps(about)
