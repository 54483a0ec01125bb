"""Writes smollm2.npz: what transformers computes, in float32, from SmolLM2's GGUF weights.

    python make_smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf smollm2.npz

Needs torch, transformers, gguf and jinja2. It imports nothing of ours, and turns llama.cpp's
rotary order back by a permutation written out row by row, so that it can disagree with us.

    prompt_0 .. prompt_19    ids of a chat prompt, by the file's own template
    greedy_0 .. greedy_19    the 32 likeliest next ids, one after the other; goes on after a stop
    margin_0 .. margin_19    how far each was ahead of the second, in logits
    question, answer         the same as text
    logits_ids               ids of prompt_0 + greedy_0
    logits_positions [3], logits_vocab [64], logits_logprobs [3, 64]
                             log p(vocab id | logits_ids[: position + 1])
    passage_ids [48], passage_logprobs [47]
                             log p(passage_ids[t + 1] | passage_ids[: t + 1])
"""

import sys

import jinja2
import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

NEW_TOKENS = 32
CONTROL = 3
QUESTIONS = (
    "What is the capital of France?",
    "What is a prime number?",
    "What is 12 + 7? Think step by step.",
    "Write a short poem about rain.",
    "Explain in simple words why the sky is blue.",
    "Name three planets of the solar system.",
    "Translate 'good morning' into French.",
    "How many days are there in a week?",
    "What is the boiling point of water in degrees Celsius?",
    "Give me a recipe for pancakes.",
    "Who wrote Romeo and Juliet?",
    "List the first five even numbers.",
    "What do bees make?",
    "Tell me a fact about elephants.",
    "Complete: the opposite of hot is",
    "Write a Python function that adds two numbers.",
    "Is 17 a prime number?",
    "What colour do you get when you mix blue and yellow?",
    "Summarise in one sentence: the cat sat on the mat and fell asleep in the sun.",
    "Quelle est la capitale de l'Italie ?",
)
PASSAGE = (
    "A train leaves the station at 9:15 and travels 120 kilometres in 2 hours. Its average speed "
    "is therefore 60 kilometres per hour, because speed is distance divided by time. If it kept "
    "this speed for 5 hours, it would travel 300 kilometres."
)


def read_value(reader: GGUFReader, key: str):
    return reader.fields[key].contents()


def read_tokenizer(reader: GGUFReader) -> Tokenizer:
    tokens = read_value(reader, "tokenizer.ggml.tokens")
    kinds = read_value(reader, "tokenizer.ggml.token_type")
    merges = [tuple(m.split(" ")) for m in read_value(reader, "tokenizer.ggml.merges")]
    bpe = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in special])
    return tokenizer


def half_order(head_dim: int) -> list[int]:
    """Row of the file that holds each row of a head: pairs (0, 1), (2, 3) become two halves."""
    return list(range(0, head_dim, 2)) + list(range(1, head_dim, 2))


def read_model(reader: GGUFReader) -> LlamaForCausalLM:
    def number(name: str):
        return read_value(reader, f"llama.{name}")

    config = LlamaConfig(
        vocab_size=number("vocab_size"),
        hidden_size=number("embedding_length"),
        intermediate_size=number("feed_forward_length"),
        num_hidden_layers=number("block_count"),
        num_attention_heads=number("attention.head_count"),
        num_key_value_heads=number("attention.head_count_kv"),
        max_position_embeddings=number("context_length"),
        rms_norm_eps=number("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": number("rope.freq_base")},
        tie_word_embeddings=True,
        attn_implementation="eager",
        dtype="float32",
    )
    head_dim = config.hidden_size // config.num_attention_heads
    layer_names = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    state = {}
    for tensor in reader.tensors:
        array = np.array(dequantize(tensor.data, tensor.tensor_type), np.float32)
        name = tensor.name.removesuffix(".weight")
        if name.startswith("blk."):
            _, layer, kind = name.split(".")
            if kind in ("attn_q", "attn_k"):
                heads = len(array) // head_dim
                rows = [h * head_dim + r for h in range(heads) for r in half_order(head_dim)]
                array = array[rows]
            state[f"model.layers.{layer}.{layer_names[kind]}.weight"] = array
        else:
            top = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}
            state[top[name]] = array
    model = LlamaForCausalLM(config)
    loaded = model.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=False)
    assert loaded.missing_keys == ["lm_head.weight"] and not loaded.unexpected_keys, loaded
    model.tie_weights()
    return model.eval()


@torch.no_grad()
def logits_of(model: LlamaForCausalLM, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids]), use_cache=False).logits[0]


def greedy(model: LlamaForCausalLM, prompt: list[int]) -> tuple[list[int], list[float]]:
    ids, margins = list(prompt), []
    for _ in range(NEW_TOKENS):
        best = torch.topk(logits_of(model, ids)[-1], 2)
        ids.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
    return ids[len(prompt) :], margins


def main(gguf_path: str, out_path: str) -> None:
    reader = GGUFReader(gguf_path)
    tokenizer, model = read_tokenizer(reader), read_model(reader)
    template = jinja2.Template(read_value(reader, "tokenizer.chat_template"))
    out, answers = {}, []
    for i, question in enumerate(QUESTIONS):
        messages = [{"role": "user", "content": question}]
        text = template.render(messages=messages, add_generation_prompt=True)
        prompt = tokenizer.encode(text, add_special_tokens=False).ids
        answer, margins = greedy(model, prompt)
        answers.append(tokenizer.decode(answer, skip_special_tokens=False))
        out[f"prompt_{i}"] = np.array(prompt, np.int32)
        out[f"greedy_{i}"] = np.array(answer, np.int32)
        out[f"margin_{i}"] = np.array(margins, np.float32)
        print(
            f"{question!r} ({len(prompt)} ids) -> {answers[-1]!r}, least margin {min(margins):.4f}"
        )

    ids = [*out["prompt_0"].tolist(), *out["greedy_0"].tolist()]
    positions = [0, len(out["prompt_0"]) - 1, len(ids) - 1]
    logprobs = torch.log_softmax(logits_of(model, ids), -1)[positions]
    likeliest = torch.topk(logprobs, 12).indices.flatten().tolist()
    others = np.random.default_rng(0).permutation(logprobs.shape[-1]).tolist()
    vocab = list(dict.fromkeys(likeliest + others))[:64]

    passage = tokenizer.encode(PASSAGE, add_special_tokens=False).ids[:48]
    assert len(passage) == 48, len(passage)
    passage_logprobs = torch.log_softmax(logits_of(model, passage), -1)[:-1]
    chosen = passage_logprobs.gather(-1, torch.tensor(passage[1:])[:, None])[:, 0]
    np.savez_compressed(
        out_path,
        question=np.array(QUESTIONS),
        answer=np.array(answers),
        logits_ids=np.array(ids, np.int32),
        logits_positions=np.array(positions, np.int32),
        logits_vocab=np.array(vocab, np.int32),
        logits_logprobs=logprobs[:, vocab].numpy(),
        passage_ids=np.array(passage, np.int32),
        passage_logprobs=chosen.numpy(),
        **out,
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
