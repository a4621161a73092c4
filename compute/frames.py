"""What a daemon and its worker say to each other over their socket pair. Sans-IO.

A frame is the size of its head (u32, little-endian), the head, and the attachments'
bytes one after another. The head is msgpack: a tagged message, the attachments'
sizes, and whether they are in the frame or, being many bytes, in memory that the
daemon lent (`shoal.compute.lent_memory`). So tensors are never copied into msgpack,
and a reader knows how much is to come, and can refuse it, before it takes any of it.

The worker runs strangers' programs, so the daemon treats its frames as a
stranger's: strict types, every size bounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeVar

import msgspec

from shoal.compute.devices.cards import Card  # msgspec reads the annotations
from shoal.compute.devices.inventory import Lack
from shoal.compute.exact.leaves import (
    LEAF_LIMIT_BYTES,
    LEAF_VALUES_LIMIT,
    LEAVES_LIMIT,
    STAGE_LEAF_LIMIT_BYTES,
    STAGES_LIMIT,
)
from shoal.compute.executors.base import Probe
from shoal.compute.in_file import InFile, size_of
from shoal.compute.manifest import TENSOR_COUNT_LIMIT
from shoal.compute.tensor import HEADER_LIMIT_BYTES, TENSOR_LIMIT_BYTES
from shoal.protocol.limits import (
    CHALLENGE_PLACES_LIMIT,
    CHALLENGE_ROWS_LIMIT,
    CHALLENGE_STEPS_LIMIT,
    Digest32,
    HexId,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.compute.in_file import Tensor
    from shoal.crypto.content import Buffer

SIZE_FIELD_BYTES: Final = 4
HEAD_LIMIT_BYTES: Final = 16 << 20
"""The ids or names of all tensors of the largest program, 512 bytes each, fit."""

ATTACHMENT_COUNT_LIMIT: Final = TENSOR_COUNT_LIMIT + 2
"""A program's weights, its graph and its manifest."""

ATTACHMENT_LIMIT_BYTES: Final = TENSOR_LIMIT_BYTES + HEADER_LIMIT_BYTES

INLINE_LIMIT_BYTES: Final = 64 << 10
"""Attachments of a frame, in all, that travel in it; as long to copy as memory to lend."""

_Text = Annotated[str, msgspec.Meta(max_length=4096)]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=str.lower):
    """One thing said; the tag is the class's name in lower case."""


class UnitLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one unit may take.

    Attributes:
        time_s: Wall time, for preparing the program where that is needed, and again
            for running it.
        memory_bytes: Memory beyond what the worker holds when the request is read: its
            libraries, prepared programs, and this request's own attachments. 64 MiB
            for the runtime's own sake are added, whatever the limit; a program that
            needs no more than those runs under any limit.
        output_bytes: All output blobs together.
    """

    time_s: float
    memory_bytes: int
    output_bytes: int


class Start(_Message, frozen=True):
    """The first request: lock yourself in, and run the canaries. Answer: `Started`.

    ``exact`` asks for the executor of the class `exact` too, whose kernels should
    be in the cache by then. ``memory_bytes`` is the most that any unit may ask for.
    ``niceness`` is the worker's once it has loaded what it needs. ``card`` is what units
    run on; None is the CPU. ``scratch`` is a card's worker's own directory, the only
    place where it may write. Of ``home``, the daemon's, it may read nothing. Programs stay
    prepared within ``share_bytes`` of the card, whatever other processes take there.
    """

    threads: int
    cache_bytes: int
    memory_bytes: int
    exact: bool
    niceness: int = 5
    card: Card | None = None
    scratch: str = ""
    home: str = ""
    share_bytes: int = 0


class Convert(_Message, frozen=True):
    """Convert the attached ONNX model. Answer: `Converted`, the blobs attached."""

    limits: UnitLimits
    precision: str | None


class Prepare(_Message, frozen=True):
    """Load and keep a program; its blobs are attached, in this order. Answer: `Prepared`.

    ``numeric_class`` is the one it is run in; "" is by its manifest, `exact` or `fp32`.
    Under ``held_as`` it is run from then on; "" is its id. ``compile_s`` is what compiling its
    kernels may take beside the limits, where a card compiles any.
    """

    program_id: str
    blob_ids: tuple[str, ...]
    limits: UnitLimits
    numeric_class: str = ""
    held_as: str = ""
    compile_s: Annotated[float, msgspec.Meta(ge=0.0)] = 0.0


class Run(_Message, frozen=True):
    """Run a kept program on the attached tensors. Answer: `Ran`, the outputs attached.

    ``program_id`` is what the program is held as, here and in what follows. ``trace``
    asks for the leaves of the unit's stages too, where its class has them.
    """

    program_id: str
    input_names: tuple[str, ...]
    limits: UnitLimits
    trace: bool = False


class RunMany(_Message, frozen=True):
    """Run a kept program on one set of the attached tensors after another.

    Answer: a frame for each set, in order, as soon as it has run: `Ran`, its outputs in
    the frame whatever their size, or `Failed`; or `Paused`, and the rest is not run.

    Attributes:
        input_names: Of one set; the attachments are ``count`` sets one after another.
        limits: Of each set by itself.
        stop_after_s: No further set is begun from then on.
        trace: As for `Run`.
    """

    program_id: str
    input_names: tuple[str, ...]
    count: int
    limits: UnitLimits
    stop_after_s: float
    trace: bool = False


class Trace(_Message, frozen=True):
    """Run a kept program on the attached tensors, for its leaves. Answer: `Traced`.

    ``stage`` says of which stage the operators' leaves are wanted; of all, where it is None.
    """

    program_id: str
    input_names: tuple[str, ...]
    limits: UnitLimits
    stage: int | None


class TensorsOf(_Message, frozen=True):
    """Run a kept program on the attached tensors up to one node. Answer: `NodeTensors`."""

    program_id: str
    input_names: tuple[str, ...]
    limits: UnitLimits
    index: int


class Judge(_Message, frozen=True):
    """Judge the fraud proof that is attached first; its blobs follow. Answer: `Judged`.

    Attributes:
        processor_s: What it may take of a processor, within the wall time of its limits.
    """

    blob_ids: tuple[str, ...]
    limits: UnitLimits
    processor_s: float


class Measure(_Message, frozen=True):
    """Multiply in a class, or copy memory, for about so long. Answer: `Measured`.

    Attributes:
        what: The class, or ``memory``.
        time_s: After one time that does not count, until so long is over.
        size: Rows, terms and columns of each product; or bytes copied at once.
        depth: How many products one run of the program makes, each of the one before.
    """

    what: Literal["fp32", "low", "memory"]
    time_s: float
    size: int
    depth: int = 1


class Prove(_Message, frozen=True):
    """Do a capability challenge's work, or give it up. Answer: `Proved`."""

    root: bytes
    rows: int
    size: int
    steps: int
    precision: str
    time_limit_s: float


class Recompute(_Message, frozen=True):
    """Compute rows of a challenge's products: (seed of the step, row). Answer: `Recomputed`."""

    root: bytes
    size: int
    precision: str
    rows: tuple[tuple[bytes, int], ...]


class Started(_Message, frozen=True):
    """What the canary of each executor showed, and what keeps others from being there.

    ``sandbox`` says how the worker is locked in, or why not; ``sandboxed``, whether that
    is enough for strangers' programs. ``holds_units``: no unit gets more memory of its
    device than it asked for, by whatever executor.
    """

    probes: tuple[Probe, ...]
    missing: tuple[Lack, ...]
    sandbox: _Text
    sandboxed: bool
    holds_units: bool = True


class Converted(_Message, frozen=True):
    """The program made; ``blob_ids`` name the attachments."""

    program_id: str
    blob_ids: tuple[str, ...]


