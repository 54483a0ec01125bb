"""A `Frontier` as JSON and flat arrays, and back: how a checkpoint holds what is in flight.

Sequences are ragged, so that their tokens lie end to end in one array for all; the JSON holds who
they belong to and how long they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from magistral_jax.types import (
    Completion,
    Draft,
    Frontier,
    Group,
    InFlight,
    OpenGroup,
    Prompt,
    Queue,
    UserError,
    Verdict,
    VersionSpan,
    Waiting,
)

_DTYPES = {"prompts": np.int32, "tokens": np.int32, "logprobs": np.float32, "sampled": np.bool_}


def packed(frontier: Frontier) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(JSON, arrays). The engine's own state is not among them."""
    sheet = _Sheet()
    queue, in_flight = frontier.queue, frontier.in_flight
    text = {
        "queue": {
            "next": queue.next,
            "entries": [sheet.entry(entry) for entry in queue.entries],
            "judged": [sheet.entry(group) for group in queue.judged],
            "made": [None if made is None else dict(made) for made in queue.made],
            "dropped_in_a_row": dict(queue.dropped_in_a_row),
            "strikes": dict(queue.strikes),
        },
        "in_flight": {
            "drafts": [sheet.draft(draft) for draft in in_flight.drafts],
            "waiting": [
                {"prompt": sheet.prompt(w.prompt), "limit": w.limit, "next_index": w.next_index}
                | {"count": w.count}
                for w in in_flight.waiting
            ],
            "free": list(in_flight.free),
        },
        "counters": dict(frontier.counters),
        "accounts": dict(frontier.accounts),
        "tick": frontier.tick,
        "update_at": frontier.update_at,
        "due": [list(due) for due in frontier.due],
    }
    return text, sheet.arrays()


def unpacked(
    text: dict[str, Any], arrays: dict[str, np.ndarray], prompt_at: Callable[[int], Prompt]
) -> Frontier:
    """The frontier again. `prompt_at` gives the prompt at a position of the stream, which must be
    the one that was saved: raises `UserError` if the data has changed."""
    read = _Reader(arrays, prompt_at)
    queue, in_flight = text["queue"], text["in_flight"]
    return Frontier(
        queue=Queue(
            next=queue["next"],
            entries=tuple(read.entry(entry) for entry in queue["entries"]),
            judged=tuple(g for e in queue["judged"] if isinstance(g := read.entry(e), Group)),
            made=tuple(queue["made"]),
            dropped_in_a_row=queue["dropped_in_a_row"],
            strikes=queue["strikes"],
        ),
        in_flight=InFlight(
            drafts=tuple(read.draft(draft) for draft in in_flight["drafts"]),
            waiting=tuple(
                Waiting(**{**waiting, "prompt": read.prompt(waiting["prompt"])})
                for waiting in in_flight["waiting"]
            ),
            free=tuple(in_flight["free"]),
        ),
        counters=text["counters"],
        accounts=text["accounts"],
        tick=text["tick"],
        update_at=text["update_at"],
        due=tuple((tick, group, index) for tick, group, index in text["due"]),
    )


class _Sheet:
    """Writes; the reader must ask in the same order."""

    def __init__(self) -> None:
        self._flat: dict[str, list[np.ndarray]] = {name: [] for name in _DTYPES}

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            name: np.concatenate([np.zeros(0, dtype), *self._flat[name]]).astype(dtype)
            for name, dtype in _DTYPES.items()
        }

    def prompt(self, prompt: Prompt) -> list[Any]:
        self._flat["prompts"].append(prompt.tokens)
        return [prompt.group, prompt.problem.id, len(prompt.tokens)]

    def entry(self, entry: OpenGroup | Group) -> dict[str, Any]:
        if isinstance(entry, Group):
            completions = dict(enumerate(entry.completions))
            verdicts = dict(enumerate(entry.verdicts))
        else:
            completions, verdicts = entry.completions, entry.verdicts
        return {
            "prompt": self.prompt(entry.prompt),
            "is_whole": isinstance(entry, Group),
            "completions": [self._completion(c) for c in completions.values()],
            "verdicts": [[index, asdict(v)] for index, v in verdicts.items()],
        }

    def draft(self, draft: Draft) -> dict[str, Any]:
        described = {"prompt": self.prompt(draft.prompt), "index": draft.index}
        described |= {"limit": draft.limit, "slot": draft.slot}
        return described | self._sequence(draft)

    def _completion(self, completion: Completion) -> dict[str, Any]:
        self._flat["sampled"].append(completion.sampled)
        described = {"index": completion.index, "finish": completion.finish}
        return described | self._sequence(completion)

    def _sequence(self, sequence: Completion | Draft) -> dict[str, Any]:
        self._flat["tokens"].append(sequence.tokens)
        self._flat["logprobs"].append(sequence.logprobs)
        return {
            "length": len(sequence.tokens),
            "spans": [[span.start, span.version] for span in sequence.spans],
            "refills": list(sequence.refills),
        }


class _Reader:
    """Reads what a sheet has written, in the same order."""

    def __init__(self, arrays: dict[str, np.ndarray], prompt_at: Callable[[int], Prompt]) -> None:
        self._arrays = arrays
        self._at = dict.fromkeys(_DTYPES, 0)
        self._prompt_at = prompt_at
        self._prompts: dict[int, Prompt] = {}

    def prompt(self, saved: Sequence[Any]) -> Prompt:
        group, problem_id, length = saved
        tokens = self._take("prompts", length)
        if group not in self._prompts:
            self._prompts[group] = self._prompt_at(group)
        prompt = self._prompts[group]
        if prompt.problem.id != problem_id or not np.array_equal(prompt.tokens, tokens):
            raise UserError(
                f"prompt {group} was problem {problem_id!r} when this run was saved, and now is "
                f"{prompt.problem.id!r} or reads differently. Resume with the data and the data.* "
                "fields that the run began with."
            )
        return prompt

    def entry(self, saved: dict[str, Any]) -> OpenGroup | Group:
        prompt = self.prompt(saved["prompt"])
        completions = {c["index"]: self._completion(c, prompt) for c in saved["completions"]}
        verdicts = {index: Verdict(**fields) for index, fields in saved["verdicts"]}
        if not saved["is_whole"]:
            return OpenGroup(prompt=prompt, completions=completions, verdicts=verdicts)
        return Group(
            prompt=prompt,
            completions=tuple(completions.values()),
            verdicts=tuple(verdicts.values()),
        )

    def draft(self, saved: dict[str, Any]) -> Draft:
        prompt = self.prompt(saved["prompt"])
        return Draft(
            prompt=prompt,
            index=saved["index"],
            limit=saved["limit"],
            slot=saved["slot"],
            **self._sequence(saved),
        )

    def _completion(self, saved: dict[str, Any], prompt: Prompt) -> Completion:
        return Completion(
            group=prompt.group,
            index=saved["index"],
            prompt=prompt.tokens,
            sampled=self._take("sampled", saved["length"]),
            finish=saved["finish"],
            **self._sequence(saved),
        )

    def _sequence(self, saved: dict[str, Any]) -> dict[str, Any]:
        return {
            "tokens": self._take("tokens", saved["length"]),
            "logprobs": self._take("logprobs", saved["length"]),
            "spans": tuple(VersionSpan(start=s, version=v) for s, v in saved["spans"]),
            "refills": tuple(saved["refills"]),
        }

    def _take(self, name: str, count: int) -> np.ndarray:
        start = self._at[name]
        self._at[name] = start + count
        return self._arrays[name][start : start + count]
