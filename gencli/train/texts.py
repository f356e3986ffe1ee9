"""Texts as the text recipe reads them: JSON lines or plain text files, made into rows of token ids."""

from __future__ import annotations

import gzip
import json
import random
import re
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import torch
from tokenizers import Tokenizer as BPE
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

from gencli.atomic import replace_file
from gencli.errors import GencliError
from gencli.json_files import as_unicode, check_head, parse_json
from gencli.tokens import Tokenizer
from gencli.train.recipe import LEAD

END = "<|endoftext|>"
LINES = (".jsonl", ".ndjson", ".json")  # endings of JSON lines
PLAIN = (".txt", ".md", ".rst")
KINDS = (*PLAIN, *LINES[:2])  # what a folder is read for: other JSON there is rarely texts
HINT = 'texts are plain text in UTF-8, or JSON lines with a key "text"'
LINES_HINT = f"{', '.join(LINES)} hold one such object a line; plain text is best called .txt"
HOLD_OUT = 50  # without a validation file every 50th text is held out

Text = tuple[str, str]
"""Where a text comes from (a record's "source", a file's name), and the text."""


def read_texts(path: str | Path) -> list[Text]:
    """Return the texts of a file, or of all files below a folder in the order of their names.

    A file is JSON lines with a key "text", or plain text: one text, or several with lines `<|endoftext|>` between.
    Its ending says which; where that says nothing, the first line does. Either may be gzipped. Raise GencliError for
    anything else, and if there is no text.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if _ending(file) in KINDS and file.is_file())
        if not files:
            raise GencliError(f"{path} has no text files", f"a folder is read for {', '.join(KINDS)}, also with .gz")
        texts = [text for file in files for text in _read(file, str(file.relative_to(path)))]
    else:
        texts = list(_read(path, path.name))
    if not texts:
        raise GencliError(f"{path} holds no texts", HINT)
    return texts


def _ending(path: Path) -> str:
    """Return a file's ending in lower case, without .gz."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _is_lines(path: Path, first: str) -> bool:
    """Return whether a file is JSON lines, by its ending, else by its first line: a pipe's name says nothing."""
    if _ending(path) in (*LINES, *PLAIN):
        return _ending(path) in LINES
    try:
        return first.startswith("{") and "text" in json.loads(first)
    except (ValueError, RecursionError):
        return False


