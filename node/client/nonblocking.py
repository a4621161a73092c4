"""`AsyncClient`: the daemon on this machine from Trio or asyncio."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import anyio.to_thread
import httpx
import msgspec

from shoal.node.client import fetching, flows, submitting
from shoal.node.client.exchange import (
    CONNECT_LIMIT_S,
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
from shoal.node.client.progress import Progress
from shoal.node.client.tensors import As, Inputs, Outputs, check_as, named_arrays
from shoal.node.daemon_place import find_daemon
from shoal.node.records import Job, Policy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
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


_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For a transport that speaks to a socket file. Without it one is made that trusts the web's
authorities: 20 ms of CPU for each client."""


class AsyncClient:
    """`Client` for asynchronous programs; every call of it has its twin here.

    A call that is cancelled leaves the daemon and its jobs as they are: a job
    that was submitted goes on.

    Args:
        socket: The daemon's socket; found as ``shoal status`` finds it when not
            given.
        home: The daemon's home, in place of ``socket``.
    """

    def __init__(
        self, socket: Path | str | None = None, *, home: Path | str | None = None
    ) -> None:
        self.place = find_daemon({"home": home, "socket": socket})
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(self.place.socket), verify=_NO_TLS),
            base_url="http://shoal",
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections to the daemon; jobs go on."""
        await self._http.aclose()

    async def status(self) -> Status:
        """How the daemon is."""
        return await self._drive(flows.status())

    async def settings(self) -> list[SettingView]:
        """The settings that the daemon runs with, and where each came from."""
        return await self._drive(flows.settings())

    async def peers(self) -> list[PeerView]:
        """The nodes whose adverts are valid now."""
        return await self._drive(flows.peers())

    async def misfits(self) -> list[MisfitView]:
        """Peers that are connected and cannot be talked to; see `Client.misfits`."""
        return await self._drive(flows.misfits())

    async def cuts(self) -> list[CutView]:
        """The peers that are cut for what they did, though no advert of theirs is known."""
        return await self._drive(flows.cuts())

    async def conducts(self) -> list[ConductView]:
        """The peers of which something is held or noted; see `Client.conducts`."""
        return await self._drive(flows.conducts())

    async def callers(self) -> list[CallerView]:
        """From where strangers called at the bulk port without a good token."""
        return await self._drive(flows.callers())

    async def forgive(self, peer: str) -> None:
        """Let a peer that is cut back in, and forget what it did.

        Raises:
            DaemonError: ``no_such_offender``.
        """
        await self._drive(flows.forgive(peer))

    async def standing(self, peer: str) -> StandingPage:
        """How a peer stands with the daemon's node, what that decides, and why."""
        return await self._drive(flows.standing(peer))

    async def ledger(self, peer: str | None = None) -> LedgerPage:
        """Who did how much for whom: for one peer, or for all."""
        return await self._drive(flows.ledger(peer))

    async def export_ledger(self, peer: str | None = None) -> bytes:
        """What others have signed of it, as a file that anyone can check."""
        return await self._drive(flows.export_ledger(peer))

    async def bans(self) -> list[Ban]:
        """The peers that are banned by fraud proofs, each with the proof's id."""
        return await self._drive(flows.bans())

    async def unban(self, peer: str) -> None:
        """Lift a ban before its time.

        Raises:
            DaemonError: ``not_banned``.
        """
        await self._drive(flows.unban(peer))

    async def proofs(self) -> list[ProofView]:
        """The fraud proofs that the daemon believes, the newest first."""
        return await self._drive(flows.proofs())

    async def proof(self, proof_id: str) -> bytes:
        """A fraud proof's bytes, for ``shoal proof verify``.

        Raises:
            DaemonError: ``no_such_proof``.
        """
        return await self._drive(flows.proof(proof_id))

    async def blob(self, blob_id: BlobId) -> bytes:
        """Any blob that the daemon holds, such as those that a fraud proof needs.

        Raises:
            DaemonError: ``blob_missing``.
        """
        return await self._drive(flows.blob(blob_id))

    async def devices(self) -> list[Device]:
        """The daemon's devices."""
        return await self._drive(flows.devices())

    async def inventory(self) -> Inventory:
        """The daemon's devices, and the kinds of which it has none, with the reasons."""
        return await self._drive(flows.inventory())

    async def pause(
        self, device: str | None = None, *, for_s: float | None = None
    ) -> OwnerView:
        """Take no more work on a device, or none of peers; see `Client.pause`."""
        return await self._drive(flows.pause(device, for_s))

    async def resume(self, device: str | None = None) -> OwnerView:
        """End the pause of a device; without one, every pause."""
        return await self._drive(flows.resume(device))

    async def reload(self) -> ReloadView:
        """Have the daemon read its settings again; all of them count, or none."""
        return await self._drive(flows.reload())

    async def log_level(self) -> LogLevelView:
        """How much the daemon's log tells."""
        return await self._drive(flows.log_level())

    async def set_log_level(self, level: str, module: str | None = None) -> LogLevelView:
        """Have the daemon's log tell more or less, until it is reloaded.

        Args:
            level: ``debug``, ``info``, ``warning`` or ``error``.
            module: Of this module alone, such as ``shoal.node.membership``.
        """
        return await self._drive(flows.set_log_level(level, module))

    async def end(self, *, now: bool = False) -> int:
        """Make the daemon end: once running units have ended, or ``now``.

        It answers before it ends; gives the number of its process.
        """
        return await self._drive(flows.end(now=now))

    async def metrics(self) -> str:
        """The daemon's metrics, in Prometheus' text format."""
        return await self._drive(flows.metrics())

    async def capability(self) -> CapabilityView:
        """What the daemon's node claims of itself, measured."""
        return await self._drive(flows.capability())

    async def measure(self, device: str | None = None) -> list[str]:
        """Have the node's devices measured anew; see `Client.measure`."""
        return await self._drive(flows.measure(device))

    async def challenge(self, peer: str, device: str | None = None) -> ChallengeView:
        """Have a peer show a rate that it claims; some seconds.

        Args:
            peer: Its id.
            device: Which of its devices; the first that can be asked when not given.
        """
        return await self._drive(flows.challenge(peer, device))

    async def connect(self, address: str) -> str:
        """Link the daemon to the peer at a multiaddr; gives the peer's id."""
        return await self._drive(flows.connect(address))

    async def prepare(self, model: Model, precision: str | None = None) -> Prepared:
        """Bring a model to the daemon once; see `Client.prepare`."""
        return await self._drive(flows.prepare(model, precision))

    async def run(
        self,
        model: Model,
        inputs: Inputs,
        *,
        timeout_s: float | None = None,
        as_: As = "numpy",
        **options: Any,
    ) -> Outputs:
        """Run a model once and give its outputs by name; see `Client.run`."""
        flow = submitting.run(model, inputs, Options(**options), timeout_s, as_)
        return await self._drive(flow)

    async def map(
        self,
        model: Model,
        inputs: Mapping[str, Any]
        | str
        | PathLike[str]
        | Iterable[Inputs]
        | AsyncIterable[Inputs],
        *,
        batch: int = 1,
        ordered: bool = True,
        as_: As = "numpy",
        ahead: int = submitting.AHEAD_UNITS,
        progress: bool = False,
        **options: Any,
    ) -> AsyncIterator[Outputs]:
        """Run a model on many inputs, on many nodes at once; see `Client.map`.

        Used as ``async for outputs in client.map(…)``. Inputs may come from an
        asynchronous iterator too; an ordinary one is waited for in a thread.
        """
        if isinstance(inputs, Mapping | str | PathLike):
            check_as(as_)
            rows = named_arrays(inputs)
            job = await self._drive(submitting.map_rows(model, rows, batch, Options(**options)))
            async for outputs in self.results(
                job.id, ordered=ordered, as_=as_, progress=progress
            ):
                yield outputs
            return
        shown = Progress(off=not progress)
        lazy = submitting.LazyMap(
            model,
            _pulled(inputs) if isinstance(inputs, AsyncIterable) else iter(inputs),
            Options(**options),
            ordered=ordered,
            as_=as_,
            ahead=ahead,
            seen=shown.show,
        )
        try:
            with shown:
                while (found := await self._drive(lazy.next())) is not None:
                    yield found
        finally:
            with anyio.CancelScope(shield=True):  # within `PARTING_LIMIT_S`
                await self._drive(lazy.give_up())

    async def submit(
        self,
        model: Model,
        units: Iterable[Inputs],
        *,
        policy: Policy = Policy.MAP,
        **options: Any,
    ) -> Job:
        """Submit a job and return at once; see `Client.submit`."""
        flow = submitting.submit(model, iter(units), policy, Options(**options))
        return await self._drive(flow)

    async def jobs(self, limit: int = 50) -> list[Job]:
        """The newest jobs first."""
        return await self._drive(flows.jobs(limit))

    async def job(self, job_id: str) -> Job:
        """A job as it stands."""
        return await self._drive(flows.job(job_id))

    async def units(self, job_id: str, offset: int = 0, limit: int = 100) -> list[Unit]:
        """Some units of a job, in order of their index."""
        return await self._drive(flows.units(job_id, offset, limit))

    async def wait(self, job_id: str, timeout_s: float | None = None) -> Job:
        """Wait for a job to end; gives it as it stands when the time is over."""
        return await self._drive(flows.wait(job_id, timeout_s))

    async def watch(self, job_id: str) -> AsyncIterator[Job]:
        """The job at once and at each change until it is final."""
        path = f"/v1/jobs/{job_id}/events"
        try:
            async with self._http.stream("GET", path, timeout=None) as response:
                if response.status_code >= 400:
                    raise refusal_of(response.status_code, await response.aread())
                async for line in response.aiter_lines():
                    yield msgspec.convert(msgspec.json.decode(line)["job"], Job)
        except httpx.TransportError:
            raise unreachable(self.place) from None

    async def results(
        self,
        job_id: str,
        *,
        ordered: bool = True,
        as_: As = "numpy",
        progress: bool = False,
    ) -> AsyncIterator[Outputs]:
        """The outputs of each unit, as soon as they are there; see `Client.results`."""
        check_as(as_)
        shown = Progress(off=not progress)
        results = fetching.Results(
            job_id,
            ordered=ordered,
            as_=as_,
            seen=shown.show,
        )
        with shown:
            while (found := await self._drive(results.next())) is not None:
                yield found

    async def outputs(self, job_id: str, unit: int = 0, *, as_: As = "numpy") -> Outputs:
        """The outputs of one unit; raises JobFailedError where it has none."""
        check_as(as_)
        return await self._drive(fetching.outputs(job_id, unit, as_))

    async def seal(self, job_id: str) -> Job:
        """Add no more units to an open job; see `Client.seal`."""
        return await self._drive(flows.seal(job_id))

    async def cancel_units(self, job_id: str, units: Sequence[int]) -> list[int]:
        """Cancel units that nobody runs yet; see `Client.cancel_units`."""
        return await self._drive(flows.cancel_units(job_id, units))

    async def cancel(self, job_id: str) -> Job:
        """End a job early."""
        return await self._drive(flows.cancel(job_id))

    async def forget(self, job_id: str, *, unfetched_too: bool = False) -> Job:
        """Let a job go that has ended; refused where results were not fetched, unless told."""
        return await self._drive(flows.forget(job_id, unfetched_too=unfetched_too))

    async def why(self, job_id: str) -> tuple[list[Answer], str]:
        """What peers answered to a job's calls, and a sentence for each cause."""
        return await self._drive(flows.why(job_id))

    async def explanation(self, job_id: str, unit: int | None = None) -> Explanation:
        """Why a job, or one unit of it, stands where it stands, and what would change it."""
        return await self._drive(flows.explanation(job_id, unit))

    async def timing(self, job_id: str, unit: int = 0) -> UnitTiming:
        """Where the time of a unit went that ran lately; raises as `Client.timing`."""
        return await self._drive(flows.timing(job_id, unit))

    async def assurance(
        self, job_id: str, offset: int = 0, limit: int = 100
    ) -> tuple[JobAssurance, list[Assurance]]:
        """How far a job's results can be relied on: all of it counted, and some units."""
        return await self._drive(flows.assurance(job_id, offset, limit))

    async def again(
        self, job_id: str, units: Sequence[int] = (), verify: str = "sample:1"
    ) -> Job:
        """Submit units of a job once more; none: those that only convicted peers stand for."""
        return await self._drive(flows.again(job_id, units, verify))

    async def receipts(self, job_id: str) -> list[BlobId]:
        """Ids of a job's receipts."""
        return await self._drive(flows.receipts(job_id))

    async def receipt(self, receipt_id: str) -> bytes:
        """A receipt's signed envelope, for ``shoal receipt verify``."""
        return await self._drive(flows.receipt(receipt_id))

    async def _drive(self, flow: Flow[Value]) -> Value:
        try:
            step = next(flow)
            while True:
                try:
                    if isinstance(step, Work):
                        came = await anyio.to_thread.run_sync(step.call)
                    else:
                        came = await self._exchange(step)
                except BaseException as error:  # noqa: BLE001  # cancellation too; thrown on
                    step = flow.throw(error)
                else:
                    step = flow.send(came)
        except StopIteration as end:
            return end.value
        finally:
            flow.close()

    async def _exchange(self, request: Request) -> Buffer | None:
        with anyio.CancelScope(shield=request.parting):
            try:
                async with self._http.stream(
                    request.method,
                    request.path,
                    params=dict(request.query),
                    content=_pieces(request.body) if callable(request.body) else request.body,
                    headers=request.headers,
                    timeout=httpx.Timeout(
                        PARTING_LIMIT_S if request.parting else request.answer_limit_s,
                        connect=CONNECT_LIMIT_S,
                    ),
                ) as response:
                    body: bytes | bytearray
                    if request.large:
                        body = bytearray()
                        async for piece in response.aiter_bytes():
                            body += piece
                    else:
                        body = await response.aread()
            except httpx.TimeoutException:
                raise too_slow(request) from None
            except httpx.TransportError:
                raise unreachable(self.place) from None
        return body_of(request, response.status_code, body)


async def _pieces(body: Callable[[], Iterator[bytes]]) -> AsyncIterator[bytes]:
    """A body that is made, or read from a disk, in a thread."""
    pieces = body()
    while (piece := await anyio.to_thread.run_sync(next, pieces, None)) is not None:
        yield piece


def _pulled(source: AsyncIterable[Inputs]) -> Iterator[Inputs]:
    """An asynchronous iterator as an ordinary one, for the thread of a `Work` step."""
    iterator = aiter(source)

    async def pull() -> list[Inputs]:
        try:
            return [await anext(iterator)]
        except StopAsyncIteration:
            return []

    while found := anyio.from_thread.run(pull):
        yield found[0]
