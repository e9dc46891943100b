//! Finds, checks and loads the native library, once a process.

use crate::autocast::AutocastFunctions;
use crate::device::DeviceFunctions;
use crate::gemm::{self, GemmFunction};
use crate::memory::MemoryFunctions;
use crate::meter::MeterFunctions;
use crate::products::ProductsFunctions;
use crate::profiler::ProfilerFunctions;
use crate::recompute::RecomputeFunction;
use crate::update::UpdateFunctions;
use crate::{archive, Activation, CrossScan, OpsError, ScanOutput, SelectiveScan};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::ffi::{c_char, CStr};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tch::{CModule, IValue, Tensor};

/// Environment variable that names the library file, or is `off` to do without.
pub const LIBRARY_ENV: &str = "VISION_MAMBA_OPS";

/// The library's file name, looked for beside the executable and one folder up.
pub const LIBRARY_FILE: &str = "libvision_mamba_ops.so";

/// The libtorch that this program was built for, and so runs on.
pub const LIBTORCH_VERSION: &str = env!("VISION_MAMBA_LIBTORCH");

/// Stands in the library file in front of the libtorch version that the library was built for, so that a mismatch is
/// found by reading, before loading could crash.
const MARKER: &[u8] = b"vision_mamba_ops built for libtorch ";

/// What came of looking for the native library.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LibraryStatus {
    /// Loaded and in use.
    Ready {
        /// The file.
        path: PathBuf,
        /// The libtorch that it was built for.
        libtorch: String,
        /// The instruction set chosen for this processor.
        isa: String,
    },
    /// There is no such file.
    Absent {
        /// Every place looked at.
        searched: Vec<PathBuf>,
    },
    /// The file was built for another libtorch, and has not been loaded.
    WrongLibtorch {
        /// The file.
        path: PathBuf,
        /// Its libtorch.
        built_for: String,
        /// This program's libtorch.
        running: String,
    },
    /// The file is there, but is no operator library or would not load.
    LoadFailed {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Switched off by [`LIBRARY_ENV`]`=off`.
    Disabled,
}

impl LibraryStatus {
    /// Whether the native library is in use.
    pub fn is_ready(&self) -> bool {
        matches!(self, LibraryStatus::Ready { .. })
    }
}

impl fmt::Display for LibraryStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SLOW: &str = "the slow tensor reference is used instead";
        match self {
            LibraryStatus::Ready { path, libtorch, isa } => {
                write!(f, "native operators from {} (libtorch {libtorch}, {isa})", path.display())
            }
            LibraryStatus::Absent { searched } => {
                let places: Vec<_> = searched.iter().map(|path| path.display().to_string()).collect();
                write!(
                    f,
                    "native operators not found at {}; {SLOW}; `cargo build --release` builds them, {LIBRARY_ENV} names another place",
                    places.join(", ")
                )
            }
            LibraryStatus::WrongLibtorch { path, built_for, running } => write!(
                f,
                "native operators at {} are built for libtorch {built_for}, but libtorch {running} is running; {SLOW}; rebuild them with `cargo build --release`",
                path.display()
            ),
            LibraryStatus::LoadFailed { path, reason } => write!(
                f,
                "native operators at {} do not load ({reason}); {SLOW}; rebuild them with `cargo build --release`",
                path.display()
            ),
            LibraryStatus::Disabled => write!(f, "native operators are switched off by {LIBRARY_ENV}=off; {SLOW}"),
        }
    }
}

/// The outcome of loading the native library, which the first call brings about.
pub fn status() -> &'static LibraryStatus {
    &outcome().0
}

pub(crate) fn loaded() -> Result<&'static Native, OpsError> {
    let (status, native) = outcome();
    native.as_ref().ok_or_else(|| OpsError::Unavailable {
        status: status.to_string(),
    })
}

fn outcome() -> &'static (LibraryStatus, Option<Native>) {
    static OUTCOME: OnceLock<(LibraryStatus, Option<Native>)> = OnceLock::new();
    OUTCOME.get_or_init(|| match find() {
        Err(status) => (status, None),
        Ok(path) => match Native::load(&path) {
            Ok((native, isa)) => (
                LibraryStatus::Ready {
                    path,
                    libtorch: LIBTORCH_VERSION.to_owned(),
                    isa,
                },
                Some(native),
            ),
            Err(status) => (status, None),
        },
    })
}

/// The file to load. The environment is read here, and not by the callers, so that the program, its tests, benches and any other
/// user of this crate agree on one place.
fn find() -> Result<PathBuf, LibraryStatus> {
    if let Some(named) = std::env::var_os(LIBRARY_ENV).filter(|value| !value.is_empty()) {
        if named == "off" {
            return Err(LibraryStatus::Disabled);
        }
        let path = PathBuf::from(named);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(LibraryStatus::Absent {
                searched: vec![path],
            })
        };
    }
    let executable = std::env::current_exe()
        .and_then(|path| path.canonicalize())
        .unwrap_or_default();
    // Test and bench executables lie in `deps`, one folder below the library.
    let searched: Vec<_> = executable
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(LIBRARY_FILE))
        .collect();
    match searched.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => Err(LibraryStatus::Absent { searched }),
    }
}

