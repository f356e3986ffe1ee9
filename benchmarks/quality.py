"""What packing costs: `python -m benchmarks.quality [NAME|FILE ...] [--types q8_0 q4_k_m ...] [--text FILE]`.

For each model the bits per byte of texts that it has not seen, with its weights in float32 and packed in each mix, and
how far the packed model's next tokens are from its own: the mean KL divergence per token, in nats, and how often the
likeliest token is the same. The texts are read eight positions at a time, by the kernels that make tokens, with
activations of 8 bits (of 16 for Q8_0 on x86). Prints the rows of README's table. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from gencli.checkpoints.find import find
from gencli.kernels.packed import Packed
from gencli.spec import ModelSpec
from gencli.text.convert import convert
from gencli.text.load import TextModel, open_model

TYPES = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m", "q2_k")
TEXTS = Path(__file__).parents[1] / "tests" / "data" / "new_stories.jsonl"
FEW = 8  # positions that the kernels multiply at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["stories"])
    parser.add_argument("--types", nargs="*", default=TYPES)
    parser.add_argument("--text", type=Path, default=TEXTS, help="plain text, or JSON lines with `text`")
    parser.add_argument("--bytes", type=int, default=2**20, help="read so much of it at most")
    args = parser.parse_args()
    texts = read(args.text, args.bytes)
    print(
        "| model | weights | size, MB | bits per byte | change | KL per token | same token |",
        "|---" * 7 + "|",
        sep="\n",
    )
    for name in args.models:
        source = unpacked(open_model(find(name), ModelSpec(dtype="float32")))
        ids = [encoded for text in texts if len(encoded := encode(source, text)) > 1]
        size = sum(len(source.tokenizer.decode(one).encode()) for one in ids)
        exact = [logprobs(source, one) for one in ids]
        before = bits(exact, ids, size)
        print(f"| {Path(name).name} | float32 | | {before:.4f} | | | |", flush=True)
        for mix in args.types:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "m.gguf"
                convert(source, mix, file)
                packed = open_model(find(str(file)))
                found = [logprobs(packed, one) for one in ids]
                after, megabytes = bits(found, ids, size), file.stat().st_size / 1e6
            apart = torch.cat([(a.exp() * (a - b)).sum(-1) for a, b in zip(exact, found, strict=True)]).mean()
            same = torch.cat([a.argmax(-1) == b.argmax(-1) for a, b in zip(exact, found, strict=True)]).float().mean()
            change = f"{after / before - 1:+.2%}"
            print(f"| | {mix} | {megabytes:.1f} | {after:.4f} | {change} | {apart:.5f} | {same:.1%} |", flush=True)


def unpacked(model: TextModel) -> TextModel:
    """A model whose packed weights, if it has some, are numbers again: what there is to compare with."""
    for layer in model.module.modules():
        for name, parameter in list(layer.named_parameters(recurse=False)):
            if isinstance(parameter.data, Packed):
                setattr(layer, name, nn.Parameter(parameter.data.values(), requires_grad=False))
    return model


def read(file: Path, most: int) -> list[str]:
    """The texts of a file."""
    content = file.read_text(encoding="utf-8")
    texts = [json.loads(line)["text"] for line in content.splitlines()] if file.suffix == ".jsonl" else [content]
    kept, size = [], 0
    for text in texts:
        if size < most:
            kept.append(text.encode()[: most - size].decode("utf-8", "ignore"))
            size += len(kept[-1].encode())
    return kept


def encode(model: TextModel, text: str) -> list[int]:
    """The tokens of a text, after one that begins it, as many as the context has room for."""
    begins = [model.tokenizer.bos_id] if model.tokenizer.bos_id is not None else []
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    return [*begins, *ids][: model.max_length]


@torch.inference_mode()
def logprobs(model: TextModel, ids: list[int]) -> Tensor:
    """Logarithms of the probabilities of each next token, (T - 1, V)."""
    cache, rows = model.module.new_cache(1, len(ids)), []
    for some in torch.tensor([ids[:-1]]).split(FEW, 1):
        rows.append(model.module(some, cache)[0].float().log_softmax(-1))
    return torch.cat(rows)


def bits(rows: list[Tensor], ids: list[list[int]], size: int) -> float:
    """Bits per byte of texts of `size` bytes."""
    lost = sum(-float(row[range(len(one) - 1), one[1:]].sum()) for row, one in zip(rows, ids, strict=True))
    return lost / math.log(2) / size


if __name__ == "__main__":
    main()
