"""What a newcomer meets: suggestions, hints, notes, where a setting comes from, time left, and small inputs."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import pty
import re
import select
import shlex
import threading
import types
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

import gencli
from gencli.__main__ import main
from gencli.atomic import check_folder
from gencli.checkpoints.find import _folders, find
from gencli.checkpoints.hub_cache import HubId
from gencli.checkpoints.hub_http import _one_line, cannot_fetch
from gencli.cli import completion, help, show, tab, usage, variables
from gencli.cli import console as consoles
from gencli.cli.app import app
from gencli.cli.config_command import _commands
from gencli.cli.console import Console
from gencli.cli.image import app as image_app
from gencli.cli.image_sinks import _as_typed
from gencli.cli.prompts import note_file
from gencli.cli.text_output import JsonOutput, why_cut, why_empty
from gencli.cli.train_output import as_words, follow
from gencli.cli.wildcards import expand
from gencli.errors import GencliError, UsageError, counted, nearest
from gencli.image.request import ImageRequest
from gencli.spec import completing
from gencli.text.events import Completion, GenerationStats
from gencli.train import state
from gencli.train.recipe import TextRecipe
from gencli.train.trainer import Progress
from tests.tiny.hub_cache import put, tiny

HEAD = "hint: did you mean "


def says(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """What a command that fails prints on stderr."""
    assert main([*args]) != 0
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "line, hint",
    [
        ("image --init-image x", f"{HEAD}--init?"),
        ("image --init-img x", f"{HEAD}--init?"),
        ("image --image x", f"{HEAD}--init?"),
        ("image --num-images 3", f"{HEAD}--count?"),
        ("image --denoise .4", f"{HEAD}--strength?"),
        ("image --guidance-scale 3", f"{HEAD}--cfg-scale?"),
        ("image --negative-prompt x", f"{HEAD}--negative?"),
        ("image --num-inference-steps 3", f"{HEAD}--steps?"),
        ("image --scheduler x", f"{HEAD}--sampler?"),
        ("image --low-ram", "hint: see `gencli image --help`"),
        ("image --prompt-file x", "hint: read a prompt from a file with `- < FILE`"),
        ("text --foo", "hint: see `gencli text --help`"),
        ("text --temperatur 1", f"{HEAD}--temperature?"),
        ("text -v", f"{HEAD}--stats?"),
        ("text -M x", f"{HEAD}-m?"),
        ("text -o x", "hint: the output goes to stdout: `> FILE` saves it"),
        ("text -x", "hint: see `gencli text --help`; put `--` before a prompt that begins with a dash"),
        ("text --version", f"{HEAD}`gencli --version`?"),
        ("text a --device gpu", f"{HEAD}cuda?"),
        ("-m stories hi", "hint: options follow the command, as in `gencli text -m …`; see `gencli --help`"),
        ("list", f"{HEAD}`gencli models list`?"),
        ("ls", f"{HEAD}`gencli models list`?"),
        ("pull x", f"{HEAD}`gencli models pull`?"),
        ("help", f"{HEAD}`gencli --help`?"),
        ("run", f'{HEAD}`gencli text "Once upon a time"`?'),
        ("draw", f'{HEAD}`gencli image "red apple"`?'),
        ("'Once upon a time'", f'{HEAD}`gencli text "Once upon a time"`?'),
        ("models lst", f"{HEAD}`gencli models list`?"),
        ("models ls", f"{HEAD}`gencli models list`?"),
        ("models remove x", f"{HEAD}`gencli models rm`?"),
        ("models update", f"{HEAD}`gencli models pull --update`?"),
        ("image --num-images-per-prompt 2", f"{HEAD}--count?"),
        ("text a --stream", "hint: the text is written as it is produced; --json waits for its end"),
        ("chat smollm2", f"{HEAD}-m smollm2?"),
        ("models delete x", f"{HEAD}`gencli models rm`?"),
        ("delete x", f"{HEAD}`gencli models rm`?"),
        ("config draw", "hint: commands: path, show, set, unset"),
        ("image a --sampler eulr", f"{HEAD}euler?"),
        ("image --n 2", f"{HEAD}--count?"),
        ("image --hires", f"hint: {usage.HIRES}"),
        ("show stories", f"{HEAD}`gencli models show`?"),
        ("ps", f"{HEAD}`gencli models list`?"),
        ("create x", f"{HEAD}`gencli models convert`?"),
        ("stories Once", f"{HEAD}`gencli text -m stories`?"),
        ("smollm2 Once", f"{HEAD}`gencli text -m smollm2`?"),
        ("emoji apple", f"{HEAD}`gencli image -m emoji`?"),
        ("chat how are you", 'hint: `gencli text --chat "how are you"` answers one message'),
        ("chat smollm2 how are you", 'hint: `gencli text --chat -m smollm2 "how are you"` answers one message'),
        ("chat -p hi", f"hint: {usage.CHAT_ELSEWHERE['-p']}"),
        ("chat --file x", f"hint: {usage.CHAT_ELSEWHERE['--file']}"),
        ("chat -c 512", f"hint: {usage.CONTEXT}"),
        ("serve stories", f"{HEAD}-m stories?"),
        ("serve --port 8080", f"{HEAD}--listen?"),
        ("text -c 512 a", f"hint: {usage.CONTEXT}"),
        ("text --ctx-size 512 a", f"hint: {usage.CONTEXT}"),
        ("text -ngl 99 a", f"hint: {usage.DEVICE}"),
        ("chat -ngl 99", f"hint: {usage.DEVICE}"),
        ("image a -ngl 99", f"hint: {usage.DEVICE}"),
        ("image -ngl=99 a", f"hint: {usage.DEVICE}"),
        ("text -hf org/name a", f"{HEAD}--model?"),
        ("text -sys x a", f"{HEAD}--system?"),
        ("text -fa a", "hint: attention has no switch: nothing to set"),
        ("text -md x a", f"{HEAD}--draft?"),
        ("text -t 8 a", f"{HEAD}--temperature or --threads?"),
        ("image -t 8 a", f"{HEAD}--threads?"),
        ("text --n-gpu-layers 99 a", f"hint: {usage.DEVICE}"),
        ("help text", f"{HEAD}`gencli text --help`?"),
        ("run llama3 hi you", f'{HEAD}`gencli text -m llama3 "hi you"`?'),
        ("run llama3", f"{HEAD}`gencli chat -m llama3`?"),
        ("text -n x a", "hint: see `gencli text --help`"),
        ("text --repeat-last-n 64 a", "hint: --repeat-penalty R looks at the whole text, prompt included"),
        ("chat --reasoning-effort high", f"{HEAD}--think?"),
        ("text --no-think a", f"{HEAD}--think off?"),
        ("text --hidethinking a", "hint: stdout never has the reasoning; -q hides it on a terminal too"),
        ("text --chat-template-kwarg x a", f"{HEAD}--chat-template-kwargs?"),
        ("text -n -1 a", "hint: -n 1000000 goes on until the model ends, or its context is full"),
    ],
)
def test_suggestions(capsys, line: str, hint: str) -> None:
    assert says(capsys, *shlex.split(line)).splitlines()[-1] == hint


@pytest.mark.parametrize(
    "words, negative",
    [("-nfoo", "foo"), ("-ngl2", "gl2"), ("-n -ngl", "-ngl"), ("--negative=-ngl", "-ngl"), ("-n x -- -ngl", "x")],
)
def test_what_other_tools_call_so_is_refused_where_it_is_an_option_alone(words: str, negative: str) -> None:
    command = typer.main.get_command(image_app)
    with command.make_context("image", shlex.split(words)) as ctx:
        assert ctx.params["negative"] == negative


def test_nothing_is_suggested_that_is_not_alike() -> None:
    known = ["--color", "--lora", "--vae", "--cfg-scale", "--control-image"]
    assert [nearest(word, known) for word in ("--foo", "--low-ram", "--image", "--upscale")] == [None] * 4
    assert nearest("--cfg", known) == "--cfg-scale"


def every_option() -> Iterator[tuple[str, Any]]:
    group = typer.main.get_command(app)
    with group.make_context("gencli", ["--offline"], resilient_parsing=True) as ctx:
        for name, command in _commands(group, ctx):
            for param in command.params:
                yield name, param


def test_every_setting_of_the_environment_says_where_it_comes_from(monkeypatch, capsys, tmp_path) -> None:
    """One command for each variable that an option may come from, with a value that cannot work."""
    picture = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(picture)
    tried = {
        "GENCLI_DEVICE": ["text", "a"],
        "GENCLI_DTYPE": ["text", "a"],
        "GENCLI_TEXT_MODEL": ["text", "a"],
        "GENCLI_IMAGE_MODEL": ["image", "a", "-o", str(tmp_path / "b.png")],
        "GENCLI_CLIP_MODEL": ["score", "a", str(picture)],
        "GENCLI_UPSCALE_MODEL": ["upscale", str(picture), "-o", str(tmp_path / "b.png")],
        "GENCLI_VQ_MODEL": ["codes", str(picture)],
        "GENCLI_PROFILE": ["text", "a"],
        "GENCLI_NO_SERVER": ["text", "a"],
        "GENCLI_AUTO_SERVER": ["text", "a"],
    }
    named = {param.envvar for _, param in every_option() if param.envvar} - {"GENCLI_SERVE_KEY"}  # any text is one
    assert named <= tried.keys(), "a new variable needs a line here"
    for name, line in tried.items():
        with monkeypatch.context() as patch:
            patch.setenv(name, "no-such-thing")
            said = says(capsys, *line).splitlines()[0]
        assert ("env var" not in said and name in said) or (name == "GENCLI_PROFILE" and "no-such-thing" in said), said
    assert "GENCLI" not in says(capsys, "text", "a", "--device", "no-such-thing")


def test_variables_that_nothing_reads_are_told(monkeypatch, capsys) -> None:
    """All that are read are known: those of options, and those that the sources name."""
    sources = "\n".join(path.read_text("utf-8") for path in Path(gencli.__file__).parent.rglob("*.py"))
    read = {*re.findall(r'"(GENCLI_[A-Z_]+)"', sources)}
    assert {*variables.KNOWN} == read >= {param.envvar for _, param in every_option() if param.envvar}
    monkeypatch.setenv("GENCLI_TEXT_MODLE", "smollm2")
    monkeypatch.setenv("GENCLI_XYZZY", "1")
    said = says(capsys, "text", "a", "--device", "no-such-thing").splitlines()
    assert said[:2] == [
        "note: nothing reads the variable GENCLI_TEXT_MODLE (did you mean GENCLI_TEXT_MODEL?)",
        "note: nothing reads the variable GENCLI_XYZZY",
    ]
    assert "note" not in says(capsys, "text", "a", "-q", "--device", "no-such-thing")
    assert main(["config", "show"]) == 0
    assert "GENCLI_XYZZY" in capsys.readouterr().err


def test_hints_about_models_are_true(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(GencliError) as caught:
        find("foo/bar", offline="`gencli models show`")
    assert caught.value.hint == (
        "`gencli models show` looks only on this machine; `gencli models pull foo/bar` downloads it"
    )
    with pytest.raises(GencliError) as caught:
        find("smolm2")
    assert caught.value.hint == "did you mean smollm2?"
    nothing = cannot_fetch(HubId("irun/checkpoint"), _one_line(OSError("[Errno -2] Name or service not known")), False)
    assert "Errno" not in nothing.message and "resume" not in (nothing.hint or "")
    assert nothing.hint == "is there a network? And irun/checkpoint is not a folder here"
    begun = cannot_fetch(HubId("a/b"), "it ended", True)
    assert begun.hint == "run it again to resume the download"
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint" / "config.json").write_text("{}")
    assert nearest("irun/checkpoint", _folders()) == "run/checkpoint"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("text a -m ~no-such-user/x", "no model '~no-such-user/x'"),
        ("image a -m ~no-such-user/x", "no model '~no-such-user/x'"),
        ("text a --lora ~no-such-user/x.safetensors", "--lora ~no-such-user/x.safetensors: no such file"),
        ("image a --embedding ~no-such-user/x.pt", "--embedding ~no-such-user/x.pt: no such file"),
        ("text a --grammar ~no-such-user/x", "--grammar '~no-such-user/x': no such file"),
        ("image a -i ~no-such-user/x.png", "cannot read ~no-such-user/x.png"),
        ("models rm ~no-such-user/x", "'~no-such-user/x' is not a Hub id"),
        ("models use ~no-such-user/x", "no model '~no-such-user/x'"),
    ],
)
def test_a_home_of_nobody_is_a_name_like_others(monkeypatch, tmp_path, capsys, line: str, told: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert says(capsys, *line.split()).startswith(f"error: {told}")


def test_hints_can_be_pasted(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GencliError) as caught:
        check_folder(Path("sub dir"))
    assert caught.value.hint == "make it first: mkdir -p 'sub dir'"
    assert _as_typed(Path("-a.png")) == b"./-a.png" and _as_typed(Path("a.png")) == b"a.png"


@pytest.fixture
def terminal(monkeypatch):
    """A console on a terminal of 80 columns, and a function that gives what it got."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    master, slave = pty.openpty()

    def seen(wait: float = 5) -> str:
        ready, _, _ = select.select([master], [], [], wait)
        return os.read(master, 1 << 16).decode(errors="replace") if ready else ""

    with os.fdopen(slave, "w") as stream:
        yield Console(stream), seen
    os.close(master)


