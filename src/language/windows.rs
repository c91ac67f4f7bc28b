//! Token windows: `[n, T + 1]` integers whose first `T` columns are inputs and last `T` targets.
//!
//! Windows cut from one text with a stride below their length overlap, as perplexities of the field are
//! measured: what a window repeats of the one before is context and not scored again.
//!
//! ```text
//!   text      a b c d e f g h      length 4, stride 2
//!   window 0  a b c d e            scores b c d e
//!   window 1      c d e f g              scores f g
//!   window 2        d e f g h              scores h: the last one ends where the text ends
//! ```

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
    /// For each window, how many of its targets an earlier one has scored; none when empty.
    repeated: Vec<usize>,
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
        Ok(Windows { count, length: width - 1, tokens, repeated: vec![] })
    }

    /// Windows of `length` inputs over one text, the first at its beginning, each `stride` tokens behind the
    /// one before and the last at its end, so that every token but the first is scored exactly once. A text
    /// that is shorter makes one window of its length; a stride above the length counts as the length.
    ///
    /// # Errors
    /// When the text has fewer than two tokens, or `length` or `stride` is 0.
    pub fn slide(text: &[i64], length: usize, stride: usize) -> Result<Self, WindowsError> {
        let length = length.min(text.len().saturating_sub(1));
        if length == 0 || stride == 0 {
            return Err(WindowsError(format!("cut from {} tokens", text.len())));
        }
        let stride = stride.min(length);
        let last = text.len() - 1 - length;
        let mut windows = Windows { count: 0, length, tokens: vec![], repeated: vec![] };
        let mut scored = 0;
        let mut start = 0;
        loop {
            windows.tokens.extend(&text[start..=start + length]);
            windows.repeated.push(scored - start);
            windows.count += 1;
            scored = start + length;
            if start == last {
                return Ok(windows);
            }
            start = (start + stride).min(last);
        }
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
        self.repeated.truncate(self.count);
        self
    }

    /// The windows of these numbers, in this order.
    pub fn select(&self, numbers: &[usize]) -> Self {
        let numbers = || numbers.iter().copied().filter(|i| *i < self.count);
        Windows {
            count: numbers().count(),
            length: self.length,
            tokens: numbers().flat_map(|i| self.window(i).iter().copied()).collect(),
            repeated: numbers().map(|i| self.repeated(i)).collect(),
        }
    }

    /// How many of a window's targets, from its first, are context only: an earlier window has scored them.
    pub fn repeated(&self, i: usize) -> usize {
        self.repeated.get(i).copied().unwrap_or(0)
    }

    /// Targets that are scored, in all windows.
    pub fn scored(&self) -> usize {
        self.count * self.length - (0..self.count).map(|i| self.repeated(i)).sum::<usize>()
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
    fn sliding_windows_score_every_token_once() {
        let text: Vec<i64> = (100..108).collect();
        let w = Windows::slide(&text, 4, 2).expect("windows");
        let all: Vec<_> = (0..w.count()).map(|i| (w.inputs(i)[0], w.repeated(i))).collect();
        assert_eq!(all, [(100, 0), (102, 2), (103, 3)], "as in the picture");
        for length in 1..=9 {
            for stride in 1..=10 {
                let w = Windows::slide(&text, length, stride).expect("windows");
                let scored: Vec<i64> =
                    (0..w.count()).flat_map(|i| w.targets(i)[w.repeated(i)..].to_vec()).collect();
                assert_eq!(scored, text[1..], "length {length}, stride {stride}");
                assert_eq!((w.scored(), w.length()), (7, length.min(7)));
            }
        }
        let whole = Windows::slide(&text[..7], 3, 3).expect("windows");
        assert_eq!((whole.count(), whole.repeated(1), whole.inputs(1)), (2, 0, &text[3..6]));
        let picked = w.select(&[2, 0, 9]);
        assert_eq!((picked.count(), picked.inputs(0), picked.repeated(0)), (2, w.inputs(2), 3));
        assert!(Windows::slide(&text[..1], 4, 2).is_err() && Windows::slide(&text, 4, 0).is_err());
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
