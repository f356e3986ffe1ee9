"""`gencli models` as a process: list, show, check, rm. (pull: test_hub.py)"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gencli.checkpoints.find import Source, embedded_names, find
from gencli.checkpoints.report import Result, check
from gencli.text.convert import convert
from gencli.text.load import open_model
from tests.oracles.hub_server import safetensors, sha256
from tests.shell.process import environment, gencli, on_terminal
from tests.tiny.hub_cache import COMMIT, OTHER, put, tiny
from tests.tiny.text import make_gpt2

CARD = b"---\nlicense: apache-2.0\n---\n"


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """A cache with a language model in two revisions, one that gencli does not know, and one that is not whole.

    They share commits, as copies of a repository do.
    """
    root = tmp_path / "cache"
    put(root, "org/tiny", COMMIT, tiny(**{"README.md": CARD}), "main", "v2")
    put(root, "org/tiny", OTHER, tiny(), "v1")
    put(root, "org/bert", COMMIT, tiny(**{"config.json": b'{"model_type": "bert"}'}), "main")
    put(root, "org/half", COMMIT, {"config.json": b'{"model_type": "gpt2"}'}, "main")
    return root


def models(*args: object, cache: Path, **env: str | None) -> subprocess.CompletedProcess:
    return gencli("models", *args, HF_HUB_CACHE=str(cache), **env)


def objects(done: subprocess.CompletedProcess) -> list[dict]:
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_list_has_what_can_be_opened(cached: Path) -> None:
    done = models("list", cache=cached)
    assert done.returncode == 0
    heading, *rows = [line.split() for line in done.stdout.decode().splitlines()]
    assert heading == ["NAME", "KIND", "FAMILY", "PARAMETERS", "SIZE", "LICENCE", "WHERE"]
    rows = [row for row in rows if row[0] not in embedded_names()]
    size = sum(len(data) for data in tiny().values())
    assert rows == [
        ["org/tiny", "text", "gpt2", "40", str(size + len(CARD)), "B", "apache-2.0", "cached"],
        ["org/tiny@v2", "text", "gpt2", "40", str(size + len(CARD)), "B", "apache-2.0", "cached"],
        ["org/tiny@v1", "text", "gpt2", "40", str(size), "B", "-", "cached"],
    ]
    assert done.stderr == b"note: 2 more in the cache that gencli cannot open: --all lists them\n"
    assert models("list", "-q", cache=cached).stderr == b""


def test_list_as_json_with_all(cached: Path) -> None:
    done = models("list", "--all", "--json", cache=cached)
    assert (done.returncode, done.stderr) == (0, b"")
    found = {row["name"]: row for row in objects(done)}
    assert {"org/tiny", "org/tiny@v1", "org/tiny@v2", "org/bert", "org/half", *embedded_names()} == set(found)
    snapshot = cached / "models--org--tiny" / "snapshots" / COMMIT
    assert found["org/tiny"] == {
        "name": "org/tiny",
        "kind": "text",
        "family": "gpt2",
        "parameters": 40,
        "bytes": sum(len(data) for data in tiny(**{"README.md": CARD}).values()),
        "licence": "apache-2.0",
        "where": "cached",
        "path": str(snapshot),
        "problem": None,
    }
    assert found["org/bert"]["problem"] == "unknown architecture 'bert'"
    assert found["org/half"]["problem"] == "no weights in safetensors"


def test_nothing_is_listed_where_nothing_is(tmp_path: Path) -> None:
    done = models("list", "--json", cache=tmp_path / "none")
    assert [row["where"] for row in objects(done)] == ["embedded"] * len(embedded_names())
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_the_face_answers_without_torch(cached: Path, tmp_path: Path) -> None:
    convert(open_model(find(str(make_gpt2(tmp_path / "m")))), "q8_0", tmp_path / "m.gguf")
    script = """
import sys
from gencli.__main__ import main
shown = ["show", "org/tiny"], ["show", sys.argv[1]]
for args in (["list"], *shown, ["rm", "org/tiny@v1", "--yes"], ["rm", "org/none"], ["--help"]):
    main(["models", *args])
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "m.gguf"],
        env=environment(HF_HUB_CACHE=str(cached)),
        capture_output=True,
    )
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)


def test_control_characters_of_a_card_do_not_reach_a_terminal(tmp_path: Path) -> None:
    put(tmp_path, "org/evil", COMMIT, tiny(**{"README.md": b"---\nlicense: \x1b[2Jmine\n---\n"}), "main")
    for args in (("list",), ("show", "org/evil")):
        code, screen, _, _ = on_terminal("models", *args, stdin=False, HF_HUB_CACHE=str(tmp_path))
        assert code == 0
        assert b"\x1b[2J" not in screen
        assert b"\\x1b[2Jmine" in screen


