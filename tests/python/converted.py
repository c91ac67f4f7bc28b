"""Checks converted models against ONNX Runtime, the independent oracle.

For every model and plan: `snlp convert`, the ONNX checker, ONNX Runtime on the converted file, `snlp run`
on the converted file, and `snlp run --plan` on the original must agree to 1e-4 of the output's scale; an
exact plan (NxF1[k=N]) must also agree with the original's expected outputs. The file may be at most 1 %
plus 64 KiB larger than the original.

    python tests/python/converted.py --snlp target/release/snlp --models ../shared/models [--only ID ...]
"""

import argparse
import json
import os
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
HALF = {"llama-ts17-fp16"}


def size_of(path):
    data = path + ".data"
    return os.path.getsize(path) + (os.path.getsize(data) if os.path.exists(data) else 0)


def snlp(args, *words):
    done = subprocess.run([args.snlp, *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"snlp {' '.join(words)}: exit {done.returncode}: {done.stderr.strip()[-600:]}")
    return done.stdout


def ort_run(path, feeds):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
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
    tolerance = 2e-2 if model in HALF else 1e-4
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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--snlp", required=True)
    parser.add_argument("--models", required=True)
    parser.add_argument("--backend", default="gpu")
    parser.add_argument("--plans", type=int, default=0, help="so many of the plans only")
    parser.add_argument("--only", nargs="*", default=MODELS)
    args = parser.parse_args()
    failures = passed = 0
    for model in args.only:
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
