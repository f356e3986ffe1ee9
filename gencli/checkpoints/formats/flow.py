"""The transformers of Z-Image, Qwen-Image, Chroma, Stable Diffusion 3, FLUX.1 and FLUX.2 alone in a file (safetensors,
GGUF), under their authors' names → what a diffusers folder would hold. The other parts are a folder's: see
`Checkpoint.rest`. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gencli.checkpoints.checkpoint import Checkpoint, Contents, Hints, Part, Shapes
from gencli.checkpoints.formats.renaming import numbered, rename, sizes
from gencli.checkpoints.layout import some
from gencli.checkpoints.tensors import Piece, RenamedTensors, TensorFile, Tensors
from gencli.checkpoints.weights import check_suffix, is_gguf_file
from gencli.errors import GencliError

if TYPE_CHECKING:
    from torch import Tensor

BESIDE = ("text_encoders.", "vae.", "first_stage_model.")  # in files of a whole model
SD3, SD3_HEAD = "Stable Diffusion 3's transformer", 64
PREFIXES = ("", "model.diffusion_model.", "diffusion_model.")


def _z_image(shapes: Shapes) -> dict[str, object]:
    width, inputs = sizes(shapes, "x_embedder.weight", 2)
    [head] = sizes(shapes, "layers.0.attention.q_norm.weight", 1)
    if head % 16 or width % head:
        raise GencliError(f"a Z-Image {width} wide with heads of {head} is not known")
    return {
        "_class_name": "ZImageTransformer2DModel",
        "axes_dims": [head // 4, head // 8 * 3, head // 8 * 3],
        "axes_lens": [1536, 512, 512],
        "cap_feat_dim": sizes(shapes, "cap_embedder.1.weight", 2)[1],
        "dim": width,
        "in_channels": inputs // 4,
        "n_heads": width // head,
        "n_kv_heads": width // head,
        "n_layers": numbered(shapes, "layers"),
        "n_refiner_layers": numbered(shapes, "noise_refiner"),
    }


def _sd3(shapes: Shapes) -> dict[str, object]:
    width, channels, *_ = sizes(shapes, "x_embedder.proj.weight", 4)
    layers = numbered(shapes, "joint_blocks")
    if width % SD3_HEAD:
        raise GencliError(f"a Stable Diffusion 3 {width} wide is not known")
    return {
        "_class_name": "SD3Transformer2DModel",
        "attention_head_dim": SD3_HEAD,
        "caption_projection_dim": width,
        "dual_attention_layers": [i for i in range(layers) if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in shapes],
        "in_channels": channels,
        "joint_attention_dim": sizes(shapes, "context_embedder.weight", 2)[1],
        "num_attention_heads": width // SD3_HEAD,
        "num_layers": layers,
        "out_channels": sizes(shapes, "final_layer.linear.weight", 2)[0] // 4,
        "pooled_projection_dim": sizes(shapes, "y_embedder.mlp.0.weight", 2)[1],
        "pos_embed_max_size": math.isqrt(sizes(shapes, "pos_embed", 3)[1]),
        "qk_norm": "rms_norm" if "joint_blocks.0.x_block.attn.ln_q.weight" in shapes else None,
    }


def _swap_last(shapes: Shapes, pieces: dict[str, Piece]) -> None:
    """The last block of a Stable Diffusion 3 shifts and scales its text alone: in diffusers the scale comes first."""
    from gencli.checkpoints.formats.flow_rows import swapped

    start = f"transformer_blocks.{numbered(shapes, 'joint_blocks') - 1}.norm1_context.linear."
    for name in [name for name in pieces if name.startswith(start)]:
        pieces[name] = Piece(pieces[name].source, swapped)


def _flux(shapes: Shapes) -> dict[str, object]:
    width, channels = sizes(shapes, "img_in.weight", 2)
    [head] = _norm(shapes)
    if head % 16 or width % head:
        raise GencliError(f"a FLUX.1 {width} wide with heads of {head} is not known")
    return {
        "_class_name": "FluxTransformer2DModel",
        "attention_head_dim": head,
        "axes_dims_rope": [head // 8, head // 16 * 7, head // 16 * 7],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        "in_channels": channels,
        "out_channels": sizes(shapes, "final_layer.linear.weight", 2)[0],
        "joint_attention_dim": sizes(shapes, "txt_in.weight", 2)[1],
        "num_attention_heads": width // head,
        "num_layers": numbered(shapes, "double_blocks"),
        "num_single_layers": numbered(shapes, "single_blocks"),
        "pooled_projection_dim": sizes(shapes, "vector_in.in_layer.weight", 2)[1],
    }


def _chroma(shapes: Shapes) -> dict[str, object]:
    if any(name.startswith("nerf_") for name in shapes):
        raise GencliError("it is a Chroma Radiance, which draws in pixels, and is not supported")
    width, channels = sizes(shapes, "img_in.weight", 2)
    hidden, reads = sizes(shapes, "distilled_guidance_layer.in_proj.weight", 2)
    [head] = _norm(shapes)
    if head % 16 or width % head:
        raise GencliError(f"a Chroma {width} wide with heads of {head} is not known")
    return {
        "_class_name": "ChromaTransformer2DModel",
        "approximator_hidden_dim": hidden,
        "approximator_layers": numbered(shapes, "distilled_guidance_layer.layers"),
        "approximator_num_channels": reads,
        "attention_head_dim": head,
        "axes_dims_rope": [head // 8, head // 16 * 7, head // 16 * 7],
        "in_channels": channels,
        "joint_attention_dim": sizes(shapes, "txt_in.weight", 2)[1],
        "num_attention_heads": width // head,
        "num_layers": numbered(shapes, "double_blocks"),
        "num_single_layers": numbered(shapes, "single_blocks"),
        "out_channels": sizes(shapes, "final_layer.linear.weight", 2)[0],
    }


def _flux2(shapes: Shapes) -> dict[str, object]:
    if "guidance_in.in_layer.weight" in shapes:
        raise GencliError("it is a FLUX.2 that is told the guidance (dev), which is not supported")
    width, channels = sizes(shapes, "img_in.weight", 2)
    [head] = _norm(shapes)
    if head % 8 or width % head:
        raise GencliError(f"a FLUX.2 {width} wide with heads of {head} is not known")
    return {
        "_class_name": "Flux2Transformer2DModel",
        "attention_head_dim": head,
        "axes_dims_rope": [head // 4] * 4,
        "guidance_embeds": False,
        "in_channels": channels,
        "joint_attention_dim": sizes(shapes, "txt_in.weight", 2)[1],
        "mlp_ratio": sizes(shapes, "double_blocks.0.img_mlp.2.weight", 2)[1] / max(width, 1),
        "num_attention_heads": width // head,
        "num_layers": numbered(shapes, "double_blocks"),
        "num_single_layers": numbered(shapes, "single_blocks"),
    }


def _qwen_image(shapes: Shapes) -> dict[str, object]:
    width, channels = sizes(shapes, "img_in.weight", 2)
    [head] = sizes(shapes, "transformer_blocks.0.attn.norm_q.weight", 1)
    if head % 16 or width % head:
        raise GencliError(f"a Qwen-Image {width} wide with heads of {head} is not known")
    return {
        "_class_name": "QwenImageTransformer2DModel",
        "attention_head_dim": head,
        "axes_dims_rope": [head // 8, head // 16 * 7, head // 16 * 7],
        "in_channels": channels,
        "joint_attention_dim": sizes(shapes, "txt_in.weight", 2)[1],
        "num_attention_heads": width // head,
        "num_layers": numbered(shapes, "transformer_blocks"),
        "out_channels": sizes(shapes, "proj_out.weight", 2)[0] // 4,
    }


def _norm(shapes: Shapes) -> tuple[int, ...]:
    """GGUF files may call the norms' scales weights."""
    name = "single_blocks.0.norm.query_norm"
    return sizes(shapes, f"{name}.scale" if f"{name}.scale" in shapes else f"{name}.weight", 1)


