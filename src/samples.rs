//! Deterministic inputs for a model, made from what its graph says of them.
//!
//! Indices are drawn below the number of rows that they select from, masks are all ones, integers that
//! select nothing count up along their last axis (positions), floats are drawn from -1..1.

use snlp_passes::eval::allocation;
use snlp_passes::ir::{Bindings, DType, Graph, Op, Symbol, Tensor, Type, ValueId};
use snlp_passes::rewrite::bind;

use crate::error::Error;
use crate::feeds::{IndexBound, convert, index_bounds, input_types};
use crate::text;

/// Sizes for the symbols of the inputs: 1 for the first axis of each input, 0 for the length of a cache,
/// `length` for everything else.
pub fn sample_sizes(graph: &Graph, length: usize) -> Bindings {
    let mut sizes = Bindings::new();
    let mut bind = |symbol: &Symbol, size: usize| {
        sizes.entry(symbol.clone()).or_insert(i64::try_from(size).unwrap_or(i64::MAX));
    };
    let inputs = input_types(graph);
    for (_, ty) in &inputs {
        if let Some(symbol) = ty.shape.first().and_then(|d| d.as_symbol())
            && ty.rank() > 1
        {
            bind(symbol, 1);
        }
    }
    for symbol in inputs.iter().flat_map(|(_, ty)| ty.shape.iter().flat_map(|d| d.symbols())) {
        bind(&symbol, if is_past(&symbol) { 0 } else { length });
    }
    sizes
}

/// The first of `length`, 4·`length`, 16·`length`, … at which every operator has something to work on: the
/// convolutions in front of a model of sound, say, leave nothing of a few samples.
pub fn sample_length(graph: &Graph, length: usize) -> usize {
    let works = |n: &usize| bind(graph, &sample_sizes(graph, *n)).is_ok();
    (0..LONGER).map(|i| length << (2 * i)).find(works).unwrap_or(length)
}

/// How many lengths [`sample_length`] tries.
const LONGER: u32 = 6;

/// Whether a symbol is the length of a cache.
pub(crate) fn is_past(symbol: &Symbol) -> bool {
    symbol.name().contains("past")
}

/// Sizes for one new position behind caches of `past` positions; `None` for a model without caches.
pub fn decode_sizes(graph: &Graph, past: usize) -> Option<Bindings> {
    let mut sizes = sample_sizes(graph, 1);
    let past = i64::try_from(past).ok()?;
    let caches: Vec<Symbol> = sizes.keys().filter(|s| is_past(s)).cloned().collect();
    if caches.is_empty() {
        return None;
    }
    sizes.extend(caches.into_iter().map(|symbol| (symbol, past)));
    // Where a cache's other axes are named, what the model returns in their place has them.
    for (_, ty) in input_types(graph).into_iter().filter(|(_, ty)| ty.dtype.is_float() && ty.rank() > 2) {
        for (axis, symbol) in ty.shape.iter().enumerate().skip(1) {
            let made =
                graph.outputs.iter().filter_map(|o| graph.shape(o.value)).filter(|s| s.len() == ty.rank());
            if let (Some(symbol), Some(size)) =
                (symbol.as_symbol(), made.filter_map(|s| s[axis].known()).next())
            {
                sizes.insert(symbol.clone(), size);
            }
        }
    }
    // A mask covers both, under a name of its own where it is not declared as a sum.
    for (name, ty) in input_types(graph).into_iter().filter(|(name, _)| name.contains("mask")) {
        let own = |s: &&Symbol| {
            let others = input_types(graph).into_iter().filter(|(n, _)| *n != name);
            !others.flat_map(|(_, ty)| ty.shape.iter().flat_map(|d| d.symbols())).any(|o| o == **s)
        };
        let last = ty.shape.last().and_then(|d| d.as_symbol()).filter(|s| !is_past(s));
        if let Some(symbol) = last.filter(own) {
            sizes.insert(symbol.clone(), past + 1);
        }
    }
    Some(sizes)
}

/// Inputs at the given sizes, the same in every run.
///
/// # Errors
/// When an input's size does not follow from the sizes.
pub fn sample_inputs(graph: &Graph, sizes: &Bindings) -> Result<Vec<(String, Tensor)>, Error> {
    let bounds = index_bounds(graph);
    let mut out = Vec::new();
    for (i, v) in graph.inputs().iter().enumerate() {
        let (Some(name), Some(ty)) = (&graph.value(*v).name, graph.ty(*v)) else { continue };
        let shape: Option<Vec<usize>> = ty.shape.iter().map(|d| d.substitute(sizes).known_size()).collect();
        let shape = shape.ok_or_else(|| {
            Error::input(format!("cannot choose a size for input '{}', declared as {ty}", text::name(name)))
                .help("give inputs yourself")
        })?;
        let tensor = sample(graph, *v, ty, shape, &bounds, i as u64).map_err(|reason| {
            Error::input(format!("cannot make a sample for input '{}': {reason}", text::name(name)))
        })?;
        out.push((name.clone(), tensor));
    }
    Ok(out)
}

