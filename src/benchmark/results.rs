//! The table of a benchmark: own rows among published ones, spread over seeds and folds, and paired differences.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vision_mamba_datasets::catalog::{Entry, Protocol, Verified};

use super::score::CaseRow;
use crate::metrics::bootstrap::interval_of;
use crate::metrics::overlap::mean;
use crate::metrics::paired::{paired, Paired};
use crate::metrics::summary::csv_field;
use crate::report::columns::columns;

/// All that a benchmark found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    /// Name in the catalogue.
    pub benchmark: String,
    /// Full name of the data set.
    pub title: String,
    /// Name of the protocol.
    pub protocol: String,
    /// What the protocol says, in words.
    pub definition: Vec<(String, String)>,
    /// Which cases were scored, in words.
    pub cases: String,
    /// The metrics.
    pub columns: Vec<String>,
    /// What was compared.
    pub entrants: Vec<Entered>,
    /// Entrants that differ in seeds and folds alone.
    pub kinds: Vec<Kind>,
    /// Differences from the first entrant's, class by class and over all.
    pub differences: Vec<Difference>,
    /// Published rows.
    pub published: Vec<Published>,
    /// What must be known before comparing.
    pub caveats: Vec<String>,
    /// What went wrong.
    pub failures: Vec<String>,
}

/// One entrant's numbers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entered {
    /// Its name.
    pub name: String,
    /// What it shares with others of other seeds and folds.
    pub kind: String,
    /// How it was made, in words.
    pub made: Vec<String>,
    /// Over classes the mean of their means over cases, by column.
    pub mean: BTreeMap<String, Option<f64>>,
    /// Where the mean over cases lies nineteen times out of twenty, by column.
    pub interval_95: BTreeMap<String, Option<(f64, f64)>>,
    /// By class and column, the mean over cases.
    pub classes: Vec<(String, BTreeMap<String, Option<f64>>)>,
    /// Each case.
    pub rows: Vec<CaseRow>,
}

/// Mean and spread over entrants of one kind.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kind {
    /// What they share.
    pub name: String,
    /// How many there are.
    pub entrants: usize,
    /// Mean and sample standard deviation of their means, by column.
    pub spread: BTreeMap<String, (f64, f64)>,
}

/// What two entrants differ by on the same cases.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Difference {
    /// The first.
    pub first: String,
    /// The second.
    pub second: String,
    /// The class, or all.
    pub class: String,
    /// The metric.
    pub column: String,
    /// First less second.
    pub found: Paired,
}

/// A published row.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Published {
    /// The network.
    pub network: String,
    /// The numbers.
    pub values: BTreeMap<String, f64>,
    /// Where they were read, and what to know about them.
    pub source: String,
}

/// The mean over a case's classes.
pub const OVERALL: &str = "all classes";

impl Entered {
    /// Sums up the cases of an entrant.
    pub fn new(
        name: &str,
        kind: &str,
        made: Vec<String>,
        columns: &[String],
        rows: Vec<CaseRow>,
    ) -> Self {
        let mut names: Vec<&str> = Vec::new();
        for class in rows.iter().flat_map(|r| &r.classes) {
            if !names.contains(&class.class.as_str()) {
                names.push(&class.class);
            }
        }
        let of_class =
            |class: &str, column: &str| mean(rows.iter().map(|row| value(row, class, column)));
        let classes: Vec<(String, BTreeMap<String, Option<f64>>)> = names
            .iter()
            .map(|class| {
                let numbers = columns.iter().map(|c| (c.clone(), of_class(class, c)));
                ((*class).to_owned(), numbers.collect())
            })
            .collect();
        let over_classes = |column: &String| {
            mean(
                classes
                    .iter()
                    .map(|(_, n)| n.get(column).copied().flatten()),
            )
        };
        // of the same number: cases are drawn anew, classes averaged as above
        let over_cases = |column: &String| {
            let table: Vec<Vec<Option<f64>>> = names
                .iter()
                .map(|class| rows.iter().map(|row| value(row, class, column)).collect())
                .collect();
            interval_of(rows.len(), |drawn| {
                mean(
                    table
                        .iter()
                        .map(|of_class| mean(drawn.iter().map(|&case| of_class[case]))),
                )
            })
            // the PSNR of equal pictures has no end
            .filter(|(low, high)| low.is_finite() && high.is_finite())
        };
        Self {
            name: name.into(),
            kind: kind.into(),
            made,
            mean: columns
                .iter()
                .map(|c| (c.clone(), over_classes(c)))
                .collect(),
            interval_95: columns.iter().map(|c| (c.clone(), over_cases(c))).collect(),
            classes,
            rows,
        }
    }
}

