"""LoRA adapters merged at load give peft's numbers; what is not understood is refused by name."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gencli.checkpoints.assets import PEFT_CONFIG, LoraRef
from gencli.checkpoints.build import load
from gencli.checkpoints.find import find
from gencli.checkpoints.lora import merge
from gencli.errors import GencliError, UsageError
from gencli.models import architecture
from gencli.text.load import open_model
from tests.oracles.libraries import peft, transformers
from tests.shell.process import gencli
from tests.tiny.decoder_cases import CASES
from tests.tiny.decoders import make_decoder
from tests.tiny.text import make_gpt2, write_json

LLAMA_ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GPT2_ALL = ["c_attn", "c_proj", "c_fc"]
# name → (family, settings of one adapter or several)
ADAPTERS: dict[str, tuple[str, list[dict]]] = {
    "gpt2, attention": ("gpt2", [{"target_modules": ["c_attn"], "fan_in_fan_out": True}]),
    "gpt2, as few name it": ("gpt2", [{"target_modules": ["c_attn"]}]),  # fan_in_fan_out left false
    "gpt2, all, square ones too": ("gpt2", [{"target_modules": GPT2_ALL, "fan_in_fan_out": True, "use_rslora": True}]),
    "gpt2, a tied head": ("gpt2", [{"target_modules": ["c_attn", "lm_head"]}]),
    "gpt2, embeddings": ("gpt2", [{"target_modules": ["wte", "wpe", "c_attn"]}]),
    "gpt2, modules saved whole": ("gpt2", [{"target_modules": ["c_attn"], "modules_to_save": ["ln_f", "wpe"]}]),
    "llama, modules saved whole by the end of a name": (
        "llama",
        [{"target_modules": ["q_proj"], "modules_to_save": ["norm", "down_proj"]}],
    ),
    "llama, queries and values": ("llama", [{"target_modules": ["q_proj", "v_proj"], "lora_alpha": 7}]),
    "llama, all, rank-stabilised": ("llama", [{"target_modules": LLAMA_ALL, "use_rslora": True, "r": 5}]),
    "llama, an end of the stack": ("llama", [{"target_modules": ["up_proj"], "layers_to_transform": [1]}]),
    "llama, ranks and alphas by pattern": (
        "llama",
        [
            {
                "target_modules": LLAMA_ALL,
                "rank_pattern": {"q_proj": 2, r"model\.layers\.0\.mlp\.up_proj": 6},
                "alpha_pattern": {"layers.1.mlp.down_proj": 3, "k_proj": 32},
            }
        ],
    ),
    "llama, two with weights": (
        "llama",
        [{"target_modules": ["q_proj", "up_proj"]}, {"target_modules": ["q_proj", "o_proj"], "use_rslora": True}],
    ),
    "llama, DoRA": ("llama", [{"target_modules": ["q_proj", "down_proj"], "use_dora": True}]),
    "gpt2, DoRA": ("gpt2", [{"target_modules": ["c_attn", "c_fc"], "use_dora": True, "fan_in_fan_out": True}]),
    "phi3, fused": ("phi3", [{"target_modules": ["qkv_proj", "gate_up_proj"], "lora_alpha": 32}]),
    "phi3, everything linear": ("phi3", [{"target_modules": "all-linear", "use_rslora": True}]),
}
SCALES = (0.75, -1.5)


def make_base(folder: Path, family: str) -> Path:
    if family == "gpt2":
        return make_gpt2(folder, layout="hub", tokenizer=None)
    case = next(case for case in CASES if case.model_type == family)
    return make_decoder(folder, case)


def reference(folder: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def make_adapter(base: Path, folder: Path, seed: int = 0, **settings) -> Path:
    """An adapter as peft saves it, with every value drawn."""
    model = peft.get_peft_model(
        reference(base), peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, **settings})
    )
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


def by_peft(base: Path, folders: list[Path], scales: tuple[float, ...]):
    model = peft.PeftModel.from_pretrained(reference(base), folders[0], adapter_name="0")
    for i, folder in enumerate(folders[1:], 1):
        model.load_adapter(folder, adapter_name=str(i))
    model.base_model.set_adapter([str(i) for i in range(len(folders))])
    for module in model.modules():
        for i, scale in enumerate(scales):
            if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer) and str(i) in module.scaling:
                module.scaling[str(i)] *= scale
    return model.eval()


def merged(base: Path, *adapters: LoraRef) -> torch.nn.Module:
    model = load(base)
    family = json.loads((base / "config.json").read_text(encoding="utf-8"))["model_type"]
    merge(model, architecture(family).LAYOUT, adapters)
    return model


@pytest.mark.parametrize("name", ADAPTERS)
@torch.inference_mode()
def test_logits_are_pefts(tmp_path, name):
    family, settings = ADAPTERS[name]
    base = make_base(tmp_path / "base", family)
    with torch.inference_mode(False):
        folders = [make_adapter(base, tmp_path / str(i), i, **one) for i, one in enumerate(settings)]
        scales = SCALES[: len(folders)] if len(folders) > 1 else (1.0,)
        theirs = by_peft(base, folders, scales)
    ours = merged(base, *map(LoraRef, folders, scales))
    ids = torch.randint(96, (3, 24), generator=torch.Generator().manual_seed(1))
    expected = theirs(ids).logits
    torch.testing.assert_close(ours(ids), expected, atol=1e-5, rtol=1e-5)
    assert (expected - load(base)(ids)).abs().max() > 0.05  # the adapter does something


def test_a_scale_of_nought_is_the_base_and_halves_add_up(tmp_path):
    base = make_base(tmp_path / "base", "llama")
    folder = make_adapter(base, tmp_path / "a", target_modules=LLAMA_ALL)
    ids = torch.arange(20)[None]
    torch.testing.assert_close(merged(base, LoraRef(folder, 0.0))(ids), load(base)(ids), atol=0, rtol=0)
    twice = merged(base, LoraRef(folder, 0.5), LoraRef(folder, 0.5))
    torch.testing.assert_close(twice(ids), merged(base, LoraRef(folder))(ids), atol=1e-5, rtol=1e-5)


def test_only_what_is_touched_is_copied_and_rounded_once(tmp_path):
    """A bfloat16 base: the sum of two adapters is rounded at its end; the rest is the file's own memory."""
    case = next(case for case in CASES if case.model_type == "llama")
    base = make_decoder(tmp_path / "base", case, dtype=torch.bfloat16)
    folders = [make_adapter(base, tmp_path / str(i), i, target_modules=["q_proj"]) for i in range(2)]
    model = load(base)
    before = {name: (parameter, parameter.data_ptr()) for name, parameter in model.named_parameters()}
    merge(model, architecture("llama").LAYOUT, [LoraRef(folder) for folder in folders])
    for name, parameter in model.named_parameters():
        assert parameter.dtype is torch.bfloat16 and not parameter.requires_grad
        assert (parameter.data_ptr() != before[name][1]) == ("q_proj" in name), name
    name = "model.layers.1.self_attn.q_proj"
    total = before[f"{name}.weight"][0].float()
    for folder in folders:
        saved = load_file(folder / "adapter_model.safetensors")
        key = f"base_model.model.{name}"
        total = total + 2.0 * (saved[f"{key}.lora_B.weight"] @ saved[f"{key}.lora_A.weight"])
    torch.testing.assert_close(model.get_parameter(f"{name}.weight"), total.bfloat16(), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bias": "lora_only"}, "bias = 'lora_only' is not supported"),
        ({"peft_type": "LOHA"}, "peft_type = 'LOHA' is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa' is not supported"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "not supported: layer_replication"),
        ({"lora_bias": True}, "not supported: lora_bias = True"),
        ({"trainable_token_indices": [1]}, "not supported: trainable_token_indices"),
        ({"alora_invocation_tokens": [1, 2]}, "not supported: alora_invocation_tokens"),
        ({"some_new_key": "x"}, "not supported: some_new_key = 'x'"),
        ({"r": 3}, "is 3 here and 4 in its tensors"),
        ({"rank_pattern": {"(a+)+": 4}}, "not a pattern of names"),
        ({"rank_pattern": {"(": 4}}, "not a pattern of names"),
        ({"lora_alpha": "8"}, "lora_alpha = '8' is not a number"),
        ({"alpha_pattern": [1]}, "alpha_pattern = [1] is not a table of names"),
        ({"modules_to_save": 5}, "modules_to_save = 5 is not a list of names"),
    ],
)
def test_what_changes_the_numbers_is_refused(tmp_path, change, says):
    base = make_base(tmp_path / "base", "llama")
    folder = make_adapter(base, tmp_path / "a", target_modules=["q_proj"])
    raw = json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))
    write_json(folder / PEFT_CONFIG, {**raw, **change})
    with pytest.raises(GencliError) as caught:
        merged(base, LoraRef(folder))
    assert says in caught.value.message and "\n" not in caught.value.message


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.update({f"{Q}x.lora_A.weight": torch.zeros(4, 32)}), "q_projx.lora_A.weight' fits no module"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(32)}), "'model.norm.weight' fits no module"),
        (lambda t: t.update({"base_model.model.model.norm.weight": torch.zeros(32)}), "norm.weight' fits no module"),
        (lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.zeros(31)}), "is [31], not 32 numbers"),
        (lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(4, 31)}), "is [4, 31], its B [32, 4]: no fit for"),
        (lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(4)}), "is [4], its B [32, 4]: no fit for"),
        (lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(4, 32).int()}), "is stored as I32"),
        (lambda t: t.pop(f"{Q}.lora_A.weight"), "q_proj.lora_B.weight' has no 'A.weight' beside it"),
        (lambda t: t.pop(f"{Q}.lora_B.weight"), "q_proj.lora_A.weight' has no 'B.weight' beside it"),
    ],
)
def test_a_tensor_that_fits_nothing_is_named(tmp_path, change, says):
    base = make_base(tmp_path / "base", "llama")
    folder = make_adapter(base, tmp_path / "a", target_modules=["q_proj"])
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(GencliError) as caught:
        merged(base, LoraRef(folder))
    assert says in caught.value.message and str(folder) in caught.value.message


