//! The report of `dehaze` in a real browser: Chromium, driven by the WebDriver protocol (W3C, 2018).
//!
//! Without `chromium` and `chromedriver` on the path the test is ignored and says so. With `VISION_MAMBA_SCREENSHOTS=DIR` the page's
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
use serde_json::{json, Value};

const NAME: &str = "the_report_in_a_browser";

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut places = std::env::split_paths(&path).map(|folder| folder.join(name));
    places.find(|p| p.is_file())
}

fn main() -> ExitCode {
    println!("\nrunning 1 test");
    let found = on_path("chromium").or_else(|| on_path("google-chrome"));
    let (Some(chromium), Some(driver)) = (found, on_path("chromedriver")) else {
        println!("test {NAME} ... ignored, no chromium and chromedriver on PATH (Debian: chromium chromium-driver)");
        println!("\ntest result: ok. 0 passed; 0 failed; 1 ignored");
        return ExitCode::SUCCESS;
    };
    match std::panic::catch_unwind(|| the_report(&chromium, &driver)) {
        Ok(()) => {
            println!("test {NAME} ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored");
            ExitCode::SUCCESS
        }
        Err(_) => {
            println!(
                "test {NAME} ... FAILED\n\ntest result: FAILED. 0 passed; 1 failed; 0 ignored"
            );
            ExitCode::FAILURE
        }
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
    browser.ask(
        "POST",
        "/url",
        &json!({"url": format!("file://{}", at("report.html"))}),
    );

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

    // Nothing was asked for but the page, and the console is silent.
    let log = browser.ask("POST", "/se/log", &json!({"type": "performance"}));
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
    let console = browser.ask("POST", "/se/log", &json!({"type": "browser"}));
    assert_eq!(console, json!([]));

    // Without scripts the pictures are side by side and no dead slider is shown.
    let off = json!({"cmd": "Emulation.setScriptExecutionDisabled", "params": {"value": true}});
    browser.ask("POST", "/goog/cdp/execute", &off);
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
