"""A checkpoint of an image model → its `Pipeline`: which weights are read, in what precision, and where they stay."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar, cast

import torch

from gencli.checkpoints import build
from gencli.checkpoints.assets import LoraRef
from gencli.checkpoints.embeddings import Embedding, TextEncoders, install
from gencli.checkpoints.image_lora import merge, open_loras
from gencli.checkpoints.packed_cache import open_packed
from gencli.devices import pick_device, pick_dtype
from gencli.errors import GencliError
from gencli.image.checkpoint import ImageCheckpoint
from gencli.image.codec import Codec
from gencli.image.diffusion.flow import schedule_of
from gencli.image.families import Stage, path_of
from gencli.image.open import find_tiny
from gencli.image.pipeline import Held, LoadedStage, Pipeline
from gencli.image.prompts.base import Conditioner
from gencli.models import architecture, architecture_name
from gencli.models.autoencoder_blocks import Autoencoder
from gencli.models.module import BaseModel, channels_last

# Parts of half precision that would be larger in float32 stay as they lie in the file on a CPU. The network is run step
# by step, and so is converted where that fits any machine; what is run once a prompt gains little by it.
NETWORK_LIMIT, OTHERS_LIMIT = 4 << 30, 1 << 30
STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
READ_BY_DECODERS = (
    "t5",
    "qwen3",
    "qwen2_5_vl",
    "qwen2_5_vl_reader",
)  # text encoders that are as large as language models
Packing = Callable[[str, str, int, int], None]


def load(
    checkpoint: ImageCheckpoint,
    *,
    device: str = "auto",
    dtype: str = "auto",
    loras: Sequence[LoraRef] = (),
    embeddings: Sequence[Embedding] = (),
    views: bool = False,
    quantize: str | None = None,
    loading: Callable[[str], None] = lambda what: None,
    packing: Packing = lambda part, tensor, done, total: None,
) -> Pipeline:
    """Load the weights of all stages; of a family that holds one at a time, each when it is used.

    device and dtype are names as `gencli.devices` knows them. dtype auto: float32 on a CPU, whose half precision is
    slower; elsewhere the file's own. The autoencoder always runs in float32: in half precision some overflow and others
    show bands, and it runs only once per image.
    On a CPU large weights of half precision stay in the file and are converted as they are used (`models.linear`).
    loras: files that are merged into the main stage's weights. embeddings: words that its text encoders learn.
    views: whether images are made of what stages have on the way; a tiny autoencoder that reads the family's latents
    does it where it is in the hub's cache. quantize: a mix of types (`mixes`) that the weights of networks, and of text
    encoders that are language models, are packed in, in copies that are kept; those that are packed already stay so.
    loading: told of each part before it is loaded. packing: called with a part's name while a copy of it is made, see
    `write_gguf`.
    Raises GencliError for parts that are broken or not supported, and for files that do not fit them.
    """
    loader = _Loader(checkpoint, device, dtype, loras, embeddings, views, quantize, loading, packing)
    pipeline = Pipeline(checkpoint, tuple(loader.stage(stage, owner) for stage, owner in checkpoint.stages))
    if not pipeline.one_at_a_time:
        for one in pipeline.stages:
            one.network_part.get()
            one.conditioner_part.get()
    if "classifier" in checkpoint.parts:
        classifier = loader.part(checkpoint, "classifier", torch.float32)
        return Pipeline(checkpoint, pipeline.stages, classifier)
    return pipeline


class _Loader:
    """Loads the parts of a checkpoint and of those that follow it; see `load`."""

    def __init__(
        self,
        checkpoint: ImageCheckpoint,
        device: str,
        dtype: str,
        loras: Sequence[LoraRef],
        embeddings: Sequence[Embedding],
        views: bool,
        quantize: str | None,
        loading: Callable[[str], None],
        packing: Packing,
    ):
        self.checkpoint, self.dtype, self.place, self.loading = checkpoint, dtype, pick_device(device), loading
        self.quantize, self.packing = quantize, packing
        if quantize is not None:
            _check_packing(checkpoint)
        self.changes = open_loras(loras, checkpoint.configs, checkpoint.name, allow_pickle=checkpoint.allow_pickle)
        self.embeddings, self.views = embeddings, views
        self.codecs: dict[str, Codec] = {}
        self.conditioners: dict[object, Held[Conditioner | None]] = {}

    def part(
        self, owner: ImageCheckpoint, name: str, dtype: torch.dtype | None, limit: int = OTHERS_LIMIT
    ) -> BaseModel:
        self.loading(f"{owner.name}: {name}")
        config, tensors = owner.open(name)
        kind = str(config.get("model_type") or config.get("_class_name"))
        if self.quantize is not None and _is_for_packing(owner, name):
            part, device = owner.opened.parts[name], self.place.type
            tensors = open_packed(part, config, self.quantize, partial(self.packing, name), device=device)
        if dtype == torch.float16 and build.overflows_in_half(kind):
            dtype = torch.bfloat16
        large = build.is_packed(tensors) or build.bytes_as(tensors, torch.float32) > limit
        casting = self.place.type == "cpu" and dtype == torch.float32 and large
        module = build.load(
            owner.parts[name], device=self.place, dtype=dtype, config=config, tensors=tensors, layerwise_casting=casting
        )
        if dtype is not None and not casting and any(STORED.get(tensors.dtype(key)) != dtype for key in tensors):
            owner.forget(name)  # of which there is a copy now
        merge(self.changes if owner is self.checkpoint else [], name, module)
        return module

    def stage(self, stage: Stage, owner: ImageCheckpoint) -> LoadedStage:
        schedule = schedule_of(owner.configs[stage.scheduler])
        raw, tensors = owner.open(stage.network)
        kinds = {tensors.dtype(name) for name in tensors}
        precision = pick_dtype(self.dtype, self.place, kinds)
        if self.dtype == "auto" and self.place.type == "cpu":
            precision = torch.float32
        elif precision is None and build.is_packed(tensors):  # of which no other device multiplies packed matrices
            precision = torch.bfloat16
        kind = architecture_name(raw, owner.parts[stage.network] / "config.json")
        if precision == torch.float16 and build.overflows_in_half(kind):
            precision = torch.bfloat16
        config = architecture(kind).Config.from_dict(raw)
        network: Held[BaseModel] = Held(
            lambda: _for_convolution(self.part(owner, stage.network, precision, NETWORK_LIMIT), self.place),
            lambda module: [module],
            lambda: owner.forget(stage.network),
        )
        compute = precision or next((STORED[kind] for kind in sorted(kinds) if kind in STORED), torch.float32)
        conditioner = self.conditioner(stage, owner, precision)
        codec = self.codec(owner)
        view = self.view(owner, codec)

        def load_part(name: str) -> BaseModel:
            return self.part(owner, name, precision)

        return LoadedStage(stage, owner, schedule, config, compute, codec, view, network, conditioner, load_part)

    def codec(self, owner: ImageCheckpoint) -> Codec:
        """Load the autoencoder of a checkpoint, once."""
        if (key := str(owner.folder)) not in self.codecs:
            name, vae = owner.family.autoencoder, None
            if name is not None:
                vae = cast(Autoencoder, self.part(owner, name, torch.float32))
                vae = _for_convolution(vae, self.place)
            self.codecs[key] = Codec(vae, owner.channels, owner.factor, self.place)
        return self.codecs[key]

    def view(self, owner: ImageCheckpoint, codec: Codec) -> Codec:
        """Load the tiny autoencoder of a checkpoint, if it is wanted and here."""
        part = find_tiny(owner) if self.views else None
        if part is None or codec.vae is None or part.config.get("latent_channels", 4) != codec.vae.latent_channels:
            return codec
        self.loading(f"{owner.family.tiny}")
        config, tensors = part.config, part.tensors()
        tiny = build.load(part.path, device=self.place, dtype=torch.float32, config=config, tensors=tensors)
        return Codec(cast(Autoencoder, tiny), owner.channels, owner.factor, self.place)

    def conditioner(
        self, stage: Stage, owner: ImageCheckpoint, precision: torch.dtype | None
    ) -> Held[Conditioner | None]:
        """What turns prompts into conditioning; one for all stages that read by the same text encoder."""
        encoders = sorted(path for name, path in owner.parts.items() if "text_encoder" in name)
        key: object = (stage.conditioner, *encoders) if encoders and stage.conditioner else id(stage)
        if key not in self.conditioners:
            self.conditioners[key] = Held(
                lambda: self._load_conditioner(stage, owner, precision),
                lambda made: [] if made is None else [encoder for _, encoder in made.text_encoders],
                lambda: owner.forget(*(name for name in owner.parts if "text_encoder" in name)),
            )
        return self.conditioners[key]

    def _load_conditioner(
        self, stage: Stage, owner: ImageCheckpoint, precision: torch.dtype | None
    ) -> Conditioner | None:
        if stage.conditioner is None:
            return None
        load = pkgutil.resolve_name(path_of(stage.conditioner))
        made: Conditioner | None = load(owner, lambda name: self.part(owner, name, precision))
        if made is not None and self.embeddings and stage is self.checkpoint.main:
            install(self.embeddings, cast(TextEncoders, made.text_encoders), self.checkpoint.name)
        return made


def _is_for_packing(owner: ImageCheckpoint, name: str) -> bool:
    """Return whether --quantize packs a part: a network, or a text encoder that is a language model."""
    is_network = any(stage.network == name for stage in owner.family.stages)
    kind = owner.configs[name].get("model_type") if name in owner.configs else None
    return (is_network or kind in READ_BY_DECODERS) and not build.is_packed(owner.open(name)[1])


def _check_packing(checkpoint: ImageCheckpoint) -> None:
    """Raise GencliError where there is nothing left to pack."""
    owners = (*checkpoint.earlier, checkpoint, *checkpoint.further)
    if not any(_is_for_packing(owner, name) for owner in owners for name in owner.configs if name in owner.parts):
        raise GencliError(f"--quantize: the weights of {checkpoint.name} are packed already")


M = TypeVar("M", bound=BaseModel)


def _for_convolution(module: M, device: torch.device) -> M:
    """On CUDA, weights laid out for its convolutions.

    On a CPU that gained 5 % for small UNets and lost 8 % for Stable Diffusion's, and it copies what is memory-mapped.
    """
    return channels_last(module) if device.type == "cuda" else module
