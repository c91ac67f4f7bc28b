//! `TensorProto` to tensors and back.

use bytes::Bytes;
use half::{bf16, f16};
use snlp_passes::ir::{DType, Tensor, element_count};

use super::error::OnnxError;
use super::external::ExternalFiles;
use super::proto::tensor_proto::{DataLocation, DataType};
use super::proto::{StringStringEntryProto, TensorProto};

/// The element type with this number in `TensorProto.DataType`.
pub(super) fn dtype_of(number: i32) -> Option<DType> {
    Some(match DataType::try_from(number).ok()? {
        DataType::Float => DType::F32,
        DataType::Float16 => DType::F16,
        DataType::Bfloat16 => DType::BF16,
        DataType::Double => DType::F64,
        DataType::Int8 => DType::I8,
        DataType::Int16 => DType::I16,
        DataType::Int32 => DType::I32,
        DataType::Int64 => DType::I64,
        DataType::Uint8 => DType::U8,
        DataType::Uint16 => DType::U16,
        DataType::Uint32 => DType::U32,
        DataType::Uint64 => DType::U64,
        DataType::Int4 => DType::I4,
        DataType::Uint4 => DType::U4,
        DataType::Bool => DType::Bool,
        _ => return None,
    })
}

/// The number of an element type in `TensorProto.DataType`.
pub(super) fn number_of(dtype: DType) -> i32 {
    let ty = match dtype {
        DType::F32 => DataType::Float,
        DType::F16 => DataType::Float16,
        DType::BF16 => DataType::Bfloat16,
        DType::F64 => DataType::Double,
        DType::I8 => DataType::Int8,
        DType::I16 => DataType::Int16,
        DType::I32 => DataType::Int32,
        DType::I64 => DataType::Int64,
        DType::U8 => DataType::Uint8,
        DType::U16 => DataType::Uint16,
        DType::U32 => DataType::Uint32,
        DType::U64 => DataType::Uint64,
        DType::I4 => DataType::Int4,
        DType::U4 => DataType::Uint4,
        DType::Bool => DataType::Bool,
    };
    ty as i32
}

/// ONNX's name of an element type, for messages.
pub(super) fn type_name(number: i32) -> String {
    match DataType::try_from(number) {
        Ok(t) => t.as_str_name().to_string(),
        Err(_) => format!("number {number}"),
    }
}

/// Decodes a tensor; its bytes stay where they are (the mapped model or a mapped file beside it) unless
/// the model stores them as protobuf numbers.
pub(super) fn decode(proto: &TensorProto, files: &ExternalFiles) -> Result<Tensor, OnnxError> {
    decode_anonymous(proto, files).map_err(|e| e.at(format!("tensor '{}'", proto.name())))
}

fn decode_anonymous(proto: &TensorProto, files: &ExternalFiles) -> Result<Tensor, OnnxError> {
    let number = proto.data_type();
    let Some(dtype) = dtype_of(number) else {
        return Err(OnnxError::unsupported(format!("element type {} is not supported", type_name(number))));
    };
    if proto.segment.is_some() {
        return Err(OnnxError::unsupported("tensors stored in segments are not supported"));
    }
    let shape = shape_of(proto)?;
    let count = element_count(&shape)
        .ok_or_else(|| OnnxError::invalid(format!("shape {shape:?} is too large to address")))?;
    let needed = dtype.bytes(count);
    let data = if proto.data_location() == DataLocation::External {
        files.slice(&proto.external_data, needed)?
    } else if let Some(raw) = proto.raw_data.as_ref().filter(|raw| !raw.is_empty()) {
        raw.clone()
    } else {
        typed_data(proto, dtype)?
    };
    Tensor::from_bytes(dtype, shape, data).map_err(|e| OnnxError::invalid(e.to_string()))
}

fn shape_of(proto: &TensorProto) -> Result<Vec<usize>, OnnxError> {
    proto
        .dims
        .iter()
        .map(|d| usize::try_from(*d).map_err(|_| OnnxError::invalid(format!("has a dimension of {d}"))))
        .collect()
}

/// The elements from the typed fields, as little-endian bytes.
fn typed_data(proto: &TensorProto, dtype: DType) -> Result<Bytes, OnnxError> {
    fn collect<T, const N: usize>(values: &[T], f: impl Fn(&T) -> Option<[u8; N]>) -> Option<Bytes> {
        let mut out = Vec::with_capacity(values.len() * N);
        for v in values {
            out.extend(f(v)?);
        }
        Some(out.into())
    }
    let small = &proto.int32_data[..];
    let long = &proto.uint64_data[..];
    let bytes = match dtype {
        DType::F32 => collect(&proto.float_data, |x| Some(x.to_le_bytes())),
        DType::F64 => collect(&proto.double_data, |x| Some(x.to_le_bytes())),
        DType::I64 => collect(&proto.int64_data, |x| Some(x.to_le_bytes())),
        DType::U64 => collect(long, |x| Some(x.to_le_bytes())),
        DType::U32 => collect(long, |x| Some(u32::try_from(*x).ok()?.to_le_bytes())),
        DType::I32 => collect(small, |x| Some(x.to_le_bytes())),
        DType::I16 => collect(small, |x| Some(i16::try_from(*x).ok()?.to_le_bytes())),
        DType::U16 => collect(small, |x| Some(u16::try_from(*x).ok()?.to_le_bytes())),
        DType::I8 => collect(small, |x| Some(i8::try_from(*x).ok()?.to_le_bytes())),
        DType::U8 => collect(small, |x| Some(u8::try_from(*x).ok()?.to_le_bytes())),
        // Two elements to a number.
        DType::I4 | DType::U4 => collect(small, |x| Some(u8::try_from(*x & 0xff).ok()?.to_le_bytes())),
        DType::Bool => collect(small, |x| Some([u8::from(*x != 0)])),
        DType::F16 => collect(small, |x| Some(f16::from_bits(u16::try_from(*x).ok()?).to_le_bytes())),
        DType::BF16 => collect(small, |x| Some(bf16::from_bits(u16::try_from(*x).ok()?).to_le_bytes())),
    };
    bytes.ok_or_else(|| OnnxError::invalid(format!("an element does not fit {dtype}")))
}

/// A tensor's description, without its bytes.
pub(super) fn header(name: &str, tensor: &Tensor) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        data_type: Some(number_of(tensor.dtype())),
        dims: tensor.shape().iter().map(|d| i64::try_from(*d).unwrap_or(i64::MAX)).collect(),
        ..TensorProto::default()
    }
}

/// A tensor with its bytes inside.
pub(super) fn encode(name: &str, tensor: &Tensor) -> TensorProto {
    TensorProto { raw_data: Some(tensor.bytes()), ..header(name, tensor) }
}

/// Marks a tensor as stored in a file beside the model.
pub(super) fn external(header: TensorProto, location: &str, offset: u64, length: u64) -> TensorProto {
    let entry = |k: &str, v: String| StringStringEntryProto { key: Some(k.into()), value: Some(v) };
    TensorProto {
        data_location: Some(DataLocation::External as i32),
        external_data: vec![
            entry("location", location.into()),
            entry("offset", offset.to_string()),
            entry("length", length.to_string()),
        ],
        ..header
    }
}
