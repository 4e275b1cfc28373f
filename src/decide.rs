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

/// Turns the streams' logits into probabilities, each stream's and fused. Allocates only until `out` has its size. A
/// stream without logits was left out: the others are fused, and its probabilities are empty.
///
/// Errors: `Internal`, naming the stream, when a logit is not a finite number: the hop is worth nothing then, and
/// `out` is not to be used. `Model` when the logits do not fit the labels or every stream of a label weighs nothing.
pub fn fuse(fusion: &Fusion, streams: &[&str], labels: &[String], logits: &[&[f32]], out: &mut Scores) -> Result<()> {
    if logits.len() != streams.len() {
        return Err(Error::model(format!("{} streams gave logits, not {}", logits.len(), streams.len())));
    }
    if logits.iter().all(|l| l.is_empty()) {
        return Err(Error::internal("every stream was left out"));
    }
    for (stream, logits) in streams.iter().zip(logits).filter(|(_, l)| !l.is_empty()) {
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
                for (stream, probabilities) in streams.iter().zip(&out.streams).filter(|(_, p)| !p.is_empty()) {
                    let w = own.and_then(|own| own.get(*stream)).copied().unwrap_or_else(|| weight(fusion, stream));
                    sum += w * probabilities[l];
                    weights += w;
                }
                if weights <= 0.0 && logits.iter().any(|l| l.is_empty()) {
                    // The streams that this label is decided by are left out: what there is, is better than nothing.
                    let there = || out.streams.iter().filter(|p| !p.is_empty());
                    (sum, weights) = (there().map(|p| p[l]).sum(), there().count() as f32);
                }
                if weights <= 0.0 {
                    return Err(Error::model(format!("fusion: every stream's weight for `{label}` is 0")));
                }
                out.fused.push(sum / weights);
            }
        }
        Rule::Logits => {
            out.fused.extend(
                (0..labels.len()).map(|l| summed(fusion, streams, |s| logits[s].get(l).copied().unwrap_or(0.0))),
            );
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

pub fn softmax(values: &mut [f32]) {
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
    /// Frames by which the scores look further back than those of a window that ends with the hop.
    behind: u64,
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
        Ok(Decider { history: History::new(reach), changes: Vec::new(), labels, fresh: true, behind: 0 })
    }

    /// For scores that look `lag` frames further back than a window's: events are placed so much earlier.
    pub fn looking_back(self, lag: f32) -> Self {
        Decider { behind: lag.round().max(0.0) as u64, ..self }
    }

    /// Goes on with another's settings, and its own memory of what was. What is open stays open under the new thresholds;
    /// of a label that is no longer watched it ends with the next hop.
    pub fn retune(&mut self, with: Decider) {
        self.history.reach = with.history.reach;
        let surplus = self.history.hops.len().saturating_sub(self.history.reach);
        self.history.hops.drain(..surplus);
        self.history.usable = self.history.usable.min(self.history.hops.len());
        for (label, new) in self.labels.iter_mut().zip(with.labels) {
            label.settings = new.settings;
            label.watched = new.watched;
            if !new.watched && label.told.is_none() {
                // What it was about to start is not to be started when it is watched again.
                label.run = 0;
            }
            if !new.watched && label.told.is_some() {
                label.watched = true;
                (label.settings.start, label.settings.end) = (f32::INFINITY, f32::INFINITY);
            }
        }
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
            let placed = |back: u32| (last + 1).saturating_sub(u64::from(back) + lag + self.behind);
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

/// Each label's start, end and min_hops.
pub fn thresholds(model: &Model, config: &Decision) -> Result<Vec<(f32, f32, usize)>> {
    Ok(settings(model, config)?.iter().map(|s| (s.start, s.end, s.min_hops)).collect())
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const HOP: u64 = 8;
    const WINDOW: u64 = 64;

    /// Numbers that are the same at every run (SplitMix64).
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ z >> 31
        }

        fn below(&mut self, n: u64) -> u64 {
            self.next() % n
        }

        fn score(&mut self) -> f32 {
            self.below(10_001) as f32 / 10_000.0
        }
    }

    fn model(labels: &[&str], decision: &str) -> Model {
        let manifest = format!(
            "name = \"test\"\nversion = \"1\"\narchitecture = \"x\"\nlicence = \"x\"\nsource = \"x\"\nfps = 25\n\
             labels = \"labels.txt\"\nstream = []\nfusion = {{ rule = \"probabilities\" }}\n{decision}"
        );
        Model {
            folder: ".".into(),
            manifest: config::parse_toml(&manifest, "model.toml").unwrap(),
            labels: labels.iter().map(|l| l.to_string()).collect(),
        }
    }

    fn events(text: &str) -> Decision {
        config::parse_toml(text, "x").unwrap()
    }

    fn decider(labels: &[&str], decision: &str) -> Decider {
        Decider::new(&model(labels, decision), &Decision::default(), HOP as usize).unwrap()
    }

    fn step(decider: &mut Decider, last: u64, fused: &[f32]) -> Vec<Change> {
        let scores = Scores { fused: fused.to_vec(), streams: Vec::new() };
        let first_frame = (last + 1).saturating_sub(WINDOW);
        decider.step(&HopScores { first_frame, last_frame: last, scores: &scores }).to_vec()
    }

    /// One label's scores, a hop each from the first full window on; then the end.
    fn play(decider: &mut Decider, scores: &[f32]) -> Vec<Change> {
        let last = |i: usize| WINDOW - 1 + i as u64 * HOP;
        let mut changes: Vec<Change> =
            scores.iter().enumerate().flat_map(|(i, s)| step(decider, last(i), &[*s])).collect();
        changes.extend_from_slice(decider.finish(last(scores.len() - 1)));
        changes
    }

    fn spans(changes: &[Change]) -> Vec<(u64, u64)> {
        changes.iter().filter_map(|c| Some((c.start_frame, c.end_frame?))).collect()
    }

    const PEAK: &str = "[decision]\nby = \"peak\"";

    fn fusion(text: &str) -> Fusion {
        config::parse_toml(text, "x").unwrap()
    }

    fn names(labels: &[&str]) -> Vec<String> {
        labels.iter().map(|l| l.to_string()).collect()
    }

    fn close(a: &[f32], b: &[f32]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6)
    }

    #[test]
    fn new_settings_hold_from_the_next_hop_on_and_close_what_is_no_longer_watched() {
        let manifest = "[decision]\nstart = 0.5\nend = 0.3\nsmooth_hops = 1\nmin_hops = 1";
        let mut a = decider(&["a", "b"], manifest);
        let phases = |changes: Vec<Change>| changes.iter().map(|c| (c.label, c.phase)).collect::<Vec<_>>();
        assert_eq!(phases(step(&mut a, 63, &[0.6, 0.4])), [(0, Phase::Start)]);
        // What is open stays open under the new threshold, and another label begins.
        a.retune(decider(&["a", "b"], "[decision]\nstart = 0.35\nend = 0.2\nsmooth_hops = 1\nmin_hops = 1"));
        assert_eq!(phases(step(&mut a, 71, &[0.25, 0.4])), [(1, Phase::Start)]);
        a.retune(decider(&["a", "b"], &format!("{manifest}\nignore = [\"b\"]")));
        assert_eq!(phases(step(&mut a, 79, &[0.9, 0.9])), [(1, Phase::End)]);
        assert_eq!(phases(step(&mut a, 87, &[0.1, 0.9])), [(0, Phase::End)]);
        assert_eq!(phases(step(&mut a, 95, &[0.1, 0.9])), []);
    }

    #[test]
    fn what_had_begun_when_a_label_was_ignored_does_not_start_when_it_is_watched_again() {
        let watched = "[decision]\nstart = 0.5\nend = 0.3\nsmooth_hops = 1\nmin_hops = 2";
        let mut a = decider(&["a", "b"], watched);
        assert!(step(&mut a, 63, &[0.1, 0.9]).is_empty());
        a.retune(decider(&["a", "b"], &format!("{watched}\nignore = [\"b\"]")));
        for hop in 0..100 {
            assert!(step(&mut a, 71 + 8 * hop, &[0.1, 0.9]).is_empty());
        }
        a.retune(decider(&["a", "b"], watched));
        assert!(step(&mut a, 871, &[0.1, 0.9]).is_empty(), "one hop is not two");
        let started = step(&mut a, 879, &[0.1, 0.9]);
        assert!(started[0].phase == Phase::Start && started[0].start_frame > 800, "{started:?}");
    }

    #[test]
    fn probabilities_are_averaged_by_weight_each_label_by_its_own() {
        let rule = "rule = \"probabilities\"\nweights = { rgb = 3.0 }\nlabel.c = { flow = 0.0 }";
        let mut out = Scores::default();
        // Softmax: 1/2, 1/4, 1/4 and 1/4, 1/4, 1/2.
        let (rgb, flow) = ([2f32.ln(), 0.0, 0.0], [0.0, 0.0, 2f32.ln()]);
        fuse(&fusion(rule), &["rgb", "flow"], &names(&["a", "b", "c"]), &[&rgb, &flow], &mut out).unwrap();
        assert!(close(&out.streams[0], &[0.5, 0.25, 0.25]) && close(&out.streams[1], &[0.25, 0.25, 0.5]));
        assert!(close(&out.fused, &[(3.0 * 0.5 + 0.25) / 4.0, 0.25, 0.25]), "{:?}", out.fused);
    }

    #[test]
    fn logits_are_summed_by_weight() {
        let mut out = Scores::default();
        let rule = fusion("rule = \"logits\"\nweights = { flow = 2.0 }");
        let logits = [vec![0.5, 1.0], vec![1.0, 0.0]];
        fuse(&rule, &["rgb", "flow"], &names(&["a", "b"]), &[&logits[0], &logits[1]], &mut out).unwrap();
        let e = 1.5f32.exp();
        assert!(close(&out.fused, &[e / (e + 1.0), 1.0 / (e + 1.0)]));
        assert!(close(&fused_logits(&rule, &["rgb", "flow"], &logits), &[2.5, 1.0]));
    }

    #[test]
    fn what_is_left_of_the_streams_is_fused() {
        let (none, flow): (&[f32], [f32; 2]) = (&[], [0.0, 3f32.ln()]);
        for rule in ["rule = \"probabilities\"\nlabel.b = { flow = 0.0 }", "rule = \"logits\""] {
            let mut out = Scores::default();
            let labels = names(&["a", "b"]);
            fuse(&fusion(rule), &["rgb", "flow"], &labels, &[&flow, &flow], &mut out).unwrap();
            fuse(&fusion(rule), &["rgb", "flow"], &labels, &[none, &flow], &mut out).unwrap();
            assert!(close(&out.fused, &[0.25, 0.75]), "{:?}", out.fused);
            assert!(out.streams[0].is_empty() && close(&out.streams[1], &[0.25, 0.75]));
            assert!(fuse(&fusion(rule), &["rgb", "flow"], &labels, &[none, none], &mut out).is_err());
        }
    }

    #[test]
    fn what_is_no_number_is_an_error_that_names_the_stream() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for rule in ["rule = \"probabilities\"", "rule = \"logits\""] {
                let mut out = Scores::default();
                let e =
                    fuse(&fusion(rule), &["rgb", "flow"], &names(&["a", "b"]), &[&[0.0, 1.0], &[bad, 0.0]], &mut out);
                let e = e.unwrap_err().to_string();
                assert!(e.contains("`flow`") && e.contains("`a`"), "{e}");
            }
        }
        let rule = fusion("rule = \"logits\"");
        let e = fuse(&rule, &["rgb", "flow"], &names(&["a"]), &[&[f32::MAX], &[f32::MAX]], &mut Scores::default());
        assert!(e.is_err());
    }

    #[test]
    fn logits_of_any_size_give_probabilities() {
        let mut random = Random(1);
        let labels = names(&["a", "b", "c", "d"]);
        let mut out = Scores::default();
        for _ in 0..1000 {
            let mut logits = || [0; 4].map(|_| (random.score() - 0.5) * 10f32.powi(random.below(38) as i32));
            let (rgb, flow) = (logits(), logits());
            fuse(&fusion("rule = \"probabilities\""), &["rgb", "flow"], &labels, &[&rgb, &flow], &mut out).unwrap();
            assert!(out.fused.iter().all(|p| (0.0..=1.0).contains(p)));
            assert!((out.fused.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn logits_that_do_not_fit_are_the_model_s_fault() {
        let mut out = Scores::default();
        let rule = fusion("rule = \"probabilities\"\nweights = { rgb = 0.0, flow = 0.0 }");
        let labels = names(&["a", "b"]);
        for logits in [&[&[0.0f32, 1.0][..]][..], &[&[0.0, 1.0], &[0.0]], &[&[0.0, 1.0], &[0.0, 1.0]]] {
            assert_eq!(fuse(&rule, &["rgb", "flow"], &labels, logits, &mut out).unwrap_err().exit_code(), 2);
        }
    }

    #[test]
    fn settings_are_merged_layer_by_layer() {
        let model = model(
            &["walking", "falling", "nothing"],
            "background = \"nothing\"\n[decision]\nstart = 0.7\nmin_hops = 2\n[decision.label.falling]\nby = \"peak\"\nstart = 0.5\nonset = 20",
        );
        let config = events("end = 0.3\nmin_hops = 3\n[label.falling]\nmin_hops = 1\nend = 0.2");
        let settings = settings(&model, &config).unwrap();
        let common = Settings { start: 0.7, end: 0.3, min_hops: 3, ..Settings::default() };
        assert_eq!(settings[0], common);
        let falling = Settings { start: 0.5, end: 0.2, by: By::Peak, min_hops: 1, onset: 20, ..common };
        assert_eq!(settings[1], falling);
        assert_eq!(by_label(&model, &config).unwrap(), [By::Mean, By::Peak, By::Mean]);
    }

    #[test]
    fn wrong_settings_are_told_with_whose_they_are() {
        let labels = ["walking", "falling"];
        let good = model(&labels, "");
        for (text, words) in [
            ("start = 1.5", "start 1.5 is not within 0..1"),
            ("start = nan", "start NaN"),
            ("start = 0.3", "would end below 0.4 and start only from 0.3"),
            ("smooth_hops = 0", "smooth_hops 0"),
            ("min_hops = 0", "min_hops 0"),
            ("min_hops = 100000", "min_hops 100000"),
            ("onset = 1000", "onset 1000"),
            ("ignore = [\"wallking\"]", "did you mean `walking`?"),
            ("[label.fallling]\nstart = 0.5", "did you mean `falling`?"),
            ("[label.falling]\nend = 0.9", "`falling`"),
        ] {
            let e = Decider::new(&good, &events(text), 8).unwrap_err();
            assert!(e.to_string().starts_with("events: ") && e.to_string().contains(words), "{text}: {e}");
            assert_eq!(e.kind(), crate::error::Kind::Config);
        }
        let e = Decider::new(&model(&labels, "[decision]\nend = 0.9"), &Decision::default(), 8).unwrap_err();
        assert_eq!(e.kind(), crate::error::Kind::Model);
    }

    #[test]
    fn background_and_ignored_labels_never_open() {
        let model = model(&["nothing", "a", "b", "c"], "background = \"nothing\"\n[decision]\nignore = [\"a\"]");
        let mut decider = Decider::new(&model, &events("ignore = [\"b\"]"), 8).unwrap();
        let changes = step(&mut decider, 63, &[1.0; 4]);
        assert_eq!(changes.iter().map(|c| c.label).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn an_event_waits_for_its_hops_and_is_dated_from_the_first() {
        let mut decider = decider(&["a"], "[decision]\nby = \"peak\"\nmin_hops = 3");
        let changes = play(&mut decider, &[0.0, 0.9, 0.9, 0.0, 0.7, 0.9, 0.8, 0.7, 0.1]);
        let told: Vec<_> = changes.iter().map(|c| (c.phase, c.score, c.peak)).collect();
        assert_eq!(told, [(Phase::Start, 0.8, 0.9), (Phase::End, 0.1, 0.9)]);
        // The first of the run is the fifth hop, whose window ends with frame 95.
        assert_eq!(changes[0].start_frame, 96 - 32);
        assert_eq!(changes[1].end_frame, Some(128 - 32));
    }

    #[test]
    fn what_is_there_from_the_beginning_to_the_end_is_dated_so() {
        let mut decider = decider(&["a"], "");
        assert_eq!(spans(&play(&mut decider, &[0.9; 4])), [(0, 64 + 3 * 8)]);
        // A recording shorter than the window.
        let mut decider = self::decider(&["a"], "");
        assert_eq!(step(&mut decider, 39, &[0.9])[0].start_frame, 0);
        assert_eq!(decider.finish(39)[0].end_frame, Some(40));
    }

    #[test]
    fn updates_come_every_five_seconds_and_keep_the_start() {
        let changes = play(&mut decider(&["a"], PEAK), &[0.9; 60]);
        let told: Vec<_> = changes.iter().map(|c| (c.phase, c.start_frame, c.end_frame)).collect();
        let update = (Phase::Update, 0, None);
        assert_eq!(told, [(Phase::Start, 0, None), update, update, update, (Phase::End, 0, Some(64 + 59 * 8))]);
    }

    #[test]
    fn within_the_band_nothing_changes() {
        let mut random = Random(2);
        for by in ["peak", "mean"] {
            let mut decider = decider(&["a"], &format!("[decision]\nby = \"{by}\""));
            let band = |random: &mut Random| 0.4 + 0.1999 * random.score();
            assert!((0..500).all(|i| step(&mut decider, 63 + i * 8, &[band(&mut random)]).is_empty()));
            let opened = (500..510).flat_map(|i| step(&mut decider, 63 + i * 8, &[0.9])).count();
            assert_eq!(opened, 1);
            for i in 510..1000 {
                let changes = step(&mut decider, 63 + i * 8, &[band(&mut random)]);
                assert!(changes.iter().all(|c| c.phase == Phase::Update), "{changes:?}");
            }
        }
    }

    #[test]
    fn a_gap_leaves_events_open_and_forgets_the_mean() {
        let mut decider = decider(&["a", "b"], "[decision]\nmin_hops = 2");
        for i in 0..3 {
            step(&mut decider, 63 + i * 8, &[0.9, 0.0]);
        }
        step(&mut decider, 87, &[0.9, 1.0]);
        decider.gap(100);
        // A mean over the cut would have kept `a` over 0.4; and the run of `b` begins anew.
        let changes = step(&mut decider, 300, &[0.2, 0.9]);
        assert_eq!(changes.iter().map(|c| (c.label, c.phase)).collect::<Vec<_>>(), [(0, Phase::End)]);
        assert_eq!(changes[0].end_frame, Some(301 - 32));
        let changes = step(&mut decider, 308, &[0.2, 0.9]);
        assert_eq!((changes[0].label, changes[0].phase, changes[0].start_frame), (1, Phase::Start, 301 - 32));
    }

    #[test]
    fn the_best_labels_are_in_order() {
        let top = top(&[0.1, 0.3, 0.05, 0.3, 0.2, 0.04, 0.01]);
        assert_eq!(top.as_slice(), [(1, 0.3), (3, 0.3), (4, 0.2), (0, 0.1), (2, 0.05)]);
        assert_eq!(self::top(&[0.5]).len(), 1);
    }

    /// How an action on frames `from..to` looks to windows: the score follows the share of the window that it fills.
    fn seen(from: u64, to: u64, hops: u64, score: impl Fn(f32) -> f32) -> Vec<f32> {
        let share = |i: u64| {
            let end = WINDOW + i * HOP;
            end.min(to).saturating_sub(from.max(end - WINDOW)) as f32 / WINDOW as f32
        };
        (0..hops).map(|i| score(share(i))).collect()
    }

    #[test]
    fn an_action_is_dated_within_a_hop_of_when_it_was() {
        let mut random = Random(3);
        let model = |share: f32| if share >= 0.5 { 0.97 } else { 0.02 };
        for by in ["mean", "peak"] {
            for _ in 0..500 {
                let from = 40 + random.below(400);
                let to = from + 56 + random.below(300);
                let mut decider = decider(&["a"], &format!("[decision]\nby = \"{by}\""));
                let spans = spans(&play(&mut decider, &seen(from, to, 120, model)));
                let [(start, end)] = spans[..] else { panic!("{from}..{to}: {spans:?}") };
                assert!(
                    start.abs_diff(from) <= HOP && end.abs_diff(to) <= HOP,
                    "{by}: {from}..{to} was {start}..{end}"
                );
            }
        }
    }

    #[test]
    fn an_action_that_fades_in_is_dated_within_half_a_second() {
        let mut random = Random(4);
        let model = |share: f32| 1.0 / (1.0 + (-12.0 * (share - 0.5)).exp());
        for _ in 0..500 {
            let from = 40 + random.below(400);
            let to = from + 56 + random.below(300);
            let spans = spans(&play(&mut decider(&["a"], ""), &seen(from, to, 120, model)));
            let [(start, end)] = spans[..] else { panic!("{from}..{to}: {spans:?}") };
            assert!(start.abs_diff(from) <= 13 && end.abs_diff(to) <= 13, "{from}..{to} was {start}..{end}");
        }
    }

    /// Settings and a score sequence of any kind: noise, plateaus, exact thresholds; hops of any length, gaps between.
    fn scenario(random: &mut Random, labels: usize) -> (String, Vec<(u64, Vec<f32>, bool)>) {
        let end = random.score();
        let start = end + (1.0 - end) * random.score();
        let settings = format!(
            "[decision]\nstart = {start}\nend = {end}\nby = \"{}\"\nsmooth_hops = {}\nmin_hops = {}\nonset = {}\noffset = {}\n",
            if random.below(2) == 0 { "mean" } else { "peak" },
            1 + random.below(5),
            1 + random.below(3),
            random.below(100),
            random.below(100),
        );
        let mut last = random.below(64);
        let mut held = vec![0.0; labels];
        let hops = (0..100 + random.below(200)).map(|_| {
            last += 1 + random.below(16);
            for score in &mut held {
                *score = match random.below(6) {
                    0 => random.score(),
                    1 => start,
                    2 => end,
                    _ => *score,
                };
            }
            (last, held.clone(), random.below(30) == 0)
        });
        (settings, hops.collect())
    }

    fn run(decider: &mut Decider, hops: &[(u64, Vec<f32>, bool)]) -> Vec<Change> {
        let mut changes = Vec::new();
        for (last, scores, gap) in hops {
            if *gap {
                decider.gap(10);
            }
            let before = changes.len();
            changes.extend(step(decider, *last, scores));
            let newest = &changes[before..];
            assert!(newest.iter().all(|c| c.start_frame <= *last && c.end_frame.is_none_or(|e| e <= last + 1)));
        }
        changes.extend_from_slice(decider.finish(hops.last().map_or(0, |h| h.0)));
        changes
    }

    #[test]
    fn whatever_the_scores_phases_are_well_formed() {
        let mut random = Random(5);
        let labels = ["a", "b", "c"];
        let mut seen = [0; 3];
        for _ in 0..500 {
            let (settings, hops) = scenario(&mut random, labels.len());
            let changes = run(&mut decider(&labels, &settings), &hops);
            for label in 0..labels.len() {
                let mut open: Option<&Change> = None;
                let mut last_end = 0;
                for change in changes.iter().filter(|c| c.label == label) {
                    seen[change.phase as usize] += 1;
                    assert_eq!(change.end_frame.is_some(), change.phase == Phase::End);
                    assert!(change.peak >= change.score, "{change:?}");
                    match (change.phase, open) {
                        (Phase::Start, None) => {
                            assert!(change.start_frame >= last_end, "{change:?} within the event before");
                            open = Some(change);
                        }
                        (Phase::Update, Some(started)) => assert_eq!(change.start_frame, started.start_frame),
                        (Phase::End, Some(started)) => {
                            assert_eq!(change.start_frame, started.start_frame);
                            last_end = change.end_frame.unwrap();
                            assert!(last_end > change.start_frame);
                            open = None;
                        }
                        (phase, open) => panic!("{phase:?} after {open:?}"),
                    }
                }
                assert_eq!(open, None, "finish closes everything");
            }
        }
        assert!(seen.iter().all(|n| *n > 500), "the scenarios are of every kind: {seen:?}");
    }

    #[test]
    fn the_same_scores_give_the_same_changes() {
        let mut random = Random(6);
        for _ in 0..100 {
            let (settings, hops) = scenario(&mut random, 2);
            let once = run(&mut decider(&["a", "b"], &settings), &hops);
            assert_eq!(run(&mut decider(&["a", "b"], &settings), &hops), once);
        }
    }

    #[test]
    fn the_order_of_the_labels_does_not_matter() {
        let mut random = Random(7);
        let (labels, turned) = (["a", "b", "c"], ["c", "a", "b"]);
        for _ in 0..100 {
            let (settings, hops) = scenario(&mut random, 3);
            let turned_hops: Vec<_> = hops.iter().map(|(l, s, g)| (*l, vec![s[2], s[0], s[1]], *g)).collect();
            let told = |names: [&str; 3], changes: Vec<Change>| {
                let mut by_label: BTreeMap<String, Vec<_>> = BTreeMap::new();
                for c in changes {
                    let told = (c.phase, c.score.to_bits(), c.peak.to_bits(), c.start_frame, c.end_frame);
                    by_label.entry(names[c.label].into()).or_default().push(told);
                }
                by_label
            };
            let straight = told(labels, run(&mut decider(&labels, &settings), &hops));
            assert_eq!(told(turned, run(&mut decider(&turned, &settings), &turned_hops)), straight);
        }
    }
}
