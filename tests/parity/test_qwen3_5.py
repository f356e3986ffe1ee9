"""Qwen 3.5 beyond what every decoder is asked: long texts in pieces of any size, files with a vision tower, and a cache
whose states cannot be cut back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gencli.checkpoints.build import load
from gencli.checkpoints.find import Source
from gencli.errors import GencliError
from gencli.json_files import read_json
from gencli.models import delta_rule, state_cache, step
from gencli.models.state_cache import StateCache
from gencli.text.batch import Batch
from gencli.text.chat import ChatModel, ChatSession
from gencli.text.conversation import Conversation
from gencli.text.events import Completion
from gencli.text.generate import Job, generate, generate_all
from gencli.text.load import TextModel, open_model
from gencli.text.prompt_cache import PromptCache
from gencli.text.prompt_file import PromptFile
from gencli.text.request import TextRequest
from gencli.train.language import save_text
from tests.oracles.decoders import reference, token_ids
from tests.tiny.decoder_cases import CASES
from tests.tiny.decoders import make_decoder
from tests.tiny.text import make_tokenizer, random_model, write_json

TOLERANCE = 1e-4
OURS = [case for case in CASES if case.name.startswith("qwen3.5")]
BY_NAME = {case.name: case for case in OURS}
GREEDY = TextRequest.of(temperature=0.0).resolve({})
LONG = {"max_position_embeddings": 4096}
ours = pytest.mark.parametrize("name", BY_NAME)


@ours
@torch.inference_mode()
def test_a_long_text_in_pieces_of_any_size(name: str, tmp_path: Path) -> None:
    """Several chunks at once, parts of chunks, single steps: every way is the reference's."""
    make_decoder(tmp_path, BY_NAME[name], **({} if name == "qwen3.5-yarn" else LONG))
    count = 64 if name == "qwen3.5-yarn" else 333
    model, ids = load(tmp_path), token_ids(2, count)
    expected = reference(tmp_path)(ids).logits
    torch.testing.assert_close(model(ids), expected, atol=TOLERANCE, rtol=0)
    for pieces in ([count], [1] * 20, [63, 1, 65, 2], [7] * 9, [128], [3, 200]):
        cache, start, got = model.new_cache(2, count), 0, []
        for piece in [*pieces, count]:
            stop = min(start + piece, count)
            got.append(model(ids[:, start:stop], cache)) if stop > start else None
            start = stop
        # over hundreds of tokens the order of sums alone makes this much
        torch.testing.assert_close(torch.cat(got, 1), expected, atol=2 * TOLERANCE, rtol=0)


def test_chunks_are_the_recurrence() -> None:
    """With memories that last and memories that end at once, from a state that is not empty."""
    draw = torch.Generator().manual_seed(0)
    for count in (2, 63, 64, 65, 130, delta_rule.BLOCK + 70):
        q, k = (torch.nn.functional.normalize(torch.randn(2, 3, count, 16, generator=draw), dim=-1) for _ in range(2))
        v, state = torch.randn(2, 3, count, 8, generator=draw), torch.randn(2, 3, 16, 8, generator=draw)
        g = -torch.rand(2, 3, count, generator=draw) * torch.tensor([1e-3, 1.0, 60.0])[:, None]
        beta = torch.rand(2, 3, count, generator=draw)
        got, end = delta_rule.read(state, q, k, v, g, beta)
        for i in range(count):
            y, state = delta_rule.step(state, *(one[:, :, i : i + 1] for one in (q, k, v, g, beta)))
            torch.testing.assert_close(got[:, :, i : i + 1], y, atol=2e-5, rtol=0)
        torch.testing.assert_close(end, state, atol=2e-5, rtol=0)


@ours
@torch.inference_mode()
def test_rows_of_any_length(name: str, tmp_path: Path) -> None:
    """Texts at other positions in one step are what they are alone."""
    model = load(make_decoder(tmp_path, BY_NAME[name]))
    texts, known = token_ids(3, 40), (3, 21, 9)
    together = model.new_cache(4, 50)
    for row, count in enumerate(known):
        model(texts[row : row + 1, :count], together.row(row))
    expected = [model(texts[row : row + 1]) for row in range(3)]
    for i in range(19):
        new = torch.stack([text[count + i : count + i + 1] for text, count in zip(texts, known, strict=True)])
        got = model(new, together)
        wanted = torch.cat([one[:, count + i : count + i + 1] for one, count in zip(expected, known, strict=True)])
        torch.testing.assert_close(got, wanted, atol=TOLERANCE, rtol=0)
    assert together.lengths.tolist() == together.at.tolist() == [22, 40, 28, 0]


