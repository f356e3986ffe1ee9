"""Files of openai/guided-diffusion: a UNet or a classifier of noisy images, under the names of its own code.

Names and shapes tell most settings. The others (the size of images, the heads of attention and their order, the noise
schedule) come from `FILE.json` beside the file, in the code's own flags, else from the name under which OpenAI
published it (`PUBLISHED`). Nothing is guessed. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from gencli.checkpoints.checkpoint import NO_CONFIG, Checkpoint, Contents, Hints, Shapes
from gencli.checkpoints.formats.renaming import Renamed, numbered, one_network, read_beside, sizes
from gencli.checkpoints.tensors import Piece
from gencli.errors import GencliError

ADM: dict[str, object] = {"num_head_channels": 64, "noise_schedule": "linear"}
# The beginning of a file's name → the flags it was trained with, from the README of guided-diffusion. The first that
# fits holds.
PUBLISHED: dict[str, dict[str, object]] = {
    "64x64_diffusion": ADM | {"image_size": 64, "noise_schedule": "cosine", "use_new_attention_order": True},
    "128x128_diffusion": {"image_size": 128, "num_heads": 4, "noise_schedule": "linear"},
    "256x256_diffusion": ADM | {"image_size": 256},
    "512x512_diffusion": ADM | {"image_size": 512},
    "lsun_bedroom": ADM | {"image_size": 256},
    "lsun_cat": ADM | {"image_size": 256},
    "lsun_horse": ADM | {"image_size": 256},
    "64x64_classifier": {"image_size": 64, "num_head_channels": 64},
    "128x128_classifier": {"image_size": 128, "num_head_channels": 64},
    "256x256_classifier": {"image_size": 256, "num_head_channels": 64},
    "512x512_classifier": {"image_size": 512, "num_head_channels": 64},
}
PIPELINE = "GuidedDiffusionPipeline"  # our own name: these files have no model_index.json
SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
HEADS = ("num_heads", "num_head_channels", "num_heads_upsample", "use_new_attention_order")
READ = {"image_size", "noise_schedule", "diffusion_steps", "predict_xstart", "classifier_depth", "id2label", *HEADS}
# flags that the tensors themselves tell, and flags of training and of memory
INERT = frozenset(
    """in_channels num_channels num_res_blocks channel_mult attention_resolutions dropout class_cond use_checkpoint
    use_scale_shift_norm resblock_updown use_fp16 learn_sigma timestep_respacing use_kl rescale_learned_sigmas
    classifier_use_fp16 classifier_width classifier_attention_resolutions classifier_pool
    classifier_use_scale_shift_norm classifier_resblock_updown""".split()
)


def _is_unet(shapes: Shapes) -> bool:
    """Return whether the names are those of a UNet of guided-diffusion (Latent Diffusion's have a prefix)."""
    return {"time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight"} <= shapes.keys() and any(
        name.startswith("output_blocks.") for name in shapes
    )


def _is_classifier(shapes: Shapes) -> bool:
    """Return whether the names are those of its classifier, which has no way up."""
    return {"time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.1.qkv.weight"} <= shapes.keys() and not any(
        name.startswith("output_blocks.") for name in shapes
    )


def is_guided_diffusion(contents: Contents) -> bool:
    """Return whether the names are those of a UNet or a classifier of guided-diffusion."""
    return _is_unet(contents.shapes) or _is_classifier(contents.shapes)


def read_guided_diffusion(contents: Contents, hints: Hints) -> Checkpoint:
    """Read a UNet or a classifier; tensors that its config does not explain are refused when it is loaded.

    Raise GencliError for tensors that are missing or misshapen, and for a file that does not say enough of itself.
    """
    shapes = contents.shapes
    said = flags(contents.path.stem, read_beside(contents))
    pieces = {name: Piece(name) for name in shapes}
    labels = said.get("id2label")
    if _is_classifier(shapes):
        network = Renamed(classifier_config(shapes, said), pieces)
        parts = {"classifier": network.part(contents, "classifier")}
        return one_network(contents, "classifier of guided-diffusion", "", parts, NO_CONFIG, labels)
    config = unet_config(shapes, said)
    parts = {"unet": Renamed(config, pieces).part(contents, "unet")}
    scheduler = scheduler_config(config, said)
    return one_network(contents, "UNet of guided-diffusion", PIPELINE, parts, scheduler, labels)


def flags(stem: str, beside: Mapping[str, object] | None) -> Mapping[str, object]:
    """Return what no tensor tells: from the JSON beside the file, if there is one, else by the file's name.

    Raise GencliError for a JSON with unknown keys, and for an unknown name without one.
    """
    if beside is None:
        known = next((found for name, found in PUBLISHED.items() if stem.startswith(name)), None)
        if known is None:
            raise GencliError(
                f"{stem}: a file of guided-diffusion does not say its size of images and its heads of attention, "
                f"and OpenAI published none under its name",
                f'write them into {stem}.json beside it, as in {{"image_size": 256, "num_head_channels": 64}}',
            )
        return known
    unknown = [name for name in beside if name not in READ | INERT and beside[name] not in (None, False, "")]
    if unknown:
        raise GencliError(f"{stem}.json: not supported: {', '.join(sorted(unknown))[:200]}")
    if "image_size" not in beside or not any(name in beside for name in HEADS[:2]):
        raise GencliError(f"{stem}.json must say image_size, and num_heads or num_head_channels")
    size = beside["image_size"]
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 2**13:
        raise GencliError(f"{stem}.json: image_size = {size!r:.80} is not an image size")
    return beside


def unet_config(shapes: Shapes, flags: Mapping[str, object]) -> dict[str, object]:
    """Return the config of the UNet in `shapes`. Raise GencliError for tensors that are missing or misshapen, and for
    an upsampler, which needs a small image."""
    config = {**encoder_config(shapes, flags), "_class_name": "UNetModel"}
    reads = sizes(shapes, "input_blocks.0.0.weight", 4)[1]
    if reads == 6:
        raise GencliError(
            "its UNet reads 6 channels: an upsampler, which needs a small image",
            "gencli draws with guided-diffusion's other models",
        )
    config["out_channels"] = makes = sizes(shapes, "out.2.weight", 4)[0]
    if makes not in (reads, 2 * reads):
        raise GencliError(f"its UNet makes {makes} channels of {reads}")
    config["num_classes"] = sizes(shapes, "label_emb.weight", 2)[0] if "label_emb.weight" in shapes else None
    if "num_heads_upsample" in flags:
        config["num_heads_upsample"] = flags["num_heads_upsample"]
    return config


def classifier_config(shapes: Shapes, flags: Mapping[str, object]) -> dict[str, object]:
    """Return the config of the classifier in `shapes`. Raise GencliError for tensors that are missing or misshapen."""
    config = {**encoder_config(shapes, flags), "_class_name": "EncoderUNetModel"}
    if "out.2.positional_embedding" in shapes:
        pool, last = "attention", "out.2.c_proj.weight"
    elif "out.3.weight" in shapes and len(shapes["out.3.weight"]) == 4:
        pool, last = "adaptive", "out.3.weight"
    else:
        pool, last = ("spatial_v2", "out.3.weight") if "out.3.weight" in shapes else ("spatial", "out.2.weight")
    if last not in shapes:
        raise GencliError(f"{last} is missing")
    return config | {"pool": pool, "out_channels": shapes[last][0]}


def scheduler_config(config: Mapping[str, object], flags: Mapping[str, object]) -> dict[str, object]:
    """Return the noise schedule in diffusers' keys, with the limits under which guided-diffusion samples.

    Raise GencliError for an unknown schedule.
    """
    named, steps = flags.get("noise_schedule", "linear"), flags.get("diffusion_steps", 1000)
    if not isinstance(named, str) or named not in SCHEDULES:
        raise GencliError(f"noise_schedule = {named!r:.80} is not supported", f"gencli knows {', '.join(SCHEDULES)}")
    if isinstance(steps, bool) or not isinstance(steps, int) or not 2 <= steps <= 2**16:
        raise GencliError(f"diffusion_steps = {steps!r:.80} is not a number of steps")
    return {
        "_class_name": "DDPMScheduler",
        "beta_schedule": SCHEDULES[named],
        "beta_start": 0.1 / steps,
        "beta_end": min(20 / steps, 0.999),
        "clip_sample": True,
        "num_train_timesteps": steps,
        "prediction_type": "sample" if flags.get("predict_xstart") else "epsilon",
        "use_clipped_model_output": True,
        "variance_type": "fixed_large" if config["out_channels"] == config["in_channels"] else "learned_range",
    }


def encoder_config(shapes: Shapes, flags: Mapping[str, object]) -> dict[str, object]:
    """Return what the UNet and the classifier have in common."""
    width = sizes(shapes, "time_embed.0.weight", 2)[1]
    if not width:
        raise GencliError("time_embed.0.weight is empty")
    levels = _levels(shapes, flags)
    attended = [1 << level for level, blocks in enumerate(levels) if f"{blocks[0]}.1.qkv.weight" in shapes]
    widths = [sizes(shapes, f"{blocks[0]}.0.out_layers.3.weight", 4)[0] for blocks in levels]
    shift = sizes(shapes, "input_blocks.1.0.emb_layers.1.weight", 2)[0]
    halving = f"input_blocks.{len(levels[0]) + 1}.0.in_layers.2.weight"
    return {
        "image_size": flags["image_size"],
        "in_channels": sizes(shapes, "input_blocks.0.0.weight", 4)[1],
        "model_channels": width,
        "num_res_blocks": len(levels[0]),
        "channel_mult": [one / width for one in widths],
        "attention_resolutions": attended,
        "use_scale_shift_norm": shift == 2 * widths[0],
        "resblock_updown": len(levels) > 1 and halving in shapes,
        **{name: flags[name] for name in HEADS if name in flags and name != "num_heads_upsample"},
    }


def _levels(shapes: Shapes, flags: Mapping[str, object]) -> list[list[str]]:
    """Return the names of the residual blocks of each level on the way down, without those that halve the image."""
    count = numbered(shapes, "input_blocks")
    length = _length(shapes, flags, count)
    if length < 2 or count % length:
        raise GencliError(f"its {count} blocks on the way down are no whole levels of {length}")
    return [
        [f"input_blocks.{block}" for block in range(start + 1, start + length)] for start in range(0, count, length)
    ]


def _length(shapes: Shapes, flags: Mapping[str, object], count: int) -> int:
    """Return the number of blocks of a level, with the one that its size comes from: the first convolution, or what
    halves the image.

    A convolution that halves it (`op`) shows by its name. A residual block that halves looks like any other; in a UNet
    those that double the image on the way up tell, in a classifier the size that is left for its last attention.
    """
    for block in range(count):
        if f"input_blocks.{block}.0.op.weight" in shapes:
            return block
    if up := numbered(shapes, "output_blocks"):
        for block in range(up):
            after = 2 if f"output_blocks.{block}.1.qkv.weight" in shapes else 1
            if f"output_blocks.{block}.{after}.in_layers.2.weight" in shapes:
                return block + 1
        return count  # a single level
    if depth := flags.get("classifier_depth"):
        return int(depth) + 1 if isinstance(depth, int) else 0
    if "out.2.positional_embedding" not in shapes:
        raise GencliError("its classifier does not say its depth", "write classifier_depth into the JSON beside it")
    side = math.isqrt(max(sizes(shapes, "out.2.positional_embedding", 2)[1] - 1, 1))
    size = flags["image_size"]
    assert isinstance(size, int)  # as `flags` has it
    levels = (size // side).bit_length()  # 2^(levels − 1) places a side of the picture for each here
    return count // max(levels, 1)
