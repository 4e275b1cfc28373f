//! What every backend's network has in common: a graph for each stream, run one after the other, each lane's state, and
//! a second graph where a stream gets another number of frames than its window (a whole clip). A backend brings its
//! [`Engine`]: one graph, ready to run at one length.
//!
//! The streams take turns, each with all cores. Side by side with half of the cores each is no faster: ONNX Runtime's CPU
//! provider, f32, models/default (2 x 64x64x64), 2 cores shared with a training run, medians of 15 in two runs: 536 and
//! 587 ms in turn, 511 and 699 ms side by side. In turn, a network also needs no threads of its own.

use std::{
    collections::{HashMap, hash_map::Entry},
    time::{Duration, Instant},
};

use super::{Hop, Lane, Network, Scores, Tensor};
use crate::{
    error::{Error, Result},
    model::{Dtype, Model, Precision, Stream},
};

/// One stream's graph, made ready for one number of frames.
pub(super) trait Engine: Send {
    /// What a lane carries from step to step.
    type State: Send;

    /// State before the first step: zeros.
    fn zero(&self) -> Result<Self::State>;

    /// Runs the graph once, advances `state`, and puts the logits in place of what `logits` held.
    fn run(&mut self, input: &Tensor, state: &mut Self::State, logits: &mut Vec<f32>) -> Result<()>;
}

/// A stream as a backend prepared it.
pub(super) struct Prepared<E> {
    pub precision: Precision,
    /// Whether the graph's time axis is open.
    pub any_length: bool,
    /// Makes the engine for a number of frames.
    pub build: Box<dyn FnMut(usize) -> Result<E> + Send>,
}

pub(super) struct Streams<E: Engine> {
    runners: Vec<Runner<E>>,
    precision: Vec<Precision>,
    scores: Scores,
    spent: Vec<Duration>,
}

struct Runner<E: Engine> {
    stream: Stream,
    /// Values of one frame.
    per_frame: usize,
    prepared: Prepared<E>,
    /// The engine for the stream's own window.
    window: E,
    /// The engine of the last other length. One is kept: a clip of a folder is seldom as long as the one before it, but
    /// each clip is run once for every stream that it has.
    other: Option<(usize, E)>,
    lanes: HashMap<Lane, E::State>,
}

impl<E: Engine> Streams<E> {
    /// Builds each stream's engine for its window and runs it once on zeros: what is wrong with a graph comes out now
    /// and not at the first hop, and the first hop is as fast as the others.
    pub fn new(model: &Model, mut prepare: impl FnMut(&Stream) -> Result<Prepared<E>>) -> Result<Self> {
        let mut runners = Vec::new();
        let mut scores = Scores::default();
        for stream in &model.manifest.streams {
            let mut logits = Vec::new();
            let runner = prepare(stream)
                .and_then(|prepared| Runner::new(stream, prepared, model.labels.len(), &mut logits))
                .map_err(|e| e.context(format_args!("stream `{}`", stream.name)))?;
            runners.push(runner);
            scores.logits.push(logits);
        }
        let precision = runners.iter().map(|r| r.prepared.precision).collect();
        let spent = vec![Duration::ZERO; runners.len()];
        Ok(Streams { runners, precision, scores, spent })
    }
}

impl<E: Engine> Network for Streams<E> {
    fn step(&mut self, lane: Lane, hop: &Hop) -> Result<&Scores> {
        let n = self.runners.len();
        if hop.inputs.len() != n || hop.frames.len() != n {
            return Err(Error::internal(format!("a hop with {} inputs for {n} streams", hop.inputs.len())));
        }
        for (i, runner) in self.runners.iter_mut().enumerate() {
            let began = Instant::now();
            runner
                .step(lane, hop.frames[i], &hop.inputs[i], &mut self.scores.logits[i])
                .map_err(|e| e.context(format_args!("stream `{}`", runner.stream.name)))?;
            self.spent[i] = began.elapsed();
        }
        Ok(&self.scores)
    }

    fn reset(&mut self, lane: Lane) {
        for runner in &mut self.runners {
            runner.lanes.remove(&lane);
        }
    }

    fn precision(&self) -> &[Precision] {
        &self.precision
    }

    fn spent(&self) -> &[Duration] {
        &self.spent
    }

    fn any_length(&self, stream: usize) -> bool {
        self.runners.get(stream).is_some_and(|r| r.prepared.any_length)
    }
}

impl<E: Engine> Runner<E> {
    fn new(stream: &Stream, mut prepared: Prepared<E>, labels: usize, logits: &mut Vec<f32>) -> Result<Self> {
        let mut window = (prepared.build)(stream.frames)?;
        let per_frame: usize = stream.shape(1).iter().product();
        let zeros = match stream.dtype {
            Dtype::F32 => Tensor::F32(vec![0.0; per_frame * stream.frames]),
            Dtype::U8 => Tensor::U8(vec![0; per_frame * stream.frames]),
        };
        let mut state = window.zero()?;
        window.run(&zeros, &mut state, logits).map_err(|e| Error::model(e.to_string()))?;
        if logits.len() != labels {
            return Err(Error::model(format!(
                "output `{}` has {} logits, but there are {labels} labels",
                stream.output,
                logits.len()
            )));
        }
        Ok(Runner { stream: stream.clone(), per_frame, prepared, window, other: None, lanes: HashMap::new() })
    }

    fn step(&mut self, lane: Lane, frames: usize, input: &Tensor, logits: &mut Vec<f32>) -> Result<()> {
        let (len, dtype) = match input {
            Tensor::F32(values) => (values.len(), Dtype::F32),
            Tensor::U8(values) => (values.len(), Dtype::U8),
        };
        let expected = self.per_frame.saturating_mul(frames);
        if frames == 0 || len != expected || dtype != self.stream.dtype {
            return Err(Error::internal(format!(
                "got {len} values of {dtype:?} for {frames} frames, which take {expected} of {:?}",
                self.stream.dtype
            )));
        }
        let engine = if frames == self.stream.frames {
            &mut self.window
        } else {
            if !self.prepared.any_length {
                return Err(Error::model(format!(
                    "takes exactly {} frames: the time axis of its graph is fixed; got {frames}",
                    self.stream.frames
                )));
            }
            if self.other.as_ref().is_none_or(|(n, _)| *n != frames) {
                // The one before goes first: both at once would hold its weights and buffers twice.
                self.other = None;
                self.other = Some((frames, (self.prepared.build)(frames)?));
            }
            let Some((_, engine)) = &mut self.other else { unreachable!("just put there") };
            engine
        };
        let state = match self.lanes.entry(lane) {
            Entry::Occupied(lane) => lane.into_mut(),
            Entry::Vacant(lane) => lane.insert(engine.zero()?),
        };
        engine.run(input, state, logits)
    }
}
