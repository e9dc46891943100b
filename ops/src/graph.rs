//! CUDA graphs: work of the same shapes at every step, recorded once and then launched as a whole, which spares the host a launch for each kernel.

use std::ffi::{c_char, c_void};

use libloading::os::unix::Library;
use tch::Device;

use crate::cuda::{cuda_status, graph_functions};
use crate::update::said;
use crate::OpsError;

/// The CUDA half's functions behind this module.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GraphFunctions {
    begin: unsafe extern "C" fn(i64, *mut *mut c_void) -> *const c_char,
    end: unsafe extern "C" fn(*mut c_void) -> *const c_char,
    play: unsafe extern "C" fn(*mut c_void) -> *const c_char,
    free: unsafe extern "C" fn(*mut c_void),
}

impl GraphFunctions {
    /// # Safety
    /// The library is the operators' CUDA half, which defines these functions with these signatures.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn of(library: &Library) -> Result<Self, libloading::Error> {
        unsafe {
            Ok(Self {
                begin: *library.get(b"vision_mamba_graph_begin\0")?,
                end: *library.get(b"vision_mamba_graph_end\0")?,
                play: *library.get(b"vision_mamba_graph_play\0")?,
                free: *library.get(b"vision_mamba_graph_free\0")?,
            })
        }
    }
}

/// Work on a GPU that was recorded. It reads and writes the memory that it was recorded with, which must stay where it is: inputs are changed in place, and
/// tensors made while recording hold what the last play has computed.
#[derive(Debug)]
pub struct Graph {
    functions: GraphFunctions,
    raw: *mut c_void,
}

impl Graph {
    /// Records what `body` has a GPU do, without its being done, and returns what it returns. The work must not ask the GPU for anything, and must have been done
    /// once before as it is, so that nothing is left to be chosen or kept. An error without the operators' CUDA half, and where the work cannot be recorded.
    pub fn record<R, E: From<OpsError>>(
        device: Device,
        body: impl FnOnce() -> Result<R, E>,
    ) -> Result<(Self, R), E> {
        let Device::Cuda(index) = device else {
            let message = format!("a graph is recorded on a GPU, not on {device:?}");
            return Err(OpsError::Torch(message).into());
        };
        let functions =
            graph_functions().ok_or_else(|| OpsError::Torch(cuda_status().to_string()))?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the function takes a number and sets `raw` unless it fails.
        #[allow(unsafe_code)]
        unsafe {
            said((functions.begin)(index as i64, &mut raw))?;
        }
        let graph = Self { functions, raw };
        let recording = Recording(&graph);
        let result = body();
        // SAFETY: recording began above, in this thread, and ends once.
        #[allow(unsafe_code)]
        let ended = unsafe { said((functions.end)(graph.raw)) };
        std::mem::forget(recording);
        let result = result?;
        ended?;
        Ok((graph, result))
    }

    /// Does the recorded work once more; what was started before it is waited for by it, and nothing by the host.
    pub fn play(&self) -> Result<(), OpsError> {
        // SAFETY: `raw` is a graph whose recording has ended well.
        #[allow(unsafe_code)]
        unsafe {
            said((self.functions.play)(self.raw))
        }
    }
}

/// Ends recording when `body` panics.
struct Recording<'a>(&'a Graph);

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        // SAFETY: recording began in this thread and has not ended.
        #[allow(unsafe_code)]
        unsafe {
            (self.0.functions.end)(self.0.raw);
        }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: `raw` is ours, and nobody's any more.
        #[allow(unsafe_code)]
        unsafe {
            (self.functions.free)(self.raw);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_records_nothing() {
        let result = Graph::record(Device::Cpu, || Ok::<_, OpsError>(()));
        assert!(result.is_err_and(|error| error.to_string().contains("on a GPU, not on Cpu")));
    }
}
