//! Constant tensors: a dtype, a shape and bytes that may be borrowed from a mapped file.
//!
//! The bytes are a *rope*: a list of reference-counted pieces laid end to end. Stacking the weights of
//! several layers on a new leading axis therefore copies nothing, in memory or on the way to a file.

use std::borrow::Cow;
use std::fmt;

use bytemuck::Pod;
use bytes::Bytes;
use half::{bf16, f16};

/// Element types.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum DType {
    F32,
    F16,
    BF16,
    F64,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    /// Two to a byte, the first in the low half; quantised weights.
    I4,
    /// As [`DType::I4`], unsigned.
    U4,
    Bool,
}

impl DType {
    /// Bytes of one element by itself; an element of 4 bits shares its byte, see [`DType::bytes`].
    pub fn size(self) -> usize {
        match self {
            DType::F64 | DType::I64 | DType::U64 => 8,
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F16 | DType::BF16 | DType::I16 | DType::U16 => 2,
            DType::I8 | DType::U8 | DType::I4 | DType::U4 | DType::Bool => 1,
        }
    }

    /// Bytes of `count` elements side by side.
    pub fn bytes(self, count: usize) -> usize {
        if self.is_nibble() { count.div_ceil(2) } else { count * self.size() }
    }

    /// A type of 4 bits.
    pub fn is_nibble(self) -> bool {
        matches!(self, DType::I4 | DType::U4)
    }

    /// The type of 8 bits that holds the elements of a type of 4; any other type itself.
    pub fn unpacked(self) -> DType {
        match self {
            DType::I4 => DType::I8,
            DType::U4 => DType::U8,
            other => other,
        }
    }

    /// Smallest and largest value of an integer type of at most 32 bits.
    pub fn range(self) -> Option<(i64, i64)> {
        Some(match self {
            DType::I4 => (-8, 7),
            DType::U4 => (0, 15),
            DType::I8 => (i8::MIN.into(), i8::MAX.into()),
            DType::U8 => (0, u8::MAX.into()),
            DType::I16 => (i16::MIN.into(), i16::MAX.into()),
            DType::U16 => (0, u16::MAX.into()),
            DType::I32 => (i32::MIN.into(), i32::MAX.into()),
            DType::U32 => (0, u32::MAX.into()),
            _ => return None,
        })
    }

    /// f16, bf16, f32 or f64.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
    }

    /// An integer type (not bool).
    pub fn is_int(self) -> bool {
        !self.is_float() && self != DType::Bool
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::F64 => "f64",
            DType::I8 => "i8",
            DType::I16 => "i16",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::U8 => "u8",
            DType::U16 => "u16",
            DType::U32 => "u32",
            DType::U64 => "u64",
            DType::I4 => "i4",
            DType::U4 => "u4",
            DType::Bool => "bool",
        })
    }
}

/// A Rust type that is the element of a [`DType`]. Bool tensors are read and written as `u8` 0 and 1.
pub trait Element: Pod + Send {
    /// The dtype that holds this type.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($t:ty => $d:ident),*) => { $(impl Element for $t { const DTYPE: DType = DType::$d; })* };
}
elements!(f32 => F32, f16 => F16, bf16 => BF16, f64 => F64, i8 => I8, i16 => I16, i32 => I32, i64 => I64,
          u8 => U8, u16 => U16, u32 => U32, u64 => U64);

/// A vector as the owner of its bytes, which keeps them aligned.
struct Elements<T>(Vec<T>);

impl<T: Element> AsRef<[u8]> for Elements<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// Why a tensor could not be made.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum TensorError {
    /// The bytes do not fill the shape.
    #[error("{dtype} tensor of shape {shape:?} needs {expected} bytes but has {actual}")]
    Length {
        /// Element type.
        dtype: DType,
        /// Declared shape.
        shape: Vec<usize>,
        /// Bytes that the shape needs.
        expected: usize,
        /// Bytes found.
        actual: usize,
    },
    /// The number of elements does not fit the address space.
    #[error("tensor of shape {shape:?} is too large to address")]
    TooLarge {
        /// Declared shape.
        shape: Vec<usize>,
    },
    /// Tensors to be stacked differ in type.
    #[error("tensors differ: {0} and {1}")]
    Differ(String, String),
}

