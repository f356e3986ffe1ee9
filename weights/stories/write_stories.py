"""Let a language model write simple stories to learn from: `gencli train text` reads what this prints.

    python write_stories.py MODEL captions.jsonl -o written.jsonl.gz --batches 40

MODEL is a folder in the hub's layout with a Llama (safetensors) that was trained on simple stories; the card says
which. Half of the stories begin freely. The other half begin with a sentence about one of the things in
captions.jsonl, so that they tell of more than the stories that the model was trained on. Some stories follow a line
such as "A story about a cat.", so that a model that learns from them takes a request for what it is. Runs on a GPU.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

LENGTHS = (64, 128, 192, 256, 320)  # tokens that a captured step attends to; the last is a story's longest
MIN_P = 0.03  # tokens less likely than this share of the likeliest are not drawn
NAMES = (
    "Anna", "Ben", "Clara", "Daniel", "Ella", "Finn", "Grace", "Henry", "Ivy", "Jack", "Kate", "Leo", "Mia", "Noah",
    "Olive", "Peter", "Rosa", "Sam", "Tara", "Will", "Zoe", "Amir", "Bella", "Carlos", "Dina", "Emma", "Felix",
    "Gina", "Hugo", "Ida", "Jonas", "Kim", "Luna", "Max", "Nora", "Omar", "Pia", "Ravi", "Sofia", "Tom", "Uma",
    "Victor", "Wendy", "Yara", "Lily", "Tim",
)  # fmt: skip
MOODS = (
    "little", "big", "old", "young", "brave", "shy", "lazy", "clever", "kind", "hungry", "sleepy", "happy",
    "lonely", "funny", "tiny", "curious", "silly", "gentle",
)  # fmt: skip
PLACES = (
    "in a small village", "by the sea", "in the forest", "on a farm", "in a big city", "near a lake", "on a hill",
    "at school", "in a quiet house", "under the ground", "far away in the mountains", "on an island",
)  # fmt: skip
OPENINGS = (
    "Once upon a time, there was a {mood} {thing}", "Once there was {a} {thing} who",
    "One day, {name} found {a} {thing}", "{name} had {a} {thing}.", "{name} and {other} saw {a} {thing}",
    "There was once {a} {thing} that lived {place}.", "Once upon a time, {place}, there lived a {mood} {thing}",
    "The {thing} was {mood}.", "{name} wanted {a} {thing}.", "It was a sunny day {place}. {name}",
    "It was a rainy day, and {name}", "{name} was afraid of the {thing}.", "Every morning, the {thing}",
    "{name} lived {place}.", "One cold night, {a} {mood} {thing}", "The {mood} {thing}",
)  # fmt: skip
REQUESTS = (
    "{thing}", "{a} {thing}", "The {thing}", "The {mood} {thing}", "A story about {a} {thing}.",
    "a story about {a} {thing}", "Tell me a story about {a} {thing}.", "Write a story about {a} {thing}.",
    "Write a short story about {a} {thing}", "A short story about {a} {thing}.", "tell me about {a} {thing}",
    "{name} and the {thing}", "What happened to the {thing}?",
)  # fmt: skip
REQUESTED = 0.15  # share of stories that follow a request


class Writer:
    """A Llama that writes `rows` stories at once: one captured graph for each length that a step attends to."""

    def __init__(self, folder: Path, rows: int, device: str = "cuda", dtype: torch.dtype = torch.bfloat16):
        self.config = json.loads((folder / "config.json").read_text("utf-8"))
        self.tensors = {
            name: tensor.to(device, dtype)
            for file in folder.glob("*.safetensors")
            for name, tensor in load_file(file).items()
        }
        self.layers, self.heads = self.config["num_hidden_layers"], self.config["num_attention_heads"]
        self.groups = self.config["num_key_value_heads"]
        self.width = self.config["hidden_size"] // self.heads
        self.rows, self.device = rows, device
        longest = LENGTHS[-1]
        shape = (self.layers, 2, rows, self.groups, longest, self.width)
        self.cache = torch.zeros(shape, dtype=dtype, device=device)
        theta = (self.config.get("rope_parameters") or self.config)["rope_theta"]
        frequencies = theta ** (-torch.arange(0, self.width, 2, device=device) / self.width)
        angles = torch.arange(longest, device=device)[:, None] * frequencies
        self.cos, self.sin = (torch.cat([part, part], -1).to(dtype) for part in (angles.cos(), angles.sin()))
        self.token = torch.zeros(rows, dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.tensors[f"{name}.weight"], self.config["rms_norm_eps"])

    def _rotate(self, x: Tensor) -> Tensor:
        """Turn (rows, heads, width) by the angles of the position."""
        cos, sin = self.cos[self.position], self.sin[self.position]
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat([-right, left], -1) * sin

    def logits(self, length: int) -> Tensor:
        """Return the logits (rows, vocabulary) after `token` at `position`, which is below `length`."""
        t, rows = self.tensors, self.rows
        x = t["model.embed_tokens.weight"][self.token]
        seen = torch.arange(length, device=self.device) <= self.position
        for layer in range(self.layers):
            name = f"model.layers.{layer}"
            y = self._norm(x, f"{name}.input_layernorm")
            q, k, v = (
                F.linear(y, t[f"{name}.self_attn.{part}_proj.weight"]).view(rows, -1, self.width) for part in "qkv"
            )
            keys, values = self.cache[layer]
            keys.index_copy_(2, self.position, self._rotate(k)[:, :, None])
            values.index_copy_(2, self.position, v[:, :, None])
            q = self._rotate(q).view(rows, self.groups, -1, self.width)
            scores = q @ keys[:, :, :length].transpose(-1, -2) * self.width**-0.5
            shares = scores.float().masked_fill(~seen, -torch.inf).softmax(-1).to(x.dtype)
            x = x + F.linear((shares @ values[:, :, :length]).reshape(rows, -1), t[f"{name}.self_attn.o_proj.weight"])
            y = self._norm(x, f"{name}.post_attention_layernorm")
            gate, up = (F.linear(y, t[f"{name}.mlp.{part}_proj.weight"]) for part in ("gate", "up"))
            x = x + F.linear(F.silu(gate) * up, t[f"{name}.mlp.down_proj.weight"])
        head = t.get("lm_head.weight", t["model.embed_tokens.weight"])
        return F.linear(self._norm(x, "model.norm"), head).float()

    def draw(self, length: int) -> Tensor:
        """Return a next token for each row: temperature 1, min-p."""
        logits = self.logits(length)
        likeliest = logits.amax(-1, keepdim=True)
        logits = logits.masked_fill(logits < likeliest + torch.log(torch.tensor(MIN_P)).item(), -torch.inf)
        return (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)  # Gumbel's trick

    def capture(self) -> None:
        """Record a step for each length."""
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.draw(LENGTHS[0])
        torch.cuda.current_stream().wait_stream(stream)
        for length in LENGTHS:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                drawn = self.draw(length)
            self.graphs[length] = graph, drawn

    def write(self, begun: list[list[int]], end: int) -> list[list[int]]:
        """Return the tokens after each beginning, up to `end`; those of stories that did not end are left out."""
        rows, longest = self.rows, LENGTHS[-1]
        forced = torch.full((rows, longest), -1, dtype=torch.long)
        for row, ids in enumerate(begun):
            forced[row, : len(ids)] = torch.tensor(ids)
        forced = forced.to(self.device)
        told = torch.full((rows, longest), end, dtype=torch.long, device=self.device)
        told[:, 0] = forced[:, 0]
        self.token.copy_(forced[:, 0])
        ended = torch.zeros(rows, dtype=torch.bool, device=self.device)
        for at in range(longest - 1):
            self.position.fill_(at)
            graph, drawn = self.graphs[next(length for length in LENGTHS if length > at)]
            graph.replay()
            following = torch.where(forced[:, at + 1] >= 0, forced[:, at + 1], drawn)
            told[:, at + 1] = following
            self.token.copy_(following)
            ended |= (following == end) & (forced[:, at + 1] < 0)
            if at % 32 == 31 and ended.float().mean().item() > 0.995:
                break
        lists, done = told.tolist(), ended.tolist()
        return [ids[1 : ids.index(end, 1)] for ids, over in zip(lists, done, strict=True) if over]


def article(thing: str) -> str:
    return "an" if thing[:1] in "aeiou" else "a"


def fill(form: str, thing: str, rng: random.Random) -> str:
    name, other = rng.sample(NAMES, 2)
    known = {"mood": rng.choice(MOODS), "place": rng.choice(PLACES), "name": name, "other": other}
    return form.format(thing=thing, a=article(thing), **known)


def is_good(story: str) -> bool:
    """Return whether a story is plain text of a fair length that does not go round in circles."""
    words = story.split()
    if not (story.isascii() and 250 <= len(story) <= 1250 and story[-1] in '.!?"'):
        return False
    fours = Counter(zip(*(words[i:] for i in range(4)), strict=False))
    return sum(count - 1 for count in fours.values()) <= 0.06 * len(words)


def requested(story: str, things: Counter[str], rng: random.Random) -> str:
    """Put a request for what a story tells of before it, if it tells of one of the known things."""
    words = [word for word in re.findall(r"[a-z]+", story) if word in things]
    if not words:
        return story
    thing = max(set(words), key=lambda word: words.count(word) / (1 + things[word]) ** 0.3)
    things[thing] += 1
    return f"{fill(rng.choice(REQUESTS), thing, rng)}\n\n{story}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("captions", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    torch.manual_seed(asked.seed)
    labels = [json.loads(line)["label"] for line in asked.captions.read_text("utf-8").splitlines()]
    things = sorted({label for label in labels if re.fullmatch(r"[a-z]+( [a-z]+)?", label) and "button" not in label})
    single = Counter({thing: 0 for thing in things if " " not in thing and len(thing) > 2})
    tokenizer = Tokenizer.from_file(str(asked.model / "tokenizer.json"))
    config = json.loads((asked.model / "config.json").read_text("utf-8"))
    end = config["eos_token_id"]
    writer, known, kept, made = Writer(asked.model, asked.rows), set(), 0, 0
    writer.capture()
    with gzip.open(asked.out, "wt", encoding="utf-8", compresslevel=4) as file, torch.inference_mode():
        for batch in range(asked.batches):
            begun = []
            for _ in range(asked.rows):
                opening = fill(rng.choice(OPENINGS), rng.choice(things), rng) if rng.random() < 0.5 else ""
                begun.append([end, *tokenizer.encode(opening, add_special_tokens=False).ids])
            for story in map(str.strip, tokenizer.decode_batch(writer.write(begun, end))):
                made += 1
                if not story or not is_good(story) or story in known:
                    continue
                known.add(story)
                kept += 1
                text = requested(story, single, rng) if rng.random() < REQUESTED else story
                file.write(json.dumps({"source": "tinystories:written", "title": "", "text": text}) + "\n")
            sys.stdout.write(json.dumps({"batch": batch + 1, "ended": made, "kept": kept}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
