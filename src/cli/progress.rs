//! Progress: a bar on a terminal, a line now and then elsewhere.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::printer::Printer;

/// Where there is no terminal, lines come at most this often.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// Progress over `length` units of work.
pub struct Progress {
    bar: Option<ProgressBar>,
    printer: Printer,
    what: &'static str,
    length: u64,
    done: u64,
    last_line: Instant,
}

impl Progress {
    /// Starts a bar (or nothing visible yet) for `length` units called `what`.
    pub fn new(printer: &Printer, what: &'static str, length: u64) -> Self {
        let bar = printer.draws_bars().then(|| {
            let bar = ProgressBar::new(length);
            if let Ok(style) = ProgressStyle::with_template(
                "{prefix} {wide_bar:.cyan/dim} {pos}/{len} {msg} [{elapsed}]",
            ) {
                bar.set_style(style);
            }
            bar.set_prefix(what);
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        Self {
            bar,
            printer: printer.clone(),
            what,
            length,
            done: 0,
            last_line: Instant::now(),
        }
    }

    /// Sets the text before the bar.
    pub fn prefix(&self, text: String) {
        if let Some(bar) = &self.bar {
            bar.set_prefix(text);
        }
    }

    /// Starts at `done` units, for work that was begun earlier.
    pub fn start_at(&mut self, done: u64) {
        self.done = done;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }

    /// One more unit is done; `message` is made only when it is shown.
    pub fn step(&mut self, message: impl FnOnce() -> String) {
        self.done += 1;
        if let Some(bar) = &self.bar {
            bar.set_message(message());
            bar.inc(1);
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            self.printer.message(&format!(
                "{} {}/{} {}",
                self.what,
                self.done,
                self.length,
                message()
            ));
        }
    }

    /// Prints a line above the bar.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => self.printer.message(text),
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// `75` as `1:15`, `4000` as `1:06:40`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "?".to_string();
    }
    let s = seconds.round() as u64;
    match s / 3600 {
        0 => format!("{}:{:02}", s / 60, s % 60),
        h => format!("{h}:{:02}:{:02}", s / 60 % 60, s % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration(75.2), "1:15");
        assert_eq!(duration(4000.0), "1:06:40");
        assert_eq!(duration(f64::NAN), "?");
    }
}
