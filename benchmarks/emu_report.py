#!/usr/bin/env python3
"""Prints the profile that the stand-in CUDA driver wrote (NB_EMU_PROFILE=FILE) as tables for people.

    ./dev emu-report FILE [--kernel TEXT] [--lines N]

One table over all kernels, and then, for each kernel, what it executed, what it moved, and its worst source lines: those
with the most memory sectors and shared-memory wavefronts beyond what the same accesses would need at best.
"""
import argparse
import json
import os
import sys


def table(rows, left=(0,)):
    """Rows of texts, the first one the heading, as lines of equal columns; columns not in `left` are aligned to the right."""
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    out = []
    for k, row in enumerate(rows):
        cells = [text.ljust(w) if c in left else text.rjust(w) for c, (text, w) in enumerate(zip(row, widths))]
        out.append("  ".join(cells).rstrip())
        if k == 0:
            out.append("  ".join("-" * w for w in widths))
    return out


def short(n):
    """12345678 -> 12.3M"""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= factor * 10:
            return f"{n / factor:.1f}{unit}"
    return f"{n:g}"


def size(n):
    """Bytes in powers of 1024."""
    for factor, unit in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if n >= factor:
            return f"{n / factor:.1f} {unit}"
    return f"{n} B"


def percent(part, whole):
    return f"{100 * part / whole:.0f}%" if whole else "-"


def shape(kernel):
    def dims(d):
        return "x".join(str(n) for n in d).removesuffix("x1").removesuffix("x1")

    return f"{dims(kernel['grid'])} / {dims(kernel['block'])}"


def overview(kernels):
    rows = [["kernel", "grid / block", "launches", "thread instr", "lanes", "load eff", "store eff", "L2 bytes",
             "bank conflicts", "tensor ops", "host s"]]
    for k in kernels:
        g, s = k["global"], k["shared"]
        rows.append([
            k["kernel"], shape(k), str(k["launches"]), short(k["thread_instructions"]),
            f"{k['lanes_per_instruction']:.1f}", percent(g["load_ideal_sectors"], g["load_sectors"]),
            percent(g["store_ideal_sectors"], g["store_sectors"]), size(g["l2_distinct_bytes"]),
            short(s["conflicts"]), short(k["tensor_ops"]), f"{k['seconds']:.3f}",
        ])
    return table(rows, left=(0, 1))


def instructions(kernel):
    rows = [["instructions", "warp", "share", "lanes"]]
    for name, n in sorted(kernel["instructions"].items(), key=lambda item: -item[1]["warp"]):
        rows.append([name, short(n["warp"]), percent(n["warp"], kernel["warp_instructions"]),
                     f"{n['thread'] / n['warp']:.1f}"])
    return table(rows)


def traffic(kernel):
    g, s, a = kernel["global"], kernel["shared"], kernel["async"]
    rows = [["memory", "asked for", "moved", "at best", "efficiency"]]
    for name in ("load", "store"):
        moved, best = g[name + "_sectors"], g[name + "_ideal_sectors"]
        rows.append([f"global {name}s", size(g[name + "_bytes"]), size(32 * moved), size(32 * best), percent(best, moved)])
    rows.append(["shared wavefronts", "", short(s["wavefronts"]), short(s["ideal_wavefronts"]),
                 percent(s["ideal_wavefronts"], s["wavefronts"])])
    out = table(rows)
    out.append(f"distinct bytes of global memory: {size(g['l2_distinct_bytes'])}")
    if a["bytes"]:
        out.append(f"asynchronous copies: {size(a['bytes'])}, at most {size(a['max_bytes_in_flight'])} in flight in a block")
    out.append(f"branches: {short(kernel['branches'])}, {short(kernel['divergent_branches'])} of them divergent; "
               f"barriers: {short(kernel['barriers'])} arrivals of warps; shared memory: {size(kernel['shared_bytes'])} a block")
    return out


def excess(line):
    return (max(0, line["global_sectors"] - line["global_ideal_sectors"]),
            max(0, line["shared_wavefronts"] - line["shared_ideal_wavefronts"]))


def worst_lines(kernel, count):
    rows = [["source line", "warp instr", "sectors", "at best", "wavefronts", "at best"]]
    for line in kernel["lines"]:
        if len(rows) > count or sum(excess(line)) == 0:
            break
        rows.append([f"{os.path.basename(line['file'])}:{line['line']}", short(line["instructions"]),
                     short(line["global_sectors"]), short(line["global_ideal_sectors"]),
                     short(line["shared_wavefronts"]), short(line["shared_ideal_wavefronts"])])
    return table(rows) if len(rows) > 1 else ["no line moves more than it must"]


def report(profile, wanted, lines):
    kernels = [k for k in profile["kernels"] if wanted in k["kernel"]]
    if not kernels:
        return ["no kernel was launched" if not wanted else f"no kernel has `{wanted}` in its name"]
    out = overview(kernels)
    for k in kernels:
        out += ["", "", f"== {k['kernel']}, {shape(k)}", ""]
        for part in (instructions(k), traffic(k), worst_lines(k, lines)):
            out += part + [""]
        out.pop()
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", help="what NB_EMU_PROFILE named")
    parser.add_argument("--kernel", default="", metavar="TEXT", help="only kernels with TEXT in their names")
    parser.add_argument("--lines", type=int, default=10, metavar="N", help="source lines of each kernel (10)")
    args = parser.parse_args()
    try:
        with open(args.file, encoding="utf-8") as f:
            profile = json.load(f)
    except (OSError, ValueError) as e:
        sys.exit(f"emu-report: {args.file}: {e}")
    try:
        print("\n".join(report(profile, args.kernel, args.lines)))
    except (KeyError, TypeError) as e:
        sys.exit(f"emu-report: {args.file} is no profile of the emulator: {e}")
    except BrokenPipeError: # the reader, `head` for instance, has seen enough
        sys.stderr.close()


if __name__ == "__main__":
    main()
