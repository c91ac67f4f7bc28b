//! Integer values whose elements inference knows become sources.
//!
//! ```text
//!   Shape(x) ─▶ Gather(1) ─▶ Unsqueeze ─▶ Concat(·, -1, 64)      becomes   Dims [t, -1, 64]
//! ```
//!
//! Known elements give a constant, expressions an [`Op::Dims`] node, so that the chains of Shape, Gather,
//! Cast, Unsqueeze and Concat that exporters leave are dead afterwards.
//!
//! Integer division rounds towards zero, sizes are quotients rounded down. The two are one where an exporter
//! works out what a convolution leaves, `(n - window) / stride + 1`: were `n` smaller than the window, there
//! would be nothing to run.

use std::collections::HashSet;

use super::sweep::sweep;
use super::{Fidelity, Notes, Pass};
use crate::ir::{Binary, DType, Dim, Graph, GraphError, Node, Op, Symbol, Tensor, Type, ValueId};

pub(crate) const PASS: Pass = Pass { name: "fold-shapes", fidelity: Fidelity::Exact, apply };

fn apply(graph: &mut Graph, _: &mut Notes) -> Result<usize, GraphError> {
    // Sizes that only the data decides must be read off what has them.
    let declared = graph.inputs().iter().filter_map(|v| graph.shape(*v)).flatten();
    let bound: HashSet<Symbol> = declared.flat_map(Dim::symbols).collect();
    let convolved = convolved(graph);
    sweep(graph, |graph, id| {
        let Some(node) = graph.node(id) else { return Ok(vec![]) };
        if let Some((old, size)) = places(graph, node, &convolved)
            && super::views::expressible(std::slice::from_ref(&size), &bound)
        {
            let scalar = graph.shape(old).is_some_and(<[Dim]>::is_empty);
            let new = graph.add(Op::Dims { dims: vec![size], scalar }, &[])?;
            return Ok(vec![(old, new)]);
        }
        // Identity and Cast of a source are as plain as can be; opaque results are nobody's arithmetic.
        if matches!(node.op, Op::Opaque(_)) {
            return Ok(vec![]);
        }
        let is_source = matches!(node.op, Op::Dims { .. });
        let results = node.outputs.clone();
        let mut replaced = vec![];
        for v in results {
            if let Some(new) = source_for(graph, v, is_source, &bound)? {
                replaced.push((v, new));
            }
        }
        Ok(replaced)
    })
}

/// The sizes that convolutions leave.
fn convolved(graph: &Graph) -> HashSet<Dim> {
    let results =
        graph.nodes().filter(|(_, n)| matches!(n.op, Op::Conv { .. })).flat_map(|(_, n)| &n.outputs);
    results.filter_map(|v| graph.shape(*v)).flat_map(|s| s.iter().skip(2)).cloned().collect()
}

/// The result of a division that says how many places a window has besides the first, and that number.
fn places(graph: &Graph, node: &Node, convolved: &HashSet<Dim>) -> Option<(ValueId, Dim)> {
    let (Op::Binary(Binary::Div), [result]) = (&node.op, &node.outputs[..]) else { return None };
    let one = |at: usize| match graph.content(node.input(at)?)? {
        [only] => Some(only),
        _ => None,
    };
    let (span, stride) = (one(0)?, one(1)?);
    let places = span.floor_div(stride).filter(|_| stride.known().is_some_and(|n| n > 0))?;
    let fits = graph.ty(*result).is_some_and(|t| t.dtype == DType::I64 && t.rank() < 2);
    (fits && graph.content(*result).is_none() && convolved.contains(&(places.clone() + Dim::ONE)))
        .then_some((*result, places))
}

/// The source that stands for `v`, unless its content is unknown or it is one already.
fn source_for(
    graph: &mut Graph,
    v: ValueId,
    is_source: bool,
    bound: &HashSet<Symbol>,
) -> Result<Option<ValueId>, GraphError> {
    let (Some(content), Some(ty)) = (graph.content(v), graph.ty(v)) else { return Ok(None) };
    if let (Some(known), Some(shape)) = (known(content), ty.known_shape()) {
        let Some(tensor) = tensor_of(ty.dtype, shape, &known) else { return Ok(None) };
        return Ok(Some(graph.constant(tensor)));
    }
    let certain = super::views::expressible(content, bound);
    if is_source || !certain || ty.dtype != DType::I64 || ty.rank() > 1 || !fits(ty, content) {
        return Ok(None);
    }
    let op = Op::Dims { dims: content.to_vec(), scalar: ty.rank() == 0 };
    graph.add(op, &[]).map(Some)
}

fn known(content: &[Dim]) -> Option<Vec<i64>> {
    content.iter().map(Dim::known).collect()
}

fn fits(ty: &Type, content: &[Dim]) -> bool {
    match &ty.shape[..] {
        [] => content.len() == 1,
        [n] => n.known_size() == Some(content.len()),
        _ => false,
    }
}

