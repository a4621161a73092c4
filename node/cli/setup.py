"""``shoal init``: a home with its key and a commented settings file."""

from shoal.node.cli.options import Here, SettingFlags
from shoal.node.cli.output import note, print_json, print_pairs
from shoal.node.config import file_text, load
from shoal.node.errors import ConfigError
from shoal.node.home import open_home


def init(*, settings: SettingFlags | None = None, here: Here | None = None) -> None:
    """Make this node's home: its key and a settings file with every setting explained.

    What is there already stays as it is. Settings given as flags are written
    into the new file.
    """
    here = here or Here()
    given = settings.given() if settings else {}
    config = load({"home": here.home, **given})
    if given and config.file_path.exists():
        raise ConfigError(
            f"there are settings at {config.file_path} already",
            code="config_exists",
            hint="edit that file, or give these flags to `shoal up`",
        )
    identity = open_home(config)
    written = not config.file_path.exists()
    if written:
        config.file_path.write_text(file_text(given), encoding="utf-8")
    if here.as_json:
        print_json(
            {
                "peer": identity.peer_id,
                "home": str(config.home),
                "config": str(config.file_path),
            }
        )
        return
    print_pairs(
        [
            ("peer", identity.peer_id),
            ("key", config.key_path),
            ("settings", config.file_path if written else f"{config.file_path} (as it was)"),
        ]
    )
    for warning in config.warnings:
        note(f"warning: {warning}")
    note("next: start the daemon with `shoal up`")
