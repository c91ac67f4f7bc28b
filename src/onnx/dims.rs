//! Declared types and their symbolic dimensions, in both directions.
//!
//! A `dim_param` is a name; exporters also write expressions of other names (`past + sequence`). An
//! expression is read as one when every name in it is the size of some graph input's axis; otherwise the
//! whole text is a symbol of its own.

use std::collections::HashSet;

use snlp_passes::ir::{Dim, Graph, Type};

use super::error::OnnxError;
use super::proto::tensor_shape_proto::{Dimension, dimension};
use super::proto::type_proto::{Tensor as TensorType, Value as TypeValue};
use super::proto::{TensorShapeProto, TypeProto, ValueInfoProto};
use super::tensor::{dtype_of, number_of, type_name};

/// Symbols known from the graph inputs.
#[derive(Default)]
pub(super) struct Symbols {
    names: HashSet<String>,
}

impl Symbols {
    /// The plain names among the dimensions of `inputs`.
    pub(super) fn of_inputs<'a>(inputs: impl IntoIterator<Item = &'a ValueInfoProto>) -> Self {
        let mut names = HashSet::new();
        for dim in inputs.into_iter().filter_map(shape_of).flat_map(|s| &s.dim) {
            if let Some(dimension::Value::DimParam(text)) = &dim.value
                && !text.is_empty()
                && text.chars().all(is_name)
            {
                names.insert(text.clone());
            }
        }
        Symbols { names }
    }

    /// The dimension that a `dim_param` stands for.
    fn dim(&self, text: &str) -> Dim {
        let parsed = if self.names.contains(text) { None } else { Parser::new(text, &self.names).parse() };
        parsed.unwrap_or_else(|| Dim::symbol(&symbol_name(text)))
    }
}

/// Names of the form `_7` are kept for the graph's own fresh symbols.
fn symbol_name(text: &str) -> String {
    if is_fresh(text) { format!("dim{text}") } else { text.to_string() }
}

fn is_fresh(name: &str) -> bool {
    name.strip_prefix('_').is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| c.is_ascii_digit()))
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '.' | ':')
}

fn shape_of(info: &ValueInfoProto) -> Option<&TensorShapeProto> {
    match info.r#type.as_ref()?.value.as_ref()? {
        TypeValue::TensorType(t) => t.shape.as_ref(),
        _ => None,
    }
}

/// The type of a graph input. Unlike other declarations it must be complete.
pub(super) fn input_type(
    info: &ValueInfoProto,
    symbols: &Symbols,
    graph: &mut Graph,
) -> Result<Type, OnnxError> {
    let at = || format!("graph input '{}'", info.name());
    let tensor = match info.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        Some(TypeValue::TensorType(t)) => t,
        Some(_) => return Err(OnnxError::unsupported("only dense tensors are supported").at(at())),
        None => return Err(OnnxError::invalid("declares no type").at(at())),
    };
    let Some(dtype) = dtype_of(tensor.elem_type()) else {
        let what = format!("element type {} is not supported", type_name(tensor.elem_type()));
        return Err(OnnxError::unsupported(what).at(at()));
    };
    let Some(shape) = &tensor.shape else {
        return Err(OnnxError::unsupported("declares no shape")
            .remedy("export the model with the rank of its inputs")
            .at(at()));
    };
    let dims = dims_of(shape, symbols, &mut || graph.fresh_symbol()).map_err(|e| e.at(at()))?;
    Ok(Type::new(dtype, dims))
}

/// The type that a `value_info` declares, when it is a tensor of a supported type with a shape.
pub(super) fn declared_type(info: &ValueInfoProto, symbols: &Symbols, graph: &mut Graph) -> Option<Type> {
    let TypeValue::TensorType(tensor) = info.r#type.as_ref()?.value.as_ref()? else { return None };
    let dims = dims_of(tensor.shape.as_ref()?, symbols, &mut || graph.fresh_symbol()).ok()?;
    Some(Type::new(dtype_of(tensor.elem_type())?, dims))
}

fn dims_of(
    shape: &TensorShapeProto,
    symbols: &Symbols,
    fresh: &mut dyn FnMut() -> Dim,
) -> Result<Vec<Dim>, OnnxError> {
    let one = |d: &Dimension| match &d.value {
        Some(dimension::Value::DimValue(n)) if *n < 0 => {
            Err(OnnxError::invalid(format!("declares a dimension of {n}"))
                .remedy("give the dimension a name (dim_param) if it is dynamic"))
        }
        Some(dimension::Value::DimValue(n)) => Ok(Dim::from(*n)),
        Some(dimension::Value::DimParam(text)) if !text.is_empty() => Ok(symbols.dim(text)),
        _ => Ok(fresh()),
    };
    shape.dim.iter().map(one).collect()
}

/// A type as ONNX declares it. Sizes that only the data decides stay unnamed.
pub(super) fn value_info(name: &str, ty: &Type) -> ValueInfoProto {
    let dim = |d: &Dim| {
        let value = match d.known() {
            Some(n) => Some(dimension::Value::DimValue(n)),
            None if d.symbols().iter().any(|s| is_fresh(s.name())) => None,
            None => Some(dimension::Value::DimParam(d.to_string())),
        };
        Dimension { value, denotation: None }
    };
    let shape = TensorShapeProto { dim: ty.shape.iter().map(dim).collect() };
    let tensor = TensorType { elem_type: Some(number_of(ty.dtype)), shape: Some(shape) };
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto { value: Some(TypeValue::TensorType(tensor)), denotation: None }),
        ..ValueInfoProto::default()
    }
}

