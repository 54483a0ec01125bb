"""Evaluation during training, at one pinned version, without stopping it (section 5.3).

An exam holds the snapshot it was begun with and decodes in slots of its own, one program beside
each of the run's, so that training neither waits for it nor sees it; the price is the memory of
those slots, and their share of the generator's time.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait

from magistral_jax.evaluate import summarise
from magistral_jax.generator.scheduler import Scheduler
from magistral_jax.types import Completion, Prompt, Snapshot, Stalled, Verdict

_LOOK_S = 0.05


class Exam:
    """At most one evaluation at a time, over a scheduler that nothing else uses."""

    def __init__(
        self,
        make_scheduler: Callable[[Snapshot], Scheduler],
        prompts: Sequence[Prompt],
        judge: Callable[[Prompt, Completion], Future[Verdict]],
        *,
        samples: int,
        every: int,
        stall_s: float,
    ) -> None:
        """`every`: weight updates from one to the next; one begun is finished first."""
        self._make_scheduler, self._prompts, self._judge = make_scheduler, prompts, judge
        self._by_group = {prompt.group: prompt for prompt in prompts}
        self._samples, self._stall_s = samples, stall_s
        self.name, self.every = "the evaluation", every
        self.tokens = 0
        """Sampled in all evaluations so far."""
        self._waited_s = 0.0
        self._scheduler: Scheduler | None = None
        self._answers: dict[tuple[int, int], tuple[Completion, Future[Verdict]]] = {}

    @property
    def is_running(self) -> bool:
        return self._scheduler is not None

    def start(self, snapshot: Snapshot) -> None:
        """Begin to answer with this snapshot's weights, to the end."""
        assert not self.is_running
        self._scheduler = self._make_scheduler(snapshot)
        self._answers = {}
        for prompt in self._prompts:
            self._scheduler.submit(prompt, count=self._samples)

    def step(self) -> dict[str, float] | None:
        """One program; the figures, once every answer is judged."""
        scheduler = self._scheduler
        assert scheduler is not None
        if scheduler.has_work:
            before = scheduler.num_sampled
            for completion in scheduler.step():
                verdict = self._judge(self._by_group[completion.group], completion)
                self._answers[completion.group, completion.index] = (completion, verdict)
            self.tokens += scheduler.num_sampled - before
            return None
        waiting = [verdict for _, verdict in self._answers.values() if not verdict.done()]
        if waiting:
            self._wait(waiting)
            return None
        self._scheduler = None
        return self._figures(scheduler.version)

    def _wait(self, waiting: list[Future[Verdict]]) -> None:
        # The pool gives every check an end; this is for a pool that does not.
        if wait(waiting, timeout=_LOOK_S, return_when="FIRST_COMPLETED").done:
            self._waited_s = 0.0
            return
        self._waited_s += _LOOK_S
        if self._waited_s > self._stall_s:
            raise Stalled(f"the evaluation waited {self._stall_s:g} s for {len(waiting)} verdicts")

    def _figures(self, version: int) -> dict[str, float]:
        answered = [
            tuple(self._answers[prompt.group, index][0] for index in range(self._samples))
            for prompt in self._prompts
        ]
        judged = [
            tuple(self._answers[prompt.group, index][1].result() for index in range(self._samples))
            for prompt in self._prompts
        ]
        versions = {span.version for group in answered for c in group for span in c.spans}
        assert versions == {version}, f"an evaluation of {version} has answers of {versions}"
        found = summarise(answered, judged)
        low, high = found.accuracy_ci95
        return {
            "eval/version": float(version),
            "eval/accuracy": found.accuracy,
            "eval/low": low,
            "eval/high": high,
            "eval/length": found.length,
            "eval/truncated": found.truncated,
        }
