"""Checks converted models against ONNX Runtime, the independent oracle.

For every model and plan: `snlp convert`, the ONNX checker, ONNX Runtime on the converted file, `snlp run`
on the converted file, and `snlp run --plan` on the original must agree to 1e-4 of the output's scale; an
exact plan (NxF1[k=N]) must also agree with the original's expected outputs. The file may be at most 1 %
plus 64 KiB larger than the original.

    python tests/python/converted.py --snlp target/release/snlp --models ../shared/models [--only ID ...]

With `--table FILE` all models of the folders are gone through instead, each with its meta.json as the truth: layers
and style as `inspect` finds them, `run` on every case and backend, the exact plan, the widest fused plan that the
model takes, and what is refused, why. FILE becomes a table in Markdown.

    python tests/python/converted.py --snlp target/release/snlp --models ../shared/models FOLDER --table docs/models.md
"""

import argparse
import glob
import json
import os
import re
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort

MODELS = [
    "gpt2-ts14", "gpt2-ts17", "gpt2-dyn18", "gpt2-ts17-ortopt",
    "llama-ts17", "llama-dyn18", "llama-dyn23", "llama-ts17-fp16", "llama-ts17-extdata",
    "qwen2-ts17", "gpt_neox-ts17", "nano_plain-ts17", "nano_plain-dyn18", "nano_x0ve-ts17", "nano_x0ve-dyn18",
]
PLANS = ["2xF2", "3xF1 s1", "s1 2xF2[k=2,init=batch_fwd]", "2*1xF2"]
# Rounded on the way, to f16 or to integers.
COARSE = {"llama-ts17-fp16", "gpt2-tiny-int8", "gpt2-tiny-qdq", "llama-tiny-int4"}


def size_of(path):
    data = path + ".data"
    return os.path.getsize(path) + (os.path.getsize(data) if os.path.exists(data) else 0)


def snlp(args, *words):
    done = subprocess.run([args.snlp, *words], capture_output=True, text=True, timeout=args.timeout)
    if done.returncode == 3:
        raise Refused(reason_of(done.stderr))
    if done.returncode:
        raise RuntimeError(f"snlp {' '.join(words)}: exit {done.returncode}: {done.stderr.strip()[-600:]}")
    return done.stdout


def reason_of(text):
    """The cause that an error gives, without what it is about and the remedies."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    cause = next((line for line in lines if line.startswith("because: ")), None)
    error = next((line for line in lines if line.startswith("error: ")), "no reason given")
    found = cause.removeprefix("because: ") if cause else error.removeprefix("error: ")
    if found.startswith(("/", "./")) or ".onnx: " in found:
        found = found.split(".onnx: ", 1)[-1]
    found = " ".join(part.strip() for part in found.split("\\n")[:2])
    return re.sub(r"^segment .*?\): ", "", found)


class Refused(Exception):
    """The program said that it cannot do this: exit code 3."""


def ort_run(path, feeds):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    # Without it sums of u8 · i8 saturate on CPUs that lack VNNI. It does not load every model.
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception:
        options.add_session_config_entry("session.x64quantprecision", "0")
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds)))


def worst(got, want):
    """Largest difference over all outputs, relative to each output's scale."""
    result = 0.0
    for name, w in want.items():
        g, w = got[name].astype(np.float64), w.astype(np.float64)
        if g.shape != w.shape:
            raise RuntimeError(f"{name}: shape {g.shape} instead of {w.shape}")
        scale = max(np.abs(w[np.isfinite(w)]).max(initial=0.0), 1e-6)
        same = (g == w) | (np.isnan(g) & np.isnan(w))
        result = max(result, np.where(same, 0, np.abs(g - w)).max(initial=0.0) / scale)
    return result


def check(args, model, plan, folder, exact=False, inline=False):
    source = os.path.join(args.models, model, "model.onnx")
    out = os.path.join(folder, "converted.onnx")
    extra = ["--inline"] if inline else []
    if os.path.exists(source + ".data"):
        extra.append("--external-data")
    snlp(args, "convert", source, "-o", out, "--plan", plan, *extra)
    onnx.checker.check_model(out, full_check=True)
    before, after = size_of(source), size_of(out)
    if after > before * 1.01 + 65536:
        raise RuntimeError(f"converted file has {after} bytes, the original {before}")
    tolerance = 2e-2 if model in COARSE else 1e-4
    errors = []
    plain = os.path.exists(os.path.join(args.models, model, "inputs_plain.npz"))
    # Where a case without padding exists it stands for the others: padded rows mean nothing.
    for case in ["_plain"] if plain else ["", "_alt"]:
        inputs = os.path.join(args.models, model, f"inputs{case}.npz")
        if not os.path.exists(inputs):
            continue
        feeds = dict(np.load(inputs))
        if exact:
            want = dict(np.load(os.path.join(args.models, model, f"expected{case}.npz")))
        else:
            want = ort_run(out, feeds)
        results = os.path.join(folder, "outputs.npz")
        for words in ([out], [source, "--plan", plan]):
            snlp(args, "run", *words, "--inputs", inputs, "--outputs", results, "--backend", args.backend)
            errors.append(worst(dict(np.load(results)), want))
        if exact:
            errors.append(worst(ort_run(out, feeds), want))
    if max(errors) > tolerance:
        raise RuntimeError(f"differs by {max(errors):.2e} of the scale (allowed {tolerance:.0e})")
    return max(errors), after / before


