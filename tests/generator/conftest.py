"""A tiny policy, its engines, and its log-probs by a full forward, for all tests of this room."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magistral_jax.generator.engine import Engine
from magistral_jax.generator.sampling import Sampler
from magistral_jax.generator.scheduler import Scheduler
from magistral_jax.model.logprobs import score
from magistral_jax.model.params import Architecture, abstract, map_specs
from magistral_jax.model.sharding import TRAINER_RULES, make_mesh, place, shardings
from magistral_jax.types import Problem, Prompt
from magistral_jax.weights.push import WeightPush

ROOM = 40
"""Cache positions of a slot: buckets of 16, 24, 32 and 40."""


class Policy:
    """One architecture, weights by seed, engines by size; everything made once."""

    arch = Architecture(
        layers=2,
        width=48,
        heads=4,
        kv_heads=2,
        head_dim=16,
        ffn=80,
        vocab=300,
        rope_theta=10_000.0,
        norm_eps=1e-5,
        tie_embeddings=True,
    )
    stop_ids = tuple(range(0, 300, 20))

    def __init__(self, mesh=None):
        self.source = make_mesh(jax.devices(), fsdp=1, tp=1)
        self.mesh = mesh or self.source
        self.push = WeightPush(
            self.arch, trainer=self.source, generator=self.mesh, dtype=jnp.dtype("float32")
        )
        self._score = jax.jit(
            partial(
                score,
                arch=self.arch,
                temperature=1.0,
                dtype=jnp.dtype("float32"),
                remat=False,
                head_tokens=1024,
            )
        )

    @cache  # noqa: B019 - the only policy lives as long as the session
    def snapshot(self, version):
        """Weights as the trainer would publish them; each version draws its own."""
        rng = np.random.default_rng(version)

        def draw(spec):
            noise = rng.normal(size=spec.shape).astype(np.float32)
            return noise * np.float32(spec.scale) if spec.scale else 1 + 0.1 * noise

        host = map_specs(draw, abstract(self.arch))
        params = place(host, shardings(self.arch, self.source, TRAINER_RULES))
        return self.push(params, version)

    @cache  # noqa: B019
    def engine(self, slots, *, stops=True):
        return Engine(
            self.arch,
            self.mesh,
            slots=slots,
            tokens=ROOM,
            stop_ids=self.stop_ids if stops else (-1,),
            dtype=jnp.dtype("float32"),
        )

    def scheduler(
        self, slots, *, version=0, stops=True, group_size=3, max_tokens=12, sampler=None, **more
    ):
        return Scheduler(
            self.engine(slots, stops=stops),
            self.snapshot(version),
            key=jax.random.key(7),
            sampler=sampler or Sampler(),
            group_size=group_size,
            max_tokens=max_tokens,
            **more,
        )

    def prompt(self, group, length):
        tokens = np.random.default_rng(group).integers(1, self.arch.vocab, length, np.int32)
        problem = Problem(id=str(group), domain="math", question="", answer="")
        return Prompt(group=group, problem=problem, tokens=tokens)

    def full_forward(self, completion, version):
        """log p of each token of a completion, with no cache and no engine."""
        sequence = np.concatenate([completion.prompt, completion.tokens])
        n = len(sequence) - 1
        inputs, targets, segments = np.zeros((3, 1, ROOM + 1), np.int32)
        inputs[0, :n], targets[0, :n], segments[0, :n] = sequence[:-1], sequence[1:], 1
        positions = np.arange(ROOM + 1, dtype=np.int32)[None]
        with jax.set_mesh(self.mesh):
            scores = self._score(
                self.snapshot(version).params,
                inputs=jnp.asarray(inputs),
                targets=jnp.asarray(targets),
                positions=jnp.asarray(positions),
                segments=jnp.asarray(segments),
            )
        return np.asarray(scores.logprobs)[0, len(completion.prompt) - 1 : n]


@pytest.fixture(scope="session")
def policy():
    return Policy()
