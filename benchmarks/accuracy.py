#!/usr/bin/env python3
"""Every recipe on one model: size, perplexity, distance from the original.  Prints a Markdown table, writes JSON.

usage: benchmarks/accuracy.py MODEL TEXT [--ctx 256] [--calib FILE] [--json OUT] [--nibble build/nibble]
(standard library only)
"""
import argparse
import glob
import json
import os
import subprocess
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("text")
    p.add_argument("--ctx", default="256")
    p.add_argument("--calib", help="text for static activations (default: TEXT itself, which flatters them)")
    p.add_argument("--json", help="write the rows here")
    p.add_argument("--nibble", default=os.path.join(ROOT, "build/nibble"))
    a = p.parse_args()

    def nibble(*args):
        return json.loads(subprocess.run([a.nibble, *args, "--json"], check=True, stdout=subprocess.PIPE).stdout)

    base = nibble("eval", a.model, "-f", a.text, "--ctx", a.ctx)
    before = nibble("inspect", a.model)
    rows = [dict(recipe="original", bytes=before["bytes"], bits_per_weight=16.0, perplexity=base["perplexity"])]
    with tempfile.TemporaryDirectory() as tmp:
        for path in sorted(glob.glob(os.path.join(ROOT, "configs/recipes/*.json"))):
            name = os.path.basename(path)[:-5]
            out = os.path.join(tmp, name)
            report = nibble("quantize", a.model, "-o", out, "--recipe", path, "--calib", a.calib or a.text)
            weights = sum(m["shape"][0] * m["shape"][1] for m in report["modules"])
            bits = sum(m["bits_per_weight"] * m["shape"][0] * m["shape"][1] for m in report["modules"]) / weights
            r = nibble("eval", out, "-f", a.text, "--ctx", a.ctx, "--base", a.model)
            rows.append(dict(recipe=name, bytes=report["bytes_after"], bits_per_weight=round(bits, 4),
                             perplexity=r["perplexity"], change_percent=100 * (r["perplexity"] / base["perplexity"] - 1),
                             mean_kld=r["mean_kld"], same_top=r["same_top"]))
    print(f"{base['protocol']} protocol, ctx {base['ctx']}, {base['scored']} tokens scored\n")
    print("| recipe | MiB | bits a weight | perplexity | change | mean KLD | same top token |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for r in rows:
        tail = (f"{r['change_percent']:+.2f} % | {r['mean_kld']:.5f} | {100 * r['same_top']:.1f} %"
                if "mean_kld" in r else "| |")
        print(f"| {r['recipe']} | {r['bytes'] / 2**20:.2f} | {r['bits_per_weight']:.3f} | {r['perplexity']:.3f} | {tail} |")
    if a.json:
        with open(a.json, "w") as f:
            json.dump(dict(text=os.path.basename(a.text), ctx=base["ctx"], scored=base["scored"], rows=rows), f, indent=1)
            f.write("\n")


if __name__ == "__main__":
    main()
