//! The safetensors format: written whole or not at all, read only when every name, shape and kind fits.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Cursor, Read, Seek, SeekFrom, Write};
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use tch::{no_grad, Device, Kind, Tensor};

use crate::{EntryKind, ModelError, ParamStore};

/// The format's own limit to the header.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes in front of the header, holding its length.
const LENGTH_BYTES: u64 = 8;

/// Writes every tensor of the network once, under its first state-dict name (U-Mamba has up to four names for one), with
/// some text beside it. The file appears complete under its name or not at all; an earlier one stays until then.
pub fn save_safetensors(
    path: &Path,
    params: &ParamStore,
    metadata: &BTreeMap<String, String>,
) -> Result<(), ModelError> {
    save_tensors(path, &params.stored(), metadata)
}

/// Writes any named tensors as [`save_safetensors`] does.
pub fn save_tensors(
    path: &Path,
    tensors: &[(String, Tensor)],
    metadata: &BTreeMap<String, String>,
) -> Result<(), ModelError> {
    let io = |source| ModelError::Io {
        path: path.to_path_buf(),
        source,
    };
    let stored = |(name, tensor): &(String, Tensor)| {
        Ok::<_, ModelError>((name.clone(), Stored::of(tensor)?))
    };
    let tensors = tensors.iter().map(stored).collect::<Result<Vec<_>, _>>()?;
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let temporary = tempfile::Builder::new()
        .prefix(".writing-")
        .tempfile_in(folder)
        .map_err(io)?;
    // as all files that are being written: what is not locked is swept away
    let _ = temporary.as_file().lock();
    write_sorted(temporary.as_file(), tensors, metadata).map_err(io)?;
    make_readable(temporary.as_file()).map_err(io)?;
    temporary.as_file().sync_all().map_err(io)?;
    temporary.persist(path).map_err(|e| io(e.error))?;
    // the rename itself must survive a power cut too
    File::open(folder).and_then(|f| f.sync_all()).map_err(io)
}

/// Writes header and values. The library's own writer lists the metadata in an order that changes from run to run; equal
/// content should give equal bytes, so that files can be compared and hashed.
fn write_sorted(
    file: &File,
    mut tensors: Vec<(String, Stored)>,
    metadata: &BTreeMap<String, String>,
) -> std::io::Result<()> {
    // The widest elements come first, so that every tensor starts at a multiple of its element size.
    tensors.sort_by(|(a, x), (b, y)| y.dtype.bitsize().cmp(&x.dtype.bitsize()).then(a.cmp(b)));
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".to_string(), serde_json::json!(metadata));
    }
    let mut end = 0;
    for (name, tensor) in &tensors {
        let start = end;
        end += tensor.bytes.len();
        let info = TensorInfo {
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            data_offsets: (start, end),
        };
        header.insert(name.clone(), serde_json::to_value(info)?);
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(LENGTH_BYTES as usize), b' ');
    let mut out = BufWriter::new(file);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for (_, tensor) in &tensors {
        out.write_all(&tensor.bytes)?;
    }
    out.flush()
}

/// All tensors of a file by name, as stored.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>, ModelError> {
    let mut file = Opened::new(path)?;
    let mut tensors = BTreeMap::new();
    for name in file.header.offset_keys() {
        let stored = file.header.info(&name).map(|info| info.dtype);
        let Some(kind) = stored.and_then(kind_of) else {
            let reason = format!("`{name}` has the element type {stored:?}, which libtorch lacks");
            return Err(ModelError::BadFile {
                path: path.to_path_buf(),
                reason,
            });
        };
        if let Some(tensor) = file.read(&name, kind)? {
            tensors.insert(name, tensor);
        }
    }
    Ok(tensors)
}

/// Names, shapes and element types of a file.
pub(super) fn read_index(
    path: &Path,
) -> Result<BTreeMap<String, super::checkpoint::TensorInfo>, ModelError> {
    let file = Opened::new(path)?;
    let mut index = BTreeMap::new();
    for name in file.header.offset_keys() {
        let info = file.header.info(&name);
        let Some((info, kind)) = info.and_then(|info| Some((info, kind_of(info.dtype)?))) else {
            let reason = format!("`{name}` has an element type which libtorch lacks");
            return Err(ModelError::BadFile {
                path: path.to_path_buf(),
                reason,
            });
        };
        let shape = shape_of(info);
        index.insert(name, super::checkpoint::TensorInfo { shape, kind });
    }
    Ok(index)
}

/// One tensor of a file in the wanted kind.
pub(super) fn read_one(path: &Path, name: &str, kind: Kind) -> Result<Tensor, ModelError> {
    (Opened::new(path)?.read(name, kind)?).ok_or_else(|| ModelError::BadFile {
        path: path.to_path_buf(),
        reason: format!("there is no `{name}` in it"),
    })
}

