#!/usr/bin/env python3
"""Keeps the results of ./dev gpu: JSON lines from stdin go into a section of FILE.json, and FILE.md is made from all of it.

    benchmarks/gpu/report.py FILE.json SECTION [key=value ...] < lines

The file holds runs, oldest first; the section "about" begins one.  It is written after every line, so that a run that is cut
short leaves what it has.  gtest=REPORT stands for a GoogleTest report, of which the counts are kept.
"""
import datetime
import json
import os
import sys


def load(path):
    if os.path.exists(path):
        with open(path) as f:
            return json.load(f)
    return {"runs": []}


def save(path, text):
    """Whole or not at all."""
    with open(path + ".new", "w") as f:
        f.write(text)
    os.replace(path + ".new", path)


def gtest_counts(path):
    counts = {"passed": 0, "failed": 0, "skipped": 0, "failures": []}
    if not os.path.exists(path):
        return counts | {"note": "it ended without a report"}
    with open(path) as f:
        suites = json.load(f)["testsuites"]
    for suite in suites:
        for test in suite["testsuite"]:
            if test.get("failures"):
                counts["failed"] += 1
                counts["failures"].append(f"{suite['name']}.{test['name']}")
            elif test.get("result") == "SKIPPED":
                counts["skipped"] += 1
            else:
                counts["passed"] += 1
    return counts


# ---- tables ----------------------------------------------------------------------------------------------------------


def number(x, digits=3):
    """Three digits that count, thousands whole; "-" for what was not measured."""
    if x is None:
        return "-"
    if abs(x) >= 100:
        return f"{x:,.0f}"
    return f"{x:.{digits}g}"


def percent(x):
    return "-" if x is None else f"{x:.0f} %"


def table(head, rows, left=1):
    out = ["| " + " | ".join(head) + " |", "|" + "|".join("---" if i < left else "---:" for i in range(len(head))) + "|"]
    return out + ["| " + " | ".join(row) + " |" for row in rows]


def linear_table(rows):
    head = ["layer", "kind", "rows", "us", "GB/s", "of copy", "TOPS", "of peak", "x cuBLASLt fp16", "x cuBLASLt INT8", "max error"]
    return table(head, [[f"{r['layer']} {r['n']}x{r['k']}", r["kind"], str(r["rows"]), number(r["us"]), number(r["gbs"]),
                         percent(r["copy_percent"]), number(r["tops"]), percent(r["peak_percent"]), number(r.get("vs_cublaslt_f16")),
                         number(r.get("vs_cublaslt_int8")), number(r.get("max_error"), 2)] for r in rows], 2)


def attention_table(rows):
    head = ["attention", "KV", "sequences", "context", "us", "GB/s", "of copy", "TFLOPS"]
    return table(head, [[r["phase"], r["kv"], str(r["sequences"]), str(r["context"]), number(r["us"]), number(r["gbs"]),
                         percent(r["copy_percent"]), number(r["tops"])] for r in rows], 2)


def rows_table(rows):
    return table(["operation", "rows", "width", "us", "GB/s", "of copy"],
                 [[r["name"], str(r["rows"]), str(r["k"]), number(r["us"]), number(r["gbs"]), percent(r["copy_percent"])]
                  for r in rows])


def models_table(rows):
    return table(["shape", "recipe", "test", "tokens/s", "+/-"],
                 [[r["shape"], r["recipe"], r["test"], number(r["avg_ts"], 4), number(r["stddev_ts"])] for r in rows], 3)


def tests_lines(rows):
    total = {k: sum(r.get(k, 0) for r in rows) for k in ("passed", "failed", "skipped")}
    out = [f"{len(rows)} programs: {total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped."]
    for r in rows:
        if r.get("rc"):
            why = "time limit" if r["rc"] == 124 else "it has findings" if r["rc"] == 99 and r.get("tool") else r.get("note") or ", ".join(r.get("failures", [])[:8]) or f"status {r['rc']}"
            out.append(f"- {r['program']}{' under ' + r['tool'] if r.get('tool') else ''}: {why}")
    return out


