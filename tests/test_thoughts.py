"""Thoughts that a prompt opens: judged, shown, harvested and taught together with the answer."""

import gzip
import json

import numpy as np
import pytest

from magistral_jax import build
from magistral_jax.__main__ import main
from magistral_jax.asking import Asking
from magistral_jax.build import Run
from magistral_jax.config import RunConfig
from magistral_jax.data.conversations import shown
from magistral_jax.recipes import warmup
from magistral_jax.settings import load
from magistral_jax.tokenizer.bytes import ByteTokenizer
from magistral_jax.tokenizer.hf import HfTokenizer
from magistral_jax.tokenizer.thoughts import opened
from magistral_jax.tools.answering import _said_in
from magistral_jax.types import Problem, Prompt
from magistral_jax.verifier.faults import FormatFaults
from magistral_jax.verifier.format import check_format
from magistral_jax.verifier.reward import without_reward
from tests.tokenizer.templates import STYLES, make

SUM = Problem(id="sum-2-2", domain="math", question="2+2=?", answer="4")
NO_THINK = [{"role": "system", "content": "/no_think"}]


class Opening(ByteTokenizer):
    """The same with prompts that end inside the thoughts."""

    def chat(self, messages, tools=()):
        return [*super().chat(messages), *self.encode("<think>\n")]


def asked(content, before=()):
    return [*before, {"role": "user", "content": content}]


@pytest.mark.parametrize(
    ("name", "before", "said", "text"),
    [
        ("qwen3_thinking", [], "t</think>\\boxed{4}", "<think>\nt</think>\\boxed{4}"),
        ("r1", [], "t</think>\\boxed{4}", "<think>\nt</think>\\boxed{4}"),
        ("smollm3", NO_THINK, "\\boxed{4}", "<think>\n\n</think>\n\\boxed{4}"),
        ("smollm3", [], "<think>t</think>\\boxed{4}", "<think>t</think>\\boxed{4}"),
        ("chatml", [], "<think>t</think>\\boxed{4}", "<think>t</think>\\boxed{4}"),
    ],
)
def test_an_answer_is_judged_with_what_its_prompt_has_opened(name, before, said, text, tmp_path):
    ours = HfTokenizer(make(tmp_path, STYLES[name]))

    class Its(Asking):
        tokenizer = ours

    # What a problem says at its end opens nothing.
    for content in ("2+2=?", "2+2=? <think>\n"):
        prompt = ours.chat(asked(content, before))
        answer = [*ours.encode(said), *ours.end_ids]
        found = Its(RunConfig()).text(shown(prompt, answer, [True] * len(answer)))
        assert found == text and not check_format(found, "math").problem


@pytest.mark.parametrize("name", ["smollm3", "qwen3_thinking"])
def test_tags_that_a_file_calls_special_are_seen_all_the_same(name, tmp_path):
    style = STYLES[name]
    ours = HfTokenizer(
        make(tmp_path, style._replace(control=(*style.words, *style.control), words=()))
    )
    turn = ours.turn([*asked("a"), {"role": "assistant", "content": "<think>\nt\n</think>\n\nu"}])
    text = opened(ours, turn.prompt) + ours.decode(turn.answer)
    assert text == "<think>\nt\n</think>\n\nu"
    assert turn.answer == [*ours.encode(ours.decode(turn.answer)), *ours.end_ids]


def test_what_a_problem_says_opens_no_thoughts():
    for tokenizer in (ByteTokenizer(), Opening()):
        prompts = [tokenizer.chat(asked(text)) for text in ("x", "x<think>", "<think></think>")]
        assert len({opened(tokenizer, prompt) for prompt in prompts}) == 1


@pytest.fixture
def run(monkeypatch):
    """A run whose prompts open the thoughts."""
    monkeypatch.setattr(build, "ByteTokenizer", Opening)
    run = Run(load(None, [("verifier.workers", "1")]))
    yield run
    run.close()


def completion(run, text):
    tokens = [*run.tokenizer.encode(text), *run.tokenizer.end_ids]
    return shown(run.render(SUM), tokens, np.ones(len(tokens), bool))


def test_a_run_s_verdict_and_its_one_line_about_the_format(run):
    told = []
    run.on_failure = lambda kind, message: told.append((kind, message))
    prompt = Prompt(group=0, problem=SUM, tokens=run.render(SUM))
    right = run.judge(prompt, completion(run, r"2+2</think>\boxed{4}")).result(timeout=60)
    assert right.outcome == "right" and right.parts["format"] > 0
    cut = [run.judge(prompt, completion(run, "2+2 and so on")) for _ in range(40)]
    assert {verdict.result(timeout=60).detail for verdict in cut} == {"think block never closed"}
    assert [kind for kind, _ in told] == ["alarm"]
    assert '31 of them with "think block never closed"' in told[0][1]


def test_one_kind_of_format_fault_is_told_once_and_many_kinds_are_not():
    told = []
    mixed, alike = FormatFaults(told.append), FormatFaults(told.append)
    for i in range(100):
        mixed.see(without_reward("format", "no boxed answer" if i % 2 else "no leading <think>"))
        mixed.see(without_reward("wrong", f"{i} is not 4"))
    for i in range(100):
        alike.see(without_reward("wrong", "5 is not 4") if i % 3 == 0 else
                  without_reward("format", "no leading <think>"))  # fmt: skip
    assert len(told) == 1 and told[0].startswith(
        '21 of 32 completions fail the format check, 21 of them with "no leading <think>". '
    )


def test_the_warm_up_teaches_thoughts_that_the_prompt_has_opened(run):
    group = warmup.shown(
        Prompt(group=0, problem=SUM, tokens=run.render(SUM)), run.tokenizer, worked=True
    )
    text = run.text(group.completions[0])
    assert text.count("<think>") == 1 and not check_format(text, "math").problem
    assert text == "<think>\n2+2+0=04</think>\\boxed{4}"


def test_a_harvest_writes_whole_thoughts(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "ByteTokenizer", Opening)
    tokenizer, folder = Opening(), tmp_path / "run"
    folder.mkdir()
    (folder / "config.toml").write_text("[data]\ndigits = 1\n")
    row = {
        "prompt_id": SUM.id, "group": 0, "index": 0, "step": 1, "outcome": "right",
        "finish": "stop", "prompt_tokens": tokenizer.chat(asked(SUM.question)),
        "tokens": [*tokenizer.encode(r"t</think>\boxed{4}"), *tokenizer.end_ids],
    }  # fmt: skip
    with gzip.open(folder / "completions.jsonl.gz", "wt") as file:
        file.write(json.dumps(row) + "\n")
    out = tmp_path / "traces.jsonl"
    assert main(["traces", "harvest", str(folder), "--out", str(out), "--skip", "0"]) == 0
    assert json.loads(out.read_text())["response"] == "<think>\nt</think>\\boxed{4}"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "t</think>4"}, "<think>t</think>4"),  # the server's prompt opened them
        ({"content": "4", "reasoning_content": "t"}, "<think>t</think>4"),
        ({"content": "4", "reasoning": "t"}, "<think>t</think>4"),
        ({"content": "<think>t</think>4"}, "<think>t</think>4"),
        ({"content": "4"}, "4"),
    ],
)
def test_a_server_s_answer_comes_with_its_thoughts(message, text):
    assert _said_in({"choices": [{"message": message}]}).text == text
