#!/usr/bin/env python3
"""Writes the seeds of the fuzz targets' corpora: small good files of every kind, and one bad file for each thing that can be wrong.
Files that fuzzing found later lie beside them. Usage: make_corpus.py tests/fuzz/corpus"""
import json
import pathlib
import struct
import sys

root = pathlib.Path(sys.argv[1])


def save(reader, name, data):
    folder = root / reader
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


# GGUF ------------------------------------------------------------------------------------------------------------------------------
def string(s):
    s = s if isinstance(s, bytes) else s.encode()
    return struct.pack("<Q", len(s)) + s


FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


def value(kind, v):
    return string(v) if kind == 8 else struct.pack("<" + FORMATS[kind], v)


def key(name, kind, v):
    return string(name) + struct.pack("<i", kind) + value(kind, v)


def array(name, kind, items):
    return string(name) + struct.pack("<iiQ", 9, kind, len(items)) + b"".join(value(kind, v) for v in items)


# id: (weights, bytes) of a block
TYPES = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36), 10: (256, 84), 11: (256, 110),
         12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50),
         20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8),
         29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18), 42: (64, 18)}


def size_of(dims, kind):
    n = 1
    for d in dims:
        n *= d
    weights, size = TYPES[kind]
    return n // weights * size


def gguf(keys=(), tensors=(), alignment=32, magic=b"GGUF", version=3, fill=0x11, tail=0, counts=None):
    """tensors: (name, dims, type[, offset])"""
    out = magic + struct.pack("<I", version) + struct.pack("<QQ", *(counts or (len(tensors), len(keys)))) + b"".join(keys)
    data = b""
    for t in tensors:
        name, dims, kind = t[:3]
        offset = t[3] if len(t) > 3 else len(data)
        out += string(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in dims) + struct.pack("<IQ", kind, offset)
        if kind in TYPES and all(d < 1 << 20 for d in dims):
            data += bytes([fill]) * size_of(dims, kind)
            data += b"\0" * (-len(data) % alignment)
    out += b"\0" * (-len(out) % alignment)
    return (out + data)[:len(out) + len(data) + tail] if tail <= 0 else out + data + b"\0" * tail


every_key = [key(f"k{kind}", kind, "text" if kind == 8 else 1) for kind in list(range(9)) + [10, 11, 12]]
every_array = [array(f"a{kind}", kind, ["x", ""] if kind == 8 else [1, 0]) for kind in list(range(9)) + [10, 11, 12]]
save("gguf", "empty", gguf())
save("gguf", "every_metadata_type", gguf(every_key + every_array))
save("gguf", "every_tensor_type", gguf([], [(f"t{k}", [w, 2], k) for k, (w, _) in TYPES.items()]))
save("gguf", "alignment_64", gguf([key("general.alignment", 4, 64)], [("a", [3], 0), ("b", [32, 2, 2, 2], 2)], 64))
save("gguf", "split", gguf([key("split.no", 2, 0), key("split.count", 2, 2), key("split.tensors.count", 5, 2)], [("a", [3], 0)]))
w = ("w", [32, 2], 2)
for name, data in {
    "bad_magic": gguf([], [w], magic=b"GGML"), "bad_version_1": gguf([], [w], version=1), "bad_big_endian": gguf([], [w], version=3 << 24),
    "bad_tensor_count": gguf([], [w], counts=(1 << 60, 0)), "bad_key_count": gguf([], [w], counts=(1, (1 << 64) - 1)),
    "bad_empty_key": gguf([key("", 4, 1)]), "bad_repeated_key": gguf([key("k", 4, 1)] * 2), "bad_key_type": gguf([string("k") + struct.pack("<ii", 13, 0)]),
    "bad_boolean": gguf([key("k", 7, 2)]), "bad_nested_array": gguf([string("k") + struct.pack("<iiQ", 9, 9, 1) + bytes(12)]),
    "bad_array_length": gguf([string("k") + struct.pack("<iiQ", 9, 6, 1 << 62)]), "bad_string_length": gguf([struct.pack("<Q", 1 << 63) + b"k"]),
    "bad_alignment_0": gguf([key("general.alignment", 4, 0)], [w]), "bad_alignment_24": gguf([key("general.alignment", 4, 24)], [w]),
    "bad_alignment_2g": gguf([key("general.alignment", 4, 1 << 31)], [w]), "bad_alignment_type": gguf([key("general.alignment", 6, 32.0)], [w]),
    "bad_long_name": gguf([], [("n" * 64, [32], 2)]), "bad_repeated_tensor": gguf([], [w, w]), "bad_rank_5": gguf([], [("w", [32, 1, 1, 1, 1], 2)]),
    "bad_tensor_type": gguf([], [("w", [32], 4)]), "bad_tensor_type_huge": gguf([], [("w", [32], 0xffffffff)]),
    "bad_zero_dimension": gguf([], [("w", [32, 0], 2)]), "bad_half_block": gguf([], [("w", [33], 2)]),
    "bad_element_overflow": gguf([], [("w", [1 << 40, 1 << 40], 0)]), "bad_byte_overflow": gguf([], [("w", [1 << 61, 2], 28)]),
    "bad_huge_dimension": gguf([], [("w", [32, 1 << 50], 2)]), "bad_offset_hole": gguf([], [("w", [32], 2, 32)]),
    "bad_offset_overlap": gguf([], [w, ("v", [32], 2, 0)]), "bad_offset_huge": gguf([], [("w", [32], 2, (1 << 64) - 32)]),
    "bad_short_data": gguf([], [w], tail=-32), "good_trailing_bytes": gguf([], [w], tail=5),
}.items():
    save("gguf", name, data)



