"""The bounds, held against the types that use them and against one another."""

import msgspec
import pytest
from msgspec import inspect
from strategies import ALICE, INPUT, signed_receipt, signed_renewal

from shoal.crypto import envelope
from shoal.protocol import limits
from shoal.protocol.blob_messages import (
    MESSAGE_LIMIT_BYTES,
    BlobAnswer,
    BlobNext,
    BlobProof,
    BlobProve,
    BlobRequest,
)
from shoal.protocol.checking_messages import (
    Accusation,
    Accusations,
    AccusationsWanted,
    LeafGiven,
)
from shoal.protocol.codec import encode
from shoal.protocol.messages import Adverts, Digest, Frame, Request, Response
from shoal.protocol.negotiation_messages import (
    Cancel,
    Share,
    UnitRequest,
    UnitResult,
    UnitsRequest,
    UnitsResult,
)
from shoal.protocol.statements import (
    Acknowledgement,
    Advert,
    Award,
    CapabilityProof,
    Commitment,
    Receipt,
    Renewal,
    TraceRoot,
    UnitError,
)

KINDS = (
    *(Frame, Advert, Renewal, Award, Receipt, Commitment, CapabilityProof),
    *(Acknowledgement, TraceRoot),
    *(BlobRequest, BlobAnswer, BlobNext, BlobProof),
)


def parts_of(kind, path=""):
    """Every type inside a type, with the path to it."""
    match kind:
        case inspect.Metadata():
            yield from parts_of(kind.type, path)
        case inspect.StructType():
            for field in kind.fields:
                yield from parts_of(field.type, f"{path}.{field.name}")
            yield path + "{}", kind
        case inspect.UnionType():
            for option in kind.types:
                inside = option.cls.__name__ if isinstance(option, inspect.StructType) else ""
                yield from parts_of(option, f"{path}|{inside}")
        case inspect.TupleType():
            for index, item in enumerate(kind.item_types):
                yield from parts_of(item, f"{path}[{index}]")
        case inspect.VarTupleType():
            yield path + "[]", kind
            yield from parts_of(kind.item_type, path + "[]")
        case _:
            yield path, kind


PARTS = {
    f"{getattr(kind, '__name__', 'Frame')}{path}": part
    for kind in KINDS
    for path, part in parts_of(inspect.type_info(kind))
}


@pytest.mark.parametrize("path", PARTS)
def test_every_field_on_the_wire_has_its_bound(path):
    part = PARTS[path]
    match part:
        case inspect.IntType():
            assert part.ge is not None
            assert part.le is not None
        case inspect.FloatType():  # this is also what keeps NaN out
            assert part.le is not None
            assert (part.ge is None) != (part.gt is None)
        case inspect.StrType():
            assert part.max_length is not None or part.pattern is not None
        case inspect.BytesType():
            assert part.max_length is not None
        case inspect.VarTupleType():
            assert part.max_length is not None
            assert part.max_length <= limits.LIST_LIMIT
        case inspect.StructType():
            assert part.forbid_unknown_fields
            assert len(part.fields) < limits.MAP_LIMIT
        case _:
            assert isinstance(part, inspect.EnumType | inspect.NoneType | inspect.BoolType)


@pytest.mark.parametrize(
    "path", [path for path, part in PARTS.items() if getattr(part, "pattern", None)]
)
def test_every_pattern_is_about_the_whole_text(path):
    pattern = PARTS[path].pattern
    assert pattern.startswith(r"\A")
    assert pattern.endswith(r"\Z"), "a $ lets a newline through"


def test_the_fullest_answer_to_a_digest_fits_into_a_frame():
    advert = (bytes(limits.ADVERT_LIMIT_BYTES), 3599.123)
    renewal = (bytes(limits.RENEWAL_LIMIT_BYTES), 3599.123)
    answer = Adverts(
        adverts=(advert,) * limits.ADVERTS_PER_MESSAGE_LIMIT,
        renewals=(renewal,) * limits.RENEWALS_PER_MESSAGE_LIMIT,
        wanted=bytes(16 * limits.DIGEST_LIMIT),
        more=True,
        room=False,
    )
    encode(Response(id=1 << 31, body=answer))
    containers = limits.ADVERTS_PER_MESSAGE_LIMIT + limits.RENEWALS_PER_MESSAGE_LIMIT
    assert containers + 5 <= limits.CONTAINERS_LIMIT


