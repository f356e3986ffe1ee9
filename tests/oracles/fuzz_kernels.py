"""Hostile bytes through the kernels and whole steps, compiled with the address and undefined-behaviour sanitizers:
every variant, those of other CPUs with their intrinsics in plain C.

`python -m tests.oracles.fuzz_kernels [INPUTS [SEED]]`: prints how many inputs ran, or ends with the sanitizer's report.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from gencli.kernels import PACKED, TYPES, Delta, Inputs, Layer, LayerInput, Library, Model, Norm, Place, Weights, build
from tests.oracles.variants import ELSEWHERE, NOT_INLINE, X86, compiled

# Null pointers are the address sanitizer's too, and sizes of objects are not known at -O0: a fifth of the compiling.
LESS = "-fno-sanitize=null,object-size"
FLAGS = (
    "-fsanitize=address,undefined", LESS, "-fno-sanitize-recover=all", "-O0", "-g1", NOT_INLINE, "-shared-libasan",
)  # fmt: skip
C = ctypes.CDLL(None)
C.malloc.restype, C.malloc.argtypes, C.free.argtypes = ctypes.c_void_p, (ctypes.c_size_t,), (ctypes.c_void_p,)


def memory(content: bytes) -> int:
    """A block of the C library's, which the sanitizer watches to the byte: what is read beyond it ends the process."""
    address = C.malloc(max(len(content), 1))
    ctypes.memmove(address, content, len(content))
    return address


def fuzz(library: Library, inputs: int, seed: int) -> int:
    """Multiply and dequantise random bytes, take steps with them, pack numbers. Returns how many inputs there were."""
    rng = np.random.default_rng(seed)
    for i in range(inputs):
        made: list[int] = []
        (one_step, one_matrix, one_packing, one_pick)[i % 4](library, rng, made)
        for address in made:
            C.free(address)
    return inputs


def kept(made: list[int], content: bytes) -> int:
    made.append(memory(content))
    return made[-1]


def numbers(rng: np.random.Generator, made: list[int], count: int) -> int:
    """Floats: NaN, infinite, and all others."""
    return kept(made, rng.integers(0, 2**32, count, dtype=np.uint32).tobytes())


def matrix(
    rng: np.random.Generator,
    made: list[int],
    outputs: int,
    inputs: int,
    *,
    sideways: bool = False,
    ordered: bool = True,
    kind: str = "",
) -> tuple[Weights, int]:
    """Random bytes as a matrix of a type that has rows of this size, or of this one, and the number of its rows."""
    names = [name for name, (_, block, _) in TYPES.items() if (outputs if sideways else inputs) % block == 0]
    names = [name for name in names if not sideways or name not in PACKED]
    kind = kind or names[rng.integers(len(names))]
    number, block, size = TYPES[kind]
    rows, columns = (inputs, outputs) if sideways else (outputs, inputs)
    shift = int(rng.integers(16)) if kind in PACKED else 0  # files pack rows at any address
    stride = columns // block * size
    data = kept(made, rng.integers(0, 256, shift + rows * stride, dtype=np.uint8).tobytes())
    ordered = ordered and not sideways and bool(rng.integers(2))
    order = kept(made, rng.permutation(rows).astype(np.int32).tobytes()) if ordered else None
    bias = kept(made, np.zeros(outputs, np.float32).tobytes()) if rng.integers(2) else None
    return Weights(data + shift, rows, columns, stride, order, bias, number, int(sideways)), rows


def one_matrix(library: Library, rng: np.random.Generator, made: list[int]) -> None:
    inputs = int(rng.choice([1, 3])) * int(rng.choice([1, 32, 256]))
    outputs, positions = int(rng.integers(1, 20)), int(rng.choice([1, 2, 3, 4, 7, 8, 9, 13, 130]))
    w, rows = matrix(rng, made, outputs, inputs, sideways=bool(rng.integers(4) == 0))
    x, y = numbers(rng, made, positions * inputs), kept(made, bytes(4 * positions * outputs))
    assert library.product(ctypes.addressof(w), x, positions, y, 0) == 0
    library.dequantise(ctypes.addressof(w), 0, rows, kept(made, bytes(4 * w.rows * w.columns)), 0)


@functools.cache
def packable() -> list[str]:
    """The types that can be packed, as the process says that started this one: asking the module itself imports torch,
    which takes five seconds under the sanitizers."""
    if told := os.environ.get("FUZZ_KINDS"):
        return told.split()
    from gencli.kernels.pack import PARTS

    return list(PARTS)