STYLES = [("pre inside hyper", "hyper-connection"), ("pre", "pre-norm"), ("parallel", "parallel-residual"),
          ("sandwich", "sandwich-norm"), ("post", "post-norm")]
COLUMNS = ["model", "layers", "style", "run, GPU", "run, CPU", "exact plan", "fused plan", "refused"]


def truth(folder):
    """Layers, style, cases and tolerance of a model, from its meta.json."""
    with open(os.path.join(folder, "meta.json")) as f:
        meta = json.load(f)
    style = meta.get("kind") or next(kind for prefix, kind in STYLES if meta["norm_style"].startswith(prefix))
    # A case that ONNX Runtime itself could not run has nothing to compare with.
    cases = [(c["inputs"], c["expected"]) for c in meta["cases"] if "expected" in c]
    rough = bool(meta.get("quantised")) or "fp16" in meta["id"] or "int4" in meta["id"] or "int8" in meta["id"]
    return meta["n_layers"], style, cases, 2e-2 if rough else 1e-4


class Row:
    """One model's line of the table."""

    def __init__(self, args, folder):
        self.args, self.folder = args, folder
        self.source = os.path.join(folder, "model.onnx")
        self.layers, self.style, self.cases, self.tolerance = truth(folder)
        self.refused, self.failed = [], []
        self.cells = [os.path.basename(folder)]

    def fill(self):
        self.structure()
        for backend in ("gpu", "cpu"):
            self.cells.append(self.attempt(f"run on {backend}", lambda b=backend: self.run(self.source, b)))
        n = self.layers
        self.cells.append(self.first_plan([f"{n}xF1[k={n}]", f"{n - 1}xF1[k={n - 1}]"], exact=True))
        widest = [] if n < 4 else ["2xF2"]
        self.cells.append(self.first_plan([*widest, f"1xF{max(n // 2, 2)}", "1xF2"], exact=False))
        self.cells.append("; ".join(self.refused))
        return self

    def attempt(self, what, job):
        """What a check gives: the largest difference, or a mark beside which its reason stands."""
        try:
            error = job()
        except Refused as e:
            self.refused.append(f"{what}: {e}")
            return "refused"
        except Exception as e:
            self.failed.append(f"{what}: {e}")
            return "**fails**"
        if error > self.tolerance:
            self.failed.append(f"{what}: differs by {error:.1e} of the scale")
            return f"**{error:.0e}**"
        return f"{error:.0e}"

    def structure(self):
        chain = None
        try:
            found = json.loads(snlp(self.args, "inspect", self.source, "--json"))
            chain = found.get("chain")
            if not chain:
                self.refused.append("chain: " + found["stopped"]["reason"])
        except Exception as e:
            self.failed.append(f"inspect: {e}")
        layers, style = (chain["layers"], chain["kind"]) if chain else (0, "none")
        for found, true in [(layers, self.layers), (style, self.style)]:
            same = found == true
            self.cells.append(f"{found}" if same else f"**{found}** of {true}")
            if chain and not same:
                self.failed.append(f"inspect: {found} instead of {true}")

    def pairs(self, model, backend, expected=None):
        """Per case: our outputs, and the expected ones or ONNX Runtime's on the same file."""
        for inputs, outputs in self.cases[:1 if self.args.quick else None]:
            inputs, outputs = (os.path.join(self.folder, f) for f in (inputs, outputs))
            want = dict(np.load(outputs)) if expected is None else expected(dict(np.load(inputs)))
            with tempfile.TemporaryDirectory() as folder:
                results = os.path.join(folder, "outputs.npz")
                snlp(self.args, "run", model, "--inputs", inputs, "--outputs", results, "--backend", backend)
                yield dict(np.load(results)), want, inputs

    def run(self, model, backend):
        return max(worst(got, want) for got, want, _ in self.pairs(model, backend))

    def first_plan(self, plans, exact):
        """The first plan that the model takes; the reasons why it does not take those before."""
        for plan in dict.fromkeys(plans):
            before = len(self.refused)
            cell = self.attempt(f"`{plan}`", lambda: self.convert(plan, exact))
            if cell != "refused" or any("chain" in r for r in self.refused[:before]):
                return f"`{plan}` {cell}"
        return "refused"

    def convert(self, plan, exact):
        """Converted file on our GPU backend against the answers that the plan must give."""
        with tempfile.TemporaryDirectory() as folder:
            out = os.path.join(folder, "converted.onnx")
            data = ["--external-data"] if os.path.exists(self.source + ".data") else []
            snlp(self.args, "convert", self.source, "-o", out, "--plan", plan, *data)
            runtime = None if exact else (lambda feeds: ort_run(out, feeds))
            errors = []
            for got, want, inputs in self.pairs(out, self.args.backend, runtime):
                errors.append(worst(got, want))
                if exact:
                    errors.append(worst(ort_run(out, dict(np.load(inputs))), want))
            return max(errors)


