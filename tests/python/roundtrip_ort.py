"""Compares original models with re-written ones in ONNX Runtime.

    roundtrip_ort.py FOLDER MODEL...

For MODEL = .../<id>/model.onnx the copies are FOLDER/<id>.onnx and FOLDER/<id>.external.onnx. All
inputs*.npz beside the model are run through both; the copy must pass the ONNX checker where the
original does.
"""

import pathlib
import sys

import numpy as np
import onnx
import onnxruntime as ort


def session(path):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def checker_error(path):
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as e:  # the checker raises many types
        return str(e)
    return None


def quantises_activations(path):
    """Where activations are rounded to 8 bits at run time, the last bit of a float moves a whole step."""
    nodes = onnx.load(str(path), load_external_data=False).graph.node
    return any(n.op_type in ("MatMulNBits", "DynamicQuantizeLinear") for n in nodes)


def worst(a, b, coarse):
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.dtype}{a.shape} instead of {b.dtype}{b.shape}"
    if a.dtype.kind != "f":
        return None if np.array_equal(a, b) else "integers differ"
    tolerance = 2e-2 if a.dtype == np.float16 or coarse else 2e-4
    scale = max(1.0, float(np.abs(b[np.isfinite(b)]).max(initial=0)))
    close = np.isclose(a.astype(np.float64), b.astype(np.float64), rtol=0, atol=tolerance * scale, equal_nan=True)
    return None if close.all() else f"differs by {np.abs(a - b).max()} (scale {scale})"


def compare(model, copy):
    original_error = checker_error(model)
    if original_error is None and (error := checker_error(copy)):
        return f"checker: {error}"
    before, after = session(model), session(copy)
    names = [o.name for o in before.get_outputs()]
    if names != [o.name for o in after.get_outputs()]:
        return "output names differ"
    coarse = quantises_activations(model)
    runs = 0
    for inputs in sorted(model.parent.glob("inputs*.npz")):
        feed = dict(np.load(inputs))
        try:
            expected = before.run(names, feed)
        except Exception as e:
            print(f"  {model.parent.name} {inputs.name}: the original fails: {str(e)[:100]}")
            continue
        for name, a, b in zip(names, after.run(names, feed), expected):
            if difference := worst(a, b, coarse):
                return f"{inputs.name}: output {name}: {difference}"
        runs += 1
    return None if runs else "nothing was run"


def main():
    folder, models = pathlib.Path(sys.argv[1]), [pathlib.Path(m) for m in sys.argv[2:]]
    failures = 0
    for model in models:
        for suffix in ("onnx", "external.onnx"):
            try:
                error = compare(model, folder / f"{model.parent.name}.{suffix}")
            except Exception as e:
                error = f"{type(e).__name__}: {str(e)[:600]}"
            if error:
                failures += 1
                print(f"FAILED {model.parent.name}.{suffix}: {error}")
    print(f"{len(models)} models, {failures} failures")
    sys.exit(1 if failures or not models else 0)


main()
