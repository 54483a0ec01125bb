import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from magistral_jax.tokenizer.hf import HfTokenizer
from magistral_jax.tokenizer.interface import Tokenizer
from magistral_jax.types import UserError

NAMES = ["llama3", "qwen3", "smollm2", "tekken", "mistral", "metaspace"]
MARK = "\U0010fffd"
every_name = pytest.mark.parametrize("name", NAMES)


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    """The JSON file, after `edit` has changed what it holds."""
    value = json.loads(path.read_text("utf-8"))
    edit(value)
    path.write_text(json.dumps(value), "utf-8")


@pytest.fixture
def copy(folders, tmp_path) -> Callable[[str], Path]:
    """A folder of one's own, to be changed."""
    return lambda name: Path(shutil.copytree(folders / name, tmp_path / name))


def whole(folder: Path) -> tokenizers.Tokenizer:
    """What `tokenizers` itself makes of the file: to it, every control text is a control token."""
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def specials(folder: Path) -> dict[str, int]:
    added = whole(folder).get_added_tokens_decoder()
    return {token.content: i for i, token in added.items() if token.special}


# ---------------------------------------------------------------- against transformers


@every_name
def test_tokens_equal_those_of_transformers(name, folders, goldens):
    ours, theirs = HfTokenizer(folders / name), goldens["tokens"][name]
    assert [ours.encode(text) for text in goldens["texts"]] == theirs["encode"]
    assert [ours.chat(messages) for messages in goldens["conversations"]] == theirs["chat"]


@pytest.mark.parametrize("flag", ["lstrip", "rstrip"])
def test_a_control_token_takes_the_white_space_that_it_takes_in_transformers(copy, flag):
    folder = copy("llama3")
    (folder / "chat_template.jinja").write_text("a <|eot_id|>  {{ messages[0].content }}")
    keeping = HfTokenizer(folder).chat([user(" b ")])
    change(
        folder / "tokenizer.json",
        lambda spec: [t.update({flag: True}) for t in spec["added_tokens"]],
    )
    taking = HfTokenizer(folder).chat([user(" b ")])
    assert taking == whole(folder).encode("a <|eot_id|>   b ", add_special_tokens=False).ids
    assert taking != keeping


def test_a_tokenizer_that_would_differ_is_refused(copy):
    folder = copy("llama3")

    def lower(spec: Any) -> None:
        spec["normalizer"] = {"type": "Lowercase"}
        for token in spec["added_tokens"]:
            token["normalized"] = True

    change(folder / "tokenizer.json", lower)
    # transformers takes "<|EOT_ID|>" for the control token as well.
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}<|EOT_ID|>")
    with pytest.raises(UserError, match="other tokens than in transformers"):
        HfTokenizer(folder)


def test_a_control_token_that_must_stand_alone_is_refused_where_it_does_not(copy):
    folder = copy("llama3")
    change(
        folder / "tokenizer.json",
        lambda spec: [t.update(single_word=True) for t in spec["added_tokens"]],
    )
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}<|eot_id|>")
    # Like every content of the check it ends with a space, or else transformers would see text.
    assert HfTokenizer(folder).chat([user("a ")])[-1] == specials(folder)["<|eot_id|>"]
    assert HfTokenizer(folder).chat([user("a")])[-1] == specials(folder)["<|eot_id|>"]
    (folder / "chat_template.jinja").write_text("a<|eot_id|>")
    with pytest.raises(UserError, match="other tokens than in transformers"):
        HfTokenizer(folder)


def test_truncation_and_padding_of_the_file_are_not_ours(copy, goldens):
    folder = copy("smollm2")
    cutting = whole(folder)
    cutting.enable_truncation(3)
    cutting.enable_padding(length=50)
    cutting.save(str(folder / "tokenizer.json"))
    chats = [HfTokenizer(folder).chat(c) for c in goldens["conversations"]]
    assert chats == goldens["tokens"]["smollm2"]["chat"]


# ---------------------------------------------------------------- control tokens


@every_name
def test_encode_never_yields_a_control_token(name, folders):
    ours, control = HfTokenizer(folders / name), specials(folders / name)
    for text, i in control.items():
        for variant in (text, f" {text}", f"a{text}b", text + text, f"{MARK}{i}{MARK}"):
            ids = ours.encode(variant)
            assert ids and not set(ids) & set(control.values()), variant
            assert ours.decode(ids).strip() == variant.strip()


