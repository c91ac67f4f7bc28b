//! How constants lie on the device.
//!
//! A constant is a list of *pieces*, one for each part of its rope, each at a 256-byte boundary. A stack
//! of the weights of `C` layers is therefore the layers' own weights side by side, with a stride that
//! steps over the padding: a graph that reads one layer's weight and a graph that reads the stack share
//! the same bytes. A rope whose parts no stride can express is one piece.

use bytes::Bytes;
use snlp_passes::ir::{DType, Tensor};

use super::views;
use crate::kernels::{Scalar, View};

/// Boundary at which pieces begin, in bytes: the strictest binding alignment of any device.
pub const PIECE_ALIGN: u64 = 256;

/// Bytes of so many elements on the device.
pub fn scalar_bytes(scalar: Scalar, count: u64) -> u64 {
    (count * scalar.bits()).div_ceil(8)
}

/// How constants lie that kernels read packed: quantised integers as they are, everything else as
/// [`scalar_of`] says.
pub fn packed_scalar_of(dtype: DType) -> Scalar {
    match dtype {
        DType::I8 => Scalar::I8,
        DType::U8 => Scalar::U8,
        DType::I4 => Scalar::I4,
        DType::U4 => Scalar::U4,
        other => scalar_of(other),
    }
}

/// How elements of a dtype lie on the device by default: f16 as they are, other floats as f32, integers
/// as checked 32-bit integers.
pub fn scalar_of(dtype: DType) -> Scalar {
    match dtype {
        DType::F16 => Scalar::F16,
        DType::Bool => Scalar::Bool,
        d if d.is_float() => Scalar::F32,
        _ => Scalar::I32,
    }
}

/// Bytes that lie together on the device, from one or more places of the host.
#[derive(Clone, PartialEq, Debug)]
pub struct Piece {
    /// Source bytes, laid end to end.
    pub chunks: Vec<Bytes>,
    /// Element type of the source.
    pub dtype: DType,
    /// Element type on the device.
    pub scalar: Scalar,
}

/// What tells pieces apart: where their bytes are and what becomes of them.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PieceKey {
    chunks: Vec<(usize, usize)>,
    dtype: DType,
    scalar: Scalar,
}

impl PieceKey {
    /// Address and length of each run of bytes.
    pub(crate) fn chunks(&self) -> &[(usize, usize)] {
        &self.chunks
    }
}

impl Piece {
    /// The identity of the piece. Valid while the chunks are alive.
    pub fn key(&self) -> PieceKey {
        let chunks = self.chunks.iter().map(|c| (c.as_ptr() as usize, c.len())).collect();
        PieceKey { chunks, dtype: self.dtype, scalar: self.scalar }
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        let bytes: u64 = self.chunks.iter().map(|c| c.len() as u64).sum();
        if self.dtype.is_nibble() { bytes * 2 } else { bytes / self.dtype.size() as u64 }
    }

    /// Bytes on the device, without padding.
    pub fn bytes(&self) -> u64 {
        scalar_bytes(self.scalar, self.elements())
    }

    /// Bytes on the device up to the next piece.
    pub fn padded(&self) -> u64 {
        self.bytes().next_multiple_of(PIECE_ALIGN)
    }
}

/// A constant as a plan reads it.
#[derive(Clone, PartialEq, Debug)]
pub struct Constant {
    /// Name in the graph, or where it is used.
    pub name: String,
    /// Its pieces, in the order in which they lie.
    pub pieces: Vec<Piece>,
    /// Element type on the device.
    pub scalar: Scalar,
    /// The whole tensor over its pieces.
    pub view: View,
}

