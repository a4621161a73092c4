"""`shoal.remote`: torch functions and modules that run out there, exported once."""

import subprocess
import sys

import pytest
from test_executor import Served

import shoal
from shoal.node.client import program_cache
from shoal.node.client.fingerprints import UnsureError, fingerprint
from shoal.node.errors import ConfigError

torch = pytest.importorskip("torch", reason="shoal.remote exports torch modules")
pytest.importorskip("onnxscript", reason="torch exports with it")
export = pytest.importorskip("shoal.export")
nn = torch.nn
SCALE = 2.0


@pytest.fixture
def exports(monkeypatch, tmp_path):
    """What was exported, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = []
    real = export.program

    def counted(module, *arguments, **options):
        made.append(module)
        return real(module, *arguments, **options)

    monkeypatch.setattr(export, "program", counted)
    return made


@pytest.fixture
def served(tmp_path):
    served = Served(tmp_path / "s.sock")
    yield served
    served.stop()


def add_one(x):
    return x + 1


def scaled(x):
    return _times(x) + 1


def _times(x):
    return x * SCALE


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return {"first": self.linear(x), "second": x}


def test_a_function_is_called_with_tensors_and_gives_tensors(served, exports):
    # The daemon in memory adds 1 to x, whatever the program: as this function does.
    function = shoal.remote(add_one, socket=served.socket)
    assert function.__name__ == "add_one"
    assert function.local is add_one
    found = function.submit(torch.ones(2, 4)).result(20)
    assert torch.equal(found["dir/y"], torch.full((2, 4), 2.0))
    assert isinstance(found["dir/y"], torch.Tensor)
    many = list(function.map([torch.ones(2, 4)] * 3))
    assert all(torch.equal(one["dir/y"], torch.full((2, 4), 2.0)) for one in many)
    assert len(exports) == 1


def test_the_form_of_the_result_is_that_of_the_function():
    made = shoal.remote(add_one)
    one, two = torch.ones(1), torch.zeros(1)
    assert made._result({"output": one}) is one
    assert made._result({"output_0": one, "output_1": two}) == (one, two)
    assert made._result({"a": one}) == {"a": one}


def test_it_is_exported_once_for_each_shape_and_kept_for_the_next_process(exports):
    first = shoal.remote(scaled).program_for(torch.ones(2, 4))
    assert shoal.remote(scaled).program_for(torch.zeros(2, 4)).program_id == first.program_id
    assert len(exports) == 1
    assert shoal.remote(scaled).program_for(torch.ones(3, 4)).program_id != first.program_id
    assert len(exports) == 2
    free = shoal.remote(dynamic_axes={"x": {0: "n"}})(scaled)
    assert (
        free.program_for(torch.ones(2, 4)).program_id
        == free.program_for(torch.ones(5, 4)).program_id
    )
    assert len(exports) == 3


def test_it_is_exported_again_where_what_it_refers_to_has_changed(exports, monkeypatch):
    function = shoal.remote(scaled)
    before = function.program_for(torch.ones(2, 4)).program_id
    monkeypatch.setitem(scaled.__globals__, "SCALE", 3.0)
    after = function.program_for(torch.ones(2, 4)).program_id
    assert before != after
    assert len(exports) == 2


def test_a_module_is_exported_again_where_its_weights_have_changed(exports):
    module = Dense().eval()
    function = shoal.remote(module)
    before = function.program_for(torch.ones(2, 4))
    assert function.program_for(torch.ones(2, 4)) is before
    with torch.no_grad():
        module.linear.weight.add_(1)
    assert function.program_for(torch.ones(2, 4)).program_id != before.program_id
    with torch.no_grad():
        module.linear.weight.sub_(1)
    assert len(exports) == 2
    twin = Dense().eval()
    twin.load_state_dict(module.state_dict())
    known = shoal.remote(twin).program_for(torch.ones(2, 4))  # equal, though another object
    assert known.program_id == function.program_for(torch.ones(2, 4)).program_id


def test_a_kept_program_that_is_damaged_is_removed_and_said_so(exports):
    first = shoal.remote(add_one).program_for(torch.ones(2, 4))
    (place,) = [p for p in program_cache.directory().iterdir() if p.is_dir()]
    graph = first.manifest.graph
    (place / graph).write_bytes(b"something else")
    damaged = shoal.remote(add_one).program_for(torch.ones(2, 4))
    with pytest.raises(shoal.ShoalError, match="damaged") as caught:
        dict(damaged.blobs)
    assert caught.value.code == "cache_damaged"
    assert not place.exists()


def test_the_oldest_programs_go_where_there_are_too_many(exports, monkeypatch):
    monkeypatch.setattr(program_cache, "CACHE_LIMIT_BYTES", 1)
    shoal.remote(add_one).program_for(torch.ones(2, 4))
    assert list(program_cache.directory().iterdir()) == []


def test_what_cannot_be_followed_is_never_kept(exports):
    class Odd:
        value = 3.0

    odd = object()

    def refers(x):
        return x + (1 if odd else 0)

    with pytest.raises(UnsureError):
        fingerprint(refers)
    assert fingerprint(refers, quick=True) == fingerprint(refers, quick=True)
    shoal.remote(refers).program_for(torch.ones(2, 4))
    assert len(exports) == 1
    assert not program_cache.directory().exists()


def test_equal_code_has_equal_fingerprints_and_other_code_has_not():
    def one(x):
        return x + 1

    def other(x):
        return x + 2

    again = eval("lambda x: x + 1")
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(again) == fingerprint(eval("lambda x: x + 1"))
    assert fingerprint(Dense) == fingerprint(Dense)


def test_wrong_arguments_are_named(exports):
    function = shoal.remote(add_one)
    with pytest.raises(ConfigError, match="missing a required argument: 'x'"):
        function()
    with pytest.raises(ConfigError, match="'x' is a str, and no tensor"):
        function("text")
    with pytest.raises(ConfigError, match="neither a torch module nor a function"):
        shoal.remote(3)


def test_where_torch_is_missing_one_error_says_what_to_install():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import shoal\n"
        "try: shoal.remote(lambda x: x)\n"
        "except shoal.ShoalError as error: print(error.code, error.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split(maxsplit=1) == [
        "no_torch",
        "in a checkout of shoal: `pip install -c constraints.txt '.[torch]'`\n",
    ]
