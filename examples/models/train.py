"""Trains the small Llama model of the examples on one text and writes it as a Hugging Face folder.

    python3 train.py tinyshakespeare.txt shakespeare

The first nine tenths of the text train the tokenizer and the model, the last tenth validates. A window is the bos token
and the text after it; while training it begins where a speech does (after an empty line), so that bos starts a speech
when the model is sampled. The loss that is printed last, and quoted, is that of the weights as stored: rounded to bf16.
Needs PyTorch and NumPy. The architecture is that of Touvron et al. 2023 (LLaMA), with HF's names and row order.
"""
import argparse
import json
import math
import pathlib
import struct
import time

import torch
from torch import nn
from torch.nn import functional

from bpe import Tokenizer

SPECIAL = "<|endoftext|>"  # both bos and eos, as in GPT-2
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "torch_dtype": "bfloat16",
}
CONTEXT = CONFIG["max_position_embeddings"]
BATCH = 8
PEAK_RATE, FINAL_RATE, WARM_UP = 3e-3, 1e-4, 100
DROPOUT = 0.1  # without it the validation loss rises again before step 1500


class RMSNorm(nn.Module):
    """Scales each vector to a root mean square of one, then by a learnt weight."""

    def __init__(self, config):
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(config["hidden_size"])), config["rms_norm_eps"]

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon)


def rotate(x, theta):
    """Rotary embedding of x [batch, head, position, head_dim]; element i pairs with i + head_dim / 2."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half) / half)
    angles = torch.arange(x.shape[-2])[:, None] * frequencies
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


class Attention(nn.Module):
    """Causal self-attention in which groups of query heads share one key and value head."""

    def __init__(self, config):
        super().__init__()
        hidden, size = config["hidden_size"], config["head_dim"]
        query, key_value = size * config["num_attention_heads"], size * config["num_key_value_heads"]
        self.size, self.sharing, self.theta = size, query // key_value, config["rope_theta"]
        self.q_proj = nn.Linear(hidden, query, bias=False)
        self.k_proj = nn.Linear(hidden, key_value, bias=False)
        self.v_proj = nn.Linear(hidden, key_value, bias=False)
        self.o_proj = nn.Linear(query, hidden, bias=False)

    def forward(self, x):
        q, k, v = (project(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for project in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, self.theta), rotate(k, self.theta)
        k, v = k.repeat_interleave(self.sharing, 1), v.repeat_interleave(self.sharing, 1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.size)
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).flatten(-2))


class GatedMLP(nn.Module):
    """SwiGLU: silu(gate) times up, projected down."""

    def __init__(self, config):
        super().__init__()
        hidden, intermediate = config["hidden_size"], config["intermediate_size"]
        self.gate_proj = nn.Linear(hidden, intermediate, bias=False)
        self.up_proj = nn.Linear(hidden, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x):
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention, then the MLP, each normalised before and added to the residual stream."""

    def __init__(self, config):
        super().__init__()
        self.input_layernorm = RMSNorm(config)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config)
        self.mlp = GatedMLP(config)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x):
        x = x + self.dropout(self.self_attn(self.input_layernorm(x)))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Llama(nn.Module):
    """Ids [batch, position] to logits [batch, position, vocabulary]; parameters named as HF's after "model."."""

    def __init__(self, config):
        super().__init__()
        self.bos = config["bos_token_id"]
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.norm = RMSNorm(config)
        if not config["tie_word_embeddings"]:
            self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)
        self.dropout = nn.Dropout(DROPOUT)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:  # what adds to the residual stream starts smaller, as in GPT-2
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * len(self.layers)) if residual else 0.02)

    def forward(self, ids):
        x = self.dropout(self.embed_tokens(ids))
        for layer in self.layers:
            x = layer(x)
        return functional.linear(self.norm(x), getattr(self, "lm_head", self.embed_tokens).weight)


