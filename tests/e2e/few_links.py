"""``shoal`` for a node that is content with one link, and soon asks again who refused.

In a large network most pairs are not linked: two nodes of a small one would else find each
other before a test can look. And where a refusal is what a test is about, most of what it
took would be to wait until the cause is gone and the refusal forgotten.
"""

import importlib
import sys

from shoal.node.cli import main
from shoal.node.scheduling import setbacks

ASKED_AGAIN_S = 4.0
"""Of 20 s; long enough that nearly always an answer stands, which tests look for."""


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


def ask_again_soon():
    assert setbacks.COOL_DOWN_REFUSED_S > ASKED_AGAIN_S
    setbacks.COOL_DOWN_REFUSED_S = ASKED_AGAIN_S


if __name__ == "__main__":
    be_content()
    ask_again_soon()
    sys.exit(main())
