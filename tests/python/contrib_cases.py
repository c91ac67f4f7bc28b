"""Writes cases of ONNX Runtime's own operators: FOLDER/<case>/{model.onnx,inputs.npz,expected.npz}.

    contrib_cases.py FOLDER

The answers are ONNX Runtime's (CPU), save for the forms that only its GPU providers have, which numpy computes here. Keys of the arrays are the
positions of the graph's inputs and outputs. Sizes of the inputs are symbolic wherever a case gives them a name.
"""

import pathlib
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

RANDOM = np.random.default_rng(7)
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bool": TensorProto.BOOL, "int32": TensorProto.INT32, "int64": TensorProto.INT64,
         "uint8": TensorProto.UINT8, "int8": TensorProto.INT8}
OPSET = 17


def floats(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def info(name, array, dims):
    return helper.make_tensor_value_info(name, TYPES[array.dtype.name], dims or list(array.shape))


class Case:
    """A graph of one fused node (and what its operands are computed by)."""

    def __init__(self, name):
        self.name, self.feeds, self.dims, self.nodes, self.constants = name, {}, {}, [], []

    def input(self, name, array, dims=None):
        self.feeds[name], self.dims[name] = array, dims
        return name

    def constant(self, name, array):
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op, inputs, outputs, domain="", **attributes):
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"node_{len(self.nodes)}", domain=domain, **attributes))

    def write(self, folder, outputs, want=None):
        inputs = [info(n, a, self.dims[n]) for n, a in self.feeds.items()]
        kinds = {"lengths": TensorProto.INT32, "integers": TensorProto.INT32, "bytes": TensorProto.UINT8}
        kind = lambda o: kinds.get(o, TensorProto.FLOAT)
        results = [helper.make_tensor_value_info(o, kind(o), None) for o in outputs]
        graph = helper.make_graph(self.nodes, self.name, inputs, results, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)])
        model.ir_version = 10
        if want is None:
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            want = session.run(outputs, self.feeds)
        target = folder / self.name
        target.mkdir(parents=True)
        onnx.save(model, target / "model.onnx")
        for name, side in (("inputs", self.feeds.values()), ("expected", want)):
            np.savez(target / f"{name}.npz", **{str(i): a for i, a in enumerate(side)})


