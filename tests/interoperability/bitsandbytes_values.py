"""bitsandbytes: NF4, FP4 (with plain and nested scales) and LLM.int8, in both directions, to the same floats. On the CPU."""
import sys

from common import Folder, arguments, float_model, floats_of, is_matrix, load, lowbit, same, tool, write_model

torch = tool("torch")
bitsandbytes = tool("bitsandbytes")
numpy = tool("numpy")
from bitsandbytes import functional as F  # noqa: E402

executable, model = arguments()


def parts_of(tensors, name):
    return {k: torch.from_numpy(v) for k, v in tensors.items() if k.startswith(name + ".")}


with Folder() as folder:
    source = float_model(executable, model, folder)
    plain = load(source)
    # lowbit writes, bitsandbytes de-quantises.
    for kind in ("nf4", "fp4"):
        for layout in ("bitsandbytes", "bitsandbytes-nested"):
            out = folder / f"{layout}-{kind}"
            lowbit(executable, "convert", source, out, "--to", layout, "--format", kind)
            tensors, floats = load(out), floats_of(executable, out, folder, out.name + "-floats")
            for name in filter(is_matrix, floats):
                state = F.QuantState.from_dict(parts_of(tensors, name), torch.device("cpu"))
                values = F.dequantize_4bit(torch.from_numpy(tensors[name]), state)
                same(values.float().numpy(), floats[name], f"{layout} {kind} {name}")
    out = folder / "int8"
    lowbit(executable, "convert", source, out, "--to", "bitsandbytes-int8")
    tensors, floats = load(out), floats_of(executable, out, folder, "int8-floats")
    for name in filter(is_matrix, floats):
        values = F.int8_vectorwise_dequant(torch.from_numpy(tensors[name]), torch.from_numpy(tensors[name[:-7] + ".SCB"]))
        same(values.float().numpy(), floats[name], f"int8 {name}")

    # bitsandbytes quantises and saves, lowbit reads.
    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            for block in (64, 128, 512):
                tensors = {n: v for n, v in plain.items() if not is_matrix(n)}
                expected = {}
                for name in filter(is_matrix, plain):
                    codes, state = F.quantize_4bit(torch.from_numpy(plain[name]), blocksize=block, compress_statistics=nested, quant_type=kind)
                    expected[name] = F.dequantize_4bit(codes, state).float().numpy()
                    tensors[name] = codes.numpy()
                    for key, value in state.as_dict(packed=True).items():
                        tensors[f"{name}.{key}"] = value.contiguous().numpy()
                target = folder / f"{kind}-{nested}-{block}"
                write_model(source, target, tensors, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind})
                floats = floats_of(executable, target, folder, target.name + "-floats")
                for name, values in expected.items():
                    same(values, floats[name], f"bitsandbytes' {kind}, blocks of {block}, nested {nested}: {name}")
    codes = F.create_dynamic_map().numpy()
    nested = load(folder / "bitsandbytes-nested-nf4")
    name = next(n for n in nested if n.endswith(".nested_quant_map"))
    same(codes, nested[name], "the dynamic map")
print(f"bitsandbytes {bitsandbytes.__version__} with torch {torch.__version__}: nf4, fp4, nested, int8")
sys.stdout.flush()
