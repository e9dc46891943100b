//! The program's face: help, exit codes, what goes to stdout and what to stderr.

mod util;

use util::{run, Outcome};

#[test]
fn help_names_every_command_and_exits_zero() {
    let help: Outcome = run(&["--help"]).expect_success();
    for command in [
        "info",
        "models",
        "plan",
        "train",
        "predict",
        "find-best",
        "evaluate",
    ] {
        assert!(
            help.stdout.contains(&format!("\n  {command} ")),
            "{command} is not in:\n{}",
            help.stdout
        );
    }
    for path in [
        &["train", "--help"][..],
        &["predict", "--help"],
        &["find-best", "--help"],
        &["evaluate", "segmentation", "--help"],
        &["evaluate", "restoration", "--help"],
        &["models", "show", "--help"],
    ] {
        let help = run(path).expect_success();
        assert!(
            help.stdout.contains("Usage: vision-mamba"),
            "{}",
            help.stdout
        );
        assert!(help.stderr.is_empty());
    }
}

#[test]
fn misuse_exits_two_and_says_what_to_do() {
    let none = run(&["--no-such-option"]);
    assert_eq!(none.code, Some(2));
    let unknown = run(&["trian"]);
    assert_eq!(unknown.code, Some(2));
    assert!(
        unknown.stderr.contains("train"),
        "a near name should be offered: {}",
        unknown.stderr
    );
    run(&["models", "show", "umamba_bot_2"]).expect_failure(2, &["umamba_bot_2", "umamba_bot_2d"]);
    run(&["models", "show", "umamba_bot_2d", "--set", "d_stat=3"]).expect_failure(2, &["d_stat"]);
    run(&["models", "show", "umamba_bot_2d", "--set", "d_state"]).expect_failure(2, &["KEY=VALUE"]);
}

#[test]
fn info_is_json_on_request_and_knows_the_operator() {
    let info = run(&["info", "--json"]).expect_success();
    let value: serde_json::Value = serde_json::from_str(&info.stdout).expect("JSON");
    assert_eq!(value["libtorch"], "2.11.0");
    assert_eq!(value["threads"], 1);
    assert_eq!(value["operator"]["ready"], true, "{}", info.stdout);
}

#[test]
fn weights_that_come_with_the_program_are_named() {
    let name = "uvmlite_dehaze.safetensors";
    let info = run(&["info"]).expect_success();
    assert!(info.stdout.contains(name), "{}", info.stdout);
    let info = run(&["info", "--json"]).expect_success();
    let value: serde_json::Value = serde_json::from_str(&info.stdout).expect("JSON");
    assert_eq!(value["weights"][0]["name"], name);
    assert_eq!(value["weights"][0]["command"], "dehaze");
    let show = |more: &[&str]| run(&[&["models", "show"], more].concat()).expect_success();
    assert!(show(&["uvmlite"]).stdout.contains(name));
    let value: serde_json::Value =
        serde_json::from_str(&show(&["uvmlite", "--json"]).stdout).expect("JSON");
    assert_eq!(value["weights"][name], "dehaze");
    // another network than theirs
    for other in [&["uvmlite", "--set", "head=curve"][..], &["uvmlite_tiny"]] {
        assert!(!show(other).stdout.contains(name), "{other:?}");
    }
}

#[test]
fn a_missing_operator_library_is_said_once_and_work_goes_on() {
    let dir = tempfile::tempdir().expect("folder");
    let absent = dir.path().join("absent.so");
    let outcome: Outcome = util::program(&["info"])
        .env("VISION_MAMBA_OPS", &absent)
        .output()
        .expect("runs")
        .into();
    let outcome = outcome.expect_success();
    assert!(outcome.stdout.contains("absent.so"), "{}", outcome.stdout);
}

#[test]
fn models_are_listed_and_shown() {
    let list = run(&["models", "list"]).expect_success();
    for name in ["umamba_bot_2d", "mamba_unet"] {
        assert!(
            list.stdout
                .lines()
                .any(|l| l.split_whitespace().next() == Some(name)),
            "{}",
            list.stdout
        );
    }
    let show = run(&["models", "show", "mamba_unet", "--state-dict", "--json"]).expect_success();
    let value: serde_json::Value = serde_json::from_str(&show.stdout).expect("JSON");
    assert_eq!(value["parameters"], 19_121_664);
    assert!(value["state_dict"]
        .as_array()
        .is_some_and(|t| t.len() == 218));

    // Counted by hand: a 3x3 convolution of 1 to 4 channels alone takes 36 multiply-adds a pixel.
    let tiny = run(&["models", "show", "unet_plain_tiny_2d", "--json"]).expect_success();
    let value: serde_json::Value = serde_json::from_str(&tiny.stdout).expect("JSON");
    let cost = &value["cost"];
    let pixels: i64 = cost["input_size"]
        .as_array()
        .expect("a size")
        .iter()
        .map(|n| n.as_i64().expect("a side"))
        .product();
    assert!(cost["multiply_adds"].as_i64() > Some(36 * pixels), "{cost}");
    assert!(
        cost["activation_bytes"].as_i64() > Some(4 * 4 * pixels),
        "{cost}"
    );
    assert_eq!(cost["extrapolated"], false);
    // Too large to be run without being asked.
    let large = run(&["models", "show", "uvmnet_upstream"]).expect_success();
    assert!(large.stdout.contains("--cost always"), "{}", large.stdout);
}
