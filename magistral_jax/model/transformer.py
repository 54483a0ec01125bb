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

from magistral_jax.model.attention import Kernels, grouped_attention, packed_mask
from magistral_jax.model.blocked import blocked_attention
from magistral_jax.model.params import Architecture, Params
from magistral_jax.model.rope import Rope, rope, rotate

Attend = Callable[[Any, Array, Array, Array, Any], tuple[Array, Any]]
"""(state of this layer, q [B T N H], k [B T K H], v [B T K H], window: the layer's `Kind.window`)
-> (output [B T N H], new state)."""


class Kind(NamedTuple):
    """What one layer does unlike others; Python values where all layers, or the caller, agree."""

    rotary: Any
    """Whether q and k are rotated: bool, or a traced bool inside a scan over unlike layers."""
    window: Any
    """How many tokens a query sees, itself included: None for all, else an int, maybe traced."""


NO_WINDOW = 2**30
LONG_ROW = 2048
"""Tokens beyond which the scores of a row are not held whole. Blocks add up in another order than
the sampler does, so rows whose sequences bf16 can follow to the bit (about 1,000) are below it."""
BIASES = ("bq", "bk", "bv")


def kinds(arch: Architecture) -> tuple[Kind, ...]:
    """Each layer's."""
    return tuple(
        Kind(
            rotary=layer not in arch.nope_layers,
            window=arch.window if layer in arch.window_layers else None,
        )
        for layer in range(arch.layers)
    )


def stacked_kinds(arch: Architecture) -> Kind | None:
    """The kinds as arrays over the layers, for a scan; None if all layers are alike."""
    each = kinds(arch)
    if len(set(each)) == 1:
        return None
    windows = [NO_WINDOW if kind.window is None else kind.window for kind in each]
    return Kind(
        rotary=jnp.array([kind.rotary for kind in each]),
        window=jnp.array(windows, jnp.int32) if arch.window_layers else None,
    )


def turned(by: Rope, rotary: Any) -> Rope:
    """The rotation, or one by zero for a layer that has none."""
    if rotary is True:
        return by
    is_on = jnp.asarray(rotary)
    return Rope(jnp.where(is_on, by.cos, 1.0), jnp.where(is_on, by.sin, 0.0))


def rms_norm(
    x: Float[Array, "*rows D"], gain: Float[Array, " D"], eps: float
) -> Float[Array, "*rows D"]:
    mean_square = sum_of_width(jnp.square(x)) / x.shape[-1]
    return x * jax.lax.rsqrt(mean_square + eps) * gain.reshape(*[1] * (x.ndim - 1), -1)


def sum_of_width(x: Float[Array, "*rows D"]) -> Float[Array, "*rows 1"]:
    """Sum over the last axis by repeated halving: the same additions whatever B and T are.

    XLA's CPU backend orders a plain reduction by the shape of the whole array, so 16 slots and a
    row of 256 tokens would round differently, and bf16 would carry the difference to the logits.
    """
    width = 1 << (x.shape[-1] - 1).bit_length()
    x = jnp.pad(x, (*[(0, 0)] * (x.ndim - 1), (0, width - x.shape[-1])))
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
    kind: Kind,
    by: Rope,
    attend: Attend,
    eps: float,
    dtype: jnp.dtype,
) -> tuple[Float[Array, "B T D"], Any]:
    """One transformer layer; `attend` decides which keys a query sees."""
    rows, seq = jax.typeof(x).sharding.spec[:2]
    stream, heads, inner = P(rows, seq, None), P(rows, seq, "tp", None), P(rows, seq, "tp")
    w = {name: gather(weight, dtype) for name, weight in layer.items() if weight.ndim > 1}

    h = rms_norm(x, layer["attn_norm"], eps)
    q = product("BTD,DNH->BTNH", h, w["wq"], heads)
    k = product("BTD,DKH->BTKH", h, w["wk"], heads)
    v = product("BTD,DKH->BTKH", h, w["wv"], heads)
    if "bq" in w:
        q, k, v = (
            y + w[b].astype(jnp.float32)[None, None] for y, b in zip((q, k, v), BIASES, strict=True)
        )
    if "q_norm" in layer:
        q, k = rms_norm(q, layer["q_norm"], eps), rms_norm(k, layer["k_norm"], eps)
    if kind.rotary is not False:
        by = turned(by, kind.rotary)
        q, k = rotate(q, by), rotate(k, by)
    out, state = attend(state, q.astype(dtype), k.astype(dtype), v.astype(dtype), kind.window)
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
    rows, seq = jax.typeof(tokens).sharding.spec
    by = rope(positions, arch.head_dim, arch.rope_theta, arch.rope_scaling)
    x = look_up(params["embed"], tokens, dtype, P(rows, seq, None))

    def step(
        x: Array, layer_and_state: tuple[Params, Any, Kind | None], alike: Kind | None
    ) -> tuple[Array, Any]:
        layer, state, kind = layer_and_state
        kind = alike or kind
        assert kind is not None
        return block(
            layer, x, state, kind=kind, by=by, attend=attend, eps=arch.norm_eps, dtype=dtype
        )

    def body(alike: Kind | None) -> Any:
        run = partial(step, alike=alike)
        return jax.checkpoint(run) if remat else run

    layers, each = params["layers"], kinds(arch)
    if isinstance(layers, tuple):
        new_states = []
        for i, layer in enumerate(layers):
            x, state = body(each[i])(x, (layer, None if states is None else states[i], None))
            new_states.append(state)
        new_states = tuple(new_states)
    else:
        unlike = stacked_kinds(arch)
        run = body(each[0] if unlike is None else None)
        x, new_states = jax.lax.scan(run, x, (layers, states, unlike))
    return rms_norm(x, params["final_norm"], arch.norm_eps), new_states


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def look_up(
    table: Float[Array, "V D"], tokens: Int[Array, "B T"], dtype: jnp.dtype, out: P
) -> Float[Array, "B T D"]:
    """The tokens' rows of the embedding table, rounded to `dtype`, in float32.

    The table is cast before it is read, as the head casts it: tied weights stay tied in bf16. Its
    gradient is added up in float32: left to itself, jax would transpose the cast last, and in bf16
    a sum of thousands of tokens loses most of them.
    """
    # Whole on every device: a lookup needs any row of it.
    whole = jax.reshard(table.astype(dtype), P(None, None))
    return whole.at[tokens].get(out_sharding=out).astype(jnp.float32)


