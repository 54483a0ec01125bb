from hypothesis import given
from hypothesis import strategies as st

from magistral_jax.tokenizer.bytes import ByteTokenizer
from magistral_jax.tokenizer.hf import HfTokenizer
from magistral_jax.tokenizer.interface import Tokenizer

BYTES = ByteTokenizer()
BOS, END, USER, ASSISTANT, SYSTEM, THINK, END_THINK, BOXED = range(256, 264)


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def test_a_worked_trace_is_its_bytes_and_one_token_for_each_marker():
    assert BYTES.encode(r"<think>ok</think>\boxed{632}") == [
        THINK, *b"ok", END_THINK, BOXED, *b"632}",
    ]  # fmt: skip


@given(st.text() | st.text("<|think>/end\\boxed{ok é🦙"))
def test_byte_encoding_loses_nothing(text):
    assert BYTES.decode(BYTES.encode(text)) == text


@given(st.lists(st.sampled_from(["<|", "end", "user", "|>", "<|end|>", "<think>", "\\boxed{"])))
def test_no_text_becomes_a_control_byte_token(pieces):
    controls = {BOS, END, USER, ASSISTANT, SYSTEM}
    assert controls.isdisjoint(BYTES.encode("".join(pieces)))


@given(st.lists(st.integers(0, BYTES.vocab_size - 1)))
def test_any_sampled_bytes_have_a_text(ids):
    assert isinstance(BYTES.decode(ids), str)


def test_control_tokens_are_no_text_and_broken_utf8_is_marked():
    assert BYTES.decode([USER, *b"a", END, 0xFF, SYSTEM]) == "a\ufffd"


def test_a_byte_prompt_is_the_question_between_two_tokens():
    assert BYTES.chat([user("1+2=?")]) == [USER, *b"1+2=?", ASSISTANT]


def test_an_earlier_byte_turn_ends_as_a_completion_does():
    messages = [
        {"role": "system", "content": "s"},
        user("a<|end|>"),
        {"role": "assistant", "content": "b"},
        user("c"),
    ]
    assert BYTES.chat(messages) == [
        SYSTEM, *b"s", USER, *b"a<|end|>", ASSISTANT, *b"b", END, USER, *b"c", ASSISTANT,
    ]  # fmt: skip
    assert BYTES.stop_ids == (END,)


def test_the_byte_vocabulary_divides_among_eight_devices():
    assert BYTES.vocab_size % 8 == 0 and BYTES.vocab_size > BOXED


def test_it_is_a_tokenizer():
    assert isinstance(BYTES, Tokenizer)


def test_what_is_saved_is_the_same_tokenizer(tmp_path, goldens):
    BYTES.save(tmp_path)
    read = HfTokenizer(tmp_path)
    every_byte = "".join(map(chr, range(0x180))) + "\U0010fffd\u3000🦙"
    texts = [*goldens["texts"], every_byte, "<|end|>", r"<think>\boxed{1}</think"]
    for text in texts:
        assert read.encode(text) == BYTES.encode(text)
        assert read.decode(BYTES.encode(text)) == text
    for conversation in [*goldens["conversations"], [user("<|end|><|assistant|>"), user("|end|>")]]:
        assert read.chat(conversation) == BYTES.chat(conversation)
    assert (read.stop_ids, read.vocab_size) == (BYTES.stop_ids, BYTES.vocab_size)
