//! One self-contained page on a benchmark: table, differences, plots, cases to look through, and what was run.
//!
//! Nothing is fetched. Plots are drawn as SVG; without scripts the first slice of every case stands there and tables keep their order.

use std::collections::BTreeMap;
use std::fmt::Write;

use base64::engine::general_purpose::STANDARD;
use base64::Engine;

use super::html::{escaped, STYLE as COMMON};
use crate::benchmark::results::{shown, value, Entered, Results, OVERALL};
use crate::benchmark::score::CaseRow;

/// A case to look through: JPEG files of its slices.
#[derive(Debug, Clone)]
pub struct Looked {
    /// What stands above it, as `worst: case_7, Dice 0.41`.
    pub title: String,
    /// What stands side by side, as `image, reference and prediction`.
    pub beside: &'static str,
    /// What each picture shows, as `slice 12 of 40`, and its JPEG file.
    pub slices: Vec<(String, Vec<u8>)>,
}

const STYLE: &str = r#"
body { max-width: 78rem; }
table:not(.sorts) :is(th, td):last-child { text-align: left; } table:not(.sorts) td:first-child { white-space: nowrap; }
.own td { font-weight: 600; background: #3b82f618; }
svg { max-width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
.looked img { display: block; max-width: 100%; height: auto; }
.looked label { display: flex; gap: .6rem; align-items: center; margin: .4rem 0; } .looked label[hidden] { display: none; } .looked input { flex: 1; max-width: 40rem; }
pre { overflow-x: auto; background: #8881; padding: .6rem; } details { margin: .5rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; } dt { font-weight: 600; } dd { margin: 0; }
"#;

const SCRIPT: &str = r#"
"use strict";
for (const looked of document.querySelectorAll(".looked")) {
  const pictures = [...looked.querySelectorAll("figure")], input = looked.querySelector("input");
  if (!input) continue;
  const show = () => {
    pictures.forEach((figure, i) => { figure.hidden = i !== +input.value; });
    input.setAttribute("aria-valuetext", pictures[+input.value].querySelector("figcaption").textContent);
  };
  input.closest("label").hidden = false;
  input.addEventListener("input", show);
  show();
}
for (const table of document.querySelectorAll("table.sorts")) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].textContent, body = table.tBodies[0];
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)], [m, n] = [parseFloat(x), parseFloat(y)];
        if (x === "-" || y === "-") return (x === "-") - (y === "-");
        const sign = isNaN(m) || isNaN(n) ? x.localeCompare(y, undefined, { numeric: true }) : m - n;
        return up ? sign : -sign;
      };
      [...body.rows].sort(order).forEach((row) => body.append(row));
    });
  });
}
"#;

/// Cases in the table of the page; all are in the CSV file.
const MOST_ROWS: usize = 3000;

/// The whole page.
pub fn page(results: &Results, looked: &[Looked]) -> String {
    let mut out = String::new();
    let title = escaped(&format!("{}: protocol {}", results.title, results.protocol));
    out += "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n";
    out += "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n";
    let _ = writeln!(out, "<title>{title}</title>\n<style>{COMMON}{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>");
    let _ = writeln!(out, "<p>{}</p>", escaped(&results.cases));
    list(&mut out, "Missing or not done", &results.failures);
    let (head, rows) = results.rows();
    table(&mut out, &head, &rows, false);
    list(&mut out, "Before comparing", &results.caveats);
    definition(&mut out, results);
    differences(&mut out, results);
    plots(&mut out, results);
    for (number, case) in looked.iter().enumerate() {
        look(&mut out, number, case);
    }
    cases(&mut out, results);
    out += "<h2>What was run</h2>\n";
    for entrant in &results.entrants {
        let _ = writeln!(
            out,
            "<details><summary>{}</summary>\n<pre>{}</pre></details>",
            escaped(&entrant.name),
            escaped(&entrant.made.join("\n"))
        );
    }
    let _ = writeln!(out, "</main>\n<script>{SCRIPT}</script>\n</body>\n</html>");
    out
}

fn list(out: &mut String, title: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let _ = writeln!(out, "<h2>{}</h2>\n<ul>", escaped(title));
    for line in lines {
        let _ = writeln!(out, "<li>{}</li>", escaped(line));
    }
    *out += "</ul>\n";
}

