//! The weights on the device: one copy for all sessions of a [`Gpu`].
//!
//! Pieces (see [`crate::schedule::Constant`]) are known by the identity of their bytes on the host. A
//! constant needs its pieces side by side; pieces that already lie so are shared, whoever brought them.
//! Placing the stacks of several graphs together, longest first, joins overlapping stacks into chains, so
//! that every graph finds its own range. The store keeps the host bytes alive: their addresses are keys.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use half::{bf16, f16};
use snlp_passes::ir::{DType, Element, Tensor};

use crate::device::Gpu;
use crate::error::RuntimeError;
use crate::executor::SharedBytes;
use crate::kernels::Scalar;
use crate::schedule::{Constant, PIECE_ALIGN, Piece, PieceKey};

/// Bytes written to the queue before waiting for it, which bounds the staging memory.
const STAGING: u64 = 256 << 20;
/// Bytes converted and written at once; a multiple of every element size.
const CHUNK: usize = 32 << 20;
/// Small chains share buffers of at most this size.
const SLAB: u64 = 64 << 20;

#[derive(Clone)]
struct Located {
    buffer: Arc<wgpu::Buffer>,
    offset: u64,
    /// Keeps the address that is the key from being reused.
    _source: Piece,
}

/// Where a constant lies.
#[derive(Clone)]
pub struct WeightRange {
    /// The buffer, shared with other constants.
    pub buffer: Arc<wgpu::Buffer>,
    /// First byte, a multiple of [`PIECE_ALIGN`].
    pub offset: u64,
}

/// What the store holds.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct WeightReport {
    /// Bytes in buffers.
    pub resident: u64,
    /// Bytes of pieces that were uploaded although a copy was on the device already, because a new stack
    /// needs them elsewhere.
    pub repeated: u64,
}

/// A stack with an order of its own, beside the chains that its pieces belong to.
struct Stack {
    range: WeightRange,
    /// Keeps the addresses that are the key from being reused.
    _source: Vec<Piece>,
}

/// The pieces on a device.
#[derive(Default)]
pub struct WeightStore {
    pieces: HashMap<PieceKey, Located>,
    stacks: HashMap<Vec<PieceKey>, Stack>,
    report: WeightReport,
    /// How many sessions have these bytes in their graphs.
    held: HashMap<(usize, usize), usize>,
}

impl WeightStore {
    /// What the store holds.
    pub fn report(&self) -> WeightReport {
        self.report
    }

    /// Counts a session that has these bytes in its graph. What no session has any more is freed now rather than when the
    /// last one goes: the next is often of the same model.
    pub fn hold(&mut self, bytes: &SharedBytes) {
        bytes.iter().for_each(|b| *self.held.entry(*b).or_default() += 1);
        self.sweep();
    }

