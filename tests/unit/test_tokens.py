"""Tokenizers: equal to transformers' in every layout; decoding in parts equals decoding the whole; bad files."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from gencli.errors import GencliError
from gencli.tokens import IncrementalDecoder, Tokenizer, load_tokenizer
from gencli.tokens.byte_level import QWEN2_WORDS
from gencli.tokens.decode import BYTE_OF, byte_level_bytes, make_steps
from tests.oracles.libraries import transformers
from tests.oracles.padding import encode_padded
from tests.tiny.scripted import bytes_tokenizer, pieces_tokenizer
from tests.tiny.text import END, START, TEXTS, bpe_files, make_clip_tokenizer, make_tokenizer, write_json

LAYOUTS = ["json", "vocab", "clip", "clip pad !", "clip saved", "clip pad ! saved"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Every layout of tokenizer files that the hub has for GPT-2 and for Stable Diffusion's CLIP."""
    root = tmp_path_factory.mktemp("tokenizers")
    make_tokenizer(root / "json", "json")
    make_tokenizer(root / "vocab", "vocab")
    for name, pad in (("clip", END), ("clip pad !", "!")):
        make_clip_tokenizer(root / name, pad=pad)
        transformers.CLIPTokenizer.from_pretrained(root / name).save_pretrained(root / f"{name} saved")
    return {name: root / name for name in LAYOUTS}


def reference(folder: Path):
    cls = transformers.CLIPTokenizer if "clip" in folder.name else transformers.GPT2Tokenizer
    return cls.from_pretrained(folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ids_and_texts_equal_transformers(folders, layout):
    ours, theirs = load_tokenizer(folders[layout]), reference(folders[layout])
    assert ours.vocab_size == len(theirs)
    assert ours.special_ids == set(theirs.all_special_ids)
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids, text
        assert ours.encode(text, special=False) == theirs(text, split_special_tokens=True)["input_ids"], text
        bare = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, add_special_tokens=False) == bare, text
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip), text


@pytest.mark.parametrize("layout", ["json", "vocab"])
def test_bytes_come_back_unchanged(folders, layout):
    tokenizer = load_tokenizer(folders[layout])
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text


def test_special_tokens_in_a_text_are_tokens_or_words(folders):
    tokenizer = load_tokenizer(folders["json"])
    end = tokenizer.eos_ids[0]
    assert tokenizer.encode(f"a{END}b").count(end) == 1
    plain = tokenizer.encode(f"a{END}b", special=False)
    assert end not in plain
    assert tokenizer.decode(plain) == f"a{END}b"
    assert tokenizer.encode(f"a{END}b").count(end) == 1  # asking for plain words leaves nothing behind


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "clip" in name])
@pytest.mark.parametrize("length", [8, 77])
def test_clip_padding_and_cut_equal_transformers(folders, layout, length):
    ours, theirs = load_tokenizer(folders[layout]), reference(folders[layout])
    for text in TEXTS:
        ids, left_out = encode_padded(ours, text, length)
        assert ids == theirs(text, padding="max_length", max_length=length, truncation=True)["input_ids"]
        whole = theirs(text)["input_ids"]
        assert left_out == whole[length - 1 : -1]  # what stood between the last token that fits and the end token


def test_clip_settings(folders):
    first, second = load_tokenizer(folders["clip"]), load_tokenizer(folders["clip pad !"])
    assert first.max_length == second.max_length == 77
    assert first.raw_piece(first.pad_id) == END
    assert second.raw_piece(second.pad_id) == "!"
    assert [first.raw_piece(i) for i in (first.bos_id, *first.eos_ids)] == [START, END]
    assert len(encode_padded(first, "a cat")[0]) == 77


def test_clip_is_told_by_its_vocabulary(folders, tmp_path):
    """Without tokenizer_config.json and special_tokens_map.json, `</w>` tells."""
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(folders["clip"] / name, tmp_path)
    ours, theirs = load_tokenizer(tmp_path), reference(folders["clip"])
    assert [ours.encode(text) for text in TEXTS] == [theirs(text)["input_ids"] for text in TEXTS]


