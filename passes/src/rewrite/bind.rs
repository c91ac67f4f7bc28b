//! Binding: symbolic sizes become numbers.
//!
//! ```text
//!   input ids: i64[batch, t]      bind {batch: 2, t: 9}      input ids: i64[2, 9]
//!   Range(0, Dims t) ─▶ mask      ────────────────────▶      one constant [9, 9]
//! ```
//!
//! The graph is rebuilt in order, so that every type is inferred afresh; what then depends on nothing but
//! sizes (masks, rotary tables) is folded even where it is larger than its operands.

use std::collections::BTreeSet;

use super::copy::copy_into;
use super::driver::settle_bound;
use super::{Notes, PassError};
use crate::ir::{Bindings, Dim, Graph, GraphError, Op, Symbol, Type};

/// Why a graph could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Symbols without a size.
    #[error("no size given for {}", .0.join(", "))]
    Missing(Vec<String>),
    /// A size below zero.
    #[error("size {size} of '{symbol}' is negative")]
    Negative {
        /// Name of the symbol.
        symbol: String,
        /// Its size.
        size: i64,
    },
    /// A shape was given for something that is not an input.
    #[error("the model has no input '{name}'; its inputs are {}", .inputs.join(", "))]
    NoInput {
        /// The name given.
        name: String,
        /// Names of the inputs.
        inputs: Vec<String>,
    },
    /// A given shape does not fit the declared one.
    #[error("input '{name}' is declared as {expected} but was given shape {given:?}{why}")]
    Shape {
        /// Name of the input.
        name: String,
        /// Declared type.
        expected: String,
        /// Shape given.
        given: Vec<usize>,
        /// What disagrees, beginning with a separator; may be empty.
        why: String,
    },
    /// The model contradicts itself at these sizes.
    #[error("the model contradicts itself at {sizes}: {source}")]
    Graph {
        /// The sizes given, as `batch = 1, sequence = 9`.
        sizes: String,
        /// Where and how.
        #[source]
        source: GraphError,
    },
    /// The clean-up failed.
    #[error(transparent)]
    Pass(#[from] PassError),
}

/// The graph at the given sizes, cleaned: every symbol that an input declares must have one.
pub fn bind(graph: &Graph, bindings: &Bindings) -> Result<Graph, BindError> {
    let mut bound = substituted(graph, bindings)?;
    settle_bound(&mut bound, &mut Notes::default())?;
    Ok(bound)
}

/// Whether the graph contradicts itself at the given sizes: a table that is too short, shapes that do not
/// broadcast. Nothing is computed, so sizes may be large.
///
/// # Errors
/// As [`bind`].
pub fn fits(graph: &Graph, bindings: &Bindings) -> Result<(), BindError> {
    substituted(graph, bindings).map(drop)
}

/// The graph with numbers for symbols, every type inferred afresh.
fn substituted(graph: &Graph, bindings: &Bindings) -> Result<Graph, BindError> {
    let missing: Vec<String> = free_symbols(graph)
        .into_iter()
        .filter(|s| !bindings.contains_key(s))
        .map(|s| s.name().to_string())
        .collect();
    if !missing.is_empty() {
        return Err(BindError::Missing(missing));
    }
    if let Some((symbol, size)) = bindings.iter().find(|(_, n)| **n < 0) {
        return Err(BindError::Negative { symbol: symbol.name().into(), size: *size });
    }
    let mut bound = Graph::new(&graph.name);
    let values = copy_into(&mut bound, graph, bindings)
        .map_err(|source| BindError::Graph { sizes: sizes_text(bindings), source })?;
    for (output, value) in graph.outputs.iter().zip(values) {
        bound.add_output(&output.name, value);
    }
    Ok(bound)
}

fn sizes_text(bindings: &Bindings) -> String {
    bindings.iter().map(|(s, n)| format!("{} = {n}", s.name())).collect::<Vec<_>>().join(", ")
}

/// Symbols that inputs declare and that shape arithmetic uses.
fn free_symbols(graph: &Graph) -> BTreeSet<Symbol> {
    let mut out = BTreeSet::new();
    for d in graph.inputs().iter().filter_map(|v| graph.shape(*v)).flatten() {
        out.extend(d.symbols());
    }
    for (_, node) in graph.nodes() {
        if let Op::Dims { dims, .. } = &node.op {
            out.extend(dims.iter().flat_map(Dim::symbols));
        }
    }
    out
}

/// Sizes for the symbols of the inputs, from the shapes that inputs are given. Inputs that are not given
/// bind nothing.
pub fn bindings_from(graph: &Graph, shapes: &[(&str, &[usize])]) -> Result<Bindings, BindError> {
    let mut given: Vec<(&str, &Type, &[usize])> = vec![];
    for (name, shape) in shapes {
        let Some(ty) = graph.input(name).and_then(|v| graph.ty(v)) else {
            let inputs = graph.inputs().iter().filter_map(|v| graph.value(*v).name.clone()).collect();
            return Err(BindError::NoInput { name: (*name).into(), inputs });
        };
        if ty.rank() != shape.len() {
            return Err(misfit(name, ty, shape, format!(": {} axes instead of {}", shape.len(), ty.rank())));
        }
        given.push((name, ty, shape));
    }
    let mut bindings = Bindings::new();
    // Plain symbols first, then what follows from sums such as `past + t`, as long as one does.
    loop {
        let before = bindings.len();
        for (dim, n) in given.iter().flat_map(|(_, ty, shape)| ty.shape.iter().zip(*shape)) {
            if let Some((symbol, size)) = solve(&dim.substitute(&bindings), *n) {
                bindings.insert(symbol, size);
            }
        }
        if bindings.len() == before {
            break;
        }
    }
    for (name, ty, shape) in given {
        for (axis, (dim, n)) in ty.shape.iter().zip(shape).enumerate() {
            let expected = dim.substitute(&bindings);
            if expected.known().is_some_and(|d| usize::try_from(d) != Ok(*n)) {
                let size = if dim.known().is_some() { String::new() } else { format!(" = {expected}") };
                return Err(misfit(name, ty, shape, format!(": axis {axis} should be {dim}{size}")));
            }
        }
    }
    Ok(bindings)
}

