"""CLIPTextModel against transformers' own, from files as the hub has them and as they are saved today."""

import json

import pytest
import torch
from safetensors.torch import load_file

from gencli.checkpoints.build import load
from gencli.errors import GencliError
from gencli.models.clip_text import CLIPTextConfig, CLIPTextModel
from tests.tiny.image import TEXT, make_text_encoder

TOLERANCE = {"atol": 2e-5, "rtol": 0}
BOS, EOS = 542, 543


def ids(*lengths, pad=EOS):
    """One text of each length, between its begin and end tokens, padded to 77."""
    generator = torch.Generator().manual_seed(1)
    texts = [[BOS, *torch.randint(1, 500, (n,), generator=generator).tolist(), EOS] for n in lengths]
    return torch.tensor([text + [pad] * (77 - len(text)) for text in texts])


@torch.no_grad()
def check(reference, model, tokens):
    made, expected = model(tokens), reference(tokens, output_hidden_states=True)
    assert expected.last_hidden_state.std() > 0.1
    torch.testing.assert_close(made.last_hidden_state, expected.last_hidden_state, **TOLERANCE)
    torch.testing.assert_close(made.pooled, expected.pooler_output, **TOLERANCE)
    assert len(made.hidden_states) == len(expected.hidden_states)
    for mine, theirs in zip(made.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine, theirs, **TOLERANCE)
    return made


@pytest.mark.parametrize("hub_names", [True, False], ids=["hub", "today"])
@pytest.mark.parametrize("kind", ["sd15", "sd21"])
def test_equals_transformers(tmp_path, kind, hub_names):
    reference = make_text_encoder(tmp_path, kind, hub_names=hub_names)
    names = load_file(tmp_path / "model.safetensors")
    assert ("text_model.embeddings.position_ids" in names) is hub_names
    model = load(tmp_path)
    made = check(reference, model, ids(0, 5, 75, pad=EOS if kind == "sd15" else 0))
    # the penultimate layer, as diffusers' clip_skip takes it
    with torch.no_grad():
        penultimate = model.final_layer_norm(made.hidden_states[-2])
        states = reference(ids(0, 5, 75, pad=EOS if kind == "sd15" else 0), output_hidden_states=True).hidden_states
        torch.testing.assert_close(penultimate, reference.final_layer_norm(states[-2]), **TOLERANCE)
    check(reference, model, torch.tensor([[BOS, 7, 8, EOS]]))


def test_pooled_at_the_largest_id_or_at_the_end_token(tmp_path):
    """Tokens added after the end token are larger than it: only configs that name it find the end then."""
    tokens = torch.tensor([[BOS, 5, 550, 6, EOS, EOS], [BOS, EOS, EOS, 5, 5, EOS]])
    pooled = {}
    for eos in (2, EOS):
        folder = tmp_path / str(eos)
        reference = make_text_encoder(folder, "sd15", {"vocab_size": 560, "eos_token_id": eos})
        made = check(reference, load(folder), tokens)
        pooled[eos] = made
    torch.testing.assert_close(pooled[2].pooled[0], pooled[2].last_hidden_state[0, 2])
    torch.testing.assert_close(pooled[EOS].pooled[0], pooled[EOS].last_hidden_state[0, 4])
    torch.testing.assert_close(pooled[EOS].pooled[1], pooled[EOS].last_hidden_state[1, 1])


def test_half_precision_variant(tmp_path):
    reference = make_text_encoder(tmp_path, "sd21", variant="fp16")
    assert [file.name for file in tmp_path.glob("*.safetensors")] == ["model.fp16.safetensors"]
    check(reference, load(tmp_path, dtype=torch.float32), ids(3, 9))


def test_sharded(tmp_path):
    reference = make_text_encoder(tmp_path, "sd15", hub_names=False, shards="40KB")
    assert len(list(tmp_path.glob("*-of-*.safetensors"))) > 1
    check(reference, load(tmp_path), ids(3, 9))


def test_gradients_reach_every_weight():
    torch.manual_seed(0)
    model = CLIPTextModel(CLIPTextConfig.from_dict(TEXT["sd15"]))
    model(ids(3, 9)).last_hidden_state.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert name.endswith("k_proj.bias") or parameter.grad.abs().sum() > 0, name  # softmax cancels that one


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu6"}, "hidden_act = 'relu6'"),
        ({"use_attention_mask": True}, "use_attention_mask = True"),
        ({"architectures": ["CLIPTextModelWithProjection"], "projection_dim": None}, "projection_dim"),
        ({"hidden_size": 25}, "hidden_size = 25"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"vocab_size": 2**40}, "vocab_size"),
        ({"eos_token_id": [2, 3]}, "eos_token_id"),
        ({"layer_norm_eps": None}, "layer_norm_eps"),
        ({"hidden_act": [["gelu"]]}, "hidden_act"),
        ({"rope_theta": 10000.0}, "rope_theta"),
    ],
)
def test_refused_by_name(changes, message):
    with pytest.raises(GencliError, match=message):
        CLIPTextConfig.from_dict({**TEXT["sd15"], **changes})


def test_a_projection_in_the_file_is_not_dropped(tmp_path):
    from safetensors.torch import save_file

    make_text_encoder(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {"text_projection.weight": torch.zeros(24, 24)}, file)
    assert json.loads((tmp_path / "config.json").read_text())["projection_dim"] == 24
    with pytest.raises(GencliError, match=r"text_projection\.weight"):
        load(tmp_path)
