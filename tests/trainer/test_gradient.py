"""The trainer's gradient is the paper's, whatever the packing (Magistral, section 2.1).

The reference below is written from the formula alone: one unpacked sequence at a time, one head
and one token at a time, with its own network, its own advantages and its own normalisation.
It shares no code with the package but the layout of the parameter tree.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magistral_jax.arrays import Minibatch
from magistral_jax.batch.assemble import assemble_minibatch

EPS_LOW, EPS_HIGH = 0.2, 0.28
STOP, TEMPERATURE = 2, 0.8  # as conftest has them
PACKINGS = [(10, 1), (16, 2), (26, 4), (96, 1), (98, 1)]
BY_THE_PAPER = ("minibatch", "group")


def reference_logprobs(params, arch, tokens):
    """log p(tokens[t + 1] | tokens[: t + 1]) of one sequence."""
    length, half, repeat = len(tokens), arch.head_dim // 2, arch.heads // arch.kv_heads
    slow = jnp.array([arch.rope_theta ** (-2 * i / arch.head_dim) for i in range(half)])
    angle = jnp.arange(length, dtype=jnp.float32)[:, None] * slow[None]

    def norm(x, gain):
        return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + arch.norm_eps) * gain[None]

    def turned(x):
        a, b, cos, sin = x[:, :half], x[:, half:], jnp.cos(angle), jnp.sin(angle)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    x = params["embed"][tokens]
    for i in range(arch.layers):
        w = {name: stacked[i] for name, stacked in params["layers"].items()}
        h, out = norm(x, w["attn_norm"]), 0.0
        for head in range(arch.heads):
            kv = head // repeat
            q, k = turned(h @ w["wq"][:, head]), turned(h @ w["wk"][:, kv])
            scores = jnp.where(np.tri(length, dtype=bool), q @ k.T / arch.head_dim**0.5, -jnp.inf)
            out = out + jax.nn.softmax(scores) @ (h @ w["wv"][:, kv]) @ w["wo"][head]
        x = x + out
        h = norm(x, w["mlp_norm"])
        x = x + (jax.nn.silu(h @ w["w_gate"]) * (h @ w["w_up"])) @ w["w_down"]
    z = norm(x, params["final_norm"]) @ params["embed"].T / TEMPERATURE
    log_p = z - jnp.log(jnp.sum(jnp.exp(z), -1, keepdims=True))
    return jnp.stack([log_p[t, tokens[t + 1]] for t in range(length - 1)])


def reference_objective(params, tokens, is_drawn, old_logprobs, advantage, weight, *, arch):
    """sum_t weight * min(rho A, clip(rho) A) over the tokens that the policy drew."""
    new_logprobs, total = reference_logprobs(params, arch, tokens), 0.0
    for t in range(1, len(tokens)):
        rho = jnp.exp(new_logprobs[t - 1] - old_logprobs[t])
        clipped = jnp.clip(rho, 1 - EPS_LOW, 1 + EPS_HIGH)
        term = weight * jnp.minimum(rho * advantage, clipped * advantage)
        total = total + jnp.where(is_drawn[t], term, 0.0)
    return total


def judged(groups):
    """(group number, completion, reward) of every completion whose check worked."""
    return [
        (g, completion, verdict.reward)
        for g, group in enumerate(groups)
        for completion, verdict in zip(group.completions, group.verdicts, strict=True)
        if verdict.outcome != "error"
    ]


def reference_credit(groups, advantage_rule, share_rule):
    """(advantage, weight of each drawn token) of every completion of `judged`."""
    items = judged(groups)
    of = np.array([g for g, _, _ in items])
    rewards = np.array([reward for _, _, reward in items])
    drawn = np.array([completion.sampled.sum() for _, completion, _ in items])
    A = rewards - [rewards[of == g].mean() for g in of]
    if advantage_rule == "minibatch":
        A = (A - A.mean()) / A.std()
    elif advantage_rule == "group":
        A = A / [A[of == g].std() for g in of]
    if share_rule == "group":
        weights = [1 / (len(groups) * drawn[of == g].sum()) for g in of]
    else:
        weights = [1 / drawn.sum()] * len(items)
    return list(zip(A, weights, strict=True))


@pytest.fixture(scope="module")
def reference_gradient(arch, host_params, groups):
    """Of the loss, which is minus the objective; on the host."""
    params = jax.tree.map(jnp.asarray, host_params)
    gradient = jax.jit(jax.grad(lambda *args: -reference_objective(*args, arch=arch)))

    def run(advantage_rule, share_rule):
        total = jax.tree.map(np.zeros_like, host_params)
        credit = reference_credit(groups, advantage_rule, share_rule)
        for (_, completion, _), (advantage, weight) in zip(judged(groups), credit, strict=True):
            before = len(completion.prompt)
            part = gradient(
                params,
                jnp.asarray(np.concatenate([completion.prompt, completion.tokens])),
                jnp.asarray(np.concatenate([np.zeros(before, bool), completion.sampled])),
                jnp.asarray(np.concatenate([np.zeros(before, np.float32), completion.logprobs])),
                jnp.float32(advantage),
                jnp.float32(weight),
            )
            total = jax.tree.map(lambda a, b: a + np.asarray(b), total, part)
        return total

    return run


@pytest.fixture(scope="module")
def by_the_paper(reference_gradient):
    return reference_gradient(*BY_THE_PAPER)


@pytest.fixture(scope="module")
def trainer(make_trainer):
    return make_trainer(eps_low=EPS_LOW, eps_high=EPS_HIGH)


def packed(groups, *, row_tokens=16, rows=2, rules=BY_THE_PAPER) -> Minibatch:
    advantage_rule, share_rule = rules
    return assemble_minibatch(
        groups,
        row_tokens=row_tokens,
        rows=rows,
        advantage_rule=advantage_rule,
        share_rule=share_rule,
    )


def assert_same_gradient(got, want):
    """Each tensor to 1e-5 of its largest element."""

    def check(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())

    jax.tree.map(check, jax.device_get(got), want)


@pytest.mark.parametrize("row_tokens, rows", PACKINGS)
def test_no_packing_changes_the_papers_gradient(trainer, groups, by_the_paper, row_tokens, rows):
    minibatch = packed(groups, row_tokens=row_tokens, rows=rows)
    assert_same_gradient(trainer.gradient(minibatch), by_the_paper)


def test_the_packings_differ(groups):
    """One sequence to a microbatch; two; three and a row of nothing; rows of 12; all in one row."""
    seen = {}
    for row_tokens, rows in PACKINGS:
        segments = [
            m.segments for m in packed(groups, row_tokens=row_tokens, rows=rows).microbatches
        ]
        empty = sum(int((row == 0).all()) for rows_of in segments for row in rows_of)
        seen[row_tokens, rows] = len(segments), max(int(s.max()) for s in segments), empty
    assert seen == {
        (10, 1): (8, 1, 0),
        (16, 2): (2, 2, 0),
        (26, 4): (1, 3, 1),
        (96, 1): (1, 2, 2),
        (98, 1): (1, 8, 0),
    }


@pytest.mark.parametrize("share_rule", ["group", "batch"])
@pytest.mark.parametrize("advantage_rule", ["minibatch", "group", "none"])
def test_every_rule_of_credit_gives_its_gradient(
    trainer, groups, reference_gradient, advantage_rule, share_rule
):
    rules = (advantage_rule, share_rule)
    assert_same_gradient(trainer.gradient(packed(groups, rules=rules)), reference_gradient(*rules))


def test_the_groups_clip_on_both_sides_and_hold_what_must_not_count(trainer, groups):
    """Else the tests above would say less than they seem to."""
    verdicts = [verdict.outcome for group in groups for verdict in group.verdicts]
    sampled = np.concatenate([c.sampled for group in groups for c in group.completions])
    assert "error" in verdicts and not sampled.all()
    low = high = 0
    for microbatch in packed(groups).microbatches:
        scores = trainer.score(microbatch)
        on = microbatch.shares > 0
        ratio = np.exp(np.asarray(scores.logprobs) - microbatch.behavior_logprobs)[on]
        good = microbatch.advantages[on] > 0
        low += int(((ratio < 1 - EPS_LOW) & ~good).sum())
        high += int(((ratio > 1 + EPS_HIGH) & good).sum())
    assert low >= 2 and high >= 2, (low, high)


def without_stops(m):
    return replace(m, shares=np.where(m.targets == STOP, 0, m.shares).astype(np.float32))


WRONG = {
    "stop tokens carry no loss": without_stops,
    "prompts carry loss": lambda m: replace(
        m, shares=np.where(m.segments > 0, m.shares.max(), 0).astype(np.float32)
    ),
    "completions see each other": lambda m: replace(m, segments=np.minimum(m.segments, 1)),
    "positions stand still": lambda m: replace(m, positions=np.zeros_like(m.positions)),
    "old log-probs one token late": lambda m: replace(
        m, behavior_logprobs=np.roll(m.behavior_logprobs, 1, axis=1)
    ),
    "the ratio is left out": lambda m: replace(
        m, behavior_logprobs=np.where(m.shares > 0, -2.3, 0).astype(np.float32)
    ),
    "advantages are turned around": lambda m: replace(m, advantages=-m.advantages),
    "all tokens count alike": lambda m: replace(
        m, shares=np.where(m.shares > 0, 1 / 40, 0).astype(np.float32)
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_the_comparison_notices(trainer, groups, by_the_paper, mistake):
    minibatch = packed(groups)
    wrong = replace(minibatch, microbatches=tuple(map(WRONG[mistake], minibatch.microbatches)))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same_gradient(trainer.gradient(wrong), by_the_paper)


@pytest.mark.parametrize("name", ["behavior_logprobs", "advantages", "shares"])
def test_the_stop_token_learns_from_its_own_numbers(trainer, groups, by_the_paper, name):
    """Stopping is what RL must teach, and a mask that loses the last token is the classic slip."""
    minibatch = packed(groups)
    rows = [m for m in minibatch.microbatches if (m.targets == STOP).any()]
    row, column = np.argwhere(rows[0].targets == STOP)[0]
    assert rows[0].shares[row, column] > 0 and rows[0].advantages[row, column] != 0
    array = getattr(rows[0], name).copy()
    array[row, column] += 0.01
    changed = tuple(
        replace(m, **{name: array}) if m is rows[0] else m for m in minibatch.microbatches
    )
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same_gradient(
            trainer.gradient(replace(minibatch, microbatches=changed)), by_the_paper
        )
