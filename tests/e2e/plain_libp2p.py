"""A plain py-libp2p host, as it comes and without a patch, that wants to know a node.

What it learns is told as a set of words, so that the same attempt shows that it
learns everything of a node in the public network and nothing of one in a private.
"""

import logging
from contextlib import asynccontextmanager

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from shoal.node.blob_transfer import BLOB_PROTOCOL
from shoal.node.control import CONTROL_PROTOCOL
from shoal.node.membership import ADVERT_TOPIC

IDENTIFY, PING, GOSSIP = "/ipfs/id/1.0.0", "/ipfs/ping/1.0.0", "/meshsub/1.1.0"
PROTOCOLS = (IDENTIFY, PING, GOSSIP, CONTROL_PROTOCOL, BLOB_PROTOCOL)
EVERYTHING = {"connection", "identity", "pong", "advert", *PROTOCOLS}

logging.getLogger("libp2p").propagate = False  # it logs each refusal as an error


@asynccontextmanager
async def plain_host():
    """A stock host that takes part in the gossip about adverts."""
    listen = [Multiaddr("/ip4/127.0.0.1/tcp/0")]
    host = new_host(key_pair=create_new_key_pair(), listen_addrs=listen)
    router = GossipSub(protocols=[GOSSIP], degree=6, degree_low=4, degree_high=12)
    router.heartbeat_interval = 1
    gossip = Pubsub(host, router)
    async with (
        host.run(listen_addrs=listen),
        background_trio_service(gossip),
        background_trio_service(router),
    ):
        await gossip.wait_until_ready()
        host.adverts = await gossip.subscribe(ADVERT_TOPIC)
        yield host
        await host.close()


async def learn(host, address, patience_s):
    """Try everything on the node at ``address``; gives what could be learned of it.

    Args:
        host: From `plain_host`.
        address: Its multiaddr, with its peer id.
        patience_s: How long to wait for each answer.
    """
    place, _, peer_text = address.partition("/p2p/")
    peer = ID.from_base58(peer_text)
    learned = set()
    with trio.move_on_after(patience_s):
        try:
            await host.connect(PeerInfo(peer, [Multiaddr(place)]))
        except Exception:  # noqa: BLE001  # libp2p's to choose
            pass
        else:
            learned.add("connection")
    if peer in host.get_connected_peers():
        learned.add("connection")
    for protocol in PROTOCOLS:
        host.get_network().unblock_peer(peer)  # a failed dial bans it for a minute
        with trio.move_on_after(patience_s):
            learned |= await _speak(host, peer, protocol)
    with trio.move_on_after(patience_s):
        message = await host.adverts.get()
        assert peer_text.encode() in message.data
        learned.add("advert")
    return learned


async def _speak(host, peer, protocol):
    try:
        stream = await host.new_stream(peer, [protocol])
        learned = {protocol}
        if protocol == PING:
            await stream.write(bytes(32))
            if await stream.read(32) == bytes(32):
                learned.add("pong")
        if protocol == IDENTIFY and CONTROL_PROTOCOL.encode() in await stream.read():
            learned.add("identity")
        await stream.reset()
    except Exception:  # noqa: BLE001  # libp2p's to choose
        return set()
    return learned
