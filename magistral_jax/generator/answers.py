"""All completions of some prompts, from a scheduler or a fleet of them."""

from collections.abc import Callable, Sequence
from typing import Any

from magistral_jax.types import Completion, Prompt


def generate(
    generator: Any,
    prompts: Sequence[Prompt],
    *,
    count: int | None,
    on_step: Callable[[int], None] | None,
) -> list[tuple[Completion, ...]]:
    """All completions of the prompts, submitted together; per prompt, ordered by index."""
    for prompt in prompts:
        generator.submit(prompt, count=count)
    done: dict[int, dict[int, Completion]] = {prompt.group: {} for prompt in prompts}
    finished = 0
    while generator.has_work:
        for completion in generator.step():
            done[completion.group][completion.index] = completion
            finished += 1
        if on_step is not None:
            on_step(finished)
    return [tuple(done[p.group][i] for i in sorted(done[p.group])) for p in prompts]
