"""Compile every kernel of the exact class for cards that need not be here.

``python -m shoal.compute.exact.gpu`` does it for all generations; ``--target gfx942`` for
one, ``--kernel digit_product`` for some kernels. It needs Triton and no GPU. A kernel that
does not compile, or takes more shared memory than its cards have, is named, and the exit
status is 1. So it is where Triton is not installed, with what to do. ``--aligned`` compiles
what a launch over sizes that 16 divides compiles, which is other code, and the code whose
registers matter.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from os import sched_getaffinity

from shoal.compute.executors.table import INSTALL_GPU

_PACKAGES = frozenset({"torch", "triton"})


def main() -> int:
    """Run the command."""
    try:
        from shoal.compute.exact.gpu.ahead import compile_one
        from shoal.compute.exact.gpu.kernels import variants
        from shoal.compute.exact.gpu.targets import TARGETS
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES:
            raise
        print(
            f"error: {error.name} is not installed, by which kernels are compiled\n"
            f"  next: {INSTALL_GPU}",
            file=sys.stderr,
        )
        return 1
    parser = argparse.ArgumentParser(
        prog="python -m shoal.compute.exact.gpu", description=__doc__
    )
    parser.add_argument("--target", action="append", choices=TARGETS, help="default: all")
    parser.add_argument("--kernel", default="", help="only those whose name has this in it")
    parser.add_argument("--aligned", action="store_true", help="sizes are multiples of 16")
    parser.add_argument("--json", action="store_true", help="one object a line")
    asked = parser.parse_args()
    names = [variant.name for variant in variants() if asked.kernel in variant.name]
    if not names:
        parser.error(f"no kernel's name has {asked.kernel!r} in it")
    targets = asked.target or TARGETS
    work = [(name, target, asked.aligned) for target in targets for name in names]
    failed = 0
    with ProcessPoolExecutor(len(sched_getaffinity(0)), get_context("spawn")) as pool:
        for row in pool.map(compile_one, *zip(*work, strict=True)):
            failed += bool(row.error)
            if asked.json:
                print(json.dumps(asdict(row)), flush=True)
            elif row.error:
                print(f"{row.target:8} {row.kernel}: {row.error}", flush=True)
            else:
                sizes = f"{row.size_bytes:>8} B {row.shared_bytes:>7} B shared"
                sizes += f" {row.registers:>4} registers {row.spilled_bytes:>5} B spilled"
                print(f"{row.target:8} {sizes} {row.seconds:6.1f} s  {row.kernel}", flush=True)
    print(f"{len(work) - failed} of {len(work)} compiled", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
