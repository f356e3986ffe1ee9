"""Speed of language models beside llama.cpp, same files, in turn: `python -m benchmarks.decode [FILE.gguf ...]`.

Without files: GPT-2 124M and Llama 1.1B in true shapes with random weights, in F32 or BF16, Q8_0 and Q4_0, written in a
folder that stays. llama.cpp is the wheel `xllamacpp`, which may lie in another environment (--python). Each round runs
one process of each, one after the other; the table has medians and the median of the rounds' ratios. With --cpu it is
processor time, for a machine that others use too. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SHAPES = {
    "gpt2": {"block_count": 12, "embedding_length": 768, "feed_forward_length": 3072, "head_count": 12, "vocab": 50257},
    "llama": {
        "block_count": 22,
        "embedding_length": 2048,
        "feed_forward_length": 5632,
        "head_count": 32,
        "vocab": 32000,
    },
}
FILES = [("gpt2", "F32"), ("gpt2", "Q8_0"), ("gpt2", "Q4_0"), ("llama", "BF16"), ("llama", "Q8_0"), ("llama", "Q4_0")]
PROMPT = "Once upon a time there was a little girl who lived in a small house near the forest. "

GENCLI = """
import json, sys, time
from gencli import __main__ as entry
import os
os.environ.setdefault("GOMP_SPINCOUNT", entry.SPINS)
clock = time.process_time if sys.argv[5] == "cpu" else time.perf_counter
import torch
from gencli.checkpoints.find import find
from gencli.devices import peak_memory
from gencli.text.load import open_model
torch.set_num_threads(int(sys.argv[4]))
start = clock()
model = open_model(find(sys.argv[1]))
opened = clock() - start
tokens, long = int(sys.argv[2]), int(sys.argv[3])
ids = torch.tensor([[(7 * i + 3) % 1000 for i in range(long)]])
with torch.inference_mode():
    def run(count, new):
        cache = model.module.new_cache(1, count + new)
        start = clock()
        logits = model.module(ids[:, :count], cache, last_only=True)
        read = clock() - start
        start = clock()
        for _ in range(new):
            logits = model.module(logits[:, -1].argmax(-1, keepdim=True), cache, last_only=True)
        return read, clock() - start
    run(8, 4)
    prompt, _ = run(long, 0)
    _, decode = run(8, tokens)
print(json.dumps({"open": opened, "prompt": long / prompt, "decode": tokens / decode, "memory": peak_memory()}))
"""
LLAMA = """
import json, os, sys, time
import xllamacpp
clock = time.process_time if sys.argv[5] == "cpu" else time.perf_counter
start = clock()
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.verbosity = sys.argv[1], 1024, 1, False, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[4])
server = xllamacpp.Server(params)
opened = clock() - start
tokens, long = int(sys.argv[2]), int(sys.argv[3])
def run(ids, new):
    start = clock()
    server.handle_completions({"prompt": ids, "temperature": 0, "top_k": 1, "ignore_eos": True, "cache_prompt": False,
                               "max_tokens": new})
    return clock() - start
ids = [(7 * i + 3) % 1000 for i in range(long)]
run(ids[:8], 4)
one = run(ids[:8], 1)
prompt = run(ids, 1)
decode = run(ids[:8], tokens + 1) - one
print(json.dumps({"open": opened, "prompt": long / prompt, "decode": tokens / decode}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--python", default=sys.executable, help="of an environment with xllamacpp")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cpu", action="store_true", help="processor time, with one thread")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "gencli-decode")
    args = parser.parse_args()
    files = args.files or [random_file(args.folder, *which) for which in FILES]
    threads = 1 if args.cpu else args.threads
    print(f"{args.rounds} rounds, {threads} threads, load {os.getloadavg()[0]:.1f}; gencli | llama.cpp | ratio")
    for file in files:
        asked = [str(file), str(args.tokens), str(args.prompt), str(threads), "cpu" if args.cpu else "wall"]
        rounds = [(told(sys.executable, GENCLI, asked), told(args.python, LLAMA, asked)) for _ in range(args.rounds)]
        print(file.name)
        for what, unit in (("decode", "tokens/s"), ("prompt", "tokens/s"), ("open", "s")):
            ours, theirs = ([one[side][what] for one in rounds] for side in (0, 1))
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            print(f"  {what:7} {statistics.median(ours):8.2f} | {statistics.median(theirs):8.2f} {unit} | {ratio:.2f}")
        memory = statistics.median(one[0]["memory"] for one in rounds)
        print(f"  memory  {memory / 2**20:8.0f} MiB, file {file.stat().st_size / 2**20:.0f} MiB")


