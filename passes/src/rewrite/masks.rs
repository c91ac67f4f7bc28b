//! Masks by meaning: what part of attention's mask is causality or a window.
//!
//! ```text
//!   Attention(q, k, v, Where(j ≤ i ∧ padding[b, j], 0, -inf))   becomes
//!   Attention { causal }(q, k, v, Where(padding[b, j], 0, -inf))
//! ```
//!
//! The mask is a sum of terms, each excluding where a conjunction of conditions fails. Conditions that are
//! functions of the positions alone are compared with `j ≤ i + (S - T)` and `j > i + (S - T) - w`, however
//! they are spelled; those that always hold vanish; the others stay in the mask.
//!
//! A finite fill (`f32::MIN` instead of -inf) leaves a row without any key to see nearly uniform over all
//! keys. Such masks are taken over only whole: causality alone leaves every row its own key, beside padding
//! a row may lose them all.

use super::attention::EXCLUDED;
use super::index_expr::{Element, Formula, element, index_symbol, index_symbols};
use super::matching::{binary, dtype, made_by, rank, unary, uniform};
use super::sweep::sweep_first;
use super::{Fidelity, Notes, Pass};
use crate::ir::{Attention, Binary, DType, Dim, Graph, GraphError, NodeId, Op, Unary, ValueId};

pub(crate) const PASS: Pass = Pass { name: "masks", fidelity: Fidelity::Rounding, apply };

fn apply(graph: &mut Graph, notes: &mut Notes) -> Result<usize, GraphError> {
    sweep_first(graph, |graph, id| {
        let Some((attention, frame)) = frame(graph, id) else { return Ok(None) };
        let mut terms = vec![];
        additive(graph, frame.mask, &mut terms, 8);
        let mut seen = Seen { attention, changed: false, finite: false };
        let mut kept = vec![];
        for term in terms {
            if let Some(term) = seen.term(graph, &frame, term) {
                kept.push(term);
            }
        }
        if !seen.changed && attention.causal {
            return Ok(None);
        }
        if !seen.changed {
            notes.decline(graph, id, "no part of the mask is causality or a window");
            return Ok(None);
        }
        if seen.finite && !kept.is_empty() {
            notes.decline(graph, id, "a finite fill excludes keys together with another mask");
            return Ok(None);
        }
        let mask = rebuilt(graph, kept)?;
        let Some(node) = graph.node(id).cloned() else { return Ok(None) };
        let mut inputs = node.inputs;
        inputs[3] = mask;
        while inputs.last() == Some(&None) {
            inputs.pop();
        }
        let made = graph.add_node(Op::Attention(seen.attention), inputs, 1, &node.name)?;
        Ok(graph.node(made).and_then(|n| n.outputs.first().copied()))
    })
}

/// Where the mask stands.
struct Frame {
    mask: ValueId,
    /// Queries and keys.
    t: Dim,
    s: Dim,
}

fn frame(graph: &Graph, id: NodeId) -> Option<(Attention, Frame)> {
    let node = graph.node(id)?;
    let Op::Attention(attention) = node.op else { return None };
    // Where the queries stand is then known to the run alone.
    if node.input(5).is_some() {
        return None;
    }
    let rows = |v| graph.shape(v).and_then(|s| s.get(s.len().checked_sub(2)?)).cloned();
    let (t, s) = (rows(node.input(0)?)?, rows(node.input(1)?)?);
    Some((attention, Frame { mask: node.input(3)?, t, s }))
}

/// A summand of a mask.
enum Term {
    /// Excludes, by adding the fill, where one of the conditions fails.
    Exclude { keep: Vec<Condition>, fill: f64, dtype: DType },
    /// Excludes for good where one of the conditions fails.
    Hard(Vec<Condition>),
    /// Anything else.
    Other(ValueId),
}

/// A bool value, or its negation.
#[derive(Clone, Copy)]
struct Condition {
    value: ValueId,
    negated: bool,
}

