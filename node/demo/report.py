"""What the demo shows at the end: tables for people, or one JSON object."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shoal.node.demo.steps import WIDTH
from shoal.node.records import SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shoal.crypto.content import BlobId
    from shoal.crypto.peer_id import PeerId
    from shoal.node.demo.account import Share
    from shoal.node.demo.conviction import Caught
    from shoal.node.demo.spread import Killed

SAMPLES = 10
_NAMED_LIMIT = 4
"""Paths named in one line; the rest is counted."""


@dataclass(frozen=True, slots=True)
class LabelledFile:
    """A file and its type; ``peer`` ran the model on it, None where no model was needed."""

    path: str
    label: str
    description: str
    peer: PeerId | None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something in the folder that the demo did not look at."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all nodes, beside what they must be.

    Attributes:
        files: Files that came back, of ``files_of_model`` that went out.
        labels_equal: Types, of ``labels``, that are those of magika's own API;
            files labelled without the model count too.
    """

    files: int
    files_of_model: int
    units: int
    receipts_verified: int
    labels_equal: int
    labels: int


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that the demo found out; the body of ``--json``.

    Attributes:
        root: The folder; paths are relative to it.
        model: Name of magika's model.
        program: Id of the program that it became.
        killed: None where the job was over before a provider could be killed.
        files: Those that reached the model.
        without_model: Those that magika labels without it.
        more_files: Whether the folder has more files than the demo looks at.
        problems: What does not add up; empty where all is well.
        receipts_at: The directory that the receipts were written to.
        liar: How the node that lies was caught.
    """

    root: str
    model: str
    program: BlobId
    job: str
    nodes: tuple[Share, ...]
    killed: Killed | None
    totals: Totals
    files: tuple[LabelledFile, ...]
    without_model: tuple[LabelledFile, ...]
    left_out: tuple[LeftOut, ...]
    more_files: bool
    problems: tuple[str, ...]
    receipts_at: str | None
    seconds: float
    liar: Caught | None = None

    @property
    def ok(self) -> bool:
        """Whether everything added up."""
        return not self.problems


def print_report(report: Report, *, as_json: bool) -> None:
    """Print a report on stdout."""
    if as_json:
        body = {
            "schema_version": SCHEMA_VERSION,
            "ok": report.ok,
            **msgspec.to_builtins(report),
        }
        sys.stdout.write(msgspec.json.encode(body).decode() + "\n")
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # not every terminal knows every character
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=WIDTH, highlight=False)
    console.print()
    console.print(_node_table(report))
    console.print()
    for text in _findings(report):
        console.print(text)
    _print_conviction(console, report)
    for heading, lines in (
        ("Labelled by magika without its model", _by_type(report.without_model)),
        ("Not looked at", _by_reason(report.left_out)),
    ):
        if lines:
            console.print()
            console.print(Text(f"{heading}: {sum(count for _, count, _ in lines)}"))
            width = max(len(name) for name, _, _ in lines)
            for name, count, paths in lines:
                line = Text(f"  {name:<{width}} {count:>5}  {paths}", style="dim")
                console.print(line, no_wrap=True, overflow="ellipsis")
    console.print()
    console.print(_sample_table(report))
    if report.receipts_at is not None:
        console.print()
        console.print(
            Text(
                f"The receipts are in {report.receipts_at}; "
                f"check them with: {shoal_command()} receipt verify "
                f"{report.receipts_at}/*.receipt"
            ),
            soft_wrap=True,
        )


def shoal_command() -> str:
    """What to type for ``shoal`` in the shell that started this process."""
    started = sys.argv[0]
    if Path(started).name != "shoal":
        return f"{shlex.quote(sys.executable)} -m shoal.node.cli"
    found = shutil.which("shoal")
    return "shoal" if found and Path(found).samefile(started) else shlex.quote(started)


def short(peer: str) -> str:
    """The end of a peer id, which tells peers apart; they all begin alike."""
    return f"…{peer[-8:]}"


def shown(path: Path) -> str:
    """A path as text that is safe on a terminal and in JSON, whatever its bytes are."""
    text = os.fsencode(path).decode(errors="replace")
    return "".join(character if character.isprintable() else "�" for character in text)


def _node_table(report: Report) -> Table:
    total = report.totals
    table = Table(box=SIMPLE, show_edge=False, show_footer=True, header_style="bold")
    table.add_column("Node", "All")
    table.add_column("Role", f"{len(report.nodes)} nodes")
    for heading, footer in (
        ("Files", str(total.files)),
        ("Units", str(total.units)),
        ("Receipts\nverified", f"{total.receipts_verified} of {total.units}"),
        ("Seconds", ""),
    ):
        table.add_column(heading, footer, justify="right")
    for share in report.nodes:
        table.add_row(
            short(share.peer),
            Text(share.role, style="yellow" if share.killed else ""),
            str(share.files),
            str(share.units),
            f"{share.receipts_verified} of {share.units}",
            f"{share.seconds:.2f}",
        )
    return table


def _findings(report: Report) -> list[Text]:
    if not report.ok:
        return [Text(f"✗ {problem}", style="red") for problem in report.problems]
    total = report.totals
    over = "over what was sent and what came back"
    sentences = [
        f"{total.files} of {total.files_of_model} files labelled: none lost, none twice",
        f"{total.receipts_verified} of {total.units} receipts verified offline, {over}",
        f"{total.labels_equal} of {total.labels} labels equal magika's own",
    ]
    if report.killed is None:
        sentences.append("no provider was killed: with so few files the job was over at once")
    return [Text.assemble(("✓ ", "green"), sentence) for sentence in sentences]


def _print_conviction(console: Console, report: Report) -> None:
    """Who lied, who found out, what was wrong, and how to see it again."""
    if report.liar is None or not report.liar.proof:
        return
    console.print()
    for text in _conviction(report.liar, report.nodes[0].peer):
        console.print(text)
    console.print(Text(f"    {report.liar.command}"), soft_wrap=True)


def _conviction(liar: Caught, requester: PeerId) -> list[Text]:
    checkers = " and ".join(
        "the requester itself" if peer == requester else short(peer) for peer in liar.checked_by
    )
    results = "1 result" if liar.false == 1 else f"{liar.false} results"
    sentences = [
        f"{short(liar.peer)} lied: one bit of each result that it gave was false.",
        f"{results} of it ran again at {checkers}, and came to other bits.",
        "What was delivered is right, and nobody had to ask for that.",
        f"It is convicted and banned: {liar.finding.rstrip('.')}.",
        "The proof was checked once more when no daemon ran. Check it again:",
    ]
    return [Text.assemble(("! ", "yellow"), sentence) for sentence in sentences]


def _by_type(files: Sequence[LabelledFile]) -> list[tuple[str, int, str]]:
    return _grouped((file.label, file.path) for file in files)


def _by_reason(left_out: Sequence[LeftOut]) -> list[tuple[str, int, str]]:
    return _grouped((each.reason, each.path) for each in left_out)


def _grouped(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, int, str]]:
    groups: dict[str, list[str]] = {}
    for name, path in pairs:
        groups.setdefault(name, []).append(path)
    return [
        (
            name,
            len(paths),
            ", ".join(paths[:_NAMED_LIMIT]) + (", …" * (len(paths) > _NAMED_LIMIT)),
        )
        for name, paths in sorted(groups.items())
    ]


def _sample_table(report: Report) -> Table:
    table = Table(box=SIMPLE, show_edge=False, header_style="bold")
    for heading in ("Some of the files", "Type", "Description", "By"):
        table.add_column(heading, no_wrap=True, overflow="ellipsis")
    for file in _samples(report.files):
        table.add_row(
            Text(file.path),
            Text(file.label),
            Text(file.description),
            short(file.peer) if file.peer else "",
        )
    return table


def _samples(files: Sequence[LabelledFile]) -> list[LabelledFile]:
    """A few files of as many types as there are, the most frequent type first."""
    frequency = Counter(file.label for file in files)
    seen: Counter[str] = Counter()
    ranked: list[tuple[int, int, str, LabelledFile]] = []
    for file in files:
        ranked.append((seen[file.label], -frequency[file.label], file.path, file))
        seen[file.label] += 1
    return [file for *_, file in sorted(ranked, key=lambda item: item[:3])[:SAMPLES]]
