"""`AsyncClient`: the daemon on this machine from Trio or asyncio."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import httpx
import msgspec

from shoal.node.client import flows
from shoal.node.client.exchange import (
    CONNECT_LIMIT_S,
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
from shoal.node.daemon_place import find_daemon
from shoal.node.records import Job, Policy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from types import TracebackType
    from typing import Self

    import numpy as np
    from numpy.typing import ArrayLike

    from shoal.compute.devices import Device, Inventory
    from shoal.crypto.content import BlobId
    from shoal.node.capability_views import CapabilityView, ChallengeView
    from shoal.node.causes import Explanation
    from shoal.node.client.flows import Model
    from shoal.node.records import (
        Answer,
        CutView,
        LogLevelView,
        MisfitView,
        OwnerView,
        PeerView,
        ReloadView,
        Status,
        Unit,
    )
    from shoal.node.settings_view import SettingView


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
            transport=httpx.AsyncHTTPTransport(uds=str(self.place.socket)),
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

    async def forgive(self, peer: str) -> None:
        """Let a peer that is cut back in, and forget what it did.

        Raises:
            DaemonError: ``no_such_offender``.
        """
        await self._drive(flows.forgive(peer))

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
        inputs: Mapping[str, ArrayLike],
        *,
        timeout_s: float | None = None,
        **options: Any,
    ) -> dict[str, np.ndarray]:
        """Run a model once and give its outputs by name; see `Client.run`."""
        return await self._drive(flows.run(model, inputs, Options(**options), timeout_s))

    async def map(
        self,
        model: Model,
        inputs: Mapping[str, np.ndarray],
        *,
        batch: int = 1,
        **options: Any,
    ) -> AsyncIterator[dict[str, np.ndarray]]:
        """Run a model on each ``batch`` rows of the inputs; see `Client.map`.

        Used as ``async for outputs in client.map(…)``.
        """
        job = await self._drive(flows.map_(model, inputs, batch, Options(**options)))
        async for outputs in self.results(job.id):
            yield outputs

    async def submit(
        self,
        model: Model,
        units: Iterable[Mapping[str, ArrayLike]],
        *,
        policy: Policy = Policy.MAP,
        **options: Any,
    ) -> Job:
        """Submit a job and return at once; see `Client.submit`."""
        return await self._drive(flows.submit(model, units, policy, Options(**options)))

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

    async def results(self, job_id: str) -> AsyncIterator[dict[str, np.ndarray]]:
        """The outputs of each unit in order, as soon as they are there."""
        total = (await self.job(job_id)).units_total
        index = 0
        while index < total:
            for unit in await self._drive(flows.next_done(job_id, index)):
                yield await self._drive(flows.arrays(unit))
                index += 1

    async def outputs(self, job_id: str, unit: int = 0) -> dict[str, np.ndarray]:
        """The outputs of one unit; raises JobFailedError where it has none."""
        return await self._drive(flows.outputs(job_id, unit))

    async def cancel(self, job_id: str) -> Job:
        """End a job early."""
        return await self._drive(flows.cancel(job_id))

    async def why(self, job_id: str) -> tuple[list[Answer], str]:
        """What peers answered to a job's calls, and a sentence for each cause."""
        return await self._drive(flows.why(job_id))

    async def explanation(self, job_id: str, unit: int | None = None) -> Explanation:
        """Why a job, or one unit of it, stands where it stands, and what would change it."""
        return await self._drive(flows.explanation(job_id, unit))

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
                if isinstance(step, Work):
                    came = await anyio.to_thread.run_sync(step.call)
                else:
                    came = await self._exchange(step)
                step = flow.send(came)
        except StopIteration as end:
            return end.value
        finally:
            flow.close()

    async def _exchange(self, request: Request) -> bytes | None:
        try:
            response = await self._http.request(
                request.method,
                request.path,
                params=dict(request.query),
                content=request.body,
                timeout=httpx.Timeout(request.answer_limit_s, connect=CONNECT_LIMIT_S),
            )
        except httpx.TimeoutException:
            raise too_slow(request) from None
        except httpx.TransportError:
            raise unreachable(self.place) from None
        return body_of(request, response.status_code, response.content)
