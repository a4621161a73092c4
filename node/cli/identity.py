"""``shoal identity``: show a node's id, and carry its key to another machine."""

import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from shoal.crypto import identity
from shoal.node.cli.options import Here
from shoal.node.cli.output import note, print_json, print_pairs
from shoal.node.errors import ConfigError

app = App(name="identity", help="This node's key: its peer id, a backup, a move.")


@app.command
def show(*, here: Here | None = None) -> None:
    """Show this node's peer id and where its key is."""
    here = here or Here()
    key = here.key_path()
    peer = identity.load(key).peer_id
    if here.as_json:
        print_json({"peer": peer, "key": str(key)})
    else:
        print_pairs([("peer", peer), ("key", key)])


@app.command
def export(
    *,
    output: Path | None = None,
    passphrase_file: Path | None = None,
    here: Here | None = None,
) -> None:
    """Write the private key as PEM. Whoever has it can act as this node.

    Args:
        output: The file to write, with mode 0600; stdout where not given.
        passphrase_file: A file whose first line protects the key.
    """
    here = here or Here()
    own = identity.load(here.key_path())
    pem = own.export_pem(_passphrase(passphrase_file))
    if output is None:
        if here.as_json:
            print_json({"peer": own.peer_id, "pem": pem.decode()})
        else:
            print(pem.decode(), end="")
        return
    try:
        handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(
            f"there is a file at {output} already, and it is never overwritten",
            code="file_exists",
        ) from None
    with os.fdopen(handle, "wb") as file:
        file.write(pem)
    if here.as_json:
        print_json({"peer": own.peer_id, "path": str(output)})
    else:
        note(f"the key of {own.peer_id} is in {output}")


@app.command(name="import")
def import_(
    file: Annotated[Path, Parameter(allow_leading_hyphen=True)],  # for the lone "-"
    /,
    *,
    passphrase_file: Path | None = None,
    here: Here | None = None,
) -> None:
    """Take over a key that `shoal identity export` wrote; an existing one is kept.

    Args:
        file: The PEM file, or - for stdin.
        passphrase_file: A file whose first line protects the key.
    """
    here = here or Here()
    key = here.key_path()
    pem = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    own = identity.import_pem(pem, _passphrase(passphrase_file))
    identity.save(own, key)
    if here.as_json:
        print_json({"peer": own.peer_id, "key": str(key)})
    else:
        print_pairs([("peer", own.peer_id), ("key", key)])


def _passphrase(file: Path | None) -> str | None:
    if file is None:
        return None
    first = file.read_text(encoding="utf-8").splitlines()[:1]
    if not first or not first[0]:
        raise ConfigError(f"the first line of {file} is empty", code="no_passphrase")
    return first[0]
