//! The heart: hops in, streams run, scores fused, decided, journalled. One thread for all cameras; whichever hop waits
//! longest is next.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};

use crate::{
    cadence::FPS,
    camera::Camera,
    clip,
    config::Mode,
    decide::{self, Change, Decider, HopScores, Phase},
    error::{Kind, Result},
    event::{self, Event},
    inference::{self, Hop, Lane, LoadOptions, Network, Progress, Reach},
    input,
    model::Model,
    ring::{Bell, Rhythm, Span, Step},
    scale,
    time::Shutdown,
};

/// Where events go: the journal first, then whoever shows them.
pub trait Sink {
    fn event(&mut self, event: &mut Event) -> Result<()>;
}

/// What stands in every event and does not change while the daemon runs.
#[derive(Debug, Clone)]
pub struct Identity {
    pub device: String,
    pub mode: Mode,
    pub hop: usize,
}

pub struct Recognizer<'a> {
    model: &'a Model,
    backends: &'a [String],
    network: Box<dyn Network>,
    backend: &'static str,
    reach: Reach,
    /// Frames of the model's window.
    window: usize,
    identity: Identity,
    lanes: Vec<LaneState>,
    view_of_stream: Vec<usize>,
    names: Vec<String>,
    hop: Hop,
    scores: decide::Scores,
}

struct LaneState {
    camera: Arc<Camera>,
    decider: Decider,
    /// Id and start of the events that are open, by label: an event keeps its own from start to end.
    open: Vec<Option<(String, Timestamp)>>,
    hops: u64,
    lost: u64,
    last_frame: u64,
    progress: Progress,
    /// A hop was left out since the last one.
    degraded: bool,
    ended: bool,
}

/// Hops made and frames lost, of one camera.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    pub hops: u64,
    pub lost: u64,
}

impl<'a> Recognizer<'a> {
    /// Loads the model.
    pub fn new(model: &'a Model, backends: &'a [String], identity: Identity) -> Result<Self> {
        let (network, backend) = inference::load_with(model, backends, &options(&identity))?;
        let (_, view_of_stream) = scale::views(&model.manifest);
        let streams = &model.manifest.streams;
        Ok(Recognizer {
            model,
            backends,
            hop: Hop::of(network.as_ref(), streams.len()),
            reach: network.reach(),
            window: clip::window(model),
            network,
            backend,
            identity,
            lanes: Vec::new(),
            view_of_stream,
            names: streams.iter().map(|s| s.name.clone()).collect(),
            scores: decide::Scores::default(),
        })
    }

    /// How the cameras' rings must hand out their frames.
    pub fn rhythm(&self) -> Rhythm {
        inference::rhythm(self.model, self.network.as_ref(), self.identity.hop)
    }

    /// Watches one more camera.
    pub fn add(&mut self, camera: Arc<Camera>, decider: Decider) {
        self.lanes.push(LaneState {
            camera,
            decider: decider.looking_back(self.reach.lag),
            open: vec![None; self.model.labels.len()],
            hops: 0,
            lost: 0,
            last_frame: 0,
            progress: Progress::default(),
            degraded: false,
            ended: false,
        });
    }

