//! Large blocks are kept, within what has been in use at one time, and given back in the end. One test: the blocks belong to the whole process.

#![allow(clippy::unwrap_used)]

use tch::{Device, Kind, Tensor};
use vision_mamba_ops::memory::KeptBlocks;
use vision_mamba_ops::Meter;

const MIB: i64 = 1 << 20;

fn tensor(mib: i64) -> Tensor {
    Tensor::full([mib * MIB], 3, (Kind::Uint8, Device::Cpu))
}

#[test]
fn large_blocks_are_kept_within_the_peak() {
    let before = tensor(40);
    let kept = KeptBlocks::begin();
    let mib = |it: &KeptBlocks| {
        let (used, kept) = it.sizes();
        (used as i64 / MIB, kept as i64 / MIB)
    };
    assert_eq!(mib(&kept), (0, 0), "older blocks are none of these");

    let (a, b, small) = (tensor(64), tensor(40), tensor(8));
    assert_eq!(mib(&kept), (104, 0));
    let place = a.data_ptr();
    drop(a);
    drop(before);
    drop(small);
    assert_eq!(mib(&kept), (40, 64));
    let again = tensor(60);
    assert_eq!(again.data_ptr(), place, "one of nearly that size is taken");
    assert_eq!(again.narrow(0, 5, 1).int64_value(&[0]), 3);
    assert_eq!(mib(&kept), (104, 0));
    drop(again);

    // Neither fits, and both together would be more than there were at one time.
    let large = tensor(100);
    assert_eq!(mib(&kept), (140, 0));
    drop((b, large));
    assert_eq!(mib(&kept), (0, 140));

    // What is resized and what another thread frees.
    let mut grown = tensor(40);
    let _ = grown.resize_([70 * MIB]);
    std::thread::spawn(move || drop(grown)).join().unwrap();
    let (used, rest) = mib(&kept);
    assert!(used == 0 && rest <= 140, "{used} {rest}");

    let meter = Meter::start().unwrap();
    drop(tensor(50));
    assert_eq!(meter.cost().peak_bytes as i64 / MIB, 50);

    let second = KeptBlocks::begin();
    let held = tensor(50);
    drop(kept);
    assert!(second.sizes().1 > 0, "somebody still wants them");
    drop(second);
    let third = KeptBlocks::begin();
    assert_eq!(
        mib(&third),
        (50, 0),
        "all were given back but the one in use"
    );
    assert_eq!(held.narrow(0, 49 * MIB, 1).int64_value(&[0]), 3);
    drop(third);
    drop(held);
    assert_eq!(mib(&KeptBlocks::begin()), (0, 0));
}
