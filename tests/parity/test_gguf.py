"""GGUF files written by the gguf package give the numbers and tokens of the checkpoints they were made from."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file

from gencli.checkpoints.build import load
from gencli.checkpoints.find import find
from gencli.checkpoints.gguf_file import GgufFile
from gencli.checkpoints.report import check, describe
from gencli.errors import GencliError
from gencli.text.load import open_model
from gencli.tokens import load_tokenizer
from gencli.tokens.gguf import gguf_tokenizer
from gencli.tokens.sentencepiece import merges, read
from tests.opening import open_part
from tests.oracles.libraries import transformers
from tests.shell.process import gencli
from tests.tiny.decoder_cases import CASES
from tests.tiny.decoders import make_decoder
from tests.tiny.sentencepiece import make as make_pieces
from tests.tiny.sentencepiece import some_texts
from tests.tiny.text import bpe_files, make_gpt2

CASE = {case.name: case for case in CASES}
TYPES = {"F32": Type.F32, "F16": Type.F16, "BF16": Type.BF16, "Q8_0": Type.Q8_0}
BLOCK = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "ln_1": "attn_norm", "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip
TOP = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm",
}  # fmt: skip


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows in the order of llama.cpp's rotary positions: neighbours instead of halves."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def converted(name: str, tensor: torch.Tensor, config: dict) -> tuple[str, np.ndarray]:
    """A checkpoint's tensor as llama.cpp's converter writes it."""
    stem, _, ending = name.rpartition(".")
    value = tensor.float().numpy()
    if stem in TOP:
        return f"{TOP[stem]}.{ending}", value
    parts = stem.removeprefix("model.layers.").removeprefix("h.").split(".", 1)
    new = BLOCK[parts[1]]
    if config["model_type"] == "llama" and new in ("attn_q", "attn_k"):
        value = permuted(value, config["num_attention_heads" if new == "attn_q" else "num_key_value_heads"])
    if config["model_type"] == "gpt2" and ending == "weight" and ".c_" in stem:
        value = np.ascontiguousarray(value.T)
    return f"blk.{parts[0]}.{new}.{ending}", value


def write_gguf(folder: Path, file: Path, kind: str, fill=None, **more) -> Path:
    """The checkpoint in `folder` as a GGUF file; norms and biases stay float32. fill: writes the tokenizer."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = config["model_type"]
    writer = gguf.GGUFWriter(file, family)
    if family == "gpt2":
        writer.add_context_length(config["n_positions"])
        writer.add_embedding_length(config["n_embd"])
        writer.add_feed_forward_length(4 * config["n_embd"])
        writer.add_block_count(config["n_layer"])
        writer.add_head_count(config["n_head"])
        writer.add_layer_norm_eps(config.get("layer_norm_epsilon", 1e-5))
    else:
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_freq_base(config["rope_theta"])
        writer.add_vocab_size(config["vocab_size"])
        if "head_dim" in config:
            writer.add_key_length(config["head_dim"])
            writer.add_value_length(config["head_dim"])
            writer.add_rope_dimension_count(config["head_dim"])
    for key, value in more.items():
        writer.add_key_value(key.replace("__", "."), *value)
    if fill is None:
        writer.add_tokenizer_model("none")
    else:
        fill(writer)
    for name, tensor in load_file(folder / "model.safetensors").items():
        if ".attn.bias" in name or "masked_bias" in name:
            continue
        new, value = converted(name, tensor, config)
        wanted = TYPES[kind] if value.ndim > 1 else Type.F32
        writer.add_tensor(new, gguf.quants.quantize(value, wanted), raw_dtype=wanted)
    if scaling := (config.get("rope_scaling") or {}):
        writer.add_tensor("rope_freqs.weight", llama3_divisors(scaling, config).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def llama3_divisors(scaling: dict, config: dict) -> np.ndarray:
    """As llama.cpp's converter computes them, frequency by frequency."""
    low, high, old = (scaling[k] for k in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"))
    found = []
    for i in range(0, config["head_dim"], 2):
        length = 2 * np.pi * config["rope_theta"] ** (i / config["head_dim"])
        smooth = (old / length - low) / (high - low)
        middle = 1 / ((1 - smooth) / scaling["factor"] + smooth)
        found.append(1 if length < old / high else scaling["factor"] if length > old / low else middle)
    return np.array(found)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# name → how the checkpoint is made
CHECKPOINTS = {
    "gpt2": lambda folder, dtype: make_gpt2(folder, tokenizer=None, dtype=dtype),
    "llama": lambda folder, dtype: make_decoder(folder, CASE["llama-2"], dtype=dtype, num_key_value_heads=2),
    "llama, biased": lambda folder, dtype: make_decoder(folder, CASE["biased"], dtype=dtype, hidden_act="silu"),
    "llama 3": lambda folder, dtype: make_decoder(
        folder,
        CASE["smollm2"],
        dtype=dtype,
        head_dim=16,
        rope_theta=500000.0,
        rope_scaling={**LLAMA3, "original_max_position_embeddings": 8192},
    ),
    "qwen2": lambda folder, dtype: make_decoder(folder, CASE["qwen2"], dtype=dtype),
    "qwen3": lambda folder, dtype: make_decoder(folder, CASE["qwen3"], dtype=dtype),
}
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "Q8_0": torch.float32}


def opened(file: Path) -> torch.nn.Module:
    config, tensors = open_part(file)
    return load(file, config=config, tensors=tensors)


def size_for_blocks(folder: Path) -> dict[str, torch.Tensor]:
    """The checkpoint's weights rounded to Q8_0 and back, each row in blocks of 32."""
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rounded = {}
    for name, tensor in tensors.items():
        if tensor.dim() != 2:
            rounded[name] = tensor
            continue
        turned = config["model_type"] == "gpt2" and ".c_" in name
        rows = (tensor.T if turned else tensor).float().contiguous().numpy()
        back = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(rows, Type.Q8_0), Type.Q8_0))
        rounded[name] = back.T.contiguous() if turned else back
    return rounded


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", CHECKPOINTS)
@torch.inference_mode()
def test_every_weight_is_the_checkpoints(tmp_path, name, kind):
    if kind == "Q8_0" and name != "gpt2":  # rows in whole blocks
        folder = CHECKPOINTS[name](tmp_path / "model", DTYPES[kind])
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        case = {"llama": "llama-2", "llama, biased": "biased", "llama 3": "smollm2"}.get(name, name)
        keys = ("num_key_value_heads", "hidden_act", "rope_scaling", "rope_theta", "head_dim")
        keys = {k: raw[k] for k in keys if k in raw}
        folder = make_decoder(tmp_path / "wide", CASE[case], intermediate_size=64, **keys)
    else:
        folder = CHECKPOINTS[name](tmp_path / "model", DTYPES[kind])
    ours = opened(write_gguf(folder, tmp_path / "model.gguf", kind))
    expected = load(folder)
    if kind == "Q8_0":
        rounded = size_for_blocks(folder)
        for key, parameter in expected.named_parameters():
            short = key.removeprefix("transformer.")
            parameter.copy_(rounded[key] if key in rounded else rounded[short])
    assert ours.state_dict().keys() == expected.state_dict().keys()
    for key, value in expected.state_dict().items():
        assert torch.equal(ours.state_dict()[key].float(), value.float()), key
    ids = torch.arange(30)[None]
    torch.testing.assert_close(ours.float()(ids), expected.float()(ids), atol=0, rtol=0)
    dtypes = {parameter.dtype for parameter in opened(tmp_path / "model.gguf").parameters()}
    assert dtypes == ({torch.bfloat16} if kind == "BF16" else dtypes & {torch.float32, torch.float16})