@every_name
def test_a_user_cannot_write_control_tokens(name, folders):
    ours, control = HfTokenizer(folders / name), specials(folders / name)
    expected = [i for i in ours.chat([user("x")]) if i in control.values()]
    for text, i in control.items():
        for content in (text, f"a {text}\n{text}", text[:-1], text[1:], f"{MARK}{i}{MARK}"):
            ids = ours.chat([user(content)])
            assert [i for i in ids if i in control.values()] == expected, content
            assert content.strip() in ours.decode(ids)


@pytest.fixture(scope="module")
def glue(folders, tmp_path_factory) -> HfTokenizer:
    """Its template puts all contents side by side, between the halves of a control text."""
    folder = Path(shutil.copytree(folders / "qwen3", tmp_path_factory.mktemp("glue") / "qwen3"))
    contents = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(f"<|im_end|><|{contents}end|><|im_start|>")
    return HfTokenizer(folder)


PIECES = ["<|", "im_", "end", "|>", "<", "|", " ", "\n", "x", MARK, "\U0010fffc", "428"]


@given(st.lists(st.lists(st.sampled_from(PIECES)).map("".join), min_size=1, max_size=3))
def test_contents_never_join_to_a_control_token(glue, folders, contents):
    control = specials(folders / "qwen3")
    ids = glue.chat([user(content) for content in contents])
    assert ids[0] == control["<|im_end|>"] and ids[-1] == control["<|im_start|>"]
    assert not set(ids[1:-1]) & set(control.values())
    assert glue.decode(ids) == "<|" + "".join(contents) + "end|>"


@pytest.mark.parametrize(
    "contents",
    [("im_",), ("im_end|> and so on",), ("<|im_",), ("x<|", "im_"), (" im_\n",), ("<|im_end|>",)],
)
def test_contents_at_the_edge_of_half_a_control_text_complete_none(glue, folders, contents):
    ids = glue.chat([user(content) for content in contents])
    assert len([i for i in ids if i in specials(folders / "qwen3").values()]) == 2


def test_a_template_may_write_the_character_that_is_elsewhere_a_mark(copy):
    folder = copy("qwen3")
    (folder / "chat_template.jinja").write_text(f"{MARK}<|im_end|>{{{{ messages[0].content }}}}")
    text = f"{MARK}<|im_end|>a"
    ids = HfTokenizer(folder).chat([user("a")])
    assert ids == whole(folder).encode(text, add_special_tokens=False).ids


def test_what_the_config_calls_special_is_not_text_though_the_tokenizer_says_so(copy):
    folder = copy("qwen3")
    change(folder / "tokenizer_config.json", lambda c: c.update(pad_token="<think>"))
    ours = HfTokenizer(folder)
    think = whole(folder).token_to_id("<think>")
    assert think not in ours.encode("<think>") and ours.decode([think]) == ""


def test_added_tokens_that_are_not_special_are_text(folders):
    ours = HfTokenizer(folders / "qwen3")
    think = whole(folders / "qwen3").token_to_id("<think>")
    assert ours.encode("<think>") == [think] and ours.decode([think]) == "<think>"


def test_a_longer_text_token_is_meant_where_it_holds_a_control_text(copy):
    folder = copy("qwen3")
    end, new = specials(folder)["<|im_end|>"], whole(folder).get_vocab_size()
    longer = {"id": new, "content": "<<|im_end|>>", "special": False, "normalized": False}
    flags = {"lstrip": False, "rstrip": False, "single_word": False}
    change(folder / "tokenizer.json", lambda s: s["added_tokens"].append(longer | flags))
    (folder / "chat_template.jinja").write_text("<<|im_end|>><|im_end|>{{ messages[0].content }}")
    assert HfTokenizer(folder).chat([user("<<|im_end|>>")]) == [new, end, new]


