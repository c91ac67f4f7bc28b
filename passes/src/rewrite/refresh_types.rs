//! Types and integer contents are inferred again where operands became better known.
//!
//! ```text
//!   %3 = Expand(x, %2): f32[_1, _2]      %2 := Dims [b, t]      %3: f32[b, t]
//! ```

use super::{Fidelity, Notes, Pass};
use crate::ir::{Graph, GraphError};

pub(crate) const PASS: Pass = Pass { name: "refresh-types", fidelity: Fidelity::Exact, apply };

fn apply(graph: &mut Graph, _: &mut Notes) -> Result<usize, GraphError> {
    let mut changed = 0;
    for id in graph.topological()? {
        changed += usize::from(graph.reinfer(id)?);
    }
    Ok(changed)
}
