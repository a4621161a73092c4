"""Where the other implementations of libp2p lie: in a folder beside Python's packages.

`make test` installs them there, without what they depend on. Among the packages pip would
complain of that at each later install of anything.
"""

import sys
from pathlib import Path

FOLDER = Path(sys.prefix) / "foreign-peers"


def reach():
    """Have Python look there too, after everywhere else."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
