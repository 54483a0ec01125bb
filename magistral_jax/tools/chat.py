"""Talk with a policy: `magistral-jax sample CONFIG --chat`.

Answers are shown as they are sampled. What was said is rendered by the tokenizer's own template at
each turn, in the prompt format of the config, so a policy hears what it was trained to hear.
"""

import sys
from pathlib import Path

import numpy as np

from magistral_jax.build import EVALUATION, Run
from magistral_jax.config import RunConfig
from magistral_jax.data.prompts import conversation
from magistral_jax.generator.sampling import Sampler
from magistral_jax.generator.scheduler import Scheduler
from magistral_jax.tools.ask import policy, printable
from magistral_jax.types import Completion, Problem, Prompt

HELP = "/new begins anew, /exit or the end of input leaves, Ctrl-C cuts an answer short."


def chat(config: RunConfig, *, run_dir: Path | None) -> int:
    """Answer the lines of stdin, one after the other, until it ends."""
    with policy(config, run_dir) as (run, snapshot, console):
        scheduler = run.scheduler(
            snapshot,
            engine=run.engine(2),
            stream=EVALUATION,
            sampler=Sampler(temperature=config.eval.temperature),
        )
        console.phase(HELP)
        messages: list[dict[str, str]] = []
        turn = 0
        while (line := _asked()) is not None:
            if line == "/new":
                messages = []
            if line in ("", "/new"):
                continue
            messages = (
                [*messages, {"role": "user", "content": line}] if messages else _first(run, line)
            )
            tokens = np.array(run.tokenizer.chat(messages), np.int32)
            room = config.sequence_tokens - len(tokens)
            if room < 1:
                console.phase(
                    f"the conversation is over {config.sequence_tokens} tokens; begin a /new one"
                )
                messages = messages[:-1]
                continue
            problem = Problem(id=f"turn-{turn}", domain="math", question=line, answer="")
            prompt = Prompt(group=turn, problem=problem, tokens=tokens)
            text = _answered(run, scheduler, prompt)
            messages.append({"role": "assistant", "content": text})
            turn += 1
    return 0


def _first(run: Run, line: str) -> list[dict[str, str]]:
    """The conversation up to its first question: the instructions and examples of the config."""
    data = run.config.data
    problem = Problem(id="--chat", domain="math", question=line, answer="")
    return conversation(
        problem, system_prompt=data.system_prompt, worked_examples=data.worked_examples
    )


def _asked() -> str | None:
    """The next line of stdin; None at its end."""
    if sys.stdin.isatty():
        sys.stdout.write("> ")
        sys.stdout.flush()
    line = sys.stdin.readline()
    return None if not line or line.strip() == "/exit" else line.strip()


def _answered(run: Run, scheduler: Scheduler, prompt: Prompt) -> str:
    """The answer's text, shown piece by piece as it grows; with it the thoughts that the prompt has
    opened."""
    scheduler.submit(prompt, count=1)
    text = ""
    try:
        finished: list[Completion] = []
        while not finished:
            finished = scheduler.step()
            tokens = finished[0].tokens if finished else scheduler.written(prompt.group, 0)
            whole = run.said(prompt.tokens, tokens)
            # The last character may be half a letter: it is shown once it is whole.
            ready = whole if finished else whole.rstrip("\ufffd")
            if ready.startswith(text):
                _shown(ready[len(text) :])
                text = ready
    except KeyboardInterrupt:
        scheduler.cancel(prompt.group)
        _shown(" ...")
    _shown("\n")
    return text


def _shown(text: str) -> None:
    sys.stdout.write(printable(text))
    sys.stdout.flush()