fn additive(graph: &Graph, mask: ValueId, out: &mut Vec<Term>, depth: usize) {
    if dtype(graph, mask) == Some(DType::Bool) {
        let mut keep = vec![];
        conjuncts(graph, Condition { value: mask, negated: false }, &mut keep, 16);
        return out.push(Term::Hard(keep));
    }
    if let Some((a, b)) = binary(graph, mask, Binary::Add).filter(|_| depth > 0) {
        additive(graph, a, out, depth - 1);
        return additive(graph, b, out, depth - 1);
    }
    out.push(excluding(graph, mask).unwrap_or(Term::Other(mask)));
}

/// `Where(c, 0, fill)` or `Where(c, fill, 0)`.
fn excluding(graph: &Graph, mask: ValueId) -> Option<Term> {
    let node = made_by(graph, mask, |op| matches!(op, Op::Where))?;
    let (a, b) = (uniform(graph, node.input(1)?)?, uniform(graph, node.input(2)?)?);
    let (negated, fill) = match (a, b) {
        (0.0, fill) if fill <= EXCLUDED => (false, fill),
        (fill, 0.0) if fill <= EXCLUDED => (true, fill),
        _ => return None,
    };
    let mut keep = vec![];
    conjuncts(graph, Condition { value: node.input(0)?, negated }, &mut keep, 16);
    Some(Term::Exclude { keep, fill, dtype: dtype(graph, mask)? })
}

/// The conditions that must all hold, through And, Not(Or) and Expand.
fn conjuncts(graph: &Graph, c: Condition, out: &mut Vec<Condition>, depth: usize) {
    let Condition { value, negated } = c;
    if depth > 0 {
        let joint = if negated { Binary::Or } else { Binary::And };
        if let Some((a, b)) = binary(graph, value, joint) {
            conjuncts(graph, Condition { value: a, negated }, out, depth - 1);
            return conjuncts(graph, Condition { value: b, negated }, out, depth - 1);
        }
        if let Some(inner) = unary(graph, value, Unary::Not) {
            return conjuncts(graph, Condition { value: inner, negated: !negated }, out, depth - 1);
        }
        let expanded = made_by(graph, value, |op| matches!(op, Op::Expand)).and_then(|n| n.input(0));
        if let Some(inner) = expanded {
            return conjuncts(graph, Condition { value: inner, negated }, out, depth - 1);
        }
    }
    out.push(c);
}

struct Seen {
    attention: Attention,
    changed: bool,
    /// Whether a part that was taken over excluded by a finite fill.
    finite: bool,
}

impl Seen {
    /// What is left of a term when causality, windows and tautologies are taken out.
    fn term(&mut self, graph: &Graph, frame: &Frame, term: Term) -> Option<Term> {
        match term {
            Term::Exclude { keep, fill, dtype } => {
                let before = keep.len();
                let keep = self.conditions(graph, frame, keep);
                self.finite |= keep.len() < before && fill.is_finite();
                (!keep.is_empty()).then_some(Term::Exclude { keep, fill, dtype })
            }
            Term::Hard(keep) => {
                let keep = self.conditions(graph, frame, keep);
                (!keep.is_empty()).then_some(Term::Hard(keep))
            }
            Term::Other(v) => {
                let Some(Element::Choice(f, a, b)) = read(graph, frame, v) else {
                    return Some(Term::Other(v));
                };
                let (keep, fill) = match (a, b) {
                    (0.0, fill) if fill <= EXCLUDED => (f, fill),
                    (fill, 0.0) if fill <= EXCLUDED => (f.not(), fill),
                    _ => return Some(Term::Other(v)),
                };
                if !self.absorbs(frame, &keep) {
                    return Some(Term::Other(v));
                }
                self.finite |= fill.is_finite();
                None
            }
        }
    }

    fn conditions(&mut self, graph: &Graph, frame: &Frame, keep: Vec<Condition>) -> Vec<Condition> {
        keep.into_iter()
            .filter(|c| match read(graph, frame, c.value) {
                Some(Element::Truth(f)) => !self.absorbs(frame, &if c.negated { f.not() } else { f }),
                _ => true,
            })
            .collect()
    }

    /// Takes a condition over if all its parts are causality, a window or always true.
    fn absorbs(&mut self, frame: &Frame, keep: &Formula) -> bool {
        let Some(parts) = keep.conjuncts() else { return false };
        let mut next = self.attention;
        for d in &parts {
            if !frame.holds(d) && !frame.is_causal(d, &mut next) && !frame.is_window(d, &mut next) {
                return false;
            }
        }
        self.attention = next;
        self.changed = true;
        true
    }
}

