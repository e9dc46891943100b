//! Weights that come with the tool, compiled in: they work wherever the program is copied to. `models/weights/README.md` tells what they are.

/// A safetensors file whose metadata says what network it is for.
#[derive(Debug, Clone, Copy)]
pub struct Shipped {
    /// The file's name.
    pub name: &'static str,
    /// The preset that they are weights of.
    pub preset: &'static str,
    /// The command that takes them when none are named.
    pub command: &'static str,
    /// What it holds.
    pub content: &'static [u8],
}

/// `thin_haze` for [`DEHAZE`]. Of 241 clear photographs that it was not scored on, the one that it takes to be haziest has a mean optical depth of 0.33, the next
/// 0.29; of 96 hazy ones the least has 0.42.
pub const DEHAZE_THIN: [f64; 2] = [0.3, 0.42];

/// For `dehaze`.
pub const DEHAZE: Shipped = Shipped {
    name: "uvmlite_dehaze.safetensors",
    preset: "uvmlite",
    command: "dehaze",
    content: include_bytes!("../../weights/uvmlite_dehaze.safetensors"),
};

/// All of them.
pub const ALL: [Shipped; 1] = [DEHAZE];
