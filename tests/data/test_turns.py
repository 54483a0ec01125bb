"""Turns of conversations as published models' chat templates write them: which tokens are learned,
where an answer ends, and what is refused. What is expected is written out by hand."""
# ruff: noqa: RUF001 - R1 writes its tokens with wide bars

import pytest
import tokenizers

from magistral_jax.data.conversations import conversations
from magistral_jax.tokenizer.hf import HfTokenizer
from tests.tokenizer.templates import STYLES, make

ENDS = {
    "llama3": "<|eot_id|>",
    "chatml": "<|im_end|>",
    "chatml_base": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "qwen3_thinking": "<|im_end|>",
    "smollm3": "<|im_end|>",
    "mistral": "</s>",
    "mistral_v3": "</s>",
    "r1": "<｜end▁of▁sentence｜>",
    "r1_closed": "<｜end▁of▁sentence｜>",
    "phi3": "<|end|>",
    "plain": "<|endoftext|>",
}


class Model:
    """A tokenizer, and what it reads a file of one row as."""

    def __init__(self, folder, name):
        make(folder, STYLES[name])
        self.ours = HfTokenizer(folder)
        self._theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    def text(self, ids):
        return self._theirs.decode(list(map(int, ids)), skip_special_tokens=False)

    def read(self, row):
        """[prompt, (learned or not, text), ...] of every completion, and what is told."""
        told = []
        found = conversations(
            [("f:3", row)],
            self.ours,
            lambda problem: self.ours.chat([turn("user", problem.question)]),
            longest=10_000,
            tell=told.append,
        )
        return [self._spelt(one) for one in found], told

    def _spelt(self, completion):
        pieces = []
        for token, learned in zip(completion.tokens, completion.sampled, strict=True):
            if not pieces or pieces[-1][0] != learned:
                pieces.append((bool(learned), []))
            pieces[-1][1].append(token)
        return [self.text(completion.prompt), *((how, self.text(ids)) for how, ids in pieces)]


@pytest.fixture
def model(tmp_path):
    return lambda name: Model(tmp_path, name)


def turn(role, content, **others):
    return {"role": role, "content": content, **others}


def row(*turns, **others):
    return {"messages": list(turns), **others}


USER, SYSTEM = turn("user", "a"), turn("system", "s")
TWO = row(turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "d"))
LLAMA3 = [
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    (True, "b<|eot_id|>"),
    (False, "<|start_header_id|>user<|end_header_id|>\n\nc<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    (True, "d<|eot_id|>"),
]  # fmt: skip
CHATML = [
    "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n",
    (True, "b<|im_end|>"),
    (False, "\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"),
    (True, "d<|im_end|>"),
]
SMOLLM3 = ["<|im_start|>system\nReasoning Mode: /think\n\n<|im_end|>\n" + CHATML[0], *CHATML[1:]]


@pytest.mark.parametrize("name", STYLES)
def test_a_turn_ends_where_the_template_ends_it(name, model):
    ours = model(name).ours
    (end,) = ours.end_ids
    answer = ours.turn([turn("user", "a"), turn("assistant", "x")]).answer
    assert answer[-2:] == [*ours.encode("x"), end]
    assert end == ours._control[ENDS[name]] and end in ours.stop_ids


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama3", [LLAMA3]),
        ("chatml", [CHATML]),
        ("chatml_base", [CHATML]),
        ("smollm3", [SMOLLM3]),
        ("mistral", [["<s>[INST] a [/INST]", (True, " b</s>"), (False, "[INST] c [/INST]"),
                      (True, " d</s>")]]),
        ("phi3", [["<|user|>\na<|end|>\n<|assistant|>\n", (True, "b<|end|>"),
                   (False, "\n<|user|>\nc<|end|>\n<|assistant|>\n"), (True, "d<|end|>")]]),
        # An answer's empty block is gone once another question follows: an example each.
        ("qwen3", [
            [CHATML[0], (True, "<think>\n\n</think>\n\nb<|im_end|>")],
            ["<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
             "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n",
             (True, "<think>\n\n</think>\n\nd<|im_end|>")],
        ]),
        ("qwen3_thinking", [
            [CHATML[0] + "<think>\n", (True, "\n</think>\n\nb<|im_end|>")],
            ["<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
             "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n<think>\n",
             (True, "\n</think>\n\nd<|im_end|>")],
        ]),
        # It opens thoughts only to ask; answers without them stand in their own form.
        ("r1", [["<｜begin▁of▁sentence｜><｜User｜>a<｜Assistant｜>",
                 (True, "b<｜end▁of▁sentence｜>"), (False, "<｜User｜>c<｜Assistant｜>"),
                 (True, "d<｜end▁of▁sentence｜>")]]),
        # It writes no end: the model's own, an example each.
        ("plain", [
            ["user: a\n\nassistant: ", (True, "b<|endoftext|>")],
            ["user: a\n\nassistant: b\n\nuser: c\n\nassistant: ", (True, "d<|endoftext|>")],
        ]),
    ],
)  # fmt: skip
def test_several_turns_are_learned_as_the_template_writes_them(name, expected, model):
    assert model(name).read(TWO) == (expected, [])


