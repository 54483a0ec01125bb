"""All completions of some prompts, from whatever takes prompts and steps."""

from collections.abc import Callable, Sequence
from typing import Protocol

from magistral_jax.types import Completion, Prompt


class Answers(Protocol):
    """A scheduler or a fleet of them; both get `generate` from here."""

    @property
    def has_work(self) -> bool: ...
    def submit(
        self, prompt: Prompt, *, count: int | None = None, limit: int | None = None
    ) -> None: ...
    def step(self) -> list[Completion]: ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        count: int | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> list[tuple[Completion, ...]]:
        """All completions of the prompts, submitted together; per prompt, ordered by index."""
        for prompt in prompts:
            self.submit(prompt, count=count)
        done: dict[int, dict[int, Completion]] = {prompt.group: {} for prompt in prompts}
        finished = 0
        while self.has_work:
            for completion in self.step():
                done[completion.group][completion.index] = completion
                finished += 1
            if on_step is not None:
                on_step(finished)
        return [tuple(done[p.group][i] for i in sorted(done[p.group])) for p in prompts]