fn misfit(name: &str, ty: &Type, given: &[usize], why: String) -> BindError {
    BindError::Shape { name: name.into(), expected: ty.to_string(), given: given.to_vec(), why }
}

/// The size of the only symbol in `dim`, when it occurs linearly and `dim = n` has an answer.
fn solve(dim: &Dim, n: usize) -> Option<(Symbol, i64)> {
    let symbol = dim.symbols().into_iter().next()?;
    let at = |x: i64| dim.substitute(&Bindings::from([(symbol.clone(), x)])).known();
    let (zero, one) = (at(0)?, at(1)?);
    let slope = one.checked_sub(zero)?;
    let size = i64::try_from(n).ok()?.checked_sub(zero)?.checked_div(slope)?;
    (size >= 0 && at(size)? == i64::try_from(n).ok()?).then_some((symbol, size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Attention, DType};
    use crate::rewrite::lower::{Dialect, lower};
    use crate::rewrite::testing::{assert_same, count, f32s, histogram, size};

    fn symbols(list: &[(&str, i64)]) -> Bindings {
        list.iter().map(|(s, n)| (Symbol::new(s), *n)).collect()
    }

    #[test]
    fn masks_become_constants() {
        let mut g = Graph::new("causal");
        let q = g.add_input("q", f32s(&[-1, 2, -2, 8]));
        let a = Attention { scale: 0.3, causal: true, window: Some(3), softcap: None, safe: false };
        let y = g.op(Op::Attention(a), &[q, q, q]);
        g.add_output("y", y);
        lower(&mut g, &Dialect::basic()).unwrap();
        assert!(count(&g, "Range") > 0);
        let bound = bind(&g, &symbols(&[("b", 2), ("t", 5)])).unwrap();
        assert_same(&g, &bound, 0.0);
        let left = histogram(&bound);
        assert!(!left.contains_key("Range") && !left.contains_key("And"), "{left:?}");
        assert_eq!(bound.ty(bound.outputs[0].value).unwrap().known_shape(), Some(vec![2, 2, 5, 8]));
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut g = Graph::new("missing");
        let x = g.add_input("x", f32s(&[-1, -2]));
        g.add_output("y", x);
        let Err(BindError::Missing(names)) = bind(&g, &symbols(&[("b", 2)])) else { panic!("bound") };
        assert_eq!(names, ["t"]);
        let negative = bind(&g, &symbols(&[("b", 2), ("t", -1)]));
        assert!(matches!(negative, Err(BindError::Negative { size: -1, .. })));
        assert!(bind(&g, &symbols(&[("b", 2), ("t", 3), ("unused", 4)])).is_ok());
    }

    #[test]
    fn contradictions_are_errors() {
        let mut g = Graph::new("contradiction");
        let (x, y) = (g.add_input("x", f32s(&[-1])), g.add_input("y", f32s(&[-2])));
        let sum = g.bin(crate::ir::Binary::Add, x, y);
        g.add_output("sum", sum);
        assert!(matches!(bind(&g, &symbols(&[("b", 2), ("t", 3)])), Err(BindError::Graph { .. })));
    }

    #[test]
    fn shapes_give_sizes() {
        let mut g = Graph::new("cached");
        g.add_input("ids", Type::new(DType::I64, vec![size(-1), size(-2)]));
        g.add_input("past", f32s(&[-1, 4, -3, 8]));
        let total = size(-2) + size(-3);
        g.add_input("mask", Type::new(DType::I64, vec![size(-1), total]));
        let all: &[(&str, &[usize])] = &[("mask", &[2, 9]), ("ids", &[2, 5]), ("past", &[2, 4, 4, 8])];
        let expected = symbols(&[("b", 2), ("t", 5), ("s", 4)]);
        assert_eq!(bindings_from(&g, all).unwrap(), expected);
        // The sum gives the size that nothing else does.
        assert_eq!(bindings_from(&g, &all[..2]).unwrap(), expected);

        let message = |given: &[(&str, &[usize])]| bindings_from(&g, given).unwrap_err().to_string();
        assert!(message(&[("nothing", &[1])]).contains("ids, past, mask"));
        assert!(message(&[("ids", &[2])]).contains("1 axes instead of 2"));
        assert!(message(&[("ids", &[2, 5]), ("past", &[3, 4, 4, 8])]).contains("axis 0 should be b = 2"));
        assert!(message(&[("past", &[2, 3, 4, 8])]).ends_with("axis 1 should be 4"));
        assert!(message(&[("mask", &[2, 8]), ("ids", &[2, 5]), ("past", &[2, 4, 4, 8])]).contains("axis 1"));
    }
}
