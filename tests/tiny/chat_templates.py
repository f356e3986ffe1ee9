# ruff: noqa: E501
"""Chat templates in the forms that checkpoints publish, and tiny checkpoints that carry them.

They were written out from knowledge of those forms, without the files at hand; none was compared with its original.
Where a published template goes on about tools and pictures, that part is left out: it is not reached by a conversation.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tests.tiny.text import END, SENTENCES, byte_bpe, write_json

ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nSYSTEM<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    + ALTERNATE
    + "{% if loop.index0 == 0"
    " and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' +"
    " message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA32 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}

{#- This block extracts the system message, so we can slot it into the right place. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}

{#- System message #}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}" + ALTERNATE + "{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token}}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
GEMMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}" + ALTERNATE + "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim"
    " + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
GEMMA3 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '

' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
"""
PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
OLMO2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<|system|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'user' %}"
    "{{ '<|user|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}{% if not loop.last %}"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token + '\n' }}{% else %}"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}{% endif %}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
SMOLLM3 = """{#- defaults -#}
{%- if enable_thinking is not defined -%}
{%- set enable_thinking = true -%}
{%- endif -%}
{%- if enable_thinking -%}{%- set reasoning_mode = "/think" -%}{%- else -%}{%- set reasoning_mode = "/no_think" -%}{%- endif -%}
{{- "<|im_start|>system\\n" -}}
{%- if messages[0].role == "system" -%}
  {%- set system_message = messages[0].content -%}
  {%- if "/no_think" in system_message -%}{%- set reasoning_mode = "/no_think" -%}{%- endif -%}
  {%- set custom_instructions = system_message.replace("/no_think", "").replace("/think", "").rstrip() -%}
{%- endif -%}
{{- "## Metadata\\n\\n" -}}
{%- set today = strftime_now("%d %B %Y") -%}
{{- "Today Date: " ~ today ~ "\\n" -}}
{{- "Reasoning Mode: " + reasoning_mode + "\\n\\n" -}}
{{- "## Custom Instructions\\n\\n" -}}
{%- if custom_instructions -%}{{- custom_instructions + "\\n\\n" -}}{%- endif -%}
{{- "<|im_end|>\\n" -}}
{#- ───── main loop ───── #}
{%- for message in messages -%}
    {%- set content = message.content if message.content is string else "" -%}
    {%- if message.role == "user" -%}
        {{ "<|im_start|>" + message.role + "\\n"  + content + "<|im_end|>\\n" }}
    {%- elif message.role == "assistant" -%}
        {% generation %}
        {%- if reasoning_mode == "/think" -%}
            {{ "<|im_start|>assistant\\n" + content.lstrip("\\n") + "<|im_end|>\\n" }}
        {%- else -%}
            {{ "<|im_start|>assistant\\n" + "<think>\\n\\n</think>\\n" + content.lstrip("\\n") + "<|im_end|>\\n" }}
        {%- endif -%}
        {% endgeneration %}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {%- if reasoning_mode == "/think" -%}{{ "<|im_start|>assistant\\n" }}{%- else -%}{{ "<|im_start|>assistant\\n" + "<think>\\n\\n</think>\\n"  }}{%- endif -%}
{%- endif -%}
"""


