//! Tensors from outside made fit for a model's inputs: names, dtypes, shapes and indices are checked, so
//! that what runs later can rely on them.

use half::{bf16, f16};
use snlp_passes::ir::{DType, Def, Element, Graph, Op, Tensor, Type, ValueId};
use snlp_passes::memory::{NoRoom, room};
use snlp_passes::rewrite::bindings_from;

use crate::error::{Error, MORE_MEMORY};
use crate::text;

/// Name and type of each input of a graph.
pub fn input_types(graph: &Graph) -> Vec<(&str, &Type)> {
    let named = |v: &ValueId| Some((graph.value(*v).name.as_deref()?, graph.ty(*v)?));
    graph.inputs().iter().filter_map(named).collect()
}

/// Makes named tensors the inputs of `graph`, in its order: every input once, nothing else, each of the
/// declared dtype and a fitting shape, indices inside the tables they select from.
///
/// # Errors
/// Of kind input, naming what does not fit.
pub fn feeds(graph: &Graph, given: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, Error> {
    let wanted = input_types(graph);
    let missing: Vec<&str> =
        wanted.iter().map(|(n, _)| *n).filter(|n| !given.iter().any(|(g, _)| g == n)).collect();
    let unknown: Vec<&str> =
        given.iter().map(|(n, _)| n.as_str()).filter(|g| !wanted.iter().any(|(n, _)| n == g)).collect();
    if !missing.is_empty() || !unknown.is_empty() {
        let part = |what: &str, names: &[&str]| match names {
            [] => String::new(),
            names => {
                let names: Vec<String> = names.iter().map(|n| text::name(n)).collect();
                format!("; {what}: {}", names.join(", "))
            }
        };
        let signature: Vec<String> =
            wanted.iter().map(|(n, t)| format!("{} {}", text::name(n), text::name(&t.to_string()))).collect();
        return Err(Error::input(format!(
            "the inputs are not the model's{}{}",
            part("missing", &missing),
            part("unknown", &unknown)
        ))
        .help(format!("the model's inputs are {}", signature.join(", "))));
    }
    let mut out = Vec::new();
    for (name, ty) in wanted {
        let mut named = given.iter().filter(|(n, _)| n == name);
        let (Some((_, tensor)), None) = (named.next(), named.next()) else {
            return Err(Error::input(format!("input '{}' is given twice", text::name(name)))
                .help("give it once, in the archive or with --input"));
        };
        room_to_convert(tensor, ty.dtype)
            .map_err(|e| Error::input(format!("input '{}': {e}", text::name(name))).help(MORE_MEMORY))?;
        let tensor = convert(tensor, ty.dtype).map_err(|reason| {
            let (name, ty) = (text::name(name), text::name(&ty.to_string()));
            Error::input(format!("input '{name}': {reason}"))
                .help(format!("the model declares {name} as {ty}"))
        })?;
        out.push((name.to_string(), tensor));
    }
    let shapes: Vec<(&str, &[usize])> = out.iter().map(|(n, t)| (n.as_str(), t.shape())).collect();
    bindings_from(graph, &shapes).map_err(|e| {
        Error::input("the shapes of the inputs do not fit the model")
            .because(e)
            .help("give every input the shape that 'snlp inspect' shows; equal names are equal sizes")
    })?;
    check_indices(graph, &out)?;
    Ok(out)
}

/// Whether there is memory for [`convert`]: each element as 64 bits, there and back, besides the result.
///
/// # Errors
/// When there is none.
pub fn room_to_convert(tensor: &Tensor, to: DType) -> Result<(), NoRoom> {
    let each = if tensor.dtype() == to { 0 } else { 16 + to.size() };
    room(tensor.len().saturating_mul(each))
}

/// The tensor in another dtype, if every element has a place there: integers must fit the range, floats
/// must be whole to become integers, finite floats must stay finite. Floats may be rounded to floats.
///
/// # Errors
/// Names the first element that does not fit.
pub fn convert(tensor: &Tensor, to: DType) -> Result<Tensor, String> {
    let from = tensor.dtype();
    if from == to {
        return Ok(tensor.clone());
    }
    let shape = tensor.shape().to_vec();
    if to.is_float() && from.is_float() {
        return float_to_float(tensor, to);
    }
    let whole: Vec<i64> = match tensor.to_i64() {
        Some(whole) => whole,
        None => tensor.to_f64().into_iter().map(|x| integral(x, from, to)).collect::<Result<_, _>>()?,
    };
    fn all<T: Element + TryFrom<i64>>(shape: Vec<usize>, whole: &[i64]) -> Result<Tensor, String> {
        let fit = |n: &i64| T::try_from(*n).map_err(|_| format!("value {n} does not fit {}", T::DTYPE));
        let data: Vec<T> = whole.iter().map(fit).collect::<Result<_, _>>()?;
        Tensor::from_vec(shape, data).map_err(|e| e.to_string())
    }
    match to {
        DType::I8 => all::<i8>(shape, &whole),
        DType::I16 => all::<i16>(shape, &whole),
        DType::I32 => all::<i32>(shape, &whole),
        DType::I64 => all::<i64>(shape, &whole),
        DType::U8 => all::<u8>(shape, &whole),
        DType::U16 => all::<u16>(shape, &whole),
        DType::U32 => all::<u32>(shape, &whole),
        DType::U64 => all::<u64>(shape, &whole),
        DType::I4 | DType::U4 => {
            let (low, high) = to.range().unwrap_or_default();
            if let Some(n) = whole.iter().find(|n| !(low..=high).contains(*n)) {
                return Err(format!("value {n} does not fit {to}"));
            }
            let wide = if to == DType::I4 { all::<i8>(shape, &whole) } else { all::<u8>(shape, &whole) };
            wide.map(|t| t.packed(to))
        }
        DType::Bool => match whole.iter().find(|n| !(0..=1).contains(*n)) {
            Some(n) => Err(format!("value {n} is neither 0 nor 1 and cannot become a bool")),
            None => {
                let bools: Vec<bool> = whole.iter().map(|n| *n == 1).collect();
                Tensor::from_bools(shape, &bools).map_err(|e| e.to_string())
            }
        },
        DType::F32 | DType::F64 | DType::F16 | DType::BF16 => int_to_float(shape, &whole, to),
    }
}

fn integral(x: f64, from: DType, to: DType) -> Result<i64, String> {
    // 2^63 is a float; everything below it that is whole fits.
    if x.fract() == 0.0 && (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&x) {
        Ok(x as i64)
    } else {
        Err(format!("value {x} ({from}) cannot become {to} without loss"))
    }
}

fn floats(shape: Vec<usize>, data: &[f64], to: DType) -> Result<Tensor, String> {
    match to {
        DType::F16 => Tensor::from_vec(shape, data.iter().map(|x| f16::from_f64(*x)).collect()),
        DType::BF16 => Tensor::from_vec(shape, data.iter().map(|x| bf16::from_f64(*x)).collect()),
        DType::F64 => Tensor::from_vec(shape, data.to_vec()),
        _ => Tensor::from_vec(shape, data.iter().map(|x| *x as f32).collect()),
    }
    .map_err(|e| e.to_string())
}

fn float_to_float(tensor: &Tensor, to: DType) -> Result<Tensor, String> {
    let data = tensor.to_f64();
    let out = floats(tensor.shape().to_vec(), &data, to)?;
    match data.iter().zip(out.to_f64()).find(|(x, y)| x.is_finite() && !y.is_finite()) {
        Some((x, _)) => Err(format!("value {x} does not fit {to}")),
        None => Ok(out),
    }
}

fn int_to_float(shape: Vec<usize>, whole: &[i64], to: DType) -> Result<Tensor, String> {
    let data: Vec<f64> = whole.iter().map(|n| *n as f64).collect();
    let out = floats(shape, &data, to)?;
    match whole.iter().zip(out.to_f64()).find(|(n, y)| i128::from(**n) != *y as i128) {
        Some((n, _)) => Err(format!("value {n} cannot become {to} without loss")),
        None => Ok(out),
    }
}

/// An input whose elements select rows of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IndexBound {
    /// Name of the input.
    pub input: String,
    /// Name of the node that selects.
    pub node: String,
    /// Rows that it selects from.
    pub rows: i64,
    /// Whether negative elements count from the end, as ONNX has it. In a table of weights they would
    /// select rows that stand for something else.
    pub from_end: bool,
}