/// A number of a case: of a class, or the mean over those that have one.
pub fn value(row: &CaseRow, class: &str, column: &str) -> Option<f64> {
    let number = |c: &super::score::ClassRow| c.numbers.get(column).copied().flatten();
    match class {
        OVERALL => mean(row.classes.iter().map(number)),
        _ => row
            .classes
            .iter()
            .find(|c| c.class == class)
            .and_then(number),
    }
}

/// Mean and spread of the entrants that share their kind, where there are several.
pub fn kinds(entrants: &[Entered], columns: &[String]) -> Vec<Kind> {
    let mut groups: BTreeMap<&str, Vec<&Entered>> = BTreeMap::new();
    for entrant in entrants {
        groups.entry(&entrant.kind).or_default().push(entrant);
    }
    let spread = |group: &[&Entered], column: &String| {
        let all: Vec<f64> = group
            .iter()
            .filter_map(|e| e.mean.get(column).copied().flatten())
            .collect();
        let n = all.len() as f64;
        if n < 2.0 {
            return None;
        }
        let mean = all.iter().sum::<f64>() / n;
        let deviation = (all.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
        Some((column.clone(), (mean, deviation)))
    };
    groups
        .into_iter()
        .filter(|(_, group)| group.len() > 1)
        .map(|(name, group)| Kind {
            name: name.into(),
            entrants: group.len(),
            spread: columns.iter().filter_map(|c| spread(&group, c)).collect(),
        })
        .collect()
}

/// What `first` and `second` differ by on the cases that both have.
pub fn differences(first: &Entered, second: &Entered, columns: &[String]) -> Vec<Difference> {
    let theirs: BTreeMap<&str, &CaseRow> =
        second.rows.iter().map(|r| (r.case.as_str(), r)).collect();
    let classes = first.classes.iter().map(|c| c.0.as_str());
    let mut found = Vec::new();
    for class in [OVERALL]
        .into_iter()
        .chain(classes.filter(|_| first.classes.len() > 1))
    {
        for column in columns {
            let pairs: Vec<(f64, f64)> = (first.rows.iter())
                .filter_map(|row| {
                    let other = theirs.get(row.case.as_str())?;
                    Some((value(row, class, column)?, value(other, class, column)?))
                })
                .collect();
            if let Some(paired) = paired(&pairs) {
                found.push(Difference {
                    first: first.name.clone(),
                    second: second.name.clone(),
                    class: class.into(),
                    column: column.clone(),
                    found: paired,
                });
            }
        }
    }
    found
}

impl Published {
    /// The published rows of a protocol.
    pub fn of(protocol: &Protocol) -> Vec<Self> {
        (protocol.rows.iter())
            .map(|row| Self {
                network: row.network.clone(),
                values: row.values.clone(),
                source: [
                    Some(row.source.clone()),
                    (row.verified == Verified::Second)
                        .then(|| "read in another's table".to_owned()),
                    row.caveat.clone(),
                ]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join("; "),
            })
            .collect()
    }
}

/// A protocol in words.
pub fn definition(entry: &Entry, protocol: &Protocol) -> Vec<(String, String)> {
    [
        ("data set", format!("{} ({})", entry.title, entry.citation)),
        (
            "protocol",
            format!("{}: {}", protocol.name, protocol.source),
        ),
        ("preprocessing", protocol.preprocessing.clone()),
        ("resolution", protocol.resolution.clone()),
        ("metric", protocol.metric.clone()),
        ("empty masks", protocol.empty.clone()),
        ("averaged", protocol.averaged.clone()),
    ]
    .map(|(what, words)| (what.to_owned(), words))
    .to_vec()
}

/// Whether a metric is 0 for what is perfect.
pub fn grows_worse(column: &str) -> bool {
    ["HD", "HD95", "ASSD", "CIEDE2000"].contains(&column)
}

/// A number with as many places as it deserves.
pub fn shown(column: &str, value: f64) -> String {
    match column {
        "PSNR" | "HD" | "HD95" | "ASSD" | "CIEDE2000" => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// One line of the main table.
struct Line {
    network: String,
    cells: Vec<String>,
    source: String,
    own: bool,
    key: f64,
}

impl Results {
    /// Own and published rows, best first by the first column; distances grow towards the worse.
    fn lines(&self) -> Vec<Line> {
        let first = self.columns.first().cloned().unwrap_or_default();
        let worse = grows_worse(&first);
        let key = |v: Option<f64>| match (v, worse) {
            (None, _) => f64::INFINITY,
            (Some(v), true) => v,
            (Some(v), false) => -v,
        };
        let dash = || "-".to_owned();
        let own = self.entrants.iter().map(|e| Line {
            network: e.name.clone(),
            cells: (self.columns.iter())
                .map(|c| {
                    let mean = e.mean.get(c).copied().flatten();
                    let sure = e.interval_95.get(c).copied().flatten();
                    match (mean, sure) {
                        (Some(m), Some((l, h))) => {
                            format!("{} [{}, {}]", shown(c, m), shown(c, l), shown(c, h))
                        }
                        (Some(m), None) => shown(c, m),
                        (None, _) => dash(),
                    }
                })
                .collect(),
            source: format!("this run, {} case(s)", e.rows.len()),
            own: true,
            key: key(e.mean.get(&first).copied().flatten()),
        });
        let kinds = self.kinds.iter().map(|k| Line {
            network: format!("{} (mean of {})", k.name, k.entrants),
            cells: (self.columns.iter())
                .map(|c| {
                    k.spread.get(c).map_or_else(dash, |(m, s)| {
                        format!("{} ± {}", shown(c, *m), shown(c, *s))
                    })
                })
                .collect(),
            source: "these runs, mean and standard deviation".into(),
            own: true,
            key: key(k.spread.get(&first).map(|s| s.0)),
        });
        let published = self.published.iter().map(|p| Line {
            network: p.network.clone(),
            cells: (self.columns.iter())
                .map(|c| p.values.get(c).map_or_else(dash, |v| shown(c, *v)))
                .collect(),
            source: p.source.clone(),
            own: false,
            key: key(p.values.get(&first).copied()),
        });
        let mut lines: Vec<Line> = own.chain(kinds).chain(published).collect();
        lines.sort_by(|a, b| a.key.total_cmp(&b.key));
        lines
    }

    /// The main table's head and rows, with whether a row is an own one.
    pub fn rows(&self) -> (Vec<String>, Vec<(Vec<String>, bool)>) {
        let mut head = vec!["network".to_owned()];
        head.extend(self.columns.iter().cloned());
        head.push("source".into());
        let row = |line: Line| {
            let mut cells = vec![line.network];
            cells.extend(line.cells);
            cells.push(line.source);
            (cells, line.own)
        };
        (head, self.lines().into_iter().map(row).collect())
    }

    /// The tables as text.
    pub fn text(&self) -> String {
        let (head, rows) = self.rows();
        let mut text = format!(
            "{}, protocol {}: {}\n\n",
            self.title, self.protocol, self.cases
        );
        let marked: Vec<Vec<String>> = std::iter::once((head, false))
            .chain(rows)
            .map(|(mut cells, own)| {
                cells[0] = format!("{} {}", if own { ">" } else { " " }, cells[0]);
                cells
            })
            .collect();
        text += &columns(&marked);
        if !self.differences.is_empty() {
            text += "\nDifferences on the same cases (first less second; 95% interval by bootstrap; Wilcoxon's signed-rank test):\n";
            let mut table = vec![[
                "first", "second", "class", "metric", "mean", "interval", "p", "cases",
            ]
            .map(str::to_owned)
            .to_vec()];
            for d in &self.differences {
                let sure = d
                    .found
                    .interval_95
                    .map_or("-".into(), |(l, h)| format!("{l:+.4}..{h:+.4}"));
                table.push(vec![
                    d.first.clone(),
                    d.second.clone(),
                    d.class.clone(),
                    d.column.clone(),
                    format!("{:+.4}", d.found.mean),
                    sure,
                    d.found.wilcoxon_p.map_or("-".into(), |p| format!("{p:.4}")),
                    d.found.cases.to_string(),
                ]);
            }
            text += &columns(&table);
        }
        for caveat in &self.caveats {
            text += &format!("\nnote: {caveat}");
        }
        text.trim_end().to_owned()
    }

    /// A row for every entrant, case and class.
    pub fn csv(&self) -> String {
        let mut text = format!("entrant,case,class,size,{}\n", self.columns.join(","));
        for entrant in &self.entrants {
            for row in &entrant.rows {
                for class in &row.classes {
                    text += &[entrant.name.as_str(), &row.case, &class.class]
                        .map(csv_field)
                        .join(",");
                    let number = |v: Option<f64>| v.map_or(String::new(), |v| v.to_string());
                    text += &format!(",{}", number(class.size));
                    for column in &self.columns {
                        text +=
                            &format!(",{}", number(class.numbers.get(column).copied().flatten()));
                    }
                    text.push('\n');
                }
            }
        }
        text
    }

    /// The main table for a paper, with own rows in bold.
    pub fn latex(&self) -> String {
        let (head, rows) = self.rows();
        let line = |cells: &[String], bold: bool| {
            let cells: Vec<String> = cells
                .iter()
                .map(|c| match bold {
                    true => format!("\\textbf{{{}}}", latex_text(c)),
                    false => latex_text(c),
                })
                .collect();
            format!("  {} \\\\\n", cells.join(" & "))
        };
        let mut text = format!(
            "% {}, protocol {}; needs \\usepackage{{booktabs}}\n\\begin{{tabular}}{{l{}l}}\n  \\toprule\n",
            self.title,
            self.protocol,
            "r".repeat(self.columns.len())
        );
        text += &line(&head, false);
        text += "  \\midrule\n";
        for (cells, own) in &rows {
            text += &line(cells, *own);
        }
        text + "  \\bottomrule\n\\end{tabular}\n"
    }
}

fn latex_text(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => format!("\\{c}"),
            '~' => "\\textasciitilde{}".into(),
            '^' => "\\textasciicircum{}".into(),
            '\\' => "\\textbackslash{}".into(),
            '±' => "$\\pm$".into(),
            c => c.to_string(),
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::benchmark::score::ClassRow;

    fn row(case: &str, dice: [Option<f64>; 2]) -> CaseRow {
        let class = |name: &str, dice| ClassRow {
            class: name.into(),
            size: Some(1.0),
            numbers: BTreeMap::from([("Dice".to_owned(), dice)]),
        };
        CaseRow {
            case: case.into(),
            classes: vec![class("a", dice[0]), class("b", dice[1])],
        }
    }

    #[test]
    fn classes_are_averaged_over_cases_first() {
        let columns = ["Dice".to_owned()];
        let rows = vec![
            row("1", [Some(1.0), Some(0.5)]),
            row("2", [Some(0.5), None]),
        ];
        let one = Entered::new("one", "kind", Vec::new(), &columns, rows);
        assert_eq!(one.mean["Dice"], Some(0.625));
        let rows = vec![
            row("1", [Some(0.8), Some(0.5)]),
            row("2", [Some(0.5), Some(1.0)]),
        ];
        let two = Entered::new("two", "kind", Vec::new(), &columns, rows);
        let kind = &kinds(&[one.clone(), two.clone()], &columns)[0];
        assert!((kind.spread["Dice"].0 - 0.6625).abs() < 1e-12 && kind.entrants == 2);
        let found = differences(&one, &two, &columns);
        assert_eq!(found.len(), 3);
        // the first case alone has a b in both
        assert_eq!((found[2].class.as_str(), found[2].found.cases), ("b", 1));
        assert!((found[1].found.mean - 0.1).abs() < 1e-12);
        assert_eq!(value(&one.rows[1], OVERALL, "Dice"), Some(0.5));
    }

    #[test]
    fn the_interval_is_of_the_number_beside_it() {
        // a class that is seldom there counts as much as the other, in the number and in its interval
        let rows = (0..20).map(|i| row(&i.to_string(), [Some(1.0), (i < 4).then_some(0.0)]));
        let one = Entered::new(
            "one",
            "kind",
            Vec::new(),
            &["Dice".to_owned()],
            rows.collect(),
        );
        assert_eq!(one.mean["Dice"], Some(0.5));
        let (low, high) = one.interval_95["Dice"].unwrap();
        assert!((low..=high).contains(&0.5) && high < 0.9, "{low} {high}");
    }

    #[test]
    fn text_for_papers_is_escaped() {
        assert_eq!(latex_text("a_b 50% ± {x}"), "a\\_b 50\\% $\\pm$ \\{x\\}");
    }
}
