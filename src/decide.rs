//! Scores to events: fused, smoothed, opened and closed. Pure: no clock, no I/O; the same scores give the same changes,
//! bit for bit, which is what makes a recording of scores replayable with other settings.
//!
//! For each label on its own:
//!
//! - The score is the hop's own (`by = "peak"`) or the mean of the last `smooth_hops` (`by = "mean"`; of as many as
//!   there are since the beginning or the last gap).
//! - An event opens when the score has been `start` or more for `min_hops` hops in a row, and closes at the first hop
//!   below `end`. Between the two thresholds nothing changes.
//! - A window sees an action before it is full of it. The action is taken to have begun `onset` frames before the end of
//!   the first window that was over `start`, and to have ended `offset` frames before the end of the first window below
//!   `end`. A mean lags behind by half of what it reaches over; that much is taken off as well. What is there in the
//!   very first window has begun with it at the latest, and what is open at the end of a stream ends there.
//!
//! Settings come in layers, the later wins, setting by setting: [built in](Settings::default), the manifest's
//! `[decision]`, its `[decision.label.X]`, the config's `[events]`, its `[events.label.X]`.

use std::{collections::VecDeque, fmt};

use serde::{Deserialize, Serialize};

use crate::{
    config,
    error::{Error, Result},
    model::{By, Decision, Fusion, LabelDecision, Model, Rule},
};

/// While an event is open it is told again this many frames (5 s) after it was last told of.
pub const UPDATE_EVERY: u64 = 125;

/// How many of the best labels go with a change.
pub const TOP: usize = 5;

/// No mean reaches over more hops than this, and no event waits for more: 5 minutes at a hop of 8.
const MOST_HOPS: usize = 1000;

/// Onset and offset count back from a window's end; four windows is far beyond any use.
const MOST_FRAMES: u32 = 256;

/// One hop's probabilities, one a label.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scores {
    /// All streams together. With weights for single labels they do not add up to 1.
    pub fused: Vec<f32>,
    /// Each stream's own.
    pub streams: Vec<Vec<f32>>,
}

/// Turns the streams' logits into probabilities, each stream's and fused. Allocates only until `out` has its size.
///
/// Errors: `Internal`, naming the stream, when a logit is not a finite number: the hop is worth nothing then, and
/// `out` is not to be used. `Model` when the logits do not fit the labels or every stream of a label weighs nothing.
pub fn fuse(fusion: &Fusion, streams: &[&str], labels: &[String], logits: &[&[f32]], out: &mut Scores) -> Result<()> {
    if logits.len() != streams.len() {
        return Err(Error::model(format!("{} streams gave logits, not {}", logits.len(), streams.len())));
    }
    for (stream, logits) in streams.iter().zip(logits) {
        if logits.len() != labels.len() {
            return Err(Error::model(format!(
                "stream `{stream}` gives {} scores; the model has {} labels",
                logits.len(),
                labels.len()
            )));
        }
        if let Some(i) = logits.iter().position(|l| !l.is_finite()) {
            return Err(Error::internal(format!("stream `{stream}` gave {} for `{}`", logits[i], labels[i])));
        }
    }
    out.streams.resize_with(streams.len(), Vec::new);
    for (probabilities, logits) in out.streams.iter_mut().zip(logits) {
        probabilities.clear();
        probabilities.extend_from_slice(logits);
        softmax(probabilities);
    }
    out.fused.clear();
    match fusion.rule {
        Rule::Probabilities => {
            for (l, label) in labels.iter().enumerate() {
                let own = fusion.label.get(label);
                let (mut sum, mut weights) = (0.0, 0.0);
                for (stream, probabilities) in streams.iter().zip(&out.streams) {
                    let w = own.and_then(|own| own.get(*stream)).copied().unwrap_or_else(|| weight(fusion, stream));
                    sum += w * probabilities[l];
                    weights += w;
                }
                if weights <= 0.0 {
                    return Err(Error::model(format!("fusion: every stream's weight for `{label}` is 0")));
                }
                out.fused.push(sum / weights);
            }
        }
        Rule::Logits => {
            out.fused.extend((0..labels.len()).map(|l| summed(fusion, streams, |s| logits[s][l])));
            if let Some(l) = out.fused.iter().position(|l| !l.is_finite()) {
                return Err(Error::internal(format!("the streams' logits for `{}` add up to no number", labels[l])));
            }
            softmax(&mut out.fused);
        }
    }
    Ok(())
}

