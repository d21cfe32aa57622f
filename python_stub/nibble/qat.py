"""Quantization-aware training: fine-tunes a Hugging Face Llama so that its rounded weights work, and writes them for nibble.

    python -m nibble.qat MODEL -o OUT --bits ternary --text book.txt --steps 300

The weights are trained through the engine's own grids (nibble._fakequant) towards the text and towards the logits of the
original model, and OUT is a compressed-tensors folder with exactly those codes.  Needs torch: pip install 'nibble[qat]'.
"""
import argparse
import hashlib
import json
import math
import os
import sys
import time

import numpy as np

from . import _checkpoint, _grid
from ._checkpoint import BadFile

# A thread of OpenMP that spins while it waits stops whatever else the machine does; read when torch loads its library.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
try:
    import torch
    from torch.nn import functional as F

    from . import _llama
except ModuleNotFoundError as e:
    if e.name != "torch":
        raise
    torch = None

NO_TORCH = "nibble.qat: needs torch, which is not installed: pip install 'nibble[qat]'"
HELD_OUT_WINDOWS = 16
STATE = ".qat-state"  # behind the name of the output: the state of a run that has not finished


# ---- arguments -------------------------------------------------------------------------------------------------------
def parse_args(argv=None):
    p = argparse.ArgumentParser(prog="python -m nibble.qat", description="Trains a model for low bits and writes it.")
    p.add_argument("model", help="a Hugging Face folder: Llama, Mistral or Qwen2 in floating point")
    p.add_argument("-o", "--output", required=True, help="the folder to write")
    p.add_argument("--bits", required=True, choices=("8", "4", "3", "2", "ternary"))
    p.add_argument("--text", required=True, action="append", metavar="FILE",
                   help="training text, UTF-8 or JSONL with \"text\"; may be repeated")
    p.add_argument("--group-size", type=int, metavar="G",
                   help="inputs that share a scale, 0: one scale a row (default: 128; 64 for 2 bits; 0 for ternary)")
    p.add_argument("--symmetric", action=argparse.BooleanOptionalAction,
                   help="no zero points (default: all but 2 bits are symmetric)")
    p.add_argument("--steps", type=int, default=300)
    p.add_argument("--batch", type=int, default=8, help="windows a step (8)")
    p.add_argument("--seq", type=int, default=256, help="tokens a window (256)")
    p.add_argument("--lr", type=float, help="of the weights (default: 1e-3 ternary, 5e-4 for 2 bits, 1e-4 else)")
    p.add_argument("--scale-lr", type=float, default=0.1, metavar="F",
                   help="learning rate of scales and offsets, as a part of --lr (0.1)")
    p.add_argument("--distill", type=float, default=0.9, metavar="A",
                   help="loss = A * KL to the original's logits + (1 - A) * cross-entropy (0.9)")
    p.add_argument("--start", choices=("rtn", "clip", "twn"),
                   help="first scales: range, least squared error, ternary's (default: rtn; twn for ternary)")
    p.add_argument("--train-embeddings", action="store_true", help="also embeddings and lm_head, which stay dense")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="auto", help="auto, cpu or cuda[:N]")
    p.add_argument("--compute", choices=("fp32", "bf16"), default="fp32", help="type of matrix products (fp32)")
    p.add_argument("--threads", type=int, default=0, help="of the CPU, 0: all cores")
    p.add_argument("--checkpoint-every", type=int, default=50, metavar="N", help="steps between states on disk (50)")
    p.add_argument("--resume", action="store_true", help="continue an interrupted run")
    p.add_argument("--overwrite", action="store_true", help="replace the output folder, start anew")
    p.add_argument("--json", action="store_true", help="print the report as JSON")
    a = p.parse_args(argv)
    for name, low in (("steps", 0), ("batch", 1), ("seq", 2), ("threads", 0), ("checkpoint_every", 1), ("seed", 0)):
        if getattr(a, name) < low:
            p.error(f"--{name.replace('_', '-')} is {getattr(a, name)}, expected at least {low}")
    if not 0 <= a.distill <= 1:
        p.error(f"--distill is {a.distill}, expected 0 to 1")
    if a.lr is None:
        a.lr = {"ternary": 1e-3, "2": 5e-4}.get(a.bits, 1e-4)
    for name in ("lr", "scale_lr"):
        if not (0 <= getattr(a, name) < math.inf):
            p.error(f"--{name.replace('_', '-')} is {getattr(a, name)}, expected a number from 0")
    try:
        a.scheme = scheme_of(a)
    except ValueError as e:
        p.error(str(e))
    a.start = a.start or ("twn" if a.scheme.ternary else "rtn")
    if (a.start == "twn") != a.scheme.ternary:
        p.error(f"--start {a.start} and --bits {a.bits}: twn is for ternary weights, and they have no other start")
    return a


