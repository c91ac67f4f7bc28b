//! What is written means what the graph means; files are whole or untouched.

use std::collections::BTreeMap;
use std::path::Path;

use prost::Message;
use snlp_passes::eval::eval_graph;
use snlp_passes::ir::{
    Binary, Correction, CorrectionForm, DType, Dim, Graph, Op, Tensor, Type, Unary, ValueId,
};

use crate::onnx::proto::ModelProto;
use crate::onnx::testing::*;
use crate::onnx::{ErrorKind, Model, ModelInfo, WriteOptions};

const PLAIN: WriteOptions = WriteOptions { external_data: false, inline: false };

fn model_of(graph: Graph, opset: i64) -> Model {
    Model {
        graph,
        info: ModelInfo { ir_version: 8, opsets: vec![(String::new(), opset)], ..ModelInfo::default() },
    }
}

fn ramp(shape: &[usize], seed: f32) -> Tensor {
    let n: usize = shape.iter().product();
    Tensor::from_vec(shape.to_vec(), (0..n).map(|i| (i as f32 * 0.37 + seed).sin()).collect()).unwrap()
}

fn run(graph: &Graph, inputs: &[Tensor]) -> Vec<Tensor> {
    let feed: BTreeMap<ValueId, Tensor> =
        graph.inputs().iter().copied().zip(inputs.iter().cloned()).collect();
    eval_graph(graph, &feed).unwrap()
}

fn assert_same(a: &[Tensor], b: &[Tensor], what: &str) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert_eq!((a.shape(), a.dtype()), (b.shape(), b.dtype()), "{what}");
        for (x, y) in a.to_f64().iter().zip(b.to_f64()) {
            assert!((x - y).abs() < 1e-4, "{what}: {x} instead of {y}");
        }
    }
}

/// The model as written and read again.
fn again(model: &Model) -> Model {
    Model::decode(model.encode(&PLAIN).unwrap(), Path::new(".")).unwrap()
}

#[test]
fn sizes_are_computed_from_the_inputs() {
    let (b, t, p) = (Dim::symbol("b"), Dim::symbol("t"), Dim::symbol("past"));
    let n = |i: i64| Dim::from(i);
    let dims = vec![
        b.clone() * t.clone(),
        p.clone() + t.clone(),
        n(7),
        n(3) * t.clone() - n(2),
        (t.clone() - n(9)).floor_div(&n(4)).unwrap(),
        t.modulo(&n(3)).unwrap(),
        t.minimum(&p),
        t.maximum(&(b.clone() + n(1))),
        n(5) - p.clone(),
    ];
    for opset in [11, 13, 18] {
        let mut g = Graph::new("g");
        g.add_input("x", Type::new(DType::F32, vec![b.clone(), t.clone()]));
        // No axis is `past` alone: it follows from the sum.
        g.add_input("mask", Type::new(DType::F32, vec![p.clone() + t.clone()]));
        let all = g.dims(&dims).unwrap();
        g.add_output("all", all);
        let one = g.dims(&dims[..1]).unwrap();
        g.add_output("one", one);
        let scalar = g.dim_scalar(&dims[3]).unwrap();
        g.add_output("scalar", scalar);
        let model = model_of(g, opset);
        let inputs = [ramp(&[2, 5], 0.0), ramp(&[8], 0.0)];
        let expected = run(&model.graph, &inputs);
        assert_eq!(expected[0].to_i64().unwrap(), [10, 8, 7, 13, -1, 2, 3, 5, 2]);
        assert_same(&run(&again(&model).graph, &inputs), &expected, "sizes");
    }
}

#[test]
fn sizes_that_no_input_has_are_refused() {
    let mut g = Graph::new("g");
    g.add_input("x", Type::new(DType::F32, vec![Dim::symbol("t")]));
    let v = g.dims(&[Dim::symbol("elsewhere")]).unwrap();
    g.add_output("y", v);
    let e = model_of(g, 17).encode(&PLAIN).err().unwrap();
    assert_eq!(e.kind(), ErrorKind::Unsupported);
    assert!(e.to_string().contains("'elsewhere'"), "{e}");
}

