//! Folders of pairs in the layouts people have, and crops drawn from them.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use image::{Rgb, RgbImage};
use vision_mamba_datasets::restoration::haze::HazeSettings;
use vision_mamba_datasets::restoration::pairs::{Pairing, Part};
use vision_mamba_datasets::restoration::pictures::PairedPictures;
use vision_mamba_datasets::restoration::sampler::{
    draw_crops, draw_whole, prefetch_crops, CropSettings,
};

/// Empty files: names are all that pairing looks at.
fn touch(root: &Path, names: &[&str]) {
    for name in names {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, b"").unwrap();
    }
}

fn found(names: &[&str]) -> (tempfile::TempDir, Pairing) {
    let folder = tempfile::tempdir().unwrap();
    touch(folder.path(), names);
    let pairing = Pairing::find(folder.path()).unwrap();
    (folder, pairing)
}

/// (hazy or `-`, clear, depth or `-`) relative to the root.
fn told(names: &[&str]) -> Vec<(String, String, String)> {
    let (folder, pairing) = found(names);
    assert_eq!(pairing.unmatched, [], "{names:?}");
    let relative = |p: &Path| {
        let path = p.strip_prefix(folder.path()).unwrap();
        path.to_str().unwrap().to_string()
    };
    let or = |p: &Option<std::path::PathBuf>| p.as_deref().map_or("-".into(), relative);
    let ids: BTreeSet<_> = pairing.pairs.iter().map(|p| &p.id).collect();
    assert_eq!(ids.len(), pairing.pairs.len(), "ids are unique: {names:?}");
    let rows = pairing.pairs.iter();
    rows.map(|p| (or(&p.hazy), relative(&p.clear), or(&p.depth)))
        .collect()
}

fn row(hazy: &str, clear: &str, depth: &str) -> (String, String, String) {
    (hazy.into(), clear.into(), depth.into())
}

