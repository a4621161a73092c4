"""A node as a process of its own that holds a blob and lets one peer have it.

Its arguments: its home, where the blob's files are already, the blob's id and the peer.
It says who it is and where it listens in one line of JSON, and serves until it is killed.
"""

import json
import sys
from pathlib import Path

import trio
from bulk_nodes import open_bulk_node

QUOTA_BYTES = 1 << 40


async def main(home, blob_id, peer):
    async with open_bulk_node(Path(home), quota_bytes=QUOTA_BYTES) as node:
        node.rights.grant("a lease", peer, [blob_id])
        words = {
            "peer": node.peer,
            "addresses": [str(each) for each in node.network.addresses()],
        }
        sys.stdout.write(json.dumps(words) + "\n")
        sys.stdout.flush()
        await trio.sleep_forever()


trio.run(main, *sys.argv[1:])
