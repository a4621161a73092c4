"""What the benchmarks that let several systems take turns are asked on the command line."""

import argparse
import sys


def asked(doc, contestants, rounds, **size):
    """The command line.

    Args:
        doc: The benchmark's docstring.
        contestants: By name.
        rounds: How many turns of each, where that is not said.
        **size: What a turn is measured in, and how many of them it has.
    """
    given = argparse.ArgumentParser(description=doc.partition("\n")[0])
    given.add_argument("--rounds", type=int, default=rounds)
    for name, count in size.items():
        given.add_argument(f"--{name}", type=int, default=count)
    given.add_argument("--only", choices=contestants, action="append")
    given.add_argument(
        "--peers-python", default=sys.executable, help="an interpreter that has ray and dask"
    )
    given.add_argument("--inside", choices=contestants, help=argparse.SUPPRESS)
    return given.parse_args()
