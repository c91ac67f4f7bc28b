//! How models are broken: bytes, and the messages that they stand for.

use fastrand::Rng;
use prost::Message;

use crate::proto::attribute_proto::AttributeType;
use crate::proto::tensor_shape_proto::{Dimension, dimension};
use crate::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto};
use crate::proto::{ValueInfoProto, type_proto};

/// Numbers at which sizes, axes and indices break.
const NUMBERS: [i64; 20] = [
    0,
    1,
    -1,
    2,
    -2,
    3,
    7,
    64,
    255,
    65_536,
    1 << 20,
    1 << 31,
    (1 << 31) - 1,
    1 << 32,
    -(1 << 31),
    1 << 40,
    1 << 62,
    i64::MAX,
    i64::MIN,
    i64::MAX - 1,
];

const FLOATS: [f32; 10] =
    [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MAX, f32::MIN_POSITIVE, 1e-45, -1.0, 1e30];

const OPERATORS: [&str; 44] = [
    "Add",
    "ArgMax",
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "Clip",
    "Concat",
    "ConstantOfShape",
    "Conv",
    "CumSum",
    "DepthToSpace",
    "DequantizeLinear",
    "Div",
    "Einsum",
    "Expand",
    "EyeLike",
    "Flatten",
    "Gather",
    "GatherElements",
    "GatherND",
    "Gemm",
    "If",
    "LayerNormalization",
    "MatMul",
    "MaxPool",
    "Mod",
    "NonZero",
    "OneHot",
    "Pad",
    "QuantizeLinear",
    "Range",
    "ReduceSum",
    "Reshape",
    "Resize",
    "ScatterND",
    "Shape",
    "Slice",
    "Softmax",
    "Split",
    "Squeeze",
    "Tile",
    "TopK",
    "Transpose",
    "Unsqueeze",
];

const NAMES: [&str; 8] = [
    "",
    "\n",
    "a\u{0}b",
    "../../up",
    "\u{1b}[31m",
    "snlp.state",
    "<script>alert(1)</script>",
    "\u{202e}\u{e9}",
];

const LOCATIONS: [&str; 9] = [
    "../secret.bin",
    "/etc/hostname",
    "/dev/zero",
    "/dev/stdin",
    ".",
    "",
    "no_such.bin",
    "a/../../secret.bin",
    "model.onnx",
];

/// Changes a few bytes of a file.
pub fn bytes(data: &mut Vec<u8>, r: &mut Rng) -> &'static str {
    if data.is_empty() {
        return "nothing";
    }
    let at = r.usize(..data.len());
    let span = |r: &mut Rng, len: usize| {
        let most = 1 + (1 << r.usize(..10));
        1 + r.usize(..(len - at).min(most))
    };
    match r.u8(..8) {
        0 | 1 => {
            for _ in 0..1 + r.usize(..4) {
                let at = r.usize(..data.len());
                data[at] ^= 1 << r.u8(..8);
            }
            "flipped bits"
        }
        2 => {
            data[at] = *r.choice([0, 1, 0x7f, 0x80, 0xff].iter()).unwrap();
            "an extreme byte"
        }
        3 => {
            data.truncate(at);
            "truncated"
        }
        4 => {
            let n = span(r, data.len());
            data.drain(at..at + n);
            "bytes left out"
        }
        5 => {
            let n = span(r, data.len());
            let copy = data[at..at + n].to_vec();
            let to = r.usize(..data.len());
            data.splice(to..to, copy);
            "bytes doubled"
        }
        6 => {
            let n = span(r, data.len());
            data[at..at + n].iter_mut().for_each(|b| *b = r.u8(..));
            "random bytes"
        }
        _ => {
            let mut varint = vec![];
            prost::encoding::encode_varint(*r.choice(NUMBERS.iter()).unwrap() as u64, &mut varint);
            data.splice(at..at + 1, varint);
            "an extreme varint"
        }
    }
}

