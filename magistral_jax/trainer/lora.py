"""LoRA (Hu et al., 2021) as an optimizer: W changes by scale * (A B), and only A and B are learned.

The trainer's weights are W + scale * A B at any time, in one array: what is trained with is to the
bit what is pushed, saved and exported, and there is nothing to merge. An update turns the gradient
by W into those by the factors,

    dA = scale * dW B^T        dB = scale * A^T dW

lets another optimizer change them, and adds what their product has changed by to W. So the
optimizer's state, not the gradient, is what shrinks: 8 bytes a parameter with the weights, instead
of AdamW's 16.

Axes: l layers, r rank; the others are the matrix's own, inputs first.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import P
from jax.sharding import reshard
from jaxtyping import Array

from magistral_jax.model.params import Params

AXES = {
    "wq": ("l", "a", "yz"),
    "wk": ("l", "a", "yz"),
    "wv": ("l", "a", "yz"),
    "wo": ("l", "ab", "z"),
    "w_gate": ("l", "a", "z"),
    "w_up": ("l", "a", "z"),
    "w_down": ("l", "a", "z"),
}
"""The matrices of a block, and their axes as einsum's letters: layers, inputs, outputs."""
SEED = 0


class Factors(NamedTuple):
    a: Array
    """[l, inputs, r]: normal draws at first, of variance 1 / inputs."""
    b: Array
    """[l, r, outputs]: zeros at first, so that training begins at the model as it is."""


class LoraState(NamedTuple):
    factors: dict[str, Factors]
    inner: optax.OptState


def lora(
    inner: optax.GradientTransformation, *, rank: int, scale: float
) -> optax.GradientTransformation:
    """`inner` on the factors of the blocks' matrices; all else stays as it is."""

    def init(params: Any) -> LoraState:
        weights = matrices(params)
        key = jax.random.key(SEED)
        factors = {
            name: drawn(jax.random.fold_in(key, i), name, weights[name], rank)
            for i, name in enumerate(sorted(weights))
        }
        return LoraState(factors, inner.init(factors))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, LoraState]:
        by_factor = {
            name: factor_gradients(name, grad, state.factors[name], scale)
            for name, grad in matrices(updates).items()
        }
        steps, inner_state = inner.update(by_factor, state.inner, state.factors)
        factors: Any = optax.apply_updates(state.factors, steps)
        changed = {
            name: scale * (product(name, new) - product(name, state.factors[name]))
            for name, new in factors.items()
        }
        others = jax.tree.map(jnp.zeros_like, updates)
        changes = {**others, "layers": {**others["layers"], **changed}}
        return changes, LoraState(factors, inner_state)

    return optax.GradientTransformation(init, update)


def matrices(tree: Params) -> dict[str, Array]:
    return {name: tree["layers"][name] for name in AXES}


def drawn(key: Array, name: str, weight: Array, rank: int) -> Factors:
    """Fresh factors of one matrix, split over devices as the matrix is."""
    n, (layers, *shape) = 1 + len(AXES[name][1]), weight.shape
    inputs, outputs = shape[: n - 1], shape[n - 1 :]
    spec = jax.typeof(weight).sharding.spec or P(*[None] * weight.ndim)
    a = math.prod(inputs) ** -0.5 * jax.random.normal(key, (layers, *inputs, rank), weight.dtype)
    b = jnp.zeros((layers, rank, *outputs), weight.dtype)
    return Factors(_put(a, P(*spec[:n], None)), _put(b, P(spec[0], None, *spec[n:])))


def _put(x: Array, spec: P) -> Array:
    return reshard(x, spec) if jax.typeof(x).sharding.mesh.axis_names else x


def _letters(name: str) -> tuple[str, str, str]:
    """The axes of W, A and B for einsum."""
    layers, inputs, outputs = AXES[name]
    return f"{layers}{inputs}{outputs}", f"{layers}{inputs}r", f"{layers}r{outputs}"


def product(name: str, factors: Factors) -> Array:
    """A B, in the shape of W."""
    w, a, b = _letters(name)
    return jnp.einsum(f"{a},{b}->{w}", *factors)


def factor_gradients(name: str, grad: Array, factors: Factors, scale: float) -> Factors:
    w, a, b = _letters(name)

    def of(sum_of: str, *arrays: Array, like: Array) -> Array:
        sharding = jax.typeof(like).sharding
        out = sharding if sharding.mesh.axis_names else None
        return scale * jnp.einsum(sum_of, *arrays, out_sharding=out)

    return Factors(
        of(f"{w},{b}->{a}", grad, factors.b, like=factors.a),
        of(f"{a},{w}->{b}", factors.a, grad, like=factors.b),
    )
