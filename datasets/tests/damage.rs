//! Every fixture damaged in thousands of ways: what comes of it is read or refused, without a panic and without memory that the file's length
//! does not warrant. `DAMAGE_ROUNDS` (default 60) is the number of ways for each file; the ways are the same at every run.
#![allow(clippy::unwrap_used, clippy::print_stdout, unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rand_pcg::rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;
use vision_mamba_datasets::io::spatial_size;
use vision_mamba_datasets::{read_image, read_labels};

/// Counts what is held and the most that was.
struct Counted;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; the counters own nothing.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(held, Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// Small files may ask for 64 MiB of pixels, which are float32 in the end.
const MOST_MEMORY: usize = 512 << 20;

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, found);
        } else if path.metadata().unwrap().len() < 100_000 {
            found.push(path);
        }
    }
}

/// Files of every format that is read.
fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    files_below(&root.join("tests/fixtures/formats"), &mut found);
    files_below(&root.join("tests/fixtures/dicom"), &mut found);
    files_below(&root.join("tests/fixtures/dicom_findings"), &mut found);
    files_below(&root.join("../tests/golden_pipeline/formats"), &mut found);
    found.retain(|path| {
        let name = path.to_string_lossy();
        ![".json", ".safetensors", ".list", ".txt", ".raw"]
            .iter()
            .any(|ending| name.ends_with(ending))
    });
    found.sort();
    found
}

/// Numbers at which sizes, counts and positions go wrong.
const AWKWARD: &[u64] = &[
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_ffff,
];

fn below(random: &mut Pcg64Mcg, end: usize) -> usize {
    (random.next_u64() % end.max(1) as u64) as usize
}

/// One to four faults of the kinds that disks, networks and enemies make. Most fall on the first bytes, where the headers are.
fn damage(whole: &[u8], random: &mut Pcg64Mcg) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for _ in 0..1 + below(random, 4) {
        let within = match below(random, 3) {
            0 => bytes.len(),
            1 => bytes.len().min(2048),
            _ => bytes.len().min(200),
        };
        let at = below(random, within);
        match below(random, 9) {
            0 => bytes.truncate(at),
            1 | 2 if !bytes.is_empty() => bytes[at] ^= 1 << below(random, 8),
            3 if !bytes.is_empty() => bytes[at] = random.next_u64() as u8,
            4 | 5 => {
                let number = AWKWARD[below(random, AWKWARD.len())];
                let width = 1 << below(random, 4);
                let number = match below(random, 2) {
                    0 => number.to_le_bytes()[..width].to_vec(),
                    _ => number.to_be_bytes()[8 - width..].to_vec(),
                };
                for (place, byte) in bytes[at..].iter_mut().zip(number) {
                    *place = byte;
                }
            }
            6 => {
                // A number of a text header becomes another.
                let digits = bytes[at..]
                    .iter()
                    .position(u8::is_ascii_digit)
                    .map(|i| at + i);
                if let Some(start) = digits {
                    let number = match below(random, 4) {
                        0 => "-1".to_owned(),
                        1 => "nan".to_owned(),
                        _ => AWKWARD[below(random, AWKWARD.len())].to_string(),
                    };
                    bytes.splice(start..start + 1, number.into_bytes());
                }
            }
            7 => {
                let end = (at + below(random, 64)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                let to = below(random, bytes.len());
                bytes.splice(to..to, copy);
            }
            _ => {
                let end = (at + below(random, 16)).min(bytes.len());
                bytes.drain(at..end);
            }
        }
    }
    bytes
}

#[test]
fn no_panic_and_no_memory_beyond_measure() {
    let rounds: u64 = std::env::var("DAMAGE_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(60);
    let files = fixtures();
    assert!(files.len() > 60, "only {} fixtures", files.len());
    // What was read last stays there when the process is killed.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("damage");
    std::fs::create_dir_all(&folder).unwrap();
    // The header of a .mhd fixture has its voxels beside it.
    let voxels = "../tests/golden_pipeline/formats/files/uint8.raw";
    let voxels = Path::new(env!("CARGO_MANIFEST_DIR")).join(voxels);
    std::fs::copy(voxels, folder.join("uint8.raw")).unwrap();
    std::panic::set_hook(Box::new(|_| {}));
    let mut faults = Vec::new();
    let (mut read, mut refused) = (0u64, 0u64);
    for (number, file) in files.iter().enumerate() {
        let whole = std::fs::read(file).unwrap();
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let path = folder.join(&name);
        for round in 0..rounds {
            let mut random = Pcg64Mcg::seed_from_u64(round << 16 | number as u64);
            std::fs::write(&path, damage(&whole, &mut random)).unwrap();
            let before = HELD.load(Relaxed);
            MOST.store(before, Relaxed);
            let result = catch_unwind(AssertUnwindSafe(|| {
                let _ = spatial_size(&path);
                let _ = read_labels(&path);
                read_image(&path).map(|image| image.data.len())
            }));
            let memory = MOST.load(Relaxed).saturating_sub(before);
            match result {
                Err(_) => faults.push(format!("{name}, round {round}: panic")),
                Ok(_) if memory > MOST_MEMORY => {
                    faults.push(format!("{name}, round {round}: {} MiB", memory >> 20));
                }
                Ok(Ok(_)) => read += 1,
                Ok(Err(e)) => {
                    refused += 1;
                    // A message is for a person: short, and of one line.
                    let text = e.to_string();
                    if text.len() > 2000 || text.contains('\n') {
                        faults.push(format!(
                            "{name}, round {round}: message of {} letters: {text:.200}",
                            text.len()
                        ));
                    }
                }
            }
        }
        std::fs::remove_file(&path).unwrap();
    }
    let _ = std::panic::take_hook();
    println!("{read} read, {refused} refused");
    assert!(
        faults.is_empty(),
        "{} faults:\n{}",
        faults.len(),
        faults[..faults.len().min(30)].join("\n")
    );
    assert!(
        refused > read / 10,
        "{read} read, {refused} refused: the damage does nothing"
    );
}
