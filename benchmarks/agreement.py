"""Where greedy texts of gencli and llama.cpp part, is it a near tie? `python -m benchmarks.agreement FILE --python …`

Both multiply packed weights with activations that are rounded to 8 bits, in other orders, so their logits differ from
those of exact products, and from each other. This follows llama.cpp's greedy texts and compares the log-probabilities
of both with those of the unpacked weights in float32. It is a fault of gencli's if its error is larger than that of
llama.cpp, or if a text parts where the exact margin between both tokens is not within the errors. Ends with 1 then.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from gencli.checkpoints.find import find
from gencli.kernels.packed import Packed
from gencli.text.load import open_model

PROMPTS = ("The capital of France is", "Once upon a time", "def fibonacci(n):", "Water boils at", "In 1969,")
NEAR = 2  # deviations within which a margin is a near tie

LLAMA = """
import json, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.verbosity = sys.argv[1], 1024, 1, False, 0
server = xllamacpp.Server(params)
for ids in json.loads(sys.argv[2]):
    asked = {"prompt": ids, "temperature": 0, "top_k": 1, "ignore_eos": True, "cache_prompt": False,
             "max_tokens": int(sys.argv[3]), "logprobs": 5}
    print(json.dumps(server.handle_completions(asked)["choices"][0]["logprobs"]["content"]))
"""


@torch.inference_mode()
def logprobs(module: Any, ids: list[int], new: list[int]) -> torch.Tensor:
    """Of the tokens after `ids`, one by one, (len(new), V)."""
    cache = module.new_cache(1, len(ids) + len(new))
    rows = [module(torch.tensor([ids]), cache, last_only=True)]
    rows += [module(torch.tensor([[token]]), cache, last_only=True) for token in new[:-1]]
    return torch.cat(rows, 1)[0].log_softmax(-1)


def unpacked(module: Any) -> Any:
    for part in module.modules():
        weight = part._parameters.get("weight")
        if isinstance(weight, Packed):
            part.weight = torch.nn.Parameter(weight.values(), requires_grad=False)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--python", default=sys.executable, help="of an environment with xllamacpp")
    parser.add_argument("--tokens", type=int, default=40)
    args = parser.parse_args()
    model = open_model(find(str(args.file)))
    exact = unpacked(open_model(find(str(args.file))).module)
    prompts = [model.tokenizer.encode(text) for text in PROMPTS]
    command = [args.python, "-c", LLAMA, str(args.file), json.dumps(prompts), str(args.tokens)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    texts = [json.loads(line) for line in said.splitlines() if line.startswith("[{")]
    errors, parted = ([], []), []  # errors: gencli's and llama.cpp's
    for ids, content in zip(prompts, texts, strict=True):
        new = [one["id"] for one in content]
        ours, true = logprobs(model.module, ids, new), logprobs(exact, ids, new)
        for i, one in enumerate(content):
            for top in one["top_logprobs"]:
                token = top["id"]
                errors[0].append(float(ours[i, token] - true[i, token]))
                errors[1].append(top["logprob"] - float(true[i, token]))
        picks = ours.argmax(-1).tolist()
        parts = next((i for i, token in enumerate(new) if picks[i] != token), None)
        if parts is not None:
            margin = float(true[parts, picks[parts]] - true[parts, new[parts]])
            parted.append(margin)
            pair = [model.tokenizer.decode([token]) for token in (picks[parts], new[parts])]
            print(f"{model.tokenizer.decode(ids)!r} parts at token {parts}: {pair}, exact margin {margin:+.3f}")
    mine, theirs = (torch.tensor(one).square().mean().sqrt().item() for one in errors)
    print(f"error of log-probabilities (rms, nats): gencli {mine:.3f}, llama.cpp {theirs:.3f}")
    if mine > 1.25 * theirs or any(abs(margin) > NEAR * (mine + theirs) for margin in parted):
        sys.exit("a fault: the error is larger than llama.cpp's, or a text parts where there is no near tie")
    print(f"{len(parted)} of {len(texts)} texts part, all at near ties")


if __name__ == "__main__":
    main()
