//! Names of trainers: which network each builds.
//!
//! Reference: `nnunetv2/training/nnUNetTrainer/` of MIC-DKFZ/nnUNet at 0e495086eb10 and of bowang-lab/U-Mamba at 28459e33ca03.

/// Who builds the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// nnU-Net: the network that the plans describe.
    Plans,
    /// U-Mamba with its layer in the bottleneck.
    UMambaBot,
    /// U-Mamba with layers in its encoder.
    UMambaEnc,
}

/// What a trainer's name tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It builds a network of this family.
    Builds(Family),
    /// It builds a network that does not exist here.
    Foreign(&'static str),
    /// Nobody here has heard of it.
    Unknown,
}

/// What every name begins with.
const BEGINNING: &str = "nnUNetTrainer";

/// Beginnings of what follows, the first that fits counts.
const BUILDERS: &[(&str, Known)] = &[
    ("UMambaBot", Known::Builds(Family::UMambaBot)),
    ("UMambaEnc", Known::Builds(Family::UMambaEnc)),
    ("SegResNet", Known::Foreign("SegResNet")),
    ("SwinUNETR", Known::Foreign("Swin UNETR")),
    ("UNETR", Known::Foreign("UNETR")),
    (
        "BN",
        Known::Foreign("the plans' network with batch norm in place of instance norm"),
    ),
];

/// The same for trainers of a name of their own.
const OTHERS: &[(&str, Known)] = &[("nnUNet_Primus", Known::Foreign("Primus"))];

/// What may stand behind the beginning and only changes how the plans' network is trained.
const VARIANTS: &[&str] = &[
    "Adam",
    "Adan",
    "Benchmark",
    "CELoss",
    "CosAnneal",
    "DA5",
    "DAOrd0",
    "Dice",
    "NoDA",
    "NoDeepSupervision",
    "NoMirroring",
    "TopK",
    "_noDummy2DDA",
    "_onlyMirror01",
    "_probabilisticOversampling",
    "_warmup",
    "onlyMirror01",
    "vanillaAdam",
];

/// Looks a name up.
pub fn known(name: &str) -> Known {
    let other = OTHERS.iter().find(|(start, _)| name.starts_with(start));
    if let Some((_, known)) = other {
        return *known;
    }
    let Some(rest) = name.strip_prefix(BEGINNING) else {
        return Known::Unknown;
    };
    if let Some((_, known)) = BUILDERS.iter().find(|(start, _)| rest.starts_with(start)) {
        return *known;
    }
    let variant = VARIANTS.iter().any(|start| rest.starts_with(start));
    match rest.is_empty() || variant || is_length(rest) {
        true => Known::Builds(Family::Plans),
        false => Known::Unknown,
    }
}

/// `_250epochs`, `_1epoch` and the like, with or without `_NoMirroring`.
fn is_length(rest: &str) -> bool {
    let Some(rest) = rest.strip_prefix('_') else {
        return false;
    };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    digits > 0 && rest[digits..].starts_with("epoch")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_their_network() {
        use Family::{Plans, UMambaBot, UMambaEnc};
        for (name, expected) in [
            ("nnUNetTrainer", Known::Builds(Plans)),
            ("nnUNetTrainerNoMirroring", Known::Builds(Plans)),
            ("nnUNetTrainer_250epochs", Known::Builds(Plans)),
            ("nnUNetTrainer_1epoch", Known::Builds(Plans)),
            ("nnUNetTrainer_8000epochs_NoMirroring", Known::Builds(Plans)),
            ("nnUNetTrainerDiceCELoss_noSmooth", Known::Builds(Plans)),
            ("nnUNetTrainerAdam3en4", Known::Builds(Plans)),
            ("nnUNetTrainerUMambaBot", Known::Builds(UMambaBot)),
            ("nnUNetTrainerUMambaBotNoAMP", Known::Builds(UMambaBot)),
            ("nnUNetTrainerUMambaEnc", Known::Builds(UMambaEnc)),
            ("nnUNetTrainerUMambaEncNoAMP", Known::Builds(UMambaEnc)),
            ("nnUNetTrainerSegResNet_2xFeat", Known::Foreign("SegResNet")),
            ("nnUNetTrainerSwinUNETR_Tiny", Known::Foreign("Swin UNETR")),
            ("nnUNetTrainerUNETR", Known::Foreign("UNETR")),
            ("nnUNet_Primus_M_Trainer", Known::Foreign("Primus")),
            ("nnUNetTrainer_epochs", Known::Unknown),
            ("nnUNetTrainerOfMine", Known::Unknown),
            ("MyTrainer", Known::Unknown),
        ] {
            assert_eq!(known(name), expected, "{name}");
        }
    }
}
