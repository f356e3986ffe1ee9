"""Models that ollama keeps: by its own names, in both of its layouts, and what is wrong with them in one line."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from gencli.__main__ import main
from gencli.checkpoints import ollama
from gencli.checkpoints.find import find, known_names
from gencli.errors import GencliError
from gencli.serve.pool import Pool
from gencli.spec import ModelSpec

KIND = "application/vnd.ollama.image."
LIBRARY = "manifests/registry.ollama.ai/library"
Keep = Callable[..., Path]


@pytest.fixture
def keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keep:
    """A function that keeps a model as ollama does, and returns its file."""
    root = tmp_path / "models"
    monkeypatch.setenv("OLLAMA_MODELS", str(root))

    def made(manifest: str, data: bytes = b"GGUF", layers: tuple[str, ...] = ("model", "template", "params")) -> Path:
        digest = hashlib.sha256(data).hexdigest()
        blob = root / "blobs" / f"sha256-{digest}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        said = {
            "schemaVersion": 2,
            "layers": [{"mediaType": KIND + kind, "digest": f"sha256:{digest}"} for kind in layers],
        }
        (root / manifest).parent.mkdir(parents=True, exist_ok=True)
        (root / manifest).write_text(json.dumps(said))
        return blob

    return made


@pytest.mark.parametrize(
    ("manifest", "name"),
    [
        (f"{LIBRARY}/llama3.2/latest", "llama3.2"),
        (f"{LIBRARY}/llama3.2/latest", "llama3.2:latest"),
        (f"{LIBRARY}/llama3.2/1b", "llama3.2:1b"),
        ("manifests/registry.ollama.ai/me/mine/latest", "me/mine"),
        ("manifests/hf.co/org/Some-GGUF/Q4_K_M", "hf.co/org/Some-GGUF:Q4_K_M"),
        ("manifests-v2/ollama.com/library/qwen3/4b", "qwen3:4b"),
    ],
)
def test_each_name_leads_to_its_file(keep: Keep, manifest: str, name: str) -> None:
    blob = keep(manifest)
    source = find(f"ollama:{name}")
    assert (source.path, source.kind, source.name) == (blob, "ollama", f"ollama:{name}")
    assert (f"ollama:{name.removesuffix(':latest')}", "of ollama") in known_names("chat")
    assert "of ollama" not in dict(known_names("image")).values()


@pytest.mark.slow
def test_one_writes_and_is_listed(keep: Keep, tmp_path: Path, monkeypatch, capsys) -> None:
    """The text is that of the same file by its path; no command removes what is ollama's."""
    monkeypatch.setenv("GENCLI_CONFIG", str(tmp_path / "config.toml"))
    file = tmp_path / "s.gguf"
    assert main(["models", "convert", "stories", "-o", str(file), "--to", "q8_0"]) == 0
    keep(f"{LIBRARY}/tale/latest", file.read_bytes())
    line = ["text", "Once upon", "-n", "8", "--temperature", "0", "-m"]
    capsys.readouterr()
    assert main([*line, str(file)]) == 0
    wanted = capsys.readouterr().out
    assert main([*line, "ollama:tale"]) == 0 and capsys.readouterr().out == wanted
    assert main(["models", "use", "ollama:tale"]) == 0
    capsys.readouterr()
    assert main(line[:-1]) == 0 and capsys.readouterr().out == wanted
    assert main(["models", "list", "--json"]) == 0
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert (rows["ollama:tale"]["where"], rows["ollama:tale"]["family"]) == ("ollama", "gpt2")
    assert main(["models", "rm", "ollama:tale", "--yes"]) == 1
    said = capsys.readouterr().err
    assert "belongs to ollama and is not removed" in said and "hint: `ollama rm tale` removes it" in said


@pytest.mark.parametrize(
    ("name", "layers", "says", "hint"),
    [
        ("tal", ("model",), "ollama has no model 'tal' in", "did you mean ollama:tale?"),
        (
            "other",
            ("model",),
            "ollama has no model 'other' in",
            "`ollama pull other` fetches one; OLLAMA_MODELS says where",
        ),
        ("tale", ("model", "adapter"), "is a model with an adapter", "--lora"),
        ("tale", ("tensor",), "holds no GGUF file", "it has tensor"),
        ("tale", (), "holds no GGUF file", "it has no layers"),
    ],
)
def test_what_is_wrong_is_one_line(keep: Keep, name: str, layers: tuple[str, ...], says: str, hint: str) -> None:
    keep(f"{LIBRARY}/tale/latest", layers=layers)
    with pytest.raises(GencliError, match=says) as caught:
        find(f"ollama:{name}")
    assert hint in str(caught.value.hint)


def test_a_file_that_is_gone_and_a_broken_manifest(keep: Keep, capsys) -> None:
    blob = keep(f"{LIBRARY}/tale/latest")
    blob.unlink()
    with pytest.raises(GencliError, match=r"its file .* is not there") as caught:
        find("ollama:tale")
    assert caught.value.hint == "`ollama pull tale` fetches it"
    manifest = ollama.models()["tale:latest"]
    for text, says in (
        ("[]", "holds no JSON object"),
        ("{", "is not valid JSON"),
        ('{"layers": 3}', "holds no GGUF file"),
        ('{"layers": [3, {"mediaType": [], "digest": "sha256:../../x"}]}', "holds no GGUF file"),
        (
            json.dumps({"layers": [{"mediaType": f"{KIND}model", "digest": "sha256-../../../etc/passwd"}]}),
            "no GGUF file",
        ),
    ):
        manifest.write_text(text)
        with pytest.raises(GencliError, match=says):
            find("ollama:tale")
    assert main(["models", "list"]) == 0 and "tale" not in capsys.readouterr().out, "others are listed all the same"


def test_a_server_that_names_no_models_has_them_too(keep: Keep) -> None:
    keep(f"{LIBRARY}/tale/1b")
    pool = Pool({}, ModelSpec(), find, keep=1.0, memory=math.inf, pull=False)
    assert {"stories", "emoji", "ollama:tale:1b"} <= set(pool.names())


def test_a_name_of_ollama_without_its_beginning_is_a_slip(keep: Keep) -> None:
    keep(f"{LIBRARY}/tale/latest")
    with pytest.raises(GencliError, match="no model 'tale'") as caught:
        find("tale")
    assert caught.value.hint == "did you mean ollama:tale?"


def test_every_command_knows_the_names_that_ollama_shows(keep: Keep, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for manifest in (f"{LIBRARY}/tale/latest", "manifests/hf.co/me/tale-GGUF/Q8_0"):
        blob = keep(manifest)
    for words, meant in (
        (["show", "hf.co/me/tale-GGUF:Q8_0"], "ollama:hf.co/me/tale-GGUF:Q8_0"),
        (["show", "ollama/tale"], "ollama:tale"),
        (["pull", "tale"], "ollama:tale"),
        (["rm", "tale", "--yes"], "ollama:tale"),
    ):
        assert main(["models", *words]) and f"hint: did you mean {meant}?" in capsys.readouterr().err
    assert main(["models", "show", "ollama:"]) == 1
    assert "hint: it has ollama:hf.co/me/tale-GGUF:Q8_0, ollama:tale here\n" in capsys.readouterr().err
    assert main(["models", "pull", "ollama:tale"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{blob}\n" and "ollama:tale is on this machine: there is nothing to download" in said.err
