"""``shoal invite``, ``join`` and ``leave``: private networks, as their members handle them.

These work on the home's ``swarm.key``; a daemon reads it at its start, so that a
change is followed by the word that a restart is needed.
"""

import ipaddress
import sys
from getpass import getpass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from shoal.crypto.errors import ShoalError
from shoal.crypto.peer_id import PeerId
from shoal.node.addresses import dialable, parse_address
from shoal.node.cli.options import Daemon
from shoal.node.cli.output import network_text, note, print_json, print_pairs
from shoal.node.config import Config, load
from shoal.node.errors import ConfigError
from shoal.node.home import open_home
from shoal.node.invitation import ADDRESSES_LIMIT, read_token, write_token
from shoal.node.status_views import Status
from shoal.node.swarm_key import (
    SwarmKey,
    load_key,
    make_key,
    put_aside,
    replace_key,
    save_key_again,
    save_new_key,
)

_STDIN = "-"
_STDIN_LIMIT = 64 * 1024
_RESTART = (
    "next: restart the daemon, which is not in this network yet: `shoal down`, `shoal up`"
)


def invite(
    *,
    name: str | None = None,
    address: Annotated[list[str] | None, Parameter(negative="")] = None,
    daemon: Daemon | None = None,
) -> None:
    """Print a line by which another machine joins this node's private network.

    The network and its secret are made where this node is in none. Whoever has the
    line can join: hand it over like a password.

    Args:
        name: What the new network is called; people see it in `shoal status`.
        address: Where the other machine reaches this node, in place of the addresses
            that it finds itself; for one behind a router.
    """
    daemon = daemon or Daemon()
    config = _config(daemon)
    peer = open_home(config).peer_id
    running = _running(daemon, config)
    addresses = _given(address, peer) if address else _found(config, running, peer)
    key, made = _network(config, name)
    token = write_token(SwarmKey(key.name, key.secret, addresses))
    restart_needed = running is not None and running.network_fingerprint != key.fingerprint
    if daemon.as_json:
        print_json(
            {
                "network": key.name,
                "fingerprint": key.fingerprint,
                "token": token,
                "addresses": addresses,
                "made": made,
                "restart_needed": restart_needed,
            }
        )
        return
    if made:
        note(f"made the private network {key.name}; its secret is in {config.swarm_key_path}")
    note(f"whoever has this line can join {key.name}: hand it over like a password")
    print(token)
    note("on the other machine: shoal join -    (then paste the line)")
    note(f"it will look for this node at {', '.join(addresses)}")
    if restart_needed:
        note(_RESTART)
    elif running is None:
        note("next: start the daemon with `shoal up`")


def join(
    token: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    replace: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    daemon: Daemon | None = None,
) -> None:
    """Join the private network that an invitation is for.

    Args:
        token: What `shoal invite` printed there; - reads it from standard input, where
            neither the list of processes nor the shell's history shows it.
        replace: Leave the private network that this node is in.
    """
    daemon = daemon or Daemon()
    invited = read_token(_from_stdin() if token == _STDIN else token)
    config = _config(daemon)
    peer = open_home(config).peer_id
    running = _running(daemon, config)
    path = config.swarm_key_path
    others = tuple(one for one in invited.bootstrap if parse_address(one).peer != peer)
    invited = SwarmKey(invited.name, invited.secret, others)
    held = load_key(path, environment={})
    aside = None
    if held is None:
        save_new_key(invited, path)
    elif held.secret == invited.secret:
        invited = held.with_bootstrap(others)
        save_key_again(invited, path)
    elif replace:
        aside = replace_key(invited, path)
    else:
        raise ConfigError(
            f"this node is in the private network {held.name}, and the invitation is for "
            f"{invited.name} (fingerprints {held.fingerprint}, {invited.fingerprint})",
            code="network_exists",
            hint="to change over, say so with --replace; the old secret is put aside, not lost",
        )
    restart_needed = running is not None and running.network_fingerprint != invited.fingerprint
    if daemon.as_json:
        print_json(
            {
                "network": invited.name,
                "fingerprint": invited.fingerprint,
                "bootstrap": invited.bootstrap,
                "was_member": held is not None and held.secret == invited.secret,
                "put_aside": None if aside is None else str(aside),
                "restart_needed": restart_needed,
            }
        )
        return
    print_pairs(
        [
            ("network", network_text(invited.name, invited.fingerprint)),
            *(("joins by", address) for address in invited.bootstrap),
            ("secret", path),
            *([("old secret", aside)] if aside else []),
        ]
    )
    if restart_needed:
        note(_RESTART)
    elif running is None:
        note("next: start the daemon with `shoal up`, then see `shoal peers`")
    else:
        note("the daemon is in this network already; see `shoal peers`")