def two_parts(first, second):
    return struct.pack("<I", len(first)) + first + second


def split_part(number, count=2, total=3, name="a", marked=True):
    return gguf([key("split.no", 2, number), key("split.count", 2, count), key("split.tensors.count", 5, total)] if marked else [],
                [(name, [32, 2], 2)] + ([("t", [3], 0)] if number else []))


for name, data in {
    "good": two_parts(split_part(0), split_part(1, name="b")), "whole": two_parts(split_part(0, marked=False), b""), "bad_second": two_parts(split_part(0), b"GGUF"), "bad_number": two_parts(split_part(0), split_part(2, name="b")),
    "bad_later": two_parts(split_part(1), split_part(1, name="b")), "bad_count": two_parts(split_part(0), split_part(1, count=3, name="b")), "bad_total": two_parts(split_part(0, total=4), split_part(1, name="b")),
    "bad_repeated": two_parts(split_part(0), split_part(1)), "bad_name": two_parts(split_part(0, count=65535), b""), "bad_unmarked": two_parts(split_part(0), split_part(1, name="b", marked=False)),
}.items():
    save("gguf_parts", name, data)

words = ["<unk>", "<s>", "</s>", "a", "b", "ab", "\u2581", "\u2581a"] + [f"<0x{i:02X}>" for i in (0x31, 0x32, 0xc3)]
kinds = [2, 3, 3, 1, 1, 1, 1, 1, 6, 6, 6]
model_keys = [key("general.architecture", 8, "llama"), key("llama.block_count", 4, 1), key("llama.context_length", 4, 16),
              key("llama.embedding_length", 4, 4), key("llama.feed_forward_length", 4, 6), key("llama.attention.head_count", 4, 2),
              key("llama.attention.layer_norm_rms_epsilon", 6, 1e-5)]
sentence = [key("tokenizer.ggml.model", 8, "llama"), array("tokenizer.ggml.tokens", 8, words), array("tokenizer.ggml.token_type", 5, kinds),
            array("tokenizer.ggml.scores", 6, [-float(i) for i in range(len(words))]), key("tokenizer.ggml.bos_token_id", 4, 1)]
bytes_ = [key("tokenizer.ggml.model", 8, "gpt2"), key("tokenizer.ggml.pre", 8, "smollm"), array("tokenizer.ggml.tokens", 8, ["a", "b", "ab", "\u0120"] + words[:3]),
          array("tokenizer.ggml.token_type", 5, [1, 1, 1, 1, 3, 3, 3]), array("tokenizer.ggml.merges", 8, ["a b", "\u0120 a"])]
layer = [("token_embd.weight", [4, 11], 0), ("output_norm.weight", [4], 0), ("blk.0.attn_norm.weight", [4], 0), ("blk.0.attn_q.weight", [4, 4], 1),
         ("blk.0.attn_k.weight", [4, 4], 30), ("blk.0.attn_v.weight", [4, 4], 0), ("blk.0.attn_output.weight", [4, 4], 0), ("blk.0.ffn_norm.weight", [4], 0),
         ("blk.0.ffn_gate.weight", [4, 6], 0), ("blk.0.ffn_up.weight", [4, 6], 0), ("blk.0.ffn_down.weight", [6, 4], 0)]
