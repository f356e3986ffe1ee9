"""The config of the UNet conditioned on a text, and of the ControlNets beside it; see `unet_2d_condition`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from gencli.errors import GencliError
from gencli.models.activations import check_activation
from gencli.models.base import BaseConfig, check_ints, check_numbers
from gencli.models.unet_config_checks import check_levels, check_unet, refuse

CROSSED = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D", "UNetMidBlock2DCrossAttn")
SIMPLE = ("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D", "UNetMidBlock2DSimpleCrossAttn")
RESAMPLED = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D", *SIMPLE)  # which change the size in a residual block
DOWN = ("CrossAttnDownBlock2D", "DownBlock2D", "SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D")
UP = ("CrossAttnUpBlock2D", "UpBlock2D", "SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D")
MID = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2DSimpleCrossAttn", "UNetMidBlock2D", None)
ACT_FNS = ("silu", "swish", "gelu")
DEPTHS = ("transformer_layers_per_block", "reverse_transformer_layers_per_block")


@dataclass(frozen=True)
class UNet2DConditionConfig(BaseConfig):
    """config.json of a text-conditioned UNet; defaults are those of the class in diffusers.

    Where a tuple may stand for an int it has one value per level, largest images first. attention_head_dim: the NUMBER
    of heads (diffusers issue 2011), like num_attention_heads, which later configs have beside it; in SimpleCrossAttn
    blocks the size of a head. only_cross_attention: positions attend to the text alone and not to each other (the mid
    block too where it is one flag, unless mid_block_only_cross_attention says otherwise).
    transformer_layers_per_block: may have a tuple per attention of a level; then `reverse_…`, deepest level first, is
    of the up blocks. addition_embed_type: text_time for SDXL's pooled text and numbers with `addition_time_embed_dim`
    sinusoids each. time_cond_proj_dim: width of the guidance embedding of a latent consistency model.
    """

    ONLY: ClassVar = {
        "dual_cross_attention": (False,),
        "time_embedding_type": ("positional",),
        "conv_in_kernel": (3,),
        "conv_out_kernel": (3,),
        "attention_type": ("default",),
        "class_embeddings_concat": (False,),
    }
    INERT = frozenset({"upcast_attention"})  # softmax is always in float32

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    only_cross_attention: bool | tuple[bool, ...] = False
    mid_block_only_cross_attention: bool | None = None
    cross_attention_norm: str | None = None
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1
    dropout: float = 0.0
    act_fn: str = "silu"
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int | tuple[int, ...] = 1280
    transformer_layers_per_block: int | tuple[int | tuple[int, ...], ...] = 1
    reverse_transformer_layers_per_block: tuple[int | tuple[int, ...], ...] | None = None
    attention_head_dim: int | tuple[int, ...] = 8
    num_attention_heads: int | tuple[int, ...] | None = None
    use_linear_projection: bool = False
    resnet_time_scale_shift: str = "default"
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: float = 1.0
    time_embedding_dim: int | None = None
    time_embedding_act_fn: str | None = None
    time_cond_proj_dim: int | None = None
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    encoder_hid_dim: int | None = None
    encoder_hid_dim_type: str | None = None
    addition_embed_type: str | None = None
    addition_embed_type_num_heads: int = 64
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        told = {} if raw.get("encoder_hid_dim") is None else {"encoder_hid_dim_type": "text_proj"}  # of older files
        given = {key: _tuples(value) if key in DEPTHS else value for key, value in raw.items()}
        return {**told, **{key: value for key, value in given.items() if key not in told or value is not None}}

    def check(self) -> None:
        check_levels(self, DOWN, UP, ACT_FNS)
        check_unet(self, MID)
        check_ints(self, {"cross_attention_dim": 2**14, "attention_head_dim": 2**10})
        optional = ("time_embedding_dim", "num_attention_heads", "time_cond_proj_dim", "num_class_embeds")
        for key in (*optional, "encoder_hid_dim"):
            if getattr(self, key) is not None:
                check_ints(self, {key: 2**15})
        for key in ("layers_per_block", "cross_attention_dim", "attention_head_dim", "only_cross_attention"):
            self.levels(key)
        for level, layers in enumerate(self.levels("layers_per_block")):
            self.depths(level, layers)
            self.depths(level, layers + 1, up=True)
        self._check_embeddings()
        self._check_attentions()

    def _check_embeddings(self) -> None:
        known: dict[str, tuple[str | None, ...]] = {
            "addition_embed_type": (None, "text_time", "text", "image"),
            "class_embed_type": (None, "timestep", "identity", "projection"),
            "encoder_hid_dim_type": (None, "text_proj", "image_proj"),
            "cross_attention_norm": (None, "group_norm"),
        }
        for key, values in known.items():
            if getattr(self, key) not in values:
                raise refuse(key, getattr(self, key), f"gencli knows {', '.join(map(str, values[1:]))}")
        if self.addition_embed_type == "text_time":
            check_ints(self, {"addition_time_embed_dim": 2**15, "projection_class_embeddings_input_dim": 2**15})
        if self.class_embed_type == "projection":
            check_ints(self, {"projection_class_embeddings_input_dim": 2**15})
        if self.encoder_hid_dim_type is not None or self.addition_embed_type == "image":
            check_ints(self, {"encoder_hid_dim": 2**15})
            if isinstance(self.cross_attention_dim, tuple):
                raise refuse("cross_attention_dim", self.cross_attention_dim, "one width, with encoder_hid_dim")
        check_numbers(self, {"resnet_out_scale_factor": (1e-6, 1e6)})
        if self.time_embedding_act_fn is not None:
            check_activation("time_embedding_act_fn", self.time_embedding_act_fn)
        if self.addition_embed_type == "text":
            check_ints(self, {"addition_embed_type_num_heads": 2**10})
            if self.text_width % self.addition_embed_type_num_heads:
                raise GencliError(
                    f"config.json: text width {self.text_width} is not a multiple of addition_embed_type_num_heads = "
                    f"{self.addition_embed_type_num_heads}"
                )

    def _check_attentions(self) -> None:
        only = self.only_cross_attention
        if not all(isinstance(one, bool) for one in (only if isinstance(only, tuple) else (only,))):
            raise refuse("only_cross_attention", only)
        for width, heads, size, kinds in zip(
            self.block_out_channels, self.heads, self.levels("attention_head_dim"), self._kinds(), strict=True
        ):
            if kinds & {*CROSSED} and width % heads:
                raise GencliError(f"config.json: block_out_channels has {width}, no multiple of its {heads} heads")
            if kinds & {*SIMPLE} and width % size:
                raise GencliError(f"config.json: block_out_channels has {width}, no multiple of its heads' size {size}")
        if self.cross_attention_norm is not None and any(one % 32 for one in self.levels("cross_attention_dim")):
            raise GencliError(f"config.json: cross_attention_dim = {self.cross_attention_dim} is not a multiple of 32")

    def _kinds(self) -> list[set[str | None]]:
        """The types of the blocks of each level; the mid block is of the deepest."""
        pairs = zip(self.down_block_types, self.up_block_types[::-1], strict=True)
        kinds: list[set[str | None]] = [{*pair} for pair in pairs]
        kinds[-1].add(self.mid_block_type)
        return kinds

    @property
    def text_width(self) -> int:
        """Width of the text as the model is given it."""
        return self.encoder_hid_dim or max(self.levels("cross_attention_dim"))

    @property
    def last_level(self) -> int:
        """The number of the deepest level, from 0."""
        return len(self.block_out_channels) - 1

    @property
    def mid_only_cross_attention(self) -> bool:
        """Whether positions of the mid block attend to the text alone."""
        own, of_levels = self.mid_block_only_cross_attention, self.only_cross_attention
        return bool(of_levels is True if own is None else own)

    def depths(self, level: int, attentions: int, *, up: bool = False) -> tuple[int, ...]:
        """Return the layers of each of a level's `attentions`, in the down or up blocks. Raises GencliError."""
        own = up and self.reverse_transformer_layers_per_block is not None
        depth = self.levels(DEPTHS[own])[-1 - level if own else level]
        depths = depth if isinstance(depth, tuple) else (depth,) * attentions
        if len(depths) != attentions or not all(type(one) is int and 0 <= one <= 64 for one in depths):
            raise GencliError(
                f"config.json: {DEPTHS[own]} has {depth!r:.80} for level {level + 1}",
                f"it has {attentions} attentions, each of 0 to 64 layers" + " on the way up" * up,
            )
        return depths

    def levels(self, key: str) -> tuple[int, ...]:
        """Return a value per level of a key that is one number or one number per level. Raises GencliError."""
        value = getattr(self, key)
        count = len(self.block_out_channels)
        if isinstance(value, tuple) and len(value) != count:
            raise GencliError(f"config.json: {key} has {len(value)} entries, block_out_channels {count}")
        return value if isinstance(value, tuple) else (value,) * count

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each level."""
        return self.levels("attention_head_dim" if self.num_attention_heads is None else "num_attention_heads")

    @property
    def temb_channels(self) -> int:
        """Width of the time embedding."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
