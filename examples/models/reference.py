"""Expected values for tests of an engine, from a folder that train.py wrote.

    python3 reference.py shakespeare --tokens 16 --last > shakespeare/expected.json

Prints one JSON object: "tokens", bos and the text it stands for; "logits" in float32, of every position or with --last
of the last one; "tokenization", sample texts and their ids without bos. The forward pass shares nothing with the
training module: it reads the stored bf16 weights, computes in float64, and goes one token at a time with a cache of
keys and values, as an engine does. Needs NumPy only.
"""
import argparse
import json
import pathlib
import struct
import sys

import numpy

from bpe import Tokenizer

PASSAGE = ("ROMEO:\nBut, soft! what light through yonder window breaks?\nIt is the east, and Juliet is the sun.\n"
           "Arise, fair sun, and kill the envious moon,\nWho is already sick and pale with grief,\n"
           "That thou her maid art far more fair than she:\n")
SAMPLES = [
    "First Citizen:\nWe are accounted poor citizens, the patricians good.",
    "I'll we've they'd  don't WE'LL 'tis",
    "  two spaces,\ttabs\t\tand \n\n\n newlines \r\n at the end   ",
    "naïve façade — “Œuvre” 東京 Ünïcödé ½ ٣ e\u0301 😀\u00a0\u2003end",
    "1599: act 3, scene 2; £12.50 = 2^3 + 9/2 ~ #1",
]


def read_bf16_safetensors(path):
    """The tensors of a file of bf16 tensors, in float64, by name."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        bits = numpy.frombuffer(data[8 + length + begin:8 + length + end], "<u2").astype(numpy.uint32) << 16
        tensors[name] = bits.view(numpy.float32).astype(numpy.float64).reshape(entry["shape"])
    return tensors


class Model:
    """One sequence: `step` takes a token and returns the logits [vocabulary] of the next."""

    def __init__(self, config, tensors):
        self.config, self.tensors = config, tensors
        self.cache = [([], []) for _ in range(config["num_hidden_layers"])]

    def norm(self, x, name):
        """RMSNorm by the weight of that name."""
        return self.tensors[name] * x / numpy.sqrt(numpy.mean(x * x) + self.config["rms_norm_eps"])

    def rotate(self, x, position):
        """x [heads, head_dim] as complex numbers, element i with i + head_dim / 2, each turned by its angle."""
        half = x.shape[-1] // 2
        angles = position / self.config["rope_theta"] ** (numpy.arange(half) / half)
        turned = (x[:, :half] + 1j * x[:, half:]) * numpy.exp(1j * angles)
        return numpy.concatenate([turned.real, turned.imag], axis=-1)

    def attention(self, x, layer, cache):
        """Attention of x [hidden], the newest token, to itself and what `cache` holds; appends its key and value."""
        def project(which):
            weight = self.tensors[f"model.layers.{layer}.self_attn.{which}_proj.weight"]
            return (weight @ x).reshape(-1, self.config["head_dim"])
        keys, values = cache
        position = len(keys)
        keys.append(self.rotate(project("k"), position))
        values.append(project("v"))
        sharing = self.config["num_attention_heads"] // self.config["num_key_value_heads"]
        outputs = []
        for head, query in enumerate(self.rotate(project("q"), position)):
            scores = numpy.array([query @ key[head // sharing] for key in keys]) / numpy.sqrt(len(query))
            weights = numpy.exp(scores - scores.max())
            weights /= weights.sum()
            outputs.append(sum(weight * value[head // sharing] for weight, value in zip(weights, values)))
        return self.tensors[f"model.layers.{layer}.self_attn.o_proj.weight"] @ numpy.concatenate(outputs)

    def mlp(self, x, layer):
        """SwiGLU of x [hidden]."""
        gate, up, down = (self.tensors[f"model.layers.{layer}.mlp.{which}_proj.weight"]
                          for which in ("gate", "up", "down"))
        gated = gate @ x
        return down @ (gated / (1 + numpy.exp(-gated)) * (up @ x))

    def step(self, token):
        """The logits after one more token of the sequence."""
        embedding = self.tensors["model.embed_tokens.weight"]
        x = embedding[token]
        for layer, cache in enumerate(self.cache):
            x = x + self.attention(self.norm(x, f"model.layers.{layer}.input_layernorm.weight"), layer, cache)
            x = x + self.mlp(self.norm(x, f"model.layers.{layer}.post_attention_layernorm.weight"), layer)
        return embedding @ self.norm(x, "model.norm.weight")


def shortest(values):
    """float64 values rounded to float32, as the shortest decimals that read back as the same float32."""
    return [float(str(value)) for value in values.astype(numpy.float32)]


def main():
    parser = argparse.ArgumentParser(description="Print the expected logits and token ids of a model as JSON.")
    parser.add_argument("folder", type=pathlib.Path, help="a folder that train.py wrote")
    parser.add_argument("--tokens", type=int, default=64, help="length of the sequence (default %(default)s)")
    parser.add_argument("--last", action="store_true", help="only the logits after the last token")
    arguments = parser.parse_args()

    config = json.loads((arguments.folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_json(json.loads((arguments.folder / "tokenizer.json").read_text(encoding="utf-8")))
    model = Model(config, read_bf16_safetensors(arguments.folder / "model.safetensors"))
    tokens = [config["bos_token_id"], *tokenizer.encode(PASSAGE)][:arguments.tokens]
    logits = [shortest(model.step(token)) for token in tokens]
    json.dump({"tokens": tokens, "logits": logits[-1] if arguments.last else logits,
               "tokenization": [{"text": text, "ids": tokenizer.encode(text)} for text in SAMPLES]}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
