"""What units look for in adverts: of kernels, their very Triton."""

from types import SimpleNamespace

import pytest

from shoal.compute.devices.inventory import Device
from shoal.compute.executors.base import Evidence, NumericClass, Probe
from shoal.compute.kernel_manifest import Argument, Extent, KernelManifest
from shoal.compute.manifest import Port
from shoal.crypto import identity
from shoal.node.known_peers import providers
from shoal.node.offer import Capacity
from shoal.node.wanted import class_of, is_offered, triton_of, wanted_of
from shoal.protocol.codec import decode, encode
from shoal.protocol.statements import Advert

PEER = identity.generate().peer_id


def device(name):
    return Device(id=name, kind=name, name="X", memory_bytes=1, memory_free_bytes=1)


KERNEL = wanted_of(
    KernelManifest(
        kernel="a" * 64,
        triton="3.7.1",
        entry="zeros",
        inputs=(),
        outputs=(Port("y", "float32", (8,)),),
        arguments=(Argument("y", "*fp32", None),),
        grid=(Extent(1),),
    ),
    "kernel",
)


def advert(peer, *classes, triton=""):
    return Advert(
        peer=peer,
        sequence=1,
        issued_at_ms=1,
        lifetime_s=60.0,
        protocol=(1, 6),
        agent="test/1",
        addresses=(),
        devices=(),
        numeric_classes=classes,
        providing=True,
        triton=triton,
    )


def test_a_kernel_s_units_look_for_its_class_and_its_triton():
    assert (class_of(KERNEL), triton_of(KERNEL)) == ("kernel", "3.7.1")
    other = wanted_of(object(), "fp32")
    assert (class_of(other), triton_of(other)) == ("fp32", "")


@pytest.mark.parametrize(
    ("classes", "triton", "offered"),
    [
        ({"kernel", "fp32"}, "3.7.1", True),
        ({"kernel", "fp32"}, "3.7.10", False),
        ({"kernel", "fp32"}, "", True),  # older than 1.6: it does not say
        ({"fp32"}, "3.7.1", False),
    ],
)
def test_a_node_is_asked_by_its_class_and_its_triton(classes, triton, offered):
    assert is_offered(KERNEL, classes, triton) is offered
    assert is_offered(wanted_of(object(), "fp32"), classes, triton)


def test_only_those_are_called_that_have_the_kernel_s_triton():
    adverts = (
        advert("own", "fp32"),
        advert("other", "kernel", "fp32", triton="3.6.0"),
        advert("old", "kernel"),
        advert("same", "kernel", triton="3.7.1"),
    )
    table = [SimpleNamespace(advert=each) for each in adverts]
    membership = SimpleNamespace(own="own", links={"same": None}, table=table)
    assert providers(membership, lambda _: None, KERNEL) == ["same", "old"]
    assert providers(membership, lambda _: None, "fp32") == ["own", "other"]


def test_a_node_says_its_triton_where_a_card_of_its_runs_kernels():
    capacity = Capacity(devices=tuple(device(i) for i in ("cpu", "gpu0")))

    def offer(numeric_class, evidence, runtime):
        capacity.offer([Probe(runtime, numeric_class, evidence)], (), "gpu0")

    assert capacity.triton == ""
    offer(NumericClass.EXACT, Evidence.EXECUTED, "exact 1 triton 3.7.1")
    assert capacity.triton == ""
    offer(NumericClass.KERNEL, Evidence.COMPILE_ONLY, "triton 3.7.1 hip:gfx942")
    assert capacity.triton == ""
    offer(NumericClass.KERNEL, Evidence.EXECUTED, "triton 3.7.1 hip:gfx942")
    assert capacity.triton == "3.7.1"


def test_an_advert_without_it_is_as_long_as_before():
    without, with_it = advert(PEER, "kernel"), advert(PEER, "kernel", triton="3.7.1")
    assert b"triton" not in encode(without)
    assert decode(encode(with_it), Advert) == with_it