const QUERY: usize = 0;
const KEY: usize = 1;

/// The element at query `i` and key `j` of a mask, which must depend on nothing else.
fn read(graph: &Graph, frame: &Frame, v: ValueId) -> Option<Element> {
    let n = rank(graph, v)?;
    let shape = graph.shape(v)?;
    // Leading axes keep symbols of their own: a condition on them is neither causality nor a window.
    let mut at = index_symbols(n + 2).split_off(2);
    for (back, (symbol, size)) in [(1, (KEY, &frame.s)), (2, (QUERY, &frame.t))] {
        let Some(axis) = n.checked_sub(back) else { continue };
        at[axis] = if shape[axis] == Dim::ONE && *size != Dim::ONE {
            Dim::ZERO
        } else {
            index_symbol(symbol).into()
        };
    }
    element(graph, v, &at)
}

impl Frame {
    fn query(&self) -> Dim {
        index_symbol(QUERY).into()
    }

    fn key(&self) -> Dim {
        index_symbol(KEY).into()
    }

    /// The query's position among the keys.
    fn position(&self) -> Dim {
        self.query() + self.s.clone() - self.t.clone()
    }

    /// `j ≤ position`.
    fn is_causal(&self, d: &Dim, attention: &mut Attention) -> bool {
        let causal = *d == self.key() - self.position();
        attention.causal |= causal;
        causal
    }

    /// `j > position - w`, as `position - w + 1 - j ≤ 0`.
    fn is_window(&self, d: &Dim, attention: &mut Attention) -> bool {
        let width = (self.position() - self.key() + Dim::ONE - d.clone()).known();
        let Some(width) = width.and_then(|w| u32::try_from(w).ok()).filter(|w| *w > 0) else { return false };
        attention.window = Some(attention.window.map_or(width, |w| w.min(width)));
        true
    }

    /// Whether `d ≤ 0` for all queries and keys: at the corner where it is largest.
    fn holds(&self, d: &Dim) -> bool {
        let mut largest = d.clone();
        for (axis, size) in [(QUERY, &self.t), (KEY, &self.s)] {
            let symbol = index_symbol(axis);
            let at = |x: &Dim| largest.replace(&|s| (*s == symbol).then(|| x.clone()));
            let last = size.clone() - Dim::ONE;
            let (low, high) = (at(&Dim::ZERO), at(&last));
            let slope = at(&Dim::ONE) - low.clone();
            match slope.known() {
                // Linear with a slope that is known: one end is the largest.
                Some(n) if at(&Dim::from(2i64)) == low.clone() + slope.clone() + slope.clone() => {
                    largest = if n > 0 { high } else { low };
                }
                _ => return false,
            }
        }
        (Dim::ZERO - largest).is_non_negative()
    }
}

fn rebuilt(graph: &mut Graph, terms: Vec<Term>) -> Result<Option<ValueId>, GraphError> {
    let mut out: Option<ValueId> = None;
    for term in terms {
        let next = match term {
            Term::Other(v) => v,
            Term::Hard(keep) => all(graph, &keep)?,
            Term::Exclude { keep, fill, dtype } => {
                let condition = all(graph, &keep)?;
                let (zero, fill) = (graph.float_scalar(dtype, 0.0), graph.float_scalar(dtype, fill));
                graph.add(Op::Where, &[condition, zero, fill])?
            }
        };
        out = Some(match out {
            Some(before) => graph.add(Op::Binary(Binary::Add), &[before, next])?,
            None => next,
        });
    }
    Ok(out)
}

