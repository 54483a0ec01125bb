"""Writes tokenizers/ and tokenizers.json: small tokenizers, and the tokens transformers makes.

    python make_tokenizers.py make                 beside this file; imports nothing of ours
    python make_tokenizers.py save FOLDER          what our `save` writes, with our tokens
    python make_tokenizers.py compare FOLDER       whether transformers makes the same of it

`make` and `compare` need transformers, `save` needs magistral_jax; no environment needs both. The
tokenizers are trained here on a few sentences, those of bytes without cutting them into words: so
they hold merges across all edges of words, and a text cut elsewhere becomes other tokens. They are
in the style of:

    llama3    Split by a pattern, words that are tokens stay whole, <|begin_of_text|> added in front
    qwen3     NFC, ChatML, <think> an added token that is text
    smollm2   digits one by one, GPT-2's words
    tekken    Mistral NeMo's pattern, which parts words at capitals
    mistral   Mistral 7B v0.1: "▁" in front of every piece, bytes to fall back on
    metaspace the same, with "▁" in front of the first word alone

tokenizers.json: "texts" and "conversations"; for each tokenizer the ids of `encode(text,
add_special_tokens=False)` and of `apply_chat_template(conversation, add_generation_prompt=True)`.
"""

import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
VOCAB = 256 + 170

CORPUS = (
    "The train leaves the station at 9:15 and travels 120 kilometres in 2 hours.",
    "What is the answer? The answer is 42, because 6 * 7 = 42. Don't we've they'll I'm",
    "Let x = 12 and y = 34; then x + y = 46. Therefore the sum is 46.\n\nThink step by step.",
    "user assistant system You are a helpful assistant. cutting knowledge date",
    "Können Sie das erklären? Où est la gare? Ça va. Это не ответ. 你好,世界。",
    "def camelCaseName(anotherName): return HTTPServer(someThing)\n    # comment // path/to/file",
)

TEXTS = (
    "",
    "Hello, world!",
    "  two spaces in front, one behind ",
    "It's 1234567 apples; DON'T they'Ll I've",
    "line\nbreak\r\n\r\n\n  indented\n\n\ttab \n ",
    "naïve café — Über Größe, ½ ² ٣٤ Ⅷ",
    "e\u0301 is é, and \ufb01 is fi, A\u030a is Å",
    "你好,世界。こんにちは мир שלום नमस्ते",
    "🦙 👩\u200d👩\u200d👧 ok 🇫🇷",
    "camelCaseName HTTPServer/path//to\n/x aB ÀÉî",
    "the the  the   the\u00a0the\u3000the",
    "x^2 + \\boxed{42} <think>so</think> <b>&amp;</b>",
)

CONVERSATIONS = (
    [{"role": "user", "content": "What is 12 + 7?"}],
    [
        {"role": "system", "content": "You are terse.\n"},
        {"role": "user", "content": "  The answer is 1234567, don't you think?  "},
    ],
    [
        {"role": "user", "content": "1 + 1 = ?"},
        {"role": "assistant", "content": "<think>\nadd them\n</think>\n\nThe answer is 2.\n"},
        {"role": "user", "content": "\n\nAnd twice that?\n"},
    ],
    [{"role": "user", "content": "<tool_response>é e\u0301 🦙 你好</tool_response>"}],
    [{"role": "user", "content": ""}],
    *([{"role": "user", "content": text}] for text in TEXTS[2:]),
)

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

LLAMA3_TEMPLATE = """\
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if not tools is not none %}{%- set tools = none %}{%- endif %}
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN_TEMPLATE = """\
{%- if tools %}{{- raise_exception('no tools') }}{%- endif %}
{%- for message in messages %}
    {%- if loop.index > 100 %}{%- break %}{%- endif %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "user" and content.startswith('<tool_response>') %}
        {{- '<|im_start|>user\\n(a tool said ' + content | tojson + ')<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' }}{% generation %}{{ content }}{% endgeneration %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' + eos_token }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}"
    "{% endif %}{% endfor %}"
)


def special(text: str, **flags):
    from tokenizers import AddedToken

    return AddedToken(text, special=True, normalized=False, **flags)


def trained(tokenizer, specials: list[str], *, bytes_first: bool = True):
    from tokenizers import pre_tokenizers, trainers

    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        show_progress=False,
        special_tokens=[special(t) for t in specials],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()) if bytes_first else [],
    )
    tokenizer.train_from_iterator((*CORPUS, *TEXTS * 2), trainer)
    return tokenizer


def byte_level(pre_tokenizer, specials: list[str], normalizer=None):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer = trained(tokenizer, specials)
    tokenizer.pre_tokenizer = pre_tokenizer
    return tokenizer


def by_pattern(pattern: str):
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def keeping_words(tokenizer):
    """Takes the last merges away and keeps what they made: tokens that only whole words reach."""
    from tokenizers import Tokenizer

    spec = json.loads(tokenizer.to_str())
    spec["model"]["ignore_merges"] = True
    del spec["model"]["merges"][-20:]
    return Tokenizer.from_str(json.dumps(spec))


