//! One self-contained page on restored pictures: a before/after slider for each, and a table that sorts.
//!
//! Pictures are embedded, reduced so that the page stays small; nothing is fetched, which the page's own policy forbids besides. Without
//! scripts, and on paper, the pictures stand side by side.

use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use std::fmt::Write;

/// JPEG quality of the embedded pictures.
pub const EMBEDDED_QUALITY: u8 = 85;
/// Pixels of all embedded pictures together, about 16 MB as JPEG in base64.
const MOST_PIXELS: usize = 60_000_000;
/// Sides between which the embedded pictures are.
const SIDES: (usize, usize) = (128, 960);

/// Longest side of an embedded picture when there are so many pairs.
pub fn embedded_side(pairs: usize) -> usize {
    let side = (MOST_PIXELS as f64 / (2 * pairs.max(1)) as f64).sqrt() as usize;
    side.clamp(SIDES.0, SIDES.1)
}

/// Likeness to a reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Decibels, RGB, range 255.
    pub psnr: f64,
    /// Gaussian window, RGB; none for pictures smaller than the window.
    pub ssim: Option<f64>,
}

/// One picture.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// From reading to writing.
    pub seconds: f64,
    /// Haze density before and after, see `evaluate restoration`.
    pub haze: (Option<f64>, Option<f64>),
    /// Likeness to the reference before and after.
    pub scores: Option<[Score; 2]>,
    /// JPEG files of the reduced picture before and after.
    pub pictures: (Vec<u8>, Vec<u8>),
}

/// What the page tells.
#[derive(Debug)]
pub struct Page<'a> {
    /// Its heading.
    pub title: &'a str,
    /// What was done.
    pub method: &'a str,
    /// The pictures.
    pub entries: &'a [Entry],
    /// What went wrong, a line each.
    pub failures: &'a [String],
}

/// Text as it may stand in an element or a quoted attribute.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

pub(super) const STYLE: &str = r#"
:root { color-scheme: light dark; --line: #8886; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; overflow-wrap: anywhere; margin: 2rem 0 .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .8rem; text-align: right; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible, input:focus-visible, a:focus-visible { outline: 3px solid #3b82f6; outline-offset: 2px; }
th[aria-sort=ascending] button::after { content: " \25b2"; } th[aria-sort=descending] button::after { content: " \25bc"; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem; }
.pair figure { margin: 0; } .pair img { display: block; width: 100%; height: auto; }
.slider { display: none; }
.js .pair { --at: 50%; grid-template-columns: 1fr; width: fit-content; max-width: 100%; position: relative; gap: 0; }
.js .pair figure { grid-area: 1 / 1; position: relative; } .js .pair img { width: auto; max-width: 100%; }
.js .pair .before { clip-path: inset(0 calc(100% - var(--at)) 0 0); z-index: 1; }
.js .pair figcaption { position: absolute; top: .4rem; padding: 0 .5rem; background: #000a; color: #fff; border-radius: .2rem; font-size: .8rem; }
.js .before figcaption { left: .4rem; } .js .after figcaption { right: .4rem; }
.js .pair::after { content: ""; position: absolute; z-index: 2; top: 0; bottom: 0; left: var(--at); width: 2px; margin-left: -1px; background: #fff; box-shadow: 0 0 3px #000; pointer-events: none; }
.js .slider { display: flex; gap: .6rem; align-items: center; margin: .4rem 0; } .slider input { flex: 1; min-width: 6rem; max-width: 40rem; }
@media print {
  .js .pair { grid-template-columns: 1fr 1fr; width: auto; gap: .5rem; } .js .pair figure { grid-area: auto; }
  .js .pair img { width: 100%; } .js .pair .before { clip-path: none; } .js .pair::after, .js .slider { display: none; }
  section { break-inside: avoid; }
}
"#;

const SCRIPT: &str = r#"
"use strict";
document.documentElement.classList.add("js");
for (const section of document.querySelectorAll("section.picture")) {
  const pair = section.querySelector(".pair"), input = section.querySelector("input");
  const show = () => {
    pair.style.setProperty("--at", input.value + "%");
    input.setAttribute("aria-valuetext", input.value + " % of the picture shown as it was");
  };
  input.addEventListener("input", show);
  show();
  const move = (event) => {
    if (!event.buttons) return;
    const box = pair.getBoundingClientRect();
    input.value = Math.round(100 * (event.clientX - box.left) / box.width);
    show();
  };
  pair.addEventListener("pointerdown", move);
  pair.addEventListener("pointermove", move);
  pair.addEventListener("dragstart", (event) => event.preventDefault());
}
const table = document.querySelector("table");
table.querySelectorAll("thead th").forEach((head, column) => {
  head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = table.tBodies[0], key = (row) => row.cells[column].dataset.value;
    const numbers = column > 0;
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const sign = numbers ? (+x > +y) - (+x < +y) : x.localeCompare(y, undefined, { numeric: true });
      return up ? sign : -sign;
    };
    [...body.rows].sort(order).forEach((row) => body.append(row));
  });
});
"#;