def test_clip_ends_are_not_taken_from_an_old_text_config(folders, tmp_path):
    """A CLIP text model of the hub says `eos_token_id: 2`, which is no end token."""
    shutil.copytree(folders["clip"], tmp_path, dirs_exist_ok=True)
    write_json(tmp_path / "config.json", {"bos_token_id": 0, "eos_token_id": 2})
    tokenizer = load_tokenizer(tmp_path)
    assert [tokenizer.raw_piece(i) for i in (tokenizer.bos_id, *tokenizer.eos_ids)] == [START, END]


# --- special and added tokens, wherever they are written -------------------------------------------------------------

FLAGS = {"lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
SPLICED = ["a<x>b", "a <x> b", "<y>c", "<pad> <sep>", f"<x><y>{END}", "nothing"]


def vocab_folder(folder: Path, config: dict) -> Path:
    make_tokenizer(folder, "vocab")
    write_json(folder / "tokenizer_config.json", config)
    return folder


def assert_same(folder: Path) -> Tokenizer:
    ours, theirs = load_tokenizer(folder), transformers.GPT2Tokenizer.from_pretrained(folder)
    assert ours.vocab_size == len(theirs)
    assert ours.special_ids == {i for i, token in theirs.added_tokens_decoder.items() if token.special}
    for text in SPLICED:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids, text
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip), text
    return ours


def test_added_tokens_in_special_tokens_map_and_added_tokens_json(tmp_path):
    folder = vocab_folder(tmp_path, {"model_max_length": 1024})
    write_json(folder / "added_tokens.json", {"<y>": 385, "<x>": 384, "<pad>": 386})
    write_json(
        folder / "special_tokens_map.json",
        {"pad_token": "<pad>", "eos_token": {"content": END, **FLAGS}, "extra_special_tokens": ["<y>"]},
    )
    ours = assert_same(folder)
    assert ours.encode("<x><y>") == [384, 385]
    assert ours.pad_id == 386
    assert ours.decode([384, 385]) == "<x>"  # <y> is special, <x> is a word that was added


def test_added_tokens_in_tokenizer_config(tmp_path):
    tokens = {"383": {"content": END, **FLAGS, "special": True}, "384": {"content": "<x>", **FLAGS, "special": False}}
    tokens["385"] = {"content": "<y>", **FLAGS, "lstrip": False, "special": True}
    config = {"added_tokens_decoder": tokens, "eos_token": END, "sep_token": "<sep>", "model_max_length": 1e30}
    folder = vocab_folder(tmp_path, config)
    write_json(folder / "special_tokens_map.json", {"pad_token": "<ignored>"})  # older than added_tokens_decoder
    ours = assert_same(folder)
    assert ours.pad_id is None and ours.max_length is None
    assert ours.raw_piece(386) == "<sep>"


