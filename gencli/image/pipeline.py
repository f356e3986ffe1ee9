"""The parts of a checkpoint with their weights: each stage's network and conditioner, and the autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from gencli.devices import give_back_memory
from gencli.image.checkpoint import ImageCheckpoint
from gencli.image.codec import Codec
from gencli.image.conditioning import Conditioning
from gencli.image.diffusion.schedule import NoiseSchedule
from gencli.image.families import Stage
from gencli.image.prompts.base import Conditioner
from gencli.image.request import ImageRequest
from gencli.models.autoencoder_blocks import Autoencoder
from gencli.models.base import BaseConfig
from gencli.models.module import BaseModel, describe
from gencli.models.unet_blocks import timestep_embedding

T = TypeVar("T")


class Held(Generic[T]):
    """Models that are loaded when they are first asked for, and can be let go: after `release` they are loaded anew.

    modules: those in what is loaded, which stay without their weights. forget: lets go of the files' memory too.
    """

    def __init__(self, load: Callable[[], T], modules: Callable[[T], Sequence[BaseModel]], forget: Callable[[], None]):
        self._load, self._modules, self._forget = load, modules, forget
        self._value: T | None = None
        self.modules: Sequence[BaseModel] = ()

    def get(self) -> T:
        if self._value is None:
            self._value = self._load()
            self.modules = self._modules(self._value)
        return self._value

    def release(self) -> None:
        if self._value is None:
            return
        self._value = None
        for module in self.modules:
            module.to("meta")
        self._forget()
        give_back_memory()


@dataclass(frozen=True)
class LoadedStage:
    """A stage's parts with their weights, on one device. checkpoint: the one that holds them. config: the network's.
    codec: between the stage's images and what it draws. view: what makes images of x0 on the way, in less time where
    a tiny autoencoder is here. load_part: loads another part of the checkpoint."""

    stage: Stage
    checkpoint: ImageCheckpoint
    schedule: NoiseSchedule
    config: BaseConfig
    dtype: torch.dtype
    codec: Codec
    view: Codec
    network_part: Held[BaseModel]
    conditioner_part: Held[Conditioner | None]
    load_part: Callable[[str], BaseModel]

    def size(self, key: str) -> int:
        """Return a whole number in the network's config, 0 where it has none under that key."""
        value = getattr(self.config, key, None)
        return value if isinstance(value, int) else 0

    @property
    def network(self) -> BaseModel:
        return self.network_part.get()

    @property
    def conditioner(self) -> Conditioner | None:
        """None for a network without a prompt."""
        return self.conditioner_part.get()

    @property
    def device(self) -> torch.device:
        return self.codec.device

    def predict(self, x: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's output (B, C or 2C, h, w) in its own precision, for x (B, C, h, w) in any."""
        if conditioning.concat is not None:
            x = torch.cat([x, conditioning.concat.expand(len(x), -1, -1, -1)], dim=1)
        return self.network(x.to(self.dtype), timesteps, **conditioning.keywords())

    @property
    def reads_guidance(self) -> bool:
        """Whether the guidance scale is one more condition of the network (Meng et al. 2023), which is then run once a
        step instead of twice: latent consistency models, and FLUX.1 dev."""
        return self._width is not None or getattr(self.config, "guidance_embeds", False)

    @property
    def _width(self) -> int | None:
        return getattr(self.config, "time_cond_proj_dim", None)

    def told_guidance(self, scale: float) -> dict[str, Tensor]:
        """A guidance scale as such a network reads it: as a number (1,), or in latent consistency models (1, G), the
        sinusoidal embedding of 1000 · (scale − 1)."""
        if self._width is None:
            return {"guidance": torch.tensor([scale], device=self.device)}
        w = torch.tensor([1000 * (scale - 1)], device=self.device)
        return {"timestep_cond": timestep_embedding(w, self._width, flip_sin_to_cos=False, freq_shift=1)}


@dataclass(frozen=True)
class Pipeline:
    """All stages. classifier: of noisy images, for classifier guidance. one_at_a_time: whether each is let go once all
    images have passed it."""

    checkpoint: ImageCheckpoint
    stages: tuple[LoadedStage, ...]
    classifier: BaseModel | None = None

    @property
    def main(self) -> LoadedStage:
        """The stage that the request's own settings are for."""
        return next(one for one in self.stages if one.stage is self.checkpoint.main)

    @property
    def one_at_a_time(self) -> bool:
        return any(owner.family.one_at_a_time for _, owner in self.checkpoint.stages)

    @property
    def codec(self) -> Codec:
        return self.main.codec

    @property
    def vae(self) -> Autoencoder | None:
        return self.codec.vae

    @property
    def device(self) -> torch.device:
        return self.main.device

    @property
    def dtype(self) -> torch.dtype:
        return self.main.dtype

    def check_prompt(self, request: ImageRequest) -> None:
        """Raises GencliError for a prompt that a stage cannot follow: one too long, or of no class."""
        if self.checkpoint.prompt == "class" and self.checkpoint.classes is not None:
            self.checkpoint.classes.find(request.prompt)
        for part in {id(one.conditioner_part): one.conditioner_part for one in self.stages}.values():
            if (conditioner := part.get()) is not None:
                conditioner.encode([request.prompt], request)

    def describe(self) -> str:
        """The model in one line: its size, precision, device and threads."""
        networks = [self.main, *(one for one in self.stages if one is not self.main)]
        conditioners = {id(one.conditioner_part): one.conditioner_part.modules for one in networks}
        vaes = {id(one.codec): one.codec.vae for one in networks}
        modules = [module for one in networks for module in one.network_part.modules]
        modules += [module for module in (*vaes.values(), self.classifier) if module is not None]
        modules += [module for part in conditioners.values() for module in part]
        return describe(self.checkpoint.name, modules, self.device)
