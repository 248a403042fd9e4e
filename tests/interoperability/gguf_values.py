"""gguf and safetensors: the packages read what lowbit writes, and de-quantise it to lowbit's floats."""
import importlib.metadata

from common import Folder, arguments, float_model, load, lowbit, same, tool

numpy = tool("numpy")
gguf = tool("gguf")
safetensors = tool("safetensors")
executable, model = arguments()

with Folder() as folder:
    source = float_model(executable, model, folder)
    for form in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "tq1_0", "tq2_0", "mxfp4", "nvfp4", "f16", "bf16"):
        file = folder / f"{form}.gguf"
        lowbit(executable, "quantise", source, file, "--format", form)
        # To plain floats and back to GGUF: names and rows as in the file.
        floats = load(float_model(executable, file, folder, f"{form}-floats"))
        reader = gguf.GGUFReader(str(file))
        seen, factors = 0, {t.name[:-6]: t.data[0] for t in reader.tensors if t.name.endswith(".scale")}
        for t in reader.tensors:
            if t.name.endswith(".scale") or "attn_q" in t.name or "attn_k" in t.name:
                continue  # rows in another order
            parts = t.name.split(".")
            names = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}
            layer = {"attn_norm": "input_layernorm", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
                     "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
            name = names.get(t.name) or f"model.layers.{parts[1]}.{layer[parts[2]]}.weight"
            try:
                values = gguf.quants.dequantize(t.data, t.tensor_type)
            except NotImplementedError:
                continue  # a type that the package only stores
            values = values * factors.get(t.name.removesuffix(".weight"), numpy.float32(1))
            same(values.reshape(floats[name].shape), floats[name], f"{form} {t.name}")
            seen += 1
        if seen < 8:
            raise SystemExit(f"{form}: only {seen} tensors were compared")
print(f"gguf {importlib.metadata.version('gguf')}, safetensors {safetensors.__version__}: 18 types")
