"""Config → module on `meta` → names by table → strict assign. What comes out is whole, or nothing comes out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from gencli.checkpoints.experts_file import with_each_expert
from gencli.checkpoints.scaled_file import EIGHTHS
from gencli.checkpoints.tensors import Tensors, unstacked
from gencli.checkpoints.weights import open_tensors
from gencli.errors import GencliError
from gencli.json_files import read_json
from gencli.kernels import PACKED
from gencli.models import ARCHITECTURES, architecture, architecture_name
from gencli.models.base import Layout
from gencli.models.linear import apply_policy
from gencli.models.module import BaseModel

FLOATS = ("F32", "F16", "BF16", "F64")  # as safetensors writes them; others are quantised or no numbers at all
READABLE = frozenset({*FLOATS, *EIGHTHS, *PACKED})


def load(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    layerwise_casting: bool = False,
    config: Mapping[str, object] | None = None,
    tensors: Tensors | None = None,
) -> BaseModel:
    """Load the model in a folder that has config.json and safetensors, in eval mode without gradients.

    config and tensors take the place of the folder's own, where the caller has opened them.
    dtype: what the model computes in (its `compute_dtype`), and so what its weights are converted to; None: the file's
    own. With `layerwise_casting` large weights stay as the file stores them, and each is cast when its layer computes
    (`models.linear`). On a CPU tensors that need no conversion stay memory-mapped.
    Raises GencliError for an unknown architecture, an unsupported config, and weights that do not fit it exactly.
    """
    raw = read_json(folder / "config.json") if config is None else config
    name = architecture_name(raw, folder / "config.json")
    module = architecture(name)
    tensors = with_each_expert(open_tensors(folder)) if tensors is None else tensors
    try:
        parsed = module.Config.from_dict(raw)
    except GencliError as error:
        raise GencliError(f"{folder}: {error.message}", error.hint) from None
    with _OnMeta():
        model = module.Model(parsed)
    stored = None if layerwise_casting else dtype
    assign(model, tensors, module.LAYOUT, device=device, dtype=stored, where=folder)
    model.compute_dtype = dtype or next(model.parameters()).dtype
    apply_policy(model, model.compute_dtype)
    return model


def bytes_as(tensors: Tensors, dtype: torch.dtype) -> int:
    """Return how many bytes the tensors of a file in half precision, or less, take in `dtype`."""
    halves = (name for name in tensors if tensors.dtype(name) in ("F16", "BF16", *EIGHTHS))
    return dtype.itemsize * sum(math.prod(tensors.shape(name)) for name in halves)


def is_packed(tensors: Tensors) -> bool:
    """Return whether some tensors are packed, as in a GGUF file."""
    return any(tensors.dtype(name) in PACKED for name in tensors)


def overflows_in_half(name: str) -> bool:
    """Return whether an architecture's numbers are too large for float16; it then computes in bfloat16."""
    return name in ARCHITECTURES and getattr(architecture(name), "OVERFLOWS_IN_HALF", False)


META = torch.device("meta")
MAKERS = {
    torch.arange, torch.empty, torch.empty_strided, torch.eye, torch.full, torch.linspace, torch.logspace,
    torch.ones, torch.rand, torch.randint, torch.randn, torch.randperm, torch.tensor, torch.zeros,
}  # fmt: skip


class _OnMeta(TorchFunctionMode):
    """Tensors are made on meta, and modules draw no initial values: there is nothing to fill there, and torch imports
    800 modules to find out. One mode for both: with `torch.device("meta")` beside it every call goes through two."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in MAKERS:
            if kwargs.get("device") is None:
                kwargs["device"] = META
        elif getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def assign(
    model: nn.Module,
    tensors: Tensors,
    layout: Layout,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    where: Path,
) -> None:
    """Give every parameter of `model` (on meta) its tensor: exactly those names, exactly those shapes.

    Raises GencliError that says what is missing, unexpected or of another shape.
    """
    own, unread = model.state_dict(keep_vars=True), model.unread if isinstance(model, BaseModel) else ()
    tensors = unstacked(tensors, layout.stacked)
    wanted = {name: tuple(tensor.shape) for name, tensor in own.items()}
    state: dict[str, torch.Tensor] = {}
    unexpected, mismatched = [], []
    for name in tensors:
        renamed = layout.rename(name)
        if renamed is None:
            continue
        target, transform = renamed
        if target not in wanted:
            if target not in unread:
                unexpected.append(name)
            continue
        if target in state:
            raise GencliError(f"{where}: two tensors want to be {target!r}, one of them {name!r}")
        if transform is None and tensors.shape(name) != wanted[target]:  # told by headers, before anything is read
            mismatched.append(f"{name} is {list(tensors.shape(name))}, not {list(wanted[target])}")
            continue
        if own[target].is_floating_point() and tensors.dtype(name) not in READABLE:
            mismatched.append(f"{name} is stored as {tensors.dtype(name)}, not as one of {', '.join(FLOATS)}")
            continue
        tensor = tensors.get(name)
        if transform is not None:
            tensor = transform(tensor)
        if tuple(tensor.shape) != wanted[target]:
            mismatched.append(f"{name} is {list(tensors.shape(name))}, which does not fit {target}")
            continue
        state[target] = tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
    # Where the config ties two and the file has one of them; a file that has both is believed, as in transformers.
    pairs = [pair for pair in layout.tied.items() if pair[0] in own and own[pair[0]] is own.get(pair[1])]
    pairs = [(a, b) for a, b in pairs if (a in state) != (b in state)]
    for a, b in pairs:
        state[a] = state[b] = state[a] if a in state else state[b]
    _refuse(where, "does not fit its config", mismatched)
    _refuse(where, "lacks tensors", [name for name in wanted if name not in state])
    _refuse(where, "has tensors that its config does not explain", unexpected)
    for path, module in model.named_modules(remove_duplicate=False):  # `load_state_dict`, which asks a lot of each
        before = f"{path}." if path else ""
        for name in [name for name, parameter in module._parameters.items() if parameter is not None]:
            module._parameters[name] = nn.Parameter(state[before + name], requires_grad=False)
        for name in module._buffers.keys() - module._non_persistent_buffers_set:
            module._buffers[name] = state[before + name]
    for a, b in pairs:  # assigning made two parameters of one tensor
        module, _, attribute = a.rpartition(".")
        setattr(model.get_submodule(module), attribute, model.get_parameter(b))
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    _refuse(where, "leaves tensors without values", left)
    model.requires_grad_(False).eval()


def _refuse(where: Path, what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise GencliError(f"{where} {what}: {'; '.join(names[:3])}{more}")