/// Temporary files are private to their owner; a finished one is like any other file.
#[cfg(unix)]
fn make_readable(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn make_readable(_file: &File) -> std::io::Result<()> {
    Ok(())
}

/// Copies a file's values into the network. All names must be there, none besides, all of the right shape; otherwise
/// nothing is changed. Other float kinds are converted. Second names of shared tensors may be absent, but may not differ.
pub fn load_strict(path: &Path, params: &ParamStore) -> Result<(), ModelError> {
    load(Opened::new(path)?, params)
}

/// [`load_strict`] of a file's content that lies in memory under a name.
pub fn load_strict_from(
    name: &Path,
    content: &[u8],
    params: &ParamStore,
) -> Result<(), ModelError> {
    load(Opened::of_content(name, content)?, params)
}

fn load(mut file: Opened, params: &ParamStore) -> Result<(), ModelError> {
    let path = file.path;
    file.check_names(params)?;
    let mut values = HashMap::new();
    for (name, tensor, kind) in params.entries() {
        match kind {
            EntryKind::Alias(of) => {
                let Some(second) = file.read(name, tensor.kind())? else {
                    continue;
                };
                let first = file.read(of, tensor.kind())?;
                if !first.is_some_and(|first| same_values(&first, &second)) {
                    let reason = format!(
                        "`{name}` differs from `{of}`, but the network shares one tensor for both"
                    );
                    return Err(ModelError::BadFile {
                        path: path.to_path_buf(),
                        reason,
                    });
                }
            }
            _ => {
                if let Some(value) = file.read(name, tensor.kind())? {
                    values.insert(name.to_string(), value);
                }
            }
        }
    }
    no_grad(|| {
        for (name, tensor, _) in params.entries() {
            if let Some(value) = values.get(name) {
                tensor.shallow_clone().f_copy_(value)?;
            }
        }
        Ok(())
    })
}

/// The text stored beside the tensors.
pub fn read_metadata(path: &Path) -> Result<BTreeMap<String, String>, ModelError> {
    Ok(Opened::new(path)?.metadata())
}

/// [`read_metadata`] of a file's content that lies in memory under a name.
pub fn read_metadata_from(
    name: &Path,
    content: &[u8],
) -> Result<BTreeMap<String, String>, ModelError> {
    Ok(Opened::of_content(name, content)?.metadata())
}

/// Bitwise, so that a NaN equals itself.
fn same_values(a: &Tensor, b: &Tensor) -> bool {
    a.equal(b) || Stored::of(a).ok().map(|s| s.bytes) == Stored::of(b).ok().map(|s| s.bytes)
}

trait ReadSeek: Read + Seek {}

impl<T: Read + Seek> ReadSeek for T {}

/// An open file whose header has been found to agree with its length.
struct Opened<'p> {
    path: &'p Path,
    file: Box<dyn ReadSeek + 'p>,
    header: Metadata,
    data_start: u64,
}

