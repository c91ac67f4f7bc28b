//! A check of cooperative matrices, which are an experimental feature of the GPU's interface: a driver that multiplies
//! them wrongly is found out before anything relies on it.

use std::sync::Arc;

use snlp_passes::ir::{DType, Dim, Graph, Op, Tensor, Type};

use crate::device::Gpu;
use crate::schedule::{Options, WeightDtype};
use crate::session::Session;

/// More than one tile of rows and columns, and none of them whole.
const SIZES: [usize; 3] = [70, 90, 75];

/// What a product through cooperative matrices differs by from the right one, relative to the sizes of its summands.
///
/// # Errors
/// Why it cannot be computed.
pub(crate) fn error(gpu: &Arc<Gpu>) -> Result<f64, String> {
    let [m, k, n] = SIZES;
    let number = |i: usize, step: usize| (i * step % 127) as f32 / 64.0 - 1.0;
    // Rows of very different size; eleven bits do for the right operand, and not for the left one.
    let row = |i: usize| f32::powi(2.0, (i / k) as i32 % 40 - 20) / 3.0;
    let x: Vec<f32> = (0..m * k).map(|i| number(i, 53) * row(i)).collect();
    let w: Vec<f32> = (0..k * n).map(|i| number(i, 37)).collect();
    let tensor = |shape: [usize; 2], data: &[f32]| {
        Tensor::from_vec(shape.to_vec(), data.to_vec()).map_err(|e| e.to_string())
    };
    let mut graph = Graph::new("product");
    let input = graph.add_input("x", Type::new(DType::F32, [m, k].map(Dim::from).to_vec()));
    let weight = graph.constant(tensor([k, n], &w)?);
    let out = graph.add(Op::MatMul, &[input, weight]).map_err(|e| e.to_string())?;
    graph.add_output("y", out);
    let options = Options { weights: WeightDtype::F16, ..Options::default() };
    let session = Session::new(gpu, graph, options).map_err(|e| e.to_string())?;
    let results = session.run(&[("x".into(), tensor([m, k], &x)?)]).map_err(|e| e.to_string())?;
    let got = results.first().map(|(_, y)| y.to_f64()).ok_or("no result")?;
    let mut worst = 0f64;
    for (at, y) in got.iter().enumerate() {
        let (i, j) = (at / n, at % n);
        let terms = (0..k).map(|p| f64::from(x[i * k + p]) * f64::from(w[p * n + j]));
        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
        let error = (y - sum).abs() / size;
        worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
    }
    Ok(worst)
}

/// Errors of f32 sums stay well below this, those of f16 sums do not.
pub(crate) const TOLERANCE: f64 = 1e-5;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::AdapterChoice;
    use crate::kernels::Limits;

    /// The device as if it were hardware, with what `change` makes of its limits.
    fn open(change: impl Fn(&mut Limits)) -> Option<Arc<Gpu>> {
        let gpu = Gpu::open(&AdapterChoice { hardware_kernels: true, ..AdapterChoice::any() }).ok();
        if gpu.is_none() {
            eprintln!("SKIPPED: a check of products needs an adapter");
            assert!(std::env::var("REQUIRE_GPU").as_deref() != Ok("1"), "REQUIRE_GPU=1 and no adapter");
        }
        let mut gpu = gpu?;
        change(&mut Arc::get_mut(&mut gpu)?.info.limits);
        Some(gpu)
    }

    #[test]
    fn the_check_passes_where_products_are_right() {
        let Some(gpu) = open(|l| l.cooperative = 0) else { return };
        assert!(error(&gpu).unwrap() < TOLERANCE);
        let Some(gpu) = open(|_| ()) else { return };
        if gpu.limits().cooperative == 0 {
            eprintln!("SKIPPED: cooperative matrices, which this device has not");
        }
        assert!(error(&gpu).unwrap() < TOLERANCE);
    }

    #[test]
    fn the_check_tells_what_cannot_be_computed() {
        let Some(gpu) = open(|l| l.max_storage_binding = 64) else { return };
        assert!(error(&gpu).is_err());
    }
}