save("gguf_model", "sentencepiece", gguf(model_keys + sentence, layer))
save("gguf_model", "byte_level", gguf(model_keys + bytes_, layer + [("rope_freqs.weight", [1], 0)]))
save("gguf_model", "bad_missing_tensors", gguf(model_keys + sentence, [("token_embd.weight", [256, 11], 17), ("blk.0.attn_q.weight", [256, 2], 19)]))
save("gguf_model", "no_token_types", gguf(model_keys + bytes_[:3] + bytes_[4:], layer))
save("gguf_model", "bad_no_tokens", gguf(model_keys + sentence[:1], layer))
save("gguf_model", "bad_scores", gguf(model_keys + sentence[:3] + [array("tokenizer.ggml.scores", 6, [0.0])], layer))
save("gguf_model", "bad_token_type", gguf(model_keys + sentence[:2] + [array("tokenizer.ggml.token_type", 5, [7] * 11)], layer))
save("gguf_model", "bad_heads_0", gguf([k if b"head_count" not in k else key("llama.attention.head_count", 4, 0) for k in model_keys] + sentence, layer))
save("gguf_model", "bad_layers", gguf([k if b"block_count" not in k else key("llama.block_count", 4, 1 << 24) for k in model_keys] + sentence, layer))
save("gguf_model", "bad_rank_3", gguf(model_keys + sentence, [("token_embd.weight", [4, 11, 2], 0)]))

lora_keys = [key("general.type", 8, "adapter"), key("general.architecture", 8, "llama"), key("adapter.type", 8, "lora"), key("adapter.lora.alpha", 6, 8.0)]
lora = [("blk.0.attn_q.weight.lora_a", [32, 2], 0), ("blk.0.attn_q.weight.lora_b", [2, 4], 1)]
for name, data in {
    "floats": gguf(lora_keys, lora), "quantised": gguf(lora_keys, [("w.lora_a", [32, 2], 8), ("w.lora_b", [2, 4], 0)]), "no_alpha": gguf(lora_keys[:3] + [key("adapter.lora.alpha", 6, 0.0)], lora),
    "bad_type": gguf(lora_keys[1:], lora), "bad_alpha": gguf(lora_keys[:3] + [key("adapter.lora.alpha", 6, float("nan"))], lora), "bad_alone": gguf(lora_keys, lora[1:]),
    "bad_name": gguf(lora_keys, [(".lora_c", [2], 0)]), "bad_rank": gguf(lora_keys, [lora[0], ("blk.0.attn_q.weight.lora_b", [4, 2], 0)]),
    "bad_dims": gguf(lora_keys, [("w.lora_a", [32], 0), ("w.lora_b", [2, 4, 1], 0)]), "bad_tensor_type": gguf(lora_keys, [("w.lora_a", [32, 2], 26), lora[1]]),
    "bad_values": gguf(lora_keys, lora, fill=0xff), "bad_empty": gguf(lora_keys),
    "bad_overflow": gguf(lora_keys, [lora[0], ("blk.0.attn_q.weight.lora_b", [2, 1 << 62], 1)]),
    "bad_huge": gguf(lora_keys, [lora[0], ("blk.0.attn_q.weight.lora_b", [2, 1 << 40], 1)]),
}.items():
    save("gguf_adapter", name, data)

sums = [("w.in_sum2", [4, 2], 0), ("w.counts", [1, 2], 0), ("v.in_sum2", [3, 1], 0), ("v.counts", [1, 1], 0)]
matrix_keys = [key("general.type", 8, "imatrix"), array("imatrix.datasets", 8, ["text"]), key("imatrix.chunk_count", 4, 2), key("imatrix.chunk_size", 4, 512)]


def dat(entries, tail=struct.pack("<i", 3) + struct.pack("<i", 4) + b"text", count=None):
    out = struct.pack("<i", len(entries) if count is None else count)
    for name, calls, values in entries:
        out += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values)) + struct.pack(f"<{len(values)}f", *values)
    return out + tail


for name, data in {
    "gguf": gguf(matrix_keys, sums), "dat": dat([("w", 2, [1, 2, 3]), ("v", 1, [4])]), "dat_old": dat([("w", 2, [1, 2])], b""),
    "bad_type": gguf(matrix_keys[1:], sums), "bad_alone": gguf(matrix_keys, sums[:1]), "bad_counts": gguf(matrix_keys, [sums[0], ("w.counts", [1, 3], 0)]),
    "bad_nan": gguf(matrix_keys, sums, fill=0xff), "bad_negative": dat([("w", 1, [-1.0])]), "bad_infinite": dat([("w", 1, [float("inf")])]),
    "bad_tensor_type": gguf(matrix_keys, [("w.in_sum2", [32, 1], 2), sums[3]]), "bad_count": dat([("w", 1, [1])], count=1 << 30), "bad_no_entries": dat([]),
    "bad_repeated": dat([("w", 1, [1]), ("w", 1, [1])]), "no_calls": dat([("w", 0, [1])]), "bad_calls": dat([("w", -1, [1])]), "bad_no_values": dat([("w", 1, [])]), "bad_end": dat([("w", 1, [1])], b"\1"),
}.items():
    save("imatrix", name, data)

