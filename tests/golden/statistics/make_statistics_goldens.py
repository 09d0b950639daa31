"""Makes statistics.safetensors: statistics of tiny-llama on its first calibration tokens, from Hugging Face transformers.

Pinned: torch 2.11.0, transformers 5.23.0, safetensors, tokenizers. Run from the repository root:
    python tests/golden/statistics/make_statistics_goldens.py

Activations and gradients come from an fp32 pass, the sums over them are fp64. Per linear: every STEP-th value of the packed lower triangles of
the Fisher blocks (4 groups), of the Gram matrix and of the output Fisher, and of the Fisher diagonal; the sum of all squares of each.
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
SEQUENCES, LENGTH, GROUPS, STEP = 4, 256, 4, 61


def probe(golden, name, values):
    golden[name] = values[::STEP].float().contiguous()
    golden[name + "/squares"] = values.square().sum().float().reshape(1)


def packed(matrix):
    rows, columns = torch.tril_indices(*matrix.shape)
    return matrix[rows, columns]


def main():
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(FOLDER, "tokenizer.json"))
    with open(os.path.join(FOLDER, "calibration.txt"), encoding="utf-8") as file:
        ids = tokenizer.encode(file.read()).ids
    tokens = torch.tensor(ids[: SEQUENCES * LENGTH], dtype=torch.int32).reshape(SEQUENCES, LENGTH)

    inputs, outputs = {}, {}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue

        def hook(_, args, z, name=name):
            z.retain_grad()
            inputs[name], outputs[name] = args[0].detach(), z
        module.register_forward_hook(hook)
    logits = model(input_ids=tokens.long()).logits
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:].long(), reduction="none")
    losses.mean(dim=1).sum().backward()

    golden = {"tokens": tokens}
    for name, z in outputs.items():
        x, dz = inputs[name].double(), z.grad.double()
        flat, squares = x.flatten(0, 1), (1e3 * dz.flatten(0, 1)).square()
        for k, part in enumerate(squares.tensor_split(GROUPS, dim=1)):
            probe(golden, f"{name}/fisher_blocks/{k}", packed(flat.T @ (flat * part.mean(dim=1, keepdim=True))))
        probe(golden, f"{name}/gram", packed(flat.T @ flat))
        scaled = 1e3 * dz.flatten(0, 1)
        probe(golden, f"{name}/output_fisher", packed(scaled.T @ (scaled * flat.square().mean(dim=1, keepdim=True))))
        probe(golden, f"{name}/fisher_diagonal", torch.einsum("nto,nti->noi", dz, x).square().sum(dim=0).flatten())
    save_file(golden, os.path.join(HERE, "statistics.safetensors"))


if __name__ == "__main__":
    main()
