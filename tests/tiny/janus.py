"""A small seeded Janus, made with transformers, in its layout or in that of DeepSeek's own files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, processors

from tests.oracles.libraries import transformers
from tests.tiny.image import randomise
from tests.tiny.text import byte_bpe

SIDE, GRID = 64, 4
BOS, EOS, PAD, BEGIN = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<begin_of_image>"
SPECIALS = (BOS, EOS, PAD, "<image_placeholder>", "<|User|>", "<|Assistant|>", BEGIN, "<end_of_image>")
ENTRIES, WIDTH, HEADS = 48, 32, 4
# transformers' names → DeepSeek's
OLD = (
    (r"^model\.vqmodel\.", "gen_vision_model."),
    (r"^model\.generation_embeddings\.", "gen_embed."),
    (r"^model\.generation_aligner\.fc1\.", "gen_aligner.layers.0."),
    (r"^model\.generation_aligner\.hidden_layers\.0\.", "gen_aligner.layers.2."),
    (r"^model\.generation_head\.proj_out\.", "gen_head.output_mlp_projector."),
    (r"^model\.generation_head\.vision_head\.", "gen_head.vision_head."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.aligner\.fc1\.", "aligner.layers.0."),
    (r"^model\.aligner\.hidden_layers\.0\.", "aligner.layers.2."),
    (r"^model\.vision_model\.embeddings\.patch_embedding\.", "vision_model.vision_tower.patch_embed.proj."),
    (r"^model\.vision_model\.embeddings\.position_embedding\.weight", "vision_model.vision_tower.pos_embed"),
    (r"^model\.vision_model\.post_layernorm\.", "vision_model.vision_tower.norm."),
    (r"^model\.vision_model\.encoder\.layers\.", "vision_model.vision_tower.blocks."),
    (r"(blocks\.\d+)\.layer_norm", r"\1.norm"),
    (r"(blocks\.\d+)\.self_attn\.projection_layer", r"\1.attn.proj"),
    (r"(model\.encoder)\.down\.", r"\1.conv_blocks."),
    (r"(model\.decoder)\.up\.", r"\1.conv_blocks."),
    (r"(conv_blocks\.\d+)\.block\.", r"\1.res."),
    (r"\.mid\.block_1\.", ".mid.0."),
    (r"\.mid\.attn_1\.", ".mid.1."),
    (r"\.mid\.block_2\.", ".mid.2."),
)


class TinyJanus(NamedTuple):
    """One in its layout, and what reads it."""

    folder: Path
    reference: transformers.JanusForConditionalGeneration
    tokenizer: transformers.PreTrainedTokenizerFast


def make_tokenizer(folder: Path) -> Tokenizer:
    """A byte-level BPE with Janus's special tokens; every text begins with one."""
    tokenizer = Tokenizer.from_str(byte_bpe().to_str())
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIALS])
    begin = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[begin])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    config = {**names, "model_max_length": 16384, "tokenizer_class": "LlamaTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False))
    (folder / "special_tokens_map.json").write_text(json.dumps(names, ensure_ascii=False))
    return tokenizer


def make_janus(
    folder: Path, *, old: bool = False, shards: str = "5GB", **changes: Any
) -> transformers.JanusForConditionalGeneration:
    """A Janus of 64x64 pixels in 4x4 tokens; the reference in float32. old: DeepSeek's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(folder)
    words = tokenizer.get_vocab_size() + 2
    text = {"model_type": "llama", "vocab_size": words, "hidden_size": WIDTH, "intermediate_size": 64,
            "num_hidden_layers": 3, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
            "max_position_embeddings": 256}  # fmt: skip
    vq = {"embed_dim": 8, "num_embeddings": ENTRIES, "latent_channels": 16, "base_channels": 32,
          "channel_multiplier": [1, 1, 1, 2, 2], "num_res_blocks": 1, "projection_dim": WIDTH,
          "image_token_embed_dim": WIDTH, **changes}  # fmt: skip
    vision = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 16, "image_size": SIDE,
              "patch_size": 16, "projection_dim": WIDTH, "num_image_tokens": GRID * GRID}  # fmt: skip
    torch.manual_seed(70)
    token = tokenizer.token_to_id("<image_placeholder>")
    config = transformers.JanusConfig(
        text_config=text, vq_config=vq, vision_config=vision, image_token_id=token, tie_word_embeddings=False
    )
    model = transformers.JanusForConditionalGeneration(config).eval()
    randomise(model, 72)
    with torch.no_grad():  # its own start is so small that all tokens are alike
        for layer in (*model.model.language_model.layers, model.model.generation_head, model.model.generation_aligner):
            for parameter in layer.parameters():
                parameter *= 12 if parameter.ndim > 1 else 0.1 if parameter.std() < 0.5 else 1
        model.model.generation_embeddings.weight *= 40
        model.model.language_model.embed_tokens.weight *= 40
        for parameter in (*model.model.vision_model.parameters(), *model.model.aligner.parameters()):
            parameter *= 8 if parameter.ndim > 1 else 1
        model.model.aligner.hidden_layers[0].weight *= 10
        model.lm_head.weight *= 40
    named = model.generation_config
    named.bos_token_id, named.pad_token_id, named.eos_token_id = map(tokenizer.token_to_id, (BOS, PAD, EOS))
    named.generation_kwargs = {"boi_token_id": tokenizer.token_to_id(BEGIN)}
    model.save_pretrained(folder, max_shard_size=shards)
    file = folder / "model.safetensors"
    if old:
        tensors = {old_name(name): tensor for name, tensor in fused(load_file(file)).items()}
        tensors["vision_model.vision_tower.pos_embed"] = tensors["vision_model.vision_tower.pos_embed"][None]
        tensors["vision_model.vision_tower.attn_pool.latent"] = torch.zeros(1, 1, 64)
        tensors["gen_vision_model.quantize.codebook_used"] = torch.zeros(64)
        file.unlink()
        (folder / "generation_config.json").unlink()
        (folder / "config.json").write_text(json.dumps(old_config(text)))
        torch.save(tensors, folder / "pytorch_model.bin")
    return model


def fused(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with q, k and v of the tower in one, as timm has them."""
    found = dict(tensors)
    for name in [name for name in tensors if ".vision_model." in name and ".q_proj." in name]:
        thirds = [found.pop(name.replace("q_proj", f"{x}_proj")) for x in "qkv"]
        found[name.replace("self_attn.q_proj", "attn.qkv")] = torch.cat(thirds)
    return found


def old_name(name: str) -> str:
    """DeepSeek's name of a tensor."""
    for pattern, new in OLD:
        name = re.sub(pattern, new, name)
    return name


def old_config(text: dict[str, Any]) -> dict[str, Any]:
    """config.json as deepseek-ai/Janus-Pro-1B has it."""
    layers = {"depth": 2, "n_embed": WIDTH, "projector_type": "mlp_gelu"}
    projector = {"cls": "MlpProjector", "model_type": "aligner"}
    entries = {"image_token_size": ENTRIES, "n_embed": WIDTH}
    vision = {"image_size": SIDE, "model_name": "siglip_large_patch16_384", "select_layer": -1}
    return {
        "architectures": ["MultiModalityCausalLM"],
        "aligner_config": {**projector, "params": {**layers, "input_dim": 64}},
        "gen_aligner_config": {**projector, "params": {**layers, "input_dim": 8}},
        "gen_head_config": {"cls": "vision_head", "params": {**entries, "image_token_embed": WIDTH}},
        "gen_vision_config": {"cls": "VQ-16", "params": {**entries, "n_embed": 8}},
        "language_config": {**text, "torch_dtype": "bfloat16"},
        "model_type": "multi_modality",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.33.1",
        "vision_config": {"cls": "CLIPVisionTower", "params": vision},
    }
