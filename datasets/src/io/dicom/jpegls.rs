//! JPEG-LS, lossless and near-lossless.
//!
//! Source: ITU-T T.87 (ISO/IEC 14495-1), whose names of variables are kept. Written here because the crates either bind a C++ library or
//! know one component only and overflow on damaged streams. Restart intervals, point transforms and colour transforms are refused: no DICOM
//! encoder makes them.

use crate::io::source::Parsed;

/// What a stream must be for its pixels to be unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) components: usize,
}

/// Samples of 2 to 16 bits, those of a pixel side by side.
pub(super) fn decode(bytes: &[u8], expected: Shape) -> Parsed<Vec<u16>> {
    let mut segments = Segments { bytes, at: 0 };
    if segments.marker()? != 0xd8 {
        return Err("a frame does not begin as JPEG-LS does".into());
    }
    let mut frame: Option<Frame> = None;
    let mut presets = Presets::default();
    let mut samples = Vec::new();
    let mut done = 0;
    while done < expected.components {
        let marker = segments.marker()?;
        if matches!(marker, 0xd8 | 0xd9) {
            return Err("a frame ends before its picture does".into());
        }
        let segment = segments.segment()?;
        match marker {
            0xf7 => {
                let found = Frame::parse(segment)?;
                if found.shape != expected {
                    return Err(format!(
                        "a frame is of {} x {} pixels of {} samples, expected {} x {} of {}",
                        found.shape.width,
                        found.shape.height,
                        found.shape.components,
                        expected.width,
                        expected.height,
                        expected.components
                    ));
                }
                samples = vec![0; expected.width * expected.height * expected.components];
                frame = Some(found);
            }
            0xf8 => presets.update(segment)?,
            0xda => {
                let frame = frame.as_ref().ok_or("a frame has a scan before its size")?;
                let scan = Scan::parse(segment)?;
                if scan.components.len() > expected.components - done {
                    return Err("a frame has more scans than samples".into());
                }
                let places = scan.components.iter().map(|id| frame.place(*id));
                let places = places.collect::<Parsed<Vec<usize>>>()?;
                let coding = Coding::new(frame.bits, scan.near, &presets)?;
                let bits = Bits::new(&segments.bytes[segments.at..]);
                let mut decoder = Decoder::new(coding, bits);
                decoder.scan(&mut samples, expected, &places, scan.interleaving)?;
                // The first byte of the marker may have been read.
                segments.at += decoder.bits.at - usize::from(decoder.bits.after_ff);
                done += places.len();
            }
            0xdd => return Err("it has restart intervals, which are not read".into()),
            0xe8 if segment.starts_with(b"mrfx") && segment.get(4).is_some_and(|t| *t != 0) => {
                return Err("its colours are transformed, which is not read".into())
            }
            // Notes of applications and comments.
            0xe0..=0xef | 0xfe => {}
            other => return Err(format!("a frame has the unknown marker ff{other:02x}")),
        }
    }
    Ok(samples)
}

/// Goes through markers and their segments.
struct Segments<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Segments<'a> {
    /// The second byte of the next marker; what is left of a scan before it is passed over.
    fn marker(&mut self) -> Parsed<u8> {
        loop {
            match self.bytes.get(self.at..self.at + 2) {
                Some(&[0xff, marker]) if marker >= 0x80 && marker != 0xff => {
                    self.at += 2;
                    return Ok(marker);
                }
                Some(_) => self.at += 1,
                None => return Err("a frame ends before its picture does".into()),
            }
        }
    }

    fn segment(&mut self) -> Parsed<&'a [u8]> {
        let wrong = "a frame ends inside a segment";
        let length = match self.bytes.get(self.at..self.at + 2) {
            Some(&[high, low]) => usize::from(u16::from_be_bytes([high, low])),
            _ => return Err(wrong.into()),
        };
        let segment = self.bytes.get(self.at + 2..self.at + length).ok_or(wrong)?;
        self.at += length;
        Ok(segment)
    }
}

