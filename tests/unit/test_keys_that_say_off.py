"""Sound checkpoints with keys that say "off", or that training alone reads, are opened; those that say "on" are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from gencli.checkpoints.find import Source
from gencli.errors import GencliError
from gencli.models.llama import LlamaConfig
from gencli.spec import TextSpec
from gencli.text.load import open_model
from tests.tiny.scripted import END, bytes_tokenizer, make_scripted
from tests.tiny.text import write_json

LLAMA = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
OFF: dict[str, Any] = {
    "neftune_noise_alpha": 5, "layer_types": ["full_attention"], "use_sliding_window": False, "num_experts": 0,
    "add_cross_attention": False, "tie_encoder_decoder": False, "output_router_logits": False, "mlp_only_layers": [],
    "use_qk_norm": False, "residual_dropout": 0.0, "attn_dropout": 0.1, "flash_attn": True, "max_seq_len": 64,
    "made_with": "a tool", "attention_kernel": "sdpa", "use_moe": False, "max_window_layers": 4,
}  # fmt: skip


@pytest.mark.parametrize("key", OFF)
def test_what_is_off_is_ignored(key: str):
    assert LlamaConfig.from_dict(LLAMA | {key: OFF[key]}) == LlamaConfig.from_dict(LLAMA)


@pytest.mark.parametrize(
    "keys",
    [
        {"num_experts": 2},
        {"use_qk_norm": True},
        {"layer_types": ["sliding_attention"]},
    ],
)
def test_what_is_on_is_refused(keys: dict[str, Any]):
    with pytest.raises(GencliError, match="not supported"):
        LlamaConfig.from_dict(LLAMA | keys)


def test_a_key_that_the_user_says_changes_nothing(tmp_path: Path):
    made = bytes_tokenizer(END)
    make_scripted(tmp_path, made, made.encode("ab").ids, 2, config={"num_rings": 3})
    source = Source("tiny", tmp_path, "folder")
    with pytest.raises(GencliError, match="num_rings = 3") as caught:
        open_model(source)
    assert caught.value.hint.endswith("--ignore-config KEY says that one does not")
    assert open_model(source, TextSpec(ignore_config=("num_rings",))).max_length == 256
    with pytest.raises(GencliError, match="--ignore-config num_ring: the config of tiny has no such key"):
        open_model(source, TextSpec(ignore_config=("num_ring",)))


def test_no_token_and_a_buffer_in_the_index(tmp_path: Path):
    made = bytes_tokenizer(END)
    config = {"bos_token_id": -1, "eos_token_id": 256}
    make_scripted(tmp_path, made, made.encode("a").ids, 2, config=config)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    shard = "model-00001-of-00001.safetensors"
    save_file(tensors, tmp_path / shard, metadata={"format": "pt"})
    index = dict.fromkeys([*tensors, "transformer.h.0.attn.masked_bias"], shard)
    write_json(tmp_path / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    assert open_model(Source("tiny", tmp_path, "folder")).tokenizer.bos_id is None
    index["transformer.h.9.mlp.c_fc.bias"] = shard
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(GencliError, match="names tensors that no shard holds"):
        open_model(Source("tiny", tmp_path, "folder"))
