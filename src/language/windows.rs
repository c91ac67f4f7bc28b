//! Token windows: `[n, T + 1]` integers whose first `T` columns are inputs and last `T` targets.

use snlp_passes::ir::Tensor;

/// Why a tensor is no set of windows.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("'windows' must be integers of shape [n, T + 1] with n >= 1 and T >= 1, but is {0}")]
pub struct WindowsError(String);

/// Windows of tokens, all of one length.
#[derive(Clone, PartialEq, Debug)]
pub struct Windows {
    count: usize,
    length: usize,
    tokens: Vec<i64>,
}

impl Windows {
    /// Windows from an integer tensor `[n, T + 1]`.
    pub fn new(tensor: &Tensor) -> Result<Self, WindowsError> {
        let refuse = || WindowsError(format!("{}{:?}", tensor.dtype(), tensor.shape()));
        let (&[count, width], true) = (tensor.shape(), tensor.dtype().is_int()) else { return Err(refuse()) };
        if count == 0 || width < 2 {
            return Err(refuse());
        }
        let tokens = tensor.to_i64().ok_or_else(refuse)?;
        Ok(Windows { count, length: width - 1, tokens })
    }

    /// Number of windows.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Input tokens of each window, `T`.
    pub fn length(&self) -> usize {
        self.length
    }

    /// At most `count` windows, from the first.
    pub fn truncated(mut self, count: usize) -> Self {
        self.count = self.count.min(count);
        self.tokens.truncate(self.count * (self.length + 1));
        self
    }

    fn window(&self, i: usize) -> &[i64] {
        let width = self.length + 1;
        self.tokens.get(i * width..(i + 1) * width).unwrap_or_default()
    }

    /// Inputs of a window: its tokens but the last.
    pub fn inputs(&self, i: usize) -> &[i64] {
        self.window(i).get(..self.length).unwrap_or_default()
    }

    /// Targets of a window: its tokens but the first.
    pub fn targets(&self, i: usize) -> &[i64] {
        self.window(i).get(1..).unwrap_or_default()
    }

    /// The inputs of windows `range` as an int64 tensor `[range.len(), T]`.
    pub fn batch(&self, range: std::ops::Range<usize>) -> Tensor {
        let shape = vec![range.len(), self.length];
        let tokens: Vec<i64> = range.flat_map(|i| self.inputs(i).iter().copied()).collect();
        Tensor::from_vec(shape, tokens).unwrap_or_else(|_| Tensor::ints(&[]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows() -> Windows {
        let t = Tensor::from_vec(vec![2, 4], vec![1i64, 2, 3, 4, 5, 6, 7, 8]).expect("fits");
        Windows::new(&t).expect("windows")
    }

    #[test]
    fn inputs_and_targets_are_shifted_by_one() {
        let w = windows();
        assert_eq!((w.count(), w.length()), (2, 3));
        assert_eq!((w.inputs(1), w.targets(1)), (&[5i64, 6, 7][..], &[6i64, 7, 8][..]));
        let batch = w.batch(0..2);
        assert_eq!((batch.shape(), batch.to_i64()), (&[2, 3][..], Some(vec![1, 2, 3, 5, 6, 7])));
        assert_eq!(w.truncated(1).batch(0..1).shape(), [1, 3]);
    }

    #[test]
    fn other_tensors_are_refused() {
        for t in [
            Tensor::ints(&[1, 2, 3]),
            Tensor::from_vec(vec![2, 1], vec![1i64, 2]).expect("fits"),
            Tensor::from_vec(vec![0, 4], Vec::<i64>::new()).expect("fits"),
            Tensor::from_vec(vec![1, 2], vec![1f32, 2.0]).expect("fits"),
        ] {
            assert!(Windows::new(&t).is_err(), "{t:?}");
        }
    }
}