#[test]
fn layouts_people_have() {
    // RESIDE's indoor training set, PNG and JPEG mixed; transmissions are passed over
    assert_eq!(
        told(&[
            "hazy/0001_0.8_0.2.png",
            "hazy/0001_1_0.9.png",
            "hazy/0010_0.9_1.jpg",
            "clear/0001.png",
            "clear/0010.png",
            "trans/0001_1.png",
        ]),
        [
            row("hazy/0001_0.8_0.2.png", "clear/0001.png", "-"),
            row("hazy/0001_1_0.9.png", "clear/0001.png", "-"),
            row("hazy/0010_0.9_1.jpg", "clear/0010.png", "-"),
        ]
    );
    // its outdoor training set
    assert_eq!(
        told(&[
            "haze/OTS/part1/0005_0.8_0.04.jpg",
            "clear/clear_images/0005.jpg",
            "depth/0005.png",
        ]),
        [row(
            "haze/OTS/part1/0005_0.8_0.04.jpg",
            "clear/clear_images/0005.jpg",
            "depth/0005.png"
        )]
    );
    // its test set
    assert_eq!(
        told(&[
            "indoor/hazy/1400_1.png",
            "indoor/gt/1400.png",
            "outdoor/hazy/1400_0.8_0.12.jpg",
            "outdoor/gt/1400.png",
        ]),
        [
            row("indoor/hazy/1400_1.png", "indoor/gt/1400.png", "-"),
            row("outdoor/hazy/1400_0.8_0.12.jpg", "outdoor/gt/1400.png", "-"),
        ]
    );
    // O-HAZE, given itself and given the folder that it lies in
    for root in ["", "# O-HAZY NTIRE 2018/", "sets/O-HAZE/"] {
        let (hazy, clear) = (
            format!("{root}hazy/01_outdoor_hazy.jpg"),
            format!("{root}GT/01_outdoor_GT.JPG"),
        );
        assert_eq!(told(&[&hazy, &clear]), [row(&hazy, &clear, "-")]);
    }
    // NH-HAZE
    for root in ["", "NH-HAZE/"] {
        let (hazy, clear) = (format!("{root}01_hazy.png"), format!("{root}01_GT.png"));
        assert_eq!(told(&[&hazy, &clear]), [row(&hazy, &clear, "-")]);
    }
    // a word of haze in one name of a folder that says what its pictures are
    assert_eq!(
        told(&["clear/boat.png", "clear/after-the-rain.png"]),
        [
            row("-", "clear/after-the-rain.png", "-"),
            row("-", "clear/boat.png", "-"),
        ]
    );
    assert_eq!(
        told(&["hazy/after-the-rain.png", "clear/after-the-rain.png"]),
        [row(
            "hazy/after-the-rain.png",
            "clear/after-the-rain.png",
            "-"
        )]
    );
    // Dense-HAZE and NTIRE's names of folders
    assert_eq!(
        told(&["Dense-HAZE/hazy/01_hazy.png", "Dense-HAZE/GT/01_GT.png"]).len(),
        1
    );
    assert_eq!(
        told(&[
            "OutdoorTrainHazy/36_outdoor_hazy.jpg",
            "OutdoorTrainGT/36_outdoor_GT.jpg"
        ])
        .len(),
        1
    );
    // Haze4K
    assert_eq!(
        told(&["haze/1_0.89_1.56.png", "gt/1.png", "trans/1.png"]),
        [row("haze/1_0.89_1.56.png", "gt/1.png", "-")]
    );
    // low light, and names that end in numbers on both sides
    assert_eq!(
        told(&["low/a_1.png", "low/a_2.png", "high/a_1.png", "high/a_2.png"]),
        [
            row("low/a_1.png", "high/a_1.png", "-"),
            row("low/a_2.png", "high/a_2.png", "-"),
        ]
    );
    // clear pictures alone, with depth and in folders
    assert_eq!(
        told(&["b.jpg", "depth/b.png", "more/c.png", "more/notes.txt"]),
        [
            row("-", "b.jpg", "depth/b.png"),
            row("-", "more/c.png", "-")
        ]
    );
}

#[test]
fn a_table_goes_before_the_names() {
    let folder = tempfile::tempdir().unwrap();
    touch(
        folder.path(),
        &["hazy/x.png", "hazy/b_1.png", "GT/a.png", "GT/b.png"],
    );
    let table = "hazy,gt,beta\nx.png,a.png,0.5\n";
    std::fs::write(folder.path().join("pairs.csv"), table).unwrap();
    let pairing = Pairing::find(folder.path()).unwrap().complete().unwrap();
    let scenes: Vec<_> = pairing.pairs.iter().map(|p| (&*p.id, &*p.scene)).collect();
    assert_eq!(scenes, [("b_1", "b"), ("x", "a")]);
}

#[test]
fn everything_without_a_partner_is_named_at_once() {
    let (folder, pairing) = found(&[
        "hazy/1_0.5.png",
        "hazy/7_0.5.png",
        "hazy/8_x.png",
        "clear/1.png",
        "clear/2.png",
        "clear/2.jpg",
        "depth/9.png",
        "stray.png",
        "real_hazy/street.jpg",
    ]);
    let names: Vec<String> = pairing
        .unmatched
        .iter()
        .map(|(p, _)| p.strip_prefix(folder.path()).unwrap().display().to_string())
        .collect();
    // the folder of real haze has no clear one at its side, but `hazy` and `clear` are at its side
    let all = [
        "clear/2.jpg",
        "clear/2.png",
        "depth/9.png",
        "hazy/7_0.5.png",
        "hazy/8_x.png",
        "real_hazy/street.jpg",
        "stray.png",
    ];
    assert_eq!(names, all);
    assert_eq!(pairing.pairs.len(), 1);
    let message = pairing.complete().unwrap_err().to_string();
    assert!(all.iter().all(|name| message.contains(name)), "{message}");
}

