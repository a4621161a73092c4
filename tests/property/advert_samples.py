"""Adverts of nodes as they are, and of some that are hardly possible; with their claims."""

import msgspec
from strategies import ALICE, BOB, CAROL, MALLORY

from shoal.protocol.device_offers import ClassRate, DeviceOffer
from shoal.protocol.statements import Advert
from shoal.protocol.versions import OWN

RATES = (
    ClassRate("exact", "x20", 41.212e9),
    ClassRate("exact", "x16", 61.212e9),
    ClassRate("exact", "x8", 161.212e9),
    ClassRate("fp32", None, 88.112e9),
)
CPU = DeviceOffer(
    id="cpu",
    kind="cpu",
    name="Intel(R) Xeon(R) Platinum 8480+ with a long name",
    memory_bytes=1 << 38,
    executors=("exact", "onnxruntime"),
    rates=(RATES[0], RATES[3]),
    memory_rate=10.1e9,
)
GPU = DeviceOffer("gpu0", "nvidia", "NVIDIA H100 80GB HBM3", 80 << 30)
ADDRESSES = (
    "/ip4/192.168.100.100/tcp/47110",
    "/ip4/198.51.100.100/tcp/47110",
    "/ip6/2001:db8:1234:5678:9abc:def0:1234:5678/tcp/47110",
)


def an_advert(**changes):
    advert = Advert(
        peer=BOB.peer_id,
        sequence=1_700_000_000_000,
        issued_at_ms=1_700_000_000_000,
        lifetime_s=60.0,
        protocol=OWN,
        agent="shoal/0.1.0",
        addresses=ADDRESSES[:2],
        devices=(CPU,),
        numeric_classes=("exact", "fp32"),
        providing=True,
        disk_rate=890e6,
        proven_at_ms=1_700_000_000_000,
    )
    return msgspec.structs.replace(advert, **changes)


def gpus(count, **changes):
    return tuple(msgspec.structs.replace(GPU, id=f"gpu{n}", **changes) for n in range(count))


def all_different(count):
    """Devices of as many kinds, each used, with as many rates as there may be."""
    return tuple(
        DeviceOffer(
            id=f"gpu{number}",
            kind="nvidia",
            name=f"Accelerator model {number:02} with a name of 48 letters",
            memory_bytes=(80 << 30) + number,
            executors=("exact", "onnxruntime", "torch"),
            rates=RATES,
            memory_rate=3.35e12,
        )
        for number in range(count)
    )


NODES = {
    "CPU only": an_advert(),
    "CPU and 8 equal GPUs": an_advert(devices=(CPU, *gpus(8))),
    "the same, each measured": an_advert(
        devices=(
            CPU,
            *(
                msgspec.structs.replace(
                    gpu,
                    executors=("exact", "torch"),
                    rates=tuple(
                        ClassRate(r.numeric_class, r.precision, r.rate + n) for r in RATES
                    ),
                    memory_rate=3.35e12 + n,
                )
                for n, gpu in enumerate(gpus(8))
            ),
        )
    ),
    "CPU and 15 other kinds": an_advert(devices=(CPU, *all_different(15))),
    "8 addresses of IPv6": an_advert(addresses=(ADDRESSES[2],) * 8),
    "cannot be dialled, 3 introducers": an_advert(
        addresses=(), via=(ALICE.peer_id, CAROL.peer_id, MALLORY.peer_id)
    ),
    "all of it": an_advert(
        addresses=(ADDRESSES[2],) * 8,
        devices=(CPU, *all_different(15)),
        via=(ALICE.peer_id, CAROL.peer_id, MALLORY.peer_id),
    ),
    "nothing measured, no address": an_advert(
        addresses=(),
        devices=(msgspec.structs.replace(CPU, rates=(), memory_rate=0.0),),
        disk_rate=0.0,
        proven_at_ms=0,
    ),
}
