//! Lets the binary and the tests start without `LD_LIBRARY_PATH`: tch's own link arguments do not reach them.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        // The link itself first, so that a binary follows when the set-up changes it (to one with CUDA, say); then what it means
        // today, for a binary whose checkout is gone.
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
        let real = std::fs::canonicalize(&lib).unwrap_or_else(|_| lib.into());
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", real.display());
    }
}
