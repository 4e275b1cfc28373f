//! `actiond tune`: thresholds that fit what truly happened, from recorded scores.

use std::{collections::BTreeMap, fmt::Write, path::PathBuf, sync::Arc};

use super::timeline::{self, Seen, Truth, matched};
use crate::{
    cadence::FPS,
    config,
    decide::{self, Decider, HopScores, Phase, Scores},
    error::{Error, Result},
    model::{Decision, LabelDecision, Model},
    record::{self, Piece, Reader},
};

/// What is tried: where an event starts, which part of that it ends at, and hops that it must hold.
const STARTS: [f32; 18] =
    [0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95];
const ENDS: [f32; 4] = [0.5, 0.65, 0.8, 0.95];
const HOPS: [usize; 4] = [1, 2, 3, 4];

/// Fewer actions than these tell little of a label.
const FEW: usize = 5;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  actiond run --source clip.mp4 --until-end --record scores
  actiond tune scores --truth clip.tsv")]
pub struct Args {
    /// The folder that `run --record` wrote, of one run, or the file of that run.
    recording: PathBuf,
    /// What truly happened: a table of label, start_s, end_s (seconds of the source's time), separated by tabs, with
    /// that heading.
    #[arg(long, value_name = "FILE")]
    truth: PathBuf,
    /// The camera that the table is of, where there are several.
    #[arg(long)]
    camera: Option<String>,
    /// Take the [events] of this config as the present settings, in place of those that were recorded.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    let truths = timeline::read(&args.truth)?;
    let tape = Tape::read(args)?;
    for truth in &truths {
        if !tape.model.labels.contains(&truth.label) {
            let nearest = config::nearest(&truth.label, tape.model.labels.iter().map(String::as_str));
            let hint = nearest.map(|h| format!("; did you mean `{h}`?")).unwrap_or_default();
            return Err(Error::config(format!(
                "{}: `{}` is no label of {}{hint}",
                args.truth.display(),
                truth.label,
                tape.model.manifest.name
            )));
        }
    }
    super::say(&report(&tape, &truths, &tape.tune(&truths)?))
}

/// One camera's recorded hops.
struct Tape {
    model: Model,
    /// The present `[events]`.
    events: Decision,
    hop: usize,
    lag: f32,
    pieces: Vec<Step>,
}

enum Step {
    Hop(u64, u64, Arc<Scores>),
    Gap(u64),
    End(u64),
}

/// How well settings do for a label.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Outcome {
    hits: usize,
    misses: usize,
    /// Events of what was not there.
    extra: usize,
    /// How much of action and event is both, in the mean of the hits.
    overlap: f64,
}

/// What is set for a label.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Setting {
    start: f32,
    end: f32,
    min_hops: usize,
}

/// What was found for a label.
struct Tuned {
    label: usize,
    now: (Setting, Outcome),
    /// None where nothing does better.
    proposed: Option<(Setting, Outcome)>,
}

impl Outcome {
    /// The F1 score: 1 when everything is found and nothing else.
    fn f1(&self) -> f64 {
        let all = 2 * self.hits + self.misses + self.extra;
        if all == 0 { 1.0 } else { 2.0 * self.hits as f64 / all as f64 }
    }

    fn quality(&self) -> f64 {
        // Of settings that find the same, those that place it better.
        self.f1() + 0.1 * self.overlap
    }
}

impl Tape {
    fn read(args: &Args) -> Result<Tape> {
        let path = record::find(&args.recording)?;
        let mut reader = Reader::open(&path)?;
        let header = reader.header().clone();
        let mut ids: BTreeMap<u16, String> = BTreeMap::new();
        let mut all: BTreeMap<u16, Vec<Step>> = BTreeMap::new();
        while let Some(piece) = reader.next_piece()? {
            let (camera, step) = match piece {
                Piece::Camera(number, entry) => {
                    ids.insert(number, entry.id);
                    continue;
                }
                Piece::Engine(_) | Piece::Retuned(_) => continue,
                Piece::Hop { camera, first_frame, last_frame, scores, .. } => {
                    (camera, Step::Hop(first_frame, last_frame, scores))
                }
                Piece::Gap { camera, lost } => (camera, Step::Gap(lost)),
                Piece::End { camera, last_frame, .. } => (camera, Step::End(last_frame)),
            };
            all.entry(camera).or_default().push(step);
        }
        let names = || ids.values().cloned().collect::<Vec<_>>().join(", ");
        let number =
            match &args.camera {
                Some(id) => ids.iter().find(|(_, i)| *i == id).map(|(number, _)| *number).ok_or_else(|| {
                    Error::config(format!("{} has no camera `{id}`; it has {}", path.display(), names()))
                })?,
                None if ids.len() > 1 => {
                    return Err(Error::config(format!("say with --camera which one the table is of: {}", names())));
                }
                None => ids.keys().next().copied().unwrap_or(0),
            };
        let events = args.config.as_deref().map(config::events).transpose()?.unwrap_or_else(|| header.events.clone());
        let pieces = all.remove(&number).unwrap_or_default();
        if !pieces.iter().any(|p| matches!(p, Step::Hop(..))) {
            return Err(Error::config(format!("{}: no hop was recorded", path.display())));
        }
        Ok(Tape { model: header.model()?, events, hop: header.hop, lag: header.lag, pieces })
    }

