"""The command line: one module for each family of commands.

Data goes to stdout and everything else to stderr. Errors are a sentence and the
next step; with ``--json`` they are an object on stdout as well.

A command takes as long to start as its imports take, and scripts and tests start
thousands. So its module is imported only when it is used, and a module of commands has
at its top no more than it takes to ask the daemon and show the answer. What a single
command needs beyond that (the daemon itself, a look at devices, the checks of `shoal
doctor`) is imported in its function. Views that clients decode lie apart from what makes
them (`node.timing_view`, `node.standing_view`), and `AsyncClient` waits for its first use
(`node.client`). ``tests/unit/test_starting.py`` holds the commands to it.
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
from importlib import import_module
from typing import TYPE_CHECKING

import cyclopts
from cyclopts import App, Group

from shoal import __version__
from shoal.crypto.errors import ShoalError
from shoal.node.cli.output import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_PERMISSION,
    EXIT_USAGE,
    exit_code_of,
    print_error,
    remember_place,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_NODE = Group("This node", sort_key=1)
_WORK = Group("Work", sort_key=2)
_HELP = Group("Help", sort_key=3)

_CHECK_PATH = "check the path that was given, and who may use it"
_MAKE_ROOM = (
    "make room there, or name another place; results stay with the daemon: `shoal jobs` "
    "lists them, and `shoal job fetch JOB --output DIR` brings them"
)

_COMMANDS = (
    ("init", "setup:init", _NODE),
    ("up", "daemon:up", _NODE),
    ("down", "daemon:down", _NODE),
    ("reload", "running:reload", _NODE),
    ("status", "daemon:status", _NODE),
    ("peers", "daemon:peers", _NODE),
    ("standing", "ledger:standing", _NODE),
    ("ledger", "ledger:app", _NODE),
    ("devices", "devices:devices", _NODE),
    ("pause", "owner:pause", _NODE),
    ("resume", "owner:resume", _NODE),
    ("allow", "friends:allow", _NODE),
    ("deny", "friends:deny", _NODE),
    ("challenge", "capability:challenge", _NODE),
    ("identity", "identity:app", _NODE),
    ("invite", "private:invite", _NODE),
    ("join", "private:join", _NODE),
    ("leave", "private:leave", _NODE),
    ("run", "work:run", _WORK),
    ("map", "work:map_", _WORK),
    ("jobs", "jobs:jobs", _WORK),
    ("job", "jobs:app", _WORK),
    ("receipt", "receipts:app", _WORK),
    ("proof", "proof:app", _WORK),
    ("log-level", "running:log_level", _HELP),
    ("doctor", "doctor:doctor", _HELP),
    ("bugreport", "bugreport:bugreport", _HELP),
    ("demo", "about:demo", _HELP),
    ("completion", "about:completion", _HELP),
    ("version", "about:version", _HELP),
)


def make_app(*, whole: bool = False) -> App:
    """The command line as cyclopts knows it.

    Args:
        whole: Import every command now, to show what each of them does.
    """
    app = App(
        name="shoal",
        help=(
            "Run ONNX models on the machines of people who pool them.\n\n"
            "One daemon runs on each machine (`shoal up`); the other commands talk to it."
        ),
        version=__version__,
        suppress_keyboard_interrupt=False,
        help_epilogue="Exit codes: 0 ok, 1 failed, 2 usage, 3 daemon unreachable, "
        "4 permission, 5 time-out, 6 undecided (`shoal proof verify`), 130 interrupted.",
    )
    app["--help"].group = _HELP
    app["--version"].group = _HELP
    for name, place, group in _COMMANDS:
        module, _, function = place.partition(":")
        path = f"shoal.node.cli.{module}"
        command = getattr(import_module(path), function) if whole else f"{path}:{function}"
        if isinstance(command, App):
            command.group = group
            app.command(command, name=name)
        else:
            app.command(command, name=name, group=group)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; gives its exit code."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in tokens
    remember_place(tokens)
    try:
        code = make_app(whole=not tokens or tokens[0] in ("-h", "--help"))(
            tokens, exit_on_error=False, print_error=False, result_action="return_value"
        )
        sys.stdout.flush()
    except cyclopts.CycloptsError as error:
        print_error("usage", *_usage(error, tokens), as_json=as_json)
        return EXIT_USAGE
    except ShoalError as error:
        print_error(error.code, error.message, error.hint, as_json=as_json)
        return exit_code_of(error)
    except KeyboardInterrupt:
        print_error("interrupted", "interrupted", "", as_json=as_json)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except PermissionError as error:
        print_error("permission", _sentence(error), _CHECK_PATH, as_json=as_json)
        return EXIT_PERMISSION
    except OSError as error:  # a file that the user named
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            message = f"what was to be written found no room: {_sentence(error)}"
            print_error("disk_full", message, _MAKE_ROOM, as_json=as_json)
            # What stdout still holds would be written at the exit, and that fails again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        else:
            print_error("file", _sentence(error), _CHECK_PATH, as_json=as_json)
        return EXIT_FAILED
    return code if isinstance(code, int) else EXIT_OK


def _usage(error: cyclopts.CycloptsError, tokens: list[str]) -> tuple[str, str]:
    """What was wrong with a command line, and the next step."""
    names = [name for name, _, _ in _COMMANDS]
    command = next((token for token in tokens if token in names), None)
    if tokens[0].startswith("-") and command is not None:
        rest = list(tokens)
        rest.remove(command)
        return (
            f"the command comes first, and {tokens[0]} after it",
            f"`{shlex.join(['shoal', command, *rest])}`",
        )
    if extra := _other_inputs(error):
        name = extra[0].partition("=")[0]
        if any(token.startswith(f"{name}=") for token in tokens[: tokens.index(extra[0])]):
            return f"input {name!r} is given twice", "name one file for each input"
        given = " ".join(f"--input {shlex.quote(token)}" for token in extra)
        return (
            f"each input needs its own --input, and there is none before {extra[0]!r}",
            f"write `{given}`",
        )
    called = " ".join(["shoal", *(error.command_chain or ())])
    message = str(error)
    if isinstance(error, cyclopts.UnusedCliTokensError):
        unused = shlex.join(error.unused_tokens or ())
        message = f"`{called}` takes no argument {unused}, and no option before it does"
    return message, f"see `{called} --help`"


def _other_inputs(error: cyclopts.CycloptsError) -> list[str]:
    """Tokens of ``--input a=… b=…`` that nothing takes."""
    if not isinstance(error, cyclopts.UnusedCliTokensError):
        return []
    if (error.command_chain or ())[:1] not in (("run",), ("map",)):
        return []
    return [token for token in error.unused_tokens or () if "=" in token]


def _sentence(error: OSError) -> str:
    said = error.strerror or str(error)
    return f"{error.filename}: {said}" if error.filename else said
