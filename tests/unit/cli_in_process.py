"""Command lines in the process of the tests, in a home of their own."""

import pytest

from shoal.node.cli import main


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for name in ("SHOAL_SOCKET", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def shoal(capsys, *arguments):
    """Run a command line in this process; gives its exit code, stdout and stderr."""
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err
