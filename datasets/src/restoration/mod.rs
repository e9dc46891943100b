//! Pictures in pairs, damaged and whole, as restoration learns from them: which files belong together, haze drawn on clear pictures, and crops.

pub mod depth;
pub mod haze;
pub mod pairs;
pub mod pictures;
pub mod sampler;
pub mod verify;

use crate::{DataError, Result};

fn check(ok: bool, field: &str, found: impl ToString, expected: &str) -> Result<()> {
    if ok {
        return Ok(());
    }
    Err(DataError::Setting {
        field: field.into(),
        found: found.to_string(),
        expected: expected.into(),
    })
}

/// `[low, high]` with least <= low <= high <= most; false for what is not a number.
fn check_range(field: &str, range: [f64; 2], least: f64, most: f64) -> Result<()> {
    check(
        least <= range[0] && range[0] <= range[1] && range[1] <= most,
        field,
        format!("{range:?}"),
        &format!("it has to be [low, high] with {least} <= low <= high <= {most}"),
    )
}

fn check_share(field: &str, share: f64) -> Result<()> {
    check(
        (0.0..=1.0).contains(&share),
        field,
        share,
        "a share is from 0 to 1",
    )
}