/// The weighted sum of the streams' logits.
pub fn fused_logits(fusion: &Fusion, streams: &[&str], logits: &[Vec<f32>]) -> Vec<f32> {
    let labels = logits.iter().map(Vec::len).min().unwrap_or(0);
    (0..labels).map(|l| summed(fusion, streams, |s| logits[s][l])).collect()
}

fn summed(fusion: &Fusion, streams: &[&str], logit: impl Fn(usize) -> f32) -> f32 {
    streams.iter().enumerate().map(|(s, stream)| weight(fusion, stream) * logit(s)).sum()
}

fn weight(fusion: &Fusion, stream: &str) -> f32 {
    fusion.weights.get(stream).copied().unwrap_or(1.0)
}

fn softmax(values: &mut [f32]) {
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for v in values.iter_mut() {
        *v = (*v - largest).exp();
        sum += *v;
    }
    values.iter_mut().for_each(|v| *v /= sum);
}

/// What an event is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Start,
    /// Still there; told every [`UPDATE_EVERY`] frames.
    Update,
    End,
}

/// One hop's scores and the frames that they are of.
#[derive(Debug, Clone, Copy)]
pub struct HopScores<'a> {
    pub first_frame: u64,
    /// Grows from hop to hop.
    pub last_frame: u64,
    pub scores: &'a Scores,
}

/// Something that happened to a label's event. Of each label there comes a start, then any number of updates, then an
/// end, before its next start.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The label's number.
    pub label: usize,
    pub phase: Phase,
    /// The score that was decided by, now: the hop's own or the mean.
    pub score: f32,
    /// The highest that `score` has been since the event's first hop over `start`.
    pub peak: f32,
    /// The best labels of this hop's own scores, best first.
    pub top: heapless::Vec<(usize, f32), TOP>,
    /// The first frame of the action; the same in all changes of an event.
    pub start_frame: u64,
    /// One past the action's last frame; only when it has ended.
    pub end_frame: Option<u64>,
}

/// One camera's decisions.
#[derive(Debug, Clone)]
pub struct Decider {
    labels: Vec<Label>,
    history: History,
    changes: Vec<Change>,
    /// No hop has come yet.
    fresh: bool,
}

#[derive(Debug, Clone)]
struct Label {
    settings: Settings,
    /// Neither background nor ignored.
    watched: bool,
    /// Hops in a row over `start`, while no event is open.
    run: usize,
    /// Where the action began, if the present run becomes an event.
    start_frame: u64,
    score: f32,
    peak: f32,
    /// The last frame of the hop that the event was last told of, while one is open.
    told: Option<u64>,
    /// Where the label's last event ended.
    last_end: u64,
}

impl Decider {
    /// `config` is the config's `[events]`; `hop` the frames from one hop to the next.
    ///
    /// Errors: `Config` for what `[events]` says wrong, `Model` for what the manifest's `[decision]` does.
    pub fn new(model: &Model, config: &Decision, hop: usize) -> Result<Self> {
        let settings = settings(model, config)?;
        let reach = settings.iter().map(|s| s.reach()).max().unwrap_or(1);
        log::debug!("means reach over up to {reach} hops of {hop} frames");
        let manifest = &model.manifest;
        let ignored = |label: &String| {
            let ignores = manifest.decision.ignore.iter().chain(&config.ignore).chain(&manifest.background);
            ignores.into_iter().any(|i| i == label)
        };
        let labels = settings.into_iter().zip(&model.labels).map(|(settings, label)| Label {
            settings,
            watched: !ignored(label),
            run: 0,
            start_frame: 0,
            score: 0.0,
            peak: 0.0,
            told: None,
            last_end: 0,
        });
        let labels: Vec<Label> = labels.collect();
        Ok(Decider { history: History::new(reach), changes: Vec::new(), labels, fresh: true })
    }