def test_stretched_frequencies_are_shown_without_torch(tmp_path):
    folder = CHECKPOINTS["llama 3"](tmp_path / "model", torch.float32)
    file = write_gguf(folder, tmp_path / "model.gguf", "F32")
    done = gencli("models", "show", file, "--json", fresh=True, code="sys.modules['torch'] = None")
    shown = json.loads(done.stdout)
    assert (done.returncode, shown["problem"], shown["family"]) == (0, None, "llama")


@torch.inference_mode()
def test_logits_are_the_references_from_the_same_file(tmp_path):
    """The order of rows in q and k, as another reader of GGUF undoes it."""
    folder = CHECKPOINTS["llama"](tmp_path / "model", torch.float32)
    file = write_gguf(folder, tmp_path / "model.gguf", "F32")
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(30)[None]
    torch.testing.assert_close(opened(file)(ids), theirs(ids).logits, atol=1e-5, rtol=0)


def test_packed_layers_of_gpt2_run(tmp_path):
    """Their tensors are turned; opened as by a user, outside of inference mode."""
    file = write_gguf(make_gpt2(tmp_path / "model", tokenizer=None), tmp_path / "model.gguf", "Q8_0")
    config, tensors = open_part(file)
    model = load(file, dtype=torch.float32, layerwise_casting=True, config=config, tensors=tensors)
    ids, cache = torch.arange(30)[None], model.new_cache(1, 30)
    with torch.inference_mode():
        whole = model(ids)
        parts = [model(ids[:, a:b], cache) for a, b in ((0, 20), (20, 24), *((i, i + 1) for i in range(24, 30)))]
    assert (torch.cat(parts, 1) - whole).std() < 0.02 * whole.std()  # activations of 8 bits