GEMMA4 = """{%- macro answer(text) -%}
    {%- set seen = namespace(text='') -%}
    {%- for piece in text.split('<channel|>') -%}
        {%- set seen.text = seen.text + piece.split('<|channel>')[0] -%}
    {%- endfor -%}
    {{- seen.text | trim -}}
{%- endmacro -%}
{%- set thinks = enable_thinking is defined and enable_thinking -%}
{%- set has_system = messages[0]['role'] == 'system' -%}
{{- bos_token -}}
{%- if thinks or has_system -%}
    {{- '<|turn>system\\n' + ('<|think|>\\n' if thinks else '') + (messages[0]['content'] | trim if has_system else '') + '<turn|>\\n' -}}
{%- endif -%}
{%- for message in (messages[1:] if has_system else messages) -%}
    {%- if message['role'] == 'assistant' -%}
        {{- '<|turn>model\\n' + answer(message['content']) + '<turn|>\\n' -}}
    {%- else -%}
        {{- '<|turn>' + message['role'] + '\\n' + (message['content'] | trim) + '<turn|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|turn>model\\n' + ('' if thinks else '<|channel>thought\\n<channel|>') -}}
{%- endif -%}
"""
GPT_OSS = """{%- if reasoning_effort is not defined -%}
    {%- set reasoning_effort = 'medium' -%}
{%- endif -%}
{{- '<|start|>system<|message|>You are a language model.\\nReasoning: ' + reasoning_effort -}}
{%- if builtin_tools is defined and builtin_tools is not none -%}
    {{- '\\n# Tools: ' + builtin_tools | join(', ') -}}
{%- endif -%}
{{- '\\n# Valid channels: analysis, commentary, final.<|end|>' -}}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {{- '<|start|>developer<|message|># Instructions\\n\\n' + message.content + '<|end|>' -}}
    {%- elif message.role == 'assistant' -%}
        {{- '<|start|>assistant<|channel|>final<|message|>' + message.content -}}
        {{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' -}}
    {%- else -%}
        {{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}
"""
QWEN35 = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}"
    "{%- else %}{{- '<think>\n' }}{%- endif %}{%- endif %}"
)
DEEPSEEK = (
    "{% if not thinking is defined %}{% set thinking = false %}{% endif %}{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}{{ '<|User|>' + message.content }}{% elif message.role == 'assistant' %}"
    "{{ '<|Assistant|></think>' + message.content + eos_token }}{% else %}{{ message.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|>' + ('<think>' if thinking else '</think>') }}{% endif %}"
)
EFFORTS = (  # of those that can be none
    "{% set effort = reasoning_effort if reasoning_effort is defined else 'none' %}"
    "{% if reasoning_effort is defined and reasoning_effort not in ['none', 'high'] %}"
    "{{ raise_exception('reasoning_effort is none or high') }}{% endif %}"
    "{{ bos_token + '[EFFORT]' + effort }}{% for message in messages %}{{ '[INST]' + message.content + '[/INST]' }}"
    "{% endfor %}{# [THINK] #}"
)
CHANNEL = ("<|channel>", "<channel|>")


@dataclass(frozen=True)
class Family:
    """A template, the special tokens it uses (`bos` and `eos` among them), and other added tokens (`plain`).

    kind: byte-level BPE, or SentencePiece's with byte fallback. rstrip: its special tokens swallow spaces after them.
    system: whether the template takes a system prompt. where: which of the files holds it.
    """

    name: str
    template: str
    eos: str
    special: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    bos: str | None = None
    kind: Literal["bytes", "pieces"] = "bytes"
    rstrip: bool = False
    system: bool = True
    where: Literal["jinja", "config", "named"] = "config"