    /// The events of each label, by these `[events]`.
    fn seen(&self, events: &Decision) -> Result<Vec<Vec<Seen>>> {
        let mut decider = Decider::new(&self.model, events, self.hop)?.looking_back(self.lag);
        let mut seen: Vec<Vec<Seen>> = vec![Vec::new(); self.model.labels.len()];
        let mut last = 0;
        let mut take = |changes: &[decide::Change]| {
            for change in changes.iter().filter(|c| c.phase == Phase::End) {
                let seconds = |frame: u64| frame as f64 / FPS as f64;
                seen[change.label].push(Seen {
                    label: self.model.labels[change.label].clone(),
                    start_s: seconds(change.start_frame),
                    end_s: seconds(change.end_frame.unwrap_or(change.start_frame)),
                    peak: change.peak,
                });
            }
        };
        for piece in &self.pieces {
            match piece {
                Step::Hop(first_frame, last_frame, scores) => {
                    last = *last_frame;
                    take(decider.step(&HopScores { first_frame: *first_frame, last_frame: *last_frame, scores }));
                }
                Step::Gap(lost) => decider.gap(*lost),
                Step::End(last_frame) => take(decider.finish(*last_frame)),
            }
        }
        // One that was killed has no end.
        take(decider.finish(last));
        Ok(seen)
    }

    fn outcomes(&self, events: &Decision, truths: &[Truth]) -> Result<Vec<Outcome>> {
        let seen = self.seen(events)?;
        let of = |(label, seen): (&String, &Vec<Seen>)| {
            let own: Vec<Truth> = truths.iter().filter(|t| t.label == *label).cloned().collect();
            let matched = matched(&own, seen);
            let both = |(truth, found): (&Truth, &Option<usize>)| {
                let event = &seen[(*found)?];
                let shared = event.end_s.min(truth.end_s) - event.start_s.max(truth.start_s);
                let all = event.end_s.max(truth.end_s) - event.start_s.min(truth.start_s);
                Some((shared / all.max(1e-9)).max(0.0))
            };
            let overlaps: Vec<f64> = own.iter().zip(&matched.found).filter_map(both).collect();
            Outcome {
                hits: overlaps.len(),
                misses: own.len() - overlaps.len(),
                extra: matched.extra.len(),
                overlap: overlaps.iter().sum::<f64>() / overlaps.len().max(1) as f64,
            }
        };
        Ok(self.model.labels.iter().zip(&seen).map(of).collect())
    }

    /// Tries the whole grid, for all labels at once: each is decided on its own.
    fn tune(&self, truths: &[Truth]) -> Result<Vec<Tuned>> {
        let labels = &self.model.labels;
        let now = self.outcomes(&self.events, truths)?;
        let mut grid = Vec::new();
        for start in STARTS {
            for part in ENDS {
                for min_hops in HOPS {
                    // As it will stand in the config.
                    let end = (start * part * 100.0).round() / 100.0;
                    let mut events = self.events.clone();
                    for label in labels {
                        let own = events.label.entry(label.clone()).or_default();
                        *own = LabelDecision { start: Some(start), end: Some(end), min_hops: Some(min_hops), ..*own };
                    }
                    grid.push((Setting { start, end, min_hops }, self.outcomes(&events, truths)?));
                }
            }
        }
        let present = decide::thresholds(&self.model, &self.events)?;
        let mut tuned = Vec::new();
        for (label, name) in labels.iter().enumerate() {
            let ignored = [&self.model.manifest.decision.ignore, &self.events.ignore].into_iter().flatten();
            if self.model.manifest.background.iter().chain(ignored).any(|i| i == name) {
                continue;
            }
            let (start, end, min_hops) = present[label];
            let now = (Setting { start, end, min_hops }, now[label]);
            let best = self.best(&grid, label);
            // Where nothing of it truly happened, the highest threshold would be the best: that says nothing.
            let known = truths.iter().any(|t| t.label == *name);
            let proposed = best.filter(|(_, outcome)| known && outcome.f1() > now.1.f1() + 1e-9);
            tuned.push(Tuned { label, now, proposed });
        }
        Ok(tuned)
    }

