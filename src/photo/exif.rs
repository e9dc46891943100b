//! The few fields of an EXIF block that stop being true when a picture is turned and changed.
//!
//! The block is a TIFF header with directories of 12-byte entries (EXIF 2.32, section 4.6). Everything is read with bounds checked; a block
//! that makes no sense is given back as it is.

use image::metadata::Orientation;

const ORIENTATION: u16 = 0x0112;
const EXIF_DIRECTORY: u16 = 0x8769;
const PIXEL_X: u16 = 0xa002;
const PIXEL_Y: u16 = 0xa003;
const SHORT: u16 = 3;
const LONG: u16 = 4;

/// A block and its byte order.
struct Block<'a> {
    bytes: &'a mut [u8],
    little: bool,
}

impl Block<'_> {
    fn u16(&self, at: usize) -> Option<u16> {
        let b = self.bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(match self.little {
            true => u16::from_le_bytes(b),
            false => u16::from_be_bytes(b),
        })
    }

    fn u32(&self, at: usize) -> Option<u32> {
        let b = self.bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(match self.little {
            true => u32::from_le_bytes(b),
            false => u32::from_be_bytes(b),
        })
    }

    fn put(&mut self, at: usize, value: u32, kind: u16) {
        let (two, four) = match self.little {
            true => ((value as u16).to_le_bytes(), value.to_le_bytes()),
            false => ((value as u16).to_be_bytes(), value.to_be_bytes()),
        };
        let new: &[u8] = if kind == SHORT { &two } else { &four };
        if let Some(place) = self.bytes.get_mut(at..at + new.len()) {
            place.copy_from_slice(new);
        }
    }

    /// Places of the entries of the directory at `start`, and where the offset of the next directory stands.
    fn entries(&self, start: usize) -> Option<(Vec<usize>, usize)> {
        let count = usize::from(self.u16(start)?);
        let next = start + 2 + 12 * count;
        self.u32(next)?;
        Some(((0..count).map(|i| start + 2 + 12 * i).collect(), next))
    }
}

/// Makes the block true for upright pixels of this size: orientation 1, the new width and height, and no thumbnail, which would show the
/// picture as it was.
pub fn upright(bytes: &mut [u8], width: u32, height: u32) {
    let _ = Orientation::remove_from_exif_chunk(bytes);
    let little = match bytes.get(..4) {
        Some([0x49, 0x49, 42, 0]) => true,
        Some([0x4d, 0x4d, 0, 42]) => false,
        _ => return,
    };
    let mut block = Block { bytes, little };
    let Some((entries, next)) = block
        .u32(4)
        .and_then(|start| block.entries(usize::try_from(start).ok()?))
    else {
        return;
    };
    // The thumbnail lives in the second directory.
    block.put(next, 0, LONG);
    for at in entries {
        if block.u16(at) == Some(ORIENTATION) && block.u16(at + 2) == Some(SHORT) {
            block.put(at + 8, 1, SHORT);
        }
        if block.u16(at) != Some(EXIF_DIRECTORY) {
            continue;
        }
        let inner = block
            .u32(at + 8)
            .and_then(|start| block.entries(start as usize));
        for at in inner.map(|(entries, _)| entries).unwrap_or_default() {
            let side = match block.u16(at) {
                Some(PIXEL_X) => width,
                Some(PIXEL_Y) => height,
                _ => continue,
            };
            if let Some(kind @ (SHORT | LONG)) = block.u16(at + 2) {
                block.put(at + 8, side, kind);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Orientation 6, an EXIF directory with sides 40 x 30, and a second directory.
    fn block() -> Vec<u8> {
        let mut b = b"II*\0\x08\0\0\0".to_vec();
        let entry = |b: &mut Vec<u8>, tag: u16, kind: u16, value: u32| {
            b.extend(tag.to_le_bytes());
            b.extend(kind.to_le_bytes());
            b.extend(1u32.to_le_bytes());
            b.extend(value.to_le_bytes());
        };
        b.extend(2u16.to_le_bytes());
        entry(&mut b, ORIENTATION, SHORT, 6);
        entry(&mut b, EXIF_DIRECTORY, LONG, 38);
        b.extend(68u32.to_le_bytes());
        b.extend(2u16.to_le_bytes());
        entry(&mut b, PIXEL_X, SHORT, 40);
        entry(&mut b, PIXEL_Y, LONG, 30);
        b.extend(0u32.to_le_bytes());
        b.extend(0u16.to_le_bytes());
        b.extend(0u32.to_le_bytes());
        b
    }

    #[test]
    fn a_turned_picture_gets_a_true_block() {
        let mut bytes = block();
        upright(&mut bytes, 30, 40);
        assert_eq!(bytes[18], 1, "orientation");
        assert_eq!(bytes[34..38], [0; 4], "the thumbnail is still linked");
        assert_eq!((bytes[48], bytes[60]), (30, 40));
    }

    #[test]
    fn damaged_blocks_do_no_harm() {
        let whole = block();
        for end in 0..whole.len() {
            let mut cut = whole[..end].to_vec();
            upright(&mut cut, 30, 40);
        }
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = whole.clone();
                changed[at] = value;
                upright(&mut changed, 30, 40);
                assert_eq!(changed.len(), whole.len());
            }
        }
    }
}
