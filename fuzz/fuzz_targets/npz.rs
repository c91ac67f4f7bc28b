//! NumPy's archives and arrays, as the weights of feeds: what is read is written and read again to the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snlp::language::windows::Windows;
use snlp::npz::{read_npy, read_npz, write_npz};
use snlp::passes::ir::DType;

fuzz_target!(init: snlp_fuzz::let_panics_pass(), |data: &[u8]| {
    let path = snlp_fuzz::file("a.npz", data);
    snlp_fuzz::watched(|| {
        if let Ok(tensor) = read_npy(&path) {
            let _ = Windows::new(&tensor);
            for dtype in [DType::F32, DType::I64, DType::U8, DType::Bool] {
                let _ = snlp::feeds::convert(&tensor, dtype);
            }
        }
        let Ok(arrays) = read_npz(&path) else { return };
        let again = snlp_fuzz::file("again.npz", &[]);
        let file = std::fs::File::create(&again).expect("made");
        // Names may be given twice, and those that no archive can hold are refused.
        if write_npz(file, arrays.iter().map(|(n, t)| (n.as_str(), t))).is_ok() {
            let read = read_npz(&again).expect("what is written is read");
            assert!(read.iter().map(|(_, t)| t).eq(arrays.iter().map(|(_, t)| t)));
        }
    });
});
