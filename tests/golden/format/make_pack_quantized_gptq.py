"""Golden file of GPTQ in compressed-tensors' pack-quantized layout.

    pip install torch==2.11.0 safetensors==0.8.0 compressed-tensors==0.20.0 pydantic loguru psutil
    python tests/golden/format/make_pack_quantized_gptq.py

The published algorithm (arXiv:2210.17323: the upper Cholesky factor of the inverse of H, every column's error spread over all
later columns at once) in fp64 on a small problem with correlated inputs; compressed-tensors' own compressor packs the result and
its decompressor gives the weights back. "natural" fits each group's grid when the sweep reaches it; "activation" takes the
columns by falling diagonal of H with grids fitted before the sweep (actorder "weight": groups stay consecutive columns, no
g_idx). In the file: "weight", "gram", and per order what the compressor stores and "expected".
"""

import pathlib

import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file

OUT, IN, GROUP, TOKENS, BITS, DAMPING = 24, 64, 32, 200, 4, 0.01
HIGHEST = 2**BITS - 1


def grid(weight):
    """Scale (an fp16 value) and zero point of each row: min-max, 0 included."""
    low, high = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
    scale = ((high - low) / HIGHEST).half().double()
    return scale, torch.round(-low / scale).clamp(0, HIGHEST)


def gptq(weight, gram, activation):
    order = torch.argsort(gram.diagonal(), descending=True, stable=True) if activation else torch.arange(IN)
    w = weight.double()[:, order]
    h = gram.double()[order][:, order]
    h = h + DAMPING * h.diagonal().mean() * torch.eye(IN)
    upper = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    scale, zero = torch.zeros(OUT, IN // GROUP).double(), torch.zeros(OUT, IN // GROUP).double()
    if activation:
        for g in range(IN // GROUP):
            scale[:, g], zero[:, g] = grid(weight.double()[:, g * GROUP : (g + 1) * GROUP])
    result = torch.zeros(OUT, IN).double()
    for p in range(IN):
        g = int(order[p]) // GROUP
        if not activation and p % GROUP == 0:
            scale[:, g], zero[:, g] = grid(w[:, p : p + GROUP])
        code = (torch.round(w[:, p] / scale[:, g]) + zero[:, g]).clamp(0, HIGHEST)
        result[:, order[p]] = (code - zero[:, g]) * scale[:, g]
        error = (w[:, p] - result[:, order[p]]) / upper[p, p]
        w[:, p:] -= error[:, None] * upper[p, p:]
    return result.float(), scale.float(), (zero - (HIGHEST + 1) // 2).to(torch.int8)


torch.manual_seed(4)
weight = torch.randn(OUT, IN)
inputs = torch.randn(TOKENS, IN) * torch.linspace(0.5, 2, IN)
for j in range(1, IN):
    inputs[:, j] += 0.95 * inputs[:, j - 1]
gram = inputs.T @ inputs
scheme = QuantizationScheme(
    targets=["Linear"],
    weights=QuantizationArgs(num_bits=BITS, type="int", symmetric=False, strategy="group", group_size=GROUP),
)
tensors = {"weight": weight, "gram": gram}
for name in ("natural", "activation"):
    result, scale, zero_point = gptq(weight, gram, name == "activation")
    stored = PackedQuantizationCompressor.compress(
        {"weight": result, "weight_scale": scale, "weight_zero_point": zero_point}, scheme
    )
    expected = PackedQuantizationCompressor.decompress(stored, scheme)["weight"]
    tensors |= {f"{name}.{key}": tensor.contiguous() for key, tensor in stored.items()}
    tensors[f"{name}.weight_scale"] = scale.half()
    tensors[f"{name}.expected"] = expected.float()
save_file(tensors, pathlib.Path(__file__).parent / "pack_quantized_gptq.safetensors")
