//! Batching rules: each operator with lane axes in front of some operands.
//!
//! Ranks and axes in a rule are those of a single lane; `p` lane axes come before them. A lane axis of a
//! batched operand has the lanes' size or 1; results broadcast over them.

use super::vectorize::{Batched, VectorizeError};
use crate::analysis::Mismatch;
use crate::ir::{Binary, Blocks, DType, Dim, Graph, GraphError, Node, Op, ValueId};

/// Reshapes to `dims`; a constant stays a constant.
pub fn reshape(graph: &mut Graph, v: ValueId, dims: &[Dim]) -> Result<ValueId, GraphError> {
    if graph.shape(v) == Some(dims) {
        return Ok(v);
    }
    let known: Option<Vec<usize>> = dims.iter().map(Dim::known_size).collect();
    if let (Some(tensor), Some(shape)) = (graph.tensor(v), known)
        && let Ok(tensor) = tensor.reshaped(shape)
    {
        let name = graph.value(v).name.clone();
        let new = graph.constant(tensor);
        if let Some(name) = name {
            graph.set_name(new, &name);
        }
        return Ok(new);
    }
    let shape = graph.dims(dims)?;
    graph.add(Op::Reshape { allow_zero: true }, &[v, shape])
}

/// A value as one of this type: itself where it is one.
pub(super) fn cast(graph: &mut Graph, v: ValueId, to: DType) -> Result<ValueId, GraphError> {
    match graph.ty(v).map(|t| t.dtype) {
        Some(own) if own != to => graph.add(Op::Cast { to }, &[v]),
        _ => Ok(v),
    }
}

/// Inserts `count` axes of size 1 at `at`.
pub(super) fn insert_axes(
    graph: &mut Graph,
    v: ValueId,
    at: usize,
    count: usize,
) -> Result<ValueId, GraphError> {
    if count == 0 {
        return Ok(v);
    }
    if graph.tensor(v).is_some()
        && let Some(shape) = graph.shape(v)
    {
        let mut dims = shape.to_vec();
        dims.splice(at..at, std::iter::repeat_n(Dim::ONE, count));
        return reshape(graph, v, &dims);
    }
    graph.add(Op::Unsqueeze { axes: (at..at + count).collect() }, &[v])
}

/// The results of `node`'s operator on other operands; types that cannot be inferred are taken over.
pub(super) fn copy_node(
    graph: &mut Graph,
    node: &Node,
    inputs: Vec<Option<ValueId>>,
) -> Result<Vec<ValueId>, GraphError> {
    let id = graph.add_node(node.op.clone(), inputs, node.outputs.len(), &node.name)?;
    let outputs = graph.node(id).map(|n| n.outputs.clone()).unwrap_or_default();
    for (new, old) in outputs.iter().zip(&node.outputs) {
        if graph.ty(*new).is_none()
            && let Some(ty) = graph.ty(*old).cloned()
        {
            graph.declare_type(*new, ty);
        }
    }
    Ok(outputs)
}

struct Rule<'g> {
    graph: &'g mut Graph,
    node: &'g Node,
    operands: &'g [Option<Batched>],
    prefix: &'g [usize],
}

/// The results of `node` (the first lane's) on batched operands.
pub(super) fn apply(
    graph: &mut Graph,
    node: &Node,
    operands: &[Option<Batched>],
    prefix: &[usize],
) -> Result<Vec<Batched>, VectorizeError> {
    if !operands.iter().flatten().any(|o| o.batched) {
        let inputs = operands.iter().map(|o| o.map(|o| o.value)).collect();
        return Ok(copy_node(graph, node, inputs)?.into_iter().map(Batched::shared).collect());
    }
    Rule { graph, node, operands, prefix }.apply()
}

