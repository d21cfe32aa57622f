"""The forward pass of Llama, Mistral and Qwen2 in PyTorch, for training: what csrc/model/forward.c computes.

config.json is checked for what would change the results, as csrc/model/config.c does.
"""
import json
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ._checkpoint import BadFile, scale_dtype, to_f32
from ._fakequant import QuantLinear, Stored

QKV_BIAS = {"LlamaForCausalLM": False, "MistralForCausalLM": False, "Qwen2ForCausalLM": True}
LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
           "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@dataclass(frozen=True)
class Config:
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    eps: float
    tied: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    dtype: str
    inv_freq: tuple

    def shape(self, linear):
        """[N, K] of a linear layer, and whether it has a bias"""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {"q_proj": (q, self.hidden, self.qkv_bias), "k_proj": (kv, self.hidden, self.qkv_bias),
                "v_proj": (kv, self.hidden, self.qkv_bias), "o_proj": (self.hidden, q, self.o_bias),
                "gate_proj": (self.ffn, self.hidden, self.mlp_bias), "up_proj": (self.ffn, self.hidden, self.mlp_bias),
                "down_proj": (self.hidden, self.ffn, self.mlp_bias)}[linear.split(".")[-1]]


def _integer(j, key, where, default=None):
    value = j.get(key)
    value = default if value is None else value
    if type(value) is not int or value < 1:
        raise BadFile(f"{where}: \"{key}\" is {json.dumps(value)}, expected a positive integer")
    return value