def test_time_left_on_every_bar(terminal, monkeypatch) -> None:
    console, seen = terminal
    now = iter([0.0, 2.0, 4.0])
    monkeypatch.setattr(consoles, "time", types.SimpleNamespace(monotonic=lambda: next(now)))
    console.progress("fetching", 0, 100, "MB")
    seen()
    console.progress("fetching", 20, 100, "MB")
    assert seen().endswith("20/100 MB, 8 s left")
    console.progress("drawing", 1, 4, "2 s/step", 3700)
    assert seen().endswith("1/4 2 s/step, 62 min left")


def test_lines_break_between_words(terminal) -> None:
    console, seen = terminal
    console.note("word " * 40)
    lines = seen().replace("\r", "").splitlines()
    assert len(lines) > 2 and all(len(line) < 95 and line.endswith("word") for line in lines)


def test_the_end_of_the_context_is_not_blamed_on_an_option() -> None:
    full = Completion(0, 0, "a", "length", prompt_tokens=19, completion_tokens=493)
    assert why_cut(full, 512) == "cut off after 493 tokens (the context of 512 tokens is full)"
    assert why_cut(full, 1024) == "cut off after 493 tokens (see --max-tokens)"
    empty = Completion(0, 0, "", "length", prompt_tokens=511, completion_tokens=1)
    assert "within 1 token (the context of 512" in (why_empty(empty, 512) or "")
    thought = dataclasses.replace(empty, unanswered=True)
    assert (why_empty(thought, 512) or "").endswith("1 token (the context of 512 tokens is full; see --think)")
    assert (why_empty(thought, 1024) or "").endswith("1 token (see --max-tokens, --think)")