def _is_any(name: str, config: Mapping[str, object]) -> bool:
    """Whether it is one: its key says so."""
    return True


@dataclass(frozen=True)
class Family:
    """key: a tensor that only these have. config: what their shapes tell. pipeline: as model_index.json has it. rest:
    repositories with its other parts, its own first. mend: what names alone do not tell. scheduler: its own, where
    those of its repositories differ. rows: the pipeline that `flow_rows` has its names by, its own if none is said.
    fits: whether a file of this name and config is one, where the key does not tell. unlike: a word in names of files
    with the same tensors that are another model, and that model, of which only folders are supported."""

    title: str
    key: str
    config: Callable[[Shapes], dict[str, object]]
    pipeline: str
    rest: tuple[str, ...]
    mend: Callable[[Shapes, dict[str, Piece]], None] = lambda shapes, pieces: None
    scheduler: Mapping[str, object] | None = None
    rows: str | None = None
    fits: Callable[[str, Mapping[str, object]], bool] = _is_any
    unlike: tuple[str, str] | None = None


def _is_fill(name: str, config: Mapping[str, object]) -> bool:
    """Whether a FLUX.1 reads more than it makes: beside the latents a mask, and what it leaves of an image."""
    return config["in_channels"] != config["out_channels"]


def _is_kontext(name: str, config: Mapping[str, object]) -> bool:
    """Whether a file's name says that it is Kontext, whose tensors are those of FLUX.1 dev."""
    return "kontext" in name.lower()


SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
FLUX_SCHEDULERS: dict[str, Mapping[str, object]] = {
    "dev": {
        **SCHEDULER, "shift": 3.0, "use_dynamic_shifting": True, "base_image_seq_len": 256, "base_shift": 0.5,
        "max_image_seq_len": 4096, "max_shift": 1.15,
    },
    "schnell": {**SCHEDULER, "shift": 1.0, "use_dynamic_shifting": False},
}  # fmt: skip
SD3_REPOSITORIES = {name: f"stabilityai/stable-diffusion-{name}" for name in ("3.5-medium", "3.5-large")}

FAMILIES = (
    Family(
        "Z-Image's transformer",
        "cap_pad_token",
        _z_image,
        "ZImagePipeline",
        ("Tongyi-MAI/Z-Image-Turbo",),
    ),
    Family(
        "Qwen-Image's transformer",
        "transformer_blocks.0.img_mod.1.weight",
        _qwen_image,
        "QwenImagePipeline",
        ("Qwen/Qwen-Image", "Qwen/Qwen-Image-2512"),
        unlike=("edit", "Qwen-Image-Edit"),
    ),
    Family(
        "Chroma's transformer",
        "distilled_guidance_layer.in_proj.weight",
        _chroma,
        "ChromaPipeline",
        ("lodestones/Chroma1-HD", "lodestones/Chroma1-Base"),
    ),
    Family(
        "FLUX.2's transformer",
        "double_stream_modulation_img.lin.weight",
        _flux2,
        "Flux2KleinPipeline",
        ("black-forest-labs/FLUX.2-klein-4B",),
    ),
    *(
        Family(SD3, key, _sd3, "StableDiffusion3Pipeline", tuple(rest), _swap_last)
        for key, rest in (
            ("joint_blocks.0.x_block.attn2.qkv.weight", SD3_REPOSITORIES.values()),
            ("joint_blocks.37.x_block.attn.qkv.weight", reversed(SD3_REPOSITORIES.values())),
            ("joint_blocks.0.x_block.attn.qkv.weight", ["stabilityai/stable-diffusion-3-medium-diffusers"]),
        )
    ),
    *(
        Family(
            "FLUX.1's transformer",
            "double_blocks.0.img_mod.lin.weight" if name == "schnell" else "guidance_in.in_layer.weight",
            _flux,
            pipeline,
            tuple(f"black-forest-labs/FLUX.1-{one}" for one in dict.fromkeys((name, *FLUX_SCHEDULERS))),
            scheduler=FLUX_SCHEDULERS.get(name, FLUX_SCHEDULERS["dev"]),
            rows="FluxPipeline",
            fits=fits,
        )
        for name, pipeline, fits in (
            ("Fill-dev", "FluxFillPipeline", _is_fill),
            ("Kontext-dev", "FluxKontextPipeline", _is_kontext),
            ("dev", "FluxPipeline", _is_any),
            ("schnell", "FluxPipeline", _is_any),
        )
    ),
)


