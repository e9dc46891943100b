//! Plans as JSON against plans as JSON: every number and name.

use serde_json::Value;

use crate::checks::Worst;

/// Keys of ours that a plan of theirs does not state are passed over; every one that theirs states is compared, numbers within a relative
/// tolerance.
pub fn compare(worst: &mut Worst, at: &str, ours: &Value, theirs: &Value, relative: f64) {
    match (ours, theirs) {
        (_, Value::Object(map)) => {
            for (key, theirs) in map {
                let ours = ours.get(key).unwrap_or(&Value::Null);
                compare(worst, &format!("{at}.{key}"), ours, theirs, relative);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                compare(worst, &format!("{at}[{i}]"), a, b, relative);
            }
        }
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            worst.number(at, a, b, relative * b.abs());
        }
        _ => worst.same(at, ours, theirs),
    }
}
