"""The UNet of ermongroup/ddim and of pesser/pytorch_diffusion (Ho et al.'s weights) → diffusers' UNet2DModel.

Such a file is a bare state dict (`ema_cifar10.ckpt`), or a training snapshot, whose names begin with `module.`. Shapes
tell widths, levels and attention; the rest is equal in all of these models, or comes from a JSON file beside it, in the
keys of ermongroup's configs. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gencli.checkpoints.checkpoint import Checkpoint, Contents, Hints, Shapes
from gencli.checkpoints.formats.renaming import Renamed, numbered, one_network, read_beside, rename, sizes
from gencli.checkpoints.layout import some
from gencli.errors import GencliError
from gencli.models.base import Rename, squeeze_conv

KIND = r"(weight|bias)"
PARALLEL = "module."  # what torch's DataParallel puts before every name
ATTENDED = 16  # the side of the images that all published models attend over: tells the side of the first level
LEVELS = 8  # more than any has
FIXED: dict[str, object] = {  # what no shape tells
    "_class_name": "UNet2DModel",
    "act_fn": "silu",
    "attention_head_dim": None,
    "center_input_sample": False,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "time_embedding_type": "positional",
}
ENDS = (
    Rename(rf"temb\.dense\.0\.{KIND}", r"time_embedding.linear_1.\1"),
    Rename(rf"temb\.dense\.1\.{KIND}", r"time_embedding.linear_2.\1"),
    Rename(rf"conv_in\.{KIND}", r"conv_in.\1"),
    Rename(rf"norm_out\.{KIND}", r"conv_norm_out.\1"),
    Rename(rf"conv_out\.{KIND}", r"conv_out.\1"),
)
RESNET = {"temb_proj": "time_emb_proj", "nin_shortcut": "conv_shortcut"}  # and norm1, conv1, norm2, conv2
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
UNUSED = {"logvar"}  # of a loss ("bayesian") that no published config has
# Keys of the JSON beside a file → what they may be
BESIDE: dict[str, type] = {
    "image_size": int,
    "var_type": str,
    "beta_schedule": str,
    "beta_start": float,
    "beta_end": float,
    "num_diffusion_timesteps": int,
}
VARIANCES = {"fixedlarge": "fixed_large", "fixedsmall": "fixed_small"}
BETAS = {"linear": "linear", "quad": "scaled_linear"}


def is_ddpm(contents: Contents) -> bool:
    """Return whether the names are those of this UNet."""
    wanted = {
        "temb.dense.0.weight",
        "down.0.block.0.conv1.weight",
        "mid.block_1.conv1.weight",
        "up.0.block.0.conv1.weight",
    }
    return any({prefix + name for name in wanted} <= contents.shapes.keys() for prefix in ("", PARALLEL))


def read_ddpm(contents: Contents, hints: Hints) -> Checkpoint:
    """Read a UNet.

    Raise GencliError for tensors that are missing, misshapen or unknown, for a UNet that no config describes, and for
    unknown keys in the JSON file beside it.
    """
    shapes, beside = contents.shapes, read_beside(contents) or {}
    try:
        _check_beside(beside)
    except GencliError as error:
        raise GencliError(f"{contents.path.stem}.json: {error.message}", error.hint) from None
    prefix = PARALLEL if f"{PARALLEL}conv_in.weight" in shapes else ""
    bare = {name.removeprefix(prefix): shape for name, shape in shapes.items()}
    levels = numbered(bare, "down")
    if levels > LEVELS:
        raise GencliError(f"it has {levels} levels: at most {LEVELS} are supported")
    config = _config(bare, levels, beside)
    pieces, unknown = rename(bare, (*ENDS, *_rows(levels)))
    if unknown := sorted(prefix + name for name in unknown if name not in UNUSED):
        raise GencliError(f"it has tensors that DDPM's UNet has not: {some(unknown)}")
    parts = {"unet": Renamed(config, pieces).part(contents, "unet", prefix)}
    return one_network(contents, "UNet of DDPM", "DDPMPipeline", parts, scheduler_config(config, beside))


def scheduler_config(config: Mapping[str, object], beside: Mapping[str, object]) -> dict[str, object]:
    """Return the noise schedule in diffusers' keys, as google/ddpm-* have it.

    The variance is the larger one for images up to 64 pixels wide (CIFAR-10, CelebA) and the smaller one above, as the
    models were published; DDIM does not read it. Raise GencliError for an unknown schedule.
    """
    size, betas = config["sample_size"], str(beside.get("beta_schedule", "linear"))
    small = isinstance(size, int) and (size or 256) <= 64
    variance = str(beside.get("var_type", "fixedlarge" if small else "fixedsmall"))
    for key, value, known in (("var_type", variance, VARIANCES), ("beta_schedule", betas, BETAS)):
        if value not in known:
            raise GencliError(f"{key} = {value!r:.60} is not supported", f"gencli knows {', '.join(known)}")
    return {
        "_class_name": "DDPMScheduler",
        "beta_schedule": BETAS[betas],
        "beta_start": beside.get("beta_start", 0.0001),
        "beta_end": beside.get("beta_end", 0.02),
        "clip_sample": True,
        "num_train_timesteps": beside.get("num_diffusion_timesteps", 1000),
        "prediction_type": "epsilon",
        "variance_type": VARIANCES[variance],
    }


def _check_beside(beside: Mapping[str, object]) -> None:
    """Raise GencliError for unknown keys of the JSON beside a file, and for values of a wrong kind."""
    for key, value in beside.items():
        if key not in BESIDE:
            raise GencliError(f"{key} is not supported", f"gencli knows {', '.join(BESIDE)}")
        if isinstance(value, bool) or not isinstance(value, (int, float) if BESIDE[key] is float else BESIDE[key]):
            raise GencliError(f"{key} = {value!r:.60} is not supported")


def _rows(levels: int) -> Iterator[Rename]:
    """Yield the rows between the ends. Levels count from the largest images, diffusers' way up from the last."""
    blocks = [("mid.block_1", "mid_block.resnets.0"), ("mid.block_2", "mid_block.resnets.1")]
    attentions = [("mid.attn_1", "mid_block.attentions.0")]
    for level in range(levels):
        for here, there in (
            (f"down.{level}", f"down_blocks.{level}"),
            (f"up.{level}", f"up_blocks.{levels - 1 - level}"),
        ):
            blocks.append((rf"{here}.block.(\d+)", rf"{there}.resnets.\1"))
            attentions.append((rf"{here}.attn.(\d+)", rf"{there}.attentions.\1"))
        yield Rename(rf"down\.{level}\.downsample\.conv\.{KIND}", rf"down_blocks.{level}.downsamplers.0.conv.\1")
        yield Rename(rf"up\.{level}\.upsample\.conv\.{KIND}", rf"up_blocks.{levels - 1 - level}.upsamplers.0.conv.\1")
    for here, there in blocks:
        for name in ("norm1", "conv1", "norm2", "conv2", *RESNET):
            yield Rename(
                rf"{_escaped(here)}\.{name}\.(?P<kind>weight|bias)", rf"{there}.{RESNET.get(name, name)}.\g<kind>"
            )
    for here, there in attentions:  # whose projections are 1×1 convolutions
        for name, new in ATTENTION.items():
            yield Rename(rf"{_escaped(here)}\.{name}\.(?P<kind>weight|bias)", rf"{there}.{new}.\g<kind>", squeeze_conv)


