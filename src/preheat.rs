//! First guesses for `init=preheat`: calibrated on tokens, kept in a file beside the model.
//!
//! For the state `y` behind each layer and the chain's input `x`, over all calibration tokens:
//!
//! ```text
//!   A = (Cxx + λ I)⁻¹ Cxy       ridge regression, C the covariances
//!   P = the r leading eigenvectors of Aᵀ Cxx A
//!   y ≈ ȳ + (x − x̄) A P Pᵀ      V = A P, U = Pᵀ, bias = ȳ − x̄ V U
//! ```
//!
//! Among maps of rank `r` this one has the least squared error (reduced-rank regression: Izenman 1975).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use nalgebra::{Cholesky, DMatrix, DVector, SymmetricEigen};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use snlp_passes::ir::{DType, Tensor};
use snlp_passes::rewrite::{Prediction, Predictions};

use crate::error::{Error, Kind};
use crate::files::{folder_of, open};

/// The file beside a model that `init=preheat` reads.
pub const FILE: &str = "preheat.safetensors";

/// Regularisation: this share of the mean variance of the chain's input.
const RIDGE: f64 = 1e-4;
/// Directions beyond the rank that the search for eigenvectors keeps.
const SPARE: usize = 8;
/// Steps of the search for eigenvectors.
const STEPS: usize = 24;

/// Sums over tokens, from which the predictions follow.
pub struct Statistics {
    tokens: usize,
    /// `Σ x` and `Σ x xᵀ`.
    x: DVector<f64>,
    xx: DMatrix<f64>,
    layers: Vec<OfLayer>,
}

/// Sums for the state behind a layer.
#[derive(Clone)]
struct OfLayer {
    /// `Σ y`, `Σ x yᵀ` and `Σ ‖y‖²`.
    y: DVector<f64>,
    xy: DMatrix<f64>,
    squares: f64,
}

/// What a calibration gives for one layer.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// The map.
    pub prediction: Prediction,
    /// Share of the state's variance that the map explains on the calibration tokens.
    pub explained: f64,
}

impl Statistics {
    /// No tokens yet, for states of `width` features behind `layers` layers.
    pub fn new(width: usize, layers: usize) -> Self {
        let layer = OfLayer { y: DVector::zeros(width), xy: DMatrix::zeros(width, width), squares: 0.0 };
        Statistics {
            tokens: 0,
            x: DVector::zeros(width),
            xx: DMatrix::zeros(width, width),
            layers: vec![layer; layers],
        }
    }

    /// Adds tokens: the chain's input and the state behind each layer, `[n, width]` each, row by row.
    pub fn add(&mut self, input: &[f32], states: &[Vec<f32>]) {
        let width = self.x.len();
        let n = input.len() / width.max(1);
        // Column by column is features by tokens.
        let matrix = |data: &[f32]| DMatrix::from_iterator(width, n, data.iter().map(|x| f64::from(*x)));
        let x = matrix(input);
        self.tokens += n;
        self.x += x.column_sum();
        self.xx += &x * x.transpose();
        for (sums, state) in self.layers.iter_mut().zip(states) {
            let y = matrix(state);
            sums.y += y.column_sum();
            sums.xy += &x * y.transpose();
            sums.squares += y.norm_squared();
        }
    }

    /// Tokens so far.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The predictions of rank `rank` (at most the width).
    ///
    /// # Errors
    /// When there are no tokens, or their states are not finite.
    pub fn fit(&self, rank: usize) -> Result<Vec<Fitted>, Error> {
        let refuse = |why: &str| Error::input(format!("the states cannot be predicted: {why}"));
        if self.tokens == 0 {
            return Err(refuse("there are no tokens"));
        }
        let (n, width) = (self.tokens as f64, self.x.len());
        let mean_x = &self.x / n;
        let covariance = &self.xx / n - &mean_x * mean_x.transpose();
        let ridge = (RIDGE * covariance.trace() / width as f64).max(f64::MIN_POSITIVE);
        let regular = &covariance + DMatrix::identity(width, width) * ridge;
        let solver = Cholesky::new(regular)
            .ok_or_else(|| refuse("the chain's input is not finite").help("check the model's weights"))?;
        let rank = rank.clamp(1, width);
        self.layers.iter().map(|sums| sums.fit(n, &mean_x, &covariance, &solver, rank)).collect()
    }
}

