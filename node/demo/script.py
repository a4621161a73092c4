"""The demo from beginning to end, in the order in which it is seen.

Whatever happens, also Ctrl-C, SIGTERM and a closed terminal, the daemons are
ended and their homes removed. Only after a failure their logs are kept, and the
error says where.
"""

from __future__ import annotations

import os
import shlex
import time
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from shoal.crypto.errors import ShoalError
from shoal.node.demo.account import shares_of
from shoal.node.demo.conviction import (
    PRECISION,
    ROUNDS_LIMIT,
    UNITS,
    LyingSwarm,
    await_proof,
    caught_in,
    run_among_liars,
    save,
    verify_offline,
)
from shoal.node.demo.files import select
from shoal.node.demo.filetypes import MODEL_INPUT, MODEL_OUTPUT, OpenMagika
from shoal.node.demo.report import (
    LabelledFile,
    LeftOut,
    Report,
    Totals,
    shoal_command,
    short,
    shown,
)
from shoal.node.demo.spread import spread
from shoal.node.demo.steps import Steps
from shoal.node.demo.swarm import SwarmError
from shoal.node.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shoal.crypto.peer_id import PeerId
    from shoal.node.demo.conviction import Caught
    from shoal.node.demo.files import Selection
    from shoal.node.demo.filetypes import FileType, Split
    from shoal.node.demo.spread import Killed, Spread


