#!/usr/bin/env python3
"""GGUF files that lowbit writes, read by the `gguf` package: every tensor's values are those that lowbit decodes, whatever its type, in one
file and in several. Usage: gguf_reader.py FOLDER, which holds for each case NAME.gguf (or its parts) and NAME.f32.gguf, the same model
as lowbit reads it, in float32. Prints one line and succeeds where `gguf` is not installed."""
import pathlib
import re
import sys

try:
    import numpy as np
    from gguf import GGUFReader
    from gguf.quants import dequantize
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(0)


def tensors(paths):
    for path in paths:
        for t in GGUFReader(path).tensors:
            yield t.name, t.tensor_type.name, dequantize(t.data, t.tensor_type).reshape(-1)


folder = pathlib.Path(sys.argv[1])
compared, types = 0, set()
for reference in sorted(folder.glob("*.f32.gguf")):
    name = reference.name.removesuffix(".f32.gguf")
    parts = sorted(p for p in folder.glob(f"{name}*.gguf") if re.fullmatch(re.escape(name) + r"(-\d{5}-of-\d{5})?\.gguf", p.name))
    expected = {n: v for n, _, v in tensors([reference])}
    found = list(tensors(parts))
    assert {n for n, _, _ in found} == set(expected), f"{name}: other tensors than lowbit's"
    for n, kind, values in found:
        assert np.array_equal(values, expected[n]), f"{name}: {n} ({kind}) has other values than lowbit's"
        compared += values.size
        types.add(kind)
assert compared, f"nothing to compare in {folder}"
print(f"{compared} weights are equal, of types {', '.join(sorted(types))}")
