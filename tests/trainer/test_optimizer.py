"""AdamW against its formula in numpy; the warm-up; the decay; the clipped norm."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from magistral_jax.config import TrainerConfig
from magistral_jax.trainer.optimizer import make_optimizer

START = np.array([0.5, -1.0, 2.0, 0.25], np.float32)


def updates(config, gradients):
    """The weights after each step."""
    optimizer = make_optimizer(config)
    params = {"w": jnp.asarray(START)}
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, grads):
        with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 and float
            change, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, change), state

    out = []
    for gradient in gradients:
        params, state = step(params, state, {"w": jnp.asarray(gradient, jnp.float32)})
        out.append(np.asarray(params["w"]))
    return out


def test_steps_are_adamw_of_the_clipped_gradient(rng):
    config = TrainerConfig(
        learning_rate=0.1,
        beta1=0.8,
        beta2=0.9,
        adam_eps=1e-2,
        weight_decay=0.3,
        max_grad_norm=0.5,
    )
    # Of norms well below and well above the limit.
    gradients = [scale * rng.normal(size=4) for scale in (0.05, 3.0, 0.2)]
    w, m, v = START.astype(np.float64), np.zeros(4), np.zeros(4)
    for t, (got, g) in enumerate(zip(updates(config, gradients), gradients, strict=True), start=1):
        g = g * min(1.0, 0.5 / np.linalg.norm(g))
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        m_hat, v_hat = m / (1 - 0.8**t), v / (1 - 0.9**t)
        w = w - 0.1 * (m_hat / (np.sqrt(v_hat) + 1e-2) + 0.3 * w)
        np.testing.assert_allclose(got, w, rtol=1e-5, err_msg=f"step {t}")


@pytest.mark.parametrize(
    "warmup_steps, rates", [(0, [1, 1, 1, 1, 1]), (3, [0, 1 / 3, 2 / 3, 1, 1])]
)
def test_the_rate_rises_linearly_from_zero_and_stays(warmup_steps, rates):
    """Adam's step under a constant gradient is the rate itself, in the gradient's direction."""
    config = TrainerConfig(learning_rate=0.25, warmup_steps=warmup_steps)
    seen = updates(config, [[0.3, 0.3, -0.3, 0.3]] * len(rates))
    steps = -np.diff([START, *seen], axis=0)
    want = 0.25 * np.outer(rates, [1, 1, -1, 1])
    np.testing.assert_allclose(steps, want, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_decay_is_apart_from_the_gradient_and_follows_the_rate(optimizer):
    """Decoupled: without a gradient, a step leaves 1 - rate x decay of each weight (AdamW, line 12
    of its algorithm 2)."""
    config = TrainerConfig(
        optimizer=optimizer, learning_rate=0.05, warmup_steps=3, weight_decay=0.3
    )
    found = updates(config, [[0.0] * 4] * 5)
    left = np.cumprod([1 - 0.05 * part * 0.3 for part in (0, 1 / 3, 2 / 3, 1, 1)])
    np.testing.assert_allclose(found, np.outer(left, START), rtol=1e-6)


def moments(state):
    return [x for x in jax.tree.leaves(state) if x.ndim > 0]


def test_a_first_moment_in_bfloat16_takes_half_and_steers_alike(rng):
    gradients = rng.normal(size=(6, 4))
    whole, half = (
        TrainerConfig(learning_rate=0.1, moment_dtype=dtype) for dtype in ("float32", "bfloat16")
    )
    params = {"w": jnp.ones((64, 64))}
    sizes = [
        sum(x.nbytes for x in moments(make_optimizer(config).init(params)))
        for config in (whole, half)
    ]
    assert sizes == [2 * 64 * 64 * 4, 64 * 64 * (2 + 4)]
    found = updates(whole, gradients), updates(half, gradients)
    np.testing.assert_allclose(*found, rtol=0, atol=5e-3)
    assert (found[0][-1] != found[1][-1]).any()


def test_adafactor_keeps_rows_and_columns():
    config = TrainerConfig(learning_rate=0.1, optimizer="adafactor")
    state = make_optimizer(config).init({"w": jnp.ones((256, 512)), "gain": jnp.ones(256)})
    assert sum(x.size for x in moments(state)) < 2 * (256 + 512 + 256)


def test_adafactor_goes_down_hill():
    config = TrainerConfig(learning_rate=0.05, optimizer="adafactor")
    optimizer, params = (
        make_optimizer(config),
        {"w": jnp.linspace(-1, 1, 256 * 128).reshape(256, 128)},
    )
    state, losses = optimizer.init(params), []
    for _ in range(20):
        with jax.numpy_dtype_promotion("standard"):
            change, state = optimizer.update({"w": 2 * params["w"]}, state, params)
        params = optax.apply_updates(params, change)
        losses.append(float(jnp.sum(params["w"] ** 2)))
    assert losses[:10] == sorted(losses[:10], reverse=True) and losses[-1] < losses[0] / 100