fn table(out: &mut String, head: &[String], rows: &[(Vec<String>, bool)], sorts: bool) {
    let class = if sorts { " class=\"sorts\"" } else { "" };
    let _ = write!(out, "<div class=\"scroll\"><table{class}><thead><tr>");
    for cell in head {
        let _ = write!(out, "<th scope=\"col\">{}</th>", escaped(cell));
    }
    *out += "</tr></thead><tbody>\n";
    for (cells, own) in rows {
        *out += if *own { "<tr class=\"own\">" } else { "<tr>" };
        for cell in cells {
            let _ = write!(out, "<td>{}</td>", escaped(cell));
        }
        *out += "</tr>\n";
    }
    *out += "</tbody></table></div>\n";
}

fn definition(out: &mut String, results: &Results) {
    *out += "<h2>Protocol</h2>\n<dl>\n";
    for (what, words) in &results.definition {
        let _ = writeln!(out, "<dt>{}</dt><dd>{}</dd>", escaped(what), escaped(words));
    }
    *out += "</dl>\n";
}

fn differences(out: &mut String, results: &Results) {
    if results.differences.is_empty() {
        return;
    }
    *out += "<h2>Is the difference real?</h2>\n<p>First less second, on the cases that both have. The interval is where the mean lies nineteen times out of \
        twenty when cases are drawn anew; p is that of Wilcoxon's signed-rank test. Neither says anything about another training run.</p>\n";
    let head = [
        "first",
        "second",
        "class",
        "metric",
        "mean",
        "95% interval",
        "p",
        "larger / smaller",
        "cases",
    ]
    .map(str::to_owned);
    let row = |d: &crate::benchmark::results::Difference| {
        let f = &d.found;
        let cells = vec![
            d.first.clone(),
            d.second.clone(),
            d.class.clone(),
            d.column.clone(),
            format!("{:+.4}", f.mean),
            f.interval_95
                .map_or("-".into(), |(l, h)| format!("{l:+.4} to {h:+.4}")),
            f.wilcoxon_p.map_or("-".into(), |p| format!("{p:.4}")),
            format!("{} / {}", f.larger.0, f.larger.1),
            f.cases.to_string(),
        ];
        (cells, false)
    };
    let rows: Vec<_> = results.differences.iter().map(row).collect();
    table(out, &head, &rows, true);
}

fn cases(out: &mut String, results: &Results) {
    *out += "<h2>Every case</h2>\n";
    let mut head = vec![
        "entrant".to_owned(),
        "case".into(),
        "class".into(),
        "size".into(),
    ];
    head.extend(results.columns.iter().cloned());
    let mut rows = Vec::new();
    for entrant in &results.entrants {
        for row in &entrant.rows {
            for class in &row.classes {
                let mut cells = vec![entrant.name.clone(), row.case.clone(), class.class.clone()];
                cells.push(class.size.map_or("-".into(), |v| format!("{v:.1}")));
                cells.extend(results.columns.iter().map(|c| {
                    class
                        .numbers
                        .get(c)
                        .copied()
                        .flatten()
                        .map_or("-".into(), |v| shown(c, v))
                }));
                rows.push((cells, false));
            }
        }
    }
    if rows.len() > MOST_ROWS {
        let _ = writeln!(
            out,
            "<p>The first {MOST_ROWS} of {} rows; all are in results.csv.</p>",
            rows.len()
        );
        rows.truncate(MOST_ROWS);
    }
    table(out, &head, &rows, true);
}

fn look(out: &mut String, number: usize, case: &Looked) {
    let _ = writeln!(
        out,
        "<section class=\"looked\"><h2>{}</h2>",
        escaped(&case.title)
    );
    if case.slices.len() > 1 {
        let _ = writeln!(
            out,
            "<label for=\"s{number}\" hidden>Slice <input id=\"s{number}\" type=\"range\" min=\"0\" max=\"{}\" value=\"{}\"></label>",
            case.slices.len() - 1,
            case.slices.len() / 2
        );
    }
    for (i, (words, jpeg)) in case.slices.iter().enumerate() {
        let hidden = if i == case.slices.len() / 2 {
            ""
        } else {
            " hidden"
        };
        let _ = writeln!(
            out,
            "<figure{hidden}><img alt=\"{2}, {0}\" src=\"data:image/jpeg;base64,{1}\"><figcaption>{0}</figcaption></figure>",
            escaped(words),
            STANDARD.encode(jpeg),
            escaped(case.beside)
        );
    }
    *out += "</section>\n";
}

/// Colours of entrants, of Okabe and Ito's that stand out on light and dark.
const COLOURS: [&str; 6] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9",
];