impl OfLayer {
    fn fit(
        &self,
        n: f64,
        mean_x: &DVector<f64>,
        covariance: &DMatrix<f64>,
        solver: &Cholesky<f64, nalgebra::Dyn>,
        rank: usize,
    ) -> Result<Fitted, Error> {
        let mean_y = &self.y / n;
        let cross = &self.xy / n - mean_x * mean_y.transpose();
        let map = solver.solve(&cross);
        let up = leading(&map, covariance, rank);
        let down = &map * &up;
        let low = &down * up.transpose();
        let bias = &mean_y - low.transpose() * mean_x;
        let total = self.squares / n - mean_y.norm_squared();
        let left = total - 2.0 * low.dot(&cross) + low.dot(&(covariance * &low));
        // A state that never changes is explained by its mean.
        let explained = if total > 0.0 { 1.0 - left / total } else { 1.0 };
        let tensor = |shape: Vec<usize>, values: Vec<f32>| {
            let tensor = Tensor::from_vec(shape, values);
            tensor.map_err(|e| Error::new(Kind::Internal, e.to_string()))
        };
        // nalgebra stores columns; rows come one after the other in a tensor.
        let rows = |m: &DMatrix<f64>| m.transpose().iter().map(|x| *x as f32).collect::<Vec<f32>>();
        let width = bias.len();
        let prediction = Prediction {
            bias: tensor(vec![width], bias.iter().map(|x| *x as f32).collect())?,
            down: tensor(vec![width, rank], rows(&down))?,
            up: tensor(vec![rank, width], rows(&up.transpose()))?,
        };
        if !explained.is_finite() {
            return Err(Error::input("the states cannot be predicted: they are not finite")
                .help("check the model's weights"));
        }
        Ok(Fitted { prediction, explained })
    }
}

/// The `rank` leading eigenvectors of `mapᵀ · covariance · map`, as columns: by orthogonal iteration from a fixed
/// start, with the Rayleigh quotient of a few more than are wanted.
fn leading(map: &DMatrix<f64>, covariance: &DMatrix<f64>, rank: usize) -> DMatrix<f64> {
    let width = map.ncols();
    let kept = (rank + SPARE).min(width);
    let mut random = fastrand::Rng::with_seed(0);
    let start = DMatrix::from_fn(width, kept, |_, _| random.f64() - 0.5);
    let applied = |q: &DMatrix<f64>| map.transpose() * (covariance * (map * q));
    let mut q = start.qr().q();
    for _ in 0..STEPS {
        q = applied(&q).qr().q();
    }
    let small = q.transpose() * applied(&q);
    let eigen = SymmetricEigen::new((&small + small.transpose()) * 0.5);
    let mut order: Vec<usize> = (0..kept).collect();
    order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
    let columns: Vec<DVector<f64>> =
        order.iter().take(rank).map(|i| eigen.eigenvectors.column(*i).into_owned()).collect();
    q * DMatrix::from_columns(&columns)
}