    /// The setting that does best, and whose neighbours do well too: one that only just does would not last.
    fn best(&self, grid: &[(Setting, Vec<Outcome>)], label: usize) -> Option<(Setting, Outcome)> {
        let (ends, hops) = (ENDS.len(), HOPS.len());
        let at = |s: usize, e: usize, h: usize| &grid[(s * ends + e) * hops + h].1[label];
        let most = grid.iter().map(|(_, o)| o[label].f1()).fold(0.0, f64::max);
        let around = |i: usize, size: usize| i.saturating_sub(1)..(i + 2).min(size);
        let mut best: Option<(f64, usize)> = None;
        for (i, (_, outcomes)) in grid.iter().enumerate() {
            if outcomes[label].f1() < most - 1e-9 {
                continue;
            }
            let (s, e, h) = (i / (ends * hops), i / hops % ends, i % hops);
            let mut near = Vec::new();
            for s in around(s, STARTS.len()) {
                for e in around(e, ends) {
                    near.extend(around(h, hops).map(|h| at(s, e, h).quality()));
                }
            }
            let mean = near.iter().sum::<f64>() / near.len() as f64;
            if best.is_none_or(|(quality, _)| mean > quality + 1e-9) {
                best = Some((mean, i));
            }
        }
        best.map(|(_, i)| (grid[i].0, grid[i].1[label]))
    }
}

fn report(tape: &Tape, truths: &[Truth], tuned: &[Tuned]) -> String {
    let mut out = format!(
        "{:<16} {:>5}   {:^36}   {:^36}\n{:16} {:5}   {:>5} {:>5} {:>4}  {:>4} {:>4} {:>5}   {:>5} {:>5} {:>4}  {:>4} {:>4} {:>5}",
        "label",
        "true",
        "now",
        "proposed",
        "",
        "",
        "start",
        "end",
        "hops",
        "hit",
        "miss",
        "extra",
        "start",
        "end",
        "hops",
        "hit",
        "miss",
        "extra"
    );
    let mut snippet = String::new();
    let (mut few, mut unknown) = (Vec::new(), Vec::new());
    let total = |outcomes: &mut dyn Iterator<Item = Outcome>| {
        outcomes.fold((0, 0, 0), |(h, m, e), o| (h + o.hits, m + o.misses, e + o.extra))
    };
    let columns = |(s, o): &(Setting, Outcome)| {
        format!("{:>5.2} {:>5.2} {:>4}  {:>4} {:>4} {:>5}", s.start, s.end, s.min_hops, o.hits, o.misses, o.extra)
    };
    for t in tuned {
        let name = &tape.model.labels[t.label];
        let count = truths.iter().filter(|t| t.label == *name).count();
        let proposed = match &t.proposed {
            Some(proposed) => columns(proposed),
            None => format!("{:>5}", if count == 0 { "?" } else { "=" }),
        };
        // Writing to a string takes all.
        let _ = write!(out, "\n{name:<16} {count:>5}   {}   {proposed}", columns(&t.now));
        if count == 0 {
            unknown.push(name.as_str());
        } else if count < FEW && t.proposed.is_some() {
            few.push(name.as_str());
        }
        if let Some((setting, _)) = &t.proposed {
            let key = toml::Value::String(name.clone());
            let bare = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
            let key = if bare { name.clone() } else { key.to_string() };
            let _ = write!(
                snippet,
                "\n[events.label.{key}]\nstart = {:.2}\nend = {:.2}\nmin_hops = {}",
                setting.start, setting.end, setting.min_hops
            );
        }
    }
    let before = total(&mut tuned.iter().map(|t| t.now.1));
    let after = total(&mut tuned.iter().map(|t| t.proposed.map_or(t.now.1, |(_, o)| o)));
    let _ = write!(
        out,
        "\n\nnow: {} hits, {} misses, {} events of what was not there; as proposed: {} hits, {} misses, {} such events",
        before.0, before.1, before.2, after.0, after.1, after.2
    );
    if !unknown.is_empty() {
        let _ = write!(out, "\n? no true one in the table, so nothing is proposed: {}", unknown.join(", "));
    }
    if !few.is_empty() {
        let _ = write!(out, "\nfewer than {FEW} true ones, so these fit them and little else: {}", few.join(", "));
    }
    match snippet.is_empty() {
        true => out.push_str("\n\nNothing that was tried does better than the present settings."),
        false => {
            let _ = write!(out, "\n\nTo put into the config:\n{snippet}");
        }
    }
    out
}