def scheme_of(a):
    ternary = a.bits == "ternary"
    group = a.group_size
    if group is None:
        group = {"ternary": 0, "2": 64}.get(a.bits, 128)
    symmetric = a.bits != "2" if a.symmetric is None else a.symmetric
    return _grid.Scheme(2 if ternary else int(a.bits), group, symmetric, ternary)


# ---- text ------------------------------------------------------------------------------------------------------------
def read_text(path):
    try:
        with open(path, "rb") as f:
            data = f.read()
        if not path.endswith(".jsonl"):
            data.decode("utf-8")
            return data
        rows = [json.loads(line)["text"] for line in data.decode("utf-8").split("\n") if line.strip()]
        return "\n\n".join(rows).encode("utf-8")
    except OSError as e:
        raise BadFile(f"{path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise BadFile(f"{path}: byte {e.start} is not UTF-8") from e
    except (ValueError, KeyError, TypeError) as e:
        raise BadFile(f"{path}: expected JSON objects with a string \"text\", one a line") from e


def read_ids(model, paths, vocab):
    """Ids of all texts, one after the other, each with the BOS that the tokenizer gives it."""
    from . import Tokenizer

    with Tokenizer(model) as t:
        ids = np.concatenate([np.array(t.tokenize(read_text(p)), np.int64) for p in paths])
    if ids.size and ids.max() >= vocab:
        raise BadFile(f"{model}: the tokenizer gives the id {ids.max()}, expected ids below the vocabulary of {vocab}")
    return ids


class Windows:
    """Random windows to train on, and the end of the text, which is held out to be measured."""

    def __init__(self, ids, seq, batch, seed):
        self.ids, self.seq, self.batch, self.seed = ids, seq, batch, seed
        held = min(HELD_OUT_WINDOWS, ids.size // seq // 10)
        self.n_train = ids.size - held * seq
        if held < 1 or self.n_train < seq * batch:
            raise BadFile(f"the training text has {ids.size} tokens, expected at least {seq * max(batch + 1, 10)}: "
                          f"{batch} windows of {seq} and as much as a tenth to measure by")
        if (ids[1:] == ids[1]).all():
            raise BadFile("the training text is one token repeated")
        self.held_out = ids[self.n_train:].reshape(held, seq)

    def at(self, step):
        """Depends on seed and step alone, so that a resumed run sees what the uninterrupted one saw."""
        begin = np.random.default_rng([self.seed, step]).integers(0, self.n_train - self.seq + 1, self.batch)
        return np.stack([self.ids[b:b + self.seq] for b in begin])


# ---- training --------------------------------------------------------------------------------------------------------
class Trainer:
    def __init__(self, args, windows, student, teacher, device):
        self.a, self.windows, self.student, self.teacher, self.device = args, windows, student, teacher, device
        self.step = 0
        scales = [p for m in student.quantized().values() for p in (m.scale, m.offset) if p is not None]
        known = {id(p) for p in scales}
        weights = [p for p in student.parameters() if p.requires_grad and id(p) not in known]
        self.optimizer = torch.optim.AdamW([{"params": weights, "part": 1.0}, {"params": scales, "part": args.scale_lr}],
                                           lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0)

    def rate(self, step):
        """Linear over the first twentieth, then half a cosine to 0."""
        warm = max(self.a.steps // 20, 1)
        if step < warm:
            return self.a.lr * (step + 1) / warm
        return self.a.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(self.a.steps - warm, 1)))

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.a.compute == "bf16")

    def train_step(self):
        ids = torch.from_numpy(self.windows.at(self.step)).to(self.device)
        inputs, targets = ids[:, :-1], ids[:, 1:].reshape(-1)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step) * group["part"]
        with self.autocast():
            logits = self.student(inputs).flatten(0, 1)
            if self.teacher is not None:
                with torch.no_grad():
                    wanted = F.log_softmax(self.teacher(inputs).flatten(0, 1), -1)
        scores = F.log_softmax(logits, -1)
        loss = (1 - self.a.distill) * F.nll_loss(scores, targets)
        if self.teacher is not None:
            loss = loss + self.a.distill * F.kl_div(scores, wanted, log_target=True, reduction="batchmean")
        value = loss.item()
        if not math.isfinite(value):
            raise BadFile(f"the loss is {value} in step {self.step}: a smaller --lr than {self.a.lr:g} may help")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        for m in self.student.quantized().values():
            m.keep_valid()
        self.step += 1
        return value

    def perplexity(self, model):
        """Of the held-out end of the text."""
        total = 0.0
        with torch.no_grad():
            for row in self.windows.held_out:
                ids = torch.from_numpy(row.copy()).to(self.device)[None]
                total += F.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:]).item()
        return math.exp(total / len(self.windows.held_out))

    # -- states on disk: fp32 weights, optimizer and step; everything else follows from the arguments
    def save(self, path, identity):
        state = {"identity": identity, "step": self.step, "model": self.student.state_dict(),
                 "optimizer": self.optimizer.state_dict()}
        torch.save(state, path + ".new")
        os.replace(path + ".new", path)

    def load(self, path, identity):
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            theirs = state["identity"]
        except Exception as e:
            raise BadFile(f"{path}: is not a state of nibble.qat: {e}") from e
        for key, value in identity.items():
            if theirs.get(key) != value:
                raise BadFile(f"{path}: was made with {key} {theirs.get(key)}, and this run has {value}")
        self.student.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