fn word(bytes: &[u8], at: usize) -> Parsed<u16> {
    match bytes.get(at..at + 2) {
        Some(&[high, low]) => Ok(u16::from_be_bytes([high, low])),
        _ => Err("a segment of a frame is too short".into()),
    }
}

/// The segment with size and bits.
struct Frame {
    bits: u32,
    shape: Shape,
    ids: Vec<u8>,
}

impl Frame {
    fn parse(segment: &[u8]) -> Parsed<Self> {
        let (height, width) = (word(segment, 1)?.into(), word(segment, 3)?.into());
        let (bits, components) = (u32::from(segment[0]), usize::from(word(segment, 4)? & 0xff));
        if !(2..=16).contains(&bits) {
            return Err(format!("a frame is of {bits} bits, expected 2 to 16"));
        }
        let ids: Vec<u8> = segment[6..].iter().step_by(3).copied().collect();
        if ids.len() != components {
            return Err("the segment of a frame's size is damaged".into());
        }
        let shape = Shape {
            width,
            height,
            components,
        };
        Ok(Self { bits, shape, ids })
    }

    fn place(&self, id: u8) -> Parsed<usize> {
        let place = self.ids.iter().position(|i| *i == id);
        place.ok_or_else(|| format!("a scan is of the component {id}, which the frame lacks"))
    }
}

/// How the components of a scan alternate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Interleaving {
    None,
    Line,
    Sample,
}

struct Scan {
    components: Vec<u8>,
    near: i64,
    interleaving: Interleaving,
}

impl Scan {
    fn parse(segment: &[u8]) -> Parsed<Self> {
        let wrong = "the segment of a scan is damaged";
        let count = usize::from(*segment.first().ok_or(wrong)?);
        let (components, rest) = segment[1..].split_at_checked(2 * count).ok_or(wrong)?;
        let &[near, interleaving, point] = rest else {
            return Err(wrong.into());
        };
        if point != 0
            || components
                .iter()
                .skip(1)
                .step_by(2)
                .any(|table| *table != 0)
        {
            return Err("a scan has a point transform or a table, which are not read".into());
        }
        let interleaving = match (interleaving, count) {
            (0, 1) => Interleaving::None,
            (1, 1..=4) => Interleaving::Line,
            (2, 1..=4) => Interleaving::Sample,
            _ => return Err(wrong.into()),
        };
        Ok(Self {
            components: components.iter().step_by(2).copied().collect(),
            near: near.into(),
            interleaving,
        })
    }
}

/// What a segment of coding parameters may set; 0 stands for the default.
#[derive(Default)]
struct Presets {
    maxval: i64,
    thresholds: [i64; 3],
    reset: i64,
}

impl Presets {
    fn update(&mut self, segment: &[u8]) -> Parsed<()> {
        if segment.first() != Some(&1) {
            return Err("a frame has mapping tables or is too large, which is not read".into());
        }
        let number = |i: usize| word(segment, 1 + 2 * i).map(i64::from);
        self.maxval = number(0)?;
        self.thresholds = [number(1)?, number(2)?, number(3)?];
        self.reset = number(4)?;
        Ok(())
    }
}

/// The parameters of a scan (annexes A.1 and C.2.4.1.1).
struct Coding {
    near: i64,
    maxval: i64,
    thresholds: [i64; 3],
    reset: i64,
    range: i64,
    qbpp: u32,
    limit: u32,
}

