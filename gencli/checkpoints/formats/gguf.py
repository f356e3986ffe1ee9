"""GGUF language models: metadata → config.json's keys, tensors → the checkpoint's own names and order of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gencli.checkpoints.checkpoint import Checkpoint, Contents, Hints, Part
from gencli.checkpoints.formats.renaming import rename
from gencli.checkpoints.gguf_file import metadata_get
from gencli.checkpoints.tensors import Piece, RenamedTensors, TensorFile
from gencli.errors import GencliError
from gencli.models import ARCHITECTURES
from gencli.models.base import Rename

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.tokens import Tokenizer

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
TRANSPOSED = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")  # GPT-2's layers hold (in, out)
LAYERS = {"llama": "model.layers", "qwen2": "model.layers", "qwen3": "model.layers", "gpt2": "transformer.h"}
SEEN = {"vocab_size", "rope.dimension_count", "attention.value_length", "tensor_data_layout"}  # told by other keys
NOTHING = {"expert_count": 0, "expert_used_count": 0, "rope.scaling.type": "none"}  # accepted at these values
LINEAR = ("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned")


class GgufTensors(RenamedTensors):
    """A file's tensors under the names, in the shapes and in the order of rows that the checkpoint had."""

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype as safetensors writes it, or GGUF's name of its type. llama.cpp keeps the norms of
        files in BF16 in float32: there they count as BF16."""
        kinds = {self._file.dtypes[name] for name, shape in self._file.shapes.items() if len(shape) > 1}
        return "BF16" if kinds == {"BF16"} else super().dtype(name)

    def get(self, name: str) -> Tensor:
        """Return a tensor on the CPU, in the file's own memory."""
        from gencli.kernels.packed import Packed

        piece = self._pieces[name]
        tensor = self._file.get(piece.source)
        if not isinstance(tensor, Packed) or piece.transform is None:
            return self._changed(piece, tensor)
        if piece.transform is turned:
            return tensor.transposed()
        import torch

        return tensor.ordered(piece.transform(torch.arange(len(tensor))))


def turned(tensor: Tensor) -> Tensor:
    """(out, in) → (in, out), in the same memory."""
    return tensor.T if tensor.ndim == 2 else tensor


def is_gguf(contents: Contents) -> bool:
    """Return whether this is a GGUF file, or a folder with one and no config.json."""
    return contents.path.suffix == ".gguf" if contents.is_file else any(contents.folder.glob("*.gguf"))


def read_gguf(contents: Contents, hints: Hints) -> Checkpoint:
    """Read a language model as config.json would have it. What is broken or not supported is told by the problem, or
    by its part: another architecture or quantisation, and keys that change the numbers."""
    try:
        path = contents.path if contents.is_file else _only_file(contents.folder)
        file = contents.open_file(path)
    except GencliError as error:
        return Checkpoint(contents, "other", problem=error)
    family, licence = str(file.metadata.get("general.architecture")), file.metadata.get("general.license")
    stored = dict.fromkeys(file.shapes, file)
    part = Part(
        "",
        "model",
        path,
        lambda: _read_config(file),
        lambda: GgufTensors(file, _pieces(file, part.config)),
        lambda: stored,
    )
    return Checkpoint(
        contents,
        "text" if family in ARCHITECTURES else "other",
        family,
        {"": part},
        {"tokenizer": partial(_tokenizer, file)},
        licence=licence if isinstance(licence, str) else None,
    )


def _only_file(folder: Path) -> Path:
    files = sorted(folder.glob("*.gguf"))
    if len(files) > 1:
        some = ", ".join(file.name for file in files[:5])
        raise GencliError(f"{folder} has {len(files)} GGUF files ({some})", "name the one that you want")
    return files[0]


def _tokenizer(file: TensorFile) -> Tokenizer:
    from gencli.tokens.gguf import gguf_tokenizer

    return gguf_tokenizer(file.path, file.metadata)