/// The loaded library and the TorchScript object that calls it.
pub(crate) struct Native {
    module: CModule,
    pub(crate) functions: Functions,
}

/// What the library has beside operators.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Functions {
    pub(crate) meter: MeterFunctions,
    pub(crate) autocast: AutocastFunctions,
    pub(crate) update: UpdateFunctions,
    pub(crate) device: DeviceFunctions,
    pub(crate) products: ProductsFunctions,
    pub(crate) profiler: ProfilerFunctions,
    pub(crate) recompute: RecomputeFunction,
    pub(crate) gemm: GemmFunction,
    pub(crate) memory: MemoryFunctions,
}

impl Native {
    fn load(path: &Path) -> Result<(Self, String), LibraryStatus> {
        let failed = |reason: String| LibraryStatus::LoadFailed {
            path: path.to_owned(),
            reason,
        };
        let content = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
        let built_for = built_for(&content, MARKER)
            .ok_or_else(|| failed("it is not an operator library".to_owned()))?;
        if built_for != LIBTORCH_VERSION {
            let running = LIBTORCH_VERSION.to_owned();
            return Err(LibraryStatus::WrongLibtorch {
                path: path.to_owned(),
                built_for,
                running,
            });
        }
        if !is_whole(&content) {
            return Err(failed("the file is cut short".to_owned()));
        }
        let (isa, functions) = open(path).map_err(failed)?;
        gemm::begin(functions.gemm).map_err(|error| failed(error.to_string()))?;
        let bytes = archive::bytes().map_err(|error| failed(error.to_string()))?;
        let module = CModule::load_data(&mut bytes.as_slice())
            .map_err(|error| failed(OpsError::from(error).to_string()))?;
        Ok((Native { module, functions }, isa))
    }

    pub(crate) fn selective_scan(&self, args: &SelectiveScan) -> Result<ScanOutput, OpsError> {
        let inputs = [
            tensor(args.u),
            tensor(args.delta),
            tensor(args.a),
            tensor(args.b),
            tensor(args.c),
            optional(args.d),
            optional(args.z),
            optional(args.delta_bias),
            IValue::Bool(args.delta_softplus),
        ];
        let result = self.call("selective_scan", &inputs)?;
        if let IValue::Tuple(parts) = result {
            if let Ok([IValue::Tensor(out), IValue::Tensor(last_state)]) =
                <[IValue; 2]>::try_from(parts)
            {
                return Ok(ScanOutput { out, last_state });
            }
        }
        Err(OpsError::Torch(
            "selective_scan returned something else than two tensors".to_owned(),
        ))
    }

    pub(crate) fn cross_selective_scan(&self, args: &CrossScan) -> Result<Tensor, OpsError> {
        let inputs = [
            tensor(args.u),
            tensor(args.weights),
            tensor(args.dt_weight),
            tensor(args.a),
            optional(args.d),
            optional(args.delta_bias),
            tensor(args.orders),
            IValue::Bool(args.delta_softplus),
        ];
        match self.call("cross_selective_scan", &inputs)? {
            IValue::Tensor(out) => Ok(out),
            _ => Err(OpsError::Torch(
                "cross_selective_scan returned something else than a tensor".to_owned(),
            )),
        }
    }