impl Coding {
    fn new(bits: u32, near: i64, presets: &Presets) -> Parsed<Self> {
        let largest = (1i64 << bits) - 1;
        let maxval = match presets.maxval {
            0 => largest,
            maxval => maxval,
        };
        if maxval > largest || near > 255.min(maxval / 2) {
            return Err(format!(
                "a scan has a largest value of {maxval} and a tolerance of {near}"
            ));
        }
        let clamp = |value: i64, low: i64| match (low..=maxval).contains(&value) {
            true => value,
            false => low,
        };
        let default = |basic: i64, least: i64, near_factor: i64| match maxval >= 128 {
            true => {
                let factor = (maxval.min(4095) + 128) / 256;
                factor * (basic - least) + least + near_factor * near
            }
            false => {
                let factor = 256 / (maxval + 1);
                least.max(basic / factor + near_factor * near)
            }
        };
        let mut thresholds = [0; 3];
        let mut low = near + 1;
        for (i, (basic, least, near_factor)) in
            [(3, 2, 3), (7, 3, 5), (21, 4, 7)].into_iter().enumerate()
        {
            thresholds[i] = match presets.thresholds[i] {
                0 => clamp(default(basic, least, near_factor), low),
                preset if (low..=maxval).contains(&preset) => preset,
                preset => return Err(format!("a scan has the threshold {preset}")),
            };
            low = thresholds[i];
        }
        let reset = match presets.reset {
            0 => 64,
            reset if reset >= 3 => reset,
            reset => return Err(format!("a scan is reset after {reset} samples")),
        };
        let range = (maxval + 2 * near) / (2 * near + 1) + 1;
        let bits_of = |n: i64| 64 - (n - 1).leading_zeros();
        let bpp = bits_of(maxval + 1).max(2);
        Ok(Self {
            near,
            maxval,
            thresholds,
            reset,
            range,
            qbpp: bits_of(range),
            limit: 2 * (bpp + bpp.max(8)),
        })
    }

    /// Region of a gradient, -4 to 4.
    fn quantised(&self, d: i64) -> i64 {
        let size = match d.abs() {
            d if d <= self.near => 0,
            d if d < self.thresholds[0] => 1,
            d if d < self.thresholds[1] => 2,
            d if d < self.thresholds[2] => 3,
            _ => 4,
        };
        size * d.signum()
    }

    /// A prediction put right by an error, on the circle of values.
    fn reconstructed(&self, predicted: i64, error: i64) -> i64 {
        let step = 2 * self.near + 1;
        let mut value = predicted + error * step;
        if value < -self.near {
            value += self.range * step;
        } else if value > self.maxval + self.near {
            value -= self.range * step;
        }
        value.clamp(0, self.maxval)
    }
}

/// The bits of a scan: a byte after `ff` has seven, and where it would have eight, a marker ends the scan.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    held: u64,
    count: u32,
    after_ff: bool,
}

const ENDED: &str = "a frame ends before its picture does";

impl<'a> Bits<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            held: 0,
            count: 0,
            after_ff: false,
        }
    }

    /// Holds at least 48 bits, or all that are left.
    fn fill(&mut self) {
        while self.count <= 48 {
            let Some(&byte) = self.bytes.get(self.at) else {
                return;
            };
            let width = match (self.after_ff, byte) {
                (true, 0x80..) => {
                    // Back onto the marker.
                    self.at -= 1;
                    self.bytes = &self.bytes[..self.at];
                    return;
                }
                (true, _) => 7,
                (false, _) => 8,
            };
            self.held = self.held << width | u64::from(byte);
            self.count += width;
            self.after_ff = byte == 0xff;
            self.at += 1;
        }
    }

    /// The next bits, at most 32.
    fn take(&mut self, count: u32) -> Parsed<u64> {
        if self.count < count {
            self.fill();
        }
        self.count = self.count.checked_sub(count).ok_or(ENDED)?;
        Ok(self.held >> self.count & ((1 << count) - 1))
    }

    /// A code of limited length (annex A.5.3).
    fn golomb(&mut self, k: u32, limit: u32, qbpp: u32) -> Parsed<i64> {
        let longest = limit.saturating_sub(qbpp + 1);
        let mut zeros = 0;
        while self.take(1)? == 0 {
            zeros += 1;
            if zeros > longest {
                return Err("a frame holds a code that is too long".into());
            }
        }
        Ok(match zeros < longest {
            true => (u64::from(zeros) << k | self.take(k)?) as i64,
            false => self.take(qbpp)? as i64 + 1,
        })
    }
}

/// Statistics of the samples with like surroundings.
#[derive(Clone)]
struct Context {
    a: i64,
    b: i64,
    c: i64,
    n: i64,
    /// Negative errors, of the contexts at the end of runs.
    nn: i64,
}

