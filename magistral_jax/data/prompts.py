r"""Problem -> prompt tokens: the paper's instructions (2.5), and an example if asked for.

The paper's prompt mentions neither \boxed{} nor the language of a program, and does not say where
the model learns of them. Here the problem's text tells it.
"""

import ast
import builtins
from typing import Literal

import numpy as np
from jaxtyping import Int32

from magistral_jax.data.sources import GENERATED_SUMS
from magistral_jax.tokenizer.interface import Tokenizer
from magistral_jax.types import Problem, TooLong

# "Be as casual and as long as you want" is the paper's own wording: it raises entropy, and RL is
# sensitive to it. The rest is ours, in the paper's order.
INSTRUCTIONS = """\
A user will ask you to solve a task. Begin with a draft of your thinking, an inner monologue that \
goes on until you have derived the final answer. Then write a summary that stands on its own: \
succinct, yet with every critical step on the way to the answer.

Format with Markdown, and write mathematics in LaTeX. Thoughts and summary are both in the \
language of the task.

Follow this template:
<think>
Your thoughts or drafts come here, as when you work an exercise on scratch paper. Be as casual \
and as long as you want until you are confident of a correct answer.
</think>
A concise summary that reflects your reasoning and gives a clear final answer.

"""
_TASK = "Problem:\n\n{problem}\n\n{rule}"
_BOX = r"Put the final answer in \boxed{}."
_BLOCK = "in a Markdown code block that names the language."
EXAMPLES = (
    (
        "Tom has 3 apples and buys 5 more. How many apples does he have?",
        r"<think>3 + 5 = 8</think>\boxed{8}",
    ),
    (
        "A pen costs 4 dollars. Ann buys 6 pens and then spends 10 dollars on a book. "
        "How much does she spend in all?",
        r"<think>6 * 4 = 24. 24 + 10 = 34</think>\boxed{34}",
    ),
    (
        "Sam reads 12 pages a day for 5 days. His book has 100 pages. How many pages are left?",
        r"<think>12 * 5 = 60. 100 - 60 = 40</think>\boxed{40}",
    ),
)
"""Our own problems, solved in the think/boxed format, for models that never saw it."""
SUM_EXAMPLES = (
    ("12+7=?", r"<think>12 + 7 = 19</think>\boxed{19}"),
    ("48+16=?", r"<think>48 + 16 = 64</think>\boxed{64}"),
    ("25+31=?", r"<think>25 + 31 = 56</think>\boxed{56}"),
)
"""The same before a generated sum: the nearer the examples, the oftener they are followed."""


def render(
    problem: Problem,
    tokenizer: Tokenizer,
    *,
    system_prompt: Literal["none", "magistral"],
    worked_examples: int,
    max_prompt_tokens: int,
    code_languages: str = "python",
) -> Int32[np.ndarray, " prompt"]:
    """What the generator continues; a prompt above `max_prompt_tokens` is `TooLong`."""
    messages = conversation(
        problem,
        system_prompt=system_prompt,
        worked_examples=worked_examples,
        code_languages=code_languages,
    )
    tokens = tokenizer.chat(messages)
    if len(tokens) > max_prompt_tokens:
        raise TooLong(
            f"problem {problem.id!r} makes a prompt of {len(tokens)} tokens; "
            f"data.max_prompt_tokens is {max_prompt_tokens}. Raise it, or remove the problem."
        )
    return np.array(tokens, np.int32)


def conversation(
    problem: Problem,
    *,
    system_prompt: Literal["none", "magistral"],
    worked_examples: int,
    code_languages: str = "python",
) -> list[dict[str, str]]:
    """The messages of a prompt. The instructions stand once, before the first problem.

    They are part of the user's turn, as the paper's template embeds the problem: some chat
    templates have no system turn, and others write their own.
    """
    is_sum = problem.source == GENERATED_SUMS
    examples = (SUM_EXAMPLES if is_sum else EXAMPLES)[:worked_examples]
    rules = [_BOX for _ in examples] + [_rule(problem, code_languages)]
    questions = [*(question for question, _ in examples), problem.question]
    if system_prompt == "magistral":
        asked = zip(questions, rules, strict=True)
        questions = [_TASK.format(problem=question, rule=rule) for question, rule in asked]
        questions[0] = INSTRUCTIONS + questions[0]
    messages = []
    for question, (_, answer) in zip(questions, examples, strict=False):
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return [*messages, {"role": "user", "content": questions[-1]}]


def _rule(problem: Problem, code_languages: str) -> str:
    """What the answer must look like, for the format gate and the grader to find it."""
    if problem.tests is None:
        return _BOX
    is_program = bool(problem.tests.stdio) and problem.tests.checker == "json"
    name = problem.tests.entry_point or _called(problem.tests.asserts)
    if name and not is_program:
        return f"Write the function `{name}` in Python, {_BLOCK}"
    languages = {"python": "Python", "python or C++": "Python or C++20"}[code_languages]
    return f"Write a program in {languages} that reads standard input, {_BLOCK}"


def _called(asserts: tuple[str, ...]) -> str:
    """The function that the first assert tests, or "" if it tests none by name."""
    try:
        nodes = list(ast.walk(ast.parse("\n".join(asserts[:1]))))
    except (SyntaxError, ValueError):
        return ""
    called = [node.func for node in nodes if isinstance(node, ast.Call)]
    names = [function.id for function in called if isinstance(function, ast.Name)]
    return next((name for name in names if not hasattr(builtins, name)), "".join(names[:1]))
