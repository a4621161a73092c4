"""What a card's worker takes of the machine's memory: watched by the daemon.

Part of *execute*. A CPU's worker is held by ``RLIMIT_AS``, and the kernel refuses it what
is beyond. A driver reserves terabytes of address space, so that this limit would end every
unit of a card; ``RLIMIT_DATA`` leaves out what is shared, and that is what CUDA's pinned
memory is. What is resident counts all of it: anonymous pages, those swapped out, and shared
ones. So the daemon looks at these while it waits for an answer, and ends the process of a
unit that has taken too much.

Two questions are kept apart. *Has this request taken more than it may?* is asked while it
runs, against what was there when it began: what was prepared before it, or left behind, is
never its fault. *Does the process hold more than its programs explain?* is asked between
two requests, and then another process takes its place, which is nobody's fault.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from shoal.compute import frames

LOOK_INTERVAL_S: Final = 0.1
"""How often one process is looked at: 30 microseconds. It may take a GB meanwhile."""

SESSION_INTERVAL_S: Final = 1.0
"""How often all that it started is looked for: among all processes of the machine."""

OVERHEAD_BYTES: Final = 2 << 30
"""What drivers, their libraries and compilers take for a unit, whatever the program."""

PROGRAM_BYTES: Final = 64 << 20
"""What a runtime takes for a program that it holds, beside its weights."""

_COUNTED: Final = ("RssAnon:", "RssShmem:", "VmSwap:")


class HostMemoryError(Exception):
    """A request has taken more of the machine's memory than it may.

    Attributes:
        taken_bytes: What it has taken since it began.
        allowed_bytes: What it may take.
    """

    def __init__(self, taken_bytes: int, allowed_bytes: int) -> None:
        super().__init__(f"{taken_bytes} bytes taken, {allowed_bytes} allowed")
        self.taken_bytes = taken_bytes
        self.allowed_bytes = allowed_bytes


@dataclass(slots=True)
class HostMemory:
    """One process: what it may hold, and what its request may take.

    Attributes:
        pid: Its id, which is its session's too.
        unit_bytes: The most that any unit may ask for.
        proc: Where /proc is.
        look_at_s: When, by Trio's clock, the next look is due.
    """

    pid: int
    unit_bytes: int
    proc: Path = Path("/proc")
    look_at_s: float = math.inf
    _settled_bytes: int | None = None
    _programs: dict[str, int] = field(default_factory=dict)
    _before_bytes: int = 0
    _allowed_bytes: int = 0
    _session_at_s: float = 0.0
    _over_before: bool = False

    def begin(self, request: frames.Request, sent_bytes: int, room_bytes: int) -> None:
        """From now on this request runs.

        Args:
            request: What it is; this node's own work, which sees no requester's, is not held.
            sent_bytes: Its attachments.
            room_bytes: What it is lent for its answer's.
        """
        match request:
            case frames.Start() | frames.Measure() | frames.Prove() | frames.Recompute():
                self.look_at_s = math.inf
                return
            case frames.Prepare():  # a runtime keeps weights as they came and as it likes them
                own_bytes = 2 * sent_bytes
            case _:
                own_bytes = 0
        lent_bytes = sent_bytes + room_bytes  # which it may map
        self._allowed_bytes = (
            OVERHEAD_BYTES + request.limits.memory_bytes + lent_bytes + own_bytes
        )
        self._before_bytes = self._used_bytes()
        now_s = trio.current_time()
        self.look_at_s, self._session_at_s = now_s + LOOK_INTERVAL_S, now_s + SESSION_INTERVAL_S
        self._over_before = False

    def answered(self, request: frames.Request, answer: frames.Answer, sent_bytes: int) -> None:
        """Note what a request has left: what a new process holds, or one more program."""
        self.look_at_s = math.inf
        match request, answer:
            case frames.Start(), frames.Started():
                self._settled_bytes = self._used_bytes()
            case frames.Prepare(), frames.Prepared():
                sizes = self._programs | {request.held_as or request.program_id: sent_bytes}
                self._programs = {name: sizes.get(name, 0) for name in answer.held}

    @property
    def overfull(self) -> bool:
        """Whether the process holds more than its programs explain, between two requests."""
        if self._settled_bytes is None:
            return False
        programs = sum(2 * size + PROGRAM_BYTES for size in self._programs.values())
        allowed = self._settled_bytes + OVERHEAD_BYTES + programs + self.unit_bytes
        return self._used_bytes() > allowed

    async def look(self) -> None:
        """See what the request has taken; cancel-safe.

        Raises:
            HostMemoryError: It is too much.
        """
        self.look_at_s = trio.current_time() + LOOK_INTERVAL_S
        taken = self._used_bytes() - self._before_bytes
        if taken > self._allowed_bytes:
            raise HostMemoryError(taken, self._allowed_bytes)
        if trio.current_time() < self._session_at_s:
            return
        taken += await trio.to_thread.run_sync(self._others_bytes)
        over = taken > self._allowed_bytes
        # A process that is about to become a compiler shows its parent's memory as its own
        # for a moment: that is why it takes two looks.
        if over and self._over_before:
            raise HostMemoryError(taken, self._allowed_bytes)
        self._over_before = over
        if not over:
            self._session_at_s = trio.current_time() + SESSION_INTERVAL_S

    def _used_bytes(self) -> int:
        return used_bytes(self.proc / str(self.pid))

    def _others_bytes(self) -> int:
        """What the other processes of its session hold."""
        others = (d for d in self.proc.glob("[0-9]*") if d.name != str(self.pid))
        return sum(used_bytes(d) for d in others if _session(d) == self.pid)


def used_bytes(process: Path) -> int:
    """The memory that a process holds, by its directory of /proc; 0 of one that is gone."""
    try:
        status = (process / "status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    lines = (line.split() for line in status.splitlines() if line.startswith(_COUNTED))
    return sum(int(line[1]) << 10 for line in lines)


def _session(process: Path) -> int:
    """The id of a process's session; its name, in brackets, may hold anything."""
    try:
        stat = (process / "stat").read_text(encoding="utf-8", errors="replace")
        return int(stat.rpartition(")")[2].split()[3])
    except (OSError, IndexError):  # it is gone
        return -1