THOUGHTS = "<think>\nt\n</think>\n\nu"


@pytest.mark.parametrize(
    ("name", "prompt", "answer"),
    [
        ("llama3", LLAMA3[0], f"{THOUGHTS}<|eot_id|>"),
        ("chatml", CHATML[0], f"{THOUGHTS}<|im_end|>"),
        ("qwen3", CHATML[0], f"{THOUGHTS}<|im_end|>"),
        ("smollm3", SMOLLM3[0], f"{THOUGHTS}<|im_end|>"),
        ("qwen3_thinking", CHATML[0] + "<think>\n", "t\n</think>\n\nu<|im_end|>"),
        ("r1_closed", "<｜begin▁of▁sentence｜><｜User｜>a<｜Assistant｜>",
         f"{THOUGHTS}<｜end▁of▁sentence｜>"),
        ("r1", "<｜begin▁of▁sentence｜><｜User｜>a<｜Assistant｜><think>\n",
         "t\n</think>\n\nu<｜end▁of▁sentence｜>"),
    ],
)  # fmt: skip
def test_thoughts_are_learned_once_whether_prompt_or_answer_opens_them(name, prompt, answer, model):
    its = model(name)
    assert its.read(row(turn("user", "a"), turn("assistant", THOUGHTS))) == (
        [[prompt, (True, answer)]], []
    )  # fmt: skip
    assert its.read({"id": "x", "problem": "a", "response": THOUGHTS}) == (
        [[prompt, (True, answer)]], []
    )  # fmt: skip


def test_a_system_text_is_where_the_template_asks_with_it(model):
    found, told = model("mistral_v3").read(row(SYSTEM, *TWO["messages"]))
    assert found == [
        ["<s>[INST]s\n\na[/INST]", (True, "b</s>")],
        ["<s>[INST]a[/INST]b</s>[INST]s\n\nc[/INST]", (True, "d</s>")],
    ] and not told  # fmt: skip


def test_earlier_thoughts_that_the_template_takes_out_make_examples_of_their_own(model):
    two = row(turn("user", "a"), turn("assistant", THOUGHTS), turn("user", "c"),
              turn("assistant", "<think>\nv\n</think>\n\nw"))  # fmt: skip
    found, told = model("qwen3").read(two)
    assert found == [
        [CHATML[0], (True, f"{THOUGHTS}<|im_end|>")],
        ["<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nu<|im_end|>\n"
         "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n",
         (True, "<think>\nv\n</think>\n\nw<|im_end|>")],
    ] and not told  # fmt: skip


def test_white_space_is_the_template_s(model):
    spaced = row(turn("user", " a "), turn("assistant", "\n b "), turn("user", "c"),
                 turn("assistant", "d"))  # fmt: skip
    assert model("llama3").read(spaced) == ([LLAMA3], [])


def test_control_texts_in_an_answer_stay_text(model):
    its = model("chatml")
    said = row(turn("user", "a"), turn("assistant", "<|im_end|>\n<|im_start|>user\nx"))
    found, _ = its.read(said)
    assert found == [[CHATML[0], (True, "<|im_end|>\n<|im_start|>user\nx<|im_end|>")]]
    ids = its.ours.turn(said["messages"]).answer
    assert ids.count(its.ours._control["<|im_end|>"]) == 1
    assert ids.count(its.ours._control["<|im_start|>"]) == 0


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


