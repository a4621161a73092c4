"""``shoal`` for a node that is content with one link, as in a large network most pairs are
not linked: two nodes of a small one would else find each other before a test can look."""

import importlib
import sys

from shoal.node.cli import main


def be_content():
    changed = 0
    for name in ("shoal.node.membership", "shoal.protocol.membership"):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        if hasattr(module, "LINKS_WANTED"):
            module.LINKS_WANTED = 1
            changed += 1
    assert changed, "nothing says how many links are wanted"


if __name__ == "__main__":
    be_content()
    sys.exit(main())
