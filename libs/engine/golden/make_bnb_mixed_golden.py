"""Writes bnb_mixed/{nested,single}: the qwen3 model of this folder as transformers and bitsandbytes store it in 4 bits with some modules left in bf16.

    python make_bnb_mixed_golden.py          (bitsandbytes 0.50.2.dev0, transformers 5.18, torch 2.13 on the CPU)

Each folder has config.json (llm_int8_skip_modules lists the modules) and model.safetensors as save_pretrained wrote them, and reference.safetensors:
  ids       [T] the tokens
  logits    [T, V] fp32 logits of the model whose 4-bit weights bitsandbytes dequantized to bf16, computed in fp32
"""
import os

import bitsandbytes
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

HERE = os.path.dirname(os.path.abspath(__file__))
KEPT = ["lm_head", "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"]

for name, nested in {"nested": True, "single": False}.items():
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=nested, bnb_4bit_compute_dtype=torch.bfloat16,
                                llm_int8_skip_modules=KEPT)
    model = AutoModelForCausalLM.from_pretrained(os.path.join(HERE, "qwen3"), quantization_config=config, dtype=torch.bfloat16, device_map="cpu")
    out = os.path.join(HERE, "bnb_mixed", name)
    model.save_pretrained(out)
    if os.path.exists(os.path.join(out, "generation_config.json")):
        os.remove(os.path.join(out, "generation_config.json"))

    plain = AutoModelForCausalLM.from_pretrained(os.path.join(HERE, "qwen3"), dtype=torch.float32)
    for path, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state).to(torch.bfloat16)
            plain.get_submodule(path).weight.data = weight.float()
    ids = torch.arange(3, 3 + 24) * 7 % 96
    with torch.no_grad():
        logits = plain(ids[None]).logits[0]
    save_file({"ids": ids.to(torch.int64), "logits": logits.contiguous()}, os.path.join(out, "reference.safetensors"))
