"""Writes gguf/k_quants.safetensors: blocks of q4_k and q6_k by ggml's reference quantizers.

    python3 make_k_quants_golden.py GOLDEN_DIR GGML_CHECKOUT      (needs numpy, safetensors and a C compiler)

values [blocks, 256] f32: normal, heavy-tailed and uniform; some with groups of nothing, of one sign, of one value, or below what f16 can scale.
q4_k [blocks, 144] and q6_k [blocks, 210]: quantize_row_q4_K_ref's and quantize_row_q6_K_ref's bytes.
"""
import ctypes
import os
import subprocess
import sys
import tempfile

import numpy as np
from safetensors.numpy import save_file

BLOCKS = 32


def reference(checkout, folder):
    """ggml-quants.c as a library; what it calls of the rest of ggml only checks and reports."""
    library, stubs = os.path.join(folder, "quants.so"), os.path.join(folder, "stubs.c")
    with open(stubs, "w") as f:
        f.write("#include <stdlib.h>\nvoid ggml_abort(const char*f,int l,const char*m,...){abort();}\nsize_t ggml_row_size(int t,long n){return 0;}\n"
                "const char*ggml_type_name(int t){return \"\";}\nsize_t ggml_type_size(int t){return 0;}\n")
    source = os.path.join(checkout, "src")
    subprocess.run(["cc", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-I", source, "-I", os.path.join(checkout, "include"), "-I", os.path.join(source, "ggml-cpu"),
                    os.path.join(source, "ggml-quants.c"), stubs, "-lm", "-o", library], check=True)
    return ctypes.CDLL(library)


def values():
    random = np.random.default_rng(3407)
    x = np.empty((BLOCKS, 256), np.float32)
    for i in range(BLOCKS):
        x[i] = (0.02 * random.standard_normal(256), 0.02 * random.standard_t(3, 256), 0.05 * (random.random(256) - 0.5))[i % 3]
    x[3, :64] = 0
    x[4] = np.abs(x[4])
    x[5] = -np.abs(x[5])
    x[6] = 0.25
    x[7] = 0
    x[8] *= 1e-7
    x[9, 32:64] *= 1e-4
    x[10, 100] = 3
    return x


def main(out, checkout):
    x = values()
    tensors = dict(values=x)
    with tempfile.TemporaryDirectory() as folder:
        ggml = reference(checkout, folder)
        for name, function, size in (("q4_k", ggml.quantize_row_q4_K_ref, 144), ("q6_k", ggml.quantize_row_q6_K_ref, 210)):
            blocks = np.zeros((BLOCKS, size), np.uint8)
            function(x.ctypes.data_as(ctypes.c_void_p), blocks.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(x.size))
            tensors[name] = blocks
    save_file(tensors, os.path.join(out, "gguf", "k_quants.safetensors"))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
