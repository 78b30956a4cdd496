"""Writes the adapters of this folder's models, judged by PEFT: adapters/<case>/.

    python3 make_adapter_golden.py GOLDEN_DIR [SHARED_GOLDEN_DIR]      (needs torch, transformers, peft and safetensors; CPU is enough)

For every case: adapter/ as PEFT saved it (random values, so that nothing is zero), and reference.{json,safetensors}, all in fp32 on the family's base:
  logits_i             logits [T, V] of token sequence i with the adapter
  loss                 mean cross-entropy over the labelled tokens of all sequences
  grad.<key>           the gradient of that loss with respect to every trained tensor, under the key of adapter_model.safetensors
  bf16_logits_error, bf16_gradient_error
                       ||x(bf16) - x|| / ||x|| of a plain bf16 computation: base and adapter converted to bf16
  losses, grad_norms   five AdamW steps from there (lr 1e-3, betas .9/.999, eps 1e-8, decay .01, clip 1.0), where the case has options to judge
  after5.<key>         the trained tensors after them
With a second folder, shared_bf16.json gets the two bf16 errors for the models in it. schedules.json has transformers' learning rates.
"""
import json
import os
import sys

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, get_constant_schedule, get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FAMILIES = ["llama3", "llama_bias_linear", "llama_dynamic", "mistral", "qwen2_window", "qwen2_yarn", "qwen3", "gemma", "gemma2", "gemma3"]
PLAIN = dict(r=4, lora_alpha=8, target_modules=MODULES)
OPTIONS = {
    "dora": ("llama_bias_linear", dict(r=4, lora_alpha=8, target_modules=MODULES, use_dora=True)),
    "dora_some": ("qwen2_window", dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], use_dora=True)),
    "rslora": ("mistral", dict(r=16, lora_alpha=8, target_modules=MODULES, use_rslora=True)),
    "layers": ("gemma3", dict(r=4, lora_alpha=8, target_modules=["q_proj", "o_proj", "up_proj"], layers_to_transform=[1])),
    "patterns": ("llama3", dict(r=4, lora_alpha=8, target_modules=MODULES, rank_pattern={"k_proj": 2, "layers.1.mlp.up_proj": 6}, alpha_pattern={"v_proj": 3})),
    # Several keys name one module: the first counts. PEFT sorts them when it saves, so they are sorted here.
    "regex_patterns": ("qwen2_window", dict(r=4, lora_alpha=8, target_modules=MODULES,
                                            rank_pattern={r"^model\.layers\.0\.(self_attn|mlp)\.[gk]\w*_proj": 2, "k_proj": 3, r"layers\.\d+\..*\.(?:q|k)_proj": 6},
                                            alpha_pattern={r".*[v|o]_proj": 16, "^down_proj": 50, r"mlp\..*": 3})),
    "whole_untied": ("llama3", dict(r=4, lora_alpha=8, target_modules=MODULES, modules_to_save=["embed_tokens", "lm_head"])),
    "whole_tied": ("qwen3", dict(r=4, lora_alpha=8, target_modules=MODULES, modules_to_save=["embed_tokens", "lm_head"])),
    "head_tied": ("gemma", dict(r=4, lora_alpha=8, target_modules=MODULES, modules_to_save=["lm_head"])),
    "embedding_tied": ("qwen2_yarn", dict(r=4, lora_alpha=8, target_modules=MODULES, modules_to_save=["embed_tokens"])),
    "everything": ("gemma2", dict(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj"], use_dora=True, use_rslora=True,
                                  layers_to_transform=[1], modules_to_save=["embed_tokens", "lm_head"])),
}


