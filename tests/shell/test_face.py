"""What gencli says before any model is opened: help, version, usage errors, completion. None of it imports torch."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys

import pytest

from gencli import __version__
from gencli.__main__ import _exit_code
from gencli.cli.console import Console
from gencli.errors import GencliError, UsageError
from gencli.signals import Terminated
from tests.shell.process import GENCLI, environment, gencli, obey_signals, on_terminal, shell

HEAVY = ["torch", "numpy", "transformers", "diffusers", "huggingface_hub", "tokenizers", "safetensors", "PIL"]
HEAVY += ["pydantic"]  # which newer versions of typer import for what gencli.cli.values does itself

FACES = [
    (["--help"], 0),
    (["-h"], 0),
    (["--version"], 0),
    (["text", "--help"], 0),
    ([], 0),
    (["models"], 0),
    (["config", "show"], 0),
    (["models", "available"], 0),
    (["txt"], 2),
    (["--modl"], 2),
    (["text", "a", "--temperatur", "1"], 2),
    (["text", "a", "--top-k", "many"], 2),
    (["text", "a", "--top-k", "-2"], 2),
    (["text", "a", "--top-p", "1.5"], 2),
    (["text", "a", "--temperature", "nan"], 2),
    (["text", "a", "-n", "0"], 2),
    (["text", "a", "-s", "-2"], 2),
    (["text", "a", "--stop", ""], 2),
    (["text", "a", "--logit-bias", "x=1"], 2),
    (["text", "a", "--device", "tpu"], 2),
    (["text", "a", "--dtype", "fp16"], 2),
    (["text", "a", "--threads", "0"], 2),
    (["text", "a", "--threads", "4097"], 2),
    (["text", "a", "--color", "blue"], 2),
    (["text", "a", "--lines"], 2),
    (["text", "a", "--logprobs", "2"], 2),
    (["text", "a", "--json", "-0"], 2),
    (["text", "-", "-"], 2),
    (["text", "a", "--schema", '{"type": "strng"}'], 2),
    (["text", "a", "--grammar", "no-such-file.lark"], 2),
    (["text", "a", "--schema", "{}", "--grammar", "/a/"], 2),
    (["text", "a", "-m", "no-such-model"], 1),
]


@pytest.mark.slow
def test_nothing_heavy_is_imported():
    """Help, version, usage errors and a missing model, all in one process that counts its modules."""
    script = f"""
import sys
from gencli.__main__ import main
for args, code in {FACES!r}:
    assert main(args) == code, args
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    assert not heavy, (args, heavy)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment(), timeout=60)
    assert done.returncode == 0, done.stderr.decode()


MODULES = """
import atexit, os, sys
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
"""


def imported(script: str, **env: str) -> set[str]:
    """The modules that a process has imported at its end."""
    command = [sys.executable, "-c", MODULES + script]
    done = subprocess.run(command, capture_output=True, env=environment(**env), timeout=60)
    return set(done.stderr.decode().splitlines()[-1].split())


@pytest.mark.slow
def test_help_and_completion_import_little(tmp_path):
    """Beside typer and rich, which take most of the time: a few modules for a page of help and the names of commands,
    those of one command for its options. A second TAB does without typer. A second is lost by what is not counted."""
    run = "from gencli.__main__ import main\nsys.exit(main())"
    base = imported("import typer, rich")
    for line, most in (("--help", 20), ("", 33), ("te", 36), ("text --te", 74), ("image -m ", 98)):
        if line.startswith("--"):
            found = imported(f"sys.argv = ['gencli', {line!r}]\n{run}")
        else:
            asked = {"_GENCLI_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": f"gencli {line}"}
            asked["GENCLI_CACHE"] = str(tmp_path / line)
            found = imported(f"sys.argv = ['gencli']\n{run}", **asked)
            again = imported(f"sys.argv = ['gencli']\n{run}", **asked)
            assert not again & {*HEAVY, "typer", "rich", "click", "gencli.cli.app"}
            assert len(again - imported("pass")) <= (75 if "-m" in line else 35), sorted(again)
        assert "gencli.cli.app" in found and not found & {*HEAVY, "llguidance", "prompt_toolkit", "rich.markdown"}
        assert len(found - base) <= most, (line, sorted(found - base))


