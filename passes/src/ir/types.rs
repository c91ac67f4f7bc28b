//! Types of values: an element type and a symbolic shape.

use std::fmt;

use super::dim::Dim;
use super::tensor::{DType, Tensor};

/// The type of a value.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Type {
    /// Element type.
    pub dtype: DType,
    /// Sizes of the axes.
    pub shape: Vec<Dim>,
}

impl Type {
    /// A type of these parts.
    pub fn new(dtype: DType, shape: Vec<Dim>) -> Self {
        Type { dtype, shape }
    }

    /// The type of a tensor.
    pub fn of(tensor: &Tensor) -> Self {
        Type { dtype: tensor.dtype(), shape: tensor.shape().iter().map(|d| Dim::from(*d)).collect() }
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements.
    pub fn elements(&self) -> Dim {
        Dim::product(&self.shape)
    }

    /// The sizes, when all are known.
    pub fn known_shape(&self) -> Option<Vec<usize>> {
        self.shape.iter().map(Dim::known_size).collect()
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, d) in self.shape.iter().enumerate() {
            write!(f, "{}{d}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
