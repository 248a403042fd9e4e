"""llama.cpp: it loads every GGUF type that lowbit writes, whole and in parts, and has lowbit's perplexity; what it quantises itself, lowbit reads,
and quantises to the same bytes, mixes included.

Perplexities agree to one part in 10^5 for float32; to 10^-3 for the 16-bit floats, for which llama.cpp rounds the activations too; for the
others both round activations to 8 bits, in blocks of different sizes, so they need only agree to 1 % (3 % at 2 bits and less).
"""
import json

from common import Folder, arguments, float_model, lowbit, tool
from llamacpp import Model, numpy, quantise, version

gguf = tool("gguf")
executable, model = arguments()
TEXT = ("First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n\nFirst Citizen:\nYou are all resolved rather to die than to "
        "famish?\n\nAll:\nResolved. resolved.\n\nFirst Citizen:\nFirst, you know Caius Marcius is chief enemy to the people.\n")
COARSE = ("q2_k", "tq1_0", "tq2_0", "q1_0", "q2_0")
TYPES = ("f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "mxfp4", "nvfp4") + COARSE[1:]
# llama_ftype of what llama.cpp quantises to: one type for every matrix, and mixes.
PURE = {"q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k": 11, "q4_k": 14, "q5_k": 16, "q6_k": 18, "iq4_nl": 25, "iq4_xs": 30,
        "tq1_0": 36, "tq2_0": 37, "q1_0": 40}  # (gguf 0.19.0 does not know q2_0)
MIXES = {"Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17}


def perplexity(path):
    """Of TEXT, after the token that begins texts."""
    with Model(path) as m:
        ids = m.ids(TEXT)
        return float(numpy.exp(-m.log_probabilities(ids)[range(len(ids)), ids].mean())), len(ids)


def compare(path, tolerance):
    """That llama.cpp and lowbit run the same model from a file."""
    theirs, predicted = perplexity(path)
    ours = json.loads(lowbit(executable, "evaluate", path, "--text", path.parent / "text.txt", "--json"))
    if ours["tokens"] != predicted:
        raise SystemExit(f"{path.name}: lowbit predicts {ours['tokens']} tokens, llama.cpp {predicted}")
    if not abs(theirs - ours["perplexity"]) <= tolerance * theirs:
        raise SystemExit(f"{path.name}: llama.cpp has perplexity {theirs}, lowbit {ours['perplexity']}")
    print(f"{path.name}: {theirs:.4f} by llama.cpp, {ours['perplexity']:.4f} by lowbit")


def tensors(path):
    return {t.name: (t.tensor_type.name, bytes(t.data)) for t in gguf.GGUFReader(str(path)).tensors}


with Folder() as folder:
    (folder / "text.txt").write_text(TEXT)
    source = float_model(executable, model, folder).with_suffix(".gguf")
    for form in TYPES:
        out = folder / f"{form}.gguf"
        if form != "f32":
            lowbit(executable, "quantise", source, out, "--format", form)
        compare(out, 1e-5 if form == "f32" else 1e-3 if form in ("f16", "bf16") else 0.03 if form in COARSE else 0.01)
    lowbit(executable, "quantise", source, folder / "parts.gguf", "--format", "q5_k", "--split", "200K")
    compare(next(folder.glob("parts-00001-of-*.gguf")), 0.01)

    for mix, number in (*PURE.items(), *MIXES.items()):
        theirs, ours = folder / f"theirs-{mix}.gguf", folder / f"ours-{mix}.gguf"
        quantise(source, theirs, number, mix in PURE)
        lowbit(executable, "quantise", source, ours, "--format", mix)
        expected, found = tensors(theirs), tensors(ours)
        if expected.keys() != found.keys():
            raise SystemExit(f"{mix}: other tensors than llama.cpp's")
        for name, (kind, data) in expected.items():
            if found[name] != (kind, data):
                raise SystemExit(f"{mix}: {name} is {found[name][0]} where llama.cpp has {kind}" if found[name][0] != kind else f"{mix}: {name} ({kind}) has other bytes")
        compare(theirs, 0.03 if mix.lower() in COARSE else 0.01)
print(f"{version()}: {len(TYPES)} types and parts; {len(PURE)} types and {len(MIXES)} mixes byte for byte")
