"""``shoal devices``: what this machine has, what runs on it, what is missing.

Asks the daemon; where none runs, this command looks by itself, which needs no home.
With ``--measure`` it has the daemon measure them anew first.
"""

import time
from typing import TYPE_CHECKING

from shoal.crypto.errors import ShoalError
from shoal.node.cli.capability import (
    card_texts,
    claims_text,
    doubt_texts,
    lack_texts,
    measured_text,
)
from shoal.node.cli.options import Daemon
from shoal.node.cli.output import (
    EXIT_FAILED,
    EXIT_OK,
    note,
    print_json,
    print_table,
    printable,
    runnable,
    size_text,
)
from shoal.node.cli.owner import stance_text
from shoal.node.errors import ConfigError, DaemonUnreachableError

if TYPE_CHECKING:
    from shoal.compute.devices import Device, Inventory, Lack
    from shoal.compute.devices.abilities import Canaries
    from shoal.node.capability_views import CapabilityView, DeviceFigures
    from shoal.node.client.blocking import Client
    from shoal.node.status_views import OwnerView

_CANARY_LIMIT_S = 60.0
_LOOK_INTERVAL_S = 0.5


def devices(
    *, measure: bool = False, device: str | None = None, daemon: Daemon | None = None
) -> int:
    """List this machine's devices, what runs on them, and how to get what is missing.

    Where no daemon runs, this command looks by itself and runs the canaries once.

    Args:
        measure: Have the daemon measure them anew first, some seconds for each. Do it while
            the machine does nothing else: what is measured is what is claimed.
        device: With --measure: only this one.
    """
    daemon = daemon or Daemon()
    measured = True
    if measure:
        with daemon.client() as client:
            measured = measure_now(client, device)
    elif device is not None:
        raise ConfigError(
            "--device says which one --measure is for, and means nothing without it",
            hint=f"`shoal devices --measure --device {device}`",
        )
    try:
        with daemon.client() as client:
            found, claimed = client.inventory(), client.capability()
            owner = client.status().owner
    except DaemonUnreachableError as error:
        if error.code != DaemonUnreachableError.code:
            raise
        note("no daemon runs; this is what one would find here")
        found, claimed, owner = look_here(), None, None
    if daemon.as_json:
        print_json(
            {
                "by_daemon": claimed is not None,
                "devices": found.devices,
                "missing": found.missing,
                "capability": claimed,
                "stances": owner.stances if owner else (),
            }
        )
    else:
        _print(found, claimed, owner)
    return EXIT_OK if measured else EXIT_FAILED


def measure_now(
    client: "Client", device: str | None, interval_s: float = _LOOK_INTERVAL_S
) -> bool:
    """Have devices measured anew, say how that goes, and wait for its end.

    Returns:
        Whether something was measured of each.
    """
    left, told, measured = set(client.measure(device)), dict[str, str](), True
    while left:
        for figures in client.capability().devices:
            if figures.device not in left:
                continue
            how = _how_it_goes(figures)
            if told.get(figures.device) != how:
                told[figures.device] = how
                note(f"{figures.device}: {how}")
            if not figures.asked:
                left.discard(figures.device)
                measured = measured and not figures.problem
        if left:
            time.sleep(interval_s)
    return measured


def _how_it_goes(figures: "DeviceFigures") -> str:
    if figures.measuring:
        return "is measured"
    if figures.asked:
        return f"waits: {figures.busy_with or 'its turn comes within some seconds'}"
    if figures.problem:
        return f"could not be measured: {figures.problem.rstrip('.')}"
    return "measured" + (f", but {figures.beside}" if figures.beside else "")


def look_here(limit_s: float = _CANARY_LIMIT_S) -> "Inventory":
    """Look at this machine and run the canaries in a worker that ends with this call."""
    import trio

    from shoal.compute.devices import Lack, detect
    from shoal.compute.devices.abilities import Canaries, with_abilities

    found = detect()
    not_asked = Lack(
        "not_probed",
        "what runs on cards was not looked at: a daemon starts a worker for each",
        "`shoal up --detach`, and `shoal devices` some minutes later",
    )
    known = {device.id: Canaries((), (not_asked,)) for device in found.devices}
    return with_abilities(found, known | {"cpu": trio.run(_canaries, limit_s)})