def towered(tmp_path: Path, kind: str, **text: Any) -> tuple[Any, dict[str, Any]]:
    """A checkpoint with a vision tower in the reference, as the hub has them: with what predicts further tokens."""
    import transformers

    case = BY_NAME["qwen3.5-moe" if kind.endswith("moe") else "qwen3.5"]
    inner = {**case.config("new"), "architectures": None, **text}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"num_position_embeddings": 16, "patch_size": 4, "model_type": kind}
    name = "Qwen3_5Moe" if kind.endswith("moe") else "Qwen3_5"
    raw = {"model_type": kind, "architectures": [f"{name}ForConditionalGeneration"], "text_config": inner}
    raw |= {"vision_config": vision, "image_token_id": 95, "video_token_id": 94, "vision_start_token_id": 93}
    raw |= {"vision_end_token_id": 92, "tie_word_embeddings": text.get("tie_word_embeddings", False)}
    config = getattr(transformers, f"{name}Config")(**raw)
    theirs = random_model(getattr(transformers, f"{name}ForConditionalGeneration"), config, seed=0)
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert any(name.startswith("model.visual.") for name in tensors)
    tensors["mtp.fc.weight"] = torch.zeros(32, 64)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    write_json(tmp_path / "config.json", raw)
    return theirs, raw


@pytest.mark.parametrize("kind", ["qwen3_5", "qwen3_5_moe"])
@pytest.mark.parametrize("tied", [False, True])
@torch.inference_mode()
def test_text_model_of_a_file_with_a_vision_tower(kind: str, tied: bool, tmp_path: Path) -> None:
    theirs, _ = towered(tmp_path, kind, tie_word_embeddings=tied)
    ids = token_ids(2, 40) % 90
    torch.testing.assert_close(load(tmp_path)(ids), theirs(ids).logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("kind", "tied"), [("qwen3_5", True), ("qwen3_5_moe", False)])
@torch.inference_mode()
def test_a_trained_text_model_is_saved_without_its_tower(kind: str, tied: bool, tmp_path: Path) -> None:
    """Its experts in one tensor again; transformers opens it."""
    theirs, _ = towered(tmp_path / "whole", kind, tie_word_embeddings=tied)
    (tmp_path / "text").mkdir()
    save_text(load(tmp_path / "whole"), tmp_path / "whole", tmp_path / "text")
    assert not any("visual" in name or "mtp" in name for name in load_file(tmp_path / "text" / "model.safetensors"))
    ids = token_ids(2, 40) % 90
    for again in (load(tmp_path / "text")(ids), reference(tmp_path / "text")(ids).logits):
        torch.testing.assert_close(again, theirs(ids).logits, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_experts_in_one_tensor_or_in_many(tmp_path: Path) -> None:
    """Files whose experts have tensors of their own, as versions of 8-bit floats do, are the same model."""
    folder = make_decoder(tmp_path, BY_NAME["qwen3.5-moe"])
    ids, file = token_ids(1, 20), folder / "model.safetensors"
    expected, tensors = load(folder)(ids), load_file(file)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        before, _, last = name.rpartition(".")
        for i, one in enumerate(tensors.pop(name)):
            parts = ("gate_proj", "up_proj") if last == "gate_up_proj" else (last,)
            for part, rows in zip(parts, one.chunk(len(parts)), strict=True):
                tensors[f"{before}.{i}.{part}.weight"] = rows.contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    torch.testing.assert_close(load(folder)(ids), expected, atol=0, rtol=0)
    torch.testing.assert_close(reference(folder)(ids).logits, expected, atol=TOLERANCE, rtol=0)
    tensors["model.layers.0.mlp.experts.gate_up_proj"] = torch.zeros(6, 48)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(GencliError, match=r"gate_up_proj is \[6, 48\], which are no matrices of experts"):
        load(folder)


@ours
def test_gradients_are_the_references(name: str, tmp_path: Path) -> None:
    """Through chunks and what is left over; those of experts lie in one tensor there."""
    make_decoder(tmp_path, BY_NAME[name], **({} if name == "qwen3.5-yarn" else LONG))
    ids, both = token_ids(2, 60 if name == "qwen3.5-yarn" else 140), []
    for model in (load(tmp_path), reference(tmp_path)):
        model.requires_grad_(True)
        logits = model(ids)
        (logits if isinstance(logits, torch.Tensor) else logits.logits).logsumexp(-1).mean().backward()
        both.append({name: one.grad for name, one in model.named_parameters()})
    ours, theirs = both
    for before in [one.removesuffix(".gate.weight") for one in theirs if one.endswith("mlp.gate.weight")]:
        experts = [f"{before}.experts.{i}" for i in range(6)]
        pairs = [torch.cat([ours[f"{one}.{part}_proj.weight"] for part in ("gate", "up")]) for one in experts]
        ours[f"{before}.experts.gate_up_proj"] = torch.stack(pairs)
        ours[f"{before}.experts.down_proj"] = torch.stack([ours[f"{one}.down_proj.weight"] for one in experts])
    for one, gradient in theirs.items():
        torch.testing.assert_close(ours[one], gradient, atol=1e-3 * gradient.abs().max().item() + 1e-6, rtol=1e-3)


def fresh(model: Any, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids]), last_only=True)


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return load(make_decoder(tmp_path / "model", BY_NAME["qwen3.5"], **LONG))


