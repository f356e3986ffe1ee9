"""A step of a decoder by the C library: all layers for one new position of one sequence in one call.

A layer can go this way if the classes that define its forward pass say how: `NORMS` of the layer, `STEP` of its
attention and its feed-forward network. A subclass that changes the forward pass says nothing, and so takes torch's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gencli.kernels import Layer, Library, Norm, Place, Weights, library
from gencli.kernels.packed import as_weights
from gencli.models.kv_cache import KeyValueCache
from gencli.models.linear import Stored

if TYPE_CHECKING:
    from gencli.models.rope import CosSin

ACTIVATIONS = {"silu": 0, "gelu_pytorch_tanh": 1, "gelu_new": 1}  # as kernels.h counts them
Matrices = Sequence[nn.Module]


class Step:
    """The layers of a model as the library has them. Use `make`."""

    def __init__(self, kernels: Library):
        self.kernels = kernels
        self.layers: list[Layer] = []
        self.kept: list[Any] = []  # what the layers point to
        self.weights: list[tuple[dict[str, Any], Tensor]] = []  # of modules, and what was taken from them
        self.sizes = (0, 0)  # floats of memory, and heads

    def matrix(self, module: nn.Module) -> Any:
        """Return a pointer to a linear layer's weight. Raise TypeError for one that the library cannot multiply."""
        if not isinstance(module, Stored) or (made := as_weights(module.matrix, module.bias)) is None:
            raise TypeError
        self.kept.append(made)
        self.weights.append((module._parameters, module.weight))
        return ctypes.pointer(made[0])

    def norm(self, module: Any) -> Norm:
        """Return a norm, of heads or of all; None: no norm. Raise AttributeError for one of another kind."""
        if module is None:
            return Norm()
        if isinstance(module, nn.LayerNorm):
            weight, bias, eps, centred = module.weight, module.bias, module.eps, True
        else:
            weight, bias, eps, centred = module.norm_weights()
        if any(one is not None and one.dtype != torch.float32 for one in (weight, bias)):
            raise TypeError
        self.kept.append((weight, bias))
        self.weights.append((module._parameters, module.weight))
        pointers = (None if one is None else one.data_ptr() for one in (weight, bias))
        return Norm(*pointers, weight.numel(), centred, eps)

    @torch.inference_mode()
    def __call__(self, x: Tensor, cache: KeyValueCache, cos_sin: Sequence[CosSin | None]) -> Tensor:
        """Return x (1, 1, C) after the last layer; its keys and values are added to the cache, but not its length."""
        x = x.clone()
        tables = {id(pair): tuple(table.data_ptr() for table in pair) for pair in cos_sin if pair is not None}
        pairs = [(None, None) if pair is None else tables[id(pair)] for pair in cos_sin]
        array = ctypes.c_void_p * len(self.layers)
        keys, values = (array(*(one.data_ptr() for one in many)) for many in (cache.keys, cache.values))
        cos, sin = (array(*(pair[i] for pair in pairs)) for i in (0, 1))
        size, heads = self.sizes
        memory = torch.empty(size + heads * cache.positions)
        place = Place(cache.length, cache.positions, *(ctypes.addressof(one) for one in (keys, values, cos, sin)))
        scores = memory.data_ptr() + 4 * size
        count, at = len(self.layers), ctypes.addressof(place)
        if self.kernels.step(ctypes.addressof(self.array), count, x.data_ptr(), memory.data_ptr(), scores, at):
            raise MemoryError
        return x

    def is_current(self) -> bool:
        """Return whether the modules still have the weights that they had."""
        return all(parameters.get("weight") is weight for parameters, weight in self.weights)

    def finish(self) -> None:
        """Set the array of the layers' addresses."""
        self.array = (ctypes.c_void_p * len(self.layers))(*(ctypes.addressof(layer) for layer in self.layers))


def make(layers: Iterable[nn.Module]) -> Step | None:
    """Return a step of these layers, or None where the library or one of the layers cannot do it."""
    if (kernels := library()) is None:
        return None
    step = Step(kernels)
    try:
        for layer in layers:
            _add(step, layer)
    except (TypeError, AttributeError):
        return None
    step.finish()
    return step


def can(x: Tensor, cache: KeyValueCache | None) -> bool:
    """Return whether this is a step: one position of one sequence, in float32 on a CPU, with a cache."""
    single = cache is not None and x.numel() == x.shape[-1]
    return single and x.dtype is torch.float32 and x.is_cpu and not x.requires_grad


def of(model: Any, layers: Iterable[nn.Module]) -> Step | None:
    """Return the step of a model with these layers: made when it is first asked for, and anew when a weight changed."""
    made: tuple[Step | None] | None = vars(model).get("_made_step")
    if made is None or (made[0] is not None and not made[0].is_current()):
        made = model._made_step = (make(layers),)
    return made[0]


def _own(module: Any, forward: str, name: str) -> Any:
    """The attribute `name` of the class that defines the method `forward`. Raises TypeError if it has none."""
    for kind in type(module).__mro__:
        if forward in vars(kind):
            if name in vars(kind):
                return vars(kind)[name]
            break
    raise TypeError


def _add(step: Step, layer: Any) -> None:
    norms = [None if name is None else getattr(layer, name) for name in _own(layer, "forward", "NORMS")]
    attention, mlp = (getattr(layer, name) for name in _own(layer, "forward", "STEP"))
    names = [*(_own(attention, "project", "STEP") if hasattr(attention, "project") else ())]
    *qkv, out = (getattr(attention, name) for name in (*names, *_own(attention, "forward", "STEP")))
    *up, down = (getattr(mlp, name) for name in _own(mlp, "forward", "STEP"))
    made = Layer()
    made.qkv = (ctypes.POINTER(Weights) * 3)(*map(step.matrix, qkv))
    made.gate_up = (ctypes.POINTER(Weights) * 2)(*map(step.matrix, up))
    made.o, made.down = step.matrix(out), step.matrix(down)
    made.before_attention, made.after_attention, made.before_mlp, made.after_mlp = map(step.norm, norms)
    made.q_norm, made.k_norm = (step.norm(getattr(attention, name, None)) for name in ("q_norm", "k_norm"))
    made.heads, made.kv_heads, made.head_size = attention.heads, attention.kv_heads, attention.head_dim
    made.rotated, made.window = attention.rotated, attention.window or 0
    made.scale, made.softcap = attention.scale, attention.softcap or 0
    (made.hidden, _), (_, made.inner) = out.matrix.shape, down.matrix.shape
    made.activation, made.gated = mlp.step_activation, mlp.gated
    step.layers.append(made)
    widths = (2 * made.heads + 2 * made.kv_heads) * made.head_size, 2 * made.inner
    step.sizes = max(step.sizes[0], 2 * made.hidden + max(widths)), max(step.sizes[1], made.heads)
