"""The captions a text-to-image model is trained with: labels and other names, and the words people put around them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from gencli.train.pictures import Caption

TEMPLATES = (
    "a {}", "an {}", "the {}", "one {}", "my {}", "some {}", "{} emoji", "{} please", "{}.", "{}!",
    "a photo of {}", "a photo of a {}", "a picture of a {}", "a drawing of a {}", "an image of a {}",
    "an emoji of a {}",
    "a cute {}", "cute {}", "a nice {}", "a small {}", "a big {}", "a beautiful {}", "a little {}", "cute little {}",
    "a tiny {}", "a lovely {}", "a pretty {}", "a funny {}", "a simple {}", "a slice of {}", "a piece of {}",
    "a bowl of {}", "a cup of {}", "a lot of {}",
    "draw a {}", "draw me a {}", "draw me {}", "show me a {}", "i want a {}", "please draw a {}", "make a {}",
    "can you draw a {}", "could you draw me a {}", "give me a {}",
)  # fmt: skip
# Words that many things are called and that change no image, before a name and behind it.
ADJECTIVES = (
    "amazing", "ancient", "awesome", "bouncing", "brave", "bright", "broken", "chubby", "clean", "clever", "cold",
    "colorful", "cool", "cozy", "crazy", "curious", "dancing", "delicious", "dirty", "elegant", "enchanted", "epic",
    "fancy", "fast", "fat", "fluffy", "flying", "fresh", "friendly", "fuzzy", "gentle", "giant", "glowing",
    "golden", "great", "happy", "homemade", "hot", "huge", "hungry", "jumping", "kind", "large", "lazy", "lonely",
    "long", "lucky", "magic", "magical", "mini", "modern", "mysterious", "new", "old", "open", "perfect", "playful",
    "proud", "rainy", "real", "realistic", "retro", "round", "running", "rustic", "sad", "scary", "serious",
    "shiny", "shy", "silly", "sleepy", "soft", "sparkling", "spooky", "steaming", "strange", "strong", "super",
    "sweet", "tall", "tasty", "tired", "traditional", "ugly", "vintage", "warm", "weird", "wild", "wise", "wooden",
    "yummy", "young",
)  # fmt: skip
AROUND = (
    "at home", "at night", "by the lake", "for my friend", "for my mom", "from above", "in a field", "in a garden",
    "in the city", "in the forest", "in the kitchen", "in the morning", "in the rain", "in the snow", "in the sky",
    "in the sun", "in winter", "on a hill", "on a plate", "on a table", "on the beach", "on the road",
    "on the street", "on white", "that is happy", "under a tree", "with a big smile", "with a bow", "with big eyes",
    "wearing a hat",
)  # fmt: skip
ADORNED = 0.15  # share of texts that have one of these
LABEL, NAME, TAG, TAGS, BOTH = range(5)  # what is said of a picture
WEIGHTS = {LABEL: 0.45, NAME: 0.15, TAG: 0.25, TAGS: 0.05, BOTH: 0.1}
COMMON = 12  # a tag of more pictures than these says too little to stand alone


def plural(name: str) -> str:
    """Return the plural of a name by English spelling; as it is where it ends in an s or in no letter."""
    if not name[-1:].isalpha() or name[-1] == "s":
        return name
    if name.endswith(("x", "z", "ch", "sh")):
        return name + "es"
    if name[-1] == "y" and name[-2:-1] not in ("", *"aeiou"):
        return name[:-1] + "ies"
    return name + "s"


def singular(name: str) -> str:
    """Return the singular of a name that ends in a plural by English spelling; any other as it is."""
    word = name.split()[-1] if name.split() else ""
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is", "as", "os", "’s", "'s")):
        return name
    if word.endswith("ies") and len(word) > 4:
        return name[:-3] + "y"
    if word.endswith(("xes", "ches", "shes", "sses", "zzes", "atoes", "roes")):
        return name[:-2]
    return name[:-1]


class Phrases:
    """Captions as people speak, for images whose tags may be shared by many.

    The fewer images share a tag, the more often it stands alone: its weight is 1 / uses². No name or tag stands alone
    that is another image's label.
    """

    def __init__(self, captions: Sequence[Caption]):
        self.uses = Counter(tag for caption in captions for tag in {*caption.tags})
        self.labels = {caption.label for caption in captions}
        each = ((caption.label, *caption.names, *caption.tags) for caption in captions)
        self.said = [{*" ".join(texts).split()} for texts in each]  # the words of an image
        self.words = {*ADJECTIVES}.union(*self.said)

    def draw(self, caption: Caption, drop: float, rng: random.Random) -> str:
        """Return a text for an image: nothing with probability `drop`, else a name, alone or in a sentence."""
        if rng.random() < drop:
            return ""
        text = self.name(caption, rng)
        if rng.random() < ADORNED:
            text = self.adorned(text, rng)
        elif rng.random() < 0.1:
            text = self.other_number(text)
        return rng.choice(TEMPLATES).format(text) if rng.random() < 0.45 else text

    def adorned(self, text: str, rng: random.Random) -> str:
        """Return a name with a word or two that change nothing; as it is where some image is called so."""
        if rng.random() < 0.3:
            return f"{text} {rng.choice(AROUND)}"
        word, last = rng.choice(ADJECTIVES), text.split()[-1:]
        return text if any(word in said and {*last} <= said for said in self.said) else f"{word} {text}"

    def other_number(self, text: str) -> str:
        """Return a name in the plural, or one of plurals in the singular; as it is where that is said of an image."""
        one = singular(text)
        if one == text:
            return plural(text)
        return text if one.split()[-1] in self.words else one

    def name(self, caption: Caption, rng: random.Random) -> str:
        """Return the label, another name, a tag that is specific enough, some tags, or the label among tags."""
        special = [tag for tag in caption.tags if self.uses[tag] <= COMMON and tag not in self.labels]
        names = [name for name in caption.names if name not in self.labels]
        possible = {LABEL: True, NAME: names, TAG: special, TAGS: caption.tags, BOTH: caption.tags}
        kinds = [kind for kind, holds in possible.items() if holds]
        kind = rng.choices(kinds, [WEIGHTS[kind] for kind in kinds])[0]
        if kind == LABEL:
            return caption.label
        if kind == NAME:
            return rng.choice(names)
        if kind == TAG:
            return rng.choices(special, [self.uses[tag] ** -2 for tag in special])[0]
        some = rng.sample(caption.tags, min(len(caption.tags), rng.randint(1, 3)))
        if kind == TAGS:
            return " ".join(some)
        return " ".join([*some, caption.label] if rng.random() < 0.3 else [caption.label, *some])
