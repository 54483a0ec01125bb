import json
import runpy
import subprocess
import sys
import threading
from pathlib import Path

HOSTILE = runpy.run_path(str(Path(__file__).parent / "hostile.py"))
LIMIT_S = 2.0

# Judges what stdin says, a line each, and says how long each took.
JUDGE = """
import json, sys, time
from magistral_jax.verifier.math import symbolic
from magistral_jax.verifier.math.equal import same_answer
for line in sys.stdin:
    gold, candidate = json.loads(line)
    start = time.monotonic()
    verdict = same_answer(gold, candidate)
    print(json.dumps([verdict, time.monotonic() - start]), flush=True)
"""


class Judge:
    """A process that is killed when an item takes longer than it may."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        return subprocess.Popen([sys.executable, "-c", JUDGE], text=True, cwd=self.folder, **pipes)

    def ask(self, gold: str, candidate: str) -> tuple[bool, float] | None:
        """The verdict and its seconds; None if it took ten times the limit, or the process died."""
        assert self.process.stdin is not None and self.process.stdout is not None
        timer = threading.Timer(10 * LIMIT_S, self.process.kill)
        timer.start()
        self.process.stdin.write(json.dumps([gold, candidate]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        timer.cancel()
        if not line:
            self.end()
            self.process = self._start()
            return None
        verdict, seconds = json.loads(line)
        return verdict, seconds

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()


def test_hostile_answers_run_nothing_hang_nothing_and_equal_nothing(tmp_path):
    marker = tmp_path / "ran"
    items = [
        (gold, text.replace("<marker>", str(marker)))
        for text in HOSTILE["HOSTILE"]
        for gold in HOSTILE["REFERENCES"]
    ]
    assert len(HOSTILE["HOSTILE"]) >= 110
    judge = Judge(tmp_path)
    verdicts = [judge.ask(*item) for item in items]
    judge.end()
    assert [item for item, v in zip(items, verdicts, strict=True) if v and v[0]] == []
    late = [item for item, v in zip(items, verdicts, strict=True) if v is None or v[1] > LIMIT_S]
    assert len(late) <= 0.01 * len(items), late
    assert list(tmp_path.iterdir()) == []
