"""DiT's original file (facebookresearch/DiT, `DiT-XL-2-256x256.pt`) → diffusers' DiTTransformer2DModel.

The file stores timestep and class embeddings once, diffusers in each block; q, k and v are thirds of one tensor. No
tensor tells the number of heads: it is known for the released widths, others are refused. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gencli.checkpoints.checkpoint import Checkpoint, Contents, Hints, Shapes
from gencli.checkpoints.formats.renaming import THIRDS, Renamed, numbered, one_network, read_beside, rename, sizes
from gencli.checkpoints.layout import some
from gencli.errors import GencliError
from gencli.models.base import Rename

KIND = r"(weight|bias)"
HEADS = {1152: 16, 1024: 16, 768: 12, 384: 6}  # width of DiT-XL, L, B and S → attention heads
SCHEDULER: dict[str, object] = {  # Peebles & Xie 2023, section 4: that of guided-diffusion, in latents
    "_class_name": "DDIMScheduler",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "variance_type": "learned_range",
}
ROWS = (
    Rename(rf"x_embedder\.proj\.{KIND}", r"pos_embed.proj.\1"),
    Rename(rf"final_layer\.adaLN_modulation\.1\.{KIND}", r"proj_out_1.\1"),
    Rename(rf"final_layer\.linear\.{KIND}", r"proj_out_2.\1"),
    Rename(rf"blocks\.(\d+)\.adaLN_modulation\.1\.{KIND}", r"transformer_blocks.\1.norm1.linear.\2"),
    *(
        Rename(rf"blocks\.(\d+)\.attn\.qkv\.{KIND}", rf"transformer_blocks.\1.attn1.to_{x}.\2", THIRDS[x])
        for x in "qkv"
    ),
    Rename(rf"blocks\.(\d+)\.attn\.proj\.{KIND}", r"transformer_blocks.\1.attn1.to_out.0.\2"),
    Rename(rf"blocks\.(\d+)\.mlp\.fc1\.{KIND}", r"transformer_blocks.\1.ff.net.0.proj.\2"),
    Rename(rf"blocks\.(\d+)\.mlp\.fc2\.{KIND}", r"transformer_blocks.\1.ff.net.2.\2"),
    Rename(r"pos_embed", r"pos_embed.pos_embed"),  # which the module makes anew
)


def is_dit(contents: Contents) -> bool:
    """Return whether the names are those of DiT's own code."""
    wanted = {"x_embedder.proj.weight", "y_embedder.embedding_table.weight", "blocks.0.adaLN_modulation.1.weight"}
    return wanted <= contents.shapes.keys()


def read_dit(contents: Contents, hints: Hints) -> Checkpoint:
    """Read a transformer without its autoencoder. A JSON file beside it may name the classes as `id2label`.

    Raise GencliError for tensors that are missing, misshapen or unknown, and for a width whose heads are unknown.
    """
    shapes = contents.shapes
    layers = numbered(shapes, "blocks")
    pieces, unknown = rename(shapes, (*ROWS, *_repeated(layers)))
    network = Renamed(_config(shapes, layers), pieces)
    if unknown:
        raise GencliError(f"it has tensors that a DiT has not: {some(sorted(unknown))}")
    beside = read_beside(contents) or {}
    if wrong := sorted(key for key in beside if key != "id2label"):
        raise GencliError(f"{contents.path.stem}.json: not supported: {', '.join(wrong)[:200]}")
    parts = {"transformer": network.part(contents, "transformer")}
    return one_network(contents, "DiT", "DiTPipeline", parts, SCHEDULER, beside.get("id2label"))


def _repeated(layers: int) -> Iterator[Rename]:
    """Yield, for each block, the rows of what the file has once."""
    for block in range(layers):
        emb = f"transformer_blocks.{block}.norm1.emb"
        yield Rename(rf"t_embedder\.mlp\.0\.{KIND}", rf"{emb}.timestep_embedder.linear_1.\1")
        yield Rename(rf"t_embedder\.mlp\.2\.{KIND}", rf"{emb}.timestep_embedder.linear_2.\1")
        yield Rename(r"y_embedder\.embedding_table\.weight", rf"{emb}.class_embedder.embedding_table.weight")


def _config(shapes: Shapes, layers: int) -> dict[str, object]:
    width, channels, patch, _ = sizes(shapes, "x_embedder.proj.weight", 4)
    if width not in HEADS:
        known = ", ".join(str(one) for one in HEADS)
        raise GencliError(f"a DiT {width} wide: its heads of attention are not known", f"gencli knows those of {known}")
    count = sizes(shapes, "pos_embed", 3)[1]
    places = math.isqrt(count)
    if places**2 != count:
        raise GencliError(f"it has positions of {count} patches, which are no square")
    return {
        "_class_name": "DiTTransformer2DModel",
        "attention_head_dim": width // HEADS[width],
        "freq_shift": 0,  # the original's timesteps; diffusers' class has 1
        "in_channels": channels,
        "norm_eps": 1e-06,
        "norm_type": "ada_norm_zero",
        "num_attention_heads": HEADS[width],
        "num_embeds_ada_norm": sizes(shapes, "y_embedder.embedding_table.weight", 2)[0] - 1,
        "num_layers": layers,
        "out_channels": sizes(shapes, "final_layer.linear.weight", 2)[0] // max(patch * patch, 1),
        "patch_size": patch,
        "sample_size": places * patch,
    }
