"""Goldens of the solvers: weighted k-means errors by scikit-learn, and the published codebook and
assignment steps worked out from their formulas in fp64.

    python make_solver_goldens.py        # writes kmeans.safetensors, published.safetensors beside it

Versions used: numpy 2.4.6, scikit-learn 1.9.1, torch 2.11.0, transformers 5.23.0, safetensors 0.8.0.
"""

import os
import pathlib

import numpy as np
import torch
from safetensors.numpy import save_file
from sklearn.cluster import KMeans
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent
FIXTURES = HERE.parent.parent / "fixtures"


def squared_gradients(folder, names, sequences, length):
    """Σ over sequences of (dL/dW)², L the mean cross-entropy of the sequence."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode((folder / "calibration.txt").read_text()).ids
    weights = {name: model.get_parameter(name + ".weight") for name in names}
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for s in range(sequences):
        window = torch.tensor(ids[s * length : (s + 1) * length])[None]
        model.zero_grad()
        model(input_ids=window, labels=window).loss.backward()
        for name, weight in weights.items():
            sums[name] += weight.grad**2
    return {name: (weights[name].detach().numpy(), sums[name].numpy()) for name in names}


def weighted_error(values, weights, centers):
    distance = (values.astype(np.float64)[:, None] - np.sort(centers)[None, :]) ** 2
    return float((weights.astype(np.float64) * distance.min(axis=1)).sum())


def make_kmeans():
    rows = []
    docs = squared_gradients(
        FIXTURES / "docs-llama-6m",
        ["model.layers.0.self_attn.q_proj", "model.layers.3.mlp.down_proj", "model.layers.5.mlp.gate_proj"],
        4, 512)
    tiny = squared_gradients(FIXTURES / "tiny-llama", ["model.layers.1.mlp.up_proj"], 8, 256)
    for weight, fisher in list(docs.values()) + list(tiny.values()):
        for row in range(0, weight.shape[0], weight.shape[0] // 5):
            rows.append((weight[row], fisher[row]))
    tensors = {}
    for i, (values, weights) in enumerate(rows):
        tensors[f"{i:02d}/values"] = np.ascontiguousarray(values, dtype=np.float32)
        tensors[f"{i:02d}/weights"] = np.ascontiguousarray(weights, dtype=np.float32)
        errors = []
        # Scaled: scikit-learn stops early where weights are tiny.
        scaled = weights.astype(np.float64) / weights.mean()
        for levels in (4, 8, 16):
            fit = KMeans(n_clusters=levels, n_init=10, max_iter=1000, tol=0, random_state=0).fit(
                values.astype(np.float64)[:, None], sample_weight=scaled)
            errors.append(weighted_error(values, weights, fit.cluster_centers_[:, 0]))
        tensors[f"{i:02d}/errors"] = np.array(errors, dtype=np.float32)
    save_file(tensors, HERE / "kmeans.safetensors")


def codebook_step(h, w, codes, levels):
    """c = (PᵀHP + 1e-7 I)⁻¹ PᵀHw for every row."""
    table = np.zeros((w.shape[0], levels))
    for row in range(w.shape[0]):
        p = np.eye(levels)[codes[row]]
        table[row] = np.linalg.solve(p.T @ h @ p + 1e-7 * np.eye(levels), p.T @ h @ w[row])
    return table


def assignment_cycle(h, w, codes, table):
    """Every column in turn: the codeword nearest to w_i − Σ_{a≠i} (ŵ_a − w_a) H_ai / H_ii."""
    codes = codes.copy()
    for row in range(w.shape[0]):
        error = table[row][codes[row]] - w[row]
        for i in range(w.shape[1]):
            others = error @ h[:, i] - error[i] * h[i, i]
            target = w[row, i] - others / h[i, i]
            codes[row, i] = np.argmin(np.abs(target - table[row]))
            error[i] = table[row][codes[row, i]] - w[row, i]
    return codes


def make_published():
    random = np.random.default_rng(7)
    rows, columns, levels, cycles = 6, 40, 8, 4
    mixed = random.normal(size=(200, columns)) @ random.normal(size=(columns, columns)) / np.sqrt(columns)
    h = (mixed.T @ mixed).astype(np.float32)
    w = random.normal(size=(rows, columns)).astype(np.float32)
    # Quantiles as the shared start.
    order = np.argsort(np.argsort(w, axis=1), axis=1)
    codes = (order * levels // columns).astype(np.int64)
    tensors = {"h": h, "w": w, "codes/0": codes.astype(np.float32)}
    h64, w64 = h.astype(np.float64), w.astype(np.float64)
    for step in range(3):
        if step > 0:
            for _ in range(cycles):
                codes = assignment_cycle(h64, w64, codes, table)
            tensors[f"codes/{step}"] = codes.astype(np.float32)
        table = codebook_step(h64, w64, codes, levels)
        error = np.take_along_axis(table, codes, axis=1) - w64
        tensors[f"weights/{step}"] = np.take_along_axis(table, codes, axis=1).astype(np.float32)
        tensors[f"objective/{step}"] = np.einsum("ri,ij,rj->r", error, h64, error).astype(np.float32)
    save_file(tensors, HERE / "published.safetensors")


if __name__ == "__main__":
    os.environ.setdefault("MKL_CBWR", "AVX512,STRICT")
    make_kmeans()
    make_published()