def panel_checksum(data):  # as io/panel_cache.hpp says
    odd, mask, sums, whole = 0x9E3779B97F4A7C15, (1 << 64) - 1, list(range(1, 9)), 0
    for i, word in enumerate(struct.unpack(f"<{len(data) // 8}Q", data)):
        s = (sums[i % 8] ^ word) * odd & mask
        sums[i % 8] = s ^ s >> 32
    for s in sums:
        whole = (whole ^ s) * odd & mask
    return whole


panel = ("w", [320], 24)  # 16 rows of 32 weights in q4_0
panel_keys = [key("general.alignment", 4, 64), key("general.type", 8, "lowbit.panels"), key("lowbit.layout", 4, 2), key("lowbit.source", 8, "source")]
said = [array("lowbit.formats", 8, ["q4_0"]), array("lowbit.rows", 10, [16]), array("lowbit.cols", 10, [32]), array("lowbit.checksums", 10, [panel_checksum(b"\x11" * 320)])]
for name, data in {
    "good": gguf(panel_keys + said, [panel], 64), "bad_type": gguf(panel_keys[:1] + panel_keys[2:] + said, [panel], 64), "bad_layout": gguf(panel_keys[:2] + [key("lowbit.layout", 4, 0)] + panel_keys[3:] + said, [panel], 64),
    "bad_source": gguf(panel_keys[:3] + [key("lowbit.source", 8, "other")] + said, [panel], 64), "bad_damaged": gguf(panel_keys + said, [panel], 64, fill=0x12), "bad_said": gguf(panel_keys + said[:2], [panel], 64), "bad_unsummed": gguf(panel_keys + said[:3], [panel], 64),
    "bad_format": gguf(panel_keys + [array("lowbit.formats", 8, ["q9"])] + said[1:], [panel], 64), "bad_size": gguf(panel_keys + said, [("w", [319], 24)], 64),
    "bad_rows": gguf(panel_keys + said[:1] + [array("lowbit.rows", 10, [1 << 63])] + said[2:], [panel], 64), "bad_zero": gguf(panel_keys + said[:2] + [array("lowbit.cols", 10, [0])] + said[3:], [panel], 64),
    "bad_alignment": gguf(panel_keys[1:] + said, [("v", [32], 24), panel], 32),
}.items():
    save("panel_cache", name, data)


def statistics(channels, parts, version=1, magic=0x5453746962776f6c):  # without the hash, which the target adds
    out = struct.pack("<QQQQ", magic, version, channels, len(parts))
    for name, tokens, size, data in parts:
        out += name.encode().ljust(24, b"\0") + struct.pack("<QQ", tokens, size) + data
    return out


of_two = [("hessian", 3, 96 * 96, struct.pack("<f", 2) * (96 * 96)), ("channel_magnitude", 3, 2, struct.pack("<2d", 3, 4)), ("channel_importance", 3, 2, struct.pack("<2d", 5, 6)),
          ("channel_maximum", 3, 2, struct.pack("<2f", 1, 2))]
of_none = [(n, 0, 0, b"") for n, *_ in of_two]
for name, data in {
    "good": statistics(2, of_two), "empty": statistics(0, of_none), "bad_magic": statistics(0, of_none, magic=1), "bad_version": statistics(0, of_none, version=2),
    "bad_channels": statistics(1 << 62, of_none), "bad_kind": statistics(0, of_none[::-1]), "bad_missing": statistics(0, of_none[:3]), "bad_size": statistics(3, of_two),
    "bad_short": statistics(0, of_none)[:-1], "bad_long": statistics(0, of_none) + b"x",
    "bad_padding": statistics(0, [("hessian\0x", 0, 0, b"")] + of_none[1:]),
}.items():
    save("statistics", name, data)


# safetensors -----------------------------------------------------------------------------------------------------------------------
def safetensors(header, data=0, length=None):
    text = header if isinstance(header, bytes) else header.encode() if isinstance(header, str) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64}
every, at = {"__metadata__": {"format": "pt"}}, 0
for dtype, bits in BITS.items():
    every[dtype] = tensor(dtype, [2, 4], at, at + bits)
    at += bits
