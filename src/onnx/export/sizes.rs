//! Symbolic integers computed from the shapes of the graph inputs.
//!
//! ```text
//!   input_ids ─▶ Shape ─┬▶ Gather [0] ─ batch ────┐
//!                       └▶ Gather [1] ─ sequence ─┴▶ Concat ─ [batch, sequence, 64]
//! ```
//!
//! One `Shape` per input, and each subexpression once, as an int64 vector of one element.

use std::collections::{BTreeMap, HashMap};

use snlp_passes::ir::{Atom, Dim, Graph, Symbol, ValueId};

use super::Writer;
use super::arithmetic::index;
use super::nodes::Call;
use crate::onnx::attributes::{int, ints};
use crate::onnx::error::OnnxError;

/// How to compute a symbol: the size of an axis of a graph input, less the rest of its expression.
struct Source {
    input: ValueId,
    axis: usize,
    less: Dim,
}

/// What has been computed so far.
pub(super) struct Sizes {
    sources: BTreeMap<Symbol, Source>,
    shapes: HashMap<ValueId, String>,
    vectors: HashMap<Dim, String>,
}

impl Sizes {
    /// Finds an axis for each symbol; one that stands alone is preferred to a sum that is solved for it.
    pub(super) fn of(graph: &Graph) -> Self {
        let mut sources: BTreeMap<Symbol, Source> = BTreeMap::new();
        let shapes = |v: &ValueId| graph.shape(*v).unwrap_or_default().iter().cloned().enumerate();
        let axes: Vec<(ValueId, usize, Dim)> =
            graph.inputs().iter().flat_map(|v| shapes(v).map(|(axis, d)| (*v, axis, d))).collect();
        for (input, axis, dim) in &axes {
            if let Some(s) = dim.as_symbol() {
                let alone = Source { input: *input, axis: *axis, less: Dim::ZERO };
                sources.entry(s.clone()).or_insert(alone);
            }
        }
        loop {
            let before = sources.len();
            for (input, axis, dim) in &axes {
                if let Some((symbol, less)) = solve(dim, &sources) {
                    sources.insert(symbol, Source { input: *input, axis: *axis, less });
                }
            }
            if sources.len() == before {
                return Sizes { sources, shapes: HashMap::new(), vectors: HashMap::new() };
            }
        }
    }
}

/// The one unknown symbol of `dim` and what else is added to it, when `dim` is such a sum.
fn solve(dim: &Dim, known: &BTreeMap<Symbol, Source>) -> Option<(Symbol, Dim)> {
    let mut unknown = dim.symbols().into_iter().filter(|s| !known.contains_key(s));
    let (symbol, None) = (unknown.next()?, unknown.next()) else { return None };
    let less = dim.clone() - Dim::from(symbol.clone());
    (!less.symbols().contains(&symbol)).then_some((symbol, less))
}

