"""Fetching, against a hub on loopback: gencli as a process, its cache as the hub's own library sees it."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gencli.checkpoints.gguf_file import GgufFile
from tests.oracles.hub_server import Hub, git_id, safetensors, sha256
from tests.shell import process
from tests.tiny.hub_cache import SD15, SD15_INDEX

pytestmark = pytest.mark.slow

BIG = 3 * 2**20  # bytes of the weights that connections break in
CONFIG = json.dumps({"model_type": "gpt2", "n_positions": 64, "auto_map": {"AutoModel": "evil.Model"}}).encode()
NEEDED = {"README.md", "config.json", "model.safetensors", "tokenizer.json"}


def tiny(**more: bytes) -> dict[str, bytes]:
    """A repository of a language model, and what nobody needs beside it."""
    return {
        ".gitattributes": b"*.safetensors filter=lfs",
        "README.md": b"---\nlicense: mit\n---\n",
        "config.json": CONFIG,
        "tokenizer.json": b"{}",
        "model.safetensors": safetensors({"wte.weight": ("F32", [BIG // 4])}, filler=b"\x3f"),
        "evil.py": b"raise SystemExit('run')",
        "onnx/model.onnx": b"onnx",
        "pytorch_model.bin": b"pickle",
        "vocab.json": b"{}",
        **more,
    }


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture
def env(hub: Hub, tmp_path: Path) -> dict[str, str | None]:
    """The environment of a gencli that knows only this hub."""
    return {
        "HF_HUB_OFFLINE": None,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": None,
        "NO_PROXY": "127.0.0.1",
    }


def pull(env: dict[str, str | None], *args: object) -> subprocess.CompletedProcess:
    return process.gencli("models", "pull", *args, **env)


def pulled(env: dict[str, str | None], *args: object) -> Path:
    """A pull that works and says nothing but where; the snapshot's folder."""
    done = pull(env, *args)
    assert (done.returncode, done.stderr) == (0, b"")
    return Path(done.stdout.decode().removesuffix("\n"))


def refused(env: dict[str, str | None], *args: object) -> str:
    """What a pull that fails says on stderr."""
    done = pull(env, *args)
    assert (done.returncode, done.stdout) == (1, b"")
    message = done.stderr.decode()
    assert message.startswith("error: ")
    assert message.count("\n") <= 2  # an error, and a hint
    return message


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def library(env: dict[str, str | None], script: str) -> str:
    """What the hub's own library says in a process of its own."""
    script = f"import huggingface_hub as hub\n{script}"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=process.environment(**env), capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_only_what_is_needed_is_fetched_and_only_once(hub: Hub, env: dict[str, str | None]) -> None:
    commit = hub.commit("org/tiny", tiny())
    folder = pulled(env, "org/tiny")
    assert folder.name == commit
    assert content(folder) == {name: data for name, data in tiny().items() if name in NEEDED}
    assert sorted(hub.fetched()) == sorted(NEEDED)
    tag = Path(str(env["HF_HUB_CACHE"])) / "CACHEDIR.TAG"  # for backup programs
    assert tag.read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55\n")
    hub.requests.clear()
    again = pull(env, "org/tiny")
    assert (again.returncode, Path(again.stdout.decode().strip())) == (0, folder)
    assert again.stderr == b"note: org/tiny is already installed; --update checks for a newer revision\n"
    assert hub.requests == []


def test_a_model_that_is_run_is_fetched_once(hub: Hub, env: dict[str, str | None], tmp_path: Path) -> None:
    from tests.tiny.text import make_gpt2

    hub.commit("org/gpt2", make_gpt2(tmp_path / "gpt2", sharded=True))
    run = ("text", "Once", "-n", "4", "--seed", "1", "-m", "org/gpt2")
    first = process.gencli(*run, **env)
    assert (first.returncode, first.stderr) == (0, b"")
    assert len(hub.fetched()) == 8
    hub.requests.clear()
    second = process.gencli(*run, **env)
    assert second.stdout == first.stdout != b""
    assert hub.requests == []