/// Inputs that reach the indices of a Gather unchanged, with the number of rows.
pub fn index_bounds(graph: &Graph) -> Vec<IndexBound> {
    let mut out = Vec::new();
    for (_, node) in graph.nodes() {
        let Op::Gather { axis } = node.op else { continue };
        let (Some(data), Some(indices)) = (node.input(0), node.input(1)) else { continue };
        let rows = graph.shape(data).and_then(|s| s.get(axis)?.known());
        let (Some(rows), Some(input)) = (rows, input_behind(graph, indices)) else { continue };
        if let Some(name) = graph.value(input).name.clone() {
            let from_end = !is_weight(graph, data);
            out.push(IndexBound { input: name, node: node.name.clone(), rows, from_end });
        }
    }
    out
}

/// Whether a value is a constant, in another form at most.
fn is_weight(graph: &Graph, mut v: ValueId) -> bool {
    while let Some(node) = graph.producing(v) {
        v = match (&node.op, node.input(0)) {
            (Op::Identity | Op::Cast { .. } | Op::Reshape { .. } | Op::Transpose { .. }, Some(x)) => x,
            _ => return false,
        };
    }
    graph.tensor(v).is_some()
}

/// The graph input that a value holds the elements of, rearranged at most.
fn input_behind(graph: &Graph, mut v: ValueId) -> Option<ValueId> {
    loop {
        let node = match graph.value(v).def {
            Def::Input => return Some(v),
            Def::Constant(_) => return None,
            Def::Node(node, _) => graph.node(node)?,
        };
        v = match &node.op {
            Op::Identity | Op::Cast { .. } | Op::Reshape { .. } | Op::Transpose { .. } | Op::Expand => {
                node.input(0)?
            }
            Op::Squeeze { .. } | Op::Unsqueeze { .. } | Op::Slice { .. } => node.input(0)?,
            _ => return None,
        };
    }
}