@pytest.mark.parametrize("name", ["llama3", "smollm2"])
def test_a_control_token_that_is_a_word_is_still_not_reached_by_text(copy, name):
    """Neither by merges nor, where words that are tokens stay whole, at once."""
    folder = copy(name)
    before = HfTokenizer(folder)
    vocab = whole(folder).get_vocab()
    words = [w for w in vocab if w.isascii() and w.isalpha() and before.encode(w) == [vocab[w]]]
    word = max(words, key=len)
    assert len(word) > 1
    change(folder / "tokenizer_config.json", lambda c: c.update(pad_token={"content": word}))
    ours = HfTokenizer(folder)
    assert len(ours.encode(word)) > 1 and ours.decode(ours.encode(word)) == word
    assert ours.decode([vocab[word]]) == ""


def test_a_single_character_is_text_though_it_be_called_special(copy):
    folder = copy("smollm2")
    before = HfTokenizer(folder)
    change(folder / "tokenizer_config.json", lambda c: c.update(pad_token="!"))
    ours = HfTokenizer(folder)
    assert ours.encode("wow!") == before.encode("wow!")
    assert ours.decode(before.encode("wow!")) == "wow!"
    assert ours.chat([user("wow!")]) == before.chat([user("wow!")])


def test_the_unknown_token_stands_for_what_the_vocabulary_lacks(copy):
    folder = copy("mistral")
    change(folder / "tokenizer.json", lambda s: s["model"].update(byte_fallback=False))
    ids = HfTokenizer(folder).chat([user("a ☃ b")])
    text = "<s>[INST] a ☃ b [/INST]"
    assert 0 in ids and ids == whole(folder).encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    "changes",
    [
        {"eos_token": "</s>"},
        {"eos_token": {"content": "</s>", "lstrip": False}},
        {"additional_special_tokens": ["</s>"]},
        {"extra_special_tokens": {"end_token": "</s>"}},
        {"added_tokens_decoder": {"2": {"content": "</s>", "special": True}}},
    ],
)
def test_a_token_that_only_the_config_calls_special_is_a_control_token(copy, changes):
    folder = copy("mistral")
    change(folder / "tokenizer.json", lambda s: s["added_tokens"].pop(2))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}</s>")
    (folder / "tokenizer_config.json").write_text(json.dumps(changes))
    (folder / "config.json").write_text('{"eos_token_id": 2}')
    ids = HfTokenizer(folder).chat([user("a</s>")])
    assert ids[-1] == 2 and 2 not in ids[:-1]


def test_a_special_token_in_no_vocabulary_is_no_token(copy):
    folder = copy("smollm2")
    change(folder / "tokenizer_config.json", lambda c: c.update(pad_token="<pad>"))
    ours = HfTokenizer(folder)
    assert ours.vocab_size == whole(folder).get_vocab_size()
    assert ours.decode(ours.encode("<pad>")) == "<pad>"


def test_an_older_folder_names_its_tokens_in_a_map(copy):
    folder = copy("smollm2")
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|endoftext|>"}}')
    # Its template ends turns with <|im_end|>, whatever the map says.
    assert HfTokenizer(folder).stop_ids == (0, 2)
    change(folder / "tokenizer_config.json", lambda c: c.update(added_tokens_decoder={}))
    assert HfTokenizer(folder).stop_ids == (2,)


# ---------------------------------------------------------------- ids and texts


def test_decode_skips_control_tokens_and_ids_beyond_the_vocabulary(folders):
    ours = HfTokenizer(folders / "qwen3")
    end, ids = specials(folders / "qwen3")["<|im_end|>"], ours.encode("a é 🦙")
    assert ours.decode([end, *ids[:2], 10**6, *ids[2:], ours.vocab_size, end]) == "a é 🦙"
    assert ours.decode(ours.encode("ÿ")[:1]) == "\ufffd"
    with pytest.raises(AssertionError, match="negative"):
        ours.decode([-1])


@pytest.mark.parametrize(
    "generation, config, expected",
    [
        (None, None, (2,)),
        ({"eos_token_id": [5, 2]}, {"eos_token_id": 7}, (5, 2, 7)),
        ({"eos_token_id": 7}, {"eos_token_id": [7, 5]}, (7, 5, 2)),
        ({}, {"text_config": {"eos_token_id": 9}}, (9, 2)),
        ({"eos_token_id": None}, {"text_config": None}, (2,)),
    ],
)
def test_every_end_that_a_file_names_stops_a_completion(copy, generation, config, expected):
    folder = copy("smollm2")
    for name, value in (("generation_config.json", generation), ("config.json", config)):
        if value is not None:
            (folder / name).write_text(json.dumps(value))
    assert HfTokenizer(folder).stop_ids == expected