def told(python: str, program: str, args: list[str]) -> dict[str, Any]:
    """What a process says of a file."""
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": args[3]}
    done = subprocess.run([python, "-c", program, *args], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{python}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def random_file(folder: Path, name: str, kind: str) -> Path:
    """A GGUF file in true shape with random weights, written once."""
    import gguf
    import numpy as np

    file = folder / f"{name}-{kind}.gguf"
    if file.is_file():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    shape, rng = SHAPES[name], np.random.default_rng(0)
    hidden, inner, heads = shape["embedding_length"], shape["feed_forward_length"], shape["head_count"]
    made = file.with_suffix(".part")
    writer = gguf.GGUFWriter(made, name)
    writer.add_context_length(1024)
    writer.add_embedding_length(hidden)
    writer.add_block_count(shape["block_count"])
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_vocab_size(shape["vocab"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    alphabet = [chr(code) for code in [*range(33, 127), *range(161, 173), *range(174, 324)]]
    pieces = [*alphabet, *(f"{a}{b}" for a in alphabet for b in alphabet)][: shape["vocab"] - 1]
    writer.add_token_list([*pieces, "<|end|>"])
    writer.add_token_types([1] * len(pieces) + [3])
    writer.add_token_merges([f"{piece[0]} {piece[1]}" for piece in pieces if len(piece) == 2])
    writer.add_eos_token_id(len(pieces))

    def matrix(tensor: str, rows: int, columns: int) -> None:
        type_ = gguf.GGMLQuantizationType[kind]
        some = gguf.quants.quantize((rng.standard_normal((256, columns)) * 0.02).astype(np.float32), type_)
        writer.add_tensor(tensor, np.tile(some, (-(-rows // 256), 1))[:rows], raw_dtype=type_)

    def vector(tensor: str, count: int, value: float) -> None:
        writer.add_tensor(tensor, np.full(count, value, dtype=np.float32))

    norms = ("weight", "bias") if name == "gpt2" else ("weight",)
    matrix("token_embd.weight", len(pieces) + 1, hidden)
    for ending in norms:
        vector(f"output_norm.{ending}", hidden, float(ending == "weight"))
    if name == "gpt2":
        writer.add_layer_norm_eps(1e-5)
        writer.add_tensor("position_embd.weight", (rng.standard_normal((1024, hidden)) * 0.02).astype(np.float32))
        parts = {"attn_qkv": (3 * hidden, hidden), "attn_output": (hidden, hidden), "ffn_up": (inner, hidden),
                 "ffn_down": (hidden, inner)}  # fmt: skip
    else:
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_head_count_kv(4)
        matrix("output.weight", len(pieces) + 1, hidden)
        kv = hidden // heads * 4
        parts = {"attn_q": (hidden, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden),
                 "attn_output": (hidden, hidden), "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden),
                 "ffn_down": (hidden, inner)}  # fmt: skip
    for layer in range(shape["block_count"]):
        for ending in norms:
            vector(f"blk.{layer}.attn_norm.{ending}", hidden, float(ending == "weight"))
            vector(f"blk.{layer}.ffn_norm.{ending}", hidden, float(ending == "weight"))
        for part, size in parts.items():
            matrix(f"blk.{layer}.{part}.weight", *size)
            if name == "gpt2":
                vector(f"blk.{layer}.{part}.bias", size[0], 0.0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    made.rename(file)
    return file


if __name__ == "__main__":
    main()
