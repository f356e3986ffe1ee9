"""What GGUF calls the tensors and keys of each architecture, and what they become: one row each. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from gencli.checkpoints.formats import gguf_gemma4, gguf_qwen35
from gencli.checkpoints.gguf_file import metadata_get
from gencli.checkpoints.tensors import TensorFile
from gencli.errors import GencliError
from gencli.models import ARCHITECTURES

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.models.decoder_config import DecoderConfig
    from gencli.models.lfm2 import Lfm2Config

NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
EXPERTS = {  # of a layer: those that end in _exps hold all of them, (experts, out, in)
    "ffn_gate_inp": "mlp.gate", "ffn_gate_exps": "mlp.experts.gate_proj", "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}  # fmt: skip
AFTER_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
GEMMA_NAMES = {**NAMES, **AFTER_NORMS, "ffn_norm": "pre_feedforward_layernorm"}
OLMO2_NAMES = {name: new for name, new in NAMES.items() if name not in ("attn_norm", "ffn_norm")} | AFTER_NORMS
QWEN35_NAMES = {name: new for name, new in NAMES.items() if name != "ffn_norm"} | gguf_qwen35.NAMES
GPT_OSS_NAMES = {
    **NAMES, **EXPERTS, "attn_sinks": "self_attn.sinks", "post_attention_norm": "post_attention_layernorm",
}  # fmt: skip
del GPT_OSS_NAMES["ffn_norm"]
GLM4_NAMES = {
    **NAMES, "post_attention_norm": "post_self_attn_layernorm", "post_ffw_norm": "post_mlp_layernorm",
    "ffn_up": "mlp.gate_up_proj",
}  # fmt: skip
LFM2_NAMES = {
    **NAMES, "token_embd_norm": "model.norm", "attn_norm": "operator_norm", "ffn_norm": "ffn_norm",
    "shortconv.in_proj": "conv.in_proj", "shortconv.conv": "conv.conv", "shortconv.out_proj": "conv.out_proj",
}  # fmt: skip
del LFM2_NAMES["output_norm"]
PHI3_NAMES = {**NAMES, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
GPT2_NAMES = {
    "token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f",
    "output": "lm_head", "attn_norm": "ln_1", "ffn_norm": "ln_2", "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj",
}  # fmt: skip
KEYS = {
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
EXPERT_KEYS = {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}
QWEN3_EXPERT_KEYS = {
    **EXPERT_KEYS, "expert_count": "num_experts", "expert_feed_forward_length": "moe_intermediate_size",
}  # fmt: skip
QWEN35_MOE_KEYS = {key: own for key, own in KEYS.items() if key != "feed_forward_length"} | {
    **gguf_qwen35.KEYS,
    **gguf_qwen35.SHARED_KEYS,
}
GPT_OSS_KEYS = {**EXPERT_KEYS, "expert_feed_forward_length": "intermediate_size"}
CAPS = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
WINDOW = {"attention.sliding_window": "sliding_window"}
MULTIPLIERS = {
    "embedding_scale": "embedding_multiplier", "attention.scale": "attention_multiplier",
    "residual_scale": "residual_multiplier", "logit_scale": "logits_scaling",
}  # fmt: skip
BETA = {"attention.temperature_scale": "llama_4_scaling_beta"}
KV_HEADS = "attention.head_count_kv"
LFM2_KEYS = {key: own for key, own in KEYS.items() if key != KV_HEADS} | {"shortconv.l_cache": "conv_L_cache"}
PATTERN = "attention.sliding_window_pattern"
REALS = {  # all other keys are whole numbers
    "rms_norm_eps", "layer_norm_epsilon", "rope_theta", *CAPS.values(), *MULTIPLIERS.values(), *BETA.values(),
}  # fmt: skip
SEEN = {  # told by other keys, or by none that counts
    "vocab_size", "rope.dimension_count", "rope.dimension_sections", "attention.value_length", "tensor_data_layout",
    "feed_forward_length", gguf_qwen35.INNER, gguf_qwen35.AHEAD,
}  # fmt: skip
NOTHING = {"expert_count": 0, "expert_used_count": 0, "rope.scaling.type": "none"}  # accepted at these values
SCALING = (
    "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned",
    "rope.scaling.attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_log_multiplier",
)  # fmt: skip
ROPE = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")  # tensors that are settings

Given = Mapping[str, object]  # the architecture's keys without its name
Complete = Callable[[TensorFile, Given, dict[str, object]], None]


def _llama(file: TensorFile, given: Given, config: dict[str, object]) -> None:
    """With experts it is Mixtral."""
    if "num_local_experts" in config:
        config["model_type"] = "mixtral"
        return
    _biased(file, given, config)


def _biased(file: TensorFile, given: Given, config: dict[str, object]) -> None:
    config["attention_bias"] = "blk.0.attn_q.bias" in file.shapes
    config["mlp_bias"] = "blk.0.ffn_up.bias" in file.shapes


def _olmo2(file: TensorFile, given: Given, config: dict[str, object]) -> None:
    """With windows it is OLMo 3, whose layers have them that a list says; YaRN's factor of attention is told."""
    if "sliding_window" not in config:
        return
    slides = given.get(PATTERN)
    if not isinstance(slides, list) or not all(isinstance(one, bool) for one in slides):
        raise GencliError(f"olmo2.{PATTERN} = {str(slides)[:40]} is no list that says of each layer whether it has one")
    config["model_type"] = "olmo3"
    config["layer_types"] = ["sliding_attention" if one else "full_attention" for one in slides]