/// A constant, dense, row-major, little-endian tensor.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    parts: Vec<Bytes>,
}

/// The number of elements of `shape`, if it can be addressed.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).filter(|n| *n <= isize::MAX as usize / 8)
}

impl Tensor {
    /// A tensor over `data`, which must be exactly as long as `dtype` and `shape` need.
    pub fn from_bytes(dtype: DType, shape: Vec<usize>, data: Bytes) -> Result<Self, TensorError> {
        Self::from_parts(dtype, shape, vec![data])
    }

    /// A tensor whose bytes are `parts` laid end to end; pieces end on element boundaries.
    pub fn from_parts(dtype: DType, shape: Vec<usize>, parts: Vec<Bytes>) -> Result<Self, TensorError> {
        let count = element_count(&shape).ok_or_else(|| TensorError::TooLarge { shape: shape.clone() })?;
        let expected = dtype.bytes(count);
        let actual: usize = parts.iter().map(Bytes::len).sum();
        if actual != expected || parts.iter().any(|p| p.len() % dtype.size() != 0) {
            return Err(TensorError::Length { dtype, shape, expected, actual });
        }
        Ok(Tensor { dtype, shape, parts })
    }

    /// A tensor that owns `data`.
    pub fn from_vec<T: Element>(shape: Vec<usize>, data: Vec<T>) -> Result<Self, TensorError> {
        Self::from_bytes(T::DTYPE, shape, Bytes::from_owner(Elements(data)))
    }

    /// A bool tensor.
    pub fn from_bools(shape: Vec<usize>, data: &[bool]) -> Result<Self, TensorError> {
        Self::from_bytes(DType::Bool, shape, data.iter().map(|b| u8::from(*b)).collect::<Vec<_>>().into())
    }

    /// A one-element tensor of rank 0.
    pub fn scalar<T: Element>(value: T) -> Self {
        Tensor { dtype: T::DTYPE, shape: vec![], parts: vec![bytemuck::bytes_of(&value).to_vec().into()] }
    }

    /// An int64 vector.
    pub fn ints(values: &[i64]) -> Self {
        let bytes = bytemuck::cast_slice::<i64, u8>(values).to_vec();
        Tensor { dtype: DType::I64, shape: vec![values.len()], parts: vec![bytes.into()] }
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Sizes of the axes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        // The constructor has checked that the count exists.
        element_count(&self.shape).unwrap_or(0)
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of bytes.
    pub fn byte_len(&self) -> usize {
        self.dtype.bytes(self.len())
    }

    /// The pieces of the rope, in order.
    pub fn parts(&self) -> &[Bytes] {
        &self.parts
    }

    /// All bytes; copies only when there are several pieces.
    pub fn bytes(&self) -> Bytes {
        match &self.parts[..] {
            [one] => one.clone(),
            parts => parts.concat().into(),
        }
    }

    /// The elements, when `T` is the tensor's element type (`u8` also reads bool); copies when the
    /// bytes are in pieces or not aligned.
    pub fn as_slice<T: Element>(&self) -> Option<Cow<'_, [T]>> {
        if T::DTYPE != self.dtype && !(T::DTYPE == DType::U8 && self.dtype == DType::Bool) {
            return None;
        }
        if let [one] = &self.parts[..]
            && let Ok(slice) = bytemuck::try_cast_slice(one)
        {
            return Some(Cow::Borrowed(slice));
        }
        let mut out = Vec::with_capacity(self.len());
        for part in &self.parts {
            out.extend(bytemuck::pod_collect_to_vec::<u8, T>(part));
        }
        Some(Cow::Owned(out))
    }

