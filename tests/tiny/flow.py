"""Small seeded checkpoints of Z-Image, FLUX.1 and FLUX.2 klein, laid out as on the hub.

Every maker gives back diffusers' pipeline in float32, ready to be compared with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.oracles.libraries import diffusers, transformers
from tests.tiny.chat_templates import FAMILIES, make_chat_tokenizer
from tests.tiny.gguf import packed, unpacked
from tests.tiny.image import (
    TEXT,
    make_text_encoder,
    make_tokenizer,
    make_vae,
    randomise,
    rewrite_json,
    save,
    write_scheduler,
)
from tests.tiny.sdxl import POOLED, make_text_encoder_2
from tests.tiny.systems import make_t5, make_t5_tokenizer

QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 383,
    "eos_token_id": 384,
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 1024,
    "max_window_layers": 3,
    "model_type": "qwen3",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 400,
}
Z_IMAGE: dict[str, Any] = {
    "_class_name": "ZImageTransformer2DModel",
    "all_f_patch_size": [1],
    "all_patch_size": [2],
    "axes_dims": [4, 6, 6],
    "axes_lens": [1536, 512, 512],
    "cap_feat_dim": 32,
    "dim": 48,
    "in_channels": 16,
    "n_heads": 3,
    "n_kv_heads": 3,
    "n_layers": 3,
    "n_refiner_layers": 2,
    "norm_eps": 1e-05,
    "qk_norm": True,
    "rope_theta": 256.0,
    "t_scale": 1000.0,
}
SD3: dict[str, Any] = {
    "_class_name": "SD3Transformer2DModel",
    "attention_head_dim": 64,
    "caption_projection_dim": 128,
    "dual_attention_layers": [0, 1],
    "in_channels": 16,
    "joint_attention_dim": 64,
    "num_attention_heads": 2,
    "num_layers": 3,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 24 + POOLED,
    "pos_embed_max_size": 24,
    "qk_norm": "rms_norm",
    "sample_size": 32,
}
FLUX: dict[str, Any] = {
    "_class_name": "FluxTransformer2DModel",
    "attention_head_dim": 32,
    "axes_dims_rope": [4, 14, 14],
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 64,
    "num_attention_heads": 3,
    "num_layers": 2,
    "num_single_layers": 2,
    "out_channels": None,
    "patch_size": 1,
    "pooled_projection_dim": 24,
}
CHROMA: dict[str, Any] = {
    "_class_name": "ChromaTransformer2DModel",
    "approximator_hidden_dim": 64,
    "approximator_layers": 2,
    "approximator_num_channels": 64,
    "attention_head_dim": 32,
    "axes_dims_rope": [4, 14, 14],
    "in_channels": 64,
    "joint_attention_dim": 64,
    "num_attention_heads": 3,
    "num_layers": 2,
    "num_single_layers": 2,
    "out_channels": None,
    "patch_size": 1,
}
FLUX2: dict[str, Any] = {
    "_class_name": "Flux2Transformer2DModel",
    "attention_head_dim": 16,
    "axes_dims_rope": [4, 4, 4, 4],
    "eps": 1e-06,
    "guidance_embeds": False,
    "in_channels": 32,
    "joint_attention_dim": 96,
    "mlp_ratio": 3.0,
    "num_attention_heads": 3,
    "num_layers": 2,
    "num_single_layers": 2,
    "out_channels": None,
    "patch_size": 1,
    "rope_theta": 2000,
    "timestep_guidance_channels": 256,
}
FLOW: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": False,
}
DYNAMIC = FLOW | {
    "base_image_seq_len": 256, "base_shift": 0.5, "invert_sigmas": False, "max_image_seq_len": 4096, "max_shift": 1.15,
    "shift": 3.0, "shift_terminal": None, "stochastic_sampling": False, "time_shift_type": "exponential",
    "use_beta_sigmas": False, "use_dynamic_shifting": True, "use_exponential_sigmas": False, "use_karras_sigmas": False,
}  # fmt: skip
FLUX_VAE = {
    "latent_channels": 16, "layers_per_block": 2, "scaling_factor": 0.3611, "shift_factor": 0.1159,
    "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip


def fill(model: nn.Module, seed: int) -> nn.Module:
    """Values for what its class leaves at zero, so that everything tells."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.abs().max() == 0:
                parameter.normal_(std=0.3)
    return randomise(model, seed)