impl Context {
    /// The number of a code's low bits.
    fn k(&self, a: i64) -> Parsed<u32> {
        (0..=24)
            .find(|k| self.n << k >= a)
            .ok_or_else(|| "a frame holds impossible errors".into())
    }
}

/// Lengths of runs, as powers of two.
const J: [u32; 32] = [
    0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12, 13,
    14, 15,
];

/// The contexts at the end of runs follow those of gradients.
const RUN_CONTEXT: usize = 365;

struct Decoder<'a> {
    coding: Coding,
    bits: Bits<'a>,
    contexts: Vec<Context>,
}

/// A line and the one above, with a place before the first sample and one behind the last.
struct Lines {
    above: Vec<i64>,
    now: Vec<i64>,
    run_index: usize,
}

impl Lines {
    fn new(width: usize) -> Self {
        Self {
            above: vec![0; width + 2],
            now: vec![0; width + 2],
            run_index: 0,
        }
    }

    fn begin(&mut self) {
        std::mem::swap(&mut self.above, &mut self.now);
        let last = self.above.len() - 1;
        self.above[last] = self.above[last - 1];
        self.now[0] = self.above[1];
    }

    /// Ra, Rb, Rc, Rd of a sample: left, above, above left, above right.
    fn around(&self, x: usize) -> [i64; 4] {
        [
            self.now[x],
            self.above[x + 1],
            self.above[x],
            self.above[x + 2],
        ]
    }
}

impl<'a> Decoder<'a> {
    fn new(coding: Coding, bits: Bits<'a>) -> Self {
        let context = Context {
            a: ((coding.range + 32) / 64).max(2),
            b: 0,
            c: 0,
            n: 1,
            nn: 0,
        };
        Self {
            coding,
            bits,
            contexts: vec![context; RUN_CONTEXT + 2],
        }
    }

    /// Fills the components at these places of every pixel.
    fn scan(
        &mut self,
        samples: &mut [u16],
        shape: Shape,
        places: &[usize],
        interleaving: Interleaving,
    ) -> Parsed<()> {
        let mut lines: Vec<Lines> = places.iter().map(|_| Lines::new(shape.width)).collect();
        let row = shape.width * shape.components;
        for row in samples.chunks_exact_mut(row.max(1)) {
            lines.iter_mut().for_each(Lines::begin);
            if interleaving == Interleaving::Sample {
                self.line(&mut lines, shape.width)?;
            } else {
                for line in lines.chunks_mut(1) {
                    self.line(line, shape.width)?;
                }
            }
            for (line, place) in lines.iter().zip(places) {
                let targets = row.iter_mut().skip(*place).step_by(shape.components);
                for (target, value) in targets.zip(&line.now[1..]) {
                    *target = *value as u16;
                }
            }
        }
        Ok(())
    }

    /// A line of one component, or of several pixel by pixel.
    fn line(&mut self, lines: &mut [Lines], width: usize) -> Parsed<()> {
        let mut x = 0;
        while x < width {
            let flat = lines.iter().all(|line| {
                let [a, b, c, d] = line.around(x);
                [d - b, b - c, c - a]
                    .iter()
                    .all(|d| d.abs() <= self.coding.near)
            });
            if flat {
                x = self.run(lines, x, width)?;
                continue;
            }
            for line in lines.iter_mut() {
                line.now[x + 1] = self.sample(line.around(x))?;
            }
            x += 1;
        }
        Ok(())
    }