fn plots(out: &mut String, results: &Results) {
    let Some(column) = results.columns.first() else {
        return;
    };
    if results.entrants.iter().all(|e| e.rows.is_empty()) {
        return;
    }
    let _ = writeln!(out, "<h2>{} by class</h2>\n<p>Median, quartiles, and whiskers over all cases; a point for each case.</p>", escaped(column));
    *out += &boxes(&results.entrants, column);
    if results.entrants[0].rows.len() > 1 {
        let _ = writeln!(out, "<h2>{} by case</h2>\n<p>Cases in the order of {}; the name of a point is shown where the mouse rests, and all are in the table below.</p>", escaped(column), escaped(&results.entrants[0].name));
        *out += &by_case(&results.entrants, column);
    }
    if results
        .entrants
        .iter()
        .flat_map(|e| &e.rows)
        .flat_map(|r| &r.classes)
        .any(|c| c.size.is_some_and(|s| s > 0.0))
    {
        let _ = writeln!(out, "<h2>{} against size</h2>\n<p>A point for each class of each case; size in the reference, on a logarithmic axis (ml, of pictures pixels).</p>", escaped(column));
        *out += &scatter(&results.entrants, column);
    }
    if results.entrants.len() > 1 {
        let named = results.entrants.iter().enumerate().map(|(i, e)| {
            format!(
                "<span style=\"color:{}\">&#9632;</span> {}",
                COLOURS[i % COLOURS.len()],
                escaped(&e.name)
            )
        });
        let _ = writeln!(out, "<p>{}</p>", named.collect::<Vec<_>>().join(" &nbsp; "));
    }
}

/// Where values lie on an axis: shares from 0 to 1, the rest from the least to the most.
fn range(values: &[f64], column: &str) -> (f64, f64) {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    match column {
        "PSNR" | "HD" | "HD95" | "ASSD" | "CIEDE2000" if most > 0.0 => {
            (least.min(0.0), most * 1.05)
        }
        "PSNR" | "HD" | "HD95" | "ASSD" | "CIEDE2000" => (0.0, 1.0),
        _ => (0.0, 1.0),
    }
}

const HEIGHT: f64 = 260.0;
const TOP: f64 = 12.0;
const LEFT: f64 = 48.0;

/// Lines and numbers of an axis upwards.
fn axis(svg: &mut String, (low, high): (f64, f64), width: f64) -> impl Fn(f64) -> f64 {
    let place = move |v: f64| TOP + HEIGHT * (1.0 - (v - low) / (high - low));
    for step in 0..=4 {
        let v = low + (high - low) * f64::from(step) / 4.0;
        let y = place(v);
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{width}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"currentColor\" stroke-opacity=\".2\"/>\
             <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            y + 4.0,
            if high <= 1.0 { format!("{v:.2}") } else { format!("{v:.0}") }
        );
    }
    place
}