save("safetensors", "every_dtype", safetensors(every, at))
save("safetensors", "empty", safetensors("{}"))
save("safetensors", "scalar_and_nothing", safetensors({"s": tensor("F32", [], 0, 4), "n": tensor("F32", [3, 0], 4, 4)}, 4))
one = tensor("F32", [1], 0, 4)
for name, data in {
    "bad_length_huge": safetensors("{}", length=1 << 62), "bad_length_100m": safetensors("{}", length=100_000_001), "bad_length_past_end": safetensors("{}", length=3),
    "bad_no_brace": safetensors(" {}"), "bad_json": safetensors("{"), "bad_utf8": safetensors(b'{"\xff":1}'), "bad_deep": safetensors('{"a":' + "[" * 3000 + "}"),
    "bad_repeated": safetensors('{"a":%s,"a":%s}' % (json.dumps(one), json.dumps(one)), 4), "bad_tail": safetensors({"a": one}, 5),
    "bad_short": safetensors({"a": one}, 3), "bad_overlap": safetensors({"a": one, "b": tensor("F32", [1], 2, 6)}, 6),
    "bad_hole": safetensors({"a": one, "b": tensor("F32", [1], 8, 12)}, 12), "bad_dtype": safetensors({"a": tensor("F33", [1], 0, 4)}, 4),
    "bad_size": safetensors({"a": tensor("F32", [2], 0, 4)}, 4), "bad_negative": safetensors({"a": tensor("F32", [-1], 0, 4)}, 4),
    "bad_fraction": safetensors({"a": tensor("F32", [1.5], 0, 4)}, 4), "bad_overflow": safetensors({"a": tensor("F32", [1 << 32, 1 << 32], 0, 4)}, 4),
    "bad_half_byte": safetensors({"a": tensor("F4", [3], 0, 2)}, 2), "bad_range": safetensors({"a": tensor("F32", [1], 4, 0)}, 4),
    "bad_range_huge": safetensors({"a": tensor("U8", [1], (1 << 64) - 1, 1 << 63)}, 4), "bad_missing": safetensors({"a": {"dtype": "F32", "shape": [1]}}, 4),
    "extra_key": safetensors({"a": {**one, "more": 1}}, 4), "metadata_null": safetensors({"__metadata__": None, "a": one}, 4),
    "bad_zero_byte": safetensors('{"a":%s}\0x' % json.dumps(one), 4), "bad_kind": safetensors({"a": 7}), "bad_metadata": safetensors({"__metadata__": {"k": 1}}),
    "bad_metadata_kind": safetensors({"__metadata__": []}), "bad_array": safetensors("[]"),
}.items():
    save("safetensors", name, data)

# Checkpoint layouts: a quantization_config, a zero, a safetensors file --------------------------------------------------------------
def checkpoint(config, parts):
    """A text and the tensors that go with it; parts: name -> (dtype, shape, bytes)."""
    header, body = {}, b""
    for name, (dtype, shape, data) in parts.items():
        header[name] = tensor(dtype, shape, len(body), len(body) + len(data))
        body += data
    return json.dumps(config).encode() + b"\0" + safetensors(header, body)


def scrambled(count, seed):
    return struct.pack(f"<{count}I", *((seed + i * 2654435761) & 0xFFFFFFFF for i in range(count)))


half, single = struct.pack("<e", 0.03125), struct.pack("<f", 0.03125)
gptq = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "sym": False}
gptq_parts = {"m.qweight": ("I32", [8, 32], scrambled(256, 1)), "m.qzeros": ("I32", [2, 4], b"\x77" * 32), "m.scales": ("F16", [2, 32], half * 64),
              "m.g_idx": ("I32", [64], struct.pack("<64i", *(i % 2 for i in range(64))))}
awq_parts = {"m.qweight": ("I32", [64, 2], scrambled(128, 2)), "m.qzeros": ("I32", [2, 2], b"\x77" * 16), "m.scales": ("F16", [2, 16], half * 32)}
packed_parts = {"m.weight_packed": ("I32", [16, 8], scrambled(128, 3)), "m.weight_scale": ("F16", [16, 2], half * 32),
                "m.weight_shape": ("I64", [2], struct.pack("<2q", 16, 64))}
nvfp4_parts = {"m.weight_packed": ("U8", [16, 32], scrambled(128, 4)), "m.weight_scale": ("F8_E4M3", [16, 4], b"\x38" * 64),
               "m.weight_global_scale": ("F32", [1], single)}
mxfp4_parts = {"m.weight_packed": ("U8", [16, 32], scrambled(128, 5)), "m.weight_scale": ("U8", [16, 2], b"\x78" * 32)}
int8_parts = {"m.weight": ("I8", [16, 64], scrambled(256, 6)), "m.SCB": ("F32", [16], single * 16), "m.weight_format": ("U8", [], b"\0")}
state = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [16, 64]}).encode()
levels = struct.pack("<16f", -1, -.6961928, -.52507305, -.39491749, -.28444138, -.18477343, -.09105004, 0, .0795803, .1609302, .2461123, .33791524, .44070983, .562617,
                     .72295684, 1)
nf4_parts = {"m.weight": ("U8", [512, 1], scrambled(128, 7)), "m.weight.absmax": ("F32", [16], single * 16), "m.weight.quant_map": ("F32", [16], levels),
             "m.weight.quant_state.bitsandbytes__nf4": ("U8", [len(state)], state)}
