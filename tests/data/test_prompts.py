import re

import numpy as np
import pytest

from magistral_jax.data import prompts
from magistral_jax.tokenizer.bytes import ByteTokenizer
from magistral_jax.types import CodeTests, Problem, UserError

PROBLEM = Problem(id="p-7", domain="math", question=r"Soit \frac{1}{2}{problem}?", answer="1")
BYTES = ByteTokenizer()


def conversation(system_prompt, worked_examples):
    return prompts.conversation(
        PROBLEM, system_prompt=system_prompt, worked_examples=worked_examples
    )


def render(limit, system_prompt="none", worked_examples=0):
    return prompts.render(
        PROBLEM,
        BYTES,
        system_prompt=system_prompt,
        worked_examples=worked_examples,
        max_prompt_tokens=limit,
    )


def test_without_instructions_a_prompt_is_the_problem():
    assert conversation("none", 0) == [{"role": "user", "content": PROBLEM.question}]
    tokens = render(100)
    assert tokens.dtype == np.int32
    assert tokens.tolist() == BYTES.chat(conversation("none", 0))


def test_the_paper_s_template_ends_with_the_problem_and_the_boxed_rule():
    [message] = conversation("magistral", 0)
    assert message["role"] == "user"
    instructions, task = message["content"].split("Problem:\n\n")
    assert task == PROBLEM.question + "\n\nPut the final answer in \\boxed{}."
    assert r"\boxed" not in instructions


def test_the_instructions_follow_the_papers_order():
    [message] = conversation("magistral", 0)
    order = [
        "inner monologue",
        "summary that stands on its own",
        "Markdown",
        "LaTeX",
        "language of the task",
        "\n<think>\n",
        "Be as casual and as long as you want",
        "\n</think>\n",
        "clear final answer",
        "Problem:\n\n",
    ]
    places = [message["content"].index(part) for part in order]
    assert places == sorted(places)
    assert message["content"].count("<think>") == message["content"].count("</think>") == 1


@pytest.mark.parametrize("system_prompt", ["none", "magistral"])
@pytest.mark.parametrize("count", [1, 3])
def test_worked_examples_are_solved_turns_before_the_question(system_prompt, count):
    *examples, last = conversation(system_prompt, count)
    assert [m["role"] for m in examples] == ["user", "assistant"] * count
    assert last["role"] == "user" and PROBLEM.question in last["content"]
    for (question, answer), asked, answered in zip(
        prompts.EXAMPLES, examples[::2], examples[1::2], strict=False
    ):
        assert question in asked["content"] and answered["content"] == answer
    instructed = [prompts.INSTRUCTIONS in m["content"] for m in (*examples[::2], last)]
    assert instructed == [system_prompt == "magistral", *[False] * count]


def test_every_worked_example_would_earn_the_format_reward():
    for _, answer in prompts.EXAMPLES:
        assert re.fullmatch(r"<think>[^<]+</think>\\boxed\{\d+\}", answer)


def test_a_prompt_may_fill_the_limit_and_not_pass_it():
    length = len(BYTES.chat(conversation("none", 0)))
    assert len(render(length)) == length
    with pytest.raises(UserError) as fault:
        render(length - 1)
    for part in ("'p-7'", f"{length} tokens", f"data.max_prompt_tokens is {length - 1}"):
        assert part in str(fault.value)


@pytest.mark.parametrize(
    ("tests", "rule"),
    [
        (CodeTests(stdio=(("1", "2"),)), "Write a program in Python or C++20 that reads standard"),
        (
            CodeTests(asserts=("assert set(add(1, 2)) == {3}",)),
            "Write the function `add` in Python",
        ),
        (CodeTests(asserts=("assert sum(1, 2) == 3",)), "Write the function `sum` in Python"),
        (CodeTests(test_code="check(f)", entry_point="f"), "Write the function `f` in Python"),
        (CodeTests(stdio=(("[1]", "2"),), entry_point="f"), "Write the function `f` in Python"),
        (
            CodeTests(stdio=(("[[1]]", "2"),), entry_point="f", checker="json"),
            "Write a program in Python or C++20 that reads standard",
        ),
    ],
)
def test_a_code_problem_says_what_to_write_and_shows_no_test(tests, rule):
    problem = Problem(id="c", domain="code", question="Add.", answer="", tests=tests)
    [message] = prompts.conversation(
        problem, system_prompt="magistral", worked_examples=0, code_languages="python or C++"
    )
    task = message["content"].split("Problem:\n\n")[1]
    assert task.startswith(f"Add.\n\n{rule}") and "boxed" not in task and "assert" not in task
    assert task.endswith("in a Markdown code block that names the language.")


def test_without_a_compiler_a_program_is_asked_for_in_python():
    tests = CodeTests(stdio=(("1", "2"),))
    problem = Problem(id="c", domain="code", question="Add.", answer="", tests=tests)
    [message] = prompts.conversation(
        problem, system_prompt="magistral", worked_examples=0, code_languages="python"
    )
    assert "C++" not in message["content"]
