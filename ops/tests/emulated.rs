//! The CUDA kernels without a GPU: the very source that nvcc compiles, compiled by the C++ compiler with every CUDA thread as a fibre
//! (`csrc/cuda/emulation.h`, which says what this cannot show), takes the place of the CPU's kernels in this process and is compared with the float64
//! reference, forwards and backwards.
//!
//! `cargo test --release -p vision-mamba-ops --test emulated`, the first time with half a minute of compiling.
#![allow(clippy::unwrap_used)]

mod util;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::SystemTime;

use tch::{Kind, Tensor};
use util::cross::{self, CrossCase};
use util::{check, cotangents, error, results, Case, Form, Rng};
use vision_mamba_ops::{native, reference, Activation, OpsError};

const SOURCES: [&str; 15] = [
    "cuda/conv.h",
    "cuda/emulation.h",
    "cuda/gpu.h",
    "cuda/library.cu",
    "cuda/one_backward.h",
    "cuda/one_common.h",
    "cuda/one_forward.h",
    "cuda/scan_backward.h",
    "cuda/scan_common.h",
    "cuda/scan_forward.h",
    "cuda/warp_backward.h",
    "cuda/warp_common.h",
    "cuda/warp_forward.h",
    "checks.h",
    "params.h",
];

fn changed(path: &Path) -> SystemTime {
    std::fs::metadata(path).unwrap().modified().unwrap()
}

/// Compiles the kernels unless nothing has changed since.
fn compile() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("csrc");
    let library = folder.join("libvision_mamba_ops_emulated.so");
    let newest = SOURCES.map(|name| changed(&source.join(name)));
    if library.is_file() && newest.iter().all(|&date| date < changed(&library)) {
        return library;
    }
    let lib = Path::new(env!("VISION_MAMBA_LIBTORCH_LIB"));
    let include = lib.with_file_name("include");
    let part = folder.join(format!(
        "libvision_mamba_ops_emulated.{}.so",
        std::process::id()
    ));
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let output = Command::new(&compiler)
        .args(["-std=c++17", "-O2", "-fPIC", "-shared", "-DVM_EMULATED"])
        // A GPU stops at an address that is not a multiple of what is read there.
        .args(["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"])
        .args(["-fvisibility=hidden", "-Wno-unknown-pragmas", "-x", "c++"])
        .arg(source.join("cuda/library.cu"))
        .arg("-isystem")
        .arg(&include)
        .arg("-isystem")
        .arg(include.join("torch/csrc/api/include"))
        .args(["-x", "none", "-L"])
        .arg(lib)
        .args(["-ltorch_cpu", "-lc10", "-Wl,--allow-shlib-undefined", "-o"])
        .arg(&part)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{compiler}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    std::fs::rename(&part, &library).unwrap();
    library
}

/// Puts the emulated kernels in place. The emulation is one machine: a test holds it while it runs.
fn machine() -> MutexGuard<'static, ()> {
    static LOADED: OnceLock<()> = OnceLock::new();
    static MACHINE: Mutex<()> = Mutex::new(());
    let guard = MACHINE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    LOADED.get_or_init(|| {
        // The operators are defined by the library that this loads; the other takes the place of its kernels.
        assert!(native::is_ready());
        // SAFETY: the file was just made from this checkout; its initialisers only register operators with libtorch, which this program links.
        #[allow(unsafe_code)]
        let library = unsafe { libloading::Library::new(compile()) }.unwrap();
        std::mem::forget(library);
    });
    guard
}

/// Says that the kernels in place are the ones under test: the CPU's have float64, these do not.
#[test]
fn the_emulated_kernels_are_in_place_and_refuse_what_they_lack() {
    let _machine = machine();
    let complaint = |result: Result<Tensor, OpsError>| result.unwrap_err().to_string();
    let x = Tensor::ones([1, 1, 4], (Kind::Double, tch::Device::Cpu));
    let weight = Tensor::ones([1, 2], (Kind::Double, tch::Device::Cpu));
    let said = complaint(native::causal_conv1d(&x, &weight, None, Activation::None));
    assert!(said.contains("float64 is not supported"), "{said}");
    let mut rng = Rng(1);
    let case = Case::plain(1, 2, 3, 129);
    let inputs = case.inputs(&mut rng);
    let said = util::call(native::selective_scan, &inputs, true)
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("N is 129") && said.contains("at most 128"),
        "{said}"
    );
}

#[test]
fn random_scans_of_every_form() {
    let _machine = machine();
    let mut rng = Rng(21);
    for _ in 0..24 {
        let case = Case::random(&mut rng);
        if case.kind != Kind::Double {
            check(native::selective_scan, &case, &mut rng);
        }
    }
}

/// One and sixteen states have kernels of their own; long sequences of few channels are cut into segments.
#[test]
fn lengths_around_chunks_and_segments() {
    let _machine = machine();
    let mut rng = Rng(22);
    for states in [1, 16, 20] {
        for length in [1, 31, 32, 33, 65, 300] {
            let channels = if states == 20 { 5 } else { 70 };
            let case = Case {
                z: length % 2 == 1,
                ..Case::plain(1, channels, length, states)
            };
            check(native::selective_scan, &case, &mut rng);
        }
    }
    for b in [Form::Constant, Form::Grouped(2)] {
        let case = Case {
            b,
            c: Form::Grouped(3),
            ..Case::plain(1, 36, 200, 16)
        };
        check(native::selective_scan, &case, &mut rng);
    }
}

