"""Rotary positions: the angle of each pair, and the scalings that stretch a trained context.

A scaling is kept as its family's config.json spells it (rope_type and its numbers), so that a
policy can be handed back as it came:

    linear   every frequency divided by `factor`
    llama3   (Llama 3.1) long wavelengths divided by `factor`, short ones kept, a ramp between
    yarn     (arXiv 2309.00071) a ramp over pairs, and cosine and sine times `attention_factor`

Axes: B rows or slots, T tokens, H head size.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

Scaling = tuple[tuple[str, Any], ...]
"""(("rope_type", "yarn"), ("factor", 4.0), ...), sorted by name; () is none. Hashable."""

NEEDED = {
    "linear": {"factor"},
    "llama3": {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
    "yarn": {"factor", "original_max_position_embeddings"},
}
"""The numbers without which a scaling means nothing."""
OPTIONAL = {
    "linear": set(),
    "llama3": set(),
    "yarn": {
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    },
}


class Rope(NamedTuple):
    """Cosine and sine of each position's rotation, computed once for all layers."""

    cos: Float[Array, "B T 1 half"]
    sin: Float[Array, "B T 1 half"]


def rope(positions: Int[Array, "B T"], head_dim: int, theta: float, scaling: Scaling = ()) -> Rope:
    """Rotation angles; pairs are (i, i + H/2), the Hugging Face convention."""
    frequencies, attention_factor = frequencies_of(head_dim, theta, scaling)
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies[None, None, None, :]
    if attention_factor == 1.0:
        return Rope(jnp.cos(angles), jnp.sin(angles))
    factor = jnp.float32(attention_factor)
    return Rope(jnp.cos(angles) * factor, jnp.sin(angles) * factor)


def rotate(x: Float[Array, "B T heads H"], by: Rope) -> Float[Array, "B T heads H"]:
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * by.cos - b * by.sin, b * by.cos + a * by.sin], axis=-1)


def frequencies_of(
    head_dim: int, theta: float, scaling: Scaling = ()
) -> tuple[Float32[np.ndarray, " half"], float]:
    """Radians per position of each pair, and what cosine and sine are multiplied with."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    plain = np.float32(1) / np.float32(theta) ** exponents
    said = dict(scaling)
    match said.get("rope_type", "default"):
        case "default":
            return plain, 1.0
        case "linear":
            return plain / np.float32(said["factor"]), 1.0
        case "llama3":
            return _llama3(plain, said), 1.0
        case "yarn":
            return _yarn(plain, head_dim, theta, said), attention_factor_of(said)
        case unknown:
            raise AssertionError(f"no such rope scaling: {unknown}")


def _llama3(plain: Float32[np.ndarray, " half"], said: Mapping[str, Any]) -> np.ndarray:
    context = said["original_max_position_embeddings"]
    low, high = said["low_freq_factor"], said["high_freq_factor"]
    wavelengths = 2 * math.pi / plain
    kept = np.clip((context / wavelengths - low) / (high - low), 0, 1)
    return ((1 - kept) * plain / said["factor"] + kept * plain).astype(np.float32)


def _yarn(
    plain: Float32[np.ndarray, " half"], head_dim: int, theta: float, said: Mapping[str, Any]
) -> np.ndarray:
    def pair_that_turns(rotations: float) -> float:
        """The (fractional) pair that makes so many rotations over the trained context."""
        context = said["original_max_position_embeddings"]
        return head_dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = pair_that_turns(float(said.get("beta_fast") or 32))
    high = pair_that_turns(float(said.get("beta_slow") or 1))
    if said.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # a ramp of no width would divide by zero
    pairs = np.arange(head_dim // 2, dtype=np.float32)
    stretched = np.clip((pairs - low) / (high - low), 0, 1)
    return (plain / said["factor"] * stretched + plain * (1 - stretched)).astype(np.float32)


def attention_factor_of(said: Mapping[str, Any]) -> float:
    """YaRN's temperature, as a factor of cosine and sine (equation 22 there)."""
    if said.get("attention_factor") is not None:
        return float(said["attention_factor"])

    def mscale(weight: float) -> float:
        factor = said["factor"]
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if said.get("mscale") and said.get("mscale_all_dim"):
        return mscale(said["mscale"]) / mscale(said["mscale_all_dim"])
    return mscale(1.0)