def _olmo3_said(config: DecoderConfig) -> dict[str, object]:
    """Return the list of windowed layers, of a model that has them."""
    windows = [bool(config.window(layer)) for layer in range(config.num_hidden_layers)]
    return {PATTERN: windows} if any(windows) else {}


def _yarn_said(config: DecoderConfig) -> dict[str, object]:
    """Return what else is said of YaRN: how the factor of cos and sin follows from that of lengths."""
    rope = config.rope_parameters
    said = {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
    if rope.mscale == 1:
        said["log_multiplier"] = rope.mscale_all_dim
    is_yarn = rope.rope_type == "yarn"
    return {f"rope.scaling.yarn_{key}": float(value) for key, value in said.items() if is_yarn and value is not None}


def _qwen3_experts(file: TensorFile, given: Given, config: dict[str, object]) -> None:
    config["norm_topk_prob"] = True  # as llama.cpp has it


def _gpt_oss(file: TensorFile, given: Given, config: dict[str, object]) -> None:
    config["attention_bias"] = "blk.0.attn_q.bias" in file.shapes
    config.setdefault("rope_scaling", {"rope_type": "default"})  # which a config that says nothing does not mean


def _part(file: TensorFile, given: Given, config: dict[str, object]) -> None:
    """A part of each head is rotated."""
    config["attention_bias"] = "blk.0.attn_q.bias" in file.shapes
    size = metadata_get(config, "head_dim", int, 0) or _head_size(config)
    config["partial_rotary_factor"] = metadata_get(given, "rope.dimension_count", int, size) / max(size, 1)


def _lfm2(file: TensorFile, given: Given, config: dict[str, object]) -> None:
    """Layers without heads of keys are convolutions. The width of the feed-forward networks is told as it is."""
    heads = given.get(KV_HEADS)
    counts = set(heads) - {0} if isinstance(heads, list) and all(type(one) is int for one in heads) else set()
    if not isinstance(heads, list) or len(counts) != 1:
        raise GencliError(f"lfm2.{KV_HEADS} = {str(heads)[:40]} does not say which layers have how many heads")
    config["num_key_value_heads"] = counts.pop()
    config["layer_types"] = ["full_attention" if one else "conv" for one in heads]
    config["block_auto_adjust_ff_dim"] = False
    config["conv_bias"] = any(name.endswith("shortconv.conv.bias") for name in file.shapes)


def _lfm2_said(config: DecoderConfig) -> dict[str, object]:
    """Return the heads of keys of each layer."""
    kinds = cast("Lfm2Config", config).types
    return {KV_HEADS: [config.kv_heads if kind == "full_attention" else 0 for kind in kinds]}


def _with_row(tensor: Tensor) -> Tensor:
    """(C, W) → (C, 1, W), as a convolution's weight is."""
    return tensor.unsqueeze(1)


def _mistral3(file: TensorFile, given: Given, config: dict[str, object]) -> None:
    config.setdefault("head_dim", _head_size(config))
    config.setdefault("rope_scaling", {"rope_type": "default", "rope_theta": config.get("rope_theta")})


def _gemma(large: int) -> Complete:
    """GGUF lacks the scale of queries: of the models of `large` layers it is that of heads C / H wide."""

    def complete(file: TensorFile, given: Given, config: dict[str, object]) -> None:
        size = _head_size(config)
        config["query_pre_attn_scalar"] = size if config["num_hidden_layers"] == large else config.get("head_dim", size)
        if config["model_type"] == "gemma3_text":
            config["attn_logit_softcapping"] = None

    return complete


def _phi3(file: TensorFile, given: Given, config: dict[str, object]) -> None:
    """A part of each head may be rotated, by LongRoPE; a window of 0 is none."""
    head = _head_size(config)
    rotated = metadata_get(given, "rope.dimension_count", int, head)
    config["partial_rotary_factor"] = rotated / head if head else 1.0
    config["sliding_window"] = config.get("sliding_window") or None
    config["original_max_position_embeddings"] = metadata_get(
        given, "rope.scaling.original_context_length", int, config.get("max_position_embeddings")
    )
    if ROPE[1] in file.shapes and ROPE[2] in file.shapes:
        long, short = (list(file.numbers(name) or ()) for name in ROPE[1:])
        scaling: dict[str, object] = {"type": "longrope", "long_factor": long, "short_factor": short}
        if (factor := metadata_get(given, "rope.scaling.attn_factor", (int, float))) is not None:
            scaling["attention_factor"] = factor
        config["rope_scaling"] = scaling


@dataclass(frozen=True)
class Family:
    """names: of tensors, without `blk.N.` and the ending → in the checkpoint. keys → config.json's. layers: where they
    lie in the checkpoint. model_type: config.json's, if it is another. neighbours: whether the rows of q and k are in
    the order that rotates pairs of neighbours. one_more: whether the weights of norms are stored with one added.
    whole: tensors of layers, with their ending, whose names end otherwise in the checkpoint. by_layer: keys that have
    values for each kind of layer, and that `complete` reads, with all that is said of heads and rotations. read: what
    changes tensors of layers as they are read. own: other keys that `complete` reads. said: config → keys that
    are no other name of a config's.
    """

    names: Mapping[str, str]
    keys: Mapping[str, str]
    layers: str = "model.layers"
    model_type: str = ""
    neighbours: bool = False
    one_more: bool = False
    complete: Complete | None = None
    whole: Mapping[str, str] = field(default_factory=dict)
    by_layer: frozenset[str] = frozenset()
    read: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    own: frozenset[str] = frozenset()
    said: Callable[[DecoderConfig], Mapping[str, object]] = lambda config: {}

    def adds_one(self, old: str) -> bool:
        """Return whether a tensor is the weight of a norm that is stored with one added."""
        return self.one_more and old.endswith("norm") and old != "ssm_norm"


# general.architecture → Family; Mistral, Mixtral, SmolLM 2 and TinyLlama are written as llama
FAMILIES = {
    "llama": Family({**NAMES, **EXPERTS}, {**KEYS, **EXPERT_KEYS}, neighbours=True, complete=_llama),
    "qwen2": Family(NAMES, KEYS),
    "qwen3": Family(NAMES, KEYS),
    "qwen3moe": Family(
        {**NAMES, **EXPERTS}, {**KEYS, **QWEN3_EXPERT_KEYS}, model_type="qwen3_moe", complete=_qwen3_experts
    ),
    "qwen35": Family(
        QWEN35_NAMES,
        {**KEYS, **gguf_qwen35.KEYS},
        model_type="qwen3_5_text",
        one_more=True,
        complete=gguf_qwen35.complete,
        whole=gguf_qwen35.WHOLE,
        read=gguf_qwen35.READ,
    ),
    "qwen35moe": Family(
        {**QWEN35_NAMES, **EXPERTS, **gguf_qwen35.SHARED},
        {**QWEN35_MOE_KEYS, **QWEN3_EXPERT_KEYS},
        model_type="qwen3_5_moe_text",
        one_more=True,
        complete=gguf_qwen35.complete,
        whole=gguf_qwen35.WHOLE,
        read=gguf_qwen35.READ,
    ),
    "gpt-oss": Family(GPT_OSS_NAMES, {**KEYS, **GPT_OSS_KEYS, **WINDOW}, model_type="gpt_oss", complete=_gpt_oss),
    "gpt2": Family(GPT2_NAMES, GPT2_KEYS, "transformer.h"),
    "gemma2": Family(GEMMA_NAMES, {**KEYS, **CAPS, **WINDOW}, one_more=True, complete=_gemma(46)),
    "gemma3": Family(
        GEMMA_NAMES, {**KEYS, **CAPS, **WINDOW}, model_type="gemma3_text", one_more=True, complete=_gemma(62)
    ),
    "gemma4": Family(
        {**GEMMA_NAMES, **gguf_gemma4.NAMES},
        gguf_gemma4.KEYS,
        model_type="gemma4_text",
        complete=gguf_gemma4.complete,
        whole=gguf_gemma4.WHOLE,
        by_layer=gguf_gemma4.BY_LAYER,
    ),
    "phi3": Family(PHI3_NAMES, {**KEYS, **WINDOW}, complete=_phi3),
    "olmo2": Family(OLMO2_NAMES, {**KEYS, **WINDOW}, complete=_olmo2, own=frozenset({PATTERN}), said=_olmo3_said),
    "mistral3": Family(
        NAMES, {**KEYS, **BETA}, model_type="ministral3", neighbours=True, complete=_mistral3, said=_yarn_said
    ),
    "lfm2": Family(
        LFM2_NAMES,
        LFM2_KEYS,
        complete=_lfm2,
        read={"shortconv.conv": _with_row},
        own=frozenset({KV_HEADS}),
        said=_lfm2_said,
    ),
    "glm4": Family(GLM4_NAMES, KEYS, complete=_part),
    "granite": Family(NAMES, {**KEYS, **MULTIPLIERS}, neighbours=True, complete=_biased),
    "smollm3": Family(NAMES, KEYS, neighbours=True),
}


def family_of(file: TensorFile) -> str:
    """Return the row of FAMILIES that a file names. Raise GencliError for another architecture."""
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in FAMILIES:
        raise GencliError(
            f"general.architecture = {name!r:.60} is not supported", f"gencli reads {', '.join(FAMILIES)}"
        )
    return name


def name_of(file: TensorFile) -> str:
    """Return what config.json would call a file's architecture. Raise GencliError as `family_of`."""
    name = family_of(file)
    if name == "llama" and file.metadata.get("llama.expert_count"):
        return "mixtral"
    if name == "olmo2" and "olmo2.attention.sliding_window" in file.metadata:
        return "olmo3"
    return name if name in ARCHITECTURES else FAMILIES[name].model_type


def read_config(file: TensorFile) -> dict[str, object]:
    """Return the values of config.json that a file's metadata, shapes and rope tensors say.

    Raises GencliError for keys that may change the numbers and are not known, and for impossible values.
    """
    name = family_of(file)
    family, start = FAMILIES[name], f"{name}."
    given = {key.removeprefix(start): value for key, value in file.metadata.items() if key.startswith(start)}
    config: dict[str, object] = {"model_type": family.model_type or name}
    unknown = []
    for key, value in given.items():
        if (key in NOTHING and value == NOTHING[key]) or (key in family.by_layer and key not in family.keys):
            continue
        if key in family.keys:
            config[family.keys[key]] = _number(start + key, value, whole=family.keys[key] not in REALS)
        elif key not in SEEN and key not in SCALING and key not in family.own:
            unknown.append(f"{start}{key} = {str(value)[:40]}")
    if unknown:
        raise GencliError(
            f"not supported: {', '.join(sorted(unknown)[:6])}",
            "these keys may change the numbers, so gencli does not guess",
        )
    needed = ["embedding_length", "block_count", "attention.head_count"]
    if name != "llama" or "num_local_experts" in config:  # a llama may have no experts
        needed += [key for key in family.keys if key.startswith(("expert_", "ssm.")) or key in MULTIPLIERS]
    if lost := [key for key in needed if key not in given]:
        raise GencliError(f"the metadata lacks {', '.join(start + key for key in lost)}")
    if "token_embd.weight" not in file.shapes:
        raise GencliError("it has no token_embd.weight")
    config["vocab_size"] = file.shapes["token_embd.weight"][0]
    config["tie_word_embeddings"] = "output.weight" not in file.shapes
    if name != "gpt2" and not family.by_layer:
        config.setdefault("num_key_value_heads", config["num_attention_heads"])
        _check_heads(name, given, config)
        _rope(file, name, given, config)
    if family.complete is not None:
        family.complete(file, given, config)
    return config


def _number(key: str, value: object, *, whole: bool) -> int | float:
    """A key's number. Raises GencliError for what is none, and for counts below one (a window of 0 is none)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise GencliError(f"{key} = {str(value)[:60]} is not a number")
    if whole and (not isinstance(value, int) or value < (0 if key.endswith("sliding_window") else 1)):
        raise GencliError(f"{key} = {str(value)[:60]} is out of range")
    return value


def _head_size(config: Mapping[str, object]) -> int:
    """The numbers of each head, by sizes that `read_config` has checked."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    assert isinstance(width, int) and isinstance(heads, int)
    return width // heads


def _check_heads(name: str, given: Given, config: dict[str, object]) -> None:
    """Raises GencliError for heads of which only a part is rotated, but in Phi 3, or whose values have another size."""
    size = config.get("head_dim") or _head_size(config)
    for key in (
        ("attention.value_length",)
        if name in ("phi3", "qwen35", "qwen35moe", "glm4")
        else ("attention.value_length", "rope.dimension_count")
    ):
        if key in given and given[key] != size:
            raise GencliError(f"{name}.{key} = {given[key]!r:.40} with heads of {size} is not supported")


def _rope(file: TensorFile, name: str, given: Given, config: dict[str, object]) -> None:
    """Linear scaling, YaRN, and Llama 3's. Phi 3 has its own."""
    scaling = given.get("rope.scaling.type", "none")
    if scaling not in ("none", "linear", "yarn") and not (name == "phi3" and scaling == "longrope"):
        raise GencliError(f"{name}.rope.scaling.type = {scaling!r:.40} is not supported")
    if scaling == "linear":
        factor = metadata_get(given, "rope.scaling.factor", (int, float), 1.0)
        config["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    if scaling == "yarn":
        config["rope_scaling"] = _yarn(name, given)
    if "rope_freqs.weight" in file.shapes:
        if scaling != "none":
            raise GencliError("rope_freqs.weight beside another rope scaling is not supported")
        theta = config.get("rope_theta", 10000.0)
        config["rope_scaling"] = _llama3(file, float(theta) if isinstance(theta, int | float) else 10000.0)


def _yarn(name: str, given: Given) -> dict[str, object]:
    """Return YaRN's scaling. gpt-oss was trained with a ramp between fractions of a pair, which no key says and which
    llama.cpp rounds. OLMo 3's files tell the factor of cos and sin. Raise GencliError for another one of attention."""
    attention = metadata_get(given, "rope.scaling.attn_factor", (int, float), 1.0)
    if attention != 1 and name != "olmo2":
        raise GencliError(f"{name}.rope.scaling.attn_factor = {attention!r:.40} with YaRN is not supported")
    factor = metadata_get(given, "rope.scaling.factor", (int, float), 1.0)
    original = metadata_get(given, "rope.scaling.original_context_length", int)
    kept: dict[str, object] = {} if original is None else {"original_max_position_embeddings": original}
    if attention != 1:
        kept["attention_factor"] = attention
    for key in ("beta_fast", "beta_slow"):
        if (value := metadata_get(given, f"rope.scaling.yarn_{key}", (int, float))) is not None:
            kept[key] = value
    if (multiplier := metadata_get(given, "rope.scaling.yarn_log_multiplier", (int, float), 0)) != 0:
        kept |= {"mscale": 1.0, "mscale_all_dim": multiplier}
    return {"rope_type": "yarn", "factor": factor, "truncate": name != "gpt-oss", **kept}


def _llama3(file: TensorFile, theta: float) -> dict[str, object]:
    """Return Llama 3's scaling, which the file holds as a divisor of each frequency. Raise GencliError for another."""
    divisors = file.numbers("rope_freqs.weight") or ()
    factor, count = max(divisors, default=0.0), len(divisors)
    rope = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    for i, divisor in enumerate(divisors):
        turns = 8192 / (2 * math.pi * theta ** (i / count))  # in 8192 positions
        smooth = min(max((turns - 1.0) / (4.0 - 1.0), 0.0), 1.0)
        if not (factor > 0 and math.isclose(divisor * ((1 - smooth) / factor + smooth), 1, rel_tol=1e-4)):
            count = 0
    if not count:
        raise GencliError("rope_freqs.weight is not Llama 3's, and is not supported")
    return {"rope_type": "llama3", **rope}
