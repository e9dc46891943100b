//! Lets this crate's test binaries start without `LD_LIBRARY_PATH`: torch-sys says where libtorch lies, but its link
//! arguments do not reach the binaries of other packages.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if let Some(lib) = std::env::var_os("DEP_TCH_LIBTORCH_LIB") {
        let lib = std::path::Path::new(&lib);
        let lib = lib.canonicalize().unwrap_or_else(|_| lib.to_path_buf());
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    }
}
