"""The same training step in PyTorch: a script that needs torch and transformers only.

Float32 weights and AdamW; with bf16 the products run under autocast, as ours do. The loss is ours:
min(ratio A, clip(ratio) A) over every token, the gradients of microbatches added up, their norm
clipped at 1.
"""

import argparse
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from transformers import AutoModelForCausalLM  # pyright: ignore[reportMissingImports]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("rows")
    parser.add_argument("--dtype", choices=["bf16", "f32"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(asked.model, dtype=torch.float32).to(device)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.95), fused=True)
    with np.load(asked.rows) as found:
        tokens = torch.from_numpy(found["tokens"]).long().to(device)
        old = torch.from_numpy(found["logprobs"]).to(device)
        advantages = torch.from_numpy(found["advantages"]).to(device)
        size = int(found["microbatch_rows"])
    count = old.numel()

    def products():
        if asked.dtype == "f32":
            return nullcontext()
        return torch.autocast(device, dtype=torch.bfloat16)

    def step() -> None:
        for at in range(0, len(tokens), size):
            rows = tokens[at : at + size]
            with products():
                logits = model(rows[:, :-1]).logits
            logprobs = torch.log_softmax(logits.float(), dim=-1)
            chosen = logprobs.gather(-1, rows[:, 1:, None])[..., 0]
            ratio = torch.exp(chosen - old[at : at + size])
            A = advantages[at : at + size]
            objective = torch.minimum(ratio * A, ratio.clamp(0.8, 1.28) * A)
            (-objective.sum() / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()

    seconds = []
    for repeat in range(asked.repeats + 1):
        began = perf_counter()
        step()
        if repeat:
            seconds.append(perf_counter() - began)
    # Not getrusage: a process begins with the peak of the one that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(1024.0 * float(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    if device == "cuda":
        peak = float(torch.cuda.max_memory_allocated())
    sys.stdout.write(json.dumps([seconds, peak]) + "\n")


main()
