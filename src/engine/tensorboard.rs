//! `tensorboard/events.out.tfevents.…`: the log as TensorBoard reads it.
//!
//! A file is a row of records: length (u64, little endian), its checksum, an `Event` message in protocol buffers, its checksum (TensorFlow,
//! `record_writer.h`, `event.proto`, `summary.proto`). Checksums are CRC-32C, rotated and shifted.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use super::run_folder::EpochLog;
use super::task::Scores;

const PREFIX: &str = "events.out.tfevents.";

/// An open file of events.
#[derive(Debug)]
pub struct Events {
    file: File,
    path: PathBuf,
    parts: Vec<String>,
}

impl Events {
    /// A new file with what the log holds already. Files of earlier sessions go, so that no step is shown twice.
    pub fn begin<S: Scores>(
        folder: &Path,
        parts: Vec<String>,
        log: &[EpochLog<S>],
    ) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let now = now();
        let path = folder.join(format!(
            "{PREFIX}{:010}.{}.vision-mamba",
            now as u64,
            std::process::id()
        ));
        let entries =
            fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries.flatten().map(|e| e.path()) {
            let ours = entry
                .file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with(PREFIX));
            if ours && entry != path {
                fs::remove_file(&entry)
                    .with_context(|| format!("cannot remove {}", entry.display()))?;
            }
        }
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let mut events = Self { file, path, parts };
        events.write(&event(now, 0, &field(3, b"brain.Event:2")))?;
        // the log has durations, no times of day
        let mut later: f64 = log.iter().map(|row| row.seconds).sum();
        for row in log {
            later -= row.seconds;
            events.append(row, now - later)?;
        }
        Ok(events)
    }

    /// Adds an epoch that ends now.
    pub fn add<S: Scores>(&mut self, row: &EpochLog<S>) -> Result<()> {
        self.append(row, now())
    }

    fn append<S: Scores>(&mut self, row: &EpochLog<S>, time: f64) -> Result<()> {
        let mut scalars = vec![
            ("loss/training".to_owned(), row.train_loss),
            ("loss/validation".to_owned(), row.val_loss),
            ("learning_rate".to_owned(), Some(row.lr)),
            ("seconds_per_epoch".to_owned(), Some(row.seconds)),
            ("patches_per_second".to_owned(), Some(row.images_per_second)),
        ];
        scalars.extend(row.scores.scalars(&self.parts));
        let mut summary = Vec::new();
        for (tag, value) in scalars {
            if let Some(value) = value {
                let mut content = field(1, tag.as_bytes());
                content.push(2 << 3 | FIXED32);
                content.extend((value as f32).to_le_bytes());
                summary.extend(field(1, &content));
            }
        }
        self.write(&event(time, row.epoch, &field(5, &summary)))
    }

    /// One record, in one piece.
    fn write(&mut self, message: &[u8]) -> Result<()> {
        let length = (message.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(checksum(&length).to_le_bytes());
        record.extend(message);
        record.extend(checksum(message).to_le_bytes());
        self.file
            .write_all(&record)
            .and_then(|()| self.file.flush())
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |t| t.as_secs_f64())
}

/// Wire types of protocol buffers.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

fn event(time: f64, step: u64, what: &[u8]) -> Vec<u8> {
    let mut message = vec![1 << 3 | FIXED64];
    message.extend(time.to_le_bytes());
    message.push(2 << 3 | VARINT);
    varint(step, &mut message);
    message.extend(what);
    message
}

/// A field that holds bytes, a text or a message.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | BYTES];
    varint(content.len() as u64, &mut bytes);
    bytes.extend(content);
    bytes
}

/// Seven bits a byte, the lowest first; the top bit says that more follow.
fn varint(mut value: u64, to: &mut Vec<u8>) {
    while value > 0x7f {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::engine::segmentation::DiceScores;

    fn row(epoch: u64) -> EpochLog<DiceScores> {
        EpochLog {
            epoch,
            train_loss: Some(0.5),
            val_loss: None,
            scores: DiceScores {
                dice: Some(0.25),
                dice_ema: Some(0.125),
                dice_per_class: vec![Some(0.75), None],
            },
            lr: 0.01,
            skipped_steps: 0,
            seconds: 10.0,
            images_per_second: 3.0,
        }
    }

    fn records(path: &Path) -> Vec<Vec<u8>> {
        let mut rest = &fs::read(path).unwrap()[..];
        let mut found = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], checksum(&rest[..8]).to_le_bytes());
            let message = &rest[12..12 + length];
            assert_eq!(
                rest[12 + length..16 + length],
                checksum(message).to_le_bytes()
            );
            found.push(message.to_vec());
            rest = &rest[16 + length..];
        }
        found
    }

    #[test]
    fn checksums_are_tensorflows() {
        // the standard's check value, and the first bytes of every file that TensorFlow writes: the length 24
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(checksum(&24u64.to_le_bytes()), 0x224b_7fa3);
    }

    #[test]
    fn a_resumed_run_writes_its_log_anew_and_no_step_twice() {
        let dir = tempfile::tempdir().unwrap();
        let classes = vec!["liver".to_owned(), "tumour".to_owned()];
        let mut events = Events::begin::<DiceScores>(dir.path(), classes.clone(), &[]).unwrap();
        for epoch in 0..3 {
            events.add(&row(epoch)).unwrap();
        }
        let first = events.path.clone();
        assert_eq!(records(&first).len(), 4);
        drop(events);
        // stopped in epoch 2, whose line is gone
        fs::rename(
            &first,
            dir.path()
                .join("events.out.tfevents.0000000001.1.vision-mamba"),
        )
        .unwrap();
        let mut events = Events::begin(dir.path(), classes, &[row(0), row(1)]).unwrap();
        events.add(&row(2)).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let found = records(&events.path);
        assert_eq!(found.len(), 4);
        let steps: Vec<u8> = found.iter().map(|m| m[10]).collect();
        assert_eq!(steps, [0, 0, 1, 2]);
        let text = String::from_utf8_lossy(&found[1]).into_owned();
        for tag in [
            "loss/training",
            "dice/mean",
            "dice/liver",
            "learning_rate",
            "patches_per_second",
        ] {
            assert!(text.contains(tag), "{tag}");
        }
        assert!(!text.contains("dice/tumour") && !text.contains("loss/validation"));
        let times: Vec<f64> = found
            .iter()
            .map(|m| f64::from_le_bytes(m[1..9].try_into().unwrap()))
            .collect();
        assert!((times[2] - times[1] - 10.0).abs() < 1e-3);
    }
}
