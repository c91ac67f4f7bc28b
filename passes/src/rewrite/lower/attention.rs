//! Attention as MatMul, masks, Softmax, MatMul.

use super::{Dialect, axis_size, target};
use crate::ir::{Attention, Binary, DType, Dim, Graph, GraphError, Node, Op, Unary, ValueId};

/// Whether ONNX's own operator says the same.
fn is_standard(graph: &Graph, node: &Node) -> bool {
    let Op::Attention(attention) = &node.op else { return false };
    let (Some(q), Some(k)) = (node.input(0), node.input(1)) else { return false };
    let (Some(q), Some(k)) = (graph.ty(q), graph.ty(k)) else { return false };
    // The standard aligns the causal mask with the first key.
    let square = q.rank() == 4 && k.rank() == 4 && q.shape[2] == k.shape[2];
    // Runtimes do not broadcast the mask over queries or keys.
    let whole = |m: &[Dim]| match (m, &q.shape[..], &k.shape[..]) {
        ([.., mt, ms], [_, _, t, _], [_, _, s, _]) => mt == t && ms == s,
        _ => false,
    };
    let mask_fits = match node.input(3) {
        None => true,
        Some(m) => {
            graph.ty(m).is_some_and(|m| (m.dtype == DType::Bool || m.dtype == q.dtype) && whole(&m.shape))
        }
    };
    // Revisions of the standard differ on whether the mask goes before the cap or after it.
    let order_matters = attention.softcap.is_some() && node.input(3).is_some();
    q.rank() == 4
        && node.input(4).is_none()
        && node.input(5).is_none()
        && attention.window.is_none()
        && (square || !attention.causal)
        && mask_fits
        && !order_matters
        && attention.softcap.is_none_or(|c| c > 0.0)
}

/// The node in the dialect's operators; `None` when it stands as the dialect has it.
pub(super) fn lower(
    graph: &mut Graph,
    node: &Node,
    dialect: &Dialect,
) -> Result<Option<ValueId>, GraphError> {
    let native = dialect.unrestricted || (dialect.attention && is_standard(graph, node));
    match node.op {
        Op::Attention(attention) if !native => decomposed(graph, attention, node),
        _ => Ok(None),
    }
}

/// See [`Attention`] for the formula.
fn decomposed(graph: &mut Graph, attention: Attention, node: &Node) -> Result<Option<ValueId>, GraphError> {
    let (Some(q), Some(k), Some(v)) = (node.input(0), node.input(1), node.input(2)) else {
        return Ok(None);
    };
    let (Some(q_type), Some(k_type), Some(v_type)) =
        (graph.ty(q).cloned(), graph.ty(k).cloned(), graph.ty(v).cloned())
    else {
        return Ok(None);
    };
    let (rank, dtype) = (q_type.rank(), q_type.dtype);
    if rank < 3 || k_type.rank() < 3 || v_type.rank() < 3 {
        return Ok(None);
    }
    let heads = |s: &[Dim]| s[s.len() - 3].clone();
    let (q_heads, kv_heads) = (heads(&q_type.shape), heads(&k_type.shape));
    let groups = Groups::of(&q_heads, &kv_heads);

    let visible = visible(graph, &attention, q, k, node.input(5))?;
    let q = scaled(graph, q, f64::from(attention.scale), dtype)?;
    let q = groups.split(graph, q)?;
    let (k, v) = (groups.unsqueezed(graph, k)?, groups.unsqueezed(graph, v)?);
    let kt = swapped(graph, k)?;
    let scores = graph.add(Op::MatMul, &[q, kt])?;
    let mut scores = groups.merged(graph, scores)?;
    if let Some(cap) = attention.softcap {
        let inside = scaled(graph, scores, 1.0 / f64::from(cap), dtype)?;
        let tanh = graph.add(Op::Unary(Unary::Tanh), &[inside])?;
        scores = scaled(graph, tanh, f64::from(cap), dtype)?;
    }
    scores = masked(graph, scores, node.input(3), visible, dtype)?;
    let axis = graph.ty(scores).map_or(rank, |t| t.rank()) - 1;
    if let Some(sinks) = node.input(4) {
        scores = with_sinks(graph, scores, sinks)?;
    }
    let mut p = graph.add(Op::Softmax { axis }, &[scores])?;
    if node.input(4).is_some() {
        p = super::slice(graph, p, axis, (0, -1, 1))?;
    }
    if attention.safe && (node.input(3).is_some() || visible.is_some()) {
        let nan = graph.add(Op::Unary(Unary::IsNan), &[p])?;
        let zero = graph.float_scalar(dtype, 0.0);
        p = graph.add(Op::Where, &[nan, zero, p])?;
    }
    let p = groups.split(graph, p)?;
    let out = graph.add_named(&node.name, Op::MatMul, &[p, v])?;
    groups.merged(graph, out).map(Some)
}

/// How query heads share key heads.
struct Groups {
    /// Queries per key head; 1 when every query head has its own.
    per_key: i64,
}

impl Groups {
    fn of(q_heads: &Dim, kv_heads: &Dim) -> Self {
        let ratio = match (q_heads.known(), kv_heads.known()) {
            (Some(q), Some(kv)) if kv > 0 => q / kv,
            _ => q_heads.div_exact(kv_heads).and_then(|r| r.known()).unwrap_or(1),
        };
        Groups { per_key: ratio }
    }

