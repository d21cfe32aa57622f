#!/usr/bin/env python3
"""Train the small demo model: a Llama on the documentation strings of Python.

    python configs/demo/train.py                    corpus, tokenizer, training, export
    python configs/demo/train.py --resume           more training of what is in model/
    python configs/demo/train.py --reference        reference.json, by way of `transformers`
    python configs/demo/train.py --sensitivity      held-out perplexity under simulated INT8 / INT4
    python configs/demo/train.py --corpus-only      val.txt and corpus statistics, nothing else

Needs torch, tokenizers, safetensors and numpy; `--reference` needs transformers too.
The corpus is the standard library of the interpreter that runs this file, so nothing
is downloaded.  Another Python version gives another corpus and another held-out file.

Everything is seeded, so a run repeats on the same machine.  Only `--minutes M` makes it
depend on the clock: where M minutes are too few for all the steps, the learning rate
decays faster, so that the run still ends in time with a fully decayed rate.
"""

import argparse
import ast
import hashlib
import importlib
import inspect
import json
import math
import os
import pkgutil
import random
import re
import sys
import sysconfig
import textwrap
import time

# Threads that spin at every barrier make training crawl on a machine that others use too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

HERE = os.path.dirname(os.path.abspath(__file__))
MODEL_DIR = os.path.join(HERE, "model")
VAL_TXT = os.path.join(HERE, "val.txt")

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
BOS_ID, EOS_ID = 0, 1

# Widths are multiples of 256, so that every group size in use (32, 64, 128, 256)
# divides every row, and the whole bf16 file stays under 7 MB.
CONFIG = {
    "vocab_size": 3072,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}

# Pre-tokenizer split of the Llama 3 family; engines recognise it as it stands.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# A base model has no roles; this only lets chat-style requests reach it as plain text.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)

# Chosen for greedy paths that mostly lead by more than rounding differences, so that
# another engine's fp32 gives the same tokens; the smallest lead is recorded with each.
REFERENCE_PROMPTS = [
    "Return a copy of the string",
    "The following functions are defined",
    "If the optional argument",
    "Raises an exception if",
    "When the file is opened,",
    "The exception is raised when",
    "The regular expression",
    "Return True if",
]


# ---------------------------------------------------------------- corpus

SKIP_DIRS = {"test", "tests", "idle_test", "lib2to3", "idlelib", "site-packages",
             "dist-packages", "__pycache__"}

# Extension modules whose docstrings live in C, beyond sys.builtin_module_names.
C_MODULES = ["array", "binascii", "math", "cmath", "select", "unicodedata", "zlib",
             "_bisect", "_csv", "_datetime", "_decimal", "_hashlib", "_heapq", "_json",
             "_lzma", "_pickle", "_posixsubprocess", "_queue", "_random", "_socket",
             "_sqlite3", "_ssl", "_struct", "_asyncio", "_bz2", "_contextvars", "mmap",
             "fcntl", "resource", "pyexpat", "termios", "syslog"]


def topic_texts():
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return
    for name in sorted(topics):
        yield topics[name]


def library_sources():
    root = sysconfig.get_paths()["stdlib"]
    for folder, dirs, files in os.walk(root):
        dirs[:] = sorted(d for d in dirs if d not in SKIP_DIRS and not d.startswith("config-"))
        for name in sorted(files):
            if not name.endswith(".py"):
                continue
            try:
                with open(os.path.join(folder, name), encoding="utf-8") as f:
                    source = f.read()
                yield source, ast.parse(source)
            except (OSError, SyntaxError, ValueError):
                continue  # the library has a few files that are broken on purpose


def source_docstrings():
    for _, tree in library_sources():
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                doc = ast.get_docstring(node)
                if doc:
                    yield doc


def comment_blocks():
    """Comments of two lines or more: explanations in the same English."""
    for source, _ in library_sources():
        for block in re.findall(r"(?m)(?:^[ ]*#(?:[ ].*)?\n){2,}", source):
            text = "\n".join(l.strip()[2:] for l in block.split("\n"))
            if "opyright" not in text:
                yield text


