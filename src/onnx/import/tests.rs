//! Errors with their places; functions, branches and captures.

use std::path::Path;

use prost::Message;
use snlp_passes::eval::eval_graph;
use snlp_passes::ir::{DType, Dim, Op, Tensor, Type};

use crate::onnx::attributes;
use crate::onnx::proto::attribute_proto::AttributeType;
use crate::onnx::proto::tensor_proto::DataType;
use crate::onnx::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto,
    ValueInfoProto,
};
use crate::onnx::testing::*;
use crate::onnx::{ErrorKind, Model};

fn check(model: &ModelProto, kind: ErrorKind, parts: &[&str]) {
    let text = error(model);
    assert_eq!(import(model).err().unwrap().kind(), kind, "{text}");
    for part in parts {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
}

fn invalid(model: &ModelProto, parts: &[&str]) {
    check(model, ErrorKind::Invalid, parts);
}

fn one(op: &str, inputs: &str, attribute: Vec<AttributeProto>) -> ModelProto {
    model(17, vec![node(op, inputs, "y", attribute)], vec![("w", Tensor::scalar(2f32))])
}

#[test]
fn what_is_no_model_is_refused() {
    let read = |bytes: &[u8]| Model::decode(bytes.to_vec().into(), Path::new("."));
    let text = |bytes: &[u8]| format!("{:?}", read(bytes).err().unwrap());
    assert!(text(b"").contains("empty"));
    assert!(text(b"version https://git-lfs.github.com/spec/v1\noid").contains("git lfs pull"));
    assert!(text(b"%PDF-1.7 and so on").contains("not an ONNX model"));
    let whole = one("Relu", "x", vec![]).encode_to_vec();
    for end in 1..whole.len() {
        assert_eq!(read(&whole[..end]).err().map(|e| e.kind()), Some(ErrorKind::Invalid), "cut at {end}");
    }
    assert!(read(&whole).is_ok());
    let no_graph = ModelProto { graph: None, ..one("Relu", "x", vec![]) };
    invalid(&no_graph, &["holds no graph"]);
}

#[test]
fn files_that_cannot_be_read_are_io_errors() {
    for path in ["/nonexistent/model.onnx", "/"] {
        let e = Model::read(path).err().unwrap();
        assert_eq!(e.kind(), ErrorKind::Io);
        assert!(e.to_string().contains(path) && std::error::Error::source(&e).is_some());
    }
}

#[test]
fn versions_of_the_format_begin_with_1_and_do_not_end() {
    let of = |version: Option<i64>| ModelProto { ir_version: version, ..one("Relu", "x", vec![]) };
    for version in [None, Some(0), Some(-1)] {
        invalid(&of(version), &["IR version"]);
    }
    for version in [1, 99] {
        assert_eq!(import(&of(Some(version))).unwrap().info.ir_version, version);
    }
}

#[test]
fn opsets_outside_of_the_range_are_named() {
    for version in [6, 29, 99] {
        let m = model(version, vec![node("Relu", "x", "y", vec![])], vec![]);
        check(&m, ErrorKind::Unsupported, &[&format!("opset {version}"), "7 to 28"]);
    }
    let none = ModelProto { opset_import: vec![], ..one("Relu", "x", vec![]) };
    invalid(&none, &["imports no operator set"]);
    let other = ModelProto { opset_import: vec![opset("ai.onnx.ml", 3)], ..one("Relu", "x", vec![]) };
    check(&other, ErrorKind::Unsupported, &["no version of the standard operator set"]);
    let alias = ModelProto { opset_import: vec![opset("ai.onnx", 17)], ..one("ai.onnx::Relu", "x", vec![]) };
    assert_eq!(operators(&import(&alias).unwrap()), ["Relu"]);
    let twice = |a: &str, v: i64, b: &str, w: i64| ModelProto {
        opset_import: vec![opset("", 17), opset(a, v), opset(b, w)],
        ..one("Relu", "x", vec![])
    };
    invalid(&twice("ai.onnx", 18, "com.example", 1), &["versions 17 and 18 of the standard operator set"]);
    invalid(&twice("com.example", 1, "com.example", 2), &["versions 1 and 2 of com.example"]);
    assert!(import(&twice("ai.onnx", 17, "com.example", 1)).is_ok(), "the same version twice is no matter");
    let foreign = one("com.example::Thing", "x", vec![]);
    invalid(&foreign, &["com.example", "imports no version", "Thing_y"]);
}

#[test]
fn names_must_be_defined_once_and_before_use() {
    invalid(&one("Relu", "z", vec![]), &["node 'Relu_y' (Relu)", "reads 'z'", "nothing defines"]);
    let twice = model(17, vec![node("Relu", "x", "y", vec![]), node("Neg", "x", "y", vec![])], vec![]);
    invalid(&twice, &["'y' is defined twice"]);
    let shadow = model(17, vec![node("Relu", "x", "x", vec![])], vec![]);
    invalid(&shadow, &["cycle"]);
    let cycle = model(17, vec![node("Add", "x b", "y", vec![]), node("Relu", "y", "b", vec![])], vec![]);
    invalid(&cycle, &["cycle", "Add_y"]);
    let no_output = model(17, vec![node("Relu", "x", "z", vec![])], vec![]);
    invalid(&no_output, &["graph output 'y'", "defined by no node"]);
    let mut repeated = one("Relu", "x", vec![]);
    let graph = repeated.graph.as_mut().unwrap();
    graph.output.push(graph.output[0].clone());
    invalid(&repeated, &["graph output 'y'", "twice"]);
    let mut empty = one("Relu", "x", vec![]);
    empty.graph.as_mut().unwrap().output.clear();
    invalid(&empty, &["no outputs"]);
}

#[test]
fn nodes_may_stand_in_any_order() {
    let nodes =
        vec![node("Neg", "b", "y", vec![]), node("Exp", "a", "b", vec![]), node("Relu", "x", "a", vec![])];
    assert_eq!(operators(&import(&model(17, nodes, vec![])).unwrap()), ["Relu", "Exp", "Neg"]);
}

#[test]
fn attributes_and_operands_are_checked() {
    invalid(&one("Add", "x", vec![]), &["Add_y", "lacks operand 1"]);
    invalid(&one("Concat", "x x", vec![]), &["Concat_y", "lacks the attribute 'axis'"]);
    invalid(&one("Concat", "x x", vec![attributes::float("axis", 1.0)]), &["of type FLOAT, not INT"]);
    invalid(&one("Concat", "x x", vec![int("axis", 2)]), &["axis 2 is outside of rank 2"]);
    invalid(&one("Transpose", "x", vec![attributes::ints("perm", &[0, 0])]), &["repeat"]);
    invalid(&one("Transpose", "x", vec![attributes::ints("perm", &[0, 1, 2])]), &["Transpose_y"]);
    let two = node("Relu", "x", "a b", vec![]);
    invalid(&model(17, vec![two.clone(), node("Neg", "b", "y", vec![])], vec![]), &["has no result 1"]);
    // A result that nothing reads may be named: old exporters name the mask of every Dropout.
    let unread =
        model(17, vec![node("Dropout", "x", "a mask", vec![]), node("Neg", "a", "y", vec![])], vec![]);
    assert_eq!(operators(&import(&unread).unwrap()), ["Identity", "Neg"]);
    let shape =
        |v: &[i64]| model(17, vec![node("Reshape", "x s", "y", vec![])], vec![("s", Tensor::ints(v))]);
    invalid(&shape(&[-1, -1]), &["two entries of -1"]);
    invalid(&shape(&[-2, 4]), &["-2"]);
    invalid(&shape(&[0, 0, 0]), &["copies axis 2"]);
}

#[test]
fn inputs_and_tensors_of_other_types_are_unsupported() {
    let mut m = one("Relu", "x", vec![]);
    m.graph.as_mut().unwrap().input[0].r#type = None;
    invalid(&m, &["graph input 'x'", "no type"]);
    let tensor = |t: TensorProto| {
        let mut m = one("Relu", "x", vec![]);
        m.graph.as_mut().unwrap().initializer.push(t);
        m
    };
    let named = TensorProto { name: Some("t".into()), dims: vec![2], ..TensorProto::default() };
    let float8 = TensorProto { data_type: Some(DataType::Float8e5m2 as i32), ..named.clone() };
    check(&tensor(float8), ErrorKind::Unsupported, &["tensor 't'", "FLOAT8E5M2"]);
    let typed = |ty: DataType| TensorProto { data_type: Some(ty as i32), ..named.clone() };
    invalid(&tensor(typed(DataType::Float)), &["tensor 't'", "needs 8 bytes but has 0"]);
    let negative = TensorProto { dims: vec![-3], ..typed(DataType::Float) };
    invalid(&tensor(negative), &["dimension of -3"]);
    let huge = TensorProto { dims: vec![i64::MAX, i64::MAX], ..typed(DataType::Float) };
    invalid(&tensor(huge), &["too large"]);
    let wide = TensorProto { int32_data: vec![1, 300], ..typed(DataType::Uint8) };
    invalid(&tensor(wide), &["does not fit u8"]);
    let mut sparse = one("Relu", "x", vec![]);
    let values = SparseTensorProto { values: Some(named), ..SparseTensorProto::default() };
    sparse.graph.as_mut().unwrap().sparse_initializer.push(values);
    check(&sparse, ErrorKind::Unsupported, &["sparse", "tensor 't'"]);
}

#[test]
fn tensors_are_read_from_typed_fields() {
    let t = |ty: DataType| TensorProto {
        name: Some("t".into()),
        dims: vec![2],
        data_type: Some(ty as i32),
        ..TensorProto::default()
    };
    let cases = [
        (TensorProto { int32_data: vec![0x3c00, 0xc000], ..t(DataType::Float16) }, [1.0, -2.0]),
        (TensorProto { int32_data: vec![0x3f80, 0xc000], ..t(DataType::Bfloat16) }, [1.0, -2.0]),
        (TensorProto { int32_data: vec![0, 7], ..t(DataType::Bool) }, [0.0, 1.0]),
        (TensorProto { int32_data: vec![-128, 127], ..t(DataType::Int8) }, [-128.0, 127.0]),
        (TensorProto { int64_data: vec![-1, 5], ..t(DataType::Int64) }, [-1.0, 5.0]),
        (TensorProto { uint64_data: vec![1, 5], ..t(DataType::Uint32) }, [1.0, 5.0]),
        (TensorProto { double_data: vec![0.5, 2.0], ..t(DataType::Double) }, [0.5, 2.0]),
        (TensorProto { float_data: vec![0.5, 2.0], ..t(DataType::Float) }, [0.5, 2.0]),
    ];
    for (tensor, expected) in cases {
        let constant = node("Constant", "", "y", vec![attributes::tensor("value", tensor)]);
        let m = import(&model(17, vec![constant], vec![])).unwrap();
        assert_eq!(m.graph.tensor(m.graph.outputs[0].value).unwrap().to_f64(), expected);
    }
}

#[test]
fn unknown_operators_are_carried_through() {
    let mut m = one("com.example::Thing", "x _ x", vec![int("n", 3)]);
    m.opset_import.push(opset("com.example", 1));
    m.graph.as_mut().unwrap().output[0] = float("y", "batch 8");
    let m = import(&m).unwrap();
    let node = m.graph.producing(m.graph.outputs[0].value).unwrap();
    assert!(matches!(&node.op, Op::Opaque(o) if o.op_type == "Thing" && o.attributes.len() == 1));
    assert_eq!((node.inputs.len(), node.input(1)), (3, None));
    let expected = Type::new(DType::F32, vec![Dim::symbol("batch"), 8i64.into()]);
    assert_eq!(m.graph.ty(m.graph.outputs[0].value), Some(&expected));
}

fn function(name: &str, nodes: Vec<NodeProto>) -> FunctionProto {
    FunctionProto {
        name: Some(name.into()),
        domain: Some("local".into()),
        input: vec!["a".into(), "b".into()],
        output: vec!["c".into()],
        attribute: vec!["slope".into()],
        node: nodes,
        opset_import: vec![opset("", 17), opset("local", 1)],
        ..FunctionProto::default()
    }
}

fn with_functions(mut m: ModelProto, functions: Vec<FunctionProto>) -> ModelProto {
    m.opset_import.push(opset("local", 1));
    m.functions = functions;
    m
}

#[test]
fn functions_are_inlined() {
    let alpha = AttributeProto {
        name: Some("alpha".into()),
        r#type: Some(AttributeType::Float as i32),
        ref_attr_name: Some("slope".into()),
        ..AttributeProto::default()
    };
    let inner = function("Inner", vec![node("LeakyRelu", "a", "c", vec![alpha.clone()])]);
    let pass_on = AttributeProto { name: Some("slope".into()), ..alpha };
    // An absent operand of the call is an absent operand of the Clip.
    let nodes = vec![node("local::Inner", "a", "t", vec![pass_on]), node("Clip", "t b", "c", vec![])];
    let outer = function("Outer", nodes);
    for (slope, expected) in [(vec![attributes::float("slope", 0.5)], -1.0), (vec![], -0.02)] {
        let m = with_functions(one("local::Outer", "x", slope), vec![inner.clone(), outer.clone()]);
        let m = import(&m).unwrap();
        assert_eq!(operators(&m), ["LeakyRelu", "Clip"]);
        let x = Tensor::from_vec(vec![1, 4], vec![-2f32; 4]).unwrap();
        let y = eval_graph(&m.graph, &[(m.graph.inputs()[0], x)].into()).unwrap();
        assert!((y[0].to_f64()[0] - expected).abs() < 1e-6);
    }
}

#[test]
fn recursive_and_exploding_functions_end() {
    let f = function("F", vec![node("local::F", "a", "c", vec![])]);
    invalid(&with_functions(one("local::F", "x", vec![]), vec![f]), &["deep", "recursive"]);
    let doubling = |i: usize| {
        let call = format!("local::F{}", i + 1);
        function(&format!("F{i}"), vec![node(&call, "a", "t", vec![]), node(&call, "t", "c", vec![])])
    };
    let mut all: Vec<_> = (0..40).map(doubling).collect();
    all.push(function("F40", vec![node("Relu", "a", "c", vec![])]));
    let m = with_functions(one("local::F0", "x", vec![]), all);
    check(&m, ErrorKind::Unsupported, &["nodes after inlining"]);
}

fn branch(name: &str, op: &str, reads: &str) -> AttributeProto {
    let graph = GraphProto {
        name: Some(name.into()),
        node: vec![node(op, reads, "r", vec![])],
        output: vec![ValueInfoProto { name: Some("r".into()), ..ValueInfoProto::default() }],
        ..GraphProto::default()
    };
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Graph as i32),
        g: Some(graph),
        ..AttributeProto::default()
    }
}

