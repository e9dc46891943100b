//! A network as TorchScript, for Python and C++: recorded at one image size, for any batch.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use tch::{no_grad, CModule, Device, Kind, Tensor};
use zip::write::FileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use crate::describe::takeable_size;
use crate::layers::conv::recorded;
use crate::{Built, ModelError};

/// Largest difference between the trace and the network, relative to the network's largest output.
pub const TOLERANCE: f64 = 1e-5;
/// Images of the batch that the trace is checked on: another number than it was recorded with.
const OTHER_BATCH: i64 = 3;

/// What an exported file's trace was found to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Exported {
    /// Spatial size of the images that it takes.
    pub input_size: Vec<i64>,
    /// Largest relative difference from the network, on a random batch of another size than the recorded one.
    pub error: f64,
}

/// Writes the network's forward pass for images (B, C, size..) as TorchScript. The finest logits, or the clear image, are its one output.
/// `texts` become the file's extra files. The trace is checked before anything appears under `path`.
///
/// The network must be on the CPU. Whoever runs the file must load the operator library first (`torch.ops.load_library` in Python).
pub fn export(
    built: &Built,
    input_size: &[i64],
    texts: &BTreeMap<String, String>,
    path: &Path,
) -> Result<Exported, ModelError> {
    let size = takeable_size(built, input_size);
    let image = |batch: i64| {
        let shape: Vec<i64> = [batch, built.spec.in_channels()]
            .into_iter()
            .chain(size.iter().copied())
            .collect();
        Tensor::f_randn(&shape, (Kind::Float, Device::Cpu))
    };
    let forward = |x: &Tensor| -> Result<Tensor, ModelError> {
        let mut outputs = no_grad(|| built.net.forward(x, false))?;
        Ok(outputs.swap_remove(0))
    };
    // a trace keeps parameters as constants, which cannot ask for gradients, not even while they are written
    let trainable: Vec<Tensor> = built
        .params
        .trainable()
        .into_iter()
        .map(|(_, t)| t)
        .collect();
    let asks = |yes: bool| {
        for tensor in &trainable {
            let _ = tensor.set_requires_grad(yes);
        }
    };
    asks(false);
    let error = image(1)
        .map_err(ModelError::from)
        .and_then(|first| record(&forward, first, &|| Ok(image(OTHER_BATCH)?), texts, path));
    asks(true);
    Ok(Exported {
        input_size: size,
        error: error?,
    })
}

/// Traces, writes, reads again and compares; the relative difference found.
fn record(
    forward: &dyn Fn(&Tensor) -> Result<Tensor, ModelError>,
    first: Tensor,
    other: &dyn Fn() -> Result<Tensor, ModelError>,
    texts: &BTreeMap<String, String>,
    path: &Path,
) -> Result<f64, ModelError> {
    let io = |source| ModelError::Io {
        path: path.to_path_buf(),
        source,
    };
    // a kernel that sets itself up for a length does so here, and not again whenever the trace runs
    let _ = forward(&first)?;
    let module = trace(forward, first)?;
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let temporary = tempfile::Builder::new()
        .prefix(".writing-")
        .suffix(".pt")
        .tempfile_in(folder)
        .map_err(io)?;
    module.save(temporary.path())?;
    add_texts(temporary.path(), texts).map_err(|reason| ModelError::BadFile {
        path: temporary.path().to_path_buf(),
        reason,
    })?;

    // what was written is read again, and meets images that it has not seen
    let again = CModule::load(temporary.path())?;
    let x = other()?;
    let (ours, theirs) = (forward(&x)?, again.forward_ts(&[&x])?);
    let largest = |t: &Tensor| t.abs().max().double_value(&[]);
    let error = match ours.size() == theirs.size() {
        true => largest(&(&ours - &theirs)) / largest(&ours).max(f64::MIN_POSITIVE),
        false => f64::INFINITY,
    };
    if error.is_nan() || error > TOLERANCE {
        let message = format!(
            "its trace differs by {error:e} of the largest output from the network on another image, more than {TOLERANCE:e}; it was not written"
        );
        return Err(ModelError::config("export", message));
    }
    let file = temporary.reopen().map_err(io)?;
    file.sync_all().map_err(io)?;
    temporary.persist(path).map_err(|e| io(e.error))?;
    Ok(error)
}

fn trace(
    forward: &dyn Fn(&Tensor) -> Result<Tensor, ModelError>,
    image: Tensor,
) -> Result<CModule, ModelError> {
    let mut failure = None;
    let mut record = |inputs: &[Tensor]| match forward(&inputs[0]) {
        Ok(output) => vec![output],
        Err(e) => {
            failure = Some(e);
            // a recording must end with something
            vec![inputs[0].shallow_clone()]
        }
    };
    let mut module =
        recorded(|| CModule::create_by_tracing("Network", "forward", &[image], &mut record))?;
    if let Some(e) = failure {
        return Err(e);
    }
    module.f_set_eval()?;
    Ok(module)
}

/// Puts texts among the file's extra files, where libtorch and Python look for them.
fn add_texts(path: &Path, texts: &BTreeMap<String, String>) -> Result<(), String> {
    let told = |e: &dyn std::error::Error| e.to_string();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|e| told(&e))?;
    let mut bytes = vec![];
    file.read_to_end(&mut bytes).map_err(|e| told(&e))?;
    let archive = ZipArchive::new(std::io::Cursor::new(&bytes)).map_err(|e| told(&e))?;
    // everything lies in one folder named like the file
    let root = archive
        .file_names()
        .next()
        .and_then(|name| name.split('/').next())
        .ok_or("libtorch wrote an empty file")?
        .to_string();
    file.seek(SeekFrom::Start(0)).map_err(|e| told(&e))?;
    let mut writer = ZipWriter::new_append(file).map_err(|e| told(&e))?;
    let stored = FileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, text) in texts {
        writer
            .start_file(format!("{root}/extra/{name}"), stored)
            .map_err(|e| told(&e))?;
        writer.write_all(text.as_bytes()).map_err(|e| told(&e))?;
    }
    writer.finish().map_err(|e| told(&e))?;
    Ok(())
}
