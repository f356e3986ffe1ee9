"""What a layer may have beside attention and a feed-forward network, for a step of the C library (see `models.step`):
experts, numbers of the layer's own for each position, a scale of what comes out."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

from torch import Tensor, nn

from gencli.kernels import Inputs as LibraryInputs
from gencli.kernels import Layer, LayerInput, Weights
from gencli.models.step_weights import Holder, said

CHOSEN = 64  # experts of a position; the library has room for twice as many


@dataclass(frozen=True)
class Inputs:
    """What the layers have of their own, `size` numbers each, of ids (B, T) with states x (B, T, C):
    (norm(projection(x) / sqrt(C)) + embedding(ids) * sqrt(size)) / sqrt(2)."""

    embedding: nn.Module
    projection: nn.Module
    norm: nn.Module
    size: int


@dataclass(frozen=True)
class Own:
    """What a layer does with its own numbers: x += after(projection(activation(gate(x)) * own))."""

    gate: nn.Module
    projection: nn.Module
    after: nn.Module


@dataclass(frozen=True)
class Beside:
    """Experts beside the feed-forward network: y = after_network(network) + after(mixture(before(x))), and then the
    layer's own norm. router: the norm of what `projection` reads (`step_weights.Normed`). scales (experts,): of their
    shares, which sum to one before."""

    router: nn.Module
    projection: nn.Module
    scales: Tensor
    experts: nn.ModuleList
    chosen: int
    before: nn.Module
    after: nn.Module
    after_network: nn.Module


@dataclass(frozen=True)
class More:
    """What a layer has of these. scale: the buffer (1,) of that name, of all that comes out."""

    own: Own | None = None
    beside: Beside | None = None
    scale: str = ""


class Experts(Protocol):
    """Networks of one shape, of which some compute for a position. normalised: whether their shares sum to one."""

    experts: nn.ModuleList
    chosen: int
    normalised: bool


@runtime_checkable
class HasMore(Protocol):
    """A layer that says what more it has."""

    def step_more(self) -> More: ...


def add(to: Holder, made: Layer, layer: nn.Module, more: More) -> int:
    """Fill in what a layer has more. Return how many numbers of memory it wants for a position, besides C."""
    wanted = 0
    if more.scale:
        to.watch(layer._buffers)
        made.output_scale = to.numbers(layer.get_buffer(more.scale).float())
    if more.own is not None:
        gate, projection = to.matrix(more.own.gate), to.matrix(more.own.projection)
        if gate.contents.order:  # the gate is multiplied piece by piece
            raise TypeError
        made.input = ctypes.pointer(LayerInput(gate, projection, to.norm(more.own.after)))
        wanted = gate.contents.columns if gate.contents.sideways else gate.contents.rows
    if more.beside is not None:
        beside = _beside(to, more.beside, made.hidden)
        made.beside, made.after_network = ctypes.addressof(beside), to.norm(more.beside.after_network)
        wanted = max(wanted, made.hidden + mixed(beside))
    return wanted


def _beside(to: Holder, parts: Beside, hidden: int) -> Layer:
    made = Layer(hidden=hidden)
    mixture(to, made, parts.projection, parts.experts, parts.chosen, normalised=True)
    made.before_mlp, made.after_mlp, made.before_router = map(to.norm, (parts.before, parts.after, parts.router))
    made.expert_scales = to.numbers(parts.scales)
    to.kept.append(made)
    return made


def shared(
    to: Holder, made: Layer, router: nn.Module, experts: Experts, norm: nn.Module | None, share: nn.Module
) -> int:
    """Fill in experts beside a layer's network, which all read what `norm` gives. share: its output's sigmoid is how
    much the network counts. Return how many numbers of memory they want for a position, besides C."""
    beside = Layer(hidden=made.hidden)
    mixture(to, beside, router, experts.experts, experts.chosen, normalised=experts.normalised)
    beside.before_mlp, made.beside, made.share = to.norm(norm), ctypes.addressof(beside), to.matrix(share)
    to.kept.append(beside)
    return made.hidden + mixed(beside)


def inputs(to: Holder, parts: Inputs) -> LibraryInputs:
    """Return what layers have of their own."""
    projection = to.matrix(parts.projection)
    made = projection.contents
    hidden = made.rows if made.sideways else made.columns
    return LibraryInputs(
        to.rows(parts.embedding), projection, to.norm(parts.norm), parts.size, parts.size**0.5, hidden**-0.5
    )


def mixed(made: Layer) -> int:
    """Return how many numbers of memory a mixture wants for a position; 0 without one."""
    return made.count + made.chosen * (2 * made.inner + made.hidden)


def mixture(
    to: Holder, made: Layer, router: nn.Module, networks: Iterable[nn.Module], chosen: int, *, normalised: bool
) -> None:
    """Fill in a layer's experts, which the library wants to be all of one kind."""
    first, *_ = experts = list(networks)
    names = [said(expert, "forward", "STEP") for expert in experts]
    matrices = [to.matrix(getattr(one, name)) for one, own in zip(experts, names, strict=True) for name in own]
    kinds = {
        (i % 3, at.type, at.rows, at.columns, at.sideways, bool(at.order))
        for i, at in enumerate(matrix.contents for matrix in matrices)
    }
    if len(matrices) != 3 * len(experts) or len(kinds) != 3 or chosen > CHOSEN or any(kind[-1] for kind in kinds):
        raise TypeError
    array = (ctypes.POINTER(Weights) * len(matrices))(*matrices)
    to.kept.append(array)
    made.router, made.experts = to.matrix(router), ctypes.addressof(array)
    made.count, made.chosen, made.normalised = len(experts), chosen, normalised
    down = matrices[2].contents
    made.inner = down.rows if down.sideways else down.columns
    made.activation, made.gated = cast("int", first.step_activation), True
    made.alpha, made.limit = getattr(first, "alpha", 0), getattr(first, "limit", 0)
