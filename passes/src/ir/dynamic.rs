//! Operators whose form is an operand.

use std::ops::Range;

use super::op::{Binary, Op, Reduce, Unary};

/// An operator whose axes or steps are operands that are not known before the run. It becomes the operator
/// that it stands for as soon as they are ([`Dynamic::resolve`]). Negative axes count from the end.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Dynamic {
    /// `x, axes`: [`Op::Reduce`]. No axes are all of them, or, with `noop`, none.
    Reduce {
        /// Which reduction.
        op: Reduce,
        /// Reduced axes stay with size 1.
        keepdims: bool,
        /// What no axes mean.
        noop: bool,
    },
    /// `x, axis`: [`Op::CumSum`].
    CumSum {
        /// Leaves out the element itself.
        exclusive: bool,
        /// From the end.
        reverse: bool,
    },
    /// `x, axes`: [`Op::Squeeze`].
    Squeeze,
    /// `x, axes`: [`Op::Unsqueeze`].
    Unsqueeze,
    /// `x, starts, ends, axes, steps`: [`Op::Slice`].
    Slice,
}

/// What a [`Dynamic`] stands for.
#[derive(Clone, PartialEq, Debug)]
pub struct Resolved {
    /// The operator.
    pub op: Op,
    /// The operands that it takes, by their position.
    pub operands: Vec<usize>,
}

impl Dynamic {
    /// Positions of the operands that decide the form.
    pub fn parameters(self) -> Range<usize> {
        match self {
            Dynamic::Reduce { .. } | Dynamic::CumSum { .. } | Dynamic::Squeeze | Dynamic::Unsqueeze => 1..2,
            Dynamic::Slice => 3..5,
        }
    }

    /// The operator on an `x` of `rank` axes with these parameters.
    ///
    /// # Errors
    /// When an axis is outside of the rank or named twice, or the parameters do not fit one another.
    pub fn resolve(self, rank: usize, parameters: &[Vec<i64>]) -> Result<Resolved, String> {
        let of_x = |op| Ok(Resolved { op, operands: vec![0] });
        match (self, parameters) {
            (Dynamic::Reduce { op, keepdims, noop }, [axes]) => {
                let mut axes = sorted(axes, rank)?;
                if axes.is_empty() && !noop {
                    axes = (0..rank).collect();
                }
                if axes.is_empty() {
                    return Ok(over_nothing(op));
                }
                of_x(Op::Reduce { op, axes, keepdims })
            }
            (Dynamic::CumSum { exclusive, reverse }, [axis]) => match &each(axis, rank)?[..] {
                [axis] => of_x(Op::CumSum { axis: *axis, exclusive, reverse }),
                other => Err(format!("{} axes, not one", other.len())),
            },
            (Dynamic::Squeeze, [axes]) => match sorted(axes, rank)? {
                axes if axes.is_empty() => of_x(Op::Identity),
                axes => of_x(Op::Squeeze { axes }),
            },
            (Dynamic::Unsqueeze, [axes]) => match sorted(axes, rank.saturating_add(axes.len()))? {
                axes if axes.is_empty() => of_x(Op::Identity),
                axes => of_x(Op::Unsqueeze { axes }),
            },
            (Dynamic::Slice, [axes, steps]) => {
                if axes.len() != steps.len() {
                    return Err(format!("{} steps for {} axes", steps.len(), axes.len()));
                }
                sorted(axes, rank)?;
                let op = Op::Slice { axes: each(axes, rank)?, steps: steps.clone() };
                Ok(Resolved { op, operands: vec![0, 1, 2] })
            }
            (_, other) => Err(format!("{} parameters", other.len())),
        }
    }
}

/// A reduction over no axes (or of a scalar) still applies its function to each element.
pub fn over_nothing(op: Reduce) -> Resolved {
    let (op, operands) = match op {
        Reduce::L1 | Reduce::L2 => (Op::Unary(Unary::Abs), vec![0]),
        Reduce::SumSquare => (Op::Binary(Binary::Mul), vec![0, 0]),
        Reduce::LogSum => (Op::Unary(Unary::Log), vec![0]),
        Reduce::Sum | Reduce::Mean | Reduce::Max | Reduce::Min | Reduce::Prod | Reduce::LogSumExp => {
            (Op::Identity, vec![0])
        }
    };
    Resolved { op, operands }
}

/// The non-negative form of axes, in the order given.
fn each(axes: &[i64], rank: usize) -> Result<Vec<usize>, String> {
    let one = |axis: &i64| {
        let size = i64::try_from(rank).ok()?;
        let at = if *axis < 0 { axis.checked_add(size)? } else { *axis };
        usize::try_from(at).ok().filter(|at| *at < rank)
    };
    axes.iter().map(|a| one(a).ok_or_else(|| format!("axis {a} is outside of rank {rank}"))).collect()
}

/// The non-negative form of axes, which must differ, sorted.
fn sorted(axes: &[i64], rank: usize) -> Result<Vec<usize>, String> {
    let mut out = each(axes, rank)?;
    out.sort_unstable();
    if out.windows(2).any(|w| w[0] == w[1]) {
        return Err(format!("axes {axes:?} repeat an axis"));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_decide_the_form() {
        let reduce = |noop| Dynamic::Reduce { op: Reduce::L1, keepdims: true, noop };
        let op = |d: Dynamic, p: &[Vec<i64>]| d.resolve(3, p).map(|r| r.op);
        let all = Op::Reduce { op: Reduce::L1, axes: vec![0, 1, 2], keepdims: true };
        assert_eq!(op(reduce(false), &[vec![]]), Ok(all));
        assert_eq!(op(reduce(true), &[vec![]]), Ok(Op::Unary(Unary::Abs)));
        assert_eq!(op(Dynamic::Unsqueeze, &[vec![-1, 0]]), Ok(Op::Unsqueeze { axes: vec![0, 4] }));
        let slice = Op::Slice { axes: vec![2, 0], steps: vec![1, -1] };
        assert_eq!(op(Dynamic::Slice, &[vec![-1, 0], vec![1, -1]]), Ok(slice));
        assert!(op(Dynamic::Squeeze, &[vec![0, -3]]).is_err());
        assert!(op(Dynamic::Squeeze, &[vec![3]]).is_err());
        assert!(op(Dynamic::Slice, &[vec![0], vec![]]).is_err());
        let scan = Dynamic::CumSum { exclusive: false, reverse: false };
        assert!(op(scan, &[vec![0, 1]]).is_err() && op(scan, &[vec![i64::MIN]]).is_err());
    }
}
