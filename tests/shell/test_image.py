"""`gencli image` as a process: pictures in pipes and files, from small random checkpoints."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

from tests.shell.process import LIMIT, environment, gencli, on_terminal, pixels, shell, start, without_torch
from tests.tiny.image import make_ddpm, make_stable_diffusion

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("folder")]

QUICK = ("--steps", 2, "--size", "64x64", "--seed", 5)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("image")


@pytest.fixture(scope="module")
def sd(root):
    make_stable_diffusion(root / "sd")
    return root / "sd"


@pytest.fixture(scope="module")
def ddpm(root):
    make_ddpm(root / "ddpm")
    return root / "ddpm"


@pytest.fixture(scope="module")
def apple(sd):
    """The picture that other tests compare with, and what was said while it was made."""
    done = gencli("image", "-m", sd, "red", "apple", *QUICK)
    assert done.returncode == 0, done.stderr
    return done


def written(file):
    with Image.open(file) as opened:
        return json.loads(opened.text["gencli"])


def test_a_pipe_gets_the_picture_alone(apple):
    assert apple.stderr == b""
    assert apple.stdout.startswith(b"\x89PNG\r\n\x1a\n") and apple.stdout.endswith(b"IEND\xaeB`\x82")
    assert pixels(apple.stdout).shape == (64, 64, 3) and pixels(apple.stdout).std() > 10
    with Image.open(io.BytesIO(apple.stdout)) as opened:
        assert opened.format == "PNG"
        assert opened.text["parameters"].split("\n")[0] == "red apple"
        assert json.loads(opened.text["gencli"])["seed"] == 5


def test_the_same_seed_gives_the_same_bytes_and_a_path_on_stdout(sd, apple, folder):
    (folder / "a.png").write_bytes(b"old")
    done = gencli("image", "-m", sd, "-", *QUICK, "-o", "a.png", stdin=b"red apple\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a.png\n", b"")
    assert (folder / "a.png").read_bytes() == apple.stdout
    assert os.listdir(folder) == ["a.png"]


WRONG = [
    (("a", "--count", 2), "stdout can hold one image only"),
    (("--lines",), "stdout can hold one image only"),
    (("a", "--count", 2, "-o", "a.png"), "several images would overwrite one file"),
    (("a", "--json", "-o", "-"), "--json"),
    (("a", "--steps", 0), "--steps 0"),
    (("a", "--threads", 5000), "must be from 1 to 4096"),
    (("a", "--size", "64"), "--size 64"),
    (("a", "--sampler", "plms"), "no such sampler"),
    (("a", "--lines"), "cannot be combined with PROMPT"),
    (("-", "-i", "-"), "-i -"),
    (("-", "--from", "-"), "--from - reads the image from stdin"),
    (("--from", "-", "-i", "-"), "--from - and -i - cannot both read stdin"),
    (("a", "--from", "none.png", "--eta", 2), "--eta 2:"),
    (("a", "-i", "b.png", "--mask", "-"), "--mask -"),
]


def test_wrong_usage_is_told_before_anything_is_opened():
    codes, errors = without_torch([["image", "-m", "./none", *map(str, args)] for args, _ in WRONG])
    assert codes == [2] * len(WRONG)
    for error, (_, message) in zip(errors, WRONG, strict=True):
        assert message in error


UNFITTING = [
    (("--sampler", "euler", "--eta", 1), "sampler euler has no option eta"),
    (("--sampler-option", "foo=1"), "no option foo"),
    (("--sampler-option", "use_clipped_model_output=2"), "expected true or false"),
    (("--sampler", "ddpm", "--sampler-option", "variance_type=wide"), "expected one of fixed_small"),
    (("--width", 100), "--width 100: must be a multiple of 8"),
    (("--steps", 1001), "1001 steps: this model can take 1 to 1000"),
    (("--sampler", "lcm", "--steps", 51), "can take 1 to 50"),
    (("-i", "a.png", "--strength", 0.1, "--steps", 5), "leaves no step"),
    (("--image-cfg-scale", 2), "--image-cfg-scale is for models that edit"),
    (("--temperature", 1), "denoises: --temperature would have no effect"),
    (("--count", 2, "--grid", "--gif", "a.gif"), "--gif a.gif: several images would overwrite one file"),
]


def test_what_does_not_fit_the_checkpoint_is_told_without_torch(sd, folder):
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    codes, errors = without_torch(
        [["image", "-m", str(sd), "a", "-o", "b.png", *map(str, args)] for args, _ in UNFITTING]
    )
    assert codes == [2] * len(UNFITTING)
    for error, (_, message) in zip(errors, UNFITTING, strict=True):
        assert error.startswith("error: ") and message in error.splitlines()[0]


def test_help_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; from gencli.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "image", "--help"]
    done = subprocess.run(command, capture_output=True, env=environment(), timeout=LIMIT)
    assert done.returncode == 0
    for option in ("--steps", "--cfg-scale", "--negative", "--from", "--vae-tiling", "--save-steps", "--mask"):
        assert option in done.stdout.decode()


def test_one_grid_goes_into_stdout(sd, apple):
    done = gencli("image", "-m", sd, "red apple", *QUICK, "--count", 3, "--grid", "--no-metadata")
    assert done.returncode == 0
    sheet = pixels(done.stdout)
    assert sheet.shape == (128, 128, 3)
    np.testing.assert_array_equal(sheet[:64, :64], pixels(apple.stdout))
    with Image.open(io.BytesIO(done.stdout)) as opened:
        assert opened.text == {}


def test_several_files_json_animation_and_steps(sd, apple, folder):
    args = ("--count", 2, "--json", "-o", "{index}-{seed}-{prompt}.png", "--gif", "{seed}.gif", "--save-steps", "s/t")
    done = gencli("image", "-m", sd, "red apple", *QUICK, *args, "--stats")
    assert done.returncode == 0
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["path"] for row in rows] == ["0-5-red-apple.png", "1-6-red-apple.png"]
    assert [(row["index"], row["seed"], row["gif"]) for row in rows] == [(0, 5, "5.gif"), (1, 6, "6.gif")]
    assert rows[0]["prompt"] == "red apple" and rows[0]["steps"] == 2 and rows[0]["model"] == str(sd)
    assert (folder / "0-5-red-apple.png").read_bytes() == apple.stdout
    assert sorted(os.listdir(folder / "s/t")) == ["5-0001.png", "5-0002.png", "6-0001.png", "6-0002.png"]
    with Image.open(folder / "5.gif") as opened:
        assert opened.n_frames >= 2
    stats = done.stderr.decode()
    assert "seed 5" in stats and "4 steps" in stats and "float32" in stats


def test_lines(sd, apple, folder):
    args = ("--lines", "-o", "{index}.png", "--batch", 2)
    done = gencli("image", "-m", sd, *QUICK, *args, stdin=b"red apple\r\nblue dog\n")
    assert (done.returncode, done.stdout) == (0, b"0.png\n1.png\n")
    assert np.abs(pixels(folder / "0.png") - pixels(apple.stdout)).max() <= 1
    assert np.abs(pixels(folder / "1.png") - pixels(apple.stdout)).max() > 8
    assert (written("1.png")["prompt"], written("1.png")["seed"]) == ("blue dog", 6)


def test_a_terminal_gets_progress_and_a_new_file_each_time(sd, apple, folder):
    names = []
    for _ in range(2):
        code, screen, _, _ = on_terminal("image", "-m", sd, "red", "apple", *QUICK)
        assert code == 0
        assert "2/2" in screen.decode()
        names.append(screen.decode().replace("\r", "\n").split("\x1b[K")[-1].strip())
    assert names == ["gencli-5.png", "gencli-5-1.png"]
    assert sorted(os.listdir(folder)) == sorted(names)
    assert (folder / "gencli-5.png").read_bytes() == (folder / "gencli-5-1.png").read_bytes() == apple.stdout


def test_progress_and_preview_go_to_stderr_and_leave_stdout_alone(sd, apple):
    code, screen, out, _ = on_terminal("image", "-m", sd, "red apple", *QUICK, "--preview", stdout=False)
    assert code == 0 and out == apple.stdout
    assert "▀" in screen.decode() and "2/2" in screen.decode()
    code, screen, _, err = on_terminal("image", "-m", sd, "a", *QUICK, "-o", "a.png", "--preview", stderr=False)
    assert code == 0 and screen == b"a.png\r\n"
    assert err == b"note: no preview: stderr is not a colour terminal\n"


def test_from_makes_every_option_again(sd, folder):
    """Two pictures whose requests name nearly every option; `--from` gives their bytes."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)).save("init.png")
    Image.fromarray(np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None], 64, 0)).save("mask.png")
    cases = {
        "a.png": """a --negative blue,dog --steps 3 --cfg-scale 4.5 --guidance-rescale 0.3 --batch 2 --eta 0.5
            --spacing trailing -W 64 -H 72 --count 2 --grid""",
        "b.webp": """--steps 5 -i init.png --mask mask.png --strength 0.7 --size 64x64 --sampler dpmpp_2m --karras
            --vae-tiling --dtype float32 --seed 8""",
    }
    for name, args in cases.items():
        first = gencli("image", "-m", sd, *args.split(), "-o", name)
        assert (first.returncode, first.stderr) == (0, b"")
        again = gencli("image", "--from", name, "--format", name.split(".")[1], stdin=b"not a prompt")
        assert (again.returncode, again.stderr) == (0, b"")
        assert again.stdout == (folder / name).read_bytes()


