//! What the targets do: bytes in a file of a format, or in several that belong together, are read as an image and as a label map.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use vision_mamba_datasets::{io::spatial_size, read_image, read_labels};

/// Reads the bytes in every way a file of this ending is read. Any result will do; a panic, a hang or memory beyond libFuzzer's limit is
/// the finding.
pub fn read(bytes: &[u8], ending: &str) {
    let path = folder().join(format!("file{ending}"));
    std::fs::write(&path, bytes).expect("the file");
    try_all(&path);
}

/// A header with its voxels in other files: the first part is the header, of the kind that its beginning says, and those after it are
/// `voxels0.raw`, `voxels1.raw` and so on, of which the first is also the image of a NIfTI pair.
pub fn read_detached(bytes: &[u8]) {
    let parts = parts(bytes);
    let header = parts[0];
    let ending = match header {
        [b'N', b'R', b'R', b'D', ..] => ".nhdr",
        _ if header.contains(&b'=') && !header.contains(&0) => ".mhd",
        _ => ".hdr",
    };
    let path = folder().join(format!("file{ending}"));
    std::fs::write(&path, header).expect("the header");
    for number in 0..MOST_PARTS {
        let voxels = folder().join(format!("voxels{number}.raw"));
        match parts.get(number + 1) {
            Some(part) => std::fs::write(voxels, part).expect("the voxels"),
            // those of an earlier run
            None => drop(std::fs::remove_file(voxels)),
        }
    }
    std::fs::write(folder().join("file.img"), parts.get(1).unwrap_or(&&[][..])).expect("the image");
    try_all(&path);
}

/// A folder whose files are the parts.
pub fn read_series(bytes: &[u8]) {
    let series = folder().join("series");
    let _ = std::fs::remove_dir_all(&series);
    std::fs::create_dir(&series).expect("a folder for the series");
    for (number, part) in parts(bytes).iter().enumerate() {
        std::fs::write(series.join(format!("{number}.dcm")), part).expect("the slice");
    }
    try_all(&series);
}

const MOST_PARTS: usize = 8;

/// The bytes in pieces: each but the last has its length before it, two bytes of it, the low one first.
fn parts(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let (true, &[low, high, ref rest @ ..]) = (parts.len() + 1 < MOST_PARTS, bytes) {
        let length = usize::from(u16::from_le_bytes([low, high]));
        if length >= rest.len() {
            break;
        }
        let (part, after) = rest.split_at(length);
        parts.push(part);
        bytes = after;
    }
    parts.push(bytes);
    parts
}

fn try_all(path: &Path) {
    let _ = spatial_size(path);
    let _ = read_labels(path);
    let _ = read_image(path);
}

fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        // In memory where the system has such a place.
        let root = match Path::new("/dev/shm").is_dir() {
            true => PathBuf::from("/dev/shm"),
            false => std::env::temp_dir(),
        };
        let folder = root.join(format!("vision-mamba-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for the file");
        folder
    })
}
