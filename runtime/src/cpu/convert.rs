//! Tensors to and from tract's.

use half::f16;
use snlp_passes::ir::{DType, Element, Tensor};
use snlp_passes::memory::room;
use tract_onnx::prelude::{self as tract, Datum, DatumType};

type Failed = String;

fn to<T: Element + Datum + Copy>(tensor: &Tensor) -> Result<tract::Tensor, Failed> {
    let data = tensor.as_slice::<T>().ok_or("the element types differ")?;
    tract::Tensor::from_shape(tensor.shape(), &data).map_err(|e| e.to_string())
}

/// tract's form of a tensor; bf16 becomes f32.
pub(super) fn to_tract(tensor: &Tensor) -> Result<tract::Tensor, Failed> {
    match tensor.dtype() {
        DType::F32 => to::<f32>(tensor),
        DType::F64 => to::<f64>(tensor),
        DType::F16 => to::<f16>(tensor),
        DType::BF16 => tract::Tensor::from_shape(tensor.shape(), &tensor.to_f32()).map_err(|e| e.to_string()),
        DType::I8 => to::<i8>(tensor),
        DType::I16 => to::<i16>(tensor),
        DType::I32 => to::<i32>(tensor),
        DType::I64 => to::<i64>(tensor),
        DType::U8 => to::<u8>(tensor),
        DType::U16 => to::<u16>(tensor),
        DType::U32 => to::<u32>(tensor),
        DType::U64 => to::<u64>(tensor),
        DType::I4 => to::<i8>(&tensor.unpacked()),
        DType::U4 => to::<u8>(&tensor.unpacked()),
        DType::Bool => {
            let bools: Vec<bool> =
                tensor.as_slice::<u8>().ok_or("not bool")?.iter().map(|b| *b != 0).collect();
            tract::Tensor::from_shape(tensor.shape(), &bools).map_err(|e| e.to_string())
        }
    }
}

fn from<T: Element + Datum + Copy>(tensor: &tract::Tensor) -> Result<Tensor, Failed> {
    let view = tensor.to_plain_array_view::<T>().map_err(|e| e.to_string())?;
    room(view.len().saturating_mul(size_of::<T>())).map_err(|e| e.to_string())?;
    Tensor::from_vec(tensor.shape().to_vec(), view.iter().copied().collect()).map_err(|e| e.to_string())
}

/// Our form of tract's tensor; sizes that tract computes become int64.
pub(super) fn from_tract(tensor: &tract::Tensor) -> Result<Tensor, Failed> {
    match tensor.datum_type() {
        DatumType::F32 => from::<f32>(tensor),
        DatumType::F64 => from::<f64>(tensor),
        DatumType::F16 => from::<f16>(tensor),
        DatumType::I8 => from::<i8>(tensor),
        DatumType::I16 => from::<i16>(tensor),
        DatumType::I32 => from::<i32>(tensor),
        DatumType::I64 => from::<i64>(tensor),
        DatumType::U8 => from::<u8>(tensor),
        DatumType::U16 => from::<u16>(tensor),
        DatumType::U32 => from::<u32>(tensor),
        DatumType::U64 => from::<u64>(tensor),
        DatumType::Bool => {
            let view = tensor.to_plain_array_view::<bool>().map_err(|e| e.to_string())?;
            let bools: Vec<bool> = view.iter().copied().collect();
            Tensor::from_bools(tensor.shape().to_vec(), &bools).map_err(|e| e.to_string())
        }
        DatumType::TDim => {
            let ints = tensor.cast_to::<i64>().map_err(|e| e.to_string())?;
            from::<i64>(&ints)
        }
        other => Err(format!("{other:?} has no counterpart")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_survive_the_round_trip() {
        let half = Tensor::from_vec(vec![2], vec![f16::from_f32(1.5), f16::NAN]).unwrap();
        let bools = Tensor::from_bools(vec![3, 1], &[true, false, true]).unwrap();
        let empty = Tensor::from_vec(vec![0, 4], Vec::<f32>::new()).unwrap();
        for t in [half, bools, empty, Tensor::ints(&[-1, i64::MAX]), Tensor::scalar(2.5f64)] {
            assert_eq!(from_tract(&to_tract(&t).unwrap()).unwrap(), t);
        }
    }
}
