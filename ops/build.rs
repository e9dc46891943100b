//! Builds the native operator library, `libvision_mamba_ops.so`, into the target folder beside the executables.
//!
//! The kernels are compiled once for every instruction set, without libtorch's headers; `library.cpp`, which registers the
//! operators, is compiled once. The library carries no search path of its own: it binds to the libtorch that is already loaded in
//! the process, be that a Rust program or Python.

use std::path::{Path, PathBuf};
use std::process::{exit, Command};

const LIBRARY: &str = "libvision_mamba_ops.so";

/// A compilation: source, name of the object's folder, and flags.
struct Unit {
    source: &'static str,
    name: &'static str,
    flags: Vec<String>,
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=csrc");
    println!("cargo:rerun-if-env-changed=CXX");
    println!("cargo:rerun-if-env-changed=CXXFLAGS");
    let lib = PathBuf::from(variable("DEP_TCH_LIBTORCH_LIB"));
    // For this crate's own tests and benches, as in the other crates' build scripts.
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    let lib = lib.canonicalize().unwrap_or_else(|error| {
        fail(&format!(
            "libtorch is not at {} ({error}); run scripts/setup",
            lib.display()
        ))
    });
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!(
        "cargo:rustc-env=VISION_MAMBA_LIBTORCH={}",
        libtorch_version(&lib)
    );

    // For the test that compiles the CUDA kernels for the CPU.
    println!(
        "cargo:rustc-env=VISION_MAMBA_LIBTORCH_LIB={}",
        lib.display()
    );

    let out = PathBuf::from(variable("OUT_DIR"));
    let built = build(&lib, &out);
    // OUT_DIR is target/<profile>/build/<package>/out.
    let Some(profile) = out.ancestors().nth(3) else {
        fail(&format!(
            "{} is not where Cargo puts the output of build scripts",
            out.display()
        ))
    };
    let destination = profile.join(LIBRARY);
    let staged = profile.join(format!("{LIBRARY}.part"));
    if let Err(error) = put_in_place(&built, &staged, &destination) {
        fail(&format!(
            "cannot put the library at {}: {error}",
            destination.display()
        ));
    }
    // Build it again should it be deleted.
    println!("cargo:rerun-if-changed={}", destination.display());
}

/// A running program may have the old file open: it is replaced, not written into. Cargo runs this script again when a file that it
/// watches is newer than the start of the last run, hence the early date.
fn put_in_place(built: &Path, staged: &Path, destination: &Path) -> std::io::Result<()> {
    std::fs::copy(built, staged)?;
    let date = std::fs::metadata("build.rs")?.modified()?;
    std::fs::File::options()
        .write(true)
        .open(staged)?
        .set_modified(date)?;
    std::fs::rename(staged, destination)
}

fn build(lib: &Path, out: &Path) -> PathBuf {
    let found = compiler()
        .try_get_compiler()
        .map(|tool| tool.to_command().arg("--version").output());
    match found {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => fail(&format!(
            "the C++ compiler does not start: {error}\n{REMEDY}"
        )),
        Err(error) => fail(&format!("there is no C++ compiler: {error}\n{REMEDY}")),
    }
    let units = units(&lib.with_file_name("include"));
    let objects: Vec<Vec<PathBuf>> = std::thread::scope(|scope| {
        let running: Vec<_> = units
            .iter()
            .map(|unit| scope.spawn(|| compile(unit, out)))
            .collect();
        running
            .into_iter()
            .map(|unit| unit.join().unwrap_or_else(|_| exit(1)))
            .collect()
    });
    let library = out.join(LIBRARY);
    let mut link = compiler().get_compiler().to_command();
    link.args([
        "-shared",
        "-Wl,-soname,libvision_mamba_ops.so",
        "-Wl,-z,defs",
    ]);
    // Parts of libtorch that only CUDA needs may be absent.
    link.arg("-Wl,--allow-shlib-undefined")
        .arg("-o")
        .arg(&library)
        .args(objects.iter().flatten());
    link.arg("-L").arg(lib).args(["-ltorch_cpu", "-lc10"]);
    if let Some(openmp) = openmp(lib) {
        link.arg(openmp);
    }
    run(link, "linking the operator library");
    library
}

