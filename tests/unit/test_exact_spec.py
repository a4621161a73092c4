"""SPEC.md says what the reference does: its examples, its constants, its vectors."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from math import factorial
from pathlib import Path

import mpmath
import numpy as np
import pytest

import shoal.compute.exact
from shoal.compute.exact import philox, spec
from shoal.compute.exact.reference import ReferenceKernels, products

TEXT = (Path(shoal.compute.exact.__file__).parent / "SPEC.md").read_text(encoding="utf-8")
EXAMPLES = [
    json.loads(block) for block in re.findall(r"```json example\n(.*?)```", TEXT, re.DOTALL)
]
KERNELS = ReferenceKernels()


def array(values) -> np.ndarray:
    def number(v):
        if isinstance(v, list):
            return [number(w) for w in v]
        return float.fromhex(v) if isinstance(v, str) else v

    return np.array(number(values), np.float32)


def run(example) -> np.ndarray:
    kernel = getattr(KERNELS, example["kernel"])
    match example:
        case {"kernel": "product", "a": a, "b": b, "precision": precision, "axis": axis}:
            return kernel(array(a), array(b), spec.PRECISIONS[precision], axis)
        case {"kernel": "unary" | "reduce_rows", "name": name, "x": x}:
            return kernel(name, array(x))
        case {"kernel": "binary", "name": name, "x": x, "y": y}:
            return kernel(name, array(x), array(y))
        case {"kernel": "cumsum_rows", "x": x}:
            return kernel(array(x), exclusive=False, reverse=False)
        case {"kernel": "layer_norm_rows", "x": x, "w": w, "b": b, "eps": eps}:
            return kernel(array(x), array(w), array(b), float.fromhex(eps))
        case {"kernel": "rms_norm_rows", "x": x, "w": w, "eps": eps}:
            return kernel(array(x), array(w), float.fromhex(eps))
        case {"kernel": "scatter_add", "x": x, "indices": indices, "updates": updates}:
            return kernel(array(x), np.array(indices), array(updates))
        case {"x": x}:
            return kernel(array(x))
    raise AssertionError(example)


def bits(x) -> list[int]:
    return np.ascontiguousarray(x).view(np.uint32).ravel().tolist()


def test_the_version_of_the_text_is_the_version_of_the_code():
    assert TEXT.startswith(f"# The exact class, version {spec.SPEC_VERSION}\n")


def test_every_function_of_the_text_has_an_example():
    named = {example.get("name") for example in EXAMPLES}
    assert named >= {
        *("exp", "log", "tanh", "sigmoid", "softplus", "erf", "gelu", "gelu_tanh"),
        *("sin", "cos", "pow"),
    }


@pytest.mark.parametrize(
    "example", EXAMPLES, ids=lambda e: f"{e['kernel']}-{e.get('name', '')}"
)
def test_an_example_is_what_the_reference_gives(example):
    result = run(example)
    assert result.dtype == np.float32
    assert bits(result) == bits(array(example["gives"]))


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e["kernel"] == "product"])
def test_the_integers_of_an_example_are_those_of_the_reference(example):
    precision, axis = spec.PRECISIONS[example["precision"]], example["axis"]
    right = products.prepare(array(example["b"]), precision, axis)
    left = array(example["a"]).astype(np.float64)
    if axis == "k":
        left = np.where(right.zero_rows, 0, np.ldexp(left, right.exponents))
    e_a = products.scale_exponents(left, precision)
    q_a = products.quantised(left, e_a, precision)
    assert right.integers.tolist() == example["q_b"]
    assert right.exponents.tolist() == example["e_b"]
    assert (q_a.tolist(), e_a.tolist()) == (example["q_a"], example["e_a"])
    assert (q_a @ right.integers).tolist() == example["z"]


def test_every_constant_of_the_text_is_that_of_the_code():
    single = dict(re.findall(r"^\| ([A-Z][A-Z0-9_]+) \| `(\S+)` \|", TEXT, re.MULTILINE))
    assert len(single) == 10
    for name, value in single.items():
        assert float.fromhex(value) == getattr(spec, name), name
    tables = re.findall(
        r"^\| ([A-Z_]+) \| (?:coefficient|part) \|.*\n\|[-|]+\n((?:\|.*\n)+)",
        TEXT,
        re.MULTILINE,
    )
    in_code = {name for name in dir(spec) if isinstance(getattr(spec, name), tuple)}
    assert {name for name, _ in tables} == in_code
    for name, rows in tables:
        written = re.findall(r"^\| (\d+) \| `(\S+)` \|", rows, re.MULTILINE)
        assert [int(index) for index, _ in written] == list(range(len(written)))
        assert tuple(float.fromhex(value) for _, value in written) == getattr(spec, name), name


def test_precisions_and_bounds_of_the_text_are_those_of_the_code():
    table = re.findall(r"^\| `(x\d+)` \| (\d+) \| (\d+) \|", TEXT, re.MULTILINE)
    assert {name: (int(b), int(q)) for name, b, q in table} == {
        p.name: (p.bits, p.limit) for p in spec.PRECISIONS.values()
    }
    assert f"2⁻¹²⁶ − 2⁻¹⁵¹ = `{spec.FLUSH_BELOW.hex()[:10]}p-127`" in TEXT
    assert Fraction(spec.FLUSH_BELOW) == Fraction(1, 2**126) - Fraction(1, 2**151)
    for p in spec.PRECISIONS.values():
        assert spec.K_BLOCK * p.limit**2 < 2**53
        assert spec.K_LIMIT * p.limit**2 < 2**63
    assert spec.K_LIMIT << spec.SUM_BITS < 2**63


def test_taylor_coefficients_are_their_fractions_rounded():
    for n, c in enumerate(spec.EXP):
        assert c == float(Fraction(1, factorial(n)))
    for n, c in enumerate(spec.LOG):
        assert c == float(Fraction(1, 2 * n + 1))
    for n, c in enumerate(spec.SIN):
        assert c == float(Fraction((-1) ** n, factorial(2 * n + 1)))
    for n, c in enumerate(spec.COS):
        assert c == float(Fraction((-1) ** n, factorial(2 * n)))
    with mpmath.workprec(400):
        tanh = mpmath.taylor(mpmath.tanh, 0, 2 * len(spec.TANH))[1::2]
        assert [float(c) for c in tanh] == list(spec.TANH)
        erf = mpmath.taylor(mpmath.erf, 0, 2 * len(spec.ERF))[1::2]
        assert [float(c) for c in erf] == list(spec.ERF)


def test_pi_and_ln_2_are_split_so_that_their_leading_parts_multiply_exactly():
    with mpmath.workprec(300):
        parts = [mpmath.mpf(part) for part in spec.HALF_PI]
        assert abs(sum(parts) - mpmath.pi / 2) < mpmath.mpf(2) ** -115
        assert (
            abs(spec.LN2_HIGH + mpmath.mpf(spec.LN2_LOW) - mpmath.ln(2)) < mpmath.mpf(2) ** -90
        )
    for part, turns_bits in ((spec.HALF_PI[0], 20), (spec.HALF_PI[1], 20), (spec.LN2_HIGH, 8)):
        numerator = Fraction(part).numerator
        assert numerator.bit_length() + turns_bits <= 53


def test_philox_gives_the_vectors_of_the_text():
    rows = re.findall(
        r"^\| ((?:[0-9a-f]{8} ?){4}) \| ((?:[0-9a-f]{8} ?){2}) \| ((?:[0-9a-f]{8} ?){4}) \|",
        TEXT,
        re.MULTILINE,
    )
    assert len(rows) == 3
    for counter, key, words in rows:
        c, k, w = ([int(word, 16) for word in part.split()] for part in (counter, key, words))
        assert philox.philox4x32(np.array([c], np.uint32), (k[0], k[1])).tolist() == [w]


def test_words_of_a_stream_are_counted_from_its_seed_and_number():
    seed, stream = (7 << 32) | 5, (1 << 32) | 9
    blocks = [
        philox.philox4x32(np.array([[i, 0, 9, 1]], np.uint32), (5, 7))[0] for i in range(2)
    ]
    words = philox.words(seed, stream, 6)
    assert words.tolist() == np.concatenate(blocks).tolist()[:6]
    uniform = philox.uniform(seed, stream, 6)
    assert uniform.tolist() == [(int(w) >> 8) / 2**24 for w in words]