def test_version():
    done = gencli("--version", fresh=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"gencli {__version__}\n".encode(), b"")


@pytest.mark.parametrize(
    "args, says",
    [
        (["txt"], "error: no such command: 'txt'\nhint: did you mean `gencli text`?\n"),
        (["text", "a", "--top_k", "3"], "error: no such option: --top_k\nhint: did you mean --top-k?\n"),
        (["text", "a", "--n-predict", "3"], "error: no such option: --n-predict\nhint: did you mean --max-tokens?\n"),
        (["text", "a", "--dtype", "fp16"], "error: --dtype 'fp16': no such precision\nhint: did you mean float16?\n"),
        (["text", "a", "--top-p", "2"], "error: --top-p 2: must be at least 0 and at most 1\n"),
    ],
)
def test_usage_errors_name_the_value_and_a_remedy(args: list[str], says: str):
    done = gencli(*args)
    assert (done.returncode, done.stdout, done.stderr.decode()) == (2, b"", says)


@pytest.mark.parametrize("option", ["--top-k", "--temperature"])
def test_a_number_that_is_none(option: str):
    done = gencli("text", "a", option, "many")
    assert (done.returncode, done.stdout) == (2, b"")
    assert option in done.stderr.decode() and "'many'" in done.stderr.decode()


def test_no_prompt_at_a_terminal_is_a_usage_error():
    code, terminal, _, _ = on_terminal("text")
    assert code == 2
    assert b"no prompt" in terminal


@pytest.mark.parametrize(
    "env, args, coloured",
    [
        ({}, [], True),
        ({"NO_COLOR": "1"}, [], False),
        ({"NO_COLOR": ""}, [], True),  # as no-color.org has it
        ({"TERM": "dumb"}, [], False),
        ({}, ["--color", "never"], False),
        ({"NO_COLOR": "1"}, ["--color", "always"], True),
    ],
)
def test_colours_on_a_terminal(env: dict, args: list, coloured: bool):
    code, terminal, _, _ = on_terminal("text", *args, "--top-k", "-2", "a", **env)
    assert code == 2
    assert (b"\x1b[" in terminal) == coloured
    assert b"error:" in terminal


def test_no_colours_in_a_pipe_unless_asked():
    assert b"\x1b" not in gencli("text", "--top-k", "-2", "a", TERM="xterm").stderr
    assert b"\x1b[1;31merror:" in gencli("text", "--color", "always", "--top-k", "-2", "a").stderr


def test_an_error_cannot_steer_the_terminal():
    code, terminal, _, _ = on_terminal("text", "-m", "\x1b]0;title\x07", "a")
    assert code == 1
    assert b"\x1b]" not in terminal and b"\\x1b]0;title\\x07" in terminal


def test_usage_tells_what_must_be_given():
    assert b"Usage: gencli text [OPTIONS] [PROMPT]..." in gencli("text", "--help").stdout
    assert b"Usage: gencli models show [OPTIONS] NAME\n" in gencli("models", "show", "--help").stdout


def test_help_is_plain_in_a_pipe_and_lists_every_option():
    done = gencli("text", "--help", TERM="xterm")
    page = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    assert page.isascii() and max(map(len, page.splitlines())) <= 80
    names = """--temperature --temp --top-k --top-p --min-p --typical-p --repeat-penalty --presence-penalty
        --frequency-penalty --logit-bias --max-tokens --max-new-tokens --stop --num-samples --echo --logprobs --null
        --lines --json --truncate --model --device --dtype --threads --seed --quiet --stats --offline --color --debug"""
    for name in names.split():
        assert f" {name} " in page or f" {name}," in page or f" {name}\n" in page, name
    for default in ("(default: 0.8)", "(default: 40)", "(default: 0.95)", "(default: 256)", "(default: stories)"):
        assert default in " ".join(page.split())
    assert "Examples:" in page


