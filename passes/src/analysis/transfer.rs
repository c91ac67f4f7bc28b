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
    /// Something that is no constant linear map of the state; what it is.
    Other(&'static str),
}

impl Transfer {
    /// The transfer of one event.
    pub fn of(graph: &Graph, event: &Event) -> Transfer {
        let Event::Map { node, .. } = event else { return Transfer::Identity };
        let Some(node) = graph.node(*node) else { return Transfer::Identity };
        // The other operand is the state, perhaps by now another value than the event says.
        let factor = || node.operands().find_map(|v| graph.tensor(v))?.item();
        match node.op {
            Op::Identity | Op::Cast { .. } | Op::Binary(Binary::Add | Binary::Sub) => Transfer::Identity,
            // Integers and back: the state up to rounding.
            Op::Dequantize { .. } => Transfer::Identity,
            Op::Unary(Unary::Neg) => Transfer::Scale(-1.0),
            Op::Binary(Binary::Mul) => {
                factor().map_or(Transfer::Other("a factor per feature"), Transfer::Scale)
            }
            Op::Binary(Binary::Div) => {
                factor().map_or(Transfer::Other("a factor per feature"), |f| Transfer::Scale(1.0 / f))
            }
            Op::LayerNorm { .. } | Op::RmsNorm { .. } => Transfer::Other("a normalisation"),
            _ => Transfer::Other("an operator that is not linear"),
        }
    }

    /// The transfer of `self` followed by `next`.
    pub fn then(self, next: Transfer) -> Transfer {
        match (self, next) {
            (Transfer::Other(what), _) | (_, Transfer::Other(what)) => Transfer::Other(what),
            (Transfer::Identity, other) | (other, Transfer::Identity) => other,
            (Transfer::Scale(a), Transfer::Scale(b)) => Transfer::Scale(a * b),
        }
    }

    /// The factor on the state, where it is one.
    pub fn scale(&self) -> Option<f64> {
        match self {
            Transfer::Identity => Some(1.0),
            Transfer::Scale(s) => Some(*s),
            Transfer::Other(_) => None,
        }
    }
}
