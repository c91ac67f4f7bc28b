//! Which inputs of a model are tokens, masks and positions, and which output is logits.

use snlp_passes::ir::{DType, Graph, Tensor, Type};
use snlp_passes::rewrite::bindings_from;

use crate::error::Error;
use crate::feeds::{convert, index_bounds, input_types};
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
            let size = if symbol.name().contains("past") { 0 } else { length as i64 };
            bindings.entry(symbol).or_insert(size);
        }
        let shape: Option<Vec<usize>> =
            ty.shape.iter().map(|d| d.substitute(&bindings).known_size()).collect();
        let tensor = shape.and_then(|shape| companion(name, ty, shape)).ok_or_else(|| {
            Error::input(format!("input '{}' ({ty}) cannot be derived from token ids", text::name(name)))
                .help("eval knows token ids, attention masks, positions, token types and empty caches")
        })?;
        out.push((name.to_string(), tensor));
    }
    Ok(out)
}

/// What goes with token ids, told by name and type.
fn companion(name: &str, ty: &Type, shape: Vec<usize>) -> Option<Tensor> {
    let count: usize = shape.iter().product();
    let last = shape.last().copied().unwrap_or(1).max(1);
    let whole = if name.contains("mask") || ty.dtype == DType::Bool {
        vec![1; count]
    } else if name.contains("position") {
        (0..count).map(|i| (i % last) as i64).collect()
    } else if name.contains("type") || count == 0 {
        vec![0; count]
    } else {
        return None;
    };
    convert(&Tensor::from_vec(shape, whole).ok()?, ty.dtype).ok()
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

#[cfg(test)]
mod tests {
    use super::*;
    use snlp_passes::ir::Dim;

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
        let g = text_model(&[("pixels", DType::F32)]);
        assert!(token_feeds(&g, &ids).expect_err("pixels").report().contains("'pixels'"));
    }
}