    /// Takes a hop's scores; gives what changes by it, in the order of the labels.
    ///
    /// # Panics
    /// With scores of another number of labels than the model's.
    pub fn step(&mut self, hop: &HopScores) -> &[Change] {
        self.changes.clear();
        self.history.push(hop);
        let fresh = std::mem::replace(&mut self.fresh, false);
        let last = hop.last_frame;
        for (number, label) in self.labels.iter_mut().enumerate().filter(|(_, l)| l.watched) {
            let Settings { start, end, min_hops, onset, offset, .. } = label.settings;
            let (score, lag) = self.history.mean(number, label.settings.reach());
            label.score = score;
            let placed = |back: u32| (last + 1).saturating_sub(u64::from(back) + lag);
            let told = match label.told {
                None if score >= start => {
                    label.run += 1;
                    if label.run == 1 {
                        let begun = if fresh { hop.first_frame.min(placed(onset)) } else { placed(onset) };
                        // At least one frame long, and not within the event before.
                        label.start_frame = begun.max(label.last_end).min(last);
                        label.peak = score;
                    }
                    label.peak = label.peak.max(score);
                    (label.run >= min_hops).then_some((Phase::Start, None))
                }
                None => {
                    label.run = 0;
                    None
                }
                Some(_) if score < end => {
                    // Not `clamp`: it panics where hops go back in time, and a replayed file may say that they do.
                    let ended = placed(offset).min(last + 1).max(label.start_frame + 1);
                    Some((Phase::End, Some(ended)))
                }
                Some(told) => {
                    label.peak = label.peak.max(score);
                    (last >= told + UPDATE_EVERY).then_some((Phase::Update, None))
                }
            };
            if let Some((phase, end_frame)) = told {
                self.changes.push(label.change(number, phase, end_frame, last, &self.history));
            }
        }
        &self.changes
    }

    /// `lost` frames were in no hop. A mean over both sides of a cut is a mean of nothing that ever was, so it begins
    /// anew, as does a run of hops over `start`. What is open stays open: the action most likely went on, and the next
    /// hops will tell.
    pub fn gap(&mut self, lost: u64) {
        log::trace!("a gap of {lost} frames: scores are smoothed anew");
        self.history.forget();
        self.labels.iter_mut().filter(|l| l.told.is_none()).for_each(|l| l.run = 0);
    }

    /// The stream has ended with `last_frame`: what is open is closed there.
    pub fn finish(&mut self, last_frame: u64) -> &[Change] {
        self.changes.clear();
        for (number, label) in self.labels.iter_mut().enumerate().filter(|(_, l)| l.told.is_some()) {
            let ended = (last_frame + 1).max(label.start_frame + 1);
            self.changes.push(label.change(number, Phase::End, Some(ended), last_frame, &self.history));
        }
        &self.changes
    }
}

impl Label {
    fn change(&mut self, number: usize, phase: Phase, end_frame: Option<u64>, last: u64, history: &History) -> Change {
        let change = Change {
            label: number,
            phase,
            score: self.score,
            peak: self.peak,
            top: top(history.newest()),
            start_frame: self.start_frame,
            end_frame,
        };
        self.told = Some(last);
        if let Some(end) = end_frame {
            self.told = None;
            self.run = 0;
            self.last_end = end;
        }
        change
    }
}

/// The last hops' fused scores, newest last.
#[derive(Debug, Clone)]
struct History {
    hops: VecDeque<(u64, Vec<f32>)>,
    reach: usize,
    /// How many of them, from the newest back, lie behind the last gap.
    usable: usize,
}

impl History {
    fn new(reach: usize) -> Self {
        History { hops: VecDeque::with_capacity(reach), reach, usable: 0 }
    }

    fn push(&mut self, hop: &HopScores) {
        let full = self.hops.len() == self.reach;
        let mut scores = if full { self.hops.pop_front().map(|(_, s)| s).unwrap_or_default() } else { Vec::new() };
        scores.clear();
        scores.extend_from_slice(&hop.scores.fused);
        self.hops.push_back((hop.last_frame, scores));
        self.usable = (self.usable + 1).min(self.reach);
    }

    fn forget(&mut self) {
        self.usable = 0;
    }

    /// A label's mean over up to `reach` hops, and by how many frames the middle of those lies before the newest.
    fn mean(&self, label: usize, reach: usize) -> (f32, u64) {
        let n = reach.min(self.usable).max(1);
        // Summed anew each time: a running sum would depend on everything that ever was in it.
        let recent = self.hops.range(self.hops.len() - n..);
        let sum: f32 = recent.clone().map(|(_, scores)| scores[label]).sum();
        let lag = match (recent.clone().next(), recent.last()) {
            (Some((oldest, _)), Some((newest, _))) => newest.saturating_sub(*oldest) / 2,
            _ => 0,
        };
        (sum / n as f32, lag)
    }

    fn newest(&self) -> &[f32] {
        self.hops.back().map_or(&[], |(_, scores)| scores)
    }
}

