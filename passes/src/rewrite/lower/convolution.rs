//! Convolutions of integers, as products of integer matrices.
//!
//! ```text
//!   ConvInteger(x [n, c, ..], w [m, c, k..])  becomes  MatMulInteger(w [m, c·k], columns [n, c·k, places])
//! ```
//!
//! The columns are what each place of the window covers: where the windows tile the operand, a view of it, else
//! one strided slice for each element of the kernel. Padding holds the zero point, and so counts nothing.

use super::{Dialect, Quantization, movement, slice};
use crate::ir::{Dim, Graph, GraphError, Node, NodeId, Op, PadMode, ValueId, Window};

/// The convolution in the dialect's operators; `None` when it has it, or a size is not known.
pub(super) fn integer(
    graph: &mut Graph,
    id: NodeId,
    dialect: &Dialect,
) -> Result<Option<ValueId>, GraphError> {
    let Some(node) = graph.node(id).cloned() else { return Ok(None) };
    let Op::ConvInteger { window, group } = &node.op else { return Ok(None) };
    if matches!(dialect.quantization, Quantization::Onnx(_)) {
        return Ok(None);
    }
    let Some(sizes) = Sizes::of(graph, &node, *group) else { return Ok(None) };
    let (Some(x), Some(w)) = (node.input(0), node.input(1)) else { return Ok(None) };
    if sizes.kernel.iter().try_fold(1usize, |n, taps| n.checked_mul(*taps)).is_none_or(|n| n > MOST_TAPS) {
        return Ok(None);
    }
    let Some(columns) = columns(graph, x, node.input(2), window, &sizes)? else { return Ok(None) };
    let Sizes { batch, group, filters, depth, places, positions, .. } = sizes.clone();
    let columns = reshape(graph, columns, &[batch, group, depth, positions])?;
    let rows = reshape(graph, w, &[group, filters / group, depth])?;
    let zero = match node.input(3) {
        Some(zero) if graph.ty(zero).is_some_and(|t| t.elements() != Dim::ONE) => {
            Some(reshape(graph, zero, &[group, filters / group, 1])?)
        }
        Some(zero) => Some(reshape(graph, zero, &[])?),
        None => None,
    };
    let x_zero = node.input(2).map(|zero| reshape(graph, zero, &[])).transpose()?;
    let mut operands = vec![Some(rows), Some(columns), zero, x_zero];
    while operands.last() == Some(&None) {
        operands.pop();
    }
    let product = graph.add_node(Op::MatMulInteger, operands, 1, &node.name)?;
    let Some(product) = graph.node(product).and_then(|n| n.outputs.first().copied()) else { return Ok(None) };
    reshape(graph, product, &[vec![batch, filters], places].concat()).map(Some)
}

/// Kernels of more elements are not spelt out.
const MOST_TAPS: usize = 4096;

/// The sizes of a convolution.
#[derive(Clone)]
struct Sizes {
    batch: usize,
    channels: usize,
    spatial: Vec<usize>,
    group: usize,
    filters: usize,
    kernel: Vec<usize>,
    /// Elements of the operand that one element of the result is made of.
    depth: usize,
    /// Spatial sizes of the result.
    places: Vec<usize>,
    /// Their product.
    positions: usize,
}

impl Sizes {
    fn of(graph: &Graph, node: &Node, group: usize) -> Option<Sizes> {
        let shape = |v: ValueId| graph.ty(v)?.known_shape();
        let (x, w, y) = (shape(node.input(0)?)?, shape(node.input(1)?)?, shape(*node.outputs.first()?)?);
        let ([batch, channels, spatial @ ..], [filters, each, kernel @ ..]) = (&x[..], &w[..]) else {
            return None;
        };
        let multiplied = |sizes: &[usize]| sizes.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let places = y.get(2..)?.to_vec();
        Some(Sizes {
            positions: multiplied(&places)?,
            batch: *batch,
            channels: *channels,
            spatial: spatial.to_vec(),
            group,
            filters: *filters,
            kernel: kernel.to_vec(),
            depth: multiplied(kernel)?.checked_mul(*each)?,
            places,
        })
    }
}

fn reshape(graph: &mut Graph, x: ValueId, shape: &[usize]) -> Result<ValueId, GraphError> {
    crate::rewrite::reshape(graph, x, &shape.iter().copied().map(Dim::from).collect::<Vec<_>>())
}

