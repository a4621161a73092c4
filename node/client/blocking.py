"""`Client`: the daemon on this machine from ordinary, blocking Python."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from shoal.node import quick_request
from shoal.node.client import fetching, flows, submitting
from shoal.node.client.exchange import (
    PARTING_LIMIT_S,
    Flow,
    Request,
    Value,
    Work,
    body_of,
    refusal_of,
    too_slow,
    unreachable,
)
from shoal.node.client.flows import Options, Prepared
from shoal.node.client.lines import LineBrokenError, Lines, LineSilentError
from shoal.node.client.progress import Progress
from shoal.node.client.tensors import As, Inputs, Outputs, check_as, named_arrays
from shoal.node.daemon_place import find_daemon
from shoal.node.quick_request import BODY_LIMIT_BYTES
from shoal.node.records import Job, Policy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from shoal.compute.devices import Device, Inventory
    from shoal.crypto.content import BlobId, Buffer
    from shoal.node.assurance import Assurance, JobAssurance
    from shoal.node.capability_views import CapabilityView, ChallengeView
    from shoal.node.causes import Explanation
    from shoal.node.client.flows import Model
    from shoal.node.ledger import LedgerPage
    from shoal.node.peer_views import (
        CallerView,
        ConductView,
        CutView,
        MisfitView,
        PeerView,
        ProofView,
    )
    from shoal.node.records import Answer, Ban, Unit
    from shoal.node.settings_view import SettingView
    from shoal.node.standing_view import StandingPage
    from shoal.node.status_views import LogLevelView, OwnerView, ReloadView, Status
    from shoal.node.timing_view import UnitTiming


class Client:
    """Hands work to the daemon on this machine and gets results back.

    Every call may raise `DaemonUnreachableError` where no daemon answers, and
    `DaemonError` with the daemon's own code, sentence and hint where it refuses.

    Args:
        socket: The daemon's socket; found as ``shoal status`` finds it when not
            given.
        home: The daemon's home, in place of ``socket``.
    """

    def __init__(
        self, socket: Path | str | None = None, *, home: Path | str | None = None
    ) -> None:
        self.place = find_daemon({"home": home, "socket": socket})
        self._lines = Lines(self.place.socket)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the daemon; jobs go on."""
        self._lines.close()

    def status(self) -> Status:
        """How the daemon is."""
        return self._drive(flows.status())

    def settings(self) -> list[SettingView]:
        """The settings that the daemon runs with, and where each came from."""
        return self._drive(flows.settings())

    def peers(self) -> list[PeerView]:
        """The nodes whose adverts are valid now."""
        return self._drive(flows.peers())

    def misfits(self) -> list[MisfitView]:
        """Peers that are connected and cannot be talked to, each with the reason."""
        return self._drive(flows.misfits())

    def cuts(self) -> list[CutView]:
        """The peers that are cut for what they did, though no advert of theirs is known."""
        return self._drive(flows.cuts())

    def conducts(self) -> list[ConductView]:
        """The peers of which something is held or noted, known by an advert or not."""
        return self._drive(flows.conducts())

    def callers(self) -> list[CallerView]:
        """From where strangers called at the bulk port without a good token."""
        return self._drive(flows.callers())

    def forgive(self, peer: str) -> None:
        """Let a peer that is cut back in, and forget what it did.

        Raises:
            DaemonError: ``no_such_offender``.
        """
        self._drive(flows.forgive(peer))

    def standing(self, peer: str) -> StandingPage:
        """How a peer stands with the daemon's node, what that decides, and why."""
        return self._drive(flows.standing(peer))

    def ledger(self, peer: str | None = None) -> LedgerPage:
        """Who did how much for whom: for one peer, or for all."""
        return self._drive(flows.ledger(peer))

    def export_ledger(self, peer: str | None = None) -> bytes:
        """What others have signed of it, as a file that anyone can check."""
        return self._drive(flows.export_ledger(peer))

    def bans(self) -> list[Ban]:
        """The peers that are banned by fraud proofs, each with the proof's id."""
        return self._drive(flows.bans())

    def unban(self, peer: str) -> None:
        """Lift a ban before its time.

        Raises:
            DaemonError: ``not_banned``.
        """
        self._drive(flows.unban(peer))

    def proofs(self) -> list[ProofView]:
        """The fraud proofs that the daemon believes, the newest first."""
        return self._drive(flows.proofs())

    def proof(self, proof_id: str) -> bytes:
        """A fraud proof's bytes, for ``shoal proof verify``.

        Raises:
            DaemonError: ``no_such_proof``.
        """
        return self._drive(flows.proof(proof_id))

    def blob(self, blob_id: BlobId) -> bytes:
        """Any blob that the daemon holds, such as those that a fraud proof needs.

        Raises:
            DaemonError: ``blob_missing``.
        """
        return self._drive(flows.blob(blob_id))

    def devices(self) -> list[Device]:
        """The daemon's devices."""
        return self._drive(flows.devices())

    def inventory(self) -> Inventory:
        """The daemon's devices, and the kinds of which it has none, with the reasons."""
        return self._drive(flows.inventory())

    def pause(self, device: str | None = None, *, for_s: float | None = None) -> OwnerView:
        """Take no more work on a device, or none of peers on all of them.

        Units that run get some seconds to end; then other nodes take them.

        Args:
            device: Its id, such as ``cpu``; nobody's work is taken there then.
            for_s: Ends it after so many seconds; without it, `resume` does.
        """
        return self._drive(flows.pause(device, for_s))

    def resume(self, device: str | None = None) -> OwnerView:
        """End the pause of a device; without one, every pause."""
        return self._drive(flows.resume(device))

    def reload(self) -> ReloadView:
        """Have the daemon read its settings again; all of them count, or none."""
        return self._drive(flows.reload())

    def log_level(self) -> LogLevelView:
        """How much the daemon's log tells."""
        return self._drive(flows.log_level())

    def set_log_level(self, level: str, module: str | None = None) -> LogLevelView:
        """Have the daemon's log tell more or less, until it is reloaded.

        Args:
            level: ``debug``, ``info``, ``warning`` or ``error``.
            module: Of this module alone, such as ``shoal.node.membership``.
        """
        return self._drive(flows.set_log_level(level, module))

    def end(self, *, now: bool = False) -> int:
        """Make the daemon end: once running units have ended, or ``now``.

        It answers before it ends; gives the number of its process.
        """
        return self._drive(flows.end(now=now))

    def metrics(self) -> str:
        """The daemon's metrics, in Prometheus' text format."""
        return self._drive(flows.metrics())

    def capability(self) -> CapabilityView:
        """What the daemon's node claims of itself, measured."""
        return self._drive(flows.capability())

    def measure(self, device: str | None = None) -> list[str]:
        """Have the node's devices measured anew, as soon as they can be.

        It does not wait for that: of each of `capability`'s devices ``asked`` says whether
        it is still to come.

        Args:
            device: Its id; each that takes units when not given.

        Returns:
            Which will be.
        """
        return self._drive(flows.measure(device))

    def challenge(self, peer: str, device: str | None = None) -> ChallengeView:
        """Have a peer show a rate that it claims; some seconds.

        Args:
            peer: Its id.
            device: Which of its devices; the first that can be asked when not given.
        """
        return self._drive(flows.challenge(peer, device))

    def connect(self, address: str) -> str:
        """Link the daemon to the peer at a multiaddr; gives the peer's id."""
        return self._drive(flows.connect(address))

    def prepare(self, model: Model, precision: str | None = None) -> Prepared:
        """Bring a model to the daemon once, for any number of jobs.

        Args:
            model: A path to an ONNX file, its bytes, a loaded ``ModelProto`` or
                a program id.
            precision: ``x20``, ``x16`` or ``x8`` for the class ``exact``.

        Raises:
            ProgramError: The model cannot be a program.
        """
        return self._drive(flows.prepare(model, precision))

    def run(
        self,
        model: Model,
        inputs: Inputs,
        *,
        timeout_s: float | None = None,
        as_: As = "numpy",
        **options: Any,
    ) -> Outputs:
        """Run a model once and give its outputs by name.

        Args:
            model: As for `prepare`, or what `prepare` gave.
            inputs: For each of the model's inputs an array, a torch tensor, a list, or
                the path of a file with one; or the path of an npz or safetensors file.
            timeout_s: How long to wait; without it, until the job ends.
            as_: ``numpy`` or ``torch``.
            **options: Fields of `Options`, such as ``label`` or ``time_limit_s``.

        Raises:
            ProgramError: Model or inputs cannot be used.
            JobFailedError: The job ended without results.
            WaitTimeoutError: The job is still running after ``timeout_s``.
        """
        flow = submitting.run(model, inputs, Options(**options), timeout_s, as_)
        return self._drive(flow)

    def map(
        self,
        model: Model,
        inputs: Mapping[str, Any] | str | PathLike[str] | Iterable[Inputs],
        *,
        batch: int = 1,
        ordered: bool = True,
        as_: As = "numpy",
        ahead: int = submitting.AHEAD_UNITS,
        progress: bool = False,
        **options: Any,
    ) -> Iterator[Outputs]:
        """Run a model on many inputs, on many nodes at once.

        With arrays by name, each ``batch`` rows of them are a unit, and all are handed
        over before this returns: the job goes on whatever becomes of the iterator. With
        an iterable of inputs, each of them is a unit, and they are taken while results
        come back: memory stays constant, and the job is cancelled where the iterator is
        closed before its end.

        Args:
            model: As for `prepare`, or what `prepare` gave.
            inputs: Arrays by name (or the path of an npz or safetensors file), or an
                iterable of what `run` takes.
            batch: Rows in one unit; for arrays by name.
            ordered: Whether results come in order, or as they are there; then
                ``outputs.unit`` tells whose they are.
            as_: ``numpy`` or ``torch``.
            ahead: How many units of an iterable are handed over before their results
                are taken.
            progress: Show how far it is, in a notebook or on a terminal.
            **options: Fields of `Options`.

        Raises:
            ProgramError: Model or inputs cannot be used.
            JobFailedError: From the iterator, at the first unit that failed.
        """
        if isinstance(inputs, Mapping | str | PathLike):
            check_as(as_)
            rows = named_arrays(inputs)
            job = self._drive(submitting.map_rows(model, rows, batch, Options(**options)))
            return self.results(job.id, ordered=ordered, as_=as_, progress=progress)
        shown = Progress(off=not progress)
        lazy = submitting.LazyMap(
            self._drive(flows.prepare(model, flows.precision_of(Options(**options)))),
            iter(inputs),
            Options(**options),
            ordered=ordered,
            as_=as_,
            ahead=ahead,
            seen=shown.show,
        )
        return self._lazily(lazy, shown)

    def _lazily(self, lazy: submitting.LazyMap, shown: Progress) -> Iterator[Outputs]:
        try:
            with shown:
                while (found := self._drive(lazy.next())) is not None:
                    yield found
        finally:
            self._drive(lazy.give_up())

    def submit(
        self,
        model: Model,
        units: Iterable[Inputs],
        *,
        policy: Policy = Policy.MAP,
        **options: Any,
    ) -> Job:
        """Submit a job and return at once; ``units`` are consumed as they are sent.

        Some hundred at a time go to the daemon, which may begin with them; where a later
        one is in error, the job is cancelled.

        Raises:
            ProgramError: Model or inputs cannot be used.
        """
        return self._drive(submitting.submit(model, iter(units), policy, Options(**options)))

    def jobs(self, limit: int = 50) -> list[Job]:
        """The newest jobs first."""
        return self._drive(flows.jobs(limit))

    def job(self, job_id: str) -> Job:
        """A job as it stands."""
        return self._drive(flows.job(job_id))

    def units(self, job_id: str, offset: int = 0, limit: int = 100) -> list[Unit]:
        """Some units of a job, in order of their index."""
        return self._drive(flows.units(job_id, offset, limit))

    def wait(self, job_id: str, timeout_s: float | None = None) -> Job:
        """Wait for a job to end; gives it as it stands when the time is over."""
        return self._drive(flows.wait(job_id, timeout_s))

    def watch(self, job_id: str) -> Iterator[Job]:
        """The job at once and at each change until it is final."""
        request = Request("GET", f"/v1/jobs/{job_id}/events")
        try:
            with self._lines.answer(request, limit_s=None) as answer:
                if answer.status >= 400:
                    raise refusal_of(answer.status, b"".join(answer.pieces))
                for line in _lines_of(answer.pieces):
                    yield msgspec.convert(msgspec.json.decode(line)["job"], Job)
        except (LineBrokenError, LineSilentError):
            raise unreachable(self.place) from None

    def results(
        self,
        job_id: str,
        *,
        ordered: bool = True,
        as_: As = "numpy",
        progress: bool = False,
    ) -> Iterator[Outputs]:
        """The outputs of each unit of a job, as soon as they are there, in constant memory.

        Args:
            job_id: The job.
            ordered: Whether in order; otherwise as units end, and ``outputs.unit`` tells
                which it is.
            as_: ``numpy`` or ``torch``.
            progress: Show how far the job is, in a notebook or on a terminal.

        Raises:
            JobFailedError: At the first unit that has none.
        """
        check_as(as_)
        shown = Progress(off=not progress)
        found = fetching.Results(
            job_id,
            ordered=ordered,
            as_=as_,
            seen=shown.show,
        )
        return self._each(found, shown)

    def _each(self, results: fetching.Results, shown: Progress) -> Iterator[Outputs]:
        with shown:
            while (found := self._drive(results.next())) is not None:
                yield found

    def outputs(self, job_id: str, unit: int = 0, *, as_: As = "numpy") -> Outputs:
        """The outputs of one unit; raises JobFailedError where it has none."""
        check_as(as_)
        return self._drive(fetching.outputs(job_id, unit, as_))

    def seal(self, job_id: str) -> Job:
        """Add no more units to an open job, such as one whose submitter went away."""
        return self._drive(flows.seal(job_id))

    def cancel_units(self, job_id: str, units: Sequence[int]) -> list[int]:
        """Cancel units that nobody runs yet; gives the indices of those cancelled."""
        return self._drive(flows.cancel_units(job_id, units))

    def cancel(self, job_id: str) -> Job:
        """End a job early."""
        return self._drive(flows.cancel(job_id))

    def forget(self, job_id: str, *, unfetched_too: bool = False) -> Job:
        """Let a job go that has ended; refused where results were not fetched, unless told."""
        return self._drive(flows.forget(job_id, unfetched_too=unfetched_too))

    def why(self, job_id: str) -> tuple[list[Answer], str]:
        """What peers answered to a job's calls, and a sentence for each cause."""
        return self._drive(flows.why(job_id))

    def explanation(self, job_id: str, unit: int | None = None) -> Explanation:
        """Why a job, or one unit of it, stands where it stands, and what would change it."""
        return self._drive(flows.explanation(job_id, unit))

    def assurance(
        self, job_id: str, offset: int = 0, limit: int = 100
    ) -> tuple[JobAssurance, list[Assurance]]:
        """How far a job's results can be relied on: all of it counted, and some units."""
        return self._drive(flows.assurance(job_id, offset, limit))

    def again(self, job_id: str, units: Sequence[int] = (), verify: str = "sample:1") -> Job:
        """Submit units of a job once more; none: those that only convicted peers stand for."""
        return self._drive(flows.again(job_id, units, verify))

    def timing(self, job_id: str, unit: int = 0) -> UnitTiming:
        """Where the time of a unit went that ran lately.

        Raises:
            DaemonError: ``no_timing``: it is not kept any more.
        """
        return self._drive(flows.timing(job_id, unit))

    def receipts(self, job_id: str) -> list[BlobId]:
        """Ids of a job's receipts."""
        return self._drive(flows.receipts(job_id))

    def receipt(self, receipt_id: str) -> bytes:
        """A receipt's signed envelope, for ``shoal receipt verify``."""
        return self._drive(flows.receipt(receipt_id))

    def _drive(self, flow: Flow[Value]) -> Value:
        try:
            step = next(flow)
            while True:
                try:
                    came = step.call() if isinstance(step, Work) else self._exchange(step)
                except BaseException as error:  # noqa: BLE001  # Ctrl-C too; thrown on
                    step = flow.throw(error)
                else:
                    step = flow.send(came)
        except StopIteration as end:
            return end.value
        finally:
            flow.close()

    def _exchange(self, request: Request) -> Buffer | None:
        try:
            said = request.body
            if request.quick and not callable(said) and len(said) <= BODY_LIMIT_BYTES:
                quick = quick_request.encode(request.path, request.query, said)
                return body_of(request, *self._lines.ask(quick, request.answer_limit_s))
            limit_s = PARTING_LIMIT_S if request.parting else request.answer_limit_s
            with self._lines.answer(request, limit_s) as answer:
                body = bytearray()
                for piece in answer.pieces:
                    body += piece
        except LineSilentError:
            raise too_slow(request) from None
        except LineBrokenError:
            raise unreachable(self.place) from None
        return body_of(request, answer.status, body if request.large else bytes(body))


def _lines_of(pieces: Iterator[bytes | bytearray]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
