"""Supervised fine-tuning: which conversations make which optimizer step (section 5.2).

The paper's cold start: traces with right answers, mixed with general instructions to a tenth of the
tokens, for four epochs. The loss is the likelihood of the assistant's tokens, each of a step's
counting alike; nothing else is learned.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import optax

from magistral_jax.arrays import Minibatch
from magistral_jax.batch.assemble import assemble_minibatch
from magistral_jax.config import RunConfig
from magistral_jax.types import Completion, Group, Problem, Prompt, UserError, Verdict

NO_PROBLEM = Problem(id="sft", domain="math", question="", answer="")
JUDGED = Verdict(reward=0.0, parts={}, reason="pass")


class Lesson(NamedTuple):
    """One conversation of a step."""

    is_general: bool
    index: int


def schedule(
    traces: Sequence[int],
    general: Sequence[int],
    *,
    share: float,
    epochs: int,
    per_step: int,
    seed: int,
) -> list[list[Lesson]]:
    """What every step is shown, from the number of learned tokens of each conversation.

    Every trace comes once an epoch, in a new order each. General ones come between them whenever
    their share of the tokens so far is below `share`, in an order that begins anew when all have
    come. A pure function of its arguments: a resume goes on at any step.
    """
    if not traces:
        raise UserError("sft.path holds no conversation that can be used.")
    rng = np.random.default_rng((seed, 2))
    lessons: list[Lesson] = []
    others = _endless(len(general), rng) if general and share > 0 else None
    of_traces = of_others = 0
    for _ in range(epochs):
        for index in rng.permutation(len(traces)):
            lessons.append(Lesson(False, int(index)))
            of_traces += traces[index]
            while others is not None and of_others < share * (of_traces + of_others):
                index = next(others)
                lessons.append(Lesson(True, index))
                of_others += general[index]
    return [lessons[at : at + per_step] for at in range(0, len(lessons), per_step)]


def _endless(count: int, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from map(int, rng.permutation(count))


def minibatch_of(conversations: Sequence[Completion], config: RunConfig) -> Minibatch:
    """The step that learns from these, packed; every learned token has an equal share."""
    groups = [
        Group(
            prompt=Prompt(group=at, problem=NO_PROBLEM, tokens=conversation.prompt),
            completions=(conversation,),
            verdicts=(JUDGED,),
        )
        for at, conversation in enumerate(conversations)
    ]
    return assemble_minibatch(
        groups,
        row_tokens=config.batch.row_tokens,
        rows=config.batch.rows,
        advantage_rule="none",
        share_rule="batch",
        ranks=config.mesh.trainer_fsdp,
    )


def rate_of(config: RunConfig, steps: int) -> optax.Schedule:
    """Up to `sft.learning_rate` over `sft.warmup_share` of the steps, then down to a tenth of it
    by a cosine."""
    rising = round(config.sft.warmup_share * steps)
    peak = config.sft.learning_rate
    falling = optax.cosine_decay_schedule(peak, max(1, steps - rising), alpha=0.1)
    if rising == 0:
        return falling
    return optax.join_schedules([optax.linear_schedule(0.0, peak, rising), falling], [rising])
