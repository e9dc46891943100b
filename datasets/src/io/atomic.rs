//! Files that are written whole or not at all.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use tempfile::NamedTempFile;

use crate::{DataError, Result};

/// What the names of temporaries begin with.
const PREFIX: &str = ".writing-";

/// Writes a file through a temporary one in the same folder, which takes the file's name once it is whole and on the disk. When anything
/// fails, an earlier file of that name stays as it was and the temporary is removed.
pub fn atomically(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let attempt = || -> std::io::Result<()> {
        let mut file = temporary(folder)?;
        {
            let mut buffered = std::io::BufWriter::new(file.as_file_mut());
            write(&mut buffered)?;
            buffered.flush()?;
        }
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        Ok(())
    };
    attempt().map_err(|e| DataError::writing(path, e))
}

fn temporary(folder: &Path) -> std::io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX);
    #[cfg(unix)]
    {
        // The usual permissions (less the umask) in place of a temporary's private ones.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let file = builder
        .tempfile_in(folder)
        .map_err(without_temporary_name)?;
    // For as long as it is open: what is not locked belongs to nobody any more. Where there are no locks, nothing is swept either.
    let _ = file.as_file().lock();
    Ok(file)
}

/// Writes a byte into a folder and takes it away again. The error says why none can be written.
pub fn try_to_write(folder: &Path) -> std::io::Result<()> {
    let mut file = temporary(folder)?;
    file.as_file_mut().write_all(b"x")?;
    file.as_file().sync_all()
}

/// Removes what programs that were killed have left half-written in a folder. The files of those that still write are locked and stay.
pub fn sweep(folder: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if !is_file || !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let path = entry.path();
        // Somebody else may have been quicker.
        let Ok(file) = File::open(&path) else {
            continue;
        };
        if file.try_lock().is_ok() && path.exists() {
            std::fs::remove_file(&path).map_err(|e| DataError::writing(&path, e))?;
        }
    }
    Ok(())
}

/// `tempfile` adds the name of its file to an error, which says nothing to the reader.
fn without_temporary_name(error: std::io::Error) -> std::io::Error {
    let text = error.to_string();
    let (message, _) = text.split_once(" at path ").unwrap_or((&text, ""));
    std::io::Error::new(error.kind(), message)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_writes_is_swept_away() {
        let dir = tempfile::tempdir().unwrap();
        let names = || {
            let entries = std::fs::read_dir(dir.path()).unwrap();
            let mut names: Vec<String> = entries
                .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
                .collect();
            names.sort();
            names
        };
        std::fs::write(dir.path().join(".writing-dead"), b"half").unwrap();
        std::fs::write(dir.path().join("kept"), b"whole").unwrap();
        atomically(&dir.path().join("new"), |out| {
            out.write_all(b"half")?;
            sweep(dir.path()).unwrap();
            let left = names();
            assert_eq!(left.len(), 2, "{left:?}");
            assert!(left[0].starts_with(PREFIX) && left[0] != ".writing-dead");
            out.write_all(b" and half")
        })
        .unwrap();
        assert_eq!(names(), ["kept", "new"]);
        assert_eq!(
            std::fs::read(dir.path().join("new")).unwrap(),
            b"half and half"
        );
        sweep(&dir.path().join("nowhere")).unwrap();
    }
}
