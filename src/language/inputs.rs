//! Which inputs of a model are tokens, masks and positions, and which output is logits.

use std::collections::BTreeMap;

use snlp_passes::eval::allocation;
use snlp_passes::ir::{DType, Dim, Graph, GraphError, Op, Tensor, Type, ValueId};
use snlp_passes::rewrite::{bindings_from, clean_up, fits, instantiate};

use crate::error::Error;
use crate::feeds::{convert, index_bounds, input_types};
use crate::samples::is_past;
use crate::text;

/// Name of the input that takes token ids.
///
/// # Errors
/// When no input, or more than one, could be it.
pub fn token_input(graph: &Graph) -> Result<&str, Error> {
    let bounds = index_bounds(graph);
    let inputs = input_types(graph);
    let whole: Vec<&str> =
        inputs.iter().filter(|(_, t)| t.dtype.is_int() && t.rank() == 2).map(|(n, _)| *n).collect();
    if let Some(name) = whole.iter().find(|n| **n == "input_ids") {
        return Ok(name);
    }
    let selecting: Vec<&str> =
        whole.iter().copied().filter(|n| bounds.iter().any(|b| b.input == *n)).collect();
    match (&selecting[..], &whole[..]) {
        ([name], _) | (_, [name]) => Ok(name),
        _ => {
            let all: Vec<String> = inputs.iter().map(|(n, t)| format!("{} {t}", text::name(n))).collect();
            Err(Error::input(format!(
                "cannot tell which input takes token ids; the model's inputs are {}",
                all.join(", ")
            ))
            .help("tokens need one integer input [batch, sequence], or one called input_ids"))
        }
    }
}

/// All inputs of a model for a batch of token ids `[batch, sequence]`: masks are ones, positions count
/// up, token types are zero, caches are empty.
///
/// # Errors
/// When an input is none of these, or the sizes do not fit.
pub fn token_feeds(graph: &Graph, ids: &Tensor) -> Result<Vec<(String, Tensor)>, Error> {
    let tokens = token_input(graph)?.to_string();
    let mut bindings = bindings_from(graph, &[(&tokens, ids.shape())]).map_err(|e| {
        Error::input("the token windows do not fit the model")
            .because(e)
            .help("use windows of a length that the model takes")
    })?;
    let length = ids.shape().last().copied().unwrap_or(0);
    let mut out = Vec::new();
    for (name, ty) in input_types(graph) {
        if name == tokens {
            let ids = convert(ids, ty.dtype)
                .map_err(|e| Error::input(format!("input '{}': {e}", text::name(name))))?;
            out.push((name.to_string(), ids));
            continue;
        }
        for symbol in ty.shape.iter().flat_map(|d| d.symbols()) {
            let size = if is_past(&symbol) { 0 } else { length as i64 };
            bindings.entry(symbol).or_insert(size);
        }
        let shape: Option<Vec<usize>> =
            ty.shape.iter().map(|d| d.substitute(&bindings).known_size()).collect();
        let tensor = shape.and_then(|shape| {
            let empty = shape.contains(&0);
            companion(name, ty, empty)?.tensor(ty, shape)
        });
        let tensor = tensor.ok_or_else(|| underivable(name, ty))?;
        out.push((name.to_string(), tensor));
    }
    Ok(out)
}

/// The longest sequence that the graph's own shapes and tables of positions allow, if that is at most
/// `limit`: a length that is declared, or the last one at which the graph does not contradict itself.
pub fn longest(graph: &Graph, limit: usize) -> Option<usize> {
    let token = token_input(graph).ok()?;
    let shape = graph.shape(graph.input(token)?)?;
    if let Some(fixed) = shape.last()?.known_size() {
        return (fixed <= limit).then_some(fixed);
    }
    let rows = shape.first()?.known_size().unwrap_or(1);
    let allows = |length: usize| {
        let ids = Tensor::from_vec(vec![rows, length], vec![0i64; rows * length]).ok()?;
        let feeds = token_feeds(graph, &ids).ok()?;
        let shapes: Vec<(&str, &[usize])> = feeds.iter().map(|(n, t)| (n.as_str(), t.shape())).collect();
        fits(graph, &bindings_from(graph, &shapes).ok()?).ok()
    };
    let (mut good, mut bad) = (1, limit.checked_add(1)?);
    // Where not even one token fits, it is not the length that does not.
    if allows(limit).is_some() || allows(good).is_none() {
        return None;
    }
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if allows(middle).is_some() { good = middle } else { bad = middle }
    }
    Some(good)
}

