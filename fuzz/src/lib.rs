//! What the targets do: bytes in a file of a format are read as an image and as a label map.

use std::path::PathBuf;
use std::sync::OnceLock;

use vision_mamba_datasets::{io::spatial_size, read_image, read_labels};

/// Reads the bytes in every way a file of this ending is read. Any result will do; a panic, a hang or memory beyond libFuzzer's limit is
/// the finding.
pub fn read(bytes: &[u8], ending: &str) {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        // In memory where the system has such a place.
        let root = match std::path::Path::new("/dev/shm").is_dir() {
            true => PathBuf::from("/dev/shm"),
            false => std::env::temp_dir(),
        };
        let folder = root.join(format!("vision-mamba-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for the file");
        folder
    });
    let path = folder.join(format!("file{ending}"));
    std::fs::write(&path, bytes).expect("the file");
    let _ = spatial_size(&path);
    let _ = read_labels(&path);
    let _ = read_image(&path);
}
