"""Whatever a node has to say, its advert fits, and what matters most stays in it."""

import msgspec
import pytest
from advert_samples import ADDRESSES, CPU, NODES, all_different, an_advert, gpus
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import ALICE, BOB, CAROL, structs_of

from shoal.crypto.envelope import Statement
from shoal.protocol.advert_fitting import ENVELOPE_BYTES, NAME_LIMIT, fitted, grouped
from shoal.protocol.codec import encode
from shoal.protocol.device_offers import DeviceOffer
from shoal.protocol.limits import ADVERT_LIMIT_BYTES
from shoal.protocol.statements import Advert, open_advert


def signed(advert):
    return BOB.sign(Statement.ADVERT, encode(advert))


@pytest.mark.parametrize("name", NODES)
def test_the_advert_of_any_node_is_taken_by_others_and_says_what_it_does(name):
    advert = fitted(NODES[name])
    envelope = signed(advert)
    assert len(envelope) - len(encode(advert)) <= ENVELOPE_BYTES
    assert open_advert(envelope) == advert
    assert advert.devices[0].id == "cpu"
    assert advert.devices[0].rates == NODES[name].devices[0].rates
    assert advert.addresses[:2] == NODES[name].addresses[:2]
    assert advert.numeric_classes == ("exact", "fp32")


@settings(max_examples=60, deadline=None)
@given(
    structs_of(Advert),
    st.lists(structs_of(DeviceOffer), max_size=16),
    st.lists(st.text(max_size=256), max_size=8),
    st.lists(st.text(min_size=50, max_size=64), max_size=8),
)
def test_there_is_no_advert_that_cannot_be_made_to_fit(advert, devices, addresses, classes):
    whole = msgspec.structs.replace(
        advert,
        devices=tuple(devices),
        addresses=tuple(addresses),
        numeric_classes=tuple(classes),
    )
    short = fitted(whole)
    assert len(encode(short)) + ENVELOPE_BYTES <= ADVERT_LIMIT_BYTES
    assert fitted(short) == short
    kept = ("peer", "sequence", "issued_at_ms", "lifetime_s", "protocol", "agent", "providing")
    assert all(getattr(short, name) == getattr(whole, name) for name in kept)


@settings(deadline=None)
@given(structs_of(Advert))
def test_what_fits_stays_as_it_is_but_for_equal_devices(advert):
    whole = msgspec.structs.replace(advert, devices=(), numeric_classes=(), addresses=())
    assert fitted(whole) == whole


def test_equal_devices_stand_in_one_line():
    devices = (CPU, *gpus(8))
    assert grouped(devices) == (CPU, msgspec.structs.replace(gpus(1)[0], count=8))
    assert grouped(grouped(devices)) == grouped(devices)


def test_devices_that_differ_in_anything_but_their_id_stand_apart():
    first, second = gpus(2)
    assert len(grouped((first, msgspec.structs.replace(second, memory_bytes=1)))) == 2


def test_things_are_left_out_in_their_order_and_only_as_far_as_they_must():
    idle = tuple(
        msgspec.structs.replace(device, executors=(), rates=()) for device in all_different(8)
    )
    advert = an_advert(devices=(CPU, *idle), addresses=(ADDRESSES[2],) * 3)
    short = fitted(advert)
    assert len(short.devices[1].name) == NAME_LIMIT
    assert short.disk_rate == short.devices[0].memory_rate == 0.0
    assert 1 < len(short.devices) < len(advert.devices)
    assert short.addresses == advert.addresses
    assert short.devices[0].rates == CPU.rates


def test_devices_that_only_their_rates_tell_apart_share_a_line_once_those_must_go():
    advert = NODES["the same, each measured"]
    assert len(grouped(advert.devices)) == 9
    short = fitted(advert)
    assert sum(device.count for device in short.devices) == 9
    assert len(short.devices) < 9


def test_peers_to_be_introduced_by_go_late_and_one_stays():
    via = (ALICE.peer_id, CAROL.peer_id, BOB.peer_id)
    advert = an_advert(devices=all_different(2), addresses=(), via=via)
    assert fitted(advert).via == via
    assert fitted(advert, 700).via == via[:1]