def _look_up_forward(table: Array, tokens: Array, dtype: jnp.dtype, out: P) -> tuple[Array, Any]:
    return look_up(table, tokens, dtype, out), (table, tokens)


def _look_up_backward(
    dtype: jnp.dtype, _out: P, saved: tuple[Array, Array], cotangent: Array
) -> tuple[Array, None]:
    table, tokens = saved  # of the table, only what it is
    sharding = jax.typeof(table).sharding
    # Each device adds up all tokens in its own part of the table: no device holds a whole float32
    # one, and tokens' gradients travel instead, in the compute dtype.
    cotangent = jax.reshard(cotangent.astype(dtype), P(None, None, sharding.spec[1]))
    tokens = jax.reshard(tokens, P(None, None))
    zeros = jnp.zeros(table.shape, jnp.float32, device=sharding)
    total = zeros.at[tokens].add(cotangent.astype(jnp.float32), out_sharding=sharding.spec)
    return total.astype(table.dtype), None


look_up.defvjp(_look_up_forward, _look_up_backward)


def attend_packed(
    segments: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    kernels: Kernels | None = None,
    *,
    long_row: int = LONG_ROW,
) -> Attend:
    """Attention within each packed completion. Its state is the layer's keys and values."""
    is_split = jax.typeof(segments).sharding.spec[1] is not None
    in_blocks = is_split or (segments.shape[1] > long_row and kernels is None)
    mask = None if in_blocks or kernels else packed_mask(segments, positions)

    def attend(_state: Any, q: Array, k: Array, v: Array, window: Any) -> tuple[Array, Any]:
        if mask is None:
            if kernels is not None and not is_split:
                return packed_attention(q, k, v, segments, window, kernels), (k, v)
            return blocked_attention(q, k, v, positions, window), (k, v)
        if window is None:
            return grouped_attention(q, k, v, mask), (k, v)
        is_near = positions[:, :, None] - positions[:, None, :] < window
        return grouped_attention(q, k, v, mask & is_near), (k, v)

    return attend


def packed_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"],
    window: int | None,
    kernels: Kernels,
) -> Float[Array, "B T N H"]:
    """Attention within each packed completion by a kernel, on each device's rows and heads."""
    # Here, since Pallas adds a seventh of a second to every start.
    from magistral_jax.model.kernels import packed_prefill

    surplus = -q.shape[1] % 128 if kernels.platform == "tpu" else 0

    def local(q: Array, k: Array, v: Array, segments: Array) -> Array:
        q, k, v = (jnp.pad(x, ((0, 0), (0, surplus), (0, 0), (0, 0))) for x in (q, k, v))
        segments = jnp.pad(segments, ((0, 0), (0, surplus)))
        out = packed_prefill(
            q,
            k,
            v,
            segments,
            window=window,
            platform=kernels.platform,
            interpret=kernels.interpret,
        )
        return out[:, : out.shape[1] - surplus]

    spec = jax.typeof(q).sharding.spec
    return jax.shard_map(local, out_specs=spec, check_vma=False)(q, k, v, segments)


def head_weight(params: Params, dtype: jnp.dtype) -> Array:
    """The output head as the product needs it: [V D] if tied to the embedding, else [D V]."""
    return gather(params["head"] if "head" in params else params["embed"], dtype)


def logits(hidden: Float[Array, "B T D"], weight: Array, *, tied: bool) -> Float[Array, "B T V"]:
    """Scores over the vocabulary in float32, from `head_weight`'s array."""
    rows, seq = jax.typeof(hidden).sharding.spec[:2]
    equation = "BTD,VD->BTV" if tied else "BTD,DV->BTV"
    return product(equation, hidden, weight, P(rows, seq, "tp"))
