//! A restoration network as a function from the colours of a picture to those of the clear one.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use tch::{no_grad, Device, Kind, Tensor};
use vision_mamba_models::weights::shipped::{Shipped, DEHAZE, DEHAZE_THIN};
use vision_mamba_models::{build, weights, Built, ModelError, NetworkSpec, ParamStore, Task};
use vision_mamba_ops::memory::KeptBlocks;
use vision_mamba_ops::Meter;

use crate::cli::args::CheckpointChoice;
use crate::cli::exit::Misuse;
use crate::engine::run_folder::RunFolder;

/// Sides are brought to a multiple of this (and of what the network asks for), so that halvings leave no odd rest to be filled with zeros
/// inside the network; it is also the least side that four halvings leave a pixel of.
const MULTIPLE: i64 = 16;

/// Sides of the two pictures that tell what a pixel costs, both beyond the size to which networks reduce their maps for global context.
const PROBES: [i64; 2] = [256, 384];

/// Room for what the convolutions' library takes beyond the tensors that are counted. A guess on the safe side, not a measurement.
const BEYOND_TENSORS: f64 = 1.25;

/// Taken for a GPU, where tensors are not counted: that of the largest preset.
const UNMEASURED_PIXEL: f64 = 6000.0;

/// A change of the result, as a part of its range, that is seen: half a step of 8 bits.
const SEEN: f64 = 0.5 / 255.0;

/// A network with its weights.
pub struct Dehazer {
    built: Built,
    device: Device,
}

/// What a run needs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Bytes whatever the size.
    pub fixed: f64,
    /// Bytes a pixel.
    pub pixel: f64,
}

impl Dehazer {
    /// The network that is used when none is named. Pictures with hardly any haze are left as they are, unless `thin_haze` is to be cleared too.
    pub fn default_weights(device: Device, thin_haze: bool) -> Result<Self> {
        let Shipped { name, content, .. } = DEHAZE;
        let name = Path::new(name);
        let metadata = weights::read_metadata_from(name, content)?;
        let mut spec = spec_of(name, &metadata)?;
        if let NetworkSpec::Uvmlite(config) = &mut spec {
            config.thin_haze = (!thin_haze).then_some(DEHAZE_THIN);
        }
        Self::load(spec, name, device, |params| {
            weights::load_strict_from(name, content, params)
        })
    }

    /// The network of a run folder.
    pub fn of_run(run: &Path, which: Option<CheckpointChoice>, device: Device) -> Result<Self> {
        let folder = RunFolder::open(run)?;
        let spec = folder.network()?;
        let file = folder.pick_checkpoint(which)?;
        Self::load(spec, run, device, |params| {
            weights::load_strict(&file, params)
        })
    }

    /// The network of a file that says what network it is for, as `weights import` writes them.
    pub fn of_weights(file: &Path, device: Device) -> Result<Self> {
        let spec = spec_of(file, &weights::read_metadata(file)?)?;
        Self::load(spec, file, device, |params| {
            weights::load_strict(file, params)
        })
    }

    fn load(
        spec: NetworkSpec,
        named: &Path,
        device: Device,
        fill: impl FnOnce(&ParamStore) -> Result<(), ModelError>,
    ) -> Result<Self> {
        spec.validate()
            .with_context(|| format!("{}: its network cannot be built", named.display()))?;
        if spec.task() != Task::Restoration {
            return Err(Misuse::error(format!(
                "{}: its network is for {}, but dehazing needs one for restoration",
                named.display(),
                spec.task()
            )));
        }
        let (inputs, outputs) = (spec.in_channels(), spec.num_classes());
        if (inputs, outputs) != (3, 3) {
            return Err(Misuse::error(format!(
                "{}: its network makes {outputs} channels of {inputs}, but photographs need 3 of 3",
                named.display()
            )));
        }
        let built = build(&spec, device)?;
        fill(&built.params)?;
        Ok(Self { built, device })
    }

    /// Colours (3 planes of `height` x `width`) -> clear colours, see [`restore`].
    pub fn forward(&self, planes: &[f32], width: usize, height: usize) -> Result<Vec<f32>> {
        let _every_layer_takes_the_like = KeptBlocks::begin();
        let (width, height) = (width as i64, height as i64);
        ensure!(
            planes.len() as i64 == 3 * width * height,
            "three planes of {width} x {height} expected"
        );
        no_grad(|| {
            let x = Tensor::f_from_slice(planes)?
                .f_view([1, 3, height, width])?
                .f_to_device(self.device)?;
            let y = restore(&self.built, &x)?;
            let y = y.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?;
            let values = Vec::<f32>::try_from(y.f_contiguous()?.f_view([-1])?)?;
            if values.iter().any(|v| !v.is_finite()) {
                bail!("the network gives values that are no numbers; its weights are damaged or its training went astray");
            }
            Ok(values)
        })
    }