def test_it_is_described_and_checked(tmp_path):
    file = write_gguf(make_gpt2(tmp_path / "model", tokenizer=None), tmp_path / "m.gguf", "Q8_0")
    told = describe(find(str(file)))
    assert (told.kind, told.family, told.problem) == ("text", "gpt2", None)
    assert told.components[0].dtypes == ("F32", "Q8_0") and told.parameters == sum(
        parameter.numel() for name, parameter in opened(file).named_parameters() if name != "lm_head.weight"
    )
    assert check(find(str(file))).problems == () and check(find(str(file))).tensors == 28
    content = bytearray(file.read_bytes())
    start = GgufFile(file)._spans["output_norm.bias"][0]
    content[start : start + 4] = struct.pack("<f", float("nan"))
    file.write_bytes(content)
    (problem,) = check(find(str(file))).problems
    assert "1 values that are NaN" in problem
    file.write_bytes(content[:5000])
    assert "broken" in describe(find(str(file))).problem and "broken" in check(find(str(file))).problems[0]


# --- tokenizers ------------------------------------------------------------------------------------------------------

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def fill_bpe(pre: str):
    vocab, merges = bpe_files()

    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(list(vocab))
        writer.add_token_types([3 if piece == "<|endoftext|>" else 1 for piece in vocab])
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_bos_token_id(len(vocab) - 1)
        writer.add_eos_token_id(len(vocab) - 1)
        writer.add_chat_template(TEMPLATE)

    return fill


def test_gpt2s_tokenizer_and_the_whole_way(tmp_path):
    folder = make_gpt2(tmp_path / "model")
    (tmp_path / "a").mkdir()
    file = write_gguf(folder, tmp_path / "a" / "m.gguf", "F16", fill_bpe("gpt-2"))
    ours, theirs = open_model(find(str(file))).tokenizer, load_tokenizer(folder)
    for text in some_texts():
        assert ours.encode(text) == theirs.encode(text), text
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    assert (ours.bos_id, ours.eos_ids, ours.vocab_size) == (383, (383,), 384)
    assert ours.chat_template == TEMPLATE and ours.names["eos_token"] == "<|endoftext|>"
    assert open_model(find(str(file.parent))).vocab_size == 384  # a folder of one such file
    blob = file.with_name("sha256-0123")  # as ollama keeps them
    blob.write_bytes(file.read_bytes())
    assert open_model(find(str(blob))).vocab_size == 384 and describe(find(str(blob))).family == "gpt2"
    blob.unlink()
    (file.parent / "second.gguf").write_bytes(b"")
    with pytest.raises(GencliError, match="has 2 GGUF files"):
        open_model(find(str(file.parent)))


