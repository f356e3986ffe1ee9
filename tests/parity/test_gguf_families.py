"""Every architecture as a tiny GGUF file: transformers' tokens on the weights that it holds, with the C kernels and
without; split files."""

from __future__ import annotations

import contextlib
import json

import gguf
import numpy as np
import pytest
import torch

from gencli.checkpoints.build import load
from gencli.checkpoints.find import find
from gencli.checkpoints.formats.gguf_families import read_config
from gencli.checkpoints.gguf_file import GgufFile
from gencli.checkpoints.report import check, describe
from gencli.errors import GencliError
from gencli.kernels import packed
from gencli.models import architecture, linear, step
from gencli.text.load import check_adapts
from tests.opening import open_part
from tests.oracles.decoders import greedy_logits
from tests.oracles.libraries import transformers
from tests.tiny.decoder_cases import CASES
from tests.tiny.decoders import make_decoder
from tests.tiny.gguf import write_decoder

pytestmark = pytest.mark.slow
CASE = {case.name: case for case in CASES}
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4}
COUNT = 12  # tokens after a prompt of 12: together more than every window and the original range of phi3, long
U32, F32, STRING = gguf.GGUFValueType.UINT32, gguf.GGUFValueType.FLOAT32, gguf.GGUFValueType.STRING
GEMMA4_HEADS = {"head_dim": 32, "global_head_dim": 64}
QWEN35 = {"head_dim": 32, "linear_key_head_dim": 64, "linear_value_head_dim": 64, "num_hidden_layers": 4}
BY_TORCH = {"lfm2", "cohere2", "phi2"}  # whose layers the library does not know
# name → its case, changes of its config, and what its metadata has besides
FAMILIES = {
    "llama": ("llama-2", {}, {}),
    "mistral": ("mistral-nemo", {"head_dim": 32}, {}),
    "qwen2": ("qwen2", {}, {}),
    "qwen3": ("qwen3", {"head_dim": 32}, {}),
    "mixtral": ("mixtral", {}, {}),
    "qwen3moe": ("qwen3-moe", {"head_dim": 32, "moe_intermediate_size": 256}, {}),
    "qwen35": ("qwen3.5", {**QWEN35, "linear_num_key_heads": 4}, {}),
    "qwen35, heads in turns": ("qwen3.5", QWEN35, {}),
    "qwen35moe": ("qwen3.5-moe", {**QWEN35, "moe_intermediate_size": 256, "shared_expert_intermediate_size": 256}, {}),
    "gpt-oss": (
        "gpt-oss",
        {"head_dim": 32, "swiglu_limit": 7.0},
        {
            "rope__scaling__type": ("yarn", STRING),
            "rope__scaling__factor": (4.0, F32),
            "rope__scaling__original_context_length": (16, U32),
        },
    ),
    "gpt-oss, unbiased": (
        "gpt-oss-plain",
        {"head_dim": 32, "swiglu_limit": 7.0, "swiglu_alpha": 1.702, "rope_scaling": {"rope_type": "default"}},
        {},
    ),
    "yarn": (
        "qwen2-yarn",
        {},
        {
            "rope__scaling__type": ("yarn", STRING),
            "rope__scaling__factor": (4.0, F32),
            "rope__scaling__original_context_length": (16, U32),
        },
    ),
    "gemma2": ("gemma2", {"head_dim": 32, "query_pre_attn_scalar": 32}, {}),
    "gemma3": ("gemma3", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window_pattern": 6}, {}),
    "gemma4": ("gemma4-small", {**GEMMA4_HEADS, "hidden_size_per_layer_input": 256}, {}),
    "gemma4, large": ("gemma4-large", {**GEMMA4_HEADS, "num_global_key_value_heads": 2}, {}),
    "gemma4, experts": (
        "gemma4-moe",
        {**GEMMA4_HEADS, "num_global_key_value_heads": 2, "moe_intermediate_size": 256},
        {},
    ),
    "phi3": ("phi3-window", {}, {"rope__scaling__original_context_length": (64, U32)}),
    "phi3, long": (
        "phi3-long",
        {"rope_scaling": {"type": "longrope", "long_factor": [1.0 + i for i in range(16)], "short_factor": [1.0] * 16}},
        {"rope__scaling__original_context_length": (16, U32), "rope__scaling__type": ("longrope", STRING)},
    ),
    "olmo2": ("olmo2", {}, {}),
    "olmo3": (
        "olmo3",
        {},
        {
            "rope__scaling__type": ("yarn", STRING),
            "rope__scaling__factor": (4.0, F32),
            "rope__scaling__attn_factor": (1.2, F32),
            "rope__scaling__original_context_length": (16, U32),
        },
    ),
    "granite": ("granite", {}, {}),
    "mistral3": (
        "ministral3",
        {"head_dim": 32},
        {
            "rope__scaling__type": ("yarn", STRING),
            "rope__scaling__factor": (4.0, F32),
            "rope__scaling__original_context_length": (16, U32),
            "rope__scaling__yarn_log_multiplier": (1.0, F32),
            "rope__freq_base": (1e6, F32),
            "attention__temperature_scale": (0.5, F32),
        },
    ),
    "lfm2": ("lfm2", {"block_ff_dim": 768, "rms_norm_eps": None}, {}),
    "starcoder2": ("starcoder2", {"rms_norm_eps": None}, {}),
    "cohere2": ("cohere2", {"rms_norm_eps": None}, {}),
    "qwen2moe": ("qwen2-moe", {"moe_intermediate_size": 256, "shared_expert_intermediate_size": 256}, {}),
    "phi2": ("phi", {"rms_norm_eps": None}, {"rope__dimension_count": (16, U32)}),
    "glm4": ("glm4", {"head_dim": 32}, {"rope__dimension_count": (16, U32)}),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 4}, {}),
}


