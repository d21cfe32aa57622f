"""nibble beside llama.cpp, OpenVINO and oneDNN on this machine: the same shape, the same threads, one after the other in every round.

    ./dev peers [--rounds 5] [--threads N] [--only llama,openvino,nibble,gemm]      (sets up .cache/peers, then this)

Every engine loads its models once, with random weights; then each round runs each test on each of them in turn, so that all meet the
same moods of a shared machine.  Figures are medians over the rounds, ratios medians of the rounds' ratios.  Tests, as in
llama-bench: pp128 and pp512 (a prompt at once), tg32 (one token after the other), and tg16 of 32 sequences together.

Writes benchmarks/results/cpu/peers.json, peers.md and peers.svg.  Nothing of this is used by nibble or its tests."""
import argparse
import contextlib
import fcntl
import json
import os
import statistics
import subprocess
import sys
import time

import chart

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
TESTS = [("pp128", "pp", 128, 1), ("pp512", "pp", 512, 1), ("tg32", "tg", 32, 1), ("tg16 x32", "tg", 16, 32)]
LLAMA = ["F16", "Q8_0", "Q4_0", "Q4_K_M"]
OPENVINO = ["int8", "int4"]
NIBBLE = ["w8a8", "w4a8", "w4a16", "ternary-a8"]
# What is compared with what: the test, nibble's recipe, the other one, and the ratio that nibble is meant to reach.
GOALS = [("tg32", "nibble w4a8", "llama.cpp Q4_0", 1.5), ("tg32", "nibble w4a8", "llama.cpp Q4_K_M", 1.3),
         ("tg32", "nibble w8a8", "llama.cpp Q8_0", 1.3), ("tg32", "nibble ternary-a8", "nibble w4a8", 1.5),
         ("pp128", "nibble w8a8", "llama.cpp Q8_0", 3.0), ("pp512", "nibble w8a8", "llama.cpp Q8_0", 3.0),
         ("pp128", "nibble w8a8", "OpenVINO int8", 1.25), ("pp512", "nibble w8a8", "OpenVINO int8", 1.25),
         ("pp128", "nibble w4a8", "llama.cpp Q4_0", 2.2), ("pp512", "nibble w4a8", "llama.cpp Q4_0", 2.2),
         ("tg16 x32", "nibble w8a8", "llama.cpp Q8_0", 3.0), ("tg16 x32", "nibble w4a8", "llama.cpp Q4_0", 3.0)]
GEMM_ROWS = [1, 16, 32, 64, 128, 512]


