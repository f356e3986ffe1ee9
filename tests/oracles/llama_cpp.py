"""llama.cpp, by the wheel xllamacpp: what it makes of a GGUF file, and its quantisers."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from gencli.kernels import TYPES
from tests.oracles.libraries import xllamacpp


def opened(file: Path):
    """A server in this process. Raises RuntimeError for a file that it cannot open."""
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.verbosity = str(file), 256, 1, False, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(params)


def greedy(server, prompt: list[int] | str, count: int, *, banned: Iterable[int] = ()) -> tuple[list[int], list[float]]:
    """The tokens after a prompt, and the logarithms of their probabilities. banned: tokens that are never picked; it
    does not tell those that are no whole characters."""
    asked = {"prompt": prompt, "temperature": 0, "top_k": 1, "ignore_eos": True, "cache_prompt": False, "logprobs": 1}
    asked["logit_bias"] = [[token, False] for token in banned]
    done = server.handle_completions({**asked, "max_tokens": count})
    rows = done["choices"][0]["logprobs"]["content"]
    return [row["id"] for row in rows], [row["logprob"] for row in rows]


def count(server, text: str) -> int:
    """The tokens of a text."""
    return server.handle_completions({"prompt": text, "max_tokens": 1, "cache_prompt": False})["usage"]["prompt_tokens"]


def quantised(kind: str, rows: np.ndarray) -> np.ndarray:
    """Rows of float32 as its own quantiser packs them, (R, bytes)."""
    number, block, size = TYPES[kind]
    folder = Path(xllamacpp.xllamacpp.__file__).parent
    quantise = ctypes.CDLL(str(next(folder.glob("xllamacpp*.so")))).ggml_quantize_chunk
    wide, pointer = ctypes.c_int64, ctypes.c_void_p
    quantise.argtypes = (ctypes.c_int, pointer, pointer, wide, wide, wide, pointer)
    packed = np.zeros((len(rows), rows.shape[1] // block * size), dtype=np.uint8)
    quantise(number, rows.ctypes.data, packed.ctypes.data, 0, len(rows), rows.shape[1], None)
    return packed
