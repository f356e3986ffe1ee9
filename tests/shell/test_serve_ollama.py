"""ollama's routes of a server as a process: lines that come as they are made, thoughts, a key, clients that leave."""

import hashlib
import json
import tempfile
import time
from pathlib import Path

import httpx
import pytest

from tests.oracles.libraries import openai
from tests.shell.process import gencli, listening, short_folder
from tests.tiny.chat_templates import QWEN35
from tests.tiny.scripted import make_scripted_chat, plain
from tests.tiny.text import make_gpt2

pytestmark = pytest.mark.slow
SAID = "Let me see.</think>\n\nIt is \u4f60\u597d.<|im_end|>"
ASKED = {"model": "qwen", "messages": [{"role": "user", "content": "Hi"}], "options": {"temperature": 0}}


@pytest.fixture(scope="module")
def url():
    with tempfile.TemporaryDirectory(prefix="gencli-", dir=short_folder()) as name:
        model = make_scripted_chat(Path(name) / "qwen", SAID, *plain("<think>", "</think>"), template=QWEN35)
        with listening(Path(name), "-m", model, "-m", "stories") as (_, _, url):
            yield url


def test_thoughts_and_answers(url):
    whole = httpx.post(url + "/api/chat", json={**ASKED, "stream": False}).json()
    assert whole["message"] == {"role": "assistant", "content": "It is \u4f60\u597d.", "thinking": "Let me see."}
    with httpx.stream("POST", url + "/api/chat", json=ASKED) as answer:
        parts = [json.loads(line) for line in answer.iter_lines()]
    assert "".join(part["message"].get("thinking", "") for part in parts) == "Let me see."
    assert "".join(part["message"]["content"] for part in parts) == "It is \u4f60\u597d."
    assert parts[-1]["eval_count"] == whole["eval_count"] and not any(part["done"] for part in parts[:-1])
    prompt = {"model": "qwen:latest", "prompt": "Hi", "options": ASKED["options"], "stream": False}
    said = httpx.post(url + "/api/generate", json=prompt).json()
    assert (said["response"], said["thinking"]) == (whole["message"]["content"], whole["message"]["thinking"])
    [show] = [httpx.post(url + "/api/show", json={"model": name}).json() for name in ("qwen",)]
    assert show["capabilities"] == ["completion", "thinking"] and show["template"] == QWEN35


def test_the_same_thoughts_count_as_tokens_at_openai(url):
    client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=60)
    asked = {"model": "qwen", "messages": ASKED["messages"], "temperature": 0}
    made = client.chat.completions.create(**asked)
    assert made.choices[0].message.reasoning_content == "Let me see."
    assert made.usage.completion_tokens_details.reasoning_tokens == 12, "11 bytes and the mark"
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage == made.usage
    other = client.chat.completions.create(**{**asked, "model": "stories", "max_tokens": 3})
    assert other.usage.completion_tokens_details.reasoning_tokens == 0


def test_a_seed_gives_what_the_command_line_gives(url):
    asked = {"model": "stories", "prompt": "Once upon a time", "options": {"seed": 1, "num_predict": 12}}
    said = httpx.post(url + "/api/generate", json={**asked, "stream": False}).json()
    told = json.loads(gencli("text", asked["prompt"], "--seed", 1, "-n", 12, "--json").stdout)
    assert said["response"] == told["text"] and said["done_reason"] == told["finish_reason"]
    assert (said["prompt_eval_count"], said["eval_count"]) == tuple(told["usage"].values())[:2]


def test_a_client_that_leaves_costs_nothing_more(url):
    body = {"model": "stories", "prompt": "Once upon a time", "options": {"num_predict": 400}, "keep_alive": "1h"}
    with httpx.stream("POST", url + "/api/generate", json=body) as answer:
        first = json.loads(next(answer.iter_lines()))
        assert not first["done"] and first["response"], "before the rest is made"
    end = time.monotonic() + 20
    while "gencli_requests_under_way 0\n" not in httpx.get(url + "/metrics").text:
        assert time.monotonic() < end, "it goes on for nobody"
        time.sleep(0.1)


def test_what_ollama_keeps_is_there_by_its_own_names(tmp_path):
    """A GGUF file, whatever its weights are stored as, in ollama's own folder."""
    assert gencli("models", "convert", make_gpt2(tmp_path / "gpt2"), "-o", tmp_path / "tale.gguf").returncode == 0
    data = (tmp_path / "tale.gguf").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    manifest = tmp_path / "kept/manifests/registry.ollama.ai/library/tale/1b"
    for file in (manifest, tmp_path / f"kept/blobs/sha256-{digest}"):
        file.parent.mkdir(parents=True)
        file.write_bytes(data)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}
    manifest.write_text(json.dumps({"layers": [layer]}))
    with listening(tmp_path, OLLAMA_MODELS=str(tmp_path / "kept")) as (_, _, url):
        [tag] = [one for one in httpx.get(url + "/api/tags").json()["models"] if one["name"] == "tale:1b"]
        assert tag["details"]["format"] == "gguf" and tag["details"]["family"] == "gpt2" and tag["size"] == len(data)
        body = {"model": "tale:1b", "prompt": "a", "options": {"num_predict": 2}, "stream": False}
        for name in ("tale:1b", "ollama:tale:1b"):
            answer = httpx.post(url + "/api/generate", json={**body, "model": name}).json()
            assert answer["model"] == name and answer["eval_count"] == 2
        assert [one["name"] for one in httpx.get(url + "/api/ps").json()["models"]] == ["tale:1b"]
        asked = {"model": "tale:1b", "prompt": "a", "max_tokens": 2}
        assert httpx.post(url + "/v1/completions", json=asked).json()["usage"]["completion_tokens"] == 2


def test_a_key_and_pages_of_others(tmp_path):
    with listening(tmp_path, "-m", "stories", "--key", "secret-secret") as (_, _, url):
        refused = httpx.get(url + "/api/tags")
        assert refused.status_code == 401 and "Authorization: Bearer" in refused.json()["error"]
        shown = {"Authorization": "Bearer secret-secret"}
        assert httpx.get(url + "/api/tags", headers=shown).status_code == 200
        other = httpx.post(url + "/api/generate", content=b"{}", headers={**shown, "Origin": "http://evil.example"})
        assert other.status_code == 403 and list(other.json()) == ["error"]


@pytest.fixture
def tmp_path(short_path: Path) -> Path:
    return short_path
