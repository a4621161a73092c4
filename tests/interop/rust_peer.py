"""A peer made of rust-libp2p, as a process of its own: says what it sees, a line each time.

``python rust_peer.py PORT PROTOCOL [ADDRESS]`` listens on the port of loopback, dials the
address if there is one, and prints the peers that it keeps with their round trips. It
keeps those alone whose identify names PROTOCOL as the version of their protocol. Its files
are in the directory for temporary ones, and stay: it only ever ends by being killed.
"""

import json
import sys
import tempfile
import time

import foreign

foreign.reach()

from lattica import Lattica  # noqa: E402  # it lies there

port, protocol, *addresses = sys.argv[1:]
place = tempfile.mkdtemp(prefix="shoal-rust-")
peer = (
    Lattica.builder()
    .with_listen_addrs([f"/ip4/127.0.0.1/tcp/{port}"])
    .with_bootstraps(addresses)
    .with_protocol(protocol)
    .with_mdns(False)
    .with_upnp(False)
    .with_autonat(False)
    .with_dcutr(False)
    .with_storage_path(f"{place}/store")
    .with_dht_db_path(f"{place}/dht")
    .build()
)
while True:
    kept = {each: peer.get_peer_rtt(each) for each in peer.get_all_peers()}
    print(json.dumps({"peer": peer.peer_id(), "kept": kept}), flush=True)
    time.sleep(0.1)