def builtin_docstrings():
    """Docstrings of what is written in C: str, list, math and the like."""
    for name in sorted(set(sys.builtin_module_names) | set(C_MODULES)):
        if name == "__main__":
            continue  # this file
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        owners = [module] + [v for k, v in sorted(vars(module).items()) if inspect.isclass(v)]
        for owner in owners:
            yield owner.__doc__
            for _, member in sorted(vars(owner).items(), key=lambda kv: kv[0]):
                # instances repeat the docstring of their class: functions and slots only
                if callable(member) or inspect.isgetsetdescriptor(member):
                    doc = getattr(member, "__doc__", None)
                    if isinstance(doc, str):
                        yield doc


LIST_ITEM = re.compile(r"\s*([-*+•]|\d+[.)]|\(?[a-z]\))\s")


def clean(text):
    """Turn one raw docstring into paragraphs of prose; returns a list, perhaps empty."""
    if not isinstance(text, str):
        return []
    lines = inspect.cleandoc(text).expandtabs(4).split("\n")
    # rulers under headings carry nothing
    lines = [l.rstrip() for l in lines if not re.fullmatch(r"\s*([-=*~^+#_])\1{2,}\s*", l)]
    paragraphs = []
    for block in re.split(r"\n\s*\n", "\n".join(lines)):
        block = textwrap.dedent(block).strip("\n")
        if not block.strip() or ">>>" in block:
            continue  # doctests are programs, not English
        dense = re.sub(r"\s", "", block)
        if sum(c.isalpha() for c in dense) < 0.8 * len(dense):
            continue  # tables, grammars, code
        rows = block.split("\n")
        ragged = any(r.startswith(" ") for r in rows) or sum(
            bool(LIST_ITEM.match(r)) for r in rows) > 1
        if ragged:
            rows = [re.match(r" *", r).group()[:8] + re.sub(r" {2,}", " ", r.strip()) for r in rows]
            block = "\n".join(rows)
        else:
            # flowing text: where the author broke the lines is noise
            block = re.sub(r"\s+", " ", " ".join(rows)).strip()
        paragraphs.append(block)
    return paragraphs


def shingles(text, n=8):
    words = re.findall(r"\w+", text.lower())
    return {hash_int(" ".join(words[i:i + n])) for i in range(max(1, len(words) - n + 1))}


def hash_int(text):
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")


def build_corpus():
    """Returns (training documents, held-out documents), in a fixed order."""
    seen_paragraphs, documents, comments = set(), [], []
    for source in (topic_texts, source_docstrings, builtin_docstrings, comment_blocks):
        for raw in source():
            kept = []
            for p in clean(raw):
                # Long paragraphs repeat between topics and between overridden methods.
                key = re.sub(r"\W+", " ", p.lower())
                if len(p) >= 40 and key in seen_paragraphs:
                    continue
                seen_paragraphs.add(key)
                kept.append(p)
            text = "\n\n".join(kept)
            if len(text) >= 60:
                (comments if source is comment_blocks else documents).append(text)
    # The choice depends on the document alone, not on what else is in the corpus.
    # Very long topics stay in training: one of them would be most of the held-out text.
    held = [d for d in documents if len(d) < 8000 and hash_int("split:" + d) % 100 < 7]
    held_set = set(held)
    # Comments only add training text, so that the held-out text is documentation alone.
    train = [d for d in documents if d not in held_set] + comments
    # A held-out text whose wording also occurs in training measures memory; it goes
    # from both sides, as does one that repeats another held-out text.
    known = set()
    for d in train:
        known |= shingles(d)
    val = []
    for d in held:
        s = shingles(d)
        if len(s & known) <= 0.1 * len(s):
            val.append(d)
            known |= s
    val.sort(key=hash_int)
    return train, val


# ---------------------------------------------------------------- tokenizer

def train_tokenizer(documents):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(documents, trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"], special_tokens=[BOS, EOS], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tok.post_processor = processors.TemplateProcessing(
        single=BOS + " $A", pair="%s $A %s:1 $B:1" % (BOS, BOS), special_tokens=[(BOS, BOS_ID)])
    assert tok.token_to_id(BOS) == BOS_ID and tok.token_to_id(EOS) == EOS_ID
    assert tok.get_vocab_size() == CONFIG["vocab_size"]
    return tok