impl Rule<'_> {
    fn p(&self) -> usize {
        self.prefix.len()
    }

    fn refuse(&self, reason: &str) -> VectorizeError {
        let at = match (&self.node.name, self.node.outputs.first()) {
            (name, _) if !name.is_empty() => format!("node '{name}'"),
            (_, Some(v)) => format!("{v:?}"),
            _ => String::new(),
        };
        Mismatch { reason: format!("{}: {reason}", self.node.op.name()), at }.into()
    }

    /// Operand `i`, which must be there.
    fn operand(&self, i: usize) -> Result<Batched, VectorizeError> {
        let operand = self.operands.get(i).copied().flatten();
        operand.ok_or_else(|| self.refuse("an operand is missing"))
    }

    /// Rank of operand `i` in a single lane.
    fn lane_rank(&self, i: usize) -> Result<usize, VectorizeError> {
        let v = self.node.input(i).ok_or_else(|| self.refuse("an operand is missing"))?;
        let shape = self.graph.shape(v).ok_or_else(|| self.refuse("an operand has no known shape"))?;
        Ok(shape.len())
    }

    /// Shape of operand `i` in a single lane.
    fn lane_shape(&self, i: usize) -> Result<Vec<Dim>, VectorizeError> {
        self.lane_rank(i)?;
        Ok(self.node.input(i).and_then(|v| self.graph.shape(v)).unwrap_or_default().to_vec())
    }

    /// Operand `i`, which must be the same for all lanes.
    fn shared(&self, i: usize, what: &str) -> Result<ValueId, VectorizeError> {
        let operand = self.operand(i)?;
        if operand.batched {
            return Err(self.refuse(&format!("{what} differs between layers")));
        }
        Ok(operand.value)
    }

    /// Operand `i` with as many axes after the lane axes as `rank`, so that it broadcasts.
    fn aligned(&mut self, i: usize, rank: usize) -> Result<ValueId, VectorizeError> {
        let operand = self.operand(i)?;
        if !operand.batched {
            return Ok(operand.value);
        }
        let missing = rank.saturating_sub(self.lane_rank(i)?);
        let p = self.p();
        Ok(insert_axes(self.graph, operand.value, p, missing)?)
    }

    /// Operand `i` with every lane axis at full size.
    fn expanded(&mut self, i: usize) -> Result<ValueId, VectorizeError> {
        let operand = self.operand(i)?;
        let lane = self.lane_shape(i)?;
        let p = self.p();
        let value =
            if operand.batched { operand.value } else { insert_axes(self.graph, operand.value, 0, p)? };
        let mut dims: Vec<Dim> = self.prefix.iter().map(|n| Dim::from(*n)).collect();
        if self.graph.shape(value).is_some_and(|s| s[..p] == dims[..]) {
            return Ok(value);
        }
        dims.extend(lane);
        let shape = self.graph.dims(&dims)?;
        Ok(self.graph.add(Op::Expand, &[value, shape])?)
    }

    fn add(&mut self, op: Op, inputs: &[ValueId]) -> Result<Vec<Batched>, VectorizeError> {
        let inputs = inputs.iter().map(|v| Some(*v)).collect();
        self.add_optional(op, inputs)
    }

    fn add_optional(&mut self, op: Op, inputs: Vec<Option<ValueId>>) -> Result<Vec<Batched>, VectorizeError> {
        let id = self.graph.add_node(op, inputs, self.node.outputs.len(), &self.node.name)?;
        let outputs = self.graph.node(id).map(|n| n.outputs.clone()).unwrap_or_default();
        Ok(outputs.into_iter().map(Batched::lanes).collect())
    }

    fn apply(&mut self) -> Result<Vec<Batched>, VectorizeError> {
        let op = self.node.op.clone();
        let p = self.p();
        match op {
            Op::Identity | Op::Unary(_) | Op::Cast { .. } => {
                let x = self.operand(0)?.value;
                self.add(op, &[x])
            }
            Op::Binary(_) | Op::Where => self.broadcast(op),
            Op::Quantize { .. } | Op::Dequantize { .. } => self.quantize(op),
            Op::DynamicQuantize { axes } => {
                self.on_data(Op::DynamicQuantize { axes: axes.iter().map(|a| a + p).collect() })
            }
            Op::MatMul => self.matmul(),
            Op::MatMulInteger => self.matmul_integer(),
            Op::Clip => self.clip(),
            Op::Softmax { axis } => self.on_data(Op::Softmax { axis: axis + p }),
            Op::LogSoftmax { axis } => self.on_data(Op::LogSoftmax { axis: axis + p }),
            Op::CumSum { axis, exclusive, reverse } => {
                self.on_data(Op::CumSum { axis: axis + p, exclusive, reverse })
            }
            Op::Reduce { op, axes, keepdims } => {
                self.on_data(Op::Reduce { op, axes: axes.iter().map(|a| a + p).collect(), keepdims })
            }
            Op::ArgMax { axis, keepdims, last } => {
                self.on_data(Op::ArgMax { axis: axis + p, keepdims, last })
            }
            Op::ArgMin { axis, keepdims, last } => {
                self.on_data(Op::ArgMin { axis: axis + p, keepdims, last })
            }
            Op::TopK { axis, largest } => self.on_data(Op::TopK { axis: axis + p, largest }),
            Op::Trilu { upper } => self.on_data(Op::Trilu { upper }),
            Op::Slice { axes, steps } => {
                self.on_data(Op::Slice { axes: axes.iter().map(|a| a + p).collect(), steps })
            }
            Op::Squeeze { axes } => self.on_data(Op::Squeeze { axes: axes.iter().map(|a| a + p).collect() }),
            Op::Unsqueeze { axes } => {
                self.on_data(Op::Unsqueeze { axes: axes.iter().map(|a| a + p).collect() })
            }
            Op::Transpose { perm } => {
                self.on_data(Op::Transpose { perm: (0..p).chain(perm.iter().map(|a| a + p)).collect() })
            }
            Op::LayerNorm { axis, .. } | Op::RmsNorm { axis, .. } => self.norm(op, axis),
            Op::Reshape { .. } => self.reshape(),
            Op::Expand => self.expand(),
            Op::Tile => self.with_ints(op, 1),
            Op::Pad { .. } => self.pad(op),
            Op::Concat { axis } => self.on_expanded(Op::Concat { axis: axis + p }),
            Op::ScatterElements { axis, reduction } => {
                self.on_expanded(Op::ScatterElements { axis: axis + p, reduction })
            }
            Op::GatherElements { axis } => self.on_expanded(Op::GatherElements { axis: axis + p }),
            Op::Gather { axis } => self.gather(axis),
            Op::Einsum { equation } => self.einsum(&equation),
            Op::Attention(_) => self.attention(op),
            Op::Rotary(_) => self.rotary(op),
            Op::Shape { .. } => self.shape_of(),
            _ => Err(self.refuse("there is no rule to evaluate this operator for several layers at once")),
        }
    }

    /// The first operand is batched; the others must be shared.
    fn on_data(&mut self, op: Op) -> Result<Vec<Batched>, VectorizeError> {
        let mut inputs = vec![Some(self.operand(0)?.value)];
        for i in 1..self.operands.len() {
            inputs.push(match self.operands[i] {
                Some(_) => Some(self.shared(i, "an operand that must be known")?),
                None => None,
            });
        }
        if !self.operand(0)?.batched {
            return Err(self.refuse("only a bound differs between layers"));
        }
        self.add_optional(op, inputs)
    }

    fn on_expanded(&mut self, op: Op) -> Result<Vec<Batched>, VectorizeError> {
        let mut inputs = Vec::with_capacity(self.operands.len());
        for i in 0..self.operands.len() {
            inputs.push(self.expanded(i)?);
        }
        self.add(op, &inputs)
    }

    fn broadcast(&mut self, op: Op) -> Result<Vec<Batched>, VectorizeError> {
        let mut rank = 0;
        for i in 0..self.operands.len() {
            rank = rank.max(self.lane_rank(i)?);
        }
        let mut inputs = Vec::with_capacity(self.operands.len());
        for i in 0..self.operands.len() {
            inputs.push(self.aligned(i, rank)?);
        }
        self.add(op, &inputs)
    }

    fn matmul(&mut self) -> Result<Vec<Batched>, VectorizeError> {
        let (a, b) = (self.lane_rank(0)?, self.lane_rank(1)?);
        if a < 2 || b < 2 {
            return Err(self.refuse("vectors as operands"));
        }
        self.broadcast(Op::MatMul)
    }

    /// Zero points broadcast to matrices as those do to each other.
    fn matmul_integer(&mut self) -> Result<Vec<Batched>, VectorizeError> {
        let rank = self.lane_rank(0)?.max(self.lane_rank(1)?);
        let inputs = self.all_aligned(rank)?;
        self.add_optional(Op::MatMulInteger, inputs)
    }

    /// Scales and zero points broadcast; blocks are counted on operands of one rank.
    fn quantize(&mut self, op: Op) -> Result<Vec<Batched>, VectorizeError> {
        let p = self.p();
        let shifted = |blocks: Option<Blocks>| blocks.map(|b| Blocks { axis: b.axis + p, ..b });
        let (op, blocks) = match op {
            Op::Quantize { to, blocks } => (Op::Quantize { to, blocks: shifted(blocks) }, blocks),
            Op::Dequantize { blocks } => (Op::Dequantize { blocks: shifted(blocks) }, blocks),
            other => (other, None),
        };
        let mut rank = 0;
        for i in 0..self.operands.len() {
            if self.operands[i].is_some() {
                rank = rank.max(self.lane_rank(i)?);
            }
        }
        let mut inputs = self.all_aligned(rank)?;
        if blocks.is_some() {
            for (input, operand) in inputs.iter_mut().zip(self.operands) {
                if let (Some(v), Some(false)) = (&mut *input, operand.map(|o| o.batched)) {
                    *v = insert_axes(self.graph, *v, 0, p)?;
                }
            }
        }
        self.add_optional(op, inputs)
    }

    /// Every operand aligned, absent ones left out.
    fn all_aligned(&mut self, rank: usize) -> Result<Vec<Option<ValueId>>, VectorizeError> {
        let mut inputs = Vec::with_capacity(self.operands.len());
        for i in 0..self.operands.len() {
            inputs.push(match self.operands[i] {
                Some(_) => Some(self.aligned(i, rank)?),
                None => None,
            });
        }
        Ok(inputs)
    }

    fn clip(&mut self) -> Result<Vec<Batched>, VectorizeError> {
        let rank = self.lane_rank(0)?;
        let mut x = self.operand(0)?;
        for (i, op) in [(1, Binary::Max), (2, Binary::Min)] {
            if self.operands.get(i).copied().flatten().is_some() {
                let bound = self.aligned(i, rank)?;
                let batched = x.batched || self.operand(i)?.batched;
                x = Batched { value: self.graph.add(Op::Binary(op), &[x.value, bound])?, batched };
            }
        }
        Ok(vec![x])
    }

    /// The norm without its parameters, then the parameters per lane.
    fn norm(&mut self, op: Op, axis: usize) -> Result<Vec<Batched>, VectorizeError> {
        let x = self.operand(0)?;
        let rank = self.lane_rank(0)?;
        let axis = if x.batched { axis + self.p() } else { axis };
        let bare = match op {
            Op::LayerNorm { epsilon, .. } => Op::LayerNorm { axis, epsilon },
            Op::RmsNorm { epsilon, .. } => Op::RmsNorm { axis, epsilon },
            other => other,
        };
        let parameters: Vec<Option<Batched>> = self.operands[1..].to_vec();
        if !parameters.iter().flatten().any(|o| o.batched) {
            let mut inputs = vec![Some(x.value)];
            inputs.extend(parameters.iter().map(|o| o.map(|o| o.value)));
            return self.add_optional(bare, inputs);
        }
        let name = self.node.name.clone();
        let mut y = Batched { value: self.graph.add_named(&name, bare, &[x.value])?, ..x };
        for (i, op) in [(1, Binary::Mul), (2, Binary::Add)] {
            if self.operands.get(i).copied().flatten().is_some() {
                let mut parameter = self.aligned(i, rank)?;
                let batched = y.batched || self.operand(i)?.batched;
                // A norm's parameters may be less precise than what it norms.
                if let Some(to) = self.graph.ty(y.value).map(|t| t.dtype) {
                    parameter = cast(self.graph, parameter, to)?;
                }
                y = Batched { value: self.graph.add(Op::Binary(op), &[y.value, parameter])?, batched };
            }
        }
        Ok(vec![y])
    }

    /// The lane axes that a batched operand really has.
    fn lane_axes(&self, v: ValueId) -> Vec<Dim> {
        self.graph.shape(v).map(|s| s[..self.p().min(s.len())].to_vec()).unwrap_or_default()
    }

    fn reshape(&mut self) -> Result<Vec<Batched>, VectorizeError> {
        let x = self.operand(0)?;
        self.shared(1, "the shape")?;
        let lane = self.node.outputs.first().and_then(|v| self.graph.shape(*v));
        let lane = lane.ok_or_else(|| self.refuse("the shape is not known"))?.to_vec();
        let mut dims = self.lane_axes(x.value);
        dims.extend(lane);
        let known = self.node.input(1).is_some_and(|s| self.graph.content(s).is_some());
        if !known {
            return Err(self.refuse("the shape is computed from data"));
        }
        let shape = self.graph.dims(&dims)?;
        self.add(Op::Reshape { allow_zero: true }, &[x.value, shape])
    }

    fn expand(&mut self) -> Result<Vec<Batched>, VectorizeError> {
        let target = self.shared(1, "the shape")?;
        let target = self.graph.content(target).map(<[Dim]>::to_vec);
        let target = target.ok_or_else(|| self.refuse("the shape is computed from data"))?;
        let x = self.aligned(0, target.len())?;
        // Ones before the target leave the lane axes as they are.
        let rank = self.graph.shape(x).map_or(0, <[Dim]>::len);
        let mut dims = vec![Dim::ONE; rank.saturating_sub(target.len())];
        dims.extend(target);
        let shape = self.graph.dims(&dims)?;
        self.add(Op::Expand, &[x, shape])
    }

    /// Operand `at` is a vector with one entry per axis: the lane axes get `lead`.
    fn with_ints(&mut self, op: Op, lead: i64) -> Result<Vec<Batched>, VectorizeError> {
        let per_axis = self.shared(1, "the operand that counts axes")?;
        let content = self.graph.content(per_axis).map(<[Dim]>::to_vec);
        let content = content.ok_or_else(|| self.refuse("the operand that counts axes is not known"))?;
        let mut dims = vec![Dim::from(lead); self.p()];
        dims.extend(content);
        let per_axis = self.graph.dims(&dims)?;
        let x = self.operand(0)?.value;
        self.add(op, &[x, per_axis])
    }

    fn pad(&mut self, op: Op) -> Result<Vec<Batched>, VectorizeError> {
        let pads = self.shared(1, "the padding")?;
        let content = self.graph.content(pads).map(<[Dim]>::to_vec);
        let content = content.ok_or_else(|| self.refuse("the padding is not known"))?;
        let (begins, ends) = content.split_at(content.len() / 2);
        let lead = vec![Dim::ZERO; self.p()];
        let dims = [&lead[..], begins, &lead[..], ends].concat();
        let pads = self.graph.dims(&dims)?;
        let mut inputs = vec![Some(self.operand(0)?.value), Some(pads)];
        if self.operands.get(2).copied().flatten().is_some() {
            inputs.push(Some(self.shared(2, "the padding value")?));
        }
        self.add_optional(op, inputs)
    }

    fn gather(&mut self, axis: usize) -> Result<Vec<Batched>, VectorizeError> {
        let (data, indices) = (self.operand(0)?, self.operand(1)?);
        let p = self.p();
        match (data.batched, indices.batched) {
            (true, false) => self.add(Op::Gather { axis: axis + p }, &[data.value, indices.value]),
            (false, true) if axis == 0 => self.add(Op::Gather { axis }, &[data.value, indices.value]),
            (false, true) => {
                // The indices' axes, lanes first, stand where the gathered axis was: lanes move to the front.
                let out = self.add(Op::Gather { axis }, &[data.value, indices.value])?;
                let rank = self.graph.shape(out[0].value).map_or(0, <[Dim]>::len);
                let lanes = axis..axis + p;
                let rest = (0..rank).filter(|a| !lanes.contains(a));
                let perm = lanes.clone().chain(rest).collect();
                let moved = self.graph.add(Op::Transpose { perm }, &[out[0].value])?;
                Ok(vec![Batched::lanes(moved)])
            }
            _ => Err(self.refuse("both the data and the indices differ between layers")),
        }
    }

    fn einsum(&mut self, equation: &str) -> Result<Vec<Batched>, VectorizeError> {
        let equation: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
        let unused: Vec<char> = ('A'..='Z').filter(|c| !equation.contains(*c)).take(self.p()).collect();
        let parts = equation.split_once("->").filter(|_| !equation.contains('.'));
        let (Some((left, right)), true) = (parts, unused.len() == self.p()) else {
            return Err(self.refuse("an equation with an ellipsis or without a result"));
        };
        let lanes: String = unused.iter().collect();
        let mut terms = Vec::new();
        let mut inputs = Vec::new();
        for (i, term) in left.split(',').enumerate() {
            let batched = self.operand(i)?.batched;
            inputs.push(if batched { self.expanded(i)? } else { self.operand(i)?.value });
            terms.push(if batched { format!("{lanes}{term}") } else { term.to_string() });
        }
        let equation = format!("{}->{lanes}{right}", terms.join(","));
        self.add(Op::Einsum { equation }, &inputs)
    }

    fn attention(&mut self, op: Op) -> Result<Vec<Batched>, VectorizeError> {
        let mut rank = 0;
        for i in 0..3 {
            rank = rank.max(self.lane_rank(i)?);
        }
        let inputs = self.all_aligned(rank)?;
        self.add_optional(op, inputs)
    }

    fn rotary(&mut self, op: Op) -> Result<Vec<Batched>, VectorizeError> {
        let rank = self.lane_rank(0)?;
        let x = if self.operand(0)?.batched { self.operand(0)?.value } else { self.expanded(0)? };
        let (cos, sin) = (self.aligned(1, rank)?, self.aligned(2, rank)?);
        self.add(op, &[x, cos, sin])
    }

    /// A lane's shape does not depend on the lane.
    fn shape_of(&mut self) -> Result<Vec<Batched>, VectorizeError> {
        let content = self.node.outputs.first().and_then(|v| self.graph.content(*v)).map(<[Dim]>::to_vec);
        let content = content.ok_or_else(|| self.refuse("the shape is not known"))?;
        Ok(vec![Batched::shared(self.graph.dims(&content)?)])
    }
}