def has_vnni():
    """Whether this CPU multiplies u8 by i8 without saturating the sums of two."""
    try:
        with open("/proc/cpuinfo") as f:
            return "vnni" in f.read()
    except OSError:
        return False


def write_table(args):
    folders = [f for root in args.models for f in sorted(glob.glob(os.path.join(root, "*"))) if args.only is None or os.path.basename(f) in args.only]
    rows = []
    for folder in folders:
        if os.path.exists(os.path.join(folder, "meta.json")):
            rows.append(Row(args, folder).fill())
            print(" | ".join(rows[-1].cells), *(f"\n    FAIL {f}" for f in rows[-1].failed), flush=True)
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row.cells) + " |" for row in rows]
    failures = [f"- {row.cells[0]}: {f}" for row in rows for f in row.failed]
    with open(args.table, "w") as f:
        f.write(TABLE_HEAD.replace("VNNI_OR_NOT", "with" if has_vnni() else "without") + "\n".join(lines) + "\n")
        if failures:
            f.write("\n## What fails\n\n" + "\n".join(failures) + "\n")
    print(f"{len(rows)} models, {len(failures)} failures")
    sys.exit(1 if failures or not rows else 0)


TABLE_HEAD = """# Models

Written by `tests/python/converted.py --table`. Numbers are the largest differences of all cases, over the scale of the
output: of `run` from the expected outputs; of the *exact plan* (as many iterations as units; converted file, ours on
the GPU backend and ONNX Runtime) from the expected outputs; of the *fused plan* (converted file) between ours and ONNX
Runtime. What is refused is refused with the reason that stands in the last column. Where ONNX Runtime cannot load an
int8 model with exact products (`session.x64quantprecision`), its sums saturate on CPUs without VNNI, and a difference
of a tenth of the scale is its own; this table was made on a CPU VNNI_OR_NOT it.

"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--snlp", required=True)
    parser.add_argument("--models", required=True, nargs="+", help="folders; the first one without --table")
    parser.add_argument("--backend", default="gpu")
    parser.add_argument("--plans", type=int, default=0, help="so many of the plans only")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--table", help="write a table of all models with a meta.json")
    parser.add_argument("--quick", action="store_true", help="the first case of each model only, in the table")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that one call may take")
    args = parser.parse_args()
    if args.table:
        write_table(args)
    failures = passed = 0
    args.models = args.models[0]
    for model in args.only or MODELS:
        source = os.path.join(args.models, model, "model.onnx")
        layers = json.loads(snlp(args, "inspect", source, "--json"))["chain"]["layers"]
        meta = os.path.join(args.models, model, "meta.json")
        if os.path.exists(meta):
            with open(meta) as f:
                assert json.load(f)["n_layers"] == layers, f"{model}: {layers} layers found"
        plans = PLANS if layers >= 5 else [plan.removeprefix("s1 ") for plan in PLANS]
        jobs = [(plan, False, False) for plan in plans[:args.plans or len(plans)]]
        jobs += [(f"{layers}xF1[k={layers}]", True, False), ("2xF2[k=2,elk=0.2]", False, True)]
        for plan, exact, inline in jobs:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    error, size = check(args, model, plan, folder, exact, inline)
                    passed += 1
                    print(f"ok    {model:20} {plan:32} {error:.1e} of scale, file x{size:.3f}", flush=True)
                except Exception as e:
                    failures += 1
                    print(f"FAIL  {model:20} {plan:32} {e}", flush=True)
    print(f"{passed} passed, {failures} failed")
    sys.exit(1 if failures or not passed else 0)


if __name__ == "__main__":
    main()
