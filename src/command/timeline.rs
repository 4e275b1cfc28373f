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

/// Compares finished events with the truth: a table for a person.
pub fn compare(truths: &[Truth], events: &[Event]) -> String {
    let overlap = |t: &Truth, e: &Event| e.end_s.unwrap_or(e.start_s).min(t.end_s) - e.start_s.max(t.start_s);
    let mut used = vec![false; events.len()];
    let mut lines = vec![format!("  {:<14} {:>14}   {:>14}", "action", "truly (s)", "event (s)")];
    let mut found = 0;
    for truth in truths {
        // Half a second beside the action still means it: a hop is 0.32 s.
        let near = |e: &Event| e.label == truth.label && overlap(truth, e) > -0.5;
        let best = events
            .iter()
            .enumerate()
            .filter(|(_, e)| near(e))
            .max_by(|(_, a), (_, b)| overlap(truth, a).total_cmp(&overlap(truth, b)))
            .map(|(i, _)| i);
        for (i, e) in events.iter().enumerate() {
            used[i] |= near(e);
        }
        let truly = format!("{:.1} - {:.1}", truth.start_s, truth.end_s);
        match best.map(|i| &events[i]) {
            Some(e) => {
                found += 1;
                let seen = format!("{:.1} - {:.1}", e.start_s, e.end_s.unwrap_or(e.start_s));
                lines.push(format!("✓ {:<14} {truly:>14}   {seen:>14}   peak {:.2}", truth.label, e.peak));
            }
            None => lines.push(format!("✗ {:<14} {truly:>14}   {:>14}", truth.label, "not found")),
        }
    }
    let extra: Vec<&Event> = events.iter().zip(&used).filter(|(_, used)| !**used).map(|(e, _)| e).collect();
    for e in &extra {
        let seen = format!("{:.1} - {:.1}", e.start_s, e.end_s.unwrap_or(e.start_s));
        lines.push(format!("! {:<14} {:>14}   {seen:>14}   peak {:.2}", e.label, "not there", e.peak));
    }
    lines.push(format!("{found} of {} actions found, {} events of what was not there", truths.len(), extra.len()));
    lines.join("\n")
}