/// Changes the structure of a model in one way; says which.
pub fn structure(model: &mut ModelProto, r: &mut Rng) -> &'static str {
    match r.u8(..20) {
        0 => {
            let entry = |key: &str, value: &str| StringStringEntryProto {
                key: Some(key.into()),
                value: Some(value.into()),
            };
            let value = *r.choice(["2xF1", "999xF999", "", "[", "sequential"].iter()).unwrap();
            model.metadata_props.push(entry("snlp.plan", value));
            model.metadata_props.push(entry(
                "snlp.chain",
                r.choice(["{}", "[[],{}]", "nul", "[{\"layers\":9},1]"].iter()).unwrap(),
            ));
            "metadata of a converted model"
        }
        1 => {
            if r.bool() {
                model.ir_version = Some(number(r));
            }
            if let Some(opset) = r.choice(model.opset_import.iter_mut()) {
                opset.version = Some(if r.bool() { r.i64(1..30) } else { number(r) });
            }
            "another version"
        }
        2 if !model.functions.is_empty() => {
            let callee = r.usize(..model.functions.len());
            let caller = r.usize(..model.functions.len());
            let (name, domain) =
                (model.functions[callee].name.clone(), model.functions[callee].domain.clone());
            match r.u8(..3) {
                0 => drop(model.functions.remove(callee)),
                1 => node(&mut model.functions[caller].node, r),
                _ => {
                    if let Some(n) = r.choice(model.functions[caller].node.iter_mut()) {
                        (n.op_type, n.domain) = (name, domain);
                    }
                }
            }
            "a broken function"
        }
        _ => match &mut model.graph {
            Some(g) => graph(g, r, 0),
            None => "nothing",
        },
    }
}

fn number(r: &mut Rng) -> i64 {
    *r.choice(NUMBERS.iter()).unwrap()
}

fn graph(g: &mut GraphProto, r: &mut Rng, depth: usize) -> &'static str {
    match r.u8(..20) {
        0 => match r.choice(g.initializer.iter_mut()) {
            Some(t) => tensor(t, r),
            None => "nothing",
        },
        1 | 2 => {
            // Small integer tensors are shapes, axes and indices.
            let small = g.initializer.iter_mut().filter(|t| t.data_type() == 7 || t.data_type() == 6);
            match r.choice(small.collect::<Vec<_>>()) {
                Some(t) => content(t, r),
                None => "nothing",
            }
        }
        3 => {
            if !g.initializer.is_empty() {
                g.initializer.remove(r.usize(..g.initializer.len()));
            }
            "a weight left out"
        }
        4 => {
            if let Some(t) = r.choice(g.initializer.iter()).cloned() {
                g.initializer.push(t);
            }
            "a weight given twice"
        }
        5 => {
            let all = [&mut g.input, &mut g.output, &mut g.value_info];
            let mut infos: Vec<&mut ValueInfoProto> = all.into_iter().flatten().collect();
            if !infos.is_empty() {
                let at = r.usize(..infos.len());
                value_info(infos[at], r);
            }
            "another declaration"
        }
        6 => {
            let list = if r.bool() { &mut g.input } else { &mut g.output };
            if !list.is_empty() {
                let at = r.usize(..list.len());
                if r.bool() {
                    list.remove(at);
                } else {
                    let copy = list[at].clone();
                    list.push(copy);
                }
            }
            "an input or output left out or doubled"
        }
        7 if !g.node.is_empty() => {
            let (a, b) = (r.usize(..g.node.len()), r.usize(..g.node.len()));
            g.node.swap(a, b);
            "another order"
        }
        8 if !g.node.is_empty() => {
            let (a, b) = (r.usize(..g.node.len()), r.usize(..g.node.len()));
            if let Some(name) = g.node[b].output.first().cloned()
                && let Some(input) = r.choice(g.node[a].input.iter_mut())
            {
                *input = name;
            }
            "another operand, maybe a cycle"
        }
        9 if depth < 3 => {
            let nested = g.node.iter_mut().flat_map(|n| &mut n.attribute).filter_map(|a| a.g.as_mut());
            match r.choice(nested.collect::<Vec<_>>()) {
                Some(inner) => graph(inner, r, depth + 1),
                None => "nothing",
            }
        }
        10 if depth < 3 && !g.node.is_empty() => {
            let at = r.usize(..g.node.len());
            let mut inner = g.clone();
            inner.initializer.clear();
            inner.node.truncate(8);
            let name = *r.choice(["then_branch", "else_branch", "body"].iter()).unwrap();
            let kind = Some(AttributeType::Graph as i32);
            g.node[at].attribute.push(AttributeProto {
                name: Some(name.into()),
                r#type: kind,
                g: Some(inner),
                ..Default::default()
            });
            "a graph inside a node"
        }
        11..=14 => {
            let lists = g.node.iter_mut().map(|n| &mut n.attribute).filter(|a| !a.is_empty());
            if let Some(list) = r.choice(lists.collect::<Vec<_>>())
                && let Some(a) = r.choice(list.iter_mut())
            {
                attribute(a, r);
            }
            "another attribute"
        }
        _ => {
            node(&mut g.node, r);
            "a broken node"
        }
    }
}

