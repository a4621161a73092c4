"""``shoal`` for a node of the next major version of the protocol: majors do not mix."""

import sys

from shoal.protocol import limits

if __name__ == "__main__":
    limits.PROTOCOL_MAJOR += 1  # before any other module has taken it

    from shoal.node.cli import main

    sys.exit(main())
