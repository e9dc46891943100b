//! Loads the operators' CUDA half, once a process, when the first tensor on a GPU asks for it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::graph::GraphFunctions;
use crate::library::{self, LibraryStatus, LIBTORCH_VERSION};

/// The CUDA half's file name. It lies beside the library with the CPU's.
pub const CUDA_LIBRARY_FILE: &str = "libvision_mamba_ops_cuda.so";

/// Stands in the file in front of the libtorch version that it was built for.
const MARKER: &[u8] = b"vision_mamba_ops_cuda built for libtorch ";

/// The most states of a channel that the CUDA kernels take.
pub(crate) const MOST_STATES: i64 = 128;

/// What the CUDA half has beside kernels.
static GRAPHS: OnceLock<GraphFunctions> = OnceLock::new();

/// Its functions, once it is loaded.
pub(crate) fn graph_functions() -> Option<GraphFunctions> {
    match cuda_status().is_ready() {
        true => GRAPHS.get().copied(),
        false => None,
    }
}

/// What came of looking for the CUDA half.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CudaLibraryStatus {
    /// Loaded and in use for tensors on a GPU.
    Ready {
        /// The file.
        path: PathBuf,
    },
    /// There is no such file.
    Absent {
        /// Where it should be.
        path: PathBuf,
    },
    /// The file was built for another libtorch, and has not been loaded.
    WrongLibtorch {
        /// The file.
        path: PathBuf,
        /// Its libtorch.
        built_for: String,
    },
    /// The file is there, but is no operator library or would not load.
    LoadFailed {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The CPU's library, which defines the operators, is not loaded.
    NoOperators,
}

impl CudaLibraryStatus {
    /// Whether the CUDA half is in use.
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Ready { .. })
    }
}

impl fmt::Display for CudaLibraryStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SLOW: &str = "on a GPU the slow tensor reference is used instead";
        match self {
            Self::Ready { path } => write!(f, "CUDA operators from {}", path.display()),
            Self::Absent { path } => write!(
                f,
                "CUDA operators not found at {}; {SLOW}; scripts/build-cuda-op builds them",
                path.display()
            ),
            Self::WrongLibtorch { path, built_for } => write!(
                f,
                "CUDA operators at {} are built for libtorch {built_for}, but libtorch {LIBTORCH_VERSION} is running; {SLOW}; rebuild them with scripts/build-cuda-op",
                path.display()
            ),
            Self::LoadFailed { path, reason } => write!(
                f,
                "CUDA operators at {} do not load ({reason}); {SLOW}; rebuild them with scripts/build-cuda-op",
                path.display()
            ),
            Self::NoOperators => write!(f, "CUDA operators need the native ones, which are not in use; {SLOW}"),
        }
    }
}

/// Why libtorch's own CUDA half is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoCuda {
    /// This machine has no NVIDIA driver.
    Driver,
    /// There is a driver, but this libtorch has no CUDA half, or it cannot be loaded: the loader's words.
    Library(String),
}

/// Loads libtorch's CUDA half where a driver is. A binary that is linked with libtorch's CPU half alone calls this before anything asks about
/// CUDA: libtorch keeps its first answer.
pub fn open_libtorch_cuda() -> Result<(), NoCuda> {
    let driver =
        Path::new("/proc/driver/nvidia/version").exists() || open_global("libcuda.so.1").is_ok();
    if !driver {
        return Err(NoCuda::Driver);
    }
    open_global("libtorch_cuda.so").map_err(NoCuda::Library)
}

/// Opens a shared library with its symbols visible to all and keeps it open.
fn open_global(name: &str) -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: both libraries that are opened here are made to be loaded at run time; their initialisers only register.
    #[allow(unsafe_code)]
    let library = unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) };
    match library {
        Ok(library) => {
            std::mem::forget(library);
            Ok(())
        }
        Err(error) => Err(error.to_string()),
    }
}

/// The outcome of loading the CUDA half, which the first call brings about. The file needs libtorch's own CUDA half: call this only where that is loaded,
/// which it is as soon as there is a tensor on a GPU.
pub fn cuda_status() -> &'static CudaLibraryStatus {
    static STATUS: OnceLock<CudaLibraryStatus> = OnceLock::new();
    STATUS.get_or_init(|| match library::status() {
        LibraryStatus::Ready { path, .. } => load(path.with_file_name(CUDA_LIBRARY_FILE)),
        _ => CudaLibraryStatus::NoOperators,
    })
}

fn load(path: PathBuf) -> CudaLibraryStatus {
    if !path.is_file() {
        return CudaLibraryStatus::Absent { path };
    }
    match check(&path) {
        Ok(built_for) if built_for != LIBTORCH_VERSION => {
            CudaLibraryStatus::WrongLibtorch { path, built_for }
        }
        Ok(_) => match open(&path) {
            Ok(()) => CudaLibraryStatus::Ready { path },
            Err(reason) => CudaLibraryStatus::LoadFailed { path, reason },
        },
        Err(reason) => CudaLibraryStatus::LoadFailed { path, reason },
    }
}

/// The libtorch that a file was built for, if the file is whole.
fn check(path: &Path) -> Result<String, String> {
    let content = std::fs::read(path).map_err(|error| error.to_string())?;
    let built_for = library::built_for(&content, MARKER)
        .ok_or_else(|| "it is not the operators' CUDA half".to_owned())?;
    if !library::is_whole(&content) {
        return Err("the file is cut short".to_owned());
    }
    Ok(built_for)
}

fn open(path: &Path) -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
    // SAFETY: the marker says that this is the operators' CUDA half for this very libtorch. Its initialisers only register operators and kernels with
    // libraries that are loaded already.
    #[allow(unsafe_code)]
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
    let library = library.map_err(|error| error.to_string())?;
    // SAFETY: the library defines these functions with these signatures.
    #[allow(unsafe_code)]
    let functions = unsafe { GraphFunctions::of(&library) };
    let _ = GRAPHS.set(functions.map_err(|error| error.to_string())?);
    // libtorch keeps pointers to the registered functions: the library must never be unloaded.
    std::mem::forget(library);
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_cuda_half_is_not_loaded() {
        let folder =
            std::env::temp_dir().join(format!("vision-mamba-cuda-half-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(CUDA_LIBRARY_FILE);
        assert!(load(path.clone())
            .to_string()
            .contains("scripts/build-cuda-op builds them"));
        std::fs::write(&path, b"no library").unwrap();
        assert!(load(path.clone())
            .to_string()
            .contains("not the operators' CUDA half"));
        let mut content = MARKER.to_vec();
        content.extend_from_slice(b"2.4.1;");
        std::fs::write(&path, &content).unwrap();
        // Cut short, whatever it was built for.
        assert!(load(path.clone()).to_string().contains("cut short"));
        let mut whole = vec![0u8; 64];
        whole[..4].copy_from_slice(b"\x7fELF");
        whole.extend_from_slice(&content);
        std::fs::write(&path, &whole).unwrap();
        let status = load(path.clone());
        assert!(!status.is_ready());
        assert!(status.to_string().contains("built for libtorch 2.4.1"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