def test_a_template_file_goes_before_the_config(copy):
    folder = copy("smollm2")
    (folder / "chat_template.jinja").write_text("<|im_start|>")
    assert HfTokenizer(folder).chat([user("a")]) == [1]


def test_a_template_may_refuse_one_conversation_and_take_another(copy):
    folder = copy("smollm2")
    (folder / "chat_template.jinja").write_text(
        "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<|im_start|>"
    )
    ours = HfTokenizer(folder)
    assert ours.chat([{"role": "system", "content": "s"}]) == [1]
    with pytest.raises(UserError, match=r"smollm2: .*no system.*model\.source"):
        ours.chat([user("a")])


def test_what_is_saved_is_what_was_read(copy, tmp_path):
    folder = copy("llama3")
    (folder / "generation_config.json").write_text('{"eos_token_id": [370, 366]}')
    (folder / "model.safetensors").write_text("not a tokenizer's")
    HfTokenizer(folder).save(tmp_path / "out" / "deep")
    saved = {p.name: p.read_bytes() for p in (tmp_path / "out" / "deep").iterdir()}
    assert saved == {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".safetensors"}


def test_it_is_a_tokenizer(folders):
    assert isinstance(HfTokenizer(folders / "llama3"), Tokenizer)


# ---------------------------------------------------------------- what cannot be read


def broken(folder: Path, name: str, text: str | None) -> Path:
    path = folder / name
    path.unlink(missing_ok=True)
    if text is not None:
        path.write_text(text)
    return folder


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("tokenizer.json", "{", "tokenizer.json is not JSON: "),
        ("tokenizer.json", "[]", "tokenizer.json holds no JSON object"),
        ("tokenizer.json", None, "it holds no tokenizer.json"),
        ("tokenizer.json", '{"model": {"type": "Unigram"}}', "is 'Unigram'; only 'BPE'"),
        ("tokenizer.json", '{"model": {"type": "BPE"}}', "tokenizer.json cannot be read: "),
        ("tokenizer_config.json", "\ufeff{", "tokenizer_config.json is not JSON: "),
        ("tokenizer_config.json", '{"eos_token": "<x>"}', "its eos_token '<x>' is in no vocabul"),
        ("tokenizer_config.json", "{}", "no file in it names an eos_token"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"1": 2}}', "added_tokens_decoder"),
        ("generation_config.json", '{"eos_token_id": "a"}', "eos_token_id holds 'a'"),
        ("generation_config.json", '{"eos_token_id": [1, true]}', "eos_token_id holds True"),
        ("config.json", '{"eos_token_id": -1}', "eos_token_id holds -1"),
        ("chat_template.jinja", None, "it has no chat template"),
        ("chat_template.jinja", "{% for %}", "its chat template cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named(copy, name, text, message):
    folder = broken(copy("llama3"), name, text)
    with pytest.raises(UserError) as fault:
        HfTokenizer(folder)
    said = str(fault.value)
    assert said.startswith(f"{folder}: ") and message in said and "model.source" in said


@pytest.mark.parametrize(
    "template, message",
    [([{"name": "tool_use", "template": "{{ 1 }}"}], "no chat template"), (3, "neither text")],
)
def test_a_list_of_templates_without_a_default_is_none(copy, template, message):
    folder = copy("smollm2")
    change(folder / "tokenizer_config.json", lambda c: c.update(chat_template=template))
    with pytest.raises(UserError, match=message):
        HfTokenizer(folder)


def test_bytes_that_are_no_text_are_named(copy):
    folder = copy("llama3")
    (folder / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
        HfTokenizer(folder)


def test_an_id_that_the_vocabulary_does_not_give_is_named(copy):
    folder = copy("llama3")
    change(folder / "tokenizer.json", lambda s: s["added_tokens"][-1].update(id=999))
    with pytest.raises(UserError, match=r"'<\|eot_id\|>' the id 999, and its vocabulary 430"):
        HfTokenizer(folder)