    /// Every element as f64 (exact for all but large 64-bit integers).
    pub fn to_f64(&self) -> Vec<f64> {
        fn all<T: Element>(t: &Tensor, f: impl Fn(T) -> f64) -> Vec<f64> {
            t.as_slice::<T>().map(|s| s.iter().map(|x| f(*x)).collect()).unwrap_or_default()
        }
        match self.dtype {
            DType::F32 => all::<f32>(self, f64::from),
            DType::F64 => all::<f64>(self, |x| x),
            DType::F16 => all::<f16>(self, f64::from),
            DType::BF16 => all::<bf16>(self, f64::from),
            DType::I8 => all::<i8>(self, f64::from),
            DType::I16 => all::<i16>(self, f64::from),
            DType::I32 => all::<i32>(self, f64::from),
            DType::I64 => all::<i64>(self, |x| x as f64),
            DType::U8 | DType::Bool => all::<u8>(self, f64::from),
            DType::U16 => all::<u16>(self, f64::from),
            DType::U32 => all::<u32>(self, f64::from),
            DType::U64 => all::<u64>(self, |x| x as f64),
            DType::I4 | DType::U4 => self.unpacked().to_f64(),
        }
    }

    /// Every element as f32, rounded; a float tensor's own precision.
    pub fn to_f32(&self) -> Vec<f32> {
        match self.as_slice::<f32>() {
            Some(s) => s.into_owned(),
            None => self.to_f64().into_iter().map(|x| x as f32).collect(),
        }
    }

    /// Every element of an integer or bool tensor as i64; `None` for floats and for u64 beyond i64.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        fn all<T: Element + Into<i64>>(t: &Tensor) -> Option<Vec<i64>> {
            Some(t.as_slice::<T>()?.iter().map(|x| (*x).into()).collect())
        }
        match self.dtype {
            DType::I64 => all::<i64>(self),
            DType::I32 => all::<i32>(self),
            DType::I16 => all::<i16>(self),
            DType::I8 => all::<i8>(self),
            DType::U32 => all::<u32>(self),
            DType::U16 => all::<u16>(self),
            DType::U8 | DType::Bool => all::<u8>(self),
            DType::U64 => self.as_slice::<u64>()?.iter().map(|x| i64::try_from(*x).ok()).collect(),
            DType::I4 | DType::U4 => self.unpacked().to_i64(),
            _ => None,
        }
    }

    /// The value of a one-element tensor of any rank, as f64.
    pub fn item(&self) -> Option<f64> {
        if self.len() == 1 { self.to_f64().first().copied() } else { None }
    }

    /// The same bytes under another shape of as many elements.
    pub fn reshaped(&self, shape: Vec<usize>) -> Result<Self, TensorError> {
        Self::from_parts(self.dtype, shape, self.parts.clone())
    }

    /// Elements of 4 bits as 8 bits each; any other tensor as it is.
    pub fn unpacked(&self) -> Tensor {
        if !self.dtype.is_nibble() {
            return self.clone();
        }
        let mut out = Vec::with_capacity(self.len() + 1);
        for byte in self.parts.iter().flat_map(|p| p.iter()) {
            out.extend([byte & 15, byte >> 4]);
        }
        out.truncate(self.len());
        if self.dtype == DType::I4 {
            // Bit 3 is the sign.
            out.iter_mut().for_each(|x| *x = (*x ^ 8).wrapping_sub(8));
        }
        Tensor { dtype: self.dtype.unpacked(), shape: self.shape.clone(), parts: vec![out.into()] }
    }

    /// The low halves of 8-bit elements side by side, as `dtype` of 4 bits: the reverse of
    /// [`Tensor::unpacked`]. Any other pair of types gives the tensor as it is.
    pub fn packed(&self, dtype: DType) -> Tensor {
        if !dtype.is_nibble() || self.dtype != dtype.unpacked() {
            return self.clone();
        }
        let bytes = self.bytes();
        let half = |i: usize| bytes.get(i).map_or(0, |b| b & 15);
        let out: Vec<u8> = (0..bytes.len()).step_by(2).map(|i| half(i) | half(i + 1) << 4).collect();
        Tensor { dtype, shape: self.shape.clone(), parts: vec![out.into()] }
    }

    /// Tensors of one type laid along a new leading axis, without copying (but where an odd number of
    /// elements of 4 bits leaves half a byte).
    pub fn stack(tensors: &[Tensor]) -> Result<Self, TensorError> {
        let Some(first) = tensors.first() else {
            return Err(TensorError::Differ("nothing".into(), "to stack".into()));
        };
        if let Some(other) = tensors.iter().find(|t| t.shape != first.shape || t.dtype != first.dtype) {
            return Err(TensorError::Differ(format!("{first:?}"), format!("{other:?}")));
        }
        if first.dtype.is_nibble() && first.len() % 2 == 1 {
            let wide: Vec<Tensor> = tensors.iter().map(Tensor::unpacked).collect();
            return Ok(Self::stack(&wide)?.packed(first.dtype));
        }
        let mut shape = vec![tensors.len()];
        shape.extend(&first.shape);
        let parts = tensors.iter().flat_map(|t| t.parts.iter().cloned()).collect();
        Self::from_parts(first.dtype, shape, parts)
    }

    /// Whether both are the same bytes under the same type (not merely stored at the same place).
    pub fn same(&self, other: &Tensor) -> bool {
        self.dtype == other.dtype && self.shape == other.shape && self.same_bytes(other)
    }

    fn same_bytes(&self, other: &Tensor) -> bool {
        let identical = |a: &Bytes, b: &Bytes| a.as_ptr() == b.as_ptr() && a.len() == b.len();
        if self.parts.len() == other.parts.len()
            && self.parts.iter().zip(&other.parts).all(|(a, b)| identical(a, b))
        {
            return true;
        }
        self.bytes() == other.bytes()
    }
}