def test_options_beside_from_override(sd, apple, folder):
    (folder / "a.png").write_bytes(apple.stdout)
    done = gencli("image", "--from", "a.png", "blue dog", "--seed", 9, "-n", "x", "--cfg-scale", 1, "--json")
    row = json.loads(done.stdout)
    assert done.stderr == b"note: the negative prompt has no effect at --cfg-scale 1\n"
    assert row["path"] == "gencli-9.png"
    assert (row["prompt"], row["seed"], row["negative"], row["guidance"]) == ("blue dog", 9, "x", 1.0)
    assert (row["steps"], row["width"], os.path.basename(row["model"])) == (2, 64, "sd")  # any of the same bytes
    assert written("gencli-9.png")["prompt"] == "blue dog"


def test_a_file_fetches_no_model(folder):
    """A stranger's picture may name any model; nothing is downloaded for it."""
    info = PngImagePlugin.PngInfo()
    info.add_text("gencli", json.dumps({"prompt": "a", "model": "someone/some-model"}))
    Image.new("RGB", (4, 4)).save("a.png", pnginfo=info)
    done = gencli("image", "--from", "a.png", "-o", "b.png", HF_HUB_OFFLINE=None)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"a.png was made with the model 'someone/some-model', which is not on this machine" in done.stderr


