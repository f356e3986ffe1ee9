"""Latent diffusion and DDPM in the sizes of the hub, without a number in them: every name and every shape. And how many
parameters models with experts have, and Gemma 4's.

The configs are the hub's own; how many parameters they make stands in the papers.
"""

import dataclasses

import pytest
import torch

from gencli.models import architecture
from tests.oracles.libraries import diffusers, ldm_bert
from tests.tiny.image import DDPM, UNET, VAE
from tests.tiny.ldm import BERT, DDPM_256, LDM_UNET, VQ

CIFAR10 = DDPM | {"block_out_channels": [128, 256, 256, 256], "norm_num_groups": 32}
LSUN = DDPM_256 | {"block_out_channels": [128, 128, 256, 256, 512, 512], "norm_num_groups": 32, "sample_size": 256}
CELEBA_HQ = LDM_UNET | {
    "attention_head_dim": 32,
    "block_out_channels": [224, 448, 672, 896],
    "down_block_types": ["DownBlock2D"] + ["AttnDownBlock2D"] * 3,
    "norm_num_groups": 32,
    "sample_size": 64,
    "up_block_types": ["AttnUpBlock2D"] * 3 + ["UpBlock2D"],
}
CELEBA_HQ_VQ = VQ | {
    "block_out_channels": [128, 256, 512],
    "norm_num_groups": 32,
    "num_vq_embeddings": 8192,
    "sample_size": 256,
}
TEXT = UNET["sd15"] | {
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 1280,
    "norm_num_groups": 32,
    "sample_size": 32,
}
TEXT_KL = VAE | {"block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32, "sample_size": 256}
TEXT_BERT = BERT | {
    "d_model": 1280,
    "encoder_attention_heads": 8,
    "encoder_ffn_dim": 5120,
    "encoder_layers": 32,
    "head_dim": 64,
    "num_hidden_layers": 32,
    "vocab_size": 30522,
}


@pytest.mark.parametrize(
    ("name", "config", "millions"),
    [
        ("UNet2DModel", CIFAR10, 35.7),  # Ho et al. 2020, appendix B
        ("UNet2DModel", LSUN, 114),
        ("UNet2DModel", CELEBA_HQ, 274),  # Rombach et al. 2022, table 12
        ("VQModel", CELEBA_HQ_VQ, 55.3),
        ("UNet2DConditionModel", TEXT, 872),
        ("AutoencoderKL", TEXT_KL, 83.7),
        ("ldmbert", TEXT_BERT, None),
    ],
    ids=["cifar10", "lsun", "celeba-hq", "celeba-hq-vq", "text", "text-kl", "text-bert"],
)
def test_names_and_shapes(name, config, millions):
    module = architecture(name)
    with torch.device("meta"):
        ours = module.Model(module.Config.from_dict(config)).state_dict()
        if name == "ldmbert":
            theirs = ldm_bert.LDMBertModel(ldm_bert.LDMBertConfig(**config)).state_dict()
        else:
            theirs = getattr(diffusers, name)(**config).state_dict()
    theirs = {key: tensor.shape for key, tensor in theirs.items() if not key.startswith("to_logits.")}
    assert {key: tensor.shape for key, tensor in ours.items()} == theirs
    if millions is not None:
        assert sum(tensor.numel() for tensor in ours.values()) / 1e6 == pytest.approx(millions, rel=0.005)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config", "count", "computing"),
    [
        (
            "qwen3_moe",
            {
                "hidden_size": 2048, "num_hidden_layers": 48, "num_key_value_heads": 4, "head_dim": 128,
                "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
            },
            30_532_122_624,
            3.3,
        ),
        ("qwen2_moe", {}, 14_315_784_192, 2.7),  # Qwen1.5-MoE-A2.7B
        ("mixtral", {}, 46_702_792_704, 12.9),
        # the embedding, 0.58 billion, is not among the 3.6 and 5.1 that the model card has
        ("gpt_oss", {"num_hidden_layers": 24, "num_local_experts": 32}, 20_914_757_184, 3.6 + 0.58),
        ("gpt_oss", {}, 116_829_156_672, 5.1 + 0.58),
    ],
)  # fmt: skip
def test_models_with_experts(name, config, count, computing):
    """Qwen3-30B-A3B, Mixtral-8x7B, gpt-oss-20b and 120b: all parameters, and billions of those that compute a token."""
    module = architecture(name)
    whole = module.Config.from_dict({**config, "rope_theta": 1e6})
    with torch.device("meta"):
        model = module.Model(dataclasses.replace(whole, num_hidden_layers=1))
    layers, share = whole.num_hidden_layers, whole.num_experts_per_tok / whole.expert_count  # all are alike
    total = used = 0.0
    for key, tensor in model.state_dict().items():
        size = tensor.numel() * (layers if ".layers." in key else 1)
        total, used = total + size, used + size * (share if ".experts." in key else 1)
    assert total == count
    assert used / 1e9 == pytest.approx(computing, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config", "count"),
    [
        ("olmo3", {"vocab_size": 100278}, 7_298_011_136),  # Olmo-3-7B
        (
            "olmo3",
            {
                "vocab_size": 100278, "hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64,
                "num_attention_heads": 40, "num_key_value_heads": 8,
            },
            32_233_522_176,
        ),
        (
            "granite",  # granite-3.3-2b
            {
                "vocab_size": 49159, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 40,
                "num_key_value_heads": 8, "tie_word_embeddings": True,
            },
            2_533_539_840,
        ),
        (
            "granite",  # granite-3.3-8b
            {
                "vocab_size": 49159, "hidden_size": 4096, "intermediate_size": 12800, "num_hidden_layers": 40,
                "num_key_value_heads": 8, "tie_word_embeddings": True,
            },
            8_170_864_640,
        ),
        ("ministral3", {}, 8_489_553_920),  # Ministral-3-8B
        ("mistral3", {"tie_word_embeddings": False}, 23_572_403_200),  # Mistral-Small-3.1-24B, without its vision tower
        ("gpt_neox", {"vocab_size": 50304, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6,
                      "num_attention_heads": 8}, 70_426_624),  # pythia-70m
        ("gpt_neox", {"vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                      "num_attention_heads": 8}, 1_011_781_632),  # pythia-1b
        ("gpt_neox", {"vocab_size": 50432, "hidden_size": 6144}, 20_554_567_680),  # gpt-neox-20b
        ("lfm2", {"hidden_size": 2048, "num_hidden_layers": 16, "block_ff_dim": 12288,
                  "full_attn_idxs": [2, 5, 8, 10, 12, 14]}, 1_170_340_608),  # LFM2-1.2B
        ("lfm2", {"hidden_size": 1024, "num_hidden_layers": 16, "block_ff_dim": 6656, "num_attention_heads": 16,
                  "full_attn_idxs": [2, 5, 8, 10, 12, 14]}, 354_483_968),  # LFM2-350M
        ("starcoder2", {}, 3_030_371_328),  # starcoder2-3b
        ("cohere2", {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                     "num_attention_heads": 32, "num_key_value_heads": 8}, 8_028_033_024),  # c4ai-command-r7b-12-2024
        ("phi", {}, 1_418_270_720),  # phi-1_5
        ("phi", {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32}, 2_779_683_840),  # phi-2
        ("glm4", {}, 9_400_279_040),  # GLM-4-9B-0414
    ],
)  # fmt: skip
def test_decoders(name, config, count):
    """All parameters, as the hub counts them in the files."""
    module = architecture(name)
    whole = module.Config.from_dict({"model_type": name, **config})
    with torch.device("meta"):
        model = module.Model(whole)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config", "count", "computing"),
    [
        (
            "deepseek_v2",  # V2-Lite
            {
                "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_hidden_layers": 27,
                "num_attention_heads": 16, "q_lora_rank": None, "num_experts_per_tok": 6,
            },
            15_706_484_224,
            2.4 + 0.21,
        ),
        (
            "deepseek_v2",
            {
                "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536, "num_hidden_layers": 60,
                "num_attention_heads": 128, "n_routed_experts": 160, "num_experts_per_tok": 6, "n_group": 8,
                "topk_group": 3, "topk_method": "group_limited_greedy",
            },
            235_741_434_880,
            21,
        ),
        ("deepseek_v3", {}, 671_026_419_200, 37),
    ],
)  # fmt: skip
def test_deepseek(name, config, count, computing):
    """All parameters, and billions of those that compute a token; V2-Lite's embedding is not among the 2.4."""
    module, dense = architecture(name), 3 if name == "deepseek_v3" else 1
    whole = module.Config.from_dict({"first_k_dense_replace": dense, **config})
    with torch.device("meta"):
        model = module.Model(dataclasses.replace(whole, num_hidden_layers=2, first_k_dense_replace=1))
    times = {"model.layers.0": dense, "model.layers.1": whole.num_hidden_layers - dense}
    total = used = 0.0
    for key, tensor in model.named_parameters():
        size = tensor.numel() * times.get(".".join(key.split(".")[:3]), 1)
        share = whole.num_experts_per_tok / whole.expert_count if ".experts." in key else 1
        total, used = total + size, used + size * share
    assert total == count
    assert used / 1e9 == pytest.approx(computing, abs=0.6)


LARGE = {"attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "final_logit_softcapping": 30.0}
ENCODERS = (
    0.15 + 0.3
)  # billions of parameters of the encoders of images and sounds, which the card counts with the rest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "period", "billions", "computing"),
    [
        (
            {
                "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 35, "num_key_value_heads": 1,
                "num_kv_shared_layers": 20, "use_double_wide_mlp": True,
            },
            5, 5.1 - ENCODERS, 2.3,
        ),
        (
            {
                "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 42, "num_key_value_heads": 2,
                "num_kv_shared_layers": 18,
            },
            6, 8.0 - ENCODERS, 4.6,
        ),
        (
            {
                **LARGE, "hidden_size": 2816, "intermediate_size": 2112, "num_hidden_layers": 30,
                "num_attention_heads": 16, "num_key_value_heads": 8, "num_global_key_value_heads": 2,
                "enable_moe_block": True, "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704,
            },
            6, 25.2, 3.8,
        ),
        (
            {
                **LARGE, "hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 60,
                "num_attention_heads": 32, "num_key_value_heads": 16, "num_global_key_value_heads": 4,
            },
            6, 30.7, 30.7,
        ),
    ],
    ids=["E2B", "E4B", "26B-A4B", "31B"],
)  # fmt: skip
def test_gemma4(config, period, billions, computing):
    """Billions of all parameters, and of those that compute a token: all but embeddings per layer and idle experts. The
    model card has them (ai.google.dev/gemma/docs/core/model_card_4), but 4.5 that compute in E4B."""
    module = architecture("gemma4_text")
    shared = config.get("num_kv_shared_layers", 0)
    layers = config["num_hidden_layers"] if shared else period  # without sharing, each period is as the first one
    types = (["sliding_attention"] * (period - 1) + ["full_attention"]) * (layers // period)
    whole = module.Config.from_dict({**config, "num_hidden_layers": layers, "layer_types": types})
    with torch.device("meta"):
        state = module.Model(whole).state_dict()
    total = used = 0.0
    for key, tensor in state.items():
        size = tensor.numel() * (config["num_hidden_layers"] / layers if ".layers." in key else 1)
        computes = whole.num_experts_per_tok / whole.expert_count if ".experts." in key else 1
        if key != "lm_head.weight":  # which is the embedding
            total += size
            used += size * computes * ("embed_tokens_per_layer" not in key)
    assert total / 1e9 == pytest.approx(billions, abs=0.1)
    assert used / 1e9 == pytest.approx(computing, abs=0.05)
