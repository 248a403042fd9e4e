"""GPTQ and AWQ: lowbit's files de-quantised by numpy from the definitions of the formats, and files packed by numpy read by lowbit.

An independent reading, for where gptqmodel and autoawq cannot be installed. Needs numpy and safetensors only.
"""
from common import Folder, arguments, float_model, floats_of, is_matrix, load, lowbit, same, tool, write_model

numpy = tool("numpy")
tool("safetensors")
executable, model = arguments()
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # of the columns in an AWQ word, lowest nibble first


def bits_of(words):
    """[n] int32 -> [n, 32] bits, lowest first."""
    return (words.astype(numpy.uint32)[..., None] >> numpy.arange(32, dtype=numpy.uint32)) & 1


def dense(words, bits):
    """Words along the last axis as one stream of integers."""
    stream = bits_of(words).reshape(*words.shape[:-1], -1)
    stream = stream.reshape(*words.shape[:-1], -1, bits)
    return (stream << numpy.arange(bits)).sum(-1).astype(numpy.int32)


def planar(words, bits):
    """32 integers in `bits` words: planes of 4, 2 and 1 bits, the low one first."""
    groups = words.reshape(*words.shape[:-1], -1, bits)
    value, at, shift = 0, 0, 0
    for width in ([8] if bits == 8 else [w for w in (4, 2, 1) if bits & w]):
        value = value + (dense(groups[..., at:at + width], width) << shift)
        at, shift = at + width, shift + width
    return value.reshape(*words.shape[:-1], -1)


def gptq_values(t, p, bits, version):
    read = planar if version == "gptq_p" else dense
    codes = read(t[p + ".qweight"].T, bits)
    zeros = (read(t[p + ".qzeros"], bits) + (1 if version == "gptq" else 0)) & ((1 << bits) - 1)
    group = t[p + ".g_idx"]
    scales = t[p + ".scales"].astype(numpy.float32)
    return scales[group].T * (codes - zeros[group].T).astype(numpy.float32)


def awq_columns(words):
    nibbles = (words.astype(numpy.uint32)[..., None] >> (4 * numpy.arange(8, dtype=numpy.uint32))) & 15
    out = numpy.empty_like(nibbles)
    out[..., ORDER] = nibbles
    return out.reshape(words.shape[0], -1).astype(numpy.int32)


def awq_values(t, p):
    codes, zeros = awq_columns(t[p + ".qweight"]), awq_columns(t[p + ".qzeros"])
    scales = t[p + ".scales"].astype(numpy.float32)
    group = numpy.arange(codes.shape[0]) // (codes.shape[0] // scales.shape[0])
    return ((codes - zeros[group]).astype(numpy.float32) * scales[group]).T


def pack_dense(codes, bits):
    """The inverse of dense, along the last axis."""
    stream = ((codes[..., None] >> numpy.arange(bits)) & 1).reshape(*codes.shape[:-1], -1, 32).astype(numpy.uint32)
    return (stream << numpy.arange(32, dtype=numpy.uint32)).sum(-1).astype(numpy.uint32).view(numpy.int32)


with Folder() as folder:
    source = float_model(executable, model, folder)
    for version, form, bits in (("gptq", "s4_g128", 4), ("gptq", "s3_g32", 3), ("gptq_v2", "u8_g64", 8), ("gptq_v2", "u2_g32", 2), ("gptq_v2", "u3_g64", 3),
                                ("gptq_p", "u5_g64", 5), ("gptq_p", "u6_g32", 6), ("gptq_p", "u7_g128", 7)):
        out = folder / f"{version}-{form}"
        lowbit(executable, "convert", source, out, "--to", version, "--format", form)
        tensors, floats = load(out), floats_of(executable, out, folder, out.name + "-floats")
        for name in filter(is_matrix, floats):
            same(gptq_values(tensors, name[:-7], bits, version), floats[name], f"{version} {form} {name}")
    out = folder / "awq"
    lowbit(executable, "convert", source, out, "--to", "awq", "--format", "u4_g64")
    tensors, floats = load(out), floats_of(executable, out, folder, "awq-floats")
    for name in filter(is_matrix, floats):
        same(awq_values(tensors, name[:-7]), floats[name], f"awq {name}")

    # The other way round: numpy packs random codes with act-order, lowbit reads them.
    random = numpy.random.default_rng(1)
    plain = load(source)
    for bits in (2, 3, 4, 8):
        tensors = {n: v for n, v in plain.items() if not is_matrix(n)}
        expected = {}
        for name in filter(is_matrix, plain):
            out_features, in_features = plain[name].shape
            group = 32
            p, groups = name[:-7], in_features // group
            codes = random.integers(0, 1 << bits, (out_features, in_features), dtype=numpy.int32)
            zeros = random.integers(1, 1 << bits, (groups, out_features), dtype=numpy.int32)
            index = random.permutation(numpy.repeat(numpy.arange(groups, dtype=numpy.int32), group))
            scales = (random.random((groups, out_features)) * 0.01).astype(numpy.float16)
            tensors[p + ".qweight"] = numpy.ascontiguousarray(pack_dense(codes, bits).T)
            tensors[p + ".qzeros"] = pack_dense(zeros - 1, bits)
            tensors[p + ".scales"], tensors[p + ".g_idx"] = scales, index
            expected[name] = scales.astype(numpy.float32)[index].T * (codes - zeros[index].T).astype(numpy.float32)
        target = folder / f"act-order-{bits}"
        write_model(source, target, tensors, {"quant_method": "gptq", "bits": bits, "group_size": 32, "desc_act": True, "sym": False, "checkpoint_format": "gptq"})
        floats = floats_of(executable, target, folder, target.name + "-floats")
        for name, values in expected.items():
            same(values, floats[name], f"numpy's {bits}-bit {name}")
print(f"numpy {numpy.__version__}: gptq, gptq_v2, gptq_p, awq, act-order")
