"""Greedy decoding with caches by ONNX Runtime: feeds every `present` back as `past`.

    python tests/python/decode.py MODEL.onnx N ID [ID ...]

Prints the N tokens that follow the prompt as JSON. Caches are the inputs whose names begin with `past`;
their successors are, in the same order, the outputs whose names begin with `present`.
"""

import json
import sys

import numpy as np
import onnxruntime as ort

DTYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32, "tensor(float16)": np.float16}


def main():
    path, count, prompt = sys.argv[1], int(sys.argv[2]), [int(word) for word in sys.argv[3:]]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = session.get_inputs()
    names = [o.name for o in session.get_outputs()]
    past = [i for i in inputs if i.name.startswith("past")]
    present = [name for name in names if name.startswith("present")]
    assert past and len(past) == len(present), (len(past), len(present))
    # Batch 1, nothing kept: heads and head size are the only fixed sizes.
    caches = {i.name: np.zeros([1, i.shape[1], 0, i.shape[3]], DTYPES[i.type]) for i in past}
    new, total, tokens = prompt, 0, []
    for _ in range(count):
        before, total = total, total + len(new)
        known = {
            "input_ids": [new],
            "attention_mask": [[1] * total],
            "position_ids": [list(range(before, total))],
        }
        feeds = {i.name: np.array(known[i.name], DTYPES[i.type]) for i in inputs if i.name in known}
        results = dict(zip(names, session.run(names, {**feeds, **caches})))
        caches = {i.name: results[name] for i, name in zip(past, present)}
        new = [int(results["logits"][0, -1].argmax())]
        tokens += new
    print(json.dumps(tokens))


main()
