"""What an image's output can hold, and where it can go, is told before the work; what fails beside it loses nothing."""

import io
import os

import pytest
from PIL import Image

from tests.shell.process import gencli, shell, start
from tests.tiny.image import make_stable_diffusion

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("folder")]

LONG = ("--steps", 1000, "--size", "1024x1024")  # hours: whoever draws first never comes to an end here
QUICK = ("--steps", 2, "--size", "64x64", "--seed", 5)


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("output") / "sd"
    make_stable_diffusion(folder)
    return folder


TOO_LATE = {
    "a JPEG's texts": (["apple, " * 5000, "--truncate", "right", "-o", "j.jpg"], "too long for a JPEG"),
    "a long name": (["red apple", "-o", "y" * 245 + "-{prompt}.png"], "File name too long"),
    "a folder of the prompt's name": (["red apple", "-o", "{prompt}/x.png"], "no such folder: 'red-apple'"),
    "a folder of the seed's name": (["red apple", "-s", 7, "-o", "{seed}/x.png"], "no such folder: '7'"),
    "one of many": (["a", "--count", 3, "-s", 9, "-o", "{seed}/x.png"], "no such folder: '9'"),
    "WebP's sides": (["a", "--size", "16384x8", "-o", "h.webp"], "at most 16383 pixels"),
    "a grid's pixels": (["a", "--count", 65, "--grid", "-o", "g.png"], "too many pixels"),
    "a grid in WebP": (["a", "--size", "4096x8", "--count", 25, "--grid", "-o", "g.webp"], "at most 16383"),
    "an animation's name": (["a", "--gif", "y" * 270 + ".gif", "-o", "y.png"], "File name too long"),
    "an animation's folder": (["a", "--gif", "none/{seed}.gif", "-o", "y.png"], "no such folder: 'none'"),
    "a folder's name": (["a", "-o", "y.png", "--gif", "d.gif"], "d.gif: it is a folder"),
    "a read-only file": (["a", "-o", "kept.png"], "kept.png: it is read-only"),
}


@pytest.mark.parametrize("what", TOO_LATE)
def test_what_can_be_known_is_told_before_the_work(sd, folder, what):
    arguments, message = TOO_LATE[what]
    (folder / "d.gif").mkdir()
    (folder / "kept.png").write_bytes(b"old")
    (folder / "kept.png").chmod(0o444)
    before = sorted(folder.iterdir())
    done = gencli("image", "-m", sd, *LONG, *arguments)
    error = done.stderr.decode()
    assert done.returncode == 1 and message in error and error.startswith("error: "), error
    assert len(error) < 2000 and done.stdout == b""
    assert sorted(folder.iterdir()) == before and (folder / "kept.png").read_bytes() == b"old"


def test_long_prompts_on_lines_are_told_before_their_images(sd, folder):
    """The others are drawn, with the seeds that their lines have; --strict ends at the first."""
    prompts = ["a", "apple, " * 5000, "b c", "\udcff", "d"]
    stdin = "\n".join(prompts).encode(errors="surrogateescape")
    done = gencli("image", "-m", sd, *QUICK, "--lines", "-o", "{seed}-{prompt}.png", stdin=stdin)
    assert done.returncode == 1
    assert done.stdout.decode().split() == ["5-a.png", "7-b-c.png", "9-d.png"]
    assert b"error: line 2: the prompt has" in done.stderr and b"error: line 4 of stdin is not UTF-8" in done.stderr
    assert b"2 of 5 lines failed" in done.stderr
    alone = gencli("image", "-m", sd, "--steps", 2, "--size", "64x64", "--seed", 9, "d", "-o", "alone.png")
    assert alone.returncode == 0
    assert list(Image.open("alone.png").getdata()) == list(Image.open("9-d.png").getdata())
    done = gencli("image", "-m", sd, *QUICK, "--lines", "--strict", "-o", "{seed}-s.png", stdin=stdin)
    assert done.returncode == 1 and done.stdout.decode().split() == ["5-s.png"]
    assert gencli("image", "a", "--strict").returncode == 2


def test_a_folder_per_prompt_on_lines(sd, folder):
    (folder / "a").mkdir()
    done = gencli("image", "-m", sd, *QUICK, "--lines", "-o", "{prompt}/{seed}.png", stdin=b"a\nb\n")
    assert done.returncode == 1 and done.stdout == b"a/5.png\n"
    assert b"line 2: no such folder: 'b" in done.stderr


