#!/usr/bin/env python3
"""Every recipe on one model: size, perplexity, distance from the original.  Prints a Markdown table.

usage: benchmarks/accuracy.py MODEL TEXT --json OUT.json [--ctx 256] [--calib FILE] [--recipes A,B] [--kv int8,int4]
                              [--plot OUT.svg] [--into docs/results.md] [--nibble build/nibble] [-- flags of nibble quantize]
       benchmarks/accuracy.py --from OUT.json [--plot OUT.svg] [--into docs/results.md]

TEXT is what perplexity is measured on; FILE what methods are calibrated on (default: TEXT itself, which flatters them).
Behind the recipes stand rows of the original model with the types of --kv in its cache.  The JSON is written after every row.
A recipe that fails has a row that says why, and the exit status is 1.  --into replaces what stands between the lines
"<!-- OUT: begin -->" and "<!-- OUT: end -->" of a file by the table.  The plot is written here, as SVG.
(standard library only)
"""
import argparse
import glob
import html
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", nargs="?")
    p.add_argument("text", nargs="?")
    p.add_argument("--ctx", default="256")
    p.add_argument("--calib", help="calibration text")
    p.add_argument("--recipes", help="names, comma separated (default: all of configs/recipes)")
    p.add_argument("--kv", default="int8,int4", help="types of the KV cache, comma separated")
    p.add_argument("--json", help="write the rows here")
    p.add_argument("--from", dest="rows", help="measure nothing: take the rows of this file")
    p.add_argument("--plot", help="write a plot of loss against bits here")
    p.add_argument("--into", action="append", default=[], help="put the table between the markers of this file")
    p.add_argument("--nibble", default=os.path.join(ROOT, "build/nibble"))
    own, more = sys.argv[1:], []
    if "--" in own:
        at = own.index("--")
        own, more = own[:at], own[at + 1:]
    a = p.parse_args(own)
    a.more = more
    if bool(a.rows) == bool(a.text) or not (a.rows or a.json):
        p.error("expected MODEL, TEXT and --json, or --from")
    return a


def recipes(a):
    paths = {os.path.basename(p)[:-5]: p for p in sorted(glob.glob(os.path.join(ROOT, "configs/recipes/*.json")))}
    if not a.recipes:
        return paths
    unknown = [n for n in a.recipes.split(",") if n not in paths]
    if unknown:
        sys.exit(f"there is no recipe {', '.join(unknown)} in configs/recipes")
    return {n: paths[n] for n in a.recipes.split(",")}


class Failed(Exception):
    pass


