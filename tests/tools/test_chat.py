"""A conversation on stdin and stdout with the policy of a config."""

import io
from itertools import pairwise

import numpy as np
import pytest

from magistral_jax.__main__ import main
from magistral_jax.generator.scheduler import Scheduler
from magistral_jax.tokenizer.bytes import ByteTokenizer

TINY = """
name = "tiny"
model.shape = {layers = 1, width = 16, heads = 2, kv_heads = 1, head_dim = 8, ffn = 16}
data = {digits = 2, max_prompt_tokens = 34}
generator = {group_size = 2, in_flight = 4, max_tokens = 6}
batch = {completions = 4, row_tokens = 40, rows = 4}
"""


@pytest.fixture
def talk(tmp_path, monkeypatch, capsys):
    """Says these lines; gives what was answered, what was said beside it, and every prompt."""
    (tmp_path / "tiny.toml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    heard = []
    submit = Scheduler.submit

    def watched(self, prompt, **options):
        heard.append(prompt.tokens.tolist())
        submit(self, prompt, **options)

    monkeypatch.setattr(Scheduler, "submit", watched)

    def run(*lines):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        assert main(["sample", "tiny.toml", "--chat"]) == 0
        out, err = capsys.readouterr()
        return out, err, heard

    return run


def test_each_line_is_answered_after_what_was_said_before(talk):
    out, _, heard = talk("1+2=?", "and 3?", "/new", "", "4+5=?", "/exit", "never asked")
    bytes_ = ByteTokenizer()
    first = bytes_.chat([{"role": "user", "content": "1+2=?"}])
    assert heard[0] == first
    assert heard[1][: len(first)] == first and len(heard[1]) > len(first)
    assert heard[1][-len("and 3?") - 1 : -1] == list(b"and 3?")
    assert heard[2:] == [bytes_.chat([{"role": "user", "content": "4+5=?"}])]
    assert out.count("\n") >= 3
    assert out.isprintable() or set(out) <= {c for c in out if c.isprintable()} | {"\n"}


def test_thoughts_that_the_prompt_opens_are_shown_and_remembered(talk, monkeypatch):
    class Opening(ByteTokenizer):
        def chat(self, messages, tools=()):
            return [*super().chat(messages), *self.encode("<think>")]

    monkeypatch.setattr("magistral_jax.build.ByteTokenizer", Opening)
    out, _, heard = talk("1+2=?", "3?")
    assert out.startswith("<think>")
    first = Opening().chat([{"role": "user", "content": "1+2=?"}])
    assert heard[0] == first == heard[1][: len(first)]


def test_a_conversation_that_outgrows_the_cache_says_so_and_goes_on(talk):
    _, err, heard = talk("x" * 60, "/new", "1+2=?")
    assert "over 40 tokens; begin a /new one" in err
    assert len(heard) == 1


def test_ctrl_c_cuts_an_answer_short_and_frees_its_slot(talk, monkeypatch):
    step, steps = Scheduler.step, []

    def interrupted(self):
        steps.append(self.num_active)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Scheduler, "step", interrupted)
    out, _, heard = talk("1+2=?", "3+4=?", "5+6=?")
    assert " ...\n" in out
    assert len(heard) == 3
    assert max(steps) == 1, "the answer that was cut short still held its slot"


def test_what_is_written_so_far_is_the_beginning_of_the_answer(talk, monkeypatch):
    seen = []
    written = Scheduler.written

    def watched(self, group, index):
        seen.append(written(self, group, index))
        return seen[-1]

    monkeypatch.setattr(Scheduler, "written", watched)
    talk("1+2=?")
    assert len(seen) >= 1
    for shorter, longer in pairwise(seen):
        np.testing.assert_array_equal(longer[: len(shorter)], shorter)


def test_chat_takes_no_question(talk, capsys):
    assert main(["sample", "tiny.toml", "--chat", "--question", "1+1"]) == 2
    assert "--chat asks for each question" in capsys.readouterr().err