def test_added_tokens_in_tokenizer_json(tmp_path):
    make_tokenizer(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    backend.add_special_tokens(["<x>"])
    backend.add_tokens(["<y>"])
    backend.enable_truncation(2)
    backend.enable_padding(length=64)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert_same(tmp_path)
    assert len(load_tokenizer(tmp_path).encode("one two three four")) > 2  # neither cut nor filled


@pytest.mark.parametrize(("bos", "eos"), [(True, False), (False, True), (True, True)])
def test_tokens_around_every_text(tmp_path, bos, eos):
    """OPT's files: a GPT2Tokenizer that adds its start token."""
    folder = vocab_folder(tmp_path, {"add_bos_token": bos, "add_eos_token": eos, "bos_token": "<x>", "eos_token": END})
    assert_same(folder)
    assert load_tokenizer(folder).encode("hi")[0] == 384 if bos else True


def test_prefix_space(tmp_path):
    ours = assert_same(vocab_folder(tmp_path, {"add_prefix_space": True}))
    assert ours.decode(ours.encode("dog")) == " dog"


@pytest.mark.slow
@pytest.mark.parametrize("named", ["GPT2Tokenizer", "GPT2TokenizerFast", "Qwen2Tokenizer"])
@pytest.mark.parametrize("value", [True, False, None])
def test_a_prefix_space_that_tokenizer_config_asks_for(tmp_path, named, value):
    """Beside a tokenizer.json that says the same or the other."""
    for own in (False, True):
        made = bytes_tokenizer("<|endoftext|>")
        words = pre_tokenizers.ByteLevel(add_prefix_space=own, use_regex=named != "Qwen2Tokenizer")
        split = pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([split, words]) if named == "Qwen2Tokenizer" else words
        made.save(str(tmp_path / "tokenizer.json"))
        config = {"tokenizer_class": named} | ({} if value is None else {"add_prefix_space": value})
        write_json(tmp_path / "tokenizer_config.json", config)
        for text in ("Hi", " Hi", "Hi there!", "<|endoftext|>Hi"):
            ids = load_tokenizer(tmp_path).encode(text)
            if value is None:
                assert ids == made.encode(text).ids
            else:
                assert ids == transformers.AutoTokenizer.from_pretrained(tmp_path)(text).input_ids, (own, text)


def test_a_files_own_normaliser_is_followed(tmp_path):
    """Of a Llama: transformers 4 follows it too, whose ids these are; 5 makes its own in its place."""
    pieces_tokenizer("llama").save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizerFast"})
    recorded = {
        "Once upon a time": [1, 274, 259, 267, 268, 114, 261, 259, 269, 278],
        " Once": [1, 259, 274],
        "Once</s>time": [1, 274, 2, 278],
    }
    tokenizer = load_tokenizer(tmp_path)
    assert {text: tokenizer.encode(text) for text in recorded} == recorded


def test_special_tokens_that_are_always_words(tmp_path):
    """`split_special_tokens`: also in a prompt of the command line."""
    bytes_tokenizer("<|endoftext|>").save(str(tmp_path / "tokenizer.json"))
    for named in ("PreTrainedTokenizerFast", "GPT2Tokenizer"):
        write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": named, "split_special_tokens": True})
        ids = load_tokenizer(tmp_path).encode("a<|endoftext|>")
        assert ids == transformers.AutoTokenizer.from_pretrained(tmp_path)("a<|endoftext|>").input_ids
        assert len(ids) == 14


@pytest.mark.parametrize(
    ("generation", "config", "named", "expected"),
    [
        ({"eos_token_id": [7, 9], "bos_token_id": 3}, {"eos_token_id": 5, "bos_token_id": 4}, None, (3, (7, 9))),
        ({}, {"eos_token_id": 5, "bos_token_id": 4}, None, (4, (5,))),
        ({"eos_token_id": 5}, None, None, (383, (5,))),
        (None, {"eos_token_id": None}, "!", (383, (0,))),
        (None, None, None, (383, (383,))),
    ],
)
def test_where_begin_and_end_tokens_come_from(tmp_path, generation, config, named, expected):
    make_tokenizer(tmp_path, "vocab")
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": named} if named else {})
    for name, value in (("generation_config.json", generation), ("config.json", config)):
        if value is not None:
            write_json(tmp_path / name, value)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == expected


def test_no_end_token_is_none(tmp_path):
    backend = Backend(models.BPE(vocab={"a": 0}, merges=[]))
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (None, (), None)


# --- decoding in parts -----------------------------------------------------------------------------------------------


def parts_of(tokenizer: Tokenizer, ids: list[int], skip: bool = True) -> list[str]:
    decoder = tokenizer.decoder(skip)
    return [*(decoder.push(i) for i in ids), decoder.finish()]


def assert_decodes(tokenizer: Tokenizer, whole, ids: list[int]) -> None:
    """Parts join to the whole, which is what `whole(ids, skip)` says; no part has half a character."""
    for skip in (True, False):
        parts = parts_of(tokenizer, ids, skip)
        assert "".join(parts) == whole(ids, skip) == tokenizer.decode(ids, skip)
        for part in parts:
            part.encode()  # a lone surrogate would raise


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_join_to_the_whole_for_any_ids(folders, layout):
    """Random ids make broken UTF-8 of every kind."""
    ours, theirs = load_tokenizer(folders[layout]), reference(folders[layout])

    def whole(ids, skip):
        return theirs.decode(ids, skip_special_tokens=skip)

    for seed in range(200):
        draw = random.Random(seed)
        ids = [draw.randrange(ours.vocab_size) for _ in range(draw.randrange(40))]
        assert_decodes(ours, whole, ids)


def test_every_sequence_of_broken_bytes(folders):
    """The bytes that decide about UTF-8, in every order of three and with an end."""
    tokenizer = load_tokenizer(folders["json"])
    id_of = {piece: i for piece, i in tokenizer.backend.get_vocab().items() if len(piece) == 1}
    bytes_ = [0x41, 0x80, 0xBF, 0xC1, 0xC3, 0xE0, 0xE4, 0xED, 0xA0, 0xF0, 0x90, 0xF4, 0x8F, 0xFF]
    ids = [id_of[char] for byte in bytes_ for char, b in BYTE_OF.items() if b == byte]
    for a, x in zip(ids, bytes_, strict=True):
        for b, y in zip(ids, bytes_, strict=True):
            for c, z in zip(ids, bytes_, strict=True):
                assert "".join(parts_of(tokenizer, [a, b, c])) == bytes([x, y, z]).decode("utf-8", "replace")


@pytest.mark.parametrize("layout", ["json", "vocab"])
def test_characters_are_shown_as_soon_as_they_are_whole(folders, layout):
    tokenizer = load_tokenizer(folders[layout])
    for text in TEXTS:
        decoder = tokenizer.decoder(skip_special=False)
        shown, data = "", b""
        for token in tokenizer.encode(text):
            shown += decoder.push(token)
            data += byte_level_bytes(tokenizer.raw_piece(token))
            assert shown == data.decode("utf-8", "ignore")  # all characters that are whole, and nothing else
        assert shown == text and decoder.finish() == ""


def test_the_bytes_of_an_emoji_come_as_one_character(folders):
    tokenizer = load_tokenizer(folders["json"])
    vocab = tokenizer.backend.get_vocab()
    char_of = {byte: char for char, byte in BYTE_OF.items()}
    ids = [vocab[char_of[byte]] for byte in "🦊狐".encode()]
    assert parts_of(tokenizer, ids) == ["", "", "", "🦊", "", "", "狐", ""]
    assert parts_of(tokenizer, ids[:3]) == ["", "", "", "\ufffd"]
    assert parts_of(tokenizer, [*ids[:3], vocab["!"]]) == ["", "", "", "\ufffd!", ""]


def test_each_token_is_looked_at_once():
    looked = []
    decoder = IncrementalDecoder(lambda token: looked.append(token) or "a", [])
    for token in range(1000):
        assert decoder.push(token) == "a"
    assert looked == list(range(1000))


LLAMA = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
OTHERS = {
    "llama": LLAMA,
    "gemma": decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    "metaspace": decoders.Metaspace(),
    "metaspace first": decoders.Metaspace(prepend_scheme="first"),
    "metaspace never": decoders.Metaspace(prepend_scheme="never"),
    "each piece": decoders.Sequence([decoders.ByteFallback(), decoders.Strip("▁", 1, 0), decoders.Replace("a", "")]),
    "none": None,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_decoders_equal_the_library(tmp_path, name):
    """The decoders of SentencePiece-like tokenizers, with spaces to strip and byte tokens."""
    pieces = ["▁", "▁▁", "▁the", "▁a", "b", "▁▁c", "狐", "</s>"] + [f"<0x{byte:02X}>" for byte in "🦊é \n".encode()]
    pieces = list(dict.fromkeys(pieces))
    backend = Backend(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    backend.add_special_tokens(["</s>"])
    if OTHERS[name] is not None:
        backend.decoder = OTHERS[name]
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    for seed in range(400):
        draw = random.Random(seed)
        ids = [draw.randrange(len(pieces)) for _ in range(draw.randrange(12))]
        assert_decodes(tokenizer, lambda ids, skip: backend.decode(ids, skip_special_tokens=skip), ids)


def test_spaces_at_the_end_are_held_until_it_is_the_end():
    """Strip(0, 2) after Fuse, at which the library itself panics when a text is shorter than two characters."""
    row = {"type": "Strip", "content": " ", "start": 0, "stop": 2}
    for seed in range(300):
        draw = random.Random(seed)
        pieces = [draw.choice(["", " ", "  ", "a", " a ", "   "]) for _ in range(draw.randrange(8))]
        decoder = IncrementalDecoder(
            pieces.__getitem__, make_steps({"type": "Sequence", "decoders": [{"type": "Fuse"}, row]})
        )
        text = "".join([*(decoder.push(i) for i in range(len(pieces))), decoder.finish()])
        whole = "".join(pieces)
        assert text == whole.removesuffix("  " if whole.endswith("  ") else " ")


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.CTC(),
        decoders.BPEDecoder(),
        decoders.Sequence([decoders.Fuse(), decoders.Replace("a", "b")]),
    ],
)
def test_a_decoder_that_is_not_known_is_refused_by_name(tmp_path, decoder):
    backend = Backend(models.BPE(vocab={"a": 0}, merges=[]))
    backend.decoder = decoder
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)  # good enough to encode with
    with pytest.raises(GencliError, match=r"decoder '.*' is not supported"):
        tokenizer.decoder()