def test_folders_that_are_none(tmp_path):
    base = make_base(tmp_path / "base", "llama")
    with pytest.raises(GencliError, match=r"has no adapter_config\.json"):
        merged(base, LoraRef(tmp_path / "nothing"))
    folder = make_adapter(base, tmp_path / "a", target_modules=["q_proj"])
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(GencliError, match=r"has no adapter_model\.safetensors"):
        merged(base, LoraRef(folder))


def test_whole_modules_have_no_scale(tmp_path):
    base = make_base(tmp_path / "base", "gpt2")
    folder = make_adapter(base, tmp_path / "a", target_modules=["c_attn"], modules_to_save=["ln_f"])
    with pytest.raises(GencliError, match=r"replaces transformer\.ln_f, which a scale of 0\.5 cannot do"):
        merged(base, LoraRef(folder, 0.5))
    with pytest.raises(GencliError, match=r"replaces transformer\.ln_f, as another adapter does"):
        merged(base, LoraRef(folder), LoraRef(folder))


def test_path_and_scale_in_one_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd:2").mkdir()
    assert LoraRef.parse("a/b") == LoraRef(Path("a/b"), 1.0)
    assert LoraRef.parse("a/b:0.5") == LoraRef(Path("a/b"), 0.5)
    assert LoraRef.parse("a/b:-1e-1") == LoraRef(Path("a/b"), -0.1)
    assert LoraRef.parse(r"C:\adapters\x") == LoraRef(Path(r"C:\adapters\x"), 1.0)
    assert LoraRef.parse("odd:2") == LoraRef(Path("odd:2"), 1.0)
    assert LoraRef.parse("odd:2:3") == LoraRef(Path("odd:2"), 3.0)
    for wrong in ("", ":2", "a:nan", "a:inf"):
        with pytest.raises(UsageError, match="PATH:SCALE"):
            LoraRef.parse(wrong)


