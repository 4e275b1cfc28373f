//! What every backend's network has in common: a graph for each stream, run one after the other, each lane's state, and
//! a second graph where a stream gets another number of frames than its window (a whole clip), or where a mode computes
//! only what is new. A backend brings its [`Engine`]: one graph, ready to run at one length.
//!
//! The streams take turns, each with all cores. Side by side with half of the cores each is no faster: ONNX Runtime's CPU
//! provider, f32, the default model of then (2 x 64x64x64), 2 cores shared with a training run, medians of 15 in two runs: 536 and
//! 587 ms in turn, 511 and 699 ms side by side. In turn, a network also needs no threads of its own.

use std::{
    any::Any,
    collections::{HashMap, hash_map::Entry},
    time::{Duration, Instant},
};

use super::{
    Hop, Lane, LoadOptions, Network, Reach, Scores, Tensor,
    graph::{Graph, Stepped},
};
use crate::{
    compile::{Packed, State as Column},
    config::Mode,
    error::{Error, Result},
    model::{Dtype, Model, Precision, Stream},
};

/// One stream's graph, made ready for one number of frames.
pub(super) trait Engine: Send {
    /// What a lane carries from step to step.
    type State: Send + 'static;

    /// State before the first step: zeros.
    fn zero(&self) -> Result<Self::State>;

    /// Runs the graph once, puts its states in place of those in `state` (which a graph that begins a state does not look
    /// at), and the logits in place of what `logits` held.
    fn run(&mut self, input: &Tensor, state: &mut Self::State, logits: &mut Vec<f32>) -> Result<()>;
}

/// A stream as a backend prepared it.
pub(super) struct Prepared<E> {
    pub precision: Precision,
    /// The file's graph.
    pub graph: Graph,
    /// Makes the engine of a graph for a number of frames.
    pub build: Build<E>,
}

pub(super) type Build<E> = Box<dyn FnMut(&Graph, usize) -> Result<E> + Send>;

pub(super) struct Streams<E: Engine> {
    runners: Vec<Runner<E>>,
    precision: Vec<Precision>,
    scores: Scores,
    spent: Vec<Duration>,
    mode: Mode,
}

struct Runner<E: Engine> {
    stream: Stream,
    /// Values of one frame.
    per_frame: usize,
    precision: Precision,
    work: Work<E>,
    lanes: HashMap<Lane, E::State>,
}

/// How a stream's hops are computed.
enum Work<E> {
    Dense {
        graph: Graph,
        /// Whether the graph's time axis is open.
        any_length: bool,
        build: Build<E>,
        /// The engine for the stream's own window.
        window: E,
        /// The engine of the last other length. One is kept: a clip of a folder is seldom as long as the one before it,
        /// but each clip is run once for every stream that it has.
        other: Option<(usize, E)>,
    },
    Stepped {
        hop: E,
        /// Window mode's first hop, and the one behind a cut.
        prime: Option<E>,
        frames: usize,
        packed: Option<Packed>,
        reach: Reach,
        states: Vec<Column>,
    },
}

/// A lane's states of all streams, on their way to another network, and which states they are.
struct Moved<S> {
    kinds: Vec<Vec<Column>>,
    states: Vec<Option<S>>,
}

impl<E: Engine> Streams<E> {
    /// Builds each stream's engine for its window and runs it once on zeros: what is wrong with a graph comes out now
    /// and not at the first hop, and the first hop is as fast as the others.
    pub fn new(
        model: &Model,
        options: &LoadOptions,
        mut prepare: impl FnMut(&Stream) -> Result<Prepared<E>>,
    ) -> Result<Self> {
        let mut runners = Vec::new();
        let mut scores = Scores::default();
        for stream in &model.manifest.streams {
            let mut logits = Vec::new();
            let runner = prepare(stream)
                .and_then(|prepared| {
                    let columns = model.manifest.continuous.columns;
                    let stepped = prepared.graph.stepped(stream, options.mode, options.hop, columns)?;
                    Runner::new(stream, prepared, stepped, model.labels.len(), &mut logits)
                })
                .map_err(|e| e.context(format_args!("stream `{}`", stream.name)))?;
            runners.push(runner);
            scores.logits.push(logits);
        }
        let precision = runners.iter().map(|r| r.precision).collect();
        let spent = vec![Duration::ZERO; runners.len()];
        Ok(Streams { runners, precision, scores, spent, mode: options.mode })
    }
}

