//! Tensors in NumPy's files: `.npz` archives and single `.npy` arrays.
//!
//! Reading takes either byte order, C and Fortran order, stored and deflated entries; the result is
//! dense, row-major and little-endian. Sizes are checked against the data before anything is allocated
//! for them.

use std::io::{self, BufReader, Read, Seek, Write};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use npyz::npz::{NpzArchive, file_name_from_array_name};
use npyz::{Endianness, NpyHeader, Order, TypeChar};
use snlp_passes::ir::{DType, Tensor, element_count};
use snlp_passes::memory::{NoRoom, room};

use crate::files;

/// Why an array file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum NpzError {
    /// The operating system refused.
    #[error("cannot open '{}'", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("'{}': {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An array cannot be used.
    #[error("'{}', array '{array}': {reason}", path.display())]
    Array {
        /// The file.
        path: PathBuf,
        /// Its key.
        array: String,
        /// What is wrong.
        reason: String,
    },
}

/// Reads all arrays of an archive, in the archive's order.
pub fn read_npz(path: &Path) -> Result<Vec<(String, Tensor)>, NpzError> {
    let file = files::open(path).map_err(|source| NpzError::Io { path: path.into(), source })?;
    let format = |e: io::Error| NpzError::Format {
        path: path.into(),
        reason: format!("not an .npz archive ({e}); write one with numpy.savez"),
    };
    let mut archive = NpzArchive::new(BufReader::new(file)).map_err(format)?;
    let mut arrays = Vec::new();
    let count = archive.zip_archive().len();
    for i in 0..count {
        let mut entry = archive.zip_archive().by_index(i).map_err(|e| format(io::Error::other(e)))?;
        let name = entry.name().to_string();
        let Some(name) = npyz::npz::array_name_from_file_name(&name) else { continue };
        let fail = |reason: String| NpzError::Array { path: path.into(), array: name.into(), reason };
        let tensor = read_array(&mut entry).map_err(fail)?;
        arrays.push((name.to_string(), tensor));
    }
    Ok(arrays)
}

/// Reads a single array.
pub fn read_npy(path: &Path) -> Result<Tensor, NpzError> {
    let file = files::open(path).map_err(|source| NpzError::Io { path: path.into(), source })?;
    read_array(&mut BufReader::new(file)).map_err(|reason| NpzError::Format { path: path.into(), reason })
}

fn read_array(reader: &mut dyn Read) -> Result<Tensor, String> {
    // The magic, the version and the header's length come first; the parser gets those bytes alone,
    // because it multiplies the sizes unchecked and must be caught when it panics.
    let header = header_bytes(reader).map_err(|e| format!("not a .npy array ({e})"))?;
    let header = catch_unwind(|| NpyHeader::from_reader(&header[..]))
        .map_err(|_| "its header is damaged".to_string())?
        .map_err(|e| format!("its header is damaged ({e})"))?;
    let dtype = header.dtype();
    let npyz::DType::Plain(plain) = &dtype else {
        return Err("structured arrays are not supported".into());
    };
    let dtype = match (plain.type_char(), plain.num_bytes()) {
        (TypeChar::Float, Some(2)) => DType::F16,
        (TypeChar::Float, Some(4)) => DType::F32,
        (TypeChar::Float, Some(8)) => DType::F64,
        (TypeChar::Int, Some(1)) => DType::I8,
        (TypeChar::Int, Some(2)) => DType::I16,
        (TypeChar::Int, Some(4)) => DType::I32,
        (TypeChar::Int, Some(8)) => DType::I64,
        (TypeChar::Uint, Some(1)) => DType::U8,
        (TypeChar::Uint, Some(2)) => DType::U16,
        (TypeChar::Uint, Some(4)) => DType::U32,
        (TypeChar::Uint, Some(8)) => DType::U64,
        (TypeChar::Bool, Some(1)) => DType::Bool,
        _ => return Err(format!("dtype {plain} is not supported; use floats, integers or bools")),
    };
    let shape: Option<Vec<usize>> = header.shape().iter().map(|d| usize::try_from(*d).ok()).collect();
    let (shape, elements) = shape
        .and_then(|s| element_count(&s).map(|n| (s, n)))
        .ok_or_else(|| format!("shape {:?} is too large", header.shape()))?;
    let wanted = elements * dtype.size();
    let mut data = Vec::new();
    reader.take(wanted as u64).read_to_end(&mut data).map_err(|e| match e.kind() {
        io::ErrorKind::OutOfMemory => NoRoom(wanted).to_string(),
        _ => e.to_string(),
    })?;
    if data.len() != wanted {
        return Err(format!("ends after {} bytes of the {wanted} that {shape:?} needs", data.len()));
    }
    if plain.endianness() == Endianness::Big {
        data.chunks_exact_mut(dtype.size()).for_each(<[u8]>::reverse);
    }
    if dtype == DType::Bool {
        data.iter_mut().for_each(|b| *b = u8::from(*b != 0));
    }
    if header.order() == Order::Fortran && shape.len() > 1 {
        room(wanted).map_err(|e| e.to_string())?;
        data = row_major(&data, &shape, dtype.size());
    }
    Tensor::from_bytes(dtype, shape, data.into()).map_err(|e| e.to_string())
}

fn header_bytes(reader: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 8];
    reader.read_exact(&mut bytes)?;
    if !bytes.starts_with(b"\x93NUMPY") {
        return Err(io::Error::other("it does not begin with NumPy's magic"));
    }
    let wide = bytes[6] >= 2;
    let mut length = [0u8; 4];
    let used = if wide { 4 } else { 2 };
    reader.read_exact(&mut length[..used])?;
    bytes.extend(&length[..used]);
    let length = u64::from(u32::from_le_bytes(length));
    reader.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Column-major elements in row-major order.
