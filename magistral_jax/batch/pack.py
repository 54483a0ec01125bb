"""Lay sequences end to end in fixed-length rows, longest first (the paper's greedy collation)."""

from collections.abc import Sequence

import numpy as np

from magistral_jax.types import UserError

ATTENTION_TOKENS = 4096
"""Length at which attention costs about as much as all other products of a token together: in the
usual shapes it lies between 12 x width (135M: 7,000) and a few times less where scores are slow to
move, as on CPU."""


def pack(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Rows of item indices, no row longer than `row_tokens`: first-fit decreasing.

    Ties keep their input order, so equal inputs give equal rows on every host: the rows are
    recomputed everywhere rather than sent around.
    """
    lengths_n = np.asarray(lengths, np.int32)
    if lengths_n.size and lengths_n.max() > row_tokens:
        worst = int(lengths_n.argmax())
        raise UserError(
            f"sequence {worst} takes {lengths_n[worst]} positions but a row holds {row_tokens}: "
            "sequences are never cut. Raise batch.row_tokens, or lower data.max_prompt_tokens or "
            "generator.max_tokens."
        )
    # A row not yet opened is a row with all its room, so the first row with room always exists.
    free_n = np.full(lengths_n.size, row_tokens, np.int32)
    rows: list[list[int]] = [[] for _ in range(lengths_n.size)]
    for item in np.argsort(-lengths_n, kind="stable").tolist():
        row = int((free_n >= lengths[item]).argmax())
        rows[row].append(item)
        free_n[row] -= lengths[item]
    return [row for row in rows if row]


def cost_of(lengths: Sequence[int]) -> float:
    """Estimated work of a row's sequences, in tokens without attention: attention grows with the
    square of a sequence's length."""
    lengths_n = np.asarray(lengths, np.float64)
    return float(np.sum(lengths_n * (1 + lengths_n / ATTENTION_TOKENS)))


def dealt(
    rows: Sequence[list[int]], lengths: Sequence[int], per_microbatch: int, ranks: int
) -> list[list[int]]:
    """The rows, and empty ones, in an order that gives ranks equal work in each microbatch.

    A microbatch is `per_microbatch` rows, of which each of `ranks` gets an equal number that lie
    side by side. Ranks wait for each other at each microbatch, so rows of like cost share one: they
    are sorted by cost, and dealt to its ranks to and fro.
    """
    assert per_microbatch % ranks == 0, (per_microbatch, ranks)
    count = -(-len(rows) // per_microbatch) * per_microbatch
    filled = [*rows, *[[] for _ in range(count - len(rows))]]
    filled.sort(key=lambda row: -cost_of([lengths[item] for item in row]))
    order = []
    for at in range(0, count, per_microbatch):
        hands: list[list[list[int]]] = [[] for _ in range(ranks)]
        for number in range(per_microbatch):
            turn, rank = divmod(number, ranks)
            hands[rank if turn % 2 == 0 else ranks - 1 - rank].append(filled[at + number])
        order += [row for hand in hands for row in hand]
    return order
