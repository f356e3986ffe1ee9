"""GGUF language models: metadata → config.json's keys, tensors → the checkpoint's own names and order of rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gencli.checkpoints.gguf_file import GgufFile, metadata_get
from gencli.checkpoints.tensors import Tensors
from gencli.errors import GencliError

# general.architecture → what of it differs; Mistral, SmolLM 2 and TinyLlama are written as llama.
LLAMA_NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
GPT2_NAMES = {
    "token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f",
    "output": "lm_head", "attn_norm": "ln_1", "ffn_norm": "ln_2", "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj",
}  # fmt: skip
LLAMA_KEYS = {
    "context_length": "max_position_embeddings", "embedding_length": "hidden_size", "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim", "rope.freq_base": "rope_theta",
}  # fmt: skip
GPT2_KEYS = {
    "context_length": "n_positions", "embedding_length": "n_embd", "block_count": "n_layer",
    "feed_forward_length": "n_inner", "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}  # fmt: skip
LAYERS = {"llama": "model.layers", "qwen2": "model.layers", "qwen3": "model.layers", "gpt2": "transformer.h"}
SEEN = {"vocab_size", "rope.dimension_count", "attention.value_length", "tensor_data_layout"}  # told by other keys
NOTHING = {"expert_count": 0, "expert_used_count": 0, "rope.scaling.type": "none"}  # accepted at these values
LINEAR = ("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned")


class GgufTensors(Tensors):
    """A file's tensors under the names and in the shapes and orientation that the checkpoint had."""

    def __init__(self, file: GgufFile, architecture: str, heads: tuple[int, int]):
        self.files = [file.path]
        self.file, self.architecture, self.heads = file, architecture, heads
        self._sources = {_name(file, architecture, name): name for name in file.tensors if name != "rope_freqs.weight"}
        self._where = dict.fromkeys(self._sources, file)  # type: ignore[arg-type]
        kinds = {stored.kind for stored in file.tensors.values() if len(stored.shape) > 1}
        self.half = kinds == {"BF16"}  # llama.cpp keeps the norms of such files in float32

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self.file.tensors[self._sources[name]].shape
        return shape[::-1] if self._transposed(name) else shape

    def dtype(self, name: str) -> str:
        kind = self.file.tensors[self._sources[name]].kind
        return "BF16" if self.half else "F32" if kind == "Q8_0" else kind

    def get(self, name: str) -> torch.Tensor:
        tensor = self.file.read(self._sources[name])
        if self.half:
            tensor = tensor.to(torch.bfloat16)
        if self._transposed(name):
            return tensor.T.contiguous()
        found = re.search(r"self_attn\.([qk])_proj\.", name)
        if self.architecture != "llama" or found is None:
            return tensor
        # llama.cpp turns pairs of neighbours, the checkpoint pairs of halves: (heads, D/2, 2) → (heads, 2, D/2)
        heads = self.heads[found[1] == "k"]
        if tensor.shape[0] % (2 * heads):
            raise GencliError(f"{self.file.path}: {self._sources[name]} has {tensor.shape[0]} rows for {heads} heads")
        return tensor.reshape(heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)

    def _transposed(self, name: str) -> bool:
        return self.architecture == "gpt2" and bool(re.search(r"\.c_(attn|proj|fc)\.weight$", name))


def _name(file: GgufFile, architecture: str, name: str) -> str:
    names = GPT2_NAMES if architecture == "gpt2" else LLAMA_NAMES
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if found is None or found[2] not in names:
        raise GencliError(f"{file.path}: tensor {name[:80]!r} is not one of a {architecture} that gencli knows")
    layer = f"{LAYERS[architecture]}.{found[1]}." if found[1] else ""
    return f"{layer}{names[found[2]]}.{found[3]}"


