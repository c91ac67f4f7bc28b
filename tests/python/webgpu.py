"""Times whole forwards of `snlp` against ONNX Runtime's WebGPU provider on the same adapter, in turns.

    snlp bench --shape d6-w256-h4-v50257-gpt2 --save gpt2.onnx --seq 64 --rounds 1 --backend gpu
    python tests/python/webgpu.py --snlp target/release/snlp [--tokens 64] [--rounds 5] gpt2.onnx

Wants the package onnxruntime-webgpu, whose provider needs a Vulkan driver that Dawn accepts (lavapipe of Mesa 25, not
22). It is checked that the provider was taken and that both compute the same logits. Exit code 1 when they do not, or
when `snlp` takes more than half the time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnxruntime

PROVIDER = "WebGpuExecutionProvider"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snlp", default="target/release/snlp")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("model")
    args = parser.parse_args()

    session = onnxruntime.InferenceSession(args.model, providers=[PROVIDER])
    if session.get_providers()[0] != PROVIDER:
        raise SystemExit(f"the provider was not taken: {session.get_providers()}")
    [ids] = session.get_inputs()
    vocabulary = session.get_outputs()[0].shape[-1]
    high = vocabulary if isinstance(vocabulary, int) else 100
    feed = {ids.name: np.random.default_rng(0).integers(0, high, (1, args.tokens)).astype(np.int64)}
    outputs = [o.name for o in session.get_outputs()]
    expected = dict(zip(outputs, session.run(outputs, feed)))
    with tempfile.TemporaryDirectory() as folder:
        inputs, wanted = (os.path.join(folder, name) for name in ("inputs.npz", "expected.npz"))
        np.savez(inputs, **feed)
        np.savez(wanted, **expected)
        command = [args.snlp, "run", args.model, "--inputs", inputs, "--expect", wanted, "--backend", "gpu", "--json"]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode != 0:
            raise SystemExit(f"the outputs differ, or snlp failed: {ran.stdout}{ran.stderr}")
        print("largest difference", max(o["max_abs"] for o in json.loads(ran.stdout)["outputs"]))

    theirs, ours = [], []
    command = [args.snlp, "bench", args.model, "--seq", str(args.tokens), "--rounds", "3", "--backend", "gpu", "--json"]
    for _ in range(args.rounds):
        for _ in range(3):
            start = time.perf_counter()
            session.run(outputs, feed)
            theirs.append((time.perf_counter() - start) * 1e3)
        bench = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        ours.append(bench["rows"][0]["ms_median"])
    device, row = bench["device"], bench["rows"][0]
    ratio = np.median(ours) / np.median(theirs)
    print(f"{device}, {args.tokens} tokens, {args.rounds} rounds in turns, medians (least)")
    print(f"  ONNX Runtime {onnxruntime.__version__}, {PROVIDER}: {np.median(theirs):.1f} ms ({min(theirs):.1f})")
    print(f"  snlp, {row['dispatches']} dispatches: {np.median(ours):.1f} ms ({min(ours):.1f}), ratio {ratio:.2f}")
    sys.exit(0 if ratio <= 0.5 else 1)


if __name__ == "__main__":
    main()
