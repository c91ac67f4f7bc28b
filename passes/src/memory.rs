//! Whether there is memory for what files ask for: sizes that a file decides are asked about here before anything is
//! allocated, because an allocation that fails ends the process.

/// Fewer bytes are always there, or nothing is.
const SMALL: usize = 16 << 20;

/// There is no memory of this many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} bytes of memory are needed, more than can be had")]
pub struct NoRoom(pub usize);

/// Whether `bytes` can be allocated. They are not kept: systems that promise more memory than they have may still
/// run out of it.
///
/// # Errors
/// When the allocator refuses.
pub fn room(bytes: usize) -> Result<(), NoRoom> {
    if bytes < SMALL {
        return Ok(());
    }
    let mut probe: Vec<u8> = Vec::new();
    let answer = probe.try_reserve_exact(bytes);
    // Memory that nobody looks at need not be asked for.
    std::hint::black_box(&probe);
    answer.map_err(|_| NoRoom(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_machine_has_is_refused() {
        assert_eq!(room(isize::MAX as usize), Err(NoRoom(isize::MAX as usize)));
        assert_eq!(room(usize::MAX), Err(NoRoom(usize::MAX)));
        assert_eq!((room(0), room(SMALL)), (Ok(()), Ok(())));
    }
}
