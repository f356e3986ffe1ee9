"""A language model as a GGUF file would hold it: its config → metadata, its parameters → tensors; the way back of
`gguf` and `gguf_families`. What comes back of it is compared with the model, so that nothing is lost unseen.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from gencli.checkpoints.formats import gguf_gemma4, gguf_qwen35
from gencli.checkpoints.formats.gguf import turned
from gencli.checkpoints.formats.gguf_families import FAMILIES, Family, read_config
from gencli.checkpoints.formats.gguf_tables import REALS
from gencli.checkpoints.gguf_write import Planned
from gencli.checkpoints.mixes import LAYER, MIXES, kind_in_network, kind_of
from gencli.errors import GencliError
from gencli.kernels.packed import FLOATS, Packed
from gencli.kernels.scaled import Scaled
from gencli.models import architecture
from gencli.models.rope import KINDS, Rope

# a file of gencli.models → general.architecture, if it is another
ALIKE = {"mistral": "llama", "mixtral": "llama", "qwen3_moe": "qwen3moe", "qwen3_5": "qwen35",
         "qwen3_5_moe": "qwen35moe", "gpt_oss": "gpt-oss", "olmo3": "olmo2", "qwen2_moe": "qwen2moe", "phi": "phi2",
         "ministral3": "mistral3"}  # fmt: skip
TRAINED = "MXFP4"  # what experts are trained in, and so lose by any other type: kept in every mix
# Fields of configs whose effect is compared in other words, or that have none here.
OTHERWISE = frozenset(
    """layer_types use_sliding_window max_window_layers no_rope_layer_interval sliding_window_pattern
    tie_word_embeddings original_max_position_embeddings full_attention_interval value_heads_in_turns
    full_attn_idxs""".split()
)


class Draft:
    """The file before it is written, as a `TensorFile`: tensors have their shapes there, and the model's numbers."""

    def __init__(self, path: Path, metadata: Mapping[str, object], tensors: Sequence[Planned]):
        self.path, self.metadata = path, metadata
        self.tensors = {tensor.name: tensor for tensor in tensors}
        self.shapes = {name: tensor.shape for name, tensor in self.tensors.items()}
        self.dtypes = {name: tensor.kind for name, tensor in self.tensors.items()}

    def get(self, name: str) -> Tensor:
        """Return a tensor."""
        return self.tensors[name].get()

    def numbers(self, name: str) -> Sequence[float] | None:
        """Return a tensor's numbers."""
        return self.get(name).flatten().tolist()

    def forget(self) -> None:
        """Nothing is held that could be let go."""


def family_of(module: nn.Module) -> str | None:
    """Return the row of FAMILIES that a model is; None for one that GGUF has no name for."""
    own = type(module).__module__.rpartition(".")[2]
    return name if (name := ALIKE.get(own, own)) in FAMILIES else None


def make_draft(module: Any, mix: str, metadata: Mapping[str, object], path: Path) -> Draft:
    """Return the file of a model in a mix of types (`mixes`). metadata: what the file says besides.

    Raise GencliError for a model that such a file cannot say.
    """
    name, config = family_of(module), module.config
    if name is None:
        own = type(module).__module__.rpartition(".")[2]
        raise GencliError(f"gencli does not write GGUF files of {own}", f"it writes {', '.join(FAMILIES)}")
    said = {"general.architecture": name, "general.type": "model", "general.file_type": MIXES[mix].file_type}
    said |= {"general.quantization_version": 2, **_metadata(name, config)}
    tensors = [*plan(module, mix), *_rope_tensors(config)]
    draft = Draft(path, {**said, **metadata}, tensors)
    _compare(config, architecture(str(read_config(draft)["model_type"])).Config.from_dict(read_config(draft)))
    return draft