IM = ("<|im_start|>",)
HEADERS = ("<|start_header_id|>", "<|end_header_id|>")
THINK = ("<think>", "</think>")
FAMILIES = [
    Family("qwen2", CHATML.replace("SYSTEM", "You are a helpful assistant."), "<|im_end|>", IM),
    Family("qwen3", QWEN3, "<|im_end|>", IM, THINK, where="jinja"),
    Family(
        "smollm2",
        CHATML.replace("SYSTEM", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
        "<|im_end|>",
        bos="<|im_start|>",
    ),
    Family("smollm3", SMOLLM3, "<|im_end|>", IM, THINK, where="jinja"),
    Family("llama2", LLAMA2, "</s>", bos="<s>", kind="pieces"),
    Family("llama3", LLAMA3, "<|eot_id|>", HEADERS, bos="<|begin_of_text|>"),
    Family("llama3.2", LLAMA32, "<|eot_id|>", HEADERS, bos="<|begin_of_text|>", where="named"),
    Family("mistral", MISTRAL, "</s>", ("[INST]", "[/INST]"), bos="<s>", kind="pieces", system=False),
    Family("gemma2", GEMMA2, "<end_of_turn>", ("<start_of_turn>",), bos="<bos>", kind="pieces", system=False),
    Family("gemma3", GEMMA3, "<end_of_turn>", ("<start_of_turn>",), bos="<bos>", kind="pieces", where="jinja"),
    Family("gemma4", GEMMA4, "<turn|>", ("<|turn>", "<|think|>"), CHANNEL, bos="<bos>", kind="pieces", where="jinja"),
    Family("phi3", PHI3, "<|end|>", ("<|system|>", "<|user|>", "<|assistant|>"), bos="<s>", kind="pieces", rstrip=True),
    Family("zephyr", ZEPHYR, "</s>", bos="<s>", kind="pieces"),
    Family("olmo2", OLMO2, "<|endoftext|>", bos="<|endoftext|>"),
]


# Whose templates take a value that says whether to reason, and in no other test.
HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
THINKERS = [
    Family("qwen3.5", QWEN35, "<|im_end|>", IM, THINK, where="jinja"),
    Family("gpt-oss", GPT_OSS, "<|return|>", HARMONY, where="jinja"),
    Family("deepseek", DEEPSEEK, "</s>", ("<|User|>", "<|Assistant|>"), THINK, bos="<s>"),
    Family("effort", EFFORTS, "</s>", ("[INST]", "[/INST]", "[THINK]", "[/THINK]"), bos="<s>"),
]


@functools.cache
def piece_bpe() -> str:
    """A BPE as the tokenizer.json of Llama 2 has it: spaces are ▁, unknown characters fall apart into bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=pieces, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    plain = Tokenizer.from_str(tokenizer.to_str().replace('"special":true', '"special":false'))
    made = Tokenizer(plain.model)
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made.to_str()


def make_chat_tokenizer(folder: Path, family: Family) -> Path:
    """Write a family's tokenizer files, the template among them; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_str(piece_bpe() if family.kind == "pieces" else byte_bpe().to_str())
    names = dict.fromkeys([*filter(None, [family.bos]), family.eos, *family.special])
    flags = {"normalized": False, "rstrip": family.rstrip}
    tokenizer.add_special_tokens(
        [AddedToken(name, **{**flags, "rstrip": flags["rstrip"] and name != family.bos}) for name in names]
    )
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in family.plain])
    tokenizer.save(str(folder / "tokenizer.json"))
    declared = {
        str(i): {
            "content": token.content, "lstrip": token.lstrip, "normalized": token.normalized, "rstrip": token.rstrip,
            "single_word": token.single_word, "special": token.special,
        }
        for i, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }  # fmt: skip
    config = {
        "added_tokens_decoder": declared, "bos_token": family.bos, "eos_token": family.eos, "unk_token": None,
        "clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast",
    }  # fmt: skip
    if family.where == "jinja":
        (folder / "chat_template.jinja").write_text(family.template, encoding="utf-8")
        config["chat_template"] = "an older one"
    elif family.where == "named":
        config["chat_template"] = [
            {"name": "tool_use", "template": "tools"},
            {"name": "default", "template": family.template},
        ]
    else:
        config["chat_template"] = family.template
    write_json(folder / "tokenizer_config.json", config)
    return folder


PLAIN_CHATML = FAMILIES[0].template.replace("<|im_start|>", "<").replace("<|im_end|>", END)
# Neither an end nor white space, so that random models say something.
BANNED = [END, *(piece for piece in byte_bpe().get_vocab() if len(piece) == 1 and not (" " < piece < "\x7f"))]
BIAS = tuple((byte_bpe().token_to_id(piece), -float("inf")) for piece in BANNED)
