//! Comparing tensors: a named tolerance, the first element outside it, and the largest differences.

use std::fmt;

use snlp_passes::ir::{DType, Graph, Op, Tensor};
use snlp_passes::memory::{NoRoom, room};

/// How far two tensors may be apart. An element `a` agrees with the expected `e` when
/// `|a - e| <= abs * max|e| + rel * |e|`, the maximum taken over the whole expected tensor. Integers and
/// bools must be equal under every tolerance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tolerance {
    /// The same value, bit for bit (a NaN equals a NaN, 0 equals -0).
    Exact,
    /// The same function in f32, summed in another order.
    Close,
    /// The same function in f16, or with quantised weights.
    Loose,
}

impl Tolerance {
    /// What a model's answers can be held to: loose where it rounds on the way, to f16 or bf16 or to integers
    /// that stand for floats.
    pub fn of(graph: &Graph) -> Self {
        let half = |t: &Tensor| matches!(t.dtype(), DType::F16 | DType::BF16) && t.len() > 1;
        let integers = |op: &Op| {
            matches!(
                op,
                Op::Quantize { .. } | Op::Dequantize { .. } | Op::DynamicQuantize { .. } | Op::MatMulInteger
            )
        };
        let rounds = graph.values().any(|(v, _)| graph.tensor(v).is_some_and(half))
            || graph.nodes().any(|(_, n)| integers(&n.op));
        if rounds { Tolerance::Loose } else { Tolerance::Close }
    }

    /// The part that counts from the largest magnitude of the expected tensor.
    pub fn abs(self) -> f64 {
        match self {
            Tolerance::Exact => 0.0,
            Tolerance::Close => 1e-4,
            Tolerance::Loose => 2e-2,
        }
    }

    /// The part that counts from the element itself.
    pub fn rel(self) -> f64 {
        match self {
            Tolerance::Exact => 0.0,
            Tolerance::Close => 1e-5,
            Tolerance::Loose => 1e-3,
        }
    }
}

impl fmt::Display for Tolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tolerance::Exact => "exact",
            Tolerance::Close => "close",
            Tolerance::Loose => "loose",
        })
    }
}

/// An element that is too far away.
#[derive(Clone, PartialEq, Debug)]
pub struct Outlier {
    /// Position along each axis.
    pub index: Vec<usize>,
    /// What was computed.
    pub actual: f64,
    /// What was expected.
    pub expected: f64,
    /// How far they may be apart.
    pub allowed: f64,
}

/// What a comparison found.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Comparison {
    /// Largest `|a - e|`; infinite when one of the two is not finite and the other differs.
    pub max_abs: f64,
    /// `max_abs` over the largest magnitude of the expected tensor.
    pub max_rel: f64,
    /// How many elements are outside the tolerance.
    pub outliers: usize,
    /// The first of them, in row-major order.
    pub first: Option<Outlier>,
}

impl Comparison {
    /// Whether every element is inside the tolerance.
    pub fn ok(&self) -> bool {
        self.outliers == 0
    }
}

/// Tensors of other types or shapes.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CompareError {
    /// The shapes differ.
    #[error("has shape {actual:?}, expected {expected:?}")]
    Shape {
        /// Shape computed.
        actual: Vec<usize>,
        /// Shape expected.
        expected: Vec<usize>,
    },
    /// One is made of floats, the other is not.
    #[error("has dtype {actual}, expected {expected}")]
    DType {
        /// Element type computed.
        actual: DType,
        /// Element type expected.
        expected: DType,
    },
    /// There is no memory for the comparison.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
}