def test_a_grid_that_grows_too_large_is_written_as_far_as_it_goes(sd):
    """16 images of 2048x2048 fill the limit; here by their width in a WebP."""
    lines = b"a\n" * 5
    size = ("--steps", 1, "--size", "8184x8", "--seed", 5, "--no-metadata")
    done = gencli("image", "-m", sd, *size, "--lines", "--grid", "-o", "g.webp", stdin=lines)
    assert done.returncode == 1 and done.stdout == b"g.webp\n" and b"line 5: 24552x16" in done.stderr, done.stderr
    assert Image.open("g.webp").size == (16368, 16)


def test_stdout_by_its_other_names(sd):
    script = 'gencli image -m "$1" apple --steps 2 --size 64x64 --seed 5 -o /dev/stdout | cat'
    done = shell(script, sd)
    assert done.stderr == b"" and Image.open(io.BytesIO(done.stdout)).size == (64, 64)
    script = 'gencli image -m "$1" apple --steps 2 --size 64x64 --seed 5 -o >(cat > made.png); wait $!; sleep 0.2'
    done = shell(script, sd, fresh=True)
    assert Image.open("made.png").size == (64, 64)


def test_a_pipe_without_a_reader_is_told(sd, folder):
    os.mkfifo(folder / "pipe")
    process = start("image", "-m", sd, "apple", *QUICK, "-o", "pipe")
    note = process.stderr.readline()
    assert b"pipe is a pipe that nothing reads yet: waiting" in note
    with open(folder / "pipe", "rb") as reader:
        data = reader.read()
    assert process.wait(60) == 0 and Image.open(io.BytesIO(data)).size == (64, 64)
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()


def test_an_animation_that_cannot_be_written_does_not_lose_the_image(sd):
    os.symlink("/dev/full", "full.gif")
    done = gencli("image", "-m", sd, "apple", *QUICK, "-o", "a.png", "--gif", "full.gif")
    assert done.returncode == 1 and done.stdout == b"a.png\n"
    assert b"error: cannot write full.gif: No space left on device" in done.stderr
    assert Image.open("a.png").size == (64, 64)


def test_steps_that_cannot_be_written_do_not_lose_the_image(sd, folder):
    (folder / "steps").mkdir()
    (folder / "steps" / "5-0001.png").mkdir()
    done = gencli("image", "-m", sd, "apple", *QUICK, "-o", "a.png", "--save-steps", "steps")
    assert done.returncode == 1 and b"5-0001.png: it is a folder" in done.stderr
    assert done.stdout.decode().split() == ["a.png", "steps/5-0002.png"]


def test_a_current_folder_that_was_removed():
    done = shell(
        "mkdir gone; cd gone; rmdir ../gone; gencli image a -o /dev/null; echo $?; gencli text --help | head -n 1",
        fresh=True,
    )
    assert b"error: the current folder is not there" in done.stderr
    assert done.stdout.startswith(b"1\nContinue a prompt")


@pytest.mark.parametrize("arguments", ["--help", "image --help", "--version", "models list"])
def test_a_full_disk_has_a_name(arguments):
    done = shell(f"gencli {arguments} > /dev/full")
    assert done.returncode == 1
    assert done.stderr == b"error: cannot write to stdout: No space left on device\n"


def test_a_file_beyond_the_limit_has_a_name():
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))"
    done = gencli("image", "apple", "--steps", 1, "-s", 1, "--size", "64x64", "-o", "a.png", code=limit)
    assert (done.returncode, done.stderr) == (1, b"error: cannot write a.png: File too large\n")


def test_an_input_that_has_changed_is_told(sd, folder):
    """Above all after `-i a.png -o a.png`; an input that is as it was makes the image again without a word."""
    size = ("--size", "64x64", "--steps", 3, "--seed", 5)
    for name in ("a.png", "kept.png"):
        assert gencli("image", "-m", sd, "red apple", *size, "-o", name).returncode == 0
    for name in ("a.png", "b.png"):
        begun = "a.png" if name == "a.png" else "kept.png"
        assert gencli("image", "-m", sd, "blue cat", "-i", begun, *size, "-o", name).returncode == 0
    again = gencli("image", "--from", "b.png", "-o", "b2.png")
    assert (again.returncode, again.stderr) == (0, b"")
    assert list(Image.open("b.png").getdata()) == list(Image.open("b2.png").getdata())
    again = gencli("image", "--from", "a.png", "-o", "a2.png")
    assert again.returncode == 0
    assert again.stderr == b"note: a.png was made with another a.png than the one that is here\n"
    assert str(sd.parent).encode() not in (folder / "b.png").read_bytes()
