"""``shoal demo``: the whole data path on one machine; one provider is killed, another lies.

- `files`: which files to look at;
- `filetypes`: what magika does before and after its model;
- `swarm`: daemons as real processes, also used by the end-to-end tests;
- `spread`: the job, and the provider that is killed half-way;
- `liar`: a daemon that lies, and `conviction`: how it is caught;
- `account`: who ran what, and whether it adds up;
- `script`: the order of all this;
- `steps` and `report`: what is seen of it, meanwhile and at the end.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from shoal.node.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

NODES_LIMIT = 16


def run(
    path: Path | None = None,
    nodes: int = 3,
    *,
    receipts: Path | None = None,
    json: bool = False,
) -> int:
    """Run the demo; gives its exit code, 0 where everything added up.

    Args:
        path: The folder whose files to look at; this checkout's git-tracked
            files where not given.
        nodes: How many honest daemons; one that lies joins them later.
        receipts: A directory to write every receipt to, as ID.receipt.
        json: Print one JSON object in place of the tables.

    Raises:
        ConfigError: magika is not installed, or an argument cannot be used.
        SwarmError: A daemon did not do what it should.
        JobFailedError: The job ended without its results.
        WaitTimeoutError: The job did not end in time.
    """
    if find_spec("magika") is None:
        raise ConfigError(
            "the demo runs the model of the package magika, which is not installed",
            code="magika_missing",
            hint="in a checkout of shoal: `pip install -c constraints.txt '.[demo]'`",
        )
    if not 2 <= nodes <= NODES_LIMIT:
        raise ConfigError(
            f"a demo has 2 to {NODES_LIMIT} nodes, and not {nodes}: one of them is killed",
            code="usage",
        )
    # magika imports ONNX Runtime here, whose telemetry only this keeps from starting.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    from shoal.node.demo.report import print_report
    from shoal.node.demo.script import play

    report = play(path, nodes, receipts)
    print_report(report, as_json=json)
    return 0 if report.ok else 1
