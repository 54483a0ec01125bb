"""The trainer: float32 master weights, gradient accumulation, one optimizer step per minibatch.

Two jitted programs: `accumulate` adds one microbatch's gradient to the sum, `apply` spends the
sum. Each donates what it replaces. The trainer is blind to where credit came from: each token
brings its advantage and its share of the loss.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float

from magistral_jax.arrays import Batch, Microbatch, Minibatch
from magistral_jax.config import RunConfig
from magistral_jax.model.attention import Kernels
from magistral_jax.model.logprobs import Scores, score
from magistral_jax.model.params import Architecture, Params, unstack
from magistral_jax.model.sharding import kernels_of, row_spec
from magistral_jax.model.transformer import LONG_ROW
from magistral_jax.trainer.loss import LossStats, Objective, policy_loss
from magistral_jax.trainer.optimizer import make_optimizer
from magistral_jax.types import GivenUp, Made

LossFn = Callable[[Scores, Microbatch], tuple[Float[Array, ""], LossStats]]


class TrainState(NamedTuple):
    """What a checkpoint must hold of the trainer."""

    params: Params
    optimizer: optax.OptState
    average: Params
    """Moving average of the weights, where a KL term asks for one; else empty."""


class StepStats(NamedTuple):
    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    is_finite: Bool[Array, ""]
    """Whether loss and gradient were; if not, weights and optimizer stayed as they were."""
    sums: LossStats

    def values(self) -> dict[str, float]:
        """The step's numbers under their metric names. Waits for the step to end."""
        loss, grad_norm, _, s = jax.device_get(self)
        return {
            "loss": float(loss),
            "policy/grad_norm": float(grad_norm),
            "policy/clipped_low": float(s.clipped_low),
            "policy/clipped_high": float(s.clipped_high),
            "policy/log_ratio": float(s.log_ratio),
            "policy/log_ratio_abs_max": float(s.log_ratio_abs_max),
            "policy/entropy": float(s.entropy),
            "policy/kl": float(s.kl),
            "policy/ess": float(s.ratio**2 / max(s.tokens * s.ratio_squared, 1e-30)),
        }

    def made(self) -> Made:
        """The numbers again, or None where the step changed nothing."""
        return self.values() if bool(self.is_finite) else None


