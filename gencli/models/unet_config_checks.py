"""What the configs of UNets and autoencoders share: whether their levels, sizes and kinds of blocks are supported."""

from __future__ import annotations

from typing import Protocol

from gencli.errors import GencliError
from gencli.models.base import check_flags, check_ints, check_numbers


def refuse(key: str, value: object, hint: str | None = None) -> GencliError:
    return GencliError(f"config.json: {key} = {value!r} is not supported", hint)


class Levels(Protocol):
    """The config of a UNet or an autoencoder: a width per level."""

    @property
    def block_out_channels(self) -> tuple[int, ...]: ...
    @property
    def norm_num_groups(self) -> int: ...
    @property
    def act_fn(self) -> str: ...


class Sampled(Protocol):
    """The config of what images of a size were trained on."""

    @property
    def sample_size(self) -> object: ...


class UNet(Sampled, Protocol):
    """The config of a UNet."""

    @property
    def mid_block_type(self) -> str | None: ...
    @property
    def resnet_time_scale_shift(self) -> str: ...


def check_levels(
    config: Levels, down: tuple[str, ...], up: tuple[str, ...], act_fns: tuple[str, ...] = ("silu", "swish")
) -> None:
    """Raise GencliError unless the levels of a UNet or autoencoder fit: a known block type per width, whole groups."""
    for key, known in (("block_out_channels", None), ("down_block_types", down), ("up_block_types", up)):
        value = getattr(config, key)
        if not isinstance(value, tuple) or not 1 <= len(value) <= 8:
            raise GencliError(f"config.json: {key} = {value!r} is not a list of 1 to 8")
        for name in value:
            if known is not None and name not in known:
                raise refuse(key, name, f"gencli knows {', '.join(known)}")
        if len(value) != len(config.block_out_channels):
            raise GencliError(
                f"config.json: {key} has {len(value)} entries, block_out_channels {len(config.block_out_channels)}"
            )
    check_ints(config, {"block_out_channels": 2**14, "norm_num_groups": 2**14})
    for width in config.block_out_channels:
        if width % config.norm_num_groups:
            groups = config.norm_num_groups
            raise GencliError(f"config.json: block_out_channels has {width}, no multiple of norm_num_groups = {groups}")
    if config.act_fn not in act_fns:
        raise refuse("act_fn", config.act_fn, f"gencli knows {', '.join(act_fns)}")


def check_unet(config: UNet, mid_blocks: tuple[str | None, ...]) -> None:
    """Raise GencliError unless what the configs of all UNets have beside their levels is supported."""
    check_ints(config, {"in_channels": 1024, "out_channels": 1024, "layers_per_block": 16})
    check_ints(config, {"downsample_padding": 1}, least=0)
    numbers = {"norm_eps": (0.0, 1.0), "mid_block_scale_factor": (1e-6, 1e6), "dropout": (0.0, 1.0)}
    check_numbers(config, numbers | {"freq_shift": (0.0, 1.0)})
    check_sample_size(config)
    check_flags(config)
    if config.mid_block_type not in mid_blocks:
        raise refuse("mid_block_type", config.mid_block_type, f"gencli knows {', '.join(map(str, mid_blocks))}")
    if config.resnet_time_scale_shift not in ("default", "scale_shift"):
        raise refuse("resnet_time_scale_shift", config.resnet_time_scale_shift)


def check_sample_size(config: Sampled) -> None:
    """Raise GencliError unless `sample_size` is a side, a height and a width, or None."""
    if config.sample_size is not None:
        check_ints(config, {"sample_size": 2**14})
        if isinstance(config.sample_size, tuple) and len(config.sample_size) != 2:
            raise GencliError(f"config.json: sample_size = {config.sample_size!r} is not a height and width")
