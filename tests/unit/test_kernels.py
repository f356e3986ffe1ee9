"""Packed weights: rows equal the package gguf's bit for bit, products keep a stated bound, in every variant (those of
other CPUs with their intrinsics in plain C, see tests.oracles.variants) and by torch operations."""

import ctypes
import itertools
import os
import pkgutil
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from gencli import kernels
from gencli.errors import GencliError, UsageError
from gencli.kernels import PACKED, TYPES, Library, Weights, build
from gencli.kernels import pack as packing
from gencli.kernels.packed import Packed, product
from gencli.kernels.unpack import unpack
from tests.oracles import fuzz_kernels
from tests.oracles.packed import HALVES, random_rows
from tests.oracles.variants import X86, every_variant, own_file

ROWS, COLUMNS = 40, 768


def widths(kind: str) -> tuple[int, ...]:
    return (256, COLUMNS) if TYPES[kind][1] == 256 else (32, 224, COLUMNS) if kind in PACKED else (1, 7, 100, COLUMNS)


def dequantised(kind: str, data: np.ndarray) -> np.ndarray:
    return gguf.quants.dequantize(data, Type[kind]) if kind != "F32" else data.view(np.float32)


def as_weights(kind: str, data: np.ndarray, columns: int, **more) -> Weights:
    fields = {"data": data.ctypes.data, "rows": len(data), "columns": columns, "stride": data.strides[0], **more}
    return Weights(type=TYPES[kind][0], **fields)


def multiply(library: Library, weights: Weights, x: np.ndarray, outputs: int) -> np.ndarray:
    y = np.full((len(x), outputs), np.nan, dtype=np.float32)
    assert library.product(ctypes.addressof(weights), x.ctypes.data, len(x), y.ctypes.data, 0) == 0
    return y


def test_the_installed_library_is_there_and_current():
    """Where gencli is installed with a C compiler; a clone that was not: `python -m gencli.kernels.build`."""
    assert Library(build.HERE / build.NAME).variant == Library(build.HERE / build.NAME).variants[0]
    assert not {module.name for module in pkgutil.iter_modules(kernels.__path__)} & {"kernels"}  # it is no module


def test_without_a_compiler_the_build_says_one_line():
    line = [sys.executable, "-m", "gencli.kernels.build"]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "CC": "no-such-cc"}, check=False)
    wanted = "error: no-such-cc does not run: No such file or directory\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", wanted)


def test_variants(tmp_path):
    """AVX2 runs wherever the kernel says so; what this CPU lacks is refused by name."""
    names = Library(own_file()).variants
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    assert names[-1] == "plain" and ("avx2" in names) == (" avx2 " in flags and " fma " in flags)
    assert ("avx512" in names) == ("avx512_vnni" in flags and "avx512vl" in flags)
    with pytest.raises(UsageError, match=r"GENCLI_KERNELS='mmx': this CPU runs .*plain"):
        Library(own_file(), "mmx")
    (tmp_path / "no.so").write_bytes(b"")
    with pytest.raises(OSError):
        Library(tmp_path / "no.so")


@pytest.mark.parametrize("kind", TYPES)
def test_rows_are_the_packages_bit_for_bit(kind):
    for columns in widths(kind):
        data = random_rows(kind, ROWS, columns)
        expected = dequantised(kind, data).astype(np.float32, copy=False).view(np.uint32)
        for library in every_variant():
            got = np.zeros((ROWS, columns), dtype=np.float32)
            weights = as_weights(kind, data, columns)
            library.dequantise(ctypes.addressof(weights), 0, ROWS, got.ctypes.data, 0)
            assert np.array_equal(got.view(np.uint32), expected), library.variant
        if kind in PACKED:
            assert np.array_equal(unpack(kind, torch.from_numpy(data)).numpy().view(np.uint32), expected)