impl Writer<'_> {
    /// A vector (or scalar) of expressions.
    pub(super) fn dims(&mut self, call: &Call<'_>, dims: &[Dim], scalar: bool) -> Result<(), OnnxError> {
        let result = call.outputs.clone();
        if let [dim] = dims {
            let vector = self.vector(dim)?;
            let (op_type, more, attributes) = match (scalar, self.opset >= 13) {
                (false, _) => ("Identity", vec![], vec![]),
                (true, true) => ("Squeeze", vec![self.ints(&[0])], vec![]),
                (true, false) => ("Squeeze", vec![], vec![ints("axes", &[0])]),
            };
            let inputs = [vec![vector], more].concat();
            self.push(&call.node.name, op_type, inputs, result, attributes);
            return Ok(());
        }
        let mut pieces = Vec::new();
        let mut constants: Vec<i64> = Vec::new();
        for dim in dims {
            match dim.known() {
                Some(n) => constants.push(n),
                None => {
                    if !constants.is_empty() {
                        pieces.push(self.ints(&std::mem::take(&mut constants)));
                    }
                    pieces.push(self.vector(dim)?);
                }
            }
        }
        if !constants.is_empty() || pieces.is_empty() {
            pieces.push(self.ints(&constants));
        }
        self.push(&call.node.name, "Concat", pieces, result, vec![int("axis", 0)]);
        Ok(())
    }

    /// The name of an int64 vector of one element with the value of `dim`.
    fn vector(&mut self, dim: &Dim) -> Result<String, OnnxError> {
        if let Some(n) = dim.known() {
            return Ok(self.ints(&[n]));
        }
        if let Some(name) = self.sizes.vectors.get(dim) {
            return Ok(name.clone());
        }
        let name = match dim.as_symbol() {
            Some(symbol) => self.symbol(symbol)?,
            None => self.polynomial(dim)?,
        };
        self.sizes.vectors.insert(dim.clone(), name.clone());
        Ok(name)
    }

    fn size_node(&mut self, base: &str, op_type: &str, inputs: Vec<String>) -> String {
        let result = self.names.fresh(base);
        self.push(&result, op_type, inputs, vec![result.clone()], vec![]);
        result
    }

    fn symbol(&mut self, symbol: &Symbol) -> Result<String, OnnxError> {
        let Some(source) = self.sizes.sources.get(symbol) else {
            return Err(OnnxError::unsupported(format!(
                "needs the size '{symbol}', which no graph input has as the size of an axis"
            )));
        };
        let (input, axis, less) = (source.input, source.axis, source.less.clone());
        let shape = match self.sizes.shapes.get(&input) {
            Some(name) => name.clone(),
            None => {
                let of = self.name(input).to_string();
                let name = self.size_node(&format!("{of}_shape"), "Shape", vec![of]);
                self.sizes.shapes.insert(input, name.clone());
                name
            }
        };
        let at = self.ints(&[index(axis)]);
        let size = self.size_node(&format!("size_{symbol}"), "Gather", vec![shape, at]);
        if less == Dim::ZERO {
            return Ok(size);
        }
        let less = self.vector(&less)?;
        Ok(self.size_node(&format!("size_{symbol}"), "Sub", vec![size, less]))
    }

    fn polynomial(&mut self, dim: &Dim) -> Result<String, OnnxError> {
        let mut sum: Option<String> = None;
        // The constant comes first in the normal form; added last, it may be subtracted instead.
        for (coefficient, atoms) in dim.monomials().into_iter().rev() {
            let mut product: Option<String> = None;
            for atom in &atoms {
                let factor = self.atom(atom)?;
                product = Some(match product {
                    None => factor,
                    Some(p) => self.size_node("size_product", "Mul", vec![p, factor]),
                });
            }
            let scale = if sum.is_some() { coefficient.saturating_abs() } else { coefficient };
            let term = match product {
                None => self.ints(&[scale]),
                Some(p) if scale == 1 => p,
                Some(p) => {
                    let scale = self.ints(&[scale]);
                    self.size_node("size_product", "Mul", vec![p, scale])
                }
            };
            sum = Some(match sum {
                None => term,
                Some(s) if coefficient < 0 => self.size_node("size_difference", "Sub", vec![s, term]),
                Some(s) => self.size_node("size_sum", "Add", vec![s, term]),
            });
        }
        sum.ok_or_else(|| OnnxError::invalid("an empty expression"))
    }

    fn atom(&mut self, atom: &Atom) -> Result<String, OnnxError> {
        let (a, b) = match atom {
            Atom::Symbol(s) => return self.vector(&Dim::from(s.clone())),
            Atom::FloorDiv(a, b) | Atom::Mod(a, b) | Atom::Min(a, b) | Atom::Max(a, b) => (a, b),
        };
        let (left, right) = (self.vector(a)?, self.vector(b)?);
        let operands = vec![left.clone(), right.clone()];
        Ok(match atom {
            Atom::Mod(..) => self.size_node("size_remainder", "Mod", operands),
            // ONNX truncates: take the remainder off first where a quotient may be negative.
            Atom::FloorDiv(..) if !(a.is_non_negative() && b.is_non_negative()) => {
                let remainder = self.size_node("size_remainder", "Mod", operands);
                let whole = self.size_node("size_difference", "Sub", vec![left, remainder]);
                self.size_node("size_quotient", "Div", vec![whole, right])
            }
            Atom::FloorDiv(..) => self.size_node("size_quotient", "Div", operands),
            Atom::Min(..) if self.opset >= 12 => self.size_node("size_minimum", "Min", operands),
            Atom::Max(..) if self.opset >= 12 => self.size_node("size_maximum", "Max", operands),
            Atom::Min(..) => self.choose(operands, left, right),
            _ => self.choose(operands, right, left),
        })
    }

    /// `if a < b then yes else no`: integers have no minimum before opset 12.
    fn choose(&mut self, operands: Vec<String>, yes: String, no: String) -> String {
        let less = self.size_node("size_less", "Less", operands);
        self.size_node("size_choice", "Where", vec![less, yes, no])
    }
}