#[test]
fn branches_with_a_constant_condition_are_inlined() {
    let branches = || vec![branch("then_branch", "Relu", "x"), branch("else_branch", "Neg", "x")];
    for (flag, expected) in [(true, "Relu"), (false, "Neg")] {
        let condition = Tensor::from_bools(vec![], &[!flag]).unwrap();
        let nodes = vec![node("Not", "f", "c", vec![]), node("If", "c", "y", branches())];
        let m = import(&model(17, nodes, vec![("f", condition)])).unwrap();
        assert_eq!(operators(&m), ["Not", expected]);
    }
}

#[test]
fn branches_with_a_condition_on_known_sizes_are_inlined() {
    let branches = vec![branch("then_branch", "Relu", "x"), branch("else_branch", "Neg", "x")];
    let nodes = vec![
        node("Shape", "x", "s", vec![]),
        node("ReduceMax", "s", "m", vec![int("keepdims", 0)]),
        node("Equal", "m m", "c", vec![]),
        node("If", "c", "y", branches),
    ];
    let m = import(&model(17, nodes, vec![])).unwrap();
    assert_eq!(operators(&m).last().map(String::as_str), Some("Relu"));
}

#[test]
fn sizes_that_come_from_constant_floats_are_known() {
    let nodes = vec![node("Sqrt", "n", "root", vec![]), node("Range", "zero root one", "y", vec![])];
    let constants =
        vec![("n", Tensor::scalar(9f32)), ("zero", Tensor::scalar(0f32)), ("one", Tensor::scalar(1f32))];
    let m = import(&model(17, nodes, constants)).unwrap();
    assert_eq!(m.graph.shape(m.graph.outputs[0].value).unwrap(), [Dim::from(3usize)]);
}

