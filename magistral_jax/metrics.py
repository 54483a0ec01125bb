"""What a run leaves behind: metrics.jsonl, completions.jsonl.gz, TensorBoard, summary.json.

Each number is recorded once, under a name the glossary explains. The two .jsonl files only grow,
in the order of their steps, so going back to a checkpoint is cutting their tails off.
"""

import gzip
import json
import math
import os
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat, get_args

from magistral_jax.ledger import BINS, FATES
from magistral_jax.types import Completion, Group, Reason, UserError, Verdict

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

FAILURES = {
    "verifier": "Verifier processes that died or hung and were replaced",
    "generator": "Failures of the generator's device state, made anew",
    "push": "Pushes of weights that failed and were tried again",
    "prompts": "Prompts set aside since the generator failed with them every time",
    "checkpoint": "Saved parts of a checkpoint that could not be used",
    "update": "Optimizer steps skipped, since loss or gradient was not finite",
    "rows": "Rows of the data left out: broken, incomplete, too long, or twice there",
    "stage": "Wishes for a next stage where there is none",
    "alarm": "Figures of an update out of their bounds (recipes/updates.py)",
}

GLOSSARY: dict[str, str] = {
    "stage": "The [[stage]] that the run is in, from 0.",
    "reward/mean": "Mean reward of the completions judged for this step: those of dropped uniform "
    "groups included, errors not. The other reward/ and length/ names speak of the same ones.",
    "reward/format": "Mean share of the reward that the format earned.",
    "reward/correct": "Mean share of the reward that a right answer earned.",
    "reward/length": "Mean share of the reward that length took away (0 or below).",
    "reward/language": "Mean share of the reward that a consistent language earned.",
    "reward/accuracy": "Share of completions whose answer was judged right, 0 to 1.",
    "batch/uniform_groups": "Share of finished groups dropped since all rewards in them are equal.",
    "batch/errored": "Completions of this step whose check itself failed (a count).",
    "batch/padding": "Share of the packed rows' tokens that hold nothing, 0 to 1.",
    "batch/first_group": "Position in the prompt stream of the first group trained on.",
    "batch/last_group": "Position in the prompt stream of the last group trained on. Between the "
    "two are those of the batch, in dispatch order, and dropped ones.",
    "policy/lag_max": "Weight updates between the batch's oldest token and the weights it trains.",
    "policy/clipped_high": "Share of trained tokens whose gradient stops at 1 + eps_high.",
    "policy/clipped_low": "Share of trained tokens whose gradient stops at 1 - eps_low.",
    "policy/entropy": "Mean entropy of the policy at the trained tokens, in nats.",
    "policy/ess": "Effective sample size of the importance ratios over trained tokens, 0 to 1.",
    "policy/kl": "Mean KL divergence from the average of the weights, in nats; 0 where no KL term "
    "is asked for.",
    "policy/log_ratio": "Mean trainer minus sampler log-prob of the trained tokens, in nats.",
    "policy/log_ratio_abs_max": "Largest |trainer minus sampler log-prob| of a trained token.",
    "generator/preempted": "Sequences that gave their pages to older ones, to go on later.",
    "generator/cache_used": "Mean share of the generator's cache that is taken.",
    "update/skipped": "Optimizer steps skipped, since loss or gradient was not finite.",
    "policy/grad_norm": "Global norm of the gradient before it is clipped.",
    "policy/spans_mean": "Mean number of weight versions that sampled one completion.",
    "policy/spans_two_or_more": "Share of completions sampled by two or more weight versions.",
    "mismatch/logprob_abs_max": "Largest |sampler - trainer| log-prob under equal weights, nats.",
    "mismatch/logprob_abs_mean": "Mean |sampler - trainer| log-prob under equal weights, nats.",
    "push/seconds": "From the end of the update until the new weights decode, in seconds.",
    "push/pause_steps": "Decode steps that the generator waited while new weights came in.",
    "sft/tokens": "Tokens of the assistant that the step learned from.",
    "sft/general_share": "Share of the learned tokens that is of the general instructions.",
    "eval/accuracy": "Mean over held-out problems of the share of right answers, 0 to 1.",
    "eval/low": "Lower end of its 95% interval, problems as clusters.",
    "eval/high": "Upper end of its 95% interval.",
    "eval/length": "Mean length of the evaluation's answers, in tokens.",
    "eval/truncated": "Share of them cut at generator.max_tokens.",
    "eval/version": "The weight version that all of them were sampled under.",
    "loss": "The objective that was minimised, summed over the batch with its shares.",
    "length/mean": "Mean length of a completion, in tokens.",
    "length/max": "Longest completion, in tokens.",
    "length/truncated": "Share of completions cut at generator.max_tokens, 0 to 1.",
    **{
        f"length/in_turn_q{q}": f"Of the completions trained on so far with a length in quarter "
        f"{q} of their lengths, the share before which no group dispatched later came: 1 in each."
        for q in (1, 2, 3, 4)
    },
    "generator/tokens_per_s": "Tokens sampled per second of the step's wall time.",
    "generator/occupancy": "Mean share of slots that decode a sequence, 0 to 1.",
    "generator/decode_steps": "Decode steps since the previous weight update (a count).",
    "train/tokens_per_s": "Trained-on row tokens, padding not counted, per second of time/train.",
    "progress/completions": "Completions finished since the run began (a count).",
    "progress/dispatched": "Prompts handed to the generator since the run began (a count).",
    "progress/dropped_groups": "Finished groups dropped since the run began (a count).",
    "time/step": "Wall time from one weight update to the next, in seconds.",
    "time/train": "Forward, backward and update of this step, in seconds.",
    "time/wait_batch": "How long the trainer waited for this batch, in seconds.",
    "time/wait_admission": "How long the feed waited for leave to dispatch, in seconds.",
    "time/verify": "From hand-over to verdict, summed over the completions, in seconds.",
    "time/verify_queue": "The part of time/verify spent waiting for a free verifier process.",
    **{
        f"verifier/{reason}": f"Completions judged since the last step whose reason is {reason!r}."
        for reason in get_args(Reason)
    },
    "verifier/unsafe_code": "1 where programs run without a sandbox (verifier.allow_unsafe_code).",
    "time/assemble": "Advantages, packing and padding of this batch, in seconds.",
    "time/checkpoint": "How long the step waited for its checkpoint, in seconds.",
    **{
        f"failures/{kind}": f"{what}, since the run began (a count)."
        for kind, what in FAILURES.items()
    },
    **{
        f"ledger/{bin}": f"Device-seconds since the run began: {what}."
        for bin, what in BINS.items()
    },
    **{f"tokens/{fate}": f"Tokens sampled since the run began: {FATES[fate]}." for fate in FATES},
}

