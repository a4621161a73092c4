"""Which files the demo looks at, and that its labels are magika's on the odd ones."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import magika
import numpy as np
import onnxruntime
import pytest

from shoal.crypto.errors import ShoalError
from shoal.node import demo
from shoal.node.demo import files as demo_files
from shoal.node.demo.files import select
from shoal.node.demo.filetypes import MODEL_INPUT, MODEL_OUTPUT, OpenMagika
from shoal.node.demo.report import shown
from shoal.node.demo.swarm import Swarm, SwarmError

ODD = {
    "empty": b"",
    "one byte": b"x",
    "one byte that is no text": b"\xff",
    "seven bytes": b"1234567",
    "eight bytes": b"12345678",
    "whitespace": b" \n\t" * 3000,
    "few bytes in whitespace": b" \n" * 2000 + b"abc",
    "zeros": bytes(5000),
    "random": np.random.default_rng(1).bytes(5000),
    "utf-16": "ünïcode text, and more of it\n".encode("utf-16") * 40,
    "latin-1": "déjà vu, encore et encore\n".encode("latin-1") * 40,
    "python": b"import os\n\n\ndef main():\n    print(os.getcwd())\n" * 20,
    "block": b"a" * 4096,
    "long line": b'{"a": [' + b"1, " * 100_000 + b"1]}",
    "elf": Path(sys.executable).resolve().read_bytes()[:20_000],
}


@pytest.fixture
def odd_folder(tmp_path):
    for name, content in ODD.items():
        (tmp_path / name).write_bytes(content)
    with (tmp_path / "very large").open("wb") as file:
        file.write(b"#!/bin/sh\necho hello\n")
        file.truncate(5 << 30)  # a hole: it takes no room
    return tmp_path


def test_labels_equal_those_of_magika_on_odd_files(odd_folder):
    selection = select(odd_folder)
    opened = OpenMagika()
    split = opened.split(selection.root, selection.files)
    assert not split.failed
    session = onnxruntime.InferenceSession(opened.model_path)
    (scores,) = session.run([MODEL_OUTPUT], {MODEL_INPUT: split.features})
    types = opened.types_of(dict(zip(split.of_model, scores, strict=True)))
    own = magika.Magika()
    want = {f: str(own.identify_path(odd_folder / f).output.label) for f in selection.files}
    got = {file: kind.label for file, kind in (types | split.without_model).items()}
    assert got == want
    assert {str(file) for file in split.without_model} == {
        "empty",
        "one byte",
        "one byte that is no text",
        "seven bytes",
        "whitespace",
        "few bytes in whitespace",
    }


def test_a_file_that_went_away_is_said_to_have_failed(odd_folder):
    selection = select(odd_folder)
    (odd_folder / "python").unlink()
    split = OpenMagika().split(selection.root, selection.files)
    assert set(split.failed) == {Path("python")}
    assert Path("python") not in split.of_model


def test_links_and_devices_are_left_out_and_said(tmp_path):
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inner").write_bytes(b"text")
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "folder link").symlink_to("/etc")
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    selection = select(tmp_path)
    assert selection.files == (Path("file"), Path("folder/inner"))
    assert {str(path): reason for path, reason in selection.left_out.items()} == {
        "folder link": "a link",
        "link": "a link",
        "pipe": "not a regular file",
    }
    assert not selection.more


def test_no_more_files_than_the_bound_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_files, "FILES_LIMIT", 3)
    for number in range(5):
        (tmp_path / f"{number}").write_bytes(b"text")
    selection = select(tmp_path)
    assert [str(file) for file in selection.files] == ["0", "1", "2"]
    assert selection.more


def test_a_folder_that_is_none_or_empty_is_refused(tmp_path):
    with pytest.raises(ShoalError) as caught:
        select(tmp_path / "missing")
    assert caught.value.code == "no_such_folder"
    with pytest.raises(ShoalError) as caught:
        select(tmp_path)
    assert caught.value.code == "no_files"


def test_without_a_folder_they_are_the_tracked_files_of_the_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tracked", "untracked"):
        (tmp_path / name).write_bytes(b"text")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "shoal"\n')
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run(["git", "add", "tracked", "pyproject.toml"], check=True)
    selection = select(None)
    assert selection.root == tmp_path
    assert [str(file) for file in selection.files] == ["pyproject.toml", "tracked"]


def test_another_projects_checkout_is_not_looked_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_bytes(b"text")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\n')
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run(["git", "add", "."], check=True)
    assert select(None).root != tmp_path


def test_without_git_they_are_the_files_of_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    files = {str(file) for file in select(None).files}
    assert {"node/demo/files.py", "crypto/content.py"} <= files


def test_a_path_is_shown_without_what_a_terminal_would_obey():
    assert shown(Path("a\x1b[31m\nb")) == "a�[31m�b"
    assert shown(Path(os.fsdecode(b"bad\xff"))) == "bad�"


def test_without_magika_the_demo_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "magika", None)
    with pytest.raises(ShoalError) as caught:
        demo.run()
    assert caught.value.code == "magika_missing"
    assert "`pip install -c constraints.txt '.[demo]'`" in caught.value.hint


def test_a_demo_with_nobody_to_kill_is_refused():
    with pytest.raises(ShoalError) as caught:
        demo.run(nodes=1)
    assert caught.value.code == "usage"


def test_a_daemon_that_does_not_start_is_reported_with_its_last_words():
    with Swarm(2, ["--cores=many"]) as swarm:
        with pytest.raises(SwarmError, match="is not a number of cores"):
            swarm.start_all()
        homes = [node.home for node in swarm.nodes]
    assert not any(node.running for node in swarm.nodes)
    assert not any(home.exists() for home in homes)


def test_an_error_in_a_swarm_comes_with_what_ended_by_itself():
    error = ValueError("something else")
    with suppress(ValueError), Swarm(2) as swarm:
        first, second = swarm.nodes
        swarm.start(first)
        swarm.wait_ready(first)
        swarm.start(second)
        second.kill()  # on purpose
        first.process.kill()  # as the kernel does where memory ends
        first.process.wait()
        raise error
    (note,) = error.__notes__
    assert "daemon 1 had ended (SIGKILL)" in note
    assert "ready" in note
