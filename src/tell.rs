//! Scores to events: what a camera's [`Decider`] changes, with names and dates. Pure: the clock is read by whoever gives
//! the scores. `run` and `replay` both go through here, so that what went in, recorded, gives the events that came out.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    cadence::FPS,
    config::Mode,
    decide::{Change, Decider, HopScores, Phase, Scores},
    error::Result,
    event::{self, Event, Flag},
    model::Model,
};

/// What stands in every event and does not change while the daemon runs.
#[derive(Debug, Clone)]
pub struct About {
    pub device: String,
    /// Name and version.
    pub model: String,
    pub labels: Vec<String>,
    /// Names of the streams.
    pub streams: Vec<String>,
    pub mode: Mode,
    pub hop: usize,
}

impl About {
    pub fn new(device: &str, model: &Model, mode: Mode, hop: usize) -> Self {
        About {
            device: device.into(),
            model: format!("{}@{}", model.manifest.name, model.manifest.version),
            labels: model.labels.clone(),
            streams: model.manifest.streams.iter().map(|s| s.name.clone()).collect(),
            mode,
            hop,
        }
    }
}

/// What computes; another one takes over when it fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    pub backend: String,
    pub precision: String,
}

/// The circumstances of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Wall time of the newest frame.
    pub at: Timestamp,
    /// By how much the wall clock was set since the start, in all.
    pub set_by: SignedDuration,
    /// From there to the decision.
    pub delay_ms: u64,
    /// See [`Flag`].
    pub warming: bool,
    pub degraded: bool,
    pub still: bool,
}

/// What a camera's decider is given; with this alone the same events come out again.
#[derive(Debug, Clone, Copy)]
pub enum Given<'a> {
    Hop {
        hop: HopScores<'a>,
        seen: Seen,
    },
    /// So many frames were in no hop.
    Gap {
        lost: u64,
    },
    /// The camera has ended, or the daemon: what is open is closed.
    End {
        last_frame: u64,
        seen: Seen,
    },
}

/// One camera's decisions, told as events.
#[derive(Debug)]
pub struct Teller {
    camera: String,
    /// Wall time of frame 0, for a recording; a camera's frames are dated from the newest back.
    epoch: Option<Timestamp>,
    decider: Decider,
    /// Id, start, and what the clock was set by then, of the events that are open, by label: an event keeps its own from
    /// start to end.
    open: Vec<Option<(String, Timestamp, SignedDuration)>>,
    /// Each stream's scores of the newest hop.
    streams: Vec<Vec<f32>>,
}

impl Teller {
    pub fn new(camera: &str, epoch: Option<Timestamp>, decider: Decider, labels: usize) -> Self {
        Teller { camera: camera.into(), epoch, decider, open: vec![None; labels], streams: Vec::new() }
    }

    /// Other settings from now on; see [`Decider::retune`].
    pub fn retune(&mut self, decider: Decider) {
        self.decider.retune(decider);
    }

    /// Takes what is given, and tells what happens by it, in order.
    ///
    /// Errors: what `tell` gives.
    pub fn give(
        &mut self,
        about: &About,
        engine: &Engine,
        given: &Given,
        tell: &mut dyn FnMut(&mut Event) -> Result<()>,
    ) -> Result<()> {
        let (changes, last, seen) = match given {
            Given::Hop { hop, seen } => {
                keep(&mut self.streams, hop.scores);
                (self.decider.step(hop), hop.last_frame, seen)
            }
            Given::Gap { lost } => {
                self.decider.gap(*lost);
                return Ok(());
            }
            Given::End { last_frame, seen } => (self.decider.finish(*last_frame), *last_frame, seen),
        };
        if changes.is_empty() {
            return Ok(());
        }
        // Naming them changes what is open.
        let changes = changes.to_vec();
        for change in changes {
            tell(&mut self.event(about, engine, &change, last, seen))?;
        }
        Ok(())
    }

