"""How results are to be checked, as it is asked for on the command line."""

from daemons import shoal


def test_a_policy_that_there_is_not_is_refused_before_anything_is_read(node):
    ended = shoal("run", "no-such.onnx", "--input=x=no.npy", "--verify=quorum:9", node=node)
    assert ended.code == 2
    assert "quorum has 2 to 7" in ended.stderr
    assert "sample:0.1" in ended.stderr