fn sample(
    graph: &Graph,
    v: ValueId,
    ty: &Type,
    shape: Vec<usize>,
    bounds: &[IndexBound],
    seed: u64,
) -> Result<Tensor, String> {
    let name = graph.value(v).name.as_deref().unwrap_or_default();
    // Of the widest type that is made on the way.
    let count = allocation(DType::I64, &shape).map_err(|e| e.to_string())?;
    let rows = bounds.iter().filter(|b| b.input == name).map(|b| b.rows).min();
    let mut random = SplitMix(seed.wrapping_mul(0x9e37_79b9) + 1);
    let whole = |data: Vec<i64>| Tensor::from_vec(shape.clone(), data).map_err(|e| e.to_string());
    let tensor = if ty.dtype.is_float() {
        let data: Vec<f32> = (0..count).map(|_| random.unit() * 2.0 - 1.0).collect();
        Tensor::from_vec(shape.clone(), data).map_err(|e| e.to_string())?
    } else if let Some(rows) = rows.filter(|r| *r > 0) {
        whole((0..count).map(|_| random.below(rows)).collect())?
    } else if ty.dtype == DType::Bool || is_mask(graph, v, name) {
        whole(vec![1; count])?
    } else {
        let last = shape.last().copied().unwrap_or(1).max(1);
        whole((0..count).map(|i| (i % last) as i64).collect())?
    };
    convert(&tensor, ty.dtype)
}

/// Whether an integer input is a mask: it is compared, or becomes a float or a bool.
fn is_mask(graph: &Graph, v: ValueId, name: &str) -> bool {
    let reads = |op: &Op| {
        matches!(op, Op::Binary(b) if b.is_predicate())
            || matches!(op, Op::Cast { to } if *to == DType::Bool || to.is_float())
    };
    name.contains("mask") || graph.nodes().any(|(_, n)| n.operands().any(|o| o == v) && reads(&n.op))
}

/// Steele, Lea and Flood's SplitMix64: the same numbers everywhere.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to 1, exclusive.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// From 0 to `n`, exclusive, for `n >= 1`.
    fn below(&mut self, n: i64) -> i64 {
        (self.next() >> 33) as i64 % n.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use snlp_passes::ir::Dim;

    #[test]
    fn absurd_sizes_are_refused() {
        for dims in [[1i64 << 31, 1 << 31], [1 << 20, 1 << 20], [0, i64::MAX]] {
            let mut g = Graph::new("g");
            g.add_input("x", Type::new(DType::F32, dims.map(Dim::from).to_vec()));
            let report = sample_inputs(&g, &sample_sizes(&g, 4)).expect_err("too large").report();
            assert!(report.contains("'x'") && report.contains("larger than"), "{report}");
        }
    }

    #[test]
    fn samples_fit_the_graph() {
        let mut g = Graph::new("g");
        let shape = || vec![Dim::symbol("batch"), Dim::symbol("t")];
        let ids = g.add_input("ids", Type::new(DType::I32, shape()));
        g.add_input("attention_mask", Type::new(DType::I64, shape()));
        g.add_input("position_ids", Type::new(DType::I64, shape()));
        let past = vec![Dim::symbol("batch"), 2i64.into(), Dim::symbol("past_len"), 4i64.into()];
        g.add_input("past", Type::new(DType::F16, past));
        let table = g.constant(Tensor::from_vec(vec![5, 1], vec![0f32; 5]).expect("fits"));
        let out = g.add(Op::Gather { axis: 0 }, &[table, ids]).expect("typed");
        g.add_output("out", out);
        let sizes = sample_sizes(&g, 6);
        let inputs = sample_inputs(&g, &sizes).expect("made");
        assert!(crate::feeds::feeds(&g, &inputs).is_ok());
        assert_eq!(inputs[0].1.shape(), [1, 6]);
        let ids = inputs[0].1.to_i64().expect("whole");
        assert!(ids.iter().all(|i| (0..5).contains(i)) && ids.iter().any(|i| *i != ids[0]));
        assert_eq!(inputs[1].1.to_i64(), Some(vec![1; 6]));
        assert_eq!(inputs[2].1.to_i64(), Some(vec![0, 1, 2, 3, 4, 5]));
        assert_eq!((inputs[3].1.shape(), inputs[3].1.dtype()), (&[1, 2, 0, 4][..], DType::F16));
        assert!(
            decode_sizes(&g, 3)
                .is_some_and(|s| s[&Symbol::new("past_len")] == 3 && s[&Symbol::new("t")] == 1)
        );
        let again = sample_inputs(&g, &sizes).expect("made");
        assert!(inputs.iter().zip(&again).all(|((_, a), (_, b))| a == b));
    }
}