def _inverse_frequencies(j, head_dim, context, where):
    r = next((j[k] for k in ("rope_parameters", "rope_scaling") if isinstance(j.get(k), dict)), {})
    theta = float(r.get("rope_theta", j.get("rope_theta", 10000.0)))
    kind = r.get("rope_type", r.get("type", "default"))
    if r.get("partial_rotary_factor", j.get("partial_rotary_factor", 1.0)) != 1.0:
        raise BadFile(f"{where}: \"partial_rotary_factor\" is not 1")
    inv = [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    if kind == "default":
        return tuple(inv)
    factor = float(r.get("factor", 1.0))
    if kind == "linear":
        return tuple(f / factor for f in inv)
    if kind != "llama3":
        raise BadFile(f"{where}: the RoPE scaling is {json.dumps(kind)}, expected default, linear or llama3")
    low, high = float(r.get("low_freq_factor", 1.0)), float(r.get("high_freq_factor", 4.0))
    original = float(r.get("original_max_position_embeddings", context))

    def scaled(f):
        turns = original * f / (2 * math.pi)
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        return (1 - smooth) * f / factor + smooth * f

    return tuple(scaled(f) for f in inv)


def parse_config(j, where):
    name = (j.get("architectures") or [None])[0]
    if name not in QKV_BIAS:
        raise BadFile(f"{where}: the architecture is {json.dumps(name)}, expected one of {', '.join(QKV_BIAS)}")
    if j.get("quantization_config") is not None:
        raise BadFile(f"{where}: the model is quantized already, expected one in floating point")
    if j.get("hidden_act", "silu") not in ("silu", "swish"):
        raise BadFile(f"{where}: \"hidden_act\" is {json.dumps(j['hidden_act'])}, expected silu")
    heads, hidden = _integer(j, "num_attention_heads", where), _integer(j, "hidden_size", where)
    kv_heads = _integer(j, "num_key_value_heads", where, heads)
    head_dim = _integer(j, "head_dim", where, hidden // heads)
    if heads % kv_heads or head_dim % 2:
        raise BadFile(f"{where}: {heads} heads of {head_dim} with {kv_heads} for keys and values do not go together")
    context = _integer(j, "max_position_embeddings", where, 2048)
    window = j.get("sliding_window") if j.get("use_sliding_window", True) else None
    if window and window < context:
        raise BadFile(f"{where}: \"sliding_window\" is {window}, expected none or at least the context of {context}")
    bias = bool(j.get("attention_bias"))
    return Config(layers=_integer(j, "num_hidden_layers", where), hidden=hidden, heads=heads, kv_heads=kv_heads,
                  head_dim=head_dim, ffn=_integer(j, "intermediate_size", where), vocab=_integer(j, "vocab_size", where),
                  context=context, eps=float(j.get("rms_norm_eps", 1e-6)), tied=bool(j.get("tie_word_embeddings")),
                  qkv_bias=QKV_BIAS[name] or bias, o_bias=bias and not QKV_BIAS[name],
                  mlp_bias=bool(j.get("mlp_bias")), dtype=scale_dtype(j, where),
                  inv_freq=_inverse_frequencies(j, head_dim, context, where))


def _rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Linear(nn.Module):
    """A linear layer that is not quantized and not trained."""

    def __init__(self, weight, bias):
        super().__init__()
        self.register_buffer("weight", torch.from_numpy(weight))
        self.register_buffer("bias", None if bias is None else torch.from_numpy(bias))

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class Llama(nn.Module):
    """scheme None: the model as it is, nothing trained.  Else the linear layers are QuantLinear, norms and biases are trained too,
    and with `train_embeddings` also the embeddings and lm_head, which stay dense."""

    def __init__(self, config, weights, scheme=None, start=None, train_embeddings=False):
        super().__init__()
        self.config = c = config
        train = scheme is not None

        def tensor(name, *shape):
            if name not in weights:
                raise BadFile(f"the checkpoint lacks {name}, which config.json asks for")
            if tuple(weights[name][1].shape) != shape:
                raise BadFile(f"{name} has the shape {list(weights[name][1].shape)}, expected {list(shape)}")
            x = to_f32(weights[name])
            if not torch.isfinite(torch.from_numpy(x)).all():
                raise BadFile(f"{name} holds NaN or infinity, expected finite weights")
            return x

        def linear(module):
            n, k, has_bias = c.shape(module)
            w, b = tensor(f"{module}.weight", n, k), tensor(f"{module}.bias", n) if has_bias else None
            if not train:
                return Linear(w, b)
            try:
                scheme.grouped(w, module)
            except ValueError as e:
                raise BadFile(str(e)) from e
            return QuantLinear(w, b, scheme, c.dtype, start)

        def dense(name, *shape, train=train):
            return Stored(tensor(name, *shape), c.dtype, train)

        self.tensors = {}  # name in the file -> module; what is exported
        for i in range(c.layers):
            for name in LINEARS:
                self._add(f"model.layers.{i}.{name}", linear(f"model.layers.{i}.{name}"))
            for name in ("input_layernorm", "post_attention_layernorm"):
                self._add(f"model.layers.{i}.{name}", dense(f"model.layers.{i}.{name}.weight", c.hidden))
        self._add("model.norm", dense("model.norm.weight", c.hidden))
        embeddings = train and train_embeddings
        self._add("model.embed_tokens", dense("model.embed_tokens.weight", c.vocab, c.hidden, train=embeddings))
        if not c.tied:
            self._add("lm_head", dense("lm_head.weight", c.vocab, c.hidden, train=embeddings))
        self.register_buffer("inv_freq", torch.tensor(c.inv_freq), persistent=False)

    def _add(self, name, module):
        self.tensors[name] = module
        self.add_module(name.replace(".", "/"), module)

    def quantized(self):
        return {name: m for name, m in self.tensors.items() if isinstance(m, QuantLinear)}

    def _norm(self, x, name):
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config.eps) * self.tensors[name]()

    def _attention(self, x, layer, cos, sin):
        c = self.config
        b, t, _ = x.shape

        def heads(name, n):
            return self.tensors[f"{layer}.self_attn.{name}"](x).view(b, t, n, c.head_dim).transpose(1, 2)

        q, k, v = heads("q_proj", c.heads), heads("k_proj", c.kv_heads), heads("v_proj", c.kv_heads)
        q, k = _rotate(q, cos, sin).to(v.dtype), _rotate(k, cos, sin).to(v.dtype)
        k, v = (y.repeat_interleave(c.heads // c.kv_heads, 1) for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.tensors[f"{layer}.self_attn.o_proj"](y.transpose(1, 2).reshape(b, t, c.heads * c.head_dim))

    def _mlp(self, x, layer):
        gate, up = (self.tensors[f"{layer}.mlp.{name}"](x) for name in ("gate_proj", "up_proj"))
        return self.tensors[f"{layer}.mlp.down_proj"](F.silu(gate) * up)

    def forward(self, ids):
        """ids [batch, tokens] -> logits [batch, tokens, vocab]"""
        angles = torch.outer(torch.arange(ids.shape[1], device=ids.device, dtype=torch.float32), self.inv_freq)
        cos, sin = angles.cos(), angles.sin()
        embedding = self.tensors["model.embed_tokens"]()
        x = F.embedding(ids, embedding)
        for i in range(self.config.layers):
            layer = f"model.layers.{i}"
            x = x + self._attention(self._norm(x, f"{layer}.input_layernorm"), layer, cos, sin)
            x = x + self._mlp(self._norm(x, f"{layer}.post_attention_layernorm"), layer)
        x = self._norm(x, "model.norm")
        return F.linear(x, embedding if self.config.tied else self.tensors["lm_head"]()).float()
