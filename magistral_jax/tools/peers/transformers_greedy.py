"""Greedy answers of Hugging Face `generate`: a script that needs torch and transformers only.

Prompts come padded with -1 behind their end; answers go out without their padding. The prompts of
a batch are padded in front, as `generate` wants them.
"""

import argparse
import json
import sys

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from transformers import AutoModelForCausalLM  # pyright: ignore[reportMissingImports]

AT_ONCE = 16


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("requests")
    parser.add_argument("--new-tokens", type=int)
    parser.add_argument("--stops")
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    stops = json.loads(asked.stops)
    model = AutoModelForCausalLM.from_pretrained(asked.model, dtype=torch.float32).eval()
    with np.load(asked.requests) as found:
        prompts = [row[row >= 0] for row in found["prompts"]]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    with torch.inference_mode():
        for first in range(0, len(prompts), AT_ONCE):
            places = by_length[first : first + AT_ONCE]
            longest = max(len(prompts[i]) for i in places)
            ids = torch.zeros((len(places), longest), dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(places):
                ids[row, longest - len(prompts[i]) :] = torch.from_numpy(
                    prompts[i].astype(np.int64)
                )
                mask[row, longest - len(prompts[i]) :] = 1
            out = model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                repetition_penalty=1.0,
                max_new_tokens=asked.new_tokens,
                eos_token_id=stops,
                pad_token_id=stops[0],
            )
            for row, i in enumerate(places):
                new = out[row, longest:].tolist()
                end = next((place for place, token in enumerate(new) if token in stops), None)
                answers[i] = new[:end]
    sys.stdout.write(json.dumps(answers) + "\n")


main()