def test_stdin_is_left_to_the_loop_around(ddpm):
    """An unconditional model: nothing to read, so the loop keeps its lines."""
    script = 'printf "one\\ntwo\\n" | while read -r x; do gencli image -m "$1" --steps 1 --seed 1 -o "$x.png"; done'
    done = shell(script, ddpm)
    assert done.stdout == b"one.png\ntwo.png\n", done.stderr
    assert pixels(done.stdout.split()[0].decode()).shape == (32, 32, 3)


def test_an_open_stdin_is_not_waited_for(sd):
    process = start("image", "-m", sd, *QUICK, "-o", "a.png")
    try:
        assert process.wait(LIMIT) == 0  # while stdin is still open
        assert process.stdout.read() == b"a.png\n"
        assert written("a.png")["prompt"] == ""
    finally:
        process.communicate()


def test_a_picture_from_stdin(sd, apple):
    args = ("--steps", 2, "--seed", 5, "--strength", 0.5, "-i", "-", "-o", "b.png")
    done = gencli("image", "-m", sd, "a", *args, stdin=apple.stdout)
    assert done.returncode == 0
    assert written("b.png")["init"] == "-" and written("b.png")["width"] == 64
    again = gencli("image", "--from", "b.png", "-o", "c.png", stdin=apple.stdout)
    assert again.returncode == 2 and b"name that image with -i" in again.stderr
    empty = gencli("image", "-m", sd, "a", *args, stdin=b"")
    assert empty.returncode == 1 and b"error: stdin is empty" in empty.stderr


def test_settings_of_a_picture_from_stdin(sd, apple):
    told, named = gencli("image", "--info", "-", stdin=apple.stdout), "apple.png"
    Path(named).write_bytes(apple.stdout)
    assert told.returncode == 0 and told.stdout == gencli("image", "--info", named).stdout
    again = gencli("image", "--from", "-", stdin=apple.stdout)
    assert again.stdout == apple.stdout, again.stderr
    broken = gencli("image", "--info", "-", stdin=b"x")
    assert broken.returncode == 1 and b"error: cannot read stdin as an image" in broken.stderr