fn int(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// What the window covers: `[n, c, kernel.., places..]`, some of these axes joined.
fn columns(
    graph: &mut Graph,
    mut x: ValueId,
    zero: Option<ValueId>,
    window: &Window,
    sizes: &Sizes,
) -> Result<Option<ValueId>, GraphError> {
    let n = sizes.kernel.len();
    let plain = window.pads.iter().all(|p| *p == 0) && window.dilations.iter().all(|d| *d == 1);
    if plain && window.strides == sizes.kernel {
        return tiles(graph, x, sizes).map(Some);
    }
    let fill = match (zero, graph.ty(x).map(|t| t.dtype)) {
        (Some(zero), _) => reshape(graph, zero, &[])?,
        (None, Some(to)) => {
            let zero = graph.scalar(0i64);
            graph.add(Op::Cast { to }, &[zero])?
        }
        (None, None) => return Ok(None),
    };
    let mut pads = vec![0i64; 2 * (n + 2)];
    for axis in 0..n {
        pads[2 + axis] = int(window.pads[axis]);
        pads[n + 4 + axis] = int(window.pads[n + axis]);
    }
    x = match movement::pad(graph, x, fill, &pads, PadMode::Constant)? {
        Some(x) => x,
        None => return Ok(None),
    };
    let mut parts = vec![x];
    for axis in 0..n {
        let span = sizes.places[axis].saturating_sub(1) * window.strides[axis] + 1;
        let mut next = vec![];
        for part in parts {
            for k in 0..sizes.kernel[axis] {
                let start = k * window.dilations[axis];
                let bounds = (int(start), int(start + span), int(window.strides[axis]));
                next.push(slice(graph, part, axis + 2, bounds)?);
            }
        }
        parts = next;
    }
    let parts = parts
        .into_iter()
        .map(|part| graph.add(Op::Unsqueeze { axes: vec![2] }, &[part]))
        .collect::<Result<Vec<_>, _>>()?;
    if let [one] = parts[..] {
        return Ok(Some(one));
    }
    graph.add(Op::Concat { axis: 2 }, &parts).map(Some)
}

/// As [`columns`], for windows that lie side by side.
fn tiles(graph: &mut Graph, mut x: ValueId, sizes: &Sizes) -> Result<ValueId, GraphError> {
    let n = sizes.kernel.len();
    let mut split = vec![sizes.batch, sizes.channels];
    for axis in 0..n {
        let covered = sizes.places[axis] * sizes.kernel[axis];
        if covered != sizes.spatial[axis] {
            x = slice(graph, x, axis + 2, (0, int(covered), 1))?;
        }
        split.extend([sizes.places[axis], sizes.kernel[axis]]);
    }
    let x = reshape(graph, x, &split)?;
    let kernel = (0..n).map(|axis| 3 + 2 * axis);
    let places = (0..n).map(|axis| 2 + 2 * axis);
    let perm = [0, 1].into_iter().chain(kernel).chain(places).collect();
    graph.add(Op::Transpose { perm }, &[x])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{DType, Tensor};
    use crate::rewrite::lower::lower;
    use crate::rewrite::testing::{assert_same, count, f32s};

    fn bytes(shape: &[usize]) -> Tensor {
        let n = shape.iter().product::<usize>();
        Tensor::from_vec(shape.to_vec(), (0..n).map(|i| (i * 37 % 251) as u8).collect()).unwrap()
    }

    /// The convolution of a quantised `[2, 4, ..spatial]` by a constant `[6, 4 / group, ..kernel]`.
    fn convolution(spatial: &[i64], kernel: &[usize], window: Window, group: usize, zeros: bool) -> Graph {
        let mut g = Graph::new("convolution");
        let x = g.add_input("x", f32s(&[&[2, 4], spatial].concat()));
        let (scale, zero) = (g.num(0.01), g.constant(Tensor::scalar(7u8)));
        let x = g.op(Op::Quantize { to: DType::U8, blocks: None }, &[x, scale, zero]);
        let w = g.constant(bytes(&[&[6, 4 / group], kernel].concat()));
        let mut operands = vec![x, w];
        if zeros {
            let per_filter = [vec![6, 1], vec![1; kernel.len()]].concat();
            operands.extend([zero, g.constant(bytes(&per_filter))]);
        }
        let y = g.op(Op::ConvInteger { window, group }, &operands);
        g.add_output("y", y);
        g
    }

    #[test]
    fn convolutions_of_integers_become_products() {
        let window = |strides: &[usize], pads: &[usize], dilations: &[usize]| Window {
            strides: strides.to_vec(),
            pads: pads.to_vec(),
            dilations: dilations.to_vec(),
        };
        // One axis and two, patches with a rest, and everything at once.
        let cases = [
            convolution(&[9], &[3], window(&[1], &[1, 1], &[1]), 1, true),
            convolution(&[9], &[3], window(&[2], &[0, 0], &[2]), 1, false),
            convolution(&[5, 7], &[2, 3], window(&[2, 3], &[0; 4], &[1, 1]), 1, true),
            convolution(&[4, 6], &[2, 3], window(&[2, 3], &[0; 4], &[1, 1]), 2, true),
            convolution(&[5, 7], &[2, 3], window(&[2, 1], &[1, 0, 2, 1], &[1, 2]), 2, true),
            convolution(&[5, 7], &[1, 1], window(&[1, 1], &[0; 4], &[1, 1]), 1, false),
        ];
        for g in &cases {
            for (dialect, products) in [(Dialect::runtime(), 1), (Dialect::basic(), 0)] {
                let mut out = g.clone();
                lower(&mut out, &dialect).unwrap();
                assert_same(g, &out, 0.0);
                assert_eq!((count(&out, "ConvInteger"), count(&out, "MatMulInteger")), (0, products));
            }
            let mut out = g.clone();
            lower(&mut out, &Dialect::onnx(17)).unwrap();
            assert_eq!(count(&out, "ConvInteger"), 1);
        }
    }
}