@pytest.mark.parametrize("pre", ["qwen2", "qwen35", "llama-bpe", "smollm"])
def test_other_splitters(tmp_path, pre):
    """As the families' tokenizer.json write them. Llama 3's has a beginning token, unless the file says otherwise."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
    from transformers.models.qwen3_5 import tokenization_qwen3_5

    vocab, merges = bpe_files()
    theirs = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe"))
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre == "smollm")
    words = PRETOKENIZE_REGEX if pre == "qwen2" else PRETOKENIZE_REGEX.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
    words = tokenization_qwen3_5.PRETOKENIZE_REGEX if pre == "qwen35" else words
    split = pre_tokenizers.Digits(individual_digits=True)
    if pre != "smollm":
        split = pre_tokenizers.Split(Regex(words), "isolated")
    theirs.pre_tokenizer = pre_tokenizers.Sequence([split, whole])
    if pre.startswith("qwen"):
        theirs.normalizer = normalizers.NFC()
    file = write_gguf(make_gpt2(tmp_path / "model"), tmp_path / "m.gguf", "F32", fill_bpe(pre))
    metadata = GgufFile(file).metadata
    ours, begins = gguf_tokenizer(file, metadata), [383] if pre == "llama-bpe" else []
    plain = gguf_tokenizer(file, {**metadata, "tokenizer.ggml.add_bos_token": False})
    for text in some_texts():
        expected = theirs.encode(text.replace("<|endoftext|>", "")).ids
        assert ours.encode(text.replace("<|endoftext|>", "")) == begins + expected
        assert plain.encode(text.replace("<|endoftext|>", "")) == expected


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("deepseek-r1-qwen", "Hello| WORLD|'s| | |1|2|3|4|5| foo|/bar|\n\n| 你好|，it|'s|  "),
        ("tekken", "Hello| WORLD|'s| | |1|2|3|4|5| foo|/bar|\n\n| 你好|，it|'s|  "),
        ("gpt-4o", "Hello| WORLD's| | |123|45| foo|/bar|\n\n| 你好|，it's|  "),
        ("deepseek-llm", "Hello| WORLD|'|s|  |1|2|3|4|5| foo|/|bar|\n|\n| |你好|，|it|'|s|  "),
        ("llama3", "Hello| WORLD|'s| | |123|45| foo|/bar|\n\n| 你好|，it|'s|  "),
        ("falcon3", "Hello| WORLD|'s| | |123|45| foo|/bar|\n\n| 你好|，it|'s|  "),
        ("dbrx", "Hello| WORLD|'s| | |123|45| foo|/bar|\n\n| 你好|，it|'s|  "),
    ],
)
def test_how_splitters_cut(pre, words):
    """Words by hand, after the patterns of the families' tokenizer.json."""
    from tokenizers import pre_tokenizers

    from gencli.tokens.byte_level import SPLITS
    from gencli.tokens.gguf import SPLITTERS

    split = pre_tokenizers.Sequence(SPLITS[SPLITTERS[pre]])
    found = [word for word, _ in split.pre_tokenize_str("Hello WORLD's  12345 foo/bar\n\n 你好，it's  ")]
    assert found == words.split("|")


def test_pieces(tmp_path):
    folder = tmp_path / "pieces"
    ours, theirs = make_pieces(folder, "llama")
    pieces = read(folder / "tokenizer.model")

    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(list(pieces.texts))
        writer.add_token_scores(list(pieces.scores))
        writer.add_token_types(list(pieces.types))
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)

    file = write_gguf(make_gpt2(tmp_path / "model"), tmp_path / "m.gguf", "F32", fill)
    found = gguf_tokenizer(file, GgufFile(file).metadata)
    for text in some_texts():
        assert found.encode(text, special=False) == [1, *theirs.encode(text)]
        assert found.encode(text) == ours.encode(text)
    assert found.decode(found.encode("The dog  ran")) == "The dog  ran" and found.eos_ids == (2,)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "bert"}, "of the kind 'bert' is not supported"),
        ({"pre": "default"}, "pre = 'default' is not supported"),
        ({"tokens": []}, "hold no tokens"),
        ({"merges": None}, "hold no merges"),
        ({"merges": ["abc"]}, "has a line that is not a pair"),
        ({"token_type": [1]}, "token_type does not fit 384 tokens"),
        ({"eos_token_id": 384}, "eos_token_id = 384 is not a token of 384"),
        ({"merges": ["qq zz"]}, "its tokenizer is not usable"),
    ],
)
def test_tokenizers_that_are_refused(tmp_path, change, says):
    file = write_gguf(make_gpt2(tmp_path / "model"), tmp_path / "m.gguf", "F32", fill_bpe("gpt-2"))
    metadata = GgufFile(file).metadata
    metadata.update({f"tokenizer.ggml.{key}": value for key, value in change.items()})
    with pytest.raises(GencliError) as caught:
        gguf_tokenizer(file, metadata)
    assert says in caught.value.message and str(file) in caught.value.message