def open_gguf(path: Path) -> tuple[dict[str, Any], GgufTensors, GgufFile]:
    """A GGUF language model as config.json would have it, its tensors, and the file for its tokenizer.

    Raises GencliError for a broken file, another architecture or quantisation, and keys that change the numbers.
    """
    file = GgufFile(path)
    try:
        config = _config(file)
        heads = config.get("num_attention_heads", 1)
        kv = config.get("num_key_value_heads", heads)
        return config, GgufTensors(file, config["model_type"], (heads, kv)), file
    except GencliError as error:
        if error.message.startswith(str(path)):
            raise
        raise GencliError(f"{path}: {error.message}", error.hint) from None


def _config(file: GgufFile) -> dict[str, Any]:
    architecture = file.metadata.get("general.architecture")
    if architecture not in LAYERS:
        known = ", ".join(LAYERS)
        raise GencliError(f"general.architecture = {architecture!r:.60} is not supported", f"gencli reads {known}")
    start = f"{architecture}."
    given = {key.removeprefix(start): value for key, value in file.metadata.items() if key.startswith(start)}
    names = GPT2_KEYS if architecture == "gpt2" else LLAMA_KEYS
    config: dict[str, Any] = {"model_type": architecture}
    unknown = []
    for key, value in given.items():
        if key in names:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise GencliError(f"{start}{key} = {str(value)[:60]} is no number")
            config[names[key]] = value
        elif key not in SEEN and (key not in NOTHING or value != NOTHING[key]) and key not in LINEAR:
            unknown.append(f"{start}{key} = {str(value)[:40]}")
    if unknown:
        raise GencliError(
            f"not supported: {', '.join(sorted(unknown)[:6])}",
            "these keys may change the numbers, so gencli does not guess",
        )
    if lost := [key for key in ("embedding_length", "block_count", "attention.head_count") if key not in given]:
        raise GencliError(f"the metadata lacks {', '.join(start + key for key in lost)}")
    if "token_embd.weight" not in file.tensors:
        raise GencliError("it has no token_embd.weight")
    config["vocab_size"] = file.tensors["token_embd.weight"].shape[0]
    config["tie_word_embeddings"] = "output.weight" not in file.tensors
    if architecture != "gpt2":
        _complete(file, architecture, given, config)
    return config


def _complete(file: GgufFile, architecture: str, given: Mapping[str, Any], config: dict[str, Any]) -> None:
    """What a file of the Llama line says by its shapes, its tensors' names and its rope keys."""
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    for key in ("attention.value_length", "rope.dimension_count"):
        heads = config["num_attention_heads"]
        size = config.get("head_dim") or (config["hidden_size"] // heads if isinstance(heads, int) and heads else 0)
        if key in given and given[key] != size:
            raise GencliError(f"{architecture}.{key} = {given[key]!r:.40} with heads of {size} is not supported")
    if architecture == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
        config["mlp_bias"] = "blk.0.ffn_up.bias" in file.tensors
    scaling = given.get("rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise GencliError(f"{architecture}.rope.scaling.type = {scaling!r:.40} is not supported")
    if scaling == "linear":
        factor = metadata_get(given, "rope.scaling.factor", (int, float), 1.0)
        config["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    if "rope_freqs.weight" in file.tensors:
        if scaling != "none":
            raise GencliError("rope_freqs.weight beside another rope scaling is not supported")
        config["rope_scaling"] = _llama3(file, float(config.get("rope_theta", 10000.0)))


def _llama3(file: GgufFile, theta: float) -> dict[str, Any]:
    """Llama 3's stretched frequencies, which the file holds as a divisor of each: recognised, or refused."""
    divisors = file.read("rope_freqs.weight").double().reshape(-1)
    count, factor = len(divisors), float(divisors.max()) if len(divisors) else 0.0
    rope = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    turns = 8192 / (2 * torch.pi * theta ** (torch.arange(count, dtype=torch.float64) / count))  # in 8192 positions
    smooth = ((turns - 1.0) / (4.0 - 1.0)).clamp(0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if not count or not torch.allclose(divisors, expected, rtol=1e-4):
        raise GencliError("rope_freqs.weight is not Llama 3's, and is not supported")
    return {"rope_type": "llama3", **rope}