    fn event(&mut self, about: &About, engine: &Engine, change: &Change, last: u64, seen: &Seen) -> Event {
        let label = &about.labels[change.label];
        let (epoch, at) = (self.epoch, seen.at);
        let date = |frame: u64| {
            let (from, frames) = match epoch {
                Some(epoch) => (epoch, frame as i64),
                None => (at, frame as i64 - last as i64),
            };
            // A replayed file may say that a frame is of the year 10000.
            from.checked_add(SignedDuration::from_millis(millis(frames))).unwrap_or(from)
        };
        let ended = (change.phase == Phase::End).then_some(()).and(change.end_frame);
        let (id, start, set_by) = self.open[change.label].get_or_insert_with(|| {
            let start = date(change.start_frame);
            (event::id(start, &about.device, &self.camera, label, change.start_frame), start, seen.set_by)
        });
        // By the clock that it began with: it lasted as long as it did.
        let set = if epoch.is_some() { SignedDuration::ZERO } else { seen.set_by.saturating_sub(*set_by) };
        let end = ended.map(|frame| date(frame).checked_sub(set).unwrap_or(*start));
        let flags = [(seen.warming, Flag::Warming), (seen.degraded, Flag::Degraded), (seen.still, Flag::Still)];
        let event = Event {
            v: event::VERSION,
            id: id.clone(),
            seq: 0,
            device: about.device.clone(),
            camera: self.camera.clone(),
            phase: change.phase,
            label: label.clone(),
            score: change.score,
            peak: change.peak,
            top: change.top.iter().map(|&(l, score)| event::Top { label: about.labels[l].clone(), score }).collect(),
            // A stream that was left out has none.
            streams: about
                .streams
                .iter()
                .zip(&self.streams)
                .filter_map(|(name, scores)| Some((name.clone(), *scores.get(change.label)?)))
                .collect(),
            start: *start,
            end,
            start_s: seconds(change.start_frame),
            end_s: ended.map(seconds),
            first_frame: change.start_frame,
            last_frame: ended.map_or(last, |e| e.saturating_sub(1)),
            model: about.model.clone(),
            backend: engine.backend.clone(),
            precision: engine.precision.clone(),
            mode: about.mode.name().into(),
            hop: about.hop,
            delay_ms: seen.delay_ms,
            flags: flags.into_iter().filter_map(|(is, flag)| is.then_some(flag)).collect(),
        };
        if change.phase == Phase::End {
            self.open[change.label] = None;
        }
        event
    }
}

fn keep(streams: &mut Vec<Vec<f32>>, scores: &Scores) {
    streams.resize_with(scores.streams.len(), Vec::new);
    for (kept, new) in streams.iter_mut().zip(&scores.streams) {
        kept.clear();
        kept.extend_from_slice(new);
    }
}

fn millis(frames: i64) -> i64 {
    frames.saturating_mul(1000) / FPS as i64
}

