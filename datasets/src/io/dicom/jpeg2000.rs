//! JPEG 2000 by the crate `hayro-jpeg2000`, which is Rust without unsafe code (the others bind or translate OpenJPEG's C).
//!
//! It asks for as much memory as the headers say, so they are read here first (ITU-T T.800, annex A): size and samples must be the file's,
//! tiles, precincts and code blocks must not be so small that their bookkeeping outgrows the picture.

use hayro_jpeg2000::{DecodeSettings, DecoderContext, Image};

use super::jpegls::Shape;
use crate::io::source::Parsed;

/// Pixels that any frame may have, however short it is, and pixels for each packed byte beyond. Decoding takes about 40 bytes a pixel.
const SMALL: usize = 4 << 20;
const LARGEST_EXPANSION: usize = 64;

/// The least pixels of a tile on average, powers of two of the least code block's area and precinct's side. Encoders make 4096, 12 and 6.
const SMALLEST_TILE: usize = 1024;
const SMALLEST_BLOCK: u8 = 6;
const SMALLEST_PRECINCT: u8 = 4;

/// What a stream's header says of its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Numbers {
    bits: u32,
    signed: bool,
}

/// Whole numbers, those of a pixel side by side.
pub(super) fn decode(packed: &[u8], expected: Shape) -> Parsed<Vec<i32>> {
    let stream = codestream(packed).ok_or("a frame does not begin as JPEG 2000 does")?;
    let pixels = expected.width * expected.height;
    if pixels > SMALL.max(stream.len().saturating_mul(LARGEST_EXPANSION)) {
        return Err("its header declares more pixels than the frame can hold".into());
    }
    let numbers = check(stream, expected)?;
    let settings = DecodeSettings {
        resolve_palette_indices: false,
        // A stream that is cut is refused.
        strict: true,
        target_resolution: None,
    };
    let told = |e: hayro_jpeg2000::DecodeError| e.to_string();
    let image = Image::new(stream, &settings).map_err(told)?;
    let mut context = DecoderContext::default();
    let decoded = image.decode(&mut context).map_err(told)?;
    let planes = decoded.components();
    let agrees = planes.len() == expected.components;
    if !agrees || planes.iter().any(|plane| plane.samples().len() != pixels) {
        return Err("a frame unpacks to another size than its header says".into());
    }
    // The crate shifts numbers with a sign too.
    let shift = match numbers.signed {
        true => 1 << (numbers.bits - 1),
        false => 0,
    };
    let (low, high) = (-shift, (1i32 << numbers.bits) - 1 - shift);
    let mut values = vec![0; pixels * planes.len()];
    for (place, plane) in planes.iter().enumerate() {
        let targets = values.iter_mut().skip(place).step_by(planes.len());
        for (target, sample) in targets.zip(plane.samples()) {
            *target = (sample.round() as i32)
                .saturating_sub(shift)
                .clamp(low, high);
        }
    }
    Ok(values)
}

/// The stream itself, out of the boxes of a JP2 file if it lies in one.
fn codestream(packed: &[u8]) -> Option<&[u8]> {
    const START: [u8; 4] = [0xff, 0x4f, 0xff, 0x51];
    if packed.starts_with(&START) {
        return Some(packed);
    }
    let mut rest = packed.starts_with(b"\0\0\0\x0cjP  ").then_some(packed)?;
    loop {
        let length = u32::from_be_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let kind = rest.get(4..8)?;
        // 0: to the end of the file.
        let end = if length == 0 { rest.len() } else { length };
        if kind == b"jp2c" {
            return rest.get(8..end).filter(|s| s.starts_with(&START));
        }
        rest = rest.get(end.max(8)..)?;
    }
}

fn word(bytes: &[u8], at: usize) -> Parsed<usize> {
    match bytes.get(at..at + 2) {
        Some(&[high, low]) => Ok(u16::from_be_bytes([high, low]).into()),
        _ => Err("a segment of a frame is too short".into()),
    }
}