#[test]
fn hazy_pictures_with_no_clear_ones_anywhere_near_are_set_apart() {
    let (_folder, pairing) = found(&["train/hazy/1.png", "train/GT/1.png", "real_hazy/a.png"]);
    assert_eq!(pairing.unmatched, []);
    assert_eq!(pairing.without_reference.len(), 1);
    assert_eq!(pairing.pairs[0].part, Part::Train);
    let nothing = tempfile::tempdir().unwrap();
    touch(nothing.path(), &["notes.txt"]);
    assert!(Pairing::find(nothing.path()).is_err());
    assert!(Pairing::find(&nothing.path().join("gone")).is_err());
}

#[test]
fn scenes_are_held_out_whole_and_the_same_every_time() {
    let mut names = Vec::new();
    for scene in 0..20 {
        names.push(format!("GT/s{scene}.png"));
        names.extend((1..4).map(|i| format!("hazy/s{scene}_{i}_0.5.png")));
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (_folder, pairing) = found(&names);
    let split = pairing.split(0.2, 7).unwrap();
    assert_eq!((split.train.len(), split.validation.len()), (48, 12));
    let scenes = |pairs: &[vision_mamba_datasets::restoration::pairs::Pair]| {
        pairs
            .iter()
            .map(|p| p.scene.clone())
            .collect::<BTreeSet<_>>()
    };
    let held = scenes(&split.validation);
    assert_eq!(held.len(), 4);
    assert!(held.is_disjoint(&scenes(&split.train)));
    assert_eq!(pairing.split(0.2, 7).unwrap(), split);
    assert_ne!(pairing.split(0.2, 8).unwrap(), split);
    // a scene more changes nothing about those that were there, but for the count
    let mut fewer = pairing.clone();
    fewer.pairs.retain(|p| p.scene != "s3");
    let again = scenes(&fewer.split(0.2, 7).unwrap().validation);
    assert!(held
        .iter()
        .filter(|s| *s != "s3")
        .all(|s| again.contains(s)));
    assert!(pairing.split(1.5, 7).is_err());

    // parts that the data set states; its test part is left alone
    let (_folder, parts) = found(&[
        "train/hazy/1.png",
        "train/GT/1.png",
        "val/hazy/2.png",
        "val/GT/2.png",
        "test/hazy/3.png",
        "test/GT/3.png",
    ]);
    let split = parts.split(0.5, 0).unwrap();
    assert_eq!((&*split.train[0].id, split.train.len()), ("train/1", 1));
    assert_eq!(
        (&*split.validation[0].id, split.validation.len()),
        ("val/2", 1)
    );
    let (_folder, one) = found(&["a.png"]);
    assert!(one.split(0.5, 0).is_err());
}

fn picture(w: u32, h: u32, shift: u32) -> RgbImage {
    RgbImage::from_fn(w, h, |x, y| {
        Rgb([(x * 5 + shift) as u8, (y * 7) as u8, ((x + y) * 3) as u8])
    })
}

/// Two scenes, one with depth; the clear pictures have a border of 2 and 3 pixels.
fn set(root: &Path) -> Vec<vision_mamba_datasets::restoration::pairs::Pair> {
    for folder in ["hazy", "clear", "depth"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    for (i, name) in ["a", "b"].into_iter().enumerate() {
        let clear = picture(46, 36, 40 * i as u32);
        let hazy = image::imageops::crop_imm(&clear, 3, 2, 40, 32).to_image();
        clear.save(root.join(format!("clear/{name}.png"))).unwrap();
        hazy.save(root.join(format!("hazy/{name}_0.5.png")))
            .unwrap();
    }
    picture(46, 36, 9).save(root.join("depth/a.png")).unwrap();
    Pairing::find(root).unwrap().complete().unwrap().pairs
}

fn settings() -> CropSettings {
    CropSettings {
        crop: [16, 24],
        batch_size: 6,
        seed: 3,
        ..CropSettings::default()
    }
}

#[test]
fn a_batch_depends_on_its_number_alone() {
    let folder = tempfile::tempdir().unwrap();
    let pairs = set(folder.path());
    let kept = Arc::new(PairedPictures::open(pairs.clone(), 1 << 20, 2).unwrap());
    assert_eq!(kept.bytes(), 40 * 32 * (6 + 1 + 6));
    let read = PairedPictures::open(pairs.clone(), 0, 1).unwrap();
    assert_eq!(read.bytes(), 0);
    let one = Arc::new(PairedPictures::open(pairs, 40 * 32 * 7, 1).unwrap());
    assert_eq!(one.bytes(), 40 * 32 * 7);
    let expected: Vec<_> = (0..5)
        .map(|i| draw_crops(&read, &settings(), i).unwrap())
        .collect();
    for (pictures, workers) in [(kept, 3), (one, 1)] {
        let got = prefetch_crops(pictures, settings(), 0..5, workers).unwrap();
        assert_eq!(got.map(Result::unwrap).collect::<Vec<_>>(), expected);
    }
    for batch in &expected {
        assert_eq!(batch.shape, [6, 3, 16, 24]);
        for values in [&batch.hazy, &batch.clear] {
            assert_eq!(values.len(), 6 * 3 * 16 * 24);
            assert!(values.iter().all(|v| (0.0..=1.0).contains(v)));
        }
    }
    assert_ne!(expected[0], expected[1]);
    let ids: BTreeSet<_> = expected.iter().flat_map(|b| &b.ids).collect();
    assert_eq!(ids.len(), 2);
}

#[test]
fn whole_pictures_for_validation_are_the_same_every_time() {
    let folder = tempfile::tempdir().unwrap();
    let mut pairs = set(folder.path());
    pairs[1].hazy = None;
    let pictures = PairedPictures::open(pairs, 1 << 20, 1).unwrap();
    let whole = draw_whole(&pictures, &settings(), 0, 1024).unwrap();
    assert_eq!(whole.shape, [1, 3, 32, 40]);
    // the hazy picture is the clear one without its border, and nothing is drawn on it
    assert_eq!(whole.hazy, whole.clear);
    let middle = draw_whole(&pictures, &settings(), 0, 20).unwrap();
    assert_eq!(middle.shape, [1, 3, 20, 20]);
    assert_eq!(middle.hazy[0], whole.hazy[6 * 40 + 10]);
    // haze is drawn on the other, however seldom training does
    let seldom = CropSettings {
        haze: HazeSettings {
            none: 1.0,
            ..HazeSettings::default()
        },
        ..settings()
    };
    let drawn = draw_whole(&pictures, &seldom, 1, 1024).unwrap();
    assert_ne!(drawn.hazy, drawn.clear);
    assert_eq!(drawn, draw_whole(&pictures, &seldom, 1, 1024).unwrap());
}

#[test]
fn pairs_stay_in_register() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = PairedPictures::open(set(folder.path()), 1 << 20, 1).unwrap();
    // the hazy pictures are the clear ones without their border, so that any shift, flip or scale of one alone shows
    let mut settings = settings();
    settings.synthesise = 0.0;
    settings.flip_vertical = 0.5;
    for index in 0..10 {
        let batch = draw_crops(&pictures, &settings, index).unwrap();
        assert_eq!(batch.hazy, batch.clear);
    }
    settings.synthesise = 1.0;
    settings.haze = HazeSettings {
        none: 1.0,
        ..HazeSettings::default()
    };
    let batch = draw_crops(&pictures, &settings, 0).unwrap();
    assert_eq!(batch.hazy, batch.clear);
    settings.haze.none = 0.0;
    assert_ne!(
        draw_crops(&pictures, &settings, 0).unwrap().hazy,
        batch.hazy
    );
}

/// A veil of the picture's own is in both, the same everywhere, and haze comes on top of it.
#[test]
fn pale_pictures_keep_their_veil() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = PairedPictures::open(set(folder.path()), 1 << 20, 1).unwrap();
    let mut settings = settings();
    settings.synthesise = 1.0;
    settings.gamma = [1.0, 1.0];
    settings.gain = [1.0, 1.0];
    settings.haze = HazeSettings {
        none: 1.0,
        ..HazeSettings::default()
    };
    let plain = draw_crops(&pictures, &settings, 3).unwrap();
    settings.pale_contrast = [0.25, 0.25];
    settings.pale_level = [0.6, 0.6];
    assert_eq!(draw_crops(&pictures, &settings, 3).unwrap(), plain);
    settings.pale = 1.0;
    let pale = draw_crops(&pictures, &settings, 3).unwrap();
    assert_eq!(pale.ids, plain.ids);
    for (p, v) in pale.clear.iter().zip(&plain.clear) {
        assert!((p - (0.25 * v + 0.45)).abs() < 1e-6, "{p} {v}");
    }
    assert_eq!(pale.hazy, pale.clear);
    settings.haze.none = 0.0;
    assert_ne!(draw_crops(&pictures, &settings, 3).unwrap().hazy, pale.hazy);
    settings.pale = 1.5;
    assert!(settings.validate().is_err());
}

