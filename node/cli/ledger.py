"""``shoal ledger`` and ``shoal standing``: how peers have dealt with this node."""

import time
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from shoal.node.cli.assurance import print_paragraphs
from shoal.node.cli.options import Daemon, Here
from shoal.node.cli.output import (
    EXIT_FAILED,
    EXIT_OK,
    duration_text,
    note,
    print_json,
    print_pairs,
    print_table,
    printable,
)

app = App(name="ledger", help="Who did how much for whom; nothing is paid.")

_WHAT_AN_EXPORT_HOLDS = (
    (
        "the file holds the newest of what others have signed: receipts for what its node had "
        "done, acknowledgements for what its node did"
    ),
    (
        "RECEIPTS are those by which units ended; `shoal ledger` also counts those of checks "
        "and of units that another node ended sooner"
    ),
    (
        "ACKNOWLEDGED and its CREDITS are 0 where its node is who had the work done: it signed "
        "those acknowledgements itself, and they are in its providers' files"
    ),
)

_DIRECTIONS = {"given": "by this node for it", "taken": "by it for this node"}


@app.default
def ledger(
    peer: str | None = None,
    /,
    *,
    export: Annotated[
        Path | None, Parameter(help="Write what others signed to a file.")
    ] = None,
    daemon: Daemon | None = None,
) -> None:
    """Show who did how much for whom.

    Args:
        peer: One peer's id; all of them where it is not given.
        export: Write the newest acknowledgements and receipts, which others have signed,
            to this file; `shoal ledger verify FILE` checks it anywhere.
    """
    daemon = daemon or Daemon()
    with daemon.client() as client:
        if export is not None:
            exported = client.export_ledger(peer)
            export.write_bytes(exported)
            statements = exported.count(b"\n") - 1
            if daemon.as_json:
                print_json({"file": str(export), "statements": statements})
            else:
                print(printable(f"{statements} signed statements are in {export}"))
                note(f"`shoal ledger verify {export}` checks them, here or elsewhere")
            return
        found = client.ledger(peer)
    if daemon.as_json:
        print_json({"ledger": found})
        return
    if not found.rows:
        note("nothing yet: no unit was run for a peer, or by one")
        return
    print_table(
        ("PEER", "WORK", "UNITS", "ACKNOWLEDGED", "CREDITS", "TIME", "LAST"),
        (
            (
                row.peer,
                _DIRECTIONS[row.direction],
                row.units,
                row.acknowledged_units,
                f"{row.credits:.1f}",
                duration_text(row.seconds),
                _date_text(row.at),
            )
            for row in found.rows
        ),
    )
    for peer_id, credits_ in found.in_debt.items():
        note(
            f"{peer_id} is {credits_:.1f} credits beyond what it may be given"
            + (" and is not served now" if found.serve == "those-who-serve" else "")
        )


@app.command
def verify(file: Path, /, *, here: Here | None = None) -> int:
    """Check a file of `shoal ledger --export FILE`, and show what its signatures come to.

    No daemon is needed. Exits with 1 where a line of it is bad.

    Args:
        file: The file.
    """
    from shoal.node.ledger_file import check_lines, lines_of

    as_json = here is not None and here.as_json
    with file.open("rb") as opened:
        found = check_lines(lines_of(opened))
    if as_json:
        print_json({"ledger": found})
    else:
        print_pairs(
            [("says to be of", found.node), ("says to be of the", _date_text(found.made_at))]
        )
        print()
        print_table(
            ("PROVIDER", "DID FOR", "ACKNOWLEDGED", "CREDITS", "RECEIPTS", "TIME"),
            (
                (
                    pair.provider,
                    pair.requester,
                    pair.acknowledged,
                    f"{pair.credits:.1f}",
                    pair.receipts,
                    duration_text(pair.seconds),
                )
                for pair in found.pairs
            ),
        )
        if found.pairs:
            print()
            print_paragraphs(_WHAT_AN_EXPORT_HOLDS)
        for complaint in found.complaints:
            note(f"error: line {complaint.line}: {complaint.message}")
    return EXIT_FAILED if found.bad else EXIT_OK


def standing(peer: str, /, *, daemon: Daemon | None = None) -> None:
    """Show how a peer stands with this node, what that decides, and why.

    Args:
        peer: Its id, as `shoal peers` lists it.
    """
    daemon = daemon or Daemon()
    with daemon.client() as client:
        found = client.standing(peer)
    if daemon.as_json:
        print_json({"standing": found})
        return
    newcomer = " (a newcomer)" if found.newcomer else ""
    pairs: list[tuple[str, object]] = [
        ("peer", found.peer),
        ("work", f"{found.value:.0%}{newcomer}, {found.good_in_a_row} found right in a row"),
        ("conduct", f"{found.conduct:.0%}"),
        ("share of work", _share_text(found.share)),
        ("its results", f"are checked with a chance of {found.check_probability:.0%}"),
        ("may check others", "yes" if found.may_verify else "no"),
        ("its own units", "are run here" if found.served else found.refusal),
    ]
    if found.banned_until is not None:
        pairs.append(("banned until", _date_text(found.banned_until)))
    print_pairs(pairs)
    if not found.reasons:
        checked = (
            ": its first results are all checked" if found.check_probability >= 1.0 else ""
        )
        note(f"nothing was noted of it yet{checked}")
        return
    print()
    print_table(
        ("TIMES", "LAST", "IT"),
        (
            (
                reason.count,
                "" if reason.last is None else _date_text(reason.last),
                f"{reason.sentence}: {reason.detail}" if reason.detail else reason.sentence,
            )
            for reason in found.reasons
        ),
    )


def _share_text(share: float) -> str:
    if share <= 0.0:
        return "none"
    return f"{share:.0%}: a price and a time are counted {1.0 / share:.1f} times"


def _date_text(epoch_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch_s))