def test_the_fullest_digest_fits_into_a_frame():
    encode(Request(id=1 << 31, body=Digest(held=bytes(16 * limits.DIGEST_LIMIT))))


def test_the_largest_renewal_fits_its_field():
    largest = signed_renewal(
        sequence=(1 << 48) - 1,
        number=limits.RENEWALS_LIMIT,
        issued_at_ms=1 << 48,
        lifetime_s=limits.ADVERT_LIFETIME_LIMIT_S - 0.1,
    )
    assert len(largest) <= limits.RENEWAL_LIMIT_BYTES


def test_the_fullest_unit_fits_into_a_frame():
    unit = UnitRequest(
        call="a" * 32,
        unit="🐚" * 64,
        inputs=(("🐚" * 256, INPUT),) * limits.PORTS_LIMIT,
        blobs=(bytes(limits.INLINE_LIMIT_BYTES),),
        keep=True,
        sources=((INPUT, ALICE.peer_id),) * limits.SOURCES_LIMIT,
        trace=True,
    )
    encode(Request(id=1 << 31, body=unit))


def test_the_fullest_result_fits_into_a_frame():
    result = UnitResult(
        call="a" * 32,
        unit="🐚" * 64,
        receipt=bytes(envelope.ENVELOPE_LIMIT_BYTES),
        blobs=(bytes(limits.INLINE_LIMIT_BYTES),),
        kept=((INPUT, 1 << 50),) * limits.PORTS_LIMIT,
    )
    encode(Response(id=1 << 31, body=result))


def test_the_fullest_share_fits_into_a_frame():
    share = Share(blobs=(INPUT,) * limits.SHARED_IDS_LIMIT, peer=ALICE.peer_id)
    encode(Request(id=1 << 31, body=share))


def fullest_ports():
    """Of one unit of a full batch, its inputs and outputs: as many as may be, named shortly."""
    count = limits.BATCH_PORTS_LIMIT_BYTES // limits.BATCH_UNITS_LIMIT // 75
    return tuple((f"{number:03d}", INPUT) for number in range(count))


