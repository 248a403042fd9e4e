"""What the tests against llama.cpp share: its library, from llama-cpp-py-sync, and a model's logits from it."""
from common import tool

numpy = tool("numpy")
bindings = tool("llama_cpp_py_sync._cffi_bindings")

try:
    ffi, lib = bindings.get_ffi(), bindings.get_lib()
except Exception as error:
    print(f"skipped: llama.cpp cannot be loaded ({str(error).splitlines()[0]})")
    raise SystemExit(77)
quiet = ffi.callback("void(enum ggml_log_level, const char *, void *)")(lambda *_: None)
lib.llama_log_set(quiet, ffi.NULL)
lib.llama_backend_init()


class Model:
    """A GGUF file, with an adapter or without, in a context of so many tokens; one thread, keys and values in float32."""

    def __init__(self, path, tokens=256, adapter=None):
        self.model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        if self.model == ffi.NULL:
            raise SystemExit(f"llama.cpp does not load {path.name}")
        self.words = lib.llama_model_get_vocab(self.model)
        self.settings = lib.llama_context_default_params()
        self.settings.n_ctx = self.settings.n_batch = self.settings.n_ubatch = self.settings.n_outputs_max = tokens
        self.settings.n_threads = self.settings.n_threads_batch = 1
        self.settings.type_k = self.settings.type_v = self.settings.flash_attn_type = 0
        self.adapter = ffi.NULL
        if adapter is not None:
            self.adapter = lib.llama_adapter_lora_init(self.model, str(adapter).encode())
            if self.adapter == ffi.NULL:
                raise SystemExit(f"llama.cpp does not load the adapter {adapter.name}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.adapter != ffi.NULL:
            lib.llama_adapter_lora_free(self.adapter)
        lib.llama_model_free(self.model)

    def ids(self, text):
        """A text's tokens, without the one that begins texts."""
        data = text.encode()
        room = ffi.new("int32_t[]", len(data) + 1)
        return list(room[0:lib.llama_tokenize(self.words, data, len(data), room, len(data) + 1, False, False)])

    def log_probabilities(self, ids):
        """Behind each token but the last, of every next one; the token that begins texts comes first. Float64."""
        ids = [lib.llama_vocab_bos(self.words), *ids]
        context = lib.llama_init_from_model(self.model, self.settings)
        if self.adapter != ffi.NULL:
            assert lib.llama_set_adapters_lora(context, ffi.new("struct llama_adapter_lora *[]", [self.adapter]), 1, ffi.new("float[]", [1.0])) == 0
        batch = lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, t in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = t, i, 1, 0, 1
        assert lib.llama_decode(context, batch) == 0
        n = lib.llama_vocab_n_tokens(self.words)
        logits = numpy.stack([numpy.frombuffer(ffi.buffer(lib.llama_get_logits_ith(context, i), 4 * n), numpy.float32) for i in range(len(ids) - 1)])
        logits = logits.astype(numpy.float64)
        lib.llama_batch_free(batch)
        lib.llama_free(context)
        logits -= logits.max(1, keepdims=True)
        return logits - numpy.log(numpy.exp(logits).sum(1, keepdims=True))


def quantise(source, target, ftype, pure=True, importance=None):
    """llama.cpp's own quantiser, on one thread; `importance` holds an array of floats for each tensor."""
    settings = ffi.new("llama_model_quantize_params *", lib.llama_model_quantize_default_params())
    settings.ftype, settings.nthread, settings.pure = ftype, 1, pure
    kept = []
    if importance:
        data = ffi.new("struct llama_model_imatrix_data[]", len(importance) + 1)  # the last one's name is null
        for i, (name, values) in enumerate(importance.items()):
            kept += [ffi.new("char[]", name.encode()), ffi.new("float[]", [float(v) for v in values])]
            data[i].name, data[i].data, data[i].size = kept[-2], kept[-1], len(values)
        settings.imatrix = data
    if lib.llama_model_quantize(str(source).encode(), str(target).encode(), settings) != 0:
        raise SystemExit(f"llama.cpp does not quantise {source.name} to {target.name}")


def version():
    import importlib.metadata
    commit = next((line.split()[-1] for line in open(bindings.__file__) if line.startswith("llama.cpp commit:")), "unknown")
    return f"llama-cpp-py-sync {importlib.metadata.version('llama-cpp-py-sync')} (llama.cpp {commit[:8]})"
