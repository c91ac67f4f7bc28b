//! First guesses that a calibration predicts (METHOD §3, `preheat`).
//!
//! ```text
//!   s_j = bias_j + (x0 V_j) U_j        x0 [.., D] the chain's input, V_j [D, r], U_j [r, D]
//! ```

use std::collections::BTreeMap;

use super::super::batch::cast;
use super::super::vectorize::VectorizeError;
use super::Solver;
use crate::analysis::Mismatch;
use crate::ir::{Binary, DType, Dim, Graph, Op, Tensor, ValueId};

/// An affine prediction of low rank of the state behind a layer from the chain's input.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// `[D]`, f32.
    pub bias: Tensor,
    /// `V [D, r]`, f32.
    pub down: Tensor,
    /// `U [r, D]`, f32.
    pub up: Tensor,
}

/// Predictions by the zero-based number of the layer that the state lies behind.
pub type Predictions = BTreeMap<usize, Prediction>;

impl Solver<'_> {
    /// What is predicted for every unit, `[C, ..]`.
    pub(super) fn preheated(&self, graph: &mut Graph) -> Result<ValueId, VectorizeError> {
        let chain = self.context.chain;
        let refuse = |graph: &Graph, reason: String| Mismatch::at_value(graph, chain.input, reason);
        if chain.streams.count > 1 {
            let reason = "init=preheat predicts states of one residual stream; these have several";
            return Err(refuse(graph, reason.into()).into());
        }
        let width = chain.hidden.known_size();
        let mut parts: [Vec<&Tensor>; 3] = Default::default();
        for layer in self.context.units.iter().filter_map(|unit| unit.last()) {
            let Some(p) = self.predictions.get(layer) else {
                let reason =
                    format!("init=preheat: nothing is calibrated for the state behind layer {layer}");
                return Err(refuse(graph, reason).into());
            };
            let (&[d], &[_, rank]) = (p.bias.shape(), p.down.shape()) else {
                return Err(refuse(graph, "the calibration is not one of vectors and matrices".into()).into());
            };
            let fits = p.down.shape() == [d, rank] && p.up.shape() == [rank, d] && Some(d) == width;
            let alike = parts[1].first().is_none_or(|first| first.shape() == p.down.shape());
            if !fits || !alike {
                let reason = format!("the calibration has another width than the state, {}", chain.hidden);
                return Err(refuse(graph, reason).into());
            }
            for (part, tensor) in parts.iter_mut().zip([&p.bias, &p.down, &p.up]) {
                part.push(tensor);
            }
        }
        let rank = graph.shape(chain.input).map_or(0, <[Dim]>::len);
        let [bias, down, up] = parts.map(|tensors| stacked(&tensors, rank + 1));
        let constant = |graph: &mut Graph, tensor: Result<Tensor, String>| match tensor {
            Ok(tensor) => Ok(graph.constant(tensor)),
            Err(reason) => Err(refuse(graph, reason)),
        };
        let (bias, down, up) = (constant(graph, bias)?, constant(graph, down)?, constant(graph, up)?);
        let dtype = graph.ty(chain.input).map_or(DType::F32, |t| t.dtype);
        let fine = if dtype.size() < DType::F32.size() { DType::F32 } else { dtype };
        let mut x = graph.add(Op::Unsqueeze { axes: vec![0] }, &[chain.input])?;
        x = cast(graph, x, fine)?;
        let (bias, down, up) = (cast(graph, bias, fine)?, cast(graph, down, fine)?, cast(graph, up, fine)?);
        let inner = graph.add(Op::MatMul, &[x, down])?;
        let change = graph.add(Op::MatMul, &[inner, up])?;
        let guess = graph.add_named("preheat", Op::Binary(Binary::Add), &[change, bias])?;
        Ok(cast(graph, guess, dtype)?)
    }
}

/// Tensors one after the other along a new first axis, with axes of size 1 behind it up to `rank`.
fn stacked(tensors: &[&Tensor], rank: usize) -> Result<Tensor, String> {
    let all: Vec<Tensor> = tensors.iter().map(|t| (*t).clone()).collect();
    let stack = Tensor::stack(&all).map_err(|e| e.to_string())?;
    let (count, own) = stack.shape().split_first().ok_or("nothing is calibrated")?;
    let ones = rank.saturating_sub(1 + own.len());
    let shape = std::iter::once(*count).chain(std::iter::repeat_n(1, ones)).chain(own.iter().copied());
    let shape: Vec<usize> = shape.collect();
    stack.reshaped(shape).map_err(|e| e.to_string())
}