/// The integer or bool tensor of these elements, unless one is out of the dtype's range.
fn tensor_of(dtype: DType, shape: Vec<usize>, elements: &[i64]) -> Option<Tensor> {
    fn cast<T: crate::ir::Element + TryFrom<i64>>(shape: Vec<usize>, elements: &[i64]) -> Option<Tensor> {
        let data: Option<Vec<T>> = elements.iter().map(|n| T::try_from(*n).ok()).collect();
        Tensor::from_vec(shape, data?).ok()
    }
    match dtype {
        DType::I64 => cast::<i64>(shape, elements),
        DType::I32 => cast::<i32>(shape, elements),
        DType::I16 => cast::<i16>(shape, elements),
        DType::I8 => cast::<i8>(shape, elements),
        DType::U64 => cast::<u64>(shape, elements),
        DType::U32 => cast::<u32>(shape, elements),
        DType::U16 => cast::<u16>(shape, elements),
        DType::U8 => cast::<u8>(shape, elements),
        DType::Bool if elements.iter().all(|n| matches!(n, 0 | 1)) => {
            Tensor::from_bools(shape, &elements.iter().map(|n| *n == 1).collect::<Vec<_>>()).ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Unary;
    use crate::rewrite::testing::{after, count, f32s, histogram};

    #[test]
    fn shape_arithmetic_becomes_sizes() {
        let mut g = Graph::new("shapes");
        let x = g.add_input("x", f32s(&[-1, -2, 8]));
        let shape = g.op(Op::Shape { start: 0, end: 3 }, &[x]);
        let (one, two) = (g.scalar(1i64), g.scalar(2i64));
        let t = g.op(Op::Gather { axis: 0 }, &[shape, one]);
        let d = g.op(Op::Gather { axis: 0 }, &[shape, two]);
        let half = g.bin(Binary::Div, d, two);
        let (t, half) =
            (g.op(Op::Unsqueeze { axes: vec![0] }, &[t]), g.op(Op::Unsqueeze { axes: vec![0] }, &[half]));
        let (rest, pair) = (g.ints(&[-1]), g.ints(&[2]));
        let target = g.op(Op::Concat { axis: 0 }, &[rest, t, half, pair]);
        let y = g.op(Op::Reshape { allow_zero: false }, &[x, target]);
        let y = g.un(Unary::Exp, y);
        g.add_output("y", y);
        let (clean, _) = after(&g, &PASS);
        assert_eq!(clean.node_count(), 3, "{:?}", histogram(&clean));
        assert_eq!((count(&clean, "Dims"), count(&clean, "Reshape")), (1, 1));
    }

    #[test]
    fn known_sizes_become_constants() {
        let mut g = Graph::new("known");
        let x = g.add_input("x", f32s(&[3, 4]));
        let shape = g.op(Op::Shape { start: 0, end: 2 }, &[x]);
        let y = g.op(Op::Cast { to: DType::F32 }, &[shape]);
        g.add_output("y", y);
        assert_eq!(after(&g, &PASS).0.node_count(), 1);
    }

    #[test]
    fn data_stays_data() {
        let mut g = Graph::new("data");
        // Integers that are given, sizes that the data decides, floats.
        let n = g.add_input("n", Type::new(DType::I64, vec![2i64.into()]));
        let x = g.add_input("x", f32s(&[4]));
        let sum = g.bin(Binary::Add, n, n);
        g.add_output("sum", sum);
        let y = g.un(Unary::Exp, x);
        g.add_output("y", y);
        assert_eq!(after(&g, &PASS).1, 0);
    }

    /// `x [b, 1, n]` behind a convolution, and what an exporter works out: `(n - window) / stride + 1` of this
    /// window, as the size of a reshaped result.
    fn worked_out(window: i64) -> Graph {
        let mut g = Graph::new("places");
        let x = g.add_input("x", f32s(&[-1, 1, -2]));
        let w = g.constant(Tensor::from_vec(vec![6, 1, 8], vec![0.1f32; 48]).unwrap());
        let window_of = crate::ir::Window { strides: vec![4], pads: vec![0, 0], dilations: vec![1] };
        let y = g.op(Op::Conv { window: window_of, group: 1 }, &[x, w]);
        let t = g.op(Op::Shape { start: 2, end: 3 }, &[x]);
        let (less, stride, one) = (g.ints(&[window]), g.ints(&[4]), g.ints(&[1]));
        let span = g.bin(Binary::Sub, t, less);
        let places = g.bin(Binary::Div, span, stride);
        let places = g.bin(Binary::Add, places, one);
        let rest = g.ints(&[-1]);
        let target = g.op(Op::Concat { axis: 0 }, &[places, rest]);
        let y = g.op(Op::Reshape { allow_zero: false }, &[y, target]);
        g.add_output("y", y);
        g
    }

    #[test]
    fn a_convolution_s_size_is_known_again_where_it_is_worked_out() {
        // Of another window nothing says that it fits.
        for (window, left) in [(8, 0), (7, 1)] {
            let (mut g, mut notes) = (worked_out(window), Notes::default());
            for pass in [&PASS, &crate::rewrite::refresh_types::PASS, &PASS] {
                crate::rewrite::apply_pass(&mut g, pass, &mut notes).unwrap();
            }
            g.remove_dead();
            assert_eq!(count(&g, "Div"), left, "{:?}", histogram(&g));
        }
    }
}
