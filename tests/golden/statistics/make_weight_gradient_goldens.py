"""Makes weight_gradient.safetensors: weight gradients of tiny-llama on its first calibration tokens, from the autograd of Hugging Face transformers.

Pinned: torch 2.11.0, transformers 5.23.0, safetensors, tokenizers. Run from the repository root:
    python tests/golden/statistics/make_weight_gradient_goldens.py

An fp32 pass per sequence; the sums over sequences are fp64. Per linear, every STEP-th value of: "sum" (all sequences), "first" (the first three),
"absolute" (sum of the absolute values of each sequence).
"""
import os

import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

assert torch.__version__.startswith("2.11.0") and transformers.__version__ == "5.23.0"
HERE = os.path.dirname(os.path.abspath(__file__))
FOLDER = os.path.join(HERE, "..", "..", "fixtures", "tiny-llama")
SEQUENCES, LENGTH, FIRST, STEP = 4, 256, 3, 61


def main():
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(FOLDER, "tokenizer.json"))
    with open(os.path.join(FOLDER, "calibration.txt"), encoding="utf-8") as file:
        ids = tokenizer.encode(file.read()).ids
    tokens = torch.tensor(ids[: SEQUENCES * LENGTH], dtype=torch.int32).reshape(SEQUENCES, LENGTH)
    linears = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    gradients = {name: [] for name in linears}
    for sequence in tokens.long():
        model.zero_grad()
        logits = model(input_ids=sequence[None]).logits[0]
        torch.nn.functional.cross_entropy(logits[:-1], sequence[1:]).backward()
        for name, module in linears.items():
            gradients[name].append(module.weight.grad.double())

    golden = {"tokens": tokens}
    for name, parts in gradients.items():
        stacked = torch.stack(parts)
        for form, value in (("sum", stacked.sum(0)), ("first", stacked[:FIRST].sum(0)), ("absolute", stacked.abs().sum(0))):
            golden[f"{name}/{form}"] = value.flatten()[::STEP].float().contiguous()
    save_file(golden, os.path.join(HERE, "weight_gradient.safetensors"))


if __name__ == "__main__":
    main()