    pub(crate) fn causal_conv1d(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor, OpsError> {
        let activation = match activation {
            Activation::None => IValue::None,
            Activation::Silu => IValue::String("silu".to_owned()),
        };
        match self.call(
            "causal_conv1d",
            &[tensor(x), tensor(weight), optional(bias), activation],
        )? {
            IValue::Tensor(out) => Ok(out),
            _ => Err(OpsError::Torch(
                "causal_conv1d returned something else than a tensor".to_owned(),
            )),
        }
    }

    fn call(&self, op: &'static str, inputs: &[IValue]) -> Result<IValue, OpsError> {
        self.module
            .method_is(op, inputs)
            .map_err(|error| OpsError::from_native(op, error))
    }
}

fn tensor(tensor: &Tensor) -> IValue {
    IValue::Tensor(tensor.shallow_clone())
}

fn optional(value: Option<&Tensor>) -> IValue {
    value.map_or(IValue::None, tensor)
}

/// The libtorch version that follows `marker` in a library file.
pub(crate) fn built_for(content: &[u8], marker: &[u8]) -> Option<String> {
    let at = content
        .windows(marker.len())
        .position(|window| window == marker)?
        + marker.len();
    let version: Vec<u8> = content[at..]
        .iter()
        .take(32)
        .copied()
        .take_while(|&byte| byte != 0 && byte != b';')
        .collect();
    String::from_utf8(version).ok()
}

/// Whether an ELF file reaches to the end of its section table, which linkers write last. Loading a file cut short would
/// not fail but kill the process once it touches what is missing.
pub(crate) fn is_whole(content: &[u8]) -> bool {
    let number = |at: usize, bytes: usize| {
        let field = content.get(at..at + bytes)?;
        Some(
            field
                .iter()
                .rev()
                .fold(0u64, |sum, &byte| sum << 8 | u64::from(byte)),
        )
    };
    let end = || number(40, 8)?.checked_add(number(58, 2)? * number(60, 2)?);
    content.starts_with(b"\x7fELF") && end().is_some_and(|end| end <= content.len() as u64)
}

/// Loads the library for the rest of the process, which registers its operators, and returns the instruction set it has chosen
/// and its other functions.
#[allow(unsafe_code)]
fn open(path: &Path) -> Result<(String, Functions), String> {
    // SAFETY: the marker says that this is the operator library for this very libtorch. Its initialisers only register operators with
    // libtorch, which is loaded, since this program links it.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }
        .map_err(|error| error.to_string())?;
    // SAFETY: the library defines this function with this signature; it returns a static string.
    let isa = unsafe {
        let isa = library.get::<unsafe extern "C" fn() -> *const c_char>(b"vision_mamba_ops_isa\0");
        isa.map(|isa| CStr::from_ptr(isa()).to_string_lossy().into_owned())
    };
    let isa = isa.map_err(|error| error.to_string())?;
    // SAFETY: the library defines these functions with these signatures.
    let functions = unsafe { functions(&library) }.map_err(|error| error.to_string())?;
    // libtorch keeps pointers to the registered functions: the library must never be unloaded.
    std::mem::forget(library);
    Ok((isa, functions))
}

/// # Safety
/// The library is the operator library, which defines these functions with these signatures.
#[allow(unsafe_code)]
unsafe fn functions(library: &Library) -> Result<Functions, libloading::Error> {
    unsafe {
        Ok(Functions {
            meter: MeterFunctions {
                start: *library.get(b"vision_mamba_meter_start\0")?,
                read: *library.get(b"vision_mamba_meter_read\0")?,
                stop: *library.get(b"vision_mamba_meter_stop\0")?,
            },
            autocast: AutocastFunctions {
                swap: *library.get(b"vision_mamba_autocast_swap\0")?,
                clear: *library.get(b"vision_mamba_autocast_clear\0")?,
            },
            update: UpdateFunctions {
                step: *library.get(b"vision_mamba_update_step\0")?,
                average: *library.get(b"vision_mamba_update_average\0")?,
                forget: *library.get(b"vision_mamba_update_forget\0")?,
            },
            device: DeviceFunctions {
                upload: *library.get(b"vision_mamba_device_upload\0")?,
                synchronize: *library.get(b"vision_mamba_device_synchronize\0")?,
                channels_last: *library.get(b"vision_mamba_device_channels_last\0")?,
                tf32: *library.get(b"vision_mamba_device_tf32\0")?,
                deterministic: *library.get(b"vision_mamba_device_deterministic\0")?,
            },
            products: ProductsFunctions {
                start: *library.get(b"vision_mamba_products_start\0")?,
                end: *library.get(b"vision_mamba_products_end\0")?,
                run: *library.get(b"vision_mamba_products_run\0")?,
                free: *library.get(b"vision_mamba_products_free\0")?,
            },
            profiler: ProfilerFunctions {
                start: *library.get(b"vision_mamba_profiler_start\0")?,
                stop: *library.get(b"vision_mamba_profiler_stop\0")?,
            },
            recompute: *library.get(b"vision_mamba_recompute\0")?,
            gemm: *library.get(b"vision_mamba_gemm_onednn\0")?,
            memory: MemoryFunctions {
                keep: *library.get(b"vision_mamba_memory_keep\0")?,
                sizes: *library.get(b"vision_mamba_memory_sizes\0")?,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_must_reach_to_its_section_table() {
        let mut file = vec![0u8; 200];
        file[..4].copy_from_slice(b"\x7fELF");
        file[40] = 72; // two sections of 64 bytes from byte 72 end at 200
        file[58] = 64;
        file[60] = 2;
        assert!(is_whole(&file));
        assert!(!is_whole(&file[..199]) && !is_whole(&file[..50]) && !is_whole(b""));
    }

    #[test]
    fn the_version_is_read_from_behind_the_marker() {
        let mut file = b"\x7fELF...".to_vec();
        file.extend_from_slice(MARKER);
        file.extend_from_slice(b"2.4.1;\0rest");
        assert_eq!(built_for(&file, MARKER).as_deref(), Some("2.4.1"));
        assert_eq!(built_for(b"no library", MARKER), None);
    }
}