/// The file's bytes: `layer.N.bias`, `.down` and `.up` for each layer, and what it was made for.
///
/// # Errors
/// When a tensor has no form in the file.
pub fn encode(fitted: &[Fitted], sha256: &str, tokens: usize) -> Result<Vec<u8>, Error> {
    let internal = |e: &dyn std::fmt::Display| Error::new(Kind::Internal, e.to_string());
    let mut parts: Vec<(String, &Tensor, Vec<u8>)> = vec![];
    for (layer, Fitted { prediction: p, .. }) in fitted.iter().enumerate() {
        for (name, tensor) in [("bias", &p.bias), ("down", &p.down), ("up", &p.up)] {
            let bytes = tensor.to_f32().iter().flat_map(|x| x.to_le_bytes()).collect();
            parts.push((format!("layer.{layer}.{name}"), tensor, bytes));
        }
    }
    let views = parts
        .iter()
        .map(|(name, tensor, bytes)| Ok((name, TensorView::new(Dtype::F32, tensor.shape().to_vec(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|e| internal(&e))?;
    let metadata = HashMap::from([
        ("format".to_string(), "snlp.preheat".to_string()),
        ("model_sha256".to_string(), sha256.to_string()),
        ("tokens".to_string(), tokens.to_string()),
        ("snlp.version".to_string(), env!("CARGO_PKG_VERSION").to_string()),
    ]);
    safetensors::serialize(views, Some(metadata)).map_err(|e| internal(&e))
}

/// The predictions in the file beside a model, if there is one.
///
/// # Errors
/// When it cannot be read, or was made for another model.
pub fn beside(model: &Path, sha256: &str) -> Result<Option<Predictions>, Error> {
    let path = folder_of(model).join(FILE);
    if path.exists() { read(&path, sha256).map(Some) } else { Ok(None) }
}

/// As [`beside`], where they are needed.
///
/// # Errors
/// As [`beside`], and when there is no file.
pub fn required(model: &Path, sha256: &str) -> Result<Predictions, Error> {
    let path: PathBuf = folder_of(model).join(FILE);
    beside(model, sha256)?.ok_or_else(|| {
        Error::input(format!("init=preheat: there is no '{}'", path.display()))
            .help(format!("make one: snlp calibrate {} --tokens WINDOWS.npz", model.display()))
    })
}

/// Longest file that is read.
const MOST_BYTES: u64 = 4 << 30;

fn read(path: &Path, sha256: &str) -> Result<Predictions, Error> {
    let refuse = |why: &dyn std::fmt::Display| {
        Error::input(format!("'{}' is no calibration", path.display()))
            .because(why.to_string())
            .help("make it again with 'snlp calibrate'")
    };
    let mut bytes = Vec::new();
    let file = open(path).map_err(|e| Error::io("read", path, e))?;
    std::io::Read::read_to_end(&mut std::io::Read::take(file, MOST_BYTES), &mut bytes)
        .map_err(|e| Error::io("read", path, e))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| refuse(&e))?;
    let key = |name: &str| header.metadata().as_ref().and_then(|m| m.get(name)).map(String::as_str);
    if key("format") != Some("snlp.preheat") {
        return Err(refuse(&"its metadata does not name the format snlp.preheat"));
    }
    if key("model_sha256") != Some(sha256) {
        return Err(Error::input(format!("'{}' was calibrated for another model", path.display()))
            .help("make it again with 'snlp calibrate'"));
    }
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| refuse(&e))?;
    let mut predictions = Predictions::new();
    for layer in (0..).take_while(|l| tensors.tensor(&format!("layer.{l}.bias")).is_ok()) {
        let part = |name: &str| -> Result<Tensor, Error> {
            let view = tensors.tensor(&format!("layer.{layer}.{name}")).map_err(|e| refuse(&e))?;
            if view.dtype() != Dtype::F32 {
                return Err(refuse(&format!("layer.{layer}.{name} is not of float32")));
            }
            let tensor = Tensor::from_bytes(DType::F32, view.shape().to_vec(), view.data().to_vec().into());
            let tensor = tensor.map_err(|e| refuse(&e))?;
            match tensor.to_f32().iter().all(|x| x.is_finite()) {
                true => Ok(tensor),
                false => Err(refuse(&format!("layer.{layer}.{name} holds numbers that are not finite"))),
            }
        };
        predictions.insert(layer, Prediction { bias: part("bias")?, down: part("down")?, up: part("up")? });
    }
    Ok(predictions)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// States that are an affine map of rank 2 of the input, plus a little noise behind layer 1.
    fn statistics(noise: f64) -> (Statistics, Vec<f32>, Vec<Vec<f32>>) {
        let (width, tokens) = (6, 400);
        let mut random = fastrand::Rng::with_seed(3);
        let mut normal = || (0..6).map(|_| random.f64() - 0.5).sum::<f64>();
        let map: [Vec<f64>; 4] = std::array::from_fn(|_| (0..width).map(|_| normal()).collect());
        let (mut input, mut states) = (vec![], vec![vec![], vec![]]);
        for _ in 0..tokens {
            let x: Vec<f64> = (0..width).map(|_| normal() + 0.3).collect();
            let inner: Vec<f64> =
                map[..2].iter().map(|v| v.iter().zip(&x).map(|(a, b)| a * b).sum()).collect();
            for (layer, state) in states.iter_mut().enumerate() {
                let exact = |i: usize| 0.7 + inner[0] * map[2][i] + inner[1] * map[3][i];
                state.extend((0..width).map(|i| (exact(i) + layer as f64 * noise * normal()) as f32));
            }
            input.extend(x.iter().map(|x| *x as f32));
        }
        let mut statistics = Statistics::new(width, 2);
        for (x, rows) in input.chunks(50 * width).enumerate() {
            let part = |s: &Vec<f32>| s[x * 50 * width..][..rows.len()].to_vec();
            statistics.add(rows, &states.iter().map(part).collect::<Vec<_>>());
        }
        (statistics, input, states)
    }

    fn predicted(p: &Prediction, x: &[f32]) -> Vec<f32> {
        let (width, rank) = (p.down.shape()[0], p.down.shape()[1]);
        let (bias, down, up) = (p.bias.to_f32(), p.down.to_f32(), p.up.to_f32());
        let inner: Vec<f32> =
            (0..rank).map(|r| (0..width).map(|i| x[i] * down[i * rank + r]).sum()).collect();
        (0..width).map(|i| bias[i] + (0..rank).map(|r| inner[r] * up[r * width + i]).sum::<f32>()).collect()
    }

    #[test]
    fn maps_of_low_rank_are_found_and_their_error_is_told() {
        let (statistics, input, states) = statistics(0.2);
        let fitted = statistics.fit(2).expect("fits");
        assert!(fitted[0].explained > 0.9999, "{}", fitted[0].explained);
        for (f, state) in fitted.iter().zip(&states) {
            let mean: Vec<f64> = (0..6)
                .map(|i| state.iter().skip(i).step_by(6).map(|y| f64::from(*y)).sum::<f64>() / 400.0)
                .collect();
            let (mut left, mut total) = (0.0, 0.0);
            for (x, y) in input.chunks(6).zip(state.chunks(6)) {
                for ((p, y), mean) in predicted(&f.prediction, x).iter().zip(y).zip(&mean) {
                    left += f64::from(p - y).powi(2);
                    total += (f64::from(*y) - mean).powi(2);
                }
            }
            assert!((f.explained - (1.0 - left / total)).abs() < 1e-5, "{} {left} {total}", f.explained);
        }
        // More directions explain more of the noisy state, fewer less.
        let explained = |rank| statistics.fit(rank).expect("fits")[1].explained;
        assert!(explained(1) < explained(2) && explained(2) < explained(6));
        assert_eq!(statistics.fit(100).expect("fits")[0].prediction.up.shape(), [6, 6]);
    }

    #[test]
    fn files_come_back_and_belong_to_their_model() {
        let (statistics, ..) = statistics(0.2);
        let fitted = statistics.fit(3).expect("fits");
        let folder = tempfile::tempdir().expect("folder");
        let model = folder.path().join("model.onnx");
        assert!(beside(&model, "ab").expect("nothing").is_none());
        let report = required(&model, "ab").expect_err("none").report();
        assert!(report.contains("snlp calibrate") && report.contains(FILE), "{report}");
        let file = folder.path().join(FILE);
        std::fs::write(&file, encode(&fitted, "ab", 400).expect("bytes")).expect("written");
        let read = required(&model, "ab").expect("read");
        assert_eq!(read.len(), 2);
        assert!(read.values().zip(&fitted).all(|(a, b)| *a == b.prediction));
        let report = required(&model, "cd").expect_err("another").report();
        assert!(report.contains("another model"), "{report}");
        let mut broken = fitted.clone();
        broken[1].prediction.bias = Tensor::from_vec(vec![6], vec![f32::NAN; 6]).expect("fits");
        let broken = encode(&broken, "ab", 400).expect("bytes");
        for bytes in [&b"no tensors"[..], &encode(&[], "ab", 0).expect("bytes")[..12], &broken] {
            std::fs::write(&file, bytes).expect("written");
            let report = required(&model, "ab").expect_err("bad").report();
            assert!(report.contains("is no calibration") && report.contains("help:"), "{report}");
        }
    }
}
