"""Speed of language models beside llama.cpp, same files, in turn: `python -m benchmarks.decode [FILE.gguf ...]`.

Without files: GPT-2 124M and Llama 1.1B in true shapes with random weights, four layers of Qwen3-30B-A3B, three of gpt-
oss-20b, seven of Gemma 4 E4B and four of Qwen3.5-4B, in the usual mixes of types, written in a folder that stays.
llama.cpp is the wheel `xllamacpp`, which may lie in another environment (--python). Each round runs `gencli bench text`
and a server of llama.cpp, one after the other; the table has medians and the median of the rounds' ratios. Take it on a
quiet machine. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import gguf

SHAPES = {
    "gpt2": {"block_count": 12, "embedding_length": 768, "feed_forward_length": 3072, "head_count": 12, "vocab": 50257},
    "llama": {
        "block_count": 22,
        "embedding_length": 2048,
        "feed_forward_length": 5632,
        "head_count": 32,
        "vocab": 32000,
    },
    "qwen3moe": {
        "block_count": 4,
        "embedding_length": 2048,
        "feed_forward_length": 768,  # of an expert
        "head_count": 32,
        "vocab": 32000,
    },
    "gpt-oss": {
        "block_count": 3,
        "embedding_length": 2880,
        "feed_forward_length": 2880,  # of an expert
        "head_count": 64,
        "vocab": 32000,
    },
    "gemma4": {
        "block_count": 7,
        "embedding_length": 2560,
        "feed_forward_length": 10240,
        "head_count": 8,
        "vocab": 32000,
    },
}
SHAPES["qwen35"] = {**SHAPES["gemma4"], "block_count": 4, "feed_forward_length": 9216, "head_count": 16}
SLIDES, SHARED = (True, True, True, False, True, True, False), 3  # Gemma 4's layers; those that share keys and values
MIXTURES = {"qwen3moe": (128, 8, 128, 4), "gpt-oss": (32, 4, 64, 8)}  # experts, chosen, size of a head, key/value heads
FILES = [("gpt2", mix) for mix in ("f32", "bf16", "q8_0", "q4_0", "q4_k_m")]
FILES += [("llama", mix) for mix in ("bf16", "q8_0", "q4_0", "q4_k_m")]
FILES += [("qwen3moe", mix) for mix in ("q8_0", "q4_k_m")] + [("gpt-oss", "q8_0")]
FILES += [("gemma4", mix) for mix in ("bf16", "q8_0", "q4_k_m")]
FILES += [("qwen35", mix) for mix in ("bf16", "q8_0", "q4_k_m")]
TIED = ("gpt2", "gemma4", "qwen35")  # the head is the embedding
LLAMA = """
import concurrent.futures, json, sys, time
import xllamacpp
file, tokens, long, threads, streams = sys.argv[1], *map(int, sys.argv[2:])
start = time.perf_counter()
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.verbosity = file, 8192, streams, False, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(params)
opened = time.perf_counter() - start
def one(ids, new):
    return server.handle_completions({"prompt": ids, "temperature": 0, "top_k": 1, "ignore_eos": True,
                                      "cache_prompt": False, "max_tokens": new})
def run(ids, new, times=1):
    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(times) as pool:
        list(pool.map(one, [ids] * times, [new] * times))
    return time.perf_counter() - start
ids = [(7 * i + 3) % 1000 for i in range(long)]
run(ids[:8], 4)
first = run(ids[:8], 1)
prompt = run(ids, 1)
decode = run(ids[:8], tokens + 1) - first
first = run(ids[:8], 1, streams)
together = run(ids[:8], tokens + 1, streams) - first
print(json.dumps({"open": opened, "prompt": long / prompt, "decode": tokens / decode,
                  "streams": streams * tokens / together}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--python", default=sys.executable, help="of an environment with xllamacpp")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--streams", type=int, default=8, help="texts at once")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "gencli-decode")
    parser.add_argument("--only", default="", help="files of true shapes with this in their names")
    args = parser.parse_args()
    made = [which for which in FILES if args.only in "-".join(which)]
    files = args.files or [random_file(args.folder, *which) for which in made]
    print(f"{args.rounds} rounds, {args.threads} threads, load {os.getloadavg()[0]:.1f}; gencli | llama.cpp | ratio")
    for file in files:
        rounds = [(gencli(file, args), llama(file, args)) for _ in range(args.rounds)]
        size, memory, share = file.stat().st_size, middle(rounds, "memory"), middle(rounds, "share")
        print(f"{file.name}: {size / 2**20:.0f} MiB, {memory / 2**20:.0f} MiB in memory, {share:.0%} of the bandwidth")
        for what, unit in (("decode", "tokens/s"), ("prompt", "tokens/s"), ("streams", "tokens/s"), ("open", "s")):
            ratio = statistics.median(ours[what] / theirs[what] for ours, theirs in rounds)
            theirs = statistics.median(theirs[what] for _, theirs in rounds)
            print(f"  {what:7} {middle(rounds, what):8.2f} | {theirs:8.2f} {unit} | {ratio:.2f}", flush=True)


Round = tuple[dict[str, float], dict[str, float]]


