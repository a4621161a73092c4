"""A daemon's home directory: made once, private, with the key in it.

The first step of any start. Who holds a home is `node.home_lock`'s; what else lies in it
(state, blobs) belongs to the modules that write it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shoal.crypto import identity
from shoal.node.errors import ConfigError

if TYPE_CHECKING:
    from shoal.crypto.identity import Identity
    from shoal.node.config import Config


def open_home(config: Config) -> Identity:
    """Make the home (0700) and its key where they are missing, and read the key.

    Raises:
        ConfigError: The home cannot be made or written to.
        IdentityError: The key is there and cannot be used.
    """
    home = config.home
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise _unusable(config, error.strerror or str(error)) from None
    if not home.is_dir() or not os.access(home, os.W_OK | os.X_OK):
        raise _unusable(config, "not writable for this user")
    if not config.key_path.exists():
        identity.save(identity.generate(), config.key_path)
    return identity.load(config.key_path)


def _unusable(config: Config, reason: str) -> ConfigError:
    return ConfigError(
        f"the home {config.home} cannot be used: {reason}",
        code="home_unwritable",
        hint="choose a writable directory with --home or SHOAL_HOME",
    )
