"""Whether the configs of a checkpoint go together, told before any weight is read. No torch.

Each check raises GencliError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from gencli.errors import GencliError

Config = Mapping[str, object]


class Described(Protocol):
    """What the small files of a checkpoint say. configs: of each part. index: model_index.json."""

    @property
    def folder(self) -> Path: ...
    @property
    def configs(self) -> Mapping[str, Config]: ...
    @property
    def index(self) -> Config: ...
    @property
    def prompt(self) -> str: ...


def _times(factor: int, channels: object, plus: int = 0) -> float | None:
    """Return a multiple of a number of channels and more; None where it is no number."""
    return factor * channels + plus if isinstance(channels, int | float) else None


def nothing(checkpoint: Described) -> None:
    """All goes together."""


def pixels(checkpoint: Described) -> None:
    """The UNet reads as many channels as an image has."""
    channels = checkpoint.configs["unet"].get("in_channels", 3)
    if channels not in (1, 3):
        raise unsupported(checkpoint, "UNet", "in_channels", channels)


def latents(checkpoint: Described) -> None:
    """The UNet reads latents, or latents, a mask and those of an image."""
    _check_channels(checkpoint, lambda latent: (latent, 2 * latent + 1))


def edited_latents(checkpoint: Described) -> None:
    """The UNet reads latents and those of an image to edit."""
    _check_channels(checkpoint, lambda latent: (2 * latent,))


def _check_channels(checkpoint: Described, fitting: Callable[[int], tuple[int, ...]]) -> None:
    unet, vae = checkpoint.configs["unet"], checkpoint.configs["vae"]
    _check_texts(checkpoint)
    _check_nothing_added(checkpoint)
    latent = vae.get("latent_channels", 4)
    if not isinstance(latent, int):
        raise GencliError(f"{checkpoint.folder}: vae: latent_channels = {latent!r:.80} is not a number")
    if (channels := unet.get("in_channels", 4)) not in fitting(latent):
        known = f"with its autoencoder of {latent} channels, {' or '.join(map(str, fitting(latent)))} is known"
        raise unsupported(checkpoint, "UNet", "in_channels", channels, known)
    if (channels := unet.get("out_channels", 4)) != latent:
        raise unsupported(checkpoint, "UNet", "out_channels", channels, f"its autoencoder has {latent} channels")


def transformer(checkpoint: Described) -> None:
    """A DiT has an autoencoder, and reads and makes as many channels."""
    if "vae" not in checkpoint.configs:
        raise GencliError(
            f"{checkpoint.folder}: a DiT without its autoencoder, as its own files are",
            "--vae ID|FILE names one: Stable Diffusion 1's, as in stabilityai/sd-vae-ft-ema",
        )
    network, channels = checkpoint.configs["transformer"], checkpoint.configs["vae"].get("latent_channels", 4)
    reads, makes = network.get("in_channels", 4), network.get("out_channels")
    twice = _times(2, reads)
    for key, value, known in (("in_channels", reads, [channels]), ("out_channels", makes, [None, reads, twice])):
        if value not in known:
            hint = f"its autoencoder has {channels!r:.40} channels"
            raise unsupported(checkpoint, "transformer", key, value, hint)


def imagen(checkpoint: Described, reads: int = 3) -> None:
    """The UNet reads as many channels as `reads`, predicts ε and a variance, and reads the states of T5."""
    unet = checkpoint.configs["unet"]
    for key, known in (("in_channels", [reads]), ("out_channels", [3, 6])):
        value = unet.get(key, 4)
        if value not in known:
            raise unsupported(checkpoint, "UNet", key, value, f"{' or '.join(map(str, known))} is known here")
    check_text_width(checkpoint, checkpoint.configs.get("text_encoder"))


def check_text_width(checkpoint: Described, text_encoder: Config | None) -> None:
    """Raise GencliError for a UNet that reads another width than T5 gives."""
    unet = checkpoint.configs["unet"]
    key = "cross_attention_dim" if unet.get("encoder_hid_dim") is None else "encoder_hid_dim"
    if text_encoder is not None and unet.get(key, 1280) != text_encoder.get("d_model", 512):
        raise GencliError(
            f"{checkpoint.folder}: a UNet with {key} = {unet.get(key, 1280)!s:.40} and a text encoder with d_model = "
            f"{text_encoder.get('d_model', 512)!s:.40} do not fit each other"
        )


def unclip(checkpoint: Described) -> None:
    """The widths of the embeddings of texts and images, and of what the decoder reads, are the same everywhere."""
    folder, configs = checkpoint.folder, checkpoint.configs
    decoder, project, text = configs["decoder"], configs["text_proj"], configs["text_encoder"]
    if text.get("architectures") != ["CLIPTextModelWithProjection"]:
        raise GencliError(f"{folder}: text_encoder has no projection (architectures = {text.get('architectures')})")
    pairs = [("text_encoder", text.get("projection_dim", 512)), ("text_encoder", text.get("hidden_size", 512))]
    if "prior" in configs:
        pairs.append(("prior", configs["prior"].get("embedding_dim", 768)))
    if "image_encoder" in configs:
        pairs.append(("image_encoder", configs["image_encoder"].get("projection_dim", 512)))
    clip = project.get("clip_embeddings_dim", 768)
    for name, width in pairs:
        if width != clip:
            raise GencliError(f"{folder}: {name} of width {width!s:.40} and text_proj of {clip!s:.40} do not fit")
    if decoder.get("class_embed_type") != "identity":
        kind = decoder.get("class_embed_type")
        raise unsupported(checkpoint, "decoder", "class_embed_type", kind, "identity is known here")
    if decoder.get("cross_attention_dim", 1280) != project.get("cross_attention_dim", 1536):
        raise GencliError(f"{folder}: decoder and text_proj have another cross_attention_dim each")
    small, large = decoder.get("sample_size"), configs["super_res_last"].get("sample_size")
    if not isinstance(small, int) or not isinstance(large, int) or not 1 <= small <= large or large % small:
        raise GencliError(f"{folder}: decoder and super_res_last: sample_size = {small!s:.40} and {large!s:.40}")
    for name in ("super_res_first", "super_res_last"):
        if (channels := configs[name].get("in_channels", 3)) != 6:
            raise unsupported(checkpoint, name, "in_channels", channels, "6 is known here")


def stable_unclip(checkpoint: Described) -> None:
    """The UNet reads latents, the states of the text, and embeddings as wide as those that it is given, with waves."""
    configs, unet = checkpoint.configs, checkpoint.configs["unet"]
    _check_texts(checkpoint)
    latent = configs["vae"].get("latent_channels", 4)
    for key in ("in_channels", "out_channels"):
        if (value := unet.get(key, 4)) != latent:
            raise unsupported(checkpoint, "UNet", key, value, f"its autoencoder has {latent} channels")
    if (kind := unet.get("class_embed_type")) != "projection":
        raise unsupported(checkpoint, "UNet", "class_embed_type", kind, "projection is known here")
    width = number(configs["image_normalizer"], "embedding_dim", 768)
    pairs = [("UNet", unet.get("projection_class_embeddings_input_dim"), 2 * width)]
    if "image_encoder" in configs:
        pairs.append(("image_encoder", configs["image_encoder"].get("projection_dim", 512), width))
    if "prior" in configs:
        pairs.append(("prior", configs["prior"].get("embedding_dim", 768), width))
        check_prior(checkpoint, "prior_text_encoder")
    for name, value, wanted in pairs:
        if value != wanted:
            fits = f"image_normalizer of {width} wants {wanted}"
            raise GencliError(f"{checkpoint.folder}: {name} of width {value!s:.40}: {fits}")


def kandinsky_prior(checkpoint: Described, prefix: str = "") -> None:
    """The embeddings of texts, of images and of the prior are as wide as each other."""
    prior, encoder = checkpoint.configs[f"{prefix}prior"], checkpoint.configs[f"{prefix}image_encoder"]
    check_prior(checkpoint, f"{prefix}text_encoder", f"{prefix}prior")
    width, made = prior.get("embedding_dim", 768), encoder.get("projection_dim", 512)
    if width != made:
        raise GencliError(
            f"{checkpoint.folder}: {prefix}prior of width {width!s:.40} and {prefix}image_encoder of {made!s:.40} do "
            "not fit"
        )


def kandinsky(checkpoint: Described) -> None:
    """The UNet reads latents and the embedding of an image; of a pipeline with its prior, one as wide as it draws."""
    unet, latent = checkpoint.configs["unet"], checkpoint.configs["movq"].get("latent_channels", 3)
    for key, known in (
        ("addition_embed_type", "image"),
        ("encoder_hid_dim_type", "image_proj"),
        ("in_channels", latent),
        ("out_channels", _times(2, latent)),
    ):
        if (value := unet.get(key)) != known:
            raise unsupported(checkpoint, "UNet", key, value, f"{known} is known here")
    if (kind := checkpoint.configs["movq"].get("norm_type")) != "spatial":
        raise unsupported(checkpoint, "movq", "norm_type", kind, "spatial is known here")
    if "prior_prior" in checkpoint.configs:
        kandinsky_prior(checkpoint, "prior_")
        check_embeddings(checkpoint, checkpoint.configs["prior_prior"])


def check_embeddings(checkpoint: Described, prior: Config) -> None:
    """Raise GencliError for a decoder that reads embeddings of another width than a prior draws."""
    reads, draws = checkpoint.configs["unet"].get("encoder_hid_dim"), prior.get("embedding_dim", 768)
    if reads != draws:
        raise GencliError(
            f"{checkpoint.folder}: a UNet with encoder_hid_dim = {reads!s:.40} and a prior with embedding_dim = "
            f"{draws!s:.40} do not fit each other"
        )


def check_prior(checkpoint: Described, text_encoder: str = "text_encoder", prior: str = "prior") -> None:
    """A prior reads texts as wide as its embeddings, projected."""
    text, width = checkpoint.configs[text_encoder], checkpoint.configs[prior].get("embedding_dim", 768)
    if text.get("architectures") != ["CLIPTextModelWithProjection"]:
        found = f"architectures = {text.get('architectures')!s:.80}"
        raise GencliError(f"{checkpoint.folder}: {text_encoder} has no projection ({found})")
    for key in ("projection_dim", "hidden_size"):
        if text.get(key, 512) != width:
            fits = f"{text_encoder} with {key} = {text.get(key, 512)!s:.40}"
            raise GencliError(f"{checkpoint.folder}: prior of width {width!s:.40} and {fits} do not fit")


def imagen_upscaler(checkpoint: Described) -> None:
    """As `imagen`; the UNet also reads the image to enlarge, and how much noise was added to it."""
    imagen(checkpoint, 6)
    if (kind := checkpoint.configs["unet"].get("class_embed_type")) != "timestep":
        raise unsupported(checkpoint, "UNet", "class_embed_type", kind, "timestep is known here")


def latent_diffusion(checkpoint: Described) -> None:
    """The UNet reads as many channels as the latents have, and states as wide as those of a text encoder, if any."""
    unet, vqvae = checkpoint.configs["unet"], checkpoint.configs["vqvae"]
    if vqvae["_class_name"] == "VQModel":
        channels = vqvae.get("vq_embed_dim") or vqvae.get("latent_channels", 3)
    else:
        channels = vqvae.get("latent_channels", 4)
    if unet.get("in_channels", 3 if checkpoint.prompt == "none" else 4) != channels:
        hint = f"its autoencoder has {channels} channels"
        raise unsupported(checkpoint, "UNet", "in_channels", unet.get("in_channels"), hint)
    if "bert" in checkpoint.configs:
        _check_nothing_added(checkpoint)
        reads, width = unet.get("cross_attention_dim", 1280), checkpoint.configs["bert"].get("d_model", 1280)
        if reads != width:
            raise GencliError(
                f"{checkpoint.folder}: a UNet with cross_attention_dim = {reads!s:.40} and a text encoder with "
                f"d_model = {width!s:.40} do not fit each other"
            )


def edited_latents_xl(checkpoint: Described) -> None:
    """As `edited_latents`, for SDXL. Refuses CosXL, whose image is scaled and whose noise is another."""
    if checkpoint.index.get("is_cosxl_edit"):
        raise GencliError(f"{checkpoint.folder / 'model_index.json'}: is_cosxl_edit = true is not supported")
    stable_diffusion_xl(checkpoint, edited_latents)


def stable_diffusion_xl(checkpoint: Described, channels: Callable[[Described], None] = latents) -> None:
    """The UNet reads the pooled text and as many numbers as its pipeline gives: five with an aesthetic score."""
    folder, configs = checkpoint.folder, checkpoint.configs
    channels(checkpoint)
    unet, second = configs["unet"], configs["text_encoder_2"]
    if (kind := unet.get("addition_embed_type")) != "text_time":
        raise GencliError(f"{folder}: SDXL with a UNet of addition_embed_type = {kind!r:.40} is not supported")
    if second.get("architectures") != ["CLIPTextModelWithProjection"]:
        raise GencliError(f"{folder}: text_encoder_2 has no projection (architectures = {second.get('architectures')})")
    word, numbers = ("five", 5) if checkpoint.index.get("requires_aesthetics_score") else ("six", 6)
    width = numbers * number(unet, "addition_time_embed_dim", 0) + number(second, "projection_dim", 512)
    key = "projection_class_embeddings_input_dim"
    if unet.get(key) != width:
        raise unsupported(checkpoint, "UNet", key, unet.get(key), f"{word} numbers and the pooled text make {width}")


def upscaler(checkpoint: Described) -> None:
    """The UNet reads latents and the pixels of a small image, and is told the noise in these as a number."""
    unet, latent = checkpoint.configs["unet"], checkpoint.configs["vae"].get("latent_channels", 4)
    _check_texts(checkpoint)
    for key, known in (("in_channels", _times(1, latent, plus=3)), ("out_channels", latent)):
        if (value := unet.get(key, 4)) != known:
            hint = f"its autoencoder has {latent} channels: {known} is known"
            raise unsupported(checkpoint, "UNet", key, value, hint)
    if unet.get("num_class_embeds") is None:
        raise unsupported(checkpoint, "UNet", "num_class_embeds", None, "it is told the level of the noise as a class")
    levels = checkpoint.configs["vae"].get("block_out_channels", [0])
    if not isinstance(levels, Sequence) or len(levels) != 3:
        raise GencliError(
            f"{checkpoint.folder}: an upscaler's autoencoder has 3 levels, four pixels a side of a latent"
        )


def _check_nothing_added(checkpoint: Described) -> None:
    """The UNet reads nothing that these families do not give."""
    for key in ("class_embed_type", "num_class_embeds", "encoder_hid_dim"):
        if (value := checkpoint.configs["unet"].get(key)) is not None:
            raise unsupported(checkpoint, "UNet", key, value)


def _check_texts(checkpoint: Described) -> None:
    """The UNet reads states as wide as those of its text encoders together, and a pooled text only if one gives it."""
    unet, configs = checkpoint.configs["unet"], checkpoint.configs
    encoders = [name for name in ("text_encoder", "text_encoder_2") if name in configs]
    width = sum(number(configs[name], "hidden_size", 512) for name in encoders)
    reads = unet.get("cross_attention_dim", 1280)
    if any(one != width for one in (reads if isinstance(reads, list) else [reads])):
        raise GencliError(
            f"{checkpoint.folder}: a UNet with cross_attention_dim = {reads!r:.40} and {' and '.join(encoders)} with "
            f"hidden_size = {width} do not fit each other"
        )
    if (kind := unet.get("addition_embed_type")) is not None and "text_encoder_2" not in configs:
        raise GencliError(f"{checkpoint.folder}: addition_embed_type = {kind!r:.40} without text_encoder_2")


def number(config: Config, key: str, default: int) -> int:
    """Return a whole number of a config. Raise GencliError for another value."""
    value = config.get(key, default)
    if not isinstance(value, int):
        raise GencliError(f"config.json: {key} = {value!r:.40} is not a number")
    return value


def unsupported(checkpoint: Described, network: str, key: str, value: object, hint: str | None = None) -> GencliError:
    """Return the error for a value that a network of these families cannot have."""
    return GencliError(f"{checkpoint.folder}: a {network} with {key} = {value!r:.80} is not supported", hint)