    /// Takes back a [`WeightStore::hold`].
    pub fn release(&mut self, bytes: &SharedBytes) {
        for b in bytes {
            if let Entry::Occupied(mut count) = self.held.entry(*b) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
    }

    fn sweep(&mut self) {
        let is_held = |key: &PieceKey| key.chunks().iter().all(|c| self.held.contains_key(c));
        self.pieces.retain(|key, _| is_held(key));
        self.stacks.retain(|keys, _| keys.iter().all(is_held));
        let buffers =
            self.pieces.values().map(|p| &p.buffer).chain(self.stacks.values().map(|s| &s.range.buffer));
        let sizes: HashMap<_, _> = buffers.map(|b| (Arc::as_ptr(b), b.size())).collect();
        self.report.resident = sizes.values().sum();
    }

    /// Where `constant` lies, if it is on the device in one range.
    pub fn find(&self, constant: &Constant) -> Option<WeightRange> {
        self.in_chain(constant).or_else(|| Some(self.stacks.get(&keys(constant))?.range.clone()))
    }

    fn in_chain(&self, constant: &Constant) -> Option<WeightRange> {
        let first = self.pieces.get(&constant.pieces.first()?.key())?;
        let mut end = first.offset;
        for piece in &constant.pieces {
            let located = self.pieces.get(&piece.key())?;
            if !Arc::ptr_eq(&located.buffer, &first.buffer) || located.offset != end {
                return None;
            }
            end += piece.padded();
        }
        Some(WeightRange { buffer: first.buffer.clone(), offset: first.offset })
    }

    /// Uploads what is missing of `constants`; afterwards [`WeightStore::find`] finds each of them. Errors
    /// when one is larger than a buffer may be or holds integers beyond 32 bits.
    pub fn place(&mut self, gpu: &Gpu, constants: &[Constant]) -> Result<(), RuntimeError> {
        let missing: Vec<&Constant> =
            constants.iter().filter(|c| !c.pieces.is_empty() && self.find(c).is_none()).collect();
        let mut waiting = 0;
        for chain in join(&missing, gpu.limits().max_buffer) {
            self.upload(gpu, &chain, false, &mut waiting)?;
        }
        // Stacks that contradict an earlier chain stand alone.
        for constant in missing {
            if self.find(constant).is_none() {
                let buffer = self.upload(gpu, std::slice::from_ref(&constant.pieces), true, &mut waiting)?;
                let stack =
                    Stack { range: WeightRange { buffer, offset: 0 }, _source: constant.pieces.clone() };
                self.stacks.insert(keys(constant), stack);
            }
        }
        Ok(())
    }

    /// Uploads chains that share one buffer; one that stands `alone` leaves its pieces known where they were.
    fn upload(
        &mut self,
        gpu: &Gpu,
        chains: &[Vec<Piece>],
        alone: bool,
        waiting: &mut u64,
    ) -> Result<Arc<wgpu::Buffer>, RuntimeError> {
        let total: u64 = chains.iter().flatten().map(Piece::padded).sum();
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        let buffer = Arc::new(gpu.buffer("weights", total, usage)?);
        self.report.resident += total;
        let mut offset = 0;
        for piece in chains.iter().flatten() {
            write_piece(gpu, &buffer, offset, piece, waiting)?;
            let located = Located { buffer: buffer.clone(), offset, _source: piece.clone() };
            match self.pieces.entry(piece.key()) {
                Entry::Vacant(place) => {
                    place.insert(located);
                }
                Entry::Occupied(mut place) => {
                    self.report.repeated += piece.padded();
                    // What others find in the chain must stay there.
                    if !alone {
                        place.insert(located);
                    }
                }
            }
            offset += piece.padded();
        }
        Ok(buffer)
    }
}

fn keys(constant: &Constant) -> Vec<PieceKey> {
    constant.pieces.iter().map(Piece::key).collect()
}

/// Arranges the constants in chains of pieces, overlapping stacks joined, and the chains in groups that
/// share a buffer.
fn join(constants: &[&Constant], max_buffer: u64) -> Vec<Vec<Vec<Piece>>> {
    let mut order: Vec<&Constant> = constants.to_vec();
    order.sort_by_key(|c| std::cmp::Reverse(c.pieces.len()));
    let mut next: HashMap<PieceKey, Piece> = HashMap::new();
    let mut previous: HashMap<PieceKey, PieceKey> = HashMap::new();
    let mut first: Vec<Piece> = vec![];
    let mut known: HashSet<PieceKey> = HashSet::new();
    for constant in order {
        let keys: Vec<PieceKey> = constant.pieces.iter().map(Piece::key).collect();
        let distinct = keys.iter().collect::<HashSet<_>>().len() == keys.len();
        let agrees = keys.windows(2).all(|w| {
            next.get(&w[0]).is_none_or(|n| n.key() == w[1]) && previous.get(&w[1]).is_none_or(|p| *p == w[0])
        });
        if !distinct || !agrees || closes(&next, &keys) {
            continue;
        }
        for (i, piece) in constant.pieces.iter().enumerate() {
            if known.insert(keys[i].clone()) {
                first.push(piece.clone());
            }
            if let Some(after) = constant.pieces.get(i + 1) {
                previous.insert(after.key(), keys[i].clone());
                next.insert(keys[i].clone(), after.clone());
            }
        }
    }
    let mut groups: Vec<Vec<Vec<Piece>>> = vec![];
    let mut room = 0u64;
    let mut placed = HashSet::new();
    for start in first.iter().filter(|p| !previous.contains_key(&p.key())) {
        let mut chain = vec![start.clone()];
        let mut bytes = start.padded();
        while let Some(piece) = chain.last().and_then(|p| next.get(&p.key()))
            && placed.insert(piece.key())
            && bytes + piece.padded() <= max_buffer
        {
            bytes += piece.padded();
            chain.push(piece.clone());
        }
        match groups.last_mut() {
            Some(group) if bytes <= room => {
                group.push(chain);
                room -= bytes;
            }
            _ => {
                groups.push(vec![chain]);
                room = SLAB.min(max_buffer).saturating_sub(bytes);
            }
        }
    }
    groups
}

/// Whether the chain behind the last of `keys` leads back to one of them.
fn closes(next: &HashMap<PieceKey, Piece>, keys: &[PieceKey]) -> bool {
    let mut at = keys.last().and_then(|k| next.get(k)).map(Piece::key);
    while let Some(key) = at {
        if keys.contains(&key) {
            return true;
        }
        at = next.get(&key).map(Piece::key);
    }
    false
}

fn write_piece(
    gpu: &Gpu,
    buffer: &wgpu::Buffer,
    offset: u64,
    piece: &Piece,
    waiting: &mut u64,
) -> Result<(), RuntimeError> {
    let joined;
    let source: &[u8] = match &piece.chunks[..] {
        [one] => one,
        many => {
            joined = many.concat();
            &joined
        }
    };
    let mut at = offset;
    for chunk in source.chunks(CHUNK) {
        let mut data = convert(chunk, piece.dtype, piece.scalar)?;
        let written = data.len() as u64;
        data.resize(data.len().next_multiple_of(4), 0);
        gpu.guarded("uploading weights", || gpu.queue().write_buffer(buffer, at, &data))?;
        at += written;
        *waiting += written;
        if *waiting > STAGING {
            gpu.queue().submit([]);
            gpu.wait()?;
            *waiting = 0;
        }
    }
    Ok(())
}

/// The bytes on the device of elements of `dtype`.
pub(crate) fn convert(source: &[u8], dtype: DType, scalar: Scalar) -> Result<Vec<u8>, RuntimeError> {
    fn each<T: Element, U: bytemuck::Pod>(source: &[u8], f: impl Fn(T) -> U) -> Vec<u8> {
        let out: Vec<U> = match bytemuck::try_cast_slice::<u8, T>(source) {
            Ok(slice) => slice.iter().map(|x| f(*x)).collect(),
            Err(_) => bytemuck::pod_collect_to_vec::<u8, T>(source).into_iter().map(f).collect(),
        };
        bytemuck::cast_slice(&out).to_vec()
    }
    fn integers<T: Element + Into<i128>>(source: &[u8]) -> Result<Vec<u8>, RuntimeError> {
        let mut out = Vec::with_capacity(source.len());
        for x in bytemuck::pod_collect_to_vec::<u8, T>(source) {
            let wide: i128 = x.into();
            let narrow = i32::try_from(wide).map_err(|_| RuntimeError::Integer {
                what: "a tensor for the device".into(),
                value: i64::try_from(wide).unwrap_or(i64::MAX),
            })?;
            out.extend(narrow.to_le_bytes());
        }
        Ok(out)
    }
    fn halves<T: Element>(source: &[u8], f: impl Fn(T) -> f32) -> Result<Vec<u8>, RuntimeError> {
        let mut out = Vec::with_capacity(source.len());
        for x in bytemuck::pod_collect_to_vec::<u8, T>(source) {
            let value = f(x);
            let half = f16::from_f32(value);
            if value.is_finite() && half.is_infinite() {
                return Err(RuntimeError::Half { value });
            }
            out.extend(half.to_le_bytes());
        }
        Ok(out)
    }
    Ok(match (dtype, scalar) {
        (DType::F32, Scalar::F32) | (DType::F16, Scalar::F16) | (DType::I32, Scalar::I32) => source.to_vec(),
        (DType::I8, Scalar::I8) | (DType::U8, Scalar::U8) => source.to_vec(),
        (DType::I4, Scalar::I4) | (DType::U4, Scalar::U4) => source.to_vec(),
        (DType::I4 | DType::U4, Scalar::I32) => {
            let tensor = Tensor::from_bytes(dtype, vec![source.len() * 2], source.to_vec().into());
            let wide = tensor
                .map(|t| t.unpacked())
                .map_err(|e| RuntimeError::Gpu { during: "uploading".into(), message: e.to_string() })?;
            return convert(&wide.bytes(), dtype.unpacked(), scalar);
        }
        (DType::F16, Scalar::F32) => each(source, f16::to_f32),
        (DType::BF16, Scalar::F32) => each(source, bf16::to_f32),
        (DType::F64, Scalar::F32) => each(source, |x: f64| x as f32),
        (DType::F32, Scalar::F16) => halves::<f32>(source, |x| x)?,
        (DType::BF16, Scalar::F16) => halves::<bf16>(source, bf16::to_f32)?,
        (DType::F64, Scalar::F16) => halves::<f64>(source, |x| x as f32)?,
        (DType::Bool | DType::U8, Scalar::Bool) => each(source, |x: u8| u32::from(x != 0)),
        (DType::I64, Scalar::I32) => integers::<i64>(source)?,
        (DType::I16, Scalar::I32) => integers::<i16>(source)?,
        (DType::I8, Scalar::I32) => integers::<i8>(source)?,
        (DType::U64, Scalar::I32) => integers::<u64>(source)?,
        (DType::U32, Scalar::I32) => integers::<u32>(source)?,
        (DType::U16, Scalar::I32) => integers::<u16>(source)?,
        (DType::U8, Scalar::I32) => integers::<u8>(source)?,
        (dtype, scalar) => {
            return Err(RuntimeError::Gpu {
                during: "uploading".into(),
                message: format!("{dtype} cannot lie on the device as {scalar:?}"),
            });
        }
    })
}

const _: () = assert!((CHUNK as u64).is_multiple_of(PIECE_ALIGN));

#[cfg(test)]
mod tests {
    use super::*;

