"""The objective against the formula written out token by token (Magistral, section 2.1)."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.sharding import NamedSharding

from magistral_jax.arrays import Microbatch
from magistral_jax.model.logprobs import Scores
from magistral_jax.model.sharding import make_mesh, row_spec
from magistral_jax.trainer.loss import LossStats, policy_loss

EPS_LOW, EPS_HIGH = 0.2, 0.28
CLIP = {"eps_low": EPS_LOW, "eps_high": EPS_HIGH}


def microbatch(rng, B=3, T=7, **fields) -> Microbatch:
    zeros = jnp.zeros((B, T), jnp.int32)
    made = {
        "inputs": zeros,
        "targets": zeros,
        "positions": zeros,
        "segments": zeros + 1,
        "behavior_logprobs": jnp.asarray(rng.normal(-1, 0.3, (B, T)), jnp.float32),
        "advantages": jnp.asarray(rng.normal(0, 1, (B, T)), jnp.float32),
        "shares": jnp.asarray(rng.random((B, T)) * (rng.random((B, T)) < 0.6), jnp.float32),
    }
    return Microbatch(**{**made, **fields})


def one_token(ratio, advantage, share=1.0) -> tuple[Scores, Microbatch]:
    def cell(value):
        return jnp.full((1, 1), value, jnp.float32)

    batch = microbatch(
        np.random.default_rng(0),
        B=1,
        T=1,
        behavior_logprobs=cell(-1.5),
        advantages=cell(advantage),
        shares=cell(share),
    )
    return Scores(cell(-1.5 + np.log(ratio)), cell(0.7)), batch


def make_scores(rng, B=3, T=7) -> Scores:
    return Scores(
        jnp.asarray(rng.normal(-1, 0.3, (B, T)), jnp.float32),
        jnp.asarray(rng.random((B, T)), jnp.float32),
    )


def loss_of(logprobs, batch):
    return policy_loss(Scores(logprobs, jnp.zeros_like(logprobs)), batch, **CLIP)[0]


def by_hand(scores, batch) -> dict[str, float]:
    """Loss and statistics, one token at a time."""
    ratios, out = [], dict.fromkeys(("loss", *LossStats._fields), 0.0)
    for b, t in np.argwhere(np.asarray(batch.shares) > 0):
        A, share = float(batch.advantages[b, t]), float(batch.shares[b, t])
        log_ratio = float(scores.logprobs[b, t]) - float(batch.behavior_logprobs[b, t])
        ratio = np.exp(log_ratio)
        ratios.append(ratio)
        out["loss"] -= share * min(ratio * A, min(max(ratio, 1 - EPS_LOW), 1 + EPS_HIGH) * A)
        out["clipped_low"] += share * (ratio < 1 - EPS_LOW and A < 0)
        out["clipped_high"] += share * (ratio > 1 + EPS_HIGH and A > 0)
        out["log_ratio"] += share * log_ratio
        out["entropy"] += share * float(scores.entropy[b, t])
        out["log_ratio_abs_max"] = max(out["log_ratio_abs_max"], abs(log_ratio))
    out["tokens"], out["ratio"] = len(ratios), sum(ratios)
    out["ratio_squared"] = sum(r * r for r in ratios)
    return out


def test_loss_and_statistics_match_the_formula_token_by_token(rng):
    batch, scores = microbatch(rng), make_scores(rng)
    loss, stats = policy_loss(scores, batch, **CLIP)
    want = by_hand(scores, batch)
    assert want["clipped_low"] > 0 and want["clipped_high"] > 0
    np.testing.assert_allclose(loss, want.pop("loss"), rtol=1e-5)
    for name, value in want.items():
        np.testing.assert_allclose(getattr(stats, name), value, rtol=1e-5, err_msg=name)


def test_on_policy_the_gradient_is_minus_share_times_advantage(rng):
    """At ratio 1 nothing clips, and the objective is REINFORCE."""
    batch = microbatch(rng)
    grad_BT = jax.grad(loss_of)(batch.behavior_logprobs, batch)
    np.testing.assert_allclose(grad_BT, -batch.shares * batch.advantages, rtol=1e-6)


@pytest.mark.parametrize(
    "advantage, ratio, moves",
    [
        (+1.0, 1.50, False),  # good token, already pushed past 1 + eps_high
        (+1.0, 1.25, True),  # good token between 1 + eps_low and 1 + eps_high: clip-higher
        (+1.0, 0.50, True),  # good token that became rarer: still pull it back
        (-1.0, 0.50, False),  # bad token, already pushed below 1 - eps_low
        (-1.0, 0.75, False),  # bad token between 1 - eps_high and 1 - eps_low: not clip-lower
        (-1.0, 0.85, True),  # bad token within the clip range
        (-1.0, 1.50, True),  # bad token that became likelier: still push it down
    ],
)
def test_clipping_stops_the_gradient_only_in_the_direction_already_moved(advantage, ratio, moves):
    scores, batch = one_token(ratio, advantage)
    grad_BT = jax.grad(loss_of)(scores.logprobs, batch)
    np.testing.assert_allclose(grad_BT, [[-ratio * advantage if moves else 0.0]], rtol=1e-5)
    _, stats = policy_loss(scores, batch, **CLIP)
    assert float(stats.clipped_high) == (not moves and advantage > 0)
    assert float(stats.clipped_low) == (not moves and advantage < 0)


@pytest.mark.parametrize("garbage", [1e9, -1e9, np.inf, np.nan])
def test_garbage_off_the_shares_reaches_nothing(rng, garbage):
    """Neither loss, nor statistics, nor the gradient of what does count."""
    batch, scores = microbatch(rng), make_scores(rng)
    off = np.asarray(batch.shares) == 0
    soiled = Scores(*(jnp.where(off, garbage, x) for x in scores))

    def both(logprobs):
        loss, stats = policy_loss(Scores(logprobs, soiled.entropy), batch, **CLIP)
        return loss, stats

    (loss, stats), grad_BT = jax.value_and_grad(both, has_aux=True)(soiled.logprobs)
    want = by_hand(scores, batch)
    np.testing.assert_allclose(loss, want.pop("loss"), rtol=1e-5)
    for name, value in want.items():
        np.testing.assert_allclose(getattr(stats, name), value, rtol=1e-5, err_msg=name)
    np.testing.assert_array_equal(np.asarray(grad_BT)[off], 0)


def test_statistics_of_microbatches_merge_into_those_of_the_whole(rng):
    batch, scores = microbatch(rng, B=4), make_scores(rng, B=4)
    whole_loss, whole = policy_loss(scores, batch, **CLIP)

    def loss_of_rows(rows):
        part_scores, part = jax.tree.map(lambda x: x[rows], (scores, batch))
        return policy_loss(part_scores, part, **CLIP)

    halves = [loss_of_rows(slice(0, 2)), loss_of_rows(slice(2, 4))]
    np.testing.assert_allclose(halves[0][0] + halves[1][0], whole_loss, rtol=1e-5)
    merged = halves[0][1].merge(halves[1][1])
    for name, got, want in zip(LossStats._fields, merged, whole, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, err_msg=name)


def test_statistics_carry_no_gradient(rng):
    batch, scores = microbatch(rng), make_scores(rng)

    def total(logprobs):
        _, stats = policy_loss(Scores(logprobs, logprobs), batch, **CLIP)
        return sum(stats)

    np.testing.assert_array_equal(jax.grad(total)(scores.logprobs), np.zeros((3, 7)))


def test_a_microbatch_refuses_arrays_of_different_shape(rng):
    """jaxtyping binds B and T across the fields."""
    with pytest.raises(jaxtyping.TypeCheckError, match="'targets'"):
        microbatch(rng, targets=jnp.zeros((3, 4), jnp.int32))


def packed_rows(rng, B=4, T=12):
    """Two or three completions in each row, padding behind them, prompts that carry no loss."""
    segments = np.zeros((B, T), np.int32)
    for row, lengths in enumerate(((5, 4), (2, 3, 6), (11, 1), (4, 4, 4))):
        segments[row, : sum(lengths)] = np.repeat(np.arange(len(lengths)) + 1, lengths)
    shares = (rng.random((B, T)) + 0.1) * (rng.random((B, T)) < 0.7) * (segments > 0)
    return microbatch(
        rng,
        B,
        T,
        segments=jnp.asarray(segments),
        shares=jnp.asarray(shares, jnp.float32),
        behavior_logprobs=jnp.asarray(rng.normal(-1, 0.6, (B, T)), jnp.float32),
    )


def reference_slope(batch, logprobs, objective):
    """d loss / d log p of each token, from the formulas of papers.md, section 8, by hand."""
    old, A, share, segments = (
        np.asarray(x, np.float64)
        for x in (batch.behavior_logprobs, batch.advantages, batch.shares, batch.segments)
    )
    gap, slope = logprobs - old, np.zeros_like(old)
    for b in range(len(old)):
        for s in {int(x) for x in segments[b]} - {0}:
            of = [t for t in np.flatnonzero(segments[b] == s) if share[b, t] > 0]
            for t in of:
                if objective == "gspo":
                    ratio = np.exp(np.mean([gap[b, u] for u in of]))
                    # s_i = exp(mean): each of its tokens moves it by a share of itself.
                    pieces = [(u, ratio / len(of)) for u in of]
                else:
                    ratio, pieces = np.exp(gap[b, t]), [(t, np.exp(gap[b, t]))]
                if objective in ("clip", "gspo"):
                    is_stuck = (A[b, t] > 0 and ratio > 1 + EPS_HIGH) or (
                        A[b, t] < 0 and ratio < 1 - EPS_LOW
                    )
                    pieces = [] if is_stuck else pieces
                else:
                    cap = 2.0 if objective == "tis" else 1 + EPS_HIGH
                    pieces = [(t, min(ratio, cap))]
                for u, weight in pieces:
                    slope[b, u] -= share[b, t] * A[b, t] * weight
    return slope


@pytest.mark.parametrize("objective", ["clip", "tis", "cispo", "gspo"])
def test_each_objective_has_the_gradient_of_its_formula(rng, objective):
    batch = packed_rows(rng)
    logprobs = jnp.asarray(rng.normal(-1, 0.6, batch.shares.shape), jnp.float32)

    def loss(logprobs):
        scores = Scores(logprobs, jnp.zeros_like(logprobs))
        return policy_loss(scores, batch, **CLIP, objective=objective)[0]

    want = reference_slope(batch, np.asarray(logprobs, np.float64), objective)
    np.testing.assert_allclose(np.asarray(jax.grad(loss)(logprobs)), want, rtol=1e-4, atol=1e-6)
    others = {"clip", "tis", "cispo", "gspo"} - {objective}
    for other in others:
        unlike = reference_slope(batch, np.asarray(logprobs, np.float64), other)
        assert np.abs(unlike - want).max() > 1e-3, other


def test_a_gspo_ratio_is_one_over_devices_that_share_a_row(rng):
    batch = packed_rows(rng)
    logprobs = jnp.asarray(rng.normal(-1, 0.6, batch.shares.shape), jnp.float32)

    def run(batch, logprobs):
        scores = Scores(logprobs, jnp.zeros_like(logprobs))
        return policy_loss(scores, batch, **CLIP, objective="gspo")

    whole = jax.device_get(jax.jit(run)(batch, logprobs))
    for fsdp, sp in ((2, 2), (1, 4), (4, 1)):
        mesh = make_mesh(jax.devices(), fsdp=fsdp, sp=sp, tp=1)
        by = NamedSharding(mesh, row_spec(mesh))
        with jax.set_mesh(mesh):
            split = jax.device_get(jax.jit(run)(*jax.device_put((batch, logprobs), by)))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), split, whole)


def test_ablations_are_their_formulas(rng):
    """k3 of papers.md, 8.1, and the entropy, token by token beside the objective."""
    batch, scores = microbatch(rng), make_scores(rng)
    reference = jnp.asarray(scores.logprobs + rng.normal(0, 0.3, (3, 7)), jnp.float32)
    plain, _ = policy_loss(scores, batch, **CLIP)
    loss, stats = policy_loss(
        scores, batch, **CLIP, entropy_bonus=0.3, kl_coefficient=0.2, reference=reference
    )
    kl = entropy = 0.0
    for b, t in np.argwhere(np.asarray(batch.shares) > 0):
        ratio = np.exp(float(reference[b, t]) - float(scores.logprobs[b, t]))
        kl += float(batch.shares[b, t]) * (ratio - np.log(ratio) - 1)
        entropy += float(batch.shares[b, t]) * float(scores.entropy[b, t])
    assert kl > 0.01
    np.testing.assert_allclose(loss, plain + 0.2 * kl - 0.3 * entropy, rtol=1e-5)
    np.testing.assert_allclose(stats.kl, kl, rtol=1e-5)
