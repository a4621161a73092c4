"""Inputs as the command line takes them, and outputs as it puts them together."""

import numpy as np
import pytest
import safetensors.numpy
from cli_in_process import home, shoal

from shoal.node.cli.arrays import InputError, OutputFiles, read_inputs
from shoal.node.errors import (
    ConfigError,
)

__all__ = ["home"]  # the fixture

M = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("text", ["x", "=a.npy", "x="])
def test_an_input_of_another_form_is_a_usage_error(text):
    with pytest.raises(ConfigError, match="NAME=FILE") as caught:
        read_inputs([text])
    assert caught.value.code == "usage"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives_give_one_input_or_all_of_them(tmp_path, save):
    save(tmp_path / "a.npz", x=np.arange(3), y=np.zeros((2, 0)), z=np.asfortranarray(M))
    safetensors.numpy.save_file({"x": np.arange(3), "z": M}, tmp_path / "a.safetensors")
    for file in (tmp_path / "a.npz", tmp_path / "a.safetensors"):
        found = read_inputs([str(file)])
        assert isinstance(found["z"], np.memmap)  # never read whole
        np.testing.assert_array_equal(found["z"], M)
        np.testing.assert_array_equal(read_inputs([f"x={file}"])["x"], np.arange(3))
        with pytest.raises(InputError, match="none is 'w'") as caught:
            read_inputs([f"w={file}"])
        assert str(file) in caught.value.message
    assert read_inputs([str(tmp_path / "a.npz")])["y"].shape == (2, 0)


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", bytes(200), b"PK\3\4" + bytes(90)])
def test_an_archive_that_is_none_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name.replace(".", r"\.")) as caught:
        read_inputs([str(tmp_path / name)])
    assert "write it with" in caught.value.hint


def test_an_archive_that_was_cut_off_is_named(tmp_path):
    safetensors.numpy.save_file({"x": np.arange(300)}, tmp_path / "whole")
    np.savez(tmp_path / "whole.npz", x=np.arange(300))
    for whole, cut in (("whole", "cut.safetensors"), ("whole.npz", "cut.npz")):
        (tmp_path / cut).write_bytes((tmp_path / whole).read_bytes()[:-800])
        with pytest.raises(InputError, match="cut"):
            read_inputs([str(tmp_path / cut)])


def test_text_is_no_input(tmp_path):
    np.save(tmp_path / "a.npy", np.array(["some", "words"]))
    with pytest.raises(InputError, match=r"a\.npy holds <U5") as caught:
        read_inputs([f"x={tmp_path}/a.npy"])
    assert "tokenizer" in caught.value.hint


@pytest.mark.parametrize("file_format", ["npz", "safetensors"])
def test_outputs_are_put_together_in_one_file(tmp_path, file_format):
    with OutputFiles(tmp_path, file_format) as files:
        for count in (3, 1):
            files.append({"a/b": np.full((count, 2), count, np.float32), "s": np.int8(count)})
        written = files.finish()
    (path,) = tmp_path.iterdir()  # nothing else stays
    assert {one["path"] for one in written.values()} == {str(path)}
    load = np.load if file_format == "npz" else safetensors.numpy.load_file
    found = load(path)
    np.testing.assert_array_equal(found["a/b"][:, 0], np.float32([3, 3, 3, 1]))
    np.testing.assert_array_equal(found["s"], np.int8([3, 1]))
    assert written["a/b"]["shape"] == [4, 2]


def test_an_output_that_names_a_file_is_refused_before_the_job(capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    for name in ("file", "a.npy"):
        for command in (["run", "m.onnx", "--input", "x=a.npy"], ["job", "fetch", "J"]):
            code, _, err = shoal(capsys, *command, "--output", tmp_path / name)
            assert code == 2
            assert f"--output is a directory, and {tmp_path / name} is a file" in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "flags",
    [
        *(("--time-limit", value) for value in ("-1", "0", "nan", "1e9")),
        *(("--timeout", value) for value in ("-1", "nan")),
        ("--class", "int8"),
        ("--class", "bf16"),
        ("--priority", "5"),
        ("--memory-limit", "much"),
        ("--job-id", "1a20"),
        ("--proofs", "friends"),
        ("--proofs", "private"),
        ("--proofs", "private", "--class", "exact", "--verify", "receipt"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("command", ["run", "map"])
def test_a_limit_that_no_unit_can_have_is_a_usage_error(capsys, command, flags):
    code, _, err = shoal(capsys, command, "m.onnx", "--input", "x=a.npy", *flags)
    assert code == 2
    assert err.startswith(f"error: {flags[0]}: ")
    assert "  next: " in err


def test_an_input_given_twice_is_a_usage_error(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(ConfigError, match="twice"):
        read_inputs([f"x={tmp_path}/a.npy"] * 2)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY\x01\x00\xff\xff"])
def test_an_input_that_is_no_array_is_named(tmp_path, content):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.npy") as caught:
        read_inputs([f"x={path}"])
    assert caught.value.code == "bad_npy"


def test_an_input_of_pickled_objects_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(InputError):
        read_inputs([f"x={tmp_path}/a.npy"])


def test_outputs_are_put_together_row_by_row(tmp_path):
    with OutputFiles(tmp_path / "out") as files:
        for count in (3, 3, 1):
            files.append(
                {"a/b": np.full((count, 2), count, np.float32), "s": np.float64(count)}
            )
        written = files.finish()
    assert written["a/b"]["shape"] == [7, 2]
    np.testing.assert_array_equal(
        np.load(tmp_path / "out" / "a_b.npy")[:, 0], np.float32([3, 3, 3, 3, 3, 3, 1])
    )
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "s.npy"), [3, 3, 1])


def test_one_unit_keeps_its_shape(tmp_path):
    with OutputFiles(tmp_path) as files:
        files.append({"s": np.array(2.5), "e": np.zeros((0, 3), np.int8)})
        files.finish()
    assert np.load(tmp_path / "s.npy").shape == ()
    assert np.load(tmp_path / "e.npy").shape == (0, 3)


def test_an_output_cannot_leave_its_directory_nor_take_anothers_name(tmp_path):
    names = ["../../x", "/etc/passwd", "..", "a/b", "a_b", "x" * 300]
    with OutputFiles(tmp_path / "out") as files:
        files.append({name: np.array([index]) for index, name in enumerate(names)})
        written = files.finish()
    assert len(list((tmp_path / "out").iterdir())) == len(names)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    for index, name in enumerate(names):
        assert np.load(written[name]["path"]) == [index]


def test_nothing_half_written_remains_after_an_error(tmp_path):
    with OutputFiles(tmp_path, job_id="j7") as files:
        files.append({"y": np.zeros((2, 3))})
        with pytest.raises(InputError, match="do not make one array") as caught:
            files.append({"y": np.zeros((2, 4))})
    assert "`shoal job fetch j7 --output unit-1 --unit 1`" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
