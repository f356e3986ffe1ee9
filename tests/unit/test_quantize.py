"""Packing weights: the bytes, which tensor gets which type, the file, and the copy that --quantize keeps."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file, save_file

from gencli.checkpoints import packed_cache
from gencli.checkpoints.assets import LoraRef
from gencli.checkpoints.find import Source, find
from gencli.checkpoints.formats.gguf_draft import make_draft
from gencli.checkpoints.gguf_file import GgufFile
from gencli.checkpoints.gguf_names import by_type, choose, split_name, type_of
from gencli.checkpoints.mixes import MIXES, PACKING, check_mix, kind_of
from gencli.devices import pick_dtype
from gencli.errors import GencliError, UsageError
from gencli.kernels.pack import PARTS, pack
from gencli.kernels.packed import Packed
from gencli.kernels.unpack import unpack
from gencli.spec import ModelSpec, TextSpec
from gencli.text.convert import convert
from gencli.text.load import TextModel, open_model
from tests.tiny.decoder_cases import CASES
from tests.tiny.decoders import make_decoder
from tests.tiny.text import make_tokenizer

CASE = {case.name: case for case in CASES}


def some_rows(columns: int = 512) -> torch.Tensor:
    """Rows of ordinary numbers, of zeros, of one large number, and of numbers of one sign."""
    rows = torch.randn(16, columns, generator=torch.Generator().manual_seed(0)) * 0.02
    rows[3], rows[5, 40], rows[6], rows[7] = 0, 3.0, rows[6].abs(), -rows[7].abs()
    return rows


# --- the bytes


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_bytes_are_the_packages(kind):
    rows = some_rows()
    with np.errstate(all="ignore"):
        expected = np.ascontiguousarray(gguf.quants.quantize(rows.numpy(), Type[kind])).view(np.uint8)
    assert np.array_equal(pack(kind, rows).numpy(), expected)


# the error of a row of normal numbers, beside their size, by the steps that a type has
ERRORS = {"Q2_K": 0.32, "Q3_K": 0.17, "Q4_K": 0.08, "Q5_K": 0.04, "Q6_K": 0.02}


@pytest.mark.parametrize("kind", PARTS)
def test_what_is_packed_comes_back(kind):
    rows = some_rows()
    packed = pack(kind, rows)
    back = gguf.quants.dequantize(packed.numpy(), Type[kind])
    assert np.array_equal(unpack(kind, packed).numpy(), back)
    assert (back[3] == 0).all() and abs(back[5, 40] - 3) < 0.1 if kind != "Q2_K" else True
    error = np.square(back[8:] - rows[8:].numpy()).mean() ** 0.5 / 0.02
    assert error < ERRORS.get(kind, 0.1)
    assert torch.equal(pack(kind, rows.half()), pack(kind, rows.half().float()))
    assert torch.equal(pack(kind, rows[:0]), packed[:0])


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_K", "Q6_K"])
def test_what_cannot_be_packed(kind):
    rows = some_rows()
    for wrong in (float("nan"), float("inf"), 1e30):
        rows[2, 2] = wrong
        with pytest.raises(GencliError, match="too large for"):
            pack(kind, rows)


# --- mixes


def test_types_are_those_that_llama_cpp_chooses():
    """As its files of Llama 1.1B (22 layers, 8 groups) and GPT-2 have them."""

    def kinds(mix: str, part: str, *layers: int) -> list[str]:
        return [kind_of(mix, f"blk.{i}.{part}.weight", (2048, 2048), 22, 8, tied=False) for i in layers]

    assert kinds("q4_k_m", "ffn_down", 0, 1, 2, 4, 7, 18, 19, 21) == [
        "Q6_K", "Q6_K", "Q4_K", "Q6_K", "Q6_K", "Q4_K", "Q6_K", "Q6_K"]  # fmt: skip
    assert kinds("q4_k_m", "attn_v", 0, 2, 21) == ["Q6_K", "Q4_K", "Q6_K"]
    assert kinds("q4_k_m", "attn_q", 0) == kinds("q4_k_m", "attn_output", 0) == ["Q4_K"]
    assert kinds("q5_k_m", "attn_v", 0, 2) == ["Q6_K", "Q5_K"] and kinds("q4_k_m", "attn_qkv", 5) == ["Q5_K"]
    assert kinds("q4_k_s", "attn_v", 0, 3, 4) == ["Q5_K", "Q5_K", "Q4_K"]
    assert kinds("q4_k_s", "ffn_down", 0, 1, 2) == ["Q5_K", "Q5_K", "Q4_K"]
    assert kinds("q3_k_m", "attn_v", 0, 1, 2) == ["Q5_K", "Q5_K", "Q4_K"]
    assert kinds("q3_k_m", "ffn_down", 0, 1) == ["Q5_K", "Q4_K"] and kinds("q3_k_l", "ffn_down", 5) == ["Q5_K"]
    assert kinds("q2_k", "attn_v", 5) == ["Q4_K"] and kinds("q2_k", "ffn_down", 5) == ["Q3_K"]
    assert kind_of("q2_k", "blk.0.attn_v.weight", (256, 256), 2, 2, tied=False) == "Q3_K"
    for mix, head in (("q4_k_m", "Q6_K"), ("q4_0", "Q6_K"), ("q8_0", "Q8_0"), ("f16", "F16"), ("q2_k", "Q6_K")):
        assert kind_of(mix, "output.weight", (512, 256), 2, 1, tied=False) == head
        assert kind_of(mix, "token_embd.weight", (512, 256), 2, 1, tied=True) == head
        assert kind_of(mix, "token_embd.weight", (512, 256), 2, 1, tied=False) == MIXES[mix].kind
        for name in ("output_norm.weight", "position_embd.weight", "blk.0.attn_q.bias"):
            assert kind_of(mix, name, (512, 256) if "embd" in name else (512,), 2, 1, tied=True) == "F32"
    narrow = {"q4_k_m": "Q5_0", "q5_k_s": "Q5_1", "q6_k": "Q8_0", "q8_0": "Q8_0", "q4_0": "Q4_0"}  # rows of 576
    assert {mix: kind_of(mix, "blk.1.attn_q.weight", (576, 576), 9, 1, tied=False) for mix in narrow} == narrow
    assert kind_of("q4_0", "token_embd.weight", (512, 576), 2, 1, tied=True) == "Q8_0"
    assert kind_of("q8_0", "blk.1.attn_q.weight", (50, 50), 9, 1, tied=False) == "F16"


def test_names_of_mixes():
    assert check_mix("--to", "Q4_K_M") == check_mix("--to", "q4_k") == "q4_k_m" and "f16" not in PACKING
    with pytest.raises(UsageError, match=r"--to 'q4_k_x': no such type"):
        check_mix("--to", "q4_k_x")
    assert TextSpec(quantize="Q8_0").quantize == "q8_0"
    for wrong in ({"quantize": "f16"}, {"quantize": "q8_0", "dtype": "float32"}):
        with pytest.raises(UsageError, match="--quantize"):
            TextSpec(**wrong)


# --- names of files


def test_what_names_of_files_say():
    types = {
        "SmolLM2-1.7B-Instruct-Q4_K_M.gguf": "Q4_K_M", "model.Q8_0.gguf": "Q8_0", "x.i1-IQ4_XS.gguf": "IQ4_XS",
        "ggml-model-f16.gguf": "F16", "Q8_0/Big-Q8_0-00001-of-00003.gguf": "Q8_0", "q4_k_m.gguf": "Q4_K_M",
        "gemma-UD-Q4_K_XL.gguf": "UD-Q4_K_XL", "gpt-oss-mxfp4.gguf": "MXFP4", "llama-1.1b-v1.0.gguf": "llama-1.1b-v1.0",
    }  # fmt: skip
    assert {name: type_of(name) for name in types} == types
    names = ["README.md", "m-Q4_K_M.gguf", "m-UD-Q3_K_XL.gguf", "mmproj-m-F16.gguf", "m.imatrix.gguf"]
    names += ["Q8_0/m-Q8_0-00002-of-00002.gguf", "Q8_0/m-Q8_0-00001-of-00002.gguf", "m-F16-00001-of-00002.gguf"]
    assert list(by_type(names)) == ["Q8_0", "Q4_K_M", "UD-Q3_K_XL"]  # a part of F16 is not there
    assert choose(names, "q8_0") == ["Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf"]
    assert choose(names, None) == choose(names, "Q4_K_M") == ["m-Q4_K_M.gguf"]
    assert choose(names, "Q3_K_XL") == ["m-UD-Q3_K_XL.gguf"] and choose(["a.gguf"], None) == ["a.gguf"]
    with pytest.raises(GencliError, match="no GGUF file of the type Q5_0") as raised:
        choose(names, "Q5_0")
    assert raised.value.hint == "there are Q8_0, Q4_K_M, UD-Q3_K_XL"
    with pytest.raises(GencliError, match="2 GGUF files, none of the type Q4_K_M"):
        choose(["a-Q2_K.gguf", "a-Q8_0.gguf"], None)
    assert list(by_type(["a-Q8_0.gguf", "b-Q8_0.gguf"])) == ["a-Q8_0", "b-Q8_0"]
    assert split_name("org/repo@v1:Q4_0") == ("org/repo@v1", "Q4_0") and split_name("a/b:0.5") == ("a/b:0.5", None)


# --- the file


SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
         "vocab_size": 384}  # fmt: skip


def made(folder: Path, name: str = "llama-2", **changes) -> Path:
    make_decoder(folder, CASE[name], **{**SIZES, **changes})
    make_tokenizer(folder)
    return folder


@pytest.fixture
def llama(tmp_path: Path) -> TextModel:
    return open_model(find(str(made(tmp_path / "model", dtype=torch.float16))))


def test_the_package_reads_what_is_written(tmp_path, llama):
    file = tmp_path / "m.gguf"
    kinds = convert(llama, "q8_0", file, licence="mit")
    reader = gguf.GGUFReader(file)
    said = {name: field.contents() for name, field in reader.fields.items()}
    assert said["general.architecture"] == "llama" and said["general.license"] == "mit"
    assert said["llama.embedding_length"] == 64 and said["tokenizer.ggml.pre"] == "gpt-2"
    assert len(said["tokenizer.ggml.tokens"]) == llama.vocab_size and said["general.file_type"] == 7
    ours = GgufFile(file)
    assert {t.name: t.tensor_type.name for t in reader.tensors} == ours.dtypes
    for tensor in reader.tensors:
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        got = ours.get(tensor.name)
        assert np.array_equal((got.values() if isinstance(got, Packed) else got).float().numpy(), value)
    assert kinds["Q8_0"] == 16 and sum(kinds.values()) == len(reader.tensors)


@pytest.mark.parametrize("name", [pytest.param("stories", marks=pytest.mark.slow), "llama"])
def test_packed_weights_are_unpacked_copied_or_packed_again(tmp_path, llama, monkeypatch, name):
    """Never all of a matrix at once in float32: transposed ones (stories), and rows in another order (llama)."""
    file, other, notes = tmp_path / "m.gguf", tmp_path / "n.gguf", list[str]()
    convert(open_model(find("stories")) if name == "stories" else llama, "q4_k_m", file)
    model, before = open_model(find(str(file))), {t.name: t for t in gguf.GGUFReader(file).tensors}
    monkeypatch.setattr(Packed, "values", lambda self: pytest.fail("a whole matrix was unpacked"))
    values = {name: gguf.quants.dequantize(t.data, t.tensor_type) for name, t in before.items()}
    for mix in ("f32", None, "q4_k_m"):
        convert(model, mix, other, note=notes.append)
        for tensor in gguf.GGUFReader(other).tensors:
            kind, value = tensor.tensor_type.name, values[tensor.name]
            if mix == "q4_k_m":
                assert kind == before[tensor.name].tensor_type.name
                assert np.array_equal(tensor.data, before[tensor.name].data), tensor.name
            else:
                assert kind == "F32" or (kind == "F16" and mix is None)
                assert np.array_equal(tensor.data, value.astype(tensor.data.dtype)), tensor.name
    assert not notes
    convert(model, "q4_0", other, note=notes.append)
    for tensor in gguf.GGUFReader(other).tensors:
        if tensor.tensor_type == Type.Q4_0:
            value = torch.tensor(values[tensor.name])
            assert np.array_equal(tensor.data, pack("Q4_0", value).numpy()), tensor.name
    assert len(notes) == 1 and "weights are packed again as Q4_0" in notes[0]


def test_nothing_of_a_file_appears_when_it_fails(tmp_path, llama):
    llama.module.model.embed_tokens.weight[3, 3] = float("nan")
    (tmp_path / "m.gguf").write_bytes(b"old")
    with pytest.raises(GencliError, match=r"token_embd\.weight: it has values that are NaN"):
        convert(llama, "q8_0", tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2


REFUSED = {
    "mistral-window": "sliding_window", "yarn": None, "dynamic": "rope_type = 'dynamic'",
    "biased": "hidden_act = relu", "qwen2-window": "sliding_window", "smollm3": "no_rope_layers",
    "gemma2": "query_pre_attn_scalar", "phi4-mini": None, "gemma4-unified": "attention_bias = True",
    "qwen3.5-yarn": "attention_bias = True",
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_such_a_file_cannot_say_is_refused_by_name(tmp_path, name):
    folder = make_decoder(tmp_path / "model", CASE[name], vocab_size=384)
    make_tokenizer(folder)
    model = open_model(find(str(folder)))
    if REFUSED[name] is None:
        assert make_draft(model.module, "f16", {}, tmp_path / "m.gguf").shapes
        return
    with pytest.raises(GencliError, match=REFUSED[name]):
        convert(model, "f16", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("more", [{"beta_fast": 4.0}, {"attention_factor": 2.0}, {"truncate": False}])
def test_yarn_of_another_kind_is_refused(tmp_path, more):
    """What no key of such a file says; one case of YaRN that keys do say is among those above."""
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096, **more}
    folder = make_decoder(
        tmp_path / "model", CASE["qwen2-yarn"], vocab_size=384, rope_scaling=scaling, rope_theta=100.0
    )
    make_tokenizer(folder)
    with pytest.raises(GencliError, match="cannot say rope_parameters"):
        convert(open_model(find(str(folder))), "f16", tmp_path / "m.gguf")


# --- the copy


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    return tmp_path / "cache" / "gencli"


def opened(folder: Path, mix: str = "q8_0", **more) -> TextModel:
    return open_model(Source(str(folder), folder, "folder"), quantize=mix, **more)


@torch.inference_mode()
def logits(model: TextModel) -> torch.Tensor:
    return model.module(torch.arange(20)[None])


@pytest.mark.parametrize(
    "name", ["stories", "llama-2", "mistral-window", "phi3-window", "gemma3", "gemma4-large", "qwen3.5"]
)
def test_the_copy_is_the_file_that_convert_writes(tmp_path, cache, name):
    """And of models that no such file can say, as of one with windows: the numbers of the weights, packed."""
    folder = (
        find(name).path
        if name == "stories"
        else made(tmp_path / "model", name, **({"linear_value_head_dim": 16} if name == "qwen3.5" else {}))
    )
    model, plain = opened(folder), open_model(find(str(folder)), ModelSpec(dtype="float32"))
    (copy,) = cache.iterdir()
    before = copy.stat()
    with torch.no_grad():
        for key, value in plain.module.named_parameters():
            new = model.module.get_parameter(key)
            if value.ndim == 2 and "wpe" not in key:
                packed = new.data
                assert isinstance(packed, Packed) and packed.kind == "Q8_0", key
                value.copy_(packed.values())
            assert torch.allclose(new.float(), value, atol=1e-7), key  # norms of Gemma have one added there
    exact, rounded = logits(plain), logits(opened(folder))  # by products of 8-bit activations
    assert (rounded - exact).std() < 0.04 * exact.std()
    after = copy.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)  # made once


def test_a_copy_is_of_what_the_file_is_now(tmp_path, cache):
    folder = made(tmp_path / "model")
    first = logits(opened(folder))
    opened(folder, "q4_0")
    assert len(list(cache.iterdir())) == 2
    weights = folder / "model.safetensors"
    save_file({name: tensor * 1.1 for name, tensor in load_file(weights).items()}, tmp_path / "new", {"format": "pt"})
    os.replace(tmp_path / "new", weights)
    assert not torch.equal(logits(opened(folder)), first)
    assert len(list(cache.iterdir())) == 2  # the old one of Q8_0 is gone
    (copy,) = cache.glob("*-q8_0-*")
    copy.write_bytes(copy.read_bytes()[:3000])  # damaged
    opened(folder)
    assert len(packed_cache.copies(folder)) == 2 and not packed_cache.copies(tmp_path / "other")
    assert packed_cache.remove(folder) > 0 and not list(cache.iterdir())


def test_what_a_killed_run_has_left_goes(tmp_path, cache):
    """With the next copy; not what another run writes at this moment."""
    folder = made(tmp_path / "model")
    cache.mkdir(parents=True)
    left, written = cache / ".gencli-left", cache / ".gencli-written"
    left.write_bytes(b"half"), written.write_bytes(b"half")
    os.utime(left, (time.time() - 4000,) * 2)
    opened(folder)
    assert {file.name for file in cache.iterdir()} == {written.name, *(copy.name for copy in packed_cache.copies())}
    assert len(packed_cache.copies(folder)) == 1


def test_a_lora_goes_on_top(tmp_path, cache):
    folder, adapter = made(tmp_path / "model"), tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4}))
    stem = "base_model.model.model.layers.0.mlp.up_proj.lora_"
    state = {f"{stem}A.weight": torch.randn(4, 64), f"{stem}B.weight": torch.randn(64, 4) * 0.3}
    save_file(state, adapter / "adapter_model.safetensors")
    packed = opened(folder, adapters=[LoraRef(adapter)])
    exact, base = open_model(find(str(folder)), adapters=[LoraRef(adapter)]), open_model(find(str(folder)))
    change = (logits(exact) - logits(base)).abs().max()
    assert (logits(packed) - logits(exact)).abs().max() < 0.3 * change


def test_what_is_not_packed(tmp_path, cache, llama):
    convert(llama, "q8_0", tmp_path / "m.gguf")
    with pytest.raises(GencliError, match=r"packed already \(Q8_0\)"):
        open_model(find(str(tmp_path / "m.gguf")), quantize="q4_0")
    cache.parent.mkdir()
    cache.write_bytes(b"")  # no folder can be made there
    with pytest.raises(GencliError, match="cannot keep the packed weights"):
        opened(tmp_path / "model")


# --- dtype auto


@pytest.mark.parametrize("amx", [False, True])
def test_auto_is_what_the_cpu_computes_fast(monkeypatch, amx):
    """Not what the file holds: bfloat16 on a CPU that has AMX alone, float16 on none; GPUs keep the file's own."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    half = None if amx else torch.float32
    files = {("F32",): None, ("BF16",): half, ("F16",): torch.float32, ("BF16", "F32"): torch.float32,
             ("Q4_K", "F32"): None, ("Q8_0", "F16", "F32"): torch.float32}  # fmt: skip
    assert {kinds: pick_dtype("auto", cpu, kinds) for kinds in files} == files
    assert all(pick_dtype("auto", cuda, [kind]) is None for kind in ("F32", "F16", "BF16"))
    assert pick_dtype("bfloat16", cpu, ["F32"]) is torch.bfloat16
    for kinds in (["F8_E4M3"], ["F8_E5M2", "F16", "F32"]):  # which nothing computes with
        assert (pick_dtype("auto", cpu, kinds), pick_dtype("auto", cuda, kinds)) == (torch.float32, torch.bfloat16)


def test_halves_stay_stored_and_compute_in_float32(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    for dtype in (torch.bfloat16, torch.float16):
        model = open_model(find(str(made(tmp_path / str(dtype), dtype=dtype))))
        assert model.module.model.layers[0].mlp.up_proj.weight.dtype is dtype
        assert model.module.compute_dtype is torch.float32 and logits(model).dtype is torch.float32
