#!/usr/bin/env python3
"""Writes a Hugging Face folder with the architecture of a shape file and random bfloat16 weights, for measuring what
quantizing a model of that size takes:  random_model.py configs/shapes/tinyllama-1.1b.json OUT TOKENIZER_FOLDER"""
import json
import math
import random
import shutil
import sys
from pathlib import Path


def tensors(c):
    hidden, ffn, heads = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]
    head = c.get("head_dim") or hidden // heads
    q, kv = heads * head, c.get("num_key_value_heads", heads) * head
    yield "model.embed_tokens.weight", (c["vocab_size"], hidden)
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        yield p + "input_layernorm.weight", (hidden,)
        yield p + "post_attention_layernorm.weight", (hidden,)
        yield p + "self_attn.q_proj.weight", (q, hidden)
        yield p + "self_attn.k_proj.weight", (kv, hidden)
        yield p + "self_attn.v_proj.weight", (kv, hidden)
        yield p + "self_attn.o_proj.weight", (hidden, q)
        yield p + "mlp.gate_proj.weight", (ffn, hidden)
        yield p + "mlp.up_proj.weight", (ffn, hidden)
        yield p + "mlp.down_proj.weight", (hidden, ffn)
    yield "model.norm.weight", (hidden,)
    if not c.get("tie_word_embeddings"):
        yield "lm_head.weight", (c["vocab_size"], hidden)


# The upper bytes of bfloat16 numbers of either sign: half of them 2^-7 to 2^-5, the others smaller.
UPPER = bytes(0x80 * (i & 1) | (0x3C if i & 2 else 0x3B if i & 4 else 0x3A) for i in range(256))


def values(shape, seed):
    n = math.prod(shape)
    if len(shape) == 1:
        return b"\x80\x3f" * n  # ones
    dice, out = random.Random(seed), bytearray(2 * n)
    out[0::2] = dice.randbytes(n)
    out[1::2] = dice.randbytes(n).translate(UPPER)
    return out


def main():
    shape, out, tokenizer = map(Path, sys.argv[1:4])
    config = json.loads(shape.read_text()) | {"torch_dtype": "bfloat16"}
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(config, indent=2))
    shutil.copy(tokenizer / "tokenizer.json", out)
    header, at = {}, 0
    for name, dims in tensors(config):
        size = 2 * math.prod(dims)
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(out / "model.safetensors", "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for seed, (name, dims) in enumerate(tensors(config)):
            f.write(values(dims, seed))


if __name__ == "__main__":
    main()
