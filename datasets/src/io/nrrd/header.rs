//! The text header of an NRRD file: its fields, and what they say about voxels and place.
//!
//! Source: Teem's description of the format. Geometry follows SimpleITK: world axes become left-posterior-superior where the file names
//! another frame; without a frame `spacings` count, whose signs turn axes round, and `axis mins` give the origin.

use crate::io::detached::names;
use crate::io::element::Element;
use crate::io::source::Packing;
use crate::Geometry;

/// Most axes the format allows.
const MOST_AXES: usize = 16;

const TYPES: &[(Element, &[&str])] = &[
    (Element::I8, &["signed char", "int8", "int8_t"]),
    (Element::U8, &["uchar", "unsigned char", "uint8", "uint8_t"]),
    (
        Element::I16,
        &[
            "short",
            "short int",
            "signed short",
            "signed short int",
            "int16",
            "int16_t",
        ],
    ),
    (
        Element::U16,
        &[
            "ushort",
            "unsigned short",
            "unsigned short int",
            "uint16",
            "uint16_t",
        ],
    ),
    (Element::I32, &["int", "signed int", "int32", "int32_t"]),
    (
        Element::U32,
        &["uint", "unsigned int", "uint32", "uint32_t"],
    ),
    (
        Element::I64,
        &[
            "longlong",
            "long long",
            "long long int",
            "signed long long",
            "signed long long int",
            "int64",
            "int64_t",
        ],
    ),
    (
        Element::U64,
        &[
            "ulonglong",
            "unsigned long long",
            "unsigned long long int",
            "uint64",
            "uint64_t",
        ],
    ),
    (Element::F32, &["float"]),
    (Element::F64, &["double"]),
];

/// How the voxels are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Bytes(Packing),
    Text,
    Hex,
}

/// Where the voxels are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// After the header, in the same file.
    Here,
    /// In other files, which follow each other along the slowest axis.
    Files(Vec<String>),
}

/// What is used of a header.
#[derive(Debug)]
pub(super) struct Header {
    /// Axes in the file's order, fastest first.
    pub(super) sizes: Vec<usize>,
    pub(super) element: Element,
    pub(super) encoding: Encoding,
    pub(super) big_endian: bool,
    pub(super) place: Place,
    pub(super) line_skip: usize,
    /// -1: the voxels end the file.
    pub(super) byte_skip: i64,
    /// Position in `sizes` of the axis that counts channels.
    pub(super) channel_axis: Option<usize>,
    pub(super) geometry: Geometry,
}

impl Header {
    /// From the lines up to the empty one. The error names the field and its value.
    pub(super) fn parse(lines: &[String]) -> Result<Self, String> {
        let mut lines = lines.iter().map(String::as_str);
        let magic = lines.next().unwrap_or_default();
        if !magic.starts_with("NRRD000") {
            return Err(format!(
                "its first line is {magic:?}, expected \"NRRD000\" and a version"
            ));
        }
        let mut fields = Fields(Vec::new());
        let mut place = Place::Here;
        while let Some(line) = lines.next() {
            if line.is_empty() {
                break;
            }
            // Comments, and the pairs `key:=value` that are not about the array.
            if line.starts_with('#') || line.contains(":=") {
                continue;
            }
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| format!("the header line {line:?} is no field"))?;
            let (name, value) = (name.trim().to_lowercase(), value.trim());
            if matches!(name.as_str(), "data file" | "datafile") {
                place = Place::Files(match value.split_whitespace().next() {
                    // The names follow, one a line, to the end of the header.
                    Some("LIST") => lines
                        .by_ref()
                        .take_while(|l| !l.is_empty())
                        .map(str::to_owned)
                        .collect(),
                    _ => names(value)?,
                });
            } else {
                fields.0.push((name, value.to_owned()));
            }
        }
        Self::from_fields(&fields, place)
    }

    fn from_fields(fields: &Fields, place: Place) -> Result<Self, String> {
        let dimension: usize = fields
            .number("dimension")?
            .ok_or("it has no field `dimension`")?;
        if !(1..=MOST_AXES).contains(&dimension) {
            return Err(format!(
                "dimension is {dimension}, expected 1 to {MOST_AXES}"
            ));
        }
        let sizes: Vec<usize> = fields
            .numbers("sizes", dimension)?
            .ok_or("it has no field `sizes`")?;
        if let Some(axis) = sizes.iter().position(|&s| s == 0) {
            return Err(format!("axis {axis} has size 0"));
        }
        let name = fields
            .get("type")
            .ok_or("it has no field `type`")?
            .to_lowercase();
        let element = TYPES
            .iter()
            .find(|(_, names)| names.contains(&name.as_str()))
            .map(|t| t.0)
            .ok_or_else(|| format!("its type is `{name}`, which is none of the number types"))?;
        let encoding = match fields
            .get("encoding")
            .ok_or("it has no field `encoding`")?
            .to_lowercase()
            .as_str()
        {
            "raw" => Encoding::Bytes(Packing::Plain),
            "gz" | "gzip" => Encoding::Bytes(Packing::Gzip),
            "txt" | "text" | "ascii" => Encoding::Text,
            "hex" => Encoding::Hex,
            other => {
                return Err(format!(
                    "its encoding is `{other}`; raw, gzip, ascii and hex can be read"
                ))
            }
        };
        let big_endian = match fields.get("endian").map(str::to_lowercase).as_deref() {
            Some("big") => true,
            Some("little") => false,
            None if element.width() == 1 || encoding == Encoding::Text => false,
            other => {
                return Err(format!(
                    "its endian is {other:?}, expected `little` or `big`"
                ))
            }
        };
        let byte_skip = fields
            .number("byte skip")?
            .or(fields.number("byteskip")?)
            .unwrap_or(0);
        if byte_skip < -1 {
            return Err(format!("byte skip is {byte_skip}, expected -1 or more"));
        }
        let axes = Axes::of(fields, dimension)?;
        Ok(Self {
            channel_axis: axes.channel,
            geometry: axes.geometry(fields)?,
            sizes,
            element,
            encoding,
            big_endian,
            place,
            line_skip: fields
                .number("line skip")?
                .or(fields.number("lineskip")?)
                .unwrap_or(0),
            byte_skip,
        })
    }
}

