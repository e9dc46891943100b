//! The stored numbers of a DICOM frame, out of plain, run-length, JPEG, JPEG-LS or JPEG 2000 pixels.

use super::jpegls::Shape;
use super::{jpeg2000, jpegls};
use crate::io::element::{decode, Element};
use crate::io::source::Parsed;

/// What the elements of group 0028 say about the pixels.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Layout {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) samples: usize,
    /// The samples of a pixel lie in planes of their own.
    pub(super) planar: bool,
    /// 8, 16 or 32.
    pub(super) bits_allocated: u16,
    pub(super) bits_stored: u16,
    pub(super) high_bit: u16,
    pub(super) signed: bool,
}

impl Layout {
    /// Bytes of a frame.
    pub(super) fn frame(&self) -> Option<usize> {
        let pixels = self
            .rows
            .checked_mul(self.columns)?
            .checked_mul(self.samples)?;
        pixels.checked_mul(usize::from(self.bits_allocated / 8))
    }

    /// Numbers (C, H, W) of the bytes of a frame; bits beyond those stored, such as overlays, are left out.
    pub(super) fn numbers(&self, bytes: &[u8], big_endian: bool, planar: bool) -> Vec<f32> {
        let element = match (self.bits_allocated, self.signed) {
            (8, false) => Element::U8,
            (8, true) => Element::I8,
            (16, false) => Element::U16,
            (16, true) => Element::I16,
            (_, false) => Element::U32,
            (_, true) => Element::I32,
        };
        let unused = self.bits_allocated.saturating_sub(self.bits_stored);
        let top = self
            .bits_allocated
            .saturating_sub(1)
            .saturating_sub(self.high_bit);
        let values = match (unused, self.bits_allocated) {
            (0, _) => decode(bytes, element, big_endian, None),
            (_, 8) => bytes
                .iter()
                .map(|&b| self.stored(b.into(), top, unused))
                .collect(),
            (_, 16) => {
                let word = |b: &[u8]| match big_endian {
                    true => u16::from_be_bytes([b[0], b[1]]),
                    false => u16::from_le_bytes([b[0], b[1]]),
                };
                bytes
                    .chunks_exact(2)
                    .map(|b| self.stored(word(b).into(), top, unused))
                    .collect()
            }
            _ => {
                let word = |b: &[u8]| match big_endian {
                    true => u32::from_be_bytes([b[0], b[1], b[2], b[3]]),
                    false => u32::from_le_bytes([b[0], b[1], b[2], b[3]]),
                };
                bytes
                    .chunks_exact(4)
                    .map(|b| self.stored(word(b), top, unused))
                    .collect()
            }
        };
        if planar || self.samples == 1 {
            return values;
        }
        let channel = |c: usize| values.iter().skip(c).step_by(self.samples).copied();
        (0..self.samples).flat_map(channel).collect()
    }

    /// The stored bits of a word, their sign extended.
    fn stored(&self, word: u32, top: u16, unused: u16) -> f32 {
        // Shifted to the top of 32 bits and back.
        let left = u32::from(32 - self.bits_allocated + top);
        let right = u32::from(32 - self.bits_allocated + unused);
        let raised = word << left.min(31);
        match self.signed {
            true => ((raised as i32) >> right.min(31)) as f32,
            false => (raised >> right.min(31)) as f32,
        }
    }