class Trainer:
    """One sharded policy under an optimizer."""

    def __init__(
        self,
        arch: Architecture,
        mesh: Mesh,
        params: Params,
        optimizer: optax.GradientTransformation,
        *,
        loss: LossFn | None = None,
        eps_low: float = 0.2,
        eps_high: float = 0.28,
        objective: Objective = "clip",
        entropy_bonus: float = 0.0,
        kl_coefficient: float = 0.0,
        kl_average: float = 0.99,
        offload: bool = False,
        temperature: float = 1.0,
        dtype: jnp.dtype,
        remat: bool = True,
        head_tokens: int = 1024,
        unroll: bool = False,
        kernels: Kernels | None = None,
        long_row: int = LONG_ROW,
    ) -> None:
        """`params` may be shapes with shardings: then nothing is computed, and `state` is shapes
        until what was saved takes its place. `loss` replaces the policy objective (the supervised
        warm-up does).

        `kl_average` is the decay of the averaged weights that a KL term is measured against.
        `offload` keeps the optimizer's state in the host's memory between updates.
        """
        self.arch, self.mesh, self.optimizer = arch, mesh, optimizer
        self._unroll, self._offload = unroll, offload
        self._decay = kl_average if kl_coefficient and loss is None else None
        self._loss: Callable[..., tuple[Array, LossStats]] = loss or partial(
            policy_loss,
            eps_low=eps_low,
            eps_high=eps_high,
            objective=objective,
            entropy_bonus=entropy_bonus,
            kl_coefficient=kl_coefficient,
        )
        self._score: Callable[..., Scores] = partial(
            score,
            arch=arch,
            temperature=temperature,
            dtype=dtype,
            remat=remat,
            head_tokens=head_tokens,
            kernels=kernels,
            long_row=long_row,
            entropy_gradient=entropy_bonus != 0,
        )
        with jax.set_mesh(mesh):
            begin = jax.jit(optimizer.init).lower(params).compile()
            shapes = jax.eval_shape(optimizer.init, params)
        self._on_device: Any = begin.output_shardings
        self._between = jax.tree.map(partial(kept_in, offload=offload), self._on_device)
        self.state = self._first_state(params, begin, shapes)
        self.on_progress: Callable[[], None] = lambda: None
        """Called whenever a microbatch is done; what it raises ends the step. A minibatch that is
        given up so has changed nothing."""
        self._accumulate = jax.jit(self._accumulate_fn, donate_argnums=2)
        self._apply = jax.jit(self._apply_fn, donate_argnums=0)
        self._zeros = jax.jit(lambda params: jax.tree.map(jnp.zeros_like, params))
        self._scores = jax.jit(self._score_fn)

    def _first_state(self, params: Params, begin: Any, shapes: Any) -> TrainState:
        """The state of no update yet, or its shapes where the parameters are shapes."""
        has_average = self._decay is not None
        if isinstance(jax.tree.leaves(params)[0], jax.ShapeDtypeStruct):
            places = jax.tree.map(
                lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
                shapes,
                self._between,
            )
            return TrainState(params, places, params if has_average else {})
        # A copy: the average and the weights are donated side by side.
        average = jax.tree.map(jnp.copy, params) if has_average else {}
        return TrainState(params, jax.device_put(begin(params), self._between), average)

    @property
    def params(self) -> Params:
        return self.state.params

    def step(self, batch: Batch) -> list[StepStats]:
        """One optimizer step per minibatch of the batch, but for those `made` before.

        Raises `GivenUp`, if `on_progress` does, with all that are made by then.
        """
        steps: list[StepStats] = []
        try:
            for minibatch in batch.minibatches[len(batch.made) :]:
                steps.append(self.minibatch_step(minibatch))
        except GivenUp:
            raise GivenUp([*batch.made, *(stats.made() for stats in steps)]) from None
        return steps

    def minibatch_step(self, minibatch: Minibatch) -> StepStats:
        """Add up the microbatches' gradients, then update. Returns without waiting for the last
        of them."""
        with jax.set_mesh(self.mesh):
            grads = self._zeros(self.state.params)
            totals: tuple[Any, LossStats] | None = None
            for microbatch in minibatch.microbatches:
                before = totals
                grads, loss, stats = self._add(grads, microbatch)
                totals = (
                    (loss, stats) if before is None else (before[0] + loss, before[1].merge(stats))
                )
                if before is not None:
                    # One is under way while the next is prepared; further ahead nobody could
                    # tell how far the devices are, nor stop them.
                    before[0].block_until_ready()
                    self.on_progress()
            assert totals is not None, "a minibatch without microbatches"
            self.state = self._moved(self._on_device)
            self.state, grad_norm, is_finite = self._apply(self.state, grads, totals[0])
            self.state = self._moved(self._between)
        return StepStats(totals[0], grad_norm, is_finite, totals[1])

    def _moved(self, onto: Any) -> TrainState:
        """The state with the optimizer's there, where that is another memory than its own."""
        if not self._offload:
            return self.state
        return self.state._replace(optimizer=jax.device_put(self.state.optimizer, onto))

    def gradient(self, minibatch: Minibatch) -> Params:
        """The gradient that `minibatch_step` would spend."""
        with jax.set_mesh(self.mesh):
            grads = self._zeros(self.state.params)
            for microbatch in minibatch.microbatches:
                grads, *_ = self._add(grads, microbatch)
        return grads

    def _add(self, grads: Params, microbatch: Microbatch) -> tuple[Params, Array, LossStats]:
        params, _, average = self.state
        return self._accumulate(params, average, grads, self.to_device(microbatch))

    def culprits(self, minibatch: Minibatch) -> list[tuple[int, int]]:
        """(group, index) of the completions whose own loss or gradient, under the weights as they
        are, is not finite."""
        return [
            name
            for microbatch, rows in zip(minibatch.microbatches, minibatch.names, strict=True)
            if not self._is_finite(microbatch)
            for row, names in enumerate(rows)
            for segment, name in enumerate(names, start=1)
            if not self._is_finite(alone(microbatch, row, segment))
        ]

    def _is_finite(self, microbatch: Microbatch) -> bool:
        with jax.set_mesh(self.mesh):
            grads = self._zeros(self.state.params)
            grads, loss, _ = self._add(grads, microbatch)
            is_finite = bool(jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads)))
        self.on_progress()
        return is_finite

    def score(self, microbatch: Microbatch) -> Scores:
        """log p of the microbatch's targets under the weights as they are."""
        with jax.set_mesh(self.mesh):
            return self._scores(self.state.params, self.to_device(microbatch))

    def to_device(self, microbatch: Microbatch) -> Microbatch:
        """Rows split over "fsdp" and their tokens over "sp", whole over "tp"."""
        sharding = NamedSharding(self.mesh, row_spec(self.mesh))
        surplus = -microbatch.inputs.shape[1] % self.mesh.shape["sp"]

        def put(x: Any) -> Array:
            return jax.device_put(np.pad(np.asarray(x), ((0, 0), (0, surplus))), sharding)

        return jax.tree.map(put, microbatch)

    def _score_fn(self, params: Params, batch: Microbatch) -> Scores:
        return self._score(
            unstack(params, self.arch.layers) if self._unroll else params,
            inputs=batch.inputs,
            targets=batch.targets,
            positions=batch.positions,
            segments=batch.segments,
        )

    def _accumulate_fn(
        self, params: Params, average: Params, grads: Params, batch: Microbatch
    ) -> tuple[Params, Array, LossStats]:
        # The loss without a KL term knows of no reference.
        reference = {"reference": self._score_fn(average, batch).logprobs} if average else {}

        def loss_of(params: Params) -> tuple[Array, LossStats]:
            return self._loss(self._score_fn(params, batch), batch, **reference)

        (loss, stats), new = jax.value_and_grad(loss_of, has_aux=True)(params)
        return jax.tree.map(jnp.add, grads, new), loss, stats

    def _apply_fn(
        self, state: TrainState, grads: Params, loss: Array
    ) -> tuple[TrainState, Array, Array]:
        grad_norm = optax.tree.norm(grads)
        is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        # Our own code passes strict promotion (tests set it); optax mixes int32 and float.
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer = self.optimizer.update(grads, state.optimizer, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        # Chosen element by element, in the loops that update: a branch would copy the state.
        average: Any = state.average
        if self._decay is not None:
            average = optax.incremental_update(params, average, 1.0 - self._decay)
        new = TrainState(params, optimizer, average)
        kept = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), new, state)
        return kept, grad_norm, is_finite