def load_base(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def saved_key(name):
    """The key under which PEFT saves a parameter of the wrapped model."""
    name = name.replace(".modules_to_save.default.weight", ".weight").replace(".lora_magnitude_vector.default.weight", ".lora_magnitude_vector")
    return name.replace(".lora_A.default.", ".lora_A.").replace(".lora_B.default.", ".lora_B.")


def trained(model):
    return {saved_key(name): p for name, p in model.named_parameters() if p.requires_grad}


def forward(model, sequences, masked):
    logits = [model(input_ids=s[None], use_cache=False).logits[0].float() for s in sequences]
    count = sum(len(s) - masked for s in sequences)
    loss = sum(torch.nn.functional.cross_entropy(z[masked - 1:-1], s[masked:], reduction="sum") for z, s in zip(logits, sequences)) / count
    return logits, loss


def gradients(model, sequences, masked):
    model.zero_grad()
    logits, loss = forward(model, sequences, masked)
    loss.backward()
    return [z.detach() for z in logits], loss.item(), {key: p.grad.float().clone() for key, p in trained(model).items()}


def relative(values, exact):
    a, b = torch.cat([v.flatten().double() for v in values]), torch.cat([v.flatten().double() for v in exact])
    return ((a - b).norm() / b.norm()).item()


def bf16_errors(folder, adapter, sequences, masked, logits, grads):
    half = PeftModel.from_pretrained(load_base(folder), adapter, is_trainable=True).bfloat16().eval()
    low_logits, _, low_grads = gradients(half, sequences, masked)
    return dict(bf16_logits_error=relative(low_logits, logits), bf16_gradient_error=relative([low_grads[k] for k in grads], grads.values()))


def make(root, name, family, settings, steps):
    torch.manual_seed(3407)
    folder = os.path.join(root, family)
    with open(os.path.join(folder, "reference.json")) as f:
        family_reference = json.load(f)
    sequences, masked = [torch.tensor(s) for s in family_reference["sequences"]], family_reference["masked"]
    model = get_peft_model(load_base(folder), LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    with torch.no_grad():
        for key, p in trained(model).items():
            if "lora_B" in key:
                p.copy_(0.1 * torch.randn(p.shape))
            elif "magnitude" in key:
                p.mul_(1 + 0.1 * torch.randn(p.shape))
            elif "lora_A" not in key:
                p.add_(0.05 * torch.randn(p.shape))
    out = os.path.join(root, "adapters", name)
    adapter = os.path.join(out, "adapter")
    model.peft_config["default"].base_model_name_or_path = family
    model.save_pretrained(adapter, save_embedding_layers=False)
    for extra in ("README.md",):
        if os.path.exists(os.path.join(adapter, extra)):
            os.remove(os.path.join(adapter, extra))
    stored = set(load_file(os.path.join(adapter, "adapter_model.safetensors")))
    assert stored == set(trained(model)), stored ^ set(trained(model))

    logits, loss, grads = gradients(model, sequences, masked)
    reference = dict(transformers=transformers.__version__, torch=torch.__version__, peft=peft.__version__, family=family, loss=loss,
                     **bf16_errors(folder, adapter, sequences, masked, logits, grads))
    tensors = {f"logits_{i}": z.contiguous() for i, z in enumerate(logits)} | {f"grad.{k}": g for k, g in grads.items()}
    if steps:
        optimizer = torch.optim.AdamW(list(trained(model).values()), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
        losses, norms = [], []
        for _ in range(5):
            optimizer.zero_grad()
            step_loss = forward(model, sequences, masked)[1]
            step_loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(list(trained(model).values()), 1.0).item())
            optimizer.step()
            losses.append(step_loss.item())
        reference |= dict(losses=losses, grad_norms=norms)
        tensors |= {f"after5.{k}": p.detach().clone() for k, p in trained(model).items()}
    save_file(tensors, os.path.join(out, "reference.safetensors"))
    with open(os.path.join(out, "reference.json"), "w") as f:
        json.dump(reference, f, indent=1)
    print(f"{name}: loss {loss:.6f}, bf16 errors {reference['bf16_logits_error']:.2e} {reference['bf16_gradient_error']:.2e}")


def make_shared(root, shared):
    """The plain bf16 errors of models that live elsewhere: their logits, and the gradients of adapter_init on the 16-bit base."""
    result = {}
    for name in ("qwen2_tied", "qwen2_untied", "qwen3"):
        folder = os.path.join(shared, name)
        with open(os.path.join(folder, "reference.json")) as f:
            sequences = [torch.tensor(s) for s in json.load(f)["seqs"]]
        adapter = os.path.join(folder, "adapter_init")
        model = PeftModel.from_pretrained(load_base(folder), adapter, is_trainable=True).eval()
        logits, _, grads = gradients(model, sequences, 6)
        result[name] = bf16_errors(folder, adapter, sequences, 6, logits, grads)
    with open(os.path.join(root, "shared_bf16.json"), "w") as f:
        json.dump(result, f, indent=1)


def make_schedules(root):
    """Learning rates of every step, by transformers' own schedulers."""
    def rates(make_scheduler, steps):
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
        scheduler, values = make_scheduler(optimizer), []
        for _ in range(steps):
            values.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        return values

    cases = []
    for warmup, total in ((0, 7), (5, 60), (10, 10), (1, 3)):
        makers = dict(linear=lambda o: get_linear_schedule_with_warmup(o, warmup, total), cosine=lambda o: get_cosine_schedule_with_warmup(o, warmup, total),
                      constant=lambda o: get_constant_schedule_with_warmup(o, warmup) if warmup else get_constant_schedule(o))
        for kind, maker in makers.items():
            cases.append(dict(kind=kind, warmup_steps=warmup, total_steps=total, learning_rate=2e-4, rates=rates(maker, total + 3)))
    with open(os.path.join(root, "schedules.json"), "w") as f:
        json.dump(dict(transformers=transformers.__version__, schedules=cases), f, indent=1)


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    for family_name in FAMILIES:
        make(sys.argv[1], family_name, family_name, PLAIN, steps=False)
    for case, (base, options) in OPTIONS.items():
        make(sys.argv[1], case, base, options, steps=True)
    make_schedules(sys.argv[1])
    if len(sys.argv) > 2:
        make_shared(sys.argv[1], sys.argv[2])
