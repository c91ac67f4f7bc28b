//! Activations as elementwise arithmetic.

use super::Dialect;
use crate::ir::{Binary, DType, Graph, GraphError, Node, Op, Unary, ValueId};

/// The activation in the dialect's operators; `None` when it has this one.
pub(super) fn lower(
    graph: &mut Graph,
    node: &Node,
    dialect: &Dialect,
) -> Result<Option<ValueId>, GraphError> {
    let Op::Unary(function) = node.op else { return Ok(None) };
    if dialect.unrestricted {
        return Ok(None);
    }
    let Some(x) = node.input(0) else { return Ok(None) };
    let Some(dtype) = graph.ty(x).map(|t| t.dtype) else { return Ok(None) };
    let mut with = Build { graph, dtype };
    match function {
        Unary::Silu => with.gated(x, x, Unary::Sigmoid).map(Some),
        Unary::Swish { alpha } => {
            let inside = with.times(x, f64::from(alpha))?;
            with.gated(x, inside, Unary::Sigmoid).map(Some)
        }
        Unary::Mish if !dialect.mish => {
            let inside = if dialect.softplus { with.unary(Unary::Softplus, x)? } else { with.softplus(x)? };
            with.gated(x, inside, Unary::Tanh).map(Some)
        }
        Unary::Softplus if !dialect.softplus => with.softplus(x).map(Some),
        Unary::HardSwish if !dialect.hard_swish => {
            with.gated(x, x, Unary::HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 }).map(Some)
        }
        Unary::GeluErf if !dialect.gelu => {
            let inside = with.times(x, std::f64::consts::FRAC_1_SQRT_2)?;
            with.gelu(x, inside, Unary::Erf).map(Some)
        }
        Unary::GeluTanh if !dialect.gelu => {
            let square = with.binary(Binary::Mul, x, x)?;
            let term = with.times(square, 0.044715)?;
            let sum = with.plus_one(term)?;
            let inside = with.binary(Binary::Mul, x, sum)?;
            let inside = with.times(inside, (2.0 / std::f64::consts::PI).sqrt())?;
            with.gelu(x, inside, Unary::Tanh).map(Some)
        }
        _ => Ok(None),
    }
}

struct Build<'g> {
    graph: &'g mut Graph,
    dtype: DType,
}

impl Build<'_> {
    fn unary(&mut self, f: Unary, x: ValueId) -> Result<ValueId, GraphError> {
        self.graph.add(Op::Unary(f), &[x])
    }

    fn binary(&mut self, f: Binary, a: ValueId, b: ValueId) -> Result<ValueId, GraphError> {
        self.graph.add(Op::Binary(f), &[a, b])
    }

    fn times(&mut self, x: ValueId, factor: f64) -> Result<ValueId, GraphError> {
        let factor = self.graph.float_scalar(self.dtype, factor);
        self.binary(Binary::Mul, x, factor)
    }

    fn plus_one(&mut self, x: ValueId) -> Result<ValueId, GraphError> {
        let one = self.graph.float_scalar(self.dtype, 1.0);
        self.binary(Binary::Add, x, one)
    }

    /// `max(x, 0) + log(1 + exp(-|x|))`.
    fn softplus(&mut self, x: ValueId) -> Result<ValueId, GraphError> {
        let size = self.unary(Unary::Abs, x)?;
        let negative = self.unary(Unary::Neg, size)?;
        let small = self.unary(Unary::Exp, negative)?;
        let sum = self.plus_one(small)?;
        let log = self.unary(Unary::Log, sum)?;
        let large = self.unary(Unary::Relu, x)?;
        self.binary(Binary::Add, large, log)
    }

    /// `x · f(inside)`.
    fn gated(&mut self, x: ValueId, inside: ValueId, f: Unary) -> Result<ValueId, GraphError> {
        let gate = self.unary(f, inside)?;
        self.binary(Binary::Mul, x, gate)
    }

    /// `½ x (1 + f(inside))`.
    fn gelu(&mut self, x: ValueId, inside: ValueId, f: Unary) -> Result<ValueId, GraphError> {
        let gate = self.unary(f, inside)?;
        let gate = self.plus_one(gate)?;
        let half = self.times(x, 0.5)?;
        self.binary(Binary::Mul, half, gate)
    }
}