def describe(run):
    a = run["about"]
    out = [f"## {run['started']}, commit {a.get('commit', 'unknown')}", ""]
    facts = [f"{a['gpu']} (sm_{a['sm']}, {a['multiprocessors']} SMs, {a['memory_gib']:.0f} GiB)",
             f"driver for CUDA {a['driver_cuda']}"]
    header = next((k for k in run.get("kernels", []) if k.get("section") == "device"), None)
    if header:
        facts.append(f"copy on the device {number(header['copy_gbs'])} GB/s of {number(header['dram_gbs'])} by the data sheet's clock")
        facts.append(f"peak {number(header['peak_f16_tops'])} TFLOPS fp16, {number(header['peak_int8_tops'])} TOPS INT8")
    for c in run.get("conditions", []):
        facts.append(f"{c['when']}: driver, clocks (SM, SM at most, memory), power and its limit, temperature {c['nvidia_smi']}")
    out += ["; ".join(facts) + ".", ""]
    if a["gpu"].startswith("ptxemu"):
        out += ["**A rehearsal on the stand-in driver: the times mean nothing.**", ""]
    return out


def readable(doc):
    out = [f"# {doc['runs'][-1]['about']['gpu']}" if doc["runs"] else "#", "",
           "Written by `./dev gpu`; the figures as data are in the .json beside this file. us is the median time of a launch in a "
           "recorded graph, weights not in the L2 cache; GB/s counts what must move once; \"of copy\" is against a copy on the same "
           "device in the same run, \"of peak\" against SMs x clock x the published rate of the tensor cores; \"x cuBLASLt\" is its "
           "time divided by ours (above 1: we are faster). \"max error\" is against a product in double on the CPU, over the "
           "root mean square of the checked outputs.", ""]
    for run in reversed(doc["runs"]):
        out += describe(run)
        if run.get("tests"):
            out += ["### Tests", ""] + tests_lines(run["tests"]) + [""]
        if run.get("sanitize"):
            out += ["### compute-sanitizer", ""]
            out += tests_lines(run["sanitize"]) if "note" not in run["sanitize"][0] else [run["sanitize"][0]["note"] + "."]
            out += [""]
        kernels = run.get("kernels", [])
        for section, title, make in (("linear", "Linear layers", linear_table), ("attention", "Attention", attention_table),
                                     ("rows", "Rows", rows_table)):
            rows = [k for k in kernels if k.get("section") == section]
            if rows:
                out += [f"### {title}", ""] + make(rows) + [""]
        out += [f"- {k['text']}" for k in kernels if k.get("section") == "note"]
        if run.get("models"):
            out += ["", "### Models with random weights (`nibble bench --shape`)", ""] + models_table(run["models"]) + [""]
    return "\n".join(out).rstrip() + "\n"


# ---- the command -----------------------------------------------------------------------------------------------------


def add(doc, section, row):
    if section == "about":
        doc["runs"].append({"started": datetime.datetime.now().isoformat(" ", "seconds"), "about": row})
    else:
        doc["runs"][-1].setdefault(section, []).append(row)


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    path, section, extra = sys.argv[1], sys.argv[2], dict(a.split("=", 1) for a in sys.argv[3:])
    for key in ("rc", "seconds"):
        if key in extra:
            extra[key] = int(extra[key])
    doc = load(path)

    def write(row):
        add(doc, section, row | extra)
        save(path, json.dumps(doc, indent=1) + "\n")
        save(path.removesuffix(".json") + ".md", readable(doc))

    if "gtest" in extra:
        report = extra.pop("gtest")
        write(gtest_counts(report))
        return
    for line in sys.stdin:
        if line.strip():
            write(json.loads(line))


if __name__ == "__main__":
    main()
