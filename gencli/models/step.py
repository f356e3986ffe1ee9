"""A step of a decoder by the C library: all layers for a few new positions, of one text or of several, in one call.

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

LONGEST = 8  # new positions of a text; more are read by torch's layers
ACTIVATIONS = {"silu": 0, "gelu_pytorch_tanh": 1, "gelu_new": 1}  # as kernels.h counts them
Matrices = Sequence[nn.Module]


class Step:
    """The layers of a model as the library has them. Use `make`."""

    def __init__(self, kernels: Library):
        self.kernels = kernels
        self.layers: list[Layer] = []
        self.kept: list[Any] = []  # what the layers point to
        self.weights: list[tuple[dict[str, Any], Tensor]] = []  # of modules, and what was taken from them
        self.size = 0  # floats of memory for a row
        self.memory = torch.empty(0)
        self.caches: tuple[Any, ...] = ()  # the keys of the last cache, and the addresses of its tensors

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
        """Return x (B, T, C) after the last layer; its keys and values are added to the cache, but not its lengths.

        cos_sin: of each layer, (T, 1, D), or (B, T, 1, D) where the positions of the rows differ.
        """
        B, T, _ = x.shape
        x = x.clone(memory_format=torch.contiguous_format)
        positions = cache.lengths[:B, None] + torch.arange(T)
        starts = torch.arange(B)[:, None] * cache.keys[0].stride(0)
        rows = [one.expand(B, T).contiguous() for one in (positions, starts)]
        shapes = {id(pair): pair for pair in cos_sin if pair is not None}
        tables = {key: [table.expand(B, T, 1, -1).contiguous() for table in pair] for key, pair in shapes.items()}
        array = ctypes.c_void_p * len(self.layers)
        cos, sin = (array(*(pair and tables[id(pair)][i].data_ptr() for pair in cos_sin)) for i in (0, 1))
        if not self.caches or self.caches[0] is not cache.keys:
            pairs = (cache.keys, cache.values)
            self.caches = (cache.keys, *(array(*(one.data_ptr() for one in many)) for many in pairs))
        if len(self.memory) < B * T * self.size:
            self.memory = torch.empty(B * T * self.size)
        arrays = (*(one.data_ptr() for one in rows), *map(ctypes.addressof, (*self.caches[1:], cos, sin)))
        place, layers = Place(B * T, cache.positions, *arrays), ctypes.addressof(self.array)
        at = ctypes.addressof(place)
        if self.kernels.step(layers, len(self.layers), x.data_ptr(), self.memory.data_ptr(), at):
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
    """Return whether x (B, T, C) is a step: a few positions of each text, in float32 on a CPU, with a cache."""
    few = cache is not None and x.shape[1] <= LONGEST
    return few and x.dtype is torch.float32 and x.is_cpu and not x.requires_grad


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
    step.size = max(step.size, 2 * made.hidden + max(widths))