/// Compares `actual` with `expected`. Float types may differ in width; integers must stay integers.
pub fn compare(actual: &Tensor, expected: &Tensor, tolerance: Tolerance) -> Result<Comparison, CompareError> {
    if actual.shape() != expected.shape() {
        return Err(CompareError::Shape {
            actual: actual.shape().to_vec(),
            expected: expected.shape().to_vec(),
        });
    }
    let float = actual.dtype().is_float();
    if float != expected.dtype().is_float() {
        return Err(CompareError::DType { actual: actual.dtype(), expected: expected.dtype() });
    }
    // Each element as 64 bits.
    room(actual.len().saturating_mul(16))?;
    if !float && let (Some(a), Some(e)) = (actual.to_i64(), expected.to_i64()) {
        let distance = |a: i64, e: i64| a.abs_diff(e) as f64;
        let pairs = a.iter().zip(&e).map(|(a, e)| (distance(*a, *e), *a as f64, *e as f64, a == e));
        let scale = e.iter().map(|e| e.unsigned_abs()).max().unwrap_or(0) as f64;
        return Ok(collect(pairs, expected.shape(), scale, |_| 0.0));
    }
    let (a, e) = (actual.to_f64(), expected.to_f64());
    let scale = e.iter().filter(|e| e.is_finite()).fold(0f64, |m, e| m.max(e.abs()));
    let (abs, rel) = if float { (tolerance.abs() * scale, tolerance.rel()) } else { (0.0, 0.0) };
    let allowed = |e: f64| abs + rel * if e.is_finite() { e.abs() } else { 0.0 };
    let pairs = a.iter().zip(&e).map(|(a, e)| {
        let same = a == e || (a.is_nan() && e.is_nan());
        let distance = if same {
            0.0
        } else if a.is_finite() && e.is_finite() {
            (a - e).abs()
        } else {
            f64::INFINITY
        };
        (distance, *a, *e, same || distance <= allowed(*e))
    });
    Ok(collect(pairs, expected.shape(), scale, allowed))
}

/// Sums up `(distance, actual, expected, agrees)` in row-major order.
fn collect(
    pairs: impl Iterator<Item = (f64, f64, f64, bool)>,
    shape: &[usize],
    scale: f64,
    allowed: impl Fn(f64) -> f64,
) -> Comparison {
    let mut out = Comparison::default();
    for (i, (distance, actual, expected, agrees)) in pairs.enumerate() {
        out.max_abs = out.max_abs.max(distance);
        if !agrees {
            out.outliers += 1;
            out.first.get_or_insert_with(|| Outlier {
                index: unravel(i, shape),
                actual,
                expected,
                allowed: allowed(expected),
            });
        }
    }
    out.max_rel = if out.max_abs == 0.0 { 0.0 } else { out.max_abs / scale };
    out
}

fn unravel(mut flat: usize, shape: &[usize]) -> Vec<usize> {
    let mut index: Vec<usize> = shape
        .iter()
        .rev()
        .map(|d| {
            let i = flat % d;
            flat /= d;
            i
        })
        .collect();
    index.reverse();
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32s(shape: &[usize], data: &[f32]) -> Tensor {
        Tensor::from_vec(shape.to_vec(), data.to_vec()).expect("fits")
    }

    #[test]
    fn the_first_outlier_has_its_place() {
        let e = f32s(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 100.0]);
        let a = f32s(&[2, 3], &[1.0, 2.0, 3.005, 4.5, 5.0, 100.0]);
        let c = compare(&a, &e, Tolerance::Close).expect("alike");
        let first = c.first.expect("outside");
        assert_eq!((first.index, c.outliers), (vec![1, 0], 1));
        assert!((c.max_abs - 0.5).abs() < 1e-9 && (c.max_rel - 0.005).abs() < 1e-9);
        assert!(compare(&a, &e, Tolerance::Loose).expect("alike").ok());
        assert_eq!(compare(&a, &e, Tolerance::Exact).expect("alike").outliers, 2);
    }

    #[test]
    fn not_finite_agrees_with_itself_alone() {
        let e = f32s(&[4], &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0]);
        assert!(compare(&e, &e, Tolerance::Exact).expect("alike").ok());
        let a = f32s(&[4], &[0.0, f32::INFINITY, f32::INFINITY, f32::NAN]);
        let c = compare(&a, &e, Tolerance::Loose).expect("alike");
        assert_eq!((c.outliers, c.max_abs), (3, f64::INFINITY));
    }

    #[test]
    fn an_all_zero_expectation_allows_nothing() {
        let c = compare(&f32s(&[1], &[1e-9]), &f32s(&[1], &[0.0]), Tolerance::Loose).expect("alike");
        assert!(!c.ok());
    }

    #[test]
    fn integers_are_equal_or_not() {
        let e = Tensor::ints(&[1_000_000, 2]);
        let c = compare(&Tensor::ints(&[1_000_001, 2]), &e, Tolerance::Loose).expect("alike");
        assert_eq!((c.outliers, c.max_abs), (1, 1.0));
        assert!(matches!(
            compare(&f32s(&[2], &[0.0; 2]), &e, Tolerance::Loose),
            Err(CompareError::DType { .. })
        ));
        assert!(matches!(
            compare(&Tensor::ints(&[1]), &e, Tolerance::Loose),
            Err(CompareError::Shape { .. })
        ));
    }
}
