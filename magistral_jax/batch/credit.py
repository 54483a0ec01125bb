"""Who gets how much credit: advantages per completion, shares per token (Magistral, 2.1).

    A_i = r_i - mean(r of the group)          A_norm_i = (A_i - A_mean) / A_std

A_mean and A_std are taken over the minibatch, each completion counting once however long it is.
A token's share of the loss is 1 / (groups x tokens of its group).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float32

AdvantageRule = Literal["minibatch", "group", "none"]
ShareRule = Literal["group", "batch", "sequence", "constant"]


def center(rewards_G: Float32[np.ndarray, " G"]) -> Float32[np.ndarray, " G"]:
    """A_i = r_i - mean(r), within one group; exactly 0 where all rewards are equal."""
    # A float32 mean of equal rewards can be one unit off, and whitening would blow that up to 1.
    return (rewards_G - rewards_G.mean(dtype=np.float64)).astype(np.float32)


def advantages(
    rewards_by_group: Sequence[Float32[np.ndarray, " _"]], rule: AdvantageRule = "minibatch"
) -> list[Float32[np.ndarray, " _"]]:
    """Centred rewards of each group, divided by the spread that `rule` names.

    "minibatch" is the paper's: whiten over all completions of all groups. "group" divides by the
    group's own spread (GRPO). "none" only centres (Dr. GRPO).
    """
    centered = [center(rewards_G) for rewards_G in rewards_by_group]
    if rule == "none":
        return centered
    if rule == "group":
        return [_whiten(centered_G) for centered_G in centered]
    ends = np.cumsum([len(centered_G) for centered_G in centered])
    return np.split(_whiten(np.concatenate(centered)), ends[:-1])


def _whiten(centered: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    spread = centered.std(dtype=np.float64)
    if spread == 0:
        raise ValueError(
            f"all {centered.size} advantages equal {centered[0]:g}, so there is no gradient; "
            "drop uniform groups before giving credit (batch/backlog.py does)"
        )
    return ((centered - centered.mean(dtype=np.float64)) / spread).astype(np.float32)


def token_shares(
    lengths_by_group: Sequence[Sequence[int]], rule: ShareRule = "group", *, longest: int = 0
) -> list[list[float]]:
    """Each completion's share of the loss, per sampled token.

    "group" is the paper's formula read literally: divide by the group's own token count, then
    average groups, so every group has an equal say. "batch" gives every token an equal say (DAPO),
    "sequence" every completion (GRPO, GSPO). With these three, shares sum to 1 over the minibatch.
    "constant" divides by completions and `longest`, the most tokens one may have, so that neither
    length nor company changes a token's weight (Dr. GRPO).

    Args:
        lengths_by_group: Sampled tokens of each completion, by group.
    """
    totals = [sum(lengths) for lengths in lengths_by_group]
    count = sum(len(lengths) for lengths in lengths_by_group)
    assert rule != "constant" or longest > 0, "constant shares need the longest completion's tokens"
    of_token = {
        "group": lambda group, length: 1 / (len(totals) * totals[group]),
        "batch": lambda group, length: 1 / sum(totals),
        "sequence": lambda group, length: 1 / (count * length),
        "constant": lambda group, length: 1 / (count * longest),
    }[rule]
    return [
        [of_token(group, length) for length in lengths]
        for group, lengths in enumerate(lengths_by_group)
    ]
