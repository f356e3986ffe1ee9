"""The names of tensors in files of Z-Image, Qwen-Image, Chroma, Stable Diffusion 3, FLUX.1 and FLUX.2, as their
authors' code has them, and those of diffusers' folders. Read when such a file or a LoRA is opened. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gencli.checkpoints.formats.renaming import THIRDS
from gencli.errors import GencliError
from gencli.models.base import Rename

if TYPE_CHECKING:
    from torch import Tensor

KIND = r"(weight|bias)"


def _one_row(tensor: Tensor) -> Tensor:
    return tensor.reshape(1, -1)


def swapped(tensor: Tensor) -> Tensor:
    """Shift and scale, as (2 D, …), in the other order."""
    import torch

    return torch.cat(tuple(reversed(tensor.chunk(2))))


def _part(index: int) -> Callable[[Tensor], Tensor]:
    """What cuts q, k, v or, as the fourth, the input of the feed-forward network from (7 D, …)."""

    def cut(tensor: Tensor) -> Tensor:
        rows = tensor.shape[0] // 7 if tensor.ndim else 0
        if not rows or tensor.shape[0] % 7:
            raise GencliError(f"{list(tensor.shape)} does not split into q, k, v and a feed-forward network's input")
        return tensor[index * rows : (index + 1) * rows if index < 3 else None]

    return cut


Z_BLOCK = r"((?:layers|noise_refiner|context_refiner)\.\d+)"
Z_IMAGE_ROWS = (
    Rename(rf"x_embedder\.{KIND}", r"all_x_embedder.2-1.\1"),
    Rename(rf"final_layer\.(linear|adaLN_modulation\.1)\.{KIND}", r"all_final_layer.2-1.\1.\2"),
    Rename(rf"(t_embedder\.mlp\.[02]|cap_embedder\.[01])\.{KIND}", r"\1.\2"),
    Rename(r"(x|cap)_pad_token", r"\1_pad_token", _one_row),
    *(Rename(rf"{Z_BLOCK}\.attention\.qkv\.weight", rf"\1.attention.to_{x}.weight", THIRDS[x]) for x in "qkv"),
    Rename(rf"{Z_BLOCK}\.attention\.out\.weight", r"\1.attention.to_out.0.weight"),
    Rename(rf"{Z_BLOCK}\.attention\.([qk])_norm\.weight", r"\1.attention.norm_\2.weight"),
    Rename(rf"{Z_BLOCK}\.(feed_forward\.w[123]|(?:attention|ffn)_norm[12])\.weight", r"\1.\2.weight"),
    Rename(rf"{Z_BLOCK}\.adaLN_modulation\.0\.{KIND}", r"\1.adaLN_modulation.0.\2"),
    Rename(r"norm_final\.weight", r"norm_final.weight"),  # which the module does without
)
SD3_BLOCK = r"joint_blocks\.(\d+)\."
SD3_ROWS = (
    Rename(rf"x_embedder\.proj\.{KIND}", r"pos_embed.proj.\1"),
    Rename(r"pos_embed", "pos_embed.pos_embed"),
    Rename(rf"context_embedder\.{KIND}", r"context_embedder.\1"),
    *(
        Rename(rf"{old}_embedder\.mlp\.{layer}\.{KIND}", rf"time_text_embed.{new}_embedder.linear_{number}.\1")
        for old, new in (("t", "timestep"), ("y", "text"))
        for number, layer in ((1, 0), (2, 2))
    ),
    Rename(rf"final_layer\.linear\.{KIND}", r"proj_out.\1"),
    Rename(rf"final_layer\.adaLN_modulation\.1\.{KIND}", r"norm_out.linear.\1", swapped),
    *(
        Rename(rf"{SD3_BLOCK}{old}\.{KIND}", rf"transformer_blocks.\1.{new}.\2", transform)
        for block, norm, attn, to, out, ff in (
            (r"x_block\.", "norm1", "attn", "to_{}", "to_out.0", "ff"),
            (r"context_block\.", "norm1_context", "attn", "add_{}_proj", "to_add_out", "ff_context"),
            (r"x_block\.", None, "attn2", "to_{}", "to_out.0", None),
        )
        for old, new, transform in (
            *((rf"{block}{attn}\.qkv", f"{attn}.{to.format(x)}", THIRDS[x]) for x in "qkv"),
            (rf"{block}{attn}\.proj", f"{attn}.{out}", None),
            *([(rf"{block}adaLN_modulation\.1", f"{norm}.linear", None)] if norm else []),
            *(
                [(rf"{block}mlp\.fc1", f"{ff}.net.0.proj", None), (rf"{block}mlp\.fc2", f"{ff}.net.2", None)]
                if ff
                else []
            ),
        )
    ),
    *(
        Rename(rf"{SD3_BLOCK}{block}\.{attn}\.ln_{x}\.weight", rf"transformer_blocks.\1.{attn}.norm_{added}{x}.weight")
        for block, attn, added in (
            ("x_block", "attn", ""),
            ("context_block", "attn", "added_"),
            ("x_block", "attn2", ""),
        )
        for x in "qk"
    ),
)
FLUX_ROWS = (
    Rename(rf"img_in\.{KIND}", r"x_embedder.\1"),
    Rename(rf"txt_in\.{KIND}", r"context_embedder.\1"),
    *(
        Rename(rf"{old}_in\.{layer}_layer\.{KIND}", rf"time_text_embed.{new}_embedder.linear_{number}.\1")
        for old, new in (("time", "timestep"), ("guidance", "guidance"), ("vector", "text"))
        for number, layer in ((1, "in"), (2, "out"))
    ),
    Rename(rf"final_layer\.linear\.{KIND}", r"proj_out.\1"),
    Rename(rf"final_layer\.adaLN_modulation\.1\.{KIND}", r"norm_out.linear.\1", swapped),
    *(
        Rename(rf"double_blocks\.(\d+)\.{stream}_{old}\.{KIND}", rf"transformer_blocks.\1.{new}.\2", transform)
        for stream, mod, to, out, ff in (
            ("img", "norm1", "to_{}", "to_out.0", "ff"),
            ("txt", "norm1_context", "add_{}_proj", "to_add_out", "ff_context"),
        )
        for old, new, transform in (
            (r"mod\.lin", f"{mod}.linear", None),
            *((r"attn\.qkv", f"attn.{to.format(x)}", THIRDS[x]) for x in "qkv"),
            (r"attn\.proj", f"attn.{out}", None),
            (r"mlp\.0", f"{ff}.net.0.proj", None),
            (r"mlp\.2", f"{ff}.net.2", None),
        )
    ),
    *(
        Rename(
            rf"double_blocks\.(\d+)\.{stream}_attn\.norm\.{x}_norm\.(?:scale|weight)",
            rf"transformer_blocks.\1.attn.norm_{added}{x[0]}.weight",
        )
        for stream, added in (("img", ""), ("txt", "added_"))
        for x in ("query", "key")
    ),
    *(
        Rename(rf"single_blocks\.(\d+)\.{old}\.{KIND}", rf"single_transformer_blocks.\1.{new}.\2", transform)
        for old, new, transform in (
            (r"modulation\.lin", "norm.linear", None),
            *(("linear1", f"attn.to_{x}", _part(index)) for index, x in enumerate("qkv")),
            ("linear1", "proj_mlp", _part(3)),
            ("linear2", "proj_out", None),
        )
    ),
    *(
        Rename(
            rf"single_blocks\.(\d+)\.norm\.{x}_norm\.(?:scale|weight)",
            rf"single_transformer_blocks.\1.attn.norm_{x[0]}.weight",
        )
        for x in ("query", "key")
    ),
)
FLUX2_ROWS = (
    Rename(r"img_in\.weight", "x_embedder.weight"),
    Rename(r"txt_in\.weight", "context_embedder.weight"),
    Rename(r"time_in\.in_layer\.weight", "time_guidance_embed.timestep_embedder.linear_1.weight"),
    Rename(r"time_in\.out_layer\.weight", "time_guidance_embed.timestep_embedder.linear_2.weight"),
    Rename(r"((?:double_stream_modulation_(?:img|txt)|single_stream_modulation))\.lin\.weight", r"\1.linear.weight"),
    Rename(r"final_layer\.linear\.weight", "proj_out.weight"),
    Rename(r"final_layer\.adaLN_modulation\.1\.weight", "norm_out.linear.weight", swapped),
    *(
        Rename(rf"double_blocks\.(\d+)\.{old}", rf"transformer_blocks.\1.{new}.weight", transform)
        for stream, to, norm, out, ff in (
            ("img", "to_{}", "norm_{}", "to_out.0", "ff"),
            ("txt", "add_{}_proj", "norm_added_{}", "to_add_out", "ff_context"),
        )
        for old, new, transform in (
            *((rf"{stream}_attn\.qkv\.weight", f"attn.{to.format(x)}", THIRDS[x]) for x in "qkv"),
            (rf"{stream}_attn\.norm\.query_norm\.(?:scale|weight)", f"attn.{norm.format('q')}", None),
            (rf"{stream}_attn\.norm\.key_norm\.(?:scale|weight)", f"attn.{norm.format('k')}", None),
            (rf"{stream}_attn\.proj\.weight", f"attn.{out}", None),
            (rf"{stream}_mlp\.0\.weight", f"{ff}.linear_in", None),
            (rf"{stream}_mlp\.2\.weight", f"{ff}.linear_out", None),
        )
    ),
    *(
        Rename(rf"single_blocks\.(\d+)\.{old}", rf"single_transformer_blocks.\1.attn.{new}.weight")
        for old, new in (
            (r"linear1\.weight", "to_qkv_mlp_proj"),
            (r"linear2\.weight", "to_out"),
            (r"norm\.query_norm\.(?:scale|weight)", "norm_q"),
            (r"norm\.key_norm\.(?:scale|weight)", "norm_k"),
        )
    ),
)

GUIDANCE = r"distilled_guidance_layer\."
CHROMA_ROWS = (
    Rename(rf"({GUIDANCE}(?:in|out)_proj)\.{KIND}", r"\1.\2"),
    Rename(rf"({GUIDANCE}layers\.\d+)\.in_layer\.{KIND}", r"\1.linear_1.\2"),
    Rename(rf"({GUIDANCE}layers\.\d+)\.out_layer\.{KIND}", r"\1.linear_2.\2"),
    Rename(rf"({GUIDANCE}norms\.\d+)\.(?:scale|weight)", r"\1.weight"),
    *FLUX_ROWS,
)
QWEN_BLOCK = r"(transformer_blocks\.\d+\."
QWEN_IMAGE_ROWS = (  # whose authors' code is diffusers'
    Rename(rf"((?:img|txt)_in|proj_out|norm_out\.linear)\.{KIND}", r"\1.\2"),
    Rename(rf"(time_text_embed\.timestep_embedder\.linear_[12])\.{KIND}", r"\1.\2"),
    Rename(r"txt_norm\.weight", "txt_norm.weight"),
    Rename(rf"{QWEN_BLOCK}(?:img|txt)_(?:mod\.1|mlp\.net\.(?:0\.proj|2)))\.{KIND}", r"\1.\2"),
    Rename(rf"{QWEN_BLOCK}attn\.(?:to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out))\.{KIND}", r"\1.\2"),
    Rename(rf"{QWEN_BLOCK}attn\.norm_(?:added_)?[qk])\.weight", r"\1.weight"),
)

# A pipeline as model_index.json names it → the rows of its transformer.
ROWS = {
    "ZImagePipeline": Z_IMAGE_ROWS,
    "QwenImagePipeline": QWEN_IMAGE_ROWS,
    "ChromaPipeline": CHROMA_ROWS,
    "StableDiffusion3Pipeline": SD3_ROWS,
    "FluxPipeline": FLUX_ROWS,
    "Flux2KleinPipeline": FLUX2_ROWS,
}
