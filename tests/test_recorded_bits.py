"""Bits: a change of the last one of a Value, in any core, shows here, and subnormals survive."""

import hashlib
import math
import platform
import random
import struct

import pytest

import microgpt as mg
from microgpt import _core_py

ARITHMETIC = "2f88872d09168e4f60e4d4f7b8b217469adb14c21d9a3bbc0d1bbd61a9e1a9c5"
WITH_LIBRARY = "fabf853e7c8e04fc868402335553e9d232297b17b6ae22a5837dcf4731345275"
PURE_LOSSES = [
    "0x1.9ad94814e177ap+1", "0x1.9ef8fd03cd387p+1", "0x1.a5ec809fbb08ap+1",
    "0x1.a61e7d747ae30p+1", "0x1.aafa73aa9620cp+1",
]  # of the first steps on the bundled names, sizes below


def digest_of_values(core, with_library):
    """Return a digest of data and gradients of 200 random expressions, bit for bit.

    with_library: use also what the C library computes (exp, log, powers), else what IEEE 754
    defines exactly.
    """
    rng, digest = random.Random(2026), hashlib.sha256()
    for _ in range(200):
        leaves = [core.Value(rng.uniform(-2, 2)) for _ in range(4)]
        made = list(leaves)
        for _ in range(30):
            a, b, x = rng.choice(made), rng.choice(made), rng.uniform(-2, 2)
            ops = [lambda: a + b, lambda: a * b * 0.5, lambda: a - b, lambda: x - a,  # noqa: B023
                   lambda: a * x + b, lambda: a.relu(), lambda: -a]  # noqa: B023  # fmt: skip
            if with_library:
                ops += [lambda: (a * a + 0.5).log(), lambda: a / (b * b + 1.5),  # noqa: B023
                        lambda: (-(a * a)).exp(), lambda: (a * a + 1) ** x]  # noqa: B023  # fmt: skip
            value = rng.choice(ops)()
            made.append(value if abs(value.data) < 1e3 else value * 1e-3)
        made[-1].backward()
        for value in made:
            digest.update(struct.pack("<2d", value.data, value.grad))
    return digest.hexdigest()


def glibc_on_x86_64():
    return platform.machine() == "x86_64" and platform.libc_ver()[0] == "glibc"


def test_values_have_the_recorded_bits(core):
    assert digest_of_values(core, with_library=False) == ARITHMETIC


@pytest.mark.skipif(not glibc_on_x86_64(), reason="other C libraries round exp and log otherwise")
def test_values_that_use_the_c_library_have_the_recorded_bits(core):
    assert digest_of_values(core, with_library=True) == WITH_LIBRARY


def test_the_digest_sees_the_last_bit():
    class Off(_core_py.Value):
        def __mul__(self, other):
            result = super().__mul__(other)
            result.data = math.nextafter(result.data, math.inf)
            return result

    class Core:
        Value = Off

    assert digest_of_values(Core, with_library=False) != ARITHMETIC


@pytest.mark.skipif(not glibc_on_x86_64(), reason="other C libraries round exp and log otherwise")
def test_the_first_losses_on_the_bundled_names_are_the_recorded_ones():
    """Bit for bit in the pure core, whose every operation is one of Values."""
    run = mg.prepare(mg.load_documents(), steps=5, n_embd=8, n_head=2, block_size=8)
    for _ in range(5):
        mg.train_step(run)
    if mg.BACKEND == "python":
        assert [loss.hex() for loss in run.losses] == PURE_LOSSES
    else:
        assert run.losses == pytest.approx([float.fromhex(x) for x in PURE_LOSSES], rel=1e-12)


def test_subnormals_survive(core):
    """A library built with fast-math would flush them to 0 for the whole process."""
    smallest = 5e-324
    assert (core.Value(smallest) * 1).data == smallest
    assert (core.Value(2.2250738585072014e-308) * 0.5).data == 1.1125369292536007e-308
    assert core.Value(-744).exp().data > 0.0
    m = core.Matrix.of([[smallest, 1e-310]])
    assert (m + m).tolist() == [[2 * smallest, 2e-310]]
    assert core.linear(m, core.Matrix.of([[1, 0]])).tolist() == [[smallest]]
    core.mean(m).backward()
    assert smallest * 1.0 > 0.0
