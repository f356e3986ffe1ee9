"""The text encoders of an original file: OpenAI's CLIP under transformers' names, and OpenCLIP under its own."""

from __future__ import annotations

from gencli.checkpoints.checkpoint import Shapes
from gencli.checkpoints.formats.renaming import THIRDS, Renamed, numbered, rename, sizes, transposed
from gencli.errors import GencliError
from gencli.models.base import Rename

HEAD = 64  # wide, in every CLIP there is
KIND = r"(weight|bias)"
TABLES = r"embeddings\.(token_embedding|position_embedding)\.weight"
LAYER = r"encoder\.layers\.(\d+)\.(self_attn\.[qkv]_proj|self_attn\.out_proj|layer_norm[12]|mlp\.fc[12])"
CLIP_ROWS = (
    Rename(rf"(?:text_model\.)?{TABLES}", r"text_model.embeddings.\1.weight"),
    Rename(rf"(?:text_model\.)?{LAYER}\.{KIND}", r"text_model.encoder.layers.\1.\2.\3"),
    Rename(rf"(?:text_model\.)?final_layer_norm\.{KIND}", r"text_model.final_layer_norm.\1"),
)
# q, k and v are the thirds of one tensor in torch's own attention.
BLOCK = r"transformer\.resblocks\.(\d+)"
IN_PROJ = rf"{BLOCK}\.attn\.in_proj_(weight|bias)"
OPEN_CLIP_ROWS = (
    Rename(r"token_embedding\.weight", r"text_model.embeddings.token_embedding.weight"),
    Rename(r"positional_embedding", r"text_model.embeddings.position_embedding.weight"),
    Rename(rf"{BLOCK}\.ln_([12])\.{KIND}", r"text_model.encoder.layers.\1.layer_norm\2.\3"),
    *(Rename(IN_PROJ, rf"text_model.encoder.layers.\1.self_attn.{x}_proj.\2", THIRDS[x]) for x in "qkv"),
    Rename(rf"{BLOCK}\.attn\.out_proj\.{KIND}", r"text_model.encoder.layers.\1.self_attn.out_proj.\2"),
    Rename(rf"{BLOCK}\.mlp\.c_fc\.{KIND}", r"text_model.encoder.layers.\1.mlp.fc1.\2"),
    Rename(rf"{BLOCK}\.mlp\.c_proj\.{KIND}", r"text_model.encoder.layers.\1.mlp.fc2.\2"),
    Rename(rf"ln_final\.{KIND}", r"text_model.final_layer_norm.\1"),
)
PROJECTION = Rename(r"text_projection", r"text_projection.weight", transposed)
# In SD 2 the encoder ends at the last layer but one of OpenCLIP's ViT-H: diffusers' folders have 23, some files too.
SD2_LAYERS, SD2_FILE_LAYERS = 23, (23, 24)


def read_clip(shapes: Shapes) -> tuple[Renamed, list[str]]:
    """Return config and tensors of a CLIP text encoder under transformers' names, and the names that do not belong to
    one.

    Raise GencliError for tensors that are missing or misshapen.
    """
    inner = "text_model." if any(name.startswith("text_model.") for name in shapes) else ""
    fc1 = sizes(shapes, f"{inner}encoder.layers.0.mlp.fc1.weight", 2)
    vocab_size, width = sizes(shapes, f"{inner}embeddings.token_embedding.weight", 2)
    positions = sizes(shapes, f"{inner}embeddings.position_embedding.weight", 2)[0]
    layers = numbered(shapes, f"{inner}encoder.layers")
    config = _config(vocab_size, width, positions, fc1[0], layers, "quick_gelu", projection_dim=width)
    pieces, unknown = rename(shapes, CLIP_ROWS)
    return Renamed(config, pieces), unknown


def read_open_clip(shapes: Shapes, *, sd2: bool) -> tuple[Renamed, list[str]]:
    """Return the same for an OpenCLIP text encoder: SD 2's without its last layer, or SDXL's with its projection.

    Raise GencliError for tensors that are missing or misshapen, and for another number of layers than SD 2's.
    """
    fc1 = sizes(shapes, "transformer.resblocks.0.mlp.c_fc.weight", 2)
    vocab_size, width = sizes(shapes, "token_embedding.weight", 2)
    positions = sizes(shapes, "positional_embedding", 2)[0]
    layers = numbered(shapes, "transformer.resblocks")
    if sd2:
        if layers not in SD2_FILE_LAYERS:
            raise GencliError(f"its text encoder has {layers} layers, and Stable Diffusion 2 has 24, or 23 in use")
        last = f"transformer.resblocks.{SD2_LAYERS}."
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith(last)}
        config = _config(vocab_size, width, positions, fc1[0], SD2_LAYERS, "gelu", projection_dim=512)
        pieces, unknown = rename(shapes, OPEN_CLIP_ROWS)
        return Renamed(config, pieces), [name for name in unknown if name != "text_projection"]  # made for pictures
    projected = sizes(shapes, "text_projection", 2)[1]
    config = _config(vocab_size, width, positions, fc1[0], layers, "gelu", projection_dim=projected)
    config["architectures"] = ["CLIPTextModelWithProjection"]
    pieces, unknown = rename(shapes, (*OPEN_CLIP_ROWS, PROJECTION))
    return Renamed(config, pieces), unknown


def _config(
    vocab_size: int, width: int, positions: int, hidden: int, layers: int, act: str, *, projection_dim: int
) -> dict[str, object]:
    if width % HEAD or not width:
        raise GencliError(f"its text encoder is {width} wide, no multiple of CLIP's heads of {HEAD}")
    return {
        "architectures": ["CLIPTextModel"],
        "bos_token_id": 0,
        "eos_token_id": 2,  # as all of these folders say: the end of a text is then its largest id
        "hidden_act": act,
        "hidden_size": width,
        "intermediate_size": hidden,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": positions,
        "model_type": "clip_text_model",
        "num_attention_heads": width // HEAD,
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "projection_dim": projection_dim,
        "vocab_size": vocab_size,
    }