@pytest.mark.parametrize("kind", TYPES)
def test_products(kind):
    """Activations are rounded to 127 steps of the largest of 32, and those of Q8_0 on x86 to 16,384 or more: an output
    is off by at most half a step for each weight, and by float32's rounding."""
    rng = np.random.default_rng(1)
    for columns in widths(kind):
        data = random_rows(kind, ROWS, columns)
        w = dequantised(kind, data).astype(np.float64)
        order = rng.permutation(ROWS).astype(np.int32)
        bias = rng.standard_normal(ROWS).astype(np.float32)
        for positions in (1, 2, 3, 8, 131):
            x = rng.standard_normal((positions, columns)).astype(np.float32)
            step = np.zeros_like(x)
            if kind in PACKED:
                step = np.abs(x).reshape(positions, -1, 32).max(-1).repeat(32, 1) / 127
            rounding = 1e-5 * (np.abs(x) @ np.abs(w).T) + 1e-6
            exact = x.astype(np.float64) @ w.T
            for library in every_variant():
                y = multiply(library, as_weights(kind, data, columns), x, ROWS)
                arm = library.variant.startswith(("neon", "dotprod"))
                steps = 16384 / 127 if kind == "Q8_0" and not arm else 1
                bound = step / steps / 2 @ np.abs(w).T * 1.001 + rounding
                assert (np.abs(y - exact) <= bound).all(), (library.variant, columns, positions)
                more = {"order": order.ctypes.data, "bias": bias.ctypes.data}
                z = multiply(library, as_weights(kind, data, columns, **more), x, ROWS)
                np.testing.assert_allclose(z[:, order], y + bias[order], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_products_sideways(kind):
    """Weights (in, out), as GPT-2 stores them."""
    rng = np.random.default_rng(2)
    for inputs, outputs, positions in ((96, 200, 1), (96, 203, 3), (7, 3, 2), (13, 76, 7), (64, 2000, 4)):
        data = random_rows(kind, inputs, outputs)
        bias = rng.standard_normal(outputs).astype(np.float32)
        x = rng.standard_normal((positions, inputs)).astype(np.float32)
        expected = x.astype(np.float64) @ dequantised(kind, data) + bias
        for library in every_variant():
            weights = as_weights(kind, data, outputs, sideways=1, bias=bias.ctypes.data)
            np.testing.assert_allclose(multiply(library, weights, x, outputs), expected, rtol=1e-4, atol=1e-4)


def test_each_variant_is_its_own():
    """They round otherwise where sums are made in another order: none of them is another one by mistake."""
    rng = np.random.default_rng(4)
    data, x = random_rows("F32", ROWS, COLUMNS), rng.standard_normal((1, COLUMNS)).astype(np.float32)
    found = {
        library.variant: multiply(library, as_weights("F32", data, COLUMNS), x, ROWS) for library in every_variant()
    }
    assert len(found) > 1 and (len(found) == 5 or not X86 or "avx2" not in found)
    alike = [{"avx2", "avx512"}, {"neon", "dotprod"}]
    for (one, first), (other, second) in itertools.combinations(found.items(), 2):
        assert np.array_equal(first, second) == ({one, other} in alike), (one, other)


@pytest.mark.parametrize("kind", PACKED)
def test_whole_numbers_are_exact(kind):
    """Codes, offsets, minimums and their order: with scales of 1 and activations that are whole all sums are whole,
    so every variant gives the same bits, from rows at odd addresses too."""
    rng = np.random.default_rng(5)
    columns = widths(kind)[-1] - (32 if TYPES[kind][1] == 32 else 0)
    data = random_rows(kind, ROWS, columns)
    blocks = data.reshape(ROWS, -1, TYPES[kind][2])
    for at in HALVES.get(kind, (0,)):
        blocks[..., at : at + 2] = np.array([1], dtype=np.float16).view(np.uint8)
    if kind == "MXFP4":
        blocks[..., 0] = 128
    stride = data.shape[1] + 3
    memory = np.zeros(1 + ROWS * stride, dtype=np.uint8)
    shifted = np.lib.stride_tricks.as_strided(memory[1:], data.shape, (stride, 1))
    shifted[:] = data
    for positions in (1, 2, 3, 8, 35):
        x = rng.integers(-3, 4, (positions, columns)).astype(np.float32)
        x.reshape(positions, -1, 32)[..., rng.integers(32)] = 127 * rng.choice([-1, 1], (positions, columns // 32))
        exact = x.astype(np.float64) @ dequantised(kind, data).astype(np.float64).T
        assert np.abs(exact).max() < 2**23 and (exact == exact.round()).all()
        for library in every_variant():
            y = multiply(library, as_weights(kind, shifted, columns), x, ROWS)
            assert np.array_equal(y, exact), (library.variant, positions)


def test_every_half_number():
    """All that 16 bits can be, as weights and as a block's scale: as numpy has them, or no number."""
    halves = np.arange(2**16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        expected = halves.view(np.float16).astype(np.float32)
        wide = (halves.astype(np.uint32) << 16).view(np.float32)
    blocks = np.ones((2**16, 34), dtype=np.uint8)
    blocks[:, :2] = halves[:, None].view(np.uint8)
    for library in every_variant():
        for kind, data, columns, numbers in (
            ("F16", halves.view(np.uint8).reshape(16, -1), 4096, expected),
            ("BF16", halves.view(np.uint8).reshape(16, -1), 4096, wide),
            ("Q8_0", blocks.reshape(16, -1), 2**17, expected.repeat(32)),
        ):
            got, weights = np.zeros((16, columns), dtype=np.float32), as_weights(kind, data, columns)
            library.dequantise(ctypes.addressof(weights), 0, 16, got.ctypes.data, 0)
            same = got.ravel().view(np.uint32) == numbers.view(np.uint32)
            assert (same | np.isnan(numbers) & np.isnan(got.ravel())).all(), (library.variant, kind)


# how much larger the weighted error of what the library packs may be than that of torch's operations: sums are rounded
# otherwise, and of two scales that are nearly as good the other one is taken
MORE = {"Q2_K": 1e-4, "Q3_K": 1e-3, "Q4_K": 1e-3, "Q5_K": 1e-3, "Q6_K": 1e-3}


@pytest.mark.parametrize("kind", packing.PARTS)
def test_the_library_packs_as_torch_does(kind, monkeypatch):
    """Bit for bit, where nothing is searched for; else with the same error."""
    rows = torch.randn(64, 1024, generator=torch.Generator().manual_seed(3)) * 0.02
    rows[3], rows[5, 40], rows[6], rows[7], rows[8] = 0, 3.0, rows[6].abs(), -rows[7].abs(), rows[8] * 1e5
    rows[9], rows[10], rows[11, ::2], rows[12], rows[13] = rows[9] * 1e-6, 0.5, 0, rows[12] * 1e-12, rows[13] ** 3
    monkeypatch.setattr(packing, "library", lambda: None)
    by_torch = packing.pack(kind, rows)

    size = rows.unflatten(1, (-1, 32)).abs()
    w = size + size.square().mean(-1, keepdim=True).sqrt() if kind in ("Q4_K", "Q5_K") else size.square()

    def error(packed: torch.Tensor) -> float:
        """Beside what the numbers of each row weigh."""
        off = (unpack(kind, packed) - rows).unflatten(1, (-1, 32))
        errors, all_of_it = (off * size).abs() if kind == "Q2_K" else off.square() * w, size.square() * w
        return float((errors.double().sum((1, 2)) / all_of_it.double().sum((1, 2)).clamp(min=1e-30)).sum())

    for library in every_variant():
        monkeypatch.setattr(packing, "library", lambda library=library: library)
        packed = packing.pack(kind, rows)
        assert error(packed) <= error(by_torch) * (1 + MORE.get(kind, 0)), library.variant
        assert kind in MORE or torch.equal(packed, by_torch), library.variant
        assert torch.equal(packing.pack(kind, rows.T[:256].T.half()), packing.pack(kind, rows[:, :256].half().float()))


@pytest.mark.parametrize("kind", packing.PARTS)
def test_what_cannot_be_packed_is_refused(kind, monkeypatch):
    """In any row and place, by every variant as by torch; the largest and smallest numbers that can be are not."""
    for library in itertools.chain([None], every_variant()):
        monkeypatch.setattr(packing, "library", lambda library=library: library)
        for wrong in (np.nan, np.inf, -np.inf, 1e30, -(2.0**23) - 1):
            for row, column in ((0, 0), (2, 31), (1, 255)):
                rows = torch.ones(3, 256)
                rows[row, column] = wrong
                with pytest.raises(GencliError, match=f"NaN, infinite or too large for {kind}"):
                    packing.pack(kind, rows)
        if kind not in ("Q3_K", "Q6_K"):  # whose scales reach so far, or nearly
            with pytest.raises(GencliError, match="too large for"):
                packing.pack(kind, torch.linspace(-(2.0**23), 2.0**23, 512).view(256, 2).T)
        assert packing.pack(kind, torch.full((1, 256), 1e-44)).shape == (1, 256 // TYPES[kind][1] * TYPES[kind][2])
        assert packing.pack(kind, torch.zeros(0, 256)).shape[0] == 0


def test_what_is_no_number_stays_none():
    data = random_rows("Q4_K", 4, 256)
    x = np.zeros((3, 256), dtype=np.float32)
    x[0, 40], x[1, 3], x[2, 9] = np.nan, np.inf, 1e-42
    for library in every_variant():
        y = multiply(library, as_weights("Q4_K", data, 256), x, 4)
        assert np.isnan(y[:2]).all() and (np.abs(y[2]) < 1e-30).all()


def test_a_packed_tensor_is_a_tensor(monkeypatch):
    """Any operation works on its values; few are done without unpacking; none changes it."""
    data = torch.from_numpy(random_rows("Q4_K", 6, 512))
    values = torch.from_numpy(dequantised("Q4_K", data.numpy()))
    one, order = Packed("Q4_K", data), torch.tensor([3, 0, 1, 5, 4, 2])
    assert one.shape == (6, 512) and one.dtype == torch.float32 and "Q4_K" in repr(one)
    assert torch.equal(one + 0, values) and torch.equal(one.t() + 0, values.T) and isinstance(one.t(), Packed)
    turned = one.ordered(order).transposed()
    assert turned.shape == (512, 6) and torch.equal(turned + 0, values[order].T)
    assert torch.equal(one.ordered(order).rows(torch.tensor([[1, 2]])), values[order][None, 1:3])
    assert torch.equal(torch.cat(list(one.parts(600))), values)
    parameter = torch.nn.Parameter(one.ordered(order), requires_grad=False)
    assert isinstance(parameter, Packed) and torch.equal(parameter * 1, values[order])
    with pytest.raises(TypeError, match="would change a packed matrix"):
        one.add_(1)
    multiply = product(one.ordered(order), None)
    x = torch.randn(2, 512, generator=torch.Generator().manual_seed(0))
    exact = x @ values[order].T
    assert (multiply(x) - exact).norm() < 0.01 * exact.norm()


def test_weights_that_are_let_go_are_not_unpacked():
    """A model of several stages lets each go by moving it to `meta`: seconds, for a text encoder of 4 B weights."""
    for size in (256, 8192):  # at the first one torch imports what it needs
        layer = torch.nn.Linear(size, size, bias=False, device="meta")
        bits = torch.zeros(size, size // 32 * 34, dtype=torch.uint8)
        layer.weight = torch.nn.Parameter(Packed("Q8_0", bits), requires_grad=False)
        began = time.process_time()
        layer.to("meta")
        took = time.process_time() - began
    assert took < 0.05 and layer.weight.is_meta and layer.weight.shape == (8192, 8192)


@pytest.mark.slow
def test_hostile_bytes_under_the_sanitizers():
    """Random bytes as blocks, at any address and of any size that a file may have, and as layers of any shape: read
    within bounds, by every variant, without undefined behaviour. `python -m tests.oracles.fuzz_kernels 100000` runs
    more of them."""
    done = fuzz_kernels.under_sanitizers(1200, seed=0, capture_output=True)
    assert done.returncode == 0 and int(done.stdout.split()[0]) >= 1200, done.stderr[-3000:]