compressed = {"quant_method": "compressed-tensors", "format": "pack-quantized",
              "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "group_size": 32, "symmetric": True, "strategy": "group"}}}}
bitsandbytes = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
states = {k: state.replace(b, c) for k, b, c in (("type", b'"nf4"', b'"fp4"'), ("block_0", b": 64,", b": 0,"), ("block_huge", b": 64,", b": 4611686018427387904,"),
                                                ("shape_huge", b"[16,", b"[4611686018427387904,"), ("deep", b"[16, 64]", b"[" * 3000), ("repeated", b'"blocksize"', b'"shape"'))}
good = {"gptq": (gptq, gptq_parts), "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}, awq_parts),
        "compressed_tensors": (compressed, packed_parts), "nvfp4": ({**compressed, "format": "nvfp4-pack-quantized"}, nvfp4_parts),
        "mxfp4": ({**compressed, "format": "mxfp4-pack-quantized"}, mxfp4_parts),
        "int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, int8_parts), "nf4": (bitsandbytes, nf4_parts), "unsaid": (None, gptq_parts)}
for name, (config, parts) in good.items():
    save("checkpoint", name, checkpoint(config, parts))
    for part in list(parts)[1:]:
        save("checkpoint", f"{name}_without_{part.rsplit('.', 1)[1]}", checkpoint(config, {k: v for k, v in parts.items() if k != part}))
    dtype, shape, data = parts[list(parts)[0]]
    shorter = data[:len(data) // shape[0] * (shape[0] - 1)]
    save("checkpoint", f"bad_{name}_short", checkpoint(config, {**parts, list(parts)[0]: (dtype, [shape[0] - 1, *shape[1:]], shorter)}))
for name, data in {
    "bad_group": checkpoint(gptq, {**gptq_parts, "m.g_idx": ("I32", [64], struct.pack("<64i", *[9999] * 64))}),
    "bad_group_negative": checkpoint(gptq, {**gptq_parts, "m.g_idx": ("I32", [64], struct.pack("<64i", *[-1] * 64))}),
    "bad_shape_huge": checkpoint(compressed, {**packed_parts, "m.weight_shape": ("I64", [2], struct.pack("<2q", 1 << 40, 1 << 40))}),
    "bad_shape_negative": checkpoint(compressed, {**packed_parts, "m.weight_shape": ("I64", [2], struct.pack("<2q", -16, 64))}),
    "bad_global_scale": checkpoint(good["nvfp4"][0], {**nvfp4_parts, "m.weight_global_scale": ("F32", [1], struct.pack("<f", 1e-44))}),
    "bad_scale_nan": checkpoint(good["nvfp4"][0], {**nvfp4_parts, "m.weight_scale": ("F8_E4M3", [16, 4], b"\x7f" * 64)}),
    "bad_marker": checkpoint(good["int8"][0], {**int8_parts, "m.weight_format": ("U8", [], b"\1")}),
    **{"bad_state_" + k: checkpoint(bitsandbytes, {**nf4_parts, "m.weight.quant_state.bitsandbytes__nf4": ("U8", [len(text)], text)}) for k, text in states.items()},
    "bad_state": checkpoint(bitsandbytes, {**nf4_parts, "m.weight.quant_state.bitsandbytes__nf4": ("U8", [4], b"{]{]")}),
    "bad_method": checkpoint({"quant_method": "hqq"}, gptq_parts), "bad_config": checkpoint([], gptq_parts), "bad_config_json": b"{\0",
    "huge_bits": checkpoint({**gptq, "bits": 1 << 62, "group_size": -3}, gptq_parts)}.items():
    save("checkpoint", name, data)

# Shard indexes ---------------------------------------------------------------------------------------------------------------------
index = {"metadata": {"total_size": 8}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
save("shard_index", "good", json.dumps(index))
for name, file in {"parent": "../a", "absolute": "/etc/passwd", "dots": "..", "dot": ".", "empty": "", "backslash": "..\\a", "nul": "a\0b", "number": 7}.items():
    save("shard_index", "bad_" + name, json.dumps({"weight_map": {"a": file}}))
save("shard_index", "bad_no_map", "{}")
save("shard_index", "bad_map_kind", '{"weight_map":[]}')
save("shard_index", "bad_deep", "[" * 3000)
save("shard_index", "bad_repeated", '{"weight_map":{"a":"x","a":"y"}}')

# Hugging Face's JSON -----------------------------------------------------------------------------------------------------------------
config = {"model_type": "llama", "vocab_size": 11, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2,
          "num_key_value_heads": 1, "max_position_embeddings": 16, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
save("hf_config", "good", json.dumps(config))
save("hf_config", "llama3", json.dumps({**config, "rope_scaling": llama3}))
save("hf_config", "rope_parameters", json.dumps({**config, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}))
for name, change in {"heads_0": {"num_attention_heads": 0}, "heads_text": {"num_attention_heads": "2"}, "hidden_huge": {"hidden_size": 1 << 63},
                     "hidden_negative": {"hidden_size": -4}, "layers_float": {"num_hidden_layers": 1e300}, "type": {"model_type": "gpt2"},
                     "epsilon": {"rms_norm_eps": "x"}, "scaling": {"rope_scaling": {"rope_type": "yarn"}}, "scaling_kind": {"rope_scaling": 3},
                     "llama3_missing": {"rope_scaling": {"rope_type": "llama3"}}, "llama3_negative": {"rope_scaling": {**llama3, "factor": -8}},
                     "head_dim": {"head_dim": 1 << 25}}.items():
    save("hf_config", "bad_" + name, json.dumps({**config, **change}))
save("hf_config", "bad_deep", '{"a":' + "[" * 3000)
save("hf_config", "bad_kind", "[]")
save("hf_config", "bad_repeated", json.dumps(config)[:-1] + ', "rope_theta": 500000.0}')

bpe = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "\u0120": 3}, "merges": ["a b", ["\u0120", "a"]]},
       "added_tokens": [{"id": 4, "content": "<s>", "special": True}], "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
       "bos_token": "<s>", "add_bos_token": True}
fallback = {"model": {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "vocab": {w: i for i, w in enumerate(words)}, "merges": ["a b", "\u2581 a"]},
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}]}, "bos_token_id": 1}
save("hf_tokeniser", "byte_level", json.dumps(bpe))
save("hf_tokeniser", "smollm", json.dumps({**bpe, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, bpe["pre_tokenizer"]]}}))
save("hf_tokeniser", "byte_fallback", json.dumps(fallback))
for name, change in {"no_model": {"model": None}, "vocab_kind": {"model": {**bpe["model"], "vocab": [1]}}, "id_huge": {"model": {**bpe["model"], "vocab": {"a": 1 << 40}}},
                     "id_negative": {"model": {**bpe["model"], "vocab": {"a": -1}}}, "id_text": {"model": {**bpe["model"], "vocab": {"a": "x"}}},
                     "merges": {"model": {**bpe["model"], "merges": [[1]]}}, "added": {"added_tokens": [{"id": 1}]},
                     "added_float": {"added_tokens": [{"id": 8e102, "content": "<s>"}]}, "type": {"model": {**bpe["model"], "type": "WordPiece"}},
                     "cutter": {"pre_tokenizer": {"type": "Whitespace"}}, "bos": {"bos_token": 7}}.items():
    save("hf_tokeniser", "bad_" + name, json.dumps({**bpe, **change}))
