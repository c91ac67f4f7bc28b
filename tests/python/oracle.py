"""Checks the trained models against the published reference code's numbers.

Golden logits of every plan within 1e-3, and perplexities within 0.1 % of the table's rows.

    python tests/python/oracle.py --snlp target/release/snlp --oracle ../shared/oracle [--rows N] [--model NAME]

`--rows N` takes N perplexity rows spread over the table (default: all of them). `--backend "gpu --hardware-kernels"`
runs the kernels for hardware on a software adapter.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile

import numpy as np

EXPORTS = {
    "nox0ve_idn": ["nox0ve_idn.ts17.onnx", "nox0ve_idn.dynamo23.onnx"],
    "mhc_hcn": ["mhc_hcn.ts17.onnx"],
}


def golden_plan(key):
    """The plan of a golden array's key, or None where the key is none of ours."""
    if key == "sequential":
        return key
    if key == "Fused_1x2":
        return "1xF2[tap=unit]"
    m = re.fullmatch(r"(?:B_n(\d+)|C_(\d+)x(\d+))_K(\d+)_(h0|bf)(?:_elk([\d.]+))?", key)
    if not m:
        return None
    n, c, f, k, init, elk = m.groups()
    shape = f"{n}xF1" if n else f"{c}xF{f}"
    return f"{shape}[{options(k, 'batch_fwd' if init == 'bf' else init, elk)}]"


def options(k, init, elk):
    words = [f"k={k}", f"init={init}", "tap=unit"]
    return ",".join(words + ([f"elk={elk}"] if elk and float(elk) else []))


def row_plan(row):
    """The plan of a table's row, or None where it is none of ours (see ORACLE.md)."""
    # Fused rows read a tap inside the unit otherwise than we do; the last four layers lie behind it.
    if row["method"] == "Fused" and row["K"] == 1 and row["M"] <= 4:
        return f"1xF{row['M']}[tap=unit{',avg' if row['avg'] else ''}]"
    if row["method"] not in ("IDN_batched", "ChunkB", "HCN_batched", "ChunkB+VE kept"):
        return None
    extra = ",surrogate=identity" if row.get("surrogate") == "identity" else ""
    shape = f"{row['C']}xF{row['M']}"
    return f"{shape}[{options(row['K'], row['init'], row['elk'])}{extra}]"


def golden(args, export, arrays, folder):
    failures = 0
    for key in arrays.files:
        plan = golden_plan(key)
        if plan is None or (args.model == "mhc_hcn" and key.startswith("C_")):
            continue
        inputs, outputs = os.path.join(folder, "in.npz"), os.path.join(folder, "out.npz")
        np.savez(inputs, input_ids=arrays["input_ids"])
        words = [args.snlp, "run", export, "--plan", plan, "--inputs", inputs, "--outputs", outputs,
                 "--backend", *args.backend.split()]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            failures += 1
            print(f"FAIL  {key}: {done.stderr.strip()[-400:]}", flush=True)
            continue
        error = np.abs(next(iter(np.load(outputs).values())) - arrays[key]).max()
        failures += error > 1e-3
        print(f"{'ok   ' if error <= 1e-3 else 'FAIL '} {key:22} {plan:40} {error:.1e}", flush=True)
    return failures


def table(args, export, rows, windows):
    chosen = [(row_plan(r), r) for r in rows if row_plan(r)]
    if args.rows:
        chosen = [chosen[i] for i in sorted({round(i) for i in np.linspace(0, len(chosen) - 1, args.rows)})]
    words = [args.snlp, "eval", export, "--tokens", windows, "--json", "--backend", *args.backend.split()]
    for plan, _ in chosen:
        words += ["--plan", plan]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        print(f"FAIL  eval: {done.stderr.strip()[-600:]}")
        return len(chosen)
    answer = json.loads(done.stdout)
    sequential = next(r for r in rows if r["method"] == "sequential")
    failures = 0
    for (plan, row), got in zip([("sequential", sequential)] + chosen, [answer["sequential"]] + answer["plans"]):
        off = got["ppl"] / row["ppl"] - 1
        bad = abs(off) > 1e-3
        failures += bad
        print(f"{'FAIL ' if bad else 'ok   '} {plan:44} {got['ppl']:.4f} reference {row['ppl']:.4f} ({off:+.5%})",
              flush=True)
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--snlp", required=True)
    parser.add_argument("--oracle", required=True)
    parser.add_argument("--backend", default="gpu")
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--model", default="nox0ve_idn")
    parser.add_argument("--skip-table", action="store_true")
    parser.add_argument("--skip-golden", action="store_true")
    args = parser.parse_args()
    with open(os.path.join(args.oracle, f"{args.model}.json")) as f:
        rows = json.load(f)["rows"]
    arrays = np.load(os.path.join(args.oracle, f"{args.model}.golden.npz"))
    failures = 0
    for name in [] if args.skip_golden else EXPORTS[args.model]:
        export = os.path.join(args.oracle, name)
        with tempfile.TemporaryDirectory() as folder:
            failures += golden(args, export, arrays, folder)
    if not args.skip_table:
        export = os.path.join(args.oracle, EXPORTS[args.model][0])
        failures += table(args, export, rows, os.path.join(args.oracle, "val_windows.npz"))
    print(f"{failures} failures")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