def test_the_fullest_batch_fits_into_a_frame_and_its_answer_too():
    ports = fullest_ports()
    blob = bytes(limits.INLINE_LIMIT_BYTES // limits.BATCH_UNITS_LIMIT)
    names = [f"{number:02d}{'🐚' * 62}" for number in range(limits.BATCH_UNITS_LIMIT)]
    count = limits.BATCH_SOURCES_LIMIT // limits.BATCH_UNITS_LIMIT
    sources = ((INPUT, ALICE.peer_id),) * count
    units = tuple(
        UnitRequest("a" * 32, name, ports, (blob,), keep=True, sources=sources, trace=True)
        for name in names
    )
    encode(Request(id=1 << 31, body=UnitsRequest(call="a" * 32, units=units)))
    half = len(ports) // 2
    given = {"device": "🐚" * 64, "runtime": "🐚" * 64, "precision": "🐚" * 64}
    given |= {"trace": INPUT, "stages": limits.LEAVES_LIMIT}
    ran = signed_receipt(unit=names[0], inputs=ports[:half], outputs=ports[half:], **given)
    error = UnitError("c" * 64, "🐚" * 1024, "🐚" * 256, "🐚" * 64)
    failed = signed_receipt(unit=names[0], inputs=ports, outputs=None, error=error, **given)
    containers = 4 + limits.BATCH_UNITS_LIMIT * (5 + len(ports) + count)
    assert containers <= limits.CONTAINERS_LIMIT
    for receipt in (ran, failed):
        kept = ((INPUT, 1 << 50),) * half if receipt is ran else ()
        answers = tuple(
            UnitResult(call="a" * 32, unit=name, receipt=receipt, blobs=(blob,), kept=kept)
            for name in names
        )
        encode(Response(id=1 << 31, body=UnitsResult(call="a" * 32, answers=answers)))


def test_a_batch_with_more_blobs_or_ports_than_fit_cannot_be_said():
    one = UnitRequest(call="a" * 32, unit="u", inputs=fullest_ports())
    units = (msgspec.structs.replace(one, blobs=(bytes(limits.INLINE_LIMIT_BYTES),)),)
    UnitsRequest(call="a" * 32, units=units)
    with pytest.raises(ValueError, match="bytes of blobs in one message"):
        UnitsRequest(call="a" * 32, units=(*units, msgspec.structs.replace(one, blobs=(b"x",))))
    wide = msgspec.structs.replace(one, inputs=one.inputs * 2)
    with pytest.raises(ValueError, match="names and ids in one message"):
        UnitsRequest(call="a" * 32, units=(wide,) * limits.BATCH_UNITS_LIMIT)
    sources = ((INPUT, ALICE.peer_id),) * (limits.BATCH_SOURCES_LIMIT // 2)
    fed = msgspec.structs.replace(one, inputs=(), sources=sources)
    UnitsRequest(call="a" * 32, units=(fed, fed))
    with pytest.raises(ValueError, match="sources in one message"):
        UnitsRequest(call="a" * 32, units=(fed, fed, fed))
    half = UnitResult("a" * 32, "u", b"r", (bytes(limits.INLINE_LIMIT_BYTES // 2),))
    UnitsResult(call="a" * 32, answers=(half,) * 2)
    with pytest.raises(ValueError, match="bytes of blobs in one message"):
        UnitsResult(call="a" * 32, answers=(half,) * 3)


def an_accusation(blobs):
    return Accusation(
        proof=INPUT,
        accused=ALICE.peer_id,
        proof_bytes=1 << 50,
        blobs=(INPUT,) * blobs,
        blobs_bytes=1 << 50,
    )


def test_the_fullest_accusations_fit_into_a_frame_and_no_fuller_ones_can_be_said():
    count = limits.ACCUSATIONS_LIMIT
    even = (an_accusation(limits.ACCUSED_BLOBS_LIMIT // count),) * count
    encode(Response(id=1 << 31, body=Accusations(accusations=even)))
    encode(Request(id=1 << 31, body=an_accusation(limits.PROOF_BLOBS_LIMIT)))
    known = (INPUT,) * limits.KNOWN_PROOFS_LIMIT
    encode(Request(id=1 << 31, body=AccusationsWanted(known=known)))
    with pytest.raises(ValueError, match="blobs named in one message"):
        Accusations(accusations=(*even[1:], an_accusation(limits.PROOF_BLOBS_LIMIT)))


def test_the_largest_leaf_with_its_path_fits_into_a_frame():
    path = bytes(32 * limits.TREE_LEVELS_LIMIT)
    leaf = LeafGiven(leaf=bytes(limits.LEAF_LIMIT_BYTES), path=path)
    encode(Response(id=1 << 31, body=leaf))
    assert limits.LEAVES_LIMIT <= 1 << limits.TREE_LEVELS_LIMIT


def test_a_fraud_proof_may_hold_two_receipts_of_a_hundred_inputs_and_outputs_each():
    port = limits.PORT_BYTES + 64
    assert 2 * 2 * 100 * port < limits.FRAUD_PROOF_LIMIT_BYTES
    assert limits.LEAF_LIMIT_BYTES < limits.FRAUD_PROOF_LIMIT_BYTES


def test_every_unit_that_is_out_can_be_cancelled_at_once():
    others = ("🐚" * 64,) * limits.UNITS_IN_FLIGHT_LIMIT
    encode(Request(id=1 << 31, body=Cancel(call="a" * 32, unit="u", others=others)))


def test_the_fullest_words_of_a_blob_stream_fit():
    encode(BlobRequest(blob=INPUT, requester=ALICE.peer_id), MESSAGE_LIMIT_BYTES)
    encode(BlobProve(challenge=bytes(32), chunks=1 << 16), MESSAGE_LIMIT_BYTES)


def test_both_layers_mean_the_same_largest_envelope():
    field = inspect.type_info(limits.EnvelopeBytes)
    assert isinstance(field, inspect.BytesType)
    assert field.max_length == envelope.ENVELOPE_LIMIT_BYTES


def test_a_peer_id_of_any_key_fits_its_field():
    from shoal.crypto.peer_id import peer_id_of

    for key in (bytes(32), b"\xff" * 32, bytes(range(32))):
        assert msgspec.convert(peer_id_of(key), limits.PeerText) == peer_id_of(key)