def trainer_of(
    config: RunConfig,
    arch: Architecture,
    mesh: Mesh,
    params: Params,
    optimizer: optax.GradientTransformation | None = None,
    *,
    loss: LossFn | None = None,
) -> Trainer:
    """The trainer that the config describes; another optimizer and loss make it a supervised one.

    It takes `params` for its own: its first step donates them.
    """
    t = config.trainer
    return Trainer(
        arch,
        mesh,
        params,
        optimizer or make_optimizer(t),
        loss=loss,
        eps_low=t.eps_low,
        eps_high=t.eps_high,
        objective=t.objective,
        entropy_bonus=t.entropy_bonus,
        kl_coefficient=t.kl_coefficient,
        kl_average=t.kl_average,
        offload=t.offload,
        temperature=1.0 if loss else config.generator.temperature,
        dtype=jnp.dtype(config.model.dtype),
        remat=t.remat,
        head_tokens=t.head_tokens,
        long_row=t.long_row,
        unroll=t.unroll,
        kernels=kernels_of(config.model, mesh),
    )


def kept_in(sharding: NamedSharding, *, offload: bool) -> NamedSharding:
    """The same division, in the host's memory if it is to be there; counters stay."""
    return sharding.with_memory_kind("pinned_host") if offload else sharding


def alone(microbatch: Microbatch, row: int, segment: int) -> Microbatch:
    """The microbatch with nothing in it but one completion."""
    is_kept = np.zeros(microbatch.segments.shape, bool)
    is_kept[row] = np.asarray(microbatch.segments)[row] == segment

    def keep(x: Any) -> np.ndarray:
        return np.where(is_kept, x, np.zeros_like(x))

    return jax.tree.map(keep, microbatch)
