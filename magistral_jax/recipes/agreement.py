"""Do sampler and trainer agree? Fresh completions, sampled and scored at one pinned version.

The probe decodes a few held-out prompts in slots of its own, one step beside each step of the
run, so that nothing waits for it. When they are finished, the trainer's scoring function (packed
rows, full forward, chunked log-probs) runs over them with the very weights that sampled them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import P
from jax.sharding import NamedSharding

from magistral_jax.arrays import Microbatch
from magistral_jax.batch.assemble import assemble_minibatch
from magistral_jax.generator.scheduler import Scheduler
from magistral_jax.model.logprobs import score
from magistral_jax.model.transformer import LONG_ROW
from magistral_jax.types import Completion, Group, Prompt, Snapshot, Verdict


class Probe:
    """At most one measurement at a time, over a scheduler that nothing else uses."""

    def __init__(
        self,
        make_scheduler: Callable[[Snapshot], Scheduler],
        prompts: Sequence[Prompt],
        *,
        row_tokens: int,
        rows: int,
        head_tokens: int,
        long_row: int = LONG_ROW,
        every: int = 1,
    ) -> None:
        """`every`: weight updates from one measurement to the next."""
        self.name, self.every = "the probe", every
        self._make_scheduler, self._prompts = make_scheduler, prompts
        self._row_tokens, self._rows, self._head_tokens = row_tokens, rows, head_tokens
        self._long_row = long_row
        self._scheduler: Scheduler | None = None
        self._finished: list[Completion] = []
        self._score: Any = None
        self.tokens = 0
        """Sampled in all measurements so far."""

    @property
    def is_running(self) -> bool:
        return self._scheduler is not None

    def start(self, snapshot: Snapshot) -> None:
        """Begin to sample one completion of each prompt with this snapshot's weights."""
        assert not self.is_running
        self._scheduler = self._make_scheduler(snapshot)
        self._finished = []
        for prompt in self._prompts:
            self._scheduler.submit(prompt, count=1)

    def step(self) -> dict[str, float] | None:
        """One decode step; the measurement, once the last completion is finished."""
        assert self._scheduler is not None
        sampled = self._scheduler.num_sampled
        finished = self._scheduler.step()
        self._finished += finished
        self.tokens += self._scheduler.num_sampled - sampled
        if self._scheduler.has_work:
            return None
        scheduler, self._scheduler = self._scheduler, None
        gap = np.concatenate(self._gaps(scheduler))
        return {
            "mismatch/logprob_abs_max": float(gap.max()),
            "mismatch/logprob_abs_mean": float(gap.mean()),
        }

    def _gaps(self, scheduler: Scheduler) -> list[np.ndarray]:
        """|sampler - trainer| of every sampled token, a row at a time."""
        engine = scheduler.engine
        if self._score is None:
            self._score = jax.jit(self._score_fn(scheduler))
        placed = NamedSharding(engine.mesh, P("fsdp", None))
        gaps = []
        for microbatch in packed(self._prompts, self._finished, self._row_tokens, self._rows):
            with jax.set_mesh(engine.mesh):
                arrays = jax.tree.map(lambda x: jax.device_put(x, placed), microbatch)
                scored = self._score(scheduler.snapshot.params, arrays)
            on = np.asarray(microbatch.shares) > 0
            gaps.append(np.abs(np.asarray(scored) - microbatch.behavior_logprobs)[on])
        return gaps

    def _score_fn(self, scheduler: Scheduler) -> Callable[..., Any]:
        engine, temperature = scheduler.engine, float(scheduler.sampler.temperature)

        def score_rows(params: Any, batch: Any) -> Any:
            return score(
                params,
                engine.arch,
                batch.inputs,
                batch.targets,
                batch.positions,
                batch.segments,
                temperature=temperature,
                dtype=engine.dtype,
                remat=False,
                head_tokens=self._head_tokens,
                kernels=engine.kernels,
                long_row=self._long_row,
            ).logprobs

        return score_rows


def packed(
    prompts: Sequence[Prompt], completions: Sequence[Completion], row_tokens: int, rows: int
) -> tuple[Microbatch, ...]:
    """Completions in the trainer's rows, each token's share above 0."""
    by_group = {prompt.group: prompt for prompt in prompts}
    nothing = Verdict(reward=0.0, parts={}, reason="wrong")
    groups = [
        Group(prompt=by_group[c.group], completions=(c,), verdicts=(nothing,)) for c in completions
    ]
    return assemble_minibatch(
        groups, row_tokens=row_tokens, rows=rows, advantage_rule="none", share_rule="batch"
    ).microbatches