class Progress:
    """step 120/300  loss 1.234  0.9 s a step  2:42 left: on a terminal in place, else a line every ten seconds."""

    def __init__(self, step, steps):
        self.first, self.steps, self.began, self.shown, self.mean = step, steps, time.monotonic(), 0.0, None
        self.tty = sys.stderr.isatty()

    def show(self, step, loss):
        self.mean = loss if self.mean is None else 0.9 * self.mean + 0.1 * loss
        now = time.monotonic()
        if step < self.steps and now - self.shown < (0.5 if self.tty else 10):
            return
        self.shown = now
        pace = (now - self.began) / (step - self.first)
        left = round(pace * (self.steps - step))
        line = f"step {step}/{self.steps}  loss {self.mean:.4f}  {pace:.2f} s a step  {left // 60}:{left % 60:02d} left"
        end = "   " if self.tty and step < self.steps else "\n"
        print("\r" + line if self.tty else line, end=end, file=sys.stderr, flush=True)


def identity_of(a, ids):
    """What a state on disk must have been made with."""
    h = hashlib.sha256()
    for name in sorted(os.listdir(a.model)):
        if name.endswith(".safetensors"):
            with open(os.path.join(a.model, name), "rb") as f:
                while block := f.read(1 << 20):
                    h.update(block)
    same = {k: getattr(a, k) for k in ("bits", "steps", "batch", "seq", "lr", "scale_lr", "distill", "start",
                                       "train_embeddings", "seed", "compute")}
    return {**same, "group size": a.scheme.group, "symmetric": a.scheme.symmetric, "model": h.hexdigest()[:16],
            "text": hashlib.sha256(ids.tobytes()).hexdigest()[:16]}


# ---- the file --------------------------------------------------------------------------------------------------------
def export(a, config, weights, student, report):
    """Codes of the quantized layers, other trained tensors in the model's dtype, and what was not trained as it was."""
    tensors = {}
    for name, m in student.tensors.items():
        if isinstance(m, _llama.QuantLinear):
            q, scale, zero = m.codes()
            if not np.isfinite(m.weight.detach().cpu().numpy()).all() or not np.isfinite(scale).all():
                raise BadFile(f"{name} became NaN or infinite: a smaller --lr than {a.lr:g} may help")
            tensors.update(_checkpoint.packed_tensors(name, q, scale, zero, a.scheme, student.config.dtype))
            if m.bias is not None:
                tensors[f"{name}.bias"] = _dense(m.bias, weights[f"{name}.bias"])
        else:
            tensors[f"{name}.weight"] = _dense(m, weights[f"{name}.weight"])
    made = {**config, "quantization_config": _checkpoint.quantization_config(a.scheme, ["lm_head"])}
    _checkpoint.write_folder(a.model, a.output, made, tensors, report)