impl<'p> Opened<'p> {
    fn new(path: &'p Path) -> Result<Self, ModelError> {
        let io = |source| ModelError::Io {
            path: path.to_path_buf(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        Self::of(path, Box::new(file), length)
    }

    fn of_content(name: &'p Path, content: &'p [u8]) -> Result<Self, ModelError> {
        let length = content.len() as u64;
        Self::of(name, Box::new(Cursor::new(content)), length)
    }

    fn of(
        path: &'p Path,
        mut file: Box<dyn ReadSeek + 'p>,
        length: u64,
    ) -> Result<Self, ModelError> {
        let io = |source| ModelError::Io {
            path: path.to_path_buf(),
            source,
        };
        let bad = |reason: String| ModelError::BadFile {
            path: path.to_path_buf(),
            reason,
        };
        let not_safetensors = "no safetensors file (other formats must be imported first)";
        if length < LENGTH_BYTES {
            return Err(bad(format!("{length} bytes long, {not_safetensors}")));
        }
        let mut first = [0; LENGTH_BYTES as usize];
        file.read_exact(&mut first).map_err(io)?;
        let header_length = u64::from_le_bytes(first);
        if header_length > MAX_HEADER {
            return Err(bad(not_safetensors.to_string()));
        }
        let data_start = LENGTH_BYTES + header_length;
        if data_start > length {
            return Err(bad(format!("cut short: the header needs {data_start} bytes, the file has {length}; copy it again")));
        }
        let mut header = vec![0; header_length as usize];
        file.read_exact(&mut header).map_err(io)?;
        let header: Metadata = serde_json::from_slice(&header)
            .map_err(|e| bad(format!("{not_safetensors}: header: {e}")))?;
        let expected = data_start + header.data_len() as u64;
        if expected != length {
            let what = if expected > length {
                "cut short"
            } else {
                "too long"
            };
            return Err(bad(format!("{what}: the header announces {expected} bytes, the file has {length}; copy it again")));
        }
        Ok(Self {
            path,
            file,
            header,
            data_start,
        })
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        let metadata = self.header.metadata().clone().unwrap_or_default();
        metadata.into_iter().collect()
    }

    /// Compares names, shapes and kinds with the network's.
    fn check_names(&self, params: &ParamStore) -> Result<(), ModelError> {
        let (mut missing, mut misshaped) = (vec![], vec![]);
        for (name, tensor, kind) in params.entries() {
            match self.header.info(name) {
                Some(info) => misshaped.extend(misfit(name, info, tensor)),
                None if matches!(kind, EntryKind::Alias(_)) => {}
                None => missing.push(name.to_string()),
            }
        }
        let unexpected: Vec<String> = self
            .header
            .offset_keys()
            .into_iter()
            .filter(|name| params.get(name).is_none())
            .collect();
        if missing.is_empty() && unexpected.is_empty() && misshaped.is_empty() {
            return Ok(());
        }
        Err(ModelError::Mismatch {
            path: self.path.to_path_buf(),
            missing,
            unexpected,
            misshaped,
        })
    }

    /// The tensor of that name in the wanted kind.
    fn read(&mut self, name: &str, kind: Kind) -> Result<Option<Tensor>, ModelError> {
        let io = |source| ModelError::Io {
            path: self.path.to_path_buf(),
            source,
        };
        let Some(info) = self.header.info(name) else {
            return Ok(None);
        };
        let (start, end) = info.data_offsets;
        let Some(stored) = kind_of(info.dtype) else {
            return Ok(None);
        };
        let mut bytes = vec![0; end - start];
        self.file
            .seek(SeekFrom::Start(self.data_start + start as u64))
            .map_err(io)?;
        self.file.read_exact(&mut bytes).map_err(io)?;
        let tensor = Tensor::f_from_data_size(&bytes, &shape_of(info), stored)?;
        Ok(Some(tensor.f_to_kind(kind)?))
    }
}

/// Element types of the format and of libtorch that are the same. (tch has the same table for its own, older safetensors.)
const KINDS: &[(Dtype, Kind)] = &[
    (Dtype::BOOL, Kind::Bool),
    (Dtype::U8, Kind::Uint8),
    (Dtype::I8, Kind::Int8),
    (Dtype::I16, Kind::Int16),
    (Dtype::I32, Kind::Int),
    (Dtype::I64, Kind::Int64),
    (Dtype::F16, Kind::Half),
    (Dtype::BF16, Kind::BFloat16),
    (Dtype::F32, Kind::Float),
    (Dtype::F64, Kind::Double),
];

fn kind_of(dtype: Dtype) -> Option<Kind> {
    KINDS
        .iter()
        .find(|(d, _)| *d == dtype)
        .map(|(_, kind)| *kind)
}

fn dtype_of(kind: Kind) -> Option<Dtype> {
    KINDS
        .iter()
        .find(|(_, k)| *k == kind)
        .map(|(dtype, _)| *dtype)
}

fn shape_of(info: &TensorInfo) -> Vec<i64> {
    info.shape.iter().map(|side| *side as i64).collect()
}

/// What keeps a stored tensor from becoming the network's, in words.
fn misfit(name: &str, info: &TensorInfo, tensor: &Tensor) -> Option<String> {
    let (found, expected) = (shape_of(info), tensor.size());
    if found != expected {
        return Some(format!(
            "{name}: {found:?} in the file, {expected:?} in the network"
        ));
    }
    let is_float = |kind| {
        matches!(
            kind,
            Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16
        )
    };
    match kind_of(info.dtype) {
        Some(kind) if kind == tensor.kind() || (is_float(kind) && is_float(tensor.kind())) => None,
        _ => Some(format!(
            "{name}: {:?} in the file, {:?} in the network",
            info.dtype,
            tensor.kind()
        )),
    }
}

/// A tensor's bytes on the CPU.
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Stored {
    fn of(tensor: &Tensor) -> Result<Self, ModelError> {
        let tensor = tensor.detach().f_to_device(Device::Cpu)?.f_contiguous()?;
        let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        let shape = tensor.size().iter().map(|side| *side as usize).collect();
        let kind = tensor.kind();
        let dtype = dtype_of(kind)
            .ok_or_else(|| tch::TchError::Kind(format!("{kind:?} has no safetensors type")))?;
        Ok(Self {
            dtype,
            shape,
            bytes,
        })
    }
}
