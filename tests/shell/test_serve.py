"""`gencli serve` as a process: OpenAI's own client, many clients at once, and those who mean no good."""

import base64
import contextlib
import io
import json
import os
import re
import signal
import socket
import stat
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.oracles.hub_server import Hub
from tests.oracles.libraries import openai
from tests.shell.process import gencli, listening, short_folder
from tests.tiny.clip import make_clip
from tests.tiny.image import make_text_encoder
from tests.tiny.text import make_gpt2

pytestmark = pytest.mark.slow
TELL = {"model": "stories", "prompt": "Once upon a time", "seed": 1, "max_tokens": 12}
DRAW = {"model": "emoji", "prompt": "red apple", "extra_body": {"seed": 1, "steps": 2}}


@pytest.fixture
def tmp_path(short_path: Path) -> Path:
    return short_path


@pytest.fixture(scope="module")
def url():
    with (
        tempfile.TemporaryDirectory(prefix="gencli-", dir=short_folder()) as made,
        listening(Path(made), "--queue", "8") as (_, _, url),
    ):
        yield url


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=60)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["emoji", "stories"]
    assert client.models.retrieve("stories").owned_by == "gencli"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("../etc")


def test_a_completion_is_what_the_command_line_says(client):
    made = client.completions.create(**TELL)
    said = gencli("text", TELL["prompt"], "--seed", 1, "-n", 12, "--json")
    told = json.loads(said.stdout)
    assert made.choices[0].text == told["text"] and made.choices[0].finish_reason == told["finish_reason"]
    assert made.usage.model_dump(include=told["usage"].keys()) == told["usage"]


def test_several_prompts_samples_and_logprobs(client):
    alone = client.completions.create(**TELL).choices[0].text
    made = client.completions.create(**{**TELL, "prompt": [TELL["prompt"], "The dog"], "n": 2, "logprobs": 2})
    assert [choice.index for choice in made.choices] == [0, 1, 2, 3]
    assert made.choices[0].text == alone
    found = made.choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == 12 and "".join(found.tokens) == alone
    assert all(value <= 0 for value in found.token_logprobs)


def test_a_stream_says_the_same(client):
    chunks = list(client.completions.create(**TELL, stream=True, stream_options={"include_usage": True}))
    whole = client.completions.create(**TELL)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage and chunks[-2].choices[0].finish_reason == "length"


def test_chats_streamed_and_whole(client):
    ask = {"model": "stories", "messages": [{"role": "user", "content": "Hi"}], "seed": 1, "max_tokens": 8}
    whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=1)
    chunks = list(client.chat.completions.create(**ask, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert said == whole.choices[0].message.content
    tokens = "".join(token.token for token in whole.choices[0].logprobs.content)
    assert tokens.lstrip() == said, "white space before an answer is none of it"


def test_images(client):
    made = client.images.generate(**DRAW, n=2, size="128x128")
    images = [Image.open(io.BytesIO(base64.b64decode(one.b64_json))) for one in made.data]
    assert [image.size for image in images] == [(128, 128)] * 2
    drawn = gencli("image", "red apple", "--seed", 1, "--count", 2, "--steps", 2, "--grid")
    sheet = Image.open(io.BytesIO(drawn.stdout)).convert("RGB")
    assert sheet.crop((0, 0, 128, 128)).tobytes() == images[0].convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("call", "wrong", "error", "code"),
    [
        ("completions", {"model": "nosuch"}, "NotFoundError", "model_not_found"),
        ("completions", {"model": "/etc/passwd"}, "NotFoundError", "model_not_found"),
        ("completions", {"model": "../weights/stories"}, "NotFoundError", "model_not_found"),
        ("completions", {"model": "emoji"}, "BadRequestError", None),
        ("completions", {"temperature": -1}, "BadRequestError", None),
        ("completions", {"prompt": "word " * 3000}, "BadRequestError", "context_length_exceeded"),
        ("completions", {"prompt": [10**8]}, "BadRequestError", None),
        ("completions", {"extra_body": {"no_such": 1}}, "BadRequestError", "unsupported_parameter"),
        ("images", {"model": "stories"}, "BadRequestError", None),
        ("images", {"extra_body": {"sampler": "nosuch"}}, "BadRequestError", None),
        ("images", {"size": "100x100"}, "BadRequestError", None),
    ],
)
def test_errors_are_openais(client, call, wrong, error, code):
    with pytest.raises(getattr(openai, error)) as raised:
        if call == "images":
            client.images.generate(**{**DRAW, **wrong})
        else:
            client.completions.create(**{**TELL, **wrong})
    body = raised.value.body
    assert {"message", "type", "param", "code"} <= body.keys() and body["type"] == "invalid_request_error"
    assert body["code"] == code and 0 < len(body["message"]) < 2000 and "defect" not in body["message"]


def test_an_error_comes_before_a_stream_begins(client):
    with pytest.raises(openai.BadRequestError):
        client.completions.create(**{**TELL, "prompt": "word " * 3000}, stream=True)


def test_many_clients_get_their_own_answers_or_are_told_to_come_again(client, url):
    alone = {seed: client.completions.create(**{**TELL, "seed": seed}).choices[0].text for seed in range(4)}
    got, refused = [], []

    def ask(number):
        for turn in range(4):
            seed = (number + turn) % 4
            try:
                got.append((seed, client.completions.create(**{**TELL, "seed": seed}).choices[0].text))
            except openai.RateLimitError as error:
                refused.append(error.response.headers["retry-after"])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) + len(refused) == 96 and got
    assert all(text == alone[seed] for seed, text in got)
    assert set(refused) <= {"1"}
    metrics = httpx.get(url + "/metrics").text
    assert "gencli_requests_under_way 0\n" in metrics
    assert f'gencli_requests_total{{route="/v1/completions",status="429"}} {len(refused)}\n' in metrics or not refused