    /// `[.., h, m, n]` as `[.., h / r, r, m, n]`.
    fn split(&self, graph: &mut Graph, v: ValueId) -> Result<ValueId, GraphError> {
        let Some(shape) = graph.shape(v).map(<[Dim]>::to_vec).filter(|_| self.per_key > 1) else {
            return Ok(v);
        };
        let at = shape.len() - 3;
        let mut split = shape.clone();
        let groups = shape[at].floor_div(&self.per_key.into()).unwrap_or_else(|| shape[at].clone());
        split.splice(at..=at, [groups, self.per_key.into()]);
        let target = target(graph, &split)?;
        graph.add(Op::Reshape { allow_zero: true }, &[v, target])
    }

    /// `[.., h, m, n]` as `[.., h, 1, m, n]`.
    fn unsqueezed(&self, graph: &mut Graph, v: ValueId) -> Result<ValueId, GraphError> {
        let rank = graph.ty(v).map_or(3, |t| t.rank());
        if self.per_key > 1 { graph.add(Op::Unsqueeze { axes: vec![rank - 2] }, &[v]) } else { Ok(v) }
    }

    /// `[.., h, r, m, n]` as `[.., h · r, m, n]`.
    fn merged(&self, graph: &mut Graph, v: ValueId) -> Result<ValueId, GraphError> {
        let Some(shape) = graph.shape(v).map(<[Dim]>::to_vec).filter(|_| self.per_key > 1) else {
            return Ok(v);
        };
        let at = shape.len() - 4;
        let mut merged = shape.clone();
        merged.splice(at..=at + 1, [shape[at].clone() * shape[at + 1].clone()]);
        let target = target(graph, &merged)?;
        graph.add(Op::Reshape { allow_zero: true }, &[v, target])
    }
}

fn scaled(graph: &mut Graph, v: ValueId, factor: f64, dtype: DType) -> Result<ValueId, GraphError> {
    if factor == 1.0 {
        return Ok(v);
    }
    let factor = graph.float_scalar(dtype, factor);
    graph.add(Op::Binary(Binary::Mul), &[v, factor])
}

fn swapped(graph: &mut Graph, v: ValueId) -> Result<ValueId, GraphError> {
    let rank = graph.ty(v).map_or(2, |t| t.rank());
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(rank - 2, rank - 1);
    graph.add(Op::Transpose { perm }, &[v])
}

/// The bool mask `[t, s]` of the keys that causality and the window leave.
fn visible(
    graph: &mut Graph,
    attention: &Attention,
    q: ValueId,
    k: ValueId,
    position: Option<ValueId>,
) -> Result<Option<ValueId>, GraphError> {
    if !attention.causal && attention.window.is_none() {
        return Ok(None);
    }
    let rows = |graph: &Graph, v| graph.ty(v).map_or(2, |t| t.rank()) - 2;
    let (q_axis, k_axis) = (rows(graph, q), rows(graph, k));
    let (t, s) = (axis_size(graph, q, q_axis)?, axis_size(graph, k, k_axis)?);
    let (zero, one) = (graph.scalar(0i64), graph.scalar(1i64));
    // Position of a query among the keys: unless it is given, the last query stands at the last key.
    let queries = match position {
        Some(position) => {
            let queries = graph.add(Op::Range, &[zero, t, one])?;
            graph.add(Op::Binary(Binary::Add), &[queries, position])?
        }
        None => {
            let offset = graph.add(Op::Binary(Binary::Sub), &[s, t])?;
            graph.add(Op::Range, &[offset, s, one])?
        }
    };
    let queries = graph.add(Op::Unsqueeze { axes: vec![1] }, &[queries])?;
    let keys = graph.add(Op::Range, &[zero, s, one])?;
    let keys = graph.add(Op::Unsqueeze { axes: vec![0] }, &[keys])?;
    let mut out = None;
    if attention.causal {
        out = Some(graph.add(Op::Binary(Binary::LessOrEqual), &[keys, queries])?);
    }
    if let Some(window) = attention.window {
        let window = graph.scalar(i64::from(window));
        let first = graph.add(Op::Binary(Binary::Sub), &[queries, window])?;
        let near = graph.add(Op::Binary(Binary::Greater), &[keys, first])?;
        out = Some(match out {
            Some(causal) => graph.add(Op::Binary(Binary::And), &[causal, near])?,
            None => near,
        });
    }
    Ok(out)
}

/// The scores `[.., h, t, s + 1]` with the sinks as last key.
fn with_sinks(graph: &mut Graph, scores: ValueId, sinks: ValueId) -> Result<ValueId, GraphError> {
    let mut column = graph.shape(scores).map(<[Dim]>::to_vec).unwrap_or_default();
    let axis = column.len().saturating_sub(1);
    if let Some(last) = column.last_mut() {
        *last = Dim::ONE;
    }
    let column = graph.dims(&column)?;
    let sinks = graph.add(Op::Expand, &[sinks, column])?;
    graph.add(Op::Concat { axis }, &[scores, sinks])
}

fn masked(
    graph: &mut Graph,
    scores: ValueId,
    mask: Option<ValueId>,
    visible: Option<ValueId>,
    dtype: DType,
) -> Result<ValueId, GraphError> {
    let (mut scores, mut keep) = (scores, visible);
    if let Some(mask) = mask {
        match graph.ty(mask).map(|t| t.dtype) {
            Some(DType::Bool) => {
                keep = Some(match keep {
                    Some(visible) => graph.add(Op::Binary(Binary::And), &[mask, visible])?,
                    None => mask,
                });
            }
            other => {
                let mask =
                    if other == Some(dtype) { mask } else { graph.add(Op::Cast { to: dtype }, &[mask])? };
                scores = graph.add(Op::Binary(Binary::Add), &[scores, mask])?;
            }
        }
    }
    let Some(keep) = keep else { return Ok(scores) };
    let excluded = graph.float_scalar(dtype, f64::NEG_INFINITY);
    graph.add(Op::Where, &[keep, scores, excluded])
}
