"""What may stand on the command line: every command with its arguments and options."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from magistral_jax.config import DType


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="magistral-jax",
        description="Magistral's reinforcement learning in JAX.",
        epilog="Every field of the config can be overridden: --trainer.learning_rate 1e-4. "
        "Exit codes: 0 done, 1 failed, 2 your mistake, 70 stalled, 75 told to stop and resumable, "
        "130 interrupted by a second Ctrl-C.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        help_text = text.replace("%", "%%")  # argparse formats it, and not the description
        sub = commands.add_parser(name, help=help_text, description=text, allow_abbrev=False)
        sub.set_defaults(command=name)
        asked = {
            "export": "RUN",
            "verify": "FILE.jsonl",
            "harvest": "RUN",
            "generate": "PROMPTS",
            "bench": "CONFIG.toml|verify|decode|train",
        }
        asked = asked.get(name, "CONFIG.toml")
        sub.add_argument("config", metavar=asked, type=Path)
        return sub

    train = command("train", "Train a policy; results go to the run folder.")
    train.add_argument("--run-dir", type=Path, help="run folder (default: runs/<name>)")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    train.add_argument("--dry-run", action="store_true", help="check and print the config, only")
    sft = command("sft", "Learn from conversations before RL: the cold start.")
    sft.add_argument("--run-dir", type=Path, help="run folder (default: runs/<name>)")
    sft.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    for sub in (
        command("sample", "Answer one question, or held-out problems."),
        command("eval", "Accuracy on held-out problems or benchmarks, with a 95% interval."),
    ):
        sub.add_argument("--run-dir", type=Path, help="use the last checkpoint of this run")
        sub.add_argument("--json", type=Path, help="also write the table to this file")
    sample = commands.choices["sample"]
    sample.add_argument("--question", help="ask this instead of held-out problems")
    sample.add_argument(
        "--count", type=int, default=1, help="held-out problems, or answers to --question"
    )
    sample.add_argument("--chat", action="store_true", help="answer the lines of stdin, in turn")
    evaluation = commands.choices["eval"]
    evaluation.add_argument("--top-k", type=int, default=0, help="sample from the k likeliest")
    evaluation.add_argument("--top-p", type=float, default=None, help="sample from this mass")
    on = evaluation.add_argument_group("benchmarks, in place of held-out problems")
    on.add_argument("--on", action="append", default=[], metavar="NAME=PATH", help="aime, gsm8k...")
    on.add_argument("--out", type=Path, help="folder of the answers (default: runs/<name>-eval)")
    on.add_argument("--limit", type=int, default=0, help="the first problems only")
    on.add_argument("--samples", type=int, default=0, help="answers to each (default: the paper's)")
    on.add_argument("--endpoint", default="", help="address of an OpenAI-compatible server")
    on.add_argument("--endpoint-model", default="", help="the model's name there")
    on.add_argument("--at-once", type=int, default=8, help="requests at once, there")
    on.add_argument("--peer-python", default="", help="transformers beside us, greedily")
    export = command("export", "A run's newest weights as a Hugging Face folder.")
    export.add_argument("--out", type=Path, required=True, help="the folder to write")
    export.add_argument("--dtype", choices=get_args(DType), help="default: the run's model.dtype")
    export.add_argument("--json", type=Path, help="also write the table to this file")
    verify = command("verify", "Judge the rows of a file, or of stdin (-).")
    verify.epilog = "Rows and verdicts: docs/VERIFIERS.md. Fields of the config can be set here: "
    verify.epilog += "--verifier.sandbox uid, --generator.max_tokens 16000 (then length costs)."
    verify.add_argument(
        "--config", dest="rules", metavar="CONFIG.toml", type=Path, help="take its limits and rule"
    )
    verify.add_argument("--workers", type=int, default=None, help="processes (default: all cores)")
    add_traces(command)
    add_bench(command)
    chaos = command("chaos", "Kill a run again and again; what it lost.")
    chaos.add_argument("--kills", type=int, default=50, help="SIGKILLs in all (default: 50)")
    chaos.add_argument("--run-dir", type=Path, help="folder of its runs (default: runs/chaos)")
    chaos.add_argument("--chaos-seed", type=int, default=0, help="draws the moments")
    chaos.add_argument("--json", type=Path, help="also write the table to this file")
    return parser


def add_traces(command: Callable[..., argparse.ArgumentParser]) -> None:
    """`harvest RUN` and `generate PROMPTS`: `traces` in front of them says whose they are."""
    harvest = command("harvest", "traces: a run's right answers, to learn from.")
    harvest.add_argument("--out", type=Path, required=True, help="the file to write (JSONL)")
    harvest.add_argument("--skip", type=float, default=0.25, help="share of the steps left out")
    harvest.add_argument("--cap", type=int, default=4, help="answers of one problem at most")
    harvest.add_argument("--low-rate", type=float, default=0.5, help="pass rate below which...")
    harvest.add_argument("--upsample", type=int, default=2, help="...each answer counts so often")
    generate = command("generate", "traces: let a teacher answer problems.")
    generate.add_argument("--config", dest="rules", type=Path, help="a CONFIG.toml")
    generate.add_argument("--out", type=Path, required=True, help="the file to write (JSONL)")
    generate.add_argument("--model", default="", help="the teacher: what model.source may be")
    generate.add_argument("--run-dir", type=Path, help="or the policy of this run")
    generate.add_argument("--n", type=int, default=1, help="answers to each problem")
    generate.add_argument("--keep-correct", action="store_true", help="write the right ones only")
    generate.add_argument("--rates", type=Path, help="also write problems with pass rates here")
    generate.add_argument("--endpoint", default="", help="or an OpenAI-compatible server's address")
    generate.add_argument("--endpoint-model", default="", help="the model's name there")
    generate.add_argument("--at-once", type=int, default=8, help="requests at once, there")
    for sub in (harvest, generate):
        sub.add_argument("--json", type=Path, help="also write the table to this file")


def add_bench(command: Callable[..., argparse.ArgumentParser]) -> None:
    """`bench CONFIG.toml`, `bench verify`, `decode` and `train`, with the options of all."""
    bench = command("bench", "Speeds on this machine: of a config, verdicts, sampler, trainer.")
    bench.set_defaults(rules=None)
    bench.add_argument("--workers", type=int, help="verify: processes (default: all cores)")
    bench.add_argument("--json", type=Path, help="also write the table to this file")
    both = bench.add_argument_group("bench decode and bench train")
    both.add_argument("--model", metavar="SOURCE", help="what model.source may be")
    both.add_argument("--dtype", type=words, default=("bf16", "f32"), metavar="bf16,f32")
    both.add_argument("--threads", type=int, default=0, help="processors (default: all)")
    both.add_argument("--repeats", type=int, default=3, help="measured, after one that is not")
    both.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="transformers|llama.cpp|torch",
        help="beside ours; torch for bench train",
    )
    both.add_argument("--peer-python", default="", help="the interpreter that has the peers")
    train = bench.add_argument_group("bench train")
    train.add_argument("--rows", default="256x16,1024x8", help="tokens in a row x rows, of a step")
    train.add_argument("--microbatch-tokens", type=int, default=2048, help="of which at once")
    train.add_argument("--remat", action="store_true", help="recompute activations")
    decode = bench.add_argument_group("bench decode")
    decode.add_argument("--concurrency", type=counts, default=(1, 8, 32, 64), metavar="1,8,32,64")
    decode.add_argument("--prompt-tokens", type=int, default=96)
    decode.add_argument("--new-tokens", type=int, default=128)
    decode.add_argument("--lengths", choices=["equal", "skewed"], default="equal")


def words(text: str) -> tuple[str, ...]:
    """The words of a list with commas."""
    return tuple(text.split(","))


def counts(text: str) -> tuple[int, ...]:
    """The numbers above 0 of a list with commas."""
    found = tuple(int(word) for word in words(text))
    if min(found) < 1:
        raise ValueError(text)
    return found