def test_the_library_and_gencli_share_one_cache(hub: Hub, env: dict[str, str | None], tmp_path: Path) -> None:
    hub.commit("org/tiny", tiny())
    folder = library(env, "print(hub.snapshot_download('org/tiny'))")
    hub.requests.clear()
    assert pull(env, "org/tiny").stdout.decode().strip() == folder
    assert hub.requests == []

    env["HF_HUB_CACHE"] = str(tmp_path / "other")
    ours = pulled(env, "org/tiny")
    hub.requests.clear()
    theirs = "print(hub.snapshot_download('org/tiny', local_files_only=True))"
    assert library(env, theirs) == str(ours)
    found = "scan = hub.scan_cache_dir(); print(len(scan.warnings), *[r.repo_id for r in scan.repos])"
    assert library(env, found) == "0 org/tiny"
    names = {p.name for p in (ours.parents[1] / "blobs").iterdir()}
    assert names == {(sha256 if n.endswith(".safetensors") else git_id)(tiny()[n]) for n in NEEDED}
    assert hub.requests == []


def test_what_another_program_left_out_is_added(hub: Hub, env: dict[str, str | None]) -> None:
    hub.commit("org/tiny", tiny())
    library(env, "print(hub.hf_hub_download('org/tiny', 'config.json'))")
    hub.requests.clear()
    assert set(content(pulled(env, "org/tiny"))) == NEEDED
    assert "config.json" not in hub.fetched()


# --- breaks


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: Hub, env: dict[str, str | None]) -> None:
    hub.commit("org/tiny", tiny())
    hub.cut, hub.cut_after = 1, 2**20
    folder = pulled(env, "org/tiny")
    assert content(folder)["model.safetensors"] == tiny()["model.safetensors"]
    assert [r.range for r in hub.requests if r.server == "cdn"] == [None, f"bytes={2**20}-"]


def test_an_interrupted_download_goes_on_in_the_next_run(hub: Hub, env: dict[str, str | None]) -> None:
    hub.commit("org/tiny", tiny())
    hub.stall, hub.cut_after = threading.Event(), 2**21
    started = process.start("models", "pull", "org/tiny", env=process.environment(**env), stdin=subprocess.DEVNULL)
    assert hub.stalled.wait(60)
    partial = f"{sha256(tiny()['model.safetensors'])}.incomplete"
    blobs = Path(str(env["HF_HUB_CACHE"])) / "models--org--tiny" / "blobs"
    wait_until(lambda: (blobs / partial).exists() and (blobs / partial).stat().st_size > 0)
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=60)
    assert (started.returncode, out, err) == (130, b"", b"")
    begun = (blobs / partial).stat().st_size
    assert 0 < begun <= 2**21

    offline = process.gencli("models", "show", "org/tiny", **env)  # half a model is none
    assert offline.returncode == 1
    hub.stall = None
    hub.requests.clear()
    assert content(pulled(env, "org/tiny"))["model.safetensors"] == tiny()["model.safetensors"]
    assert [r.range for r in hub.requests if r.server == "cdn"] == [f"bytes={begun}-"]
    assert not (blobs / partial).exists()
    assert [name for name in hub.fetched() if name != "model.safetensors"] == []


def wait_until(true, seconds: float = 60) -> None:
    done = threading.Event()
    for _ in range(int(seconds * 100)):
        if true():
            return
        done.wait(0.01)
    raise AssertionError("it does not happen")


def test_a_damaged_download_is_thrown_away(hub: Hub, env: dict[str, str | None]) -> None:
    hub.commit("org/tiny", tiny())
    hub.damage = {"model.safetensors"}
    assert "model.safetensors came damaged" in refused(env, "org/tiny")
    blobs = Path(str(env["HF_HUB_CACHE"])) / "models--org--tiny" / "blobs"
    hub.damage = set()
    (blobs / f"{sha256(tiny()['model.safetensors'])}.incomplete").write_bytes(b"what an earlier run left, wrong")
    assert "model.safetensors came damaged" in refused(env, "org/tiny")
    assert set(content(pulled(env, "org/tiny"))) == NEEDED


def test_a_hub_that_goes_away(hub: Hub, env: dict[str, str | None]) -> None:
    hub.commit("org/tiny", tiny())
    hub.cut = 1000
    hub.cut_after = 0  # six tries without a byte
    message = refused(env, "org/tiny")
    assert f"cannot fetch org/tiny from {hub.url}: " in message
    assert "run it again to resume the download" in message