#[test]
fn other_branches_capture_outer_values() {
    let condition = node("Cast", "x", "c", vec![int("to", DataType::Bool as i64)]);
    let branches = vec![branch("then_branch", "Relu", "h"), branch("else_branch", "Add", "h x")];
    let nodes = vec![node("Exp", "x", "h", vec![]), condition, node("If", "c", "y", branches)];
    let m = import(&model(17, nodes, vec![])).unwrap();
    let node = m.graph.producing(m.graph.outputs[0].value).unwrap();
    let Op::Opaque(o) = &node.op else { panic!("{:?}", node.op) };
    assert_eq!(o.captures, ["h", "x"]);
    assert_eq!(node.inputs.len(), 3);
}

#[test]
fn initializers_are_constants_even_as_inputs() {
    let mut m = one("Add", "x w", vec![]);
    m.graph.as_mut().unwrap().input.push(float("w", ""));
    let m = import(&m).unwrap();
    assert_eq!(m.graph.inputs().len(), 1);
}

#[test]
fn unnamed_sizes_get_symbols_of_their_own() {
    let mut m = one("Relu", "x", vec![]);
    m.graph.as_mut().unwrap().input = vec![float("x", "? 4"), float("z", "? past")];
    let m = import(&m).unwrap();
    let shapes: Vec<_> = m.graph.inputs().iter().map(|v| m.graph.shape(*v).unwrap()[0].clone()).collect();
    assert_ne!(shapes[0], shapes[1]);
}