    fn constant(parts: &[Tensor]) -> Constant {
        Constant::new("w", &Tensor::stack(parts).unwrap(), Scalar::F32).unwrap()
    }

    fn weights(n: usize) -> Vec<Tensor> {
        (0..n).map(|i| Tensor::from_vec(vec![3], vec![i as f32; 3]).unwrap()).collect()
    }

    fn keys(chain: &[Piece]) -> Vec<PieceKey> {
        chain.iter().map(Piece::key).collect()
    }

    #[test]
    fn overlapping_stacks_join() {
        let w = weights(6);
        let (back, front, one) = (constant(&w[2..]), constant(&w[..4]), constant(&w[3..4]));
        let groups = join(&[&one, &front, &back], 1 << 20);
        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0].len(), 1);
        assert_eq!(keys(&groups[0][0]), keys(&constant(&w).pieces));
    }

    #[test]
    fn contradicting_stacks_are_left_out() {
        let w = weights(3);
        let straight = constant(&w);
        let turned = constant(&[w[1].clone(), w[0].clone()]);
        let groups = join(&[&straight, &turned], 1 << 20);
        assert_eq!(groups.concat().len(), 1);
        let cycle = constant(&[w[2].clone(), w[0].clone()]);
        let groups = join(&[&straight, &cycle], 1 << 20);
        assert_eq!(groups.concat().concat().len(), 3);
    }

    #[test]
    fn integers_are_checked() {
        let wide = 1i64 << 40;
        let error = convert(&wide.to_le_bytes(), DType::I64, Scalar::I32).unwrap_err();
        assert!(error.to_string().contains("1099511627776"), "{error}");
        assert_eq!(convert(&(-7i64).to_le_bytes(), DType::I64, Scalar::I32).unwrap(), (-7i32).to_le_bytes());
        let large = convert(&1e6f32.to_le_bytes(), DType::F32, Scalar::F16);
        assert!(matches!(large, Err(RuntimeError::Half { .. })));
        assert_eq!(convert(&[0, 1], DType::Bool, Scalar::Bool).unwrap(), [0, 0, 0, 0, 1, 0, 0, 0]);
    }
}
