"""Trains a LoRA adapter (Hu et al. 2022) of a small Llama on a text and writes it as PEFT does.

    python3 train_adapter.py shakespeare wikitext2-valid.txt shakespeare_wikitext2 --held-out held_out.txt

The first nine tenths of the text train the adapter, the last tenth (cut at a line's end) is only evaluated, and goes to --held-out. The
seven matrices of every layer are adapted; the model itself is frozen. The losses that are printed last, and quoted, are those of the model
alone and with the adapter as stored: rounded to bf16. The model is any plain Llama as a Hugging Face folder of floats. Needs PyTorch and
NumPy, and Hugging Face's `tokenizers` for tokenizers that are not bpe.py's.
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
from train import Llama, loss_of, validation_loss, write_json, write_safetensors

WARM_UP = 20
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class Adapted(nn.Module):
    """A frozen linear layer plus scale * B(A x)."""

    def __init__(self, linear, rank, scale):
        super().__init__()
        self.linear, self.scale = linear, scale
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features) / math.sqrt(linear.in_features))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        return self.linear(x) + self.scale * functional.linear(functional.linear(x, self.lora_A), self.lora_B)


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def read_safetensors(path):
    """The tensors of a safetensors file, as float32."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8:8 + length]), memoryview(data)[8 + length:]
    header.pop("__metadata__", None)
    tensors = {}
    for name, about in header.items():
        begin, end = about["data_offsets"]
        tensors[name] = torch.frombuffer(bytearray(body[begin:end]), dtype=DTYPES[about["dtype"]]).reshape(about["shape"]).float()
    return tensors


def read_model(folder):
    """The frozen model of a Hugging Face folder, without bos if its tokenizer puts none before a text."""
    config = read_json(folder / "config.json")
    if config["model_type"] != "llama" or config.get("rope_scaling"):
        raise ValueError(f"{folder}: not a plain Llama")
    if not read_json(folder / "tokenizer_config.json").get("add_bos_token"):
        config["bos_token_id"] = None
    model = Llama({"head_dim": config["hidden_size"] // config["num_attention_heads"], "tie_word_embeddings": False} | config)
    tensors = {name: t for path in folder.glob("*.safetensors") for name, t in read_safetensors(path).items()}
    model.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items()})
    return model.requires_grad_(False)


def read_encoder(path):
    """A function from text to ids, as a tokenizer.json says."""
    try:
        return Tokenizer.from_json(read_json(path)).encode
    except (ValueError, LookupError):
        import tokenizers
        return lambda text: tokenizers.Tokenizer.from_file(str(path)).encode(text, add_special_tokens=False).ids


def adapt(model, rank, scale):
    """Puts an adapter beside every matrix of every layer; returns them by the names of their modules."""
    adapted = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.startswith("layers."):
            parent, _, own = name.rpartition(".")
            adapted["model." + name] = Adapted(module, rank, scale)
            setattr(model.get_submodule(parent), own, adapted["model." + name])
    return adapted


def train(model, adapters, ids, plan):
    """AdamW on the adapters alone, on windows that begin anywhere; `plan` has the steps, batch, context and (peak) rate."""
    parameters = [p for a in adapters.values() for p in (a.lora_A, a.lora_B)]
    optimiser = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=0.0)
    began = time.monotonic()
    for step in range(plan.steps):
        rate = min((step + 1) / WARM_UP, 0.5 * (1 + math.cos(math.pi * step / plan.steps)))
        for group in optimiser.param_groups:
            group["lr"] = plan.rate * rate
        starts = torch.randint(len(ids) - plan.context, (plan.batch,))
        loss = loss_of(model, ids[starts[:, None] + torch.arange(plan.context)])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if (step + 1) % 20 == 0:
            print(f"step {step + 1}/{plan.steps}  loss {loss.item():.3f}  {time.monotonic() - began:.0f} s", flush=True)


def main():
    parser = argparse.ArgumentParser(description="Train a LoRA adapter of a small Llama.")
    parser.add_argument("model", type=pathlib.Path, help="the model's folder, as Hugging Face names its files")
    parser.add_argument("text", type=pathlib.Path, help="the text to train on, UTF-8")
    parser.add_argument("folder", type=pathlib.Path, help="where to write the adapter; made if it does not exist")
    parser.add_argument("--held-out", type=pathlib.Path, help="where to write the part of the text that was not trained on")
    parser.add_argument("--rank", type=int, default=8, help="(default %(default)s)")
    parser.add_argument("--alpha", type=int, default=16, help="(default %(default)s)")
    parser.add_argument("--steps", type=int, default=600, help="optimiser steps (default %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="windows a step (default %(default)s)")
    parser.add_argument("--context", type=int, default=256, help="tokens a window (default %(default)s)")
    parser.add_argument("--rate", type=float, default=2e-3, help="the highest learning rate (default %(default)s)")
    parser.add_argument("--evaluate", type=int, help="held-out tokens to evaluate on (default: all)")
    parser.add_argument("--seed", type=int, default=1, help="(default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(default %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)

    text = arguments.text.read_text(encoding="utf-8")
    split = text.index("\n", len(text) * 9 // 10) + 1
    if arguments.held_out:
        arguments.held_out.write_text(text[split:], encoding="utf-8")
    encode = read_encoder(arguments.model / "tokenizer.json")
    ids, held_out_ids = (torch.tensor(encode(part)) for part in (text[:split], text[split:]))
    held_out_ids = held_out_ids[:arguments.evaluate]

    model = read_model(arguments.model)
    before = validation_loss(model, held_out_ids, arguments.context)
    model.eval()
    adapters = adapt(model, arguments.rank, arguments.alpha / arguments.rank)
    print(f"{sum(p.numel() for p in model.parameters() if p.requires_grad)} parameters, {len(ids)} tokens to train on, "
          f"{len(held_out_ids)} held out", flush=True)
    train(model, adapters, ids, arguments)

    stored = {}
    for name, a in adapters.items():
        for which in ("lora_A", "lora_B"):
            rounded = getattr(a, which).detach().bfloat16()
            getattr(a, which).data = rounded.float()
            stored[f"base_model.model.{name}.{which}.weight"] = rounded
    after = validation_loss(model, held_out_ids, arguments.context)
    print(f"held-out loss: {before:.4f} a token without the adapter (perplexity {math.exp(before):.2f}), "
          f"{after:.4f} with it as stored ({math.exp(after):.2f})", flush=True)

    arguments.folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(arguments.folder / "adapter_model.safetensors", stored)
    write_json(arguments.folder / "adapter_config.json", {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": arguments.model.name, "r": arguments.rank,
        "lora_alpha": arguments.alpha, "lora_dropout": 0.0, "bias": "none", "use_rslora": False, "use_dora": False, "fan_in_fan_out": False,
        "target_modules": sorted({name.rpartition(".")[2] for name in adapters}), "modules_to_save": None, "rank_pattern": {},
        "alpha_pattern": {}, "inference_mode": True})


if __name__ == "__main__":
    main()