/// Whether a declaration is of a tensor like another one, of the same known sizes, and leaves nothing open that the
/// other one says.
pub(super) fn agree(a: &ValueInfoProto, b: &ValueInfoProto) -> bool {
    let tensor = |info: &ValueInfoProto| match info.r#type.as_ref()?.value.as_ref()? {
        TypeValue::TensorType(tensor) => Some((tensor.elem_type(), tensor.shape.clone()?.dim)),
        _ => None,
    };
    let (Some((a, from)), Some((b, to))) = (tensor(a), tensor(b)) else { return false };
    let fits = |(a, b): (&Dimension, &Dimension)| match (&a.value, &b.value) {
        (Some(dimension::Value::DimValue(a)), Some(dimension::Value::DimValue(b))) => a == b,
        // What is known now has a name there; what is named now may have been left open.
        (Some(_), _) | (None, None) => true,
        (None, Some(_)) => false,
    };
    a == b && from.len() == to.len() && from.iter().zip(&to).all(fits)
}

/// Recursive-descent parser of integer expressions over known names.
struct Parser<'a> {
    rest: &'a str,
    names: &'a HashSet<String>,
    depth: u32,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str, names: &'a HashSet<String>) -> Self {
        Parser { rest: text, names, depth: 0 }
    }

    fn parse(mut self) -> Option<Dim> {
        let dim = self.sum()?;
        self.rest.trim().is_empty().then_some(dim)
    }

    fn eat(&mut self, token: &str) -> bool {
        match self.rest.trim_start().strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn sum(&mut self) -> Option<Dim> {
        self.depth += 1;
        if self.depth > 50 {
            return None;
        }
        let mut left = if self.eat("-") { Dim::ZERO - self.product()? } else { self.product()? };
        loop {
            if self.eat("+") {
                left = left + self.product()?;
            } else if self.eat("-") {
                left = left - self.product()?;
            } else {
                self.depth -= 1;
                return Some(left);
            }
        }
    }

    fn product(&mut self) -> Option<Dim> {
        let mut left = self.atom()?;
        loop {
            if self.eat("//") {
                left = left.floor_div(&self.atom()?)?;
            } else if self.eat("*") {
                left = left * self.atom()?;
            } else if self.eat("%") {
                left = left.modulo(&self.atom()?)?;
            } else {
                return Some(left);
            }
        }
    }

    fn atom(&mut self) -> Option<Dim> {
        if self.eat("(") {
            let inner = self.sum()?;
            return self.eat(")").then_some(inner);
        }
        let text = self.rest.trim_start();
        let end = text.find(|c| !is_name(c)).unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        self.rest = rest;
        if let Ok(n) = word.parse::<i64>() {
            return Some(n.into());
        }
        if self.names.contains(word) {
            return Some(Dim::symbol(&symbol_name(word)));
        }
        self.call(word)
    }

    fn call(&mut self, function: &str) -> Option<Dim> {
        if !self.eat("(") {
            return None;
        }
        let first = if function == "floor" { self.atom()? } else { self.sum()? };
        let divided = function == "floor" && self.eat("/");
        if !divided && !self.eat(",") {
            return None;
        }
        let second = if divided { self.atom()? } else { self.sum()? };
        if !self.eat(")") {
            return None;
        }
        match function {
            "floor" => first.floor_div(&second),
            "mod" | "Mod" => first.modulo(&second),
            "min" | "Min" => Some(first.minimum(&second)),
            "max" | "Max" => Some(first.maximum(&second)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Dim {
        Symbols { names: ["past", "s", "b"].map(String::from).into() }.dim(text)
    }

    #[test]
    fn expressions_of_known_names_are_expressions() {
        let (past, s, b) = (Dim::symbol("past"), Dim::symbol("s"), Dim::symbol("b"));
        assert_eq!(parse("past + s"), past.clone() + s.clone());
        assert_eq!(parse("2*b*(s - 1)"), Dim::from(2i64) * b.clone() * (s.clone() - Dim::ONE));
        assert_eq!(parse("-1 + s"), s.clone() - Dim::ONE);
        assert_eq!(Some(parse("s // 2")), s.floor_div(&2i64.into()));
        for d in [
            s.floor_div(&(b.clone() + Dim::ONE)).unwrap(),
            s.modulo(&3i64.into()).unwrap(),
            s.minimum(&past) * Dim::from(3i64),
            s.maximum(&past) - b,
        ] {
            assert_eq!(parse(&d.to_string()), d);
        }
    }

    #[test]
    fn anything_else_is_a_symbol() {
        for text in ["past + unknown", "Addlast_dim_0", "s +", "floor(s)", "((((", "past s"] {
            assert_eq!(parse(text), Dim::symbol(text));
        }
        assert_eq!(parse("_3"), Dim::symbol("dim_3"));
        let deep = "(".repeat(10_000);
        assert_eq!(parse(&deep), Dim::symbol(&deep));
    }
}