save("hf_tokeniser", "bad_deep", '{"model":' + "[" * 3000)
save("hf_tokeniser", "bad_repeated", json.dumps(bpe).replace('"a": 0', '"a": 0, "a": 1'))


# llama2.c --------------------------------------------------------------------------------------------------------------------------
def llama2c(dim=4, hidden=6, layers=1, heads=2, kv=1, vocabulary=3, positions=4, cut=0, piece=None):
    head = struct.pack("<7i", dim, hidden, layers, heads, kv, vocabulary, positions)
    floats = 0
    if 0 < dim < 64 and 0 < layers < 64 and abs(vocabulary) < 64 and heads > 0 and dim % heads == 0:
        size, kv_size, v = dim // heads, dim // heads * kv, abs(vocabulary)
        floats = v * dim + layers * (2 * dim + 2 * dim * dim + 2 * kv_size * dim + 3 * dim * hidden) + dim + positions * size + (v * dim if vocabulary < 0 else 0)
    tokenizer = struct.pack("<i", 5) + b"".join(struct.pack("<fi", 0.0, len(p) if piece is None else piece) + p for p in (b"<unk>", b"<s>", b"</s>")[:max(0, abs(vocabulary))])
    body = head + bytes(4 * floats)
    return body[:len(body) - cut] + tokenizer + struct.pack("<I", len(tokenizer))


save("llama2c", "tied", llama2c())
save("llama2c", "with_head", llama2c(vocabulary=-3))
for name, data in {"dim_0": llama2c(dim=0), "negative": llama2c(hidden=-6), "huge": llama2c(dim=1 << 24, hidden=1 << 24, layers=1 << 24), "heads": llama2c(heads=3),
                   "kv": llama2c(kv=3), "cut": llama2c(cut=4), "vocabulary": llama2c(vocabulary=-(1 << 31)), "piece": llama2c(piece=-1), "piece_huge": llama2c(piece=1 << 30)}.items():
    save("llama2c", "bad_" + name, data)


