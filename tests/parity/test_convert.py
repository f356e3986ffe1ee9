"""Language models written as GGUF files: gencli and llama.cpp open them, and both give the same greedy tokens."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from gencli.checkpoints.find import find
from gencli.checkpoints.gguf_file import GgufFile
from gencli.kernels.pack import PARTS, pack
from gencli.kernels.packed import Packed
from gencli.text.convert import convert
from gencli.text.load import open_model
from gencli.tokens.gguf import gguf_tokenizer
from tests.oracles import llama_cpp
from tests.oracles.libraries import transformers
from tests.tiny.decoder_cases import CASES
from tests.tiny.decoders import make_decoder
from tests.tiny.sentencepiece import make as make_pieces
from tests.tiny.sentencepiece import some_texts
from tests.tiny.text import make_gpt2, make_tokenizer

pytestmark = pytest.mark.slow
CASE = {case.name: case for case in CASES}
WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 384}  # fmt: skip
HEADS = {"head_dim": 64, "query_pre_attn_scalar": 64}
LONG = {"type": "longrope", "long_factor": [1.0 + i for i in range(32)], "short_factor": [1 + i / 9 for i in range(32)]}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
GEMMA4_HEADS = {"head_dim": 64, "global_head_dim": 128, "vocab_size_per_layer_input": 384}
QWEN35 = {"head_dim": 64, "linear_key_head_dim": 64, "linear_value_head_dim": 64, "num_hidden_layers": 4}
# The base with which YaRN's ramp ends at a whole pair of 64 numbers, the third: llama.cpp rounds where it ends, which
# gpt-oss was not trained with (`truncate` is false in its config).
WHOLE = math.exp(64 * math.log(16 / (2 * math.pi)) / (2 * 2.99999))
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
# name → its case, and changes of its config
FAMILIES = {
    "llama": ("llama-2", {}),
    "llama 3": ("llama-3", {"head_dim": 64, "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 8192}}),
    "mistral": ("mistral-nemo", {"head_dim": 32}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "mixtral": ("mixtral", {}),
    "qwen3moe": ("qwen3-moe", {"head_dim": 32, "moe_intermediate_size": 256}),
    "qwen35": ("qwen3.5", {**QWEN35, "linear_num_key_heads": 4}),
    "qwen35, heads in turns": ("qwen3.5", QWEN35),
    "qwen35moe": (
        "qwen3.5-moe",
        {**QWEN35, "moe_intermediate_size": 256, "shared_expert_intermediate_size": 256, "num_experts_per_tok": 6},
    ),
    "gpt-oss": ("gpt-oss", {"head_dim": 64, "swiglu_limit": 7.0, "num_experts_per_tok": 3, "rope_theta": WHOLE}),
    "yarn": ("qwen2-yarn", {}),
    "gemma2": ("gemma2", HEADS),
    "gemma3": ("gemma3", {**HEADS, "sliding_window_pattern": 6}),
    "gemma4": ("gemma4-small", {**GEMMA4_HEADS, "hidden_size_per_layer_input": 256}),
    "gemma4, large": ("gemma4-large", GEMMA4_HEADS),
    "gemma4, 12B": ("gemma4-unified", {"head_dim": 32, "attention_bias": False}),
    "gemma4, experts": ("gemma4-moe", {**GEMMA4_HEADS, "moe_intermediate_size": 256}),
    "phi3": ("phi3-window", {"sliding_window": None}),
    "phi3, long": (
        "phi3-long",
        {
            "rope_scaling": LONG,
            "sliding_window": None,
            "original_max_position_embeddings": 512,
            "max_position_embeddings": 2048,
        },
    ),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {"rope_scaling": YARN}),
    "granite": ("granite", {}),
    "mistral3": ("ministral3", {"head_dim": 32}),
    "lfm2": ("lfm2", {"block_ff_dim": 384}),
    "starcoder2": ("starcoder2", {}),
    "cohere2": ("cohere2", {}),
    "qwen2moe": ("qwen2-moe", {"moe_intermediate_size": 256, "shared_expert_intermediate_size": 256}),
    "phi2": ("phi", {}),
    "glm4": ("glm4", {"head_dim": 64}),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 4}),
}
IDS = [1, 5, 9, 13, 17, 21, 25, 29, 3, 4, 6, 8]
COUNT = 12


def made(folder: Path, name: str) -> Path:
    if name == "gpt2":
        return make_gpt2(folder, n_embd=256, dtype=torch.float16)
    case, changes = FAMILIES[name]
    make_decoder(folder, CASE[case], dtype=torch.float16, **WIDE, **changes)
    make_tokenizer(folder)
    return folder


@torch.inference_mode()
def continued(model: torch.nn.Module, banned: list[int]) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens, and the logits (COUNT, V) that chose them."""
    cache, tokens, logits, new = model.new_cache(1, len(IDS) + COUNT), [], [], torch.tensor([IDS])
    for _ in range(COUNT):
        logits.append(model(new, cache, last_only=True)[0, -1])
        new = logits[-1].index_fill(0, torch.tensor(banned), -torch.inf).argmax().reshape(1, 1)
        tokens.append(int(new))
    return tokens, torch.stack(logits)