@pytest.mark.parametrize("args", [["--help"], ["text", "--help"], ["--version"]])
def test_nobody_reads(args: list[str]):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*GENCLI, *args], stdout=writer, stderr=subprocess.PIPE, env=environment(), timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.slow
def test_debug_alone_shows_a_traceback():
    assert b"Traceback" not in gencli("text", "a", "-m", "no-such-model").stderr
    assert b"Traceback" in gencli("text", "a", "-m", "no-such-model", "--debug").stderr
    assert b"Traceback" not in gencli("text", "-m", "no-such-model", "--", "--debug").stderr


@pytest.mark.parametrize("words, index, offers", [("gencli te", 1, "text"), ("gencli text --ec", 2, "--echo")])
def test_shell_completion(words: str, index: int, offers: str):
    done = gencli(_GENCLI_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(index))
    assert offers in done.stdout.decode().split()


@pytest.mark.slow
def test_arguments_are_utf_8():
    """Whatever Python was told: it starts again in UTF-8."""
    env = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "LANG": None, "LC_CTYPE": None}
    done = gencli("text", "Caffè", "--echo", "-n", "1", "-s", "1", fresh=True, **env)
    assert done.returncode == 0 and done.stdout.startswith("Caffè".encode())


@pytest.mark.slow
def test_closed_standard_streams():
    assert shell("gencli text a -m no-such-model <&-", fresh=True).returncode == 1
    assert shell("gencli text <&- -m no-such-model", fresh=True).returncode == 1
    for shown in ("--version", "--help", "text --help"):
        done = shell(f"gencli {shown} >&-", fresh=True)
        assert (done.returncode, done.stderr) == (1, b"error: stdout is closed: there is nowhere to write to\n")
    assert shell("gencli text --top-k -2 2>&-", fresh=True).returncode == 2


def test_gencli_alone_names_a_first_step():
    done = gencli()
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"Three things to try:\n  gencli text") and b"gencli --help" in done.stdout


@pytest.mark.parametrize("group", ["bench", "config", "models", "train"])
def test_a_group_alone_shows_its_help(group: str):
    done, asked = gencli(group), gencli(group, "--help")
    assert (done.returncode, done.stderr, done.stdout) == (0, b"", asked.stdout) and done.stdout.endswith(b"\n")


@pytest.mark.parametrize(
    "error, code, says",
    [
        (KeyboardInterrupt(), 130, ""),
        (Terminated(), 143, ""),
        (BrokenPipeError(), 141, ""),
        (MemoryError(), 1, "error: out of memory\nhint: "),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "error: out of memory: CUDA"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "error: out of memory: "),
        (OSError(28, "No space left on device", "a.png"), 1, "error: cannot read or write a.png: No space left on"),
        (GencliError("no", "try"), 1, "error: no\nhint: try\n"),
        (UsageError("no"), 2, "error: no\n"),
        (ZeroDivisionError("by zero"), 1, "error: ZeroDivisionError: by zero\nhint: this is a defect of gencli"),
    ],
)
def test_exit_codes(error: BaseException, code: int, says: str):
    before = signal.getsignal(signal.SIGINT)
    said = io.StringIO()
    assert _exit_code(error, Console(said)) == code
    signal.signal(signal.SIGINT, before)
    assert said.getvalue().startswith(says) and bool(said.getvalue()) == bool(says)


# torch's own import calls Python where nothing may be raised: it drops what is, makes an ImportError of it, or aborts.
IMPORTING = """
import os, sys

class Importing:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), {number})
                for _ in range(10**5):
                    pass
            except BaseException:
                os.abort()

sys.meta_path.insert(0, Importing())
from gencli.__main__ import main
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "number"),
    [("text", signal.SIGINT), ("text", signal.SIGTERM), ("image", signal.SIGTERM), ("chat", signal.SIGINT)],
)
def test_a_signal_in_an_import_is_raised_after_it(command: str, number: signal.Signals):
    """In each command; either signal has the same handler."""
    words = ["emoji", "apple"] if command == "image" else ["stories"]  # what does not fit is told before the import
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING.format(number=int(number)), command, "-m", *words],
        input=b"Once",
        capture_output=True,
        env=environment(),
        preexec_fn=obey_signals,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, b"", b"")