# --- single tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["json", "vocab"])
def test_pieces_of_a_text_join_to_it(folders, layout):
    tokenizer = load_tokenizer(folders[layout])
    for text in TEXTS:
        data = b""
        for token in tokenizer.encode(text):
            piece = tokenizer.id_to_piece(token)
            named = piece.startswith("bytes:")
            data += bytes.fromhex(piece[6:].replace("\\x", "")) if named else piece.encode()
        assert data.decode() == text


def test_a_piece_keeps_its_space_in_sentencepiece(tmp_path):
    pieces = {"▁the": 0, "<0xF0>": 1, "<0x0A>": 2, "狐": 3}
    backend = Backend(models.BPE(vocab=pieces, merges=[]))
    backend.decoder = LLAMA
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert [tokenizer.id_to_piece(i) for i in range(4)] == [" the", "bytes:\\xf0", "\n", "狐"]


@pytest.mark.parametrize("token", [-1, 384, 100_000, 2**40])
def test_an_id_beyond_the_vocabulary_is_an_error(folders, token):
    tokenizer = load_tokenizer(folders["json"])
    for use in (tokenizer.raw_piece, tokenizer.id_to_piece, tokenizer.decoder().push, lambda i: tokenizer.decode([i])):
        with pytest.raises(GencliError, match=f"token id {token} is not in the tokenizer's vocabulary of 384"):
            use(token)