def loss_of(model, windows):
    """Mean negative log-likelihood of windows [batch, length] of text after bos; for a model without bos, of all but their first tokens."""
    if model.bos is not None:
        windows = functional.pad(windows, (1, 0), value=model.bos)
    return functional.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def validation_loss(model, ids, context=CONTEXT):
    """The mean loss over consecutive windows of `context` tokens; the rest that does not fill one is left out."""
    model.eval()
    windows = ids[:len(ids) // context * context].view(-1, context)
    total = sum(loss_of(model, batch).item() * len(batch) for batch in windows.split(BATCH))
    model.train()
    return total / len(windows)


def speech_starts(tokenizer, ids):
    """Where in ids a speech begins: at the start, and after two newlines; only those that a whole window can follow."""
    newline = ids == tokenizer.encode("\n")[0]
    after_empty_line = (newline[:-1] & newline[1:]).nonzero().flatten() + 2
    starts = torch.cat([torch.zeros(1, dtype=torch.long), after_empty_line])
    return starts[starts + CONTEXT <= len(ids)]


def learning_rate(step, steps):
    """Linear warm-up, then a half cosine."""
    if step < WARM_UP:
        return PEAK_RATE * (step + 1) / WARM_UP
    progress = (step - WARM_UP) / (steps - WARM_UP)
    return FINAL_RATE + (PEAK_RATE - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress))


def train(model, ids, starts, validation_ids, steps):
    """AdamW; weight decay on the matrices only."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimiser = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
                                  betas=(0.9, 0.99))
    began = time.monotonic()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps)
        chosen = starts[torch.randint(len(starts), (BATCH,))]
        loss = loss_of(model, ids[chosen[:, None] + torch.arange(CONTEXT)])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % 200 == 0:
            print(f"step {step + 1}/{steps}  loss {loss.item():.3f}  "
                  f"validation {validation_loss(model, validation_ids):.4f}  {time.monotonic() - began:.0f} s",
                  flush=True)


def write_safetensors(path, tensors):
    """bf16 tensors by name, as safetensors: u64 length of a JSON header, the header, the data in the header's order."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in sorted(tensors.items()):
        end = offset + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in sorted(tensors.items()):
            file.write(tensor.contiguous().view(torch.int16).numpy().astype("<i2").tobytes())


def write_json(path, contents):
    """Readable JSON in UTF-8."""
    path.write_text(json.dumps(contents, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description="Train the small Llama model of the examples.")
    parser.add_argument("text", type=pathlib.Path, help="the text to train on, UTF-8")
    parser.add_argument("folder", type=pathlib.Path, help="where to write the model; made if it does not exist")
    parser.add_argument("--steps", type=int, default=1200, help="optimiser steps (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(default %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)

    text = arguments.text.read_text(encoding="utf-8")
    split = len(text) * 9 // 10
    tokenizer = Tokenizer.train(text[:split], CONFIG["vocab_size"], SPECIAL)
    ids, validation_ids = (torch.tensor(tokenizer.encode(part)) for part in (text[:split], text[split:]))
    model = Llama(CONFIG)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, "
          f"{len(ids)} tokens to train on, {len(validation_ids)} to validate", flush=True)
    train(model, ids, speech_starts(tokenizer, ids), validation_ids, arguments.steps)

    stored = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    model.load_state_dict(stored)
    loss = validation_loss(model, validation_ids)
    bytes_per_token = len(text[split:].encode()) / len(validation_ids)
    print(f"validation loss of the stored weights: {loss:.4f} a token, perplexity {math.exp(loss):.2f}, "
          f"{loss / math.log(2) / bytes_per_token:.3f} bits a byte", flush=True)

    arguments.folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(arguments.folder / "model.safetensors", {"model." + name: t for name, t in stored.items()})
    write_json(arguments.folder / "config.json", CONFIG)
    write_json(arguments.folder / "tokenizer.json", tokenizer.to_json())
    write_json(arguments.folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL, "eos_token": SPECIAL,
        "add_bos_token": True, "add_eos_token": False, "model_max_length": CONTEXT})


if __name__ == "__main__":
    main()
