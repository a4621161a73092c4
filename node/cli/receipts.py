"""``shoal receipt``: look at receipts and check them, with or without a daemon."""

import re
import shlex
from pathlib import Path
from typing import Any

import msgspec
from cyclopts import App

from shoal.crypto.envelope import ENVELOPE_LIMIT_BYTES
from shoal.crypto.errors import VerificationError
from shoal.node.cli.arrays import check_directory
from shoal.node.cli.options import Daemon
from shoal.node.cli.output import EXIT_FAILED, EXIT_OK, note, print_json, print_pairs, printable
from shoal.node.errors import ConfigError
from shoal.protocol.statements import Receipt, open_receipt, statement_id

_WHERE_FROM = (
    "`shoal receipt fetch JOB --output DIR` writes a job's receipts to files; "
    "then `shoal receipt verify DIR/*`"
)

app = App(name="receipt", help="Receipts: a provider's signature over what it ran.")


@app.command
def show(receipt: str, /, *, daemon: Daemon | None = None) -> None:
    """Show what a receipt says.

    Args:
        receipt: A file (no daemon is needed), or a receipt's id.
    """
    daemon = daemon or Daemon()
    if re.fullmatch("[0-9a-f]{64}", receipt) and not Path(receipt).exists():
        with daemon.client() as client:
            envelope = client.receipt(receipt)
    else:
        envelope = _read(Path(receipt))
    opened = open_receipt(envelope)
    if daemon.as_json:
        print_json({"id": statement_id(envelope), "receipt": msgspec.to_builtins(opened)})
        return
    print_pairs([("receipt", statement_id(envelope)), *_lines(opened)])


@app.command
def verify(*files: Path, daemon: Daemon | None = None) -> int:
    """Check receipts: their form, and that the provider they name has signed them.

    No daemon is needed. Exits with 1 where one of them is bad.

    Args:
        files: The receipts.
    """
    if not files:
        raise ConfigError("no receipt is named", code="usage", hint=_WHERE_FROM)
    daemon = daemon or Daemon()
    verdicts: list[dict[str, Any]] = []
    for file in files:
        try:
            envelope = _read(file)
            opened = open_receipt(envelope)
        except VerificationError as error:
            verdicts.append(
                {
                    "file": str(file),
                    "valid": False,
                    "error": {"code": error.code, "message": error.message},
                }
            )
            note(f"error: {file}: {error.message}")
            continue
        verdicts.append(
            {
                "file": str(file),
                "valid": True,
                "id": statement_id(envelope),
                "provider": opened.provider,
                "unit": opened.unit,
            }
        )
        if not daemon.as_json:
            print(printable(f"valid  {file}  unit {opened.unit}, signed by {opened.provider}"))
    if daemon.as_json:
        print_json({"receipts": verdicts})
    if not all(verdict["valid"] for verdict in verdicts):
        note(f"  next: {_WHERE_FROM}")
    return EXIT_OK if all(verdict["valid"] for verdict in verdicts) else EXIT_FAILED


@app.command
def fetch(job_id: str, /, *, output: Path, daemon: Daemon | None = None) -> None:
    """Write all receipts of a job to DIR/ID.receipt, to keep or to hand on.

    Args:
        job_id: The job.
        output: The directory; it is made where it is missing.
    """
    check_directory(output)
    daemon = daemon or Daemon()
    output.mkdir(parents=True, exist_ok=True)
    paths = []
    with daemon.client() as client:
        for receipt_id in client.receipts(job_id):
            path = output / f"{receipt_id}.receipt"
            path.write_bytes(client.receipt(receipt_id))
            paths.append(str(path))
    if daemon.as_json:
        print_json({"files": paths})
        return
    for written in paths:
        print(written)


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(ENVELOPE_LIMIT_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {file}", code="file", hint=_WHERE_FROM) from None
    except IsADirectoryError:
        raise ConfigError(
            f"{file} is a directory",
            code="file",
            hint=f"name the files in it: `shoal receipt verify {shlex.quote(str(file))}/*`",
        ) from None


def _lines(receipt: Receipt) -> list[tuple[str, object]]:
    result: list[tuple[str, object]] = [
        *((f"output {name}", tensor) for name, tensor in receipt.outputs or ()),
    ]
    if receipt.error is not None:
        result.append(("error", f"{receipt.error.message} ({receipt.error.code})"))
    return [
        ("provider", receipt.provider),
        ("requester", receipt.requester),
        ("unit", receipt.unit),
        ("program", receipt.program),
        ("class", receipt.numeric_class),
        *((f"input {name}", tensor) for name, tensor in receipt.inputs),
        *result,
        ("award", receipt.award),
        ("device", f"{receipt.device} (its own word)"),
        ("runtime", f"{receipt.runtime} (its own word)"),
        (
            "took",
            f"{(receipt.ended_at_ms - receipt.started_at_ms) / 1000:.3f} s (its own word)",
        ),
    ]