@torch.inference_mode()
def test_a_text_is_cut_back_to_where_a_state_is_kept(model: Any) -> None:
    """To TAIL before the end of what was read at once, to where two texts part, or to nothing; what is read again gives
    what a fresh text does."""
    memory, ids = PromptCache(), token_ids(1, 400)[0].tolist()

    def read(text: list[int]) -> int:
        known = memory.take(model, 0, text, len(text) + 8)
        got = model(torch.tensor([text[known:]]), memory.cache, last_only=True)
        memory.read(0, text)
        torch.testing.assert_close(got, fresh(model, text), atol=TOLERANCE, rtol=0)
        return known

    tail = state_cache.TAIL
    assert read(ids[:200]) == 0
    assert read(ids[:230]) == 200  # goes on
    assert read(ids[:228]) == 230 - tail  # a part of what was read last
    assert read([*ids[:100], *ids[:50]]) == 0  # parts from it further back: it is read again, and 100 is kept
    assert read([*ids[:100], *ids[50:150]]) == 100
    assert read([*ids[:100], *ids[150:170]]) == 100
    assert read([*ids[:100], *ids[150:170]]) == 120 - tail  # its last token is always read
    assert read(ids[:5]) == 0
    assert read(ids[:6]) == 5


@torch.inference_mode()
def test_a_reading_that_is_interrupted_leaves_no_half_state(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = token_ids(1, 100)[0].tolist()
    memory = PromptCache()
    memory.take(model, 0, ids[:60], 120)
    model(torch.tensor([ids[:60]]), memory.cache)
    memory.read(0, ids[:60])
    later = model.model.layers[2].linear_attn
    monkeypatch.setattr(later, "forward", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        model(torch.tensor([ids[60:70]]), memory.cache)  # more positions than a step of the library
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match=r"states of \[-1\] for \[60\] positions"):
        model(torch.tensor([ids[60:61]]), memory.cache)
    known = memory.take(model, 0, ids, 120)
    assert known == 60 - state_cache.TAIL
    got = model(torch.tensor([ids[known:]]), memory.cache, last_only=True)
    torch.testing.assert_close(got, fresh(model, ids), atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_a_state_within_few_positions_is_kept(model: Any) -> None:
    """Where texts part: a step of the library would pass it, so that torch's layers read these positions."""
    cache, ids = model.new_cache(1, 60), token_ids(1, 60)
    model(ids[:, :40], cache)
    assert cache.truncate(23) == 0
    model(ids[:, :20], cache)
    model(ids[:, 20:28], cache)
    assert cache.truncate(23) == 23
    got = model(ids[:, 23:28], cache)
    assert step.of(model) is not None
    torch.testing.assert_close(got, model(ids[:, :28])[:, 23:], atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_all_rows_are_cut_back_to_one_length(model: Any) -> None:
    """The longest that each of them has a state of."""
    cache, ids = model.new_cache(2, 100), token_ids(2, 80)
    model(ids[:1, :50], cache.row(0))
    model(ids[1:, :60], cache.row(1))
    assert isinstance(cache, StateCache) and cache.kept.tolist() == [[0, 34], [0, 44]]
    with pytest.raises(ValueError, match=r"length 51 of \[50, 60\]"):
        cache.truncate(51)
    assert cache.truncate(50) == 0 and cache.lengths.tolist() == cache.at.tolist() == [0, 0]
    model(ids[:, :50], cache)
    assert cache.truncate(50) == 50
    cache.grow(positions=120, batch=3)
    assert cache.copy_row(1, 2, 50) == 50
    got = model(ids[[0, 1, 1], 50:52], cache)[:, -1:]
    for row, text in enumerate(ids[[0, 1, 1], :52].tolist()):
        torch.testing.assert_close(got[row : row + 1], fresh(model, text), atol=TOLERANCE, rtol=0)


def continued(module: Any, ids: list[int], file: PromptCache | None = None, new: int = 8) -> tuple[list[int], int]:
    batch = Batch(module, GREEDY, file)
    _, read = batch.add(ids, torch.Generator(), new)
    for _ in range(new - 1):
        batch.step()
    return batch.rows[0].ids[len(ids) :], read


def test_a_prompt_file_has_the_states_too(model: Any, tmp_path: Path) -> None:
    path, ids, tail = tmp_path / "cache", token_ids(1, 200)[0].tolist(), state_cache.TAIL
    assert continued(model, ids[:120], PromptFile(path, model)) == (continued(model, ids[:120])[0], 120)
    first = path.read_bytes()
    for text, read in ((ids[:120], tail), (ids[:130], 10), (ids[:110], 6), ([*ids[:108], 5, 6], 6)):
        file = PromptFile(path, model)
        assert file.note is None
        assert continued(model, text, file) == (continued(model, text)[0], read)
        assert path.read_bytes() == first
    other = [*ids[:50], *ids[:70]]
    assert continued(model, other, PromptFile(path, model)) == (continued(model, other)[0], 120)
    assert path.read_bytes() != first


def test_texts_of_one_beginning_read_it_twice_at_most(model: Any) -> None:
    """As of a server whose requests share a system prompt, several at once: each text is what it is alone."""
    ids = token_ids(1, 400)[0].tolist()
    texts = [[*ids[:150], *ids[150 + 20 * i : 170 + 20 * i]] for i in range(6)]
    batch, read = Batch(model, GREEDY), []
    for text in texts[:4]:
        read.append(batch.add(text, torch.Generator(), 30)[1])
        batch.step()
    batch.remove(1)  # the last one takes its place
    read += [batch.add(text, torch.Generator(), 30)[1] for text in texts[4:]]
    for _ in range(6):
        batch.step()
    assert read == [170, 170, 20, 20, 20, 20]
    for row, text in zip(batch.rows, (texts[0], texts[3], texts[2], *texts[4:]), strict=True):
        assert row.ids == [*text, *continued(model, text, new=len(row.ids) - len(text))[0]]


def chat_model(folder: Path) -> TextModel:
    """A chat model whose prompt ends with what the next turn's does not have there, as where a thought is opened."""
    make_decoder(folder, BY_NAME["qwen3.5"], vocab_size=384, eos_token_id=383, bos_token_id=383, **LONG)
    make_tokenizer(folder)
    config = read_json(folder / "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", {**config, "chat_template": TEMPLATE})
    return open_model(Source("tiny", folder, "folder"))


TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>~~\n' }}{% endif %}"
)


def test_turns_of_a_conversation_are_those_of_a_fresh_start(tmp_path: Path) -> None:
    """Though each reads little again; a turn that is asked anew too, as with /again."""
    chats = ChatModel(chat_model(tmp_path))
    request = TextRequest.of(temperature=0.0, max_tokens=20, logit_bias=((383, -float("inf")),))
    session, before = ChatSession(chats, request, Conversation(system="Be kind to everyone. " * 9)), 0
    for turn, message in enumerate(["Once upon a time", "and then?", "and then?", "again"]):
        if turn == 3:
            del session.conversation.turns[-2:]
            message = "and then?"
        prompt = session.prepare(message)
        answer = next(one for one in session.answer(message, prompt, 0) if isinstance(one, Completion))
        fresh = [*generate(chats.model, session.request, ids=prompt.ids, reasoning=prompt.reasoning)][-1]
        assert isinstance(fresh, Completion)
        assert answer.text == fresh.text
        read, before = session.stats.prompt_tokens - before, session.stats.prompt_tokens
        assert read == len(prompt.ids) if turn == 0 else read < len(prompt.ids) / 2
    chats.close()


def test_lines_are_what_they_are_alone(tmp_path: Path) -> None:
    model = chat_model(tmp_path)
    jobs = [
        Job(TextRequest.of(line, seed=i, max_tokens=3 + 5 * i % 17, temperature=0.0)) for i, line in enumerate(LINES)
    ]
    together = {one.index: one for one in generate_all(model, jobs, batch=3) if isinstance(one, Completion)}
    for i, job in enumerate(jobs):
        [alone] = [one for one in generate(model, job.request) if isinstance(one, Completion)]
        assert (together[i].text, together[i].completion_tokens) == (alone.text, alone.completion_tokens)


LINES = ["Once upon a time " * 9 + word for word in ("a cat", "a dog ran", "", "she said", "a cat went home")] + ["x"]


def test_samples_share_most_of_their_prompt(model: Any) -> None:
    ids = token_ids(1, 100)[0].tolist()
    batch = Batch(model, GREEDY)
    assert [batch.add(ids, torch.Generator(), 10)[1] for _ in range(4)] == [100, *[state_cache.TAIL] * 3]
    for _ in range(5):
        batch.step()
    assert len({tuple(row.ids) for row in batch.rows}) == 1
    assert batch.rows[0].ids[100:] == continued(model, ids)[0][:6]
