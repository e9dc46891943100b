//! Large blocks of the CPU's memory, kept for the next tensor of their size.

use crate::library;

/// The library's functions behind this module.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MemoryFunctions {
    pub(crate) keep: unsafe extern "C" fn(i32),
    pub(crate) sizes: unsafe extern "C" fn(*mut i64, *mut i64),
}

/// While one of these lives, blocks of 32 MiB and more that tensors of the CPU free stay with the process. By itself `malloc` gives them
/// back to the system, which clears every page again for the next: up to a quarter of a training step. In use and kept together they are never
/// more than have been in use at one time. Without the native library nothing happens.
#[derive(Debug)]
pub struct KeptBlocks(Option<MemoryFunctions>);

impl KeptBlocks {
    /// From now on, for all threads.
    pub fn begin() -> Self {
        let functions = library::loaded().ok().map(|it| it.functions.memory);
        if let Some(functions) = functions {
            // SAFETY: the function takes a number; what it puts in libtorch's place serves blocks that were made before, too.
            #[allow(unsafe_code)]
            unsafe {
                (functions.keep)(1)
            };
        }
        Self(functions)
    }

    /// Bytes of large blocks in use and kept.
    pub fn sizes(&self) -> (u64, u64) {
        let (mut used, mut kept) = (0, 0);
        if let Some(functions) = self.0 {
            // SAFETY: the function writes two numbers.
            #[allow(unsafe_code)]
            unsafe {
                (functions.sizes)(&mut used, &mut kept)
            };
        }
        (used as u64, kept as u64)
    }
}

impl Drop for KeptBlocks {
    fn drop(&mut self) {
        if let Some(functions) = self.0 {
            // SAFETY: this is the one end of what `begin` began.
            #[allow(unsafe_code)]
            unsafe {
                (functions.keep)(0)
            };
        }
    }
}
