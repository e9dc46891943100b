//! Link arguments for libtorch, and its version for the loader.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys tells where libtorch lies");
    let lib = PathBuf::from(&lib)
        .canonicalize()
        .unwrap_or_else(|error| panic!("{lib}: {error}"));
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo:rustc-env=VISION_MAMBA_LIBTORCH=2.11.0");
}
