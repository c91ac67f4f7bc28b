//! A graph with expressions for its symbols, and values of one's own in the place of some of its inputs.
//!
//! ```text
//!   ids [batch, t], mask [batch, past + t], past [batch, h, past, d]
//!   {batch: 1, past: 0}, mask ↦ ones, past ↦ an empty constant      ─▶      ids [1, t]
//! ```

use std::collections::{BTreeMap, HashMap};

use super::copy::copy_with;
use crate::ir::{Dim, Graph, GraphError, Symbol, Type, ValueId};

/// Makes a value in the place of an input with this name and type, or none.
pub type StandsFor<'a> = &'a mut dyn FnMut(&mut Graph, &str, &Type) -> Result<Option<ValueId>, GraphError>;

/// Copies `graph` with expressions for symbols. `stands_for` is asked for each input, with its name and the
/// type it then has: what it adds to the new graph takes the input's place, where it adds nothing the input
/// stays.
///
/// # Errors
/// When operands no longer fit an operator.
pub fn instantiate(
    graph: &Graph,
    sizes: &BTreeMap<Symbol, Dim>,
    stands_for: StandsFor<'_>,
) -> Result<Graph, GraphError> {
    let mut out = Graph::new(&graph.name);
    let with = |s: &Symbol| sizes.get(s).cloned();
    let mut map = HashMap::new();
    for v in graph.inputs() {
        let (Some(name), Some(ty)) = (graph.value(*v).name.as_deref(), graph.ty(*v)) else { continue };
        let ty = Type::new(ty.dtype, ty.shape.iter().map(|d| d.replace(&with)).collect());
        if let Some(value) = stands_for(&mut out, name, &ty)? {
            map.insert(*v, value);
        }
    }
    let values = copy_with(&mut out, graph, &with, map)?;
    for (output, value) in graph.outputs.iter().zip(values) {
        out.add_output(&output.name, value);
    }
    Ok(out)
}