def made(tmp_path, name: str, kind: str):
    case, changes, more = FAMILIES[name]
    folder = make_decoder(tmp_path / "model", CASE[case], **WIDE, **changes)
    return write_decoder(folder, tmp_path / "m.gguf", kind, tmp_path / "reference", **more)


def opened(file):
    config, tensors = open_part(file)
    return load(file, dtype=torch.float32, layerwise_casting=True, config=config, tensors=tensors)


@torch.inference_mode()
def continued(model, ids: list[int], count: int) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens after a prompt, and the logits (count, V) that chose them."""
    cache, logits, new = model.new_cache(1, len(ids) + count), [], torch.tensor([ids])
    for _ in range(count):
        logits.append(model(new, cache, last_only=True)[0, -1])
        new = logits[-1].argmax().reshape(1, 1)
    return [int(row.argmax()) for row in logits], torch.stack(logits)


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_K"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_greedy_tokens_are_the_references(tmp_path, monkeypatch, name, kind):
    file, ids = made(tmp_path, name, kind), [1, 5, 9, 13, 17, 21, 25, 29, 3, 4, 6, 8]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "reference", dtype=torch.float32).eval()
    for module in (packed, linear, step):  # as where there is no C compiler
        monkeypatch.setattr(module, "library", lambda: None)
    tokens, ours = continued(opened(file), ids, COUNT)
    [logits] = greedy_logits(theirs, torch.tensor([ids + tokens]), len(ids))
    expected = logits.argmax(-1).tolist()
    assert tokens == expected
    torch.testing.assert_close(ours, logits, atol=1e-4 * logits.abs().max().item(), rtol=0)
    monkeypatch.undo()
    model = opened(file)
    tokens, ours = continued(model, ids, COUNT)
    assert (step.of(model) is None) == (name in BY_TORCH)
    same = next((i for i, pair in enumerate(zip(tokens, expected, strict=True)) if len(set(pair)) > 1), COUNT)
    error = (ours[:same] - logits[:same]).std() / logits.std()
    assert error < 0.03  # activations of 8 bits
    top = logits[same].topk(2).values if same < COUNT else None
    assert top is None or top[0] - top[1] < 0.1 * logits.std()  # two tokens that are as likely


@pytest.mark.parametrize(("kind", "most"), [("F32", 2e-5), ("BF16", 2e-5), ("Q8_0", 5e-4), ("Q4_K", 0.03)])
@pytest.mark.parametrize(
    "name", ["gemma4", "gemma4, large", "gemma4, experts", "qwen35", "qwen35, heads in turns", "qwen35moe"]
)
@torch.inference_mode()
def test_a_step_gives_the_logits_of_torchs_layers(tmp_path, monkeypatch, name, kind, most):
    """With packed weights a sum in another order may round an activation the other way, to 8 bits or, for Q8_0, 16."""
    model, ids = opened(made(tmp_path, name, kind)), [1, 5, 9]
    tokens, ours = continued(model, ids, COUNT)
    assert step.of(model) is not None
    monkeypatch.setattr(step, "can", lambda ids, cache: False)
    cache = model.new_cache(1, len(ids) + COUNT)
    read = [model(torch.tensor([[token]]), cache)[0, -1] for token in (*ids, *tokens[:-1])]
    theirs = torch.stack(read[len(ids) - 1 :])
    torch.testing.assert_close(ours, theirs, atol=most * theirs.abs().max().item(), rtol=0)


def test_split_files(tmp_path):
    """Whichever part is named, and the folder: all of them are read; a missing one is told."""
    file = made(tmp_path, "qwen2", "F16")
    reader = gguf.GGUFReader(file)
    half = len(reader.tensors) // 2
    (tmp_path / "parts").mkdir()
    for number, tensors in enumerate((reader.tensors[:half], reader.tensors[half:]), 1):
        writer = gguf.GGUFWriter(tmp_path / "parts" / f"m-0000{number}-of-00002.gguf", "qwen2")
        for field in reader.fields.values():
            if not field.name.startswith(("GGUF.", "general.architecture")) and number == 1:
                writer.add_key_value(field.name, field.contents(), field.types[0])
        writer.add_key_value("split.count", 2, gguf.GGUFValueType.UINT16)
        for tensor in tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    expected = opened(file).state_dict()
    for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf", ""):
        found = opened(tmp_path / "parts" / name).state_dict()
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
    assert check(find(str(tmp_path / "parts"))).problems == ()
    (tmp_path / "parts" / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(GencliError, match=r"is one of 2 parts, and m-00002-of-00002\.gguf is not beside it"):
        opened(tmp_path / "parts")


def test_an_architecture_that_is_no_name(tmp_path):
    """A list of them, as a hostile file may have: told, not a defect."""
    file = made(tmp_path, "llama", "F16")
    content = file.read_bytes()
    at = content.index(b"general.architecture") + len(b"general.architecture")
    named = (8).to_bytes(4, "little") + (5).to_bytes(8, "little") + b"llama"
    assert content[at : at + len(named)] == named
    many = (9).to_bytes(4, "little") + (0).to_bytes(4, "little") + (5).to_bytes(8, "little") + b"llama"  # five bytes
    file.write_bytes(content[:at] + many + content[at + len(named) :])
    assert json.dumps(check(find(str(file))).problems)[:4000].count("is not supported") == 1


@torch.inference_mode()
def test_layers_that_predict_further_tokens(tmp_path):
    """Qwen 3.5's come last, and are counted: they are not read."""
    file = made(tmp_path, "qwen35", "F16")
    reader, writer = gguf.GGUFReader(file), gguf.GGUFWriter(tmp_path / "more.gguf", "qwen35")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            value = field.contents()
            value = value + 1 if field.name == "qwen35.block_count" else value
            writer.add_key_value(field.name, value, *field.types[:2])
    writer.add_nextn_predict_layers(1)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.add_tensor("blk.4.nextn.eh_proj.weight", np.zeros((256, 512), dtype=np.float32))
    writer.add_tensor("blk.4.attn_norm.weight", np.zeros(256, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ids = torch.arange(3, 15)[None]
    assert torch.equal(opened(tmp_path / "more.gguf")(ids), opened(file)(ids))


def test_adapters_do_not_fit_heads_in_turns(tmp_path):
    file = made(tmp_path, "qwen35, heads in turns", "Q8_0")
    with pytest.raises(GencliError, match=r"--lora: the heads in .* are in llama\.cpp's order"):
        check_adapts(opened(file), "m.gguf")


def rewritten(file, to, change):
    """A Mixtral's file with the tensors that `change(name, data)` gives for each, by name."""
    reader, writer = gguf.GGUFReader(file), gguf.GGUFWriter(to, "llama")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        for name, rows in change(tensor.name, tensor.data).items():
            writer.add_tensor(name, rows, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to


@torch.inference_mode()
def test_a_tensor_for_each_expert(tmp_path):
    """As files of 2023 have them."""

    def apart(name, data):
        if not name.endswith("_exps.weight"):
            return {name: data}
        return {name.replace("_exps", f".{i}"): rows for i, rows in enumerate(data)}

    file = made(tmp_path, "mixtral", "Q8_0")
    old = rewritten(file, tmp_path / "old.gguf", apart)
    ids = torch.arange(3, 15)[None]
    assert torch.equal(opened(old)(ids), opened(file)(ids))


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("blk.0.ffn_gate_exps.weight", lambda rows: rows[0], "which are no matrices of experts"),
        ("blk.1.ffn_down_exps.weight", lambda rows: rows[:3], "model.layers.1.mlp.experts.3.down_proj.weight"),
        ("blk.1.ffn_up_exps.weight", lambda rows: rows[:, :256], "is [256, 256], not [512, 256]"),
        ("output.weight", lambda rows: rows.reshape(2, -1, rows.shape[-1]), "lm_head.weight is [2, 48, 256], not ["),
    ],
)
def test_experts_that_do_not_fit(tmp_path, name, change, says):
    file = made(tmp_path, "mixtral", "Q8_0")
    rewritten(file, tmp_path / "changed.gguf", lambda own, rows: {own: change(rows) if own == name else rows})
    with pytest.raises(GencliError) as caught:
        opened(tmp_path / "changed.gguf")
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            {"attention__sliding_window_pattern": [True] * 5},
            "sliding_window_pattern = [True, True, True, True, True] does",
        ),
        ({"attention__head_count_kv": [1] * 7}, "head_count_kv = [1, 1, 1, 1, 1, 1, 1] does not fit 6 layers"),
        ({"attention__head_count_kv": ["x"] * 6}, "num_key_value_heads = 'x' is out of range"),
        ({"feed_forward_length": [512, 512, 512, 512, 512, 1024]}, "512, 1024] is not supported"),
        ({"attention__value_length": 32}, "value_length = 32 with heads of 64 is not supported"),
        ({"rope__dimension_count_swa": 16}, "dimension_count_swa = 16 with heads of 32 is not supported"),
        ({"rope__scaling__type": "linear"}, "rope.scaling.type = 'linear' is not supported"),
        ({"attention__shared_kv_layers": 6, "feed_forward_length": 512}, "num_kv_shared_layers = 6 leaves no layer"),
        ({"attention__other": 6}, "not supported: gemma4.attention.other = 6"),
    ],
)
def test_gemma4_keys_that_say_what_no_gemma4_has(tmp_path, more, says):
    file = changed_gemma4(made(tmp_path, "gemma4", "F16"), tmp_path / "changed.gguf", more)
    with pytest.raises(GencliError) as caught:
        opened(file)
    assert says in caught.value.message and str(file) in caught.value.message


