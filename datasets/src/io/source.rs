//! Opening files and reading from them no more than they can hold.
//!
//! Nothing a header says is believed before it is held against the file's length: that bounds the memory any file can ask for.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use flate2::bufread::{MultiGzDecoder, ZlibDecoder};

use crate::{DataError, Result};

/// A result whose error says what is wrong with a file, without its name.
pub(super) type Parsed<T> = std::result::Result<T, String>;

/// Deflate cannot expand by more than about 1032: a header that declares more than this many bytes for each byte in the file lies.
pub(super) const LARGEST_EXPANSION: u64 = 1040;

/// The longest line of a text header; a longer one is no header.
const LONGEST_LINE: u64 = 1 << 16;
/// The longest text header.
const LONGEST_HEADER: usize = 1 << 20;

/// How the bytes after a header are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    Gzip,
    Zlib,
}

/// An open file whose length is known.
pub(super) struct Source {
    pub(super) reader: BufReader<File>,
    /// Length of the file in bytes.
    pub(super) length: u64,
}

impl Source {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let io = |e| DataError::reading(path, e);
        // Before it is opened: a pipe would wait for somebody to write, and a device has no end.
        let about = std::fs::metadata(path).map_err(io)?;
        if about.is_dir() {
            return Err(io(std::io::ErrorKind::IsADirectory.into()));
        }
        if !about.is_file() {
            return Err(io(std::io::Error::other("it is a pipe or a device")));
        }
        let file = File::open(path).map_err(io)?;
        Ok(Self {
            reader: BufReader::new(file),
            length: about.len(),
        })
    }

    /// Whether the file begins with the signature of a gzip stream; the position stays at the beginning.
    pub(super) fn is_gzip(&mut self) -> std::io::Result<bool> {
        Ok(self.reader.fill_buf()?.starts_with(&[0x1f, 0x8b]))
    }

    /// The next line of a text header without its end, or `None` where the file ends. Bytes beyond ASCII become `?`.
    pub(super) fn line(&mut self) -> Parsed<Option<String>> {
        let mut bytes = Vec::new();
        self.reader
            .by_ref()
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut bytes)
            .map_err(|e| e.to_string())?;
        if bytes.is_empty() {
            return Ok(None);
        }
        if bytes.len() as u64 == LONGEST_LINE {
            return Err("a line of its header has no end".into());
        }
        while matches!(bytes.last(), Some(b'\n' | b'\r')) {
            bytes.pop();
        }
        Ok(Some(
            bytes
                .iter()
                .map(|&b| if b.is_ascii() { b as char } else { '?' })
                .collect(),
        ))
    }

    /// The lines of a text header up to the first for which `last` holds, which is among them.
    pub(super) fn lines_until(&mut self, last: impl Fn(&str) -> bool) -> Parsed<Vec<String>> {
        let mut lines = Vec::new();
        let mut length = 0;
        while let Some(line) = self.line()? {
            length += line.len() + 1;
            if length > LONGEST_HEADER {
                return Err("its header has no end".into());
            }
            let found = last(&line);
            lines.push(line);
            if found {
                break;
            }
        }
        Ok(lines)
    }

    /// Moves `offset` bytes ahead, or back from the end when negative.
    pub(super) fn skip(&mut self, offset: i64) -> std::io::Result<()> {
        match offset {
            0 => Ok(()),
            1.. => self.reader.seek_relative(offset),
            _ => self.reader.seek(SeekFrom::End(offset)).map(|_| ()),
        }
    }

    /// Everything that is left of the file.
    pub(super) fn rest(&mut self) -> Parsed<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = self.reader.read_to_end(&mut bytes);
        read.map_err(|e| e.to_string())?;
        Ok(bytes)
    }

    /// The next `count` numbers of a file of text.
    pub(super) fn numbers(mut self, count: u64) -> Parsed<Vec<f32>> {
        // Each takes a digit and, but for the last, something between.
        if count.saturating_mul(2) > self.length.saturating_add(1) {
            return Err("its header declares more voxels than the file can hold".into());
        }
        let bytes = self.rest()?;
        let words = bytes
            .split(|b| b.is_ascii_whitespace() || *b == b',')
            .filter(|word| !word.is_empty());
        let values = words.take(count as usize).map(|word| {
            let number = std::str::from_utf8(word)
                .ok()
                .and_then(|w| w.parse::<f64>().ok());
            number.map(|n| n as f32).ok_or_else(|| {
                let word = String::from_utf8_lossy(&word[..word.len().min(20)]);
                format!("among its numbers is {word:?}")
            })
        });
        let values = values.collect::<Parsed<Vec<f32>>>()?;
        if (values.len() as u64) < count {
            return Err(format!("it ends after {} of {count} numbers", values.len()));
        }
        Ok(values)
    }

    /// Exactly `count` bytes out of what follows, after leaving out the first `skipped` of the unpacked ones. Reading goes on to the end
    /// of a packed stream, which checks its checksum.
    pub(super) fn unpack(
        self,
        packing: Packing,
        skipped: u64,
        count: Option<u64>,
    ) -> Parsed<Vec<u8>> {
        let most = match packing {
            Packing::Plain => self.length,
            _ => self.length.saturating_mul(LARGEST_EXPANSION),
        };
        let count = count
            .filter(|n| n.saturating_add(skipped) <= most)
            .ok_or("its header declares more voxels than the file can hold")?;
        match packing {
            Packing::Plain => exactly(self.reader, skipped, count),
            Packing::Gzip => exactly(MultiGzDecoder::new(self.reader), skipped, count),
            Packing::Zlib => exactly(ZlibDecoder::new(self.reader), skipped, count),
        }
    }
}

/// Exactly `count` bytes of a stream, after the first `skipped`.
pub(super) fn exactly(mut stream: impl Read, skipped: u64, count: u64) -> Parsed<Vec<u8>> {
    let told = |e: std::io::Error| e.to_string();
    let passed = std::io::copy(&mut stream.by_ref().take(skipped), &mut std::io::sink());
    if passed.map_err(told)? < skipped {
        return Err("it ends before its voxels".into());
    }
    let mut bytes = Vec::new();
    stream
        .by_ref()
        .take(count)
        .read_to_end(&mut bytes)
        .map_err(told)?;
    if (bytes.len() as u64) < count {
        return Err(format!(
            "it ends after {} of {count} bytes of voxels",
            bytes.len()
        ));
    }
    // What lies behind the voxels is no business of ours, and is not read through.
    std::io::copy(&mut stream.take(1 << 16), &mut std::io::sink()).map_err(told)?;
    Ok(bytes)
}

/// Number of voxels of a size, if it can be counted.
pub(super) fn count(size: &[usize], width: usize) -> Option<u64> {
    size.iter()
        .try_fold(width as u64, |n, &s| n.checked_mul(s as u64))
}