/// The fields in the order of the file, names in lower case.
struct Fields(Vec<(String, String)>);

impl Fields {
    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, String> {
        self.get(name)
            .map(|v| {
                v.parse()
                    .map_err(|_| format!("{name} is `{v}`, expected a number"))
            })
            .transpose()
    }

    fn numbers<T: std::str::FromStr>(
        &self,
        name: &str,
        count: usize,
    ) -> Result<Option<Vec<T>>, String> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let numbers: Option<Vec<T>> = value.split_whitespace().map(|w| w.parse().ok()).collect();
        numbers
            .filter(|n| n.len() == count)
            .map(Some)
            .ok_or_else(|| format!("{name} is `{value}`, expected {count} numbers"))
    }

    /// Vectors `(x,y,z)`, `None` for the word `none`.
    fn vectors(&self, name: &str) -> Result<Option<Vec<Option<Vec<f64>>>>, String> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let wrong = || format!("{name} is `{value}`, expected vectors such as (1,0,0)");
        let (mut vectors, mut rest) = (Vec::new(), value.trim());
        while !rest.is_empty() {
            if let Some(inside) = rest.strip_prefix('(') {
                let (numbers, after) = inside.split_once(')').ok_or_else(wrong)?;
                let numbers: Option<Vec<f64>> =
                    numbers.split(',').map(|n| n.trim().parse().ok()).collect();
                vectors.push(Some(numbers.ok_or_else(wrong)?));
                rest = after.trim_start();
            } else {
                rest = rest.strip_prefix("none").ok_or_else(wrong)?.trim_start();
                vectors.push(None);
            }
        }
        Ok(Some(vectors))
    }
}

/// Which axes are of space.
struct Axes {
    /// Positions of the two or three axes of space, fastest first.
    space: Vec<usize>,
    channel: Option<usize>,
    /// The step along every axis, where there is a frame.
    steps: Option<Vec<Option<Vec<f64>>>>,
}

