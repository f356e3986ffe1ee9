"""Whether the configs of a transformer's checkpoint go together, as `checks`. No torch.

Each check raises GencliError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gencli.errors import GencliError
from gencli.image.families.checks import Described, number, transformer, unsupported


def pixart(checkpoint: Described) -> None:
    """As `transformer`; it reads states as wide as those of T5."""
    transformer(checkpoint)
    reads, width = (
        number(checkpoint.configs[part], key, 4096)
        for part, key in (("transformer", "caption_channels"), ("text_encoder", "d_model"))
    )
    if reads != width:
        raise unsupported(checkpoint, "transformer", "caption_channels", reads, f"its text encoder gives {width}")


def stable_diffusion_3(checkpoint: Described) -> None:
    """The transformer reads as many channels as the latents have, states as wide as T5's, at least those of both CLIPs,
    and their pooled texts."""
    network, configs = checkpoint.configs["transformer"], checkpoint.configs
    clips = [configs[name] for name in ("text_encoder", "text_encoder_2")]
    for name, clip in zip(("text_encoder", "text_encoder_2"), clips, strict=True):
        if clip.get("architectures") != ["CLIPTextModelWithProjection"]:
            found = clip.get("architectures")
            raise GencliError(f"{checkpoint.folder}: {name} has no projection (architectures = {found!s:.80})")
    channels = number(configs["vae"], "latent_channels", 4)
    pooled = sum(number(clip, "projection_dim", 512) for clip in clips)
    width = number(network, "joint_attention_dim", 4096)
    for key, default, wanted, hint in (
        ("in_channels", 16, channels, f"its autoencoder makes {channels}"),
        ("pooled_projection_dim", 2048, pooled, f"its CLIPs give {pooled}"),
        ("joint_attention_dim", 4096, configs.get("text_encoder_3", {}).get("d_model", width), "T5 has another width"),
    ):
        if (reads := network.get(key, default)) != wanted:
            raise unsupported(checkpoint, "transformer", key, reads, hint)
    if (clips_width := sum(number(clip, "hidden_size", 512) for clip in clips)) > width:
        raise unsupported(checkpoint, "transformer", "joint_attention_dim", width, f"its CLIPs give {clips_width}")


def flux(checkpoint: Described) -> None:
    """The transformer reads four latents as one, states as wide as T5's, and the pooled text of CLIP."""
    _check_flux(checkpoint, 4 * number(checkpoint.configs["vae"], "latent_channels", 4))


def flux_fill(checkpoint: Described) -> None:
    """As `flux`; it also reads the latents of an image, and each pixel of a mask."""
    vae = checkpoint.configs["vae"]
    levels = vae.get("block_out_channels")
    pixels = 4 ** (len(levels) - 1 if isinstance(levels, Sequence) else 0)
    _check_flux(checkpoint, 4 * (2 * number(vae, "latent_channels", 4) + pixels))


def _check_flux(checkpoint: Described, channels: int) -> None:
    network, configs = checkpoint.configs["transformer"], checkpoint.configs
    makes = 4 * number(configs["vae"], "latent_channels", 4)
    if network.get("out_channels") not in (None, makes):
        out = network.get("out_channels")
        raise unsupported(checkpoint, "transformer", "out_channels", out, f"its autoencoder has {makes}")
    for key, default, width, whose in (
        ("in_channels", 64, channels, f"its autoencoder makes {channels}"),
        ("joint_attention_dim", 4096, number(configs["text_encoder_2"], "d_model", 512), "that is T5's width"),
        ("pooled_projection_dim", 768, number(configs["text_encoder"], "hidden_size", 512), "that is CLIP's width"),
    ):
        if (reads := network.get(key, default)) != width:
            hint = whose if key == "in_channels" else f"it must be {width}: {whose}"
            raise unsupported(checkpoint, "transformer", key, reads, hint)


def chroma(checkpoint: Described) -> None:
    """The transformer reads four latents as one, and states as wide as T5's."""
    configs = checkpoint.configs
    channels = 4 * number(configs["vae"], "latent_channels", 4)
    width = number(configs["text_encoder"], "d_model", 512)
    for key, default, wanted, hint in (
        ("in_channels", 64, channels, f"its autoencoder makes {channels}"),
        ("joint_attention_dim", 4096, width, f"it must be {width}: that is T5's width"),
    ):
        if (reads := configs["transformer"].get(key, default)) != wanted:
            raise unsupported(checkpoint, "transformer", key, reads, hint)


def z_image(checkpoint: Described) -> None:
    """The transformer reads as many channels as the latents have, and captions as wide as the text encoder's states."""
    _check_flow(checkpoint, 1, "cap_feat_dim", 2560, 1)


def flux2(checkpoint: Described) -> None:
    """As `z_image`; four latents are one, and three layers of states lie beside each other, of which the last is the
    27th."""
    _check_flow(checkpoint, 4, "joint_attention_dim", 15360, 3)
    if (layers := number(checkpoint.configs["text_encoder"], "num_hidden_layers", 32)) < 27:
        raise unsupported(checkpoint, "text encoder", "num_hidden_layers", layers, "its 27th layer is read")


def qwen_image(checkpoint: Described) -> None:
    """The transformer reads four latents as one, and states as wide as those of the text encoder."""
    configs, text = checkpoint.configs, checkpoint.configs["text_encoder"]
    inner = text.get("text_config")
    width = number(inner if isinstance(inner, Mapping) and "hidden_size" in inner else text, "hidden_size", 8192)
    channels = 4 * number(configs["vae"], "z_dim", 16)
    for key, default, wanted, hint in (
        ("in_channels", 64, channels, f"its autoencoder makes {channels}"),
        ("joint_attention_dim", 3584, width, f"its text encoder gives {width}"),
    ):
        if (reads := configs["transformer"].get(key, default)) != wanted:
            raise unsupported(checkpoint, "transformer", key, reads, hint)


def qwen_image_edit(checkpoint: Described) -> None:
    """As `qwen_image`; the text encoder has a tower that reads images."""
    qwen_image(checkpoint)
    if not isinstance(checkpoint.configs["text_encoder"].get("vision_config"), Mapping):
        raise GencliError(f"{checkpoint.folder}: text_encoder has no vision_config, and so reads no images")


def _check_flow(checkpoint: Described, latents: int, key: str, default: int, layers: int) -> None:
    network, configs = checkpoint.configs["transformer"], checkpoint.configs
    channels = latents * number(configs["vae"], "latent_channels", 32 if latents > 1 else 4)
    if (reads := network.get("in_channels", 128 if latents > 1 else 16)) != channels:
        raise unsupported(checkpoint, "transformer", "in_channels", reads, f"its autoencoder makes {channels}")
    width = layers * number(configs["text_encoder"], "hidden_size", 4096)
    if (reads := network.get(key, default)) != width:
        raise unsupported(checkpoint, "transformer", key, reads, f"its text encoder gives {width}")
