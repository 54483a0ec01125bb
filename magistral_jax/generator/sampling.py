"""Logits -> token and its log-prob, with randomness that depends on nothing but the token's name.

A token's name is (seed, group, index, position). Its uniform draw is a function of that name
alone, so with frozen weights a completion does not depend on its slot, its neighbours or the
order of admission.

Axes: B slots, V vocabulary.
"""

from dataclasses import dataclass, field

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
    """One draw in [0, 1) per slot, named by (key, group, index, position)."""

    def draw(group: Array, index: Array, position: Array) -> Array:
        named = jax.random.fold_in(jax.random.fold_in(key, group), index)
        return jax.random.uniform(jax.random.fold_in(named, position))

    return jax.vmap(draw)(groups, indices, positions)


def inverse_cdf(probabilities: Float[Array, "B V"], draws: Float[Array, " B"]) -> Int[Array, " B"]:
    """Index at which the running sum of (unnormalised) probabilities passes the draw.

    Two levels: first the block, then the token in it. On CPU with 49k words and 64 slots this
    takes 2 ms where `jax.random.categorical` takes 77 ms.
    """
    B, V = probabilities.shape
    blocks = -(-V // BLOCK)
    padded = jnp.pad(probabilities, ((0, 0), (0, blocks * BLOCK - V)))
    by_block = padded.reshape(B, blocks, BLOCK)
    mass_of_block = jnp.sum(by_block, axis=-1)
    mass = jnp.cumsum(mass_of_block, axis=-1)
    target = draws * mass[:, -1]
    block = first_past(mass, mass_of_block, target)
    before = jnp.take_along_axis(mass, jnp.maximum(block - 1, 0)[:, None], axis=1)[:, 0]
    target = target - jnp.where(block > 0, before, 0.0)
    inner = jnp.take_along_axis(by_block, block[:, None, None], axis=1)[:, 0]
    running = jnp.cumsum(inner, axis=-1)
    within = first_past(running, inner, target)
    return (block * BLOCK + within).astype(jnp.int32)


def first_past(
    running: Float[Array, "B n"], parts: Float[Array, "B n"], target: Float[Array, " B"]
) -> Int[Array, " B"]:
    """Where the running sum of `parts` passes the target, never at a part of zero.

    A parallel running sum rounds: it can rise over a zero, and end below the target. The last
    part with mass then takes it.
    """
    has_mass = parts > 0
    passed = has_mass & (running > target[:, None])
    last = parts.shape[1] - 1 - jnp.argmax(has_mass[:, ::-1], axis=-1)
    return jnp.where(jnp.any(passed, axis=-1), jnp.argmax(passed, axis=-1), last).astype(jnp.int32)


def truncate(z: Float[Array, "B V"], top_k: int, top_p: float) -> Float[Array, "B V"]:
    """Tempered logits with everything outside top-k and top-p at -inf."""
    if top_k == 0 and top_p >= 1.0:
        return z
    falling = -jnp.sort(-z, axis=-1)
    keep = jnp.ones(z.shape, bool)
    if top_k:
        k = min(top_k, z.shape[1])
        keep &= z >= falling[:, k - 1 : k]
    if top_p < 1.0:
        mass = jnp.cumsum(jax.nn.softmax(falling, axis=-1), axis=-1)
        # The smallest set whose mass reaches top_p: always the first token, and on.
        last = jnp.sum(mass < top_p, axis=-1, keepdims=True)
        keep &= z >= jnp.take_along_axis(falling, jnp.minimum(last, z.shape[1] - 1), axis=1)
    return jnp.where(keep, z, -jnp.inf)


def sample(
    logits: Float[Array, "B V"], draws: Float[Array, " B"], sampler: Sampler
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """A token per slot, and its log-prob under the distribution it was drawn from."""
    greedy: Bool[Array, ""] = jnp.asarray(sampler.temperature) <= 0
    z = tempered(logits, jnp.where(greedy, 1.0, jnp.asarray(sampler.temperature, jnp.float32)))
    z = truncate(z, sampler.top_k, sampler.top_p)
    normaliser = jax.nn.logsumexp(z, axis=-1)
    drawn = inverse_cdf(jnp.exp(z - normaliser[:, None]), draws)
    token = jnp.where(greedy, jnp.argmax(z, axis=-1).astype(jnp.int32), drawn)
    logprob = jnp.take_along_axis(z, token[:, None], axis=1)[:, 0] - normaliser
    return token, jnp.where(greedy, 0.0, logprob)