impl Axes {
    /// Axes without a direction, and those whose kind is neither of space nor of time, hold channels; with neither said, a fourth axis does.
    fn of(fields: &Fields, dimension: usize) -> Result<Self, String> {
        let steps = fields.vectors("space directions")?;
        if let Some(steps) = steps.as_ref().filter(|s| s.len() != dimension) {
            return Err(format!(
                "it has {} space directions for {dimension} axes",
                steps.len()
            ));
        }
        let kinds: Vec<&str> = fields
            .get("kinds")
            .map_or(Vec::new(), |k| k.split_whitespace().collect());
        let has_direction = |axis: usize| steps.as_ref().is_none_or(|s| s[axis].is_some());
        let is_domain = |axis: usize| {
            kinds
                .get(axis)
                .is_none_or(|kind| matches!(*kind, "domain" | "space" | "time" | "???" | "none"))
        };
        let mut space: Vec<usize> = (0..dimension)
            .filter(|&axis| has_direction(axis) && is_domain(axis))
            .collect();
        if space.len() == 4 && dimension == 4 {
            space.pop();
        }
        let others: Vec<usize> = (0..dimension)
            .filter(|axis| !space.contains(axis))
            .collect();
        if !(2..=3).contains(&space.len()) || others.len() > 1 {
            return Err(format!(
                "it has {} axes of space and {} others, expected two or three and at most one",
                space.len(),
                others.len()
            ));
        }
        Ok(Self {
            space,
            channel: others.first().copied(),
            steps,
        })
    }

    fn geometry(&self, fields: &Fields) -> Result<Geometry, String> {
        let dims = self.space.len();
        let all = self.space.len() + usize::from(self.channel.is_some());
        if let Some(steps) = &self.steps {
            let steps: Vec<&Vec<f64>> = self
                .space
                .iter()
                .filter_map(|&axis| steps[axis].as_ref())
                .collect();
            let origin = match fields.vectors("space origin")?.as_deref() {
                Some([Some(origin)]) => Some(origin.clone()),
                _ => None,
            };
            let world = steps.first().map_or(0, |s| s.len());
            if steps
                .iter()
                .copied()
                .chain(&origin)
                .any(|v| v.len() != world)
                || world < dims
            {
                return Err(format!("its space directions and origin are not all of {world} numbers, at least {dims}"));
            }
            let signs = signs(fields.get("space").unwrap_or_default(), world);
            let turned =
                |v: &[f64]| -> Vec<f64> { v.iter().zip(&signs).map(|(v, s)| v * s).collect() };
            let steps: Vec<Vec<f64>> = steps.into_iter().map(|s| turned(s)).collect();
            if steps.iter().any(|s| s[dims..].iter().any(|&v| v != 0.0)) {
                return Err("it is a tilted slice in three-dimensional space; save it as a volume of one slice".into());
            }
            let steps: Vec<Vec<f64>> = steps.into_iter().map(|s| s[..dims].to_vec()).collect();
            let origin = origin.map_or(vec![0.0; dims], |o| turned(&o)[..dims].to_vec());
            return Geometry::from_steps(&steps, origin);
        }
        let spacings: Option<Vec<f64>> = fields.numbers("spacings", all)?;
        let minima: Option<Vec<f64>> = fields
            .numbers("axis mins", all)?
            .or(fields.numbers("axismins", all)?);
        let centerings: Vec<&str> = fields
            .get("centerings")
            .or(fields.get("centers"))
            .map_or(Vec::new(), |c| c.split_whitespace().collect());
        let spacing = |axis: usize| {
            spacings
                .as_ref()
                .map(|s| s[axis])
                .filter(|s| s.is_finite() && *s != 0.0)
        };
        // A cell's centre is half a spacing from its edge, which is where the axis begins.
        let begins = |axis: usize| {
            let edge = minima.as_ref()?[axis];
            let inset = if centerings.get(axis) == Some(&"node") {
                0.0
            } else {
                spacing(axis)? / 2.0
            };
            Some(edge + inset).filter(|o| o.is_finite())
        };
        let steps: Vec<Vec<f64>> = self
            .space
            .iter()
            .enumerate()
            .map(|(row, &axis)| {
                let mut step = vec![0.0; dims];
                step[row] = spacing(axis).unwrap_or(1.0);
                step
            })
            .collect();
        let origin: Option<Vec<f64>> = self.space.iter().map(|&axis| begins(axis)).collect();
        Geometry::from_steps(&steps, origin.unwrap_or(vec![0.0; dims]))
    }
}

/// What turns a frame into left-posterior-superior, number by number. Frames without anatomy are taken as they are.
fn signs(space: &str, world: usize) -> Vec<f64> {
    let name = space.to_lowercase().replace("-time", "");
    let (x, y) = match name.as_str() {
        "right-anterior-superior" | "ras" | "rast" => (-1.0, -1.0),
        "left-anterior-superior" | "las" | "last" => (1.0, -1.0),
        _ => (1.0, 1.0),
    };
    let mut signs = vec![1.0; world];
    for (sign, turn) in signs.iter_mut().zip([x, y]) {
        *sign = turn;
    }
    signs
}
