"""Put before simple stories what a person might have asked for: `gencli train text` reads what this writes.

    python write_requests.py stories/train.jsonl.gz told.jsonl.gz -o texts/asked.jsonl.gz

A story about what was asked follows however the request was put: as a wish, an order, a question or a title, with a
full stop or without. A story that has "about" says itself what it answers, and has a title. Of others, what a request
names comes from the beginning: whom it tells of ("a little girl named Lily who loved to dance"), or nouns that stand
out in the story and are met by then. In some of these, of an animal, another being takes its place, so that more is
asked for than the stories tell of.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import re
from collections import Counter
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
WISHES = (
    "a story about {it}", "A story about {it}", "story about {it}", "a short story about {it}",
    "A short story about {it}", "a bedtime story about {it}", "a funny story about {it}", "a tale about {it}",
    "a story of {it}", "I want a story about {it}", "I would like to hear a story about {it}", "something about {it}",
)  # fmt: skip
ORDERS = (
    "tell me a story about {it}", "Tell me a story about {it}", "tell me about {it}", "Tell me about {it}",
    "write a story about {it}", "Write a story about {it}", "Write a short story about {it}", "write about {it}",
    "Write me a story about {it}", "Tell a story about {it}", "please tell me a story about {it}",
    "Please write a story about {it}", "Make up a story about {it}", "Tell us a bedtime story about {it}",
)  # fmt: skip
QUESTIONS = (
    "Can you tell me a story about {it}", "can you write a story about {it}", "Could you tell me about {it}",
    "Do you know a story about {it}", "Will you tell me a story about {it}",
)  # fmt: skip
TITLE = ("{title}",)
KINDS = ((WISHES, 0.36), (ORDERS, 0.36), (QUESTIONS, 0.12), (TITLE, 0.16))
ENDS = {
    "order": (("", 0.45), (".", 0.45), ("!", 0.1)),
    "question": (("?", 0.7), ("", 0.3)),
    "title": (("", 0.85), (".", 0.15)),
}
BEYOND = re.compile(r"(?<=\w)(?:,| (?:who|that|which|whose|in|at|on|with|and|from|under|by|near|inside)\b)")
OTHER = 0.4  # share of stories of an animal in which another being takes its place
ANIMALS = (
    "dog", "cat", "bird", "bunny", "bear", "rabbit", "fish", "frog", "mouse", "bug", "duck", "lion", "pig", "cow",
    "horse", "monkey", "butterfly", "squirrel", "turtle", "fox", "puppy", "kitten", "elephant", "ant", "bee",
)  # fmt: skip
BEINGS = (
    *ANIMALS, "owl", "robot", "dragon", "princess", "prince", "king", "queen", "pirate", "witch", "wizard", "ghost",
    "fairy", "giant", "knight", "dinosaur", "penguin", "wolf", "snail", "spider", "hedgehog", "crocodile", "mermaid",
    "sailor", "farmer", "baker", "teacher", "doctor", "tiger", "giraffe", "zebra", "whale", "shark", "dolphin", "crab",
    "octopus", "snake", "lizard", "chicken", "goose", "swan", "parrot", "eagle", "goat", "sheep", "donkey", "camel",
    "kangaroo", "koala", "panda", "beaver", "deer", "moose", "bat", "mole", "raccoon", "hamster", "unicorn", "monster",
    "troll", "elf", "dwarf", "clown", "cowboy", "alien", "snowman", "teapot", "cloud", "star", "moon", "sun", "train",
    "car", "boat", "balloon", "tree", "flower", "pumpkin", "potato", "cupcake", "clock", "lamp", "shoe", "hat",
)  # fmt: skip
WHO = re.compile(
    r"\b(?:there (?:once )?(?:was|were|lived)|lived|met) ((?:an?|two|three|some) [a-z][^.!?\"\n]{2,80}?)"
    r"(?=[.!?]|, (?:and|but|who) )"
)
CALLED = re.compile(
    r"\b((?:girl|boy|dog|cat|bird|bunny|bear|rabbit|fish|frog|man|woman|bug|mouse)) named ([A-Z][a-z]+)"
)
FUNCTION = frozenset(
    "a an and are as at because but by could did for from had has he her him his if in into is it its of off on or "
    "she so than that the their them then there they to too under until up was went were when where which while who "
    "with would".split()
)
COMMON = frozenset(
    "day time mom dad mommy daddy girl boy man woman thing things name end way lot world story friend friends people "
    "one other others next same first best rest side top back moral morning night idea".split()
)  # too much like every story
LEAST, SHARE = 40, 0.7  # how often a word is met after an article, and how often what follows shows that it is a noun
COUNTED = 0.15  # and how often the article is "a": there are no two waters


def nouns_of(stories: list[str]) -> dict[str, int]:
    """Return the nouns of the stories and in how many each stands, by what follows them after an article."""
    met, counted, ended, found = (Counter[str]() for _ in range(4))
    for story in stories:
        words = re.findall(r"[a-z]+|[^\sa-z]", story.lower())
        for article, word, after in zip(words, words[1:], words[2:], strict=False):
            if article in ("a", "an", "the") and word.isalpha():
                met[word] += 1
                counted[word] += article != "the"
                ended[word] += not after.isalpha() or after in FUNCTION
        found.update(set(words))
    return {
        word: found[word]
        for word, count in met.items()
        if count >= LEAST
        and ended[word] >= SHARE * count
        and counted[word] >= COUNTED * count
        and word not in COMMON | FUNCTION
    }


def standing_out(story: str, nouns: dict[str, int], total: int) -> list[str]:
    """Return the nouns that a story has at least twice, those first that it has much oftener than other stories."""
    counts = Counter(word for word in re.findall(r"[a-z]+", story.lower()) if word in nouns)
    weights = {word: count * math.log(total / nouns[word]) for word, count in counts.items() if count >= 2}
    return sorted(weights, key=lambda word: -weights[word])


def another_being(story: str, rng: random.Random) -> str:
    """Return the story with another being in the place of the animal that its first sentence tells of, if it does."""
    first = re.split(r"(?<=[.!?])\s", story, maxsplit=1)[0].lower()
    animal = next((word for word in re.findall(r"[a-z]+", first) if word in ANIMALS), None)
    if animal is None or len(re.findall(rf"\b{animal}s?\b", story.lower())) < 3:
        return story
    being = rng.choice(BEINGS)
    story = re.sub(rf"\b([Aa])n?( {animal}\b)", lambda found: _article(found[1], being) + found[2], story)

    def put(found: re.Match[str]) -> str:
        word = being + found[2]
        return word.capitalize() if found[1].isupper() else word

    return re.sub(rf"\b([{animal[0]}{animal[0].upper()}]){animal[1:]}(s?)\b", put, story)


def _article(begin: str, noun: str) -> str:
    return begin + ("n" if noun[:1] in "aeiou" else "")


def with_article(noun: str) -> str:
    return f"{_article('a', noun)} {noun}"


def pick(rng: random.Random, choices: tuple[tuple[T, float], ...]) -> T:
    """Return one of several by their shares."""
    return rng.choices([one for one, _ in choices], [share for _, share in choices])[0]


def request(story: str, nouns: dict[str, int], total: int, rng: random.Random) -> str | None:
    """Return a request that the story answers, or None if nothing stands out in it."""
    begin = story[:250].lower()
    things = [one for one in standing_out(story, nouns, total) if re.search(rf"\b{one}", begin)][:3]
    who = WHO.search(story[:200])
    called = CALLED.search(story[:300])
    subjects: list[str] = []
    if who:
        subjects += [who[1].replace(" called ", " named ")] * 2
    if things:
        subjects += [with_article(things[0]), f"{with_article(things[0])} and {with_article(things[-1])}"]
        if called:
            subjects += [f"a {called[1]} named {called[2]} and {with_article(things[0])}"]
            subjects += [f"{called[2]} and the {things[0]}"]
    if not subjects:
        return None
    forms = pick(rng, KINDS)
    if forms is TITLE:
        if not things:
            return None
        titles = [things[0], with_article(things[0]), f"The {things[0]}"]
        titles += [f"{called[2]} and the {things[0]}"] * 2 if called else []
        titles += [f"the {things[0]} and the {things[1]}"] * 2 if len(things) > 1 else []
        return rng.choice(titles) + pick(rng, ENDS["title"])
    subject = rng.choice(subjects)
    if " and a " in subject and subject.split(" and ")[0] == subject.split(" and ")[1]:
        subject = subject.split(" and ")[0]
    return put(forms, subject, rng)


def put(forms: tuple[str, ...], subject: str, rng: random.Random) -> str:
    """Return a request for a story about a subject, in one of some forms."""
    return rng.choice(forms).format(it=subject) + pick(rng, ENDS["question" if forms is QUESTIONS else "order"])


def own_request(row: dict[str, str], hero: float, rng: random.Random) -> str:
    """Return a request for a story that says what it is about: all of that, or a title. hero: probability that the
    hero alone is asked for."""
    forms, about = pick(rng, KINDS), row["about"]
    if rng.random() < hero:
        about = BEYOND.split(about, maxsplit=1)[0]
    if forms is TITLE:
        return rng.choice((row["title"], row["title"], about)) + pick(rng, ENDS["title"])
    return put(forms, about, rng)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stories", type=Path, nargs="+")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--lead", default="tinystories:")
    parser.add_argument(
        "--asked", type=float, default=0.8, help="share of stories that follow a request, if one can be made"
    )
    parser.add_argument("--hero", type=float, default=0.4, help="share of own requests that name the hero alone")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = [json.loads(line) for path in args.stories for line in gzip.decompress(path.read_bytes()).splitlines()]
    stories = [row["text"] for row in rows if row["source"].startswith(args.lead)]
    nouns, rng = {**dict.fromkeys(BEINGS, LEAST), **nouns_of(stories)}, random.Random(args.seed)
    with gzip.open(args.out, "wt", encoding="utf-8") as out:
        for row in rows:
            if "about" in row:
                asked = own_request(row, args.hero, rng) if rng.random() < args.asked else None
                row = {"source": row["source"], "text": f"{asked}\n\n{row['text']}" if asked else row["text"]}
            elif row["source"].startswith(args.lead):
                text = another_being(row["text"], rng) if rng.random() < OTHER else row["text"]
                asked = request(text, nouns, len(stories), rng) if rng.random() < args.asked else None
                row = {**row, "text": f"{asked}\n\n{text}" if asked else text}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