fn row_major(data: &[u8], shape: &[usize], size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    let mut strides = vec![1; shape.len()];
    for i in 1..shape.len() {
        strides[i] = strides[i - 1] * shape[i - 1];
    }
    let mut index = vec![0usize; shape.len()];
    for _ in 0..data.len() / size.max(1) {
        let at: usize = index.iter().zip(&strides).map(|(i, s)| i * s).sum();
        out.extend_from_slice(data.get(at * size..(at + 1) * size).unwrap_or_default());
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    out
}

/// Writes an archive of uncompressed arrays. NumPy has no bfloat16: such tensors are written as float32.
pub fn write_npz<'a>(
    out: impl Write + Seek,
    arrays: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
) -> io::Result<()> {
    let mut archive = npyz::npz::NpzWriter::new(out);
    let zip = archive.zip_writer();
    for (name, tensor) in arrays {
        zip.start_file(file_name_from_array_name(name), Default::default()).map_err(io::Error::other)?;
        write_array(zip, tensor)?;
    }
    let mut out = zip.finish().map_err(io::Error::other)?;
    out.flush()
}

fn write_array(out: &mut dyn Write, tensor: &Tensor) -> io::Result<()> {
    let wide;
    // NumPy lacks bf16 and types of 4 bits.
    let tensor = match tensor.dtype() {
        DType::BF16 => {
            wide = Tensor::from_vec(tensor.shape().to_vec(), tensor.to_f32()).map_err(io::Error::other)?;
            &wide
        }
        DType::I4 | DType::U4 => {
            wide = tensor.unpacked();
            &wide
        }
        _ => tensor,
    };
    let descr = match tensor.dtype() {
        DType::F16 => "<f2",
        DType::F32 | DType::BF16 => "<f4",
        DType::F64 => "<f8",
        DType::I8 | DType::I4 => "|i1",
        DType::I16 => "<i2",
        DType::I32 => "<i4",
        DType::I64 => "<i8",
        DType::U8 | DType::U4 => "|u1",
        DType::U16 => "<u2",
        DType::U32 => "<u4",
        DType::U64 => "<u8",
        DType::Bool => "|b1",
    };
    let sizes: Vec<String> = tensor.shape().iter().map(ToString::to_string).collect();
    let comma = if sizes.len() == 1 { "," } else { "" };
    let mut header =
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}{comma}), }}", sizes.join(", "));
    // Magic, version, length, header and newline together fill a multiple of 64 bytes.
    let used = 10 + header.len() + 1;
    header += &" ".repeat(used.next_multiple_of(64) - used);
    header.push('\n');
    let length = u16::try_from(header.len()).map_err(io::Error::other)?;
    out.write_all(b"\x93NUMPY\x01\x00")?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    tensor.parts().iter().try_for_each(|part| out.write_all(part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;
    use std::fs::File;

    fn write(path: &Path, arrays: &[(&str, &Tensor)]) {
        write_npz(File::create(path).expect("created"), arrays.iter().copied()).expect("written");
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a.npz");
        let arrays = [
            ("past.0.key", Tensor::from_vec(vec![2, 0, 3], Vec::<f32>::new()).expect("fits")),
            ("scalar", Tensor::scalar(7i64)),
            ("half", Tensor::from_vec(vec![2], vec![f16::ONE, f16::NEG_ONE]).expect("fits")),
            ("mask", Tensor::from_bools(vec![1, 3], &[true, false, true]).expect("fits")),
            ("bytes", Tensor::from_vec(vec![3], vec![1u8, 2, 255]).expect("fits")),
        ];
        write(&path, &arrays.iter().map(|(n, t)| (*n, t)).collect::<Vec<_>>());
        let back = read_npz(&path).expect("read");
        assert_eq!(back.len(), arrays.len());
        for ((n, t), (m, u)) in arrays.iter().zip(&back) {
            assert_eq!((*n, t), (m.as_str(), u));
        }
    }

    /// `numpy.asfortranarray(numpy.arange(6, dtype='>i2').reshape(2, 3))`, written by hand.
    #[test]
    fn big_endian_and_column_major_are_undone() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a.npy");
        let mut header = "{'descr': '>i2', 'fortran_order': True, 'shape': (2, 3), }".to_string();
        header += &(" ".repeat(118 - header.len() - 1) + "\n");
        let mut data = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
        data.extend(header.as_bytes());
        for n in [0u8, 3, 1, 4, 2, 5] {
            data.extend([0, n]);
        }
        std::fs::write(&path, &data).expect("written");
        let t = read_npy(&path).expect("read");
        assert_eq!((t.shape(), t.to_i64()), (&[2, 3][..], Some(vec![0, 1, 2, 3, 4, 5])));
        std::fs::write(&path, &data[..data.len() - 1]).expect("written");
        assert!(read_npy(&path).expect_err("short").to_string().contains("ends after 11 bytes"));
    }

    #[test]
    fn absurd_headers_are_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a.npy");
        for shape in ["(4294967296, 4294967296, 4294967296)", "(9999999999,)"] {
            let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n");
            let mut data = b"\x93NUMPY\x01\x00".to_vec();
            data.extend((header.len() as u16).to_le_bytes());
            data.extend(header.as_bytes());
            std::fs::write(&path, &data).expect("written");
            assert!(read_npy(&path).is_err());
        }
        std::fs::write(&path, b"no array").expect("written");
        assert!(matches!(read_npy(&path), Err(NpzError::Format { .. })));
        assert!(matches!(read_npz(&path), Err(NpzError::Format { .. })));
        assert!(matches!(read_npz(Path::new("/no/such.npz")), Err(NpzError::Io { .. })));
    }
}
