"""Writes cases.json: operators with inputs and the outputs that others compute for them.

Two sources: the node tests of the `onnx` package (`onnx.backend.test`, whose outputs come from NumPy),
and models made here and run by ONNX Runtime (CPU). Run with

    pip install onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
    python make_cases.py
"""

import json
import pathlib
import warnings

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases

assert onnx.__version__ == "1.23.2" and ort.__version__ == "1.32.0", "versions are pinned"
warnings.filterwarnings("ignore")

UNARY = """Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish
IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Sigmoid Sign Sin Sinh Softplus Softsign Sqrt
Swish Tan Tanh ThresholdedRelu BitwiseNot Identity""".split()
BINARY = """Add Sub Mul Div Pow Mod Min Max PRelu And Or Xor Equal Less LessOrEqual Greater GreaterOrEqual
BitwiseAnd BitwiseOr BitwiseXor BitShift""".split()
REDUCE = ["Reduce" + s for s in "Sum Mean Max Min Prod L1 L2 SumSquare LogSum LogSumExp".split()]
REST = """Where Cast Clip MatMul Gemm Einsum Conv Softmax LogSoftmax ArgMax ArgMin CumSum TopK
LayerNormalization RMSNormalization BatchNormalization GlobalAveragePool AveragePool MaxPool Reshape Transpose
Squeeze Unsqueeze Expand Concat Slice Gather GatherElements GatherND ScatterElements ScatterND Tile Pad Trilu
OneHot NonZero Shape Size ConstantOfShape Range EyeLike Attention RotaryEmbedding""".split()

LIMITS = {op: 2 for op in UNARY} | {op: 3 for op in BINARY} | {op: 3 for op in REDUCE} | {op: 8 for op in REST}
LIMITS |= {"Attention": 11, "Slice": 5, "ArgMax": 5, "ArgMin": 5, "LayerNormalization": 5, "RMSNormalization": 4, "LogSoftmax": 4, "Softmax": 5, "Mod": 8, "Pow": 4, "Einsum": 9, "Cast": 12, "Trilu": 6, "BitShift": 4}
MAX_ELEMENTS = 500
# Operators whose small tests are none: they may be larger.
LARGER = {"Attention": 1800, "RotaryEmbedding": 900, "Slice": 1500, "OneHot": 900}

DTYPES = {
    TensorProto.FLOAT: "f32", TensorProto.FLOAT16: "f16", TensorProto.BFLOAT16: "bf16",
    TensorProto.DOUBLE: "f64", TensorProto.INT8: "i8", TensorProto.INT16: "i16", TensorProto.INT32: "i32",
    TensorProto.INT64: "i64", TensorProto.UINT8: "u8", TensorProto.UINT16: "u16", TensorProto.UINT32: "u32",
    TensorProto.UINT64: "u64", TensorProto.BOOL: "bool",
}  # fmt: skip


def number(x):
    if isinstance(x, bool):
        return int(x)
    if isinstance(x, int):
        return x
    if x != x:
        return "nan"
    if x in (float("inf"), float("-inf")):
        return "inf" if x > 0 else "-inf"
    return int(x) if x == int(x) and abs(x) < 1e9 and not (x == 0 and str(x)[0] == "-") else x


def shortest(array):
    """The shortest decimals that read back as the same f32 (or narrower) values."""
    flat = array.reshape(-1)
    if array.dtype == np.float64 or array.dtype.kind not in "fV":
        return [number(x) for x in flat.tolist()]
    return [number(float(str(np.float32(x)))) for x in flat]


def tensor(value):
    if isinstance(value, np.ndarray):
        value = numpy_helper.from_array(value)
    if not isinstance(value, TensorProto) or value.data_type not in DTYPES:
        raise ValueError("not a tensor of a known dtype")
    array = numpy_helper.to_array(value)
    return {"dtype": DTYPES[value.data_type], "shape": list(array.shape), "data": shortest(np.asarray(array))}


def attribute(a):
    value = helper.get_attribute_value(a)
    if isinstance(value, TensorProto):
        return tensor(value)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], bytes):
        raise ValueError("strings")
    return value


def case(name, model, inputs, outputs):
    node = model.graph.node[0]
    given = dict(zip((i.name for i in model.graph.input), inputs))
    made = dict(zip((o.name for o in model.graph.output), outputs))
    if list(made) != [o for o in node.output if o]:
        raise ValueError("outputs in another order")
    return {
        "name": name,
        "op": node.op_type,
        "attributes": {a.name: attribute(a) for a in node.attribute},
        "inputs": [tensor(given[i]) if i else None for i in node.input],
        "outputs": [tensor(made[o]) if o in made else None for o in node.output],
    }