def test_pieces_that_are_merged_by_their_pairs(tmp_path):
    """Gemma 4's kind: the tokens are those of scores, and a piece may be there twice."""
    expected, _ = make_pieces(tmp_path, "gemma")
    pieces = read(tmp_path / "tokenizer.model")
    texts, types, twice = list(pieces.texts), list(pieces.types), pieces.texts.index("a")
    texts, types = [*texts, texts[twice]], [*types, types[twice]]
    metadata = {"model": "gemma4", "tokens": texts, "token_type": types, "unknown_token_id": pieces.unk_id}
    metadata |= {"merges": [" ".join(pair) for pair in merges(pieces)], "bos_token_id": 2, "eos_token_id": 1}
    tokenizer = gguf_tokenizer(tmp_path / "m.gguf", {f"tokenizer.ggml.{key}": value for key, value in metadata.items()})
    for text in some_texts()[:200]:
        ids = [twice if i == len(texts) - 1 else i for i in tokenizer.encode(text)]
        assert ids == expected.encode(text), text
        assert tokenizer.decode(tokenizer.encode(text)) == expected.decode(expected.encode(text))
    assert len(texts) - 1 in tokenizer.encode("a")
    with pytest.raises(GencliError, match="hold no merges"):
        gguf_tokenizer(tmp_path / "m.gguf", {f"tokenizer.ggml.{key}": metadata[key] for key in ("model", "tokens")})


# --- what is refused -------------------------------------------------------------------------------------------------


def refusal(file: Path, says: str) -> None:
    with pytest.raises(GencliError) as caught:
        opened(file)
    message = caught.value.message
    assert says in message and str(file) in message and "\n" not in message and len(message) < 500, message


@pytest.mark.parametrize("kind", [Type.Q8_1, Type.TQ1_0, Type.IQ2_XXS, Type.IQ3_S, Type.I32, Type.F64])
def test_other_quantisations_by_name(tmp_path, kind):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    _, size = gguf.GGML_QUANT_SIZES[kind]
    writer.add_tensor("token_embd.weight", np.zeros((4, size), dtype=np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refusal(tmp_path / "m.gguf", f"token_embd.weight is quantised as {kind.name}, which is not supported")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"llama__expert_group_count": (8, gguf.GGUFValueType.UINT32)}, "not supported: llama.expert_group_count = 8"),
        ({"llama__expert_count": (8, gguf.GGUFValueType.UINT32)}, "the metadata lacks llama.expert_used_count"),
        ({"llama__attention__sliding_window": (8, gguf.GGUFValueType.UINT32)}, "llama.attention.sliding_window = 8"),
        ({"llama__rope__scaling__type": ("su", gguf.GGUFValueType.STRING)}, "scaling.type = 'su' is not supported"),
        ({"llama__attention__value_length": (4, gguf.GGUFValueType.UINT32)}, "value_length = 4 with heads of 8"),
        ({"general__alignment": (3, gguf.GGUFValueType.UINT32)}, "general.alignment = 3"),
        ({"llama__attention__key_length": (0, gguf.GGUFValueType.UINT32)}, "key_length = 0 is out of range"),
        ({"llama__attention__key_length": (-4, gguf.GGUFValueType.INT32)}, "key_length = -4 is out of range"),
        ({"llama__attention__key_length": (4.0, gguf.GGUFValueType.FLOAT32)}, "key_length = 4.0 is out of range"),
        ({"llama__attention__key_length": ([4], gguf.GGUFValueType.ARRAY)}, r"key_length = [4] is not a number"),
    ],
)
def test_keys_that_change_the_numbers(tmp_path, more, says):
    folder = CHECKPOINTS["llama"](tmp_path / "model", torch.float32)
    refusal(write_gguf(folder, tmp_path / "m.gguf", "F32", **more), says)