/// What an input that goes with token ids holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Companion {
    /// A mask that excludes nothing.
    Ones,
    /// Positions along the last axis.
    CountUp,
    /// Token types, empty caches.
    Zeros,
}

/// What goes with token ids, told by name and type.
fn companion(name: &str, ty: &Type, empty: bool) -> Option<Companion> {
    if name.contains("mask") || ty.dtype == DType::Bool {
        Some(Companion::Ones)
    } else if name.contains("position") {
        Some(Companion::CountUp)
    } else {
        (name.contains("type") || empty).then_some(Companion::Zeros)
    }
}

impl Companion {
    fn tensor(self, ty: &Type, shape: Vec<usize>) -> Option<Tensor> {
        let count = allocation(DType::I64, &shape).ok()?;
        let last = shape.last().copied().unwrap_or(1).max(1);
        let whole = match self {
            Companion::Ones => vec![1; count],
            Companion::CountUp => (0..count).map(|i| (i % last) as i64).collect(),
            Companion::Zeros => vec![0; count],
        };
        convert(&Tensor::from_vec(shape, whole).ok()?, ty.dtype).ok()
    }

    /// The value in a graph where sizes may be symbols.
    fn value(self, graph: &mut Graph, ty: &Type) -> Result<Option<ValueId>, GraphError> {
        let known = ty.known_shape();
        if let Some(tensor) = known.and_then(|shape| self.tensor(ty, shape)) {
            return Ok(Some(graph.constant(tensor)));
        }
        let shape = graph.dims(&ty.shape)?;
        let one = |n: i64| convert(&Tensor::ints(&[n]), ty.dtype).ok();
        let filled = match self {
            Companion::Ones => one(1),
            Companion::Zeros => one(0),
            Companion::CountUp => {
                let Some(last) = ty.shape.last() else { return Ok(None) };
                let (from, to, step) = (graph.scalar(0i64), graph.dim_scalar(last)?, graph.scalar(1i64));
                let range = graph.add(Op::Range, &[from, to, step])?;
                let range = graph.add(Op::Cast { to: ty.dtype }, &[range])?;
                return graph.add(Op::Expand, &[range, shape]).map(Some);
            }
        };
        match filled {
            Some(value) => graph.add(Op::ConstantOfShape { value }, &[shape]).map(Some),
            None => Ok(None),
        }
    }
}

/// The model for one sequence of tokens `[1, t]` without padding and with empty caches: all other inputs take
/// the values that [`token_feeds`] gives them, and so depend on `t` alone.
///
/// # Errors
/// When the tokens' sizes are fixed, or an input cannot be derived from them.
pub fn one_sequence(graph: &Graph) -> Result<Graph, Error> {
    let tokens = token_input(graph)?.to_string();
    let shape = graph.input(&tokens).and_then(|v| graph.shape(v)).unwrap_or_default();
    let [batch, length] = shape else { return Err(not_one(&tokens, "it has no two axes")) };
    if batch.known().is_some_and(|n| n != 1) || (batch.known().is_none() && batch.as_symbol().is_none()) {
        return Err(not_one(&tokens, &format!("it takes batches of {batch}")));
    }
    let Some(length) = length.as_symbol() else {
        return Err(not_one(&tokens, &format!("it takes sequences of {length} tokens only")));
    };
    let mut sizes = BTreeMap::from([(length.clone(), Dim::from(length.clone()))]);
    if let Some(batch) = batch.as_symbol() {
        sizes.insert(batch.clone(), Dim::ONE);
    }
    for (_, ty) in input_types(graph) {
        for (axis, symbol) in
            ty.shape.iter().enumerate().flat_map(|(i, d)| d.symbols().into_iter().map(move |s| (i, s)))
        {
            let size = match () {
                () if is_past(&symbol) => Dim::ZERO,
                () if axis == 0 && ty.rank() > 1 => Dim::ONE,
                () => length.clone().into(),
            };
            sizes.entry(symbol).or_insert(size);
        }
    }
    let mut lacking = None;
    let mut stands_for = |graph: &mut Graph, name: &str, ty: &Type| {
        if name == tokens {
            return Ok(None);
        }
        let made = match companion(name, ty, ty.elements() == Dim::ZERO) {
            Some(companion) => companion.value(graph, ty)?,
            None => None,
        };
        if made.is_none() && lacking.is_none() {
            lacking = Some(underivable(name, ty));
        }
        Ok(made)
    };
    let mut out = instantiate(graph, &sizes, &mut stands_for).map_err(|e| {
        Error::input("the model contradicts itself for one sequence without padding").because(e)
    })?;
    if let Some(error) = lacking {
        return Err(error);
    }
    clean_up(&mut out).map_err(|e| {
        Error::input("the model for one sequence cannot be simplified")
            .because(e)
            .help("this is a defect of snlp: please report it")
    })?;
    Ok(out)
}

