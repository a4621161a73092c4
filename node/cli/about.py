"""``shoal version``, ``shoal completion`` and ``shoal demo``."""

from pathlib import Path
from typing import Literal

from shoal import __version__
from shoal.node.cli.options import Here
from shoal.node.cli.output import print_json


def version(*, here: Here | None = None) -> None:
    """Print the version of shoal and of the protocol that it speaks."""
    from shoal.protocol.limits import PROTOCOL_MAJOR, PROTOCOL_MINOR

    protocol = f"{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}"
    if (here or Here()).as_json:
        print_json({"version": __version__, "protocol": protocol})
    else:
        print(f"shoal {__version__}, protocol {protocol}")


def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print a script that completes shoal's commands in your shell.

    For bash: shoal completion bash > ~/.local/share/bash-completion/completions/shoal

    Args:
        shell: Your shell.
    """
    from shoal.node.cli import make_app

    print(make_app(whole=True).generate_completion(prog_name="shoal", shell=shell))


def demo(
    *,
    path: Path | None = None,
    nodes: int = 3,
    receipts: Path | None = None,
    here: Here | None = None,
) -> int:
    """Start some daemons here, tell the types of a folder's files on them, and clean up.

    The model is magika's. One of the daemons is killed half-way, and no file is
    lost by that. Then one joins that lies: it is caught, and convicted by a proof that
    anybody can check again. Needs the extra ``demo``.

    Args:
        path: The folder; the git-tracked files of shoal's checkout where not given.
        nodes: How many honest daemons; one that lies joins them later.
        receipts: Directory to write every receipt to, as ID.receipt.
    """
    from shoal.node import demo as demonstration

    return demonstration.run(path, nodes, receipts=receipts, json=(here or Here()).as_json)