def sentencepiece_like(*, first_only: bool):
    """As transformers converts a SentencePiece BPE: "▁" for a space, <0x..> for unknown bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    spec = json.loads(trained(tokenizer, names, bytes_first=False).to_str())
    # Its bytes are ordinary tokens.
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["id"] < 3]
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    if first_only:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def made() -> dict:
    """{name: (tokenizer, tokenizer_config.json, chat template)}"""
    from tokenizers import AddedToken, normalizers, pre_tokenizers, processors

    llama3 = byte_level(by_pattern(LLAMA3_PATTERN), [])
    llama3 = keeping_words(llama3)
    names = ["begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id"]
    llama3.add_special_tokens([special(f"<|{name}|>") for name in names])
    bos = "<|begin_of_text|>"
    llama3.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, llama3.token_to_id(bos))]
    )
    qwen3 = byte_level(by_pattern(QWEN_PATTERN), [], normalizers.NFC())
    qwen3.add_special_tokens([special(f"<|{n}|>") for n in ("endoftext", "im_start", "im_end")])
    words = ["<tool_response>", "</tool_response>", "<think>", "</think>"]
    qwen3.add_tokens([AddedToken(t, normalized=False) for t in words])
    smollm2 = byte_level(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        ),
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    )
    tekken = byte_level(by_pattern(TEKKEN_PATTERN), ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"])
    tekken = keeping_words(tekken)
    chatml = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    old = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return {
        "llama3": (llama3, {"bos_token": bos, "eos_token": "<|eot_id|>"}, LLAMA3_TEMPLATE),
        "qwen3": (qwen3, {"eos_token": "<|im_end|>", "bos_token": None}, QWEN_TEMPLATE),
        "smollm2": (smollm2, chatml, SMOLLM2_TEMPLATE),
        "tekken": (tekken, old, MISTRAL_TEMPLATE),
        "mistral": (sentencepiece_like(first_only=False), old, MISTRAL_TEMPLATE),
        "metaspace": (sentencepiece_like(first_only=True), old, MISTRAL_TEMPLATE),
    }


def write_json(path: Path, value, **options) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, **options) + "\n", "utf-8")


def tokens_of(folder: Path) -> dict:
    """What transformers makes of every text and conversation."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return {
        "encode": [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS],
        "chat": [
            tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=False)
            for c in CONVERSATIONS
        ],
    }


def make(out: Path) -> None:
    goldens: dict = {"texts": TEXTS, "conversations": CONVERSATIONS, "tokens": {}}
    shutil.rmtree(out / "tokenizers", ignore_errors=True)
    for name, (tokenizer, config, template) in made().items():
        folder = out / "tokenizers" / name
        folder.mkdir(parents=True)
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
        if name in ("smollm2", "tekken"):  # the older places of a template
            named = [{"name": "tool_use", "template": "{{ 1 }}"}]
            listed = [*named, {"name": "default", "template": template}]
            config["chat_template"] = template if name == "smollm2" else listed
        else:
            (folder / "chat_template.jinja").write_text(template, "utf-8")
        write_json(folder / "tokenizer_config.json", config, indent=1)
        goldens["tokens"][name] = tokens_of(folder)
        lengths = [len(ids) for ids in goldens["tokens"][name]["chat"]]
        print(f"{name}: {tokenizer.get_vocab_size()} tokens, conversations of {lengths}")
    write_json(out / "tokenizers.json", goldens)


def save(out: Path) -> None:
    """Our tokenizers, written by `save`, and what they make of every text and conversation."""
    sys.path.insert(0, str(HERE.parent / "tokenizer"))
    from conftest import PRE, as_gguf

    from magistral_jax.tokenizer.bytes import ByteTokenizer
    from magistral_jax.tokenizer.gguf import GgufTokenizer
    from magistral_jax.tokenizer.hf import HfTokenizer

    ours: dict = {"bytes": ByteTokenizer()}
    for folder in sorted((HERE / "tokenizers").iterdir()):
        ours[f"hf-{folder.name}"] = HfTokenizer(folder)
        if folder.name in PRE:
            ours[f"gguf-{folder.name}"] = GgufTokenizer("golden", as_gguf(folder))
    for name, tokenizer in ours.items():
        tokenizer.save(out / name)
        tokens = {
            "encode": [tokenizer.encode(text) for text in TEXTS],
            "chat": [tokenizer.chat(conversation) for conversation in CONVERSATIONS],
        }
        write_json(out / f"{name}.json", tokens)


def compare(out: Path) -> None:
    for path in sorted(out.glob("*.json")):
        ours, theirs = json.loads(path.read_text("utf-8")), tokens_of(out / path.stem)
        for what in ("encode", "chat"):
            pairs = list(zip(ours[what], theirs[what], strict=True))
            same = sum(a == b for a, b in pairs)
            print(f"{path.stem}: {what} {same} of {len(pairs)} alike")
            assert same == len(pairs), next((a, b) for a, b in pairs if a != b)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["make"]:
            make(HERE)
        case ["save", folder]:
            save(Path(folder))
        case ["compare", folder]:
            compare(Path(folder))
        case _:
            sys.exit(__doc__)