fn long(bytes: &[u8], at: usize) -> Parsed<usize> {
    Ok(word(bytes, at)? << 16 | word(bytes, at + 2)?)
}

/// Goes through the segments of the headers, the main one's and the tiles'.
fn check(stream: &[u8], expected: Shape) -> Parsed<Numbers> {
    const ENDED: &str = "a frame ends inside its header";
    let mut numbers = None;
    let mut at = 2;
    let mut tile_ends = None;
    loop {
        let marker = word(stream, at)?;
        match marker {
            // The data of a tile; the next begins where this one ends.
            0xff93 => {
                at = tile_ends.take().ok_or("a frame has data before a tile")?;
                match stream.get(at..at + 2) {
                    Some([0xff, 0x90]) => continue,
                    _ => break,
                }
            }
            0xffd9 => break,
            0xff30..=0xff3f => {
                at += 2;
                continue;
            }
            _ => {}
        }
        let length = word(stream, at + 2)?;
        let segment = stream.get(at + 4..at + 2 + length).ok_or(ENDED)?;
        match marker {
            0xff51 => numbers = Some(size(segment, expected)?),
            // Coding of all components: style, progression, layers, transformation; then as for one.
            0xff52 => coding(segment.first().copied(), segment.get(5..))?,
            0xff53 => coding(segment.get(1).copied(), segment.get(2..))?,
            0xff90 => {
                let tile = long(segment, 2)?;
                let end = if tile == 0 {
                    stream.len()
                } else {
                    at.saturating_add(tile)
                };
                tile_ends = Some(end);
            }
            _ => {}
        }
        at += 2 + length;
    }
    numbers.ok_or_else(|| ENDED.into())
}

fn size(segment: &[u8], expected: Shape) -> Parsed<Numbers> {
    let axis = |at: usize| -> Parsed<(usize, usize)> {
        let (end, begin) = (long(segment, 2 + at)?, long(segment, 10 + at)?);
        let (tile, tile_begin) = (long(segment, 18 + at)?, long(segment, 26 + at)?);
        let tiles = end.saturating_sub(tile_begin).div_ceil(tile.max(1));
        Ok((end.saturating_sub(begin), tiles))
    };
    let ((width, columns), (height, rows)) = (axis(0)?, axis(4)?);
    let found = Shape {
        width,
        height,
        components: word(segment, 34)?,
    };
    if found != expected {
        return Err(format!(
            "a frame is of {width} x {height} pixels of {} samples, expected {} x {} of {}",
            found.components, expected.width, expected.height, expected.components
        ));
    }
    if columns.saturating_mul(rows) > 16 + width * height / SMALLEST_TILE {
        return Err(format!("a frame is of {columns} x {rows} tiles"));
    }
    let components: Vec<&[u8]> = segment[36..].chunks_exact(3).collect();
    let &[depth, 1, 1] = *components.first().ok_or("a frame has no component")? else {
        return Err("a frame is of fewer samples than pixels".into());
    };
    let numbers = Numbers {
        bits: u32::from(depth & 0x7f) + 1,
        signed: depth & 0x80 != 0,
    };
    let alike = components.iter().all(|c| *c == [depth, 1, 1]);
    if components.len() != expected.components || !alike || numbers.bits > 16 {
        return Err("the samples of a frame differ, or are of more than 16 bits".into());
    }
    Ok(numbers)
}

/// Levels, width and height of a code block, its style and the transformation, then perhaps precincts.
fn coding(style: Option<u8>, parameters: Option<&[u8]>) -> Parsed<()> {
    let (Some(style), Some([_, width, height, _, _, precincts @ ..])) = (style, parameters) else {
        return Err("a segment of a frame is too short".into());
    };
    if width.saturating_add(*height).saturating_add(4) < SMALLEST_BLOCK {
        return Err("the code blocks of a frame are too small".into());
    }
    let small = |p: &u8| (p & 0xf).min(p >> 4) < SMALLEST_PRECINCT;
    if style & 1 != 0 && precincts.iter().any(small) {
        return Err("the precincts of a frame are too small".into());
    }
    Ok(())
}