fn node(nodes: &mut Vec<NodeProto>, r: &mut Rng) {
    if nodes.is_empty() {
        return;
    }
    let at = r.usize(..nodes.len());
    let other = r.usize(..nodes.len());
    let known = nodes[other].clone();
    let n = &mut nodes[at];
    match r.u8(..14) {
        0 => drop(nodes.remove(at)),
        1 => {
            let copy = n.clone();
            nodes.push(copy);
        }
        2 if n.input.len() > 1 => {
            let (a, b) = (r.usize(..n.input.len()), r.usize(..n.input.len()));
            n.input.swap(a, b);
        }
        3 => {
            let name = *r.choice(NAMES.iter()).unwrap();
            if let Some(input) = r.choice(n.input.iter_mut()) {
                *input = name.into();
            }
        }
        4 => n.op_type = Some((*r.choice(OPERATORS.iter()).unwrap()).into()),
        5 => n.op_type = known.op_type,
        6 => n.domain = Some((*r.choice(["com.microsoft", "ai.snlp", "local", ""].iter()).unwrap()).into()),
        7 => match r.u8(..3) {
            0 => n.input.clear(),
            1 => n.input.extend(known.output),
            _ => drop(n.input.pop()),
        },
        8 => match r.u8(..3) {
            0 => n.output.clear(),
            1 => n.output = known.output,
            _ => n.output.push("one more".into()),
        },
        9 => n.name = Some((*r.choice(NAMES.iter()).unwrap()).into()),
        10 => n.attribute.clear(),
        11 => {
            let names = [
                "axis",
                "axes",
                "perm",
                "to",
                "group",
                "pads",
                "strides",
                "kernel_shape",
                "num_heads",
                "equation",
            ];
            let name = *r.choice(names.iter()).unwrap();
            let mut added = AttributeProto { name: Some(name.into()), ..Default::default() };
            attribute(&mut added, r);
            n.attribute.push(added);
        }
        _ => {
            if let Some(a) = r.choice(n.attribute.iter_mut()) {
                attribute(a, r);
            }
        }
    }
}

