//! Which SS2D: VMamba's forward types, taken apart into what they change.

use std::str::FromStr;

use crate::vision::scan::ScanPattern;
use crate::ModelError;

/// How the map is walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walk {
    /// Four orders at once, added up.
    Pattern(ScanPattern),
    /// Every row in both directions, then every column of the result; before each a LayerNorm without parameters. The reversed
    /// direction's result is added without being turned back, as in the reference.
    Cascade,
}

/// What the second half of the first projection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Activated, it multiplies the output.
    Activated,
    /// It multiplies the output as it is.
    Plain,
    /// There is none.
    None,
}

/// What is done to the sum over the directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutNorm {
    /// Layer norm over the channels.
    Layer,
    /// Nothing.
    None,
    /// A depthwise 3x3 convolution without bias.
    DwConv3,
    /// Layer norm, then that convolution.
    LayerDwConv3,
    /// Softmax over the positions.
    Softmax,
    /// Sigmoid.
    Sigmoid,
}

/// A forward type. Versions that differ only in the scan's implementation or in where half precision is left (`v01` to `v05`, `v2`, `v3`,
/// `_no32`) are the same here: the scan computes in float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForwardType {
    /// How the map is walked.
    pub walk: Walk,
    /// What gates the output.
    pub gate: Gate,
    /// What normalises it.
    pub out_norm: OutNorm,
    /// Whether a GELU follows.
    pub out_act: bool,
    /// Mamba-2: channels in `dt_rank` heads, each with one step size and one decay for all its states.
    pub heads: bool,
    /// The first version: SiLU, a convolution with bias and projections without, whatever else is configured.
    pub first: bool,
}

impl ForwardType {
    /// VMamba's first version, `v0`.
    pub const V0: Self = Self {
        walk: Walk::Pattern(ScanPattern::Cross2d),
        gate: Gate::Activated,
        out_norm: OutNorm::Layer,
        out_act: false,
        heads: false,
        first: true,
    };
}

impl FromStr for ForwardType {
    type Err = ModelError;

    /// The reference's spelling: a version and, behind it, postfixes in the order `_on...`, `_nozact`, `_noz`, `_oact`, `_no32`.
    fn from_str(text: &str) -> Result<Self, ModelError> {
        if matches!(text, "v0" | "v0seq") {
            return Ok(Self::V0);
        }
        let mut rest = text;
        let mut peel = |postfix: &str| match rest.strip_suffix(postfix) {
            Some(shorter) => {
                rest = shorter;
                true
            }
            None => false,
        };
        peel("_no32");
        let out_act = peel("_oact");
        let no_gate = peel("_noz");
        let plain_gate = peel("_nozact");
        let mut out_norm = OutNorm::Layer;
        for (postfix, kind) in [
            ("_onnone", OutNorm::None),
            ("_ondwconv3", OutNorm::DwConv3),
            ("_oncnorm", OutNorm::LayerDwConv3),
            ("_onsoftmax", OutNorm::Softmax),
            ("_onsigmoid", OutNorm::Sigmoid),
        ] {
            if peel(postfix) {
                out_norm = kind;
            }
        }
        let walk = match rest {
            "v01" | "v02" | "v03" | "v04" | "v05" | "v2" | "v3" | "m0" => {
                Walk::Pattern(ScanPattern::Cross2d)
            }
            "v051d" | "v31d" => Walk::Pattern(ScanPattern::Unidi),
            "v052d" | "v32d" => Walk::Pattern(ScanPattern::Bidi),
            "v052d3" => Walk::Pattern(ScanPattern::Rot90),
            "v052dc" | "v32dc" => Walk::Cascade,
            _ => {
                let message = format!(
                    "{text}, expected v0, v01 to v05, v2, v3, v051d, v052d, v052d3, v052dc or m0, followed by postfixes in this order: one of \
                     _onnone, _ondwconv3, _oncnorm, _onsoftmax, _onsigmoid; _nozact or _noz; _oact; _no32"
                );
                return Err(ModelError::config("forward_type", message));
            }
        };
        Ok(Self {
            walk,
            gate: match (no_gate, plain_gate) {
                (true, _) => Gate::None,
                (false, true) => Gate::Plain,
                (false, false) => Gate::Activated,
            },
            out_norm,
            out_act,
            heads: rest == "m0",
            first: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_postfixes() {
        let form = |text: &str| text.parse::<ForwardType>();
        assert_eq!(form("v0").unwrap(), ForwardType::V0);
        let published = form("v05_noz").unwrap();
        assert_eq!(
            (published.gate, published.out_norm),
            (Gate::None, OutNorm::Layer)
        );
        let all = form("v052d_onsoftmax_nozact_oact_no32").unwrap();
        assert_eq!(all.walk, Walk::Pattern(ScanPattern::Bidi));
        assert_eq!(
            (all.gate, all.out_norm, all.out_act),
            (Gate::Plain, OutNorm::Softmax, true)
        );
        assert!(form("m0_noz").unwrap().heads);
        for wrong in ["v9", "xv1a", "v05_oact_noz", ""] {
            let message = form(wrong).unwrap_err().to_string();
            assert!(message.contains("forward_type"), "{message}");
        }
    }
}