def play(path: Path | None, nodes: int, receipts: Path | None) -> Report:
    """Play the demo once, and say what came of it; raises as `demo.run` does."""
    started_s = time.monotonic()
    steps = Steps()
    selection = select(path)
    if receipts is not None:
        receipts.mkdir(parents=True, exist_ok=True)
    steps.title(f"shoal demo: the types of {selection.origin}, told on {nodes} nodes")
    with steps.step("files", "taking features") as step:
        magika = OpenMagika()
        split = magika.split(selection.root, selection.files)
        step.text = f"{len(selection.files)} found, {len(split.of_model)} reach magika's model"
    if not split.of_model:
        raise ConfigError(
            f"magika needs its model for none of the files in {selection.root}",
            code="no_files",
            hint="choose another folder with --path",
        )
    cores = max(1, len(os.sched_getaffinity(0)) // nodes)
    with (
        LyingSwarm(nodes, [f"--cores={cores}"]) as swarm,
        _logs_kept_on_failure(swarm, steps),
    ):
        outcome = _spread(swarm, magika, split, steps)
        caught, scores = _catch(swarm, magika, split, steps)
        with steps.step("checks", "verifying receipts, comparing with magika") as step:
            report = _report(selection, split, magika, outcome, swarm, receipts, started_s)
            wrong = _wrong_labels(magika, report, scores)
            problems = (*report.problems, *caught.problems, *wrong)
            report = replace(report, liar=caught, problems=problems)
            step.text = "receipts verified offline, magika asked about every file"
        if not report.ok:
            steps.aside("logs", f"the daemons' logs are kept in {swarm.keep_logs()}")
    if receipts is not None:
        for delivered in outcome.units:
            (receipts / f"{delivered.unit.receipt}.receipt").write_bytes(delivered.envelope)
    return report


def _spread(swarm: LyingSwarm, magika: OpenMagika, split: Split, steps: Steps) -> Spread:
    """Start the daemons and run the job on them."""
    count = len(swarm.honest)
    with steps.step("nodes", f"starting {count} daemons") as step:
        swarm.start_all()
        step.text = f"{count} daemons run; each was told the first one's address only"
    with steps.step("peers", "waiting until all know each other") as step:
        swarm.wait_acquainted()
        step.text = f"each lists the other {count - 1} and what they offer"
    requester = swarm.honest[0]
    with requester.client() as client:
        with steps.step("program", "converting the model") as step:
            program = client.prepare(magika.model_path)
            step.text = f"magika's ONNX model is program {program.program_id[:16]}…"

        def tell_kill(killed: Killed) -> None:
            steps.aside(
                "kill",
                f"SIGKILL to {short(killed.peer)} with {killed.units_done} of "
                f"{killed.units_total} units done, {killed.own_units_done} of them by it",
            )

        with steps.bar("job", "map") as (step, show):
            outcome = spread(
                swarm,
                client,
                program,
                {MODEL_INPUT: split.features},
                on_progress=lambda job: show(job.units_done, job.units_total),
                on_kill=tell_kill,
            )
            again = sum(each.unit.attempts > 1 for each in outcome.units)
            step.text = f"{outcome.job.units_done} units done" + (
                f", {again} of them at a second try" if again else ""
            )
            step.text += ", after the kill" if again and outcome.killed else ""
    return outcome


def _catch(
    swarm: LyingSwarm, magika: OpenMagika, split: Split, steps: Steps
) -> tuple[Caught, dict[Path, np.ndarray]]:
    """Let the liar in, look at some files again, and wait until it is convicted.

    Returns:
        What came of the liar, and what the model said of those files.
    """
    liar = swarm.liar.peer
    with steps.step("liar", "one more daemon joins") as step:
        compiling = "one more daemon joins; the class exact is compiled, once per machine"
        swarm.join_liar(lambda waited_s: step.doing(f"{compiling}: {waited_s:.0f} s"))
        step.text = f"{short(liar)} joins, and turns a bit in what it gives"
    files = [split.of_model[index % len(split.of_model)] for index in range(UNITS)]
    rows = {MODEL_INPUT: np.resize(split.features, (UNITS, split.features.shape[1]))}
    scores: dict[Path, np.ndarray] = {}
    with swarm.honest[0].client() as client:
        program = client.prepare(magika.model_path, precision=PRECISION)
        steps.aside(
            "again",
            "some files once more, for the liar too: in the class exact a lie can be proved",
            "dim",
        )
        for _ in range(ROUNDS_LIMIT):
            with steps.bar("", "map in the class exact") as (step, show):
                job, outputs = run_among_liars(
                    client, program, rows, lambda job: show(job.units_done, job.units_total)
                )
                step.text = f"{job.units_done} units of files that are known from the first job"
            scores |= {
                file: each[MODEL_OUTPUT][0] for file, each in zip(files, outputs, strict=True)
            }
            caught = caught_in(client, job, liar)
            if caught.false:
                break
        for peer in caught.checked_by:
            steps.aside("caught", f"{short(peer)} ran what {short(liar)} ran: other bits")
        if not caught.false:
            return caught, scores
        with steps.step("proof", "the dispute goes on") as step:
            view = await_proof(client, liar)
            if view is None:
                step.text = f"{short(liar)} is not convicted"
                return caught, scores
            file = save(client, view)
            step.text = f"{short(liar)} is convicted, and banned"
    swarm.end()
    with steps.step("offline", "checking the proof with no daemon running") as step:
        verdict = verify_offline(file)
        step.text = "no daemon runs any more, and the proof convicts all the same"
        if not verdict:
            step.text = "the proof is not confirmed"
    return replace(
        caught,
        finding=view.verdict,
        proof=str(file),
        verdict=verdict,
        command=f"{shoal_command()} proof verify {shlex.quote(str(file))}",
    ), scores


def _wrong_labels(
    magika: OpenMagika, report: Report, scores: dict[Path, np.ndarray]
) -> list[str]:
    """Files that had another label when they were looked at again, in sentences."""
    labels = {file.path: file.label for file in report.files}
    return [
        f"the label of {shown(file)} was {kind.label} where it was looked at again"
        for file, kind in magika.types_of(scores).items()
        if labels.get(shown(file)) != kind.label
    ]


def _report(
    selection: Selection,
    split: Split,
    magika: OpenMagika,
    outcome: Spread,
    swarm: LyingSwarm,
    receipts: Path | None,
    started_s: float,
) -> Report:
    """Check everything that came back."""
    peers = [node.peer for node in swarm.honest]
    shares, problems = shares_of(outcome, peers, len(split.of_model))
    scores: dict[Path, np.ndarray] = {}
    ran_by: dict[Path, PeerId | None] = {}
    files = iter(split.of_model)
    for delivered in outcome.units:
        of_unit = list(islice(files, delivered.rows))
        scores.update(zip(of_unit, delivered.outputs[MODEL_OUTPUT], strict=False))
        ran_by.update(dict.fromkeys(of_unit, delivered.unit.provider))
    labelled = magika.types_of(scores) | split.without_model
    own = magika.types_by_itself(selection.root, [*split.of_model, *split.without_model])
    different = [file for file, kind in own.items() if labelled.get(file) != kind]
    return Report(
        root=str(selection.root),
        model=magika.get_model_name(),
        program=outcome.job.program,
        job=outcome.job.id,
        nodes=shares,
        killed=outcome.killed,
        totals=Totals(
            files=len(scores),
            files_of_model=len(split.of_model),
            units=outcome.job.units_done,
            receipts_verified=sum(share.receipts_verified for share in shares),
            labels_equal=len(own) - len(different),
            labels=len(own),
        ),
        files=tuple(_labelled(file, labelled[file], ran_by[file]) for file in scores),
        without_model=tuple(
            _labelled(file, kind, None) for file, kind in split.without_model.items()
        ),
        left_out=tuple(
            LeftOut(shown(file), reason)
            for file, reason in (selection.left_out | split.failed).items()
        ),
        more_files=selection.more,
        problems=(
            *problems,
            *(
                f"the label of {shown(file)} is not {own[file].label}, which magika gives it"
                for file in different
            ),
        ),
        receipts_at=str(receipts) if receipts is not None else None,
        seconds=time.monotonic() - started_s,
    )


def _labelled(file: Path, kind: FileType, peer: PeerId | None) -> LabelledFile:
    return LabelledFile(shown(file), kind.label, kind.description, peer)


@contextmanager
def _logs_kept_on_failure(swarm: LyingSwarm, steps: Steps) -> Iterator[None]:
    """Where something fails, say what the daemons said last and where the rest is."""
    try:
        yield
    except ShoalError as error:
        # A SwarmError brings the words of the daemon that it is about.
        for node in () if isinstance(error, SwarmError) else swarm.nodes:
            steps.aside("log", f"daemon {node.number}, {short(node.peer)}, said last:")
            steps.aside("", node.last_words(), "dim")
        kept = f"the daemons' logs are kept in {swarm.keep_logs()}"
        error.hint = f"{error.hint}; {kept}" if error.hint else kept
        raise
