"""llama.cpp through llama-cpp-python's C API: makes GGUF files with random weights of a shape, and times what llama-bench times.

    llama_cpp_worker.py make SHAPE.json FOLDER      F16, and from it Q8_0, Q4_0 and Q4_K_M as llama-quantize writes them
    llama_cpp_worker.py serve MODEL.gguf THREADS    answers requests, one a line (worker.py)
"""
import ctypes
import json
import os
import sys
import time

import llama_cpp.llama_cpp as llama
import numpy as np

import worker

FORMATS = {"Q8_0": llama.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_0": llama.LLAMA_FTYPE_MOSTLY_Q4_0,
           "Q4_K_M": llama.LLAMA_FTYPE_MOSTLY_Q4_K_M}
SEQS = 32


def make_f16(shape, path):
    import gguf
    c = json.load(open(shape))
    hidden, ffn, layers, vocab = c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"], c["vocab_size"]
    heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
    head_dim = hidden // heads
    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(hidden)
    w.add_block_count(layers)
    w.add_feed_forward_length(ffn)
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_rope_dimension_count(head_dim)
    w.add_rope_freq_base(c["rope_theta"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_vocab_size(vocab)
    w.add_tokenizer_model("no_vocab")
    w.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    rng = np.random.default_rng(1)

    def matrix(name, n, k):  # +-2^-6 .. 2^-5: any bits but those of the exponent, no zero, no denormal
        bits = rng.integers(0, 1 << 16, (n, k), dtype=np.uint16)
        w.add_tensor(name, ((bits & 0x83FF) | 0x2400).view(np.float16))

    def norm(name):
        w.add_tensor(name, np.ones(hidden, dtype=np.float32))

    matrix("token_embd.weight", vocab, hidden)
    for i in range(layers):
        norm(f"blk.{i}.attn_norm.weight")
        matrix(f"blk.{i}.attn_q.weight", hidden, hidden)
        matrix(f"blk.{i}.attn_k.weight", kv * head_dim, hidden)
        matrix(f"blk.{i}.attn_v.weight", kv * head_dim, hidden)
        matrix(f"blk.{i}.attn_output.weight", hidden, hidden)
        norm(f"blk.{i}.ffn_norm.weight")
        matrix(f"blk.{i}.ffn_gate.weight", ffn, hidden)
        matrix(f"blk.{i}.ffn_up.weight", ffn, hidden)
        matrix(f"blk.{i}.ffn_down.weight", hidden, ffn)
    norm("output_norm.weight")
    matrix("output.weight", vocab, hidden)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def make(shape, folder):
    os.makedirs(folder, exist_ok=True)
    f16 = os.path.join(folder, "F16.gguf")
    if not os.path.exists(f16):
        make_f16(shape, f16 + ".part")
        os.rename(f16 + ".part", f16)
    for name, ftype in FORMATS.items():
        path = os.path.join(folder, name + ".gguf")
        if os.path.exists(path):
            continue
        p = llama.llama_model_quantize_default_params()
        p.ftype = ftype
        p.nthread = os.cpu_count()
        if llama.llama_model_quantize(f16.encode(), (path + ".part").encode(), ctypes.byref(p)) != 0:
            sys.exit(f"llama_cpp_worker: {name} could not be made")
        os.rename(path + ".part", path)


class LlamaCpp:
    def __init__(self, path, threads):
        quiet = llama.llama_log_callback(lambda level, text, user: None)
        llama.llama_log_set(quiet, None)
        self.keep = quiet
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
        self.vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.one = self.context(threads, 1, 1024)
        self.many = self.context(threads, SEQS, SEQS * 256)
        self.batch = llama.llama_batch_init(512, 0, 1)
        self.rng = np.random.default_rng(2)
        text = ctypes.create_string_buffer(200)
        llama.llama_model_desc(self.model, text, 200)
        self.about = f"llama.cpp {llama_version()}, {text.value.decode()}"

    def context(self, threads, seqs, tokens):
        p = llama.llama_context_default_params()  # as llama-bench: batches of 2048 in pieces of 512, F16 cache
        p.n_ctx, p.n_batch, p.n_ubatch, p.n_seq_max = tokens, 2048, 512, seqs
        p.n_threads = p.n_threads_batch = threads
        p.no_perf = True
        return llama.llama_init_from_model(self.model, p)

    def decode(self, ctx, rows):
        """rows: (position, sequence) of random tokens; logits of the last one, or of each where these are sequences."""
        b = self.batch
        b.n_tokens = len(rows)
        each = rows[-1][1] > 0
        for i, (pos, seq) in enumerate(rows):
            b.token[i] = int(self.rng.integers(self.vocab))
            b.pos[i] = pos
            b.n_seq_id[i] = 1
            b.seq_id[i][0] = seq
            b.logits[i] = each or i == len(rows) - 1
        if llama.llama_decode(ctx, b) != 0:
            sys.exit("llama_cpp_worker: llama_decode failed")
        llama.llama_synchronize(ctx)

    def run(self, kind, n, seqs):
        ctx = self.one if seqs == 1 else self.many
        llama.llama_memory_clear(llama.llama_get_memory(ctx), True)
        start = time.perf_counter()
        if kind == "pp":
            self.decode(ctx, [(i, 0) for i in range(n)])
        else:
            for t in range(n):
                self.decode(ctx, [(t, s) for s in range(seqs)])
        return time.perf_counter() - start


def llama_version():
    import importlib.metadata
    try:
        return "of llama-cpp-python " + importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        import llama_cpp
        return "of llama-cpp-python " + llama_cpp.__version__


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2], sys.argv[3])
    else:
        worker.serve(LlamaCpp(sys.argv[2], int(sys.argv[3])))