    /// The bytes of a frame packed by run lengths (PS3.5, annex G), planar and in little-endian order.
    pub(super) fn unpack_runs(&self, packed: &[u8]) -> Parsed<Vec<u8>> {
        let width = usize::from(self.bits_allocated / 8);
        let pixels = self.rows * self.columns;
        let frame = self.frame().ok_or("its frame is too large")?;
        let word = |i: usize| {
            let bytes = packed.get(4 * i..4 * i + 4)?;
            Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
        };
        let segments = word(0).ok_or("a frame ends inside its table of segments")?;
        if segments != width * self.samples {
            return Err(format!(
                "a frame has {segments} segments, expected {}",
                width * self.samples
            ));
        }
        // A run of two bytes makes at most 128.
        if frame > packed.len().saturating_mul(64) {
            return Err("its header declares more pixels than the frame can hold".into());
        }
        let mut bytes = vec![0; frame];
        for segment in 0..segments {
            let start = word(1 + segment).filter(|s| *s <= packed.len());
            let mut source = packed[start.ok_or("a segment begins outside its frame")?..].iter();
            // Segments go from the highest byte of a sample to the lowest.
            let (sample, byte) = (segment / width, width - 1 - segment % width);
            let mut place = 0;
            while place < pixels {
                let control = *source.next().ok_or("a segment ends before its pixels")? as i8;
                let (count, run) = match control {
                    -128 => continue,
                    0.. => (control as usize + 1, None),
                    _ => (usize::from(control.unsigned_abs()) + 1, source.next()),
                };
                for _ in 0..count {
                    let value = if control < 0 { run } else { source.next() };
                    let value = *value.ok_or("a segment ends before its pixels")?;
                    if place < pixels {
                        bytes[(sample * pixels + place) * width + byte] = value;
                        place += 1;
                    }
                }
            }
        }
        Ok(bytes)
    }

    fn shape(&self) -> Shape {
        Shape {
            width: self.columns,
            height: self.rows,
            components: self.samples,
        }
    }

    /// Numbers of a pixel side by side as bytes in little-endian order.
    fn words(&self, numbers: impl Iterator<Item = i32>) -> Parsed<Vec<u8>> {
        match self.bits_allocated {
            8 => Ok(numbers.map(|v| v as u8).collect()),
            16 => Ok(numbers.flat_map(|v| (v as u16).to_le_bytes()).collect()),
            bits => Err(format!(
                "a packed frame is of {bits} bits, expected 8 or 16"
            )),
        }
    }

    /// The bytes of a frame packed as JPEG-LS.
    pub(super) fn unpack_jpegls(&self, packed: &[u8]) -> Parsed<Vec<u8>> {
        let samples = jpegls::decode(packed, self.shape())?;
        self.words(samples.into_iter().map(i32::from))
    }

    /// The bytes of a frame packed as JPEG 2000.
    pub(super) fn unpack_jpeg2000(&self, packed: &[u8]) -> Parsed<Vec<u8>> {
        let samples = jpeg2000::decode(packed, self.shape())?;
        self.words(samples.into_iter())
    }

    /// The bytes of a frame packed as JPEG, in the machine's order and with the samples of a pixel side by side. `rgb`: the file says that
    /// the samples are no luma and chroma, which a marker of JFIF or Adobe in the frame overrides.
    pub(super) fn unpack_jpeg(&self, packed: &[u8], rgb: bool) -> Parsed<Vec<u8>> {
        let frame = self.frame().ok_or("its frame is too large")?;
        let mut decoder = jpeg_decoder::Decoder::new(packed);
        decoder.set_max_decoding_buffer_size(frame);
        decoder.read_info().map_err(|e| e.to_string())?;
        let info = decoder.info().ok_or("a frame has no JPEG header")?;
        if (usize::from(info.width), usize::from(info.height)) != (self.columns, self.rows) {
            return Err(format!(
                "a frame is of {} x {} pixels, expected {} x {}",
                info.width, info.height, self.columns, self.rows
            ));
        }
        let told = |marker: &[u8]| packed.windows(marker.len()).take(512).any(|w| w == marker);
        if rgb && self.samples == 3 && !told(b"JFIF\0") && !told(b"Adobe") {
            decoder.set_color_transform(jpeg_decoder::ColorTransform::RGB);
        }
        let bytes = decoder.decode().map_err(|e| e.to_string())?;
        if bytes.len() == frame {
            return Ok(bytes);
        }
        // Up to eight bits packed although sixteen are named.
        if 2 * bytes.len() == frame && self.bits_allocated == 16 {
            return Ok(bytes
                .iter()
                .flat_map(|&b| u16::from(b).to_ne_bytes())
                .collect());
        }
        Err(format!(
            "a frame unpacks to {} bytes, expected {frame}",
            bytes.len()
        ))
    }
}
