"""The quick answer to a TAB is the parser's own, to the byte; none is given from a file that cannot be trusted."""

from __future__ import annotations

import functools
import json
import os
import re
import zlib
from pathlib import Path

import pytest
import typer

from gencli.checkpoints.find import known_names
from gencli.cli import tab
from gencli.cli.app import app
from gencli.cli.completion import answer
from tests.tiny.hub_cache import put, tiny

# command | what is typed behind it
QUESTIONS = """
|te|-|--v|-V|--help |nonsense |mod
text|te|--te|--|-|-m |-m st|--model=|--model=st|a |a -|--temperature 1 --te|--temperature |--color |--color a|--color=n
text|--device=c|--dtype |--dtype=bf|--quantize q|--truncate |--draft st|--lora a --lo|--stop x --st|-q --qu|-qm |-qm
text|-n5 --max|-n 5 --max|--no|--lines --l|--schema my|-s 3 -|--profile |-m stories --m|-k|-- |-- -|--foo |--foo --te
text|-m=stories -|--stats --stats --st|--json=1 -|--help -|-h --h|--system x --sys|--resume |--on |--workers 2 --w|-n -
chat||-|--|-m |-m qw|--temp|--co|-c -|--temperature=|--system 'a b|--system "a b" -
image||--sampler |--sampler d|--sampler=dpmpp_2m_|--spacing l|--|-|-m e|--vae |--refiner |--upscaler |--control=
image|--sampler DPM|--sampler=Eul|--sampler dpm++_2m
image|--weighted --w|--no-|--karras --ka|--size 64x64 -|red --st|--steps 3 --st|--steps=3 --st|--from |--sampler-option
image|'red ap|"red apple" --se|red\\ apple --se|-n -|-n x -|--negative |--stage |--lora x:0.5 --lo|-W 3 -H 4 -
upscale||-|-m |a.png -
serve|-|-m st|-m a -m |--keep |--li|--model=
score||-|-m |--truncate |-t a -
codes|-|-m |--paint -
bench||t|-
bench text|-|-m |-m=|--quantize q|-p 3 -p 4 -|--batch 1 --b
bench image|-m |-
models||l|-|nonsense |pu
models list|-|-a -
models pull||sm|sd|a -|--update --up|a |a b -
models show||st|stories |stories -
models rm||o|-
models use||st|stories -
models available|-|--task |--task t|--task=
models convert||-|a |a b -
config||s|-
config show|-
config set|image.sa|device |a |a b |-|--profile |image.sampler |image.sampler d|image.sampler DPM|image.karras f
config set|text.model |image.steps |nonsense.x |model st
config unset||im|-
train||-
train text||-|--init |--init st|--lo|a b --lr |--device
train image|-|--init |--dtype |a -
"""
ROWS = [row.split("|") for row in QUESTIONS.strip().split("\n")]
LINES = [(command, f"{command} {one}".lstrip()) for command, *typed in ROWS for one in typed]
WORD = r"""(?:\\.|'[^']*'?|"[^"]*"?|[^\s=])+|="""  # as bash has them
NO_TABLE = (
    "config set ",
    "config unset ",
    "--help ",
    "nonsense",
    "models nonsense",
    "-- ",
    "--foo",
    "--json=1",
)  # what the parser alone answers