def test_another_base_is_only_a_note(tmp_path):
    base = make_gpt2(tmp_path / "base")
    folder = make_adapter(base, tmp_path / "a", target_modules=["c_attn"])
    assert open_model(find(str(base)), adapters=[LoraRef(folder)]).notes == ()
    raw = json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))
    write_json(folder / PEFT_CONFIG, {**raw, "base_model_name_or_path": "org/other"})
    (note,) = open_model(find(str(base)), adapters=[LoraRef(folder)]).notes
    assert "was made for org/other" in note


def test_a_pickled_adapter_only_when_allowed(tmp_path):
    base = make_base(tmp_path / "base", "llama")
    folder = make_adapter(base, tmp_path / "a", target_modules=["q_proj"])
    expected = merged(base, LoraRef(folder)).state_dict()
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(GencliError) as caught:
        merged(base, LoraRef(folder))
    assert "--allow-pickle" in caught.value.hint
    model = load(base)
    merge(model, architecture("llama").LAYOUT, [LoraRef(folder)], allow_pickle=True)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_as_a_process(tmp_path):
    """Two adapters, one with a weight: the text is that of the merged model; what cannot be is exit code 1 and 2."""
    base = make_gpt2(tmp_path / "base")
    folders = [make_adapter(base, tmp_path / str(i), i, target_modules=["c_attn", "c_fc"]) for i in range(2)]

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return gencli("text", "-m", base, "--temp", 0, "-n", 12, "--json", "The dog", *arguments)

    result = run("--lora", str(folders[0]), "--lora", f"{folders[1]}:0.5")
    assert (result.returncode, result.stderr) == (0, b"")
    model = open_model(find(str(base)), adapters=[LoraRef(folders[0]), LoraRef(folders[1], 0.5)])
    ids = model.tokenizer.encode("The dog")
    for _ in range(12):
        ids.append(int(model.module(torch.tensor([ids]))[0, -1].argmax()))
    assert json.loads(result.stdout)["text"] == model.tokenizer.decode(ids[-12:])
    assert result.stdout != run().stdout
    alone = run("--lora", str(folders[0] / "adapter_model.safetensors"), "--lora", f"{folders[1]}:0.5")
    assert json.loads(alone.stdout)["text"] == json.loads(result.stdout)["text"]  # its file stands for the folder
    result = run("--lora", str(tmp_path / "nothing"))
    assert result.returncode == 1 and b"no such file or folder" in result.stderr
    result = run("--lora", str(base))
    assert result.returncode == 1 and b"has no adapter_config.json" in result.stderr
    assert run("--lora", "x:nan").returncode == 2
