"""ggml: the bytes that lowbit quantises weights to are ggml's, for every type that is written, with and without importance, on every
instruction set that the machine has, on 2^20 normal and 2^20 heavy-tailed weights.

Usage: ggml_bytes.py HELPER, the executable of ggml_bytes.cpp, or the words of a command that runs it on an emulated machine. ggml itself (libggml-base, called through ctypes) comes with
llama-cpp-python or llama-cpp-py-sync. Zeros, repeated numbers and a row's very different magnitudes are among the weights.
"""
import ctypes
import importlib.metadata
import importlib.util
import os
import pathlib
import subprocess
import sys

from common import SKIPPED, Folder, tool

numpy = tool("numpy")
TYPES = {"q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "q2_k": 10, "q3_k": 11, "q4_k": 12, "q5_k": 13, "q6_k": 14, "iq4_nl": 20, "iq4_xs": 23,
         "tq1_0": 34, "tq2_0": 35, "mxfp4": 39, "nvfp4": 40, "q1_0": 41, "q2_0": 42}
ROWS, COLS = 512, 2048


def load_ggml():
    why = "neither llama_cpp nor llama_cpp_py_sync is installed"
    for package in ("llama_cpp_py_sync", "llama_cpp"):
        found = importlib.util.find_spec(package)
        for file in sorted(pathlib.Path(found.origin).parent.rglob("libggml-base.so*")) if found else []:
            try:
                ggml = ctypes.CDLL(str(file))
            except OSError as error:
                why = str(error)
                continue
            ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
            ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
            ggml.ggml_row_size.restype = ctypes.c_size_t
            ggml.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
            ggml.ggml_type_name.restype = ctypes.c_char_p
            ggml.ggml_type_name.argtypes = [ctypes.c_int]
            return ggml, f"{package.replace('_', '-')} {importlib.metadata.version(package)}"
    print(f"skipped: ggml cannot be loaded ({why})")
    sys.exit(SKIPPED)


def weights_of(kind, random):
    if kind == "normal":
        return (random.standard_normal((ROWS, COLS)) * 0.02).astype(numpy.float32)
    x = random.standard_t(1.5, (ROWS, COLS)) * 0.02  # a variance that does not exist
    x[::7, 256:512] = 0
    x[1::7] *= 2.0 ** random.integers(-20, 20, x[1::7].shape)
    x[2::7] = numpy.round(x[2::7] * 100) / 100
    x[3::7] = numpy.abs(x[3::7])
    return x.astype(numpy.float32)


ggml, origin = load_ggml()
helper = sys.argv[1:]


def run(arch, *arguments):
    try:
        done = subprocess.run([*helper, *map(str, arguments)], env=dict(os.environ, LOWBIT_ARCH=arch), capture_output=True, text=True)
    except OSError as error:  # not built, or for another machine
        print(f"skipped: the helper does not run ({error})")
        sys.exit(SKIPPED)
    if done.returncode != 0:
        sys.exit(f"{' '.join(helper)} failed: {done.stderr}")
    return done.stdout.split()


units = run("")
random = numpy.random.default_rng(7)
compared = 0
with Folder() as folder:
    for kind in ("normal", "heavy-tailed"):
        weights = weights_of(kind, random)
        importance = (random.standard_exponential(COLS) ** 2 + 1e-3).astype(numpy.float32)
        weights.tofile(folder / "weights")
        importance.tofile(folder / "importance")
        expected = {}
        for name, number in TYPES.items():
            assert ggml.ggml_type_name(number).decode().lower() == name, f"ggml calls {number} {ggml.ggml_type_name(number)}"
            for weighted in (False, True):
                out = numpy.zeros((ROWS, ggml.ggml_row_size(number, COLS)), numpy.uint8)
                ggml.ggml_quantize_chunk(number, weights.ctypes.data, out.ctypes.data, 0, ROWS, COLS, importance.ctypes.data if weighted else None)
                expected[name + (".weighted" if weighted else "")] = out
        for arch in units:
            (folder / arch).mkdir(exist_ok=True)
            used = run(arch, folder / "weights", ROWS, COLS, folder / "importance", folder / arch)
            assert used == [arch], f"{used} ran where {arch} was asked for"
            others = {p.name.removesuffix(".weighted") for p in (folder / arch).iterdir()} ^ set(TYPES)
            assert not others, f"{', '.join(sorted(others))}: not on both sides"
            for name, theirs in expected.items():
                ours = numpy.fromfile(folder / arch / name, numpy.uint8).reshape(theirs.shape)
                if not numpy.array_equal(ours, theirs):
                    rows = numpy.nonzero((ours != theirs).any(1))[0]
                    sys.exit(f"{name} of {kind} weights on {arch}: {len(rows)} of {ROWS} rows differ, {int((ours != theirs).sum())} bytes, the first in row {rows[0]}")
                compared += 1
print(f"{origin}: the same bytes in {compared} comparisons of {ROWS * COLS} weights each, of {len(TYPES)} types, with and without importance, "
      f"on {', '.join(units)}")