def one_packing(library: Library, rng: np.random.Generator, made: list[int]) -> None:
    """Numbers of all sizes, or of one; at times all the same, or with some that cannot be packed."""
    kind = rng.choice(packable())
    number, block, size = TYPES[kind]
    rows, columns, shift = int(rng.integers(0, 4)), block * int(rng.integers(1, 4)), int(rng.integers(16))
    bits = rng.integers(0, 2**32, (rows, columns), dtype=np.uint32)
    top = rng.choice([0, 2, 100, 127, 150, 255])  # of the exponents
    exponents = bits >> 23 & 255
    how = rng.integers(8)  # all exponents, those up to one, or one alone
    exponents = exponents if how == 0 else np.minimum(exponents, top) if how < 4 else np.full_like(exponents, top)
    bits = bits & 0x807FFFFF | exponents << 23
    if rng.integers(4) == 0:
        bits[:] = bits[:, :1]
    to = kept(made, bytes(shift + rows * columns // block * size)) + shift
    x = kept(made, bits.astype(np.uint32).tobytes())
    assert library.pack(number, x, rows, columns, to, columns // block * size, 0) in (0, 1)


def one_pick(library: Library, rng: np.random.Generator, made: list[int]) -> None:
    """A token of any floats, or of few that are alike, with numbers for parameters that are out of range too."""
    size = int(rng.choice([1, 2, 40, 3000]))
    bits = rng.integers(0, 2**32, size, dtype=np.uint32)
    floats = bits.view(np.float32) if rng.integers(2) else rng.choice([0, 1, -np.inf, 3e38], size).astype(np.float32)
    top_k = int(rng.choice([-1, 0, 1, 2, 40, 1024, 1025, 2**62]))
    odd = [0.0, 1.0, 0.5, -1.0, np.nan, np.inf, 1e-40]
    found = library.sample(kept(made, floats.tobytes()), size, top_k, *map(float, rng.choice(odd, 4)))
    assert -1 <= found < size


def norm(rng: np.random.Generator, made: list[int], group: int, flag: int = 1) -> Norm:
    """A norm of groups of this size; none without the flag."""
    if not flag:
        return Norm()
    bias = numbers(rng, made, group) if rng.integers(2) else None
    return Norm(numbers(rng, made, group), bias, group, int(rng.integers(2)), 1e-6)


def mixture(rng: np.random.Generator, made: list[int], keep: list[object], layer: Layer) -> int:
    """Give a layer experts. Returns how many numbers of memory they want for a row."""
    hidden, inner = layer.hidden, layer.inner
    layer.count, layer.normalised = int(rng.integers(1, 7)), int(rng.integers(2))
    layer.chosen = int(rng.integers(1, layer.count + 1))
    layer.router = ctypes.pointer(matrix(rng, made, layer.count, hidden)[0])
    kinds = [name for name, (_, block, _) in TYPES.items() if hidden % block == inner % block == 0]
    gates, downs = (kinds[rng.integers(len(kinds))] for _ in range(2))
    shapes = [(inner, hidden, gates), (inner, hidden, gates), (hidden, inner, downs)] * layer.count
    experts = [matrix(rng, made, *shape, ordered=False, kind=kind)[0] for *shape, kind in shapes]
    array = (ctypes.POINTER(Weights) * len(experts))(*map(ctypes.pointer, experts))
    keep.append(array)
    layer.activation, layer.experts = int(rng.integers(3)), ctypes.addressof(array)
    layer.before_router = norm(rng, made, hidden, rng.integers(2))
    layer.expert_scales = numbers(rng, made, layer.count) if rng.integers(2) else None
    return int(layer.count + layer.chosen * (2 * inner + hidden))


def beside(rng: np.random.Generator, made: list[int], keep: list[object], layer: Layer) -> int:
    """The same of experts beside the layer's network."""
    hidden = layer.hidden
    other = Layer(hidden=hidden, inner=int(rng.choice([32, 160])), alpha=1.7, limit=7)
    mixed = mixture(rng, made, keep, other)
    other.before_mlp, other.after_mlp = norm(rng, made, hidden), norm(rng, made, hidden, rng.integers(2))
    layer.after_network, layer.beside = norm(rng, made, hidden, rng.integers(2)), ctypes.addressof(other)
    keep.append(other)
    return int(hidden + mixed)


def with_state(rng: np.random.Generator, made: list[int], keep: list[object], layer: Layer) -> tuple[Layer, int, int]:
    """A layer like this one with gated DeltaNet in place of attention. Returns it, and how many numbers a text has in a
    window and a state."""
    key_heads, group, taps, hidden = *map(int, rng.integers(1, 4, 3)), layer.hidden
    key, value = int(rng.choice([4, 8, 12])), int(rng.choice([4, 12, 32, 72]))
    heads, width = key_heads * group, 2 * key_heads * key + key_heads * group * value
    z, b, a, qkv = (ctypes.pointer(matrix(rng, made, one, hidden)[0]) for one in (heads * value, heads, heads, width))
    delta = Delta(z, b, a, numbers(rng, made, taps * width), numbers(rng, made, heads), numbers(rng, made, heads),
                  norm(rng, made, value), heads, key_heads, key, value, taps, int(rng.integers(2)))  # fmt: skip
    keep.append(delta)
    other = Layer.from_buffer_copy(layer)
    other.qkv, other.delta = (ctypes.POINTER(Weights) * 3)(qkv), ctypes.pointer(delta)
    other.o = ctypes.pointer(matrix(rng, made, hidden, heads * value)[0])
    other.q_norm, other.k_norm = norm(rng, made, key), norm(rng, made, key)
    return other, (taps - 1) * width, heads * key * value


def inputs(rng: np.random.Generator, made: list[int], tokens: int, layers: list[Layer]) -> Inputs:
    """What layers have of their own, and what some of them do with it."""
    size, hidden = int(rng.choice([4, 32, 96])), layers[0].hidden
    for layer in layers:
        if rng.integers(4):
            gate, projection = (
                matrix(rng, made, *shape, ordered=False)[0] for shape in ((size, hidden), (hidden, size))
            )
            own = LayerInput(ctypes.pointer(gate), ctypes.pointer(projection), norm(rng, made, hidden, rng.integers(2)))
            layer.input = ctypes.pointer(own)
    embedding = matrix(rng, made, tokens, size * len(layers), ordered=False)[0]
    projection = matrix(rng, made, size * len(layers), hidden)[0]
    return Inputs(ctypes.pointer(embedding), ctypes.pointer(projection), norm(rng, made, size), size, 2.0, 0.5)


def one_step(library: Library, rng: np.random.Generator, made: list[int]) -> None:
    """A layer of any shape that a checkpoint may have, for new positions of several texts and of one; at times followed
    by one that reuses its keys and values, or by one with a state."""
    kv_heads, group, size = int(rng.integers(1, 3)), int(rng.integers(1, 3)), int(rng.choice([4, 6, 16, 32]))
    heads, hidden, inner = kv_heads * group, int(rng.choice([32, 64, 256])), int(rng.choice([32, 96, 256]))
    queries, keys, flags = heads * size, kv_heads * size, rng.integers(0, 2, 8).tolist()

    def pointer(outputs: int, inputs: int) -> Any:
        return ctypes.pointer(matrix(rng, made, outputs, inputs)[0])

    layer = Layer(heads=heads, kv_heads=kv_heads, head_size=size, rotated=2 * int(rng.integers(1, size // 2 + 1)),
                  hidden=hidden, inner=inner, window=int(rng.integers(0, 4)), activation=flags[0], gated=flags[1],
                  scale=0.5, softcap=30.0 * flags[2], alpha=1.7, limit=float(rng.choice([0, 7, np.inf])),
                  sinks=numbers(rng, made, heads) if flags[5] else None)  # fmt: skip
    layer.head_gates = int(not flags[3] and rng.integers(2))
    asked = 2 * queries if layer.head_gates else queries
    qkv = [queries + 2 * keys] if flags[3] else [asked, keys, keys][: int(rng.integers(2, 4))]
    up = [inner] if not flags[1] else [2 * inner] if flags[4] else [inner, inner]
    layer.qkv = (ctypes.POINTER(Weights) * 3)(*(pointer(one, hidden) for one in qkv))
    layer.gate_up = (ctypes.POINTER(Weights) * 2)(*(pointer(one, hidden) for one in up))
    layer.o, layer.down = pointer(hidden, queries), pointer(hidden, inner)
    keep: list[object] = []
    experts = (mixture, beside)[rng.integers(2)] if rng.integers(2) else None
    mixed = experts(rng, made, keep, layer) if experts else 0  # numbers of a row that they want
    layer.before_attention, layer.after_attention = norm(rng, made, hidden, flags[5]), norm(rng, made, hidden, flags[6])
    layer.before_mlp, layer.after_mlp = norm(rng, made, hidden), norm(rng, made, hidden, flags[7])
    layer.q_norm = layer.k_norm = norm(rng, made, size, flags[6])
    layer.v_norm = norm(rng, made, size, rng.integers(2))
    layer.output_scale = numbers(rng, made, 1) if rng.integers(2) else None
    if rng.integers(3) == 0:
        layer.share = pointer(1, hidden)
    layers, window, state, wide = [layer], 0, 0, 0
    follower = int(rng.integers(4))
    if follower == 0:
        layers.append(Layer.from_buffer_copy(layer))
        layers[1].reuses, layers[1].qkv = 1, (ctypes.POINTER(Weights) * 3)(pointer(asked, hidden))
    elif follower == 1:
        other, window, state = with_state(rng, made, keep, layer)
        layers.append(other)
        delta = other.delta.contents
        wide = 2 * (2 * delta.key_heads * delta.key + delta.heads * delta.value) + delta.heads * (delta.value + 2)
    texts, new, capacity = int(rng.integers(1, 10)), int(rng.integers(1, 4)), int(rng.integers(4, 9))
    lengths = kept(made, rng.integers(0, capacity - new + 1, texts).astype(np.int64).tobytes())
    caches = [numbers(rng, made, texts * kv_heads * capacity * size) for _ in range(2)]
    tables = [numbers(rng, made, capacity * layer.rotated) if flags[2] else None for _ in range(2)]
    seconds = [numbers(rng, made, texts * one) for one in (window, state)] if follower == 1 else caches
    pairs = zip((*caches, *tables), (*seconds, *tables), strict=True)
    arrays = [(ctypes.c_void_p * 2)(*pair) for pair in pairs]
    array = (ctypes.c_void_p * 2)(*map(ctypes.addressof, layers))
    model = Model(ctypes.addressof(array), len(layers), norm=norm(rng, made, hidden, flags[5]),
                  scale=1.5 * flags[6] or 1.0)  # fmt: skip
    tokens, outputs, last = int(rng.integers(1, 40)), int(rng.integers(1, 400)), int(rng.integers(2))
    within = True
    if rng.integers(2):
        model.embedding = ctypes.pointer(matrix(rng, made, tokens, hidden, ordered=False)[0])
        within = rng.integers(8) > 0
        if rng.integers(2):
            model.positions = ctypes.pointer(matrix(rng, made, capacity, hidden, ordered=False)[0])
    each = 0  # numbers of a row that a layer has of its own
    if rng.integers(2):
        model.inputs = ctypes.pointer(inputs(rng, made, tokens, layers))
        within, each = bool(rng.integers(8)), model.inputs.contents.size
    if rng.integers(2):
        model.head = pointer(outputs, hidden)
    ids = rng.integers(0, tokens, texts * new)
    ids[0] = ids[0] if within else rng.choice([-1, tokens, 2**62, -(2**63)])
    x = numbers(rng, made, texts * new * hidden)
    logits = kept(made, bytes(4 * texts * (1 if last else new) * outputs))
    own, size = len(layers) * each, hidden + max(queries + asked + 2 * keys, 2 * inner, mixed, each, wide)
    work = kept(made, bytes(4 * texts * new * (own + max(own, size))))
    place = Place(texts, new, capacity, last, window, state, kept(made, ids.astype(np.int64).tobytes()), lengths,
                  *map(ctypes.addressof, arrays), x, logits, work)  # fmt: skip
    assert library.step(ctypes.addressof(model), ctypes.addressof(place)) == (0 if within else 2)


def under_sanitizers(inputs: int, seed: int, **how: Any) -> subprocess.CompletedProcess[str]:
    """Compile, unless that is done, and run every variant in a process with the sanitizers' libraries loaded first.
    how: for its streams."""
    flags = [flag for flag in FLAGS if flag != "-shared-libasan" or "clang" in build.compiler()[0]]
    own = build.VARIANTS.get(platform.machine().lower(), {})
    file = compiled("sanitized", {**own, **ELSEWHERE} if X86 else own, flags=flags)
    ask = [[*build.compiler(), f"-print-file-name={name}"] for name in ("libasan.so", "libubsan.so")]
    asked = [subprocess.run(command, capture_output=True, text=True, check=True) for command in ask]
    environment = {
        "LD_PRELOAD": " ".join(one.stdout.strip() for one in asked), "FUZZ_LIBRARY": str(file),
        "FUZZ_KINDS": " ".join(packable()),
        "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.oracles.fuzz_kernels", str(inputs), str(seed)]
    return subprocess.run(command, env={**os.environ, **environment}, text=True, check=False, **how)


def main(inputs: int, seed: int) -> None:
    """Be that process, or start it."""
    if file := os.environ.get("FUZZ_LIBRARY"):
        names = Library(Path(file)).variants
        print(sum(fuzz(Library(Path(file), name), inputs // len(names) + 1, seed) for name in names), "inputs")
    else:
        sys.exit(under_sanitizers(inputs, seed).returncode)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
