"""Converted models open in Netron: graph, metadata and `ai.snlp` functions are there.

    python tests/python/viewer.py --snlp target/release/snlp

Netron's own reader (`pip install netron==9.3.3`) runs without a window, in Node.js (20 or newer). Without either the
check is skipped, which is said; with REQUIRE_NETRON=1 that is a failure. Where `onnx` is installed, its checker sees
every file too.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "fixtures"
# Model, plan, further arguments.
CASES = [
    ("nano/model.onnx", "6xF1", []),
    ("nano/model.onnx", "6xF1[k=2]", []),
    ("nano/model.onnx", "s3 3xF1 3xF2[elk=0.1]", []),
    ("nano/model.onnx", "3xF2[k=2,init=batch_fwd,tap=unit]", ["--external-data"]),
    ("nano/model.onnx", "6xF1[k=2]", ["--inline"]),
    ("gpt2-tiny/model.onnx", "2*1xF2", []),
    ("llama-tiny-dynamo/model.onnx", "2xF2[k=2]", ["--external-data"]),
    ("llama-tiny-past/model.onnx", "2xF1[k=2]", []),
    ("llama-tiny-past/model.onnx", "4xF1[k=3,kv=exact]", []),
    ("mhc/hcn.onnx", "4xF1[k=2]", []),
    ("hyper/hc4-static-rows-dyn18/model.onnx", "2xF1[k=2]", []),
    ("gpt2-tiny-int8/model.onnx", "2xF2[k=2]", []),
    ("gpt2-tiny-qdq/model.onnx", "2xF1[k=2]", []),
    ("llama-tiny-int4/model.onnx", "2xF1[k=2]", []),
]
# Corrections are calls unless nothing is corrected or the bodies are written in place.
PLAIN = ("2*1xF2",)


def skip(why):
    if os.environ.get("REQUIRE_NETRON") == "1":
        sys.exit(f"REQUIRE_NETRON is set, but {why}")
    print(f"SKIPPED: {why}; converted models have not been opened in Netron")
    sys.exit(0)


def netron(folder):
    """A copy of Netron's sources that Node.js reads as modules."""
    if shutil.which("node") is None:
        skip("there is no Node.js")
    found = importlib.util.find_spec("netron")
    if found is None:
        skip("the package netron is not installed")
    shutil.copytree(pathlib.Path(found.origin).parent, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    return folder


def convert(snlp, folder):
    files = []
    for i, (model, plan, more) in enumerate(CASES):
        out = folder / f"{i}.onnx"
        subprocess.run([snlp, "convert", FIXTURES / model, "-o", out, "--plan", plan, "-q", *more],
                       check=True, stdout=subprocess.DEVNULL)
        files.append(out)
    return files


def expected(snlp, file):
    answer = subprocess.run([snlp, "inspect", file, "--json"], check=True, capture_output=True, text=True)
    return json.loads(answer.stdout)


def wrong(case, shown, ours):
    """What Netron shows otherwise than we do."""
    _, plan, more = case
    names = [f["name"] for f in shown["functions"]]
    calls = [n for n in shown["nodes"] if n.startswith("ai.snlp.")]
    yield shown["format"].startswith("ONNX"), f"format {shown['format']}"
    for key in ("snlp.plan", "snlp.version", "snlp.source_sha256"):
        yield shown["metadata"].get(key) == ours["model"]["metadata"][key], f"metadata {key}: {shown['metadata']}"
    for side in ("inputs", "outputs"):
        yield shown[side] == [v["name"] for v in ours["model"][side]], f"{side}: {shown[side]}"
    yield shown["weights"] > 0 and shown["empty"] == 0, f"{shown['empty']} of {shown['weights']} weights are empty"
    if "--inline" in more or plan in PLAIN:
        yield not names and not calls, f"functions {names}, calls {calls}"
    else:
        yield len(calls) == ours["rewritten"]["corrections"], f"corrections: {calls}"
        yield set(calls) == set(names) == set(shown["opens"]), f"calls {calls}, functions {names}, {shown['opens']}"
        yield "ai.snlp v1" in shown["imports"], f"imports: {shown['imports']}"
        yield all(f["nodes"] for f in shown["functions"]), "a function without body"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snlp", required=True)
    args = parser.parse_args()
    failures = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        files = convert(args.snlp, folder)
        try:
            import onnx
        except ImportError:
            print("SKIPPED: the package onnx is not installed; its checker has not seen the files")
        else:
            for file, case in zip(files, CASES):
                try:
                    onnx.checker.check_model(str(file), full_check=True)
                except Exception as e:  # the checker raises many types
                    failures.append(f"{case}: the checker: {e}")
        viewer = [shutil.which("node"), pathlib.Path(__file__).with_name("viewer.mjs"), netron(folder / "netron")]
        answer = subprocess.run([*viewer, *files], check=True, stdout=subprocess.PIPE, text=True)
        for case, file, shown in zip(CASES, files, json.loads(answer.stdout), strict=True):
            failures += [f"{case}: {what}" for ok, what in wrong(case, shown, expected(args.snlp, file)) if not ok]
            functions = ", ".join(f["name"] for f in shown["functions"]) or "none"
            print(f"{case[0]} {case[1]} {' '.join(case[2])}: {len(shown['nodes'])} nodes, functions: {functions}")
    if failures:
        sys.exit("\n".join(failures))
    print(f"{len(CASES)} converted models open in Netron")


if __name__ == "__main__":
    main()
