"""The decoder: one `block`, used for training, prefill and decode alike.

Pre-norm, grouped-query attention with rotary positions, gated feed-forward (Llama family). The
residual stream and every reduction are float32; only the operands of matrix products are in the
compute dtype. Rounding then depends on values alone, not on how many rows a program happens to
hold, and the sampler's log-probs equal the trainer's within the tested bound.

Axes: B rows or slots, T tokens, D width, N query heads, K key/value heads, H head size,
F feed-forward, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import P
from jaxtyping import Array, Float, Int

from magistral_jax.model.attention import grouped_attention, packed_mask
from magistral_jax.model.params import Architecture, Params

Attend = Callable[[Any, Array, Array, Array], tuple[Array, Any]]
"""(state of this layer, q [B T N H], k [B T K H], v [B T K H]) -> (output [B T N H], new state)."""


class Rope(NamedTuple):
    """Cosine and sine of each position's rotation, computed once for all layers."""

    cos: Float[Array, "B T 1 half"]
    sin: Float[Array, "B T 1 half"]


def rope(positions: Int[Array, "B T"], head_dim: int, theta: float) -> Rope:
    """Rotation angles; pairs are (i, i + H/2), the Hugging Face convention."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies[None, None, None, :]
    return Rope(jnp.cos(angles), jnp.sin(angles))


def rotate(x: Float[Array, "B T heads H"], by: Rope) -> Float[Array, "B T heads H"]:
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * by.cos - b * by.sin, b * by.cos + a * by.sin], axis=-1)


def rms_norm(
    x: Float[Array, "B T D"], gain: Float[Array, " D"], eps: float
) -> Float[Array, "B T D"]:
    mean_square = sum_of_width(jnp.square(x)) / x.shape[-1]
    return x * jax.lax.rsqrt(mean_square + eps) * gain[None, None, :]


def sum_of_width(x: Float[Array, "B T D"]) -> Float[Array, "B T 1"]:
    """Sum over the last axis by repeated halving: the same additions whatever B and T are.

    XLA's CPU backend orders a plain reduction by the shape of the whole array, so 16 slots and a
    row of 256 tokens would round differently, and bf16 would carry the difference to the logits.
    """
    width = 1 << (x.shape[-1] - 1).bit_length()
    x = jnp.pad(x, ((0, 0), (0, 0), (0, width - x.shape[-1])))
    while width > 1:
        width //= 2
        x = x[..., :width] + x[..., width:]
    return x


def gather(weight: Array, dtype: jnp.dtype) -> Array:
    """A weight as a product needs it: in the compute dtype, whole over "fsdp".

    The reshard's transpose reduces and scatters the gradient back (FSDP). The cast comes first,
    so half the bytes travel.
    """
    spec = jax.typeof(weight).sharding.spec
    whole = P(*(None if axis == "fsdp" else axis for axis in spec))
    return jax.reshard(weight.astype(dtype), whole)


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def product(equation: str, x: Array, weight: Array, out: P) -> Float[Array, "..."]:
    """einsum of activations and a gathered weight, accumulated and returned in float32.

    The backward products are in the compute dtype too: left to itself, jax would multiply the
    float32 cotangent with the low-precision weight, in float32.
    """
    return jnp.einsum(
        equation,
        x.astype(weight.dtype),
        weight,
        preferred_element_type=jnp.float32,
        out_sharding=out,
    )


def _product_forward(equation: str, x: Array, weight: Array, out: P) -> tuple[Array, Any]:
    return product(equation, x, weight, out), (x, weight)


def _product_backward(
    equation: str, out: P, saved: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    x, weight = saved
    inputs, output = equation.split("->")
    rows, columns = inputs.split(",")
    cotangent = cotangent.astype(weight.dtype)
    dx = jnp.einsum(
        f"{output},{columns}->{rows}",
        cotangent,
        weight,
        preferred_element_type=jnp.float32,
        out_sharding=jax.typeof(x).sharding.spec,
    )
    dweight = jnp.einsum(
        f"{rows},{output}->{columns}",
        x.astype(weight.dtype),
        cotangent,
        preferred_element_type=jnp.float32,
        out_sharding=jax.typeof(weight).sharding.spec,
    )
    return dx.astype(x.dtype), dweight.astype(weight.dtype)


product.defvjp(_product_forward, _product_backward)


def block(
    layer: Params,
    x: Float[Array, "B T D"],
    state: Any,
    *,
    by: Rope,
    attend: Attend,
    eps: float,
    dtype: jnp.dtype,
) -> tuple[Float[Array, "B T D"], Any]:
    """One transformer layer; `attend` decides which keys a query sees."""
    rows = jax.typeof(x).sharding.spec[0]
    stream, heads, inner = P(rows, None, None), P(rows, None, "tp", None), P(rows, None, "tp")
    w = {name: gather(weight, dtype) for name, weight in layer.items() if weight.ndim > 1}

    h = rms_norm(x, layer["attn_norm"], eps)
    q = rotate(product("BTD,DNH->BTNH", h, w["wq"], heads), by)
    k = rotate(product("BTD,DKH->BTKH", h, w["wk"], heads), by)
    v = product("BTD,DKH->BTKH", h, w["wv"], heads)
    out, state = attend(state, q.astype(dtype), k.astype(dtype), v.astype(dtype))
    x = x + product("BTNH,NHD->BTD", out, w["wo"], stream)

    h = rms_norm(x, layer["mlp_norm"], eps)
    gate = jax.nn.silu(product("BTD,DF->BTF", h, w["w_gate"], inner))
    up = product("BTD,DF->BTF", h, w["w_up"], inner)
    return x + product("BTF,FD->BTD", gate * up, w["w_down"], stream), state


def transform(
    params: Params,
    arch: Architecture,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    *,
    attend: Attend,
    states: Any = None,
    dtype: jnp.dtype,
    remat: bool = False,
) -> tuple[Float[Array, "B T D"], Any]:
    """Last hidden states (normed, ready for the head), and each layer's new state.

    Stacked layers (the trainer's layout) run in one `lax.scan`; a tuple of layers (the
    generator's) is unrolled, which decodes twice as fast on CPU. `states` has the same layout.
    """
    rows = jax.typeof(tokens).sharding.spec[0]
    by = rope(positions, arch.head_dim, arch.rope_theta)
    # The table is cast before it is read, as the head casts it: tied weights stay tied in bf16.
    table = gather_rows(params["embed"], dtype)
    x = table.at[tokens].get(out_sharding=P(rows, None, None)).astype(jnp.float32)

    def step(x: Array, layer_and_state: tuple[Params, Any]) -> tuple[Array, Any]:
        layer, state = layer_and_state
        return block(layer, x, state, by=by, attend=attend, eps=arch.norm_eps, dtype=dtype)

    layers = params["layers"]
    body = jax.checkpoint(step) if remat else step
    if isinstance(layers, tuple):
        new_states = []
        for i, layer in enumerate(layers):
            x, state = body(x, (layer, None if states is None else states[i]))
            new_states.append(state)
        new_states = tuple(new_states)
    else:
        x, new_states = jax.lax.scan(body, x, (layers, states))
    return rms_norm(x, params["final_norm"], arch.norm_eps), new_states


def gather_rows(table: Float[Array, "V D"], dtype: jnp.dtype) -> Float[Array, "V D"]:
    """The embedding table whole on every device: a lookup needs any row of it."""
    return jax.reshard(table.astype(dtype), P(None, None))


def attend_packed(segments: Int[Array, "B T"], positions: Int[Array, "B T"]) -> Attend:
    """Attention within each packed completion. Its state is the layer's keys and values."""
    mask = packed_mask(segments, positions)

    def attend(_state: Any, q: Array, k: Array, v: Array) -> tuple[Array, Any]:
        return grouped_attention(q, k, v, mask), (k, v)

    return attend


def head_weight(params: Params, dtype: jnp.dtype) -> Array:
    """The output head as the product needs it: [V D] if tied to the embedding, else [D V]."""
    return gather(params["head"] if "head" in params else params["embed"], dtype)


def logits(hidden: Float[Array, "B T D"], weight: Array, *, tied: bool) -> Float[Array, "B T V"]:
    """Scores over the vocabulary in float32, from `head_weight`'s array."""
    rows = jax.typeof(hidden).sharding.spec[0]
    equation = "BTD,VD->BTV" if tied else "BTD,DV->BTV"
    return product(equation, hidden, weight, P(rows, None, "tp"))
