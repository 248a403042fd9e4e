"""What the interoperability tests share: running lowbit, reading safetensors, and skipping where a tool is not installed.

A test is `python3 NAME.py LOWBIT MODEL`: the executable and a small Llama as a Hugging Face folder. Exit code 77 says "skipped".
"""
import importlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

SKIPPED = 77


def tool(name):
    """The module of that name; ends the test, saying so in one line, where it cannot be imported."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # a broken installation is as good as none
        print(f"skipped: {name} cannot be imported ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})")
        sys.exit(SKIPPED)


def arguments():
    return sys.argv[1], sys.argv[2]


def lowbit(executable, *args):
    done = subprocess.run([executable, *map(str, args), "--threads", "1"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"lowbit {' '.join(map(str, args))} failed: {done.stderr}")
    return done.stdout


class Folder:
    """A temporary folder that is removed again."""

    def __enter__(self):
        self.path = pathlib.Path(tempfile.mkdtemp(prefix="lowbit-interoperability-"))
        return self.path

    def __exit__(self, *_):
        shutil.rmtree(self.path)


def load(folder):
    """All tensors of a Hugging Face folder, as numpy arrays (no bfloat16)."""
    from safetensors.numpy import load_file
    tensors = {}
    for file in sorted(pathlib.Path(folder).glob("*.safetensors")):
        tensors.update(load_file(str(file)))
    return tensors


def float_model(executable, model, folder, name="f32"):
    """The model in float32, so that numpy can read it: through GGUF (NAME.gguf), whose floats are wider."""
    lowbit(executable, "quantise", model, folder / f"{name}.gguf", "--format", "f32")
    lowbit(executable, "convert", folder / f"{name}.gguf", folder / name, "--to", "hf")
    return folder / name


def write_model(source, target, tensors, quantization_config):
    """A folder with the configuration and tokenizer of another, other tensors, and this quantization_config."""
    from safetensors.numpy import save_file
    target.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pathlib.Path(source) / name, target / name)
    config = json.loads((pathlib.Path(source) / "config.json").read_text())
    config["quantization_config"] = quantization_config
    (target / "config.json").write_text(json.dumps(config))
    save_file(tensors, str(target / "model.safetensors"), metadata={"format": "pt"})


def floats_of(executable, model, folder, name):
    """What lowbit reads in a model, as float tensors."""
    lowbit(executable, "convert", model, folder / name, "--to", "hf")
    return load(folder / name)


def is_matrix(name):
    return name.endswith("_proj.weight")


def same(expected, found, what, ulps=0):
    """Ends the test unless the arrays are equal, or within so many units in the last place of float32."""
    import numpy
    expected, found = numpy.asarray(expected, numpy.float32), numpy.asarray(found).astype(numpy.float32)
    if expected.shape != found.shape:
        sys.exit(f"{what}: shape {found.shape} where {expected.shape} was due")
    far = numpy.abs(expected.astype(numpy.float64) - found.astype(numpy.float64)) > ulps * numpy.spacing(numpy.abs(expected))
    if far.any():
        at = tuple(int(i[0]) for i in numpy.nonzero(far))
        sys.exit(f"{what}: {int(far.sum())} of {expected.size} values differ, first at {at}: {found[at]!r} where {expected[at]!r} was due")
