//! The loader's outcomes, each in a process of its own, since the library is looked for once a process.
//!
//! `cargo test --release -p vision-mamba-ops --test loader`
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::Path;
use std::process::Command;
use tch::{Kind, Tensor};
use vision_mamba_ops::{causal_conv1d, native, status, Activation, LIBRARY_ENV, LIBRARY_FILE};

fn main() {
    if std::env::args().any(|arg| arg == "probe") {
        return probe();
    }
    let folder =
        std::env::temp_dir().join(format!("vision-mamba-ops-loader-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    outcomes(&folder);
    std::fs::remove_dir_all(&folder).unwrap();
    println!("loader: all outcomes as expected");
}

/// Says what came of loading, then convolves by the public face, which must work in any case, and by the native library.
fn probe() {
    println!("{}", status());
    let x = Tensor::from_slice(&[1.0f32, 2.0]).reshape([1, 1, 2]);
    let weight = Tensor::from_slice(&[1.0f32]).reshape([1, 1]);
    let y = causal_conv1d(&x, &weight, None, Activation::None).unwrap();
    println!("face {}", y.sum(Kind::Double).double_value(&[]));
    match native::causal_conv1d(&x, &weight, None, Activation::None) {
        Ok(_) => println!("native works"),
        Err(error) => println!("{error}"),
    }
}

fn outcomes(folder: &Path) {
    let library = std::env::current_exe()
        .unwrap()
        .ancestors()
        .nth(2)
        .unwrap()
        .join(LIBRARY_FILE);
    let content = std::fs::read(&library).unwrap();
    let write = |name: &str, content: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let marker = b"vision_mamba_ops built for libtorch ";
    let at = content
        .windows(marker.len())
        .position(|window| window == marker)
        .unwrap()
        + marker.len();
    let mut other = content.clone();
    other[at..at + 6].copy_from_slice(b"2.4.1;");
    let missing = folder.join("missing.so").display().to_string();
    let cases = [
        (
            library.display().to_string(),
            vec![
                "native operators from",
                "(libtorch 2.11.0, ",
                "native works",
            ],
        ),
        (
            missing,
            vec![
                "native operators not found at",
                "missing.so",
                "cargo build --release",
                "not in use",
            ],
        ),
        (
            write("other.so", &other),
            vec![
                "are built for libtorch 2.4.1, but libtorch 2.11.0 is running",
                "rebuild them",
            ],
        ),
        (
            write("text.so", b"no library"),
            vec!["do not load (it is not an operator library)"],
        ),
        (
            write("cut.so", &content[..at + 4096]),
            vec!["do not load (the file is cut short)", "not in use"],
        ),
        (
            "off".to_owned(),
            vec![
                "switched off by VISION_MAMBA_OPS=off",
                "slow tensor reference",
            ],
        ),
    ];
    for (value, expected) in cases {
        let output = Command::new(std::env::current_exe().unwrap())
            .arg("probe")
            .env(LIBRARY_ENV, &value)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{value}: {text}");
        for part in expected.iter().chain(&["face 3"]) {
            assert!(text.contains(part), "{value}: {text:?} lacks {part:?}");
        }
        println!("loader: {}", text.lines().next().unwrap());
    }
    // Without the variable it lies beside the executable or one folder up.
    let output = Command::new(std::env::current_exe().unwrap())
        .arg("probe")
        .env_remove(LIBRARY_ENV)
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("native works"));
}
