//! Converts images and reports what is read: `cargo run --release -p vision-mamba-datasets --example convert < commands`.
//!
//! A command a line, words between tabs: `values IN OUT` and `labels IN OUT` write what they read in the format that OUT's ending names;
//! `dump IN OUT` writes the numbers as float32, little-endian, channels first. Each prints a line of JSON with shape and geometry, or the
//! error. `scripts/check-formats-python` holds them against the peers.
#![allow(clippy::print_stdout)]

use std::io::BufRead;
use std::path::Path;

use serde_json::{json, Value};
use vision_mamba_datasets::{
    read_image, read_labels, write_image, write_labels, DataError, Geometry,
};

fn about(shape: &[usize], geometry: &Geometry) -> Value {
    json!({
        "shape": shape,
        "spacing": geometry.spacing,
        "origin": geometry.origin,
        "direction": geometry.direction,
    })
}

fn run(action: &str, input: &Path, output: &Path) -> Result<Value, DataError> {
    if action == "labels" {
        let labels = read_labels(input)?;
        write_labels(output, &labels)?;
        return Ok(about(labels.data.shape(), &labels.geometry));
    }
    let image = read_image(input)?;
    match action {
        "values" => write_image(output, &image)?,
        _ => {
            let bytes: Vec<u8> = image.data.iter().flat_map(|v| v.to_le_bytes()).collect();
            vision_mamba_datasets::atomically(output, |out| out.write_all(&bytes))?;
        }
    }
    Ok(about(image.data.shape(), &image.geometry))
}

fn main() {
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split('\t').collect();
        let &[action @ ("values" | "labels" | "dump"), input, output] = &words[..] else {
            println!("{}", json!({"error": format!("no command: {line}")}));
            continue;
        };
        match run(action, Path::new(input), Path::new(output)) {
            Ok(report) => println!("{report}"),
            Err(e) => println!("{}", json!({"error": e.to_string()})),
        }
    }
}