def _read(path: Path, name: str) -> Iterator[Text]:
    check_head(path)
    try:
        opened = gzip.open if path.suffix.lower() == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig") as file:
            first = file.readline()
            if not _is_lines(path, first):
                parts = re.split(rf"^{re.escape(END)}$", first + file.read(), flags=re.MULTILINE)
                yield from ((name, part.strip("\n")) for part in parts if part.strip())
                return
            for number, line in enumerate(chain([first], file), 1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    record = parse_json(line, where)
                except GencliError as error:
                    raise GencliError(error.message, LINES_HINT) from None
                if not isinstance(record, dict) or "text" not in record:
                    raise GencliError(f"{where}: no JSON object with a key 'text'", LINES_HINT)
                if not isinstance(text := record["text"], str):
                    raise GencliError(f"{where}: 'text' is not a text in quotes", LINES_HINT)
                yield str(record.get("source", "")), as_unicode(text, where)
    except UnicodeDecodeError as error:
        raise GencliError(f"{path} is not UTF-8 at byte {error.start}", HINT) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise GencliError(f"{path} is not a whole gzip file: {error}") from None


def note_lead(texts: list[Text], lead: str, note: Callable[[str], None]) -> None:
    """Note a prefix with which nothing begins, unless it is the usual one: then all texts are of one group."""
    if lead != LEAD and not any(source.startswith(lead) for source, _ in texts):
        note(f"--lead {lead}: no text has a source or file name that begins so")


def hold_out(texts: list[Text]) -> tuple[list[Text], list[Text]]:
    """Return texts to train on, and every 50th for validation; of a single text its last 50th, in whole paragraphs.

    Raise GencliError for a single text without a place to cut it.
    """
    if len(texts) == 1:
        (name, text), *_ = texts
        first, last = _cut(text)
        return [(name, first)], [(name, last)]
    step = min(HOLD_OUT, len(texts))
    return [text for index, text in enumerate(texts, 1) if index % step], texts[step - 1 :: step]


def _cut(text: str) -> tuple[str, str]:
    """Cut a text in two at the end of a paragraph, else of a line, else of a sentence: about the last 50th is cut off.

    Raise GencliError for a text without any of these.
    """
    most = len(text) - max(len(text) // HOLD_OUT, 1)
    for mark in ("\n\n", "\n", ". "):
        at = text.rfind(mark, 1, most)
        if at < 1:
            at = text.find(mark, 1)
        first, last = text[: at + 1].strip("\n"), text[at + len(mark) :].strip("\n")
        if at > 0 and first.strip() and last.strip():
            return first, last
    raise GencliError("only one short text: nothing left for validation", "--validation names a file for that")


def own_tokenizer(path: Path, texts: list[Text], lead: str, vocab_size: int) -> Tokenizer:
    """Return the run's tokenizer at `path`. If need be, train it on all leading texts and a quarter of the others."""
    if not path.exists():
        leading = [text for source, text in texts if source.startswith(lead)]
        others = [text for source, text in texts if not source.startswith(lead)]
        with replace_file(path) as partial:
            train_bpe([*leading, *(others[::4] if leading else others)], vocab_size).save(str(partial))
    backend = BPE.from_file(str(path))
    end = backend.token_to_id(END)
    if end is None:
        raise GencliError(f"{path} has no {END}", "choose another -o to start again")
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END)
    return Tokenizer(backend, path.parent, bos_id=end, eos_ids=(end,), names=names)


def train_bpe(texts: list[str], vocab_size: int) -> BPE:
    """Return a byte-level BPE like GPT-2's, with an end-of-text token as id 0."""
    tokenizer = BPE(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def end_id(tokenizer: Tokenizer) -> int:
    """Return the token that ends a document. Raise GencliError if the tokenizer names none."""
    if tokenizer.eos_ids:
        return tokenizer.eos_ids[0]
    if tokenizer.bos_id is not None:
        return tokenizer.bos_id
    raise GencliError(f"{tokenizer.folder}: no token ends a text", "training needs one between documents")


class Documents:
    """Tokenised documents in two groups; a row is a sequence of whole documents of one, cut at the context's length.

    A row comes from the leading group with probability `lead_share`. Half of the rows that begin with a document's
    first token have an end token before it, as a prompt may have or not. What a step sees follows from (seed, step).
    """

    def __init__(
        self, texts: list[Text], tokenizer: Tokenizer, *, lead: str, lead_share: float, length: int, seed: int
    ):
        end = end_id(tokenizer)
        self.end = torch.tensor([end], dtype=torch.int32)
        leading: list[Tensor] = []
        others: list[Tensor] = []
        for (source, _), ids in zip(texts, tokenizer.encode_all(text for _, text in texts), strict=True):
            ids = ids if ids and ids[-1] == end else [*ids, end]
            (leading if source.startswith(lead) else others).append(torch.tensor(ids, dtype=torch.int32))
        self.groups = [leading, others] if leading and others else [leading or others] * 2
        self.lead_share, self.length, self.seed = lead_share, length, seed

    def batch(self, step: int, rows: int) -> Tensor:
        """Return the ids (rows, length) of a step."""
        rng = random.Random(f"{self.seed}/{step}")
        return torch.stack([self._row(rng) for _ in range(rows)]).long()

    def _row(self, rng: random.Random) -> Tensor:
        group = self.groups[0 if rng.random() < self.lead_share else 1]
        parts: list[Tensor] = []
        total = 0
        while total < self.length:
            document = rng.choice(group)
            if not parts and len(document) > self.length:  # long chapters are entered anywhere, stories at their start
                start = rng.randrange(0, len(document) - self.length)
                document = document[start:]
            elif not parts and rng.random() < 0.5:
                parts.append(self.end)
            parts.append(document)
            total += len(document)
        return torch.cat(parts)[: self.length]
