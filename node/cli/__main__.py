"""``python -m shoal.node.cli`` is ``shoal``, also where the script is not on the path."""

import sys

from shoal.node.cli import main

if __name__ == "__main__":
    sys.exit(main())