#[test]
fn outputs_may_be_anything() {
    let mut g = Graph::new("g");
    let x = g.add_input("x", Type::new(DType::F32, vec![Dim::symbol("t")]));
    let w = g.named_constant("w", ramp(&[2], 1.0));
    let y = g.add(Op::Unary(Unary::Neg), &[x]).unwrap();
    for (name, v) in [("x", x), ("copy", x), ("constant", w), ("y", y), ("again", y)] {
        g.add_output(name, v);
    }
    let model = model_of(g, 17);
    let read = again(&model);
    let names: Vec<_> = read.graph.outputs.iter().map(|o| o.name.as_str()).collect();
    assert_eq!(names, ["x", "copy", "constant", "y", "again"]);
    let inputs = [ramp(&[3], 0.0)];
    assert_same(&run(&read.graph, &inputs), &run(&model.graph, &inputs), "outputs");
}

#[test]
fn clashing_names_are_told_apart() {
    let mut g = Graph::new("g");
    let x = g.add_input("x", Type::new(DType::F32, vec![2i64.into()]));
    let a = g.named_constant("x", ramp(&[2], 1.0));
    let b = g.named_constant("y", ramp(&[2], 2.0));
    let first = g.add_named("n", Op::Binary(Binary::Add), &[x, a]).unwrap();
    let second = g.add_named("n", Op::Binary(Binary::Mul), &[first, b]).unwrap();
    g.set_name(first, "y");
    g.add_output("y", second);
    let model = model_of(g, 17);
    let inputs = [ramp(&[2], 0.0)];
    assert_same(&run(&again(&model).graph, &inputs), &run(&model.graph, &inputs), "names");
    let proto = ModelProto::decode(model.encode(&PLAIN).unwrap()).unwrap().graph.unwrap();
    let mut names: Vec<_> = proto.node.iter().map(|n| n.name().to_string()).collect();
    names.sort();
    assert_eq!(names, ["n", "n_1"]);
}

#[test]
fn captured_names_follow_their_values() {
    let branch = |name: &str, op: &str| {
        let m = model(17, vec![node(op, "h", "r", vec![])], vec![]);
        let mut graph = m.graph.unwrap();
        graph.input.clear();
        graph.output[0].name = Some("r".into());
        crate::onnx::proto::AttributeProto {
            name: Some(name.into()),
            r#type: Some(crate::onnx::proto::attribute_proto::AttributeType::Graph as i32),
            g: Some(graph),
            ..Default::default()
        }
    };
    let branches = vec![branch("then_branch", "Relu"), branch("else_branch", "Neg")];
    let to_bool = vec![int("to", crate::onnx::proto::tensor_proto::DataType::Bool as i64)];
    let nodes =
        vec![node("Exp", "x", "h", vec![]), node("Cast", "x", "c", to_bool), node("If", "c", "y", branches)];
    let mut read = import(&model(17, nodes, vec![])).unwrap();
    let h = read.graph.nodes().find(|(_, n)| n.op == Op::Unary(Unary::Exp)).unwrap().1.outputs[0];
    read.graph.set_name(h, "renamed");
    let written = again(&read);
    let conditional = written.graph.producing(written.graph.outputs[0].value).unwrap();
    assert!(matches!(&conditional.op, Op::Opaque(o) if o.captures == ["renamed"]), "{:?}", conditional.op);
}

