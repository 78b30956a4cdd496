"""Writes gguf/blocks.safetensors: weights and the blocks the gguf package makes of them, and blocks with the values it reads from them.

    python make_gguf_golden.py          (gguf 0.19.0, numpy 2.4, safetensors 0.8)

q4_0, q5_0, q8_0: `<type>.blocks` are gguf.quants.quantize(weights), which the engine must equal byte for byte. For every type, `<type>.random` are
arbitrary blocks with finite scales and `<type>.values` what gguf.quants.dequantize reads from them, which the engine must equal bit for bit.
`q4_k.rounded` and `q6_k.rounded` are the weights after plain rounding to the best uniform grid of each group (no search, exact scales): an error the
engine's search must stay below although its scales are themselves rounded.
"""
import numpy as np
from gguf import GGMLQuantizationType as T, quants
from gguf.constants import GGML_QUANT_SIZES
from safetensors.numpy import save_file

rng = np.random.default_rng(20240229)
rows = [rng.standard_normal(512) * 0.02, rng.standard_t(3, 512) * 0.05, np.abs(rng.standard_normal(512)), -np.abs(rng.standard_normal(512)),
        np.zeros(512), rng.integers(-8, 8, 512) * 0.125, rng.standard_normal(512) * 1e-9, np.full(512, 0.75), rng.standard_normal(512) * 100]
weights = np.stack(rows).astype(np.float32)
weights[0, :64] = 0  # a group of zeros inside a row
out = {"weights": weights}
for name, kind in {"q4_0": T.Q4_0, "q5_0": T.Q5_0, "q8_0": T.Q8_0, "q4_k": T.Q4_K, "q6_k": T.Q6_K}.items():
    values, size = GGML_QUANT_SIZES[kind]
    if values == 32:
        out[f"{name}.blocks"] = quants.quantize(weights, kind)
    blocks = rng.integers(0, 256, (16, size), dtype=np.uint8)
    scales = (rng.standard_normal((16, 2)) * 0.01).astype(np.float16).view(np.uint8).reshape(16, 4)
    if name == "q6_k":
        blocks[:, 208:210] = scales[:, :2]
    else:
        blocks[:, : 4 if name == "q4_k" else 2] = scales[:, : 4 if name == "q4_k" else 2]
    out[f"{name}.random"] = blocks
    out[f"{name}.values"] = quants.dequantize(blocks, kind)


def rounded(group, levels, symmetric):
    x = weights.reshape(-1, group).astype(np.float64)
    low = np.zeros((len(x), 1)) if symmetric else np.minimum(x.min(1, keepdims=True), 0)
    step = (np.abs(x).max(1, keepdims=True) if symmetric else x.max(1, keepdims=True) - low) / levels
    q = np.round(np.divide(x - low, step, out=np.zeros_like(x), where=step > 0))
    return (q * step + low).reshape(weights.shape).astype(np.float32)


out["q4_k.rounded"] = rounded(32, 15, False)
out["q6_k.rounded"] = rounded(16, 31, True)
import os
os.makedirs(os.path.join(os.path.dirname(__file__), "gguf"), exist_ok=True)
save_file({key: np.ascontiguousarray(value) for key, value in out.items()}, os.path.join(os.path.dirname(__file__), "gguf", "blocks.safetensors"))
