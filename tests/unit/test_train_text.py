"""The text recipe for seconds: loss falls, a broken run ends as an unbroken one, what is made opens anywhere."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from gencli import devices
from gencli.checkpoints.assets import LoraRef
from gencli.checkpoints.build import load
from gencli.checkpoints.find import find
from gencli.errors import GencliError
from gencli.spec import ModelSpec
from gencli.text.load import open_model
from gencli.train import state
from gencli.train.curve import Curve
from gencli.train.precision import pick_precision
from gencli.train.recipe import TextRecipe
from gencli.train.text import train
from gencli.train.texts import hold_out, note_lead, read_texts
from gencli.train.trainer import DeferSignals
from tests.oracles.libraries import peft, transformers
from tests.tiny.decoder_cases import CASES
from tests.tiny.decoders import make_decoder
from tests.tiny.text import END, byte_bpe, make_gpt2, make_tokenizer, write_json

STORY = "Once upon a time there was a {} who had a {}. One day the {} lost the {} and was sad. Then a friend came."
WORDS = ("cat", "dog", "bird", "hat", "ball", "kite")
FAMILIES = [*sorted({case.model_type for case in CASES}), "gemma4-moe"]
STEPS = {"cohere2": 20, "granite": 20, "qwen3_5_text": 14, "qwen3_5_moe_text": 14}  # which learn slowly at first
# PEFT looks for experts in the place of all layers called so, and finds none in the first layers, which have none.
ATTENTION = "kv_a_proj_with_mqa,kv_b_proj,o_proj"
TARGETS = {"deepseek_v2": f"q_proj,{ATTENTION}", "deepseek_v3": f"q_a_proj,q_b_proj,{ATTENTION}"}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 little stories, gzipped JSON lines; every third is of another source."""
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for number, (who, what) in enumerate(itertools.product(WORDS, WORDS)):
            source = "books/a" if number % 3 == 0 else "tales:b"
            file.write(json.dumps({"source": source, "text": STORY.format(who, what, who, what)}) + "\n")
    return path


@pytest.fixture(scope="module")
def few(texts: Path) -> str:
    """The first four of them, to validate with: reading all takes longer than eight steps do."""
    found = texts.with_name("few.jsonl.gz")
    with gzip.open(texts, "rt", encoding="utf-8") as lines, gzip.open(found, "wt", encoding="utf-8") as file:
        file.writelines(itertools.islice(lines, 4))
    return str(found)


def recipe(texts: Path, out: Path, steps: int, **changes: Any) -> TextRecipe:
    small = {"vocab_size": 300, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2, "batch": 4}
    if "init" in changes:
        small = {"n_positions": 32, "batch": 4}
    often = {"warmup": 2, "save_every": 1000.0, "evaluate_every": 9, "lead": "tales:", "device": "cpu"}
    given = {"validation": str(texts), **often, **small, **changes}
    return TextRecipe(data=str(texts), out=str(out), steps=steps, **given)


