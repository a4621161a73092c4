"""Honest daemons among which liars of the zoo appear, and jobs of which every bit is known."""

import json
import time
from contextlib import contextmanager
from functools import cache
from itertools import cycle
from pathlib import Path

import whole_models
from daemons import eventually, shoal
from kinds import GANGS

from shoal.compute.convert import convert
from shoal.compute.exact.cpu import CpuKernels
from shoal.compute.exact.plan import make_plan
from shoal.compute.exact.spec import PRECISIONS
from shoal.compute.loading import load
from shoal.compute.tensor import to_blob
from shoal.crypto import identity
from shoal.crypto.content import blob_id_of
from shoal.node.demo.swarm import Node, Swarm
from shoal.node.records import JobState
from shoal.protocol.verification import fraud_proof

LIAR = Path(__file__).resolve().parents[1] / "zoo" / "liar.py"
PRECISION = "x20"
AHEAD = 96
OPTIONS = {
    "numeric_class": "exact",
    "precision": PRECISION,
    "verify": "sample:1",
    "time_limit_s": 60.0,
}
SHAPES = {"magika": {"batch": 2}, "minilm": {"batch": 2, "tokens": 32}}
UNITS = {"magika": 24, "minilm": 36}
"""A liar that is new fetches MiniLM's 90 MB first: there has to be work left after that. Of
fewer units those who were measured already leave a new one none, on a machine that is idle."""

READY_LIMIT_S = 120
JOB_LIMIT_S = 180
CONVICTED_LIMIT_S = 120
SPREAD_LIMIT_S = 300
"""Others judge a proof at the lowest priority: on a busy machine a second of a processor
takes half a minute to be had."""

FOUND_OUT = ("a result was false", "a peer signed two results of one unit")

ROUNDS = 40
"""How many jobs at most until a liar has had its chance to lie."""


class Zoo(Swarm):
    """A swarm to which liars come, strangers to all that are honest."""

    def __init__(self, count):
        super().__init__(count)
        self.lying = {}

    @property
    def requester(self):
        return self.nodes[0]

    def _command(self, node):
        python, *rest = super()._command(node)
        kind = self.lying.get(node.number)
        return (python, *rest) if kind is None else (python, "-P", str(LIAR), kind)

    def _friends(self, node):
        others = super()._friends(node)
        return others if node.number in self.lying else [o for o in others if not self.lies(o)]

    def lies(self, node):
        return node.number in self.lying

    @contextmanager
    def liars(self, gang):
        """Liars of a kind, or of a gang, for the block; each with a key of its own."""
        kinds = [kind.name for kind in GANGS.get(gang, ())] or [gang]
        came = []
        try:
            for kind in kinds:
                number = len(self.nodes) + 1
                home = self._root / f"node{number}"
                home.mkdir(mode=0o700)
                key = identity.generate()
                identity.save(key, home / "identity.key")
                node = Node(number, home, key.peer_id)
                self.nodes.append(node)
                self.lying[number] = kind
                came.append(node)
                self.start(node)
                self.wait_ready(node)
            self.wait_acquainted(timeout_s=READY_LIMIT_S, offering="exact")
            yield came
        finally:
            for node in came:
                node.kill()


def found_out(node, peer):
    """Whether a node's log says that what a peer signed was false, or two things.

    What a liar says that it signed may have reached nobody: somebody else was quicker, and
    its own result was called off, or came when the job was over. Then it has done no harm,
    and there is nothing to convict it of.
    """
    lines = node.log_path.read_text(errors="replace").splitlines()
    told = [json.loads(line) for line in lines if any(what in line for what in FOUND_OUT)]
    return any(line["peer"] == peer for line in told)


def lies_told(node):
    """What a liar's log says it gave: a list of lies."""
    lines = node.log_path.read_text(errors="replace").splitlines()
    return [json.loads(line)["lie"] for line in lines if '"signed"' in line]


