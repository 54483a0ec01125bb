import numpy as np
import pytest

from magistral_jax.data import prompts
from magistral_jax.data.traces import trace
from magistral_jax.tokenizer import ByteTokenizer
from magistral_jax.types import Problem, UserError

PROBLEM = Problem(id="p-7", domain="math", question=r"Soit \frac{1}{2}{problem}?", answer="1")
BYTES = ByteTokenizer()


def conversation(system_prompt, worked_example):
    return prompts.conversation(PROBLEM, system_prompt=system_prompt, worked_example=worked_example)


def render(limit, system_prompt="none", worked_example=False):
    return prompts.render(
        PROBLEM,
        BYTES,
        system_prompt=system_prompt,
        worked_example=worked_example,
        max_prompt_tokens=limit,
    )


def test_without_instructions_a_prompt_is_the_problem():
    assert conversation("none", False) == [{"role": "user", "content": PROBLEM.question}]
    tokens = render(100)
    assert tokens.dtype == np.int32
    assert tokens.tolist() == BYTES.chat(conversation("none", False))


def test_the_paper_s_template_ends_with_the_problem_and_the_boxed_rule():
    [message] = conversation("magistral", False)
    assert message["role"] == "user"
    instructions, task = message["content"].split("Problem:\n\n")
    assert task == PROBLEM.question + "\n\nPut the final answer in \\boxed{}."
    assert r"\boxed" not in instructions


def test_the_instructions_follow_the_papers_order():
    [message] = conversation("magistral", False)
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
def test_a_worked_example_is_one_solved_turn_before_the_question(system_prompt):
    first, answer, last = conversation(system_prompt, True)
    assert [m["role"] for m in (first, answer, last)] == ["user", "assistant", "user"]
    assert "17+25=?" in first["content"] and PROBLEM.question in last["content"]
    example = Problem(id="", domain="math", question="17+25=?", answer="42")
    assert answer["content"] == trace(example, worked=True)
    instructed = [prompts.INSTRUCTIONS in m["content"] for m in (first, last)]
    assert instructed == [system_prompt == "magistral", False]


def test_a_prompt_may_fill_the_limit_and_not_pass_it():
    length = len(BYTES.chat(conversation("none", False)))
    assert len(render(length)) == length
    with pytest.raises(UserError) as fault:
        render(length - 1)
    for part in ("'p-7'", f"{length} tokens", f"data.max_prompt_tokens is {length - 1}"):
        assert part in str(fault.value)
