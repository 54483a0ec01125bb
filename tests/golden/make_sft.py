"""Writes sft.npz: the loss and gradients that transformers computes on masked conversations.

    python make_sft.py families/llama sft.npz

Needs torch and transformers, and imports nothing of ours. The loss is the mean negative
log-likelihood of the learned tokens of all conversations together, each conversation by itself in
a forward pass (no packing, no padding); gradients stand under the names of the checkpoint.
"""

import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM

PROMPTS, ANSWERS = (3, 7, 2, 5), (9, 4, 11, 6)


def main(source: str, target: str) -> None:
    rng = np.random.default_rng(0)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    total = sum(ANSWERS) - 2  # of the third, two tokens in the middle are not learned
    out: dict[str, np.ndarray] = {}
    loss = torch.zeros(())
    for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        ids = rng.integers(3, model.config.vocab_size, prompt + answer)
        learned = np.arange(prompt + answer) >= prompt
        if i == 2:
            learned[prompt + 4 : prompt + 6] = False
        labels = np.where(learned, ids, -100)
        found = model(torch.tensor(ids[None]), labels=torch.tensor(labels[None]))
        # transformers means over the learned tokens of what it is given.
        loss = loss + found.loss * int(learned.sum()) / total
        out |= {f"ids_{i}": ids.astype(np.int32), f"learned_{i}": learned}
    loss.backward()
    out |= {"loss": loss.detach().numpy(), "prompts": np.array(PROMPTS)}
    out |= {f"grad {name}": p.grad.numpy() for name, p in model.named_parameters()}
    np.savez_compressed(target, **out)


if __name__ == "__main__":
    main(*sys.argv[1:])
