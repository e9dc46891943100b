//! Encoder-decoder networks.

pub mod dark_channel;
pub mod layout;
pub mod mamba_unet;
pub mod mixed;
pub mod nnunet;
pub mod residual;
pub mod token_mixer;
pub mod topology;
pub mod umamba;
pub mod uvmb;
pub mod uvmlite;
pub mod uvmnet;

pub use layout::PerStage;
pub use mamba_unet::{MambaUnet, MambaUnetConfig};
pub use mixed::{Mixed, MixedConfig};
pub use nnunet::{NnUnet, NnUnetConfig, NnUnetEncoder};
pub use umamba::{UMamba, UMambaConfig};
pub use uvmlite::{UvmLite, UvmLiteConfig};
pub use uvmnet::{UvmNet, UvmNetConfig};
