"""Steps of the trainer: whole and in parts, on every mesh, and at a rate of nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import P

from magistral_jax.arrays import Batch
from magistral_jax.batch.assemble import assemble
from magistral_jax.config import TrainerConfig
from magistral_jax.trainer.loss import policy_loss
from magistral_jax.trainer.optimizer import make_optimizer
from tests.trainer.test_meshes import packed

# Adam divides by what may be next to zero, and rounding differs between meshes: a coarse epsilon.
CONFIG = TrainerConfig(learning_rate=1e-2, adam_eps=1e-3, max_grad_norm=0.1, weight_decay=0.01)


@pytest.fixture(scope="module")
def batch(groups) -> Batch:
    """Two optimizer steps, of several microbatches each."""
    return assemble(
        (*groups, groups[0]),
        groups_per_minibatch=2,
        row_tokens=16,
        rows=2,
        advantage_rule="minibatch",
        share_rule="group",
        control="none",
        seed=0,
        version=0,
    )


def stepped(make_trainer, batch, **options):
    """Weights and statistics after the batch, on the host."""
    trainer = make_trainer(rule=make_optimizer(CONFIG), **options)
    stats = trainer.step(batch)
    return jax.device_get((trainer.params, stats))


@pytest.fixture(scope="module")
def one_device(make_trainer, batch):
    return stepped(make_trainer, batch)


def test_each_minibatch_is_a_step(one_device, batch, host_params):
    params, stats = one_device
    assert len(stats) == len(batch.minibatches) == 2
    assert all(len(minibatch.microbatches) > 1 for minibatch in batch.minibatches)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, host_params)
    assert min(jax.tree.leaves(moved)) > 1e-4, moved


@pytest.mark.parametrize("fsdp, tp", [(2, 1), (1, 2), (2, 2)])
def test_the_mesh_does_not_change_the_step(make_trainer, batch, one_device, fsdp, tp):
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, stepped(make_trainer, batch, fsdp=fsdp, tp=tp), one_device)


def test_keeping_activations_does_not_change_the_step(make_trainer, batch, one_device):
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, stepped(make_trainer, batch, remat=False), one_device)


@pytest.fixture(scope="module")
def plain(make_trainer):
    """A trainer whose weights do not move: it is asked for gradients and scores."""
    return make_trainer(rule=make_optimizer(TrainerConfig(learning_rate=0.0)))


def test_a_learning_rate_of_zero_leaves_every_bit_of_the_weights(plain, batch, host_params):
    stats = plain.step(batch)
    assert float(stats[0].grad_norm) > 1e-3
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(plain.params), host_params)


def test_metrics_are_those_of_the_tokens(plain, batch):
    """From the trainer's own scores of each microbatch, summed here in numpy."""
    minibatch = batch.minibatches[0]
    values = plain.minibatch_step(minibatch).values()
    loss = entropy = log_ratio = low = high = 0.0
    ratios = []
    for m in minibatch.microbatches:
        scores = jax.device_get(plain.score(m))
        on = m.shares > 0
        share, A, gap = m.shares[on], m.advantages[on], (scores.logprobs - m.behavior_logprobs)[on]
        ratio = np.exp(gap)
        loss -= np.sum(share * np.minimum(ratio * A, np.clip(ratio, 0.8, 1.28) * A))
        entropy += np.sum(share * scores.entropy[on])
        log_ratio += np.sum(share * gap)
        low += np.sum(share[(ratio < 0.8) & (A < 0)])
        high += np.sum(share[(ratio > 1.28) & (A > 0)])
        ratios.append(ratio)
    w = np.concatenate(ratios)
    want = {
        "loss": loss,
        "policy/grad_norm": float(optax.tree.norm(plain.gradient(minibatch))),
        "policy/clipped_low": low,
        "policy/clipped_high": high,
        "policy/log_ratio": log_ratio,
        "policy/log_ratio_abs_max": np.abs(np.log(w)).max(),
        "policy/entropy": entropy,
        "policy/kl": 0.0,
        "policy/ess": w.sum() ** 2 / (len(w) * (w**2).sum()),
    }
    assert values.keys() == want.keys()
    for name, value in want.items():
        assert values[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert low > 0 and high > 0 and 0 < values["policy/ess"] < 1


def test_rows_are_split_over_the_devices_that_share_the_weights(make_trainer, batch):
    trainer = make_trainer(fsdp=2, tp=2, rule=make_optimizer(CONFIG))
    placed = trainer.to_device(batch.minibatches[0].microbatches[0])
    for array in jax.tree.leaves(placed):
        assert array.sharding.spec == P("fsdp", None)
        assert {shard.data.shape for shard in array.addressable_shards} == {(1, 16)}
    embed = trainer.params["embed"]
    moments = [x for x in jax.tree.leaves(trainer.state.optimizer) if x.shape == embed.shape]
    assert len(moments) == 2 and all(x.sharding == embed.sharding for x in moments)


def test_another_loss_takes_the_place_of_the_objective(make_trainer, batch):
    """As the supervised warm-up does."""

    def likelihood(scores, m):
        _, stats = policy_loss(scores, m, eps_low=0.2, eps_high=0.28)
        return -jnp.sum(m.shares * scores.logprobs), stats

    trainer = make_trainer(rule=optax.adam(1e-2), loss=likelihood)
    losses = [float(trainer.minibatch_step(batch.minibatches[0]).loss) for _ in range(5)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.05, losses


def test_a_kl_term_is_measured_from_the_average_of_the_weights(make_trainer, groups):
    """The average follows the weights; at the first update there is no distance, and no pull."""
    minibatch = packed(groups)
    options = {"kl_coefficient": 0.5, "kl_average": 0.75}
    with_kl, without = make_trainer(**options), make_trainer()
    start = jax.device_get(without.params)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    first = [trainer.minibatch_step(minibatch) for trainer in (with_kl, without)]
    jax.tree.map(close, with_kl.params, without.params)
    assert float(first[0].sums.kl) == pytest.approx(0.0, abs=1e-7) and not without.state.average
    one = jax.device_get(with_kl.params)
    average = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, start, one)
    jax.tree.map(close, with_kl.state.average, average)

    second = with_kl.minibatch_step(minibatch)
    reference = make_trainer()
    reference.state = reference.state._replace(params=average)
    without.state = without.state._replace(params=one)
    kl = 0.0
    for m in minibatch.microbatches:
        behind = reference.score(m).logprobs - without.score(m).logprobs
        kl += float(np.sum(m.shares * (np.exp(behind) - behind - 1)))
    assert kl > 1e-6 and float(second.sums.kl) == pytest.approx(kl, rel=1e-3)


def test_an_entropy_bonus_is_its_gradient(make_trainer, groups):
    """The gradient gains that of the entropy, by differences along one direction."""
    minibatch = packed(groups)
    plain, bonus = make_trainer(), make_trainer(entropy_bonus=0.5)
    gained = jax.tree.map(jnp.subtract, bonus.gradient(minibatch), plain.gradient(minibatch))
    rng = np.random.default_rng(3)
    way = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), gained)
    start = plain.params

    def entropy_at(step):
        plain.state = plain.state._replace(
            params=jax.tree.map(lambda p, w: p + step * w, start, way)
        )
        return sum(float(np.sum(m.shares * plain.score(m).entropy)) for m in minibatch.microbatches)

    slope = (entropy_at(1e-2) - entropy_at(-1e-2)) / 2e-2
    along = sum(
        float(jnp.sum(g * w)) for g, w in zip(*map(jax.tree.leaves, (gained, way)), strict=True)
    )
    assert abs(slope) > 1e-3 and along == pytest.approx(-0.5 * slope, rel=2e-2)


def test_an_offloaded_state_is_on_the_host_between_updates_and_changes_nothing(
    make_trainer, groups
):
    rule = make_optimizer(CONFIG)
    for mesh in ((1, 1, 1), (2, 1, 2)):
        kept, offloaded = (make_trainer(*mesh, rule=rule, offload=o) for o in (False, True))
        for _ in range(2):
            for trainer in (kept, offloaded):
                trainer.minibatch_step(packed(groups))
            kinds = {x.sharding.memory_kind for x in jax.tree.leaves(offloaded.state.optimizer)}
            assert kinds == {"pinned_host"}
        jax.tree.map(
            np.testing.assert_array_equal, *map(jax.device_get, (kept.state, offloaded.state))
        )