# ---------------------------------------------------------------- model

def make_model():
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
    c = CONFIG
    heads, kv_heads, dim = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]

    class RMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(c["hidden_size"]))

        def forward(self, x):
            x = x.float()  # the mean of squares needs more than bf16
            return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)
                                                  + c["rms_norm_eps"]))

    def rotate(x, cos, sin):
        # first half of a head pairs with its second half, as in the HF layout
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    def linear(n_in, n_out):
        return nn.Linear(n_in, n_out, bias=False)

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj = linear(c["hidden_size"], heads * dim)
            self.k_proj = linear(c["hidden_size"], kv_heads * dim)
            self.v_proj = linear(c["hidden_size"], kv_heads * dim)
            self.o_proj = linear(heads * dim, c["hidden_size"])

        def forward(self, x, cos, sin):
            b, t, _ = x.shape
            q = self.q_proj(x).view(b, t, heads, dim).transpose(1, 2)
            k = self.k_proj(x).view(b, t, kv_heads, dim).transpose(1, 2)
            v = self.v_proj(x).view(b, t, kv_heads, dim).transpose(1, 2)
            q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
            # query head h reads key/value head h // (heads / kv_heads)
            k = k.repeat_interleave(heads // kv_heads, dim=1)
            v = v.repeat_interleave(heads // kv_heads, dim=1)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.o_proj(y.transpose(1, 2).reshape(b, t, heads * dim))

    class MLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_proj = linear(c["hidden_size"], c["intermediate_size"])
            self.up_proj = linear(c["hidden_size"], c["intermediate_size"])
            self.down_proj = linear(c["intermediate_size"], c["hidden_size"])

        def forward(self, x):
            return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.input_layernorm = RMSNorm()
            self.self_attn = Attention()
            self.post_attention_layernorm = RMSNorm()
            self.mlp = MLP()

        def forward(self, x, cos, sin, drop):
            x = x + F.dropout(self.self_attn(self.input_layernorm(x), cos, sin), drop,
                              self.training)
            return x + F.dropout(self.mlp(self.post_attention_layernorm(x)), drop, self.training)

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
            self.layers = nn.ModuleList(Layer() for _ in range(c["num_hidden_layers"]))
            self.norm = RMSNorm()

    class Llama(nn.Module):
        """Attribute names are chosen so that state_dict() has the HF tensor names."""

        def __init__(self):
            super().__init__()
            self.model = Inner()
            self.drop = 0.0
            steps = torch.arange(0, dim, 2).float() / dim
            angle = torch.outer(torch.arange(c["max_position_embeddings"]).float(),
                                c["rope_theta"] ** -steps)
            self.register_buffer("cos", angle.cos(), persistent=False)
            self.register_buffer("sin", angle.sin(), persistent=False)
            depth_scale = (2 * c["num_hidden_layers"]) ** -0.5
            for name, p in self.named_parameters():
                if p.dim() == 2:
                    # branches that add to the residual stream start smaller
                    out = name.endswith(("o_proj.weight", "down_proj.weight"))
                    nn.init.normal_(p, std=0.03 * (depth_scale if out else 1.0))

        def forward(self, ids):
            t = ids.shape[1]
            x = self.model.embed_tokens(ids)
            for layer in self.model.layers:
                x = layer(x, self.cos[:t], self.sin[:t], self.drop)
            # the output matrix is the embedding (tie_word_embeddings)
            return F.linear(self.model.norm(x), self.model.embed_tokens.weight)

    return Llama()


# ---------------------------------------------------------------- held-out perplexity

def perplexity(logits_of, ids, ctx, batch=8):
    """Disjoint windows of ctx tokens, the partial tail dropped, the first token of each
    window not scored.  logits_of maps a [b, ctx] tensor to [b, ctx, vocab] logits."""
    import torch
    import torch.nn.functional as F
    n = len(ids) // ctx
    windows = torch.tensor(ids[:n * ctx]).view(n, ctx)
    nll, scored = 0.0, 0
    with torch.no_grad():
        for i in range(0, n, batch):
            w = windows[i:i + batch]
            logits = logits_of(w)[:, :-1].float()
            nll += F.cross_entropy(logits.reshape(-1, logits.shape[-1]), w[:, 1:].reshape(-1),
                                   reduction="none").double().sum().item()
            scored += w.shape[0] * (ctx - 1)
    return {"ctx": ctx, "windows": n, "scored_tokens": scored, "mean_nll": nll / scored,
            "perplexity": math.exp(nll / scored)}


# ---------------------------------------------------------------- training

class Stream:
    """Endless token stream: every pass visits all documents in a new order."""

    def __init__(self, encoded, newline_ids, seed):
        self.encoded, self.newline = encoded, newline_ids
        self.rng = random.Random(seed)
        self.buffer, self.queue, self.passes = [BOS_ID], [], 0

    def take(self, n):
        while len(self.buffer) < n:
            if not self.queue:
                self.queue = list(range(len(self.encoded)))
                self.rng.shuffle(self.queue)
                self.passes += 1
            self.buffer += self.encoded[self.queue.pop()]
            # Half of the boundaries are only a blank line: held-out text and users'
            # prompts are plain text, where documents follow each other without markers.
            self.buffer += [EOS_ID, BOS_ID] if self.rng.random() < 0.5 else self.newline
        out, self.buffer = self.buffer[:n], self.buffer[n:]
        return out


def train(args):
    import torch
    import torch.nn.functional as F
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)

    train_docs, val_docs = build_corpus()
    val_text = "\n\n".join(val_docs) + "\n"
    with open(VAL_TXT, "w", encoding="utf-8", newline="\n") as f:
        f.write(val_text)
    print("corpus: %d documents, %d characters; held out: %d documents, %d characters"
          % (len(train_docs), sum(map(len, train_docs)), len(val_docs), len(val_text)), flush=True)
    if args.corpus_only:
        return

    tok = load_tokenizer() if args.resume else train_tokenizer(train_docs)
    encoded = [e.ids for e in tok.encode_batch(train_docs, add_special_tokens=False)]
    val_ids = tok.encode(val_text).ids
    print("tokens: %d training, %d held out" % (sum(map(len, encoded)), len(val_ids)), flush=True)
    # a resumed run reads the documents in another order than the run before it
    seed = args.seed + (1000 if args.resume else 0)
    stream = Stream(encoded, tok.encode("\n\n", add_special_tokens=False).ids, seed)
    pick = random.Random(seed + 1)

    model = load_exported().train() if args.resume else make_model()
    model.drop = args.dropout
    print("parameters: %d" % sum(p.numel() for p in model.parameters()), flush=True)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    opt = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1},
                             {"params": vectors, "weight_decay": 0.0}],
                            lr=args.lr, betas=(0.9, 0.95), fused=True)

    start, budget, step, running, evals = time.monotonic(), args.minutes * 60.0, 0, None, 0
    eval_at = [0.2, 0.4, 0.6, 0.8]
    while True:
        # Progress runs from 0 to 1 and drives the schedule; the tighter limit decides.
        progress = step / args.steps
        if budget:
            progress = max(progress, (time.monotonic() - start) / budget)
        if progress >= 1.0:
            break
        warm = min(1.0, (step + 1) / 100)
        lr = args.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in opt.param_groups:
            group["lr"] = lr
        # Mostly short windows, which are cheap; long ones teach the far positions.
        ctx = pick.choice([256, 256, 256, 512, 1024])
        rows = max(1, args.batch_tokens // ctx)
        # the window after this one starts with this one's last target: nothing is skipped
        flat = stream.take(rows * (ctx + 1))
        ids = torch.tensor(flat).view(rows, ctx + 1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
            logits = model(ids[:, :-1])
        loss = F.cross_entropy(logits.float().reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        step += 1
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0:
            print("step %5d  %5.0f s  pass %d  lr %.2e  loss %.3f"
                  % (step, time.monotonic() - start, stream.passes, lr, running), flush=True)
        if evals < len(eval_at) and progress >= eval_at[evals]:
            evals += 1
            model.eval()
            print("  held-out perplexity %.3f" % perplexity(model, val_ids, 256)["perplexity"],
                  flush=True)
            model.train()

    export(model, tok)
    # what is reported is what was written: the weights rounded to bf16
    model = load_exported()
    for ctx in (256, 1024):
        print("final held-out perplexity, ctx %d: %.4f"
              % (ctx, perplexity(model, val_ids, ctx)["perplexity"]), flush=True)
    for prompt in REFERENCE_PROMPTS:
        print(repr(tok.decode(greedy(model, tok.encode(prompt).ids, 40)[0])))


def greedy(logits_of, ids, count):
    """Greedy continuation by whole forward passes; stops after an end-of-text token.
    Also returns the smallest lead of the chosen logit over the next one."""
    import torch
    ids, lead = list(ids), math.inf
    with torch.no_grad():
        for _ in range(count):
            top = torch.topk(logits_of(torch.tensor([ids]))[0, -1].float(), 2)
            lead = min(lead, (top.values[0] - top.values[1]).item())
            ids.append(int(top.indices[0]))
            if ids[-1] == EOS_ID:
                break
    return ids, lead


# ---------------------------------------------------------------- export

def write_json(name, value):
    with open(os.path.join(MODEL_DIR, name), "w", encoding="utf-8", newline="\n") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")


def export(model, tok):
    import torch
    from safetensors.torch import save_file
    os.makedirs(MODEL_DIR, exist_ok=True)
    tensors = {k: v.detach().to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, os.path.join(MODEL_DIR, "model.safetensors"), metadata={"format": "pt"})
    os.chmod(os.path.join(MODEL_DIR, "model.safetensors"), 0o644)  # the writer makes it 0600
    write_json("config.json", dict(
        architectures=["LlamaForCausalLM"], model_type="llama", **CONFIG,
        hidden_act="silu", attention_bias=False, attention_dropout=0.0, mlp_bias=False,
        rope_scaling=None, initializer_range=0.03, pretraining_tp=1, use_cache=True,
        tie_word_embeddings=True, bos_token_id=BOS_ID, eos_token_id=EOS_ID,
        torch_dtype="bfloat16"))
    write_json("generation_config.json", {
        "bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "do_sample": False,
        "max_length": CONFIG["max_position_embeddings"]})
    tok.save(os.path.join(MODEL_DIR, "tokenizer.json"), pretty=False)
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
               "special": True}
    write_json("tokenizer_config.json", {
        "added_tokens_decoder": {str(BOS_ID): dict(content=BOS, **special),
                                 str(EOS_ID): dict(content=EOS, **special)},
        "bos_token": BOS, "eos_token": EOS, "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONFIG["max_position_embeddings"],
        "tokenizer_class": "PreTrainedTokenizerFast"})


def load_exported():
    from safetensors.torch import load_file
    model = make_model()
    tensors = load_file(os.path.join(MODEL_DIR, "model.safetensors"))
    model.load_state_dict({k: v.float() for k, v in tensors.items()})
    return model.eval()


def load_tokenizer():
    from tokenizers import Tokenizer
    return Tokenizer.from_file(os.path.join(MODEL_DIR, "tokenizer.json"))


def load_val_ids():
    tok = load_tokenizer()
    with open(VAL_TXT, encoding="utf-8", newline="") as f:
        return tok, tok.encode(f.read()).ids


# ---------------------------------------------------------------- reference

def reference(args):
    """Expected results, from the `transformers` package and not from the code above."""
    import tokenizers
    import torch
    import transformers
    torch.set_num_threads(args.threads)
    tok, val_ids = load_val_ids()
    hf = transformers.AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    logits_of = lambda ids: hf(input_ids=ids, use_cache=False).logits
    entries = []
    for prompt in REFERENCE_PROMPTS:
        ids = tok.encode(prompt).ids
        whole, lead = greedy(logits_of, ids, 24)
        with torch.no_grad():
            top = torch.topk(logits_of(torch.tensor([ids]))[0, -1], 5)
        entries.append({
            "prompt": prompt, "prompt_ids": ids, "greedy_ids": whole[len(ids):],
            "greedy_text": tok.decode(whole[len(ids):]),
            "smallest_lead": round(lead, 5),
            "first_top5": [[int(i), round(v, 4)] for i, v in
                           zip(top.indices.tolist(), top.values.tolist())]})
    results = [perplexity(logits_of, val_ids, ctx) for ctx in (256, 1024)]
    mine = load_exported()
    for r in results:
        own = perplexity(mine, val_ids, r["ctx"])["perplexity"]
        print("ctx %4d: transformers %.5f, this script %.5f" % (r["ctx"], r["perplexity"], own))
        assert abs(own / r["perplexity"] - 1) < 1e-4
    write_json("reference.json", {
        "made_with": {"torch": torch.__version__.split("+")[0],
                      "transformers": transformers.__version__,
                      "tokenizers": tokenizers.__version__},
        "notes": "bf16 weights widened to fp32, all arithmetic fp32. prompt_ids include the "
                 "BOS that the tokenizer prepends. greedy_ids: up to 24 new tokens, ending "
                 "with the end-of-text id where it came up. smallest_lead: least difference "
                 "between the chosen and the second logit over these tokens. first_top5: "
                 "ids and logits after the prompt. perplexity: val.txt tokenised once with "
                 "one BOS, disjoint windows of ctx tokens, partial tail dropped, tokens 2 to "
                 "ctx of each window scored.",
        "val_tokens": len(val_ids),
        "val_sha256": hashlib.sha256(open(VAL_TXT, "rb").read()).hexdigest(),
        "perplexity": results, "prompts": entries})
    for e in entries:
        print("%-40r %.4f %r" % (e["prompt"], e["smallest_lead"], e["greedy_text"]))


# ---------------------------------------------------------------- quantization sensitivity

def round_to_nearest(weight, bits, group):
    """Symmetric round-to-nearest and back; group 0 means one scale per output row."""
    import torch
    rows, cols = weight.shape
    w = weight.reshape(rows, -1, group or cols)
    limit = 2 ** (bits - 1) - 1
    scale = w.abs().amax(-1, keepdim=True).clamp_min(1e-12) / limit
    return (torch.clamp(torch.round(w / scale), -limit, limit) * scale).reshape(rows, cols)


def sensitivity(args):
    import torch
    torch.set_num_threads(args.threads)
    _, val_ids = load_val_ids()
    base = None
    for name, bits, group in (("fp32", 0, 0), ("int8 per row", 8, 0), ("int4 group 32", 4, 32),
                              ("int4 group 128", 4, 128), ("int4 per row", 4, 0),
                              ("int3 group 128", 3, 128)):
        model = load_exported()
        if bits:
            with torch.no_grad():
                for key, p in model.named_parameters():
                    if key.endswith("_proj.weight"):  # embedding and output stay as they are
                        p.copy_(round_to_nearest(p, bits, group))
        ppl = perplexity(model, val_ids, 256)["perplexity"]
        base = base or ppl
        print("%-16s perplexity %9.4f  (%+.2f %%)" % (name, ppl, 100 * (ppl / base - 1)), flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--steps", type=int, default=3600)
    ap.add_argument("--minutes", type=float, default=0.0,
                    help="wall-clock budget: end sooner than --steps if need be (0: no limit)")
    ap.add_argument("--resume", action="store_true",
                    help="go on from model/, with its tokenizer and a new schedule")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--seed", type=int, default=20240607)
    ap.add_argument("--lr", type=float, default=3e-3)
    ap.add_argument("--dropout", type=float, default=0.0)
    ap.add_argument("--batch-tokens", type=int, default=1024)
    ap.add_argument("--no-bf16", dest="bf16", action="store_false",
                    help="train without bf16 autocast (slower where the CPU has bf16)")
    ap.add_argument("--corpus-only", action="store_true")
    ap.add_argument("--reference", action="store_true", help="write model/reference.json")
    ap.add_argument("--sensitivity", action="store_true", help="simulated quantization")
    args = ap.parse_args()
    if args.reference:
        reference(args)
    elif args.sensitivity:
        sensitivity(args)
    else:
        train(args)


if __name__ == "__main__":
    main()