fn seconds(frame: u64) -> f64 {
    frame as f64 / FPS as f64
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::Decision;

    fn about() -> (Model, About) {
        let model = Model::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default")).unwrap();
        let about = About::new("dock-3", &model, Mode::Window, 8);
        (model, about)
    }

    fn teller(model: &Model, camera: &str, epoch: Option<Timestamp>) -> Teller {
        Teller::new(camera, epoch, Decider::new(model, &Decision::default(), 8).unwrap(), model.labels.len())
    }

    fn seen(at: &str) -> Seen {
        Seen {
            at: at.parse().unwrap(),
            set_by: SignedDuration::ZERO,
            delay_ms: 120,
            warming: false,
            degraded: true,
            still: false,
        }
    }

    /// Gives hops that are all of label `label`, and the end.
    fn play(teller: &mut Teller, model: &Model, about: &About, label: usize, streams: usize) -> Vec<Event> {
        let engine = Engine { backend: "tract".into(), precision: "f32".into() };
        let one = |high: f32| (0..model.labels.len()).map(|l| if l == label { high } else { 0.01 }).collect::<Vec<_>>();
        let scores = Scores { fused: one(0.8), streams: (0..streams).map(|s| one(0.5 + s as f32 / 10.0)).collect() };
        let mut events = Vec::new();
        let mut tell = |e: &mut Event| {
            events.push(e.clone());
            Ok(())
        };
        for last in [63, 71, 79] {
            let hop = HopScores { first_frame: last - 63, last_frame: last, scores: &scores };
            let given = Given::Hop { hop, seen: seen("2026-11-26T10:00:10Z") };
            teller.give(about, &engine, &given, &mut tell).unwrap();
        }
        let end = Given::End { last_frame: 79, seen: seen("2026-11-26T10:00:11Z") };
        teller.give(about, &engine, &end, &mut tell).unwrap();
        events
    }

    #[test]
    fn a_camera_s_frames_are_dated_from_the_newest_back_and_a_recording_s_from_its_first() {
        let (model, about) = about();
        let falling = model.labels.iter().position(|l| l == "falling").unwrap();
        let events = play(&mut teller(&model, "door", None), &model, &about, falling, 2);
        assert_eq!(events.iter().map(|e| e.phase).collect::<Vec<_>>(), [Phase::Start, Phase::End]);
        assert_eq!((events[0].start, events[0].first_frame), ("2026-11-26T10:00:07.480Z".parse().unwrap(), 0));
        // An event keeps its id and its start, whatever the clock says later.
        assert_eq!((events[1].start, &events[1].id), (events[0].start, &events[0].id));
        assert_eq!(events[1].end, Some("2026-11-26T10:00:11.040Z".parse().unwrap()));
        let epoch = "2020-01-01T00:00:00Z".parse().unwrap();
        let events = play(&mut teller(&model, "clip", Some(epoch)), &model, &about, falling, 2);
        assert_eq!(events[0].start, epoch);
        assert_eq!(events[1].end, Some("2020-01-01T00:00:03.200Z".parse().unwrap()));
        assert_eq!((events[1].end_s, events[1].last_frame), (Some(3.2), 79));
    }

    #[test]
    fn a_clock_that_is_set_while_an_event_is_open_changes_nothing_of_how_long_it_lasted() {
        let (model, about) = about();
        let engine = Engine { backend: "tract".into(), precision: "f32".into() };
        let scores = Scores { fused: vec![0.9; model.labels.len()], streams: Vec::new() };
        for (end, set_by) in
            [("2026-11-26T11:00:20Z", 3600), ("2026-11-26T09:00:20Z", -3600), ("2026-11-26T10:00:20Z", 0)]
        {
            let mut teller = teller(&model, "door", None);
            let mut events = Vec::new();
            let mut tell = |e: &mut Event| {
                events.push(e.clone());
                Ok(())
            };
            let hop = HopScores { first_frame: 0, last_frame: 63, scores: &scores };
            let given = Given::Hop { hop, seen: seen("2026-11-26T10:00:10Z") };
            teller.give(&about, &engine, &given, &mut tell).unwrap();
            let seen = Seen { set_by: SignedDuration::from_secs(set_by), ..seen(end) };
            teller.give(&about, &engine, &Given::End { last_frame: 63 + 250, seen }, &mut tell).unwrap();
            let ended: Vec<_> = events.iter().filter(|e| e.phase == Phase::End).collect();
            assert!(!ended.is_empty());
            for event in ended {
                let lasted = event.end.unwrap().duration_since(event.start).as_secs_f64();
                assert!((lasted - (event.end_s.unwrap() - event.start_s)).abs() < 1e-6, "{set_by}: {event:?}");
            }
        }
    }

    #[test]
    fn an_event_has_the_scores_of_the_streams_that_there_were() {
        let (model, about) = about();
        let events = play(&mut teller(&model, "door", None), &model, &about, 1, 1);
        assert_eq!(events[1].streams.iter().collect::<Vec<_>>(), [(&"rgb".to_owned(), &0.5)]);
        assert_eq!((events[1].flags.as_slice(), events[1].delay_ms), ([Flag::Degraded].as_slice(), 120));
    }

    #[test]
    fn a_date_that_there_is_not_is_no_panic() {
        let (model, about) = about();
        let mut teller = teller(&model, "door", Some("9999-12-30T22:00:00Z".parse().unwrap()));
        let engine = Engine { backend: "tract".into(), precision: "f32".into() };
        let scores = Scores { fused: vec![0.9; model.labels.len()], streams: Vec::new() };
        for last_frame in [1 << 62, 5, u64::MAX - 1] {
            let hop = HopScores { first_frame: 0, last_frame, scores: &scores };
            let seen = seen("2026-11-26T10:00:10Z");
            teller.give(&about, &engine, &Given::Hop { hop, seen }, &mut |_| Ok(())).unwrap();
        }
    }
}