    /// A sample by its gradients (annexes A.3 to A.6).
    fn sample(&mut self, [a, b, c, d]: [i64; 4]) -> Parsed<i64> {
        let coding = &self.coding;
        let gradients = [d - b, b - c, c - a].map(|d| coding.quantised(d));
        let q = gradients.iter().fold(0, |q, g| 9 * q + g);
        let sign = if q < 0 { -1 } else { 1 };
        let context = &mut self.contexts[q.unsigned_abs() as usize];
        let predicted = if c >= a.max(b) {
            a.min(b)
        } else if c <= a.min(b) {
            a.max(b)
        } else {
            a + b - c
        };
        let predicted = (predicted + sign * context.c).clamp(0, coding.maxval);
        let k = context.k(context.a)?;
        let mapped = self.bits.golomb(k, coding.limit, coding.qbpp)?;
        if mapped > 2 * coding.range {
            return Err("a frame holds impossible errors".into());
        }
        let error = match (mapped & 1, mapped >> 1) {
            (0, half) => half,
            (_, half) => -half - 1,
        };
        // Where negative errors prevail, they have the shorter codes.
        let turned = coding.near == 0 && k == 0 && 2 * context.b <= -context.n;
        let error = if turned { -error - 1 } else { error };
        context.b += error * (2 * coding.near + 1);
        context.a += error.abs();
        if context.n == coding.reset {
            context.a >>= 1;
            context.b >>= 1;
            context.n >>= 1;
        }
        context.n += 1;
        if context.b <= -context.n {
            context.b = (context.b + context.n).max(1 - context.n);
            context.c = (context.c - 1).max(-128);
        } else if context.b > 0 {
            context.b = (context.b - context.n).min(0);
            context.c = (context.c + 1).min(127);
        }
        Ok(coding.reconstructed(predicted, sign * error))
    }

    /// A run of like samples and the one that ends it (annex A.7); gives the place behind.
    fn run(&mut self, lines: &mut [Lines], mut x: usize, width: usize) -> Parsed<usize> {
        // The components of a pixel share the length of a run.
        let mut index = lines.first().map_or(0, |line| line.run_index);
        let mut fill = |x: &mut usize, count: usize| {
            for line in lines.iter_mut() {
                let value = line.now[*x];
                line.now[*x + 1..][..count].fill(value);
            }
            *x += count;
        };
        while self.bits.take(1)? == 1 {
            let whole = 1 << J[index];
            let count = whole.min(width - x);
            fill(&mut x, count);
            if count == whole {
                index = (index + 1).min(31);
            }
            if x == width {
                lines.iter_mut().for_each(|line| line.run_index = index);
                return Ok(x);
            }
        }
        let count = self.bits.take(J[index])? as usize;
        if count >= width - x {
            return Err("a frame holds a run beyond its line".into());
        }
        fill(&mut x, count);
        let alone = lines.len() == 1;
        for line in lines.iter_mut() {
            let [a, b, ..] = line.around(x);
            // Pixel by pixel, the ends of runs are all of the first kind.
            let like = alone && (a - b).abs() <= self.coding.near;
            line.now[x + 1] = self.end_of_run(a, b, like, J[index])?;
        }
        index = index.saturating_sub(1);
        lines.iter_mut().for_each(|line| line.run_index = index);
        Ok(x + 1)
    }

    fn end_of_run(&mut self, a: i64, b: i64, like: bool, j: u32) -> Parsed<i64> {
        let coding = &self.coding;
        let kind = i64::from(like);
        let context = &mut self.contexts[RUN_CONTEXT + usize::from(like)];
        let k = context.k(context.a + kind * (context.n >> 1))?;
        let limit = coding.limit.saturating_sub(j + 1);
        let coded = self.bits.golomb(k, limit, coding.qbpp)?;
        if coded > 2 * coding.range {
            return Err("a frame holds impossible errors".into());
        }
        let mapped = coded + kind;
        let odd = mapped & 1;
        let size = (mapped + odd) / 2;
        let negative = (k != 0 || 2 * context.nn >= context.n) == (odd == 1);
        let error = if negative { -size } else { size };
        context.nn += i64::from(error < 0);
        context.a += (coded + 1 - kind) >> 1;
        if context.n == coding.reset {
            context.a >>= 1;
            context.n >>= 1;
            context.nn >>= 1;
        }
        context.n += 1;
        Ok(match (like, a > b) {
            (true, _) => coding.reconstructed(a, error),
            (false, true) => coding.reconstructed(b, -error),
            (false, false) => coding.reconstructed(b, error),
        })
    }
}