class Prepared(_Message, frozen=True):
    """The program is kept, and these are all that are; what they take of a card."""

    held: tuple[str, ...]
    card_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0


_Leaf = Annotated[bytes, msgspec.Meta(min_length=1, max_length=LEAF_LIMIT_BYTES)]
_StageLeaf = Annotated[bytes, msgspec.Meta(min_length=1, max_length=STAGE_LEAF_LIMIT_BYTES)]
_StageLeaves = Annotated[tuple[_StageLeaf, ...], msgspec.Meta(max_length=STAGES_LIMIT)]


class Ran(_Message, frozen=True):
    """The outputs' names, what ran, and the time from the inputs' arrival to the result.

    ``stages`` are the leaves of the unit's stages, where they were asked for.
    """

    output_names: tuple[str, ...]
    compute_s: float
    runtime: _Text
    stages: _StageLeaves = ()


class Traced(_Message, frozen=True):
    """The leaves, in two attachments (`pack_leaves`).

    First the operators'; then those of the stages that these reach the end of, which are
    none where one stage alone was asked for.
    """


class NodeTensors(_Message, frozen=True):
    """A node's leaf; ``blob_ids`` name the attachments."""

    blob_ids: Annotated[tuple[HexId, ...], msgspec.Meta(max_length=LEAF_VALUES_LIMIT)]
    leaf: _Leaf


class Judged(_Message, frozen=True):
    """What the proof shows, of whom, and why, in a sentence for people.

    Attributes:
        processor_s: What it took of a processor.
    """

    outcome: Literal["convicted", "acquitted", "undecided"]
    accused: _Text | None
    sentence: _Text
    processor_s: Annotated[float, msgspec.Meta(ge=0.0, le=1e9)]


class Paused(_Message, frozen=True):
    """The time of a `RunMany` is over; what was not answered was not run."""


_Positive = Annotated[float, msgspec.Meta(gt=0.0, le=1e18)]


class Measured(_Message, frozen=True):
    """So many multiply-adds, or bytes read and written, in so many seconds."""

    amount: _Positive
    elapsed_s: _Positive


class Proved(_Message, frozen=True):
    """Of each step, the digests of its product's rows, joined, and their Merkle root."""

    leaves: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(max_length=32 * CHALLENGE_ROWS_LIMIT)], ...],
        msgspec.Meta(max_length=CHALLENGE_STEPS_LIMIT),
    ]
    roots: Annotated[tuple[Digest32, ...], msgspec.Meta(max_length=CHALLENGE_STEPS_LIMIT)]
    elapsed_s: _Positive


class Recomputed(_Message, frozen=True):
    """The digests of the rows asked for, joined."""

    leaves: Annotated[bytes, msgspec.Meta(max_length=32 * CHALLENGE_PLACES_LIMIT)]


class Failed(_Message, frozen=True):
    """A `ProgramError` (``of_program``) or a `ComputeError`."""

    of_program: bool
    code: _Text
    message: _Text
    hint: _Text
    node: _Text
    operator: _Text


Request = (
    Start | Convert | Prepare | Run | RunMany | Trace | TensorsOf | Judge
    | Measure | Prove | Recompute
)  # fmt: skip
Answer = (
    Started | Converted | Prepared | Ran | Paused | Traced | NodeTensors | Judged
    | Measured | Proved | Recomputed | Failed
)  # fmt: skip

_Size = Annotated[int, msgspec.Meta(ge=0, le=ATTACHMENT_LIMIT_BYTES)]
_Sizes = Annotated[tuple[_Size, ...], msgspec.Meta(max_length=ATTACHMENT_COUNT_LIMIT)]

_Head = TypeVar("_Head")


class FrameError(Exception):
    """Bytes that are not a frame; the two ends no longer understand each other."""


