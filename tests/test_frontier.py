"""What a checkpoint holds of the moment is that moment, through JSON and flat arrays."""

import json

import numpy as np
import pytest

from magistral_jax.frontier import packed, unpacked
from magistral_jax.types import (
    Completion,
    Draft,
    Frontier,
    Group,
    InFlight,
    OpenGroup,
    Problem,
    Prompt,
    Queue,
    UserError,
    Verdict,
    VersionSpan,
    Waiting,
)


def prompt_at(position):
    problem = Problem(id=f"p{position}", domain="math", question="", answer="")
    tokens = np.arange(position % 5 + 1, dtype=np.int32) + position
    return Prompt(group=position, problem=problem, tokens=tokens)


def sequence(rng, length):
    starts = sorted({0, *rng.integers(0, length + 1, 2).tolist()})
    return {
        "tokens": rng.integers(0, 99, length).astype(np.int32),
        "logprobs": rng.normal(size=length).astype(np.float32),
        "spans": tuple(VersionSpan(start=s, version=v) for v, s in enumerate(starts)),
        "refills": tuple(rng.integers(0, length + 1, rng.integers(3)).tolist()),
    }


def completion(rng, position, index):
    length = int(rng.integers(1, 9))
    return Completion(
        group=position,
        index=index,
        prompt=prompt_at(position).tokens,
        sampled=rng.random(length) < 0.8,
        finish=["stop", "length"][rng.integers(2)],
        **sequence(rng, length),
    )


def verdict(rng):
    reward = float(rng.normal())
    reason = ["pass", "wrong", "error", "timeout"][rng.integers(4)]
    return Verdict(
        reward=reward, parts={"format": 0.1, "correct": reward}, reason=reason, detail="é\x00"
    )


def entry(rng, position):
    indices = rng.permutation(4)[: rng.integers(5)].tolist()
    completions = {i: completion(rng, position, i) for i in indices}
    if len(indices) == 4 and rng.random() < 0.7:
        return Group(
            prompt=prompt_at(position),
            completions=tuple(completions[i] for i in range(4)),
            verdicts=tuple(verdict(rng) for _ in range(4)),
        )
    judged = indices[: rng.integers(len(indices) + 1)]
    return OpenGroup(
        prompt=prompt_at(position),
        completions=completions,
        verdicts={i: verdict(rng) for i in judged[:3]},
    )


def frontier(seed):
    rng = np.random.default_rng(seed)
    entries = tuple(entry(rng, n) for n in range(int(rng.integers(8))))
    drafts = tuple(
        Draft(
            prompt=prompt_at(n),
            index=n % 4,
            limit=20,
            slot=n - 1,
            **sequence(rng, int(rng.integers(6))),
        )
        for n in range(int(rng.integers(6)))
    )
    return Frontier(
        queue=Queue(
            next=30,
            entries=entries,
            judged=tuple(e for e in entries if isinstance(e, Group)),
            dropped_in_a_row={"all wrong": 3},
            strikes={"p7": 1},
        ),
        in_flight=InFlight(
            drafts=drafts,
            waiting=(Waiting(prompt=prompt_at(9), limit=7, next_index=2, count=4),),
            free=(3, 1, 2),
        ),
        counters={"tokens": 5.0},
        accounts={"seconds": {"idle": 0.1}, "lengths": {"trained": [[3, 1]], "newest": 4}},
        tick=17,
        due=((18, 2, 1), (19, 2, 0)),
    )


def plain(value):
    """Values that compare: arrays with their types, dataclasses by their fields."""
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.tolist())
    if hasattr(value, "__dataclass_fields__"):
        return (type(value).__name__, {n: plain(getattr(value, n)) for n in vars(value)})
    if isinstance(value, dict):
        return [(k, plain(v)) for k, v in value.items()]
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


@pytest.mark.parametrize("seed", range(30))
def test_a_frontier_comes_back_as_it_was(seed):
    saved = frontier(seed)
    text, arrays = packed(saved)
    found = unpacked(json.loads(json.dumps(text)), arrays, prompt_at)
    assert plain(found) == plain(saved)


def test_nothing_in_flight_is_a_frontier_too():
    text, arrays = packed(Frontier())
    assert plain(unpacked(json.loads(json.dumps(text)), arrays, prompt_at)) == plain(Frontier())
    assert all(array.size == 0 for array in arrays.values())


@pytest.mark.parametrize("change", ["id", "tokens"])
def test_other_data_under_the_same_positions_is_refused(change):
    def other(position):
        prompt = prompt_at(position)
        problem = Problem(id="new", domain="math", question="", answer="")
        tokens = prompt.tokens + 1
        if change == "id":
            return Prompt(group=position, problem=problem, tokens=prompt.tokens)
        return Prompt(group=position, problem=prompt.problem, tokens=tokens)

    text, arrays = packed(frontier(3))
    with pytest.raises(UserError, match=r"prompt 0 was problem 'p0' .*reads differently.*data\.\*"):
        unpacked(text, arrays, other)