    pub fn backend(&self) -> &'static str {
        self.backend
    }

    /// The precisions of the streams' files, e.g. `f32` or `int8+f32`.
    pub fn precision(&self) -> String {
        let mut names: Vec<&str> = self.network.precision().iter().map(|p| p.name()).collect();
        names.dedup();
        names.join("+")
    }

    pub fn tally(&self) -> Vec<Tally> {
        self.lanes.iter().map(|l| Tally { hops: l.hops, lost: l.lost }).collect()
    }

    /// Works until every camera has ended, or until shutdown; what is open then is closed.
    pub fn run(&mut self, bell: &Bell, shutdown: &Shutdown, sink: &mut dyn Sink) -> Result<()> {
        while self.lanes.iter().any(|l| !l.ended) && !shutdown.is_set() {
            let waiting = |(i, l): (usize, &LaneState)| Some((l.camera.ring.waiting_since()?, i));
            let oldest = self.lanes.iter().enumerate().filter(|(_, l)| !l.ended).filter_map(waiting).min();
            match oldest {
                Some((_, lane)) => self.advance(lane, sink)?,
                None => {
                    // Closed rings have nothing waiting: they tell of their end when asked.
                    for lane in 0..self.lanes.len() {
                        if !self.lanes[lane].ended {
                            self.advance(lane, sink)?;
                        }
                    }
                    bell.wait(Duration::from_millis(100));
                }
            }
        }
        for lane in 0..self.lanes.len() {
            self.finish(lane, sink)?;
        }
        Ok(())
    }

    /// Takes one step of one camera.
    fn advance(&mut self, lane: usize, sink: &mut dyn Sink) -> Result<()> {
        let streams = &self.model.manifest.streams;
        let (hop, views) = (&mut self.hop, &self.view_of_stream);
        let step = self.lanes[lane].camera.ring.take(|window| {
            input::fill_hop(streams, views, window.len(), |i| window.frame(i), hop);
        });
        let state = &mut self.lanes[lane];
        match step {
            None => Ok(()),
            Some(Step::Gap { lost }) => {
                log::warn!("camera {}: {lost} frames are in no hop", state.camera.id);
                state.lost += lost;
                state.degraded = true;
                state.decider.gap(lost);
                state.progress.cut();
                self.network.cut(Lane(lane));
                Ok(())
            }
            Some(Step::Ended) => self.finish(lane, sink),
            Some(Step::Hop(span)) => self.recognize(lane, span, sink),
        }
    }

    fn recognize(&mut self, lane: usize, span: Span, sink: &mut dyn Sink) -> Result<()> {
        self.hop.follows = self.lanes[lane].progress.hop(span.last, self.identity.hop);
        let logits = match self.network.step(Lane(lane), &self.hop) {
            Ok(scores) => scores,
            Err(e) if e.kind() == Kind::Internal => {
                // The device may have been lost: one new start, and this hop once more. If it fails again it is not the
                // hop's fault.
                log::error!("{}: {e}; loading the model again", self.backend);
                (self.network, self.backend) =
                    inference::load_with(self.model, self.backends, &options(&self.identity))?;
                self.reach = self.network.reach();
                self.lanes.iter_mut().for_each(|l| l.progress = Progress::default());
                self.hop.follows = self.lanes[lane].progress.hop(span.last, self.identity.hop);
                self.network.step(Lane(lane), &self.hop)?
            }
            Err(e) => return Err(e),
        };
        let state = &mut self.lanes[lane];
        state.hops += 1;
        state.last_frame = span.last;
        let logits: Vec<&[f32]> = logits.logits.iter().map(Vec::as_slice).collect();
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        if let Err(e) = decide::fuse(&self.model.manifest.fusion, &names, &self.model.labels, &logits, &mut self.scores)
        {
            log::error!(
                "camera {}: frames {} to {}: {e}; this hop is left out",
                state.camera.id,
                span.first,
                span.last
            );
            return Ok(());
        }
        if state.progress.is_cold(&self.reach, self.window) {
            return Ok(());
        }
        let hop = HopScores { first_frame: span.first, last_frame: span.last, scores: &self.scores };
        let changes = state.decider.step(&hop).to_vec();
        for change in changes {
            self.emit(lane, &change, span.taken, sink)?;
        }
        self.lanes[lane].degraded = false;
        Ok(())
    }

    fn finish(&mut self, lane: usize, sink: &mut dyn Sink) -> Result<()> {
        let state = &mut self.lanes[lane];
        if state.ended {
            return Ok(());
        }
        state.ended = true;
        let changes = state.decider.finish(state.last_frame).to_vec();
        for change in changes {
            self.emit(lane, &change, Instant::now(), sink)?;
        }
        Ok(())
    }

    fn emit(&mut self, lane: usize, change: &Change, taken: Instant, sink: &mut dyn Sink) -> Result<()> {
        let precision = self.precision();
        let state = &mut self.lanes[lane];
        let label = &self.model.labels[change.label];
        let delay = taken.elapsed();
        // A recording's frames are dated from its file, a camera's from now back.
        let date = |frame: u64| match state.camera.epoch {
            Some(epoch) => epoch + SignedDuration::from_millis(millis(frame as i64)),
            None => {
                let back = state.last_frame as i64 - frame as i64;
                Timestamp::now()
                    - SignedDuration::from_millis(millis(back))
                    - SignedDuration::try_from(delay).unwrap_or_default()
            }
        };
        let ended = (change.phase == Phase::End).then_some(()).and(change.end_frame);
        let (id, start) = state.open[change.label].get_or_insert_with(|| {
            let start = date(change.start_frame);
            (event::id(start, &self.identity.device, &state.camera.id, label, change.start_frame), start)
        });
        let named = |scores: &[f32]| scores[change.label];
        let mut event = Event {
            v: 1,
            id: id.clone(),
            seq: 0,
            device: self.identity.device.clone(),
            camera: state.camera.id.clone(),
            phase: change.phase,
            label: label.clone(),
            score: change.score,
            peak: change.peak,
            top: change
                .top
                .iter()
                .map(|&(l, score)| event::Top { label: self.model.labels[l].clone(), score })
                .collect(),
            streams: self.names.iter().cloned().zip(self.scores.streams.iter().map(|s| named(s))).collect(),
            start: *start,
            end: ended.map(date),
            start_s: seconds(change.start_frame),
            end_s: ended.map(seconds),
            first_frame: change.start_frame,
            last_frame: ended.map_or(state.last_frame, |e| e.saturating_sub(1)),
            model: format!("{}@{}", self.model.manifest.name, self.model.manifest.version),
            backend: self.backend.into(),
            precision,
            mode: self.identity.mode.name().into(),
            hop: self.identity.hop,
            delay_ms: delay.as_millis() as u64,
            flags: [
                (state.progress.is_warming(&self.reach), event::Flag::Warming),
                (state.degraded, event::Flag::Degraded),
            ]
            .into_iter()
            .filter_map(|(is, flag)| is.then_some(flag))
            .collect(),
        };
        if change.phase == Phase::End {
            state.open[change.label] = None;
        }
        sink.event(&mut event)
    }
}

fn options(identity: &Identity) -> LoadOptions {
    LoadOptions { mode: identity.mode, hop: identity.hop, ..LoadOptions::default() }
}

fn millis(frames: i64) -> i64 {
    frames * 1000 / FPS as i64
}

fn seconds(frame: u64) -> f64 {
    frame as f64 / FPS as f64
}
