#!/usr/bin/env python3
"""The whole path once: quantize the shipped model, run the batch job, measure, print one table.

usage: benchmarks/demo.py build/nibble        (standard library only; ./dev demo calls it)
"""
import json
import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODEL = os.path.join(ROOT, "configs/demo/model")
TEXT = os.path.join(ROOT, "configs/demo/val.txt")
JOB = os.path.join(ROOT, "configs/demo.jsonl")
OUT = os.path.join(ROOT, "build/demo")
RECIPES = [("W8A8 (INT8)", "w8a8-dynamic"), ("W8A16 (INT8)", "w8a16"), ("W4A16 g128 (INT4)", "w4a16-g128")]


def nibble(*args, show=True):
    """Runs a command; its stdout comes back, its stderr (progress) goes to the terminal."""
    words = [os.path.relpath(a, ROOT) if a.startswith(ROOT) else a for a in args]
    if show:
        print("$ build/nibble " + " ".join(words), flush=True)
    done = subprocess.run([BINARY, *args], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"demo: nibble {words[0]} ended with status {done.returncode}")
    return done.stdout


def weights_bytes(folder):
    return sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder) if f.endswith(".safetensors"))


def measure(name, folder):
    ppl = json.loads(nibble("eval", folder, "-f", TEXT, "--ctx", "256", "--json"))["perplexity"]
    speed = {r["test"]: r["avg_ts"] for r in json.loads(nibble("bench", folder, "-p", "128", "-n", "32", "--json"))}
    return name, weights_bytes(folder), ppl, speed["pp128"], speed["tg32"]


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(OUT)
    rows = [measure("bf16 (original)", MODEL)]
    for name, recipe in RECIPES:
        folder = os.path.join(OUT, recipe)
        nibble("quantize", MODEL, "-o", folder, "--recipe", recipe)
        rows.append(measure(name, folder))
    results = os.path.join(OUT, "out.jsonl")
    int4 = os.path.join(OUT, RECIPES[-1][1])
    nibble("run", int4, "-i", JOB, "-o", results)

    print("\nfrom the batch job (W4A16 g128, greedy or as each row asks):")
    prompts = {}
    with open(JOB) as f:
        for row in map(json.loads, f):
            body = row["body"]
            prompts[row["custom_id"]] = body.get("prompt") or body["messages"][-1]["content"]
    with open(results) as f:
        for row in sorted(map(json.loads, f), key=lambda r: r["custom_id"])[:5]:
            choice = row["response"]["body"]["choices"][0]
            text = choice.get("text") or choice.get("message", {}).get("content") or ""
            print(f"  {prompts[row['custom_id']]!r} -> {text.strip()!r}")

    print(f"\n{'precision':<20} {'file':>10} {'perplexity':>11} {'prefill tok/s':>14} {'decode tok/s':>13}")
    for name, size, ppl, prefill, decode in rows:
        print(f"{name:<20} {size / 2**20:>7.2f} MB {ppl:>11.3f} {prefill:>14.0f} {decode:>13.0f}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    BINARY = os.path.abspath(sys.argv[1])
    main()