def make_qwen3(folder: Path, **changes: Any) -> Any:
    """A text encoder with its tokenizer beside it."""
    config = QWEN3 | changes
    torch.manual_seed(90)
    model = save(fill(transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**config)), 91), folder / "text_encoder")
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config, indent=2))
    make_chat_tokenizer(folder / "tokenizer", next(one for one in FAMILIES if one.name == "qwen3"))
    names = {"pad_token": "<|endoftext|>", "model_max_length": 131072}
    rewrite_json(folder / "tokenizer" / "tokenizer_config.json", lambda raw: raw | names)
    return model, transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")


def finish(folder: Path, name: str, parts: dict[str, Any], **more: Any) -> Any:
    """Write model_index.json, and put the parts together as diffusers' pipeline of this name."""
    kinds = {
        part: ["transformers" if "text" in part or "token" in part else "diffusers", type(one).__name__]
        for part, one in parts.items()
    }
    for one in [one for one in parts if parts[one] is None]:
        kinds[one] = ["transformers", "T5Tokenizer"]
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name, **more, **kinds}, indent=2))
    pipe = getattr(diffusers, name)(**parts, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_network(folder: Path, config: dict[str, Any]) -> Any:
    """A transformer, its config.json with the keys of the hub's file alone."""
    torch.manual_seed(92)
    cls = getattr(diffusers, config["_class_name"])
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    model = save(fill(cls(**own), 93), folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return model


def make_z_image(folder: Path, **changes: Any) -> Any:
    """Tongyi-MAI/Z-Image-Turbo."""
    folder.mkdir(parents=True, exist_ok=True)
    text_encoder, tokenizer = make_qwen3(folder)
    return finish(
        folder,
        "ZImagePipeline",
        {
            "scheduler": write_scheduler(folder / "scheduler", FLOW),
            "text_encoder": text_encoder,
            "tokenizer": tokenizer,
            "transformer": make_network(folder / "transformer", Z_IMAGE | changes),
            "vae": make_vae(folder / "vae", FLUX_VAE),
        },
    )


def make_sd3(folder: Path, name: str = "3.5", **changes: Any) -> Any:
    """stabilityai/stable-diffusion-3.5-medium, or with "3" the one before. The pipeline wants the states of texts."""
    folder.mkdir(parents=True, exist_ok=True)
    make_t5_tokenizer(folder / "tokenizer_3")
    network = SD3 | ({} if name == "3.5" else {"dual_attention_layers": [], "qk_norm": None}) | changes
    clip = TEXT["sd15"] | {"projection_dim": 24}
    return finish(
        folder,
        "StableDiffusion3Pipeline",
        {
            "scheduler": write_scheduler(folder / "scheduler", FLOW),
            "text_encoder": make_text_encoder_2(folder / "text_encoder", clip),
            "text_encoder_2": make_text_encoder_2(folder / "text_encoder_2"),
            "text_encoder_3": make_t5(folder / "text_encoder_3"),
            "tokenizer": make_tokenizer(folder / "tokenizer"),
            "tokenizer_2": make_tokenizer(folder / "tokenizer_2", "sd21"),
            "tokenizer_3": None,
            "transformer": make_network(folder / "transformer", network),
            "vae": make_vae(folder / "vae", FLUX_VAE | {"scaling_factor": 1.5305, "shift_factor": 0.0609}),
        },
    )


def make_flux(folder: Path, name: str = "dev", **changes: Any) -> Any:
    """black-forest-labs/FLUX.1-dev, or with "schnell" the one that is not told its guidance, "kontext" or "fill". The
    pipeline wants the states of texts."""
    folder.mkdir(parents=True, exist_ok=True)
    make_t5_tokenizer(folder / "tokenizer_2")
    schnell = name == "schnell"
    changes = {**({"in_channels": 384, "out_channels": 64} if name == "fill" else {}), **changes}
    return finish(
        folder,
        {"kontext": "FluxKontextPipeline", "fill": "FluxFillPipeline"}.get(name, "FluxPipeline"),
        {
            "scheduler": write_scheduler(folder / "scheduler", FLOW | {"shift": 1.0} if schnell else DYNAMIC),
            "text_encoder": make_text_encoder(folder / "text_encoder"),
            "text_encoder_2": make_t5(folder / "text_encoder_2"),
            "tokenizer": make_tokenizer(folder / "tokenizer"),
            "tokenizer_2": None,  # transformers' T5Tokenizer loads an empty vocabulary: see `oracles.systems`
            "transformer": make_network(folder / "transformer", FLUX | {"guidance_embeds": not schnell, **changes}),
            "vae": make_vae(folder / "vae", FLUX_VAE),
        },
    )


def make_chroma(folder: Path, **changes: Any) -> Any:
    """lodestones/Chroma1-HD. The pipeline wants the states of texts."""
    folder.mkdir(parents=True, exist_ok=True)
    make_t5_tokenizer(folder / "tokenizer")
    return finish(
        folder,
        "ChromaPipeline",
        {
            "scheduler": write_scheduler(folder / "scheduler", FLOW | {"shift": 1.0}),
            "text_encoder": make_t5(folder / "text_encoder"),
            "tokenizer": None,  # transformers' T5Tokenizer loads an empty vocabulary: see `oracles.systems`
            "transformer": make_network(folder / "transformer", CHROMA | changes),
            "vae": make_vae(folder / "vae", FLUX_VAE),
        },
    )


def make_flux2_vae(folder: Path) -> Any:
    """The autoencoder of FLUX.2, of 8 channels."""
    config: dict[str, Any] = {
        "act_fn": "silu", "batch_norm_eps": 1e-4, "batch_norm_momentum": 0.1, "block_out_channels": [16, 16, 32, 32],
        "down_block_types": ["DownEncoderBlock2D"] * 4, "force_upcast": True, "in_channels": 3, "latent_channels": 8,
        "layers_per_block": 2, "mid_block_add_attention": True, "norm_num_groups": 8, "out_channels": 3,
        "patch_size": [2, 2], "sample_size": 1024, "up_block_types": ["UpDecoderBlock2D"] * 4,
        "use_post_quant_conv": True,
        "use_quant_conv": True,
    }  # fmt: skip
    torch.manual_seed(94)
    model = randomise(diffusers.AutoencoderKLFlux2(**{k: v for k, v in config.items() if k != "force_upcast"}), 95)
    model.bn.running_mean.normal_(std=0.3)
    model.bn.running_var.uniform_(0.5, 2.0)
    save(model, folder)
    config["_class_name"] = "AutoencoderKLFlux2"
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return model


def make_klein(folder: Path, **changes: Any) -> Any:
    """black-forest-labs/FLUX.2-klein-4B."""
    folder.mkdir(parents=True, exist_ok=True)
    text_encoder, tokenizer = make_qwen3(folder, num_hidden_layers=28, hidden_size=32, intermediate_size=24)
    return finish(
        folder,
        "Flux2KleinPipeline",
        {
            "scheduler": write_scheduler(folder / "scheduler", DYNAMIC),
            "text_encoder": text_encoder,
            "tokenizer": tokenizer,
            "transformer": make_network(folder / "transformer", FLUX2 | changes),
            "vae": make_flux2_vae(folder / "vae"),
        },
        is_distilled=True,
    )


PIXART: dict[str, Any] = {
    "_class_name": "PixArtTransformer2DModel",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 8,
    "attention_type": "default",
    "caption_channels": 64,
    "cross_attention_dim": 24,
    "dropout": 0.0,
    "in_channels": 4,
    "interpolation_scale": None,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "norm_type": "ada_norm_single",
    "num_attention_heads": 3,
    "num_embeds_ada_norm": 1000,
    "num_layers": 3,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 128,
    "upcast_attention": False,
    "use_additional_conditions": False,
}
DPM: dict[str, Any] = {
    "_class_name": "DPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "dynamic_thresholding_ratio": 0.995,
    "euler_at_final": False,
    "lambda_min_clipped": -float("inf"),
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "solver_order": 2,
    "solver_type": "midpoint",
    "steps_offset": 0,
    "thresholding": False,
    "timestep_spacing": "linspace",
    "trained_betas": None,
    "use_karras_sigmas": False,
    "use_lu_lambdas": False,
    "variance_type": None,
}


def make_pixart(folder: Path, kind: str = "Sigma") -> Any:
    """PixArt-alpha/PixArt-Sigma-XL-2-1024-MS, or with "Alpha" PixArt-XL-2-1024-MS, whose network is told the size. The
    pipeline wants the states of texts."""
    folder.mkdir(parents=True, exist_ok=True)
    alpha = {"use_additional_conditions": None} if kind == "Alpha" else {}
    make_t5_tokenizer(folder / "tokenizer")
    return finish(
        folder,
        f"PixArt{kind}Pipeline",
        {
            "scheduler": write_scheduler(folder / "scheduler", DPM),
            "text_encoder": make_t5(folder / "text_encoder"),
            "tokenizer": None,  # transformers' T5Tokenizer loads an empty vocabulary: see `oracles.systems`
            "transformer": make_network(folder / "transformer", PIXART | alpha),
            "vae": make_vae(folder / "vae", {"scaling_factor": 0.13025}),
        },
    )


def original_names(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a transformer in diffusers' layout under the names of its authors' code."""
    return as_original(load_file(folder / "diffusion_pytorch_model.safetensors"))


def as_original(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of diffusers' names under those of the authors' code, fused as there."""
    if "x_pad_token" in tensors:
        return _z_image_names(tensors)
    if "pos_embed.pos_embed" in tensors:
        return _sd3_names(tensors)
    if {"time_text_embed.text_embedder.linear_1.weight", "distilled_guidance_layer.in_proj.weight"} & tensors.keys():
        return _flux_names(tensors)
    found: dict[str, torch.Tensor] = {}
    plain = {
        "x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear",
        "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
        **{f"{name}.linear": f"{name}.lin" for name in
           ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")},
    }  # fmt: skip
    for old, new in plain.items():
        found[f"{new}.weight"] = tensors.pop(f"{old}.weight")
    scale, shift = tensors.pop("norm_out.linear.weight").chunk(2)
    found["final_layer.adaLN_modulation.1.weight"] = torch.cat([shift, scale])
    for i in range(sum(name.endswith("attn.to_add_out.weight") for name in tensors)):
        here, there = f"transformer_blocks.{i}.", f"double_blocks.{i}."
        for stream, names, norm, out, ff in (
            ("img", ("to_q", "to_k", "to_v"), "norm_", "to_out.0", "ff"),
            ("txt", ("add_q_proj", "add_k_proj", "add_v_proj"), "norm_added_", "to_add_out", "ff_context"),
        ):
            fused = torch.cat([tensors.pop(f"{here}attn.{name}.weight") for name in names])
            found[f"{there}{stream}_attn.qkv.weight"] = fused
            for old, new in (
                (f"attn.{norm}q.weight", "attn.norm.query_norm.scale"),
                (f"attn.{norm}k.weight", "attn.norm.key_norm.scale"),
                (f"attn.{out}.weight", "attn.proj.weight"), (f"{ff}.linear_in.weight", "mlp.0.weight"),
                (f"{ff}.linear_out.weight", "mlp.2.weight"),
            ):  # fmt: skip
                found[f"{there}{stream}_{new}"] = tensors.pop(here + old)
    for name in list(tensors):
        new = name.replace("single_transformer_blocks", "single_blocks").replace("attn.to_qkv_mlp_proj", "linear1")
        new = new.replace("attn.to_out", "linear2").replace("attn.norm_q.weight", "norm.query_norm.scale")
        found[new.replace("attn.norm_k.weight", "norm.key_norm.scale")] = tensors.pop(name)
    return found


def _sd3_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {"pos_embed": tensors.pop("pos_embed.pos_embed")}

    def take(new: str, *old: str, swapped: bool = False) -> None:
        for kind in ("weight", "bias"):
            whole = torch.cat([tensors.pop(f"{one}.{kind}") for one in old])
            found[f"{new}.{kind}"] = torch.cat([*reversed(whole.chunk(2))]) if swapped else whole

    take("x_embedder.proj", "pos_embed.proj")
    take("context_embedder", "context_embedder")
    take("final_layer.linear", "proj_out")
    take("final_layer.adaLN_modulation.1", "norm_out.linear", swapped=True)
    for old, new in (("timestep", "t"), ("text", "y")):
        take(f"{new}_embedder.mlp.0", f"time_text_embed.{old}_embedder.linear_1")
        take(f"{new}_embedder.mlp.2", f"time_text_embed.{old}_embedder.linear_2")
    count = sum(name.endswith("norm1.linear.weight") for name in tensors)
    for i in range(count):
        here, there, last = f"transformer_blocks.{i}.", f"joint_blocks.{i}.", i == count - 1
        take(f"{there}x_block.adaLN_modulation.1", f"{here}norm1.linear")
        take(f"{there}context_block.adaLN_modulation.1", f"{here}norm1_context.linear", swapped=last)
        for block, attn, to, added, out in (
            ("x_block", "attn", "to_{}", "", "to_out.0"), ("x_block", "attn2", "to_{}", "", "to_out.0"),
            ("context_block", "attn", "add_{}_proj", "added_", "to_add_out"),
        ):  # fmt: skip
            if f"{here}{attn}.{to.format('q')}.weight" not in tensors:
                continue
            take(f"{there}{block}.{attn}.qkv", *(f"{here}{attn}.{to.format(x)}" for x in "qkv"))
            for x in "qk":
                if (norm := f"{here}{attn}.norm_{added}{x}.weight") in tensors:
                    found[f"{there}{block}.{attn}.ln_{x}.weight"] = tensors.pop(norm)
            if not (last and added):
                take(f"{there}{block}.{attn}.proj", f"{here}{attn}.{out}")
        for block, ff in (("x_block", "ff"), *([] if last else [("context_block", "ff_context")])):
            take(f"{there}{block}.mlp.fc1", f"{here}{ff}.net.0.proj")
            take(f"{there}{block}.mlp.fc2", f"{here}{ff}.net.2")
    assert not tensors, sorted(tensors)
    return found


def _flux_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}

    def take(new: str, *old: str, kinds: tuple[str, ...] = ("weight", "bias")) -> None:
        for kind in kinds:
            found[f"{new}.{kind}"] = torch.cat([tensors.pop(f"{one}.{kind}") for one in old])

    def norms(new: str, old: str) -> None:
        for x in ("query", "key"):
            found[f"{new}.{x}_norm.scale"] = tensors.pop(f"{old}{x[0]}.weight")

    take("img_in", "x_embedder")
    take("txt_in", "context_embedder")
    take("final_layer.linear", "proj_out")
    for kind in ("weight", "bias"):
        if f"norm_out.linear.{kind}" not in tensors:  # Chroma has one network for all of these
            continue
        scale, shift = tensors.pop(f"norm_out.linear.{kind}").chunk(2)
        found[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
    for old, new in (("timestep", "time"), ("guidance", "guidance"), ("text", "vector")):
        if f"time_text_embed.{old}_embedder.linear_1.bias" in tensors:
            take(f"{new}_in.in_layer", f"time_text_embed.{old}_embedder.linear_1")
            take(f"{new}_in.out_layer", f"time_text_embed.{old}_embedder.linear_2")
    for i in range(sum(name.endswith("attn.to_add_out.weight") for name in tensors)):
        here, there = f"transformer_blocks.{i}.", f"double_blocks.{i}."
        for stream, mod, names, norm, out, ff in (
            ("img", "norm1", ("to_q", "to_k", "to_v"), "norm_", "to_out.0", "ff"),
            ("txt", "norm1_context", ("add_q_proj", "add_k_proj", "add_v_proj"), "norm_added_", "to_add_out",
             "ff_context"),
        ):  # fmt: skip
            if f"{here}{mod}.linear.bias" in tensors:
                take(f"{there}{stream}_mod.lin", f"{here}{mod}.linear")
            take(f"{there}{stream}_attn.qkv", *(f"{here}attn.{name}" for name in names))
            norms(f"{there}{stream}_attn.norm", f"{here}attn.{norm}")
            take(f"{there}{stream}_attn.proj", f"{here}attn.{out}")
            take(f"{there}{stream}_mlp.0", f"{here}{ff}.net.0.proj")
            take(f"{there}{stream}_mlp.2", f"{here}{ff}.net.2")
    for i in range(sum(name.endswith("proj_mlp.weight") for name in tensors)):
        here, there = f"single_transformer_blocks.{i}.", f"single_blocks.{i}."
        if f"{here}norm.linear.bias" in tensors:
            take(f"{there}modulation.lin", f"{here}norm.linear")
        take(f"{there}linear1", *(f"{here}attn.to_{x}" for x in "qkv"), f"{here}proj_mlp")
        take(f"{there}linear2", f"{here}proj_out")
        norms(f"{there}norm", f"{here}attn.norm_")
    for name in [name for name in tensors if name.startswith("distilled_guidance_layer.")]:
        new = name.replace(".linear_1.", ".in_layer.").replace(".linear_2.", ".out_layer.")
        found[new.replace(".weight", ".scale") if ".norms." in name else new] = tensors.pop(name)
    assert not tensors
    return found


def _z_image_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {"norm_final.weight": torch.ones(tensors["x_pad_token"].shape[1])}
    for name in list(tensors):
        if name.endswith("attention.to_q.weight"):
            qkv = [tensors[name.replace("to_q", f"to_{x}")] for x in "qkv"]
            found[name.replace("to_q", "qkv")] = torch.cat(qkv)
        elif ".to_k." not in name and ".to_v." not in name:
            new = name.replace("all_x_embedder.2-1", "x_embedder").replace("all_final_layer.2-1", "final_layer")
            new = new.replace("to_out.0", "out").replace("norm_q", "q_norm").replace("norm_k", "k_norm")
            found[new] = tensors[name]
    return found


def write_single(file: Path, tensors: dict[str, torch.Tensor], prefix: str = "") -> Path:
    save_file({prefix + name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file


def write_gguf(file: Path, tensors: dict[str, torch.Tensor], kind: str, architecture: str) -> dict[str, torch.Tensor]:
    """A GGUF file as people make it for ComfyUI: matrices of the blocks packed, vectors and the rest in float32.
    Returns what its packed matrices stand for."""
    writer, seen = gguf.GGUFWriter(file, architecture), {}
    for name, tensor in tensors.items():
        values = tensor.numpy()
        if (
            "." in name
            and tensor.ndim == 2
            and tensor.shape[1] % 32 == 0
            and "embedder" not in name
            and "_in" not in name
        ):
            rows = packed(values, kind)
            writer.add_tensor(name, rows, raw_dtype=gguf.GGMLQuantizationType[kind])
            seen[name] = torch.from_numpy(unpacked(rows, kind).copy())
        else:
            writer.add_tensor(name, values[0] if name.endswith("_pad_token") else values)
            seen[name] = tensor
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return seen