impl<E: Engine> Network for Streams<E> {
    fn step(&mut self, lane: Lane, hop: &Hop) -> Result<&Scores> {
        let n = self.runners.len();
        if hop.inputs.len() != n || hop.frames.len() != n {
            return Err(Error::internal(format!("a hop with {} inputs for {n} streams", hop.inputs.len())));
        }
        if hop.frames.iter().all(|&frames| frames == 0) {
            return Err(Error::internal("a hop that leaves every stream out"));
        }
        for (i, runner) in self.runners.iter_mut().enumerate() {
            if hop.frames[i] == 0 {
                self.scores.logits[i].clear();
                self.spent[i] = Duration::ZERO;
                continue;
            }
            let began = Instant::now();
            runner
                .step(lane, hop.frames[i], &hop.inputs[i], hop.follows, &mut self.scores.logits[i])
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

    fn cut(&mut self, lane: Lane) {
        // A state that reaches back without an end forgets the cut on its own.
        if matches!(self.mode, Mode::Dense | Mode::Window) {
            self.reset(lane);
        }
    }

    fn take_state(&mut self, lane: Lane) -> Option<Box<dyn Any + Send>> {
        let states: Vec<_> = self.runners.iter_mut().map(|r| r.lanes.remove(&lane)).collect();
        states.iter().any(Option::is_some).then(|| {
            let kinds = self.runners.iter().map(|r| r.states().to_vec()).collect();
            Box::new(Moved { kinds, states }) as Box<dyn Any + Send>
        })
    }

    fn put_state(&mut self, lane: Lane, state: Box<dyn Any + Send>) -> Result<(), Box<dyn Any + Send>> {
        let moved = state.downcast::<Moved<E::State>>()?;
        let mine = self.runners.iter().map(Runner::states);
        if !moved.kinds.iter().map(Vec::as_slice).eq(mine) {
            return Err(moved);
        }
        for (runner, state) in self.runners.iter_mut().zip(moved.states) {
            runner.lanes.extend(state.map(|state| (lane, state)));
        }
        Ok(())
    }

    fn any_length(&self, stream: usize) -> bool {
        self.runners.get(stream).is_some_and(|r| matches!(r.work, Work::Dense { any_length: true, .. }))
    }

    fn frames(&self, stream: usize) -> usize {
        self.runners.get(stream).map_or(0, |r| match &r.work {
            Work::Dense { .. } => r.stream.frames,
            Work::Stepped { frames, .. } => *frames,
        })
    }

    fn packed(&self, stream: usize) -> Option<Packed> {
        self.runners.get(stream).and_then(|r| if let Work::Stepped { packed, .. } = &r.work { *packed } else { None })
    }

    fn reach(&self) -> Reach {
        let all = self.runners.iter().map(|r| match &r.work {
            Work::Dense { .. } => Reach::default(),
            Work::Stepped { reach, .. } => *reach,
        });
        // Fused, the streams are as late as the latest; they are of one architecture as a rule, and alike.
        all.fold(Reach::default(), |a, b| Reach {
            carried: a.carried || b.carried,
            warm_after: a.warm_after.max(b.warm_after),
            lag: a.lag.max(b.lag),
            macs: a.macs + b.macs,
            macs_dense: a.macs_dense + b.macs_dense,
            state_bytes: a.state_bytes + b.state_bytes,
        })
    }
}

impl<E: Engine> Runner<E> {
    fn new(
        stream: &Stream,
        prepared: Prepared<E>,
        stepped: Option<Stepped>,
        labels: usize,
        logits: &mut Vec<f32>,
    ) -> Result<Self> {
        let Prepared { precision, graph, mut build } = prepared;
        let per_frame: usize = stream.shape(1).iter().product();
        let packed = stepped.as_ref().and_then(|s| s.program.packed);
        let mut try_out = |engine: &mut E, state: &mut E::State, frames: usize| {
            let zeros = match (stream.dtype, packed) {
                (_, Some(_)) => Tensor::I8(vec![0; per_frame * frames]),
                (Dtype::F32, None) => Tensor::F32(vec![0.0; per_frame * frames]),
                (Dtype::U8, None) => Tensor::U8(vec![0; per_frame * frames]),
            };
            engine.run(&zeros, state, logits).map_err(|e| Error::model(e.to_string()))
        };
        let work = match stepped {
            None => {
                let mut window = build(&graph, stream.frames)?;
                let mut state = window.zero()?;
                try_out(&mut window, &mut state, stream.frames)?;
                Work::Dense { any_length: graph.any_length(stream), graph, build, window, other: None }
            }
            Some(Stepped { hop, prime, program }) => {
                // Only the graphs of the mode are run.
                drop(graph);
                let mut hop = build(&hop, program.frames)?;
                let mut state = hop.zero()?;
                try_out(&mut hop, &mut state, program.frames)?;
                let mut prime = prime.map(|graph| build(&graph, stream.frames)).transpose()?;
                if let Some(prime) = &mut prime {
                    try_out(prime, &mut state, stream.frames)?;
                    try_out(&mut hop, &mut state, program.frames)?;
                }
                let reach = Reach {
                    carried: prime.is_none(),
                    warm_after: program.warm_after * stream.step,
                    lag: program.lag * stream.step as f32,
                    macs: program.macs,
                    macs_dense: program.macs_dense,
                    state_bytes: program.state_bytes(),
                };
                Work::Stepped { hop, prime, frames: program.frames, packed, reach, states: program.states }
            }
        };
        if logits.len() != labels {
            return Err(Error::model(format!(
                "output `{}` has {} logits, but there are {labels} labels",
                stream.output,
                logits.len()
            )));
        }
        Ok(Runner { stream: stream.clone(), per_frame, precision, work, lanes: HashMap::new() })
    }

    fn states(&self) -> &[Column] {
        match &self.work {
            Work::Dense { .. } => &[],
            Work::Stepped { states, .. } => states,
        }
    }

    fn step(&mut self, lane: Lane, frames: usize, input: &Tensor, follows: bool, logits: &mut Vec<f32>) -> Result<()> {
        let packed = matches!(self.work, Work::Stepped { packed: Some(_), .. });
        let (dtype, fits) = match input {
            Tensor::F32(_) => ("f32", !packed && self.stream.dtype == Dtype::F32),
            Tensor::U8(_) => ("u8", !packed && self.stream.dtype == Dtype::U8),
            Tensor::I8(_) => ("i8", packed),
        };
        let expected = self.per_frame.saturating_mul(frames);
        if frames == 0 || input.len() != expected || !fits {
            return Err(Error::internal(format!(
                "got {} values of {dtype} for {frames} frames, which take {expected} of {:?}{}",
                input.len(),
                self.stream.dtype,
                if packed { ", packed to i8" } else { "" }
            )));
        }
        let takes = |n: usize| {
            Error::model(format!("takes exactly {n} frames: the time axis of its graph is fixed; got {frames}"))
        };
        let known = self.lanes.contains_key(&lane);
        let engine = match &mut self.work {
            Work::Dense { window, .. } if frames == self.stream.frames => window,
            Work::Dense { any_length: false, .. } => return Err(takes(self.stream.frames)),
            Work::Dense { graph, build, other, .. } => {
                if other.as_ref().is_none_or(|(n, _)| *n != frames) {
                    // The one before goes first: both at once would hold its weights and buffers twice.
                    *other = None;
                    *other = Some((frames, build(graph, frames)?));
                }
                let Some((_, engine)) = other else { unreachable!("just put there") };
                engine
            }
            Work::Stepped { frames: takes_frames, .. } if frames != *takes_frames => {
                return Err(takes(*takes_frames));
            }
            // Window mode: what is kept is right only for the hop that follows the one before.
            Work::Stepped { prime: Some(prime), .. } if !(known && follows) => prime,
            Work::Stepped { hop, .. } => hop,
        };
        let state = match self.lanes.entry(lane) {
            Entry::Occupied(lane) => lane.into_mut(),
            Entry::Vacant(lane) => lane.insert(engine.zero()?),
        };
        engine.run(input, state, logits)
    }
}
