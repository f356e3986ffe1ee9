"""What GGUF calls the tensors and keys of each architecture, and what they become: one row each. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gencli.checkpoints.formats import gguf_complete, gguf_gemma4, gguf_qwen35
from gencli.checkpoints.formats.gguf_complete import Complete, Given
from gencli.checkpoints.formats.gguf_tables import (
    BETA,
    CAPS,
    EXPERT_KEYS,
    EXPERTS,
    GEMMA_NAMES,
    GLM4_NAMES,
    GPT2_KEYS,
    GPT2_NAMES,
    GPT_OSS_KEYS,
    GPT_OSS_NAMES,
    KEYS,
    KV_HEADS,
    LAYER_NORM_KEYS,
    LFM2_KEYS,
    LFM2_NAMES,
    MULTIPLIERS,
    NAMES,
    NOTHING,
    OLMO2_NAMES,
    PATTERN,
    PHI2_NAMES,
    PHI3_NAMES,
    QWEN2_MOE_KEYS,
    QWEN3_EXPERT_KEYS,
    QWEN35_MOE_KEYS,
    QWEN35_NAMES,
    REALS,
    SCALING,
    SEEN,
    STARCODER2_NAMES,
    WINDOW,
)
from gencli.checkpoints.gguf_file import metadata_get
from gencli.checkpoints.tensors import TensorFile
from gencli.errors import GencliError
from gencli.models import ARCHITECTURES

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.models.decoder_config import DecoderConfig


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

    def is_transposed(self, new: str) -> bool:
        """Return whether a layer of the checkpoint holds (in, out), as GPT-2's do."""
        return self.layers == "transformer.h" and new in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")

    def adds_one(self, old: str) -> bool:
        """Return whether a tensor is the weight of a norm that is stored with one added."""
        return self.one_more and old.endswith("norm") and old != "ssm_norm"


# general.architecture → Family; Mistral, Mixtral, SmolLM 2 and TinyLlama are written as llama
FAMILIES = {
    "llama": Family({**NAMES, **EXPERTS}, {**KEYS, **EXPERT_KEYS}, neighbours=True, complete=gguf_complete.llama),
    "qwen2": Family(NAMES, KEYS),
    "qwen3": Family(NAMES, KEYS),
    "qwen3moe": Family(
        {**NAMES, **EXPERTS},
        {**KEYS, **QWEN3_EXPERT_KEYS},
        model_type="qwen3_moe",
        complete=gguf_complete.qwen3_experts,
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
    "gpt-oss": Family(
        GPT_OSS_NAMES, {**KEYS, **GPT_OSS_KEYS, **WINDOW}, model_type="gpt_oss", complete=gguf_complete.gpt_oss
    ),
    "gpt2": Family(GPT2_NAMES, GPT2_KEYS, "transformer.h"),
    "gemma2": Family(GEMMA_NAMES, {**KEYS, **CAPS, **WINDOW}, one_more=True, complete=gguf_complete.gemma(46)),
    "gemma3": Family(
        GEMMA_NAMES,
        {**KEYS, **CAPS, **WINDOW},
        model_type="gemma3_text",
        one_more=True,
        complete=gguf_complete.gemma(62),
    ),
    "gemma4": Family(
        {**GEMMA_NAMES, **gguf_gemma4.NAMES},
        gguf_gemma4.KEYS,
        model_type="gemma4_text",
        complete=gguf_gemma4.complete,
        whole=gguf_gemma4.WHOLE,
        by_layer=gguf_gemma4.BY_LAYER,
    ),
    "phi3": Family(PHI3_NAMES, {**KEYS, **WINDOW}, complete=gguf_complete.phi3),
    "olmo2": Family(
        OLMO2_NAMES,
        {**KEYS, **WINDOW},
        complete=gguf_complete.olmo2,
        own=frozenset({PATTERN}),
        said=gguf_complete.olmo3_said,
    ),
    "mistral3": Family(
        NAMES,
        {**KEYS, **BETA},
        model_type="ministral3",
        neighbours=True,
        complete=gguf_complete.mistral3,
        said=gguf_complete.yarn_said,
    ),
    "phi2": Family(PHI2_NAMES, LAYER_NORM_KEYS, model_type="phi", complete=gguf_complete.part),
    "starcoder2": Family(STARCODER2_NAMES, LAYER_NORM_KEYS, complete=gguf_complete.starcoder2),
    "cohere2": Family(
        {name: new for name, new in NAMES.items() if name != "ffn_norm"},
        {**LAYER_NORM_KEYS, **WINDOW, "logit_scale": "logit_scale"},
        complete=gguf_complete.cohere2,
    ),
    "qwen2moe": Family(
        {**NAMES, **EXPERTS, **gguf_qwen35.SHARED},
        QWEN2_MOE_KEYS,
        model_type="qwen2_moe",
        complete=gguf_complete.qwen2_experts,
        read={"ffn_gate_inp_shexp": gguf_qwen35.READ["ffn_gate_inp_shexp"]},
    ),
    "lfm2": Family(
        LFM2_NAMES,
        LFM2_KEYS,
        complete=gguf_complete.lfm2,
        read={"shortconv.conv": gguf_complete.with_row},
        own=frozenset({KV_HEADS}),
        said=gguf_complete.lfm2_said,
    ),
    "glm4": Family(GLM4_NAMES, KEYS, complete=gguf_complete.glm4),
    "granite": Family(NAMES, {**KEYS, **MULTIPLIERS}, neighbours=True, complete=gguf_complete.biased),
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


def _check_heads(name: str, given: Given, config: dict[str, object]) -> None:
    """Raises GencliError for heads of which only a part is rotated, but in Phi 3, or whose values have another size."""
    size = config.get("head_dim") or gguf_complete.head_size(config)
    for key in (
        ("attention.value_length",)
        if name in ("phi3", "qwen35", "qwen35moe", "glm4", "phi2")
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