def units_of(name, seed):
    """Inputs of as many units as `UNITS` says, others for each ``seed``."""
    batch, end = SHAPES[name]["batch"], seed + UNITS[name]
    rows = whole_models.inputs(name, end * batch, SHAPES[name].get("tokens", 0))
    return [
        {port: array[i * batch : (i + 1) * batch] for port, array in rows.items()}
        for i in range(seed, end)
    ]


@cache
def local(name):
    """A function from a unit's inputs to the ids of its outputs, as they are here."""
    program = convert(whole_models.onnx_bytes(name), PRECISION)
    loaded = load(program.program_id, program.blobs)
    axes = program.manifest.scale_axes
    run = make_plan(
        loaded.model, loaded.weights, PRECISIONS[PRECISION], axes, CpuKernels(1)
    ).run
    return lambda inputs: {port: blob_id_of(to_blob(a)) for port, a in run(inputs).items()}


@cache
def local_outputs(name, seed):
    """What `local` gives for the units of a seed, in order."""
    return [local(name)(inputs) for inputs in units_of(name, seed)]


def run_map(client, name, seed, **options):
    """A map of which nothing may come back that a local run does not give; gives its units."""
    units = units_of(name, seed)
    job = client.submit(
        whole_models.onnx_bytes(name),
        units,
        **OPTIONS | options,
    )
    ended = client.wait(job.id, JOB_LIMIT_S)
    count = len(units)
    assert (ended.state, ended.units_done, ended.units_failed) == (JobState.DONE, count, 0)
    done = client.units(job.id, 0, count)
    assert [unit.outputs for unit in done] == local_outputs(name, seed)
    return done


def run_for(client, name, seconds):
    """A map that is not short of units for so long: each comes back as it must."""
    until_s, inputs = time.monotonic() + seconds, units_of(name, 0)

    def units():
        for each in cycle(inputs):
            if time.monotonic() >= until_s:
                return
            yield each

    model = whole_models.onnx_bytes(name)
    came = {  # in any order: else a unit that is late holds back those to come
        outputs.unit: {port: blob_id_of(to_blob(array)) for port, array in outputs.items()}
        for outputs in client.map(model, units(), ahead=AHEAD, ordered=False, **OPTIONS)
    }
    right = [local(name)(each) for each in inputs]
    assert came == {i: right[i % len(right)] for i in range(len(came))}


def run_until(client, name, condition, **options):
    """Run maps until the liars have had their chance; each comes back as it must."""
    done = []
    for round_ in range(ROUNDS):
        done += run_map(client, name, round_ * UNITS[name], **options)
        if condition():
            return done
    raise AssertionError(f"after {ROUNDS} jobs: {condition}")


def proof_against(node, peer):
    """The proof that a daemon believes against a peer, or None."""
    with node.client() as client:
        return next((view for view in client.proofs() if view.accused == peer), None)


def assert_convicted(zoo, liar, directory):
    """A proof against a liar convicts it with no daemon, and the other nodes have it too.

    Gives the proof's kind.
    """
    view = eventually(
        lambda: proof_against(zoo.requester, liar.peer), CONVICTED_LIMIT_S, "it is convicted"
    )
    exported = shoal("proof", "export", view.id, directory, node=zoo.requester)
    assert exported.code == 0, exported
    nowhere = Node(0, directory / "no-home", liar.peer)
    file = directory / f"{view.id}.proof"
    verified = shoal("proof", "verify", file, "--json", node=nowhere, timeout_s=120)
    assert verified.code == 0, verified
    verdict = verified.json["verdict"]
    assert (verdict["outcome"], verdict["accused"]) == ("convicted", liar.peer)
    for node in zoo.nodes:
        if node.running and not zoo.lies(node):
            eventually(
                lambda n=node: proof_against(n, liar.peer), SPREAD_LIMIT_S, "it has spread"
            )
            with node.client() as client:
                assert liar.peer in {ban.peer for ban in client.bans()}
    return fraud_proof.decode(file.read_bytes()).kind
