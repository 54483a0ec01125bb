"""Why completions fail the format gate, counted, and told once if it is nearly always the same."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock

from magistral_jax.types import Verdict

_MANY = 32
"""Completions from which on a share says something."""
_ADVICE = {
    "no leading <think>": "The policy does not begin with its thoughts: ask for them "
    '(data.system_prompt = "magistral", data.worked_examples) or teach them first (sft); rows made '
    "elsewhere, whose prompts opened the thoughts, say so with `opened`.",
    "think block never closed": "Completions may be cut inside their thoughts: look at their "
    "lengths and generator.max_tokens.",
}


class FormatFaults:
    """Counts why completions fail the gate, and says once if it is nearly always the same."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """`tell` may be called from any thread."""
        self._tell, self._lock = tell, Lock()
        self._judged, self._told = 0, False
        self._faults: Counter[str] = Counter()

    def see(self, verdict: Verdict) -> None:
        with self._lock:
            self._judged += verdict.outcome != "error"
            if verdict.reason == "format":
                self._faults[verdict.detail] += 1
            line = "" if self._told or self._judged < _MANY else self._line()
            self._told = self._told or bool(line)
        if line:
            self._tell(line)

    def see_future(self, verdict: Future[Verdict]) -> None:
        """The same when the verdict is there; one that never comes counts as none."""
        if not verdict.cancelled() and verdict.exception() is None:
            self.see(verdict.result())

    def _line(self) -> str:
        failed = self._faults.total()
        if 2 * failed < self._judged:
            return ""
        fault, count = self._faults.most_common(1)[0]
        if count < 0.9 * failed:
            return ""
        return (
            f"{failed} of {self._judged} completions fail the format check, {count} of them with "
            f'"{fault}". {_ADVICE.get(fault, "")}'.rstrip()
        )
