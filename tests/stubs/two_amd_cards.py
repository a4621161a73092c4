"""Dry run of a node with two AMD cards, on a machine that need not have any.

``python tests/stubs/two_amd_cards.py`` (``make dry-run-amd``) starts a daemon whose
detection finds two MI300X: their management library is a stub (``amd_smi.c``), and what
the kernel shows of them lies in a directory. All else is real: kernels of the class exact
are compiled for gfx942 by Triton, in the cards' workers, and a second daemon hears the
advert and calls for bids. It prints what came of each, and ends with 0 only where all of
it is as it has to be: the cards compile only, take no units, and are not claimed. Where
PyTorch or Triton is not installed nothing compiles: then the cards say that they lack these,
all else is looked at, and it says how to see the rest.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import trio

from shoal.node import config
from shoal.node.daemon import serve
from shoal.node.demo.swarm import Swarm
from shoal.node.logs import set_up_logs
from shoal.protocol.negotiation_messages import Bid, Call, Refusal

STUBS = Path(__file__).parent
PLACES = ("0001:c0:02.0", "0001:c1:02.0")
"""Where the stub library says that the cards are."""

TARGET = "gfx942"
WAIT_S = 240.0
"""For the kernels of the CPU, where they are still to be compiled, and the cards' workers."""

LACKS = " and ".join(name for name in ("torch", "triton") if find_spec(name) is None)
"""What is not installed of what compiles kernels."""

KFD_NODE = "simd_count 1216\ngfx_target_version 90402\nlocation_id {place}\ndomain 1\n"


def make_library(folder: Path) -> None:
    """Build the stub of ROCm's management library."""
    source = STUBS / "amd_smi.c"
    library = folder / "libamd_smi.so"
    command = ["gcc", "-std=c11", "-shared", "-fPIC", "-o", str(library), str(source)]
    subprocess.run(command, check=True)


def make_tree(root: Path) -> None:
    """What the kernel would show of the two cards, and nothing else."""
    topology = root / "sys/class/kfd/kfd/topology/nodes"
    files = {
        root / "dev/kfd": "",
        root / "sys/module/amdgpu/version": "6.14.14\n",
        topology / "0/properties": "cpu_cores_count 64\ngfx_target_version 0\n",
    }
    for number, pci in enumerate(PLACES):
        card = root / "sys/bus/pci/devices" / pci
        files |= {
            card / "vendor": "0x1002\n",
            card / "device": "0x74a1\n",
            card / "class": "0x120000\n",
            card / "unique_id": f"a1b2c3d4e5f6071{number}\n",
        }
        place = (0xC0 + number) << 8 | 2 << 3
        files[topology / f"{number + 1}/properties"] = KFD_NODE.format(place=place)
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


class OneNode(Swarm):
    """A daemon that finds the cards."""

    def __init__(self, folder: Path) -> None:
        super().__init__(1, settings=("--serve=anyone",))
        self._folder = folder

    def _before(self, _node):
        root, libraries = self._folder / "root", self._folder / "lib"
        return ("env", f"SHOAL_DEVICES_ROOT={root}", f"LD_LIBRARY_PATH={libraries}")


class Report:
    """What was looked at, and whether it was as it has to be."""

    def __init__(self):
        self.failed = 0

    def check(self, what: str, right: bool, found: object) -> None:
        """Print a line."""
        self.failed += not right
        print(f"  {'ok  ' if right else 'FAIL'}  {what}: {found}", flush=True)


def until(condition, what):
    """Wait until something is there, and give it."""
    began_s = time.monotonic()
    while not (found := condition()):
        if time.monotonic() - began_s > WAIT_S:
            raise SystemExit(f"not within {WAIT_S:.0f} s: {what}")
        time.sleep(0.5)
    return found


def settled(client):
    """The devices, once every one of them was looked at and the CPU offers the class exact."""
    devices = client.inventory().devices
    busy = {"not_probed", "compiling"}
    if any(lack.code in busy for device in devices for lack in device.missing):
        return None
    return {device.id: device for device in devices}


def check_devices(report, devices):
    """The cards are found, are said to compile only, and why they run nothing."""
    print("\nwhat the daemon finds (`shoal devices`):")
    report.check("devices", list(devices) == ["cpu", "gpu0", "gpu1"], ", ".join(devices))
    cpu = devices["cpu"]
    shown = [f"{a.executor} ({a.numeric_class}, {a.evidence})" for a in cpu.abilities]
    report.check("cpu runs", cpu.executors == ("exact", "onnxruntime"), ", ".join(shown))
    for card in (devices[each] for each in ("gpu0", "gpu1") if each in devices):
        report.check(
            f"{card.id} is", card.target == TARGET, f"{card.name}, {card.target} at {card.pci}"
        )
        shown = [f"{a.runtime} ({a.numeric_class}, {a.evidence})" for a in card.abilities]
        only = {a.evidence for a in card.abilities} == (set() if LACKS else {"compile-only"})
        report.check(f"{card.id} runs", only, ", ".join(shown) or "nothing")
        report.check(
            f"{card.id} takes units by", card.executors == (), card.executors or "none"
        )
        for lack in card.missing:
            codes = {"card_unreachable", "provider_missing"}
            codes |= {"package_missing"} if LACKS else set()
            known = lack.code in codes and bool(lack.hint)
            said = f"{lack.reason}; next: {lack.hint}"
            report.check(f"{card.id} lacks", known, said)