@pytest.mark.parametrize("divisors", [[1.0] * 15 + [2.0] + [1e30] * 16, [1.0] * 16 + [1e30] * 15, [1e30] * 32])
def test_gemma4_rotations_that_are_others(tmp_path, divisors):
    file = changed_gemma4(made(tmp_path, "gemma4", "F16"), tmp_path / "changed.gguf", {}, divisors)
    with pytest.raises(GencliError, match=r"rope_freqs\.weight"):
        opened(file)


@pytest.mark.parametrize("name", ["gemma4", "gemma4, experts"])
def test_no_value_of_a_gemma4_key_ends_in_a_traceback(tmp_path, name):
    """Any key with any kind of value is read or refused, and nothing is made of a size that no model has."""
    file = GgufFile(made(tmp_path, name, "F16"))
    whole, parse = dict(file.metadata), architecture("gemma4_text").Config.from_dict
    junk = [True, -1, 0, 1, 2**62, 0.5, float("nan"), "x", [], [True] * 6, [1] * 6, ["x"] * 6, [[]] * 6, [0] * 4]
    for key in (key for key in whole if key.startswith("gemma4.")):
        for value in [*junk, None]:
            file.metadata.clear()
            file.metadata.update({**whole, key: value})
            if value is None:
                del file.metadata[key]
            with contextlib.suppress(GencliError):
                parse(read_config(file))
    file.metadata.update(whole)
    assert parse(read_config(file)).num_hidden_layers == len(file.metadata["gemma4.attention.sliding_window_pattern"])


