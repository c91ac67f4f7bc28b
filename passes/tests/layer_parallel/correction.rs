//! Newton corrections: the operator in its forms against METHOD §1's recurrence.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use snlp_passes::ir::{Correction, CorrectionForm, DType, Graph, Op, Tensor, Type};

use crate::build::tensor;
use crate::cases;
use crate::run;
use crate::spec::Rng;

/// A segment's evaluations, old estimates and surrogates. A unit's output is `[outer, streams, inner]`.
#[derive(Clone, Debug)]
struct Case {
    units: usize,
    outer: usize,
    streams: usize,
    inner: usize,
    shared: bool,
    last_only: bool,
    dtype: DType,
    seed: u64,
}

fn drawn() -> impl Strategy<Value = Case> {
    let sizes = (1usize..=8, 1usize..=3, 1usize..=3, 1usize..=4);
    (sizes, any::<bool>(), any::<bool>(), any::<bool>(), any::<u64>()).prop_map(
        |((units, outer, streams, inner), shared, last_only, double, seed)| Case {
            units,
            outer,
            streams,
            inner,
            shared,
            last_only,
            dtype: if double { DType::F64 } else { DType::F32 },
            seed,
        },
    )
}

/// As many units as a plan may have, streams as models have them, features that fill no vector.
fn drawn_streams() -> impl Strategy<Value = Case> {
    let streams = prop_oneof![Just(2usize), Just(3), Just(4), Just(8)];
    (drawn(), 1usize..=32, streams, 1usize..=5).prop_map(|(case, units, streams, inner)| Case {
        units,
        streams,
        inner,
        ..case
    })
}

impl Case {
    fn size(&self) -> usize {
        self.outer * self.streams * self.inner
    }

    /// Evaluations, and old estimates of every unit.
    fn operands(&self, rng: &mut Rng) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
        let f = (0..self.units).map(|_| rng.vector(self.size(), 1.0)).collect();
        let first = rng.vector(self.size(), 1.0);
        let s = (0..self.units)
            .map(|_| if self.shared { first.clone() } else { rng.vector(self.size(), 1.0) })
            .collect();
        (f, s)
    }

    /// `s'_1 = F_1`, `s'_l = F_l + A_l (s'_{l-1} - s_{l-1})`, with `A_l` `[streams, streams]`, or one for each
    /// of the outer axis.
    fn recurrence(&self, f: &[Vec<f64>], s: &[Vec<f64>], surrogates: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let mut corrected = vec![f[0].clone()];
        for l in 1..self.units {
            let moved: Vec<f64> =
                corrected[l - 1].iter().zip(&s[l - 1]).map(|(new, old)| new - old).collect();
            let mut next = f[l].clone();
            for (at, x) in next.iter_mut().enumerate() {
                let (o, i) = (at / self.inner / self.streams, at % self.inner);
                let to = at / self.inner % self.streams;
                let row = if surrogates[l].len() == self.streams * self.streams {
                    to
                } else {
                    o * self.streams + to
                };
                for from in 0..self.streams {
                    let source = (o * self.streams + from) * self.inner + i;
                    *x += surrogates[l][row * self.streams + from] * moved[source];
                }
            }
            corrected.push(next);
        }
        corrected
    }

    /// `T` as `[C·S, C·S]`: `T[j, i] = A_j ··· A_{i+1}` for i ≤ j.
    fn matrix(&self, surrogates: &[Vec<f64>]) -> (Vec<usize>, Vec<f64>) {
        let (n, side) = (self.streams, self.units * self.streams);
        let mut t = vec![0.0; side * side];
        for i in 0..self.units {
            let mut block: Vec<f64> = (0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect();
            for j in i..self.units {
                if j > i {
                    let a = &surrogates[j];
                    block = (0..n * n)
                        .map(|at| (0..n).map(|k| a[at / n * n + k] * block[k * n + at % n]).sum())
                        .collect();
                }
                for at in 0..n * n {
                    t[(j * n + at / n) * side + i * n + at % n] = block[at];
                }
            }
        }
        (vec![side, side], t)
    }

    /// What the operator gives. The shapes of the units and their number may stay symbols.
    fn evaluated(
        &self,
        form: CorrectionForm,
        f: &[Vec<f64>],
        s: &[Vec<f64>],
        t: Option<(Vec<usize>, Vec<f64>)>,
    ) -> Vec<f64> {
        let unit = [self.outer, self.streams, self.inner];
        let whole = [&[self.units], &unit[..]].concat();
        let estimates = if self.shared { s[0].clone() } else { s.concat() };
        let estimate_shape = if self.shared { unit.to_vec() } else { whole.clone() };
        let mut graph = Graph::new("correction");
        let mut given = BTreeMap::new();
        let mut input = |graph: &mut Graph, name: &str, value: Tensor| {
            let v = graph.add_input(name, Type::of(&value));
            given.insert(name.to_string(), value);
            v
        };
        let mut operands = vec![
            input(&mut graph, "f", tensor(self.dtype, &whole, &f.concat())),
            input(&mut graph, "s", tensor(self.dtype, &estimate_shape, &estimates)),
        ];
        if let Some((shape, t)) = t {
            operands.push(graph.constant(tensor(self.dtype, &shape, &t)));
        }
        let op = Op::Correction(Correction { form, last_only: self.last_only });
        let y = graph.add(op, &operands).expect("well typed");
        graph.add_output("y", y);
        run(&graph, &given).remove("y").expect("an output")
    }

    fn check(&self, what: &str, expected: &[Vec<f64>], found: &[f64]) -> Result<(), TestCaseError> {
        let expected = if self.last_only { expected[self.units - 1].clone() } else { expected.concat() };
        let tolerance = if self.dtype == DType::F64 { 1e-12 } else { 1e-4 };
        let (expected, found) = ([("y".into(), expected)].into(), [("y".into(), found.to_vec())].into());
        crate::agree(what, &expected, &found, tolerance).map_err(TestCaseError::fail)
    }
}