def _dense(m, source):
    if not m.value.requires_grad:
        return source
    return _checkpoint.from_f32(m().detach().cpu().numpy(), m.dtype)


# ---- the command -----------------------------------------------------------------------------------------------------
def device_of(name):
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not (name.split(":")[0] == "cuda" and torch.cuda.is_available()):
        raise BadFile(f"--device {name}: expected auto, cpu, or cuda where PyTorch finds a GPU")
    return torch.device(name)


def check_output(a, state):
    if a.overwrite and a.resume:
        raise BadFile("--resume continues a run and --overwrite starts anew: one of them")
    parent = os.path.dirname(os.path.abspath(a.output))
    if not os.access(parent, os.W_OK | os.X_OK):
        raise BadFile(f"{parent}: is not a folder that can be written to")
    if os.path.exists(a.output) and not a.overwrite:
        raise BadFile(f"{a.output}: exists; --overwrite replaces it")
    if os.path.isdir(a.output) and os.path.samefile(a.output, a.model):
        raise BadFile(f"{a.output}: is the model itself")
    if a.resume and not os.path.exists(state):
        raise BadFile(f"{state}: is not there, so there is nothing to resume")
    if os.path.exists(state) and not a.resume and not a.overwrite:
        raise BadFile(f"{state}: an interrupted run; --resume continues it, --overwrite starts anew")


def train(a):
    """The whole job; returns the report."""
    began = time.monotonic()
    a.output = a.output.rstrip("/") or "/"
    state = a.output + STATE
    check_output(a, state)
    if a.threads:
        torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    device = device_of(a.device)
    where = os.path.join(a.model, "config.json")
    config = _checkpoint.read_json(where)
    c = _llama.parse_config(config, where)
    if a.seq > c.context:
        raise BadFile(f"--seq is {a.seq}, expected at most the model's context of {c.context}")
    weights = _checkpoint.read_weights(a.model)
    ids = read_ids(a.model, a.text, c.vocab)
    windows = Windows(ids, a.seq, a.batch, a.seed)
    original = _llama.Llama(c, weights).to(device)
    student = _llama.Llama(c, weights, a.scheme, a.start, a.train_embeddings).to(device)
    t = Trainer(a, windows, student, original if a.distill else None, device)
    identity = identity_of(a, ids)
    report = {"method": "qat", **identity, "device": str(device), "training_tokens": int(windows.n_train),
              "held_out_tokens": int(windows.held_out.size), "perplexity_original": t.perplexity(original),
              "perplexity_start": t.perplexity(student)}
    if a.resume:
        t.load(state, identity)
    _loop(t, state, identity)
    report["perplexity"] = t.perplexity(student)
    report["seconds"] = round(time.monotonic() - began, 1)
    export(a, config, weights, student, report)
    if os.path.exists(state):
        os.remove(state)
    return report


def _loop(t, state, identity):
    progress = Progress(t.step, t.a.steps)
    while t.step < t.a.steps:
        loss = t.train_step()
        progress.show(t.step, loss)
        if t.step % t.a.checkpoint_every == 0 and t.step < t.a.steps:
            t.save(state, identity)


def main(argv=None):
    a = parse_args(argv)
    if torch is None:
        print(NO_TORCH, file=sys.stderr)
        return 1
    try:
        report = train(a)
    except (BadFile, OSError) as e:
        print(f"nibble.qat: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        state = a.output + STATE
        hint = f"{state} holds what --resume continues" if os.path.exists(state) else "before its first state on disk"
        print(f"nibble.qat: interrupted; {hint}", file=sys.stderr)
        return 130
    if a.json:
        print(json.dumps(report, indent=2))
    else:
        print(f"{a.output}: perplexity of the {report['held_out_tokens']} held-out tokens {report['perplexity']:.3f}, before "
              f"training {report['perplexity_start']:.3f}, original {report['perplexity_original']:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