def nibble(a, *args):
    r = subprocess.run([a.nibble, *args, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if r.returncode != 0:
        raise Failed((r.stderr.strip().splitlines() or [f"exit status {r.returncode}"])[-1])
    return json.loads(r.stdout)


DATA_FREE = ("rtn", "clip-weights", "nf4", "twn", "absmean", "binary", "hqq")


def needs_text(path):
    """Flags about a calibration text are an error where a recipe needs none."""
    with open(path) as f:
        r = json.load(f)
    schemes = [r] + r.get("overrides", [])
    static = any((s.get("activations") or {}).get("strategy") == "tensor" for s in schemes)
    method = r.get("method", "rtn")
    return static or (method if isinstance(method, str) else method["name"]) not in DATA_FREE or "search" in r or "kv_keys" in r


def compare(a, path, base, *flags):
    r = nibble(a, "eval", path, "-f", a.text, "--ctx", a.ctx, "--base", a.model, "--layer-windows", "0", *flags)
    return dict(perplexity=r["perplexity"], change_percent=100 * (r["perplexity"] / base["perplexity"] - 1),
                mean_kld=r["mean_kld"], same_top=r["same_top"])


def measure(a, name, path, base, tmp):
    out = os.path.join(tmp, name)
    flags = ["--calib", a.calib or a.text] + a.more if needs_text(path) else []
    start = time.monotonic()
    report = nibble(a, "quantize", a.model, "-o", out, "--recipe", path, *flags)
    seconds = time.monotonic() - start
    weights = sum(m["shape"][0] * m["shape"][1] for m in report["modules"])
    bits = sum(8 * m["bytes"] for m in report["modules"]) / weights if weights else 16.0  # a recipe of the cache alone
    far = compare(a, out, base)
    shutil.rmtree(out)
    return dict(recipe=name, bytes=report["bytes_after"], bits_per_weight=round(bits, 4), **far, seconds=round(seconds, 1))


def table(found):
    rows = found["rows"]
    yield f"{found['text']}, {found['protocol']} protocol, ctx {found['ctx']}, {found['scored']} tokens scored\n"
    yield "| recipe | bits a weight | MiB | perplexity | loss | mean KLD | same top token | seconds |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for r in rows:
        if "error" in r:
            yield f"| {r['recipe']} | failed: {r['error'].replace('|', '/')} | | | | | | |"
            continue
        tail = (f"{r['change_percent']:+.2f} % | {r['mean_kld']:.5f} | {100 * r['same_top']:.1f} % | {r.get('seconds', '')}"
                if "mean_kld" in r else "| | |")
        yield f"| {r['recipe']} | {r['bits_per_weight']:.3f} | {r['bytes'] / 2**20:.2f} | {r['perplexity']:.3f} | {tail} |"


def plot(rows):
    """Loss against bits a weight, loss on a logarithmic axis; what gained counts as the least that is shown."""
    pts = [(r["bits_per_weight"], max(r["change_percent"], 0.01), r["recipe"]) for r in rows
           if "change_percent" in r and "KV" not in r["recipe"]]
    w, h, left, low = 900, 520, 60, 40
    top = math.ceil(math.log10(max([p[1] for p in pts] + [1])))
    most = max([p[0] for p in pts] + [8]) + 1

    def x(bits):
        return left + (w - left - 140) * bits / most

    def y(loss):
        return 10 + (h - low - 10) * (top - math.log10(loss)) / (top + 2)

    s = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}" '
         'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="#fff"/>']
    for e in range(-2, top + 1):
        s.append(f'<line x1="{left}" x2="{w - 140}" y1="{y(10**e):.1f}" y2="{y(10**e):.1f}" stroke="#ddd"/>'
                 f'<text x="{left - 6}" y="{y(10**e) + 4:.1f}" text-anchor="end">{10**e:g} %</text>')
    for b in range(0, int(most) + 1):
        s.append(f'<text x="{x(b):.1f}" y="{h - low + 16}" text-anchor="middle">{b}</text>')
    s.append(f'<text x="{x(most / 2):.1f}" y="{h - 6}" text-anchor="middle">bits a weight</text>'
             f'<text x="12" y="{h / 2}" transform="rotate(-90 12 {h / 2})" text-anchor="middle">loss of perplexity</text>')
    taken = []
    for bits, loss, name in sorted(pts, key=lambda p: p[1]):
        ly = y(loss) + 4
        while any(abs(ly - ty) < 11 and abs(x(bits) - tx) < 120 for tx, ty in taken):
            ly -= 11  # names that would lie on each other
        taken.append((x(bits), ly))
        s.append(f'<circle cx="{x(bits):.1f}" cy="{y(loss):.1f}" r="3.5" fill="#3b6ea5"/>'
                 f'<text x="{x(bits) + 7:.1f}" y="{ly:.1f}">{html.escape(name)}</text>')
    return "\n".join(s + ["</svg>", ""])


def put_into(path, name, text):
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    with open(path) as f:
        old = f.read()
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        sys.exit(f"{path} has not one line {begin} and behind it one line {end}")
    before, after = old[:old.index(begin) + len(begin)], old[old.index(end):]
    with open(path, "w") as f:
        f.write(f"{before}\n{text}\n{after}")


def rows_of(a, base):
    """One after the other; a row that failed says why."""
    yield dict(recipe="original", bytes=nibble(a, "inspect", a.model)["bytes"], bits_per_weight=16.0, perplexity=base["perplexity"])
    with tempfile.TemporaryDirectory() as tmp:
        for name, path in recipes(a).items():
            try:
                yield measure(a, name, path, base, tmp)
            except Failed as e:
                yield dict(recipe=name, error=str(e))
    for kv in filter(None, a.kv.split(",")):
        yield dict(recipe=f"original, KV cache {kv}", bits_per_weight=16.0, bytes=nibble(a, "inspect", a.model)["bytes"],
                   **compare(a, a.model, base, "--kv-dtype", kv))


def measure_all(a):
    base = nibble(a, "eval", a.model, "-f", a.text, "--ctx", a.ctx)
    found = dict(text=os.path.basename(a.text), protocol=base["protocol"], ctx=base["ctx"], scored=base["scored"], rows=[])
    for row in rows_of(a, base):
        found["rows"].append(row)
        with open(a.json, "w") as f:
            json.dump(found, f, indent=1)
            f.write("\n")
        print(f"{row['recipe']}: {row.get('error') or format(row['perplexity'], '.3f')}", file=sys.stderr)
    return found


def main():
    a = arguments()
    if a.rows:
        with open(a.rows) as f:
            found = json.load(f)
    else:
        recipes(a)  # names that are wrong are told before anything is measured
        try:
            found = measure_all(a)
        except Failed as e:
            sys.exit(str(e))
    text = "\n".join(table(found))
    print(text)
    for path in a.into:
        put_into(path, os.path.splitext(os.path.basename(a.rows or a.json))[0], text)
    if a.plot:
        with open(a.plot, "w") as f:
            f.write(plot(found["rows"]))
    return any("error" in r for r in found["rows"])


if __name__ == "__main__":
    sys.exit(main())
