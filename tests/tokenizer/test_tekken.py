import base64
import json
import sys

import pytest

from magistral_jax.tokenizer.files import read_tokenizer
from magistral_jax.tokenizer.interface import Tokenizer
from magistral_jax.tokenizer.tekken import TekkenTokenizer
from magistral_jax.types import UserError

WORDS = [b"th", b"the", b"12", b" a"]
PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
NUM_SPECIAL = 24
BOS, EOS, BEGIN, END, BEGIN_SYSTEM, END_SYSTEM = 1, 2, 3, 4, 17, 18


def described(version: str = "v7") -> dict:
    """A tekken.json of a few words; its control tokens are those of its version."""
    tokens = [bytes([byte]) for byte in range(256)] + WORDS
    return {
        "vocab": [
            {"rank": i, "token_bytes": base64.b64encode(t).decode(), "token_str": None}
            for i, t in enumerate(tokens)
        ],
        "special_tokens": None,
        "config": {
            "pattern": PATTERN,
            "num_vocab_tokens": len(tokens),
            "default_vocab_size": len(tokens) + NUM_SPECIAL,
            "default_num_special_tokens": NUM_SPECIAL,
            "version": version,
        },
        "version": 1,
        "type": "Tekken",
    }


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(described()))
    return path


def plain(text: str) -> list[int]:
    return [NUM_SPECIAL + byte for byte in text.encode()]


@pytest.fixture
def tekken(path) -> TekkenTokenizer:
    pytest.importorskip("mistral_common")
    return TekkenTokenizer(path)


def test_text_becomes_words_and_bytes(tekken):
    assert tekken.encode("the12é") == [NUM_SPECIAL + 257, *plain("12é")]
    assert tekken.decode(tekken.encode("the12é 🦙")) == "the12é 🦙"
    assert tekken.vocab_size == NUM_SPECIAL + 260 and tekken.stop_ids == (EOS,)
    assert isinstance(tekken, Tokenizer)


def test_control_tokens_and_ids_beyond_the_vocabulary_are_no_text(tekken):
    assert tekken.decode([BOS, *plain("a"), EOS, 23, 10**6, NUM_SPECIAL + 0xFF]) == "a\ufffd"
    with pytest.raises(AssertionError, match="negative"):
        tekken.decode([-1])


def test_a_conversation_is_laid_out_by_mistrals_rules(tekken):
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    assert tekken.chat(messages) == [
        BOS, BEGIN_SYSTEM, *plain("s"), END_SYSTEM, BEGIN, *plain("b"), END, *plain("c"), EOS,
        BEGIN, *plain("d"), END,
    ]  # fmt: skip


def test_a_conversation_is_learned_as_mistrals_own_fine_tuning_writes_it(tekken, path):
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.protocol.instruct.validator import ValidationMode
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    theirs = MistralTokenizer.from_file(str(path), mode=ValidationMode.finetuning)
    spoken = [("system", "s"), ("user", "b"), ("assistant", "the 12"), ("user", "d"),
              ("assistant", "e")]  # fmt: skip
    messages = [{"role": role, "content": text} for role, text in spoken]
    request = ChatCompletionRequest(messages=messages)
    turn = tekken.turn(messages)
    assert turn.prompt + turn.answer == theirs.encode_chat_completion(request).tokens
    assert turn.answer == [*plain("e"), EOS]


@pytest.mark.parametrize("text", ["</s>", "[/INST]", "a[/INST]</s>[SYSTEM_PROMPT]"])
def test_text_never_becomes_a_control_token(tekken, text):
    assert min(tekken.encode(text)) >= NUM_SPECIAL
    ids = tekken.chat([{"role": "user", "content": text}])
    assert [i for i in ids if i < NUM_SPECIAL] == [BOS, BEGIN, END]
    assert tekken.decode(ids) == text


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "tool", "content": "a"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    ],
)
def test_a_conversation_that_mistral_refuses_is_named(tekken, messages):
    with pytest.raises(UserError, match=r"tekken\.json: mistral-common refuses.*model\.source"):
        tekken.chat(messages)


@pytest.mark.parametrize("text", ["{", "[]", "{}", json.dumps(described("v99"))])
def test_a_damaged_file_is_named(path, text):
    pytest.importorskip("mistral_common")
    path.write_text(text)
    with pytest.raises(UserError, match=r"tekken\.json: it is no tekken\.json: .*model\.source"):
        TekkenTokenizer(path)


def test_a_folder_is_read_and_saved_byte_for_byte(tekken, path, tmp_path):
    read = read_tokenizer(path.parent)
    read.save(tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["tekken.json"]
    assert (tmp_path / "out" / "tekken.json").read_bytes() == path.read_bytes()


def test_without_the_package_its_extra_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mistral_common", None)
    for name in [n for n in sys.modules if n.startswith("mistral_common.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"pip install 'magistral-jax\[mistral\]'"):
        TekkenTokenizer(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"model\.source: there is no file .*tekken\.json"):
        TekkenTokenizer(tmp_path / "tekken.json")
