//! Sizes computed from the shapes of the inputs, in place of [`Op::Dims`].
//!
//! ```text
//!   Dims [batch, 2·t]     becomes  Concat(Shape(ids)[0..1], Mul(Shape(ids)[1..2], 2))
//! ```

use std::collections::HashMap;

use crate::ir::{Atom, Binary, Dim, Graph, GraphError, Op, Symbol, ValueId};
use crate::rewrite::sweep::sweep_first;

/// Replaces every node whose symbols the inputs bind; returns how many.
pub(super) fn lower(graph: &mut Graph) -> Result<usize, GraphError> {
    let mut sources: HashMap<Symbol, (ValueId, usize)> = HashMap::new();
    for v in graph.inputs() {
        for (axis, d) in graph.shape(*v).unwrap_or_default().iter().enumerate() {
            if let Some(s) = d.as_symbol() {
                sources.entry(s.clone()).or_insert((*v, axis));
            }
        }
    }
    let mut build = Build { sources, made: HashMap::new() };
    sweep_first(graph, |graph, id| {
        let Some(Op::Dims { dims, scalar }) = graph.node(id).map(|n| n.op.clone()) else { return Ok(None) };
        if !dims.iter().all(|d| d.symbols().iter().all(|s| build.sources.contains_key(s))) {
            return Ok(None);
        }
        let mut parts = vec![];
        for d in &dims {
            parts.push(build.dim(graph, d)?);
        }
        match (&parts[..], scalar) {
            ([], _) => Ok(Some(graph.ints(&[]))),
            ([one], true) => graph.add(Op::Squeeze { axes: vec![0] }, &[*one]).map(Some),
            ([one], false) => Ok(Some(*one)),
            _ => graph.add(Op::Concat { axis: 0 }, &parts).map(Some),
        }
    })
}

/// Expressions made so far, each a vector of one element.
struct Build {
    sources: HashMap<Symbol, (ValueId, usize)>,
    made: HashMap<Dim, ValueId>,
}

impl Build {
    fn dim(&mut self, graph: &mut Graph, d: &Dim) -> Result<ValueId, GraphError> {
        if let Some(v) = self.made.get(d) {
            return Ok(*v);
        }
        let mut sum: Option<ValueId> = None;
        for (coefficient, atoms) in d.monomials() {
            let mut product: Option<ValueId> = None;
            for atom in &atoms {
                let factor = self.atom(graph, atom)?;
                product = Some(joined(graph, Binary::Mul, product, factor)?);
            }
            if coefficient != 1 || product.is_none() {
                let factor = graph.ints(&[coefficient]);
                product = Some(joined(graph, Binary::Mul, product, factor)?);
            }
            if let Some(term) = product {
                sum = Some(joined(graph, Binary::Add, sum, term)?);
            }
        }
        let v = match sum {
            Some(v) => v,
            None => graph.ints(&[0]),
        };
        self.made.insert(d.clone(), v);
        Ok(v)
    }

    fn atom(&mut self, graph: &mut Graph, atom: &Atom) -> Result<ValueId, GraphError> {
        let (function, a, b) = match atom {
            Atom::Symbol(s) => {
                return match self.sources.get(s).copied() {
                    Some((v, axis)) => graph.add(Op::Shape { start: axis, end: axis + 1 }, &[v]),
                    None => graph.add(Op::Dims { dims: vec![s.clone().into()], scalar: false }, &[]),
                };
            }
            Atom::FloorDiv(a, b) => (Binary::Div, a, b),
            Atom::Mod(a, b) => (Binary::Mod, a, b),
            Atom::Min(a, b) => (Binary::Min, a, b),
            Atom::Max(a, b) => (Binary::Max, a, b),
        };
        let (a, b) = (self.dim(graph, a)?, self.dim(graph, b)?);
        if function == Binary::Div {
            return floor_div(graph, a, b);
        }
        graph.add(Op::Binary(function), &[a, b])
    }
}

/// `(a - a mod b) / b`: exact for any sign, since Mod has the divisor's.
fn floor_div(graph: &mut Graph, a: ValueId, b: ValueId) -> Result<ValueId, GraphError> {
    let rest = graph.add(Op::Binary(Binary::Mod), &[a, b])?;
    let whole = graph.add(Op::Binary(Binary::Sub), &[a, rest])?;
    graph.add(Op::Binary(Binary::Div), &[whole, b])
}

fn joined(graph: &mut Graph, f: Binary, a: Option<ValueId>, b: ValueId) -> Result<ValueId, GraphError> {
    match a {
        Some(a) => graph.add(Op::Binary(f), &[a, b]),
        None => Ok(b),
    }
}