async def _canaries(limit_s: float) -> "Canaries":
    import trio

    from shoal.compute.devices import Lack
    from shoal.compute.devices.abilities import Canaries, failed
    from shoal.compute.supervisor import open_worker

    try:
        with trio.fail_after(limit_s):
            async with open_worker(threads=1) as worker:
                probes = await worker.probe()
                lacks, sandbox = worker.missing, worker.sandbox
    except ShoalError as error:
        return Canaries((), (failed(error.message, error.hint),))
    except trio.TooSlowError:
        return Canaries((), (failed(f"no canary ended within {limit_s:.0f} s"),))
    not_asked = Lack(
        "not_probed",
        "the class exact was not looked at: a daemon compiles its kernels, and offers it "
        "once its canary was right",
        "`shoal up --detach`, and `shoal devices` some minutes later",
    )
    return Canaries(probes, (*lacks, not_asked), sandbox)


def _print(
    found: "Inventory", claimed: "CapabilityView | None", owner: "OwnerView | None"
) -> None:
    takes = (
        {each.device: stance_text(each, owner.provide) for each in owner.stances}
        if owner
        else {}
    )
    print_table(
        ("DEVICE", "NAME", "MEMORY FREE", "DRIVER", "RUNS", "TAKES WORK"),
        (
            (
                device.id,
                device.name,
                _memory(device),
                _driver(device),
                _runs(device),
                takes.get(device.id, "-"),
            )
            for device in found.devices
        ),
    )
    for device in found.devices:
        claims = [c for c in claimed.claims if c.device == device.id] if claimed else []
        claims_line = f"claims {claims_text(claims)}" if claims else ""
        # The CPU's is what is meant where nothing is said: `shoal status` shows it.
        locked = f"sandbox: {device.sandbox}" if device.sandbox and device.id != "cpu" else ""
        at_once = _at_once(device)
        known = [f for f in claimed.devices if f.device == device.id] if claimed else []
        # What else was measured of the CPU is this node's, and stands below.
        texts_of = lack_texts if device.id == "cpu" else card_texts
        beside = [
            text for figures in known for text in (*texts_of(figures), *doubt_texts(figures))
        ]
        texts = (_parts(device), claims_line, *beside, at_once, locked, device.note)
        for text in filter(None, texts):
            _line(device.id, text)
    if claimed:
        _line("this node", measured_text(claimed))
    ids: dict[Lack, list[str]] = {}
    for device in found.devices:
        for lack in device.missing:
            ids.setdefault(lack, []).append(device.id)
    for lack, lacking in ids.items():
        _line(", ".join(lacking), lack.reason, lack.hint)
    for missing in found.missing:
        _line(missing.kind, missing.reason, missing.hint)


def _line(what: str, text: str, hint: str = "") -> None:
    print(printable(f"{what}: {text}"))
    if hint:
        print(printable(f"  next: {runnable(hint)}"))


def _memory(device: "Device") -> str:
    if not device.memory_bytes:
        return "-"
    return f"{size_text(device.memory_free_bytes)} of {size_text(device.memory_bytes)}"


def _driver(device: "Device") -> str:
    return ", ".join(filter(None, (device.driver, device.driver_supports))) or "-"


def _runs(device: "Device") -> str:
    return (
        ", ".join(f"{a.executor} ({a.numeric_class}, {a.evidence})" for a in device.abilities)
        or "nothing yet"
    )


def _at_once(device: "Device") -> str:
    """How many units run there at a time, where it is more than one."""
    if device.units_at_once < 2:
        return ""
    return f"runs {device.units_at_once} units at once where its memory allows"


def _parts(device: "Device") -> str:
    """What a device is made of, or where it is."""
    if device.kind == "cpu":
        nodes = f"{device.numa_nodes} NUMA node{'s' if device.numa_nodes > 1 else ''}"
        cores = f"{device.cores} core{'s' if device.cores > 1 else ''}"
        threads = f"{device.threads} thread{'s' if device.threads > 1 else ''}"
        return ", ".join([cores, threads, nodes, *device.isa])
    return ", ".join(filter(None, (device.target, device.pci, device.uuid)))
