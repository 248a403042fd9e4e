"""What calibration is for, judged by an unmodified llama.cpp: files of one type and one size, its own (without and with an importance matrix)
and lowbit's by error feedback, compared by their divergence from the float model. And LLM.int8's float columns, as an adapter that it runs.
"""
import subprocess

from common import Folder, arguments, float_model, lowbit, tool
from llamacpp import Model, numpy, quantise, version

gguf = tool("gguf")
executable, model = arguments()
TYPES = {"q4_k": 14, "q3_k": 11, "iq4_nl": 25, "q4_0": 2, "q2_k": 10}
METHODS = ("gptq", "awq+gptq")
WINDOW, WINDOWS, CALIBRATION = 255, 6, 8192


def written(path, tokens, seed):
    """A text by the float model."""
    lines = [subprocess.run([executable, "generate", model, "--tokens", "500", "--temperature", "1", "--seed", str(seed + i), "--threads", "1"],
                            capture_output=True, check=True).stdout.decode() for i in range(tokens // 500 + 1)]
    path.write_text("\n".join(lines))
    return path


def importance_of(path):
    """Mean squares of inputs, by tensor, from an importance matrix."""
    found = {t.name: numpy.array(t.data, numpy.float32).reshape(-1) for t in gguf.GGUFReader(str(path)).tensors}
    return {name.removesuffix(".in_sum2"): values / found[name.replace(".in_sum2", ".counts")][0] for name, values in found.items() if name.endswith(".in_sum2")}


class Judge:
    def __init__(self, source, text):
        with Model(source) as m:
            ids = m.ids(text)
            self.windows = [ids[i * WINDOW:(i + 1) * WINDOW] for i in range(WINDOWS)]
            assert len(self.windows[-1]) == WINDOW
            self.reference = [m.log_probabilities(w) for w in self.windows]

    def __call__(self, path, adapter=None):
        """Perplexity, and mean divergence from the float model."""
        with Model(path, adapter=adapter) as m:
            found = [m.log_probabilities(w) for w in self.windows]
        loss = numpy.mean([-p[range(WINDOW), w].mean() for p, w in zip(found, self.windows)])
        return float(numpy.exp(loss)), float(numpy.mean([(numpy.exp(r) * (r - p)).sum(1).mean() for r, p in zip(self.reference, found)]))


with Folder() as folder:
    source = float_model(executable, model, folder).with_suffix(".gguf")
    calibration = ("--calibration", written(folder / "calibration.txt", 2 * CALIBRATION, 1000), "--calibration-tokens", CALIBRATION)
    judge = Judge(source, written(folder / "text.txt", 2 * WINDOW * WINDOWS, 5000).read_text())
    lowbit(executable, "imatrix", source, folder / "m.imatrix.gguf", *calibration)
    importance = importance_of(folder / "m.imatrix.gguf")
    print(f"float32: perplexity {judge(source)[0]:.4f}; mean divergence from it:")
    for form, number in TYPES.items():
        sizes, results = set(), {}
        for name, weights in (("llama.cpp", None), ("llama.cpp, imatrix", importance)):
            quantise(source, folder / "q.gguf", number, importance=weights)
            results[name] = judge(folder / "q.gguf")
            sizes.add(sum(t.n_bytes for t in gguf.GGUFReader(str(folder / "q.gguf")).tensors))
        for method in METHODS:
            lowbit(executable, "quantise", source, folder / "q.gguf", "--format", form, "--method", method, *calibration)
            results[method] = judge(folder / "q.gguf")
            sizes.add(sum(t.n_bytes for t in gguf.GGUFReader(str(folder / "q.gguf")).tensors))
        print(f"{form}: " + "; ".join(f"{name} {kl:.3e} ({ppl:.4f})" for name, (ppl, kl) in results.items()))
        if len(sizes) != 1:
            raise SystemExit(f"{form}: files of {sizes} bytes of tensors")
        ours = min(results[m][1] for m in METHODS)
        if not ours < 0.95 * min(results["llama.cpp"][1], results["llama.cpp, imatrix"][1]):
            raise SystemExit(f"{form}: lowbit's best is not below llama.cpp's")

    lowbit(executable, "quantise", source, folder / "o.gguf", "--format", "q8_0", "--method", "llm-int8", *calibration)
    without, whole = judge(folder / "o.gguf")[1], judge(folder / "o.gguf", folder / "o.outliers.gguf")[1]
    print(f"llm-int8 in q8_0: {without:.3e} without its adapter, {whole:.3e} with it")
    if not whole < 0.01 * without:
        raise SystemExit("llama.cpp does not add the outliers' columns")
print(f"{version()}: lower divergence at the same size in {len(TYPES)} types")