def from_onnx():
    taken = {}
    for test in collect_testcases(None):
        graph = test.model.graph
        op = graph.node[0].op_type if len(graph.node) == 1 else None
        if op not in LIMITS or graph.node[0].domain or not test.data_sets or "_expanded" in test.name:
            continue
        try:
            made = case(test.name, test.model, *test.data_sets[0])
        except (ValueError, KeyError, NotImplementedError):
            continue
        size = sum(len(t["data"]) for t in made["inputs"] + made["outputs"] if t)
        if size <= LARGER.get(op, MAX_ELEMENTS) and supported(made):
            taken.setdefault(op, []).append(made)
    # Where there are too many, take them evenly from the list.
    for op, cases in taken.items():
        n = min(LIMITS[op], len(cases))
        yield from (cases[i * len(cases) // n] for i in range(n))


def supported(made):
    """Leaves out what the importer expresses by other operators or not at all."""
    op, a, inputs, outputs = made["op"], made["attributes"], made["inputs"], made["outputs"]
    if op == "Attention":
        square = inputs[0]["shape"][-2] == inputs[1]["shape"][-2]
        return (
            len(inputs[0]["shape"]) == 4 and len(inputs) <= 4 and len(outputs) == 1
            and (square or not a.get("is_causal")) and not {"softmax_precision", "left_window_size", "right_window_size"} & set(a)
            and (len(inputs) < 4 or not inputs[3] or inputs[3]["shape"][-1] == inputs[1]["shape"][-2])
        )  # fmt: skip
    if op == "RotaryEmbedding":
        return len(inputs[0]["shape"]) == 4 and len(inputs) == 3 and not a.get("rotary_embedding_dim")
    if op in ("AveragePool", "MaxPool", "Conv"):
        return len(outputs) == 1 and "auto_pad" not in a and not a.get("ceil_mode") and not a.get("storage_order")
    if op == "BatchNormalization":
        return not a.get("training_mode")
    if op in ("Max", "Min"):
        return len(inputs) == 2
    if op in REDUCE:
        return not a.get("noop_with_empty_axes")
    if op == "Cast":
        return a["to"] in DTYPES
    if op == "TopK":
        return a.get("sorted", 1) == 1
    return True


def runtime(name, op, inputs, opset=21, outputs=1, **attributes):
    names = [f"i{i}" if x is not None else "" for i, x in enumerate(inputs)]
    node = helper.make_node(op, names, [f"o{i}" for i in range(outputs)], **attributes)
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for n, x in zip(names, inputs) if n
    ]  # fmt: skip
    outs = [helper.make_empty_tensor_value_info(f"o{i}") for i in range(outputs)]
    graph = helper.make_graph([node], "g", infos, outs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {n: x for n, x in zip(names, inputs) if n}
    return case("ort_" + name, model, list(feed.values()), session.run(None, feed))


def from_runtime():
    rng = np.random.default_rng(0)
    f32 = lambda *s: rng.standard_normal(s).astype(np.float32)  # noqa: E731
    f16 = lambda *s: f32(*s).astype(np.float16)  # noqa: E731
    ints = lambda *v: np.array(v, np.int64)  # noqa: E731
    yield runtime("conv_1d_groups", "Conv", [f32(2, 4, 9), f32(6, 2, 3), f32(6)], group=2, strides=[2], dilations=[2], pads=[3, 1])
    yield runtime("conv_2d_depthwise", "Conv", [f32(1, 3, 5, 6), f32(3, 1, 3, 2)], group=3, pads=[1, 0, 1, 1])
    yield runtime("conv_2d_patches", "Conv", [f32(1, 3, 8, 8), f32(4, 3, 4, 4), f32(4)], strides=[4, 4])
    yield runtime("conv_3d", "Conv", [f32(1, 2, 4, 3, 4), f32(2, 2, 2, 2, 2)], dilations=[2, 1, 1])
    yield runtime("average_pool_1d", "AveragePool", [f32(1, 2, 7)], kernel_shape=[3], strides=[2], pads=[1, 1])
    yield runtime("average_pool_include", "AveragePool", [f32(1, 2, 5, 4)], kernel_shape=[3, 2], pads=[1, 1, 1, 0], count_include_pad=1)
    yield runtime("max_pool_dilated", "MaxPool", [f32(1, 2, 7, 5)], kernel_shape=[2, 2], dilations=[2, 1], strides=[1, 2], pads=[1, 0, 0, 1])
    yield runtime("matmul_broadcast", "MatMul", [f32(2, 1, 5, 3), f32(3, 3, 4)])
    yield runtime("matmul_f64", "MatMul", [f32(5, 6).astype(np.float64), f32(6, 2).astype(np.float64)])
    yield runtime("matmul_i64", "MatMul", [rng.integers(-9, 9, (2, 3, 4)), rng.integers(-9, 9, (4, 2))])
    yield runtime("gemm_f16", "Gemm", [f16(3, 4), f16(5, 4), f16(5)], transB=1, alpha=0.5, beta=2.0)
    yield runtime("gemm_trans_a", "Gemm", [f32(4, 3), f32(4, 5), f32(3, 1)], transA=1)
    yield runtime("div_i64_truncates", "Div", [ints(7, -7, 7, -7), ints(2, 2, -2, -2)])
    yield runtime("mod_i64", "Mod", [ints(7, -7, 7, -7), ints(3, 3, -3, -3)])
    yield runtime("fmod_i64", "Mod", [ints(7, -7, 7, -7), ints(3, 3, -3, -3)], fmod=1)
    yield runtime("fmod_f32", "Mod", [f32(8) * 5, f32(8)], fmod=1)
    yield runtime("pow_i64", "Pow", [ints(2, -3, 10, 1), ints(10, 3, 0, 5)])
    yield runtime("add_i64_wraps", "Add", [ints(2**63 - 1), ints(1)])
    yield runtime("round_halves", "Round", [np.array([0.5, 1.5, 2.5, -0.5, -1.5, 2.4999, 1e9], np.float32)])
    yield runtime("erf_range", "Erf", [np.linspace(-4, 4, 33, dtype=np.float32)])
    yield runtime("tanh_f64", "Tanh", [np.linspace(-4, 4, 9)])
    yield runtime("gelu_tanh", "Gelu", [f32(9) * 2], approximate="tanh")
    yield runtime("gelu_erf", "Gelu", [f32(9) * 2])
    yield runtime("softmax_masked", "Softmax", [np.array([[1, -np.inf, 3], [-1e30, 1e30, 0]], np.float32)])
    yield runtime("softmax_f16", "Softmax", [f16(2, 3, 4)], axis=1)
    yield runtime("log_softmax_large", "LogSoftmax", [np.array([[1e4, 1, -1e4, 9999]], np.float32)])
    yield runtime("layer_norm_f16", "LayerNormalization", [f16(2, 3, 8), f16(8), f16(8)], epsilon=1e-3)
    yield runtime("layer_norm_two_axes", "LayerNormalization", [f32(2, 3, 4), f32(3, 4), f32(3, 4)], axis=1)
    yield runtime("cumsum_i64", "CumSum", [rng.integers(-9, 9, (3, 4)), np.array(0)], exclusive=1, reverse=1)
    yield runtime("cumsum_f64", "CumSum", [f32(3, 4).astype(np.float64), np.array(-1)], reverse=1)
    yield runtime("top_k_ties", "TopK", [np.array([[3, 1, 3, 2, 3], [1, 1, 0, 0, 1]], np.float32), ints(3)], outputs=2)
    yield runtime("top_k_smallest", "TopK", [f32(4, 3), ints(2)], outputs=2, axis=0, largest=0)
    yield runtime("arg_max_last", "ArgMax", [np.array([[3, 1, 3], [1, 2, 2]], np.float32)], axis=1, select_last_index=1, keepdims=0)
    yield runtime("slice_backwards", "Slice", [f32(4, 6), ints(-1, 10), ints(-100, 1), ints(0, 1), ints(-2, -1)])
    yield runtime("slice_empty", "Slice", [f32(4, 6), ints(3), ints(2), ints(1)])
    yield runtime("pad_negative", "Pad", [f32(4, 5), ints(-1, 2, 1, -2), np.array(7, np.float32)])
    yield runtime("pad_wrap", "Pad", [f32(2, 3), ints(1, 2, 0, 4)], mode="wrap")
    yield runtime("pad_reflect", "Pad", [f32(3, 4), ints(2, 3, 1, 2)], mode="reflect")
    yield runtime("pad_edge_i32", "Pad", [rng.integers(0, 9, (2, 2)).astype(np.int32), ints(1, 0, 0, 2)], mode="edge")
    yield runtime("gather_matrix", "Gather", [f32(3, 4, 2), np.array([[0, -1], [2, -4]])], axis=1)
    yield runtime("gather_nd_batch", "GatherND", [f32(2, 3, 4), np.array([[[1], [-1]], [[0], [2]]])], batch_dims=1)
    yield runtime("scatter_nd_add_dup", "ScatterND", [f32(4, 2), np.array([[1], [1], [-1]]), f32(3, 2)], reduction="add")
    yield runtime("one_hot_negative", "OneHot", [ints(0, -1, 5, -5, 3), np.array(4), np.array([-1, 2], np.float32)], axis=0)
    yield runtime("trilu_bool", "Trilu", [rng.integers(0, 2, (3, 4)).astype(bool), np.array(-1)], upper=0)
    yield runtime("tile_3d", "Tile", [f32(2, 1, 3), ints(2, 3, 1)])
    yield runtime("expand_both", "Expand", [f32(3, 1), ints(2, 1, 4)])
    yield runtime("where_broadcast", "Where", [np.array([[True], [False]]), f32(1, 3), f32(2, 1)])
    yield runtime("clip_min_only", "Clip", [np.array([-2, 0, np.nan, 5], np.float32), np.array(-1, np.float32)])
    yield runtime("clip_i64", "Clip", [ints(-5, 0, 5), np.array(-1), np.array(3)])
    yield runtime("cast_to_int", "Cast", [np.array([-1.9, -0.5, 0.5, 2.9, 1e6], np.float32)], to=TensorProto.INT32)
    yield runtime("cast_to_bool", "Cast", [np.array([0, -0.0, 0.1, -3], np.float32)], to=TensorProto.BOOL)
    yield runtime("cast_wraps", "Cast", [ints(-1, 255, 256, 300)], to=TensorProto.UINT8)
    yield runtime("cast_to_f16", "Cast", [np.array([1e-8, 0.1, 2049, 65519], np.float32)], to=TensorProto.FLOAT16)
    yield runtime("range_down", "Range", [np.array(7), np.array(-2), np.array(-3)])
    yield runtime("range_f32", "Range", [np.array(0, np.float32), np.array(1, np.float32), np.array(0.3, np.float32)])
    yield runtime("einsum_attention", "Einsum", [f32(2, 3, 4), f32(2, 5, 4)], equation="bid,bjd->bij")
    yield runtime("einsum_diagonal", "Einsum", [f32(3, 3, 2)], equation="iij->j")
    yield runtime("einsum_implicit", "Einsum", [f32(3, 2), f32(3, 4)], equation="ba,bc")
    yield runtime("einsum_ellipsis", "Einsum", [f32(2, 3, 4), f32(4, 5)], equation="...ij,jk->...ik")
    yield runtime("einsum_three", "Einsum", [f32(2, 3), f32(3, 4), f32(4)], equation="ij,jk,k->i")
    yield runtime("reduce_max_empty_axes", "ReduceMax", [f32(2, 3)], keepdims=0)
    yield runtime("reduce_mean_two", "ReduceMean", [f16(2, 3, 4), ints(0, -1)], keepdims=0)
    yield runtime("reduce_sum_i64", "ReduceSum", [rng.integers(-9, 9, (2, 3)), ints(1)])
    yield runtime("reduce_log_sum_exp_large", "ReduceLogSumExp", [np.array([[1000, 1001], [-1000, -1001]], np.float32), ints(1)])
    yield runtime("transpose_4d", "Transpose", [f32(2, 3, 2, 2)], perm=[2, 0, 3, 1])
    yield runtime("batch_norm", "BatchNormalization", [f32(2, 3, 2, 2), f32(3), f32(3), f32(3), np.abs(f32(3))], epsilon=1e-2)
    yield runtime("global_average_pool", "GlobalAveragePool", [f32(2, 3, 4)])
    yield runtime("non_zero_3d", "NonZero", [rng.integers(0, 2, (2, 2, 3)).astype(np.float32)])
    yield runtime("reshape_copy_rest", "Reshape", [f32(2, 3, 4), ints(0, -1, 2)])


def main():
    cases = list(from_onnx()) + list(from_runtime())
    path = pathlib.Path(__file__).with_name("cases.json")
    lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
    path.write_text(f"[\n{lines}\n]\n")
    print(len(cases), "cases,", path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
