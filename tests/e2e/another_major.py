"""``shoal`` for a node of the next major version of the protocol: majors do not mix."""

import sys

from shoal.protocol import limits

limits.PROTOCOL_MAJOR += 1  # before anything else has taken it

from shoal.node.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
