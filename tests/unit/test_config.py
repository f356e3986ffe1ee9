"""The config file: whose value holds, where each comes from, changing it; the catalogue of well-known models."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gencli.__main__ import main
from gencli.checkpoints import catalogue
from gencli.checkpoints.find import Source, find
from gencli.checkpoints.hub_cache import HubId
from gencli.cli import config
from gencli.cli.download import memory_note
from gencli.errors import GencliError
from gencli.models import ARCHITECTURES
from tests.tiny.clip import make_clip
from tests.tiny.hub_cache import put, tiny
from tests.tiny.systems import make_x4


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("GENCLI_DEVICE", "GENCLI_PROFILE", "GENCLI_TEXT_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GENCLI_CONFIG", str(tmp_path / "deep" / "config.toml"))
    return tmp_path / "deep" / "config.toml"


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main([*args]) == 2
    return capsys.readouterr().err


def test_where_the_file_is(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.delenv("GENCLI_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config.path() == tmp_path / "gencli" / "config.toml"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config.path() == tmp_path / ".config" / "gencli" / "config.toml"
    assert main(["config", "path"]) == 0 and capsys.readouterr().out.strip() == str(config.path())


def test_flag_environment_profile_file(file: Path, monkeypatch, capsys) -> None:
    """Each is stronger than those after it; an error says which one spoke. Temperatures below 0 tell which holds."""
    file.parent.mkdir()
    file.write_text('device = "in-all"\n[text]\ntemperature = -4\n[profile.draft.text]\ntemperature = -3\n')
    assert "--temperature -4: must be at least 0 (--temp is set by config.toml)" in refused(capsys, "text", "a")
    monkeypatch.setenv("GENCLI_PROFILE", "draft")
    assert "--temperature -3:" in (said := refused(capsys, "text", "a")) and "set by profile draft" in said
    said = refused(capsys, "text", "a", "--temp", "-1")
    assert "--temperature -1: must be at least 0\n" in said
    said = refused(capsys, "text", "a", "--temp", "1")
    assert "--device 'in-all': no such device (--device is set by config.toml)" in said
    monkeypatch.setenv("GENCLI_DEVICE", "in-environment")
    assert "'in-environment': no such device (--device is set by GENCLI_DEVICE)" in refused(
        capsys, "text", "a", "--temp", "1"
    )
    said = refused(capsys, "text", "a", "--profile", "drft")
    assert "--profile 'drft': no such profile" in said and "did you mean draft?" in said


def test_what_the_command_line_says_itself_has_no_other_origin(file: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("GENCLI_CLIP_MODEL", "nobody/has")
    assert main(["image", "a", "-m", "nobody/has", "--offline"]) == 1
    assert "'nobody/has'" in (said := capsys.readouterr().err) and "set by" not in said


def test_help_shows_what_is_in_force(file: Path, monkeypatch, capsys) -> None:
    file.parent.mkdir()
    file.write_text("[image]\nsteps = 3\n[profile.draft.image]\nsteps = 8\n")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("GENCLI_IMAGE_MODEL", "mine")
    for words, now in (
        ([], "Now: 3 (set by config.toml)."),
        (["--profile", "draft"], "Now: 8 (set by profile draft)."),
    ):
        assert main(["image", "--help", *words]) == 0
        page = " ".join(capsys.readouterr().out.split())
        assert now in page and "Now: mine (set by GENCLI_IMAGE_MODEL)." in page
    file.write_text("broken")
    assert main(["image", "--help"]) == 0 and "Now:" not in capsys.readouterr().out.replace("Now: mine", "")


def test_what_is_wrong_in_it(file: Path, capsys) -> None:
    file.parent.mkdir()
    for text, says in (
        ("[text]\nstpes = 3\n", "[text] has no option 'stpes'"),
        ("[txt]\nseed = 3\n", "[txt]: no command 'txt'\nhint: did you mean text?"),
        ("[profile.p.imge]\nsteps = 3\n", "[profile.p.imge]: no command 'imge'\nhint: did you mean image?"),
        ("[text]\nmax-tokens = 2.5\n", "'2.5' is not an integer (set by config.toml)"),
        ("[text]\ntemperature = 'warm'\n", "'warm' is not a number (set by config.toml)\nhint: it stands in"),
    ):
        file.write_text(text)
        assert says in refused(capsys, "text", "a")
    for text, says in (
        ("[train]\nseed = 3\n", "[train] has no command 'seed'\nhint: options stand in [train.text]"),
        ("[profile.p.train.txt]\nseed = 3\n", "[profile.p.train] has no command 'txt'\nhint: did you mean text?"),
    ):
        file.write_text(text)
        assert says in refused(capsys, "train", "text", "a")
    file.write_bytes(b"\xff = 3")
    assert main(["text", "a"]) == 1 and "config.toml is not valid TOML" in capsys.readouterr().err
    assert main(["config", "path"]) == 0, "so that it can be mended"


@pytest.mark.slow
def test_set_and_show(file: Path, capsys) -> None:
    for words in (["image.steps", "30"], ["image.cfg-scale", "5.5"], ["device", "cpu"], ["text.stop", "END"]):
        assert main(["config", "set", *words]) == 0
    assert main(["config", "set", "image.steps", "8", "--profile", "draft"]) == 0
    assert main(["config", "set", "image.karras", "true"]) == 0
    assert config.read() == {
        "device": "cpu",
        "image": {"steps": 30, "cfg-scale": 5.5, "karras": True},
        "text": {"stop": ["END"]},
        "profile": {"draft": {"image": {"steps": 8}}},
    }
    assert "missing argument 'VALUE'" in refused(capsys, "config", "set", "image.cfg-scale")
    assert main(["config", "unset", "image.cfg-scale"]) == 0 and "cfg-scale" not in config.read()["image"]
    assert main(["config", "unset", "image.steps", "--profile", "draft"]) == 0
    assert config.read()["profile"] == {"draft": {"image": {}}}
    assert main(["config", "set", "image.steps", "8", "--profile", "draft"]) == 0
    said = refused(capsys, "config", "unset", "image.stps")
    assert f"image.stps is not set in {file}" in said and "did you mean image.steps?" in said
    for words, says in (
        (["image.stpes", "3"], "did you mean steps?"),
        (["imag.steps", "3"], "did you mean image?"),
        (["image.steps", "many"], "'many' is not an integer"),
        (["image.steps", "0"], "--steps 0: must be from 1 to 10000"),
    ):
        assert says in refused(capsys, "config", "set", *words)
    assert main(["config", "show", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"key": "image.steps", "value": 30, "from": str(file)} in rows


@pytest.mark.slow
def test_what_is_set_is_set_once_under_its_usual_name(file: Path, capsys) -> None:
    for words in (["text.temp", "0.3"], ["text.temperature", "0.4"], ["text.presence-penalty", "-0.5"]):
        assert main(["config", "set", *words]) == 0
    assert main(["config", "set", "text.stop", "END", "--", "-c"]) == 0
    assert main(["config", "set", "image.karras", "yes"]) == 0
    text = {"temperature": 0.4, "presence-penalty": -0.5, "stop": ["END", "-c"]}
    assert config.read() == {"text": text, "image": {"karras": True}}
    assert main(["text", "a", "-n", "1"]) == 0
    assert "hint: `gencli text --help` lists them" in refused(capsys, "config", "set", "text.zzzz", "1")
    assert "takes one value, and here are 2" in refused(capsys, "config", "set", "text.seed", "1", "2")
    file.write_text(file.read_text().replace("temperature", "temp"))
    assert main(["config", "set", "text.temperature", "0.2"]) == 0 and config.read()["text"]["temperature"] == 0.2
    assert main(["config", "unset", "text.temp"]) == 0 and len(config.read()["text"]) == 2


def test_what_no_command_has_is_told(file: Path, capsys) -> None:
    file.parent.mkdir()
    file.write_text("stpes = 3\nseed = 1\n[txt]\nseed = 3\n[profile.p.text]\nsede = 1\n")
    assert main(["config", "show"]) == 0
    assert capsys.readouterr().out == (
        f"stpes = 3  ({file}: no command has it)\nseed = 1  ({file})\ntxt.seed = 3  ({file}: no command has it)\n"
        f"profile.p.text.sede = 1  ({file}: no command has it)\n"
    )
    assert main(["config", "unset", "txt.seed"]) == 0 and "seed" not in config.read()["txt"]
    assert main(["text", "a", "-n", "1"]) == 0


def test_nothing_set_is_said_beside_stdout(file, capsys) -> None:
    assert main(["config", "show"]) == 0
    said = capsys.readouterr()
    assert said.out == "" and said.err == f"note: nothing is set; the file would be {file}\n"


def test_changing_keeps_the_rest_of_the_file() -> None:
    text = '# mine\ndevice = "cpu"  # always\n\n[ image ]\nsteps = 3\n\n[text]\nx = 1\n'
    made = config.changed(text, ["image", "steps"], "4")
    assert made == text.replace("steps = 3", "steps = 4")
    assert config.changed(text, ["image", "eta"], "0.5") == text.replace("steps = 3\n", "steps = 3\neta = 0.5\n")
    assert config.changed(text, ["threads"], "2").startswith('# mine\ndevice = "cpu"  # always\nthreads = 2\n')
    assert config.changed(text, ["image", "steps"], None) == text.replace("steps = 3\n", "")
    for odd in ("image.steps = 3\n", "image = {steps = 3}\n", "image = 3\n"):
        with pytest.raises(GencliError):
            config.changed(odd, ["image", "steps"], "4")


def test_every_row_of_the_catalogue_makes_sense() -> None:
    entries = catalogue.entries()
    names = [entry.name for entry in entries]
    assert 20 <= len(names) == len(set(names)) and catalogue.SUGGESTED in names
    for entry in entries:
        assert re.fullmatch(r"[a-z0-9.-]+(:e?[0-9.]+[bm])?", entry.name) and HubId.parse(entry.id)
        assert entry.task in ("chat", "text", "image", "upscale", "score") and entry.good_for and entry.licence
        bits = entry.download / entry.parameters * 8
        assert 15 < bits < 36, f"{entry.name}: {bits} bits per parameter"
    assert catalogue.find_entry("QWEN3:4B") == catalogue.find_entry("qwen3:4b") is not None
    assert {
        "qwen3",
        "llama",
        "phi3",
        "gemma2",
        "gemma3_text",
        "gemma4",
        "olmo2",
        "smollm3",
        "mistral",
    } <= ARCHITECTURES.keys()


def test_what_fits() -> None:
    entry = catalogue.find_entry("qwen3:4b")
    assert entry is not None
    stored, q8, q4 = (entry.formats[name] for name in ("stored", "q8_0", "q4_k_m"))
    assert stored > 1.7 * q8 > 2.7 * q4 > 4 * 10**9
    assert entry.fit(stored) == "fits" and entry.fit(stored - 1) == "fits with --quantize q8_0"
    assert entry.fit(q8 - 1) == "fits with --quantize q4_k_m" and entry.fit(q4 - 1) == "too large"


def test_short_names_are_models(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = put(tmp_path, "HuggingFaceTB/SmolLM2-360M-Instruct", "a" * 40, tiny(), "main")
    source = find("smollm2", offline=True)
    assert (source.name, source.path) == ("HuggingFaceTB/SmolLM2-360M-Instruct", folder)
    assert main(["models", "pull", "smollm2"]) == 0
    assert capsys.readouterr().out.strip() == str(folder)
    assert main(["models", "pull", "stories"]) == 0, "it comes with gencli"
    assert Path(capsys.readouterr().out.strip()).name == "stories"
    assert main(["models", "pull", "smolm"]) == 2
    assert "did you mean smollm" in capsys.readouterr().err


def test_available_and_use(file: Path, monkeypatch, capsys) -> None:
    for words in (["models", "available"], ["models", "pull"]):
        assert main(words) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == len(catalogue.entries()) + 1 and lines[0].split()[0] == "NAME"
    assert main(["models", "available", "--task", "image", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["task"] for row in rows} == {"image"} and {"id", "licence", "memory", "here"} <= rows[0].keys()
    capsys.readouterr()
    assert main(["models", "use", "SmolLM2"]) == 0
    assert "`gencli models pull SmolLM2` downloads it" in capsys.readouterr().err
    assert main(["models", "use", "emoji"]) == 0
    assert "models pull" not in capsys.readouterr().err
    assert config.read() == {
        "text": {"model": "smollm2"}, "chat": {"model": "smollm2"}, "image": {"model": "emoji"},
    }  # fmt: skip
    assert main(["models", "use", "no-such-model"]) == 1
    assert "no-such-model" not in file.read_text()


def test_what_is_here_needs_no_pull(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "clip"):
        (tmp_path / name).mkdir()
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    for name in ("mine", "m.gguf"):
        assert main(["models", "pull", name]) == 0
        said = capsys.readouterr()
        assert said.out == f"{name}\n" and f"{name} is on this machine: there is nothing to download" in said.err
    assert main(["models", "pull", "clip"]) == 1
    said = capsys.readouterr().err
    assert "clip is a folder here, which -m clip names too\nhint: `gencli models pull openai/clip-" in said
    for words in (["pull", ""], ["rm", "", "--yes"], ["use", ""]):
        assert main(["models", *words]) == 1 and "error: the model name is empty\n" in capsys.readouterr().err


@pytest.mark.slow
def test_use_knows_what_a_folder_is_for(file: Path, tmp_path: Path, capsys) -> None:
    make_x4(tmp_path / "x4")
    make_clip(tmp_path / "clip")
    (tmp_path / "clip" / "preprocessor_config.json").unlink()
    for name in ("x4", "clip"):
        assert main(["models", "use", str(tmp_path / name)]) == 0
    said = capsys.readouterr().err
    assert "is now the default model of gencli upscale\n" in said
    assert "is now the default model of gencli score\n" in said and "has no preprocessor_config.json" in said
    assert config.read() == {
        name: {"model": str(tmp_path / path)} for name, path in (("upscale", "x4"), ("score", "clip"))
    }


def test_a_model_that_is_larger_than_the_memory_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(10**6))
    source = Source("big", tmp_path, "folder")
    assert memory_note(source, 1_200_000) is None and memory_note(source, 0) is None
    note = "big needs about 1.2 MB of memory, and this machine has 1.0 MB"
    assert memory_note(source, 10**6, text=True) == f"{note}: --quantize q8_0 needs about 637.5 kB"
    assert memory_note(source, 500_000, text=True).endswith("--quantize q4_k_m needs about 363.8 kB")
    assert memory_note(source, 10**6) == f"{note}: it may fail"


def test_a_default_model_that_is_not_here_says_who_set_it(file: Path, capsys, monkeypatch) -> None:
    file.parent.mkdir()
    file.write_text('[text]\nmodel = "/nowhere/model"\n[profile.other.text]\nmodel = "/no/other"\n')
    assert main(["text", "a"]) == 1
    said = capsys.readouterr().err
    assert "no model '/nowhere/model'" in said and "(--model is set by config.toml)" in said
    assert "`gencli models use NAME` sets another default" in said
    file.write_text('[text]\nmodel = "storeis"\n')
    assert main(["text", "a"]) == 1
    assert "hint: did you mean stories? `gencli models use NAME` sets" in capsys.readouterr().err
    file.write_text('[text]\nmodel = "/nowhere/model"\n[profile.other.text]\nmodel = "/no/other"\n')
    for words in (["-m", "/no/where"], ["--profile", "other"]):
        assert main(["text", "a", *words]) == 1 and "models use" not in capsys.readouterr().err


def test_one_string_is_one_value_of_an_option_that_repeats(file: Path, capsys) -> None:
    file.parent.mkdir()
    for text, words, says in (
        ('[text]\nlora = "nope"', ["text", "a"], "--lora nope: no such file"),
        ('[text]\nlogit-bias = "262"', ["text", "a"], "'262'"),
        ('[image]\nsweep = "sead=1..2"', ["image", "a"], "'sead"),
    ):
        file.write_text(text)
        assert main(words) and says in capsys.readouterr().err
    file.write_bytes(b'\xef\xbb\xbf[text]\nstop = "little"\nmax-tokens = 3\n')  # with a mark, as Notepad saves it
    assert main(["text", "a", "--seed", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["stop"] == ["little"]


def test_a_table_or_a_list_in_place_of_a_value_is_told(file: Path, capsys) -> None:
    file.parent.mkdir()
    for text, says in (
        ("[text]\ntemperature = [1]", "text.temperature takes one value, not a list"),
        ("max-tokens = [3]", "max-tokens takes one value, not a list"),
        ("[text]\nmax-tokens = {a = 1}", "text.max-tokens takes one value, not a table"),
        ("[text]\nlogit-bias = {262 = 5}", "text.logit-bias takes several values, not a table"),
        ("[text]\nstop = [['a']]", "text.stop takes several values, not a list"),
        ("[text.temperature]", "text.temperature takes one value, not a table"),
        ("[profile.p.text]\nlora = {file = 'x'}", "unset text.lora --profile p` removes it"),
        ("[text]\ntemperature = 'x'", "`gencli config unset text.temperature` removes it"),
        ("[text]\nn = 3", "[text] has no option 'n'\nhint: did you mean max-tokens?"),
    ):
        file.write_text(text)
        assert says in refused(capsys, "text", "a", *(["--profile", "p"] if "profile" in text else []))


@pytest.mark.slow
def test_set_takes_what_the_command_line_takes(file: Path, capsys) -> None:
    for words, says in (
        (["image.size", "64"], "--size 64: expected WIDTHxHEIGHT"),
        (["text.logit-bias", "-1=-1"], "--logit-bias -1=-1.0: expected a token id"),
        (["text.device", "gpu"], "did you mean cuda?"),
        (["image.dtype", "fp16"], "--dtype 'fp16': expected one of float32"),
        (["text.dtype", "fp16"], "did you mean float16?"),
        (["text.quantize", "q9"], "--quantize 'q9': no such type of weights"),
        (["train.image.dtype", "fp16"], "did you mean float16?"),
        (["image.sweep", "sead=1..2"], "did you mean seed?"),
        (["text.threads", "0"], "must be from 1 to 4096"),
        (["image", "--steps", "5"], "image is a command: KEY is one of its options"),
        (["serve.listen", "8080", "nowhere"], "--listen 'nowhere': wants [HOST:]PORT"),
        (["serve.listen", "http://localhost:80"], "leave out http://"),
        (["serve.key", "short"], "--key: wants at least 8 characters"),
        (["text.shard", "3/2"], "--shard 3/2: of 2 shards there are those from 1/2 to 2/2"),
        (["text.on", "spark"], "--on 'spark': no such engine"),
        (["text.think", "maybe"], "--think 'maybe': expected one of on, off"),
        (["text.n", "5"], "did you mean max-tokens?"),
        (["image.info", "a.png"], "image.info: --info is for one run, and has no default"),
        (["profile.draft.text.seed", "5"], "a profile is an option of its own: text.seed --profile draft"),
        (["image.steps", "9", "--profile", ""], "a profile's name cannot be empty"),
        (["text.frequency-penalty=-0.5"], "write a space in place of the first `=`"),
    ):
        assert says in refused(capsys, "config", "set", *words)
    assert main(["config", "set", "text.model", "nope"]) == 1 and "no model 'nope'" in capsys.readouterr().err
    assert not file.exists()
    for words in (["text.model", "smollm2"], ["text.model", "some/body"], ["image.size", "64x64"], ["text.seed", "-1"]):
        assert main(["config", "set", *words]) == 0
    assert main(["config", "set", "image.steps", "9", "--profile", "a b.c"]) == 0
    assert config.read()["profile"] == {"a b.c": {"image": {"steps": 9}}}
    assert main(["config", "set", "text.stop", "END", "two"]) == 0 and capsys.readouterr()
    assert main(["config", "show"]) == 0 and 'text.stop = ["END", "two"]  (' in capsys.readouterr().out
    file.write_text(f"{file.read_text()}[text.temperature]\n")
    for table in ("text.temperature", "profile.a b.c", "text"):
        assert main(["config", "unset", table]) == 0
    assert config.read() == {"image": {"size": "64x64"}}


def test_the_line_that_cannot_be_changed_is_named(file: Path) -> None:
    text = "# mine\n[text]\nstop = [\n  'a',\n]\nseed = 1\n\n[text.x]\ny = 1\n"
    assert config.changed(text, ["text", "stop"], '["b"]') == text.replace("[\n  'a',\n]", '["b"]')
    assert config.changed(text, ["text"], None) == "# mine\n"
    for odd in ("a = 1\nimage.steps = 3\n", "a = 1\nimage = {steps = 3}\n"):
        with pytest.raises(GencliError, match=r"line 2 of .* is written in a way"):
            config.changed(odd, ["image", "steps"], "4")


def test_what_others_call_the_commands_of_config(capsys) -> None:
    for word, meant in (("get", "show"), ("list", "show"), ("edit", "path"), ("delete", "unset")):
        assert f"did you mean `gencli config {meant}`?" in refused(capsys, "config", word)