@pytest.fixture(scope="module")
def root():
    """The command, whose inner ones are built once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        yield typer.main.get_command(app)


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys, root):
    """`ask(shell, line, how)`: the exit code and what is printed."""
    monkeypatch.setenv("GENCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    put(tmp_path, "org/name", "a" * 40, tiny(), "main")
    put(tmp_path, "org/other", "b" * 40, tiny(), "main")
    typer.completion.completion_init()

    def ask(shell: str, line: str, how) -> tuple[object, str]:
        words = f"gencli {line}"
        asked = {"_GENCLI_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        if shell == "bash":
            cut = [*re.findall(WORD, words), *([""] if words.endswith(" ") else [])]
            asked |= {"COMP_WORDS": "\n".join(cut), "COMP_CWORD": str(len(cut) - 1), "_TYPER_COMPLETE_ARGS": ""}
        else:
            asked |= {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_WORD_TO_COMPLETE": words.rpartition(" ")[2]}
        with monkeypatch.context() as patch:
            for name, value in asked.items():
                patch.setenv(name, value)
            try:
                code: object = how()
            except BaseException as ended:
                code = getattr(ended, "code", repr(ended))
        return code, capsys.readouterr().out

    return ask


@pytest.mark.slow
@pytest.mark.parametrize("shell", tab.SHELLS[:4])
def test_it_is_the_parsers(ask, root, shell: str):
    remembered, wrong = set(), []
    for command, line in LINES[tab.SHELLS.index(shell) % 2 :: 2]:
        code, printed = ask(shell, line, lambda: answer(lambda: root.main([], prog_name="gencli")))
        if command not in remembered:
            remembered.add(command)
            ask(shell, line, lambda: tab.remember(root))
        found = ask(shell, line, tab.quick)
        if found != (code or 0, printed) and not (found[0] is None and any(what in f"{line} " for what in NO_TABLE)):
            wrong.append((line, found))
    assert not wrong


@pytest.mark.parametrize(
    "line, words",
    [
        ("image --sampler DPM++_2", ["DPM++_2M", "DPM++_2M_SDE", "DPM++_2S_a"]),  # as the web UI calls them
        ("image --sampler=euler", ["euler", "euler_a"]),
        ("config set image.samp", ["image.sampler", "image.sampler-option"]),
        ("config set image.sampler Eul", ["Euler", "Euler_a"]),
        ("config set dtype bf", ["bfloat16"]),
        ("config set image.karras ", ["true", "false"]),
        ("config set nonsense.x ", []),
        ("config unset ", ["device", "image.steps"]),
        ("config unset --profile draft ", ["text.top-k"]),
    ],
)
def test_what_is_offered(ask, root, tmp_path, monkeypatch, line: str, words: list[str]):
    file = tmp_path / "config.toml"
    file.write_text('device = "cpu"\n[image]\nsteps = 3\n[profile.draft.text]\ntop-k = 4\n')
    monkeypatch.setenv("GENCLI_CONFIG", str(file))
    _, printed = ask("bash", line, lambda: answer(lambda: root.main([], prog_name="gencli")))
    assert printed.split() == words


@pytest.mark.parametrize("line, code", [("te", 0), ("text --schema ", 1), ("chat ", 1)])
def test_fish_asks_whether_there_is_an_answer(ask, root, monkeypatch, line: str, code: int):
    def quick() -> int | None:
        monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "is-args")
        return tab.quick()

    ask("fish", line, lambda: tab.remember(root))
    assert ask("fish", line, quick) == (code, "")


def test_what_cannot_be_trusted_is_not(ask, root, tmp_path, monkeypatch):
    def known() -> bool:
        return ask("zsh", "te", tab.quick)[0] == 0

    assert not known()
    ask("zsh", "te", lambda: tab.remember(root))
    file = tmp_path / "cache" / "completion" / "gencli.json"
    assert known() and file.stat().st_mode & 0o077 == 0
    whole = file.read_bytes()
    for data in (b"", whole[:-1], whole.replace(b"Continue", b"continue"), b"x" + whole, whole.partition(b"\n")[2]):
        file.write_bytes(data)
        assert not known()
    file.write_bytes(whole)
    assert known()
    file.chmod(0o620)
    assert not known()
    file.chmod(0o600)
    if os.getuid() == 0:
        os.chown(file, 12345, -1)
        assert not known()
        os.chown(file, 0, -1)
    made = json.loads(whole.partition(b"\n")[2])
    for change in ({"of": ["0", tab.PACKAGE, "x"]}, {"files": {**made["files"], __file__: [1, 2]}}, {"command": []}):
        body = json.dumps({**made, **change}).encode()
        file.write_bytes(b"%08x\n" % zlib.crc32(body) + body)
        assert not known()
    file.write_bytes(whole)
    with monkeypatch.context() as patch:
        patch.setattr(tab, "__version__", "another")
        assert not known()
    assert known()


def test_nothing_is_kept_where_nothing_can_be_written(ask, root, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("GENCLI_CACHE", str(tmp_path / "file"))
    assert ask("zsh", "te", lambda: tab.remember(root)) == (None, "")
    assert ask("zsh", "te", tab.quick) == (None, "")


def test_a_module_that_changes_makes_it_anew(ask, root):
    ask("zsh", "image --", lambda: tab.remember(root))
    files = tab._files()
    samplers = Path(tab.PACKAGE) / "image" / "diffusion" / "samplers"
    assert {str(samplers), str(samplers / "__init__.py"), str(Path(tab.PACKAGE) / "options.py")} <= files.keys()


@pytest.mark.parametrize("typed", ["qwen3 :", "qwen3 : 4", "qwen3 : 4b", "org/name :", "qwen3"])
def test_bash_cuts_a_name_at_its_colon(ask, root, typed: str):
    """It has what stands behind the colon completed, and puts that in its place."""

    def question(how):
        words = ["gencli", "text", "-m", *typed.split()]
        os.environ |= {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
        return how()

    name = typed.replace(" ", "")
    names = [one for one, _ in known_names("text") if one.startswith(name)]
    expected = "\n".join(one[name.rfind(":") + 1 :] for one in names) + "\n"

    def by_parser():
        try:
            answer(lambda: root.main([], prog_name="gencli"))
        finally:
            tab.remember(root)

    assert ask("bash", "", lambda: question(by_parser))[1] == expected
    assert ask("bash", "", lambda: question(tab.quick)) == (0, expected)