/// A correction of three units `[3, 2, S, 5]` with `t` as an input, when there is one.
fn corrected(op: Correction, shared: bool) -> (Graph, Vec<Tensor>) {
    let streams = match op.form {
        CorrectionForm::Linear { streams, .. } => streams as usize,
        CorrectionForm::Prefix | CorrectionForm::Scan { .. } => 1,
    };
    let shape = [3, 2, streams.max(2), 5];
    let s_shape = if shared { &shape[1..] } else { &shape[..] };
    let mut g = Graph::new("g");
    let mut inputs = vec![ramp(&shape, 0.3), ramp(s_shape, 1.7)];
    match op.form {
        CorrectionForm::Prefix => {}
        CorrectionForm::Linear { .. } => inputs.push(ramp(&[3 * streams, 3 * streams], 2.5)),
        CorrectionForm::Scan { .. } => inputs.push(ramp(&[3, 2, 2, 2], 2.5)),
    }
    let values: Vec<ValueId> = inputs
        .iter()
        .enumerate()
        .map(|(i, t)| {
            let dims = t.shape().iter().enumerate().map(|(a, n)| match (i, a) {
                (0 | 1, a) if a + 1 == t.shape().len() => Dim::symbol("width"),
                _ => Dim::from(*n),
            });
            g.add_input(&format!("in{i}"), Type::new(DType::F32, dims.collect()))
        })
        .collect();
    let y = g.add_named("correct", Op::Correction(op), &values).unwrap();
    g.add_output("y", y);
    (g, inputs)
}

#[test]
fn correction_functions_compute_the_correction() {
    for last_only in [false, true] {
        for shared in [false, true] {
            for form in [
                CorrectionForm::Prefix,
                CorrectionForm::Linear { streams: 1, stream_axis: 1 },
                CorrectionForm::Linear { streams: 4, stream_axis: 2 },
                CorrectionForm::Scan { stream_axis: 2 },
                CorrectionForm::Scan { stream_axis: 1 },
            ] {
                for opset in [12, 17] {
                    let op = Correction { form, last_only };
                    let (graph, inputs) = corrected(op, shared);
                    let model = model_of(graph, opset);
                    let expected = run(&model.graph, &inputs);
                    let what = format!("{op:?} shared {shared} opset {opset}");
                    let bytes = model.encode(&PLAIN).unwrap();
                    let read = Model::decode(bytes.clone(), Path::new(".")).unwrap();
                    assert!(read.graph.nodes().any(|(_, n)| n.op == Op::Correction(op)), "{what}");
                    // Under another domain it is an ordinary function, which is inlined.
                    let mut proto = ModelProto::decode(bytes).unwrap();
                    let domain = || Some("elsewhere".to_string());
                    proto.opset_import[1].domain = domain();
                    proto.functions[0].domain = domain();
                    proto.graph.as_mut().unwrap().node[0].domain = domain();
                    let inlined = import(&proto).unwrap();
                    assert!(inlined.graph.node_count() >= 3);
                    assert_same(&run(&inlined.graph, &inputs), &expected, &what);
                    let plain = model.encode(&WriteOptions { inline: true, ..PLAIN }).unwrap();
                    assert!(ModelProto::decode(plain.clone()).unwrap().functions.is_empty());
                    let plain = Model::decode(plain, Path::new(".")).unwrap();
                    assert_same(&run(&plain.graph, &inputs), &expected, &what);
                }
            }
        }
    }
}

fn weighty() -> Model {
    let mut g = Graph::new("g");
    let x = g.add_input("x", Type::new(DType::F32, vec![Dim::symbol("t"), 32i64.into()]));
    let w = Tensor::stack(&[ramp(&[32, 8], 0.1), ramp(&[32, 8], 0.2)]).unwrap();
    let w = g.named_constant("w", w);
    let bias = g.named_constant("bias", ramp(&[8], 0.5));
    let y = g.add(Op::MatMul, &[x, w]).unwrap();
    let y = g.add(Op::Binary(Binary::Add), &[y, bias]).unwrap();
    g.add_output("y", y);
    model_of(g, 17)
}

#[test]
fn external_data_is_written_and_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let model = weighty();
    let written = model.write(&path, &WriteOptions { external_data: true, ..PLAIN }).unwrap();
    assert_eq!(written.data.as_deref(), Some(folder.path().join("m.onnx.data").as_path()));
    let mut names: Vec<_> = folder.path().read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["m.onnx", "m.onnx.data"]);
    let read = Model::read(&path).unwrap();
    let x = [ramp(&[3, 32], 0.0)];
    assert_same(&run(&read.graph, &x), &run(&model.graph, &x), "external data");
    // Over itself: the old files stay mapped while the new ones are written.
    read.write(&path, &WriteOptions { external_data: true, ..PLAIN }).unwrap();
    assert_same(&run(&Model::read(&path).unwrap().graph, &x), &run(&model.graph, &x), "rewritten");
}

