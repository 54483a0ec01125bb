"""One weight update and what is wrong with it: an update that is not finite is skipped and put on
the record with the completions that made it so, and figures out of bounds are told.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from magistral_jax.arrays import Batch
from magistral_jax.trainer.trainer import Trainer
from magistral_jax.types import Completion, GivenUp

FILE = "skipped_updates.jsonl"

Alarm = tuple[str, Callable[[float], bool], str]
ALARMS: tuple[Alarm, ...] = (
    (
        "policy/log_ratio_abs_max",
        lambda x: x > 10,
        "a token is e^{:.1f} times as likely to the trainer as to the sampler, or as unlikely",
    ),
    (
        "policy/ess",
        lambda x: x < 0.3,
        "the importance ratios leave {:.0%} of the batch's tokens: it is too stale, or sampler and "
        "trainer disagree",
    ),
    (
        "policy/clipped_high",
        lambda x: x > 0.3,
        "{:.0%} of the tokens are clipped at 1 + eps_high: too stale, or too large a rate",
    ),
    (
        "policy/clipped_low",
        lambda x: x > 0.3,
        "{:.0%} of the tokens are clipped at 1 - eps_low: too stale, or too large a rate",
    ),
    (
        "policy/entropy",
        lambda x: x < 1e-3,
        "the policy's entropy is {:.1e}: it hardly explores any more",
    ),
    (
        "policy/grad_norm",
        lambda x: x > 100,
        "the gradient's norm is {:.0f} before it is clipped",
    ),
)
"""Metric, when it is out of bounds, and what that means. The ESS gate is PipelineRL's idea."""


def train_batch(
    trainer: Trainer, batch: Batch, *, tell: Callable[[str, str], None], folder: Path | None
) -> dict[str, float]:
    """All optimizer steps of a batch but those `made` before; the metrics of all, averaged. Waits
    for the last one.

    `tell(kind, message)` hears of updates skipped and of alarms; completions to blame are written
    to `skipped_updates.jsonl` in `folder`. Raises `GivenUp`, if the trainer's `on_progress` does,
    with all steps that are made by then.
    """
    steps = trainer.step(batch)
    made = [*batch.made, *(stats.made() for stats in steps)]
    skipped = [number for number, values in enumerate(made) if values is None]
    try:
        blamed = [trainer.culprits(batch.minibatches[number]) for number in skipped]
    except GivenUp:
        raise GivenUp(made) from None
    if skipped and folder is not None:
        _write_down(batch, [name for names in blamed for name in names], folder / FILE)
    for names in blamed:
        tell("update", _told(batch, names))
    values = [values for values in made if values is not None]
    averages = {
        name: float(np.mean([of_step[name] for of_step in values])) for name in dict(*values[:1])
    }
    for name, is_out, text in ALARMS:
        if name in averages and is_out(averages[name]):
            tell("alarm", f"update {batch.version + 1}: {text.format(averages[name])} ({name})")
    return {**averages, "update/skipped": float(len(skipped))}


def _write_down(batch: Batch, names: list[tuple[int, int]], path: Path) -> None:
    """Add the completions to the file. Rows that a run wrote past the checkpoint from which it now
    goes on are dropped: this update, and those after it, are made again."""
    completions = {(c.group, c.index): c for group in batch.groups for c in group.completions}
    problems = {group.prompt.group: group.prompt.problem.id for group in batch.groups}
    update = batch.version + 1
    before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in before if json.loads(line)["update"] < update]
    rows = [json.dumps(_row(update, problems[name[0]], completions[name])) for name in names]
    path.write_text("".join(f"{line}\n" for line in (*kept, *rows)), encoding="utf-8")


def _told(batch: Batch, names: list[tuple[int, int]]) -> str:
    problems = {group.prompt.group: group.prompt.problem.id for group in batch.groups}
    who = ", ".join(f"{group}/{index} (problem {problems[group]})" for group, index in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    blame = f"completion {who}{more}" if names else "no completion by itself"
    return (
        f"update {batch.version + 1}: loss or gradient is not finite, so the weights stay as they "
        f"are. The cause is {blame}; see {FILE} in the run folder."
    )


def _row(update: int, problem: str, completion: Completion) -> dict[str, Any]:
    """A completion as it was trained on; what is no number in JSON is a word."""

    def plain(x: float) -> float | str:
        return x if math.isfinite(x) else str(x)

    return {
        "update": update,
        "problem": problem,
        "group": completion.group,
        "index": completion.index,
        "prompt": completion.prompt.tolist(),
        "tokens": completion.tokens.tolist(),
        "logprobs": [plain(x) for x in completion.logprobs.tolist()],
        "versions": [(span.start, span.version) for span in completion.spans],
    }
