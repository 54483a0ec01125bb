r"""Problem -> prompt tokens: the paper's instructions (2.5), and an example if asked for.

The paper's prompt does not mention \boxed{} and does not say where the model learns of it. Here
the problem's text tells it.
"""

from typing import Literal

import numpy as np
from jaxtyping import Int32

from magistral_jax.tokenizer import Tokenizer
from magistral_jax.types import Problem, UserError

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
_TASK = "Problem:\n\n{problem}\n\nPut the final answer in \\boxed{{}}."
_EXAMPLE_QUESTION = "17+25=?"
_EXAMPLE_ANSWER = r"<think>7+5+0=12 1+2+1=04</think>\boxed{42}"


def render(
    problem: Problem,
    tokenizer: Tokenizer,
    *,
    system_prompt: Literal["none", "magistral"],
    worked_example: bool,
    max_prompt_tokens: int,
) -> Int32[np.ndarray, " prompt"]:
    """What the generator continues; a prompt above `max_prompt_tokens` is a `UserError`."""
    messages = conversation(problem, system_prompt=system_prompt, worked_example=worked_example)
    tokens = tokenizer.chat(messages)
    if len(tokens) > max_prompt_tokens:
        raise UserError(
            f"problem {problem.id!r} makes a prompt of {len(tokens)} tokens; "
            f"data.max_prompt_tokens is {max_prompt_tokens}. Raise it, or remove the problem."
        )
    return np.array(tokens, np.int32)


def conversation(
    problem: Problem, *, system_prompt: Literal["none", "magistral"], worked_example: bool
) -> list[dict[str, str]]:
    """The messages of a prompt. The instructions stand once, before the first problem.

    They are part of the user's turn, as the paper's template embeds the problem: some chat
    templates have no system turn, and others write their own.
    """
    questions = [_EXAMPLE_QUESTION, problem.question] if worked_example else [problem.question]
    if system_prompt == "magistral":
        questions = [_TASK.format(problem=question) for question in questions]
        questions[0] = INSTRUCTIONS + questions[0]
    messages = [{"role": "user", "content": question} for question in questions]
    if worked_example:
        messages.insert(1, {"role": "assistant", "content": _EXAMPLE_ANSWER})
    return messages
