"""Golden files of compressed-tensors' pack-quantized layout: what its own compressor makes of random weights.

    pip install torch==2.11.0 safetensors==0.8.0 compressed-tensors==0.20.0 pydantic loguru psutil
    python tests/golden/format/make_pack_quantized.py

Each file holds one linear "l" as the compressor stores it, and under "expected" the fp32 weights that its decompressor gives back.
"""

import pathlib

import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file

OUT, IN, GROUP = 24, 96, 32

for bits in (4, 8):
    torch.manual_seed(bits)
    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(num_bits=bits, type="int", symmetric=False, strategy="group", group_size=GROUP),
    )
    half = 2 ** (bits - 1)
    weight = torch.randn(OUT, IN)
    grouped = weight.reshape(OUT, IN // GROUP, GROUP)
    low, high = grouped.amin(-1), grouped.amax(-1)
    scale = ((high - low) / (2**bits - 1)).half().float()
    zero_point = torch.clamp(torch.round(-half - low / scale), -half, half - 1).to(torch.int8)
    stored = PackedQuantizationCompressor.compress(
        {"weight": weight, "weight_scale": scale, "weight_zero_point": zero_point}, scheme
    )
    expected = PackedQuantizationCompressor.decompress(stored, scheme)["weight"]
    tensors = {f"l.{name}": tensor.contiguous() for name, tensor in stored.items()}
    tensors["l.weight_scale"] = scale.half()
    tensors["expected"] = expected.float()
    save_file(tensors, pathlib.Path(__file__).parent / f"pack_quantized_{bits}.safetensors")