def are_inline(attachments: Sequence[Tensor]) -> bool:
    """Whether these travel in the frame itself."""
    in_memory = not any(isinstance(each, InFile) for each in attachments)
    return in_memory and sum(map(size_of, attachments)) <= INLINE_LIMIT_BYTES


def encode_request(
    message: Request, attachments: Sequence[Tensor] = (), *, answer_bytes: int = 0
) -> list[Buffer]:
    """The pieces of a request's frame, to be sent in order.

    Args:
        message: The request.
        attachments: Where they are not `are_inline`, they lie in the first memory lent.
        answer_bytes: Size of the memory lent for the answer; 0 where there is none.
    """
    inline = are_inline(attachments)
    return _pieces((message, _sizes(attachments), inline, answer_bytes), attachments, inline)


def encode_answer(
    message: Answer, attachments: Sequence[Buffer] = (), *, inline: bool = True
) -> list[Buffer]:
    """The pieces of an answer's frame; ``inline`` or in the memory lent for them."""
    return _pieces((message, _sizes(attachments), inline), attachments, inline)


def _pieces(
    head: tuple[object, ...], attachments: Sequence[Tensor], inline: bool
) -> list[Buffer]:
    encoded = msgspec.msgpack.encode(head)
    size = len(encoded).to_bytes(SIZE_FIELD_BYTES, "little")
    in_frame = [each for each in attachments if not isinstance(each, InFile)] if inline else ()
    return [size, encoded, *in_frame]


def _sizes(attachments: Sequence[Tensor]) -> list[int]:
    return list(map(size_of, attachments))


def head_size(field: Buffer) -> int:
    """How many bytes the head takes.

    Raises:
        FrameError: More than `HEAD_LIMIT_BYTES`.
    """
    size = int.from_bytes(field, "little")
    if size > HEAD_LIMIT_BYTES:
        raise FrameError(f"a head of {size} bytes is over {HEAD_LIMIT_BYTES}")
    return size


def decode_request(head: Buffer) -> tuple[Request, tuple[int, ...], bool, int]:
    """A request, the sizes of its attachments, whether they are inline, the answer's room.

    Raises:
        FrameError: This is no request.
    """
    return _decode(_REQUESTS, head)


def decode_answer(head: Buffer) -> tuple[Answer, tuple[int, ...], bool]:
    """An answer, the sizes of its attachments, and whether they are inline.

    Raises:
        FrameError: This is no answer, or not every attachment has its name.
    """
    answer, sizes, inline = _decode(_ANSWERS, head)
    names: tuple[str, ...] = ()
    match answer:
        case Ran():
            names = answer.output_names
        case Converted() | NodeTensors():
            names = answer.blob_ids
        case Traced():
            names = ("operators", "stages")
    if len(set(names)) != len(sizes):
        raise FrameError(f"{len(sizes)} attachments and {len(set(names))} names for them")
    return answer, sizes, inline


def pack_leaves(leaves: Sequence[bytes]) -> bytes:
    """Leaves as one attachment; no unit has so many that they are more than one holds."""
    return msgspec.msgpack.encode(leaves)


def unpack_leaves(data: Buffer) -> tuple[bytes, ...]:
    """The leaves of an attachment.

    Raises:
        FrameError: It holds no leaves, or more or longer ones than a unit has.
    """
    return _decode(_LEAVES, data)


_LEAVES: Final = msgspec.msgpack.Decoder(
    Annotated[tuple[_Leaf, ...], msgspec.Meta(max_length=LEAVES_LIMIT)]
)
_REQUESTS: Final = msgspec.msgpack.Decoder(tuple[Request, _Sizes, bool, int])
_ANSWERS: Final = msgspec.msgpack.Decoder(tuple[Answer, _Sizes, bool])


def _decode(decoder: msgspec.msgpack.Decoder[_Head], head: Buffer) -> _Head:
    try:
        return decoder.decode(head)
    except (msgspec.DecodeError, RecursionError) as error:
        raise FrameError(f"not a frame: {error}") from None
