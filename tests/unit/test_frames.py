import msgspec
import pytest

from shoal.compute import frames
from shoal.compute.devices.cards import Card
from shoal.compute.devices.inventory import Lack
from shoal.compute.executors.base import Evidence, NumericClass, Probe
from shoal.compute.frames import FrameError

LIMITS = frames.UnitLimits(1.0, 2, 3)
CARD = Card("gpu0", "hip", "gfx942", 1 << 37)
LACK = Lack("a", "why not", "next")
PROBE = Probe("runtime 1.0", NumericClass.FP32, Evidence.EXECUTED)


def head_of(message, attachments=()):
    is_answer = isinstance(message, frames.Answer)
    encode = frames.encode_answer if is_answer else frames.encode_request
    field, head, *rest = encode(message, attachments)
    assert frames.head_size(field) == len(head)
    assert rest == list(attachments)
    return head


@pytest.mark.parametrize(
    "request_",
    [
        frames.Start(2, 3, 4, exact=True),
        frames.Start(2, 3, 4, exact=True, card=CARD, scratch="/s"),
        frames.Convert(LIMITS, "x20"),
        frames.Prepare("p", ("a", "b"), LIMITS),
        frames.Prepare("p", ("a", "b"), LIMITS, "low", "p low"),
        frames.Run("p", ("x",), LIMITS),
        frames.Measure("memory", 0.1, 1 << 20),
        frames.Prove(b"r" * 32, 4, 8, 2, "x20", 3.0),
        frames.Recompute(b"r" * 32, 8, "x20", ((b"s" * 32, 3),)),
    ],
)
def test_every_request_comes_back_with_its_attachments_sizes(request_):
    head = head_of(request_, [b"12", b"", memoryview(b"345")])
    assert frames.decode_request(head) == (request_, (2, 0, 3), True, 0)
    with pytest.raises(FrameError):
        frames.decode_answer(head)


@pytest.mark.parametrize(
    ("answer", "attachments"),
    [
        (frames.Started((PROBE,), (LACK,), "landlock 7, seccomp", True), []),
        (frames.Converted("p", ("a",)), [b"1"]),
        (frames.Prepared(("p",)), []),
        (frames.Ran(("y", "z"), 0.5, "runtime 1"), [b"1", b"2"]),
        (frames.Measured(1e9, 0.5), []),
        (frames.Proved((b"l" * 64,), (b"r" * 32,), 0.5), []),
        (frames.Recomputed(b"l" * 64), []),
        (frames.Failed(True, "code", "message", "hint", "node", "operator"), []),
    ],
)
def test_every_answer_comes_back(answer, attachments):
    sizes = tuple(map(len, attachments))
    assert frames.decode_answer(head_of(answer, attachments)) == (answer, sizes, True)


def test_what_is_over_the_inline_limit_stays_out_of_the_frame():
    large = bytes(frames.INLINE_LIMIT_BYTES + 1)
    _, head, *rest = frames.encode_request(frames.Run("p", ("x",), LIMITS), [large])
    assert not rest
    assert frames.decode_request(head)[1:] == ((len(large),), False, 0)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 100_000,
        head_of(frames.Start(1, 2, 3, exact=False)),
        head_of(frames.Ran(("y",), 0.5, "runtime 1")),
        head_of(frames.Ran(("y", "y"), 0.5, "runtime 1"), [b"1", b"2"]),
        head_of(frames.Failed(True, "c" * 5000, "", "", "", "")),
        msgspec.msgpack.encode(({"type": "prepared", "held": [], "more": 1}, [], True)),
        msgspec.msgpack.encode(({"type": "prepared", "held": []}, [-1], True)),
        msgspec.msgpack.encode(({"type": "prepared", "held": []}, [1 << 60], True)),
        msgspec.msgpack.encode(({"type": "prepared", "held": []}, [0] * 30_000, True)),
        msgspec.msgpack.encode(({"type": "nothing"}, [], True)),
    ],
)
def test_what_is_no_answer_is_named_so(head):
    with pytest.raises(FrameError):
        frames.decode_answer(head)


def test_a_head_over_its_limit_is_refused_before_it_is_read():
    with pytest.raises(FrameError):
        frames.head_size(b"\xff\xff\xff\xff")