impl PartialEq for Tensor {
    /// Bit-equal under the same type (so a NaN equals itself).
    fn eq(&self, other: &Tensor) -> bool {
        self.same(other)
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)?;
        if self.len() <= 8 { write!(f, " {:?}", self.to_f64()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacking_copies_nothing() {
        let a = Tensor::from_vec(vec![2], vec![1f32, 2.0]).expect("fits");
        let b = Tensor::from_vec(vec![2], vec![3f32, 4.0]).expect("fits");
        let s = Tensor::stack(&[a.clone(), b]).expect("alike");
        assert_eq!(s.shape(), [2, 2]);
        assert_eq!(s.parts()[0].as_ptr(), a.parts()[0].as_ptr());
        assert_eq!(s.to_f32(), [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn nibbles_are_packed_low_half_first() {
        let wide = Tensor::from_vec(vec![3], vec![-8i8, 7, -1]).expect("fits");
        let packed = wide.packed(DType::I4);
        assert_eq!((packed.bytes().to_vec(), packed.byte_len()), (vec![0x78, 0x0f], 2));
        assert_eq!(packed.unpacked(), wide);
        assert_eq!(packed.to_i64(), Some(vec![-8, 7, -1]));
        // Halves of bytes cannot be laid side by side, whole ones are not copied.
        let odd = Tensor::stack(&[packed.clone(), packed]).expect("alike");
        assert_eq!(odd.to_i64(), Some(vec![-8, 7, -1, -8, 7, -1]));
        let even = Tensor::from_vec(vec![2], vec![15u8, 1]).expect("fits").packed(DType::U4);
        let stacked = Tensor::stack(&[even.clone(), even.clone()]).expect("alike");
        assert_eq!(stacked.parts()[1].as_ptr(), even.parts()[0].as_ptr());
        assert_eq!(stacked.to_f64(), [15.0, 1.0, 15.0, 1.0]);
    }

    #[test]
    fn lengths_are_checked() {
        assert!(matches!(
            Tensor::from_vec(vec![3], vec![1f32, 2.0]),
            Err(TensorError::Length { expected: 12, actual: 8, .. })
        ));
        assert!(matches!(
            Tensor::from_vec(vec![usize::MAX, 4], Vec::<f32>::new()),
            Err(TensorError::TooLarge { .. })
        ));
    }
}