#[test]
fn a_picture_smaller_than_the_crop_is_enlarged() {
    let folder = tempfile::tempdir().unwrap();
    picture(3, 1, 0)
        .save(folder.path().join("tiny.png"))
        .unwrap();
    let pairs = Pairing::find(folder.path()).unwrap().pairs;
    let pictures = PairedPictures::open(pairs, 1 << 20, 1).unwrap();
    let batch = draw_crops(&pictures, &settings(), 0).unwrap();
    assert_eq!(batch.shape, [6, 3, 16, 24]);
}

#[test]
fn broken_pictures_are_all_named_and_settings_checked() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let pairs = set(root);
    picture(50, 32, 0)
        .save(root.join("hazy/a_0.5.png"))
        .unwrap();
    std::fs::write(root.join("clear/b.png"), b"not a picture").unwrap();
    let message = PairedPictures::open(pairs.clone(), 0, 2)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("a_0.5.png") && message.contains("b.png"),
        "{message}"
    );
    set(root);
    let pictures = PairedPictures::open(pairs, 0, 1).unwrap();
    // gone after the start
    std::fs::remove_dir_all(root.join("clear")).unwrap();
    let error = draw_crops(&pictures, &settings(), 0)
        .unwrap_err()
        .to_string();
    assert!(error.contains(".png"), "{error}");
    assert!(PairedPictures::open(vec![], 0, 1).is_err());

    type Spoil = fn(&mut CropSettings);
    let bad: [(&str, Spoil); 7] = [
        ("crop", |s| s.crop = [0, 5]),
        ("batch_size", |s| s.batch_size = 0),
        ("scale", |s| s.scale = [2.0, 1.0]),
        ("whole", |s| s.whole = f64::NAN),
        ("haze.beta", |s| s.haze.beta = [-1.0, 2.0]),
        ("haze.jpeg_quality", |s| s.haze.jpeg_quality = [0.0, 50.0]),
        ("haze.depth", |s| s.haze.depth.ground = -1.0),
    ];
    settings().validate().unwrap();
    for (field, spoil) in bad {
        let mut settings = settings();
        spoil(&mut settings);
        let message = settings.validate().unwrap_err().to_string();
        assert!(message.contains(field), "{message}");
    }
    let text = serde_json::to_string(&settings()).unwrap();
    // batch size and seed are the run's and not written
    let read = CropSettings {
        batch_size: settings().batch_size,
        seed: settings().seed,
        ..serde_json::from_str(&text).unwrap()
    };
    assert_eq!(read, settings());
    assert!(!text.contains("batch_size") && !text.contains("seed"));
    assert!(serde_json::from_str::<CropSettings>(r#"{"hase": {}}"#).is_err());
}