class Worker:
    """A process with one model; it waits without working between requests."""

    def __init__(self, name, command):
        self.name = name
        path = os.pathsep.join([HERE, os.path.join(ROOT, "python_stub")])
        env = {**os.environ, "PYTHONPATH": path, "NIBBLE_RECIPES": os.path.join(ROOT, "configs", "recipes")}
        self.process = subprocess.Popen([sys.executable, os.path.join(HERE, command[0]), *map(str, command[1:])], text=True, env=env,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        line = self.process.stdout.readline()
        self.about = json.loads(line)["about"] if line else None

    def run(self, kind, n, seqs):
        self.process.stdin.write(f"{kind} {n} {seqs}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"peers: {self.name} ended in {kind}{n}")
        return json.loads(line)

    def threads(self):
        return [int(t) for t in os.listdir(f"/proc/{self.process.pid}/task")]


@contextlib.contextmanager
def undisturbed(args, worker):
    """Holds --lock, and with --fifo gives the worker's threads a priority above everything else."""
    lock = open(args.lock, "a") if args.lock else None
    if lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    for t in worker.threads() if args.fifo else []:
        with contextlib.suppress(ProcessLookupError):
            os.sched_setscheduler(t, os.SCHED_FIFO, os.sched_param(10))
    try:
        yield
    finally:
        for t in worker.threads() if args.fifo else []:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setscheduler(t, os.SCHED_OTHER, os.sched_param(0))
        if lock:
            lock.close()


def start_workers(args):
    wanted = []
    if "llama" in args.only:
        wanted += [(f"llama.cpp {f}", ["llama_cpp_worker.py", "serve", os.path.join(args.models, f + ".gguf"), args.threads]) for f in LLAMA]
    if "openvino" in args.only:
        wanted += [(f"OpenVINO {k}", ["openvino_worker.py", args.shape, k, args.threads]) for k in OPENVINO]
    if "nibble" in args.only:
        wanted += [(f"nibble {r}", ["nibble_worker.py", args.shape, r, args.threads]) for r in NIBBLE]
    workers = []
    for name, command in wanted:
        w = Worker(name, command)
        print(f"{name}: {w.about or 'did not start, left out'}", flush=True)
        if w.about:
            workers.append(w)
    return workers


def measure(args, workers):
    """{test: {worker: [tokens a second, a round each]}}, and the roofs that nibble saw."""
    speed = {t[0]: {w.name: [] for w in workers} for t in TESTS}
    roofs = {t[0]: {w.name: [] for w in workers} for t in TESTS}
    for number in range(args.rounds + 1):  # the first one warms up
        for test, kind, n, seqs in TESTS:
            for w in workers:
                with undisturbed(args, w):
                    row = w.run(kind, n if number else min(n, 4 if kind == "tg" else n), seqs)
                if number:
                    speed[test][w.name].append(n * seqs / row["seconds"])
                    if "pct_mem" in row:
                        roofs[test][w.name].append(row)
        print(f"round {number} of {args.rounds}", flush=True)
    return speed, roofs


def gemm(args):
    command = [args.gemm, "4096", "4096", str(args.threads), str(2 * args.rounds + 1)]
    return [json.loads(subprocess.run([*args.prefix, *command, copies, *map(str, GEMM_ROWS)], check=True, stdout=subprocess.PIPE).stdout)
            for copies in ("1", "13")]


def ratio(speed, test, ours, theirs):
    a, b = speed[test].get(ours), speed[test].get(theirs)
    return statistics.median(x / y for x, y in zip(a, b)) if a and b else None


def roof_table(roofs):
    """What nibble reaches of the roofs that it measures before each test."""
    names = [n for n, rows in roofs[TESTS[0][0]].items() if rows]
    if not names:
        return []
    lines = ["", "| nibble, percent of | " + " | ".join(f"memory, {t[0]} | INT8, {t[0]}" for t in TESTS) + " |", "|---|" + "---:|---:|" * len(TESTS)]
    for name in names:
        cells = [f"{statistics.median(r[key] for r in roofs[t[0]][name]):.0f}" for t in TESTS for key in ("pct_mem", "pct_int8")]
        lines.append(f"| {name.removeprefix('nibble ')} | " + " | ".join(cells) + " |")
    rows = [r for test in roofs.values() for name in names for r in test[name]]
    mem, int8 = sorted(r["mem_gbs"] for r in rows), sorted(r["int8_gops"] for r in rows)
    return lines + ["", f"Roofs: memory {mem[0]:.0f} to {mem[-1]:.0f} GB/s (median {statistics.median(mem):.0f}), "
                    f"INT8 {int8[0]:.0f} to {int8[-1]:.0f} GOPS (median {statistics.median(int8):.0f})."]


def table(result):
    lines = ["| engine | " + " | ".join(t[0] for t in TESTS) + " |", "|---|" + "---:|" * len(TESTS)]
    names = list(result["speed"][TESTS[0][0]])
    for name in names:
        cells = [f"{statistics.median(result['speed'][t[0]][name]):.1f}" for t in TESTS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "| test | nibble | beside | ratio | aim | |", "|---|---|---|---:|---:|---|"]
    for test, ours, theirs, aim in GOALS:
        r = ratio(result["speed"], test, ours, theirs)
        if r is not None:
            lines.append(f"| {test} | {ours.removeprefix('nibble ')} | {theirs} | {r:.2f} | {aim:.2f} | {'reached' if r >= aim else 'not reached'} |")
    lines += roof_table(result["roofs"])
    for g in result.get("gemm", []):
        kind = "one weight, again and again" if g["copies"] == 1 else f"{g['copies']} weights in turn"
        lines += ["", f"W8A8 product, N = K = {g['n']}, {kind}; INT8 roof {g['int8_gops']:.0f} GOPS, memory {g['mem_gbs']:.1f} GB/s:", "",
                  f"| M | oneDNN {g['onednn']}, us | % of roof | nibble, us | % of roof | ratio | with quantizing, us | ratio |",
                  "|---:|---:|---:|---:|---:|---:|---:|---:|"]
        for r in g["rows"]:
            lines.append(f"| {r['m']} | {r['onednn_us']:.0f} | {r['onednn_pct_int8']:.1f} | {r['nibble_gemm_us']:.0f} | {r['nibble_pct_int8']:.1f} | "
                         f"{r['ratio_gemm']:.2f} | {r['nibble_linear_us']:.0f} | {r['ratio_linear']:.2f} |")
    return "\n".join(lines) + "\n"


def arguments():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--shape", default=os.path.join(ROOT, "configs", "shapes", "tinyllama-1.1b.json"))
    p.add_argument("--models", required=True, help="folder of the GGUF files (made where they are missing)")
    p.add_argument("--gemm", help="the program made of gemm.cpp")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--only", default="llama,openvino,nibble,gemm", type=lambda s: s.split(","))
    p.add_argument("--lock", help="take this lock file for every measurement, where several people measure on one machine")
    p.add_argument("--fifo", action="store_true", help="measure at real-time priority (needs the right to; for busy machines)")
    p.add_argument("--out", default=os.path.join(ROOT, "benchmarks", "results", "cpu", "peers"))
    return p.parse_args()


def main():
    args = arguments()
    args.prefix = (["flock", args.lock] if args.lock else []) + (["chrt", "-f", "10"] if args.fifo else [])
    if "llama" in args.only:
        subprocess.run([sys.executable, os.path.join(HERE, "llama_cpp_worker.py"), "make", args.shape, args.models], check=True,
                       stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": HERE})
    result = {"date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "shape": os.path.basename(args.shape), "threads": args.threads,
              "rounds": args.rounds}
    workers = start_workers(args)
    result["engines"] = {w.name: w.about for w in workers}
    result["speed"], result["roofs"] = measure(args, workers)
    for w in workers:
        w.process.stdin.close()
        w.process.wait()
    if "gemm" in args.only and args.gemm:
        result["gemm"] = gemm(args)
    os.makedirs(os.path.dirname(args.out), exist_ok=True)
    with open(args.out + ".json", "w") as f:
        json.dump(result, f, indent=1)
        f.write("\n")
    text = table(result)
    with open(args.out + ".md", "w") as f:
        f.write(f"`./dev peers --rounds {args.rounds}` on {result['date']}: {result['shape']}, {args.threads} threads, tokens a second, medians of {args.rounds} rounds.\n\n" + text)
    with open(args.out + ".svg", "w") as f:
        f.write(chart.bars({t[0]: {n: statistics.median(x) for n, x in result["speed"][t[0]].items()} for t in TESTS},
                           f"{result['shape'].removesuffix('.json')}, {args.threads} threads: tokens a second"))
    print(text)


if __name__ == "__main__":
    main()