def call_of(numeric_class: str) -> Call:
    """A call for bids on a unit that a laptop would run."""
    return Call(
        call=os.urandom(16).hex(),
        program="a" * 64,
        numeric_class=numeric_class,
        precision="x20" if numeric_class == "exact" else None,
        units=4,
        input_bytes=1_000,
        program_bytes=1_000,
        time_limit_s=60.0,
        memory_bytes=1 << 28,
    )


async def check_from_outside(report, node, folder):
    """Another daemon hears the advert, and calls for bids in three classes."""
    home = folder / "other"
    flags = {
        "home": str(home),
        "listen": ["/ip4/127.0.0.1/tcp/0"],
        "bootstrap": [node.address],
        "lan": "no",
        "step_back": "off",
        "provide": "no",
        "log_level": "error",
    }
    async with trio.open_nursery() as nursery:
        other = await nursery.start(serve, config.load(flags, {}))

        def heard():
            entry = other.membership.table.get(node.peer)
            if entry is None or "exact" not in entry.advert.numeric_classes:
                return None
            return entry.advert if len(entry.advert.devices) > 1 else None

        with trio.fail_after(WAIT_S):
            while (advert := heard()) is None:  # noqa: ASYNC110  # of others' states
                await trio.sleep(0.5)
        print("\nwhat another daemon hears (its advert):")
        for line in advert.devices:
            runs = ", ".join(line.executors) or "runs nothing"
            right = (line.id == "cpu") == bool(line.executors)
            report.check(f"{line.count} × {line.name}", right, f"{line.id}, {runs}")
        lines = [(line.id, line.count) for line in advert.devices]
        right = lines == [("cpu", 1), ("gpu0", 2)]
        report.check("equal cards are one line", right, lines)
        claims = [line.rates or line.memory_rate for line in advert.devices if line.id != "cpu"]
        report.check("no rate of a card is claimed", not any(claims), claims)
        classes = advert.numeric_classes
        report.check("classes", classes == ("exact", "fp32"), ", ".join(classes))
        print("\nwhat it is answered (call for bids):")
        await other.house.reach(node.peer)
        for numeric_class in ("exact", "fp32", "kernel"):
            call = call_of(numeric_class)
            answer = await other.house.control.request(node.peer, call, 10.0)
            match answer:
                case Bid():
                    right = numeric_class != "kernel" and answer.device == "cpu"
                    said = f"a bid: {answer.device} by {answer.executor}"
                case Refusal():
                    why = "takes a GPU" if LACKS else "compile-only"
                    right = numeric_class == "kernel" and why in answer.detail
                    right = right and answer.reason.value == "no_device"
                    said = f"refused, {answer.reason.value}: {answer.detail}"
                case _:
                    right, said = False, repr(answer)
            report.check(f"class {numeric_class}", right, said)
        nursery.cancel_scope.cancel()


def main() -> int:
    """Run all of it."""
    report = Report()
    folder = Path(tempfile.mkdtemp(prefix="shoal-dry-"))
    try:
        (folder / "lib").mkdir()
        make_library(folder / "lib")
        make_tree(folder / "root")
        with OneNode(folder) as swarm:
            swarm.start_all()
            (node,) = swarm.nodes
            with node.client() as client:
                check_devices(report, until(lambda: settled(client), "all devices looked at"))
            print("\nthe same as its owner sees it:", flush=True)
            command = [sys.executable, "-P", "-m", "shoal.node.cli", "devices"]
            shown = subprocess.run(
                [*command, f"--home={node.home}"], check=True, capture_output=True, text=True
            ).stdout
            print("\n".join(f"  {line}" for line in shown.splitlines()))
            what = "not installed" if LACKS else "compile-only"
            report.check("it says", what in shown, what)
            why = "no rate of exact, kernel: compile-only"
            if (
                not LACKS
            ):  # without Triton nothing compiles, and there is no class to have a rate
                report.check("it says why no rate is claimed", why in shown, why)
            set_up_logs("error")  # of the daemon in this process
            trio.run(check_from_outside, report, node, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if report.failed:
        print(f"\n{report.failed} of it is not as it has to be")
    elif LACKS:
        print("\nall of it is as it has to be: no card was claimed")
        print(f"not shown is what compiles for the cards, which takes {LACKS}. To see it too:")
        print(f"  {sys.executable} -m pip install -c constraints.txt -e '.[gpu]'")
    else:
        print("\nall of it is as it has to be: compile-only evidence, no card was claimed")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