def middle(rounds: Sequence[Round], what: str) -> float:
    """The median of what gencli measured."""
    return statistics.median(ours[what] for ours, _ in rounds)


def gencli(file: Path, args: argparse.Namespace) -> dict[str, float]:
    """What `gencli bench text` says of a file."""
    words = ["-p", args.prompt, "-n", args.tokens, "--batch", 1, "--batch", args.streams, "--threads", args.threads]
    told = output(sys.executable, "-m", "gencli", "bench", "text", "-m", file, *words, "--rounds", 1, "--json")
    one, many = map(json.loads, told.splitlines())
    taken = {"prompt": one["prompt_rate"], "decode": one["decode_rate"], "share": one["bandwidth_share"]}
    middles = {what: found["median"] for what, found in {**taken, "streams": many["decode_rate"]}.items()}
    return {**middles, "open": one["load_seconds"], "memory": one["peak_memory"]}


def llama(file: Path, args: argparse.Namespace) -> dict[str, float]:
    """What llama.cpp says of it."""
    return json.loads(output(args.python, "-c", LLAMA, file, args.tokens, args.prompt, args.threads, args.streams))


def output(*words: object) -> str:
    """What a process writes."""
    done = subprocess.run(list(map(str, words)), cwd=Path(__file__).parents[1], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{words[0]}: {done.stderr[-2000:]}")
    return done.stdout.strip()


Matrix, Vector = Callable[[str, int, int], None], Callable[[str, int, float], None]


def add_gemma4(writer: gguf.GGUFWriter, matrix: Matrix, vector: Vector, words: int) -> None:
    """What Gemma 4 E4B has beside its layers: keys, and what layers get of their own."""
    import numpy as np

    layers, hidden = SHAPES["gemma4"]["block_count"], SHAPES["gemma4"]["embedding_length"]
    writer.add_sliding_window(512)
    writer.add_sliding_window_pattern(list(SLIDES))
    writer.add_shared_kv_layers(SHARED)
    writer.add_embedding_length_per_layer_input(256)
    writer.add_final_logit_softcapping(30.0)
    for key in ("key_length", "value_length", "rope_dimension_count"):
        getattr(writer, f"add_{key}")(512)
        getattr(writer, f"add_{key}_swa")(256)
    writer.add_rope_freq_base(1e6)
    writer.add_rope_freq_base_swa(1e4)
    writer.add_tensor("rope_freqs.weight", np.array([1.0] * 64 + [1e30] * 192, dtype=np.float32))
    matrix("per_layer_token_embd.weight", words, layers * 256)
    matrix("per_layer_model_proj.weight", layers * 256, hidden)
    vector("per_layer_proj_norm.weight", 256, 1.0)


def gemma4_layer(writer: gguf.GGUFWriter, vector: Vector, layer: int) -> dict[str, tuple[int, int]]:
    """Add the norms of a layer that others do not have. Returns the shapes of its matrices."""
    shape = SHAPES["gemma4"]
    hidden, inner, head = shape["embedding_length"], shape["feed_forward_length"], 256 if SLIDES[layer] else 512
    keys = ("attn_k", "attn_v") if layer < shape["block_count"] - SHARED else ()
    for name in ("post_attention_norm", "post_ffw_norm", "post_norm"):
        vector(f"blk.{layer}.{name}.weight", hidden, 1.0)
    for name in ("attn_q_norm", *(["attn_k_norm"] if keys else ())):
        vector(f"blk.{layer}.{name}.weight", head, 1.0)
    vector(f"blk.{layer}.layer_output_scale.weight", 1, 1.0)
    return {"attn_q": (shape["head_count"] * head, hidden), **dict.fromkeys(keys, (2 * head, hidden)),
            "attn_output": (hidden, shape["head_count"] * head), "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden),
            "ffn_down": (hidden, inner), "inp_gate": (256, hidden), "proj": (hidden, 256)}  # fmt: skip


def add_qwen35(writer: gguf.GGUFWriter) -> None:
    """What Qwen 3.5 4B says beside the common keys."""
    writer.add_key_length(256)
    writer.add_value_length(256)
    writer.add_rope_dimension_count(64)
    writer.add_rope_dimension_sections([11, 11, 10, 0])
    writer.add_rope_freq_base(1e7)
    writer.add_full_attention_interval(4)
    writer.add_ssm_conv_kernel(4)
    writer.add_ssm_state_size(128)
    writer.add_ssm_group_count(16)
    writer.add_ssm_time_step_rank(32)
    writer.add_ssm_inner_size(4096)


def qwen35_layer(writer: gguf.GGUFWriter, vector: Vector, layer: int) -> dict[str, tuple[int, int]]:
    """Add what a layer has beside matrices: three of four have a state. Returns the shapes of its matrices."""
    import numpy as np

    hidden, inner = SHAPES["qwen35"]["embedding_length"], SHAPES["qwen35"]["feed_forward_length"]
    network = {"ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner)}
    if layer % 4 == 3:
        vector(f"blk.{layer}.attn_q_norm.weight", 256, 1.0)
        vector(f"blk.{layer}.attn_k_norm.weight", 256, 1.0)
        return {"attn_q": (8192, hidden), "attn_k": (1024, hidden), "attn_v": (1024, hidden),
                "attn_output": (hidden, 4096), **network}  # fmt: skip
    for name, count, value in (("ssm_dt.bias", 32, 1.0), ("ssm_a", 32, -0.1), ("ssm_norm.weight", 128, 1.0)):
        vector(f"blk.{layer}.{name}", count, value)
    writer.add_tensor(f"blk.{layer}.ssm_conv1d.weight", np.full((8192, 4), 0.25, dtype=np.float32))
    return {"attn_qkv": (8192, hidden), "attn_gate": (4096, hidden), "ssm_alpha": (32, hidden),
            "ssm_beta": (32, hidden), "ssm_out": (hidden, 4096), **network}  # fmt: skip


def random_file(folder: Path, name: str, mix: str) -> Path:
    """A GGUF file in true shape with random weights, written once."""
    import gguf
    import numpy as np
    import torch

    from gencli.checkpoints.mixes import kind_of
    from gencli.kernels.pack import pack

    file = folder / f"{name}-{mix}.gguf"
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

    def matrix(tensor: str, rows: int, columns: int, experts: int = 0) -> None:
        groups = 1 if name == "gpt2" else heads // 4
        sizes = (experts, rows, columns) if experts else (rows, columns)
        kind = kind_of(mix, tensor, sizes, shape["block_count"], groups, tied=name in TIED)
        if name == "gpt-oss" and experts:
            kind, some = "MXFP4", rng.integers(0, 256, (256, columns // 32, 17), dtype=np.uint8)
            some[..., 0] = 120  # the scale
            some = some.reshape(256, -1)
        else:
            some = pack(kind, torch.from_numpy((rng.standard_normal((256, columns)) * 0.02).astype(np.float32))).numpy()
        some = np.tile(some, (-(-rows // 256), 1))[:rows]
        writer.add_tensor(
            tensor, np.tile(some, (experts, 1, 1)) if experts else some, raw_dtype=gguf.GGMLQuantizationType[kind]
        )

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
        writer.add_head_count_kv(MIXTURES[name][3] if name in MIXTURES else 2 if name == "gemma4" else 4)
        if name not in TIED:
            matrix("output.weight", len(pieces) + 1, hidden)
        kv = hidden // heads * 4
        parts = {"attn_q": (hidden, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden),
                 "attn_output": (hidden, hidden), "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden),
                 "ffn_down": (hidden, inner)}  # fmt: skip
    if name in MIXTURES:
        experts, chosen, head, keys = MIXTURES[name]
        writer.add_key_length(head)
        writer.add_value_length(head)
        writer.add_expert_count(experts)
        writer.add_expert_used_count(chosen)
        writer.add_expert_feed_forward_length(inner)
        parts = {"attn_q": (heads * head, hidden), "attn_k": (keys * head, hidden), "attn_v": (keys * head, hidden),
                 "attn_output": (hidden, heads * head), "ffn_gate_exps": (inner, hidden, experts),
                 "ffn_up_exps": (inner, hidden, experts), "ffn_down_exps": (hidden, inner, experts)}  # fmt: skip
    if name == "gpt-oss":
        writer.add_sliding_window(128)
        writer.add_rope_freq_base(150000.0)
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(32.0)
        writer.add_rope_scaling_orig_ctx_len(4096)
    if name == "gemma4":
        add_gemma4(writer, matrix, vector, len(pieces) + 1)
    if name == "qwen35":
        add_qwen35(writer)
    for layer in range(shape["block_count"]):
        if name == "gemma4":
            parts = gemma4_layer(writer, vector, layer)
        if name == "qwen35":
            parts = qwen35_layer(writer, vector, layer)
        for ending in norms:
            vector(f"blk.{layer}.attn_norm.{ending}", hidden, float(ending == "weight"))
            before = "post_attention_norm" if name in ("gpt-oss", "qwen35") else "ffn_norm"
            vector(f"blk.{layer}.{before}.{ending}", hidden, float(ending == "weight"))
        if name == "qwen3moe":
            vector(f"blk.{layer}.attn_q_norm.weight", head, 1.0)
            vector(f"blk.{layer}.attn_k_norm.weight", head, 1.0)
        if name in MIXTURES:
            router = rng.standard_normal((experts, hidden)).astype(np.float32)
            writer.add_tensor(f"blk.{layer}.ffn_gate_inp.weight", router)
        if name == "gpt-oss":
            vector(f"blk.{layer}.attn_sinks.weight", heads, 0.0)
            vector(f"blk.{layer}.ffn_gate_inp.bias", experts, 0.0)
        for part, size in parts.items():
            matrix(f"blk.{layer}.{part}.weight", *size)
            if name == "gpt-oss" and part.endswith("_exps"):
                writer.add_tensor(f"blk.{layer}.{part}.bias", np.zeros((experts, size[0]), dtype=np.float32))
            elif name in ("gpt2", "gpt-oss"):
                vector(f"blk.{layer}.{part}.bias", size[0], 0.0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    made.rename(file)
    return file


if __name__ == "__main__":
    main()
