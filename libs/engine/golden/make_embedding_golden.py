"""Writes the hidden states of this folder's models after their final norm, judged by transformers and PEFT: embeddings/<case>.{json,safetensors}.

    python3 make_embedding_golden.py GOLDEN_DIR [NAME=MODEL_DIR …]      (needs torch, transformers, peft and safetensors; CPU is enough)

For every family, and for every other model that is named, with real weights or not:
  hidden_i             fp32 last hidden states [T, hidden] of token sequence i
  adapted_i            the same with adapters/<family>/adapter, where there is one
  bf16_mean_error      ||mean_t hidden(bf16 model) - mean_t hidden|| / ||mean_t hidden|| over all sequences, the error of a plain bf16 computation
  sequences            the token sequences, where the case has none of its own
Files change only by running this script; the JSON records the versions that wrote them.
"""
import json
import os
import sys

import torch
import transformers
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

FAMILIES = ["llama3", "llama_bias_linear", "llama_dynamic", "mistral", "qwen2_window", "qwen2_yarn", "qwen3", "gemma", "gemma2", "gemma3"]
LENGTHS = (1, 29, 130)  # of sequences for models that bring none


def load(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def hidden_states(model, sequences):
    # The last of `hidden_states` is what the head reads: after the final norm.
    return [model(input_ids=torch.tensor([s]), use_cache=False, output_hidden_states=True).hidden_states[-1][0].float().contiguous() for s in sequences]


def make(name, folder, sequences, adapter, out):
    with torch.no_grad():
        full = hidden_states(load(folder), sequences)
        half = hidden_states(load(folder, torch.bfloat16), sequences)
        tensors = {f"hidden_{i}": h for i, h in enumerate(full)}
        if adapter is not None:
            tensors |= {f"adapted_{i}": h for i, h in enumerate(hidden_states(PeftModel.from_pretrained(load(folder), adapter), sequences))}
    exact, low = (torch.cat([h.mean(0) for h in hs]) for hs in (full, half))
    error = ((low - exact).norm() / exact.norm()).item()
    save_file(tensors, os.path.join(out, f"{name}.safetensors"))
    with open(os.path.join(out, f"{name}.json"), "w") as f:
        json.dump(dict(transformers=transformers.__version__, torch=torch.__version__, sequences=sequences, bf16_mean_error=error), f)
    print(f"{name}: bf16 error of the means {error:.2e}")


if __name__ == "__main__":
    golden = sys.argv[1]
    out = os.path.join(golden, "embeddings")
    os.makedirs(out, exist_ok=True)
    for family in FAMILIES:
        with open(os.path.join(golden, family, "reference.json")) as f:
            own = json.load(f)["sequences"]
        adapter = os.path.join(golden, "adapters", family, "adapter")
        make(family, os.path.join(golden, family), own, adapter if os.path.isdir(adapter) else None, out)
    for argument in sys.argv[2:]:
        name, folder = argument.split("=", 1)
        with open(os.path.join(folder, "config.json")) as f:
            vocabulary = json.load(f)["vocab_size"]
        generator = torch.Generator().manual_seed(3407)
        drawn = [torch.randint(3, vocabulary, (n,), generator=generator).tolist() for n in LENGTHS]
        make(name, folder, drawn, None, out)