def _escaped(name: str) -> str:
    return name.replace(".", r"\.")


def _config(shapes: Shapes, levels: int, beside: Mapping[str, object]) -> dict[str, object]:
    first, channels = sizes(shapes, "conv_in.weight", 4)[:2]
    widths = [sizes(shapes, f"down.{level}.block.0.conv1.weight", 4)[0] for level in range(levels)]
    layers = [numbered(shapes, f"down.{level}.block") for level in range(levels)]
    attends = [f"down.{level}.attn.0.q.weight" in shapes for level in range(levels)]
    if len(set(layers)) > 1:
        raise GencliError(f"its levels have {', '.join(map(str, layers))} blocks: one number is supported")
    if widths[0] != first:
        raise GencliError(f"its first level is {widths[0]} wide, and conv_in {first}: only equal ones are supported")
    if levels > 1 and "down.0.downsample.conv.weight" not in shapes:
        raise GencliError("it halves images without convolutions (resamp_with_conv = false), which is not supported")
    sizes(shapes, "mid.attn_1.q.weight", 4)
    size = beside.get("image_size")
    if size is None and sum(attends) == 1:
        size = ATTENDED << attends.index(True)
    return FIXED | {
        "block_out_channels": widths,
        "down_block_types": ["AttnDownBlock2D" if one else "DownBlock2D" for one in attends],
        "in_channels": channels,
        "layers_per_block": layers[0],
        "out_channels": sizes(shapes, "conv_out.weight", 4)[0],
        "sample_size": size,
        "up_block_types": ["AttnUpBlock2D" if one else "UpBlock2D" for one in reversed(attends)],
    }