# PEFT ------------------------------------------------------------------------------------------------------------------------------
peft = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "rank_pattern": {"k_proj": 4}, "alpha_pattern": {"k_proj": 2.5}, "bias": "none", "use_rslora": True}
factors = {f"base_model.model.model.layers.{n}.self_attn.{m}.lora_{f}.weight": ("F32", [r, 4] if f == "A" else [4, r], single * 4 * r)
           for n, m, r in ((0, "q_proj", 8), (0, "k_proj", 4)) for f in "AB"}
save("peft_adapter", "good", checkpoint(peft, factors))
for name, change in {"type": {"peft_type": ["LORA"]}, "rank_0": {"r": 0}, "rank_huge": {"r": 1 << 62}, "rank_text": {"r": "8"}, "alpha": {"lora_alpha": None}, "stabilised": {"use_rslora": 1},
                     "targets": {"target_modules": [None]}, "target_missing": {"target_modules": ["o_proj"]}, "pattern": {"rank_pattern": []}, "pattern_value": {"alpha_pattern": {"q": "x"}},
                     "pattern_regex": {"rank_pattern": {".*": 1}}, "saved": {"modules_to_save": {"a": 1}}, "dora": {"use_dora": "yes"}, "tokens": {"trainable_token_indices": [1]},
                     "activated": {"alora_invocation_tokens": [3, 4]}, "replicated": {"layer_replication": [[0, 1], [0, 1]]}}.items():
    save("peft_adapter", "bad_" + name, checkpoint({**peft, **change}, factors))
names = list(factors)
for name, change in {"alone": {k: v for k, v in factors.items() if k != names[1]}, "none": {}, "rank": {**factors, names[0]: ("F32", [4, 4], single * 16)},
                     "values": {**factors, names[0]: ("F32", [8, 4], b"\xff" * 128)}, "tensor_type": {**factors, names[0]: ("I32", [8, 4], bytes(128))},
                     "vector": {**factors, names[0]: ("F32", [32], single * 32)}, "other": {**factors, "base_model.model.lm_head.weight": ("F32", [1], single)}}.items():
    save("peft_adapter", "bad_" + name, checkpoint(peft, change))
whole = checkpoint(peft, factors)
save("peft_adapter", "bad_deep", whole.replace(b'"bias": "none"', b'"bias": ' + b"[" * 3000))
save("peft_adapter", "bad_repeated", whole.replace(b'"r": 8', b'"r": 8, "r": 4'))

# A Hugging Face folder ---------------------------------------------------------------------------------------------------------------
small = {**config, "vocab_size": 3, "num_key_value_heads": 2, "tie_word_embeddings": True}
names = {"model.embed_tokens.weight": [3, 4], "model.norm.weight": [4], "model.layers.0.input_layernorm.weight": [4], "model.layers.0.post_attention_layernorm.weight": [4],
         **{f"model.layers.0.self_attn.{m}_proj.weight": [4, 4] for m in "qkvo"}, "model.layers.0.mlp.gate_proj.weight": [6, 4], "model.layers.0.mlp.up_proj.weight": [6, 4],
         "model.layers.0.mlp.down_proj.weight": [4, 6]}
plain = {n: ("F32", shape, single * (shape[0] * shape[-1] if len(shape) == 2 else shape[0])) for n, shape in names.items()}
query = "model.layers.0.self_attn.q_proj"
wide = {**small, "hidden_size": 64}
packed = {f"{query}.{n.split('.', 1)[1]}": v for n, v in packed_parts.items()}
for name, data in {
    "floats": checkpoint(small, plain), "bias_of_zeros": checkpoint(small, {**plain, query + ".bias": ("F32", [4], bytes(16))}),
    "quantised": checkpoint({**wide, "quantization_config": compressed}, {**{k: v for k, v in plain.items() if "q_proj" not in k}, **packed}),
    "bad_bias": checkpoint(small, {**plain, query + ".bias": ("F32", [4], single * 4)}), "bad_name": checkpoint(small, {**plain, "model.vision.weight": ("F32", [1], single)}),
    "bad_type": checkpoint(small, {**plain, query + ".weight": ("F64", [4, 4], bytes(128))}), "bad_rank": checkpoint(small, {**plain, query + ".weight": ("F32", [1, 4, 4], single * 16)}),
    "bad_shape": checkpoint(small, {**plain, query + ".weight": ("F32", [2, 8], single * 16)}), "bad_missing": checkpoint(small, {k: v for k, v in plain.items() if "gate" not in k}),
    "bad_tied": checkpoint({**small, "tie_word_embeddings": 3}, plain), "bad_codes": checkpoint(small, {**plain, **packed}), "bad_config": checkpoint([], plain),
}.items():
    save("hf_folder", name, data)
