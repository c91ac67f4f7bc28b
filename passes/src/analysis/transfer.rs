//! What the skip path does to the state from a layer's entry to its exit.
//!
//! This *is* the Jacobian surrogate of METHOD §1: identity for a plain residual layer, a scalar where
//! the state is scaled, an S×S matrix where streams are mixed. Each map on the skip path contributes
//! one factor; joins contribute none.

use super::stream::Event;
use crate::ir::{Binary, Graph, Op, Unary};

/// The linear action of a piece of skip path on the state.
#[derive(Clone, PartialEq, Debug)]
pub enum Transfer {
    /// The state passes unchanged (side inputs may be added to it).
    Identity,
    /// The state is scaled.
    Scale(f64),
    /// Its streams are mixed by a constant matrix.
    Mixing(Matrix),
    /// Its streams are mixed by a matrix that is computed for each token.
    TokenMixing,
    /// Something that is no linear map of the state's streams; what it is.
    Other(&'static str),
}

/// A square matrix on the streams, row-major.
#[derive(Clone, PartialEq, Debug)]
pub struct Matrix {
    size: usize,
    data: Vec<f64>,
}

impl Matrix {
    /// `scale` times the identity.
    pub fn diagonal(size: usize, scale: f64) -> Self {
        let data = (0..size * size).map(|i| if i % (size + 1) == 0 { scale } else { 0.0 }).collect();
        Matrix { size, data }
    }

    /// Number of rows.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Rows one after the other.
    pub fn data(&self) -> &[f64] {
        &self.data
    }

    /// `self · other`.
    pub fn times(&self, other: &Matrix) -> Matrix {
        let n = self.size;
        let entry = |i: usize| (0..n).map(|k| self.data[i / n * n + k] * other.data[k * n + i % n]).sum();
        Matrix { size: n, data: (0..n * n).map(entry).collect() }
    }

    /// Every entry times a factor.
    pub fn scaled(&self, factor: f64) -> Matrix {
        Matrix { size: self.size, data: self.data.iter().map(|x| x * factor).collect() }
    }

    /// `self + other`.
    pub fn plus(&self, other: &Matrix) -> Matrix {
        let sum = self.data.iter().zip(&other.data).map(|(a, b)| a + b).collect();
        Matrix { size: self.size, data: sum }
    }
}

impl Transfer {
    /// The transfer of one event.
    pub fn of(graph: &Graph, event: &Event) -> Transfer {
        let Event::Map { node, .. } = event else { return Transfer::Identity };
        let Some(node) = graph.node(*node) else { return Transfer::Identity };
        if let Some(mixing) = event.mixing(graph) {
            return match mixing.constant(graph) {
                Some(data) => Transfer::Mixing(Matrix { size: mixing.streams, data }),
                None => Transfer::TokenMixing,
            };
        }
        // The other operand is the state, perhaps by now another value than the event says.
        let constant = || node.operands().find_map(|v| graph.tensor(v));
        let scaled = |by: fn(f64) -> f64| match constant().map(|t| t.item()) {
            Some(Some(factor)) => Transfer::Scale(by(factor)),
            Some(None) => Transfer::Other("a factor per feature"),
            None => Transfer::Other("a factor per token"),
        };
        match node.op {
            Op::Identity | Op::Cast { .. } | Op::Binary(Binary::Add | Binary::Sub) => Transfer::Identity,
            // Integers and back: the state up to rounding.
            Op::Dequantize { .. } => Transfer::Identity,
            Op::Unary(Unary::Neg) => Transfer::Scale(-1.0),
            Op::Binary(Binary::Mul) => scaled(|f| f),
            Op::Binary(Binary::Div) => scaled(|f| 1.0 / f),
            Op::LayerNorm { .. } | Op::RmsNorm { .. } => Transfer::Other("a normalisation"),
            _ => Transfer::Other("an operator that is not linear"),
        }
    }

    /// The transfer of `self` followed by `next`.
    pub fn then(self, next: Transfer) -> Transfer {
        use Transfer::*;
        match (self, next) {
            (Other(what), _) | (_, Other(what)) => Other(what),
            (TokenMixing, _) | (_, TokenMixing) => TokenMixing,
            (Identity, other) | (other, Identity) => other,
            (Scale(a), Scale(b)) => Scale(a * b),
            (Scale(a), Mixing(m)) | (Mixing(m), Scale(a)) => Mixing(m.scaled(a)),
            (Mixing(a), Mixing(b)) if a.size == b.size => Mixing(b.times(&a)),
            (Mixing(_), Mixing(_)) => Other("a mixing of another number of streams"),
        }
    }

    /// As a matrix on `streams` streams, where it is a constant one.
    pub fn matrix(&self, streams: usize) -> Option<Matrix> {
        match self {
            Transfer::Identity => Some(Matrix::diagonal(streams, 1.0)),
            Transfer::Scale(s) => Some(Matrix::diagonal(streams, *s)),
            Transfer::Mixing(m) if m.size == streams => Some(m.clone()),
            _ => None,
        }
    }
}
