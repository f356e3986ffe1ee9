"""A step of a decoder by the C library: embedding, layers and head for a few new positions, of one text or of several,
in one call.

Torch's operations each take tens of microseconds here, as the weights of the step before have driven their code out of
the processor's caches; a call of C takes few.

A layer can go this way if the classes that define its forward pass say how: `NORMS` of the layer, `STEP` of its
attention and its feed-forward network, `step_more` of a layer with other parts. A subclass that changes the forward
pass says nothing, and so takes torch's.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from gencli.kernels import Layer, Library, Model, Place, Weights, library
from gencli.models import step_delta, step_more
from gencli.models.kv_cache import KeyValueCache
from gencli.models.rope import CosSin, halves
from gencli.models.step_weights import Holder, said

if TYPE_CHECKING:
    Addresses = ctypes.Array[ctypes.c_void_p]

LONGEST = 8  # new positions of a text; more are read by torch's layers
ACTIVATIONS = {"silu": 0, "gelu_pytorch_tanh": 1, "gelu_new": 1}  # as kernels.h counts them
CLAMPED_SILU = 2  # of gpt-oss, as kernels.h counts it


@dataclass(frozen=True)
class Parts:
    """What a decoder is made of. x (B, T, C) are rows of `embedding` times `scale`, plus those of `positions`; without
    an embedding, what the model's `embed` returns of ids (B, T). head: with the norm before it; None: the model has one
    that is no product. rotary: whether the model has `cos_sin_per_layer`. inputs: what layers get of their own.
    divided: what the model's x is divided by in the library, `scale` included."""

    layers: Iterable[nn.Module]
    embedding: nn.Module | None = None
    positions: nn.Module | None = None
    scale: float = 1.0
    norm: nn.Module | None = None
    head: nn.Module | None = None
    rotary: bool = False
    inputs: step_more.Inputs | None = None
    divided: float = 1.0


class Stepping(Protocol):
    """A model that says of what parts it is made."""

    def step_parts(self) -> Parts: ...
    def rope_regime(self, length: int) -> int: ...


class Embedding(Protocol):
    """A model whose parts have no embedding."""

    def embed(self, ids: Tensor) -> Tensor: ...


class Rotating(Protocol):
    """A model whose parts say `rotary`."""

    def rope_regime(self, length: int) -> int: ...
    def cos_sin_per_layer(self, start: int, stop: int, like: Tensor) -> Sequence[CosSin | None]: ...


