"""The worker's end of its socket pair: takes one request after another and answers each.

Part of *execute*; `shoal.compute.frames` says how a message is written, and the daemon's end
is `shoal.compute.exchanges`. Every failure is an answer: what a library raises ends its
request, and not this process. What a request asks for is done by `shoal.compute.worker`.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Final

from shoal.compute import frames, lent_memory
from shoal.compute.errors import ComputeError, ProgramError

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.compute.worker import Worker
    from shoal.crypto.content import Buffer

_LENT_DESCRIPTORS_LIMIT: Final = 2  # the request's memory and the answer's


def serve(channel: socket.socket, worker_class: Callable[[frames.Start], Worker]) -> None:
    """Answer requests until the daemon closes its end, or the card has failed.

    Args:
        channel: This process's end of the socket pair.
        worker_class: Makes the worker of the first request, which is `frames.Start`.
    """
    worker: Worker | None = None
    while not (worker and worker.broken) and (received := _receive(channel)) is not None:
        request, attachments, answer_memory = received
        if isinstance(request, frames.Start):
            worker = worker_class(request)
        assert worker is not None, "the first request is Start"
        if isinstance(request, frames.RunMany):
            _run_many(channel, worker, request, attachments)
            del attachments, received
            continue
        answer: frames.Answer
        outputs: list[bytes] = []
        inline = True
        try:
            if attachments is None:
                raise MemoryError
            answer, outputs = _answer(worker, request, attachments)
            inline = frames.are_inline(outputs)
            if not inline:
                lent_memory.write_answer(answer_memory, outputs)
        except Exception as error:  # noqa: BLE001
            # The root of a request: a library may raise anything at a model made to
            # confuse it. That ends the request, with its kind named, and not the worker.
            answer = _failed(error)
        if isinstance(answer, frames.Failed):
            outputs, inline = [], True
        if answer_memory >= 0:
            os.close(answer_memory)
        del attachments, received  # the memory that was lent goes with its last view
        for piece in frames.encode_answer(answer, outputs, inline=inline):
            channel.sendall(piece)
        del outputs


def _run_many(
    channel: socket.socket,
    worker: Worker,
    request: frames.RunMany,
    attachments: list[Buffer] | None,
) -> None:
    """Run one set of inputs after another, each with its own limits and its own answer."""
    one = frames.Run(request.program_id, request.input_names, request.limits, request.trace)
    began_s = time.monotonic()
    for number in range(request.count):
        if number and time.monotonic() - began_s >= request.stop_after_s:
            channel.sendall(b"".join(frames.encode_answer(frames.Paused())))
            return
        answer: frames.Answer
        outputs: list[bytes] = []
        try:
            if attachments is None:
                raise MemoryError
            first = number * len(one.input_names)
            answer, outputs = worker.run(one, attachments[first : first + len(one.input_names)])
        except Exception as error:  # noqa: BLE001  # the root of a unit, as in `serve`
            answer, outputs = _failed(error), []
        channel.sendall(b"".join(frames.encode_answer(answer, outputs)))
        if worker.broken:
            return


def _answer(
    worker: Worker, request: frames.Request, attachments: list[Buffer]
) -> tuple[frames.Answer, list[bytes]]:
    match request:
        case frames.Convert():
            return worker.convert(request, attachments)
        case frames.Prepare():
            return worker.prepare(request, attachments), []
        case frames.Run():
            return worker.run(request, attachments)
        case frames.Trace():
            return worker.trace(request, attachments)
        case frames.TensorsOf():
            return worker.tensors_of(request, attachments)
        case frames.Judge():
            return worker.judge(request, attachments), []
        case frames.Measure() | frames.Prove() | frames.Recompute():
            return worker.measure(request), []
        case frames.Start():
            return worker.start(), []
        case frames.RunMany():
            raise AssertionError("it has many answers")


def _failed(error: Exception) -> frames.Failed:
    """What is said of an error, of whatever kind."""
    if isinstance(error, MemoryError):
        error = ComputeError("the worker ran out of memory", code="memory_limit")
    if not isinstance(error, ProgramError | ComputeError):
        error = ProgramError(
            f"the program made a library fail: {type(error).__name__}: {error!s:.200}",
            code="library_failure",
        )
    return frames.Failed(
        of_program=isinstance(error, ProgramError),
        code=error.code,
        message=error.message[:4096],
        hint=error.hint[:4096],
        node=error.node,
        operator=error.operator,
    )


def _receive(
    channel: socket.socket,
) -> tuple[frames.Request, list[Buffer] | None, int] | None:
    """A request, its attachments, and the memory for the answer's, or -1.

    No attachments where they are more than this process may map.
    """
    field, descriptors, _, _ = socket.recv_fds(
        channel, frames.SIZE_FIELD_BYTES, _LENT_DESCRIPTORS_LIMIT
    )
    rest = _receive_exactly(channel, frames.SIZE_FIELD_BYTES - len(field)) if field else None
    if rest is None:
        return None
    head = _receive_exactly(channel, frames.head_size(field + rest))
    if head is None:
        return None
    request, sizes, inline, answer_bytes = frames.decode_request(head)
    attachments: list[Buffer] | None
    if inline:
        attachments = []
        for size in sizes:
            attachment = _receive_exactly(channel, size)
            if attachment is None:
                return None
            attachments.append(attachment)
    else:
        memory = descriptors.pop(0)
        try:
            attachments = lent_memory.map_request(memory, sizes)
        except OSError:
            attachments = None
        os.close(memory)
    return request, attachments, descriptors.pop() if answer_bytes else -1


def _receive_exactly(channel: socket.socket, size: int) -> bytearray | None:
    """Take ``size`` bytes, or None where the daemon is gone."""
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = channel.recv_into(view)
        if count == 0:
            return None
        view = view[count:]
    return data
