//! The reports of `dehaze` and `benchmark` in a real browser: Chromium, driven by the WebDriver protocol (W3C, 2018).
//!
//! Without `chromium` and `chromedriver` on the path the tests are ignored and say so. With `VISION_MAMBA_SCREENSHOTS=DIR` the page's
//! pictures are left there to be looked at.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod util;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use image::{Rgb, RgbImage};
use ndarray::{ArrayD, Axis, IxDyn};
use serde_json::{json, Value};
use vision_mamba_datasets::{write_image, write_labels, Geometry, Image, LabelMap};

/// A test, given the browser and its driver.
type Test = (&'static str, fn(&Path, &Path));

const TESTS: [Test; 3] = [
    ("the_report_of_dehaze", the_report),
    ("the_page_of_a_benchmark_of_volumes", the_page_of_volumes),
    ("the_page_of_a_benchmark_of_pictures", the_page_of_pictures),
];

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut places = std::env::split_paths(&path).map(|folder| folder.join(name));
    places.find(|p| p.is_file())
}

fn main() -> ExitCode {
    // as the harness has it: a name chooses
    let wanted: Vec<String> = (std::env::args().skip(1))
        .filter(|a| !a.starts_with('-'))
        .collect();
    let tests = TESTS
        .iter()
        .filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str())));
    let tests: Vec<_> = tests.collect();
    println!("\nrunning {} tests", tests.len());
    let found = on_path("chromium").or_else(|| on_path("google-chrome"));
    let (Some(chromium), Some(driver)) = (found, on_path("chromedriver")) else {
        for (name, _) in &tests {
            println!("test {name} ... ignored, no chromium and chromedriver on PATH (Debian: chromium chromium-driver)");
        }
        println!(
            "\ntest result: ok. 0 passed; 0 failed; {} ignored",
            tests.len()
        );
        return ExitCode::SUCCESS;
    };
    let mut failed = 0;
    for (name, test) in &tests {
        let outcome = std::panic::catch_unwind(|| test(&chromium, &driver));
        failed += usize::from(outcome.is_err());
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!("test {name} ... {word}");
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    let passed = tests.len() - failed;
    println!("\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored");
    match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// A browser, ended when dropped.
struct Browser {
    driver: Child,
    port: u16,
    session: String,
}

impl Browser {
    fn start(chromium: &Path, driver: &Path, profile: &Path) -> Self {
        let mut driver = Command::new(driver)
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = loop {
            let line = lines.next().expect("chromedriver ends at once").unwrap();
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                break port.trim_end_matches('.').parse().unwrap();
            }
        };
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--window-size=1000,1400",
        ];
        let profile = format!("--user-data-dir={}", profile.display());
        let arguments: Vec<&str> = arguments.into_iter().chain([profile.as_str()]).collect();
        let mut browser = Self {
            driver,
            port,
            session: String::new(),
        };
        let options = json!({"binary": chromium, "args": arguments});
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": options, "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"}
        }}});
        let answer = browser.ask("POST", "/session", &wanted);
        browser.session = answer["sessionId"].as_str().expect("a session").to_string();
        browser
    }

    fn ask(&self, verb: &str, path: &str, body: &Value) -> Value {
        let path = match self.session.is_empty() {
            true => path.to_string(),
            false => format!("/session/{}{path}", self.session),
        };
        let body = if verb == "POST" {
            body.to_string()
        } else {
            String::new()
        };
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        write!(
            stream,
            "{verb} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.port,
            body.len()
        )
        .unwrap();
        let mut reader = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if line.trim().is_empty() {
                break;
            }
            if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
                length = n.trim().parse().unwrap();
            }
        }
        let mut answer = vec![0; length];
        reader.read_exact(&mut answer).unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        let value = answer["value"].clone();
        assert!(value.get("error").is_none(), "{verb} {path}: {value}");
        value
    }

    /// The value of a script's `return`.
    fn run(&self, script: &str) -> Value {
        self.ask(
            "POST",
            "/execute/sync",
            &json!({"script": script, "args": []}),
        )
    }

    fn find(&self, css: &str) -> String {
        let query = json!({"using": "css selector", "value": css});
        let found = self.ask("POST", "/element", &query);
        let id = found.as_object().unwrap().values().next().unwrap();
        id.as_str().unwrap().to_string()
    }

    fn keys(&self, element: &str, keys: &str) {
        self.ask(
            "POST",
            &format!("/element/{element}/value"),
            &json!({"text": keys}),
        );
    }

    fn open(&self, page: &Path) {
        let url = format!("file://{}", page.display());
        self.ask("POST", "/url", &json!({"url": url}));
    }

    /// Nothing was fetched but the page, and the console is silent.
    fn nothing_was_asked_for_or_complained_about(&self) {
        let log = self.ask("POST", "/se/log", &json!({"type": "performance"}));
        let requests: Vec<String> = (log.as_array().unwrap().iter())
            .filter_map(|entry| serde_json::from_str::<Value>(entry["message"].as_str()?).ok())
            .filter(|m| m["message"]["method"] == "Network.requestWillBeSent")
            .map(|m| {
                m["message"]["params"]["request"]["url"]
                    .as_str()
                    .unwrap_or_default()
                    .to_string()
            })
            // The browser's own new tab is no business of the page's.
            .filter(|url| !url.starts_with("data:") && !url.starts_with("chrome:"))
            .collect();
        assert_eq!(requests.len(), 1, "{requests:?}");
        assert!(requests[0].ends_with("/report.html"), "{requests:?}");
        let console = self.ask("POST", "/se/log", &json!({"type": "browser"}));
        assert_eq!(console, json!([]));
    }

    /// Scripts are not run from the next loading on.
    fn without_scripts(&self) {
        let off = json!({"cmd": "Emulation.setScriptExecutionDisabled", "params": {"value": true}});
        self.ask("POST", "/goog/cdp/execute", &off);
    }

    fn screenshot(&self, name: &str) {
        if let Some(folder) = std::env::var_os("VISION_MAMBA_SCREENSHOTS") {
            let picture = self.ask("GET", "/screenshot", &Value::Null);
            let png = STANDARD.decode(picture.as_str().unwrap()).unwrap();
            std::fs::write(Path::new(&folder).join(name), png).unwrap();
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() && !std::thread::panicking() {
            self.ask("DELETE", "", &Value::Null);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// Pictures under haze of three strengths, and the clear one.
fn pictures(root: &Path) {
    for folder in ["hazy", "clear"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    let clear = RgbImage::from_fn(160, 120, |x, y| {
        let dark = (x / 10 + y / 10) % 2 == 0;
        match (y < 30, dark) {
            (true, _) => Rgb([220, 225, 230]),
            (_, true) => Rgb([20, 60, 10]),
            (_, false) => Rgb([150, (x % 160) as u8, 40]),
        }
    });
    clear.save(root.join("clear/scene.png")).unwrap();
    for (i, t) in [0.8f32, 0.3, 0.55].into_iter().enumerate() {
        let hazy = RgbImage::from_fn(160, 120, |x, y| {
            Rgb(clear
                .get_pixel(x, y)
                .0
                .map(|v| (f32::from(v) * t + 230.0 * (1.0 - t)) as u8))
        });
        hazy.save(root.join(format!("hazy/scene_{i}_<b>.png")))
            .unwrap();
    }
}

const RIGHT: &str = "\u{e014}";
const LEFT: &str = "\u{e012}";
const HOME: &str = "\u{e011}";
const ENTER: &str = "\u{e007}";
const TAB: &str = "\u{e004}";

fn the_report(chromium: &Path, driver: &Path) {
    let dir = tempfile::tempdir().unwrap();
    pictures(dir.path());
    let at = |name: &str| dir.path().join(name).display().to_string();
    util::run(&[
        "dehaze",
        "-i",
        &at("hazy"),
        "-o",
        &at("out"),
        "--method",
        "dcp",
        "--report",
        &at("report.html"),
        "--reference",
        &at("clear"),
    ])
    .expect_success();
    let browser = Browser::start(chromium, driver, &dir.path().join("profile"));
    browser.open(&dir.path().join("report.html"));

    // Every picture is there and shown; names are text.
    let loaded = browser.run("return [...document.images].map(i => i.complete && i.naturalWidth)");
    assert_eq!(loaded, json!([160, 160, 160, 160, 160, 160]));
    let names =
        "return [...document.querySelectorAll('tbody tr')].map(r => r.cells[0].textContent)";
    let by_name = json!(["scene_0_<b>.png", "scene_1_<b>.png", "scene_2_<b>.png"]);
    assert_eq!(browser.run(names), by_name);

    // The slider: reached by the tab key, labelled, moved by keys, and the picture follows.
    let input = browser.find("#r0");
    let label = browser.ask(
        "GET",
        &format!("/element/{input}/computedlabel"),
        &Value::Null,
    );
    assert_eq!(label, "Before / after");
    let clip = "return getComputedStyle(document.querySelector('#p0 .before')).clipPath";
    assert_eq!(browser.run(clip), "inset(0px 50% 0px 0px)");
    browser.run("document.querySelector('tbody tr:last-child a').focus()");
    let focused = browser.find("tbody tr:last-child a");
    browser.keys(&focused, TAB);
    assert_eq!(browser.run("return document.activeElement.id"), "r0");
    browser.keys(&input, &LEFT.repeat(3));
    assert_eq!(
        browser.run("return document.querySelector('#r0').value"),
        "47"
    );
    assert_eq!(browser.run(clip), "inset(0px 53% 0px 0px)");
    browser.screenshot("slider.png");
    browser.keys(&input, HOME);
    assert_eq!(browser.run(clip), "inset(0px 100% 0px 0px)");
    let other = "return getComputedStyle(document.querySelector('#p1 .before')).clipPath";
    assert_eq!(
        browser.run(other),
        "inset(0px 50% 0px 0px)",
        "another picture's slider moved"
    );
    // The two pictures lie on each other.
    let boxes = "return [...document.querySelectorAll('#p0 img')].map(i => { const b = i.getBoundingClientRect(); return [b.x, b.y, b.width, b.height] })";
    let boxes = browser.run(boxes);
    assert_eq!(boxes[0], boxes[1]);

    // Sorting by keys: haze before is least for picture 0 and most for picture 1; PSNR the other way.
    let haze = browser.find("thead th:nth-child(4) button");
    browser.keys(&haze, ENTER);
    let rising = json!(["scene_0_<b>.png", "scene_2_<b>.png", "scene_1_<b>.png"]);
    assert_eq!(browser.run(names), rising);
    let sorted = "return document.querySelector('thead th:nth-child(4)').ariaSort";
    assert_eq!(browser.run(sorted), "ascending");
    browser.keys(&haze, ENTER);
    assert_eq!(
        browser.run(names),
        json!(["scene_1_<b>.png", "scene_2_<b>.png", "scene_0_<b>.png"])
    );
    let psnr = browser.find("thead th:nth-child(6) button");
    browser.keys(&psnr, ENTER);
    assert_eq!(
        browser.run(names),
        json!(["scene_1_<b>.png", "scene_2_<b>.png", "scene_0_<b>.png"])
    );
    browser.keys(&browser.find("thead th:first-child button"), ENTER);
    assert_eq!(browser.run(names), by_name);
    browser.screenshot("sorted.png");

    // On paper both stand side by side, and nothing is wider than the page.
    let print = json!({"cmd": "Emulation.setEmulatedMedia", "params": {"media": "print"}});
    browser.ask("POST", "/goog/cdp/execute", &print);
    assert_eq!(browser.run(clip), "none");
    let columns = "const [a, b] = [...document.querySelectorAll('#p0 img')].map(i => i.getBoundingClientRect()); return a.right <= b.left && a.top === b.top";
    assert_eq!(browser.run(columns), true);
    browser.screenshot("print.png");

    browser.nothing_was_asked_for_or_complained_about();

    // Without scripts the pictures are side by side and no dead slider is shown.
    browser.without_scripts();
    let screen = json!({"cmd": "Emulation.setEmulatedMedia", "params": {"media": ""}});
    browser.ask("POST", "/goog/cdp/execute", &screen);
    browser.ask("POST", "/refresh", &json!({}));
    let rect = |css: &str| {
        let element = browser.find(css);
        browser.ask("GET", &format!("/element/{element}/rect"), &Value::Null)
    };
    let (before, after) = (rect("#p0 .before img"), rect("#p0 .after img"));
    assert_eq!(before["y"], after["y"]);
    let right = before["x"].as_f64().unwrap() + before["width"].as_f64().unwrap();
    assert!(right <= after["x"].as_f64().unwrap(), "{before} {after}");
    assert_eq!(rect("#r0")["width"], 0);
    browser.screenshot("no_scripts.png");
}

/// A disc in each slice, `grown` wider than the reference.
fn heart(number: usize, grown: f64) -> LabelMap {
    let data = ArrayD::from_shape_fn(IxDyn(&[5, 64, 60]), |at| {
        let (y, x) = (at[1] as f64 - 30.0, at[2] as f64 - 25.0 - number as f64);
        let far = (y * y + x * x).sqrt() + at[0] as f64;
        match far {
            f if f < 8.0 => 3,
            f if f < 14.0 => 2,
            f if f < 20.0 + grown => 1,
            _ => 0,
        }
    });
    LabelMap {
        data,
        geometry: Geometry::unit(3),
    }
}

/// ACDC with a patient to train on and three to test on, and predictions of two programs.
fn volumes(root: &Path) {
    for (part, number) in [
        ("training", 1),
        ("testing", 101),
        ("testing", 102),
        ("testing", 103),
    ] {
        let patient = format!("patient{number:03}");
        let folder = root.join("ACDC").join(part).join(&patient);
        std::fs::create_dir_all(&folder).unwrap();
        let labels = heart(number % 100, 0.0);
        let at = |rest: &str| folder.join(format!("{patient}_frame01{rest}.nii.gz"));
        let data = labels.data.mapv(|v| f32::from(v) * 40.0 + number as f32);
        let image = Image {
            data: data.insert_axis(Axis(0)),
            geometry: labels.geometry.clone(),
        };
        write_image(&at(""), &image).unwrap();
        write_labels(&at("_gt"), &labels).unwrap();
        for (name, grown) in [("one", number as f64 % 10.0 / 2.0), ("two", 3.0)] {
            let out = root.join(name);
            std::fs::create_dir_all(&out).unwrap();
            let file = out.join(format!("{patient}_frame01.nii.gz"));
            write_labels(&file, &heart(number % 100, grown)).unwrap();
        }
    }
}

fn the_page_of_volumes(chromium: &Path, driver: &Path) {
    let dir = tempfile::tempdir().unwrap();
    volumes(dir.path());
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (data, out) = (at("ACDC"), at("out"));
    let [one, two] = ["one", "two"].map(|name| format!("{name}<i>={}", at(name)));
    let typed = [
        "benchmark",
        "acdc",
        "--data",
        &data,
        "--out",
        &out,
        "--pred",
        &one,
        "--pred",
        &two,
    ];
    util::run(&typed).expect_success();
    let browser = Browser::start(chromium, driver, &dir.path().join("profile"));
    browser.open(&dir.path().join("out/report.html"));

    // Names are text; own rows are told from published ones; all that is drawn says what it is.
    let own = browser
        .run("return [...document.querySelectorAll('tr.own')].map(r => r.cells[0].textContent)");
    assert_eq!(own, json!(["one<i>", "two<i>"]));
    let nameless = "return [...document.querySelectorAll('svg, img')].filter(e => !(e.getAttribute('aria-label') || e.alt)).length";
    assert_eq!(browser.run(nameless), 0);
    assert_eq!(
        browser.run("return document.querySelectorAll('svg').length"),
        3
    );
    browser.screenshot("benchmark_top.png");

    // Slices: the slider is reached by the tab key, labelled, and moved by keys; the picture and its words follow.
    assert_eq!(
        browser.run("return document.querySelectorAll('.looked').length"),
        3
    );
    let seen = "return [...document.querySelectorAll('.looked:nth-of-type(1) figure')].filter(f => f.getClientRects().length).map(f => f.querySelector('figcaption').textContent)";
    let slider = browser.find("#s0");
    let label = browser.ask(
        "GET",
        &format!("/element/{slider}/computedlabel"),
        &Value::Null,
    );
    assert_eq!(label, "Slice");
    assert_eq!(browser.run(seen), json!(["slice 2 of 5"]));
    browser.keys(&slider, &RIGHT.repeat(2));
    assert_eq!(browser.run(seen), json!(["slice 4 of 5"]));
    let told = "return document.querySelector('#s0').getAttribute('aria-valuetext')";
    assert_eq!(browser.run(told), "slice 4 of 5");
    let shown = "return [...document.querySelectorAll('.looked figure')].filter(f => f.getClientRects().length).map(f => f.querySelector('img').naturalWidth > 100)";
    assert_eq!(browser.run(shown), json!([true, true, true]));
    browser.screenshot("benchmark_slices.png");
    browser.keys(&slider, HOME);
    assert_eq!(browser.run(seen), json!(["slice 0 of 5"]));
    browser.run("document.querySelector('#s0').focus()");
    browser.keys(&slider, TAB);
    assert_eq!(browser.run("return document.activeElement.id"), "s1");

    // Every case can be sorted by keys, by number and by name.
    let column = |table: &str, n: usize| {
        format!("return [...document.querySelectorAll('{table} tbody tr')].map(r => r.cells[{n}].textContent)")
    };
    browser.run("[...document.querySelectorAll('table.sorts')].at(-1).id = 'every'");
    let dice = browser.find("#every thead th:nth-child(5) button");
    browser.keys(&dice, ENTER);
    let sorted = browser.run(&column("#every", 4));
    let numbers: Vec<f64> = (sorted.as_array().unwrap().iter())
        .map(|v| v.as_str().unwrap().parse().unwrap())
        .collect();
    assert_eq!(numbers.len(), 2 * 3 * 3);
    assert!(
        numbers.is_sorted() && numbers[0] < numbers[17],
        "{numbers:?}"
    );
    browser.keys(&dice, ENTER);
    assert_eq!(browser.run(&column("#every", 4))[17], sorted[0]);

    // What was run opens by keys; nothing is wider than the page.
    let summary = browser.find("details summary");
    browser.keys(&summary, ENTER);
    assert_eq!(
        browser.run("return document.querySelector('details').open"),
        true
    );
    let wide =
        "return document.documentElement.scrollWidth <= document.documentElement.clientWidth";
    assert_eq!(browser.run(wide), true);
    browser.nothing_was_asked_for_or_complained_about();

    // Without scripts a slice of each case stands there, without a dead slider or button.
    browser.without_scripts();
    browser.ask("POST", "/refresh", &json!({}));
    let slider = browser.find("#s0");
    let rect = browser.ask("GET", &format!("/element/{slider}/rect"), &Value::Null);
    assert_eq!(rect["width"], 0);
    let figure = browser.find(".looked figure:not([hidden])");
    let rect = browser.ask("GET", &format!("/element/{figure}/rect"), &Value::Null);
    assert!(rect["width"].as_f64().unwrap() > 100.0);
}

fn the_page_of_pictures(chromium: &Path, driver: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let outdoor = dir.path().join("SOTS/outdoor");
    pictures(&outdoor);
    std::fs::rename(
        outdoor.join("clear/scene.png"),
        outdoor.join("clear/0001.png"),
    )
    .unwrap();
    for i in 0..3 {
        let name = outdoor.join(format!("hazy/scene_{i}_<b>.png"));
        std::fs::rename(name, outdoor.join(format!("hazy/0001_0.{i}_0.2.png"))).unwrap();
    }
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (data, out) = (at("SOTS"), at("out"));
    let same = format!("unchanged={}", at("SOTS/outdoor/hazy"));
    let typed = [
        "benchmark",
        "sots-outdoor",
        "--data",
        &data,
        "--out",
        &out,
        "--method",
        "dcp",
        "--pred",
        &same,
    ];
    util::run(&typed).expect_success();
    let browser = Browser::start(chromium, driver, &dir.path().join("profile"));
    browser.open(&dir.path().join("out/report.html"));
    let loaded = "return [...document.images].map(i => i.complete && i.naturalWidth)";
    assert_eq!(browser.run(loaded), json!([480, 480, 480]));
    let sliders = "return document.querySelectorAll('input').length";
    assert_eq!(browser.run(sliders), 0, "one picture needs no slider");
    let labels =
        "return [...document.querySelectorAll('svg')].map(s => s.getAttribute('aria-label'))";
    assert_eq!(
        browser.run(labels),
        json!(["box plot of PSNR by class", "PSNR by case"])
    );
    browser.screenshot("benchmark_pictures.png");
    browser.nothing_was_asked_for_or_complained_about();
}
