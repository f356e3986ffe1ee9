"""How AUTOMATIC1111's web UI splits a weighted prompt into chunks."""

from __future__ import annotations


def expected_chunks(tokenizer, words, pad):
    """The web UI's chunks of [(token, weight)] with None where a chunk ends: token by token, as its users know them."""
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    done, chunk = [], []
    for word in words:
        if word is None:
            done, chunk = [*done, chunk], []
            continue
        if len(chunk) == 75:
            commas = [i for i, (token, _) in enumerate(chunk) if token == comma]
            if word[0] != comma and commas and 75 - commas[-1] <= 20:
                done, chunk = [*done, chunk[: commas[-1] + 1]], chunk[commas[-1] + 1 :]
            else:
                done, chunk = [*done, chunk], []
        chunk.append(word)
    done += [chunk] if chunk or not done else []
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    framed = []
    for one in done:
        ids = [start, *(token for token, _ in one), end]
        framed.append((ids + [pad] * (77 - len(ids)), [1.0, *(w for _, w in one), *[1.0] * (76 - len(one))]))
    return framed
