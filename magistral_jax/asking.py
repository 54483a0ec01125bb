"""What a run asks: its problems, rendered, in their order, and those held out."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np

from magistral_jax.config import RunConfig
from magistral_jax.data.prompts import render
from magistral_jax.data.sources import Problems, problems_of
from magistral_jax.data.stream import PromptStream, heldout_problems
from magistral_jax.tokenizer.interface import Tokenizer
from magistral_jax.tokenizer.thoughts import opened
from magistral_jax.types import Completion, Problem, Prompt, TooLong, UserError

NONE_FITS = 100


class Asking:
    """The side of a `Run` that knows problems and no devices."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.wanted: Callable[[Problem], bool] = lambda problem: True
        self.bad_rows: dict[str, None] = {}
        """Rows of the data that are left out, and why; in the order in which they were met."""
        self._fitting = self._too_long = 0
        self.on_failure: Callable[[str, str], None] = lambda kind, message: None

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        raise NotImplementedError

    @cached_property
    def problems(self) -> Problems:
        return problems_of(self.config, self.tell_row)

    def render(self, problem: Problem) -> np.ndarray:
        """The problem as a prompt. Raises `TooLong`, and once none of the first hundred fits, a
        `UserError`: then it is not the problems."""
        data = self.config.data
        try:
            tokens = render(
                problem,
                self.tokenizer,
                system_prompt=data.system_prompt,
                worked_examples=data.worked_examples,
                code_languages=self.config.verifier.code_languages,
                max_prompt_tokens=data.max_prompt_tokens,
            )
        except TooLong as fault:
            self._too_long += 1
            if self._fitting == 0 and self._too_long >= NONE_FITS:
                raise UserError(f"none of the first {NONE_FITS} problems fits: {fault}") from fault
            raise
        self._fitting += 1
        return tokens

    def text(self, completion: Completion) -> str:
        """What the completion says, with the thoughts that its prompt has opened; its stop token
        left out."""
        tokens = completion.tokens[:-1] if completion.finish == "stop" else completion.tokens
        return self.said(completion.prompt, tokens)

    def said(self, prompt: Sequence[int] | np.ndarray, tokens: Sequence[int] | np.ndarray) -> str:
        """The tokens' text, with the thoughts that the prompt has opened."""
        text = self.tokenizer.decode([int(token) for token in tokens])
        return opened(self.tokenizer, prompt) + text

    def stream(self, position: int = 0, *, seed: int | None = None) -> PromptStream:
        return PromptStream(
            self.problems,
            self.render,
            seed=self.config.seed if seed is None else seed,
            heldout_percent=self.config.data.heldout_percent,
            position=position,
            wanted=self.wanted,
            tell=self.tell_row,
        )

    def _warmup_prompts(self) -> Iterator[Prompt]:
        stream = self.stream(seed=self.config.seed + 1)
        while True:
            yield stream.next()

    def heldout(self, count: int) -> list[Prompt]:
        """`count` prompts that neither warm-up nor RL ever sees; groups count up from 0."""
        found = heldout_problems(
            self.problems,
            self.config.data.heldout_percent,
            count=count,
            seed=self.config.seed,
            fits=self._fits,
        )
        return [
            Prompt(group=i, problem=problem, tokens=self.render(problem))
            for i, problem in enumerate(found)
        ]

    def _fits(self, problem: Problem) -> bool:
        try:
            self.render(problem)
        except TooLong as fault:
            self.tell_row(str(fault))
            return False
        return True

    def tell_row(self, fault: str) -> None:
        """A row of the data that is left out, and why: counted, and told once there is a run."""
        if fault not in self.bad_rows:
            self.bad_rows[fault] = None
            self._told("rows", fault)

    def _told(self, kind: str, message: str) -> None:
        self.on_failure(kind, message)
