"""Writes the golden vectors of this folder: one tiny random model per decoder family, judged by transformers.

    python3 make_golden.py OUT_DIR        (needs torch, transformers and safetensors; CPU is enough)

For every case: config.json and model.safetensors (bf16 weights) in Hugging Face layout, and reference.{json,safetensors}:
  logits_i            fp32 logits [T, V] of token sequence i, computed in fp32 from the bf16 weights
  loss                mean cross-entropy over the labelled tokens of all sequences (the first four tokens of each are masked)
  grad_norms          2-norm of the gradient of that loss with respect to every parameter
  bf16_logits_error   ||logits(bf16 model) - logits|| / ||logits||, the error of a plain bf16 computation
  greedy              tokens that greedy generation appends to sequence 0
Files change only by running this script; reference.json records the versions that wrote them.
"""
import json
import os
import sys

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

COMMON = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
              head_dim=16, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0)
CASES = {
    "llama3": dict(model_type="llama", num_hidden_layers=2, rms_norm_eps=1e-5, tie_word_embeddings=False,
                   rope_parameters=dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0,
                                        high_freq_factor=4.0, original_max_position_embeddings=32)),
    "llama_bias_linear": dict(model_type="llama", num_hidden_layers=2, attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
                              rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0)),
    "llama_dynamic": dict(model_type="llama", num_hidden_layers=2, tie_word_embeddings=True, max_position_embeddings=24,
                          rope_parameters=dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0)),
    "mistral": dict(model_type="mistral", num_hidden_layers=2, sliding_window=16, tie_word_embeddings=False,
                    rope_parameters=dict(rope_type="default", rope_theta=1000000.0)),
    "qwen2_window": dict(model_type="qwen2", num_hidden_layers=3, use_sliding_window=True, sliding_window=8, max_window_layers=1,
                         tie_word_embeddings=False, rope_parameters=dict(rope_type="default", rope_theta=1000000.0), head_dim=None),
    "qwen2_yarn": dict(model_type="qwen2", num_hidden_layers=2, tie_word_embeddings=True, head_dim=None,
                       rope_parameters=dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=32)),
    "qwen3": dict(model_type="qwen3", num_hidden_layers=2, tie_word_embeddings=True,
                  rope_parameters=dict(rope_type="default", rope_theta=1000000.0)),
    "gemma": dict(model_type="gemma", num_hidden_layers=2, tie_word_embeddings=True,
                  rope_parameters=dict(rope_type="default", rope_theta=10000.0)),
    "gemma2": dict(model_type="gemma2", num_hidden_layers=2, sliding_window=8, query_pre_attn_scalar=24, attn_logit_softcapping=2.0,
                   final_logit_softcapping=3.0, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=10000.0)),
    "gemma3": dict(model_type="gemma3_text", num_hidden_layers=3, sliding_window=8, query_pre_attn_scalar=24, tie_word_embeddings=True,
                   layer_types=["sliding_attention", "sliding_attention", "full_attention"],
                   rope_parameters=dict(full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1000000.0),
                                        sliding_attention=dict(rope_type="default", rope_theta=10000.0))),
}
LENGTHS = (33, 7, 24)
MASKED = 4


def make(name, settings, out):
    generator = torch.Generator().manual_seed(3407)
    settings = {k: v for k, v in {**COMMON, **settings}.items() if v is not None}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            scale = 0.3 if p.dim() == 1 else (1.0 if "embed" in key else 2.0) / p.shape[-1] ** 0.5
            centre = 1.0 if key.endswith("norm.weight") and "gemma" not in config.model_type else 0.0
            p.copy_((centre + scale * torch.randn(p.shape, generator=generator)).bfloat16().float())
    model.tie_weights()
    folder = os.path.join(out, name)
    os.makedirs(folder, exist_ok=True)
    weights = {k: p.detach().bfloat16().contiguous() for k, p in model.named_parameters()}
    save_file(weights, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    config.dtype = torch.bfloat16
    config.architectures = [type(model).__name__]
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config.to_dict(), f, indent=1, default=str)

    sequences = [torch.randint(3, config.vocab_size, (n,), generator=generator) for n in LENGTHS]
    logits = [model(input_ids=s[None], use_cache=False).logits[0] for s in sequences]
    count = sum(len(s) - MASKED for s in sequences)
    loss = sum(torch.nn.functional.cross_entropy(l[MASKED - 1:-1], s[MASKED:], reduction="sum") for l, s in zip(logits, sequences)) / count
    loss.backward()
    grads = {k: p.grad.double().norm().item() for k, p in model.named_parameters()}
    with torch.no_grad():
        tokens = sequences[0].clone()
        for _ in range(12):  # recomputed from the start, so that no cache policy enters
            tokens = torch.cat([tokens, model(input_ids=tokens[None], use_cache=False).logits[0, -1].argmax()[None]])
        half = AutoModelForCausalLM.from_config(config, attn_implementation="eager").bfloat16().eval()
        half.load_state_dict(model.state_dict())
        low = torch.cat([half(input_ids=s[None], use_cache=False).logits[0].float() for s in sequences])
        full = torch.cat([l.detach() for l in logits])
    save_file({f"logits_{i}": l.detach().contiguous() for i, l in enumerate(logits)}, os.path.join(folder, "reference.safetensors"))
    reference = dict(transformers=transformers.__version__, torch=torch.__version__, sequences=[s.tolist() for s in sequences], masked=MASKED,
                     loss=loss.item(), grad_norms=grads, bf16_logits_error=((low - full).norm() / full.norm()).item(),
                     greedy=tokens[len(sequences[0]):].tolist())
    with open(os.path.join(folder, "reference.json"), "w") as f:
        json.dump(reference, f, indent=1)
    print(f"{name}: loss {loss.item():.6f}, bf16 error {reference['bf16_logits_error']:.2e}, logits std {full.std():.3f}")


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    for case, case_settings in CASES.items():
        make(case, case_settings, sys.argv[1])