def test_two_at_a_time_do_not_disturb_each_other(hub: Hub, env: dict[str, str | None]) -> None:
    hub.commit("org/tiny", tiny())
    both = [process.start("models", "pull", "org/tiny", env=process.environment(**env)) for _ in range(2)]
    folders = {each.communicate(timeout=60)[0].decode().strip() for each in both}
    assert [each.returncode for each in both] == [0, 0]
    (folder,) = folders
    assert content(Path(folder))["model.safetensors"] == tiny()["model.safetensors"]
    assert [r.path.startswith("/cdn/") for r in hub.requests if r.server == "cdn"] == [True]


# --- who may, and what there is


def test_offline_by_flag_and_by_environment(hub: Hub, env: dict[str, str | None]) -> None:
    hub.commit("org/tiny", tiny())
    flag = process.gencli("text", "x", "-m", "org/tiny", "--offline", **env)
    assert flag.returncode == 1
    assert "error: no model 'org/tiny'" in flag.stderr.decode()
    assert "hint: with --offline, gencli looks only on this machine" in flag.stderr.decode()
    assert "HF_HUB_OFFLINE=1 keeps gencli offline" in refused(env | {"HF_HUB_OFFLINE": "1"}, "org/tiny")
    assert hub.requests == []
    pulled(env, "org/tiny")
    hub.requests.clear()
    assert pull(env | {"HF_HUB_OFFLINE": "1"}, "org/tiny").returncode == 0
    assert hub.requests == []


def test_revisions(hub: Hub, env: dict[str, str | None]) -> None:
    first = hub.commit("org/tiny", tiny(**{"README.md": b"first"}), "main", "v1")
    second = hub.commit("org/tiny", tiny(**{"README.md": b"second"}), "refs/pr/1", "main")
    assert pulled(env, "org/tiny@v1").name == first
    assert pulled(env, "org/tiny@refs/pr/1").name == second
    assert pulled(env, "org/tiny").name == second
    assert pulled(env, f"org/tiny@{first[:9]}", "--update").name == first
    third = hub.commit("org/tiny", tiny(**{"README.md": b"third"}))
    hub.requests.clear()
    assert pull(env, "org/tiny").stdout.decode().strip().endswith(second)
    assert hub.requests == []
    assert pulled(env, "org/tiny", "--update").name == third
    assert hub.fetched() == ["README.md"]  # the weights are the same
    message = refused(env, "org/tiny@v2")
    assert "org/tiny has no revision 'v2'" in message


def test_gated_repositories_and_tokens(hub: Hub, env: dict[str, str | None]) -> None:
    hub.commit("org/gated", tiny(), gated=True)
    hub.tokens = {"hf_reader": {"org/gated"}, "hf_stranger": set()}
    message = refused(env, "org/gated")
    assert "org/gated is gated" in message
    assert f"at {hub.url}/org/gated; then set HF_TOKEN" in message
    message = refused(env | {"HF_TOKEN": "hf_stranger"}, "org/gated")
    assert "signed in as the owner of your token" in message
    message = refused(env | {"HF_TOKEN": "hf_revoked"}, "org/gated")
    assert "does not accept your token" in message
    hub.requests.clear()
    pulled(env | {"HF_TOKEN": "hf_reader"}, "org/gated")
    tokens = {server: {r.token for r in hub.requests if r.server == server} for server in ("hub", "cdn")}
    assert tokens == {"hub": {"hf_reader"}, "cdn": {None}}


def test_private_moved_and_missing_repositories(hub: Hub, env: dict[str, str | None]) -> None:
    hub.commit("org/secret", tiny(), private=True)
    hub.tokens = {"hf_owner": {"org/secret"}, "hf_other": set()}
    for name in ("org/secret", "org/nothing"):
        message = refused(env, name)
        assert f"no model '{name}': not on this machine, and not at {hub.url}" in message
        assert "HF_TOKEN" in message
        assert f"no model '{name}'" in refused(env | {"HF_TOKEN": "hf_other"}, name)
    pulled(env | {"HF_TOKEN": "hf_owner"}, "org/secret")
    hub.moved = {"org/old": "org/secret"}
    assert set(content(pulled(env | {"HF_TOKEN": "hf_owner"}, "org/old"))) == NEEDED


def test_no_network(env: dict[str, str | None]) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        for address in (f"http://127.0.0.1:{nobody.getsockname()[1]}", "http://no.such.host.invalid", "nonsense"):
            assert f"cannot fetch org/tiny from {address}: " in refused(env | {"HF_ENDPOINT": address}, "org/tiny")


