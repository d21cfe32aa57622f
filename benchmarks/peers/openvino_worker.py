"""OpenVINO: a Llama graph with random compressed weights of a shape, as optimum-intel and NNCF export such models - stateful KV cache,
weights that are decompressed by  Convert, Multiply  before each MatMul - compiled with the CPU plugin's defaults (which quantize
activations dynamically and keep the KV cache in 8 bits, where the machine has INT8 products).

    openvino_worker.py SHAPE.json int8|int4 THREADS [PROPERTY=VALUE ...]

int8: one scale for each output.  int4: groups of 128 with one scale each; embedding and head in int8.  Both without zero points.
"""
import json
import sys
import time

import numpy as np
import openvino as ov
from openvino import opset13 as op

import worker


class Graph:
    def __init__(self, shape, bits):
        c = self.c = json.load(open(shape))
        self.bits = bits
        self.hidden, self.heads, self.kv = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
        self.dim = self.hidden // self.heads
        self.rng = np.random.default_rng(1)
        self.sinks = []
        self.keep = []  # what tensors view

    def weight(self, n, k, bits):
        if bits == 8:
            codes = self.rng.integers(-127, 128, (n, k), dtype=np.int8)
            self.keep.append(codes)
            w = op.multiply(op.convert(op.constant(codes), "f16"), op.constant(np.full((n, 1), 2e-4, dtype=np.float16)))
        else:
            packed = self.rng.integers(0, 256, n * k // 2, dtype=np.uint8)
            self.keep.append(packed)
            tensor = ov.Tensor(packed.view(np.int8), ov.Shape([n, k // 128, 128]), ov.Type.i4)
            scales = op.constant(np.full((n, k // 128, 1), 3e-3, dtype=np.float16))
            w = op.multiply(op.convert(op.constant(tensor), "f16"), scales)
            w = op.reshape(w, op.constant(np.array([n, k], dtype=np.int64)), False)
        return op.convert(w, "f32")

    def linear(self, x, n, k, bits=None):
        return op.matmul(x, self.weight(n, k, bits or self.bits), False, True)

    def norm(self, x):
        mean = op.reduce_mean(op.power(x, op.constant(np.float32(2))), op.constant(np.array([-1])), True)
        inverse = op.divide(op.constant(np.float32(1)), op.sqrt(op.add(mean, op.constant(np.float32(self.c["rms_norm_eps"])))))
        return op.multiply(op.constant(np.ones((1, 1, self.hidden), dtype=np.float32)), op.multiply(x, inverse))

    def split_heads(self, x, heads):
        x = op.reshape(x, op.constant(np.array([0, 0, heads, self.dim], dtype=np.int64)), True)
        return op.transpose(x, op.constant(np.array([0, 2, 1, 3])))

    def rope(self, x, cos, sin):
        def half(a, b):
            return op.slice(x, op.constant(np.array([a])), op.constant(np.array([b])), op.constant(np.array([1])), op.constant(np.array([3])))
        turned = op.concat([op.multiply(half(self.dim // 2, 2**63 - 1), op.constant(np.float32(-1))), half(0, self.dim // 2)], -1)
        return op.add(op.multiply(x, cos), op.multiply(turned, sin))

    def cache(self, name, new, batch, beam):
        zero = op.constant(np.array([0], dtype=np.int64))
        empty = op.broadcast(op.constant(np.float32(0)), op.concat(
            [batch, op.constant(np.array([self.kv], dtype=np.int64)), zero, op.constant(np.array([self.dim], dtype=np.int64))], 0))
        info = ov.op.util.VariableInfo()
        info.data_shape, info.data_type, info.variable_id = ov.PartialShape([-1, self.kv, -1, self.dim]), ov.Type.f32, name
        variable = ov.op.util.Variable(info)
        past = op.read_value(empty, variable)
        all_of_it = op.concat([op.gather(past, beam, op.constant(np.int64(0))), new], 2)
        self.sinks.append(op.assign(all_of_it, variable))
        return all_of_it

    def each_query_head(self, x):
        """Heads of the cache, each for its query heads: times ones, the form that the CPU plugin fuses into its attention."""
        ones = op.constant(np.ones((1, 1, self.heads // self.kv, 1, 1), dtype=np.float32))
        x = op.multiply(op.unsqueeze(x, op.constant(np.int64(2))), ones)
        return op.reshape(x, op.constant(np.array([0, self.heads, -1, self.dim], dtype=np.int64)), True)

    def build(self):
        c = self.c
        ids = op.parameter([-1, -1], ov.Type.i64, name="input_ids")
        attention = op.parameter([-1, -1], ov.Type.i64, name="attention_mask")
        positions = op.parameter([-1, -1], ov.Type.i64, name="position_ids")
        beam = op.parameter([-1], ov.Type.i32, name="beam_idx")
        for p in (ids, attention, positions, beam):
            p.output(0).get_tensor().set_names({p.get_friendly_name()})
        zero, one = op.constant(np.int64(0)), op.constant(np.int64(1))
        shape = op.shape_of(ids, "i64")
        batch = op.gather(shape, op.constant(np.array([0])), zero)
        x = op.gather(self.weight(c["vocab_size"], self.hidden, 8), op.convert(ids, "i32"), zero)
        inv = (1 / c["rope_theta"] ** (np.arange(0, self.dim, 2, dtype=np.float64) / self.dim)).astype(np.float32)
        angle = op.matmul(op.constant(inv.reshape(1, -1, 1)), op.convert(op.unsqueeze(positions, one), "f32"), False, False)
        angle = op.transpose(angle, op.constant(np.array([0, 2, 1])))
        angle = op.concat([angle, angle], -1)
        cos, sin = op.unsqueeze(op.cos(angle), one), op.unsqueeze(op.sin(angle), one)
        total = op.gather(op.shape_of(attention, "i64"), one, zero)
        keys = op.unsqueeze(op.range(zero, total, one, "i64"), op.constant(np.array([0, 1, 2])))
        allowed = op.less_equal(keys, op.unsqueeze(op.unsqueeze(positions, one), op.constant(np.int64(3))))
        mask = op.select(allowed, op.constant(np.float32(0)), op.constant(np.float32(-65504)))
        for i in range(c["num_hidden_layers"]):
            y = self.norm(x)
            q = self.rope(self.split_heads(self.linear(y, self.hidden, self.hidden), self.heads), cos, sin)
            k = self.rope(self.split_heads(self.linear(y, self.kv * self.dim, self.hidden), self.kv), cos, sin)
            v = self.split_heads(self.linear(y, self.kv * self.dim, self.hidden), self.kv)
            k = self.each_query_head(self.cache(f"past.{i}.key", k, batch, beam))
            v = self.each_query_head(self.cache(f"past.{i}.value", v, batch, beam))
            y = op.scaled_dot_product_attention(q, k, v, mask, causal=False)
            y = op.reshape(op.transpose(y, op.constant(np.array([0, 2, 1, 3]))), op.constant(np.array([0, 0, self.hidden])), True)
            x = op.add(x, self.linear(y, self.hidden, self.hidden))
            y = self.norm(x)
            ffn = c["intermediate_size"]
            y = op.multiply(op.swish(self.linear(y, ffn, self.hidden)), self.linear(y, ffn, self.hidden))
            x = op.add(x, self.linear(y, self.hidden, ffn))
        last = op.slice(self.norm(x), op.constant(np.array([-1])), op.constant(np.array([2**63 - 1])), op.constant(np.array([1])),
                        op.constant(np.array([1])))
        logits = self.linear(last, c["vocab_size"], self.hidden, 8)
        return ov.Model([op.result(logits)], self.sinks, [ids, attention, positions, beam], "llama")


class OpenVino:
    def __init__(self, shape, kind, threads, settings):
        core = ov.Core()
        self.graph = Graph(shape, 8 if kind == "int8" else 4)  # its arrays are looked at until the first run has packed them
        model = self.graph.build()
        self.vocab = json.load(open(shape))["vocab_size"]
        compiled = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1,
                                                     "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False, **settings})
        kinds = [n.get_rt_info()["layerType"].astype(str) for n in compiled.get_runtime_model().get_ops()]
        fused = {k: kinds.count(k) for k in sorted(set(kinds)) if k not in ("Const", "Input", "Output")}
        settings = {}
        for key in ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE"):
            settings[key] = str(compiled.get_property(key))
        self.request = compiled.create_infer_request()
        self.rng = np.random.default_rng(2)
        self.about = f"OpenVINO {ov.__version__}, {kind}; {settings}; nodes {fused}"

    def step(self, seqs, rows, past):
        ids = self.rng.integers(0, self.vocab, (seqs, rows))
        self.request.infer({"input_ids": ids, "attention_mask": np.ones((seqs, past + rows), dtype=np.int64),
                            "position_ids": np.broadcast_to(np.arange(past, past + rows), (seqs, rows)).copy(),
                            "beam_idx": np.arange(seqs, dtype=np.int32)})

    def run(self, kind, n, seqs):
        self.request.reset_state()
        start = time.perf_counter()
        if kind == "pp":
            self.step(seqs, n, 0)
        else:
            for t in range(n):
                self.step(seqs, 1, t)
        return time.perf_counter() - start


if __name__ == "__main__":
    worker.serve(OpenVino(sys.argv[1], sys.argv[2], int(sys.argv[3]), dict(word.split("=") for word in sys.argv[4:])))