@pytest.mark.parametrize("name", ["gpt2", *FAMILIES])
def test_every_architecture(tmp_path, name):
    """F16: the very weights, and so transformers' logits. Packed: the tokens of the dequantised weights, and
    llama.cpp's, which rounds activations too; where it picks another token, the two are as likely."""
    folder = made(tmp_path / "model", name)
    source = open_model(find(str(folder)))
    pieces = map(source.tokenizer.id_to_piece, range(384))
    banned = [i for i, piece in enumerate(pieces) if piece.startswith("bytes:") or i in (2, 383)]  # ends: its config's
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for mix, bound in (("f16", 0.01), ("q8_0", 0.08), ("q4_k_m", 0.12)):  # in deviations of the logits
        file = tmp_path / f"m-{mix}.gguf"
        convert(source, mix, file)
        opened = open_model(find(str(file)))
        tokens, logits = continued(opened.module, banned)
        if mix == "f16":
            with torch.inference_mode():
                whole = theirs(torch.tensor([[*IDS, *tokens[:-1]]])).logits[0, len(IDS) - 1 :]
            torch.testing.assert_close(logits, whole, atol=1e-4 * whole.abs().max().item(), rtol=0)
        for parameter in opened.module.parameters():
            if isinstance(parameter.data, Packed):
                assert parameter.data.kind in (
                    "Q8_0",
                    "Q4_K",
                    "Q5_K",
                    "Q6_K",
                    "Q5_0",
                )  # rows of 128 are no blocks of 256
        if name.startswith(("qwen35", "lfm2")) and mix != "f16":
            bound *= 1.6  # roundings that stay in its states, or whose products are taken
        spread = logits.std()
        ids, logprobs = llama_cpp.greedy(llama_cpp.opened(file), IDS, COUNT, banned=banned)
        same = next((i for i, pair in enumerate(zip(ids, tokens, strict=True)) if len(set(pair)) > 1), COUNT)
        ours = logits.log_softmax(-1)[range(same), tokens[:same]]
        assert ((ours - torch.tensor(logprobs[:same])).abs() < bound * spread).all(), (mix, same)
        if same < COUNT:
            assert logits[same, tokens[same]] - logits[same, ids[same]] < bound * spread, mix


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_tokenizers_of_pieces(tmp_path, kind):
    """A SentencePiece model's pieces, with scores that llama.cpp merges by: a text's tokens are the same there."""
    case, changes = FAMILIES["llama" if kind == "llama" else "gemma2"]
    folder = tmp_path / "model"
    make_decoder(folder, CASE[case], dtype=torch.float16, **{**WIDE, "vocab_size": 704}, **changes)
    tokenizer, _ = make_pieces(folder, kind)
    file = tmp_path / "m.gguf"
    convert(open_model(find(str(folder))), "f16", file)
    server = llama_cpp.opened(file)
    for text in some_texts()[:40]:
        ids = tokenizer.encode(text)
        assert open_text(file).encode(text) == ids, text
        if 0 < len(ids) < 200:
            assert llama_cpp.count(server, text) == len(ids), text


def open_text(file: Path):
    return gguf_tokenizer(file, GgufFile(file).metadata)


def test_our_quantisers_beside_llama_cpps():
    """The plain types byte for byte; those of K, which look for the best scales, within 5 % of its error, in which
    large weights count more."""
    torch.manual_seed(0)
    for values in (torch.randn(8, 1024) * 0.02, torch.distributions.StudentT(4.0).sample((8, 1024)) * 0.02):
        for kind in PARTS:
            ours, theirs = pack(kind, values).numpy(), llama_cpp.quantised(kind, values.numpy())
            if kind.endswith("_K"):
                back = (gguf.quants.dequantize(rows, Type[kind]) - values.numpy() for rows in (ours, theirs))
                errors = [np.square(off) * np.abs(values.numpy()) for off in back]
                assert errors[0].mean() < 1.05 * errors[1].mean(), kind
            else:
                assert np.array_equal(ours, theirs), kind
