"""Hugging Face `generate` over static batches: a script that needs torch and transformers only.

Prompts are of one length, so that nothing is padded. Every sequence of a batch is decoded until
the longest has its tokens; only those asked for are counted.
"""

import argparse
import json
import sys
from time import perf_counter

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from transformers import AutoModelForCausalLM  # pyright: ignore[reportMissingImports]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("requests")
    parser.add_argument("--dtype", choices=["bf16", "f32"])
    parser.add_argument("--at-once", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[asked.dtype]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(asked.model, dtype=dtype).to(device).eval()
    with np.load(asked.requests) as found:
        prompts, lengths = found["prompts"], found["lengths"]

    def play() -> None:
        for first in range(0, len(prompts), asked.at_once):
            batch = torch.from_numpy(prompts[first : first + asked.at_once]).long().to(device)
            longest = int(lengths[first : first + asked.at_once].max())
            out = model.generate(
                batch,
                attention_mask=torch.ones_like(batch),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                min_new_tokens=longest,
                max_new_tokens=longest,
                pad_token_id=0,
            )
            assert out.shape[1] == batch.shape[1] + longest, out.shape

    rates = []
    with torch.inference_mode():
        for repeat in range(asked.repeats + 1):
            began = perf_counter()
            play()
            if repeat:
                rates.append(float(lengths.sum()) / (perf_counter() - began))
    sys.stdout.write(json.dumps(rates) + "\n")


main()
