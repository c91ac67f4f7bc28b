"""Compares `snlp generate` with a loop of ONNX Runtime over whole sequences, token for token.

    python tests/python/generated.py --snlp target/release/snlp [--tokens N] [--plan PLAN]... MODEL.onnx...
    python tests/python/generated.py --snlp target/release/snlp --windows W.npz --prompts 50 --tokens 64 \\
        --speculate 6xF1 --draft 2 --draft 4 MODEL.onnx

Plans are compared with the converted model. Caches of exports with past are empty in the loop, so that it
computes every sequence anew. Speculation is compared with the sequential model. Exit code 1 when a token differs.
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


def prompts(args):
    if args.windows is None:
        return PROMPTS
    windows = next(iter(np.load(args.windows).values()))
    return [row[: args.length].tolist() for row in windows[: args.prompts]]


def generated(args, model, prompt, *more):
    words = [args.snlp, "generate", model, "--prompt-ids", ",".join(map(str, prompt)), "-n", str(args.tokens),
             "--json", "--ignore-eos", "--backend", args.backend, *more]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-300:])
    return json.loads(done.stdout), done.stderr.strip()[-160:]


class Tally:
    """How many texts agreed, by what made them."""

    def __init__(self, what):
        self.what, self.same, self.all, self.notes = what, 0, 0, []

    def add(self, found, expected):
        self.all += 1
        self.same += found == expected
        if found != expected:
            at = next(i for i, (a, b) in enumerate(zip(found, expected)) if a != b)
            self.notes.append(f"prompt {self.all - 1}, token {at}: {found[at]} instead of {expected[at]}")

    def close(self, more=""):
        ok = self.same == self.all
        print(f"{'ok  ' if ok else 'FAIL'}  {self.what}: {self.same} of {self.all} texts {more}", flush=True)
        for note in self.notes:
            print(f"      {note}", flush=True)
        return not ok


def plan_of(args, model, plan, folder):
    if plan == "sequential":
        return model
    reference = os.path.join(folder, "converted.onnx")
    done = subprocess.run([args.snlp, "convert", model, "-o", reference, "--plan", plan, "--inline"],
                          capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-200:])
    return reference


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snlp", required=True)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--plan", action="append", default=[])
    parser.add_argument("--speculate", action="append", default=[], metavar="PLAN")
    parser.add_argument("--draft", action="append", default=[], metavar="B")
    parser.add_argument("--windows", metavar="W.npz", help="prompts are the beginnings of these windows")
    parser.add_argument("--prompts", type=int, default=10, help="how many of them")
    parser.add_argument("--length", type=int, default=16, help="tokens of each")
    parser.add_argument("--backend", default="gpu")
    parser.add_argument("models", nargs="+")
    args = parser.parse_args()
    failures = 0
    for model in args.models:
        texts = {}
        for plan in ["sequential"] + args.plan:
            tally, forms = Tally(f"{model} {plan}"), set()
            try:
                with tempfile.TemporaryDirectory() as folder:
                    reference = plan_of(args, model, plan, folder)
                    texts[plan] = [greedy(reference, prompt, args.tokens) for prompt in prompts(args)]
                for prompt, expected in zip(prompts(args), texts[plan]):
                    found, why = generated(args, model, prompt, "--plan", plan)
                    forms.add("cached" if found["cached"] else f"computed anew: {why}")
                    tally.add(found["tokens"], expected)
            except RuntimeError as error:
                forms.add(str(error))
                tally.all += 1
            failures += tally.close(" ".join(forms))
        for plan in args.speculate:
            for size in args.draft or ["4"]:
                tally, accepted, drafted = Tally(f"{model} --speculate '{plan}' --draft {size}"), 0, 0
                for prompt, expected in zip(prompts(args), texts["sequential"]):
                    found, _ = generated(args, model, prompt, "--speculate", plan, "--draft", size)
                    accepted += found["speculation"]["accepted"]
                    drafted += found["speculation"]["drafted"]
                    tally.add(found["tokens"], expected)
                failures += tally.close(f"{accepted} of {drafted} drafts accepted")
    sys.exit(failures > 0)


main()
