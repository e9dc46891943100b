//! Predictions and training steps of presets. A prediction stands beside its matrix products and convolutions alone, which are kept from one pass and
//! run again with the same inputs and nothing between them, in turn with whole passes: as libtorch computes them by itself, and as they are
//! computed here (`vision_mamba_ops::gemm`).

use tch::{no_grad, Device, Kind, Tensor};
use vision_mamba::speed::{MemoryFormat, Speed};
use vision_mamba_models::describe::takeable_size;
use vision_mamba_models::{build, preset};
use vision_mamba_ops::{gemm, native, Products, Profiler};

use crate::clock::Clock;
use crate::operators::peak;
use crate::row::Row;

/// What is measured of a preset.
pub struct Choice {
    pub name: String,
    /// Sides of the image, one for all or one each.
    pub sides: Vec<i64>,
    pub batch: i64,
    /// Whether training steps are timed too.
    pub train: bool,
    /// Whether maps and kernels lie channels last.
    pub channels_last: bool,
    /// Whether it is listed where the time of a prediction goes, and of a training step where they are timed.
    pub list: bool,
}

/// The published sizes that the project is measured by, or the small ones.
pub fn usual(device: Device, quick: bool) -> Vec<Choice> {
    let batch = if device == Device::Cpu { 1 } else { 16 };
    let presets: &[(&str, i64)] = match quick {
        true => &[("vmamba_nano", 64), ("umamba_bot_tiny_2d", 64)],
        false => &[
            ("vmambav2v_tiny", 224),
            ("vmambav0_tiny", 224),
            ("vim_tiny", 224),
            ("mamba_unet", 224),
            ("umamba_bot_2d", 256),
        ],
    };
    (presets.iter())
        .map(|(name, side)| Choice {
            name: (*name).to_owned(),
            sides: vec![*side],
            batch,
            train: true,
            channels_last: false,
            list: false,
        })
        .collect()
}

/// One row. Without the native operators, which the environment can switch off, it is the tensor reference's.
pub fn row(clock: Clock, choice: &Choice) -> Row {
    tch::manual_seed(1);
    let spec = preset(&choice.name).unwrap();
    let built = build(&spec, clock.device).unwrap();
    let sides = takeable_size(&built, &choice.sides);
    let shape = [&[choice.batch, spec.in_channels()], &sides[..]].concat();
    let speed = Speed {
        memory_format: match choice.channels_last {
            true => MemoryFormat::ChannelsLast,
            false => MemoryFormat::ChannelsFirst,
        },
        ..Speed::default()
    };
    speed.arrange(&built.params).unwrap();
    let image = Tensor::randn(&shape, (Kind::Float, clock.device));
    let image = speed.image(image).unwrap();
    let forward = || no_grad(|| drop(built.net.forward(&image, false).unwrap()));
    let step = || {
        built.params.zero_grad();
        let outputs = built.net.forward(&image, true).unwrap();
        let losses: Vec<Tensor> = (outputs.iter())
            .map(|y| y.square().mean(Kind::Float))
            .collect();
        Tensor::stack(&losses, 0).sum(Kind::Float).backward();
    };
    let against_products = native::is_ready() && clock.device == Device::Cpu;
    let (whole, products, own_products) = match against_products {
        true => {
            let (kept, ()) = Products::of(forward).unwrap();
            let products = || kept.run().unwrap();
            let onednn = gemm::is_onednn().unwrap();
            let by_libtorch = || {
                gemm::set_onednn(false).unwrap();
                products();
                gemm::set_onednn(onednn).unwrap();
            };
            let [whole, libtorch, own] = clock.in_turn([&forward, &by_libtorch, &products]);
            (whole, Some(whole / libtorch), Some(whole / own))
        }
        false => (clock.in_turn([&forward])[0], None, None),
    };
    let both = choice.train.then(|| clock.in_turn([&step])[0] * 1e3);
    if choice.list {
        list(clock.device, &forward);
        if choice.train {
            list(clock.device, &step);
        }
    }
    let text: Vec<String> = shape.iter().map(i64::to_string).collect();
    Row {
        what: choice.name.clone(),
        size: text.join("x"),
        forward: whole * 1e3,
        both,
        images: Some(choice.batch as f64 / whole),
        peak: peak(clock.device, forward),
        products,
        own_products,
        ..Row::default()
    }
}

#[allow(clippy::print_stderr)]
fn list(device: Device, forward: &dyn Fn()) {
    let profiler = Profiler::start(device).unwrap();
    forward();
    for op in profiler.stop().unwrap() {
        eprintln!("{:10.2} ms {:5} {}", 1e3 * op.seconds, op.calls, op.name);
    }
}