def plan(module: Any, mix: str) -> list[Planned]:
    """Return the tensors of a model under GGUF's names, in its order of rows, with their types in a mix."""
    name, config = family_of(module), module.config
    assert name is not None
    family, state = FAMILIES[name], module.state_dict(keep_vars=True)
    own = {new: old for old, new in family.names.items()}
    whole = {new: old for old, new in family.whole.items()}
    heads, layers = (
        (config.n_head, config.n_layer) if name == "gpt2" else (config.num_attention_heads, config.num_hidden_layers)
    )
    kv_heads = getattr(config, "kv_heads", heads)
    counts = {"attn_q": heads, "attn_k": kv_heads} if family.neighbours else {}
    embedding, head = (state[f"{family.names[old]}.weight"] for old in ("token_embd", "output"))
    tied = head is embedding or (config.tie_word_embeddings and torch.equal(head, embedding))
    planned = []
    for parameter, value in _with_experts_together(state, joined="experts.gate_up_proj" in own).items():
        layer, _, inner = parameter.removeprefix(f"{family.layers}.").partition(".")
        if inner in whole and isinstance(value, Tensor):
            get = partial(gguf_qwen35.written, inner, value, config) if name.startswith("qwen35") else value.detach
            planned.append(Planned(f"blk.{layer}.{whole[inner]}", tuple(value.shape), "F32", get))
            continue
        stem, _, ending = parameter.rpartition(".")
        if ending == "sinks":
            stem, ending = parameter, "weight"
        if stem == family.names["output"] and tied:
            continue
        layer, _, inner = stem.removeprefix(f"{family.layers}.").partition(".")
        in_layer = stem.startswith(f"{family.layers}.")
        new = inner if in_layer else stem
        old = own[new]
        title = f"blk.{layer}.{old}.{ending}" if in_layer else f"{old}.{ending}"
        shape: tuple[int, ...]
        if isinstance(value, list):
            parts = 2 if inner.endswith(".gate_up_proj") else 1
            shape = (len(value) // parts, parts * len(value[0]), *value[0].shape[1:])
            stored = _packed_as(value)
            kind = stored if stored == TRAINED else kind_of(mix, title, shape, layers, heads // kv_heads, tied=tied)
            planned.append(Planned(title, shape, kind, partial(_together, value), _packed_as(value)))
            continue
        if inner.startswith("linear_attn.") and not inner.endswith("norm.weight"):
            shape = gguf_qwen35.shape_of(inner, tuple(value.shape))
            kind = "F32" if old in family.read else kind_of(mix, title, shape, layers, heads // kv_heads, tied=tied)
            get = partial(gguf_qwen35.written, inner, value, config)
            planned.append(Planned(title, shape, kind, get, value.kind if isinstance(value, Packed) else ""))
            continue
        if old == "shortconv.conv" and ending == "weight":
            planned.append(Planned(title, (value.shape[0], value.shape[2]), "F32", partial(value.detach().flatten, 1)))
            continue
        get = _Changed(value, family, old, new, counts.get(old, 0))
        shape = tuple(value.shape[::-1] if family.is_transposed(new) else value.shape)
        kind = kind_of(mix, title, shape, layers, heads // kv_heads, tied=tied)
        planned.append(Planned(title, shape, kind, get, value.kind if isinstance(value, Packed) else ""))
    return planned


def _with_experts_together(state: Mapping[str, Tensor], *, joined: bool) -> dict[str, Tensor | list[Tensor]]:
    """Return parameters by their names; those of a layer's experts are one list, in their order, without a number.

    joined: whether gate and up of an expert, then of the next one, are one list.
    """
    found: dict[str, Tensor | list[Tensor]] = {}
    for name, value in state.items():
        together = re.sub(r"\.experts\.\d+\.", ".experts.", name)
        together = re.sub(r"\.experts\.(gate|up)_proj\.", ".experts.gate_up_proj.", together) if joined else together
        if together == name:
            found[name] = value
        else:
            cast("list[Tensor]", found.setdefault(together, [])).append(value)
    return found


def _packed_as(values: Sequence[Tensor]) -> str:
    """Return the type that matrices are packed in, "" for none or several."""
    kinds = {value.kind if isinstance(value, Packed) else "" for value in values}
    return kinds.pop() if len(kinds) == 1 else ""


def _together(values: Sequence[Tensor]) -> Tensor:
    """Return matrices one below the other, packed if all are in one type."""
    if kind := _packed_as(values):
        return Packed(
            kind, torch.cat([value.data_of(torch.arange(len(value))) for value in cast("list[Packed]", values)])
        )
    return torch.cat([value.detach() for value in values])


def plan_own(module: nn.Module, mix: str) -> list[Planned]:
    """Return the tensors of a model that GGUF has no names for, under its own, with their types in a mix.

    Matrices of linear layers are packed, and embeddings that lie in no layer; all else stays as it is stored. Raise
    GencliError for numbers that such a file cannot hold.
    """
    state = module.state_dict(keep_vars=True)
    numbers = {(found[1], found[2]) for name in state if (found := LAYER.fullmatch(name))}
    layers = Counter(before for before, _ in numbers)
    planned: dict[int, Planned] = {}
    for name, value in state.items():
        layer, found = module.get_submodule(name.rpartition(".")[0]), LAYER.fullmatch(name)
        is_matrix = isinstance(layer, nn.Linear) or (found is None and isinstance(layer, nn.Embedding))
        kind = None
        if is_matrix and name.endswith(".weight"):
            kind = kind_in_network(mix, name, value.shape[-1], layers[found[1]] if found else 0)
        if kind is None and value.dtype.itemsize == 1 and value.is_floating_point():  # 8 bits: none is lost in these
            kind = "F32" if isinstance(value, Scaled) else "F16"
        if kind is None and (kind := FLOATS.get(value.dtype)) is None:
            raise GencliError(f"{name} is stored as {value.dtype}, which cannot be kept in a packed copy")
        planned.setdefault(id(value), Planned(name, tuple(value.shape), kind, value.detach))  # once what two share
    return list(planned.values())


@dataclasses.dataclass(frozen=True, eq=False)
class _Changed:
    """A parameter in GGUF's shape and order of rows, when it is called. heads: whose rows turn neighbours."""

    value: Tensor
    family: Family
    old: str
    new: str
    heads: int

    def __call__(self) -> Tensor:
        value = self.value.detach()
        if self.family.is_transposed(self.new):
            return turned(value)
        if self.heads and isinstance(value, Packed):
            return value.ordered(_neighbours(torch.arange(len(value)), self.heads))
        if self.heads:
            return _neighbours(value, self.heads)
        return value.float() + 1 if self.family.adds_one(self.old) else value


def _neighbours(rows: Tensor, heads: int) -> Tensor:
    """Pairs of halves → pairs of neighbours: (heads, 2, D/2) → (heads, D/2, 2)."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _metadata(name: str, config: Any) -> dict[str, Any]:
    """The keys of an architecture."""
    if name == "gemma4":
        return {f"{name}.{key}": value for key, value in gguf_gemma4.metadata(config).items()}
    family, found = FAMILIES[name], {f"{name}.vocab_size": config.vocab_size}
    special: dict[str, Callable[[], Any]] = {
        "n_inner": lambda: config.n_inner or 4 * config.n_embd,
        "head_dim": lambda: config.head_size,
        "num_key_value_heads": lambda: config.kv_heads,
        "rope_theta": lambda: config.rope_parameters.rope_theta,
        "full_attention_interval": lambda: config.types.index("full_attention") + 1,
        "sliding_window": lambda: max(filter(None, _windows(config)), default=None),
    }
    for key, own in family.keys.items():
        value = special[own]() if own in special else getattr(config, own, None)
        if value is not None:
            found[f"{name}.{key}"] = float(value) if own in REALS else value
    if name.startswith("qwen35"):
        found |= {f"{name}.{key}": value for key, value in gguf_qwen35.metadata(config).items()}
    found |= {f"{name}.{key}": value for key, value in family.said(config).items()}
    if name == "gpt2":
        return found
    rope, size = config.rope_parameters, config.head_size
    found[f"{name}.attention.value_length"] = size
    found[f"{name}.rope.dimension_count"] = int(size * rope.partial_rotary_factor)
    if rope.rope_type not in ("default", "linear", "yarn", "llama3", "longrope"):
        raise GencliError(f"gencli cannot say rope_type = {rope.rope_type!r} in a GGUF file")
    scaling = f"{name}.rope.scaling"
    if rope.rope_type == "linear":
        found |= {f"{scaling}.type": "linear", f"{scaling}.factor": float(rope.factor)}
    if rope.rope_type == "yarn":
        found |= {f"{scaling}.type": "yarn", f"{scaling}.factor": float(rope.factor or 1)}
    if rope.original_max_position_embeddings and rope.rope_type == "yarn":
        found[f"{scaling}.original_context_length"] = rope.original_max_position_embeddings
    if hasattr(config, "original_max_position_embeddings"):
        found[f"{scaling}.original_context_length"] = config.original_max_position_embeddings
    if rope.rope_type == "longrope":
        found |= {f"{scaling}.type": "longrope", f"{scaling}.attn_factor": _frequencies(config, rope, 1)[1]}
    return found


def _rope_tensors(config: Any) -> list[Planned]:
    rope = getattr(config, "rope_parameters", None)
    factors: dict[str, Tensor] = {}
    if rope is not None and rope.rope_type == "llama3":
        plain = _frequencies(config, dataclasses.replace(rope, rope_type="default"), 1)[0]
        factors["rope_freqs"] = plain / _frequencies(config, rope, 1)[0]
    if rope is not None and hasattr(config, "global_head_dim"):  # Gemma 4's full layers
        whole = dataclasses.replace(rope, rope_type="default", partial_rotary_factor=1.0)
        plain = _frequencies(config, whole, 1, config.global_head_dim)[0]
        own = _frequencies(config, rope, 1, config.global_head_dim)[0]
        factors["rope_freqs"] = torch.where(own == 0, gguf_gemma4.STILL, plain / own)
    if rope is not None and rope.rope_type == "longrope":
        factors = {f"rope_factors_{size}": torch.tensor(getattr(rope, f"{size}_factor")) for size in ("long", "short")}
    return [Planned(f"{name}.weight", tuple(value.shape), "F32", value.float) for name, value in factors.items()]


def _frequencies(config: Any, rope: Rope, length: int, head_size: int | None = None) -> tuple[Tensor, float]:
    dim = rope.width(head_size or config.head_size)
    return KINDS[rope.rope_type].frequencies(rope, dim, config.max_position_embeddings, length)


def _windows(config: Any) -> list[int | None]:
    """The window of each layer; None where it is as long as the context."""
    windows = (config.window(layer) for layer in range(config.num_hidden_layers))
    return [None if window and window >= config.max_position_embeddings else window for window in windows]


def _effects(config: Any) -> dict[str, Any]:
    """What a config says, by its fields, in numbers that are equal where the models are."""
    found = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if "n_embd" in found:
        return {**found, "n_inner": found["n_inner"] or 4 * found["n_embd"]}
    limit = config.max_position_embeddings
    for key in ("rope_parameters", "sliding_rope"):
        if key in found:
            size = getattr(config, "global_head_dim", None) if key == "rope_parameters" else None
            parts = [_frequencies(config, found[key], length, size) for length in (1, limit, 2 * limit)]
            found[key] = [number for inv_freq, scale in parts for number in (*inv_freq.tolist(), scale)]
    found |= {"num_key_value_heads": config.kv_heads, "head_dim": config.head_size, "sliding_window": _windows(config)}
    if hasattr(config, "global_head_dim"):
        found |= gguf_gemma4.effects(config)
    if hasattr(config, "full_attention_interval") or hasattr(config, "conv_L_cache"):
        found["types"] = config.types
    return {**found, "no_rope_layers": getattr(config, "rope_layers", None)}


def _compare(config: Any, back: Any) -> None:
    """Raise GencliError for a field that does not come back. One that only one of the two has is off in the other."""
    ours, theirs = _effects(config), _effects(back)
    for key in sorted((ours.keys() | theirs.keys()) - OTHERWISE):
        if not _alike(ours.get(key), theirs.get(key)):
            raise GencliError(f"a GGUF file cannot say {key} = {str(getattr(config, key, None))[:80]} of this model")


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, float) or isinstance(b, float):
        return a is not None and b is not None and math.isclose(a, b, rel_tol=1e-5)  # float32 there
    return (a or None) == (b or None)
