"""``shoal proof``: fraud proofs, and judging them with or without a daemon."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import App, Parameter

from shoal.crypto.content import BlobId
from shoal.crypto.errors import VerificationError
from shoal.node.cli.arrays import check_directory
from shoal.node.cli.options import Daemon
from shoal.node.cli.output import (
    EXIT_FAILED,
    EXIT_OK,
    note,
    print_json,
    print_pairs,
    print_table,
    printable,
    size_text,
)
from shoal.node.errors import ConfigError
from shoal.protocol.limits import FRAUD_PROOF_LIMIT_BYTES
from shoal.protocol.verification import fraud_proof
from shoal.protocol.verification.fraud_proof import Case, FraudProof, Outcome

EXIT_UNDECIDED = 6
"""After those of `shoal.node.cli.output`, which every command shares."""

_WHERE_FROM = (
    "`shoal proof list` shows the proofs that a daemon believes, and "
    "`shoal proof export ID DIR` writes one with its blobs"
)

_SAYS = {
    "equivocation": "it signed two results of one unit under one award",
    "operator": "one operator of its trace does not give what it committed to",
    "wiring": "its trace is none of this program and these inputs, or not its receipt's",
    "unit": "the program gives another result than its receipt says",
}

app = App(name="proof", help="Fraud proofs: what convicts a provider, whoever reads it.")


@app.command
def verify(
    file: Path,
    /,
    *,
    blobs: Annotated[Path | None, Parameter(name="--blobs")] = None,
    daemon: Daemon | None = None,
) -> int:
    """Judge a fraud proof by the reference of the class exact.

    No daemon is needed and none is asked. Exits with 0 where the proof convicts, with 1 where
    it acquits or the file is no fraud proof, and with 6 where it cannot be decided here, such
    as without a blob that it needs.

    Args:
        file: The proof.
        blobs: The directory with its blobs, each in a file named by its id; by default
            FILE's own directory.
    """
    from shoal.compute.judging import judge

    data = _read(file)
    _examined(file, data)
    directory = blobs if blobs is not None else file.parent
    if not directory.is_dir():
        raise ConfigError(f"there is no directory {directory}", code="file", hint=_WHERE_FROM)
    verdict = judge(data, _Directory(directory))
    if (daemon or Daemon()).as_json:
        proof_id = fraud_proof.proof_id(data)
        print_json({"id": proof_id, "verdict": msgspec.to_builtins(verdict)})
    else:
        accused = f"  {verdict.accused}" if verdict.accused else ""
        print(printable(f"{verdict.outcome}{accused}\n  {verdict.sentence}"))
    return {Outcome.CONVICTED: EXIT_OK, Outcome.ACQUITTED: EXIT_FAILED}.get(
        Outcome(verdict.outcome), EXIT_UNDECIDED
    )


@app.command
def show(file: Path, /, *, daemon: Daemon | None = None) -> None:
    """Show what a fraud proof says, without judging it. No daemon is needed.

    Args:
        file: The proof.
    """
    data = _read(file)
    case = _examined(file, data)
    if case is None:
        raise VerificationError(
            f"{file} is a fraud proof of a newer protocol than this shoal knows",
            code="version_unsupported",
            hint="upgrade shoal to see what it says",
        )
    proof = case.proof
    if (daemon or Daemon()).as_json:
        print_json({"id": fraud_proof.proof_id(data), "proof": _fields(case)})
        return
    print_pairs(
        [
            ("proof", fraud_proof.proof_id(data)),
            ("says", f"{_SAYS[proof.kind]} ({proof.kind})"),
            ("accused", case.accused),
            ("requester", case.award.requester),
            ("unit", case.receipt.unit),
            ("program", case.receipt.program),
            ("award", case.receipt.award),
            ("exact version", case.receipt.exact_spec),
            *(("leaf", _place(case, opening.index)) for opening in proof.leaves),
            *(("stage", opening.index) for opening in proof.stages),
            ("size", f"{len(data)} bytes"),
            *(("needs blob", blob_id) for blob_id in proof.blobs),
        ]
    )


@app.command(name="list")
def list_(*, daemon: Daemon | None = None) -> None:
    """List the fraud proofs that the daemon believes, the newest first."""
    daemon = daemon or Daemon()
    with daemon.client() as client:
        proofs = client.proofs()
    if daemon.as_json:
        print_json({"proofs": msgspec.to_builtins(proofs)})
        return
    if not proofs:
        note("none: this daemon believes no fraud proof")
        return
    print_table(
        ("PROOF", "ACCUSED", "OWN", "FOR", "SIZE", "BLOBS", "VERDICT"),
        [
            (
                proof.id,
                proof.accused,
                "yes" if proof.own else "no",
                "this node" if proof.private else "everybody",
                size_text(proof.proof_bytes),
                size_text(proof.blobs_bytes),
                proof.verdict,
            )
            for proof in proofs
        ],
        ids=("PROOF", "ACCUSED"),
    )


@app.command
def export(proof_id: str, output: Path, /, *, daemon: Daemon | None = None) -> None:
    """Write a fraud proof and its blobs to files, for `shoal proof verify` anywhere.

    Args:
        proof_id: The proof, as `shoal proof list` names it.
        output: The directory; it is made where it is missing. The proof becomes
            DIR/ID.proof, each blob DIR/ITS_ID.
    """
    from shoal.compute.judging import missing

    check_directory(output)
    daemon = daemon or Daemon()
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{proof_id}.proof"
    with daemon.client() as client:
        data = client.proof(proof_id)
        path.write_bytes(data)
        proof, held = fraud_proof.decode(data), _Directory(output)
        while wanted := missing(proof, held):
            for blob_id in wanted:
                (output / blob_id).write_bytes(client.blob(blob_id))
    files = [str(path), *(str(output / blob_id) for blob_id in _all_of(proof, held))]
    if daemon.as_json:
        print_json({"files": files})
        return
    for written in files:
        print(written)


class _Directory(Mapping[BlobId, bytes]):
    """The blobs in a directory, read when they are asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __getitem__(self, blob_id: BlobId) -> bytes:
        try:
            return (self._directory / blob_id).read_bytes()
        except FileNotFoundError:
            raise KeyError(blob_id) from None

    def __contains__(self, blob_id: object) -> bool:
        return (self._directory / str(blob_id)).is_file()

    def __iter__(self) -> Iterator[BlobId]:
        return (BlobId(path.name) for path in self._directory.iterdir() if path.is_file())

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _all_of(proof: FraudProof, held: Mapping[BlobId, bytes]) -> list[BlobId]:
    from shoal.compute.judging import missing

    first = [BlobId(blob_id) for blob_id in proof.blobs]
    known = {blob_id: held[blob_id] for blob_id in first[:1]}
    return [*dict.fromkeys([*first, *missing(proof, known)])]


