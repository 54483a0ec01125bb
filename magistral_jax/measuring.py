"""The evaluation of a run's policy while nothing else goes on: how far it is, and what it found."""

from collections.abc import Callable
from functools import partial

from magistral_jax.build import Run
from magistral_jax.evaluate import Evaluation, evaluate
from magistral_jax.ledger import GENERATOR
from magistral_jax.types import Snapshot


def evaluation_of(
    run: Run,
    snapshot: Snapshot,
    *,
    name: str,
    tell: Callable[[str], None],
    on_step: Callable[[], None] = lambda: None,
) -> Evaluation:
    """What `eval.problems` held-out problems, `eval.samples` answers each, say of these weights.

    Each step and each verdict is a sign of life for the watch; `tell` hears how far it is, and what
    `on_step` raises ends it.
    """
    e, ledger = run.config.eval, run.ledger
    total = e.problems * e.samples

    def on_progress(done: int) -> None:
        ledger.beat(GENERATOR)
        tell(f"{name}: {done}/{total}")
        on_step()

    with ledger.doing(GENERATOR, "evaluation", "an evaluation"):
        found, answers = evaluate(
            run.evaluation(snapshot),
            run.judge,
            run.heldout(e.problems),
            samples=e.samples,
            timeout_s=run.config.stall_s,
            on_step=on_progress,
            on_verdict=partial(on_progress, total),
        )
    tokens = sum(len(c.tokens) for completions, _ in answers for c in completions)
    ledger.sampled(tokens)
    ledger.fate("evaluation", tokens)
    return found


def in_words(found: Evaluation) -> str:
    """The figures of an evaluation in a line."""
    low, high = found.accuracy_ci95
    return (
        f"accuracy {found.accuracy:.1%} [{low:.1%}, {high:.1%}], format {found.format:.1%}, "
        f"length {found.length:.1f}"
    )