fn units(include: &Path) -> Vec<Unit> {
    let flags = |flags: &[&str]| {
        flags
            .iter()
            .map(|flag| flag.to_string())
            .collect::<Vec<_>>()
    };
    let kernel = |name: &'static str, bytes: u32, extra: &[&str]| {
        let mut all = flags(&[
            "-fno-exceptions",
            "-fno-rtti",
            "-fno-math-errno",
            "-fno-trapping-math",
        ]);
        // Products and sums are fused where the processor can, whatever the compiler's default is.
        all.push("-ffp-contract=fast".to_owned());
        all.extend([format!("-DVM_ISA={name}"), format!("-DVM_BYTES={bytes}")]);
        all.extend(flags(extra));
        Unit {
            source: "csrc/kernels.cpp",
            name,
            flags: all,
        }
    };
    let mut units = vec![kernel("portable", 16, &[])];
    if variable("CARGO_CFG_TARGET_ARCH") == "x86_64" {
        units.push(kernel("avx2", 32, &["-mavx2", "-mfma"]));
        let wide = [
            "-mavx512f",
            "-mavx512bw",
            "-mavx512dq",
            "-mavx512vl",
            "-mavx2",
            "-mfma",
        ];
        units.push(kernel("avx512", 64, &wide));
    }
    units.push(Unit {
        source: "csrc/dispatch.cpp",
        name: "dispatch",
        flags: Vec::new(),
    });
    let mut torch = flags(&["-fopenmp"]);
    for folder in [include.to_owned(), include.join("torch/csrc/api/include")] {
        torch.extend(["-isystem".to_owned(), folder.display().to_string()]);
    }
    units.push(Unit {
        source: "csrc/library.cpp",
        name: "library",
        flags: torch.clone(),
    });
    // libtorch itself is built so, and what its headers assert otherwise does not hold.
    torch.push("-DNDEBUG".to_owned());
    for (source, name) in [
        ("csrc/meter.cpp", "meter"),
        ("csrc/products.cpp", "products"),
        ("csrc/autocast.cpp", "autocast"),
        ("csrc/update.cpp", "update"),
        ("csrc/device.cpp", "device"),
        ("csrc/profiler.cpp", "profiler"),
        ("csrc/recompute.cpp", "recompute"),
        ("csrc/gemm.cpp", "gemm"),
        ("csrc/memory.cpp", "memory"),
    ] {
        units.push(Unit {
            source,
            name,
            flags: torch.clone(),
        });
    }
    units
}

fn compiler() -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .opt_level(3)
        .debug(false)
        .pic(true)
        .warnings(true)
        .extra_warnings(true);
    build
        .flag("-fvisibility=hidden")
        .cargo_metadata(false)
        .cpp_link_stdlib(None::<&str>);
    build
}

fn compile(unit: &Unit, out: &Path) -> Vec<PathBuf> {
    let folder = out.join(unit.name);
    if let Err(error) = std::fs::create_dir_all(&folder) {
        fail(&format!(
            "cannot make the folder {}: {error}",
            folder.display()
        ));
    }
    let mut build = compiler();
    build.file(unit.source).out_dir(&folder);
    // GCC 12 believes that its own AVX-512 headers use a variable before setting it.
    build.flag_if_supported("-Wno-maybe-uninitialized");
    for flag in &unit.flags {
        build.flag(flag);
    }
    build.try_compile_intermediates().unwrap_or_else(|error| {
        let path = match compiler().try_get_compiler() {
            Ok(tool) => tool.path().display().to_string(),
            Err(_) => "the C++ compiler".to_owned(),
        };
        fail(&format!(
            "compiling ops/{} with {path} failed: {error}\n{REMEDY}",
            unit.source
        ))
    })
}

const REMEDY: &str =
    "the operator library needs a C++17 compiler, GCC 11 or Clang 14 or newer: install one \
                      (`apt-get install g++`), or name it in the environment variable CXX";

/// The OpenMP runtime that libtorch brings, so that the operators run on libtorch's own threads.
fn openmp(lib: &Path) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(lib)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("libgomp"))
        })
        .collect();
    found.sort();
    found
        .into_iter()
        .next()
        .or_else(|| Some(PathBuf::from("-lgomp")))
}

/// As libtorch's own header has it.
fn libtorch_version(lib: &Path) -> String {
    let header = lib
        .with_file_name("include")
        .join("torch/headeronly/version.h");
    let text = std::fs::read_to_string(&header).unwrap_or_else(|error| {
        fail(&format!(
            "cannot read {}: {error}; libtorch is not complete, run scripts/setup",
            header.display()
        ))
    });
    let version = text
        .split("define TORCH_VERSION \\")
        .nth(1)
        .and_then(|rest| rest.split('"').nth(1));
    version
        .unwrap_or_else(|| fail(&format!("{} names no TORCH_VERSION", header.display())))
        .to_owned()
}

fn run(mut command: Command, what: &str) {
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!("{what} failed ({status}): {command:?}\n{REMEDY}")),
        Err(error) => fail(&format!(
            "{what} failed: {:?}: {error}\n{REMEDY}",
            command.get_program()
        )),
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| fail(&format!("{name} is not set; build with Cargo")))
}

fn fail(message: &str) -> ! {
    // Cargo shows what a failed build script wrote to stderr.
    #[allow(clippy::print_stderr)]
    {
        eprintln!("error: {message}");
    }
    exit(1)
}