fn all(graph: &mut Graph, keep: &[Condition]) -> Result<ValueId, GraphError> {
    let mut out: Option<ValueId> = None;
    for c in keep {
        let next = if c.negated { graph.add(Op::Unary(Unary::Not), &[c.value])? } else { c.value };
        out = Some(match out {
            Some(before) => graph.add(Op::Binary(Binary::And), &[before, next])?,
            None => next,
        });
    }
    match out {
        Some(v) => Ok(v),
        None => Ok(graph.constant(crate::ir::Tensor::scalar(1u8))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Tensor, Type};
    use crate::rewrite::testing::{after, count, f32s, size};

    /// Attention under a mask that `build` makes; queries `t`, keys `t` or, with a cache, `s + t`.
    fn masked(cached: bool, build: impl FnOnce(&mut Graph, Dim, Dim) -> ValueId) -> Graph {
        let mut g = Graph::new("masked");
        let (t, s) = (size(-2), if cached { size(-2) + size(-3) } else { size(-2) });
        let q = g.add_input("q", f32s(&[-1, 2, -2, 8]));
        let mut k = g.add_input("k", f32s(&[-1, 2, -2, 8]));
        if cached {
            let past = g.add_input("past", f32s(&[-1, 2, -3, 8]));
            k = g.op(Op::Concat { axis: 2 }, &[past, k]);
        }
        let mask = build(&mut g, t, s);
        let a = Attention { scale: 0.3, causal: false, window: None, softcap: None, safe: false };
        let y = g.op(Op::Attention(a), &[q, k, k, mask]);
        g.add_output("y", y);
        g
    }

    /// `Range(start, start + size)` along axis `axis` of two.
    fn range(g: &mut Graph, start: Dim, size: Dim, axis: usize) -> ValueId {
        let limit = start.clone() + size;
        let (start, limit, one) =
            (g.dim_scalar(&start).unwrap(), g.dim_scalar(&limit).unwrap(), g.scalar(1i64));
        let r = g.op(Op::Range, &[start, limit, one]);
        g.op(Op::Unsqueeze { axes: vec![1 - axis] }, &[r])
    }

    fn positions(g: &mut Graph, t: &Dim, s: &Dim) -> (ValueId, ValueId) {
        (range(g, s.clone() - t.clone(), t.clone(), 0), range(g, Dim::ZERO, s.clone(), 1))
    }

    fn additive(g: &mut Graph, keep: ValueId, fill: f32) -> ValueId {
        let (zero, fill) = (g.num(0.0), g.num(fill));
        g.op(Op::Where, &[keep, zero, fill])
    }

    fn padding(g: &mut Graph, s: &Dim) -> ValueId {
        let pad = Type::new(DType::Bool, vec![size(-1), Dim::ONE, Dim::ONE, s.clone()]);
        g.add_input("padding", pad)
    }

    fn seen(g: &Graph) -> (Attention, bool) {
        g.nodes()
            .find_map(|(_, n)| match n.op {
                Op::Attention(a) => Some((a, n.input(3).is_some())),
                _ => None,
            })
            .unwrap()
    }

    #[test]
    fn causality_in_many_spellings() {
        type Build = fn(&mut Graph, Dim, Dim) -> ValueId;
        let builds: &[Build] = &[
            |g, t, s| {
                let (q, k) = positions(g, &t, &s);
                g.bin(Binary::LessOrEqual, k, q)
            },
            |g, t, s| {
                let (q, k) = positions(g, &t, &s);
                g.bin(Binary::GreaterOrEqual, q, k)
            },
            |g, t, s| {
                let (q, k) = positions(g, &t, &s);
                let (hidden, zero, fill) =
                    (g.bin(Binary::Greater, k, q), g.num(0.0), g.num(f32::NEG_INFINITY));
                g.op(Op::Where, &[hidden, fill, zero])
            },
            |g, t, s| {
                let (q, k) = positions(g, &t, &s);
                let hidden = g.bin(Binary::Less, q, k);
                let seen = g.un(Unary::Not, hidden);
                additive(g, seen, f32::MIN)
            },
            |g, t, s| {
                // A triangle of ones, cut to the last t rows.
                let (one, square) = (g.num(1.0), g.dims(&[s.clone(), s.clone()]).unwrap());
                let ones = g.op(Op::Expand, &[one, square]);
                let lower = g.op(Op::Trilu { upper: false }, &[ones]);
                let first = s.clone() - t;
                let (start, end) = (g.dims(&[first]).unwrap(), g.dims(&[s]).unwrap());
                let rows = g.op(Op::Slice { axes: vec![0], steps: vec![1] }, &[lower, start, end]);
                let zero = g.num(0.0);
                let hidden = g.bin(Binary::Equal, rows, zero);
                let seen = g.un(Unary::Not, hidden);
                additive(g, seen, f32::NEG_INFINITY)
            },
            |g, t, s| {
                // An upper triangle of the lowest number, as a product.
                let (lowest, square) = (g.num(f32::MIN), g.dims(&[s.clone(), s.clone()]).unwrap());
                let full = g.op(Op::Expand, &[lowest, square]);
                let k = g.scalar(1i64);
                let upper = g.op(Op::Trilu { upper: true }, &[full, k]);
                let first = s.clone() - t;
                let (start, end) = (g.dims(&[first]).unwrap(), g.dims(&[s]).unwrap());
                g.op(Op::Slice { axes: vec![0], steps: vec![1] }, &[upper, start, end])
            },
        ];
        for (i, build) in builds.iter().enumerate() {
            for cached in [false, true] {
                let (g, _) = after(&masked(cached, build), &PASS);
                let (a, has_mask) = seen(&g);
                assert!(a.causal && a.window.is_none() && !has_mask, "case {i}, cached {cached}");
            }
        }
    }

    #[test]
    fn a_table_of_bools_is_read() {
        let mut table = vec![false; 64];
        (0..8).for_each(|i| (0..=i).for_each(|j| table[i * 8 + j] = true));
        let g = masked(false, |g, t, _| {
            let table = g.constant(Tensor::from_bools(vec![1, 1, 8, 8], &table).unwrap());
            let (zero, t) = (g.ints(&[0, 0]), g.dims(&[t.clone(), t]).unwrap());
            let cut = g.op(Op::Slice { axes: vec![2, 3], steps: vec![1, 1] }, &[table, zero, t]);
            additive(g, cut, f32::MIN)
        });
        let (a, has_mask) = seen(&after(&g, &PASS).0);
        assert!(a.causal && !has_mask);
    }

    #[test]
    fn padding_stays_and_windows_are_read() {
        for fill in [f32::NEG_INFINITY, f32::MIN] {
            let g = masked(true, |g, t, s| {
                let (q, k) = positions(g, &t, &s);
                let w = g.scalar(3i64);
                let first = g.bin(Binary::Sub, q, w);
                let (near, causal) = (g.bin(Binary::Greater, k, first), g.bin(Binary::LessOrEqual, k, q));
                let both = g.bin(Binary::And, near, causal);
                let pad = padding(g, &s);
                // Every query sees itself, so that no row is empty.
                let own = g.bin(Binary::Equal, k, q);
                let pad = g.bin(Binary::Or, pad, own);
                let all = g.bin(Binary::And, both, pad);
                additive(g, all, fill)
            });
            let (g, _) = after(&g, &PASS);
            let (a, has_mask) = seen(&g);
            let apart = fill.is_infinite();
            assert_eq!((a.causal, a.window.is_some(), has_mask), (apart, apart, true));
            assert_eq!(count(&g, "LessOrEqual") + count(&g, "Greater"), if apart { 0 } else { 2 });
        }
    }

    #[test]
    fn near_misses_stay() {
        type Build = fn(&mut Graph, Dim, Dim) -> ValueId;
        let builds: &[Build] = &[
            // Strictly before; aligned with the first key; a bias.
            |g, t, s| {
                let (q, k) = positions(g, &t, &s);
                let seen = g.bin(Binary::Less, k, q);
                additive(g, seen, f32::MIN)
            },
            |g, t, s| {
                let (q, k) = (range(g, Dim::ZERO, t, 0), range(g, Dim::ZERO, s, 1));
                g.bin(Binary::LessOrEqual, k, q)
            },
            |g, t, s| {
                let (q, k) = positions(g, &t, &s);
                let far = g.bin(Binary::Sub, k, q);
                g.op(Op::Cast { to: DType::F32 }, &[far])
            },
            |g, _, s| {
                let pad = padding(g, &s);
                additive(g, pad, f32::MIN)
            },
            // A fill that excludes nothing.
            |g, t, s| {
                let (q, k) = positions(g, &t, &s);
                let seen = g.bin(Binary::LessOrEqual, k, q);
                additive(g, seen, -1.0)
            },
        ];
        for (i, build) in builds.iter().enumerate() {
            assert_eq!(after(&masked(true, build), &PASS).1, 0, "case {i}");
        }
    }
}