    /// The network that is at hand.
    pub fn of_built(built: Built, device: Device) -> Self {
        Self { built, device }
    }

    /// What a picture needs in memory, measured on two small ones.
    pub fn cost(&self) -> Result<Cost> {
        if self.device != Device::Cpu || !vision_mamba_ops::status().is_ready() {
            return Ok(Cost {
                fixed: 0.0,
                pixel: UNMEASURED_PIXEL,
            });
        }
        let measure = |height: i64| -> Result<f64> {
            let size = [1, 3, height, PROBES[0]];
            let x = Tensor::f_zeros(size, (Kind::Float, Device::Cpu))?;
            let meter = Meter::start()?;
            no_grad(|| self.built.net.forward(&x, false))?;
            Ok(meter.cost().peak_bytes)
        };
        let (small, large) = (measure(PROBES[0])?, measure(PROBES[1])?);
        let pixels = |height: i64| (height * PROBES[0]) as f64;
        let slope = ((large - small) / (pixels(PROBES[1]) - pixels(PROBES[0]))).max(1.0);
        Ok(Cost {
            fixed: (small - slope * pixels(PROBES[0])).max(0.0) * BEYOND_TENSORS,
            pixel: slope * BEYOND_TENSORS,
        })
    }

    /// Whether what lies `distance` pixels or farther away shows in the result, so that tiles disagree where they overlap by no more. It is
    /// tried: two pictures that differ at one end are compared at the other.
    pub fn sees_beyond(&self, distance: usize) -> Result<bool> {
        const END: usize = 64;
        let (width, height) = (distance + 2 * END, 2 * END);
        let size = width * height;
        let picture = |left: f32| -> Vec<f32> {
            let value = |i: usize| {
                let (x, y) = (i % size % width, i % size / width);
                let texture = 0.5
                    + 0.3 * ((x as f32 * 0.37).sin() * (y as f32 * 0.23 + (i / size) as f32).cos());
                if x < END {
                    left
                } else {
                    texture
                }
            };
            (0..3 * size).map(value).collect()
        };
        let far = |left: f32| self.forward(&picture(left), width, height);
        let (dark, bright) = (far(0.05)?, far(0.95)?);
        let at_the_end = |i: &usize| i % width >= END + distance;
        let changes = (0..3 * size).filter(at_the_end);
        let largest = changes
            .map(|i| f64::from((dark[i] - bright[i]).abs()))
            .fold(0.0, f64::max);
        Ok(largest > SEEN)
    }
}

/// The network that a file of weights says it is for.
fn spec_of(file: &Path, metadata: &BTreeMap<String, String>) -> Result<NetworkSpec> {
    let network = metadata.get("network").ok_or_else(|| ModelError::BadFile {
        path: file.to_path_buf(),
        reason: "says of no network what it is; write it with `weights import`".to_string(),
    })?;
    serde_json::from_str(network)
        .with_context(|| format!("{}: its network cannot be read", file.display()))
}

/// Pictures (B, 3, rows, columns) of any size -> clear ones. Sides that the network cannot take are continued by reflection, or, where there is
/// too little to reflect, by the last pixel.
pub fn restore(built: &Built, x: &Tensor) -> Result<Tensor> {
    let (_, _, height, width) = x.size4()?;
    let sides = [height, width];
    let takes = built.net.divisor().into_iter().map(|d| lcm(d, MULTIPLE));
    let missing: Vec<i64> = (sides.iter().zip(takes))
        .map(|(side, by)| (side + by - 1) / by * by - side)
        .collect();
    let (below, right) = (missing[0], missing[1]);
    let x = pad(
        &pad(x, [0, right, 0, 0], right < width)?,
        [0, 0, 0, below],
        below < height,
    )?;
    let y = built.net.forward(&x, false)?.swap_remove(0);
    Ok(y.f_narrow(2, 0, height)?.f_narrow(3, 0, width)?)
}

fn pad(x: &Tensor, by: [i64; 4], reflect: bool) -> Result<Tensor> {
    Ok(match (by == [0; 4], reflect) {
        (true, _) => x.shallow_clone(),
        (_, true) => x.f_reflection_pad2d(by)?,
        (_, false) => x.f_replication_pad2d(by)?,
    })
}

fn lcm(a: i64, b: i64) -> i64 {
    let (mut x, mut y) = (a.max(1), b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a.max(1) / x * b
}
