"""Makes the goldens of this folder from Hugging Face transformers in fp32 on CPU.

Pinned: torch 2.11.0, transformers 5.23.0, safetensors, tokenizers. Run from the repository root:
    python tests/golden/transformer/make_transformer_goldens.py

Per small random model: a checkpoint folder (bf16 weights) and golden.safetensors with tokens, logits and dL/dz of every linear, where L is
the sum over sequences of each sequence's mean cross-entropy. Per fixture: the same as probes (every k-th value and the 2-norm).
"""
import math
import os
import shutil

import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

assert torch.__version__.startswith("2.11.0") and transformers.__version__ == "5.23.0"
HERE = os.path.dirname(os.path.abspath(__file__))
FIXTURES = os.path.join(HERE, "..", "..", "fixtures")
PROBES = 400

# Positions up to 32: scaled rotary frequencies must matter at that length, hence the short original context of llama3.
BASE = dict(vocab_size=61, hidden_size=40, intermediate_size=52, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=64, rms_norm_eps=1e-5, bos_token_id=0, eos_token_id=1)
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
MODELS = {
    "llama": LlamaConfig(**BASE, rope_parameters=DEFAULT_ROPE, tie_word_embeddings=True),
    "llama-linear-bias": LlamaConfig(**{**BASE, "num_key_value_heads": 4}, attention_bias=True, mlp_bias=True,
                                     rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
    "llama3": LlamaConfig(**{**BASE, "num_key_value_heads": 1}, rope_parameters={
        "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}),
    "mistral": MistralConfig(**BASE, head_dim=12, sliding_window=7, rope_parameters=DEFAULT_ROPE),
    "qwen2": Qwen2Config(**BASE, rope_parameters=DEFAULT_ROPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**{**BASE, "hidden_size": 36}, head_dim=14, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
}


def linears(model):
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            yield name, module


def observe(model, tokens):
    """Logits and {name: dL/dz} of one batch."""
    outputs = {}
    hooks = []
    for name, module in linears(model):
        def hook(_, __, z, name=name):
            z.retain_grad()
            outputs[name] = z
        hooks.append(module.register_forward_hook(hook))
    logits = model(input_ids=tokens.long()).logits
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:].long(), reduction="none")
    losses.mean(dim=1).sum().backward()
    for hook in hooks:
        hook.remove()
    return logits.detach(), losses.detach(), {name: z.grad for name, z in outputs.items()}


def make_small(name, config):
    torch.manual_seed(sum(map(ord, name)))
    folder = os.path.join(HERE, name)
    shutil.rmtree(folder, ignore_errors=True)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.dim() == 2:
                parameter.copy_(noise * (1.3 / math.sqrt(parameter.shape[1])))
            elif parameter_name.endswith("bias"):
                parameter.copy_(noise * 0.5)
            else:
                parameter.copy_(1 + noise * 0.2)
    model = model.to(torch.bfloat16)
    model.save_pretrained(folder)
    generation = os.path.join(folder, "generation_config.json")
    if os.path.exists(generation):
        os.remove(generation)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.requires_grad_(True).eval()
    tokens = torch.randint(0, config.vocab_size, (2, 17), dtype=torch.int32)
    logits, losses, gradients = observe(model, tokens)
    golden = {"tokens": tokens, "logits": logits.contiguous(), "losses": losses}
    golden.update({"dz/" + n: g.contiguous() for n, g in gradients.items()})
    save_file(golden, os.path.join(folder, "golden.safetensors"))
    print(name, losses.mean().item(), max(g.abs().max().item() for g in gradients.values()))


def probe(tensor):
    flat = tensor.reshape(-1).double()
    step = max(1, flat.numel() // PROBES) | 1
    return flat[::step].float(), flat.norm().float().reshape(1), torch.tensor([step], dtype=torch.int32)


def make_fixture(name, sequences, length):
    folder = os.path.join(FIXTURES, name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    with open(os.path.join(folder, "calibration.txt"), encoding="utf-8") as file:
        ids = tokenizer.encode(file.read()).ids
    tokens = torch.tensor(ids[: sequences * length], dtype=torch.int32).reshape(sequences, length)
    logits, losses, gradients = observe(model, tokens)
    golden = {"tokens": tokens, "losses": losses}
    for key, tensor in [("logits", logits)] + [("dz/" + n, g) for n, g in gradients.items()]:
        golden[key + "/probes"], golden[key + "/norm"], golden[key + "/step"] = probe(tensor)
    save_file(golden, os.path.join(HERE, name + ".safetensors"))
    print(name, losses.mean().item())


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, config in MODELS.items():
        make_small(name, config)
    make_fixture("tiny-llama", 2, 256)
    make_fixture("docs-llama-6m", 2, 512)
