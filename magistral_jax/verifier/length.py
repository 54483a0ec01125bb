"""The soft length penalty (2.3): free up to l_max - l_cache, then linear, flat from l_max on.

R(y) =  0                                       if |y| <= l_max - l_cache
       -penalty (|y| - l_max + l_cache) / l_cache  in between
       -penalty                                 if |y| > l_max
"""


def length_reward(tokens: int, *, soft_tokens: int, max_tokens: int, penalty: float = 0.1) -> float:
    """What a completion of `tokens` tokens loses for its length, as a number <= 0.

    `soft_tokens` is l_max - l_cache and `max_tokens` is l_max; equal, they make a step.
    """
    if tokens <= soft_tokens:
        return 0.0
    if tokens >= max_tokens:  # by itself, so that no rounding costs more than the penalty
        return -penalty
    return -penalty * (tokens - soft_tokens) / (max_tokens - soft_tokens)