@torch.inference_mode()
def test_a_linear_stretch(tmp_path):
    folder = CHECKPOINTS["llama"](tmp_path / "model", torch.float32)
    more = {
        "llama__rope__scaling__type": ("linear", gguf.GGUFValueType.STRING),
        "llama__rope__scaling__factor": (4.0, gguf.GGUFValueType.FLOAT32),
    }
    ours = opened(write_gguf(folder, tmp_path / "m.gguf", "F32", **more))
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stretched = load(folder, config={**raw, "rope_scaling": {"type": "linear", "factor": 4.0}})
    ids = torch.arange(40)[None]
    torch.testing.assert_close(ours(ids), stretched(ids), atol=0, rtol=0)
    assert (ours(ids) - load(folder)(ids)).abs().max() > 1e-3


def header(version: int = 3, tensors: int = 0, keys: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


def text(value: str, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if size is None else size) + value.encode()


KEY = text("a")
NAME = text("t")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b"GGUF" + struct.pack("<I", 3), "it ends in its header"),
        (b"GGU", "does not begin with GGUF"),
        (b"PK\x03\x04" + b"\0" * 50, "does not begin with GGUF"),
        (header(version=1), "version 1"),
        (header(version=3 << 24), "big-endian"),
        (header(tensors=2**60), "counts 1152921504606846976 tensors"),
        (header(keys=2**60), "counts 1152921504606846976 keys"),
        (header(keys=1000), "is broken"),
        (header(keys=1, rest=text("a", 2**60)), "bytes of text"),
        (header(keys=1, rest=KEY + struct.pack("<I", 99)), "unknown type 99"),
        (header(keys=1, rest=KEY + struct.pack("<IIQ", 9, 0, 2**60)), "counts 1152921504606846976 values"),
        (header(keys=1, rest=KEY + struct.pack("<IIQ", 9, 8, 2**60)), "counts 1152921504606846976 values"),
        (header(keys=1, rest=KEY + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 3000), "unknown type 9"),
        (header(keys=2, rest=(KEY + struct.pack("<IB", 0, 1)) * 2), "is there twice"),
        (header(tensors=1, rest=NAME + struct.pack("<I", 2**31)), "dimensions"),
        (header(tensors=1, rest=NAME + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0)), "values"),
        (header(tensors=1, rest=NAME + struct.pack("<IQQIQ", 2, 4, 2**20, 0, 0)), "ends at byte"),
        (header(tensors=1, rest=NAME + struct.pack("<IQIQ", 1, 4, 0, 2**62)), "ends at byte"),
        (header(tensors=1, rest=NAME + struct.pack("<IQIQ", 1, 4, 0, 7)), "alignment"),
        (header(tensors=1, rest=NAME + struct.pack("<IQIQ", 1, 4, 4711, 0)), "quantised as type 4711"),
        (header(), "general.architecture = None is not supported"),
        (header(keys=1, rest=text("general.architecture") + struct.pack("<I", 8) + text("mamba")), "'mamba'"),
    ],
    ids=range(23),
)
def test_broken_and_hostile_files(tmp_path, content, says):
    (tmp_path / "m.gguf").write_bytes(content)
    refusal(tmp_path / "m.gguf", says)


def test_cut_and_flipped_anywhere(tmp_path):
    folder = CHECKPOINTS["llama"](tmp_path / "model", torch.float32)
    content = write_gguf(folder, tmp_path / "m.gguf", "F16").read_bytes()
    refused = 0
    for seed in range(80):
        draw = random.Random(seed)
        damaged = bytearray(content[: draw.randrange(len(content))] if seed % 2 else content)
        if seed % 2 == 0:
            damaged[draw.randrange(2000)] ^= 1 << draw.randrange(8)
        (tmp_path / "m.gguf").write_bytes(damaged)
        try:
            opened(tmp_path / "m.gguf")
        except GencliError as error:
            assert "\n" not in error.message and str(tmp_path) in error.message
            refused += 1
    assert refused > 60