def leave(*, daemon: Daemon | None = None) -> None:
    """Leave this node's private network: its next start is in the public one.

    The secret is put aside, so that nothing is lost; delete that file to forget it.
    """
    daemon = daemon or Daemon()
    config = _config(daemon)
    running = _running(daemon, config)
    aside = put_aside(config.swarm_key_path)
    restart_needed = running is not None and running.network_fingerprint != ""
    if daemon.as_json:
        print_json({"put_aside": str(aside), "restart_needed": restart_needed})
        return
    note(f"the network's secret is now in {aside}; delete it to forget it")
    if restart_needed:
        note(
            "next: restart the daemon, which is in that network still: `shoal down`, `shoal up`"
        )


def _config(daemon: Daemon) -> Config:
    return load({"home": daemon.home, "socket": daemon.socket})


def _running(daemon: Daemon, config: Config) -> Status | None:
    """How the daemon of this home is; None where none runs, or it does not say.

    Raises:
        ConfigError: ``other_home``: the daemon that is meant has another home.
    """
    try:
        with daemon.quiet_client() as client:
            status = client.status()
    except ShoalError:
        return None
    if Path(status.home).resolve() != config.home.resolve():
        raise ConfigError(
            f"the daemon that answers has the home {status.home}, and not {config.home}",
            code="other_home",
            hint=f"say which is meant: --home {status.home}, or --home {config.home} with "
            "the --socket of its own",
        )
    return status


def _network(config: Config, name: str | None) -> tuple[SwarmKey, bool]:
    """The network that the home is in, and whether it was made just now."""
    held = load_key(config.swarm_key_path, environment={})
    if held is None:
        key = make_key(name)
        save_new_key(key, config.swarm_key_path)
        return key, True
    if name not in (None, held.name):
        raise ConfigError(
            f"this node is in the private network {held.name} already",
            code="network_exists",
            hint="`shoal invite` without --name invites to it; `shoal leave` first to make "
            "another",
        )
    return held, False


def _given(addresses: list[str], peer: PeerId) -> tuple[str, ...]:
    """The addresses that the operator gave, each with this node's id at its end."""
    complete = []
    for text in addresses:
        address = parse_address(text)
        if address.peer not in (None, peer):
            raise ConfigError(
                f"--address {text} names another node than this one, which is {peer}",
                code="usage",
                hint="leave out what begins with /p2p/",
            )
        complete.append(f"{str(address).partition('/p2p/')[0]}/p2p/{peer}")
    return _fit_for_token(complete)


def _found(config: Config, running: Status | None, peer: PeerId) -> tuple[str, ...]:
    """Where this node is reached, as far as it can tell; loopback for want of others only."""
    if running is not None:
        addresses = running.addresses
    else:
        bound = [parse_address(text) for text in config.listen]
        addresses = dialable([(one.host, one.port) for one in bound if one.port], peer)
    if not addresses:
        raise ConfigError(
            "it is not known where this node will be reached",
            code="no_address",
            hint="start it with `shoal up` first, or say where with --address",
        )
    outside = [
        one
        for one in addresses
        if not ipaddress.ip_address(parse_address(one).host).is_loopback
    ]
    return _fit_for_token(outside or addresses)


def _fit_for_token(addresses: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(addresses))[:ADDRESSES_LIMIT]


def _from_stdin() -> str:
    if sys.stdin.isatty():
        return getpass("invitation (it is not shown): ")
    return sys.stdin.read(_STDIN_LIMIT)
