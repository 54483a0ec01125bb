"""Weights change in the middle of a sequence: what is recorded can be computed again, elsewhere.

The scheduler's record (tokens, log-probs, spans) is replayed without engine or scheduler: token by
token through the network over a cache of its own, under the weights each span names.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magistral_jax.model.cache import attend_cached, empty_cache
from magistral_jax.model.transformer import head_weight, logits, transform

TOLERANCE = 1e-4
PROMPTS = {0: 5, 1: 11, 2: 19}
SWAP_AT = (3, 7)
"""Steps before which new weights arrive."""


def record(policy, kv_on_update):
    """Completions sampled across two updates, the third joining between them."""
    scheduler = policy.scheduler(
        3, stops=False, group_size=3, max_tokens=12, kv_on_update=kv_on_update
    )
    for group in (0, 1):
        scheduler.submit(policy.prompt(group, PROMPTS[group]), count=1)
    done, step = [], 0
    while scheduler.has_work:
        if step == 5:
            scheduler.submit(policy.prompt(2, PROMPTS[2]), count=1)
        if step in SWAP_AT:
            scheduler.swap(policy.snapshot(1 + SWAP_AT.index(step)))
        done += scheduler.step()
        step += 1
    return sorted(done, key=lambda completion: completion.group)


@pytest.fixture(scope="module")
def kept(policy):
    return record(policy, "keep")


@pytest.fixture(scope="module")
def recomputed(policy):
    return record(policy, "recompute")


@pytest.fixture(scope="module")
def one_token(policy):
    """(params, cache, token, position) -> (log-probs of the next token, cache)."""
    dtype = jnp.dtype("float32")

    @partial(jax.jit, donate_argnums=1)
    def feed(params, cache, token, position):
        positions = jnp.full(1, position, jnp.int32)
        hidden, cache = transform(
            params,
            policy.arch,
            jnp.full((1, 1), token, jnp.int32),
            positions[:, None],
            attend=attend_cached(positions),
            states=cache,
            dtype=dtype,
        )
        scores = logits(hidden, head_weight(params, dtype), tied=True)[0, 0]
        return jax.nn.log_softmax(scores), cache

    return feed


def replayed(policy, one_token, completion):
    """The record's log-probs again, each token fed under the weights of the one it predicts."""
    sequence = np.concatenate([completion.prompt, completion.tokens])
    prompt = len(completion.prompt)
    versions = np.concatenate([[completion.versions()[0]] * (prompt - 1), completion.versions()])
    out = []
    with jax.set_mesh(policy.mesh):
        cache = empty_cache(policy.arch, policy.mesh, 1, 64, jnp.dtype("float32"))
        for position, version in enumerate(versions):
            params = policy.snapshot(int(version)).params
            scores, cache = one_token(params, cache, sequence[position], np.int32(position))
            out.append(float(scores[sequence[position + 1]]))
    return np.array(out[prompt - 1 :])


def test_the_record_names_the_versions(kept, recomputed):
    """What the run is about: published versions differ within one completion."""
    for completions in (kept, recomputed):
        spans = [[(s.start, s.version) for s in c.spans] for c in completions]
        assert spans == [[(0, 0), (3, 1), (7, 2)], [(0, 0), (3, 1), (7, 2)], [(0, 1), (2, 2)]]
        assert all(len(c.tokens) == 12 and c.finish == "length" for c in completions)


def test_kept_caches_give_new_weights_over_old_keys_and_values(policy, kept, one_token):
    for completion in kept:
        np.testing.assert_allclose(
            completion.logprobs, replayed(policy, one_token, completion), atol=TOLERANCE
        )


def after(completion, version):
    """The tokens sampled under `version`."""
    return completion.versions() == version


def test_recomputed_caches_give_the_new_weights_alone(policy, recomputed):
    for completion in recomputed:
        for span in completion.spans:
            on = after(completion, span.version)
            pure = policy.full_forward(completion, span.version)
            np.testing.assert_allclose(completion.logprobs[on], pure[on], atol=TOLERANCE)


def test_the_two_rules_differ_and_so_do_the_weights(policy, kept):
    """Otherwise the tests above would say nothing."""
    for completion in kept:
        first, *others = completion.spans
        on = after(completion, first.version)
        pure = policy.full_forward(completion, first.version)
        np.testing.assert_allclose(completion.logprobs[on], pure[on], atol=TOLERANCE)
        for span in others:
            on = after(completion, span.version)
            pure = policy.full_forward(completion, span.version)
            assert np.abs(completion.logprobs - pure)[on].max() > 1e-3
            before = policy.full_forward(completion, span.version - 1)
            assert np.abs(completion.logprobs - before)[on].max() > 1e-3
