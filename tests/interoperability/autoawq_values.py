"""autoawq: it de-quantises lowbit's gemm files to lowbit's floats, packs the same words as lowbit for gemv and gemv_fast, and lowbit reads what
its three packers pack. (De-quantising the last two takes its CUDA kernels.)"""
import importlib.metadata

from common import Folder, arguments, float_model, floats_of, is_matrix, load, lowbit, same, tool, write_model

torch = tool("torch")
numpy = tool("numpy")
tool("awq")
from awq.modules.linear.gemm import WQLinear_GEMM  # noqa: E402
from awq.modules.linear.gemv import WQLinear_GEMV  # noqa: E402
from awq.modules.linear.gemv_fast import WQLinear_GEMVFast  # noqa: E402
from awq.utils.packing_utils import dequantize_gemm, reverse_awq_order, unpack_awq  # noqa: E402

executable, model = arguments()
MODULES = {"awq": ("gemm", WQLinear_GEMM), "awq_gemv": ("gemv", WQLinear_GEMV), "awq_gemv_fast": ("gemv_fast", WQLinear_GEMVFast)}


def packed(layout, group, values, scales, zeros):
    """autoawq's tensors for these values; scales and zeros are [out, groups]."""
    linear = torch.nn.Linear(values.shape[1], values.shape[0], bias=False)
    linear.weight.data = values
    if layout == "awq":
        scales, zeros = scales.T.contiguous(), zeros.T.contiguous()
    made = MODULES[layout][1].from_linear(linear, 4, group, scales=scales, zeros=zeros)
    return {k: getattr(made, k).contiguous().numpy() for k in ("qweight", "qzeros", "scales")}


def wide(t, group):
    return t.repeat_interleave(group, 1)


def meant(layout, values, scales, zeros, group):
    """The values (code - zero) * scale as the layout's file has them: gemv_fast stores the products of zeros and scales, rounded."""
    if layout != "awq_gemv_fast":
        return values
    products = scales.double() * zeros.double()
    return (values.double() + wide(products - products.half().double(), group)).float()


with Folder() as folder:
    source = float_model(executable, model, folder)
    plain = load(source)
    for group in (32, 64, 128):
        folders = {}
        for layout in MODULES:
            folders[layout] = folder / f"{layout}-{group}"
            lowbit(executable, "convert", source, folders[layout], "--to", layout, "--format", f"u4_g{group}")
        ours = {layout: load(path) for layout, path in folders.items()}
        floats = {layout: floats_of(executable, path, folder, path.name + "-floats") for layout, path in folders.items()}
        for name in filter(is_matrix, floats["awq"]):
            words, zeros, scales = (torch.from_numpy(ours["awq"][f"{name[:-7]}.{k}"]) for k in ("qweight", "qzeros", "scales"))
            values = dequantize_gemm(words, zeros, scales.float(), 4, group).T.contiguous()
            same(values.numpy(), floats["awq"][name], f"awq, groups of {group}, {name}")
            zeros = reverse_awq_order(*reversed(unpack_awq(words, zeros, 4)), 4)[0] & 15
            for layout in MODULES:
                due = meant(layout, values, scales.T, zeros.T, group)
                same(due.numpy(), floats[layout][name], f"{layout}, groups of {group}, {name}")
                for key, tensor in packed(layout, group, values, scales.T.contiguous(), zeros.T.contiguous()).items():
                    found = ours[layout][f"{name[:-7]}.{key}"]
                    if tensor.dtype != found.dtype:
                        raise SystemExit(f"{layout} {name} {key}: {found.dtype} where autoawq has {tensor.dtype}")
                    if not numpy.array_equal(tensor, found):
                        raise SystemExit(f"{layout}, groups of {group}, {name} {key}: not what autoawq packs")

    random = torch.Generator().manual_seed(5)
    for layout, (version, _) in MODULES.items():
        tensors = {n: v for n, v in plain.items() if not is_matrix(n)}
        expected, group = {}, 64
        for name in filter(is_matrix, plain):
            rows, cols = plain[name].shape
            scales = (torch.rand(rows, cols // group, generator=random) * 0.01 + 0.001).half()
            zeros = torch.randint(0, 16, scales.shape, generator=random)
            codes = torch.randint(0, 16, (rows, cols), generator=random)
            values = (codes - wide(zeros.float(), group)) * wide(scales.float(), group)
            for key, tensor in packed(layout, group, values, scales, zeros).items():
                tensors[f"{name[:-7]}.{key}"] = tensor
            expected[name] = meant(layout, values, scales, zeros, group).numpy()
        target = folder / f"theirs-{layout}"
        write_model(source, target, tensors, {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": version})
        floats = floats_of(executable, target, folder, target.name + "-floats")
        for name, values in expected.items():
            same(values, floats[name], f"autoawq's {version} {name}")
print(f"autoawq {importlib.metadata.version('autoawq')} with torch {torch.__version__}: gemm, gemv, gemv_fast in groups of 32, 64, 128")
