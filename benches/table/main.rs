//! Times of operators and networks, a line of JSON each; `scripts/bench` makes one table of them. By itself:
//!
//! `cargo bench --bench table -- [operators] [networks] [PRESET[:SIDE[xSIDE..]] ...] [forward] [list] [channels-last] [bare-memory] [quick] [cuda] [batch=N] [threads=N] [seconds=S]`
//!
//! Without words: operators and networks at the sizes that the project is measured by, one thread of the CPU, the least of runs of two seconds.
//! Networks named are measured in place of those; `forward` leaves training steps out; `list` prints the operators of each prediction
//! and training step, the slowest first; `channels-last` puts maps and kernels in that order; `bare-memory` gives large blocks back
//! at once. With `VISION_MAMBA_OPS=off` networks run on the tensor reference.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod clock;
mod networks;
mod operators;
mod row;

use clock::Clock;
use networks::Choice;
use tch::Device;
use vision_mamba_models::presets;

fn main() {
    vision_mamba::runtime::keep_freed_memory();
    let words: Vec<String> = (std::env::args().skip(1))
        .filter(|word| !word.starts_with('-'))
        .collect();
    let has = |word: &str| words.iter().any(|w| w == word);
    let number = |key: &str| {
        let found = words.iter().find_map(|w| w.strip_prefix(key));
        found.map(|text| text.parse::<f64>().expect("a number"))
    };
    let _kept = (!has("bare-memory")).then(vision_mamba_ops::memory::KeptBlocks::begin);
    tch::set_num_threads(number("threads=").map_or(1, |n| n as i32));
    let clock = Clock {
        device: if has("cuda") {
            Device::Cuda(0)
        } else {
            Device::Cpu
        },
        budget: number("seconds=").unwrap_or(if has("quick") { 0.2 } else { 2.0 }),
    };
    let mut named: Vec<Choice> = vec![];
    for word in &words {
        let (name, sides) = word.split_once(':').unwrap_or((word, "224"));
        if presets().iter().any(|preset| preset.name == name) {
            let sides = sides
                .split('x')
                .map(|side| side.parse().expect("a side"))
                .collect();
            named.push(Choice {
                name: name.to_owned(),
                sides,
                batch: number("batch=").map_or(1, |n| n as i64),
                train: true,
                channels_last: false,
                list: false,
            });
        }
    }
    let all = !has("operators") && !has("networks") && named.is_empty();
    if all || has("operators") {
        operators::print(clock, has("quick"));
    }
    if all || has("networks") {
        named = networks::usual(clock.device, has("quick"));
    }
    for mut choice in named {
        choice.train &= !has("forward");
        choice.list = has("list");
        choice.channels_last = has("channels-last");
        networks::row(clock, &choice).print();
    }
}
