"""Who answers: a policy on our own engine, or any server that speaks OpenAI's protocol.

Both give the answers of a problem as soon as it has all of them, in whatever order they come.
"""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from magistral_jax.build import Run
from magistral_jax.config import RunConfig
from magistral_jax.console import Console
from magistral_jax.generator.sampling import Sampler
from magistral_jax.tools.ask import policy
from magistral_jax.types import Completion, Prompt, RunFailed, Snapshot, UserError

KEY = "OPENAI_API_KEY"
TRIES = 5


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question, in both forms that somebody may want it in."""

    prompt: Prompt
    messages: Sequence[Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class Said:
    """One answer."""

    text: str
    finish: str
    """"stop", or "length" where it was cut."""
    length: int
    """In tokens."""
    completion: Completion | None = None
    """The token record, if our own engine answered."""


@runtime_checkable
class Answerer(Protocol):
    def answers(self, asked: Sequence[Asked], count: int) -> Iterator[tuple[Asked, list[Said]]]: ...


@dataclass(frozen=True, kw_only=True)
class Who:
    """Whom a command line names: a run's policy, a server, or else the config's model."""

    run_dir: Path | None = None
    endpoint: str = ""
    endpoint_model: str = ""
    at_once: int = 8
    """Requests at once, there."""


@contextmanager
def answering(
    config: RunConfig, who: Who
) -> Iterator[tuple[str, int, Callable[[float], Answerer], Run | None, Console]]:
    """Its name and version, how to have it answer at a top-p, and the run if it is ours."""
    temperature = config.eval.temperature
    if who.endpoint:
        with Console(0) as console:

            def over_there(top_p: float) -> Answerer:
                return Endpoint(
                    who.endpoint,
                    who.endpoint_model,
                    temperature=temperature,
                    top_p=top_p,
                    max_tokens=config.generator.max_tokens,
                    at_once=who.at_once,
                    stall_s=config.stall_s,
                )

            name = f"{who.endpoint_model or 'default'} at {who.endpoint}"
            yield name, 0, over_there, None, console
        return
    with policy(config, who.run_dir) as (run, snapshot, console):

        def here(top_p: float) -> Answerer:
            return OwnEngine(run, snapshot, Sampler(temperature=temperature, top_p=top_p))

        name = str(who.run_dir or config.model.start or config.model.source)
        yield name, snapshot.version, here, run, console


class OwnEngine:
    """A policy at one version."""

    def __init__(self, run: Run, snapshot: Snapshot, sampler: Sampler) -> None:
        self._run, self._snapshot, self._sampler = run, snapshot, sampler

    def answers(self, asked: Sequence[Asked], count: int) -> Iterator[tuple[Asked, list[Said]]]:
        generator = self._run.evaluation(self._snapshot, self._sampler)
        by_group = {one.prompt.group: one for one in asked}
        for one in asked:
            generator.submit(one.prompt, count=count)
        done: dict[int, dict[int, Completion]] = {group: {} for group in by_group}
        while generator.has_work:
            for completion in generator.step():
                mine = done[completion.group]
                mine[completion.index] = completion
                if len(mine) == count:
                    yield (
                        by_group[completion.group],
                        [self._said(mine[index]) for index in sorted(mine)],
                    )

    def _said(self, completion: Completion) -> Said:
        return Said(
            text=self._run.text(completion),
            finish=completion.finish,
            length=len(completion.tokens),
            completion=completion,
        )


class Endpoint:
    """A server of the OpenAI chat protocol. The key comes from the environment (OPENAI_API_KEY)."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        temperature: float,
        top_p: float,
        max_tokens: int,
        at_once: int,
        stall_s: float,
    ) -> None:
        """`url` ends before "/chat/completions"; an answer must come within `stall_s` seconds."""
        if not url.startswith(("http://", "https://")):
            raise UserError(
                f"--endpoint is {url!r}; it must be an address, as http://host:8000/v1."
            )
        self._url = url.rstrip("/") + "/chat/completions"
        self._body = {
            "model": model,
            "temperature": temperature,
            "top_p": top_p,
            "max_tokens": max_tokens,
        }
        self._at_once, self._stall_s = at_once, stall_s

    def answers(self, asked: Sequence[Asked], count: int) -> Iterator[tuple[Asked, list[Said]]]:
        pool = ThreadPoolExecutor(self._at_once, thread_name_prefix="endpoint")
        try:
            waiting: dict[Future[Said], int] = {
                pool.submit(self._ask, one.messages): place
                for place, one in enumerate(asked)
                for _ in range(count)
            }
            done: dict[int, list[Said]] = {}
            for future in as_completed(waiting):
                place = waiting[future]
                done.setdefault(place, []).append(future.result())
                if len(done[place]) == count:
                    yield asked[place], done.pop(place)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, messages: Sequence[Mapping[str, str]]) -> Said:
        request = urllib.request.Request(
            self._url,
            data=json.dumps({**self._body, "messages": list(messages)}).encode(),
            headers={"Content-Type": "application/json"}
            | ({"Authorization": f"Bearer {os.environ[KEY]}"} if os.environ.get(KEY) else {}),
        )
        for attempt in range(1, TRIES + 1):
            try:
                with urllib.request.urlopen(request, timeout=self._stall_s) as reply:
                    return _said_in(json.load(reply))
            except urllib.error.HTTPError as fault:
                # Too many requests and the server's own failures pass; all else is ours.
                is_passing = fault.code == 429 or fault.code >= 500
                said = f"{fault.code} {fault.reason}"
                fault.close()
                if not is_passing or attempt == TRIES:
                    raise RunFailed(f"{self._url} answered {said}") from fault
            except (OSError, ValueError, LookupError, TypeError) as fault:
                if attempt == TRIES:
                    raise RunFailed(
                        f"{self._url} gave no answer in {TRIES} tries, the last time: "
                        f"{type(fault).__name__}: {fault}"
                    ) from fault
            time.sleep(0.5 * 2 ** (attempt - 1))
        raise AssertionError("the last try returns or raises")


def _said_in(reply: Any) -> Said:
    """The answer in a reply. Raises LookupError or TypeError if there is none."""
    choice = reply["choices"][0]
    message = choice["message"]
    text = message.get("content") or ""
    if thoughts := message.get("reasoning_content") or message.get("reasoning"):
        # Some servers take the thoughts out of the text.
        text = f"<think>{thoughts}</think>{text}"
    if not isinstance(text, str):
        raise TypeError(f"content is {type(text).__name__}")
    if "</think>" in text and "<think>" not in text:
        text = f"<think>{text}"  # its prompt has opened them
    used = (reply.get("usage") or {}).get("completion_tokens", 0)
    return Said(text=text, finish=choice.get("finish_reason") or "stop", length=int(used))
