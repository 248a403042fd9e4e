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

    # The choices, too: scales nested as bitsandbytes nests them, and LLM.int8's codes and scales of the same weights.
    ours, plain4 = load(folder / "bitsandbytes-nested-nf4"), load(folder / "bitsandbytes-nf4")
    apart = count = 0
    for name in filter(is_matrix, plain):
        state = F.QuantState.from_dict(parts_of(ours, name), torch.device("cpu"))
        theirs, inner = F.quantize_blockwise(torch.from_numpy(plain4[name + ".absmax"]) - state.offset, blocksize=256)
        same(inner.absmax.numpy(), ours[name + ".nested_absmax"], f"nested scales of {name}", ulps=1)
        far = numpy.abs(theirs.numpy().astype(int) - ours[name + ".absmax"])
        if far.max() > 1:
            raise SystemExit(f"nested codes of {name}: {far.max()} apart")
        apart, count = apart + int((far != 0).sum()), count + far.size
        mean = plain4[name + ".absmax"].astype(numpy.float64).mean()
        if not abs(float(state.offset) - mean) <= 1e-6 * mean:
            raise SystemExit(f"the offset of {name} is {float(state.offset)}, the mean {mean}")
    # (bitsandbytes looks up the nearest code of numbers rounded to 16 bits: it may be one code off near a midpoint.)
    if apart > count // 100:
        raise SystemExit(f"{apart} of {count} nested codes are not bitsandbytes'")
    tensors = load(folder / "int8")
    for name in filter(is_matrix, plain):
        codes, scales, _ = F.int8_vectorwise_quant(torch.from_numpy(plain[name]).half())
        same(scales.numpy(), tensors[name[:-7] + ".SCB"], f"SCB of {name}")
        same(codes.numpy(), tensors[name], f"int8 codes of {name}")

    codes = F.create_dynamic_map().numpy()
    nested = load(folder / "bitsandbytes-nested-nf4")
    name = next(n for n in nested if n.endswith(".nested_quant_map"))
    same(codes, nested[name], "the dynamic map")
print(f"bitsandbytes {bitsandbytes.__version__} with torch {torch.__version__}: nf4, fp4, nested, int8")
sys.stdout.flush()