class Step(Holder):
    """A model as the library has it. Use `make`."""

    def __init__(self, kernels: Library, parts: Parts):
        """Raises TypeError or AttributeError for what the library cannot do."""
        super().__init__()
        self.kernels, self.parts = kernels, parts
        self.size = 0  # floats of the threads' memory, of a row
        self.caches: list[Callable[[KeyValueCache], tuple[Tensor, Tensor]]] = []  # each layer's own tensors in a cache
        self.memory = torch.empty(0)
        self.cache: tuple[Callable[[], KeyValueCache | None], int] = (
            lambda: None,
            0,
        )  # the last one, while it lives, and its `moved`
        self.known = (0, 0)  # how many positions the tables have, and the regime
        self.addresses: tuple[Addresses, ...] = ()
        self.tables: tuple[object, ...] = ()
        layers = [self.layer(layer) for layer in parts.layers]
        self.array = (ctypes.c_void_p * len(layers))(*map(ctypes.addressof, layers))
        self.kept.append(layers)
        self.hidden = layers[0].hidden
        self.model = Model(ctypes.addressof(self.array), len(layers), scale=parts.scale)
        if parts.embedding is not None:
            self.model.embedding = self.rows(parts.embedding)
        if parts.positions is not None:
            self.model.positions = self.rows(parts.positions)
        if parts.inputs is not None:
            self.model.inputs = ctypes.pointer(step_more.inputs(self, parts.inputs))
            own = len(layers) * self.model.inputs.contents.size
            self.size = own + max(self.size, own)
        self.outputs = 0
        if parts.head is not None:
            self.model.norm, self.model.head = self.norm(parts.norm), self.matrix(parts.head)
            head = self.model.head.contents
            self.outputs = head.columns if head.sideways else head.rows
        self.place = Place()

    def layer(self, layer: nn.Module) -> Layer:
        """Return a layer. Raise TypeError or AttributeError for one that does not say how it goes this way."""
        norms = [None if name is None else getattr(layer, name) for name in said(layer, "forward", "NORMS")]
        attention, mlp = (getattr(layer, name) for name in said(layer, "forward", "STEP"))
        made = Layer()
        if isinstance(attention, step_delta.HasState):
            widths = [step_delta.add(self, made, attention)]
            self.caches.append(attention.step_state)
        else:
            widths = [self.attention(made, attention)]
        made.before_attention, made.after_attention, made.before_mlp, made.after_mlp = map(self.norm, norms)
        if hasattr(mlp, "experts"):
            router, *shared = (getattr(mlp, name) for name in said(mlp, "forward", "STEP"))
            if shared:
                self.feed_forward(made, shared[0])
                widths.append(step_more.shared(self, made, router, mlp, norms[2], shared[1]))
            else:
                step_more.mixture(self, made, router, mlp.experts, mlp.chosen, normalised=mlp.normalised)
        else:
            self.feed_forward(made, mlp)
        if isinstance(layer, step_more.HasMore):
            widths.append(step_more.add(self, made, layer, layer.step_more()))
        self.size = max(self.size, made.hidden + max(*widths, 2 * made.inner, step_more.mixed(made)))
        return made

    def attention(self, made: Layer, attention: nn.Module) -> int:
        """Fill in a layer's attention. Return how many numbers of memory it wants for a position, besides C."""
        names = said(attention, "forward", "STEP")
        names = names if len(names) > 1 else (*said(attention, "project", "STEP"), *names)
        *qkv, out = (getattr(attention, name) for name in names)
        made.reuses, made.head_gates = len(qkv) > 1 and qkv[1] is None, getattr(attention, "head_gates", False)
        orders = (
            halves_first(cast("Heads", attention), len(qkv)) if getattr(attention, "neighbours", False) else [None] * 3
        )
        for i, one in enumerate(qkv):
            if one is not None:
                made.qkv[i] = self.matrix(one, orders[i])
        number = getattr(attention, "cached", len(self.caches))
        self.caches.append(lambda cache: (cache.keys[number], cache.values[number]))
        made.o, made.hidden = self.matrix(out), out.matrix.shape[0]
        of_heads = (self.norm(getattr(attention, name, None)) for name in ("q_norm", "k_norm", "v_norm"))
        made.q_norm, made.k_norm, made.v_norm = of_heads
        made.heads, made.kv_heads, made.head_size = attention.heads, attention.kv_heads, attention.head_dim
        made.rotated, made.window = attention.rotated, attention.window or 0
        made.scale, made.softcap = attention.scale, attention.softcap or 0
        made.sinks = self.numbers(getattr(attention, "sinks", None))
        return ((3 if made.head_gates else 2) * made.heads + 2 * made.kv_heads) * made.head_size

    def feed_forward(self, made: Layer, mlp: nn.Module) -> None:
        """Fill in a layer's feed-forward network."""
        *up, down = (getattr(mlp, name) for name in said(mlp, "forward", "STEP"))
        made.gate_up = (ctypes.POINTER(Weights) * 2)(*map(self.matrix, up))
        if any(matrix and matrix.contents.order for matrix in made.gate_up):  # gate and up go together, row by row
            raise TypeError
        made.down, made.inner = self.matrix(down), down.matrix.shape[1]
        made.activation, made.gated = mlp.step_activation, mlp.gated

    def knows(self, cache: KeyValueCache) -> bool:
        """Return whether the last step was one of this cache, and its tensors are where they were."""
        return self.cache[0]() is cache and self.cache[1] == cache.moved

    def look_at(self, cache: KeyValueCache) -> None:
        """Take the addresses of a cache's tensors."""
        array, place = ctypes.c_void_p * len(self.array), self.place
        tensors = [own(cache) for own in self.caches]
        self.addresses = tuple(array(*(pair[i].data_ptr() for pair in tensors)) for i in (0, 1))
        self.cache, self.known, self.tables = (weakref.ref(cache), cache.moved), (0, 0), (none := array(),)
        place.capacity = cache.positions
        place.window_step, place.state_step = cache.state_steps
        place.keys, place.values = map(ctypes.addressof, self.addresses)
        place.cos = place.sin = ctypes.addressof(none)

    def rotate(self, model: Rotating, end: int, regime: int) -> None:
        """Have tables of cos and sin for texts of up to `end` tokens, which are all rotated alike."""
        if self.known[0] >= end and self.known[1] == regime:
            return
        more = min(2 * end, self.place.capacity)
        end = more if model.rope_regime(more) == regime else end
        pairs = model.cos_sin_per_layer(0, end, torch.empty(0))
        tables = {id(pair): [one.contiguous() for one in pair] for pair in pairs if pair is not None}
        array = ctypes.c_void_p * len(self.array)
        made = [array(*(pair and tables[id(pair)][i].data_ptr() for pair in pairs)) for i in (0, 1)]
        self.tables, self.known = (made, tables), (end, regime)
        self.place.cos, self.place.sin = map(ctypes.addressof, made)

    def __call__(self, model: Stepping, ids: Tensor, cache: KeyValueCache, last_only: bool) -> Tensor:
        """Return logits (B, T or 1, V) of ids (B, T), or without a head x (B, T, C) after the last layer.

        The new keys and values are added to the cache. Raises IndexError for an id that the model does not have.
        """
        (B, T), place = ids.shape, self.place
        ids = ids.contiguous()
        if self.parts.embedding is None:
            x = cast("Embedding", model).embed(ids).contiguous()
            x = x if self.parts.divided == 1 else x / self.parts.divided
            place.x = x.data_ptr()
        elif not self.outputs:
            x = torch.empty(B, T, self.hidden)
            place.x = x.data_ptr()
        if self.outputs:
            y = torch.empty(B, 1 if last_only else T, self.outputs)
            place.logits = y.data_ptr()
        else:
            y = x
        if len(self.memory) < B * T * self.size:
            self.memory = torch.empty(B * T * self.size)
            place.memory = self.memory.data_ptr()
        place.texts, place.new, place.last = B, T, last_only
        place.ids, place.lengths = ids.data_ptr(), cache.lengths.data_ptr()
        failed = self.kernels.step(ctypes.addressof(self.model), ctypes.addressof(place))
        if failed == 1:
            raise MemoryError
        if failed:
            raise IndexError("an id that the model does not have, or a position that the cache does not have")
        return y if self.outputs or self.parts.divided == 1 else y * self.parts.divided


