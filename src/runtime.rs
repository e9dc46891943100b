//! The machine: device, threads, seeds, signals.

use std::ffi::{c_int, c_uint};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{bail, Context, Result};
use serde::Serialize;
use tch::{Cuda, Device};
use vision_mamba_ops::{open_libtorch_cuda, NoCuda};

use crate::cli::printer::Printer;

/// What `--device` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU if there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// This GPU.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("'{text}' is no device; use cpu, cuda, cuda:N or auto")),
        }
    }
}

/// Whether and why CUDA can be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum CudaStatus {
    /// No NVIDIA driver on this machine.
    NoDriver,
    /// There is a driver, but this libtorch has no CUDA half or it cannot be loaded.
    NoLibrary {
        /// The loader's words.
        reason: String,
    },
    /// The library is loaded but finds no usable GPU.
    NoDevice,
    /// Ready.
    Ready {
        /// Number of GPUs.
        devices: i64,
    },
}

impl CudaStatus {
    fn remedy(&self) -> String {
        match self {
            Self::NoDriver => "no NVIDIA driver was found; use --device cpu or auto".into(),
            Self::NoLibrary { reason } => format!(
                "libtorch's CUDA half cannot be loaded ({reason}); run scripts/setup again on this machine, or use --device cpu"
            ),
            Self::NoDevice => "the driver shows no usable GPU (see nvidia-smi); use --device cpu or auto".into(),
            Self::Ready { devices } => format!("{devices} GPU(s) are ready"),
        }
    }
}

/// Loads libtorch's CUDA half where a driver is, once, and says what came of it.
///
/// libtorch keeps its first answer to "is there CUDA?", so this runs before anything else asks.
pub fn cuda_status() -> &'static CudaStatus {
    static STATUS: OnceLock<CudaStatus> = OnceLock::new();
    STATUS.get_or_init(|| {
        match open_libtorch_cuda() {
            Ok(()) => {}
            Err(NoCuda::Driver) => return CudaStatus::NoDriver,
            Err(NoCuda::Library(reason)) => return CudaStatus::NoLibrary { reason },
        }
        match Cuda::device_count() {
            n if n > 0 && Cuda::is_available() => CudaStatus::Ready { devices: n },
            _ => CudaStatus::NoDevice,
        }
    })
}

/// The compute capability (major, minor) of a GPU, from the driver.
pub fn cuda_capability(index: usize) -> Option<(i32, i32)> {
    use libloading::os::unix::Library;
    type Number = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
    type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
    /// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `…_MINOR`.
    const MAJOR: c_int = 75;
    const MINOR: c_int = 76;
    // SAFETY: the driver's library is made to be loaded at run time; the functions have these signatures and write one number each.
    #[allow(unsafe_code)]
    unsafe {
        let driver = Library::new("libcuda.so.1").ok()?;
        let initialise: unsafe extern "C" fn(c_uint) -> c_int = *driver.get(b"cuInit\0").ok()?;
        let get: Number = *driver.get(b"cuDeviceGet\0").ok()?;
        let attribute: Attribute = *driver.get(b"cuDeviceGetAttribute\0").ok()?;
        let (mut device, mut major, mut minor) = (0, 0, 0);
        let done = initialise(0) == 0
            && get(&mut device, c_int::try_from(index).ok()?) == 0
            && attribute(&mut major, MAJOR, device) == 0
            && attribute(&mut minor, MINOR, device) == 0;
        done.then_some((major, minor))
    }
}

impl DeviceChoice {
    /// The device to compute on, or why it cannot be had.
    pub fn resolve(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto => Ok(match cuda_status() {
                CudaStatus::Ready { .. } => Device::Cuda(0),
                _ => Device::Cpu,
            }),
            Self::Cuda(index) => match cuda_status() {
                CudaStatus::Ready { devices } if (index as i64) < *devices => {
                    Ok(Device::Cuda(index))
                }
                CudaStatus::Ready { devices } => {
                    bail!("there is no cuda:{index}: this machine has {devices} GPU(s), numbered from 0")
                }
                status => bail!("--device cuda: {}", status.remedy()),
            },
        }
    }
}

/// Sets the number of tensor threads and says once when the scan has to run on plain tensors on this device.
pub fn prepare(threads: Option<u32>, device: Device, printer: &Printer) {
    if let Some(threads) = threads {
        tch::set_num_threads(threads as i32);
    }
    let status = vision_mamba_ops::status();
    if !status.is_ready() {
        printer.warning(&status.to_string());
    } else if matches!(device, Device::Cuda(_)) && !vision_mamba_ops::cuda_status().is_ready() {
        printer.warning(&vision_mamba_ops::cuda_status().to_string());
    }
}

/// Ends the process without the destructors of libtorch, which crash while other threads still use it.
fn end_at_once() -> ! {
    // SAFETY: `_exit` takes nothing, touches nothing of this process and does not return.
    #[allow(unsafe_code)]
    unsafe {
        libc::_exit(i32::from(crate::cli::exit::INTERRUPTED))
    }
}

/// Set by Ctrl-C or a termination signal; the work looks at it between steps.
#[derive(Debug, Clone)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Listens for Ctrl-C and SIGTERM. The first asks the work to finish its step, the second ends at once.
    pub fn listen(what: &'static str, printer: &Printer) -> Result<Self> {
        let flag = Self(Arc::new(AtomicBool::new(false)));
        let seen = flag.clone();
        let printer = printer.clone();
        ctrlc::set_handler(move || {
            if seen.0.swap(true, Ordering::SeqCst) {
                end_at_once();
            }
            printer.message(&format!(
                "\nstopping after this {what}; once more to stop at once"
            ));
        })
        .context("cannot listen for Ctrl-C")?;
        Ok(flag)
    }

    /// A flag nobody sets, for tests and for work that is called from a program.
    pub fn never() -> Self {
        Self(Arc::new(AtomicBool::new(false)))
    }

    /// Asks the work to stop.
    pub fn stop(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether the work should stop.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Lets the process keep freed memory up to a quarter of a gigabyte, and take blocks of up to 32 MiB from it.
///
/// A network frees and takes its feature maps again layer by layer. By itself glibc gives them back to the system in between, which then
/// fills every page with zeros again: one twelfth of Mamba-UNet's forward pass. Elsewhere than with glibc nothing happens.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` may be called at any time; values that it does not take change nothing.
    #[allow(unsafe_code)]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 256 << 20);
    }
}

/// Memory taken where the system does not say what is free.
const UNKNOWN_MEMORY: u64 = 4 << 30;

/// Bytes of memory that are free.
pub fn free_memory() -> u64 {
    let table = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = table.lines().find_map(|line| {
        let kib = line
            .strip_prefix("MemAvailable:")?
            .trim()
            .strip_suffix("kB")?;
        kib.trim().parse::<u64>().ok()
    });
    free.map_or(UNKNOWN_MEMORY, |kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_parsed() {
        assert_eq!("auto".parse(), Ok(DeviceChoice::Auto));
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        assert!("gpu"
            .parse::<DeviceChoice>()
            .is_err_and(|e| e.contains("cuda:N")));
        assert!("cuda:x".parse::<DeviceChoice>().is_err());
    }
}