#[test]
fn the_same_bits_in_every_run() {
    let _machine = machine();
    let mut rng = Rng(23);
    let case = Case::plain(2, 40, 130, 16);
    let inputs = case.inputs(&mut rng);
    let cot = cotangents(&mut rng, &case);
    let first = results(native::selective_scan, &inputs, true, &cot);
    for (a, b) in first
        .iter()
        .zip(results(native::selective_scan, &inputs, true, &cot))
    {
        assert!(a.1.equal(&b.1), "{}", a.0);
    }
}

#[test]
fn convolutions() {
    let _machine = machine();
    let mut rng = Rng(24);
    for (channels, length, width) in [(5, 40, 4), (3, 1, 4), (16, 130, 3), (2, 9, 12)] {
        for activation in [Activation::None, Activation::Silu] {
            let make = |rng: &mut Rng, shape: &[i64]| {
                let t = rng.tensor(shape, -1.0, 1.0).to_kind(Kind::Float);
                rng.restride(&t).detach().set_requires_grad(true)
            };
            let leaves = [
                make(&mut rng, &[2, channels, length]),
                make(&mut rng, &[channels, width]),
                make(&mut rng, &[channels]),
            ];
            let wide = leaves
                .each_ref()
                .map(|t| t.detach().to_kind(Kind::Double).set_requires_grad(true));
            let dy = rng.tensor(&[2, channels, length], -1.0, 1.0);
            let run = |op: fn(&Tensor, &Tensor, Option<&Tensor>, Activation) -> _,
                       on: &[Tensor; 3]| {
                let out: Tensor = Result::<Tensor, OpsError>::unwrap(op(
                    &on[0],
                    &on[1],
                    Some(&on[2]),
                    activation,
                ));
                let loss = (&out * &dy).sum(Kind::Double);
                let gradients = Tensor::run_backward(&[loss], &on.each_ref(), false, false);
                [vec![out.detach()], gradients].concat_all()
            };
            let ours = run(native::causal_conv1d, &leaves);
            let theirs = run(reference::causal_conv1d, &wide);
            for (ours, theirs) in ours.iter().zip(&theirs) {
                let error = error(ours, theirs);
                assert!(
                    error <= 1e-5,
                    "D {channels} L {length} W {width}: {error:e}"
                );
            }
        }
    }
}

trait ConcatAll {
    fn concat_all(self) -> Vec<Tensor>;
}
impl ConcatAll for [Vec<Tensor>; 2] {
    fn concat_all(self) -> Vec<Tensor> {
        self.into_iter().flatten().collect()
    }
}

#[test]
fn several_directions() {
    let _machine = machine();
    let mut rng = Rng(25);
    for (directions, length, channels, states, rank, shared) in [
        (4, 49, 40, 1, 3, true),
        (4, 100, 35, 16, 6, true),
        (2, 130, 70, 1, 18, false),
        // One state: 32, 16 and 8 channels a block, and sums in memory.
        (4, 196, 100, 1, 13, true),
        (2, 1, 100, 1, 1, true),
        (4, 289, 40, 1, 6, true),
        (3, 441, 20, 1, 4, true),
        (4, 930, 36, 1, 2, true),
        (2, 40, 33, 1, 70, true),
        (2, 33, 5, 20, 2, true),
        (1, 200, 12, 16, 1, false),
    ] {
        let case = CrossCase {
            shared,
            ..CrossCase::plain(2, directions, length, channels, states, rank)
        };
        let call = case.arguments(&mut rng);
        cross::check(native::cross_selective_scan, &case, &call, |_| 1e-5);
    }
}

#[test]
fn random_forms_of_several_directions() {
    let _machine = machine();
    let mut rng = Rng(27);
    for _ in 0..12 {
        let case = CrossCase {
            kind: Kind::Float,
            ..CrossCase::random(&mut rng)
        };
        let call = case.arguments(&mut rng);
        cross::check(native::cross_selective_scan, &case, &call, |_| 1e-5);
    }
}

/// A map and tokens' numbers in half precision; what belongs to channels in float32. The error is that of the results'
/// own roundings: the map's and its gradient's once a direction, and the blocks' shares of B's and C's gradients once, where they are in bfloat16.
#[test]
fn several_directions_in_half_precision() {
    let _machine = machine();
    let mut rng = Rng(26);
    for (kind, unit) in [(Kind::BFloat16, 0.00390625), (Kind::Half, 0.00048828125)] {
        for (length, channels, states, rank) in [
            (200, 35, 16, 6),
            (130, 40, 5, 3),
            (100, 100, 1, 13),
            (33, 5, 20, 2),
        ] {
            let case = CrossCase {
                kind,
                ..CrossCase::plain(2, 4, length, channels, states, rank)
            };
            let scan = native::cross_selective_scan;
            // Measured: 1.1 units at most, and 5e-7 of what belongs to channels alone.
            let most = |i| if i < 4 { 1.5 * unit } else { 1e-5 };
            let call = case.arguments(&mut rng);
            cross::check(scan, &case, &call, most);
            if length > 150 {
                let run = || cross::results(scan, &case, &call);
                for (i, (a, b)) in run().iter().zip(run()).enumerate() {
                    assert!(a.equal(&b), "{case:?} result {i}: other bits");
                }
            }
        }
    }
}
