//! A recording's events beside what truly happened in it.

use std::{fs, path::Path};

use crate::{
    error::{Error, Result},
    event::Event,
};

/// An action that truly took place.
#[derive(Debug, Clone, PartialEq)]
pub struct Truth {
    pub label: String,
    pub start_s: f64,
    pub end_s: f64,
}

/// Reads a table of `label`, `start_s`, `end_s`, separated by tabs, with that heading.
pub fn read(path: &Path) -> Result<Vec<Truth>> {
    let text =
        fs::read_to_string(path).map_err(|e| Error::config(format!("cannot read {}", path.display())).caused_by(e))?;
    let mut truths = Vec::new();
    for (i, line) in text.lines().enumerate().skip(1).filter(|(_, l)| !l.trim().is_empty()) {
        let wrong = || {
            Error::config(format!("{}:{}: expected label, start_s and end_s, separated by tabs", path.display(), i + 1))
        };
        let mut cells = line.split('\t');
        let (Some(label), Some(start), Some(end)) = (cells.next(), cells.next(), cells.next()) else {
            return Err(wrong());
        };
        let number = |text: &str| text.trim().parse::<f64>().map_err(|_| wrong());
        truths.push(Truth { label: label.trim().into(), start_s: number(start)?, end_s: number(end)? });
    }
    if truths.is_empty() {
        return Err(Error::config(format!("{}: no actions in it", path.display())));
    }
    Ok(truths)
}

/// Something that was recognized.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    pub label: String,
    pub start_s: f64,
    pub end_s: f64,
    pub peak: f32,
}

/// Which event each action was found by, and which events are of nothing that truly was.
pub struct Matched {
    pub found: Vec<Option<usize>>,
    pub extra: Vec<usize>,
}

/// Finds each action's event: of its label, and overlapping it the most.
pub fn matched(truths: &[Truth], events: &[Seen]) -> Matched {
    let overlap = |t: &Truth, e: &Seen| e.end_s.min(t.end_s) - e.start_s.max(t.start_s);
    // Half a second beside the action still means it: a hop is 0.32 s.
    let near = |t: &Truth, e: &Seen| e.label == t.label && overlap(t, e) > -0.5;
    let best = |t: &Truth| {
        let candidates = events.iter().enumerate().filter(|(_, e)| near(t, e));
        candidates.max_by(|(_, a), (_, b)| overlap(t, a).total_cmp(&overlap(t, b))).map(|(i, _)| i)
    };
    Matched {
        found: truths.iter().map(best).collect(),
        extra: (0..events.len()).filter(|&i| !truths.iter().any(|t| near(t, &events[i]))).collect(),
    }
}

/// Compares finished events with the truth: a table for a person.
pub fn compare(truths: &[Truth], events: &[Event]) -> String {
    let seen = |e: &Event| Seen {
        label: e.label.clone(),
        start_s: e.start_s,
        end_s: e.end_s.unwrap_or(e.start_s),
        peak: e.peak,
    };
    let events: Vec<Seen> = events.iter().map(seen).collect();
    let matched = matched(truths, &events);
    let mut lines = vec![format!("  {:<14} {:>14}   {:>14}", "action", "truly (s)", "event (s)")];
    for (truth, found) in truths.iter().zip(&matched.found) {
        let truly = format!("{:.1} - {:.1}", truth.start_s, truth.end_s);
        lines.push(match found.map(|i| &events[i]) {
            Some(e) => {
                let seen = format!("{:.1} - {:.1}", e.start_s, e.end_s);
                format!("✓ {:<14} {truly:>14}   {seen:>14}   peak {:.2}", truth.label, e.peak)
            }
            None => format!("✗ {:<14} {truly:>14}   {:>14}", truth.label, "not found"),
        });
    }
    for e in matched.extra.iter().map(|&i| &events[i]) {
        let seen = format!("{:.1} - {:.1}", e.start_s, e.end_s);
        lines.push(format!("! {:<14} {:>14}   {seen:>14}   peak {:.2}", e.label, "not there", e.peak));
    }
    let found = matched.found.iter().flatten().count();
    let extra = matched.extra.len();
    lines.push(format!("{found} of {} actions found, {extra} events of what was not there", truths.len()));
    lines.join("\n")
}
