"""Questions about images that are asked of a server: each is answered about its own, as the command line answers it."""

import base64
import json
import tempfile
import threading
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.oracles.libraries import anthropic, openai
from tests.shell.process import gencli, listening, short_folder
from tests.tiny.janus import SIDE, make_janus

pytestmark = pytest.mark.slow
GREEDY = {"temperature": 0, "num_predict": 24}
SETTINGS = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "min_size": 14, "size": {"height": SIDE, "width": SIDE}}
ASKED = "What is this?"


@pytest.fixture(scope="module")
def place():
    with tempfile.TemporaryDirectory(prefix="gencli-", dir=short_folder()) as name:
        folder = Path(name)
        make_janus(folder / "janus")
        (folder / "janus" / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
        Image.new("RGB", (40, 40), "red").save(folder / "red.png")
        Image.linear_gradient("L").resize((60, 40)).convert("RGB").save(folder / "grey.png")
        with listening(folder, "-m", folder / "janus", "-m", "stories") as (_, _, url):
            yield folder, url


def ask(place, image: str, **more) -> dict:
    folder, url = place
    seen = [base64.b64encode((folder / f"{image}.png").read_bytes()).decode()]
    body = {"model": "janus", "prompt": ASKED, "images": seen, "options": GREEDY, "stream": False, **more}
    return httpx.post(url + "/api/generate", json=body, timeout=60).json()


def test_many_questions_at_once_are_each_about_their_own_image(place):
    """Also beside texts about none, which see nothing of the others' images."""
    folder, url = place
    alone = {}
    for image in ("red", "grey"):
        words = (
            "text",
            ASKED,
            "-m",
            folder / "janus",
            "-i",
            folder / f"{image}.png",
            "--temperature",
            0,
            "-n",
            24,
            "--json",
        )
        alone[image] = json.loads(gencli(*words).stdout)["text"]
    assert alone["red"] != alone["grey"]
    blind = {"model": "janus", "prompt": "a <image_placeholder>", "raw": True, "options": GREEDY, "stream": False}
    before = httpx.post(url + "/api/generate", json=blind, timeout=60).json()["response"]
    found: list[tuple[str, str]] = []

    def question(image: str) -> None:
        if image in alone:
            found.append((image, ask(place, image)["response"]))
        else:
            found.append((image, httpx.post(url + "/api/generate", json=blind, timeout=60).json()["response"]))

    threads = [threading.Thread(target=question, args=(image,)) for image in ("red", "grey", "none") * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted([*alone.items(), ("none", before)] * 3)


def test_all_apis_take_them(place):
    folder, url = place
    said = ask(place, "grey")["response"]
    data = base64.b64encode((folder / "grey.png").read_bytes()).decode()
    messages = [{"role": "user", "content": ASKED, "images": [data]}]
    chat = {"model": "janus:latest", "messages": messages, "options": GREEDY, "stream": False}
    assert httpx.post(url + "/api/chat", json=chat, timeout=60).json()["message"]["content"] == said
    client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=60)
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    content = [{"type": "text", "text": ASKED}, image]
    how = {"model": "janus", "temperature": 0, "max_tokens": 24, "messages": [{"role": "user", "content": content}]}
    assert client.chat.completions.create(**how).choices[0].message.content == said
    with pytest.raises(openai.BadRequestError, match="stories reads no images"):
        client.chat.completions.create(**{**how, "model": "stories"})
    how["messages"] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, *how["messages"]]
    with pytest.raises(openai.BadRequestError, match="answers one question about images"):
        client.chat.completions.create(**how)
    client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=60)
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    how = {"model": "janus", "messages": [{"role": "user", "content": [content[0], image]}]}
    answer = client.messages.create(**how, max_tokens=24, extra_body={"temperature": 0})
    assert answer.content[0].text == said
    assert client.messages.count_tokens(**how).input_tokens == answer.usage.input_tokens
    with pytest.raises(anthropic.BadRequestError, match="stories reads no images"):
        client.messages.create(**{**how, "model": "stories"}, max_tokens=24)


def test_the_model_draws_and_reads(place):
    _, url = place
    assert httpx.post(url + "/api/show", json={"model": "janus"}).json()["capabilities"] == ["completion", "vision"]
    assert [one["name"] for one in httpx.get(url + "/api/tags").json()["models"]] == ["janus:latest", "stories:latest"]
    drawn = httpx.post(url + "/v1/images/generations", json={"model": "janus", "prompt": "a"}, timeout=60)
    assert drawn.status_code == 200 and len(drawn.json()["data"]) == 1


def test_what_is_no_image_is_told(place):
    _, url = place
    body = {"model": "janus", "prompt": ASKED, "images": [base64.b64encode(b"text").decode()]}
    answer = httpx.post(url + "/api/generate", json=body)
    assert answer.status_code == 400 and answer.json()["error"].startswith("images: cannot read the file as an image")
