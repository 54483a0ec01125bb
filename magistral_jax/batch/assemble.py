"""Groups to the arrays of a weight update: the only place where padding exists.

A sequence of n tokens, prompt included, takes n - 1 positions of a row: position t reads token t
and predicts token t + 1. Every microbatch holds rows x row_tokens positions: as rows of that
length or, where the sequences are short, as 2, 4, 8, ... times as many rows of a half, a quarter,
an eighth of it, since attention costs less in short rows. The last one is filled up with empty
rows, so the train step compiles once for each length that occurs.

Every sequence begins at an even place of its row. Products over keys add them up in pairs, so the
sampler, whose sequences begin at place 0, then rounds as the trainer does (`model.attention`).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32

from magistral_jax.arrays import Batch, Microbatch, Minibatch
from magistral_jax.batch.credit import AdvantageRule, ShareRule, advantages, token_shares
from magistral_jax.batch.pack import ATTENTION_TOKENS, dealt, pack
from magistral_jax.types import Completion, Group

Control = Literal["none", "permute_rewards"]


class _Sequence(NamedTuple):
    completion: Completion
    advantage: float
    share: float

    @property
    def positions(self) -> int:
        return len(self.completion.prompt) + len(self.completion.tokens) - 1

    @property
    def places(self) -> int:
        """Positions rounded up to even, so that the next sequence begins at an even place."""
        return self.positions + self.positions % 2


def assemble(
    groups: Sequence[Group],
    *,
    groups_per_minibatch: int,
    row_tokens: int,
    rows: int,
    advantage_rule: AdvantageRule,
    share_rule: ShareRule,
    control: Control,
    seed: int,
    version: int,
    ranks: int = 1,
    longest: int = 0,
) -> Batch:
    """The batch that updates weights `version`: `groups`, in their order, cut into minibatches.
    `ranks` share the rows of a microbatch; `longest`: the most tokens a completion may have."""
    assert groups and len(groups) % groups_per_minibatch == 0, (len(groups), groups_per_minibatch)
    permute = control == "permute_rewards"
    rewards = [permuted_rewards(g, seed) if permute else g.rewards_G for g in groups]
    cuts = [
        slice(start, start + groups_per_minibatch)
        for start in range(0, len(groups), groups_per_minibatch)
    ]
    minibatches = tuple(
        assemble_minibatch(
            groups[cut],
            row_tokens=row_tokens,
            rows=rows,
            advantage_rule=advantage_rule,
            share_rule=share_rule,
            rewards=rewards[cut],
            ranks=ranks,
            longest=longest,
        )
        for cut in cuts
    )
    return Batch(groups=tuple(groups), minibatches=minibatches, version=version)


def assemble_minibatch(
    groups: Sequence[Group],
    *,
    row_tokens: int,
    rows: int,
    advantage_rule: AdvantageRule,
    share_rule: ShareRule,
    rewards: Sequence[Float32[np.ndarray, " _"]] | None = None,
    ranks: int = 1,
    longest: int = 0,
) -> Minibatch:
    """One optimizer step's microbatches. Only completions with a verdict to trust enter.

    Its `padding` counts every position that is computed, those of the empty rows included.

    Args:
        rewards: Of the valid completions of each group, in place of their verdicts'.
    """
    if rewards is None:
        rewards = [group.rewards_G for group in groups]
    sequences = _with_credit(groups, rewards, advantage_rule, share_rule, longest)
    places = [s.places for s in sequences]
    packed, rows, row_tokens = laid_out(places, rows, row_tokens)
    if ranks > 1:
        packed = dealt(packed, places, rows, ranks)
    num_microbatches = -(-len(packed) // rows)
    sheet = _empty(num_microbatches * rows, row_tokens)
    for row, items in enumerate(packed):
        start = 0
        for segment, item in enumerate(items, start=1):
            stop = start + sequences[item].positions
            place = {name: array[row, start:stop] for name, array in sheet.items()}
            _write(place, sequences[item], segment)
            start += sequences[item].places
    names = [
        tuple(
            (sequences[item].completion.group, sequences[item].completion.index) for item in items
        )
        for items in packed
    ]
    return Minibatch(
        microbatches=tuple(
            Microbatch(**{name: array[at : at + rows] for name, array in sheet.items()})
            for at in range(0, num_microbatches * rows, rows)
        ),
        padding=float(np.mean(sheet["segments"] == 0)),
        names=tuple(tuple(names[at : at + rows]) for at in range(0, len(names), rows)),
    )


def laid_out(places: Sequence[int], rows: int, row_tokens: int) -> tuple[list[list[int]], int, int]:
    """Packed rows, with the cheapest microbatch shape for them: (items of each row, rows, tokens).

    The shapes are [rows, row_tokens], [2 rows, row_tokens / 2], ...; the first is always there.
    """
    shapes = [(rows, row_tokens)]
    while row_tokens % 4 == 0 and row_tokens // 2 >= max(places):
        rows, row_tokens = 2 * rows, row_tokens // 2
        shapes.append((rows, row_tokens))

    def cost(layout: tuple[list[list[int]], int, int]) -> float:
        packed, rows, row_tokens = layout
        computed = -(-len(packed) // rows) * rows * row_tokens
        return computed * (1 + row_tokens / ATTENTION_TOKENS)

    return min(((pack(places, tokens), rows, tokens) for rows, tokens in shapes), key=cost)


def permuted_rewards(group: Group, seed: int) -> Float32[np.ndarray, " G"]:
    """The group's rewards in another order: the same spread, and nothing left to learn."""
    return np.random.default_rng((seed, group.group)).permutation(group.rewards_G)


def _with_credit(
    groups: Sequence[Group],
    rewards: Sequence[Float32[np.ndarray, " _"]],
    advantage_rule: AdvantageRule,
    share_rule: ShareRule,
    longest: int,
) -> list[_Sequence]:
    valid = [[group.completions[i] for i in group.valid] for group in groups]
    lengths = [[int(c.sampled.sum()) for c in completions] for completions in valid]
    shares = token_shares(lengths, share_rule, longest=longest)
    per_group = zip(valid, advantages(rewards, advantage_rule), shares, strict=True)
    return [
        _Sequence(completion, float(advantage), share)
        for of_group in per_group
        for completion, advantage, share in zip(*of_group, strict=True)
    ]


def _empty(num_rows: int, row_tokens: int) -> dict[str, np.ndarray]:
    dtypes = {
        "inputs": np.int32,
        "targets": np.int32,
        "positions": np.int32,
        "segments": np.int32,
        "behavior_logprobs": np.float32,
        "advantages": np.float32,
        "shares": np.float32,
    }
    return {name: np.zeros((num_rows, row_tokens), dtype) for name, dtype in dtypes.items()}


def _write(place: dict[str, np.ndarray], sequence: _Sequence, segment: int) -> None:
    """Fill a sequence's stretch of a row, given as a view into each array."""
    completion, advantage, share = sequence
    tokens = np.concatenate([completion.prompt, completion.tokens])
    place["inputs"][:] = tokens[:-1]
    place["targets"][:] = tokens[1:]
    place["positions"][:] = np.arange(sequence.positions)
    place["segments"][:] = segment
    # The prompt's last token predicts the first token of the answer.
    answer = slice(len(completion.prompt) - 1, None)
    sampled = completion.sampled
    place["behavior_logprobs"][answer] = np.where(sampled, completion.logprobs, 0)
    place["advantages"][answer] = np.where(sampled, advantage, 0)
    place["shares"][answer] = np.where(sampled, share, 0)