def test_json_stays_json_whatever_a_config_holds(tmp_path: Path) -> None:
    config = b'{"model_type": "gpt2", "eps": NaN, "scale": -Infinity, "name": "\\ud800", "big": 1e999}'
    put(tmp_path, "org/odd", COMMIT, tiny(**{"config.json": config}), "main")
    done = models("show", "org/odd", "--json", cache=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")

    def no(constant: str) -> None:
        raise AssertionError(constant)

    said = json.loads(done.stdout, parse_constant=no)["config"]
    assert said == {"model_type": "gpt2", "eps": "NaN", "scale": "-Infinity", "name": "?", "big": "Infinity"}


# --- show


def test_show_tells_a_language_model(cached: Path) -> None:
    put(cached, "org/tiny", OTHER, {"generation_config.json": b'{"temperature": 0.5, "do_sample": true}'})
    text = models("show", "org/tiny@v1", cache=cached).stdout.decode()
    for line in ("family:         gpt2", "parameters:     40 (F32)", "context:        64", "  temperature        0.5"):
        assert f"{line}\n" in text
    done = models("show", "org/tiny@v1", "--json", cache=cached)
    (said,) = objects(done)
    assert (said["revision"], said["not_loaded"]) == (OTHER, [])
    assert said["defaults"]["temperature"] == 0.5
    assert said["defaults"]["top_k"] == 40
    assert said["config"] == {"model_type": "gpt2", "n_positions": 64, "n_embd": 4}
    assert set(said["files"]) == {*tiny(), "generation_config.json"}


@pytest.mark.slow
def test_show_tells_a_gguf_file_by_its_metadata(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    convert(open_model(find(str(make_gpt2(tmp_path / "m")))), "q8_0", file)
    text = models("show", file, cache=tmp_path).stdout.decode()
    expected = {"context": 128, "vocabulary": 384, "layers": 2, "tokenizer": "gpt2 (gpt-2)", "chat template": "no"}
    assert all(
        re.search(rf"^{name}: +{re.escape(str(value))}$", text, re.MULTILINE) for name, value in expected.items()
    )
    (said,) = objects(models("show", file, "--json", cache=tmp_path))
    assert said["tokenizer"] == {"kind": "gpt2 (gpt-2)", "chat_template": False}
    assert (said["config"]["n_positions"], said["config"]["vocab_size"], said["config"]["n_layer"]) == (128, 384, 2)
    (tmp_path / "m" / "chat_template.jinja").write_text("{{ messages }}")
    (said,) = objects(models("show", tmp_path / "m", "--json", cache=tmp_path))
    assert said["tokenizer"]["chat_template"] is True


@pytest.mark.slow
def test_show_tells_a_pipeline_and_what_is_not_loaded(tmp_path: Path) -> None:
    from tests.tiny.image import make_stable_diffusion

    pipe = make_stable_diffusion(tmp_path / "sd")
    (said,) = objects(models("show", tmp_path / "sd", "--json", cache=tmp_path))
    assert (said["kind"], said["family"], said["problem"]) == ("image", "StableDiffusionPipeline", None)
    assert said["not_loaded"] == ["feature_extractor", "safety_checker"]
    parts = {part["name"]: part["parameters"] for part in said["components"]}
    models_of = {name: getattr(pipe, name) for name in ("unet", "vae", "text_encoder")}
    expected = {name: sum(p.numel() for p in module.parameters()) for name, module in models_of.items()}
    assert {name: number for name, number in parts.items() if number is not None} == expected
    assert said["parameters"] == sum(expected.values())
    assert (said["defaults"]["steps"], said["defaults"]["guidance"], said["defaults"]["width"]) == (50, 7.5, 128)
    text = models("show", tmp_path / "sd", cache=tmp_path).stdout.decode()
    assert "not loaded:  feature_extractor, safety_checker\n" in text


def test_names_that_are_not_here(cached: Path) -> None:
    for command in ("show", "check"):
        done = models(command, "org/none", cache=cached)
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"error: no model 'org/none'" in done.stderr
        assert b"gencli models pull org/none" in done.stderr


# --- check


@pytest.mark.slow
def test_check_says_that_all_is_well_or_what_is_not(tmp_path: Path) -> None:
    folder = make_gpt2(tmp_path / "m", sharded=True)
    done = models("check", folder, cache=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == f"{folder}: 32 tensors, OK\n"
    spoil(folder / "model-00002-of-00003.safetensors", lambda tensors: next(iter(tensors.values())).fill_(torch.nan))
    (folder / "tokenizer.json").write_text("{")
    done = models("check", folder, "--json", cache=tmp_path)
    assert done.returncode == 1
    (said,) = objects(done)
    assert (said["name"], said["ok"], said["tensors"]) == (str(folder), False, 32)
    assert len(said["problems"]) == 2
    assert "values that are NaN or infinite" in said["problems"][0]
    assert "tokenizer.json is not a tokenizer" in said["problems"][1]
    assert done.stderr.decode() == f"error: {folder}: 2 problems found\n"


def spoil(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def checked(folder: Path) -> Result:
    return check(Source(folder.name, folder, "folder"))


def test_check_compares_with_the_config(tmp_path: Path) -> None:
    file = make_gpt2(tmp_path / "m") / "model.safetensors"
    whole = file.read_bytes()
    assert checked(file.parent).problems == ()
    spoilt = {
        "lacks tensors: transformer.ln_f.bias": lambda t: t.pop("ln_f.bias"),
        "has tensors that its config does not explain: extra": lambda t: t.update(extra=torch.zeros(1)),
        r"ln_f.bias is \[5\], not \[32\]": lambda t: t.update({"ln_f.bias": torch.zeros(5)}),
        "wte.weight has 3 values that are NaN or infinite": lambda t: t["wte.weight"][0, :3].fill_(torch.inf),
    }
    for problem, change in spoilt.items():
        file.write_bytes(whole)
        spoil(file, change)
        (found,) = checked(file.parent).problems
        assert re.search(problem, found), found
    for broken in (whole[:-1], whole[:5], (2**60).to_bytes(8, "little") + whole[8:], b""):
        file.write_bytes(broken)
        (found,) = checked(file.parent).problems
        assert "is broken or no safetensors file" in found
    file.unlink()
    (found,) = checked(file.parent).problems
    assert "has no weights in safetensors" in found


@pytest.mark.slow
def test_check_looks_at_every_part(tmp_path: Path) -> None:
    from tests.tiny.image import make_stable_diffusion

    make_stable_diffusion(tmp_path / "sd")
    assert checked(tmp_path / "sd").problems == ()
    spoil(tmp_path / "sd/vae/diffusion_pytorch_model.safetensors", lambda tensors: tensors.popitem())
    spoil(tmp_path / "sd/unet/diffusion_pytorch_model.safetensors", lambda tensors: tensors.popitem())
    problems = checked(tmp_path / "sd").problems
    assert ["/unet" in problem for problem in problems] == [True, False]
    assert ["/vae" in problem for problem in problems] == [False, True]


def test_check_knows_what_the_hub_had(tmp_path: Path) -> None:
    good = safetensors({"a": ("F32", [4])})
    folder = put(tmp_path, "org/m", COMMIT, {"config.json": b'{"model_type": "gpt2"}'}, "main")
    blob = folder.parents[1] / "blobs" / sha256(good)
    (folder / "model.safetensors").symlink_to(blob)
    for data, damaged in ((good, False), (good[:-1] + b"\1", True)):
        blob.write_bytes(data)
        problems = check(Source("org/m", folder, "hub")).problems
        assert any("its checksum is not the Hub's" in problem for problem in problems) == damaged


# --- rm


@pytest.mark.slow
def test_rm_removes_what_it_was_told_and_nothing_else(cached: Path) -> None:
    repo = cached / "models--org--tiny"
    done = models("rm", "org/tiny@v2", "--yes", "--json", cache=cached)  # main stands for the same commit
    assert objects(done) == [{"removed": "org/tiny@v2", "bytes": 0}]
    assert (repo / "snapshots" / COMMIT).is_dir()
    done = models("rm", "org/tiny@v1", "--yes", cache=cached)
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.startswith(b"note: removed org/tiny@v1, ")
    assert [p.name for p in (repo / "snapshots").iterdir()] == [COMMIT]
    assert (repo / "snapshots" / COMMIT / "model.safetensors").is_file()  # whose blob both had
    (repo / "blobs" / "abc.incomplete").write_bytes(bytes(1000))
    before = sum(p.stat().st_size for p in (repo / "blobs").iterdir())
    (said,) = objects(models("rm", "org/tiny", "--yes", "--json", cache=cached))
    assert before <= said["bytes"] <= before + 100  # and its refs
    assert not repo.exists()
    assert {p.name for p in cached.glob("models--*")} == {"models--org--bert", "models--org--half"}


@pytest.mark.slow
def test_rm_refuses_what_is_not_its_own(cached: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    refused = {
        tmp_path / "mine": "is not part of the Hugging Face cache",
        "org/none": "is not in the Hugging Face cache",
    }
    refused |= {"org/tiny@v9": "is not in the Hugging Face cache"}
    refused |= dict.fromkeys(embedded_names(), "belongs to gencli")
    for name, why in refused.items():
        done = models("rm", name, "--yes", cache=cached)
        assert (done.returncode, done.stdout) == (1, b"")
        assert why in done.stderr.decode()
    assert (tmp_path / "mine" / "config.json").exists()
    assert models("rm", "a/b/c", "--yes", cache=cached).returncode == 2


@pytest.mark.slow
def test_rm_asks_on_a_terminal_and_only_there(cached: Path) -> None:
    done = models("rm", "org/tiny", cache=cached)
    assert done.returncode == 2
    assert b"--yes removes without asking" in done.stderr
    for answer, code in ((b"n\n", 1), (b"\n", 1), (b"yes\n", 0)):
        assert (cached / "models--org--tiny").exists()
        done_code, screen, _, _ = on_terminal("models", "rm", "org/tiny", typed=answer, HF_HUB_CACHE=str(cached))
        assert done_code == code
        assert b"remove org/tiny, " in screen
        assert (b"nothing was removed" in screen) == (code == 1)
    assert not (cached / "models--org--tiny").exists()


# --- convert


@pytest.mark.slow
def test_convert_writes_a_file_that_runs(tmp_path: Path) -> None:
    """Its types are those of the file's name, or of --to; without either the precision of the weights."""
    types = {"s-q4_0.gguf": "Q4_0", "plain.gguf": "F16", "s-q8_0.gguf": "Q5_1"}
    for name, kind in types.items():
        more = ("--to", "q5_1") if kind == "Q5_1" else ()
        (said,) = objects(gencli("models", "convert", "stories", "-o", tmp_path / name, "--json", *more))
        assert said["types"][kind] > 30 and said["bytes"] == (tmp_path / name).stat().st_size
    run = ("text", "Once", "-n", "8", "--temperature", "0", "-m")
    assert gencli(*run, tmp_path / "plain.gguf").stdout == gencli(*run, "stories").stdout != b""
    done = gencli("models", "convert", "stories", "-o", tmp_path / "x.gguf")
    assert (done.stdout, done.stderr) == (f"{tmp_path / 'x.gguf'}\n".encode(), b"")
    whole = (tmp_path / "x.gguf").read_bytes()
    done = gencli("models", "convert", tmp_path / "x.gguf", "-o", tmp_path / "x.gguf", "--to", "q8_0")
    assert done.returncode == 2 and b"is the model itself" in done.stderr
    assert (tmp_path / "x.gguf").read_bytes() == whole
    done = gencli("models", "convert", tmp_path / "s-q4_0.gguf", "-o", tmp_path / "y.gguf", "--to", "q8_0")
    assert done.returncode == 0 and b"note: Q4_0, Q6_K weights are packed again as Q8_0" in done.stderr


@pytest.mark.slow
def test_convert_says_what_it_cannot_do(tmp_path: Path) -> None:
    refused: dict[tuple[object, ...], tuple[int, str]] = {
        ("stories",): (2, "no file to write"),
        ("stories", "-o", tmp_path / "a.gguf", "--to", "q9"): (2, "--to 'q9': no such type of weights"),
        ("emoji", "-o", tmp_path / "a.gguf"): (
            1,
            "emoji is an image model (StableDiffusionPipeline), not a text model",
        ),
        ("stories", "-o", tmp_path / "no" / "a.gguf"): (1, "no such folder"),
        ("stories", "-o", tmp_path): (1, "it is a folder"),
        ("stories", "-o", "x.safetensors"): (2, "what is written is a GGUF file"),
    }
    for args, (code, why) in refused.items():
        done = gencli("models", "convert", *args)
        assert (done.returncode, done.stdout) == (code, b"") and why in done.stderr.decode(), args
    assert not list(tmp_path.iterdir())


# --- the group


@pytest.mark.slow
def test_the_group_needs_a_command_and_every_command_helps(tmp_path: Path) -> None:
    done = models(cache=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"") and b"Usage: gencli models" in done.stdout
    done = models("pul", "org/x", cache=tmp_path)
    assert (done.returncode, b"did you mean `gencli models pull`?" in done.stderr) == (2, True)
    for command in ("list", "show", "pull", "check", "rm"):
        done = models(command, "--help", cache=tmp_path)
        assert (done.returncode, done.stderr) == (0, b"")
        assert f"Usage: gencli models {command}" in done.stdout.decode()
        if command not in ("list", "pull"):
            done = models(command, cache=tmp_path)
            assert (done.returncode, done.stdout) == (2, b"")