class Heads(Protocol):
    """Attention whose heads are rotated."""

    heads: int
    kv_heads: int
    head_dim: int
    rotated: int


def halves_first(attention: Heads, matrices: int) -> list[Tensor | None]:
    """Return the order of outputs in which the library rotates halves of heads as torch's layers rotate neighbours."""
    sizes = [attention.heads * attention.head_dim, *[attention.kv_heads * attention.head_dim] * 2]
    rows = torch.arange(sum(sizes)).view(1, 1, -1, attention.head_dim)
    turned = halves(rows[:, :, : attention.heads + attention.kv_heads], attention.rotated).flatten()
    order = torch.cat((turned, rows.flatten()[len(turned) :]))
    if matrices == 1:
        return [order]
    q, k, _ = order.split(sizes)
    return [q, k - sizes[0], None]


def make(parts: Parts) -> Step | None:
    """Return a step of a model, or None where the library cannot do it, or one of the model's layers."""
    if (kernels := library()) is None:
        return None
    for ends in (parts, replace(parts, head=None)):
        try:
            return Step(kernels, ends)
        except (TypeError, AttributeError):
            continue
    return None


def can(ids: Tensor, cache: KeyValueCache | None) -> bool:
    """Return whether ids (B, T) are a step: a few positions of each text, on a CPU, with a cache in float32."""
    if cache is None or cache.halts or ids.shape[1] > LONGEST:
        return False
    return ids.is_cpu and cache.keys[0].dtype is torch.float32


def of(model: Stepping, cache: KeyValueCache | None = None) -> Step | None:
    """Return the step of a model, made when it is first asked for, and anew when a weight was replaced: which is looked
    at when a cache is another one than before."""
    made: tuple[Step | None] | None = vars(model).get("_made_step")
    if made is not None and made[0] is not None and cache is not None and made[0].knows(cache):
        return made[0]
    if made is None or (made[0] is not None and not made[0].is_current()):
        made = vars(model)["_made_step"] = (make(model.step_parts()),)
    if made[0] is not None and cache is not None:
        made[0].look_at(cache)
    return made[0]


class Done(NamedTuple):
    """What a step gives: logits (B, T or 1, V), or x (B, T, C) before the norm and a head that it does not know."""

    result: Tensor
    are_logits: bool


def run(model: Stepping, ids: Tensor, cache: KeyValueCache | None, last_only: bool) -> Done | None:
    """Go on with token ids (B, T) by the library: the cache then has their keys and values. None: it cannot."""
    if not can(ids, cache) or cache is None or (step := of(model, cache)) is None:
        return None
    if torch.is_grad_enabled() and step.trained:
        return None
    if step.parts.rotary:
        B, T = ids.shape
        ends = [start + T for start in cache.starts(B)]
        regimes = {model.rope_regime(end) for end in ends}
        if len(regimes) > 1:
            return None
        step.rotate(cast("Rotating", model), max(ends), regimes.pop())
    return Done(step(model, ids, cache, last_only), bool(step.outputs))