fn boxes(entrants: &[Entered], column: &str) -> String {
    let mut classes: Vec<&str> = Vec::new();
    for class in entrants.iter().flat_map(|e| &e.classes) {
        if !classes.contains(&class.0.as_str()) {
            classes.push(&class.0);
        }
    }
    if classes.len() > 1 {
        classes.insert(0, OVERALL);
    }
    let of = |entrant: &Entered, class: &str| -> Vec<f64> {
        let mut values: Vec<f64> = entrant
            .rows
            .iter()
            .filter_map(|r| value(r, class, column))
            .filter(|v| v.is_finite())
            .collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let all: Vec<f64> = (entrants.iter())
        .flat_map(|e| classes.iter().flat_map(move |c| of(e, c)))
        .collect();
    let each = 22.0;
    let group = each * entrants.len() as f64 + 24.0;
    let width = LEFT + group * classes.len() as f64;
    let mut svg = format!(
        "<svg role=\"img\" aria-label=\"box plot of {} by class\" width=\"{width:.0}\" viewBox=\"0 0 {width:.0} {:.0}\">",
        escaped(column),
        HEIGHT + TOP + 90.0
    );
    let place = axis(&mut svg, range(&all, column), width);
    for (g, class) in classes.iter().enumerate() {
        let left = LEFT + group * g as f64 + 12.0;
        for (i, entrant) in entrants.iter().enumerate() {
            let values = of(entrant, class);
            if values.is_empty() {
                continue;
            }
            let at = |part: f64| values[((values.len() - 1) as f64 * part).round() as usize];
            let (x, colour) = (left + each * i as f64, COLOURS[i % COLOURS.len()]);
            let middle = x + each / 2.0;
            let [low, first, median, third, high] =
                [0.0, 0.25, 0.5, 0.75, 1.0].map(|p| place(at(p)));
            let _ = write!(
                svg,
                "<g stroke=\"{colour}\" fill=\"{colour}\"><line x1=\"{middle:.1}\" x2=\"{middle:.1}\" y1=\"{high:.1}\" y2=\"{low:.1}\"/>\
                 <rect x=\"{:.1}\" y=\"{third:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill-opacity=\".25\"/>\
                 <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{median:.1}\" y2=\"{median:.1}\" stroke-width=\"2.5\"/>",
                x + 3.0,
                each - 6.0,
                (first - third).max(0.5),
                x + 3.0,
                x + each - 3.0
            );
            for v in values.iter().take(300) {
                let _ = write!(
                    svg,
                    "<circle cx=\"{middle:.1}\" cy=\"{:.1}\" r=\"1.6\"/>",
                    place(*v)
                );
            }
            svg += "</g>";
        }
        let (x, y) = (
            left + each * entrants.len() as f64 / 2.0,
            TOP + HEIGHT + 14.0,
        );
        let _ = write!(
            svg,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"end\" transform=\"rotate(-40 {x:.1} {y:.1})\">{}</text>",
            escaped(class)
        );
    }
    svg + "</svg>\n"
}

/// A point for each case and entrant, in the order of the first entrant's numbers.
fn by_case(entrants: &[Entered], column: &str) -> String {
    let number = |row: &CaseRow| value(row, OVERALL, column).filter(|v| v.is_finite());
    let mut order: Vec<(f64, &str)> = (entrants[0].rows.iter())
        .filter_map(|row| Some((number(row)?, row.case.as_str())))
        .collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    order.truncate(MOST_ROWS);
    let places: BTreeMap<&str, usize> = order.iter().enumerate().map(|(i, c)| (c.1, i)).collect();
    let points: Vec<(usize, usize, &str, f64)> = (entrants.iter().enumerate())
        .flat_map(|(entrant, e)| {
            let places = &places;
            e.rows.iter().filter_map(move |row| {
                let place = places.get(row.case.as_str())?;
                Some((entrant, *place, row.case.as_str(), number(row)?))
            })
        })
        .collect();
    let values: Vec<f64> = points.iter().map(|p| p.3).collect();
    let width = 720.0;
    let mut svg = format!(
        "<svg role=\"img\" aria-label=\"{} by case\" width=\"{width}\" viewBox=\"0 0 {width} {:.0}\">",
        escaped(column),
        HEIGHT + TOP + 10.0
    );
    let place = axis(&mut svg, range(&values, column), width);
    let step = (width - LEFT - 20.0) / order.len().max(1) as f64;
    for (entrant, at, case, number) in points {
        let _ = write!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{}\" fill-opacity=\".7\"><title>{}: {}</title></circle>",
            LEFT + 8.0 + step * (at as f64 + 0.5),
            place(number),
            COLOURS[entrant % COLOURS.len()],
            escaped(case),
            shown(column, number)
        );
    }
    svg + "</svg>\n"
}

fn scatter(entrants: &[Entered], column: &str) -> String {
    let points: Vec<(usize, f64, f64)> = (entrants.iter().enumerate())
        .flat_map(|(i, e)| {
            e.rows.iter().flat_map(|r| &r.classes).filter_map(move |c| {
                let number = c.numbers.get(column).copied().flatten()?;
                let number = number.is_finite().then_some(number)?;
                Some((i, c.size.filter(|s| *s > 0.0)?, number))
            })
        })
        .take(5000)
        .collect();
    let values: Vec<f64> = points.iter().map(|p| p.2).collect();
    let sizes = points.iter().map(|p| p.1.log10());
    let (least, most) = sizes.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), s| {
        (l.min(s), h.max(s))
    });
    let (least, most) = (least.floor(), most.ceil().max(least.floor() + 1.0));
    let width = 720.0;
    let mut svg = format!(
        "<svg role=\"img\" aria-label=\"{} against size\" width=\"{width}\" viewBox=\"0 0 {width} {:.0}\">",
        escaped(column),
        HEIGHT + TOP + 30.0
    );
    let place = axis(&mut svg, range(&values, column), width);
    let across =
        |size: f64| LEFT + 8.0 + (width - LEFT - 30.0) * (size.log10() - least) / (most - least);
    for power in least as i32..=most as i32 {
        let size = 10f64.powi(power);
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{size}</text>",
            across(size),
            TOP + HEIGHT + 18.0
        );
    }
    for (i, size, number) in points {
        let _ = write!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{}\" fill-opacity=\".6\"/>",
            across(size),
            place(number),
            COLOURS[i % COLOURS.len()]
        );
    }
    svg + "</svg>\n"
}