def test_usage(env: dict[str, str | None], hub: Hub, tmp_path: Path) -> None:
    for name in ("gpt2x", "a/b/c", "org/.."):
        done = pull(env, name)
        assert done.returncode == 2, name
        assert f"error: '{name}' is not a short name or a Hub id (owner/name)" in done.stderr.decode()
    assert b"is on this machine: there is nothing to download" in pull(env, tmp_path).stderr
    assert hub.requests == []


# --- what is in a repository


def pipeline() -> dict[str, bytes]:
    """Stable Diffusion's repository as it is on the hub, with small contents."""
    configs = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
    files = {name: safetensors({"x": ("F16", [8])}, filler=name[:1].encode()) for name in SD15}
    files |= {name: b"{}" for name in SD15 if name.endswith(".json")}
    files |= {f"{part}/config.json": json.dumps({"_class_name": name}).encode() for part, name in configs.items()}
    files["text_encoder/config.json"] = b'{"model_type": "clip_text_model"}'
    files["model_index.json"] = json.dumps(SD15_INDEX).encode()
    return files


def test_a_pipeline_comes_in_one_variant_and_without_its_safety_checker(hub: Hub, env: dict[str, str | None]) -> None:
    hub.commit("org/sd", pipeline())
    half = content(pulled(env, "org/sd", "--variant", "fp16"))
    assert len(half) == 13
    assert sum(name.endswith(".fp16.safetensors") for name in half) == 3
    unwanted = ("safety_checker", "feature_extractor", "v1-5", ".bin", "non_ema", ".ckpt")
    assert not any(word in name for word in unwanted for name in hub.fetched())
    hub.requests.clear()
    assert pull(env, "org/sd").returncode == 0  # whole, in this variant
    assert hub.requests == []
    assert "no bf16 weights" in refused(env, "org/sd", "--variant", "bf16")


def test_what_gencli_cannot_open_is_refused_before_its_weights(hub: Hub, env: dict[str, str | None]) -> None:
    hub.commit("org/odd", tiny(**{"config.json": b'{"model_type": "mamba9"}'}))
    for _ in range(2):  # the second time its config is here
        assert "org/odd: config.json: unknown architecture 'mamba9'" in refused(env, "org/odd")
    hub.commit("org/pickles", {name: data for name, data in tiny().items() if name != "model.safetensors"})
    message = refused(env, "org/pickles")
    assert "org/pickles: no weights in safetensors (only pytorch_model.bin)" in message
    assert "pickles can run code" in message
    hub.commit("org/empty", {"README.md": b""})
    assert "org/empty: no model_index.json and no config.json" in refused(env, "org/empty")
    assert not [r for r in hub.requests if r.server == "cdn"]


def test_pickles_come_when_they_are_allowed_and_there_is_nothing_better(hub: Hub, env: dict[str, str | None]) -> None:
    hub.commit("org/pickles", {name: data for name, data in tiny().items() if name != "model.safetensors"})
    script = "from gencli.checkpoints.find import find; print(find('org/pickles', allow_pickle=True).path)"
    folder = Path(library(env, script))
    assert set(content(folder)) == NEEDED - {"model.safetensors"} | {"pytorch_model.bin"}
    hub.requests.clear()
    assert library(env, script) == str(folder)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["../out.safetensors", "/tmp/out.safetensors", "sub/out.safetensors"])
def test_an_index_leads_nowhere_else(hub: Hub, env: dict[str, str | None], name: str, tmp_path: Path) -> None:
    files = tiny(**{name: b"out", "model.safetensors.index.json": json.dumps({"weight_map": {"a": name}}).encode()})
    del files["model.safetensors"]
    hub.commit("org/evil", files)
    message = refused(env, "org/evil")
    assert f"model.safetensors.index.json: '{name}' is not a plain name of a safetensors file" in message
    assert not list(tmp_path.rglob("out.safetensors"))


def test_names_and_etags_lead_nowhere_else(hub: Hub, env: dict[str, str | None], tmp_path: Path) -> None:
    hub.commit("org/evil", tiny(**{"../../../../config.json": b"out", "/etc/tokenizer.json": b"out"}))
    assert set(content(pulled(env, "org/evil"))) == NEEDED
    hub.commit("org/etag", tiny())
    hub.etags = {"model.safetensors": "../../../out"}
    message = refused(env, "org/etag")
    assert "the ETag '../../../out', which is not a plain word" in message
    assert not list(tmp_path.rglob("out"))


