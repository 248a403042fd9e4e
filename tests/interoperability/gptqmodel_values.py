"""gptqmodel: its module for the CPU de-quantises lowbit's GPTQ files to lowbit's floats, and lowbit reads what its packer packs.

Needs gptqmodel's Python only, none of its compiled extensions.
"""
import os
from types import SimpleNamespace

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # its modules would compile themselves, for minutes
from common import Folder, arguments, float_model, floats_of, is_matrix, load, lowbit, same, tool, write_model

torch = tool("torch")
gptqmodel = tool("gptqmodel")
numpy = tool("numpy")
from gptqmodel.nn_modules.qlinear.torch import TorchLinear  # noqa: E402
from gptqmodel.quantization import FORMAT, QuantizeConfig  # noqa: E402
from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module, convert_gptq_v2_to_v1_format_module  # noqa: E402

executable, model = arguments()
FORMATS = {"gptq": FORMAT.GPTQ, "gptq_v2": FORMAT.GPTQ_V2, "gptq_p": FORMAT.GPTQ_P}


def module_for(shape, bits, group, act_order, symmetric, version):
    return TorchLinear(bits=bits, group_size=group, sym=symmetric, desc_act=act_order, in_features=shape[1], out_features=shape[0], format=FORMATS[version])


def values_of(module):
    """[out, in], the products in float32."""
    module.scales = module.scales.float()
    module.post_init()
    module.eval()
    return module.dequantize_weight().detach().float().numpy().T


with Folder() as folder:
    source = float_model(executable, model, folder)
    plain = load(source)
    for version, form, bits, group in (("gptq", "s4_g128", 4, 128), ("gptq", "s3_g32", 3, 32), ("gptq", "s2_g64", 2, 64), ("gptq", "s8_g32", 8, 32),
                                       ("gptq_v2", "u2_g32", 2, 32), ("gptq_v2", "u3_g64", 3, 64), ("gptq_v2", "u4_g32", 4, 32), ("gptq_v2", "u8_g64", 8, 64),
                                       ("gptq_p", "u3_g64", 3, 64), ("gptq_p", "u5_g64", 5, 64), ("gptq_p", "u6_g32", 6, 32), ("gptq_p", "u7_g128", 7, 128)):
        out = folder / f"{version}-{form}"
        lowbit(executable, "convert", source, out, "--to", version, "--format", form)
        tensors, floats = load(out), floats_of(executable, out, folder, out.name + "-floats")
        for name in filter(is_matrix, floats):
            module = module_for(floats[name].shape, bits, group, False, form[0] == "s", version)
            parts = {k: torch.from_numpy(tensors[f"{name[:-7]}.{k}"]) for k in ("qweight", "qzeros", "scales", "g_idx")}
            module.load_state_dict(parts, strict=True)
            if version == "gptq":
                convert_gptq_v1_to_v2_format_module(module, bits, torch.int32)
            same(values_of(module), floats[name], f"{version} {form} {name}")

    random = torch.Generator().manual_seed(3)
    for version, bits, act_order in (("gptq", 2, False), ("gptq", 3, True), ("gptq", 4, True), ("gptq", 8, False), ("gptq_v2", 3, False),
                                     ("gptq_v2", 4, True), ("gptq_p", 3, False), ("gptq_p", 5, True), ("gptq_p", 6, False), ("gptq_p", 7, True)):
        tensors = {n: v for n, v in plain.items() if not is_matrix(n)}
        expected, group, levels = {}, 64, 1 << bits
        for name in filter(is_matrix, plain):
            rows, cols = plain[name].shape
            index = torch.arange(cols, dtype=torch.int32) // group
            if act_order:
                index = index[torch.randperm(cols, generator=random)]
            scales = (torch.rand(rows, cols // group, generator=random) * 0.01 + 0.001).half().float()
            zeros = torch.randint(1, levels, scales.shape, generator=random).float()
            codes = torch.randint(0, levels, (rows, cols), generator=random)
            linear = torch.nn.Linear(cols, rows, bias=False)
            linear.weight.data = (codes - zeros[:, index.long()]) * scales[:, index.long()]
            module = module_for((rows, cols), bits, group, act_order, False, version)
            module.pack_original(linear, scales, zeros, index)
            if version == "gptq":
                convert_gptq_v2_to_v1_format_module(module, SimpleNamespace(bits=bits, pack_dtype=torch.int32))
            for k in ("qweight", "qzeros", "scales", "g_idx"):
                tensors[f"{name[:-7]}.{k}"] = getattr(module, k).contiguous().numpy().copy()
            expected[name] = linear.weight.detach().numpy()
        target = folder / f"theirs-{version}-{bits}"
        write_model(source, target, tensors, {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act_order, "sym": False,
                                              "checkpoint_format": version})
        floats = floats_of(executable, target, folder, target.name + "-floats")
        for name, values in expected.items():
            same(values, floats[name], f"gptqmodel's {version} {bits} bits {name}")
    # What its configuration says of every matrix, where they differ, is what the tensors' shapes say.
    lowbit(executable, "quantise", source, folder / "mixed.gguf", "--format", "Q4_K_M")
    lowbit(executable, "convert", folder / "mixed.gguf", folder / "mixed", "--to", "gptq")
    config, tensors = QuantizeConfig.from_pretrained(str(folder / "mixed")), load(folder / "mixed")
    widths = set()
    for module in (name[:-8] for name in tensors if name.endswith(".qweight")):
        inputs, groups = len(tensors[module + ".g_idx"]), len(tensors[module + ".scales"])
        bits = len(tensors[module + ".qweight"]) * 32 // inputs
        said = config.dynamic_get(module, "bits", config.bits), config.dynamic_get(module, "group_size", config.group_size)
        if said != (bits, inputs // groups):
            raise SystemExit(f"{module} has {bits} bits in groups of {inputs // groups}, its configuration says {said}")
        widths.add(bits)
    if len(widths) < 2:
        raise SystemExit("the mixed model has one width")
print(f"gptqmodel {gptqmodel.__version__} with torch {torch.__version__}: gptq 2, 3, 4, 8 bits, gptq_v2 2, 3, 4, 8 bits, gptq_p 3, 5, 6, 7 bits, act-order")