def test_what_the_template_writes_of_a_turn_is_learned(model):
    its = model("qwen3")
    found, told = its.read(row(turn("user", "a"), turn("assistant", "u", reasoning_content="t")))
    assert found == [[CHATML[0], (True, f"{THOUGHTS}<|im_end|>")]] and not told
    calls = row(
        turn("user", "a"),
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": None},
        turn("tool", "3", tool_call_id="1", name="add"),
        turn("assistant", "<think>\nt\n</think>\n\nu"),
        tools=[TOOL],
    )
    (call, answer), told = its.read(calls)
    tools = '<|im_start|>system\n<tools>\n{"type": "function", "function": {"name": "add", ' \
            '"parameters": {}}}\n</tools><|im_end|>\n'  # fmt: skip
    written = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>'
    assert call == [tools + CHATML[0], (True, f"<think>\n\n</think>\n\n{written}")]
    assert answer == [
        f"{tools}{CHATML[0]}{written}\n<|im_start|>user\n<tool_response>\n3\n</tool_response>"
        "<|im_end|>\n<|im_start|>assistant\n",
        (True, f"{THOUGHTS}<|im_end|>"),
    ] and not told  # fmt: skip


def test_thoughts_that_the_answer_happens_to_hold_are_not_taken_for_written(model):
    said = row(USER, turn("assistant", "<think>e</think>lemon"))
    ((_, learned),), _ = model("r1_closed").read(said)
    assert learned == (True, "<think>e</think>lemon<｜end▁of▁sentence｜>")


def test_a_weight_of_0_is_context(model):
    weighed = row(turn("user", "a"), turn("assistant", "b", weight=0), turn("user", "c"),
                  turn("assistant", "d", weight=1))  # fmt: skip
    ((prompt, learned),), told = model("chatml").read(weighed)
    assert prompt == CHATML[0] + "b<|im_end|>" + CHATML[2][1] and not told
    assert learned == (True, "d<|im_end|>")


@pytest.mark.parametrize(
    ("name", "bad", "told"),
    [
        ("chatml", row(USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}),
         "f:3: turn 2 (assistant) holds 'tool_calls', which the chat template does not write"),
        ("chatml", row(USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}),
         "f:3: turn 2 (assistant) holds 'tool_calls', which the chat template does not write"),
        ("llama3", row(USER, turn("assistant", "b", reasoning_content="t")),
         "f:3: turn 2 (assistant) holds 'reasoning_content', which the chat template does not "
         "write here. Write the thoughts into content, as <think>...</think>."),
        ("r1", row(USER, turn("assistant", "b", reasoning_content="t")), "'reasoning_content'"),
        ("chatml", row(USER, turn("assistant", "b"), tools=[TOOL]), "f:3: the row holds 'tools'"),
        ("qwen3", row(USER, turn("assistant", "b"), tools="[]"), "f:3: tools is \"[]\""),
        ("chatml", row(USER, turn("assistant", "b", weight=0.5)), "f:3: weight of turn 2 is 0.5"),
        ("chatml", row(turn("user", "a", weight=1), turn("assistant", "b")), "turn 1 (user) has"),
        ("chatml", row(USER, turn("assistant", "b", weight=0)), "with a weight above 0"),
        ("chatml", row(USER, turn("assistant", "b", train=False)), "holds 'train'"),
        ("chatml", row(turn("user", "a", name="Ann"), turn("assistant", "b")), "holds 'name'"),
        ("chatml", row(USER, turn("assistant", " ")), "content of turn 2 (assistant) is empty"),
        ("chatml", row(USER, turn("assistant", "b"), chat_template_kwargs={"x": 1}),
         "f:3: chat_template_kwargs is"),
        ("smollm3", row(turn("system", "Be kind."), USER, turn("assistant", "b")),
         "f:3: turn 1 (system) holds 'content'"),
        ("mistral", row(SYSTEM, USER, turn("assistant", "b")),
         "f:3: the chat template refuses turns 1 to 3: Conversation roles must alternate "
         "user/assistant/user/assistant/. It takes them without the system turn: put its text "
         "at the beginning of the user's first turn."),
        ("mistral", row(USER, USER, turn("assistant", "b")), "Change the row or leave it out."),
        ("qwen3_thinking", {"id": "x", "problem": "a", "response": "no thoughts"},
         "f:3: response does not fit the chat template: the prompt opens the thoughts"),
    ],
)  # fmt: skip
def test_what_the_template_does_not_write_is_refused_by_name(name, bad, told, model):
    found, faults = model(name).read(bad)
    assert found == [] and len(faults) == 1 and told in faults[0]
