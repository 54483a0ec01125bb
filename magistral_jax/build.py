"""Config -> the rooms. The one file that imports them all; it wires and decides nothing."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from magistral_jax.arrays import Batch
from magistral_jax.asking import Asking
from magistral_jax.batch.assemble import assemble
from magistral_jax.batch.backlog import Backlog
from magistral_jax.checkpoint import Checkpoints, Meta, check_identity, identity_of
from magistral_jax.config import RunConfig
from magistral_jax.data.sources import Sums
from magistral_jax.generator.engine import Engine
from magistral_jax.generator.fleet import Fleet, part_of, side_by_side
from magistral_jax.generator.sampling import Sampler
from magistral_jax.generator.scheduler import Scheduler
from magistral_jax.ledger import GENERATOR, TRAINER, Ledger, on_compilation, shares_of
from magistral_jax.loops.rooms import Rooms
from magistral_jax.model.gguf_file import read_header
from magistral_jax.model.load import checked_weights, read_architecture, read_params
from magistral_jax.model.params import Architecture, Params, abstract, initialise, map_specs
from magistral_jax.model.sharding import (
    GENERATOR_RULES,
    TRAINER_RULES,
    check_divides,
    engine_meshes,
    kernels_of,
    make_meshes,
    shardings,
)
from magistral_jax.model.sources import resolve
from magistral_jax.recipes.agreement import Probe
from magistral_jax.recipes.exam import Exam
from magistral_jax.recipes.updates import train_batch
from magistral_jax.recipes.warmup import warm_up
from magistral_jax.tally import Tally
from magistral_jax.tokenizer.bytes import ByteTokenizer
from magistral_jax.tokenizer.files import check_vocabulary, read_tokenizer
from magistral_jax.tokenizer.interface import Tokenizer
from magistral_jax.trainer.trainer import Trainer, trainer_of
from magistral_jax.types import (
    Completion,
    Frontier,
    Group,
    Prompt,
    Queue,
    Snapshot,
    UserError,
    Verdict,
)
from magistral_jax.verifier.faults import FormatFaults
from magistral_jax.verifier.reward import rule_of
from magistral_jax.verifier.sandbox.choose import describe_sandbox
from magistral_jax.verifier.worker import VerifierPool
from magistral_jax.weights.mailbox import Mailbox
from magistral_jax.weights.push import WeightPush

PROBE_PROMPTS = 8
jax.monitoring.register_event_duration_secs_listener(on_compilation)

# Independent random streams of one run seed.
SAMPLING, EVALUATION, PROBING, INITIAL = range(4)


class Run(Asking):
    """The parts of one run, each made once, when first asked for."""

    def __init__(self, config: RunConfig, *, devices: Sequence[Any] | None = None) -> None:
        super().__init__(config)
        self.dtype, self.devices = jnp.dtype(config.model.dtype), devices
        self.trainer_mesh, self.generator_mesh = make_meshes(config.mesh, devices)
        self.tally = Tally()
        meshes = {GENERATOR: self.generator_mesh, TRAINER: self.trainer_mesh}
        self.ledger = Ledger(shares_of(meshes))
        self.tell: Callable[[str], None] = lambda what: None
        self.folder: Path | None = None
        check_divides(self.arch, self.trainer_mesh, TRAINER_RULES, "trainer")
        check_divides(self.arch, self.generator_mesh, GENERATOR_RULES, "generator")

    def in_stage(self, config: RunConfig) -> "Run":
        """The rooms of the run's next stage, with its accounts and under its devices; what this one
        made for itself is closed."""
        self.close()
        made = type(self)(config, devices=self.devices)
        for name in ("tally", "ledger", "on_failure", "tell", "folder", "wanted", "bad_rows"):
            setattr(made, name, getattr(self, name))
        vars(made)["problems"] = self.problems
        return made

    # What the policy is.

    @cached_property
    def _file(self) -> Any:
        return None if self.config.model.source == "random" else resolve(self.config.model.source)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        if self._file is None:
            return ByteTokenizer()
        metadata = None if self._file.is_dir() else read_header(self._file).metadata
        return read_tokenizer(self._file, metadata)

    @cached_property
    def arch(self) -> Architecture:
        if self._file is None:
            return Architecture.from_config(self.config.model.shape, self.tokenizer.vocab_size)
        arch = read_architecture(self._file)
        check_vocabulary(self.tokenizer, arch.vocab, self.config.model.source)
        return arch

    def check_weights(self) -> None:
        """Refuse weights that are not the network's, and kernels that are not the devices', before
        anything is allocated or written."""
        for mesh in (self.trainer_mesh, self.generator_mesh):
            kernels_of(self.config.model, mesh)
        if self._file is not None:
            checked_weights(self._file, self.arch)

    def initial_params(self) -> Params:
        """The float32 weights a run starts from, on the trainer's devices."""
        if self.config.model.start:
            return self.saved_params(Path(self.config.model.start), "model.start")[0]
        onto = shardings(self.arch, self.trainer_mesh, TRAINER_RULES)
        if self._file is None:
            with jax.set_mesh(self.trainer_mesh):
                return initialise(self.arch, self.key(INITIAL), onto)
        return read_params(self._file, self.arch, onto, on_piece=self.ledger.beat)

    def abstract_params(self) -> Params:
        """The shapes of such weights, with their places on the trainer's devices."""
        return map_specs(
            lambda spec, sharding: jax.ShapeDtypeStruct(spec.shape, "float32", sharding=sharding),
            abstract(self.arch),
            shardings(self.arch, self.trainer_mesh, TRAINER_RULES),
        )

    def saved_params(self, folder: Path, named: str) -> tuple[Params, Meta]:
        """The weights that a run folder offers: the best of an SFT run, else the newest."""
        # Another file of problems, or another seed, may be put to the same network.
        wanted = self.identity()
        network = {name: value for name, value in wanted.items() if name.startswith("model ")}
        for name in ("best", "checkpoints"):
            checkpoints = Checkpoints(folder / name, keep=1)
            checkpoints.on_progress = partial(self.ledger.beat, TRAINER)

            def read(meta: Meta, checkpoints: Checkpoints = checkpoints) -> tuple[Params, Meta]:
                check_identity(meta.identity, network, folder)
                return checkpoints.restore_params(meta, self.abstract_params()), meta

            if (found := checkpoints.newest(read)) is not None:
                return found
        raise UserError(f"{named}: {folder / 'checkpoints'} holds no checkpoint.")

    def warmed_up(self, params: Params, on_step: Callable[[int, float], None]) -> Params:
        """The weights after the supervised warm-up, if the config asks for one."""
        if self.config.warmup.steps == 0:
            return params
        return warm_up(
            self.config,
            self.arch,
            self.trainer_mesh,
            params,
            self._warmup_prompts(),
            self.tokenizer,
            on_step=on_step,
            on_progress=partial(self.ledger.beat, TRAINER),
        )

    def key(self, stream: int) -> Any:
        return jax.random.fold_in(jax.random.key(self.config.seed), stream)

    # The generator.

    def engine(self, slots: int, pages: int = 0, mesh: Mesh | None = None) -> Engine:
        return Engine(
            self.arch,
            mesh or engine_meshes(self.generator_mesh)[0],
            slots=slots,
            tokens=self.config.sequence_tokens,
            stop_ids=self.tokenizer.stop_ids,
            prompt_tokens=self.config.data.max_prompt_tokens,
            dtype=self.dtype,
            prefill_chunk=self.config.generator.prefill_chunk,
            pages=pages,
            page_tokens=self.config.generator.page_tokens,
            in_8_bits=self.config.generator.kv_in_8_bits,
            kernels=kernels_of(self.config.model, self.generator_mesh),
        )

    @cached_property
    def main_engine(self) -> Engine:
        # At least two rows to a product: XLA's CPU backend has a slow path for one.
        slots = max(2, self.config.generator.in_flight // self.config.mesh.generator_engines)
        return self.engine(slots, self.config.generator.pages)

    @cached_property
    def engines(self) -> list[Engine]:
        """All that decode side by side, `main_engine` first."""
        like, others = self.main_engine, engine_meshes(self.generator_mesh)[1:]
        slots = like.max_concurrent_decodes
        return [like, *(self.engine(slots, like.pages, mesh) for mesh in others)]

    @cached_property
    def _probe_engine(self) -> Engine:
        return self.engine(PROBE_PROMPTS, self.config.pages_for(PROBE_PROMPTS))

    def scheduler(
        self, snapshot: Snapshot, *, engine: Engine, stream: int, sampler: Sampler, **options: Any
    ) -> Scheduler:
        generator = self.config.generator
        return Scheduler(
            engine,
            part_of(snapshot, engine.mesh),
            key=self.key(stream),
            sampler=sampler,
            group_size=generator.group_size,
            max_tokens=generator.max_tokens,
            kv_on_update=generator.kv_on_update,
            steps_at_once=generator.steps_at_once,
            remembers=not self.config.deterministic,
            **options,
        )

    def sampling(self, snapshot: Snapshot) -> Scheduler | Fleet:
        """Where training samples come from."""
        sampler = Sampler(temperature=self.config.generator.temperature)
        doing = partial(self.ledger.doing, GENERATOR)
        make = partial(self.scheduler, stream=SAMPLING, sampler=sampler, doing=doing)
        return side_by_side(make, self.engines, snapshot)

    def evaluation(self, snapshot: Snapshot, sampler: Sampler | None = None) -> Scheduler | Fleet:
        """The same engines at the evaluation's temperature, with randomness of its own."""
        sampler = sampler or Sampler(temperature=self.config.eval.temperature)
        make = partial(self.scheduler, stream=EVALUATION, sampler=sampler)
        return side_by_side(make, self.engines, snapshot)

    def probe(self) -> Probe | None:
        config = self.config
        if config.metrics.probe_every == 0 or config.data.heldout_percent == 0:
            return None
        sampler = Sampler(temperature=config.generator.temperature)
        return Probe(
            partial(self.scheduler, engine=self._probe_engine, stream=PROBING, sampler=sampler),
            self.heldout(PROBE_PROMPTS),
            row_tokens=config.batch.row_tokens,
            rows=config.batch.rows,
            head_tokens=config.trainer.head_tokens,
            long_row=config.trainer.long_row,
            every=config.metrics.probe_every,
        )

    def exam(self) -> Exam | None:
        """The evaluation beside training, in slots of its own."""
        e = self.config.eval
        if e.every == 0 or e.problems == 0:
            return None
        sampler = Sampler(temperature=e.temperature)
        slots = self.engine(e.slots, self.config.pages_for(e.slots))
        return Exam(
            partial(self.scheduler, engine=slots, stream=EVALUATION, sampler=sampler),
            self.heldout(e.problems),
            self.judge,
            samples=e.samples,
            every=e.every,
            stall_s=self.config.stall_s,
        )

    # The verifier.

    @cached_property
    def verifiers(self) -> VerifierPool:
        return VerifierPool(
            rule_of(self.config),
            self.config.verifier,
            tell=partial(self._told, "verifier"),
            most_s=self.config.stall_s,
        )

    @cached_property
    def sandbox(self) -> str:
        """What keeps programs in, in words; empty where no problem asks for a program."""
        problems = self.problems
        if isinstance(problems, Sums) or all(
            problems[i].tests is None for i in range(len(problems))
        ):
            return ""
        return describe_sandbox(self.config.verifier, is_strict=True)

    def judge(self, prompt: Prompt, completion: Completion) -> Future[Verdict]:
        text, tokens = self.text(completion), len(completion.tokens)
        # One draw of tests for the whole group: else luck would look like skill.
        draw = f"group {prompt.group}"
        verdict = self.verifiers.submit(prompt.problem, text, tokens, draw=draw)
        verdict.add_done_callback(self._format_faults.see_future)
        return verdict

    @cached_property
    def _format_faults(self) -> FormatFaults:
        return FormatFaults(partial(self._told, "alarm"))

    # The batch, the trainer and the weights.

    def assemble(self, groups: Sequence[Group], version: int) -> Batch:
        batch = self.config.batch
        return assemble(
            groups,
            groups_per_minibatch=self.config.groups_per_minibatch,
            row_tokens=batch.row_tokens,
            rows=batch.rows,
            advantage_rule=batch.advantage,
            share_rule=batch.shares,
            control=batch.control,
            ranks=self.config.mesh.trainer_fsdp,
            longest=self.config.generator.max_tokens,
            seed=self.config.seed,
            version=version,
        )

    def trainer(self, params: Params) -> Trainer:
        return trainer_of(self.config, self.arch, self.trainer_mesh, params)

    @cached_property
    def push(self) -> WeightPush:
        return WeightPush(
            self.arch, trainer=self.trainer_mesh, generator=self.generator_mesh, dtype=self.dtype
        )

    def published(self, params: Params, version: int) -> Snapshot:
        """Weights on the generator's devices, all of them there when this returns."""
        snapshot = self.push(params, version)
        jax.block_until_ready(snapshot.params)
        return snapshot

    def identity(self) -> dict[str, Any]:
        return identity_of(self.config, self.arch)

    def backlog(self, queue: Queue) -> Backlog:
        # The specification trains on what the newest weights sampled, and on nothing else.
        max_lag = self.config.batch.max_lag if self.config.mode == "async" else 0
        return Backlog(
            groups_per_batch=self.config.groups_per_batch,
            group_size=self.config.generator.group_size,
            max_lag=max_lag,
            stall_s=self.config.stall_s,
            queue=queue,
        )

    def rooms(
        self,
        trainer: Trainer,
        snapshot: Snapshot,
        frontier: Frontier,
        *,
        wants_frontier: Callable[[int], bool],
        on_step: Callable[[int, dict[str, float], list[Group], Frontier | None], None],
        waiting: Callable[[str, str | None], None],
    ) -> Rooms:
        """The rooms of a loop that goes on from `frontier` with the weights of `snapshot`."""
        generator = self.sampling(snapshot)
        if self.config.deterministic and frontier.in_flight.drafts and not frontier.in_flight.cache:
            raise UserError(
                "deterministic: this run was saved without the cache of its sequences in flight "
                '(checkpoint.kv = "refill"), so what follows would differ. Resume without it.'
            )

        def tell(done: int, total: int) -> None:
            self.ledger.beat(GENERATOR)
            self.tell(f"compiling the generator, {done}/{total}")

        with self.ledger.doing(GENERATOR, "start", "compiling the generator"):
            generator.warm_up(self.config.prefill_tokens, tell=tell)
        generator.restore(frontier.in_flight)
        for name, value in frontier.counters.items():
            self.tally.add(name, value)
        return Rooms(
            prompts=self.stream(frontier.queue.next),
            generator=generator,
            judge=self.judge,
            backlog=self.backlog(frontier.queue),
            assemble=self.assemble,
            train=partial(train_batch, trainer, tell=self._told, folder=self.folder),
            push=lambda version: self.published(trainer.params, version),
            mailbox=Mailbox(),
            beside=[one for one in (self.probe(), self.exam()) if one is not None],
            tally=self.tally,
            ledger=self.ledger,
            wants_frontier=wants_frontier,
            on_step=on_step,
            on_failure=self._told,
            waiting=waiting,
        )

    def close(self) -> None:
        if "verifiers" in self.__dict__:
            self.verifiers.close()