fn attribute(a: &mut AttributeProto, r: &mut Rng) {
    use AttributeType as T;
    match r.u8(..8) {
        0 if a.t.is_some() => {
            if let Some(t) = &mut a.t {
                tensor(t, r);
            }
        }
        0 | 1 => (a.i, a.r#type) = (Some(number(r)), Some(T::Int as i32)),
        2 => (a.f, a.r#type) = (r.choice(FLOATS).map(Some).unwrap(), Some(T::Float as i32)),
        3 => {
            a.ints = (0..r.usize(..6)).map(|_| if r.bool() { r.i64(-2..4) } else { number(r) }).collect();
            a.r#type = Some(T::Ints as i32);
        }
        4 => {
            if let Some(n) = r.choice(a.ints.iter_mut()) {
                *n = NUMBERS[r.usize(..NUMBERS.len())];
            } else {
                a.i = Some(number(r));
            }
        }
        5 => {
            let text: &[&[u8]] = &[b"", b"\xff\xfe", b"bij,bjk->bik", b"...->...", b"SAME_UPPER", b"linear"];
            a.s = Some((*r.choice(text.iter()).unwrap()).into());
            a.r#type = Some(T::String as i32);
        }
        6 => a.r#type = Some(r.i32(-1..16)),
        _ => a.ref_attr_name = Some("alpha".into()),
    }
}

fn tensor(t: &mut TensorProto, r: &mut Rng) -> &'static str {
    match r.u8(..9) {
        0 => {
            if let Some(d) = r.choice(t.dims.iter_mut()) {
                *d = NUMBERS[r.usize(..NUMBERS.len())];
            }
            "another size"
        }
        1 => {
            t.dims = vec![1 << 31, 1 << 31];
            "huge sizes"
        }
        2 => {
            t.dims = (0..r.usize(..70)).map(|_| 1).collect();
            "another rank"
        }
        3 => {
            t.data_type = Some(r.i32(-1..27));
            "another element type"
        }
        4 => {
            if let Some(raw) = &mut t.raw_data {
                *raw = raw.slice(..r.usize(..=raw.len()));
            }
            "truncated raw data"
        }
        5 => {
            t.data_location = Some(1);
            let mut add = |key: &str, value: String| {
                t.external_data.push(StringStringEntryProto { key: Some(key.into()), value: Some(value) });
            };
            add("location", (*r.choice(LOCATIONS.iter()).unwrap()).into());
            if r.bool() {
                add("offset", number(r).to_string());
            }
            if r.bool() {
                add("length", number(r).to_string());
            }
            "external data"
        }
        6 => {
            t.raw_data = None;
            t.float_data = vec![1.0; r.usize(..9)];
            "data in another field"
        }
        7 => {
            t.name = Some((*r.choice(NAMES.iter()).unwrap()).into());
            "another name"
        }
        _ => content(t, r),
    }
}

/// Other elements, as many as before.
fn content(t: &mut TensorProto, r: &mut Rng) -> &'static str {
    let all = r.bool();
    let integers = matches!(t.data_type(), 6 | 7);
    let width = if t.data_type() == 7 { 8 } else { 4 };
    if let Some(raw) = &mut t.raw_data {
        let mut data = raw.to_vec();
        let chosen = r.usize(..(data.len() / width).max(1));
        for (i, element) in data.chunks_exact_mut(width).enumerate() {
            if all || i == chosen {
                let n = number(r);
                match (integers, width) {
                    (true, 8) => element.copy_from_slice(&n.to_le_bytes()),
                    (true, _) => element.copy_from_slice(&(n as i32).to_le_bytes()),
                    _ => element.copy_from_slice(&FLOATS[r.usize(..FLOATS.len())].to_le_bytes()),
                }
            }
        }
        *raw = data.into();
    }
    t.int64_data.iter_mut().for_each(|n| *n = NUMBERS[r.usize(..NUMBERS.len())]);
    t.float_data.iter_mut().for_each(|n| *n = FLOATS[r.usize(..FLOATS.len())]);
    "extreme elements"
}

fn value_info(info: &mut ValueInfoProto, r: &mut Rng) {
    if r.u8(..6) == 0 {
        info.name = Some((*r.choice(NAMES.iter()).unwrap()).into());
        return;
    }
    let Some(type_proto::Value::TensorType(t)) = info.r#type.as_mut().and_then(|t| t.value.as_mut()) else {
        return;
    };
    match r.u8(..5) {
        0 => t.elem_type = Some(r.i32(-1..27)),
        1 => t.shape = None,
        2 => {
            if let Some(shape) = &mut t.shape {
                shape
                    .dim
                    .push(Dimension { denotation: None, value: Some(dimension::Value::DimValue(number(r))) });
            }
        }
        _ => {
            if let Some(d) = t.shape.as_mut().and_then(|s| r.choice(s.dim.iter_mut())) {
                let text =
                    *r.choice(["a + ", "-n", "n * n * n", "9999999999999999999", "\u{0}"].iter()).unwrap();
                d.value = Some(if r.bool() {
                    dimension::Value::DimParam(text.into())
                } else {
                    dimension::Value::DimValue(NUMBERS[r.usize(..NUMBERS.len())])
                });
            }
        }
    }
}

/// A mutant of a file: some changes of structure or of bytes; says which.
pub fn mutant(data: &[u8], r: &mut Rng) -> (Vec<u8>, String) {
    let mut done = vec![];
    let mut out = data.to_vec();
    if r.u8(..10) < 8
        && let Ok(mut model) = ModelProto::decode(data)
    {
        for _ in 0..*r.choice([1, 1, 1, 2, 3].iter()).unwrap() {
            done.push(structure(&mut model, r));
        }
        out = model.encode_to_vec();
    }
    if done.is_empty() || r.u8(..20) == 0 {
        for _ in 0..1 + r.usize(..2) {
            done.push(bytes(&mut out, r));
        }
    }
    (out, done.join(", "))
}
