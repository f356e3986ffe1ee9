"""A checkpoint's own settings of generation: which are followed, which change nothing, which are told. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from gencli.options import rows
from gencli.text.request import SamplingParams, TextRequest

# Followed: the keys that rows of `TextRequest` and `SamplingParams` name, and these.
FOLLOWED = {option.config_key for record in (SamplingParams, TextRequest) for _, option in rows(record)} - {None}
FOLLOWED |= {"do_sample", "stop_strings", "bos_token_id", "eos_token_id"}
# Inert: what they change, which is not the text.
INERT = {
    "how a forward pass is run": """assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight
        assistant_lookbehind cache_config cache_implementation compile_config continuous_batching_config disable_compile
        is_assistant low_memory max_cache_len max_matching_ngram_size num_assistant_tokens
        num_assistant_tokens_schedule prefill_chunk_size prompt_lookup_num_tokens return_legacy_cache speculation_type
        target_lookbehind use_cache use_mtp""",
    "what a library returns": """output_attentions output_hidden_states output_logits output_scores num_return_sequences
        return_dict_in_generate""",
    "beam search alone, which num_beams starts": """diversity_penalty early_stopping length_penalty num_beam_groups
        constraints force_words_ids""",
    "models with an encoder alone": "decoder_start_token_id",
    "how texts of a batch are filled up, and the files' own words": """pad_token_id transformers_version
        remove_invalid_values renormalize_logits""",
}
INERT_KEYS = {key for keys in INERT.values() for key in keys.split()}
# Told in a note, unless they have one of these values, which change nothing.
NOT_FOLLOWED: dict[str, tuple[object, ...]] = {
    "num_beams": (1,),
    "guidance_scale": (1,),
    "penalty_alpha": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "forced_bos_token_id": (),
    "max_time": (),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (),
    "dola_layers": (),
    "token_healing": (False,),
    "watermarking_config": (),
}
# What transformers writes into config.json although nothing was said.
UNSAID = {
    "max_length": 20, "min_length": 0, "do_sample": False, "temperature": 1, "top_k": 50, "top_p": 1, "typical_p": 1,
    "repetition_penalty": 1, "no_repeat_ngram_size": 0,
}  # fmt: skip


def generation_config(file: Mapping[str, object], config: Mapping[str, object]) -> Mapping[str, object]:
    """Return the settings of generation_config.json, or where there is none those that config.json was given.

    file: what the former holds, or {}. config: config.json.
    """
    if file:
        return file
    keys = FOLLOWED | NOT_FOLLOWED.keys()
    return {
        key: value for key, value in config.items() if key in keys and not (value is None or value == UNSAID.get(key))
    }


def not_followed(name: str, settings: Mapping[str, object]) -> tuple[str, ...]:
    """Return a note of the settings that would change the text and are not followed, if any. name: the model's."""
    found = []
    for key, value in settings.items():
        said = value is not None and value not in NOT_FOLLOWED.get(key, ())
        if said and not key.startswith("_") and key not in FOLLOWED and key not in INERT_KEYS:
            found.append(f"{key} = {value!r}"[:80])
    if not found:
        return ()
    more = f" and {len(found) - 6} more" if len(found) > 6 else ""
    return (f"{name}: its settings {', '.join(sorted(found)[:6])}{more} are not followed",)