# --- a hub that lies

LIES = {
    "up": "../../../../lie",
    "home": "../../../../user/.profile",
    "absolute": "/tmp/gencli-lie",
    "quoted": "%2e%2e%2f%2e%2e%2flie",
    "long": "a" * 5000,
    "empty": "",
    "a control character": "\x01lie",
    "no word": "lie lie",
}
REQUESTS = {  # the requests of a pull → what the answer is known by in the server
    "listing": "/api/models/",
    "a small file": "/resolve/.*/config.json",
    "a large file": "/resolve/.*/model.safetensors",
    "the CDN": "/cdn/",
}
DOWNLOADS = """
import sys
from gencli.checkpoints.hub import download
from gencli.checkpoints.hub_cache import HubId
from gencli.errors import GencliError
for name in sys.argv[1:]:
    try:
        download(HubId(name))
        print("done")
    except GencliError as error:
        print("one" if len(error.message.splitlines()) == 1 and len(error.message) < 2000 else "several", error.message)
"""


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("request_", REQUESTS)
def test_no_word_of_a_server_leads_out_of_the_cache(
    hub: Hub, env: dict[str, str | None], tmp_path: Path, request_: str
) -> None:
    """Names, ids and headers of one answer are lies; the other answers are true."""
    repos = {f"org/case{number}": lie for number, lie in enumerate(LIES.values())}
    for repo in repos:
        hub.commit(repo, tiny())
        hub.blobs |= {sha256(tiny()["model.safetensors"]): tiny()["model.safetensors"]}
    asked: list[str] = []

    def lies(path: str, status: int, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        asked.extend(repo for repo in repos if path.startswith((f"/{repo}/", f"/api/models/{repo}")))
        lie = repos[asked[-1]]
        if not re.search(REQUESTS[request_], path):
            return status, headers, body
        if request_ == "listing":
            listing = json.loads(body)
            names = [{**one, "rfilename": lie} for one in listing["siblings"]]
            ids = [{**one, "blobId": lie, "lfs": {"sha256": lie, "size": 1}} for one in listing["siblings"]]
            return status, headers, json.dumps({**listing, "siblings": names + ids}).encode()
        lie = "".join(character for character in lie if character >= " ")  # or the server's own library refuses it
        words = {"ETag": lie, "X-Linked-ETag": lie, "X-Repo-Commit": lie, "Content-Disposition": f'filename="{lie}"'}
        return status, {**headers, **words}, body

    hub.lie = lies
    (tmp_path / "user").mkdir()
    env |= {"HOME": str(tmp_path / "user")}
    before = everything(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", DOWNLOADS, *repos], env=process.environment(**env), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    answers = done.stdout.splitlines()
    assert len(answers) == len(repos)
    assert all(answer.startswith("one ") for answer in answers), answers
    new = everything(tmp_path) - before
    repository = r"(/models--org--case\d(/(blobs|snapshots)(/[0-9a-f]{40,64}.*)?)?)?"
    place = re.compile(
        rf"home|cache{repository}|cache/CACHEDIR\.TAG|cache/\.locks(/models--org--case\d(/[0-9a-f]+\.lock)?)?"
    )
    assert all(place.fullmatch(name) for name in new), new
    assert not Path("/tmp/gencli-lie").exists()


@pytest.mark.parametrize("lie", ["up", "home", "absolute"])
def test_a_lie_is_one_line_and_exit_code_1(hub: Hub, env: dict[str, str | None], tmp_path: Path, lie: str) -> None:
    hub.commit("org/evil", tiny())
    user = tmp_path / "user"
    user.mkdir()
    hub.lie = lambda path, status, headers, body: (status, {**headers, "X-Repo-Commit": LIES[lie]}, body)
    message = refused(env | {"HOME": str(user)}, "org/evil")
    assert f"the commit '{LIES[lie]}', which is not one" in message
    assert list(user.iterdir()) == []
    commit = hub.repos["org/evil"].refs["main"]

    def another_commit(path: str, status: int, headers: dict[str, str], body: bytes):
        return status, headers, body.replace(commit.encode(), LIES[lie].encode())

    hub.lie = another_commit
    assert f"the commit '{LIES[lie]}', which is not one" in refused(env | {"HOME": str(user)}, "org/evil")
    assert list(user.iterdir()) == []


LISTINGS: dict[str, Any] = {
    "no object": [],
    "a number": 7,
    "no list": {"siblings": {"a": 1}},
    "a number in it": {"siblings": [1]},
    "a text in it": {"siblings": ["config.json"]},
    "nothing in it": {"siblings": [None]},
    "a list in it": {"siblings": [["rfilename", "config.json"]]},
    "no name": {"siblings": [{"size": 1}]},
    "an empty name": {"siblings": [{"rfilename": ""}]},
    "null as a name": {"siblings": [{"rfilename": None}]},
    "a number as a name": {"siblings": [{"rfilename": 7}]},
    "half a character as a name": {"siblings": [{"rfilename": "\ud800.json"}]},
    "a size in words": {"siblings": [{"rfilename": "config.json", "size": "12"}]},
    "a size below nought": {"siblings": [{"rfilename": "config.json", "size": -1}]},
    "a size beyond all": {"siblings": [{"rfilename": "config.json", "size": 10**400}]},
    "half a byte": {"siblings": [{"rfilename": "config.json", "size": 0.5}]},
    "a truth as size": {"siblings": [{"rfilename": "config.json", "size": True}]},
    "lfs as a text": {"siblings": [{"rfilename": "config.json", "size": 1, "lfs": "yes"}]},
    "a number as sum": {"siblings": [{"rfilename": "config.json", "size": 1, "lfs": {"sha256": 7}}]},
    "a number as id": {"siblings": [{"rfilename": "config.json", "size": 1, "blobId": 7}]},
    "no commit": {"sha": None},
    "a number as commit": {"sha": 7},
    "a list as commit": {"sha": ["0" * 40]},
    "no files": {"siblings": None},
    "deep": "[" * 100_000,
    "long": '"' + "x" * (65 * 2**20) + '"',
    "no JSON": "<html>",
    "no UTF-8": b"\xff\xfe{}",
    "a number of 5000 digits": "9" * 5000,
}


def test_listings_of_other_kinds_are_one_line(hub: Hub, env: dict[str, str | None]) -> None:
    repos = {f"org/case{number}": listing for number, listing in enumerate(LISTINGS.values())}
    for repo in repos:
        hub.commit(repo, tiny())

    def lies(path: str, status: int, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        for repo, listing in repos.items():
            if path.startswith(f"/api/models/{repo}?"):
                whole = {**json.loads(body), **listing} if isinstance(listing, dict) else listing
                text = whole if isinstance(whole, str | bytes) else json.dumps(whole)
                return status, headers, text.encode() if isinstance(text, str) else text
        return status, headers, body

    hub.lie = lies
    done = subprocess.run(
        [sys.executable, "-c", DOWNLOADS, *repos], env=process.environment(**env), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    for what, answer in zip(LISTINGS, done.stdout.splitlines(), strict=True):
        assert answer.startswith("one org/case"), (what, answer)
        assert "list of files" in answer or "commit" in answer or "no config.json" in answer, (what, answer)


def test_a_hub_that_asks_to_wait(hub: Hub, env: dict[str, str | None], tmp_path: Path) -> None:
    hub.commit("org/tiny", tiny())
    seconds = ["86400"]
    refusals: list[str] = []

    def lies(path: str, status: int, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if path.endswith("config.json") and len(refusals) < 2:
            refusals.append(path)
            return 429, {"Retry-After": seconds[0]}, b""
        return status, headers, body

    hub.lie = lies
    message = refused(env, "org/tiny")
    assert "org/tiny: the Hub asks to slow down (429)" in message
    assert "it asks to wait 86400 seconds" in message
    seconds[0] = "1"
    refusals.clear()
    assert set(content(pulled(env, "org/tiny"))) == NEEDED  # it is waited for
    assert len(refusals) == 2
    refusals.clear()
    env["HF_HUB_CACHE"] = str(tmp_path / "other")
    code, screen, *_ = process.on_terminal("models", "pull", "org/tiny", stdin=False, stdout=False, **env)
    assert code == 0
    assert b"fetching org/tiny (the Hub asks to wait 1 s) " in screen


def test_a_hub_that_sends_a_byte_now_and_then(hub: Hub, env: dict[str, str | None]) -> None:
    hub.commit("org/tiny", tiny())
    hub.slow = 0.1
    patience = "import gencli.checkpoints.hub_http as http; http.STALL_SECONDS = 2"
    done = process.gencli("models", "pull", "org/tiny", code=patience, **env)
    assert (done.returncode, done.stdout) == (1, b"")
    assert re.search(rb"error: cannot fetch org/tiny from .*: it sent \d+ bytes in 2 seconds\n", done.stderr)


def test_a_hub_that_sends_more_than_it_said(hub: Hub, env: dict[str, str | None]) -> None:
    hub.commit("org/tiny", tiny())

    def more(path: str, status: int, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        return status, headers, body + b" " * 10**6 if path.endswith("config.json") else body

    hub.lie = more
    assert f"the Hub sends more of config.json than the {len(CONFIG)} bytes expected" in refused(env, "org/tiny")
    blobs = Path(str(env["HF_HUB_CACHE"])) / "models--org--tiny" / "blobs"
    assert all(path.stat().st_size <= len(CONFIG) for path in blobs.iterdir() if "incomplete" in path.name)


def test_sizes_and_ids_may_be_left_out(hub: Hub, env: dict[str, str | None]) -> None:
    hub.commit("org/tiny", tiny())

    def bare(path: str, status: int, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if not path.startswith("/api/"):
            return status, headers, body
        listing = json.loads(body)
        names = [{"rfilename": one["rfilename"]} for one in listing["siblings"]]
        return status, headers, json.dumps({"sha": listing["sha"], "siblings": names}).encode()

    hub.lie = bare
    folder = pulled(env, "org/tiny")
    assert content(folder) == {name: data for name, data in tiny().items() if name in NEEDED}


# --- what is seen


def test_nothing_of_the_library_reaches_the_streams(hub: Hub, env: dict[str, str | None]) -> None:
    hub.commit("org/tiny", tiny())
    hub.cut = 1  # which it would log
    loud = {"HF_HUB_DISABLE_PROGRESS_BARS": "0", "HF_HUB_VERBOSITY": "debug", "HF_HUB_ENABLE_HF_TRANSFER": "1"}
    done = pull(env | loud | {"TQDM_POSITION": "-1"}, "org/tiny", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    said = json.loads(done.stdout)
    assert (said["name"], said["revision"]) == ("org/tiny", Path(said["path"]).name)
    assert said["files"] == {name: len(tiny()[name]) for name in sorted(NEEDED)}
    assert said["bytes"] == sum(said["files"].values())


def test_a_terminal_gets_one_progress_line(hub: Hub, env: dict[str, str | None]) -> None:
    hub.commit("org/tiny", tiny())
    code, screen, out, _ = process.on_terminal("models", "pull", "org/tiny", stdin=False, stdout=False, **env)
    assert code == 0
    assert b"fetching org/tiny " in screen
    assert b"3145/3145 kB" in screen or b"3146/3146 kB" in screen
    assert screen.endswith(b"\r\x1b[K")
    assert b"\n" not in screen
    assert out.count(b"\n") == 1


# --- GGUF files by their type


def gguf_files(tmp_path: Path) -> dict[str, bytes]:
    """A repository of one model in several types, one of them in two parts, and files beside them."""
    from gencli.checkpoints.find import find
    from gencli.checkpoints.formats.gguf_draft import make_draft
    from gencli.checkpoints.gguf_write import write_gguf
    from gencli.text.convert import convert
    from gencli.text.load import open_model

    model, files = open_model(find("stories")), {"README.md": b"---\nlicense: mit\n---\n", "mmproj-F16.gguf": b"GGUF"}
    for kind in ("Q8_0", "Q4_0"):
        convert(model, kind.lower(), tmp_path / "one.gguf")
        files[f"stories-{kind}.gguf"] = (tmp_path / "one.gguf").read_bytes()
    draft = make_draft(model.module, "f16", {}, tmp_path)
    tensors, metadata = list(draft.tensors.values()), GgufFile(tmp_path / "one.gguf").metadata
    for number, some in enumerate((tensors[:40], tensors[40:]), 1):
        part = {**(metadata if number == 1 else {}), "split.count": 2, "split.no": number - 1}
        with (tmp_path / "part.gguf").open("wb") as stream:
            write_gguf(stream, part, some)
        files[f"F16/stories-F16-{number:05}-of-00002.gguf"] = (tmp_path / "part.gguf").read_bytes()
    return files


def test_a_gguf_file_is_named_by_its_type(hub: Hub, env: dict[str, str | None], tmp_path: Path) -> None:
    """In small letters too, and all parts of a split one; what is there is told when the type is not."""
    files = gguf_files(tmp_path)
    hub.commit("org/stories-GGUF", files)
    said = refused(env, "org/stories-GGUF:Q5_0")
    assert said.startswith("error: org/stories-GGUF: no GGUF file of the type Q5_0\nhint: there are F16, Q4_0, Q8_0")
    assert "3 GGUF files, none of the type Q4_K_M" in refused(env, "org/stories-GGUF")
    path = pulled(env, "https://huggingface.co/org/stories-GGUF:q8_0")
    assert path.name == "stories-Q8_0.gguf" and path.read_bytes() == files[path.name]
    hub.requests.clear()
    run = ("text", "Once upon", "-n", "8", "--temperature", "0", "-m")
    alone = process.gencli(*run, path).stdout
    assert process.gencli(*run, "org/stories-GGUF:Q8_0", **env).stdout == alone != b""
    assert process.gencli(*run, "org/stories-GGUF:Q8_0", "--offline", **env).stdout == alone
    assert hub.requests == []  # it is here
    assert process.gencli(*run, "org/stories-GGUF:F16", **env).stdout == process.gencli(*run, "stories").stdout
    assert sorted(hub.fetched()) == ["F16/stories-F16-00001-of-00002.gguf", "F16/stories-F16-00002-of-00002.gguf"]
    rows = [json.loads(line) for line in process.gencli("models", "list", "--json", **env).stdout.splitlines()]
    names = {row["name"]: row["where"] for row in rows if row["where"] != "embedded"}
    assert names == {"org/stories-GGUF:F16": "cached", "org/stories-GGUF:Q8_0": "cached"}
    (shown,) = process.gencli("models", "show", "org/stories-GGUF:Q8_0", "--json", **env).stdout.splitlines()
    assert json.loads(shown)["revision"] == path.parent.name and json.loads(shown)["problem"] is None
    done = process.gencli("models", "rm", "org/stories-GGUF:F16", "--yes", "--json", **env)
    parts = sum(len(data) for name, data in files.items() if name.startswith("F16/"))
    assert json.loads(done.stdout) == {"removed": "org/stories-GGUF:F16", "bytes": parts}
    assert path.is_file() and process.gencli("models", "rm", "org/stories-GGUF:F16", "--yes", **env).returncode == 1
    assert process.gencli("models", "rm", "org/stories-GGUF:q8_0", "--yes", **env).returncode == 0
    assert not list(Path(str(env["HF_HUB_CACHE"])).glob("models--*"))


def test_packed_copies_go_with_what_they_are_of(hub: Hub, env: dict[str, str | None], tmp_path: Path) -> None:
    from gencli.checkpoints.find import find

    hub.commit("org/stories", find("stories").path)
    run = ("text", "Once", "-n", "4", "--temperature", "0", "--quantize", "q8_0", "-m")
    assert process.gencli(*run, "org/stories", **env).returncode == 0
    assert process.gencli(*run, "stories", **env).returncode == 0
    copies = Path(str(env["HF_HUB_CACHE"])).parent / "gencli"
    assert len(list(copies.iterdir())) == 2
    said = process.gencli("models", "list", **env).stderr
    assert b"note: quantized copies (--quantize): 2, 16.9 MB: `gencli models rm NAME` removes" in said
    assert process.gencli("models", "rm", "org/stories", "--yes", **env).returncode == 0
    assert len(list(copies.iterdir())) == 1
    done = process.gencli("models", "rm", "stories", "--yes", **env)
    assert (done.returncode, list(copies.iterdir())) == (0, [])
    assert done.stderr.startswith(b"note: removed the packed copies of stories, 8.4 MB freed")
    mine = shutil.copytree(find("stories").path, tmp_path / "my own")
    assert process.gencli(*run, mine, **env).returncode == 0
    shutil.rmtree(mine)
    said = process.gencli("models", "list", **env).stderr
    assert f"which is gone: `gencli models rm '{mine}/model.safetensors'`".encode() in said
    assert process.gencli("models", "rm", tmp_path / "my", "--yes", **env).returncode == 2
    done = process.gencli("models", "rm", mine, "--yes", **env)
    assert (done.returncode, list(copies.iterdir())) == (0, [])