# What depends on the clock, or on what was killed and when: all else is equal in two deterministic
# runs.
_TIMED = ("time/", "ledger/", "failures/", "push/")
_TIMED_NAMES = ("wall_s", "generator/tokens_per_s", "train/tokens_per_s", "tokens/lost")


def untimed(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of metrics without what the clock decides."""
    return {
        name: value
        for name, value in row.items()
        if not name.startswith(_TIMED) and name not in _TIMED_NAMES
    }


PARTS = ("format", "correct", "length", "language")
METRICS, COMPLETIONS, SUMMARY = "metrics.jsonl", "completions.jsonl.gz", "summary.json"
_TRACES = (METRICS, COMPLETIONS, SUMMARY, "checkpoints")
_CHUNK = 1 << 16


class RunRecord:
    """The record of one run in its folder. Only one thread may write to it."""

    def __init__(self, folder: str | Path, tensorboard: bool, resume_step: int | None) -> None:
        """A folder ready for step 0, or cut back to the checkpoint of `resume_step`."""
        self.folder = Path(folder)
        self._tensorboard = tensorboard
        self._resume_step = resume_step
        self._events: SummaryWriter | None = None
        self._last = {METRICS: -1, COMPLETIONS: -1}
        if resume_step is None:
            _refuse_a_second_run(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as fault:
            raise UserError(
                f"--run-dir {self.folder} cannot be made: {fault.strerror}. Pass another --run-dir."
            ) from fault
        self._start = time.monotonic()
        if resume_step is not None:
            self.go_back(resume_step)

    def go_back(self, step: int) -> None:
        """Cuts off the rows after a step: they are made again."""
        wall_s = _cut_metrics(self.folder / METRICS, step)
        _cut_completions(self.folder / COMPLETIONS, step)
        self._start = time.monotonic() - wall_s
        self._last = {METRICS: step, COMPLETIONS: step}
        self._resume_step = step

    def step(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Adds one row to metrics.jsonl, on disk when this returns; not-finite values are null."""
        unknown = [name for name in values if name not in GLOSSARY]
        if unknown:
            raise LookupError(f"{', '.join(unknown)}: not in metrics.GLOSSARY; explain it there.")
        numbers = {name: float(value) for name, value in values.items()}
        wall_s = round(time.monotonic() - self._start, 3)
        row = {"step": int(step), "wall_s": wall_s, **numbers}
        self._append(METRICS, step, (json.dumps(_plain(row), allow_nan=False) + "\n").encode())
        if self._tensorboard:
            self._write_events(step, numbers)

    def completions(self, step: int, groups: Sequence[Group]) -> None:
        """Adds one gzip member to completions.jsonl.gz: a row per completion, errors included."""
        rows = [
            _completion_row(step, group, completion, verdict)
            for group in groups
            for completion, verdict in zip(group.completions, group.verdicts, strict=True)
        ]
        if rows:
            text = "".join(json.dumps(row) + "\n" for row in rows)
            self._append(COMPLETIONS, step, gzip.compress(text.encode(), 6, mtime=0))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Replaces summary.json as a whole: a reader sees the old one or the new one."""
        path = self.folder / SUMMARY
        partial = path.with_suffix(".partial")
        try:
            with partial.open("w", encoding="utf-8") as file:
                json.dump(_plain(values), file, indent=2, allow_nan=False)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as fault:
            raise _cannot_write(path, fault) from fault

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None

    def __enter__(self) -> "RunRecord":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, name: str, step: int, data: bytes) -> None:
        # The cut on resume relies on this order.
        assert step > self._last[name], f"{name}: step {step} comes after {self._last[name]}"
        path = self.folder / name
        try:
            with path.open("ab") as file:
                file.write(data)
        except OSError as fault:
            raise _cannot_write(path, fault) from fault
        self._last[name] = step

    def _write_events(self, step: int, numbers: Mapping[str, float]) -> None:
        if self._events is None:
            from tensorboardX import SummaryWriter

            purge = None if self._resume_step is None else self._resume_step + 1
            self._events = SummaryWriter(str(self.folder / "tensorboard"), purge_step=purge)
        for name, value in numbers.items():
            if math.isfinite(value):
                self._events.add_scalar(name, value, step)
        self._events.flush()


def _completion_row(
    step: int, group: Group, completion: Completion, verdict: Verdict
) -> dict[str, Any]:
    return {
        "prompt_id": group.prompt.problem.id,
        "group": completion.group,
        "index": completion.index,
        "step": int(step),
        "prompt_tokens": completion.prompt.tolist(),
        "tokens": completion.tokens.tolist(),
        # A float32 as the float64 of the same value: reading it back as float32 is exact.
        "logprobs": completion.logprobs.tolist(),
        "spans": [[span.start, span.version] for span in completion.spans],
        "refills": list(completion.refills),
        "finish": completion.finish,
        "reward": float(verdict.reward),
        "parts": {name: float(verdict.parts.get(name, 0.0)) for name in PARTS},
        "outcome": verdict.outcome,
        "reason": verdict.reason,
        "detail": verdict.detail,
    }


def _plain(value: Any) -> Any:
    """The value in JSON's own types; what is not finite is null, since JSON has no word for it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if hasattr(value, "tolist") and not isinstance(value, float):  # numpy's and jax's arrays
        return _plain(value.tolist())
    return float(value) if math.isfinite(value) else None


def _refuse_a_second_run(folder: Path) -> None:
    found = [name for name in _TRACES if _holds_something(folder / name)]
    if found:
        raise UserError(
            f"{folder} already holds a run ({', '.join(found)}). "
            "Pass --resume to go on with it, or another --run-dir."
        )


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _cannot_write(path: Path, fault: OSError) -> OSError:
    """The same error with the file's name, which a failed write or flush leaves out."""
    return OSError(fault.errno, f"cannot write: {fault.strerror}", str(path))


def _cut_metrics(path: Path, step: int) -> float:
    """Cuts the rows after `step` and a torn last one; the wall time of the last row that stays."""
    if not path.exists():
        return 0.0
    lines = path.read_bytes().splitlines(keepends=True)
    kept, wall_s = 0, 0.0
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            row_step, row_wall_s = int(row["step"]), float(row["wall_s"])
        except (ValueError, KeyError, TypeError) as fault:
            if number == len(lines):
                break
            raise UserError(
                f"{path} line {number} is not a row of metrics, and it is not the last line. "
                "Repair the file or move it away, then --resume."
            ) from fault
        if row_step > step or not line.endswith(b"\n"):
            break
        kept, wall_s = kept + len(line), row_wall_s
    os.truncate(path, kept)
    return wall_s


def _cut_completions(path: Path, step: int) -> None:
    """Cuts the members after `step` and a torn last one."""
    if not path.exists():
        return
    try:
        for start, first_row in _members(path):
            if first_row is None or int(json.loads(first_row)["step"]) > step:
                os.truncate(path, start)
                return
    except (zlib.error, ValueError, KeyError, TypeError) as fault:
        raise UserError(
            f"{path} is damaged ({fault}), and not only torn at its end. "
            "Move it away, then --resume."
        ) from fault


def _members(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Where each gzip member starts, with its first row: None if the file ends inside it."""
    with path.open("rb") as file:
        start, data = 0, file.read(_CHUNK)
        while data:
            member, head, used = zlib.decompressobj(wbits=31), b"", 0
            while not member.eof:
                if not data:
                    yield start, None
                    return
                text = member.decompress(data)
                if b"\n" not in head:
                    head += text
                used += len(data) - len(member.unused_data)
                data = member.unused_data or file.read(_CHUNK)
            yield start, head.partition(b"\n")[0]
            start += used
