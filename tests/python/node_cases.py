"""Writes the node cases of the installed `onnx` package: FOLDER/<case>/{model.onnx,inputs.npz,expected.npz}.

    node_cases.py FOLDER

Operands like axes, which exporters give as constants, are made constants. Keys of the arrays are the positions of the graph's inputs and outputs. Cases with sequences, optionals or
strings are left out.
"""

import pathlib
import sys
import warnings

import numpy as np
import onnx
from onnx.backend.test.case.node import collect_testcases

warnings.simplefilter("ignore")
PLAIN = "?bhilqBHILQefd"
PARAMETERS = {"axes", "axis", "starts", "ends", "steps", "split", "pads", "repeats"}


def fix_parameters(model, inputs):
    """Makes constants of the inputs that are parameters; returns the other inputs' arrays."""
    rest = []
    graph = model.graph
    for info, array in zip(list(graph.input), inputs, strict=True):
        if info.name in PARAMETERS and array.dtype.kind == "i":
            graph.input.remove(info)
            graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
        else:
            rest.append(array)
    return rest


def main():
    folder = pathlib.Path(sys.argv[1])
    written = 0
    for case in collect_testcases(None):
        if case.model is None or not case.data_sets:
            continue
        arrays = [[np.asarray(a) for a in side if isinstance(a, (np.ndarray, np.generic))] for side in case.data_sets[0]]
        sizes = [len(side) for side in case.data_sets[0]]
        if [len(a) for a in arrays] != sizes or any(a.dtype.char not in PLAIN for side in arrays for a in side):
            continue
        if len(case.model.graph.input) != len(arrays[0]):
            continue
        arrays[0] = fix_parameters(case.model, arrays[0])
        target = folder / case.name
        target.mkdir(parents=True, exist_ok=True)
        onnx.save(case.model, target / "model.onnx")
        for name, side in zip(("inputs", "expected"), arrays):
            np.savez(target / f"{name}.npz", **{str(i): a for i, a in enumerate(side)})
        written += 1
    print(f"{written} cases")


main()