def test_json_has_the_prompt() -> None:
    record = JsonOutput("m", {}, echo=False).record(Completion(0, 1, "b", "stop", 1, 1), "a")
    assert record["prompt"] == "a" and record["text"] == "b"


def test_numbers_of_things() -> None:
    assert [counted(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert str(GenerationStats(prompt_tokens=1, first_tokens=1)).count("1 token,") == 2


def test_what_is_no_model_is_an_error(tmp_path, capsys) -> None:
    (tmp_path / "notes.txt").write_text("a")
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(60))
    for path in (tmp_path, tmp_path / "a.gguf"):
        assert main(["models", "show", str(path)]) == 1
        shown = capsys.readouterr()
        assert "notes.txt" not in shown.out and shown.err.startswith("error: ")
    assert main(["models", "check", str(tmp_path / "notes.txt")]) == 1
    assert "is broken or no safetensors file: a header of" in capsys.readouterr().out
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert main(["models", "check", str(tmp_path / "model_index.json")]) == 1
    assert f"holds no weights: name the model's folder, {tmp_path}\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["m.bin", "m.ckpt", "m", "m.safetensors"])
def test_a_gguf_file_is_known_by_its_first_bytes(name, tmp_path, capsys) -> None:
    """Whatever its ending; a .safetensors file says what it is."""
    (tmp_path / name).write_bytes(b"GGUF" + bytes(60))
    assert main(["text", "-m", str(tmp_path / name), "a"]) == 1
    told = "is a GGUF file" if name == "m.safetensors" else "is broken or no GGUF file: version 0"
    assert f"{name} {told}" in capsys.readouterr().err


@pytest.mark.slow
def test_prompts_on_lines_name_files(tmp_path, monkeypatch, capfd) -> None:
    """A name of {prompt} alone; a blank line; the same prompt twice; {seed} in a folder; an animated WebP."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"apple\n\nbanana\napple\n")))
    line = "image --lines -s 4 --steps 2 --size 64x64 -o {prompt}.png --gif {prompt}.webp --save-steps s-{seed}"
    assert main(line.split()) == 1
    said = capfd.readouterr().err
    assert "error: line 4: apple.png holds the image of line 1" in said and "note: skipped 1 blank line\n" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "apple.png", "apple.webp", "banana.png", "banana.webp", "s-4", "s-6",
    ]  # fmt: skip
    assert (tmp_path / "s-4" / "4-0002.png").is_file()
    with Image.open("apple.webp") as animation:
        assert animation.format == "WEBP" and animation.n_frames > 1


def test_completion_is_installed_for_the_shell_that_is_named(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert says(capsys, "--install-completion", "foo").startswith("error: no completion for 'foo'\nhint: shells: bash")
    assert not list(tmp_path.iterdir())
    completion.install("zsh")
    assert "zstyle" not in (tmp_path / ".zshrc").read_text() and (tmp_path / ".zfunc" / "_gencli").is_file()
    assert main(["--install-completion", "bash"]) == 0
    once = (tmp_path / ".bashrc").read_text()
    assert main(["--install-completion", "bash"]) == 0 and (tmp_path / ".bashrc").read_text() == once
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    assert completion.named(["--show-completion"]) == ["--show-completion", "fish"]
    assert "Register-ArgumentCompleter" in completion.show("powershell")


def test_completion_offers_what_fits(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    put(tmp_path, "org/name", "a" * 40, tiny(), "main")
    text, image = (dict(completing(task)("")) for task in ("text", "image"))
    assert "stories" in text and "qwen3:4b" in text and "emoji" not in text and "sdxl" not in text
    assert "emoji" in image and "sdxl" in image and "stories" not in image and "org/name" in image
    assert completing("cached")("") == [("org/name", "")] and all(text.values())
    monkeypatch.setenv("COMP_WORDS", "gencli\nimage\n--sampler\n=\ndd")
    monkeypatch.setenv("COMP_CWORD", "4")
    tab.join_values()
    assert (os.environ["COMP_WORDS"], os.environ["COMP_CWORD"]) == ("gencli\nimage\n--sampler\ndd", "3")


def test_help_on_a_narrow_terminal(monkeypatch, capfd) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["text", "--help"]) == 0
    page = capfd.readouterr().out.split("Examples:")[0].splitlines()
    assert max(map(len, page)) <= 40
    assert sum(line.startswith(" " * 30) for line in page) == 0
    monkeypatch.delenv("COLUMNS")
    sizes = iter([0, 60])  # stdout is a pipe, stderr a terminal
    monkeypatch.setattr("os.get_terminal_size", lambda fd: os.terminal_size((next(sizes, 80), 9)))
    assert help._width() == 58, "of the terminal that stderr is, as in `gencli --help | less`"


def test_alone_it_shows_what_to_try(capsys) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out.count("\n  gencli ") == 3
    for group in ("models", "train", "config"):
        assert main([group]) == 0
        assert f"Usage: gencli {group}" in capsys.readouterr().out
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    assert "gencli image" in page.split("Examples:")[1] and "gencli chat" in page.split("Examples:")[1]


def test_a_file_after_an_at_sign_is_told(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my notes.txt").write_text("a")
    notes: list[str] = []
    note_file(["@my notes.txt", "@nobody", "my notes.txt"], notes.append)
    assert notes == ["@my notes.txt is taken as text; `- < 'my notes.txt'` reads the file"]


def test_models_of_another_kind_go_by_their_names(capsys) -> None:
    said = says(capsys, "image", "a", "-m", "stories", "-o", "a.png")
    assert said == (
        "error: stories is a text model (gpt2), not an image model\n"
        "hint: `gencli text -m stories` continues texts with it\n"
    )
    assert says(capsys, "text", "a", "-m", "emoji") == (
        "error: emoji is an image model (StableDiffusionPipeline), not a text model\n"
        "hint: `gencli image -m emoji` draws with it\n"
    )


@pytest.mark.parametrize(
    ("config", "what", "runs"),
    [
        ({"model_type": "clip"}, "a CLIP model (clip)", "`gencli score -m ./it`"),
        ({"model_type": "t5"}, "a text encoder (t5)", "a model for images reads its prompts with it"),
        ({"model_type": "clip_text_model"}, "a text encoder (clip_text_model)", "a model for images reads"),
        ({"_class_name": "AutoencoderKL"}, "an autoencoder (AutoencoderKL)", "`gencli image --vae ./it`"),
        ({"_class_name": "VQModel"}, "an autoencoder (VQModel)", "`gencli codes -m ./it`"),
        ({"_class_name": "ControlNetModel"}, "a ControlNet (ControlNetModel)", "`gencli image --control ./it`"),
        ({"_class_name": "UNet2DConditionModel"}, "one part of a model (UNet2DConditionModel)", ""),
    ],
)
def test_parts_of_models_name_the_command_that_takes_them(tmp_path, monkeypatch, capsys, config, what, runs) -> None:
    """Neither text nor image sends a user to the other."""
    monkeypatch.chdir(tmp_path)
    Path("it").mkdir()
    Path("it/config.json").write_text(json.dumps(config))
    for command in ("text", "image"):
        said = says(capsys, command, "a", "-m", "./it")
        assert f"error: ./it is {what}, not a" in said and runs in said
        assert "gencli text" not in said and "gencli image -m" not in said


def test_an_unknown_architecture_gets_a_way_on(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("it").mkdir()
    Path("it/config.json").write_text('{"model_type": "mamba"}')
    said = says(capsys, "text", "a", "-m", "./it")
    [known] = re.findall(r"unknown architecture 'mamba'\nhint: gencli knows (.*)\n", said)
    names = known.split(", ")
    assert names == sorted(names) and {"gemma2", "gpt2", "llama"} <= {*names}
    assert not {"biggan-deep", "clip", "t5", "dall_e"} & {*names}
    said = says(capsys, "image", "a", "-m", "./it")
    assert "./it is not an image model: unknown architecture 'mamba'" in said and "--task image" in said
    assert "hint: `gencli models available`" in says(capsys, "models", "show", "./it")


def test_limits_are_told_alike() -> None:
    for value in (0, 2, -1):
        with pytest.raises(UsageError, match="must be more than 0 and at most 1"):
            ImageRequest(init="a", strength=value)


def test_a_run_that_is_refused_leaves_no_folder(tmp_path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    old.mkdir()
    for out in (new, old):
        with pytest.raises(GencliError), state.only_run(out):
            raise GencliError("refused")
    assert not new.exists() and old.exists()


def test_a_rate_that_is_never_reached_is_told(capsys) -> None:
    console = Console()
    step = Progress("text", 1, 20, 1.0, 0.1, 9, 1.0, 9.0, 1.0, None)
    follow(console, TextRecipe(data="a", out="b", steps=20), (one for one in [step, step]), "tokens", "score")
    told = capsys.readouterr().err
    assert told.count("note: the learning rate falls before it has reached 0.002: of 20 steps") == 1
    follow(console, TextRecipe(data="a", out="b", steps=2000), (one for one in [step]), "tokens", "score")
    follow(console, TextRecipe(data="a", out="b", steps=20), (one for one in ()), "tokens", "score")
    assert "note" not in capsys.readouterr().err, "enough steps; none that are left"


def test_a_run_that_is_stopped_before_it_begins_says_so(capsys) -> None:
    def stopped():
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        follow(Console(), TextRecipe(data="a", out="b", steps=20), stopped(), "tokens", "score")
    assert capsys.readouterr().err == "note: stopped before a step was taken; the same command goes on\n"


def test_training_speaks_in_words_on_a_terminal() -> None:
    line = {"step": 50, "loss": 0.7, "tokens_per_second": 9.0, "bits_per_byte": {"all": 1.5}, "made": "run/checkpoint"}
    assert " ".join("  ".join(as_words(line)).split()) == (
        "step 50 loss 0.7 tokens/s 9.0 bits per byte all 1.5 made run/checkpoint"
    )


def test_threads_do_not_spin_unless_asked(monkeypatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    assert main(["--version"]) == 0 and os.environ["GOMP_SPINCOUNT"] == "1000"
    assert os.environ["KMP_BLOCKTIME"] == "1"
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    assert main(["--version"]) == 0 and os.environ["GOMP_SPINCOUNT"] == "5"


def test_who_cannot_converse_says_so_first(capsys) -> None:
    assert main(["text", "--chat", "Hi", "-n", "1"]) == 0
    assert capsys.readouterr().err.splitlines()[0] == (
        "note: stories only continues texts: it has no chat template and cannot converse. For one that can: "
        "`gencli models pull smollm2` (724.0 MB), then `gencli chat -m smollm2`"
    )


def test_wildcards(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wildcards").mkdir()
    (tmp_path / "wildcards" / "colors.txt").write_text("red\n\n# none\nblue  # cold\n{dark |}green\n")
    (tmp_path / "loop.txt").write_text("a __loop__\n")
    made = {expand("{0::no|a|a big} __colors__ {apple|{red |}car}", seed) for seed in range(200)}
    assert made == {
        f"{a} {color} {thing}"
        for a in ("a", "a big")
        for color in ("red", "blue", "green", "dark green")
        for thing in ("apple", "car", "red car")
    }
    assert expand("__colors__", 3) == expand("__colors__", 3)
    heavy = [expand("{9::a|b}", seed) for seed in range(300)]
    assert 230 < heavy.count("a") < 300 and expand("a {} b", 0) == "a b"
    for prompt, says in (("__loop__", "do not come to an end"), ("__none__", "no file for the wildcard __none__")):
        with pytest.raises(GencliError, match=says):
            expand(prompt, 0)


@pytest.mark.slow
def test_images_of_wildcards_have_prompts_and_seeds_of_their_own(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["image", "{red|green} apple", "--wildcards", "--count", "3", "-s", "4", "--steps", "1", "--size", "64x64"]
    assert main([*line, "-o", "{seed}.png"]) == 0
    said = capfd.readouterr()
    assert said.out.split() == ["4.png", "5.png", "6.png"] and "has not learned" not in said.err
    for seed in (4, 5, 6):
        assert main(["image", "--info", f"{seed}.png", "--json"]) == 0
        row = json.loads(capfd.readouterr().out)
        assert (row["prompt"], row["seed"]) == (expand("{red|green} apple", seed), seed)
    for words in (["--info", "4.png"], ["info", "4.png"]):
        assert main(["image", *words]) == 0
        assert "\nsteps             1\n" in capfd.readouterr().out
    assert main(["image", "--info", "4.png", "--info", "5.png", "6.png"]) == 0
    assert re.findall(r"^file +(.*)$", capfd.readouterr().out, re.MULTILINE) == ["4.png", "5.png", "6.png"]
    Image.new("RGB", (8, 8)).save("none.png")
    assert "none.png: it has no generation settings" in says(capfd, "image", "--info", "none.png")
    assert "--best cannot be combined" in says(capfd, *line, "--best", "1", "--clip", "stories", "-o", "a.png")


@pytest.mark.slow
def test_a_wildcard_without_its_file_is_told_once(tmp_path, monkeypatch, capfd) -> None:
    """Of one prompt before a model is opened, of lines for all of their images."""
    monkeypatch.chdir(tmp_path)
    line = ["image", "--wildcards", "--count", "3", "--steps", "1", "--size", "64x64", "-o", "{index}.png"]
    wrong = "error: no file for the wildcard __none__\nhint: it is a line of none.txt or wildcards/none.txt\n"
    assert says(capfd, *line, "a __none__", "-m", "emoji") == wrong
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"__none__ a\nb __none__\n")))
    assert says(capfd, *line, "--lines") == f"{wrong}error: 6 of 6 lines failed\n"


@pytest.mark.parametrize(
    "files, hint",
    [
        (["a.safetensors", "b.safetensors"], "a.safetensors, b.safetensors are models in one file each: give the path"),
        (
            ["x-00001-of-00002.safetensors", "x-00002-of-00002.safetensors"],
            "the index of x-00001-of-00002.safetensors and the files after it is not here",
        ),
        (["one/config.json", "two/model_index.json"], "it holds the models one, two: give the path of one"),
        (
            ["unet/config.json", "unet/diffusion_pytorch_model.safetensors"],
            "is it a model in the layout of transformers",
        ),
    ],
)
def test_a_folder_of_models_names_them(tmp_path, capsys, files: list[str], hint: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    for command in ("text", "image"):
        assert f"hint: {hint}" in says(capsys, command, "a", "-m", str(tmp_path))


def test_conversations_are_listed_under_a_heading(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert main(["chat", "--list"]) == 0
    assert capsys.readouterr() == ("", "note: no conversations are kept yet\n")
    kept = {"model": "a model", "messages": [{"role": "user", "content": "Hi,\nyou"}]}
    (tmp_path / "gencli" / "chats" / "20260101-101010.json").write_text(json.dumps(kept))
    assert main(["chat", "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ID               MODEL    MESSAGES  BEGINS",
        "20260101-101010  a model         1  Hi, you",
    ]


def test_the_manual_has_every_option(capsys) -> None:
    assert main(["--man"]) == 0
    page = capsys.readouterr().out
    assert page.startswith('.TH GENCLI 1 "" "gencli ') and ".SH GENCLI TRAIN TEXT\n" in page and page.isascii()
    assert "\\-h, \\-\\-help" in page and "\\-\\-help, \\-h" not in page  # whatever the hash seed
    for name, param in every_option():
        assert param.opts[-1].replace("-", "\\-") in page or param.param_type_name == "argument", (name, param.opts)


@pytest.mark.parametrize("how", ["kitty", "iterm2", "sixel", "blocks"])
def test_images_on_the_terminal(terminal, monkeypatch, how: str) -> None:
    """Read back, as each protocol has it, an image is what it was."""
    console, seen = terminal
    picture = Image.effect_noise((10, 14), 90).convert("RGB").quantize(8).convert("RGB")
    monkeypatch.setenv("GENCLI_GRAPHICS", how)
    monkeypatch.delenv("NO_COLOR", raising=False)
    thread = threading.Thread(target=show.show, args=(console, picture))
    thread.start()  # as a terminal takes little before it is read
    drawn = seen()
    while thread.is_alive():
        thread.join(0.05)
        drawn += seen(wait=0.05)
    if how == "blocks":
        assert drawn.count("▀") > 60
    elif how == "sixel":
        assert drawn.startswith('\x1bPq"1;1;10;14#') and "\x1b\\" in drawn
        small = Image.new("RGB", (10, 14))
        colors, y, x = {}, 0, 0
        for number, r, g, b in re.findall(r"#(\d+);2;(\d+);(\d+);(\d+)", drawn):
            colors[number] = tuple(round(int(c) * 2.55) for c in (r, g, b))
        body = drawn.partition("14")[2].partition("\x1b")[0]
        for token in re.findall(r"#\d+(?:;[\d;]+)?|!\d+[?-~]|[?-~]|\$|-", body):
            if token[0] == "#":
                color = colors[token[1:].partition(";")[0]]
            elif token in "$-":
                x, y = 0, y + 6 * (token == "-")
            else:
                count = int(token[1:-1]) if token[0] == "!" else 1
                rows = [bit for bit in range(6) if (ord(token[-1]) - 63) >> bit & 1]
                for right, down in itertools.product(range(count), rows):
                    small.putpixel((x + right, y + down), color)
                x += count
        difference = np.abs(np.asarray(small, dtype=int) - np.asarray(picture, dtype=int))
        assert difference.max() <= 3, "percent have steps of 2.55"
    else:
        pieces = re.findall(r"_G[^;]*;([^\x1b]*)" if how == "kitty" else r"1337;File=[^:]*:([^\x07]*)", drawn)
        with Image.open(io.BytesIO(b64decode("".join(pieces)))) as back:
            assert back.tobytes() == picture.tobytes()
        assert how != "kitty" or re.findall("m=([01])", drawn) == ["0"]


def test_which_protocol_a_terminal_has(monkeypatch) -> None:
    for name in ("GENCLI_GRAPHICS", "KITTY_WINDOW_ID", "TERM_PROGRAM", "TMUX"):
        monkeypatch.delenv(name, raising=False)
    for term, program, how in (
        ("xterm-kitty", "", "kitty"),
        ("xterm-256color", "iTerm.app", "iterm2"),
        ("xterm-ghostty", "ghostty", "kitty"),
        ("foot", "", "sixel"),
        ("xterm-256color", "", "blocks"),
        ("screen", "iTerm.app", "blocks"),
    ):
        monkeypatch.setenv("TERM", term)
        monkeypatch.setenv("TERM_PROGRAM", program)
        assert show.protocol() == how


@pytest.mark.parametrize(
    ("line", "lacks"),
    [
        ("image a -i gone.png -m org/far", "cannot read gone.png"),
        ("image a -i a.png --mask gone.png -m org/far", "cannot read gone.png"),
        ("image a --mix gone.png -m org/far", "cannot read gone.png"),
        ("image a --control org/far --control-image gone.png", "cannot read gone.png"),
        ("image a --lora gone.safetensors -m org/far", "--lora gone.safetensors: no such file"),
        ("image a --embedding gone.safetensors -m org/far", "--embedding gone.safetensors: no such file"),
        ("upscale gone.png", "cannot read gone.png"),
        ("codes gone.png -m org/far", "cannot read gone.png"),
        ("codes --paint gone.txt -m org/far", "cannot read gone.txt"),
        ("text -m org/far -i gone.png a", "cannot read gone.png"),
        ("text -m org/far --lora gone.safetensors a", "--lora gone.safetensors: no such file"),
        ("chat -m org/far --lora gone.safetensors", "--lora gone.safetensors: no such file"),
        ("bench text -m org/far --lora gone.safetensors", "--lora gone.safetensors: no such file"),
        ("models convert org/far --to f16 -o a.gguf --lora gone.safetensors", "--lora gone.safetensors: no such"),
    ],
)
def test_what_lies_here_is_looked_for_before_a_model_is_fetched(tmp_path, monkeypatch, capfd, line, lacks) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Image.new("RGB", (64, 64)).save("a.png")
    told = says(capfd, *line.split())
    assert lacks in told and "org/far" not in told and "Hugging Face" not in told


@pytest.mark.slow
def test_a_sweep_is_every_combination(tmp_path, monkeypatch, capfd) -> None:
    """Each image is the one that its settings make alone; the sheet has a label above each, a row per first value."""
    monkeypatch.chdir(tmp_path)
    line = ["image", "red apple", "--steps", "1", "--size", "64x64", "--sweep", "cfg-scale=1,3", "--sweep", "seed=4..6"]
    assert main([*line, "-o", "{index}.png"]) == 0
    assert main([*line, "--grid", "-o", "sheet.png"]) == 0
    assert "note: the sheet has no generation settings" in capfd.readouterr().err
    assert main(["image", "--info", "5.png", "--json"]) == 0
    row = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert (row["guidance"], row["seed"]) == (3.0, 6)
    alone = ["image", "red apple", "--steps", "1", "--size", "64x64", "--cfg-scale", "3", "-s", "6", "-o", "alone.png"]
    assert main(alone) == 0
    with Image.open("5.png") as five, Image.open("alone.png") as other, Image.open("sheet.png") as sheet:
        assert five.tobytes() == other.tobytes()
        assert sheet.size == (3 * 64, 2 * (64 + 20)) and "gencli" not in sheet.info
        assert sheet.crop((128, 104, 192, 168)).tobytes() == five.tobytes()
        assert min(sheet.crop((0, 0, 64, 20)).convert("L").tobytes()) < 80, "the label"
    for words, says_ in (
        (["--sweep", "stps=1"], "did you mean steps?"),
        (["--sweep", "steps=a"], "'a' is not an integer"),
        (["--sweep", "steps=0"], "--steps 0: must be from 1"),
        (["--sweep", "steps"], "expected KEY=A,B,C"),
        (["--sweep", "seed=1..5000"], "more than 1000 values"),
        (["--sweep", "seed=1..100", "--sweep", "steps=1..100"], "more than 1000 combinations"),
        (["--sweep", "guidance=1..3"], "list them, as in guidance=1,3"),
        (["--sweep", "steps=1-3"], "did you mean steps=1..3?"),
        (["--sweep", "prompt=a,b"], "a prompt is no setting\nhint: --lines draws"),
        (["--sweep", "size=64x64"], "size is the same for all images of a sweep\nhint: settings: negative, steps"),
        (["--sweep", "steps=1,2", "-o", "{seed}.png"], "may have the same seed"),
        (["--sweep", "steps=1,2", "--lines"], "cannot be combined"),
    ):
        assert says_ in says(capfd, "image", *([] if "--lines" in words else ["a"]), *words)


@pytest.mark.slow
def test_what_changes_nothing_and_a_mask_that_is_stretched_are_noted(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("init.png")
    line = ["image", "red apple", "--steps", "2", "--size", "64x64", "-s", "4", "-o", "a.png", "-i", "init.png"]
    for size, stretched in (((32, 32), False), ((64, 32), True)):
        Image.new("L", size, 255).save("mask.png")
        assert main([*line, "--mask", "mask.png"]) == 0
        said = capfd.readouterr().err
        assert ("another shape than the image, 64x32 and not 64x64: it is stretched" in said) == stretched
    assert main([*line, "--guidance-rescale", "0.7", "--cfg-scale", "1"]) == 0
    assert "--guidance-rescale has no effect at --cfg-scale 1" in capfd.readouterr().err


def test_a_secret_is_not_shown(monkeypatch, capsys) -> None:
    monkeypatch.setenv("GENCLI_SERVE_KEY", "hush-hush")
    monkeypatch.setenv("COLUMNS", "200")
    for words in (["serve", "--help"], ["config", "show"]):
        assert main(words) == 0
        said = capsys.readouterr().out
        assert "hush" not in said and "GENCLI_SERVE_KEY" in said
