"""A Llama of one or two layers with random weights, small enough for numpy: written as a Hugging Face folder, and computed here in
double from the formulas of the architecture.  Its activations are what methods are made for: inputs that go together, a few
channels much larger than the rest, one that is always zero; its weights have heavy tails.
"""
import json
import os
import shutil
import struct

import numpy as np

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "U64": "<u8", "I32": "<i4", "I16": "<i2",
          "I8": "i1", "U8": "u1"}
HIDDEN, FFN, HEADS, HEAD, VOCAB, EPS, THETA = 128, 384, 4, 32, 3072, 1e-5, 10000.0
PORTS = {"q_proj": "attn", "k_proj": "attn", "v_proj": "attn", "o_proj": "o", "gate_proj": "ffn", "up_proj": "ffn",
         "down_proj": "down"}
DEAD = 77  # a channel whose norms are 0: the inputs of q, k, v, gate and up are always 0 there


# ---- files -----------------------------------------------------------------------------------------------------------
def read_safetensors(path):
    with open(path, "rb") as f:
        data = f.read()
    n = struct.unpack("<Q", data[:8])[0]
    out = {}
    for name, e in json.loads(data[8:8 + n]).items():
        if name != "__metadata__":
            a, b = e["data_offsets"]
            x = np.frombuffer(data[8 + n + a:8 + n + b], DTYPES[e["dtype"]]).reshape(e["shape"])
            out[name] = (x.astype(np.uint32) << 16).view(np.float32) if e["dtype"] == "BF16" else x
    return out


def write_safetensors(path, tensors):
    header, at = {}, 0
    for name, x in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [at, at + x.nbytes]}
        at += x.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(np.ascontiguousarray(x).tobytes() for x in tensors.values()))


def module(layer, name):
    part = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
    return f"model.layers.{layer}.{part}.{name}"


def shapes(kv_heads):
    q, kv = HEADS * HEAD, kv_heads * HEAD
    return {"q_proj": (q, HIDDEN), "k_proj": (kv, HIDDEN), "v_proj": (kv, HIDDEN), "o_proj": (HIDDEN, q),
            "gate_proj": (FFN, HIDDEN), "up_proj": (FFN, HIDDEN), "down_proj": (HIDDEN, FFN)}


def random_weights(layers, kv_heads, seed):
    rng = np.random.default_rng(seed)

    def norm():
        w = np.exp(0.4 * rng.standard_normal(HIDDEN))
        w[rng.permutation(HIDDEN)[:4]] *= 6
        w[DEAD] = 0
        return w.astype(np.float32)

    def heavy(n, k):
        return (rng.standard_t(4, (n, k)) / np.sqrt(2 * k)).astype(np.float32)

    embed = rng.standard_normal((VOCAB, 24)) @ rng.standard_normal((24, HIDDEN)) / 5 + rng.standard_normal((VOCAB, HIDDEN)) / 2
    w = {"model.embed_tokens.weight": embed.astype(np.float32), "model.norm.weight": np.ones(HIDDEN, np.float32),
         "lm_head.weight": (rng.standard_normal((VOCAB, HIDDEN)) * 3 / np.sqrt(HIDDEN)).astype(np.float32)}
    for i in range(layers):
        w[f"model.layers.{i}.input_layernorm.weight"] = norm()
        w[f"model.layers.{i}.post_attention_layernorm.weight"] = norm()
        for name, (n, k) in shapes(kv_heads).items():
            w[module(i, name) + ".weight"] = heavy(n, k)
    return w


def write_model(folder, tokenizer_of, layers=1, kv_heads=HEADS, seed=1):
    """A folder; `tokenizer_of`: another one with a tokenizer of VOCAB tokens."""
    os.makedirs(folder)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN,
                   "intermediate_size": FFN, "num_hidden_layers": layers, "num_attention_heads": HEADS,
                   "num_key_value_heads": kv_heads, "head_dim": HEAD, "max_position_embeddings": 512, "rms_norm_eps": EPS,
                   "rope_theta": THETA, "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 0,
                   "eos_token_id": 1, "torch_dtype": "float32"}, f)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(os.path.join(tokenizer_of, name), os.path.join(folder, name))
    w = random_weights(layers, kv_heads, seed)
    write_safetensors(os.path.join(folder, "model.safetensors"), w)
    return w


# ---- the model in double ---------------------------------------------------------------------------------------------
def rms_norm(x, w):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * w


def rope(x):
    """[tokens, heads, HEAD], halves of a head turn together"""
    angle = np.arange(len(x))[:, None] * THETA ** (-np.arange(0, HEAD, 2) / HEAD)
    c, s = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
    a, b = x[..., :HEAD // 2], x[..., HEAD // 2:]
    return np.concatenate([a * c - b * s, b * c + a * s], -1)


def attention(q, k, v):
    """[tokens, heads, HEAD] each, as many heads of k and v as divide those of q"""
    n, heads = len(q), q.shape[1]
    k, v = (np.repeat(a, heads // a.shape[1], 1) for a in (k, v))
    score = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(HEAD)
    score[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf
    p = np.exp(score - score.max(-1, keepdims=True))
    return np.einsum("hij,jhd->ihd", p / p.sum(-1, keepdims=True), v)


def forward(w, ids, layers=1, store_k=lambda x: x, store_v=lambda x: x):
    """(logits, {(layer, port): inputs}) of one window; store_*: what a key or value reads as once it lies in the cache."""
    w = {name: x.astype(np.float64) for name, x in w.items() if not name.startswith("model.embed")} | {
        "embed": w["model.embed_tokens.weight"][ids].astype(np.float64)}
    x, seen = w["embed"], {}

    def linear(i, name, inputs):
        seen[i, PORTS[name]] = inputs
        return inputs @ w[module(i, name) + ".weight"].T

    for i in range(layers):
        h = rms_norm(x, w[f"model.layers.{i}.input_layernorm.weight"])
        q, k, v = (linear(i, name, h).reshape(len(x), -1, HEAD) for name in ("q_proj", "k_proj", "v_proj"))
        o = attention(rope(q), store_k(rope(k)), store_v(v))
        x = x + linear(i, "o_proj", o.reshape(len(x), -1))
        h = rms_norm(x, w[f"model.layers.{i}.post_attention_layernorm.weight"])
        gate, up = linear(i, "gate_proj", h), linear(i, "up_proj", h)
        x = x + linear(i, "down_proj", gate / (1 + np.exp(-gate)) * up)
    return rms_norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T, seen


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def divergence(logits, others):
    """KL of each token, in nats"""
    a, b = log_softmax(logits), log_softmax(others)
    return (np.exp(a) * (a - b)).sum(-1)
