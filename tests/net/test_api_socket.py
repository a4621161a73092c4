"""The socket of the local API: whose it is, and what else may be in its place."""

import os
import socket
import stat
import sys

import pytest
import trio
import trio.testing
from api_clients import curl
from memory_daemon import MemoryDaemon

from shoal.node.api import make_app, serve_api
from shoal.node.errors import ConfigError


@pytest.fixture
def socket_path(tmp_path):
    return tmp_path / "run" / "shoal.sock"


@pytest.fixture
async def daemon(nursery, socket_path):
    daemon = MemoryDaemon()
    await nursery.start(serve_api, make_app(daemon), socket_path)
    return daemon


async def test_the_socket_is_for_its_owner_only_from_the_moment_of_bind(
    socket_path, monkeypatch
):
    modes = []
    listen = socket.socket.listen

    def noting(self, backlog):
        modes.append(stat.S_IMODE(socket_path.stat().st_mode))
        return listen(self, backlog)

    monkeypatch.setattr(socket.socket, "listen", noting)
    before = os.umask(0)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_api, make_app(MemoryDaemon()), socket_path)
            modes.append(stat.S_IMODE(socket_path.stat().st_mode))
            nursery.cancel_scope.cancel()
    finally:
        os.umask(before)
    assert modes == [0o600, 0o600]
    assert stat.S_IMODE(socket_path.parent.stat().st_mode) == 0o700


async def test_a_group_may_use_the_system_services_socket(socket_path):
    import grp

    group = grp.getgrgid(os.getgid()).gr_name
    async with trio.open_nursery() as nursery:
        await nursery.start(
            lambda task_status: serve_api(
                make_app(MemoryDaemon()), socket_path, group=group, task_status=task_status
            )
        )
        assert stat.S_IMODE(socket_path.stat().st_mode) == 0o660
        nursery.cancel_scope.cancel()


async def test_a_group_that_does_not_exist_leaves_no_socket(socket_path):
    with pytest.raises(ConfigError, match="no-such-group") as caught:
        await serve_api(make_app(MemoryDaemon()), socket_path, group="no-such-group")
    assert caught.value.code == "no_such_group"
    assert not socket_path.exists()


async def test_a_regular_file_at_the_socket_path_is_refused_and_kept(tmp_path):
    path = tmp_path / "precious.txt"
    path.write_text("precious")
    with pytest.raises(ConfigError) as caught:
        await serve_api(make_app(MemoryDaemon()), path)
    assert caught.value.code == "socket_path_taken"
    assert [file.name for file in tmp_path.iterdir()] == ["precious.txt"]
    assert path.read_text() == "precious"


async def test_a_second_daemon_on_one_socket_is_refused_and_the_first_goes_on(
    daemon, socket_path
):
    with pytest.raises(ConfigError, match=f"process {os.getpid()}") as caught:
        await serve_api(make_app(MemoryDaemon()), socket_path)
    assert caught.value.code == "daemon_running"
    status, _ = await curl(socket_path, "http://shoal/v1/status")
    assert status == 200


async def test_the_socket_of_another_program_is_refused(socket_path):
    socket_path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(socket_path))
        other.listen()
        with pytest.raises(ConfigError) as caught:
            await serve_api(make_app(MemoryDaemon()), socket_path)
    assert caught.value.code == "daemon_running"


async def test_the_socket_of_a_killed_daemon_is_replaced(socket_path, nursery):
    claim = (
        "import sys, os, pathlib; from shoal.node.api import claim_socket\n"
        "with claim_socket(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    killed = await trio.run_process(
        [sys.executable, "-c", claim, str(socket_path)], check=False
    )
    assert killed.returncode == -9
    assert socket_path.is_socket()
    await nursery.start(serve_api, make_app(MemoryDaemon()), socket_path)
    status, _ = await curl(socket_path, "http://shoal/v1/status")
    assert status == 200


async def test_a_place_where_no_socket_can_be_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        await serve_api(make_app(MemoryDaemon()), tmp_path / "file" / "shoal.sock")
    assert caught.value.code == "socket_unwritable"
