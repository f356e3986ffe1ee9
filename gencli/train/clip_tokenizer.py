"""Write a Stable-Diffusion-shaped checkpoint: each part in the layout in which diffusers and transformers save it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as BPE

from gencli.checkpoints.save import copy_files, write_json
from gencli.errors import GencliError
from gencli.json_files import read_json, read_text
from gencli.tokens.clip import WORD_END, backend

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # CLIP's pieces (Radford et al. 2021)


def write_clip_tokenizer(folder: Path, texts: Iterable[str], vocab_size: int, max_length: int) -> None:
    """Train a lower-casing byte-level BPE whose words end in `</w>`, and write it as CLIP's: vocab.json, merges.txt."""
    bpe = BPE(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size - len(alphabet) - 2,
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    merges = json.loads(bpe.to_str())["model"]["merges"]
    words = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    words += [merged for merged in dict.fromkeys("".join(pair) for pair in merges) if merged not in set(words)]
    words += [BEGIN, END]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", {word: index for index, word in enumerate(words)}, indent=None)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": max_length, "do_lower_case": True, **special},
    )


def add_words(source: Path, folder: Path, words: Mapping[str, str]) -> list[tuple[int, ...]]:
    """Write the CLIP tokenizer of the folder `source` to `folder`, with a token for each of `words`.

    words: word → the word that it begins as, such as the singular of a plural; itself for most. The new tokens stand
    before the two special ones, which stay the last. Return for each token of the new tokenizer the ids of those in the
    old one that it is made of, or for a new word those of the word that it begins as. Raise GencliError for a tokenizer
    without merges.txt.
    """
    if not (source / "merges.txt").is_file():
        raise GencliError(f"{source} has no merges.txt, which new words are added to")
    vocab = {token: index for token, index in read_json(source / "vocab.json").items() if isinstance(index, int)}
    head, *lines = read_text(source / "merges.txt").splitlines()
    ranks = {(left, right): rank for rank, (left, _, right) in enumerate(line.partition(" ") for line in lines)}
    known: dict[str, tuple[int, ...]] = {token: (index,) for token, index in vocab.items() if token not in (BEGIN, END)}
    split = backend(models.BPE())

    def merged(word: str) -> list[str]:
        """The tokens of a word, of which the first piece is looked at."""
        [(letters, _), *_] = split.pre_tokenizer.pre_tokenize_str(split.normalizer.normalize_str(word))
        return _merged([*letters[:-1], letters[-1] + WORD_END], ranks)

    for word, like in sorted(words.items(), key=lambda pair: pair[0] != pair[1]):  # those like others last
        while len(parts := merged(word)) > 1:
            left, right = parts[:2]
            ranks[left, right] = len(ranks)
            origin = known[left] + known[right]
            if len(parts) == 2 and word != like:
                origin = tuple(index for token in merged(like) for index in known[token])
            known.setdefault(left + right, origin)
    tokens = [*sorted(known, key=lambda token: vocab.get(token, len(vocab))), BEGIN, END]
    folder.mkdir(parents=True, exist_ok=True)
    copy_files(source, folder, ("*.json",))
    (folder / "tokenizer.json").unlink(missing_ok=True)  # which would hold over the two that are written here
    write_json(folder / "vocab.json", {token: index for index, token in enumerate(tokens)}, indent=None)
    text = "\n".join([head, *(" ".join(pair) for pair in ranks)]) + "\n"
    (folder / "merges.txt").write_text(text, encoding="utf-8")
    return [known[token] if token in known else (vocab[token],) for token in tokens]


def _merged(parts: list[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Return what byte-pair encoding makes of a word's letters: again and again the best pair becomes one."""
    while pairs := [pair for pair in itertools.pairwise(parts) if pair in ranks]:
        best, joined, at = min(pairs, key=lambda pair: ranks[pair]), list[str](), 0
        while at < len(parts):
            taken = 2 if tuple(parts[at : at + 2]) == best else 1
            joined.append("".join(parts[at : at + taken]))
            at += taken
        parts = joined
    return parts