def test_a_client_that_leaves_costs_nothing_more(client, url):
    for stream in (True, False):
        body = {**TELL, "max_tokens": 400, "n": 64, "stream": stream}
        with (
            contextlib.suppress(httpx.ReadTimeout),
            httpx.stream("POST", url + "/v1/completions", json=body, timeout=1) as answer,
        ):
            next(answer.iter_bytes())
        end = time.monotonic() + 20
        while "gencli_requests_under_way 0\n" not in httpx.get(url + "/metrics").text:
            assert time.monotonic() < end, "it goes on for nobody"
            time.sleep(0.2)
    begun = time.monotonic()
    client.completions.create(**TELL)
    assert time.monotonic() - begun < 10


def test_guards(url):
    post = url + "/v1/completions"
    for headers, status in (
        ({"Host": "evil.example"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Origin": url}, 200),
        ({"Host": "localhost"}, 200),
    ):
        assert httpx.post(post, json=TELL, headers=headers).status_code == status, headers
    assert httpx.post(post, content=b"x" * (5 * 2**20), headers={"Content-Type": "application/json"}).status_code == 413
    for body in (b"{", b"[]", b"5", b"\xff", b'{"model": 5}', b"{}", b"[" * 100000):
        answer = httpx.post(post, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"
    assert httpx.get(url + "/nosuch").status_code == 404 and httpx.get(post).status_code == 405
    assert httpx.get(url + "/health").json()["status"] == "ok"


def test_nonsense_is_told_to_its_sender_alone(tmp_path):
    """Nobody can fill the terminal of who runs the server."""
    with listening(tmp_path, "-m", "stories") as (process, _, url):
        host, port = url.removeprefix("http://").split(":")
        upgrade = b"Upgrade: websocket\r\nConnection: Upgrade, close\r\nSec-WebSocket-Key: x\r\n"
        for data in (b"\x16\x03\x01\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + upgrade + b"\r\n"):
            with socket.create_connection((host, int(port)), timeout=30) as connection:
                connection.sendall(data)
                assert connection.recv(100).startswith(b"HTTP/1.1 ")
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60)[1].splitlines() == [b"note: serving stories"]


def test_a_head_without_end_is_cut_off(url):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            for number in range(2000):
                connection.sendall(b"x-%d: %s\r\n" % (number, b"y" * 50))
            assert connection.recv(100).startswith(b"HTTP/1.1 4") or connection.recv(1) == b""


def test_a_key(tmp_path):
    words = ("--key", "secret-secret", "--allow-origin", "*")
    with listening(tmp_path, *words) as (_, _, url):
        assert httpx.get(url + "/v1/models").status_code == 401
        assert httpx.get(url + "/v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
        shown = {"Authorization": "Bearer secret-secret"}
        assert httpx.get(url + "/v1/models", headers=shown).status_code == 200
        page = {"Origin": "chrome-extension://abcdef"}
        asks = httpx.options(url + "/api/chat", headers={**page, "Access-Control-Request-Method": "POST"})
        assert asks.status_code == 204 and asks.headers["Access-Control-Allow-Origin"] == page["Origin"]
        assert httpx.get(url + "/v1/models", headers=page).status_code == 401
        assert httpx.get(url + "/v1/models", headers={**page, **shown}).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_socket_and_the_end(tmp_path, number):
    with listening(tmp_path, fresh=number == signal.SIGTERM) as (process, path, _):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport) as client:
            assert client.get("http://anything/health").status_code == 200
        second = gencli("serve", "--socket", path)
        assert second.returncode == 1 and b"another server answers" in second.stderr
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 128 + number and b"Traceback" not in err
    assert not path.exists()


def test_a_stale_socket_is_replaced_and_a_file_is_not(tmp_path):
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    with listening(tmp_path):
        pass
    path.write_text("mine")
    refused = gencli("serve", "--socket", path)
    assert refused.returncode == 1 and path.read_text() == "mine"


@pytest.mark.parametrize(
    "args",
    [
        ("--listen", "0.0.0.0:0"),
        ("--listen", "x"),
        ("--listen", "70000"),
        ("--key", "short"),
        ("--allow-origin", "localhost:3000"),
        ("--allow-origin", "http://localhost:3000/"),
        ("--allow-origin", "*"),
        ("--allow-origin", "null"),
        ("--keep", "1d"),
        ("--max-memory", "lots"),
        ("--queue", "0"),
        ("--stats",),
        ("-m", "stories", "-m", "stories"),
    ],
)
def test_refused_before_anything_is_opened(tmp_path, args):
    refused = gencli("serve", "--socket", tmp_path / "s.sock", *args)
    assert refused.returncode == 2 and refused.stderr.startswith(b"error: ")
    assert not os.listdir(tmp_path)


def test_options_are_named_in_their_errors_and_limits_in_their_help():
    assert gencli("serve", "--keep", "1d").stderr.startswith(b"error: --keep: '1d' is no duration\n")
    assert gencli("serve", "--grace", "x").stderr.startswith(b"error: --grace: 'x' is no duration\n")
    assert gencli("serve", "--max-memory", "x").stderr.startswith(b"error: --max-memory: 'x' is no amount")
    help = " ".join(gencli("serve", "--help").stdout.decode().split())
    assert "at least 8 characters" in help and "in progress, at least 1;" in help


def test_addresses_that_are_none_and_models_that_nothing_serves(tmp_path):
    args = ("serve", "--socket", tmp_path / "s.sock")
    told = gencli(*args, "--listen", "http://localhost:0").stderr
    assert told == b"error: --listen http://localhost:0: wants [HOST:]PORT\nhint: leave out http://\n"
    told = gencli(*args, "--listen", "no.such.host.invalid:0").stderr
    assert told.startswith(b"error: --listen no.such.host.invalid:0: unknown host\n")
    make_clip(tmp_path / "clip")
    told = gencli(*args, "-m", tmp_path / "clip").stderr
    assert b"is a CLIP model (clip), not a text or image model\nhint: `gencli score -m " in told
    with socket.create_server(("127.0.0.1", 0)) as taken:
        told = gencli(*args, "--listen", taken.getsockname()[1]).stderr
    assert b"Address already in use\nhint: --listen 0 picks a port that is free\n" in told


def broken(folder):
    """A folder of a model whose config is no JSON."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": ')
    return folder


def without_weights(folder):
    make_gpt2(folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    return folder


@pytest.mark.parametrize("make", [lambda folder: "typo", lambda folder: "org/name", broken, without_weights])
def test_a_model_that_cannot_be_opened_ends_it_as_it_ends_other_commands(tmp_path, make):
    model = make(tmp_path / "m")
    alone = gencli("text", "-m", model, "Hi")
    refused = gencli("serve", "-m", "stories", "-m", model, "--socket", tmp_path / "s.sock")
    assert (refused.returncode, refused.stdout, refused.stderr) == (1, b"", alone.stderr)
    assert not (tmp_path / "s.sock").exists()


def test_a_part_of_a_model_is_not_served(tmp_path):
    make_text_encoder(tmp_path / "clip")
    refused = gencli("serve", "-m", tmp_path / "clip", "--socket", tmp_path / "s.sock")
    assert refused.returncode == 1 and b"clip is a text encoder (clip_text_model), not " in refused.stderr
    assert refused.stderr.count(b"\n") == 2 and b"\nhint: " in refused.stderr


def test_a_model_of_the_hub_is_fetched_at_the_start(tmp_path):
    with Hub() as hub:
        hub.commit("org/gpt2", make_gpt2(tmp_path / "gpt2"))
        env = {"HF_HUB_OFFLINE": None, "HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
        env["HF_HUB_CACHE"] = str(tmp_path / "cache")
        refused = gencli("serve", "-m", "org/gpt2", "--offline", "--socket", tmp_path / "s.sock", **env)
        assert refused.returncode == 1 and b"org/gpt2" in refused.stderr and not hub.requests
        with listening(tmp_path, "-m", "org/gpt2", **env) as (_, _, url):
            assert "model.safetensors" in hub.fetched()
            hub.requests.clear()
            answer = httpx.post(url + "/v1/completions", json={"model": "org/gpt2", "prompt": "a", "max_tokens": 1})
            assert answer.status_code == 200 and not hub.requests


def test_a_device_that_is_not_there_ends_it(tmp_path):
    refused = gencli("serve", "--device", "cuda:99", "--socket", tmp_path / "s.sock")
    assert refused.returncode == 1 and refused.stderr.startswith(b"error: --device cuda:99: ")


def test_the_folder_of_a_socket_is_not_made(tmp_path):
    refused = gencli("serve", "--socket", tmp_path / "typo" / "s.sock")
    assert refused.returncode == 1 and b"there is no folder " in refused.stderr and not os.listdir(tmp_path)


def test_answers_may_end_whenever_they_do(tmp_path):
    """Without a limit on their time the server ends once nothing is under way."""
    with listening(tmp_path, "--grace", "forever") as (process, _, _):
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGTERM and b"error" not in err


def test_who_waits_longer_than_the_grace_is_told(tmp_path):
    """Streams end with an error in their form, a whole answer is 503, and stderr has no word of a traceback."""
    long = {"model": "stories", "prompt": "Once", "max_tokens": 400, "n": 128, "seed": 1}
    said, ready = {}, threading.Barrier(3)

    def ask(url: str, name: str) -> None:
        if name == "whole":
            ready.wait()
            answer = httpx.post(url + "/v1/completions", json=long, timeout=60)
            said[name] = (answer.status_code, answer.json()["error"]["message"])
            return
        with httpx.stream("POST", url + "/v1/completions", json={**long, "stream": True}, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            ready.wait()
            said[name] = (answer.status_code, [line for line in lines if line][-1])

    with listening(tmp_path, "-m", "stories", "--grace", "0s") as (process, _, url):
        clients = [threading.Thread(target=ask, args=(url, name)) for name in ("whole", "stream")]
        for client in clients:
            client.start()
        ready.wait()
        while "gencli_requests_under_way 2\n" not in httpx.get(url + "/metrics").text:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        for client in clients:
            client.join(60)
    assert said["whole"] == (503, "the server ends, and the time for answers under way is over")
    status, last = said["stream"]
    assert status == 200 and json.loads(last.removeprefix("data: "))["error"]["message"].startswith("the server ends")
    assert b"Traceback" not in err and b"Cancel" not in err, err


def test_only_what_it_was_started_with(tmp_path):
    with listening(tmp_path, "-m", "stories", "--keep", "0", "--max-memory", "1k") as (_, _, url):
        client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=60)
        with pytest.raises(openai.NotFoundError):
            client.images.generate(**DRAW)
        with pytest.raises(openai.InternalServerError, match="no memory left"):
            client.completions.create(**TELL)


def test_no_embeddings_but_an_answer_that_says_so(client):
    with pytest.raises(openai.BadRequestError) as raised:
        client.embeddings.create(model="stories", input="Hi")
    assert raised.value.body["code"] == "embeddings_not_supported"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="/etc/passwd", input="Hi")


def test_a_model_that_fails_is_not_the_client_s_fault(tmp_path):
    """NaN is a 500, whole and streamed; a prompt that is too long stays a 400."""
    model = make_gpt2(tmp_path / "nan")
    [file] = model.glob("*.safetensors")
    save_file({name: tensor * float("nan") for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    with listening(tmp_path, "-m", model) as (_, _, url):
        client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=60)
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as raised:
                list(client.completions.create(model="nan", prompt="Hi", max_tokens=3, stream=stream))
            assert raised.value.body["type"] == "server_error" and "NaN" in raised.value.body["message"]
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model="nan", prompt="word " * 3000)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {**TELL, "n": 10**6}),
        ("/v1/completions", {**TELL, "prompt": ["a"] * 100}),
        ("/v1/completions", {**TELL, "max_tokens": 10**30}),
        ("/v1/completions", {**TELL, "logprobs": 10**9}),
        ("/v1/images/generations", {"model": "emoji", "prompt": "a", "n": 10**6}),
        ("/v1/images/generations", {"model": "emoji", "prompt": "a", "size": "100000x100000"}),
        ("/v1/images/generations", {"model": "emoji", "prompt": "a", "steps": 10**9}),
        ("/v1/images/generations", {"model": "emoji", "prompt": "a", "init": "/etc/passwd"}),
        ("/v1/images/generations", {"model": "emoji", "prompt": "a", "lora": ["/etc/passwd"]}),
        ("/v1/images/generations", {"model": "../emoji", "prompt": "a"}),
        ("/v1/chat/completions", {"model": "stories", "messages": [{"role": "user", "content": "a"}] * 5000}),
    ],
)
def test_what_is_without_measure_is_refused_at_once(url, path, body):
    begun = time.monotonic()
    answer = httpx.post(url + path, json=body, timeout=60)
    assert answer.status_code in (400, 404) and len(answer.content) < 2000 and time.monotonic() - begun < 10


LITTLE = {
    "max_tokens": 2,
    "max_completion_tokens": 2,
    "max_output_tokens": 2,
    "n": 2,
    "steps": 1,
}  # work for each of many requests


def lightened(path: str, body: dict) -> dict:
    """A body that asks for less, where it asks for what a server gives; and what no schema says of a conversation."""
    own = ("max_output_tokens",) if path == "/v1/responses" else ("max_tokens", "n")
    names = LITTLE.keys() & (("steps", "n") if "images" in path else own)
    names -= {"n"} if path.startswith("/v1/messages") else set()
    valid = [name for name in names if body.get(name) is None or (type(body[name]) is int and body[name] > 0)]
    less = {name: LITTLE[name] for name in valid}
    if re.fullmatch(r"\d+x\d+", str(body.get("size", ""))):
        less["size"] = "64x64"
    if path.endswith("completions") and valid:
        less |= dict.fromkeys(("logit_bias", "logprobs", "top_logprobs", "max_completion_tokens"))
    if path.startswith("/api/") and isinstance(body.get("options", {}), dict):
        less["options"] = {**body.get("options", {}), "num_predict": 2}
    if isinstance(said := body.get("messages"), list) and said and isinstance(said[-1], dict):
        less["messages"] = [*said[:-1], {**said[-1], "role": "user"}]
    return {**body, **less}


def test_fuzzed_by_its_own_page(url):
    """schemathesis: no answer is a server's error, and each is of the form that the page says."""
    from hypothesis import HealthCheck, given, settings
    from schemathesis import GenerationMode, openapi
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
    seen = Counter()

    def fuzz(operation, mode):
        until = time.monotonic() + 1

        @settings(max_examples=15, deadline=None, database=None, derandomize=True, suppress_health_check=HealthCheck)
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case):
            if time.monotonic() < until or case.operation.path not in {path for path, _ in seen}:
                if isinstance(case.body, dict):
                    case.body = lightened(case.operation.path, case.body)
                response = case.call(timeout=60)
                seen[case.operation.path, response.status_code // 100] += 1
                case.validate_response(response, checks=checks)

        ask()

    for operation in (found.ok() for found in openapi.from_url(url + "/openapi.json").get_all_operations()):
        for mode in GenerationMode if operation.method == "post" else [GenerationMode.POSITIVE]:
            fuzz(operation, mode)
    assert {path for path, status in seen if status == 2} >= {"/health", "/v1/models"}
    assert {status for _, status in seen} == {2, 4} and len({path for path, _ in seen}) == 13, seen
