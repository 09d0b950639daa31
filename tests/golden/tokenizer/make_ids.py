#!/usr/bin/env python3
"""Token ids of the fixtures, by the Python package `tokenizers`, for tests/tokenizer.

    pip install tokenizers==0.23.3
    tests/golden/tokenizer/make_ids.py        writes ids.json beside itself

Whole texts are kept as count, first 64 ids and SHA-256 of all ids as little-endian int32; corner cases in full.
Texts of corner cases are kept as hex of their UTF-8, so that no editor changes them.
"""
import hashlib
import json
import pathlib
import struct

import tokenizers

PINNED = "0.23.3"

CORNERS = [
    "",
    " ",
    "\n",
    "\n\n\n  \t x",
    "hello world",
    " leading and trailing ",
    "a\r\nb\rc",
    "caf\u00e9 cafe\u0301",                                 # composed and decomposed
    "\ufeffbyte order mark",
    "\u200bzero\u200dwidth\u00a0no-break",
    "\U0001F600\U0001F468\u200d\U0001F469\u200d\U0001F467",  # emoji, joined family
    "\u4e2d\u6587\u3001\u65e5\u672c\u8a9e\uff12\uff10",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e2\u05d1\u05e8\u05d9\u05ea",
    "\u0e44\u0e17\u0e22 \u0939\u093f\u0928\u094d\u0926\u0940",
    "\x00nul\x00 \x7f\x80\u0085",
    "\ud7ff\ue000\uffff\U00010000\U0010ffff",                # the edges of the code space
    "it's I'LL we\u2019re don't",
    "1234567890 3.14159 0x1F 1_000",
    "a" * 1000,
    "def f(x):\n    return x ** 2  # \u03c0\u00b2\n",
    "x<|begin_of_text|>y <|end_of_text|>",
    "<s></s><unk><pad><|endoftext|><|im_start|>",
]


def digest(ids):
    return hashlib.sha256(struct.pack(f"<{len(ids)}i", *ids)).hexdigest()


def main():
    assert tokenizers.__version__ == PINNED, tokenizers.__version__
    here = pathlib.Path(__file__).resolve().parent
    fixtures = here.parent.parent / "fixtures"
    golden = {"tokenizers": PINNED, "models": {}}
    for model in ("docs-llama-6m", "tiny-llama"):
        folder = fixtures / model
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        texts = {}
        for name in ("calibration.txt", "validation.txt"):
            text = (folder / name).read_bytes().decode()
            ids = tokenizer.encode(text).ids
            bare = tokenizer.encode(text, add_special_tokens=False).ids
            texts[name] = {
                "count": len(ids),
                "first": ids[:64],
                "sha256": digest(ids),
                "sha256_without_special": digest(bare),
                "decoded_sha256": hashlib.sha256(tokenizer.decode(ids).encode()).hexdigest(),
            }
        corners = []
        for text in CORNERS:
            ids = tokenizer.encode(text).ids
            corners.append({
                "text": text.encode().hex(),
                "ids": ids,
                "decoded": tokenizer.decode(ids).encode().hex(),
                "decoded_with_special": tokenizer.decode(ids, skip_special_tokens=False).encode().hex(),
            })
        golden["models"][model] = {
            "vocab_size": max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1,
            "texts": texts,
            "corners": corners,
        }
    (here / "ids.json").write_text(json.dumps(golden, separators=(",", ":"), sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