def begun(*args):
    """A long run whose first step has been made, and its folder of steps."""
    process = start("image", *args, "--save-steps", "steps", stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + LIMIT
    while not os.path.isdir("steps") or not any(name.endswith(".png") for name in os.listdir("steps")):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_run_that_is_stopped_leaves_no_half_file(sd, folder, number, code):
    process = begun("-m", sd, "a", "--steps", 1000, "--size", "64x64", "-o", "a.png")
    process.send_signal(number)
    out, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, out, err) == (code, b"", b"")
    assert os.listdir(folder) == ["steps"]
    for name in os.listdir("steps"):
        if not name.startswith(".gencli-"):  # a temporary file of the step that SIGKILL met
            assert pixels(os.path.join("steps", name)).shape == (64, 64, 3)


def test_what_was_finished_before_ctrl_c_stays(ddpm, folder):
    process = start("image", "-m", ddpm, "--steps", 20, "--count", 1000, "-o", "{index}.png", stdin=subprocess.DEVNULL)
    assert process.stdout.readline() == b"0.png\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, err) == (130, b"")
    said = ["0.png", *out.decode().split()]
    assert set(said) <= set(os.listdir(folder)) <= {*said, f"{len(said)}.png"}
    for name in os.listdir(folder):
        assert pixels(name).shape == (32, 32, 3)


def test_stdout_that_takes_nothing(ddpm, folder):
    full = shell('gencli image -m "$1" --steps 1 > /dev/full', ddpm)
    assert (full.returncode, full.stderr) == (1, b"error: cannot write to stdout: No space left on device\n")
    closed = shell("gencli image -m ./none --steps 1 -o a.png >&-", ddpm)  # told before anything is opened
    assert (closed.returncode, closed.stderr) == (1, b"error: stdout is closed: there is nowhere to write to\n")
    assert os.listdir(folder) == []


def test_a_prompt_that_is_not_utf8(sd):
    done = shell("gencli image -m \"$1\" $'caf\\xe9'", sd)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"error: the prompt is not valid UTF-8: ")


def test_a_reader_that_leaves(ddpm):
    done = shell('gencli image -m "$1" --steps 1 | true; echo "${PIPESTATUS[0]}"', ddpm)
    assert (done.stdout, done.stderr) == (b"141\n", b"")


def test_nan_is_an_error_and_leaves_no_file(ddpm, root, folder):
    broken = root / "broken"
    broken.mkdir()
    for file in ddpm.iterdir():
        with contextlib.suppress(FileExistsError):
            os.link(file, broken / file.name)
    weights = broken / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_out.bias"] = tensors["conv_out.bias"] * float("nan")
    weights.unlink()
    save_file(tensors, weights, {"format": "pt"})
    done = gencli("image", "-m", broken, "--steps", 2, "-o", "a.png")
    assert done.returncode == 1 and done.stdout == b""
    assert re.match(rb"error: .*NaN.*\nhint: ", done.stderr)
    assert os.listdir(folder) == []


def test_errors_of_the_request(sd, ddpm, folder):
    """Each is one line with its exit code, and no file."""
    (folder / "text.png").write_text("no image")
    for args, code, message in [
        (("-m", sd, "apple " * 80), 1, "has 80 tokens, and this model reads at most 75"),
        (("-m", sd, "a", "--negative", "apple " * 80), 1, "the negative prompt has 80 tokens"),
        (("-m", ddpm, "a cat"), 2, "draws without a prompt"),
        (("-m", "./none", "a"), 1, "./none"),
        (("-m", sd, "a", "-i", "text.png"), 1, "cannot read text.png"),
        (("--from", "text.png"), 1, "cannot read text.png"),
        (("-m", sd, "a", "-W", 70), 2, "--width 70"),
    ]:
        done = gencli("image", *args, "-o", "a.png")
        assert (done.returncode, done.stdout) == (code, b""), done.stderr
        assert message in done.stderr.decode() and "Traceback" not in done.stderr.decode()
    assert os.listdir(folder) == ["text.png"]


def test_a_likely_slip_gets_a_note(sd):
    done = gencli("image", "-m", sd, "a", *QUICK, "-n", 4)
    assert done.returncode == 0 and done.stdout.startswith(b"\x89PNG")
    assert done.stderr.startswith(b"note: -n 4 is a negative prompt: '4'; --count 4 ")
    done = gencli("image", "-m", sd, "a", *QUICK, "--batch", 4)
    assert done.returncode == 0 and done.stderr.startswith(b"note: --batch 4 is how many go through the model at once")