def changed_gemma4(file, to, more, divisors=None):
    """The file with other metadata of its architecture, and other divisors of angles."""
    reader, writer = gguf.GGUFReader(file), gguf.GGUFWriter(to, "gemma4")
    values = {field.name: field.contents() for field in reader.fields.values()}
    own = {f"gemma4.{key.replace('__', '.')}": value for key, value in more.items()}
    for key, value in (values | own).items():
        if not key.startswith(("GGUF.", "general.architecture")):
            is_new = key in own or isinstance(value, list)
            kind = gguf.GGUFValueType.get_type(value) if is_new else reader.fields[key].types[0]
            writer.add_key_value(key, value, kind)
    for tensor in reader.tensors:
        rows = tensor.data if divisors is None or tensor.name != "rope_freqs.weight" else np.array(divisors, np.float32)
        writer.add_tensor(tensor.name, rows, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to


@pytest.mark.parametrize(
    ("name", "called"),
    [("mixtral", "mixtral"), ("qwen3moe", "qwen3_moe"), ("gemma3", "gemma3"), ("gemma4, experts", "gemma4")],
)
def test_files_are_called_as_their_folders(tmp_path, name, called):
    found = find(str(made(tmp_path, name, "Q8_0")))
    assert describe(found).family == called and check(found).problems == ()
