"""compressed-tensors: packed integers, int8 and NVFP4/MXFP4 weights, in both directions. On the CPU.

Packed integers are unpacked by the package's own functions and agree exactly. The factor of an NVFP4 tensor is one more rounding, which
the package applies to the scales and lowbit to the values: these agree to the last place.
"""
from common import Folder, arguments, float_model, floats_of, is_matrix, load, lowbit, same, tool, write_model

torch = tool("torch")
tool("compressed_tensors")
numpy = tool("numpy")
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32  # noqa: E402
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8  # noqa: E402
import importlib.metadata  # noqa: E402

executable, model = arguments()


def unpacked(t, p, bits):
    out_features, in_features = (int(n) for n in t[p + ".weight_shape"])
    scales = t[p + ".weight_scale"].astype(numpy.float32)
    group = numpy.arange(in_features) // -(-in_features // scales.shape[1])
    codes = unpack_from_int32(torch.from_numpy(t[p + ".weight_packed"]), bits, torch.Size([out_features, in_features])).numpy().astype(numpy.int32)
    if p + ".weight_zero_point" in t:
        zeros = unpack_from_int32(torch.from_numpy(t[p + ".weight_zero_point"]), bits, torch.Size(scales.shape), packed_dim=0).numpy().astype(numpy.int32)
        codes = codes - zeros[:, group]
    return codes.astype(numpy.float32) * scales[:, group]


with Folder() as folder:
    source = float_model(executable, model, folder)
    plain = load(source)
    for form, bits in (("s4_g128", 4), ("u4_g32", 4), ("s3_g64", 3), ("u5_g32", 5), ("s6_g64", 6), ("u7_g64", 7), ("s8_g128", 8), ("u2_g32", 2)):
        out = folder / form
        lowbit(executable, "convert", source, out, "--to", "compressed-tensors", "--format", form)
        tensors, floats = load(out), floats_of(executable, out, folder, form + "-floats")
        for name in filter(is_matrix, floats):
            same(unpacked(tensors, name[:-7], bits), floats[name], f"{form} {name}")

    random = numpy.random.default_rng(2)
    for bits in range(2, 9):
        for symmetric in (True, False):
            tensors = {n: v for n, v in plain.items() if not is_matrix(n)}
            expected, half = {}, 1 << (bits - 1)
            for name in filter(is_matrix, plain):
                out_features, in_features = plain[name].shape
                p, groups = name[:-7], in_features // 64
                codes = random.integers(-half, half, (out_features, in_features)).astype(numpy.int8)
                zeros = random.integers(-half, half, (out_features, groups)).astype(numpy.int8)
                scales = (random.random((out_features, groups)) * 0.01).astype(numpy.float16)
                tensors[p + ".weight_packed"] = pack_to_int32(torch.from_numpy(codes), bits).numpy()
                tensors[p + ".weight_shape"] = numpy.array([out_features, in_features], numpy.int64)
                tensors[p + ".weight_scale"] = scales
                levels = codes.astype(numpy.int32)
                if not symmetric:
                    tensors[p + ".weight_zero_point"] = pack_to_int32(torch.from_numpy(zeros), bits, packed_dim=0).numpy()
                    levels = levels - numpy.repeat(zeros, 64, 1).astype(numpy.int32)
                expected[name] = levels.astype(numpy.float32) * numpy.repeat(scales.astype(numpy.float32), 64, 1)
            target = folder / f"packed-{bits}-{symmetric}"
            weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": 64}
            write_model(source, target, tensors, {"quant_method": "compressed-tensors", "format": "pack-quantized",
                                                  "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}})
            floats = floats_of(executable, target, folder, target.name + "-floats")
            for name, values in expected.items():
                same(values, floats[name], f"compressed-tensors' {bits} bits {name}")

    for layout in ("compressed-tensors-nvfp4", "compressed-tensors-mxfp4"):
        out = folder / layout
        lowbit(executable, "convert", source, out, "--to", layout)
        floats = floats_of(executable, out, folder, layout + "-floats")
        from safetensors.torch import load_file
        tensors = load_file(str(out / "model.safetensors"))
        for name in filter(is_matrix, floats):
            p = name[:-7]
            packed = tensors[p + ".weight_packed"]
            levels = unpack_fp4_from_uint8(packed, packed.shape[0], 2 * packed.shape[1], torch.float32)
            scales = tensors[p + ".weight_scale"]
            scales = scales.float() / tensors[p + ".weight_global_scale"] if "nvfp4" in layout else torch.exp2(scales.float() - 127)
            group = levels.shape[1] // scales.shape[1]
            same((levels * scales.repeat_interleave(group, 1)).numpy(), floats[name], f"{layout} {name}", ulps=1 if "nvfp4" in layout else 0)
print(f"compressed-tensors {importlib.metadata.version('compressed-tensors')} with torch {torch.__version__}: pack-quantized 2 to 8 bits, nvfp4, mxfp4")