def _fields(case: Case) -> dict[str, object]:
    proof = case.proof
    return {
        "kind": proof.kind,
        "accused": case.accused,
        "award": msgspec.to_builtins(case.award),
        "receipt": msgspec.to_builtins(case.receipt),
        "leaves": [opening.index for opening in proof.leaves],
        "stages": [opening.index for opening in proof.stages],
        "blobs": list(proof.blobs),
    }


def _place(case: Case, index: int) -> str:
    stage = case.root.stage if case.root is not None else None
    within = "" if stage is None else f" of stage {stage}"
    count = case.root.leaves if case.root is not None else 0
    return f"{index} of {count}{within}"


def _examined(file: Path, data: bytes) -> Case | None:
    """What a file's proof is about; None where it is of a newer protocol.

    Raises:
        VerificationError: It is no fraud proof, and nobody is judged by it.
    """
    try:
        return fraud_proof.examine(fraud_proof.decode(data))
    except VerificationError as error:
        if error.code == "version_unsupported":
            return None
        why = error.message.removeprefix("this is no valid fraud proof: ")
        raise VerificationError(
            f"{file} is no valid fraud proof: {why}", code=error.code, hint=_WHERE_FROM
        ) from None


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            data = opened.read(FRAUD_PROOF_LIMIT_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {file}", code="file", hint=_WHERE_FROM) from None
    if not data:
        raise VerificationError(f"{file} is empty", code="bad_proof", hint=_WHERE_FROM)
    return data
