//! Masks in another grouping of the scores' axes.
//!
//! ```text
//!   scores [b·h, t, s] + mask [b·h, t, s]      attention over [b, h, t, s]:     mask [b, h, t, s]
//!   scores [b, h, t, s] + mask [b, 1, t, s]    over [b, g, h/g, t, s]:       mask [b, 1, 1, t, s]
//! ```

use crate::ir::{Binary, Dim, Graph, GraphError, Op, Unary, ValueId};

/// How deep logic is followed.
const DEPTH: usize = 16;

/// A mask as [`reframed`] shapes it, which must be possible. Logic stays visible: its operands are reshaped
/// instead of its result.
pub(in crate::rewrite) fn reframe(
    graph: &mut Graph,
    mask: ValueId,
    frame: &[Dim],
    scores: &[Dim],
) -> Result<ValueId, GraphError> {
    reframe_to(graph, mask, frame, scores, DEPTH)
}

fn reframe_to(
    graph: &mut Graph,
    mask: ValueId,
    frame: &[Dim],
    scores: &[Dim],
    depth: usize,
) -> Result<ValueId, GraphError> {
    let Some(shape) = graph.shape(mask).map(<[Dim]>::to_vec) else { return Ok(mask) };
    let Some(target) = reframed(&shape, frame, scores).filter(|target| *target != shape) else {
        return Ok(mask);
    };
    let logic =
        |op: &Op| matches!(op, Op::Where | Op::Unary(Unary::Not) | Op::Binary(Binary::And | Binary::Or));
    let made = graph.producing(mask).filter(|n| depth > 0 && logic(&n.op)).cloned();
    let fits = |v: &ValueId| graph.shape(*v).is_some_and(|s| reframed(s, frame, scores).is_some());
    if let Some(node) = made.filter(|n| n.operands().all(|v| fits(&v))) {
        let mut operands = Vec::with_capacity(node.inputs.len());
        for v in node.operands() {
            operands.push(reframe_to(graph, v, frame, scores, depth - 1)?);
        }
        return graph.add(node.op, &operands);
    }
    let target = graph.dims(&target)?;
    graph.add(Op::Reshape { allow_zero: true }, &[mask, target])
}

/// The shape under which a mask that broadcasts to scores of shape `frame` broadcasts to the same scores
/// of shape `scores`, whose axes before the last two are regrouped. None where a reshape cannot say it.
pub(in crate::rewrite) fn reframed(mask: &[Dim], frame: &[Dim], scores: &[Dim]) -> Option<Vec<Dim>> {
    let missing = frame.len().checked_sub(mask.len())?;
    let aligned: Vec<Dim> = std::iter::repeat_n(Dim::ONE, missing).chain(mask.iter().cloned()).collect();
    if !aligned.iter().zip(frame).all(|(m, f)| may_broadcast(m, f)) {
        return None;
    }
    if frame == scores {
        return Some(mask.to_vec());
    }
    let (lead, wide) = (frame.len().checked_sub(2)?, scores.len().checked_sub(2)?);
    if frame[lead..] != scores[wide..] {
        return None;
    }
    let mut out = Vec::with_capacity(scores.len());
    let (mut i, mut j) = (0, 0);
    while i < lead || j < wide {
        let (a, b) = next_group(&frame[i..lead], &scores[j..wide])?;
        let (of_mask, of_frame) = (&aligned[i..i + a], &frame[i..i + a]);
        let of_scores = &scores[j..j + b];
        if of_mask.iter().all(|d| *d == Dim::ONE) {
            out.extend(std::iter::repeat_n(Dim::ONE, b));
        } else if of_mask == of_frame {
            out.extend(of_scores.iter().cloned());
        } else if (a, b) == (1, 1) {
            out.extend(of_mask.iter().cloned());
        } else {
            return None;
        }
        (i, j) = (i + a, j + b);
    }
    out.extend(aligned[lead..].iter().cloned());
    Some(out)
}

/// The fewest first axes of both that have the same number of elements.
fn next_group(a: &[Dim], b: &[Dim]) -> Option<(usize, usize)> {
    let sizes = (0..=a.len()).flat_map(|i| (0..=b.len()).map(move |j| (i, j)));
    sizes
        .filter(|(i, j)| i + j > 0 && Dim::product(&a[..*i]) == Dim::product(&b[..*j]))
        .min_by_key(|(i, j)| i + j)
}

/// Whether a mask's size broadcasts to one of the scores. Different expressions may turn out equal (a mask
/// cut from a table of 128 positions has `min(128, t)`); since they were added, they are, unless the scores
/// were the ones to broadcast.
fn may_broadcast(mask: &Dim, scores: &Dim) -> bool {
    let undecided = (mask.known().is_none() || scores.known().is_none()) && *scores != Dim::ONE;
    *mask == Dim::ONE || mask == scores || undecided
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(text: &str) -> Vec<Dim> {
        let dim = |d: &str| match d.parse::<i64>() {
            Ok(n) => Dim::from(n),
            Err(_) => Dim::product(
                &d.split('*')
                    .map(|f| match f.parse::<i64>() {
                        Ok(n) => Dim::from(n),
                        Err(_) => Dim::symbol(f),
                    })
                    .collect::<Vec<_>>(),
            ),
        };
        text.split_whitespace().map(dim).collect()
    }

    fn check(mask: &str, frame: &str, scores: &str, expected: Option<&str>) {
        let found = reframed(&shape(mask), &shape(frame), &shape(scores));
        assert_eq!(found, expected.map(shape), "{mask} of {frame} in {scores}");
    }

    #[test]
    fn the_same_frame_leaves_masks_alone() {
        check("t s", "b 4 t s", "b 4 t s", Some("t s"));
        check("b 1 t s", "b 4 t s", "b 4 t s", Some("b 1 t s"));
        check("b 3 t s", "b 4 t s", "b 4 t s", None);
    }

    #[test]
    fn flattened_heads_are_split() {
        check("4*b t s", "4*b t s", "b 4 t s", Some("b 4 t s"));
        check("1 t s", "4*b t s", "b 4 t s", Some("1 1 t s"));
        check("b t s", "4*b t s", "b 4 t s", None);
    }

    #[test]
    fn a_batch_axis_stays_in_place_when_heads_are_grouped() {
        check("b 1 t s", "6 b 4 t s", "6 b 2 2 t s", Some("1 b 1 1 t s"));
        check("b 4 t s", "6 b 4 t s", "6 b 2 2 t s", Some("1 b 2 2 t s"));
        check("2 1 1 s", "6 2 4 t s", "6 2 2 2 t s", Some("1 2 1 1 1 s"));
        check("t s", "6 b 4 t s", "6 b 2 2 t s", Some("1 1 1 1 t s"));
    }

    #[test]
    fn axes_of_size_one_come_and_go() {
        check("b t s", "b t s", "b 1 t s", Some("b 1 t s"));
        check("b t s", "b t s", "1 b t s", Some("1 b t s"));
    }
}
