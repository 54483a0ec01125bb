"""Lay sequences end to end in fixed-length rows, longest first (the paper's greedy collation)."""

from collections.abc import Sequence

import numpy as np

from magistral_jax.types import UserError


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