def grouped(folder, name, lengths, new, past, *, packed=False, rotary=0, heads=4, kv_heads=2, size=16, **extra):
    """GroupQueryAttention behind the mask arithmetic of the generative-AI model builder. `past` is the length of the caches."""
    case = Case(f"grouped_{name}")
    batch, total = len(lengths), extra.pop("total", max(lengths))
    valid = np.zeros((batch, total), np.int64)
    for row, length in enumerate(lengths):
        valid[row, :length] = 1
    if packed:
        qkv = [case.input("qkv", floats(batch, new, (heads + 2 * kv_heads) * size), ["batch", "sequence", (heads + 2 * kv_heads) * size]), "", ""]
    else:
        widths = {"q": heads, "k": kv_heads, "v": kv_heads}
        qkv = [case.input(n, floats(batch, new, w * size), ["batch", "sequence", w * size]) for n, w in widths.items()]
    case.input("attention_mask", valid, ["batch", "total"])
    case.constant("one", np.array([1], np.int64))
    case.constant("at_one", np.array(1, np.int64))
    case.node("ReduceSum", ["attention_mask", "one"], ["counts"], keepdims=0)
    case.node("Sub", ["counts", "one"], ["last"])
    case.node("Cast", ["last"], ["seqlens_k"], to=TensorProto.INT32)
    case.node("Shape", ["attention_mask"], ["shape"])
    case.node("Gather", ["shape", "at_one"], ["size"], axis=0)
    case.node("Cast", ["size"], ["total"], to=TensorProto.INT32)
    caches = ["", ""]
    if past is not None:
        caches = [case.input(n, floats(batch, kv_heads, past, size), ["batch", kv_heads, "past", size]) for n in ("past_key", "past_value")]
    tables = ["", ""]
    if rotary:
        tables = [case.constant(n, floats(40, rotary // 2)) for n in ("cos", "sin")]
    more = [""] * 3
    attributes = dict(num_heads=heads, kv_num_heads=kv_heads, do_rotary=int(bool(rotary)))
    if extra.pop("positions", False):
        more[0] = case.input("position_ids", RANDOM.integers(0, 30, (batch, new)), ["batch", "sequence"])
    if bias := extra.pop("bias", None):
        more[1] = case.input("bias", floats(*bias, new, total), [bias[0], bias[1], "sequence", "total"])
    if extra.pop("sinks", False):
        more[2] = case.constant("sinks", floats(heads))
    results = ["attended"] + (["present_key", "present_value"] if past is not None else [])
    case.node("GroupQueryAttention", [*qkv, *caches, "seqlens_k", "total", *tables, *more], results, "com.microsoft", **attributes, **extra)
    # What stands in padded rows, and in caches behind their keys, is not specified.
    rows = np.arange(new)[None, :, None] < np.array([min(new, n) for n in lengths])[:, None, None]
    case.input("rows", rows.astype(np.float32), ["batch", "sequence", 1])
    case.node("Mul", ["attended", "rows"], ["output"])
    if past is not None:
        capacity = past if extra.get("sliding_window_cache") else max(past, total)
        slack = capacity - extra.get("local_window_size", 0) + 1
        evicted = [-(-max(n - capacity, 0) // slack) * slack for n in lengths] if capacity == past else [0] * batch
        held = np.arange(capacity)[None, None, :, None] < (np.array(lengths) - evicted)[:, None, None, None]
        case.input("held", held)
        case.constant("zero", np.float32(0))
        for name in results[1:]:
            case.node("Where", ["held", name, "zero"], [f"{name}_held"])
    case.write(folder, ["output"] + [f"{name}_held" for name in results[1:]])


def all_grouped(folder):
    grouped(folder, "prompt", [5], 5, 0)
    grouped(folder, "prompt_without_cache", [5], 5, None)
    grouped(folder, "prompt_packed_rotary", [5, 5], 5, 0, packed=True, rotary=16)
    grouped(folder, "prompt_interleaved", [5], 5, 0, rotary=16, rotary_interleaved=1)
    grouped(folder, "prompt_partial_rotary", [5], 5, 0, rotary=16, size=32)
    grouped(folder, "prompt_partial_rotary_packed", [4, 4], 4, 0, packed=True, rotary=16, size=32)
    grouped(folder, "prompt_right_padded", [5, 3, 1], 5, 0, rotary=16)
    grouped(folder, "decode", [6], 1, 5, rotary=16)
    grouped(folder, "decode_batch", [6, 6], 1, 5, rotary=16, packed=True)
    grouped(folder, "decode_ragged", [6, 4, 1], 1, 5, rotary=16)
    grouped(folder, "chunk", [8], 3, 5, rotary=16)
    grouped(folder, "long_cache_prompt", [5], 5, 12, rotary=16)
    grouped(folder, "long_cache_decode", [7, 3], 1, 12, rotary=16, packed=True)
    grouped(folder, "window", [7], 7, 0, local_window_size=3)
    grouped(folder, "window_decode_ragged", [8, 5], 1, 7, local_window_size=3, rotary=16)
    grouped(folder, "softcap", [5], 5, 0, softcap=1.5)
    grouped(folder, "scale", [5], 5, 0, scale=0.3)
    grouped(folder, "bias", [7], 3, 4, bias=(1, 4))
    grouped(folder, "bias_softcap_ragged", [5, 3], 1, 4, bias=(2, 1), softcap=2.0)
    grouped(folder, "smooth", [5], 5, 0, smooth_softmax=1)
    grouped(folder, "sinks_ragged", [8, 5], 1, 7, sinks=True, local_window_size=4, rotary=16)
    grouped(folder, "sinks_prompt_bias", [6], 6, 0, sinks=True, bias=(1, 1))
    grouped(folder, "positions_prompt", [4], 4, 0, rotary=16, positions=True)
    grouped(folder, "positions_decode", [6, 4], 1, 5, rotary=16, positions=True)
    grouped(folder, "positions_chunk", [8], 3, 5, rotary=16, positions=True)
    sliding = dict(rotary=16, local_window_size=4, sliding_window_cache=1)
    grouped(folder, "sliding_prompt", [3], 3, 6, **sliding)
    grouped(folder, "sliding_long_prompt", [9, 9], 9, 6, **sliding)
    grouped(folder, "sliding_tight_prompt", [9], 9, 4, **sliding)
    grouped(folder, "sliding_decode_ragged", [6, 11, 2, 8, 7], 1, 6, packed=True, **sliding)
    grouped(folder, "sliding_decode_tight", [6, 11], 1, 4, **sliding)
    grouped(folder, "sliding_chunk", [11], 3, 6, sinks=True, **sliding)
    grouped(folder, "sliding_chunk_tight", [11], 3, 4, **sliding)
    grouped(folder, "one_key_head", [6, 6], 1, 5, kv_heads=1, packed=True)
    grouped(folder, "bidirectional", [5, 5], 5, 0, causal=0)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attend(q, k, v):
    y = softmax(np.einsum("bhid,bhjd->bhij", q, k) / np.sqrt(q.shape[-1])) @ v
    return y.transpose(0, 2, 1, 3).reshape(y.shape[0], y.shape[2], -1).astype(np.float32)


def multi_head(folder, name, operands, outputs=1, want=None, **attributes):
    case = Case(f"multi_head_{name}")
    names = ["query", "key", "value", "bias", "key_padding_mask", "attention_bias", "past_key", "past_value"]
    sizes = {"query": ["batch", "sequence"], "key": ["batch", "keys"], "value": ["batch", "keys"], "past_key": ["batch", 2, "past"], "past_value": ["batch", 2, "past"]}
    for n, array in operands.items():
        dims = ["batch", 2, "keys"] if n in ("key", "value") and array.ndim == 4 else sizes.get(n)
        if operands.get("key") is not None and operands["key"].shape == operands["query"].shape and n in ("key", "value"):
            dims = ["batch", "sequence"]
        if n == "key_padding_mask":
            dims = [["batch"], ["batch", "total"], ["batch", "sequence", "total"]][array.ndim - 1]
        if dims is not None:
            dims = dims + list(array.shape[len(dims) :])
        case.input(n, array, dims)
    results = ["output", "present_key", "present_value"][:outputs]
    case.node("MultiHeadAttention", [n if n in operands else "" for n in names], results, "com.microsoft", num_heads=2, **attributes)
    case.write(folder, results, want)


def all_multi_head(folder):
    new = lambda n, w=16: floats(2, n, w)
    cross = dict(query=new(3), key=new(5), value=new(5, 8))
    multi_head(folder, "cross", cross)
    multi_head(folder, "scale", cross, scale=0.3)
    multi_head(folder, "bias", cross | dict(bias=floats(40)))
    multi_head(folder, "lengths", cross | dict(key_padding_mask=np.array([5, 3], np.int32)))
    some = lambda *shape: (RANDOM.random(shape) > 0.3).astype(np.int32)
    multi_head(folder, "padding", cross | dict(key_padding_mask=some(2, 5)), mask_filter_value=-100.0)
    multi_head(folder, "padding_of_queries", cross | dict(key_padding_mask=some(2, 3, 5)))
    multi_head(folder, "added", cross | dict(attention_bias=floats(1, 2, 3, 5)))
    multi_head(folder, "added_and_padding", cross | dict(attention_bias=floats(2, 1, 3, 5), key_padding_mask=some(2, 5)))
    multi_head(folder, "keys_apart", dict(query=new(3), key=floats(2, 2, 5, 8), value=floats(2, 2, 5, 8), bias=floats(48)))
    own = dict(query=new(3), key=new(3), value=new(3))
    multi_head(folder, "causal", own, unidirectional=1)
    multi_head(folder, "present", own, outputs=3)
    cached = own | dict(past_key=floats(2, 2, 4, 8), past_value=floats(2, 2, 4, 8))
    multi_head(folder, "past", cached, outputs=3)
    multi_head(folder, "past_causal", cached | dict(key_padding_mask=some(2, 7)), outputs=3, unidirectional=1)
    qkv, kv = floats(2, 4, 2, 3, 8), floats(2, 5, 2, 2, 8)
    heads = lambda x: x.transpose(0, 2, 1, 3)
    multi_head(folder, "packed", dict(query=qkv), want=[attend(*[heads(qkv[:, :, :, i]) for i in range(3)])])
    query = new(3)
    apart = [heads(query.reshape(2, 3, 2, 8))] + [heads(kv[:, :, :, i]) for i in range(2)]
    multi_head(folder, "packed_keys", dict(query=query, key=kv), want=[attend(*apart)])


def attention(folder, name, operands, outputs=1, width=48, **attributes):
    case = Case(f"attention_{name}")
    case.input("input", floats(2, 3, 12), ["batch", "sequence", 12])
    case.constant("weights", floats(12, width))
    case.constant("bias", floats(width))
    names = ["mask_index", "past", "attention_bias"]
    for n, array in operands.items():
        dims = {"past": [2, "batch", 2, "past", 8]}.get(n)
        if n == "mask_index" and array.shape[0] == 2:
            dims = [["batch"], ["batch", "total"], ["batch", "sequence", "total"]][array.ndim - 1]
        case.input(n, array, dims)
    results = ["output", "present"][:outputs]
    case.node("Attention", ["input", "weights", "bias", *[n if n in operands else "" for n in names]], results, "com.microsoft", num_heads=2, **attributes)
    case.write(folder, results)


def all_attention(folder):
    past = floats(2, 2, 2, 4, 8)
    some = lambda *shape: (RANDOM.random(shape) > 0.3).astype(np.int32)
    attention(folder, "plain", {})
    attention(folder, "causal", {}, unidirectional=1)
    attention(folder, "present", {}, outputs=2)
    attention(folder, "past", dict(past=past), outputs=2)
    attention(folder, "past_causal", dict(past=past), outputs=2, unidirectional=1)
    attention(folder, "lengths", dict(mask_index=np.array([3, 2], np.int32)), mask_filter_value=-3.4e38)
    attention(folder, "padding", dict(mask_index=some(2, 3)))
    attention(folder, "padding_of_queries", dict(mask_index=some(2, 3, 3)))
    attention(folder, "padding_past", dict(mask_index=some(2, 7), past=past), outputs=2)
    attention(folder, "padding_past_causal", dict(mask_index=some(2, 3, 7), past=past), outputs=2, unidirectional=1)
    attention(folder, "added", dict(attention_bias=floats(1, 2, 3, 3)))
    attention(folder, "sizes", {}, width=56, qkv_hidden_sizes=[16, 16, 24])
    attention(folder, "scale", {}, scale=0.2)


def rotary(folder, name, x, positions, table, **attributes):
    case = Case(f"rotary_{name}")
    case.input("x", x, ["batch", "sequence", x.shape[2]] if x.ndim == 3 else ["batch", 2, "sequence", x.shape[3]])
    case.input("positions", positions, [1] if positions.ndim == 1 else ["batch", "sequence"])
    case.constant("cos", floats(20, table))
    case.constant("sin", floats(20, table))
    case.node("RotaryEmbedding", ["x", "positions", "cos", "sin"], ["output"], "com.microsoft", **attributes)
    case.write(folder, ["output"])


def all_rotary(folder):
    at = RANDOM.integers(0, 20, (2, 3))
    flat, apart = floats(2, 3, 16), floats(2, 2, 3, 8)
    rotary(folder, "positions", flat, at, 4)
    rotary(folder, "offset", flat, np.array([5]), 4)
    rotary(folder, "interleaved", flat, at, 4, interleaved=1)
    rotary(folder, "heads_apart", apart, at, 4)
    rotary(folder, "partial", flat, at, 2, num_heads=2, rotary_embedding_dim=4)
    rotary(folder, "partial_heads_apart", apart, at, 2, num_heads=2, rotary_embedding_dim=4)


def norm(folder, name, op, skip=None, bias=False, shift=True, results=(0, 3)):
    case = Case(f"norm_{name}")
    case.input("x", floats(2, 3, 8), ["batch", "sequence", 8])
    case.input("skip", floats(*(skip or (2, 3, 8))), None if skip else ["batch", "sequence", 8])
    case.constant("scale", floats(8))
    operands = ["x", "skip", "scale"]
    if op == "SkipLayerNormalization":
        operands.append(case.constant("shift", floats(8)) if shift else "")
    if bias:
        operands.append(case.constant("bias", floats(8)))
    names = ["normed", "", "", "sum"]
    wanted = [names[i] for i in results]
    case.node(op, operands, [n if i in results else "" for i, n in enumerate(names)][: max(results) + 1], "com.microsoft", epsilon=1e-5)
    case.write(folder, wanted)


def all_norms(folder):
    for op, short in (("SkipLayerNormalization", "skip"), ("SkipSimplifiedLayerNormalization", "skip_simplified")):
        norm(folder, short, op)
        norm(folder, f"{short}_bias", op, bias=True)
        norm(folder, f"{short}_normed_alone", op, results=(0,))
        norm(folder, f"{short}_broadcast", op, skip=(1, 3, 8))
        norm(folder, f"{short}_flat_skip", op, skip=(3, 8))
    norm(folder, "skip_without_shift", "SkipLayerNormalization", shift=False, bias=True)
    case = Case("norm_simplified")
    case.input("x", floats(2, 3, 8), ["batch", "sequence", 8])
    case.constant("scale", floats(8))
    case.node("SimplifiedLayerNormalization", ["x", "scale"], ["y"], epsilon=1e-5, axis=-1)
    case.write(folder, ["y"])


def embed(folder, name, segments=True, mask=True, positions=False, total=False):
    case = Case(f"embed_{name}")
    ids = case.input("ids", RANDOM.integers(0, 9, (2, 3)).astype(np.int32), ["batch", "sequence"])
    kinds = case.input("segments", RANDOM.integers(0, 2, (2, 3)).astype(np.int32), ["batch", "sequence"]) if segments else ""
    tables = [case.constant("words", floats(9, 8)), case.constant("places", floats(12, 8))]
    tables.append(case.constant("kinds", floats(2, 8)) if segments else "")
    norms = [case.constant("scale", floats(8)), case.constant("shift", floats(8))]
    keep = case.input("mask", np.array([[1, 1, 0], [1, 1, 1]], np.int32), ["batch", "sequence"]) if mask else ""
    at = case.input("positions", RANDOM.integers(0, 12, (2, 3)).astype(np.int32), ["batch", "sequence"]) if positions else ""
    results = ["output", "lengths"] + (["sum"] if total else [])
    case.node("EmbedLayerNormalization", [ids, kinds, *tables, *norms, keep, at], results, "com.microsoft", epsilon=1e-5)
    case.write(folder, [r for r in results if r != "lengths" or mask])


def all_embeddings(folder):
    embed(folder, "all", total=True)
    embed(folder, "without_segments", segments=False)
    embed(folder, "without_mask", mask=False)
    embed(folder, "positions", positions=True)


def simple(folder, name, op, arrays, **attributes):
    case = Case(f"simple_{name}")
    operands = [case.input(f"x{i}", a) if a is not None else "" for i, a in enumerate(arrays)]
    case.node(op, operands, ["output"], "com.microsoft", **attributes)
    case.write(folder, ["output"])


def all_simple(folder):
    x, b = floats(2, 3, 8), floats(8)
    simple(folder, "gelu", "Gelu", [x])
    simple(folder, "bias_gelu", "BiasGelu", [x, b])
    simple(folder, "fast_gelu", "FastGelu", [x])
    simple(folder, "fast_gelu_bias", "FastGelu", [x, b])
    simple(folder, "quick_gelu", "QuickGelu", [x])
    simple(folder, "quick_gelu_alpha", "QuickGelu", [x], alpha=1.0)
    simple(folder, "fused_matmul", "FusedMatMul", [floats(2, 8, 3), floats(2, 5, 8)], transA=1, transB=1, alpha=0.5)
    simple(folder, "fused_matmul_plain", "FusedMatMul", [floats(2, 3, 8), floats(8, 5)], alpha=2.0)
    for activation in ("Relu", "Tanh", "Sigmoid", "LeakyRelu"):
        more = dict(activation_alpha=0.2) if activation == "LeakyRelu" else {}
        simple(folder, f"fused_gemm_{activation.lower()}", "FusedGemm", [floats(3, 8), floats(5, 8), floats(5)], transB=1, activation=activation, **more)


def experts(folder, name, bias=True, fused=1, flat=False, **attributes):
    case = Case(f"experts_{name}")
    x, router = floats(2, 3, 8), floats(6, 4)
    if flat:
        case.input("x", x.reshape(6, 8), ["tokens", 8])
        case.input("router", router, ["tokens", 4])
    else:
        case.input("x", x, ["batch", "sequence", 8])
        case.input("router", router)
    operands = ["x", "router", case.constant("w1", floats(4, 6 * fused, 8)), "", case.constant("w2", floats(4, 8, 6)), ""]
    if bias:
        operands[3], operands[5] = case.constant("b1", floats(4, 6 * fused)), case.constant("b2", floats(4, 8))
    case.node("MoE", operands, ["output"], "com.microsoft", **attributes)
    case.write(folder, ["output"])


def all_experts(folder):
    experts(folder, "one", k=1)
    experts(folder, "two", k=2, activation_type="silu")
    experts(folder, "two_normalised", k=2, normalize_routing_weights=1, activation_type="gelu")
    experts(folder, "flat_without_bias", bias=False, flat=True, k=2, activation_type="identity")
    gated = dict(k=2, activation_type="swiglu", swiglu_fusion=1, normalize_routing_weights=1)
    experts(folder, "gated", fused=2, **gated)
    experts(folder, "gated_clamped", fused=2, activation_alpha=1.702, activation_beta=1.0, swiglu_limit=0.7, **gated)


def integers(low, high, *shape, dtype=np.uint8):
    return RANDOM.integers(low, high, shape).astype(dtype)


def quantised_experts(folder, name, bits, block=0, zeros=False, bias=False, fused=1, **attributes):
    case = Case(f"experts_quantised_{name}")
    experts, width, inner = 4, 32, 32
    case.input("x", floats(2, 3, width), ["batch", "sequence", width])
    case.input("router", floats(6, experts))
    operands = ["x", "router"] + [""] * 12
    for at, (rows, columns) in ((2, (inner * fused, width)), (5, (width, inner))):
        count = columns // block if block else 1
        operands[at] = case.constant(f"w{at}", integers(0, 256, experts, rows, columns * bits // 8))
        scales = RANDOM.uniform(0.01, 0.05, (experts, rows, count)).astype(np.float32)
        operands[at + 1] = case.constant(f"s{at}", scales if block else scales[..., 0])
        if bias:
            operands[at + 2] = case.constant(f"b{at}", floats(experts, rows))
        if zeros:
            operands[11 + (at - 2) // 3] = case.constant(f"z{at}", integers(0, 256, experts, rows, -(-count * bits // 8)))
    more = {"block_size": block} if block else {}
    case.node("QMoE", operands, ["output"], "com.microsoft", expert_weight_bits=bits, **more, **attributes)
    case.write(folder, ["output"])


def quantised_attention(folder, name, past=0, mask=False, columns=False, kind=np.uint8, **attributes):
    case = Case(f"attention_quantised_{name}")
    batch, new, heads, size = 2, 3, 2, 8
    width = heads * size
    low, high = (0, 256) if kind == np.uint8 else (-128, 128)
    operands = [case.input("x", integers(0, 256, batch, new, width), ["batch", "sequence", width]),
                case.constant("w", integers(low, high, width, 3 * width, dtype=kind)), case.constant("b", floats(3 * width)),
                case.constant("x_scale", np.float32(0.02)),
                case.constant("w_scale", RANDOM.uniform(0.001, 0.01, 3 * width).astype(np.float32) if columns else np.float32(0.01)),
                "", case.constant("x_zero", np.uint8(130)),
                case.constant("w_zero", np.full(3 * width, 3, kind) if columns else np.array(7, kind)), ""]
    if mask:
        valid = np.ones((batch, past + new), np.int32)
        valid[1, -1] = 0
        operands[5] = case.input("mask", valid, ["batch", "total"])
    outputs = ["output"]
    if past:
        operands[8] = case.input("past", floats(2, batch, heads, past, size), [2, "batch", heads, "past", size])
        outputs.append("present")
    case.node("QAttention", operands, outputs, "com.microsoft", num_heads=heads, **attributes)
    case.write(folder, outputs)


def quantised_embeddings(folder, name, segments=True):
    case = Case(f"embeddings_quantised_{name}")
    width = 8
    operands = [case.input("ids", integers(0, 11, 2, 4, dtype=np.int32), ["batch", "sequence"])] + [""] * 17
    if segments:
        operands[1] = case.input("segments", integers(0, 2, 2, 4, dtype=np.int32), ["batch", "sequence"])
    for at, shape in ((2, (11, width)), (3, (6, width)), (4, (2, width)), (5, (width,)), (6, (width,))):
        if at == 4 and not segments:
            continue
        operands[at] = case.constant(f"t{at}", integers(0, 256, *shape))
        operands[at + 6] = case.constant(f"s{at}", np.float32(0.01 * at))
        operands[at + 11] = case.constant(f"z{at}", np.uint8(100 + at))
    case.node("QEmbedLayerNormalization", operands, ["output", "lengths"], "com.microsoft")
    case.write(folder, ["output"])


def convolution(folder, name, x, w, *, zeros=True, columns=False, bias=False, linear=True, **attributes):
    case = Case(f"convolution_{name}")
    filters = w.shape[0]
    case.input("x", x, ["batch", *x.shape[1:]])
    case.constant("w", w)
    w_zero = case.constant("w_zero", np.full(filters, 0, w.dtype) if columns else np.array(0 if w.dtype == np.int8 else 120, w.dtype))
    x_zero = case.constant("x_zero", np.array(9, x.dtype))
    if linear:
        scales = RANDOM.uniform(0.01, 0.05, filters).astype(np.float32) if columns else np.float32(0.02)
        operands = ["x", case.constant("x_scale", np.float32(0.03)), x_zero, "w", case.constant("w_scale", scales), w_zero,
                    case.constant("y_scale", np.float32(0.7)), case.constant("y_zero", np.uint8(100)),
                    case.constant("b", integers(-500, 500, filters, dtype=np.int32)) if bias else ""]
        case.node("QLinearConv", operands, ["bytes"], **attributes)
        return case.write(folder, ["bytes"])
    case.node("ConvInteger", ["x", "w"] + ([x_zero, w_zero] if zeros else []), ["integers"], **attributes)
    case.write(folder, ["integers"])


def all_quantised(folder):
    # ONNX Runtime's kernel for CPUs normalises whether asked or not.
    normalised = dict(normalize_routing_weights=1)
    quantised_experts(folder, "four", 4, k=2, activation_type="silu", **normalised)
    quantised_experts(folder, "eight_biased", 8, bias=True, k=2, activation_type="gelu", **normalised)
    quantised_experts(folder, "blocks", 4, block=16, k=2, activation_type="silu", **normalised)
    quantised_experts(folder, "zero_points", 4, block=16, zeros=True, k=2, activation_type="relu", **normalised)
    gated = dict(k=2, activation_type="swiglu", swiglu_fusion=1, normalize_routing_weights=1)
    quantised_experts(folder, "gated", 4, block=16, fused=2, bias=True, **gated)
    quantised_attention(folder, "plain")
    quantised_attention(folder, "causal", unidirectional=1, kind=np.int8)
    quantised_attention(folder, "masked", mask=True)
    quantised_attention(folder, "past", past=4, unidirectional=1)
    quantised_attention(folder, "columns", columns=True)
    quantised_embeddings(folder, "segments")
    quantised_embeddings(folder, "words_only", segments=False)
    case = Case("simple_quantised_where")
    operands = [case.input("condition", RANDOM.random((2, 3, 8)) < 0.5)]
    for n, scale, zero in (("x", 0.02, 120), ("y", 0.05, 7)):
        operands += [case.input(n, integers(0, 256, 3, 8) if n == "y" else integers(0, 256, 2, 3, 8)),
                     case.constant(f"{n}_scale", np.float32(scale)), case.constant(f"{n}_zero", np.uint8(zero))]
    operands += [case.constant("z_scale", np.float32(0.04)), case.constant("z_zero", np.uint8(90))]
    case.node("QLinearWhere", operands, ["bytes"], "com.microsoft")
    case.write(folder, ["bytes"])
    # Packed zero points are left out by ONNX Runtime where columns have groups of their own.
    for name, groups in (("neighbours", np.arange(64) // 16), ("shuffled", RANDOM.permutation(np.arange(64) // 16))):
        case = Case(f"simple_grouped_columns_{name}")
        operands = [case.input("x", floats(3, 64)), case.constant("w", integers(0, 256, 5, 4, 8)),
                    case.constant("s", RANDOM.uniform(0.01, 0.1, (5 * 4)).astype(np.float32)), "",
                    case.constant("g_idx", groups.astype(np.int32))]
        case.node("MatMulNBits", operands, ["output"], "com.microsoft", K=64, N=5, bits=4, block_size=16)
        case.write(folder, ["output"])
    signed = integers(-128, 128, 6, 4, 3, 3, dtype=np.int8)
    picture = integers(0, 256, 2, 4, 6, 7)
    convolution(folder, "linear", picture, signed, bias=True, pads=[1, 1, 1, 1])
    convolution(folder, "linear_columns", picture, signed, columns=True, bias=True, strides=[2, 1], dilations=[1, 2])
    convolution(folder, "linear_patches", integers(0, 256, 2, 4, 6, 9), signed, strides=[3, 3])
    convolution(folder, "linear_groups", picture, integers(0, 256, 6, 2, 3, 3), group=2)
    convolution(folder, "linear_line", integers(0, 256, 2, 4, 9), integers(-128, 128, 5, 4, 3, dtype=np.int8), pads=[1, 1], strides=[2])
    convolution(folder, "integer", picture, signed, linear=False, pads=[0, 1, 2, 1])
    convolution(folder, "integer_without_zeros", picture, integers(0, 256, 6, 2, 3, 2), linear=False, zeros=False, group=2)


def main():
    folder = pathlib.Path(sys.argv[1])
    for family in (all_grouped, all_multi_head, all_attention, all_rotary, all_norms, all_embeddings, all_simple, all_experts, all_quantised):
        family(folder)
    print(f"{len(list(folder.iterdir()))} cases")


main()