/// Refuses indices outside the tables that they select from.
fn check_indices(graph: &Graph, feeds: &[(String, Tensor)]) -> Result<(), Error> {
    for bound in index_bounds(graph) {
        let Some((_, tensor)) = feeds.iter().find(|(n, _)| *n == bound.input) else { continue };
        let Some(indices) = tensor.to_i64() else { continue };
        let first = if bound.from_end { -bound.rows } else { 0 };
        if let Some((at, index)) = indices.iter().enumerate().find(|(_, i)| !(first..bound.rows).contains(*i))
        {
            return Err(Error::input(format!(
                "input '{}': index {index} at element {at} is outside {first}..{} of node '{}' (Gather)",
                text::name(&bound.input),
                bound.rows,
                text::name(&bound.node)
            ))
            .help("token ids must come from the tokenizer that the model was trained with"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use snlp_passes::ir::Dim;

    #[test]
    fn conversions_keep_the_value_or_refuse() {
        let ok = |t: Tensor, to| convert(&t, to).expect("fits");
        let err = |t: Tensor, to| convert(&t, to).expect_err("does not fit");
        assert_eq!(ok(Tensor::scalar(7i32), DType::I64).to_i64(), Some(vec![7]));
        assert_eq!(ok(Tensor::scalar(7.0f32), DType::I64).to_i64(), Some(vec![7]));
        assert_eq!(ok(Tensor::scalar(1i64), DType::Bool).dtype(), DType::Bool);
        assert_eq!(ok(Tensor::scalar(0.1f64), DType::F32).to_f32(), [0.1f32]);
        assert_eq!(ok(Tensor::scalar(i64::MIN), DType::F64).to_f64(), [i64::MIN as f64]);
        assert!(err(Tensor::scalar(1i64 << 32), DType::I32).contains("4294967296"));
        assert!(err(Tensor::scalar(-1i64), DType::U8).contains("-1"));
        assert!(err(Tensor::scalar(2i64), DType::Bool).contains("neither"));
        assert!(err(Tensor::scalar(0.5f32), DType::I64).contains("0.5"));
        assert!(err(Tensor::scalar(f32::NAN), DType::I64).contains("NaN"));
        assert!(err(Tensor::scalar(1e30f32), DType::I64).contains("without loss"));
        assert!(err(Tensor::scalar(1e30f64), DType::F16).contains("f16"));
        assert!(err(Tensor::scalar((1i64 << 24) + 1), DType::F32).contains("16777217"));
        assert!(err(Tensor::scalar(u64::MAX), DType::I64).contains("cannot become"));
        assert!(ok(Tensor::scalar(f32::INFINITY), DType::F16).to_f64()[0].is_infinite());
    }

    /// ids [batch, t] → Gather(table [10, 4]).
    fn embedding() -> Graph {
        let mut g = Graph::new("g");
        let shape = vec![Dim::symbol("batch"), Dim::symbol("t")];
        let ids = g.add_input("ids", Type::new(DType::I64, shape));
        let table = g.constant(Tensor::from_vec(vec![10, 4], vec![0f32; 40]).expect("fits"));
        let out = g.add_named("embed", Op::Gather { axis: 0 }, &[table, ids]).expect("typed");
        g.add_output("out", out);
        g
    }

    fn ids(values: &[i64]) -> Vec<(String, Tensor)> {
        vec![("ids".into(), Tensor::from_vec(vec![1, values.len()], values.to_vec()).expect("fits"))]
    }

    #[test]
    fn indices_are_checked_against_the_table() {
        let g = embedding();
        assert!(feeds(&g, &ids(&[0, 9])).is_ok());
        for outside in [10, -1, -10, -11, i64::MIN] {
            let e = feeds(&g, &ids(&[0, outside])).expect_err("outside");
            assert_eq!(e.kind().exit_code(), 3);
            for part in ["'ids'", &format!("{outside} at element 1"), "0..10", "'embed'"] {
                assert!(e.report().contains(part), "{}", e.report());
            }
        }
    }

    #[test]
    fn indices_into_what_is_computed_may_count_from_the_end() {
        let mut g = Graph::new("g");
        let x = g.add_input("x", Type::new(DType::F32, vec![4i64.into()]));
        let at = g.add_input("at", Type::new(DType::I64, vec![]));
        let out = g.add_named("pick", Op::Gather { axis: 0 }, &[x, at]).expect("typed");
        g.add_output("out", out);
        let given = |at: i64| {
            vec![
                ("x".to_string(), Tensor::from_vec(vec![4], vec![0f32; 4]).expect("fits")),
                ("at".into(), Tensor::scalar(at)),
            ]
        };
        assert!(feeds(&g, &given(-4)).is_ok());
        assert!(feeds(&g, &given(-5)).expect_err("outside").report().contains("-4..4"));
    }

    #[test]
    fn a_fixed_axis_is_told_by_its_number() {
        let mut g = Graph::new("g");
        g.add_input("x", Type::new(DType::F32, vec![Dim::symbol("batch"), 16i64.into()]));
        g.add_input("y", Type::new(DType::F32, vec![Dim::symbol("batch")]));
        let zeros = |n: &str, shape: &[usize]| {
            let count = shape.iter().product();
            (n.to_string(), Tensor::from_vec(shape.to_vec(), vec![0f32; count]).expect("fits"))
        };
        let why = |x: &[usize]| feeds(&g, &[zeros("x", x), zeros("y", &[2])]).expect_err("misfit").report();
        assert!(why(&[2, 4]).contains("axis 1 should be 16\n"), "{}", why(&[2, 4]));
        assert!(why(&[3, 16]).contains("should be batch = 3"), "{}", why(&[3, 16]));
    }

    #[test]
    fn names_and_shapes_are_checked() {
        let g = embedding();
        let mut other = ids(&[1]);
        other.push(("mask".into(), Tensor::scalar(1i64)));
        assert!(feeds(&g, &other).expect_err("unknown").report().contains("unknown: mask"));
        assert!(feeds(&g, &[]).expect_err("missing").report().contains("missing: ids"));
        let flat = vec![("ids".into(), Tensor::ints(&[1, 2]))];
        assert!(feeds(&g, &flat).expect_err("rank").report().contains("ids"));
        let twice: Vec<_> = ids(&[1]).into_iter().chain(ids(&[1])).collect();
        let twice = feeds(&g, &twice).expect_err("twice");
        assert!(twice.report().contains("twice") && twice.remedy().is_some());
    }
}