class FlowTensors(RenamedTensors):
    """Tensors under new names; of packed ones, as in a GGUF file, the rows are cut, which stay packed."""

    def get(self, name: str) -> Tensor:
        from gencli.kernels.packed import Packed

        piece = self._pieces[name]
        tensor = self._tensors.get(piece.source)
        if not isinstance(tensor, Packed) or piece.transform is None:
            return self._changed(piece, tensor)
        return Packed(tensor.kind, self._changed(piece, tensor.data_rows))


def _find(shapes: Shapes) -> tuple[Family, str] | None:
    """The family of a file, and what stands before all names of its tensors."""
    return next(((row, start) for row in FAMILIES for start in PREFIXES if start + row.key in shapes), None)


def _fitting(first: Family, name: str, shapes: Shapes) -> tuple[Family, dict[str, object]]:
    """The family of a file of this name, of those with the key of `first`, and its config."""
    config = first.config(shapes)
    return next(row for row in FAMILIES if row.key == first.key and row.fits(name, config)), config


def is_flow(contents: Contents) -> bool:
    """Return whether a file holds such a transformer, under its authors' names."""
    found = _find(contents.shapes)
    return found is not None and not any(name.startswith("all_x_embedder") for name in contents.shapes)


def read_flow(contents: Contents, hints: Hints) -> Checkpoint:
    """Read a transformer without its other parts. Raise GencliError for tensors that are missing or unknown."""
    file, found = contents.tensor_file, _find(contents.shapes)
    assert found is not None
    start = found[1]
    beside = {name for name in file.shapes if name.startswith(BESIDE)} if start else set[str]()
    shapes = {name.removeprefix(start): shape for name, shape in file.shapes.items() if name.startswith(start)}
    family, config = _fitting(found[0], contents.path.name, shapes)
    if family.unlike is not None and family.unlike[0] in contents.path.name.lower():
        raise GencliError(f"it is a {family.unlike[1]} by its name, which runs as a folder alone")
    from gencli.checkpoints.formats.flow_rows import ROWS

    pieces, unknown = rename(shapes, ROWS[family.rows or family.pipeline])
    family.mend(shapes, pieces)
    unknown += [name for name in file.shapes if not name.startswith(start) and name not in beside]
    if unknown:
        raise GencliError(f"it has tensors that {family.title} has not: {some(sorted(unknown))}")
    placed = {name: Piece(start + piece.source, piece.transform) for name, piece in pieces.items()}
    part = Part("transformer", "model", contents.path, lambda: config, lambda: _open(contents, file, placed))
    parts = {"transformer": part}
    if (scheduler := family.scheduler) is not None:
        parts["scheduler"] = Part("scheduler", "scheduler", contents.path, lambda: scheduler)
    notes = ("its own text encoders and autoencoder are not read: those of the repository are",) if beside else ()
    return Checkpoint(contents, "image", family.pipeline, parts, title=family.title, rest=family.rest, notes=notes)


def _open(contents: Contents, file: TensorFile, pieces: Mapping[str, Piece]) -> FlowTensors:
    if not is_gguf_file(contents.path):
        check_suffix(contents.path, allow_pickle=contents.allow_pickle)
    return FlowTensors(Tensors([file]), pieces)
