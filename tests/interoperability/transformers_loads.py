"""transformers: loads lowbit's plain, bitsandbytes and compressed-tensors folders on the CPU; logits agree with lowbit's perplexity."""
import json
import math
import pathlib

from common import Folder, arguments, float_model, lowbit, tool

torch = tool("torch")
transformers = tool("transformers")
executable, model = arguments()
TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n\nFirst Citizen:\nYou are all resolved rather to die than to famish?\n"

# What transformers itself cannot run there (docs/interoperability.md says why).
NOT_ON_A_CPU = {"compressed-tensors-u4_g64", "compressed-tensors-int-s8_g64", "compressed-tensors-nvfp4", "compressed-tensors-mxfp4"}


def perplexity(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    net = transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    ids = torch.tensor([tokenizer(TEXT, add_special_tokens=False)["input_ids"]])
    bos = json.loads((pathlib.Path(folder) / "config.json").read_text())["bos_token_id"]
    ids = torch.cat([torch.tensor([[bos]]), ids], 1)
    with torch.no_grad():
        logits = net(ids).logits[0, :-1].double().log_softmax(-1)
    return math.exp(-logits.gather(1, ids[0, 1:, None]).mean().item())


with Folder() as folder:
    source = float_model(executable, model, folder)
    (folder / "text.txt").write_text(TEXT)
    lowbit(executable, "quantise", source, folder / "mixed.gguf", "--format", "Q4_K_M")  # matrices of four and of six bits
    ran, unread = [], []
    for given, layout, form in ((source, "hf", None), (source, "bitsandbytes", "nf4"), (source, "bitsandbytes", "fp4"), (source, "bitsandbytes-nested", "nf4"),
                                (source, "bitsandbytes-int8", None), (source, "compressed-tensors", "s4_g128"), (source, "compressed-tensors", "u4_g64"),
                                (source, "compressed-tensors", "s8_g64"), (folder / "mixed.gguf", "compressed-tensors", None),
                                (source, "compressed-tensors-int", "s8_g64"), (source, "compressed-tensors-nvfp4", None), (source, "compressed-tensors-mxfp4", None)):
        out = folder / "-".join(filter(None, (pathlib.Path(given).stem if given != source else None, layout, form)))
        lowbit(executable, "convert", given, out, "--to", layout, *(["--format", form] if form else []))
        try:
            theirs = perplexity(out)
        except (ImportError, RuntimeError, ValueError, NotImplementedError) as error:
            if out.name not in NOT_ON_A_CPU:
                raise
            unread.append(f"{out.name} ({type(error).__name__}: {str(error).splitlines()[0]})")
            continue
        ours = json.loads(lowbit(executable, "evaluate", out, "--text", folder / "text.txt", "--activations", "exact", "--json"))["perplexity"]
        # (bitsandbytes rounds the activations of LLM.int8 to 8 bits; lowbit was told not to.)
        if not abs(theirs - ours) < (1e-2 if "int8" in layout else 1e-3) * ours:
            raise SystemExit(f"{out.name}: transformers has perplexity {theirs}, lowbit {ours}")
        ran.append(out.name)
print(f"transformers {transformers.__version__} with torch {torch.__version__}: {', '.join(ran)}; not run: {', '.join(unread)}")