#[test]
fn matrices_of_stream_mixings_solve_the_recurrence() {
    cases(128, &drawn(), |case| {
        let mut rng = Rng::new(case.seed);
        let (f, s) = case.operands(&mut rng);
        let n = case.streams;
        let surrogates: Vec<_> = (0..case.units).map(|_| rng.vector(n * n, 1.2 / n as f64)).collect();
        let expected = case.recurrence(&f, &s, &surrogates);
        let form = CorrectionForm::Linear { streams: n as u32, stream_axis: if n > 1 { 2 } else { 0 } };
        let found = case.evaluated(form, &f, &s, Some(case.matrix(&surrogates)));
        case.check("linear", &expected, &found)
    });
}

#[test]
fn scans_solve_the_recurrence_of_each_token() {
    cases(96, &drawn_streams(), |case| {
        let mut rng = Rng::new(case.seed);
        let (f, s) = case.operands(&mut rng);
        let (n, scan) = (case.streams, CorrectionForm::Scan { stream_axis: 2 });
        let shape = vec![case.units, case.outer, n, n];
        let of_tokens: Vec<_> =
            (0..case.units).map(|_| rng.vector(case.outer * n * n, 1.2 / n as f64)).collect();
        let expected = case.recurrence(&f, &s, &of_tokens);
        let found = case.evaluated(scan, &f, &s, Some((shape.clone(), of_tokens.concat())));
        case.check("scan", &expected, &found)?;
        // Tokens that share their matrices: the matrix form says the same.
        let shared: Vec<_> = of_tokens.iter().map(|a| a[..n * n].to_vec()).collect();
        let repeated: Vec<f64> = shared.iter().flat_map(|a| a.repeat(case.outer)).collect();
        let expected = case.recurrence(&f, &s, &shared);
        case.check("scan of shared", &expected, &case.evaluated(scan, &f, &s, Some((shape, repeated))))?;
        let linear = CorrectionForm::Linear { streams: n as u32, stream_axis: 2 };
        case.check("linear", &expected, &case.evaluated(linear, &f, &s, Some(case.matrix(&shared))))
    });
}

#[test]
fn the_prefix_sum_solves_the_identity_s_recurrence() {
    cases(64, &drawn(), |case| {
        let case = Case { inner: case.inner * case.streams, streams: 1, ..case };
        let (f, s) = case.operands(&mut Rng::new(case.seed));
        let identity = vec![vec![1.0]; case.units];
        let expected = case.recurrence(&f, &s, &identity);
        case.check("prefix", &expected, &case.evaluated(CorrectionForm::Prefix, &f, &s, None))?;
        let form = CorrectionForm::Linear { streams: 1, stream_axis: 0 };
        let matrix = case.matrix(&identity);
        case.check("matrix of ones", &expected, &case.evaluated(form, &f, &s, Some(matrix)))?;
        // cumsum(f) - exclusive_cumsum(s)
        let mut sums = vec![vec![0.0; case.size()]; case.units];
        for (j, sum) in sums.iter_mut().enumerate() {
            for (i, x) in sum.iter_mut().enumerate() {
                *x = (0..=j).map(|l| f[l][i]).sum::<f64>() - (0..j).map(|l| s[l][i]).sum::<f64>();
            }
        }
        case.check("sums", &sums, &case.evaluated(CorrectionForm::Prefix, &f, &s, None))
    });
}

#[test]
fn exact_estimates_stay() {
    // With F = s nothing moves, whatever the surrogate.
    cases(32, &drawn(), |case| {
        let case = Case { shared: false, ..case };
        let mut rng = Rng::new(case.seed);
        let (f, _) = case.operands(&mut rng);
        let n = case.streams;
        let surrogates: Vec<_> = (0..case.units).map(|_| rng.vector(n * n, 1.0)).collect();
        let form = CorrectionForm::Linear { streams: n as u32, stream_axis: if n > 1 { 2 } else { 0 } };
        case.check("fixed point", &f, &case.evaluated(form, &f, &f, Some(case.matrix(&surrogates))))
    });
}
