"""Writes node cases of the installed `onnx` package: FOLDER/<case>/{model.onnx,inputs.npz,expected.npz}.

    node_cases.py FOLDER OPERATORS

OPERATORS is a file with the names of the chosen operators of the standard domain, one a line. A case is written when
all its nodes are such operators and all its values are tensors of the element types below, in the form that the
package gives it. `FOLDER/index.tsv` lists the cases written (name, operator or "function bodies", rtol, atol), and
`FOLDER/left_out.tsv` those left out, each with the rule that leaves it out.

Keys of the arrays are the names of the graph's inputs and outputs, `bf16:NAME` for the bits of bfloat16.
"""

import pathlib
import sys
import warnings

import numpy as np
import onnx
from onnx.backend.test.case.node import collect_testcases

warnings.simplefilter("ignore")
PLAIN = "?bhilqBHILQefd"
BFLOAT16 = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
BODIES = "function bodies"


class LeftOut(Exception):
    """The rule that leaves a case out."""


def array(value):
    if isinstance(value, onnx.TensorProto):
        value = onnx.numpy_helper.to_array(value)
    if not isinstance(value, (np.ndarray, np.generic)):
        raise LeftOut("sequences and optionals")
    value = np.asarray(value)
    if value.dtype.kind in "OSU":
        raise LeftOut("strings")
    if value.dtype.char not in PLAIN and value.dtype != BFLOAT16:
        raise LeftOut("float8, float4 and integers of fewer than 8 bits")
    return value


def section(case, chosen):
    """The operator that a case is about."""
    nodes = case.model.graph.node
    if any(domain.domain not in ("", "ai.onnx") for domain in case.model.opset_import):
        raise LeftOut("other domains")
    if any(node.op_type not in chosen for node in nodes):
        raise LeftOut("operators not chosen")
    return nodes[0].op_type if len(nodes) == 1 else BODIES


def is_training(case, inputs):
    """Dropout that draws random numbers: no two implementations agree."""
    node = case.model.graph.node[0]
    return node.op_type == "Dropout" and len(node.input) > 2 and bool(inputs[2])


def save(path, infos, arrays):
    keyed = {}
    for info, a in zip(infos, arrays, strict=True):
        if a.dtype == BFLOAT16:
            keyed[f"bf16:{info.name}"] = a.view(np.uint16)
        else:
            keyed[info.name] = a
    # An archive, since numpy.savez has arguments of its own among the names.
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        for name, a in keyed.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, np.ascontiguousarray(a).reshape(a.shape))


def main():
    folder, chosen = pathlib.Path(sys.argv[1]), set(pathlib.Path(sys.argv[2]).read_text().split())
    index, left_out = [], []
    for case in collect_testcases(None):
        try:
            if case.model is None:
                raise LeftOut("no model")
            operator = section(case, chosen)
            inputs, outputs = ([array(a) for a in side] for side in case.data_sets[0])
            if is_training(case, inputs):
                raise LeftOut("random numbers")
        except LeftOut as rule:
            left_out.append(f"{case.name}\t{rule}\n")
            continue
        target = folder / case.name
        target.mkdir(parents=True)
        onnx.save(case.model, target / "model.onnx")
        save(target / "inputs.npz", case.model.graph.input, inputs)
        save(target / "expected.npz", case.model.graph.output, outputs)
        index.append(f"{case.name}\t{operator}\t{case.rtol}\t{case.atol}\n")
    (folder / "index.tsv").write_text("".join(sorted(index)))
    (folder / "left_out.tsv").write_text("".join(sorted(left_out)))


main()