def made(out: Path, name: str = "checkpoint/model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(out / name)


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def curve(out: Path) -> list[dict[str, str]]:
    with (out / "loss.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_learns_and_opens_in_transformers(texts: Path, tmp_path: Path) -> None:
    told = list(train(recipe(texts, tmp_path / "run", 40)))
    assert [at.step for at in told] == list(range(1, 41))
    assert told[-1].loss < 0.7 * told[0].loss
    assert [at.step for at in told if at.validation] == [9, 18, 27, 36, 40]
    scores = [at.validation for at in told if at.validation]
    assert set(scores[0]) == {"lead", "others"} and scores[-1]["lead"] < scores[0]["lead"]
    assert (told[-1].seen, told[-1].left) == (40 * 4 * 32, 0)
    folder = tmp_path / "run" / "checkpoint"
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    ids = torch.tensor([tokenizer("Once upon a time there was a cat").input_ids])
    expected = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)(ids).logits
    torch.testing.assert_close(load(folder, dtype=torch.float32)(ids), expected, atol=1e-5, rtol=0)


@pytest.mark.slow  # the first to train waits seconds for torch's optimizers
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_resumed_equals_unbroken(texts: Path, tmp_path: Path, optimizer: str) -> None:
    """Dropout included: what a step draws follows from its number."""
    changes = {"optimizer": optimizer, "dropout": 0.1}
    list(train(recipe(texts, tmp_path / "whole", 6, **changes)))
    broken = train(recipe(texts, tmp_path / "broken", 6, **changes))
    for _ in range(3):
        next(broken)
    broken.close()
    with (tmp_path / "broken" / "loss.csv").open("a") as file:
        file.write("4,1.0,0.001,512,1.0,,\n5,0.9")  # steps after the last state, and a line that a kill cut
    assert [at.step for at in train(recipe(texts, tmp_path / "broken", 6, **changes))] == [4, 5, 6]
    assert_equal(made(tmp_path / "whole"), made(tmp_path / "broken"))
    whole, resumed = curve(tmp_path / "whole"), curve(tmp_path / "broken")
    for one, other in zip(whole, resumed, strict=True):
        assert {**one, "seconds": ""} == {**other, "seconds": ""}
    assert [row["step"] for row in resumed] == list("123456")
    seconds = [float(row["seconds"]) for row in resumed]
    assert seconds == sorted(seconds) and seconds[0] > 0


@pytest.mark.slow
def test_dropout_changes_training_and_not_scores(texts: Path, tmp_path: Path) -> None:
    plain = list(train(recipe(texts, tmp_path / "plain", 1)))
    dropped = list(train(recipe(texts, tmp_path / "dropped", 1, dropout=0.5, lr=1e-30)))
    still = list(train(recipe(texts, tmp_path / "still", 1, lr=1e-30)))
    assert dropped[0].loss != plain[0].loss == still[0].loss
    assert dropped[0].validation == still[0].validation


@pytest.mark.slow
def test_the_curve_is_drawn(texts: Path, tmp_path: Path) -> None:
    from PIL import Image

    list(train(recipe(texts, tmp_path / "run", 10)))
    rows = curve(tmp_path / "run")
    assert list(rows[0]) == ["step", "loss", "lr", "tokens", "seconds", "validation_lead", "validation_others"]
    assert float(rows[0]["lr"]) == 1e-3 and rows[0]["validation_lead"] == "" and float(rows[8]["validation_lead"]) > 1
    with Image.open(tmp_path / "run" / "loss.png") as picture:
        assert picture.width == 960
        colors = {color for _, color in picture.convert("RGB").getcolors(2**20) or []}
    assert {(31, 88, 160), (200, 80, 20)} <= colors  # the training line and a validation line


def test_a_lead_that_nothing_has_is_told(tmp_path: Path) -> None:
    texts, told = [("tale", "Once"), ("news", "Today")], list[str]()
    for lead in ("ta", "tinystories:", "zzz"):
        note_lead(texts, lead, told.append)
    assert told == ["--lead zzz: no text has a source or file name that begins so"]


@pytest.mark.slow
def test_another_recipe_is_refused_unless_allowed(texts: Path, tmp_path: Path) -> None:
    list(train(recipe(texts, tmp_path / "run", 2)))
    with pytest.raises(GencliError, match=r"other settings: lr 0\.002, now 0\.001"):
        list(train(recipe(texts, tmp_path / "run", 2, lr=1e-3)))
    other = tmp_path / "other.txt"
    other.write_text("One text.\n")
    with pytest.raises(GencliError, match=r"other settings: the data .* are others; the validation texts are others$"):
        list(train(recipe(other, tmp_path / "run", 2)))
    assert [at.step for at in train(recipe(texts, tmp_path / "run", 4, lr=1e-3, allow_changes=True))] == [3, 4]
    with pytest.raises(GencliError, match=r"other sizes: .*n_layer 2, now 1"):
        list(train(recipe(texts, tmp_path / "run", 4, n_layer=1, allow_changes=True)))
    (tmp_path / "run" / "state.pt").write_bytes(b"PK")
    with pytest.raises(GencliError, match="is not a state of a run"):
        list(train(recipe(texts, tmp_path / "run", 4)))


@pytest.mark.slow
def test_a_folder_is_one_runs(texts: Path, tmp_path: Path) -> None:
    first = train(recipe(texts, tmp_path / "run", 3))
    next(first)
    with pytest.raises(GencliError, match="is in use by another training run"):
        next(train(recipe(texts, tmp_path / "run", 3)))
    first.close()
    assert [at.step for at in train(recipe(texts, tmp_path / "run", 3))] == [2, 3]


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_the_run(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(GencliError, match="the loss is nan at step 2") as caught:
        list(train(recipe(texts, tmp_path / "run", 3, lr=1e30, optimizer="adamw", warmup=0)))
    assert "--lr" in str(caught.value.hint)


@pytest.mark.slow
def test_attention_stays_in_float32_on_cpus_without_amx(monkeypatch) -> None:
    x = torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    precision = pick_precision("cpu", "bfloat16")
    for amx, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        monkeypatch.setattr(devices, "has_amx", lambda amx=amx: amx)
        with precision.autocast():
            made = F.scaled_dot_product_attention(x, x.bfloat16(), x, scale=0.5)
            assert (made.dtype, (x @ x.mT).dtype) == (dtype, torch.bfloat16)
    with pick_precision("cpu", "float32").autocast():
        assert (x @ x.mT).dtype == torch.float32
    expected = F.scaled_dot_product_attention(x, x.bfloat16().float(), x, scale=0.5)
    monkeypatch.setattr(devices, "has_amx", lambda: False)
    with precision.autocast():
        assert torch.equal(F.scaled_dot_product_attention(x, x.bfloat16(), x, scale=0.5), expected)


def test_bfloat16_learns_too(texts: Path, tmp_path: Path) -> None:
    told = list(train(recipe(texts, tmp_path / "run", 20, dtype="bfloat16")))
    assert told[-1].loss < 0.8 * told[0].loss


def base(folder: Path, family: str) -> Path:
    if family == "gpt2":
        return make_gpt2(folder, dtype=torch.float16)
    case = next(case for case in CASES if family in (case.model_type, case.name))
    size = make_tokenizer(folder)
    ends = {"bos_token_id": size - 1, "eos_token_id": size - 1}
    config = case.config("new")
    if "text_config" in config:
        return make_decoder(folder, case, "new", text_config={**config["text_config"], "vocab_size": size}, **ends)
    more = {"vocab_size_per_layer_input": size} if "vocab_size_per_layer_input" in config else {}
    return make_decoder(folder, case, "new", dtype=torch.bfloat16, vocab_size=size, **ends, **more)


IDS = torch.randint(384, (2, 24), generator=torch.Generator().manual_seed(1))


def reference(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", *FAMILIES])
def test_on_from_a_checkpoint(texts: Path, few: str, tmp_path: Path, family: str) -> None:
    """Every decoder: loss falls, the source is as it was, names and precisions are the source's, both open it."""
    folder = base(tmp_path / "base", family)
    before = made(tmp_path, "base/model.safetensors")
    steps = STEPS.get(family, 8)
    told = list(train(recipe(texts, tmp_path / "run", steps, init=str(folder), lr=5e-3, validation=few)))
    assert told[-1].loss < 0.9 * told[0].loss
    assert_equal(before, made(tmp_path, "base/model.safetensors"))
    after = made(tmp_path / "run")
    assert after.keys() == {name for name in before if not name.endswith((".attn.bias", ".masked_bias"))}
    assert all(after[name].dtype == before[name].dtype and after[name].shape == before[name].shape for name in after)
    fixed = {name for name in after if name.endswith(("layer_scalar", "correction_bias"))}  # no parameters
    assert {name for name in after if torch.equal(after[name], before[name])} == fixed
    checkpoint = tmp_path / "run" / "checkpoint"
    with torch.inference_mode():
        expected = reference(checkpoint)(IDS).logits
        ours = open_model(find(str(checkpoint)), ModelSpec(device="cpu", dtype="float32"))
        torch.testing.assert_close(ours.module(IDS), expected, atol=1e-4, rtol=1e-4)
    assert ours.tokenizer.encode("a cat") == byte_bpe().encode("a cat").ids


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", *FAMILIES])
def test_adapters_are_pefts(texts: Path, few: str, tmp_path: Path, family: str) -> None:
    folder = base(tmp_path / "base", family)
    changes = {
        "init": str(folder),
        "validation": few,
        "lora_rank": 4,
        "lora_alpha": 8.0,
        "lr": 2e-2,
        "optimizer": "adamw",
        "weight_decay": 0.0,
        "lora_targets": TARGETS.get(family, ""),
    }
    told = list(train(recipe(texts, tmp_path / "run", STEPS.get(family, 8), **changes)))
    assert told[-1].loss < 0.9 * told[0].loss
    adapter = tmp_path / "run" / "adapter"
    assert not (tmp_path / "run" / "checkpoint").exists()
    with torch.inference_mode():
        plain = reference(folder)
        without = plain(IDS).logits
        theirs = peft.PeftModel.from_pretrained(plain, adapter).eval()(IDS).logits
        source = find(str(folder))
        ours = open_model(source, ModelSpec(device="cpu", dtype="float32"), adapters=[LoraRef(adapter)])
        torch.testing.assert_close(ours.module(IDS), theirs, atol=1e-4, rtol=1e-5)
    assert (theirs - without).abs().max() > 0.05
    assert ours.notes == ()


@pytest.mark.slow
def test_adapters_resumed_equal_unbroken(texts: Path, tmp_path: Path) -> None:
    folder = base(tmp_path / "base", "gpt2")
    adapters = {"lora_rank": 2, "lora_alpha": 3.0, "lora_targets": "c_attn, attn.c_proj", "dropout": 0.2}
    changes = {"init": str(folder), "optimizer": "adamw", **adapters}
    list(train(recipe(texts, tmp_path / "whole", 5, **changes)))
    broken = train(recipe(texts, tmp_path / "broken", 5, **changes))
    next(broken), next(broken)
    broken.close()
    assert [at.step for at in train(recipe(texts, tmp_path / "broken", 5, **changes))] == [3, 4, 5]
    whole = made(tmp_path / "whole", "adapter/adapter_model.safetensors")
    assert_equal(whole, made(tmp_path / "broken", "adapter/adapter_model.safetensors"))
    paths = {name.rpartition(".lora_")[0].partition(".h.0.")[2] for name in whole} - {""}
    assert paths == {"attn.c_attn", "attn.c_proj"}
    assert (tmp_path / "whole" / "state.pt").stat().st_size < 30_000  # adapters alone
    config = json.loads((tmp_path / "whole" / "adapter" / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is True and config["target_modules"] == ["attn.c_proj", "c_attn"]
    list(train(recipe(texts, tmp_path / "bf16", 2, dtype="bfloat16", **changes)))  # the base is held in bfloat16 too


@pytest.mark.slow
def test_what_cannot_be_gone_on_from(texts: Path, tmp_path: Path) -> None:
    folder = make_gpt2(tmp_path / "base")
    with pytest.raises(GencliError, match=r"--context 129: .* reads at most 128 tokens"):
        list(train(recipe(texts, tmp_path / "a", 2, init=str(folder), n_positions=129)))
    with pytest.raises(GencliError, match="--lora-targets q_proj: no linear layer is called so"):
        list(train(recipe(texts, tmp_path / "b", 2, init=str(folder), lora_rank=2, lora_targets="q_proj")))
    make_gpt2(tmp_path / "small", vocab_size=300)
    with pytest.raises(GencliError, match="its tokenizer has 384 tokens, its model 300"):
        list(train(recipe(texts, tmp_path / "c", 2, init=str(tmp_path / "small"))))
    with pytest.raises(GencliError, match="no model 'nothing'"):
        list(train(recipe(texts, tmp_path / "d", 2, init="nothing")))
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(GencliError, match="a GGUF file cannot be trained"):
        list(train(recipe(texts, tmp_path / "e", 2, init=str(tmp_path / "x.gguf"))))
    with pytest.raises(GencliError, match="not a text model"):
        list(train(recipe(texts, tmp_path / "f", 2, init="emoji")))


@pytest.mark.slow
def test_on_from_the_hubs_cache(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub id; an adapter names it, so that `gencli text -m org/tiny --lora` says nothing of another base."""
    repo = tmp_path / "hub" / "models--org--tiny"
    make_gpt2(repo / "snapshots" / ("0" * 40))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    list(train(recipe(texts, tmp_path / "run", 1, init="org/tiny", lora_rank=2, lora_alpha=4)))
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/tiny"
    adapter = LoraRef(tmp_path / "run" / "adapter")
    assert open_model(find("org/tiny"), adapters=[adapter]).notes == ()
    list(train(recipe(texts, tmp_path / "whole", 1, init="org/tiny")))
    names = {file.name for file in (tmp_path / "whole" / "checkpoint").iterdir()}
    wanted = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert names == wanted
    (tmp_path / "plain").touch()
    modes = {file.stat().st_mode for file in (tmp_path / "whole" / "checkpoint").iterdir()}
    assert modes == {(tmp_path / "plain").stat().st_mode}  # safetensors alone would write for the owner's eyes only


def test_texts_from_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.txt").write_text(f"First.\n{END}\nSecond,\nlonger.\n{END}\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"text": "x", "source": "s"}\n\n{"text": "y"}\n')
    with gzip.open(tmp_path / "c.txt.gz", "wt") as file:
        file.write("Third.")
    (tmp_path / "d.md").write_text("Fourth.")
    (tmp_path / "settings.json").write_text("{}")
    found = [("s", "x"), ("", "y"), ("b/one.txt", "First."), ("b/one.txt", "Second,\nlonger."), ("c.txt.gz", "Third.")]
    found += [("d.md", "Fourth.")]
    assert read_texts(tmp_path) == found
    assert read_texts(tmp_path / "b" / "one.txt")[0] == ("one.txt", "First.")
    assert read_texts(tmp_path / "d.md") == [("d.md", "Fourth.")]
    assert hold_out(found) == (found[:5], found[5:])
    numbers = [("", str(i)) for i in range(1, 121)]
    assert [text for _, text in hold_out(numbers)[1]] == ["50", "100"]


@pytest.mark.parametrize("name", ["a.md", "a.rst", "a.log", "a.csv", "a", "63", "A.TXT", "a.tex"])
def test_a_file_of_any_other_ending_is_plain_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{ braces } in prose.\nA second line.\n")
    assert read_texts(tmp_path / name) == [(name, "{ braces } in prose.\nA second line.")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "A.JSONL", "63"])
def test_json_lines_by_ending_or_as_a_pipe_has_them(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"text": "x"}\n{"text": "y"}\n')
    assert read_texts(tmp_path / name) == [("", "x"), ("", "y")]


def test_a_folder_without_text_files_says_what_it_is_read_for(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(GencliError, match="has no text files") as caught:
        read_texts(tmp_path)
    assert caught.value.hint and ".md" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("\n\n".join(f"paragraph {i:02}" for i in range(50)), "paragraph 47", "paragraph 48"),
        ("\n".join(f"line {i:02}" for i in range(50)), "line 48", "line 49"),
        ("One is here. Two is there. Three.", "Two is there.", "Three."),
        ("First.\n\nSecond is very much longer than the first one ever was, all in all.", "First.", "Second"),
    ],
)
def test_a_single_text_keeps_its_end_for_validation(text: str, first: str, last: str) -> None:
    [(name, seen)], [(other, held)] = hold_out([("a.txt", text)])
    assert name == other == "a.txt" and seen.endswith(first) and held.startswith(last)
    assert "".join(f"{seen}{held}".split()) == "".join(text.split())


def test_a_text_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(GencliError, match="only one short text: nothing left for validation"):
        hold_out([("a.txt", "word")])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"label": "b"}\n', "line 2: no JSON object"),
        ("a.jsonl", b'{"text": 5}\n', "line 1: 'text' is not a text in quotes"),
        ("a.jsonl", b"[1]\n", "line 1: no JSON object"),
        ("a.jsonl", b'{"text": "\xff"}\n', "is not UTF-8"),
        ("a.jsonl.gz", b"text", "is not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}', mtime=0)[:-9], "is not a whole gzip file"),
        ("a.txt", b" \n", "holds no texts"),
        ("a.jsonl", b"", "holds no texts"),
    ],
)
def test_files_that_are_no_texts(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(GencliError, match=says):
        read_texts(tmp_path / name)


@pytest.mark.slow
def test_a_vision_towers_text_model_becomes_a_checkpoint(texts: Path, tmp_path: Path) -> None:
    """Gemma 3 with a tower: adapters are named as transformers has its text model, and the tower is left out."""
    from tests.tiny.text import write_weights

    folder = base(tmp_path / "text", "gemma3_text")
    raw = json.loads((folder / "config.json").read_text())
    inner = {**raw, "model_type": "gemma3_text"}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14, "model_type": "siglip_vision_model"}  # fmt: skip
    ends = {key: raw[key] for key in ("bos_token_id", "eos_token_id")}
    towers = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": inner}
    write_json(folder / "config.json", {**towers, "vision_config": vision, "mm_tokens_per_image": 4, **ends})
    tensors = load_file(folder / "model.safetensors")
    tower = {"vision_tower.vision_model.post_layernorm.weight": torch.ones(16, dtype=torch.bfloat16)}
    write_weights(folder, {**{f"language_model.{name}": t for name, t in tensors.items()}, **tower}, "model")
    list(train(recipe(texts, tmp_path / "run", 3, init=str(folder))))
    checkpoint = tmp_path / "run" / "checkpoint"
    with torch.inference_mode():
        ours = load(checkpoint, dtype=torch.float32)(IDS)
        torch.testing.assert_close(ours, reference(checkpoint)(IDS).logits, atol=1e-4, rtol=1e-4)
    list(train(recipe(texts, tmp_path / "lora", 3, init=str(folder), lora_rank=2, lora_alpha=4, lr=1e-2)))
    names = load_file(tmp_path / "lora" / "adapter" / "adapter_model.safetensors").keys()
    assert all(name.startswith("base_model.model.model.language_model.layers.") for name in names)
    config = transformers.AutoConfig.from_pretrained(folder)
    theirs = transformers.Gemma3ForConditionalGeneration(config).state_dict()
    assert all(f"{name.removeprefix('base_model.model.').partition('.lora_')[0]}.weight" in theirs for name in names)
    adapted = open_model(find(str(folder)), adapters=[LoraRef(tmp_path / "lora" / "adapter")])
    assert not torch.equal(adapted.module(IDS), load(folder)(IDS))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["step", "saving"])
def test_the_last_step_before_ctrl_c_is_told(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Whenever the signal comes: while a step is half done, or while the state is saved."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    add, save, told, sent = Curve.add, state.save, [], []

    def add_and_signal(curve: Curve, step: int, *rest: Any) -> None:
        add(curve, step, *rest)
        if where == "step" and step == 3:
            signal.raise_signal(signal.SIGINT)

    def save_and_signal(file: Path, values: dict[str, Any]) -> None:
        save(file, values)
        if where == "saving" and values["step"] == 3 and not sent:
            sent.append(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Curve, "add", add_and_signal)
    monkeypatch.setattr(state, "save", save_and_signal)
    try:
        with pytest.raises(KeyboardInterrupt):
            for at in train(recipe(texts, tmp_path, 9, save_every=0.0)):
                told.append(at.step)
    finally:
        signal.signal(signal.SIGINT, before)
    assert told == [1, 2, 3] and (state.load(tmp_path / "state.pt") or {})["step"] == 3


def test_ctrl_c_waits_for_the_end_of_a_step() -> None:
    """What comes while a step is half done raises once that is whole, and the handlers are put back."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        signals = DeferSignals()
        signals.begin()
        signal.raise_signal(signal.SIGINT)  # nothing yet
        with pytest.raises(KeyboardInterrupt):
            signals.end()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signals.close()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