def _pieces(file: TensorFile, config: Mapping[str, Any]) -> dict[str, Piece]:
    """Tensors by the checkpoint's names. Raises GencliError for one that no row knows, and for rows that do not fit."""
    architecture, heads = config["model_type"], config.get("num_attention_heads", 1)
    counts = {"attn_q": heads, "attn_k": config.get("num_key_value_heads", heads)} if architecture == "llama" else {}
    rows = list[Rename]()
    for old, new in (GPT2_NAMES if architecture == "gpt2" else LLAMA_NAMES).items():
        transform = turned if new in TRANSPOSED else _halves(counts[old]) if old in counts else None
        rows.append(Rename(rf"{old}\.(weight|bias)", rf"{new}.\1", transform))
        rows.append(Rename(rf"blk\.(\d+)\.{old}\.(weight|bias)", rf"{LAYERS[architecture]}.\1.{new}.\2", transform))
    shapes = {name: shape for name, shape in file.shapes.items() if name != "rope_freqs.weight"}
    pieces, unknown = rename(shapes, rows)
    if unknown:
        what = f"is not one of a {architecture} that gencli knows"
        raise GencliError(f"{file.path}: tensor {unknown[0][:80]!r} {what}")
    for name, shape in shapes.items():
        count = next((count for old, count in counts.items() if f".{old}." in name), None)
        if count is not None and shape[0] % (2 * count):
            raise GencliError(f"{file.path}: {name} has {shape[0]} rows for {count} heads")
    return pieces


def _halves(heads: int) -> Callable[[Tensor], Tensor]:
    """llama.cpp rotates pairs of neighbours, the checkpoint pairs of halves: (heads, D/2, 2) → (heads, 2, D/2)."""
    return lambda tensor: tensor.reshape(heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _read_config(file: TensorFile) -> dict[str, Any]:
    try:
        return _config(file)
    except GencliError as error:
        if error.message.startswith(str(file.path)):
            raise
        raise GencliError(f"{file.path}: {error.message}", error.hint) from None


def _config(file: TensorFile) -> dict[str, Any]:
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
    if "token_embd.weight" not in file.shapes:
        raise GencliError("it has no token_embd.weight")
    config["vocab_size"] = file.shapes["token_embd.weight"][0]
    config["tie_word_embeddings"] = "output.weight" not in file.shapes
    if architecture != "gpt2":
        _complete(file, architecture, given, config)
    return config


def _complete(file: TensorFile, architecture: str, given: Mapping[str, Any], config: dict[str, Any]) -> None:
    """What a file of the Llama line says by its shapes, its tensors' names and its rope keys."""
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    for key in ("attention.value_length", "rope.dimension_count"):
        heads = config["num_attention_heads"]
        size = config.get("head_dim") or (config["hidden_size"] // heads if isinstance(heads, int) and heads else 0)
        if key in given and given[key] != size:
            raise GencliError(f"{architecture}.{key} = {given[key]!r:.40} with heads of {size} is not supported")
    if architecture == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in file.shapes
        config["mlp_bias"] = "blk.0.ffn_up.bias" in file.shapes
    scaling = given.get("rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise GencliError(f"{architecture}.rope.scaling.type = {scaling!r:.40} is not supported")
    if scaling == "linear":
        factor = metadata_get(given, "rope.scaling.factor", (int, float), 1.0)
        config["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    if "rope_freqs.weight" in file.shapes:
        if scaling != "none":
            raise GencliError("rope_freqs.weight beside another rope scaling is not supported")
        config["rope_scaling"] = _llama3(file, float(config.get("rope_theta", 10000.0)))


def _llama3(file: TensorFile, theta: float) -> dict[str, Any]:
    """Llama 3's stretched frequencies, which the file holds as a divisor of each: recognised, or refused."""
    import torch

    divisors = file.get("rope_freqs.weight").double().reshape(-1)
    count, factor = len(divisors), float(divisors.max()) if len(divisors) else 0.0
    rope = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    turns = 8192 / (2 * torch.pi * theta ** (torch.arange(count, dtype=torch.float64) / count))  # in 8192 positions
    smooth = ((turns - 1.0) / (4.0 - 1.0)).clamp(0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if not count or not torch.allclose(divisors, expected, rtol=1e-4):
        raise GencliError("rope_freqs.weight is not Llama 3's, and is not supported")
    return {"rope_type": "llama3", **rope}