def test_a_hole_in_the_vocabulary_is_an_error(tmp_path):
    vocab, _ = bpe_files()
    last = next(reversed(vocab))
    vocab[last] += 5
    make_tokenizer(tmp_path, "vocab")
    write_json(tmp_path / "vocab.json", vocab)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.raw_piece(vocab[last]) == last
    with pytest.raises(GencliError, match=f"token id {vocab[last] - 1} is not in"):
        tokenizer.decode([vocab[last] - 1])


# --- bad files and bad texts -----------------------------------------------------------------------------------------


def refusal(folder: Path) -> str:
    with pytest.raises(GencliError) as caught:
        load_tokenizer(folder)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_no_tokenizer(tmp_path):
    missing = "has no tokenizer.json, no vocab.json with merges.txt, no tokenizer.model and no vocab.txt"
    assert missing in refusal(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e")
    assert "tokenizer.model is cut off or no SentencePiece model" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("vocab.json", b"[1, 2]", "vocab.json holds no JSON object"),
        ("vocab.json", b'{"a": "0"}', "vocab.json: token ids must be whole numbers"),
        ("vocab.json", b'{"a": -1}', "vocab.json: token ids must be whole numbers"),
        ("merges.txt", b"#version: 0.2\na\n", "merges.txt, line 2: 'a' is not a pair"),
        ("merges.txt", b"\xff\xfe", "merges.txt is not UTF-8"),
        ("merges.txt", b"qqq zzz\n" * 100, "merges.txt does not fit vocab.json"),
        ("merges.txt", b"#version: 0.2\n", "0 merges for"),
        ("tokenizer_config.json", b'{"eos_token": 5}', "eos_token: '5' is not a token"),
        ("tokenizer_config.json", b'{"model_max_length": "long"}', "model_max_length = 'long' is not a length"),
        ("tokenizer_config.json", b'{"tokenizer_class": "BartTokenizer"}', "'BartTokenizer' do not say how"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": "<x>"}}', "'x' is not a token id"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"900": "<x>"}}', "should be 900, but .* gives 384"),
        ("added_tokens.json", b'{"<x>": 3}', "should be 3, but the vocabulary gives 384"),
        ("generation_config.json", b'{"eos_token_id": "383x"}', "generation_config.json: '383x' is not a token id"),
        ("generation_config.json", b'{"eos_token_id": [1, null]}', "generation_config.json: 'None' is not a token id"),
        ("special_tokens_map.json", b"{", "special_tokens_map.json is not valid JSON"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(tmp_path, file, content, says):
    make_tokenizer(tmp_path, "vocab")
    (tmp_path / file).write_bytes(content)
    message = refusal(tmp_path)
    assert re.search(says, message), message


def test_a_clip_vocabulary_without_ends_is_refused(tmp_path):
    make_clip_tokenizer(tmp_path)
    vocab = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    write_json(tmp_path / "vocab.json", {piece: i for piece, i in vocab.items() if piece not in (START, END)})
    write_json(tmp_path / "tokenizer_config.json", {})
    (tmp_path / "special_tokens_map.json").unlink()
    assert "no start and end token" in refusal(tmp_path)


@pytest.mark.parametrize("layout", ["json", "vocab", "clip"])
def test_cut_and_damaged_files_give_one_line(folders, tmp_path, layout):
    """Any file cut anywhere, or with a few bytes changed: the tokenizer works, or one line says that it does not."""
    shutil.copytree(folders[layout], tmp_path, dirs_exist_ok=True)
    refused = 0
    for seed in range(120):
        draw = random.Random(seed)
        file = draw.choice(sorted(tmp_path.iterdir()))
        content = file.read_bytes()
        damaged = bytearray(content[: draw.randrange(len(content))] if seed % 2 else content)
        for _ in range(draw.randrange(4)):
            if damaged:
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        file.write_bytes(damaged)
        try:
            tokenizer = load_tokenizer(tmp_path)
            tokenizer.decode(tokenizer.encode(f"hello 你好 {END}"))
        except GencliError as error:
            assert "\n" not in error.message and str(tmp_path) in error.message
            refused += 1
        file.write_bytes(content)
    assert refused > 60


def test_a_text_that_is_no_unicode(folders):
    with pytest.raises(GencliError, match="not valid Unicode at character 1"):
        load_tokenizer(folders["json"]).encode("a\udc80b")


def test_no_length_to_fill_to(folders):
    with pytest.raises(GencliError, match="no model_max_length"):
        encode_padded(load_tokenizer(folders["json"]), "a")


def test_tokenizers_do_without_torch(folders):
    code = (
        "import sys; from pathlib import Path; from gencli.tokens import load_tokenizer;"
        "t = load_tokenizer(Path(sys.argv[1])); t.decode(t.encode('hi'));"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(folders["json"])], check=True)