fn not_one(tokens: &str, why: &str) -> Error {
    Error::input(format!("input '{}' does not take one sequence of any length: {why}", text::name(tokens)))
        .help("export the model with dynamic axes for batch and sequence")
}

fn underivable(name: &str, ty: &Type) -> Error {
    Error::input(format!("input '{}' ({ty}) cannot be derived from token ids", text::name(name)))
        .help("token ids, attention masks, positions, token types and empty caches are known")
}

/// Position and name of the output that holds logits `[batch, sequence, vocabulary]`.
///
/// # Errors
/// When no output could be it.
pub fn logits_output(graph: &Graph) -> Result<(usize, &str), Error> {
    let fits = |t: Option<&Type>| t.is_some_and(|t| t.dtype.is_float() && t.rank() == 3);
    let found: Vec<(usize, &str)> = graph
        .outputs
        .iter()
        .enumerate()
        .filter(|(_, o)| fits(graph.ty(o.value)))
        .map(|(i, o)| (i, o.name.as_str()))
        .collect();
    found.iter().find(|(_, n)| *n == "logits").or(found.first()).copied().ok_or_else(|| {
        Error::input("no output of the model holds logits [batch, sequence, vocabulary]")
            .help("eval measures language models with a head")
    })
}

/// The graph with no output but the logits.
///
/// # Errors
/// As [`logits_output`].
pub fn logits_alone(mut graph: Graph) -> Result<Graph, Error> {
    let (at, _) = logits_output(&graph)?;
    let logits = graph.outputs.swap_remove(at);
    graph.outputs = vec![logits];
    graph.remove_dead();
    Ok(graph)
}

#[cfg(test)]
mod tests {
    use super::*;
    use snlp_passes::ir::{Binary, Dim, Op};

    #[test]
    fn tables_of_positions_bound_the_length() {
        // ids [batch, t] as floats + table[0..t]
        let mut g = text_model(&[]);
        let ids = g.inputs()[0];
        let t = g.shape(ids).expect("typed")[1].clone();
        let table = g.constant(Tensor::from_vec(vec![40], vec![0f32; 40]).expect("fits"));
        let zero = g.add(Op::Dims { dims: vec![Dim::ZERO], scalar: false }, &[]).expect("typed");
        let end = g.add(Op::Dims { dims: vec![t], scalar: false }, &[]).expect("typed");
        let rows = g.add(Op::Slice { axes: vec![0], steps: vec![1] }, &[table, zero, end]);
        let cast = g.add(Op::Cast { to: DType::F32 }, &[ids]).expect("typed");
        let sum = g.add(Op::Binary(Binary::Add), &[cast, rows.expect("typed")]).expect("typed");
        g.add_output("y", sum);
        assert_eq!((longest(&g, 100), longest(&g, 40), longest(&g, 30)), (Some(40), None, None));
        let mut g = Graph::new("g");
        g.add_input("ids", Type::new(DType::I64, vec![Dim::symbol("batch"), 16i64.into()]));
        assert_eq!(longest(&g, 100), Some(16));
    }

    fn text_model(extra: &[(&str, DType)]) -> Graph {
        let mut g = Graph::new("g");
        let shape = || vec![Dim::symbol("batch"), Dim::symbol("t")];
        g.add_input("ids", Type::new(DType::I64, shape()));
        for (name, dtype) in extra {
            g.add_input(name, Type::new(*dtype, shape()));
        }
        g
    }

    #[test]
    fn tokens_and_their_companions() {
        let g = text_model(&[("attention_mask", DType::I64), ("position_ids", DType::I32)]);
        assert!(token_input(&g).is_err(), "three candidates and no table");
        let mut g = text_model(&[]);
        g.add_input("attention_mask", Type::new(DType::F32, vec![Dim::symbol("b2"), Dim::symbol("t2")]));
        let ids = Tensor::from_vec(vec![2, 3], vec![1i64; 6]).expect("fits");
        let feeds = token_feeds(&g, &ids).expect("made");
        assert_eq!(feeds[0].1, ids);
        assert_eq!(feeds[1].1.dtype(), DType::F32);
        assert_eq!(longest(&g, 100), None, "nothing bounds it");
        let g = text_model(&[("pixels", DType::F32)]);
        assert!(token_feeds(&g, &ids).expect_err("pixels").report().contains("'pixels'"));
    }
}
