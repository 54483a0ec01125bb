r"""Small tokenizers whose chat templates write turns as published models' do.

The templates are ours: what each of the named models' writes around turns, thoughts, calls and
system texts, without its long instructions. `make` needs nothing but `tokenizers`; texts are bytes.
"""
# ruff: noqa: RUF001 - R1 writes its tokens with wide bars

import json
from pathlib import Path
from typing import NamedTuple

import tokenizers
from tokenizers import decoders, models, pre_tokenizers


class Style(NamedTuple):
    template: str
    control: tuple[str, ...]
    """The last is the eos token of tokenizer_config.json."""
    words: tuple[str, ...] = ()
    """Added tokens that are text."""
    ends: tuple[str, ...] = ()
    """Those of generation_config.json."""


_LLAMA3 = """{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
{{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
_CHATML = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + "
    "'\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Thoughts of answers before the last question are left out; the last answer always has a block.
_QWEN3 = """
{%- if tools %}{{- '<|im_start|>system\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}{{- '\\n</tools><|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for m in messages %}
{%- set content = m.content if m.content is string else '' %}
{%- if m.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + content + '\\n</tool_response><|im_end|>\\n' }}
{%- elif m.role != 'assistant' %}{{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}
{%- else %}
{%- set thoughts = m.reasoning_content if m.reasoning_content is string else '' %}
{%- if not thoughts and '</think>' in content %}
{%- set thoughts = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.last and (loop.last or thoughts) %}
{{- '<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' }}
{%- endif %}
{{- content }}
{%- for call in m.tool_calls or [] %}
{{- '\\n' if content or not loop.first }}
{{- '<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\nOPENED' }}{%- endif %}
"""
_SMOLLM3 = """
{%- set mode = '/no_think' if '/no_think' in messages[0].content else '/think' -%}
{{- '<|im_start|>system\\nReasoning Mode: ' + mode + '\\n\\n<|im_end|>\\n' -}}
{%- for m in messages -%}
    {%- if m.role == 'user' -%}
        {{ '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}
    {%- elif m.role == 'assistant' -%}
        {% generation %}
        {{- '<|im_start|>assistant\\n' + ('' if mode == '/think' else '<think>\\n\\n</think>\\n') }}
        {{- m.content.lstrip('\\n') + '<|im_end|>\\n' }}
        {%- endgeneration -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<|im_start|>assistant\\n' + ('' if mode == '/think' else '<think>\\n\\n</think>\\n') }}
{%- endif -%}
"""
# Its own text: roles in turn, no system; calls and their answers are not for it.
_MISTRAL = """{{ bos_token }}{% for m in messages %}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{%- if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}
{%- else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"""
# The system text stands in the last question, and only while that waits for its answer.
_MISTRAL_V3 = """{{ bos_token }}
{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' %}
{%- for m in messages if m['role'] != 'system' %}
{%- if m['role'] == 'user' %}
{{- '[INST]' + (system + '\\n\\n' if system and loop.last else '') + m['content'] + '[/INST]' }}
{%- else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"""
# All thoughts are left out of answers, and opened where one is asked for.
_R1 = """{{ bos_token }}
{%- for m in messages %}
{%- if m['role'] == 'system' %}{{ m['content'] }}
{%- elif m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}
{%- else %}{{ '<｜Assistant｜>' + m['content'].split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"""
# What it writes behind an answer depends on whether another is asked for.
_PHI3 = """{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""
# Words and line breaks alone.
_PLAIN = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_THINK = ("<think>", "</think>", "<tool_call>", "</tool_call>")

STYLES = {
    "llama3": Style(
        _LLAMA3,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
         "<|eom_id|>", "<|eot_id|>"),
        ends=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    ),
    "chatml": Style(_CHATML, _IM),
    "chatml_base": Style(_CHATML, ("<|im_start|>", "<|im_end|>", "<|endoftext|>")),
    "qwen3": Style(_QWEN3.replace("OPENED", ""), _IM, _THINK, ("<|im_end|>", "<|endoftext|>")),
    "qwen3_thinking": Style(_QWEN3.replace("OPENED", "<think>\\n"), _IM, _THINK),
    "smollm3": Style(_SMOLLM3, _IM, _THINK),
    "mistral": Style(_MISTRAL, ("<s>", "</s>")),
    "mistral_v3": Style(_MISTRAL_V3, ("<s>", "[INST]", "[/INST]", "</s>")),
    "r1": Style(
        _R1,
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
    ),
    # The first form of R1's own, which opens nothing.
    "r1_closed": Style(
        _R1.replace("<think>\\n", ""),
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
    ),
    "phi3": Style(
        _PHI3, ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|endoftext|>")
    ),
    "plain": Style(_PLAIN, ("<|endoftext|>",)),
}  # fmt: skip


def make(folder: Path, style: Style) -> Path:
    """A folder with the tokenizer, as a model's. The first control token is the bos."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([tokenizers.AddedToken(t, normalized=False) for t in style.control])
    bpe.add_tokens([tokenizers.AddedToken(t, normalized=False) for t in style.words])
    bpe.save(str(folder / "tokenizer.json"))
    config = {"bos_token": style.control[0], "eos_token": style.control[-1],
              "chat_template": style.template}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if style.ends:
        ids = [bpe.token_to_id(text) for text in style.ends]
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    return folder