/// A number of the table: what is shown, and what is sorted by.
fn cell(value: Option<f64>, digits: usize) -> String {
    match value {
        None => "<td data-value=\"\">&ndash;</td>".into(),
        Some(v) if v == f64::INFINITY => "<td data-value=\"Infinity\">equal</td>".into(),
        Some(v) => format!("<td data-value=\"{v}\">{v:.digits$}</td>"),
    }
}

/// The whole page.
pub fn page(page: &Page) -> String {
    let title = escaped(page.title);
    let mut out = String::new();
    let scored = page.entries.iter().any(|e| e.scores.is_some());
    let mut write = |text: &str| out.push_str(text);
    write("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    write("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    write("<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n");
    write(&format!("<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"));
    write(&format!(
        "<p>{}. {} picture(s).</p>\n",
        escaped(page.method),
        page.entries.len()
    ));
    if !page.failures.is_empty() {
        write("<h2>Not done</h2>\n<ul>\n");
        for failure in page.failures {
            write(&format!("<li>{}</li>\n", escaped(failure)));
        }
        write("</ul>\n");
    }
    let mut heads = vec!["Picture", "Pixels", "Seconds", "Haze before", "Haze after"];
    if scored {
        heads.extend(["PSNR before", "PSNR after", "SSIM before", "SSIM after"]);
    }
    write("<div class=\"scroll\"><table>\n<caption>The buttons of the first row sort.</caption>\n<thead><tr>");
    for head in heads {
        write(&format!(
            "<th scope=\"col\"><button type=\"button\">{head}</button></th>"
        ));
    }
    write("</tr></thead>\n<tbody>\n");
    for (i, e) in page.entries.iter().enumerate() {
        let name = escaped(&e.name);
        write(&format!(
            "<tr><td data-value=\"{name}\"><a href=\"#p{i}\">{name}</a></td>"
        ));
        write(&format!(
            "<td data-value=\"{}\">{} &times; {}</td>",
            e.width * e.height,
            e.width,
            e.height
        ));
        write(&cell(Some(e.seconds), 2));
        write(&cell(e.haze.0, 3));
        write(&cell(e.haze.1, 3));
        if scored {
            let [before, after] = e.scores.map_or([None; 2], |s| s.map(Some));
            write(&cell(before.map(|s| s.psnr), 2));
            write(&cell(after.map(|s| s.psnr), 2));
            write(&cell(before.and_then(|s| s.ssim), 4));
            write(&cell(after.and_then(|s| s.ssim), 4));
        }
        write("</tr>\n");
    }
    write("</tbody>\n</table></div>\n<p>Haze: mean dark channel 15&times;15 (He et al. 2009), 0 to 1, clear is near 0.");
    if scored {
        write(" PSNR: dB, RGB of 8 bits, range 255. SSIM: RGB, Gaussian 11&times;11 with deviation 1.5, inside the picture (Wang et al. 2004).");
    }
    write("</p>\n");
    for (i, e) in page.entries.iter().enumerate() {
        let name = escaped(&e.name);
        let [before, after] = [&e.pictures.0, &e.pictures.1].map(|p| STANDARD.encode(p));
        let _ = write!(
            out,
            "<section class=\"picture\" id=\"p{i}\">\n<h2>{name}</h2>\n<div class=\"pair\">\n\
             <figure class=\"before\"><img alt=\"{name} before\" src=\"data:image/jpeg;base64,{before}\"><figcaption>before</figcaption></figure>\n\
             <figure class=\"after\"><img alt=\"{name} after\" src=\"data:image/jpeg;base64,{after}\"><figcaption>after</figcaption></figure>\n</div>\n\
             <div class=\"slider\"><label for=\"r{i}\">Before / after</label><input id=\"r{i}\" type=\"range\" min=\"0\" max=\"100\" value=\"50\"></div>\n</section>\n"
        );
    }
    out.push_str(&format!(
        "</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    ));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_become_markup_and_the_page_asks_for_nothing() {
        let entry = Entry {
            name: "<script>alert('x')</script>\"&.png".into(),
            width: 2,
            height: 1,
            seconds: 0.5,
            haze: (Some(0.5), None),
            scores: None,
            pictures: (vec![1, 2, 3], vec![4]),
        };
        let text = page(&Page {
            title: "t",
            method: "m",
            entries: &[entry],
            failures: &["<b>".into()],
        });
        assert!(!text.contains("<script>alert") && !text.contains("<b>"));
        assert_eq!(text.matches("<script>").count(), 1);
        assert!(!text.contains("http://") && !text.contains("https://") && !text.contains("PSNR"));
    }

    #[test]
    fn many_pictures_are_embedded_small() {
        assert_eq!(embedded_side(1), 960);
        assert!(embedded_side(300) < 330);
        assert_eq!(embedded_side(1_000_000), 128);
    }
}
