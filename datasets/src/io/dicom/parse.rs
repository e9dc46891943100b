//! The data elements of a DICOM file, as places in its bytes.
//!
//! Source: PS3.5 (encoding) and PS3.10 (file format) of the standard. The general crates ask for as much memory as a length field says and
//! recurse as deep as sequences nest; here every length is held against the file before it counts, and nothing is copied.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::io::source::Parsed;

/// Sequences nest no deeper than this in images.
const DEEPEST: usize = 16;

const ITEM: u32 = 0xfffe_e000;
const ITEM_END: u32 = 0xfffe_e00d;
const SEQUENCE_END: u32 = 0xfffe_e0dd;
const PIXEL_DATA: u32 = 0x7fe0_0010;
const UNDEFINED: u32 = u32::MAX;

/// How elements are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Encoding {
    /// Each element names its value representation.
    pub(super) explicit: bool,
    pub(super) big_endian: bool,
}

/// What an element holds.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Bytes(Range<usize>),
    /// The contents of the items.
    Sequence(Vec<Elements>),
    /// Pieces of packed pixels; the first is the table of offsets.
    Fragments(Vec<Range<usize>>),
}

/// Elements by group and number.
pub(super) type Elements = BTreeMap<u32, Value>;

/// Goes through the bytes.
pub(super) struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
    encoding: Encoding,
}

/// The header of an element.
struct Head {
    tag: u32,
    is_sequence: bool,
    is_unknown: bool,
    length: u32,
}

impl<'a> Parser<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize, encoding: Encoding) -> Self {
        Self {
            bytes,
            at,
            encoding,
        }
    }

    fn take<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let found = self
            .bytes
            .get(self.at..self.at + N)
            .and_then(|b| b.try_into().ok());
        self.at += N;
        found.ok_or_else(|| "it ends inside an element".into())
    }

    fn u16(&mut self) -> Parsed<u16> {
        let bytes = self.take()?;
        Ok(match self.encoding.big_endian {
            true => u16::from_be_bytes(bytes),
            false => u16::from_le_bytes(bytes),
        })
    }

    fn u32(&mut self) -> Parsed<u32> {
        let bytes = self.take()?;
        Ok(match self.encoding.big_endian {
            true => u32::from_be_bytes(bytes),
            false => u32::from_le_bytes(bytes),
        })
    }

    fn head(&mut self) -> Parsed<Head> {
        let (group, number) = (self.u16()?, self.u16()?);
        let tag = u32::from(group) << 16 | u32::from(number);
        if matches!(tag, ITEM | ITEM_END | SEQUENCE_END) || !self.encoding.explicit {
            return Ok(Head {
                tag,
                is_sequence: false,
                is_unknown: !self.encoding.explicit,
                length: self.u32()?,
            });
        }
        let kind: [u8; 2] = self.take()?;
        if !kind.iter().all(u8::is_ascii_uppercase) {
            return Err(format!(
                "element {group:04x},{number:04x} has no value representation"
            ));
        }
        let long = matches!(
            &kind,
            b"OB"
                | b"OW"
                | b"OF"
                | b"OD"
                | b"OL"
                | b"OV"
                | b"SQ"
                | b"UC"
                | b"UN"
                | b"UR"
                | b"UT"
                | b"SV"
                | b"UV"
        );
        let length = match long {
            true => {
                self.u16()?;
                self.u32()?
            }
            false => self.u16()?.into(),
        };
        Ok(Head {
            tag,
            is_sequence: &kind == b"SQ",
            is_unknown: &kind == b"UN",
            length,
        })
    }

    /// Moves over a value and says where it was.
    fn value(&mut self, length: u32) -> Parsed<Range<usize>> {
        let start = self.at;
        let end = start
            .checked_add(length as usize)
            .filter(|end| *end <= self.bytes.len());
        self.at = end.ok_or("it ends inside an element")?;
        Ok(start..self.at)
    }

    /// The group 0002 at the beginning, which is always explicit and little-endian.
    pub(super) fn meta(&mut self) -> Parsed<Elements> {
        let mut elements = Elements::new();
        while self.bytes.get(self.at..self.at + 2) == Some(&[2, 0]) {
            let head = self.head()?;
            elements.insert(head.tag, Value::Bytes(self.value(head.length)?));
        }
        Ok(elements)
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// All elements to the end of the bytes.
    pub(super) fn all(&mut self) -> Parsed<Elements> {
        self.elements(self.bytes.len(), false, 0)
    }

    /// Elements up to a position or, in an item of undefined length, its end.
    fn elements(&mut self, end: usize, until_mark: bool, depth: usize) -> Parsed<Elements> {
        let mut elements = Elements::new();
        while self.at < end {
            let head = self.head()?;
            if head.tag == ITEM_END && until_mark {
                return Ok(elements);
            }
            // Padding of zeros behind the last element.
            if head.tag == 0 && depth == 0 {
                break;
            }
            let value = match head {
                Head {
                    tag: PIXEL_DATA,
                    length: UNDEFINED,
                    ..
                } if depth == 0 => self.fragments()?,
                Head {
                    is_sequence: false,
                    length,
                    ..
                } if length != UNDEFINED => Value::Bytes(self.value(length)?),
                // Of undefined length and unknown kind: a sequence, and without value representations inside.
                Head {
                    is_sequence: false,
                    is_unknown: true,
                    ..
                } => {
                    let outer = self.encoding;
                    self.encoding = Encoding {
                        explicit: false,
                        ..outer
                    };
                    let items = self.items(UNDEFINED, depth + 1);
                    self.encoding = outer;
                    items?
                }
                Head { length, .. } => self.items(length, depth + 1)?,
            };
            elements.insert(head.tag, value);
        }
        match until_mark {
            true => Err("it ends inside an item".into()),
            false => Ok(elements),
        }
    }

    fn items(&mut self, length: u32, depth: usize) -> Parsed<Value> {
        if depth > DEEPEST {
            return Err(format!("its sequences nest deeper than {DEEPEST}"));
        }
        let end = match length {
            UNDEFINED => self.bytes.len(),
            length => {
                let end = self.at.checked_add(length as usize);
                end.filter(|e| *e <= self.bytes.len())
                    .ok_or("it ends inside a sequence")?
            }
        };
        let mut items = Vec::new();
        while self.at < end {
            let head = self.head()?;
            match head.tag {
                SEQUENCE_END => return Ok(Value::Sequence(items)),
                ITEM if head.length == UNDEFINED => items.push(self.elements(end, true, depth)?),
                ITEM => {
                    let item = self
                        .at
                        .checked_add(head.length as usize)
                        .filter(|e| *e <= end);
                    items.push(self.elements(
                        item.ok_or("it ends inside an item")?,
                        false,
                        depth,
                    )?);
                }
                tag => {
                    return Err(format!(
                        "a sequence holds the element {tag:08x}, expected an item"
                    ))
                }
            }
        }
        match length {
            UNDEFINED => Err("it ends inside a sequence".into()),
            _ => Ok(Value::Sequence(items)),
        }
    }

    fn fragments(&mut self) -> Parsed<Value> {
        let mut fragments = Vec::new();
        loop {
            let head = self.head()?;
            match head.tag {
                SEQUENCE_END => return Ok(Value::Fragments(fragments)),
                ITEM => fragments.push(self.value(head.length)?),
                tag => {
                    return Err(format!(
                        "the pixels hold the element {tag:08x}, expected an item"
                    ))
                }
            }
        }
    }
}
