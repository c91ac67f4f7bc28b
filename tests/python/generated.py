"""Compares `snlp generate` with a loop of ONNX Runtime over whole sequences, token for token.

    python tests/python/generated.py --snlp target/release/snlp [--tokens N] [--plan PLAN]... MODEL.onnx...

Plans are compared with the converted model. Caches of exports with past are empty in the loop, so that it
computes every sequence anew. Exit code 1 when a token differs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import onnxruntime

PROMPTS = [[3, 14, 15, 9, 26], [42], [7, 7, 7, 60, 1, 2, 90, 33, 20]]
TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32,
         "tensor(float16)": np.float16, "tensor(bool)": np.bool_}


def feeds(session, ids):
    out = {}
    for value in session.get_inputs():
        name, dtype = value.name, TYPES[value.type]
        if name == "input_ids":
            out[name] = np.array([ids], dtype)
        elif "mask" in name:
            out[name] = np.ones((1, len(ids)), dtype)
        elif "position" in name:
            out[name] = np.arange(len(ids), dtype=dtype)[None]
        elif "past" in name:
            shape = [1 if i == 0 else 0 if i == 2 else d if isinstance(d, int) else 16 for i, d in enumerate(value.shape)]
            out[name] = np.zeros(shape, dtype)
        else:
            raise SystemExit(f"no value for input {name}")
    return out


def greedy(path, prompt, count):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ids = list(prompt)
    for _ in range(count):
        logits = session.run(["logits"], feeds(session, ids))[0]
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt):]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snlp", required=True)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--plan", action="append", default=[])
    parser.add_argument("--backend", default="gpu")
    parser.add_argument("models", nargs="+")
    args = parser.parse_args()
    failures = 0
    for model in args.models:
        for plan in ["sequential"] + args.plan:
            with tempfile.TemporaryDirectory() as folder:
                reference = model
                if plan != "sequential":
                    reference = os.path.join(folder, "converted.onnx")
                    done = subprocess.run([args.snlp, "convert", model, "-o", reference, "--plan", plan, "--inline"],
                                          capture_output=True, text=True)
                    if done.returncode:
                        print(f"--    {model} {plan}: {done.stderr.strip()[-200:]}", flush=True)
                        continue
                for prompt in PROMPTS:
                    words = [args.snlp, "generate", model, "--plan", plan, "--prompt-ids", ",".join(map(str, prompt)),
                             "-n", str(args.tokens), "--json", "--ignore-eos", "--backend", args.backend]
                    done = subprocess.run(words, capture_output=True, text=True)
                    if done.returncode:
                        print(f"FAIL  {model} {plan}: {done.stderr.strip()[-300:]}", flush=True)
                        failures += 1
                        break
                    found = json.loads(done.stdout)
                    expected = greedy(reference, prompt, args.tokens)
                    same = found["tokens"] == expected
                    failures += not same
                    form = "cached" if found["cached"] else "WHOLE "
                    why = "" if found["cached"] else done.stderr.strip()[-160:]
                    print(f"{'ok  ' if same else 'FAIL'}  {form} {model} {plan} {prompt[:2]} {why}", flush=True)
                    if not same:
                        at = next(i for i, (a, b) in enumerate(zip(found["tokens"], expected)) if a != b)
                        print(f"      token {at}: {found['tokens'][at]} instead of {expected[at]}", flush=True)
    sys.exit(failures > 0)


main()
