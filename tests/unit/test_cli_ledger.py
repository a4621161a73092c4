"""``shoal ledger verify`` with no daemon anywhere."""

from fraud_samples import BOB, Accused, small

from shoal.node.cli import main
from shoal.node.ledger_file import write_lines


def test_a_file_of_receipts_alone_says_why_nothing_in_it_is_acknowledged(tmp_path, capsys):
    sample = small()
    receipt = Accused(sample, sample.leaves()).receipt
    file = tmp_path / "it.ledger"
    file.write_bytes(write_lines("me", 1e9, [], [receipt]))
    assert main(["ledger", "verify", str(file)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert BOB.peer_id in said
    assert "`shoal ledger` also counts those of checks" in said
    assert "ACKNOWLEDGED and its CREDITS are 0 where its node is who had the work done" in said