#[test]
fn large_models_take_external_data_by_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let piece = ramp(&[256, 32], 0.1);
    let mut g = Graph::new("g");
    let x = g.add_input("x", Type::new(DType::F32, vec![Dim::symbol("t"), 256i64.into()]));
    // Stacked without copying; beyond the limit that tests run under.
    let w = g.named_constant("w", Tensor::stack(&vec![piece; 40]).unwrap());
    let y = g.add(Op::MatMul, &[x, w]).unwrap();
    g.add_output("y", y);
    let model = model_of(g, 17);
    assert_eq!(model.encode(&PLAIN).err().map(|e| e.kind()), Some(ErrorKind::Unsupported));
    let path = folder.path().join("m.onnx");
    let written = model.write(&path, &PLAIN).unwrap();
    assert!(written.data.is_some() && written.bytes > 1 << 20);
    let x = [ramp(&[2, 256], 0.0)];
    assert_same(&run(&Model::read(&path).unwrap().graph, &x), &run(&model.graph, &x), "large");
}

#[test]
fn external_data_outside_of_the_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let path = inner.join("m.onnx");
    weighty().write(&path, &WriteOptions { external_data: true, ..PLAIN }).unwrap();
    std::fs::rename(inner.join("m.onnx.data"), folder.path().join("secret")).unwrap();
    let original = std::fs::read(&path).unwrap();
    let at = |location: &str| {
        let mut proto = ModelProto::decode(&original[..]).unwrap();
        let tensors = &mut proto.graph.as_mut().unwrap().initializer;
        let external = tensors.iter_mut().find(|t| !t.external_data.is_empty()).unwrap();
        external.external_data[0].value = Some(location.into());
        std::fs::write(&path, proto.encode_to_vec()).unwrap();
        Model::read(&path).err().map(|e| (e.kind(), format!("{e:?}")))
    };
    let absolute = folder.path().join("secret").to_string_lossy().into_owned();
    let mut outside = vec!["../secret".to_string(), "../inner/../secret".into(), absolute];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(folder.path().join("secret"), inner.join("link")).unwrap();
        outside.push("link".into());
    }
    for location in outside {
        let (kind, text) = at(&location).unwrap();
        assert_eq!(kind, ErrorKind::Invalid, "{text}");
        assert!(text.contains("outside of the model's folder") && text.contains("'w'"), "{text}");
    }
    std::fs::create_dir(inner.join("folder")).unwrap();
    for location in ["missing", "folder", "missing/deeper", &"long".repeat(100)] {
        let (kind, text) = at(location).unwrap();
        assert!(kind == ErrorKind::Invalid && text.contains(&location[..4]), "{text}");
    }
    std::fs::write(inner.join("short"), [0; 100]).unwrap();
    let (kind, text) = at("short").unwrap();
    assert!(kind == ErrorKind::Invalid && text.contains("has 100 bytes"), "{text}");
    std::fs::copy(folder.path().join("secret"), inner.join("here")).unwrap();
    assert_eq!(at("./here"), None);
}

#[test]
fn a_failed_write_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    std::fs::write(&path, "old").unwrap();
    let mut model = weighty();
    model.info.opsets = vec![(String::new(), 99)];
    assert_eq!(model.write(&path, &PLAIN).err().map(|e| e.kind()), Some(ErrorKind::Unsupported));
    // The data file's name is taken by a folder.
    std::fs::create_dir(folder.path().join("m.onnx.data")).unwrap();
    let external = WriteOptions { external_data: true, ..PLAIN };
    assert_eq!(weighty().write(&path, &external).err().map(|e| e.kind()), Some(ErrorKind::Io));
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(folder.path().read_dir().unwrap().count(), 2);
    let nowhere = folder.path().join("no/such/m.onnx");
    assert_eq!(weighty().write(&nowhere, &PLAIN).err().map(|e| e.kind()), Some(ErrorKind::Io));
    weighty().write(&path, &PLAIN).unwrap();
    assert!(Model::read(&path).is_ok());
}