impl Constant {
    /// The layout of `tensor` on the device as elements of `scalar`; `None` when a size does not fit the
    /// device's 32-bit indexing.
    pub fn new(name: &str, tensor: &Tensor, scalar: Scalar) -> Option<Constant> {
        let shape: Vec<u32> = tensor.shape().iter().map(|d| u32::try_from(*d).ok()).collect::<Option<_>>()?;
        let piece = |chunks: Vec<Bytes>| Piece { chunks, dtype: tensor.dtype(), scalar };
        let parts: Vec<Bytes> = tensor.parts().iter().filter(|p| !p.is_empty()).cloned().collect();
        let separate: Vec<Piece> = parts.iter().map(|p| piece(vec![p.clone()])).collect();
        let (pieces, view) = match stacked_view(&shape, &separate) {
            Some(view) => (separate, view),
            None => (vec![piece(parts)], View::dense(&shape)),
        };
        let constant = Constant { name: name.into(), pieces, scalar, view };
        u32::try_from(constant.bytes() * 8 / scalar.bits()).ok()?;
        Some(constant)
    }

    /// Bytes on the device, with the padding between pieces.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(Piece::padded).sum()
    }
}

/// The view of `shape` over padded pieces; `None` when they must be joined.
fn stacked_view(shape: &[u32], pieces: &[Piece]) -> Option<View> {
    let first = pieces.first()?;
    let last = pieces.len() - 1;
    if pieces.iter().take(last).all(|p| p.bytes() == p.padded()) {
        return Some(View::dense(shape));
    }
    if pieces.iter().any(|p| p.bytes() != first.bytes()) {
        return None;
    }
    let stride = u32::try_from(first.padded() * 8 / first.scalar.bits()).ok()?;
    let count = u32::try_from(pieces.len()).ok()?;
    let each = u32::try_from(first.elements()).ok()?;
    views::reshape(&View { shape: vec![count, each], strides: vec![stride, 1], offset: 0 }, shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(shape: &[usize]) -> Tensor {
        let n: usize = shape.iter().product();
        Tensor::from_vec(shape.to_vec(), (0..n).map(|i| i as f32).collect()).unwrap()
    }

    #[test]
    fn a_stack_is_its_parts_at_a_stride() {
        let parts = [floats(&[3, 5]), floats(&[3, 5])];
        let c = Constant::new("w", &Tensor::stack(&parts).unwrap(), Scalar::F32).unwrap();
        assert_eq!(c.view, View { shape: vec![2, 3, 5], strides: vec![64, 5, 1], offset: 0 });
        let one = Constant::new("w1", &parts[1], Scalar::F32).unwrap();
        assert_eq!(c.pieces[1].key(), one.pieces[0].key());
        assert_eq!((c.bytes(), one.bytes()), (512, 256));
    }

    #[test]
    fn large_stacks_are_dense() {
        let parts = [floats(&[64, 2]), floats(&[64, 2])];
        let c = Constant::new("w", &Tensor::stack(&parts).unwrap(), Scalar::F32).unwrap();
        assert!(c.view.is_dense() && c.pieces.len() == 2);
        let half = Constant::new("w", &Tensor::stack(&parts).unwrap(), Scalar::F16).unwrap();
        assert_ne!(half.pieces[0].key(), c.pieces[0].key());
    }

    #[test]
    fn quantised_weights_lie_packed() {
        let part = Tensor::from_vec(vec![6, 10], vec![7u8; 60]).unwrap().packed(DType::U4);
        let c = Constant::new("w", &Tensor::stack(&[part.clone(), part]).unwrap(), Scalar::U4).unwrap();
        assert_eq!(c.view, View { shape: vec![2, 6, 10], strides: vec![512, 10, 1], offset: 0 });
        assert_eq!((c.pieces[0].bytes(), c.bytes()), (30, 512));
    }

    #[test]
    fn ropes_without_a_stride_are_one_piece() {
        let (a, b) = (floats(&[3, 5]), floats(&[2, 5]));
        let joined = Tensor::from_parts(DType::F32, vec![5, 5], [a.parts(), b.parts()].concat()).unwrap();
        let c = Constant::new("w", &joined, Scalar::F32).unwrap();
        assert_eq!((c.pieces.len(), c.view.is_dense(), c.bytes()), (1, true, 256));
    }
}