/// The best labels, best first; of equals, the first in the model's order.
fn top(scores: &[f32]) -> heapless::Vec<(usize, f32), TOP> {
    let mut top = heapless::Vec::<(usize, f32), TOP>::new();
    for (label, &score) in scores.iter().enumerate() {
        let place = top.iter().position(|(_, other)| score > *other).unwrap_or(top.len());
        if place < TOP {
            if top.is_full() {
                top.pop();
            }
            // There is room, and `place` is within: it can't fail.
            let _ = top.insert(place, (label, score));
        }
    }
    top
}

/// One label's settings, all layers merged; [`LabelDecision`] says what each does.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Settings {
    start: f32,
    end: f32,
    by: By,
    smooth_hops: usize,
    min_hops: usize,
    onset: u32,
    offset: u32,
}

impl Default for Settings {
    fn default() -> Self {
        // A window that an action has half entered, or half left, is as much that action as not.
        Settings { start: 0.6, end: 0.4, by: By::Mean, smooth_hops: 3, min_hops: 1, onset: 32, offset: 32 }
    }
}

impl Settings {
    /// Hops that the score is a mean of.
    fn reach(&self) -> usize {
        match self.by {
            By::Mean => self.smooth_hops,
            By::Peak => 1,
        }
    }

    fn overlay(self, with: &LabelDecision) -> Self {
        Settings {
            start: with.start.unwrap_or(self.start),
            end: with.end.unwrap_or(self.end),
            by: with.by.unwrap_or(self.by),
            smooth_hops: with.smooth_hops.unwrap_or(self.smooth_hops),
            min_hops: with.min_hops.unwrap_or(self.min_hops),
            onset: with.onset.unwrap_or(self.onset),
            offset: with.offset.unwrap_or(self.offset),
        }
    }

    fn layered(self, decision: &Decision, label: &str) -> Self {
        let for_all = LabelDecision {
            start: decision.start,
            end: decision.end,
            by: decision.by,
            smooth_hops: decision.smooth_hops,
            min_hops: decision.min_hops,
            onset: decision.onset,
            offset: decision.offset,
        };
        let own = decision.label.get(label).copied().unwrap_or_default();
        self.overlay(&for_all).overlay(&own)
    }

    fn check(&self, label: &str) -> Result<(), String> {
        let within = |name: &str, value: &dyn fmt::Display, good: bool, range: &str| {
            if good { Ok(()) } else { Err(format!("`{label}`: {name} {value} is not within {range}")) }
        };
        within("start", &self.start, (0.0..=1.0).contains(&self.start), "0..1")?;
        within("end", &self.end, (0.0..=1.0).contains(&self.end), "0..1")?;
        within("smooth_hops", &self.smooth_hops, (1..=MOST_HOPS).contains(&self.smooth_hops), "1..1000")?;
        within("min_hops", &self.min_hops, (1..=MOST_HOPS).contains(&self.min_hops), "1..1000")?;
        within("onset", &self.onset, self.onset <= MOST_FRAMES, "0..256 frames")?;
        within("offset", &self.offset, self.offset <= MOST_FRAMES, "0..256 frames")?;
        if self.end > self.start {
            return Err(format!(
                "`{label}`: an event would end below {} and start only from {} up; end must not be above start",
                self.end, self.start
            ));
        }
        Ok(())
    }
}

/// Which labels are decided by their peak, and which by their mean.
pub fn by_label(model: &Model, config: &Decision) -> Result<Vec<By>> {
    Ok(settings(model, config)?.iter().map(|s| s.by).collect())
}

fn settings(model: &Model, config: &Decision) -> Result<Vec<Settings>> {
    let manifest = &model.manifest.decision;
    known(model, manifest).map_err(|e| Error::model(format!("decision: {e}")))?;
    known(model, config).map_err(|e| Error::config(format!("events: {e}")))?;
    let each = |label: &String| {
        let by_model = Settings::default().layered(manifest, label);
        by_model.check(label).map_err(|e| Error::model(format!("decision: {e}")))?;
        let settings = by_model.layered(config, label);
        settings.check(label).map_err(|e| Error::config(format!("events: {e}")))?;
        Ok(settings)
    };
    model.labels.iter().map(each).collect()
}

/// Every label that the settings name is one of the model's.
fn known(model: &Model, decision: &Decision) -> Result<(), String> {
    for name in decision.label.keys().chain(&decision.ignore) {
        if !model.labels.contains(name) {
            let hint = config::nearest(name, model.labels.iter().map(String::as_str));
            let hint = hint.map(|h| format!("; did you mean `{h}`?")).unwrap_or_default();
            let labels = model.labels.join(", ");
            return Err(format!("`{name}` is no label of {}{hint} (it has {labels})", model.manifest.name));
        }
    }
    Ok(())
}
