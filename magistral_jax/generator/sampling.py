"""Logits -> token and its log-prob, with randomness that depends on nothing but the token's name.

A token's name is (seed, group, index, position). Its uniform draw is a function of that name
alone, so with frozen weights a completion does not depend on its slot, its neighbours or the
order of admission.

Axes: B slots, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from magistral_jax.model.logprobs import tempered

# Width of the second level of the inverse CDF. About sqrt(V) for vocabularies of 32k-131k: both
# levels then scan a few hundred numbers instead of one scan over the vocabulary.
BLOCK = 256


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How tokens are drawn. Temperature 0 is greedy; top-k and top-p are for evaluation."""

    temperature: float | Float[Array, ""] = 1.0
    top_k: int = field(default=0, metadata={"static": True})
    top_p: float = field(default=1.0, metadata={"static": True})


def uniforms(
    key: Key[Array, ""],
    groups: Int[Array, " B"],
    indices: Int[Array, " B"],
    positions: Int[Array, " B"],
) -> Float[Array, " B"]:
    """One draw per slot, named by (key, group, index, position): (k + 1/2) / 2^23 for a k below
    2^23, so neither 0 nor 1."""

    def draw(group: Array, index: Array, position: Array) -> Array:
        named = jax.random.fold_in(jax.random.fold_in(key, group), index)
        return jax.random.uniform(jax.random.fold_in(named, position)) + 2**-24

    return jax.vmap(draw)(groups, indices, positions)


class Blocks(NamedTuple):
    """Logits in blocks of `BLOCK` words, and what is known of each block."""

    logits: Float[Array, "B blocks block"]
    peaks: Float[Array, "B blocks"]
    peak: Float[Array, " B"]
    """The largest tempered logit."""
    mass: Float[Array, "B blocks"]
    """Sum of exp(tempered logit - peak) over the block, in float64."""


def in_blocks(logits: Float[Array, "B V"], temperature: Float[Array, ""]) -> Blocks:
    B, V = logits.shape
    blocks = -(-V // BLOCK)
    logits = jnp.pad(logits, ((0, 0), (0, blocks * BLOCK - V)), constant_values=-jnp.inf)
    logits = logits.reshape(B, blocks, BLOCK)
    # The largest is the largest at any temperature, so the tempered logits need not be written.
    peaks = jnp.max(logits, axis=-1)
    peak = tempered(jnp.max(peaks, axis=-1), temperature)
    masses = jnp.exp(tempered(logits, temperature) - peak[:, None, None])
    with jax.enable_x64(True):
        return Blocks(logits, peaks, peak, jnp.sum(masses.astype(jnp.float64), axis=-1))


def likeliest(blocks: Blocks) -> Int[Array, " B"]:
    """The word of the largest logit, the first of equal ones; `jnp.argmax` takes 5 ms of CPU."""
    block = jnp.argmax(blocks.peaks, axis=-1)
    inner = jnp.take_along_axis(blocks.logits, block[:, None, None], axis=1)[:, 0]
    return (block * BLOCK + jnp.argmax(inner, axis=-1)).astype(jnp.int32)


def inverse_cdf(
    blocks: Blocks, draws: Float[Array, " B"], temperature: Float[Array, ""]
) -> Int[Array, " B"]:
    """The word at which the running sum of probabilities passes the draw.

    Two levels: first the block, then the word in it. On CPU with 49k words and 64 slots this
    takes 1 ms where `jax.random.categorical` takes 77 ms. Sums are in float64: over all draws of
    `uniforms`, a word's rate then differs from its share of the float32 masses by less than
    2^-23 + 2^-40, where float32 sums of a vocabulary lose several times 2^-23.
    """
    with jax.enable_x64(True):
        running = running_sum(blocks.mass)
        target = draws.astype(jnp.float64) * running[:, -1]
        before = jnp.max(jnp.where(running > target[:, None], 0.0, running), axis=-1)
    block = first_past(running, blocks.mass, target)
    inner = jnp.take_along_axis(blocks.logits, block[:, None, None], axis=1)[:, 0]
    inner = jnp.exp(tempered(inner, temperature) - blocks.peak[:, None])
    with jax.enable_x64(True):
        inner = inner.astype(jnp.float64)
        reached, target = running_sum(inner), target - before
    within = first_past(reached, inner, target)
    return (block * BLOCK + within).astype(jnp.int32)


def running_sum(parts: Float[Array, "B n"]) -> Float[Array, "B n"]:
    """`jnp.cumsum` by doubling: of float64, which a TPU emulates, XLA compiles that for minutes.

    The barrier keeps XLA from fusing the steps, each of which would be computed twice by the next.
    """
    step = 1
    while step < parts.shape[1]:
        parts = jax.lax.optimization_barrier(parts + jnp.pad(parts[:, :-step], ((0, 0), (step, 0))))
        step *= 2
    return parts


def first_past(
    running: Float[Array, "B n"], parts: Float[Array, "B n"], target: Float[Array, " B"]
) -> Int[Array, " B"]:
    """Where the running sum of `parts` passes the target, never at a part of zero.

    A parallel running sum rounds: it can rise over a zero, and end below the target. The last
    part with mass then takes it.
    """
    with jax.enable_x64(True):
        has_mass = parts > 0
        passed = has_mass & (running > target[:, None])
    last = parts.shape[1] - 1 - jnp.argmax(has_mass[:, ::-1], axis=-1)
    return jnp.where(jnp.any(passed, axis=-1), jnp.argmax(passed, axis=-1), last).astype(jnp.int32)


def truncate(
    logits: Float[Array, "B V"], temperature: Float[Array, ""], top_k: int, top_p: float
) -> Float[Array, "B V"]:
    """Logits with everything outside top-k and top-p of the tempered distribution at -inf."""
    if top_k == 0 and top_p >= 1.0:
        return logits
    falling = -jnp.sort(-logits, axis=-1)
    keep = jnp.ones(logits.shape, bool)
    if top_k:
        k = min(top_k, logits.shape[1])
        keep &= logits >= falling[:, k - 1 : k]
    if top_p < 1.0:
        mass = jnp.cumsum(jax.nn.softmax(tempered(falling, temperature), axis=-1), axis=-1)
        # The smallest set whose mass reaches top_p: always the first token, and on.
        last = jnp.sum(mass < top_p, axis=-1, keepdims=True)
        last = jnp.minimum(last, logits.shape[1] - 1)
        keep &= logits >= jnp.take_along_axis(falling, last, axis=1)
    return jnp.where(keep, logits, -jnp.inf)


def sample(
    logits: Float[Array, "B V"], draws: Float[Array, " B"], sampler: Sampler
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """A token per slot, and its log-prob under the distribution it was drawn from."""
    greedy: Bool[Array, ""] = jnp.asarray(sampler.temperature) <= 0
    temperature = jnp.where(greedy, 1.0, jnp.asarray(sampler.temperature, jnp.float32))
    logits = truncate(logits, temperature, sampler.top_k, sampler.top_p)
    blocks = in_blocks(logits, temperature)
    drawn = inverse_cdf(blocks, draws, temperature)
    token = jnp.where(greedy, likeliest(blocks), drawn)
    with jax.enable_x64(True):
        mass = jnp.sum(blocks.mass, axis=-1).astype(jnp.float32)
    normaliser = blocks.peak + jnp.log(mass)
    chosen = tempered(jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0], temperature)
    return token, jnp.where(greedy, 0.0, chosen - normaliser)
