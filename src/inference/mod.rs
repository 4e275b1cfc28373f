//! Running a model's streams: a [`Backend`] loads a model, a [`Network`] steps it hop by hop.

mod graph;
mod integers;
pub mod onnxruntime;
mod streams;
pub mod tract;

use graph::Graph;
pub use graph::{request, time_axis};

use std::{
    any::Any,
    collections::HashSet,
    time::{Duration, Instant},
};

use crate::{
    compile::Packed,
    config::{DEFAULT_HOP, Mode, nearest},
    error::{Error, Kind, Result},
    model::{File, Model, Precision, Stream},
    ring::Rhythm,
};

/// Which camera a hop belongs to. State that a network carries from hop to hop is kept per lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane(pub usize);

/// One stream's input tensor, in the stream's own layout and value range.
#[derive(Debug, Clone, PartialEq)]
pub enum Tensor {
    F32(Vec<f32>),
    U8(Vec<u8>),
    I8(Vec<i8>),
}

impl Tensor {
    pub fn len(&self) -> usize {
        match self {
            Tensor::F32(values) => values.len(),
            Tensor::U8(values) => values.len(),
            Tensor::I8(values) => values.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a network gets for one hop: one tensor for each of the model's streams, in the manifest's order.
#[derive(Debug, Clone, PartialEq)]
pub struct Hop {
    /// Frames along each stream's time axis: the manifest's count for a window; any number, for a whole clip, where
    /// the stream's graph has a symbolic time axis. 0 leaves the stream out: it is not run, keeps its state, and its
    /// logits come out empty.
    pub frames: Vec<usize>,
    /// How each stream takes its values: as the manifest says, or packed.
    pub packed: Vec<Option<Packed>>,
    pub inputs: Vec<Tensor>,
    /// Whether its new frames are those right behind the lane's hop before. Where they are not, window mode computes the
    /// window whole, and the other modes take it for a cut in the video.
    pub follows: bool,
}

impl Hop {
    /// An empty one, of as many frames for each stream as `network` takes at a hop.
    pub fn of(network: &dyn Network, streams: usize) -> Hop {
        Hop {
            frames: (0..streams).map(|s| network.frames(s)).collect(),
            packed: (0..streams).map(|s| network.packed(s)).collect(),
            inputs: vec![Tensor::F32(Vec::new()); streams],
            follows: false,
        }
    }
}

/// What a network answers: the raw logits of each stream, in the manifest's order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scores {
    pub logits: Vec<Vec<f32>>,
}

/// A way to run ONNX models.
pub trait Backend {
    /// As the config and the events name it: `tensorrt`, `cuda`, `openvino`, `cpu`, `tract`.
    fn name(&self) -> &'static str;

    /// Loads every stream of `model`, in the precision that this backend is good at among those it comes in.
    ///
    /// Errors: `Unavailable` when the library, provider or device is not here (the next backend in the config's list
    /// may do), `Model` when the graph itself can't be run.
    fn load(&self, model: &Model, options: &LoadOptions) -> Result<Box<dyn Network>>;
}

/// What a user may ask of a backend.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// The precision of the files to use instead of the one that the backend is best at.
    pub precision: Option<Precision>,
    /// Threads of a backend that computes on the CPU; as many as there are physical cores where it is left out.
    pub threads: Option<usize>,
    /// How a hop is computed.
    pub mode: Mode,
    /// Frames from one hop to the next: what the modes that compute only what is new are compiled for.
    pub hop: usize,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions { precision: None, threads: None, mode: Mode::Dense, hop: DEFAULT_HOP }
    }
}

impl LoadOptions {
    pub fn threads(&self) -> usize {
        self.threads.unwrap_or_else(physical_cores).max(1)
    }
}

/// Two threads of one core share its vector units, and a convolution leaves nothing of them over.
fn physical_cores() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    let siblings = |cpu: usize| {
        std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")).ok()
    };
    match (0..).map_while(siblings).collect::<HashSet<_>>().len() {
        0 => allowed,
        cores => cores.min(allowed),
    }
}

/// What `doctor` tells of a backend.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Availability {
    pub name: &'static str,
    pub usable: bool,
    /// Which version was found and where, or what is missing.
    pub found: String,
    /// What to do about it.
    pub mend: Option<String>,
}

/// A loaded model.
pub trait Network: Send {
    /// Computes one hop of one camera; blocks until the logits are there.
    ///
    /// Errors: `Internal` when the device failed; the network should then be dropped and loaded anew.
    fn step(&mut self, lane: Lane, hop: &Hop) -> Result<&Scores>;

    /// Forgets what was carried for this lane; the next hop starts from zero state.
    fn reset(&mut self, lane: Lane);

    /// The precision of each stream's file, in the manifest's order.
    fn precision(&self) -> &[Precision];

    /// What each stream's last step took, in the manifest's order.
    fn spent(&self) -> &[Duration];

    /// Whether a stream takes hops of any number of frames: its graph's time axis is symbolic.
    fn any_length(&self, stream: usize) -> bool;

    /// Frames were lost between this lane's last hop and the next: a state that belongs to a window is forgotten; one
    /// that carries on keeps what it has.
    fn cut(&mut self, lane: Lane);

    /// How many frames of its own a stream takes at each hop: its window, or fewer in a mode that carries states.
    fn frames(&self, stream: usize) -> usize;

    /// How a stream takes its values, where that is not as the manifest says.
    fn packed(&self, stream: usize) -> Option<Packed>;

    /// How the mode's scores lie in time, and what they cost.
    fn reach(&self) -> Reach;

    /// Takes a lane's state out, for another network to go on with. None where there is none.
    fn take_state(&mut self, lane: Lane) -> Option<Box<dyn Any + Send>>;

    /// Goes on with a state that another network of the same model had. Gives it back where the states of the two are
    /// not the same ones.
    fn put_state(&mut self, lane: Lane, state: Box<dyn Any + Send>) -> Result<(), Box<dyn Any + Send>>;
}

/// The mode for a model that is asked for none: `window`, which gives dense windows' own numbers for less work, where
/// all streams can be had in it; else `dense`, and why.
pub fn natural_mode(model: &Model, hop: usize) -> (Mode, Option<Error>) {
    match check_mode(model, Mode::Window, hop) {
        Ok(()) => (Mode::Window, None),
        Err(e) => (Mode::Dense, Some(e)),
    }
}

/// Whether all streams of a model can be had in a mode, with a hop of so many frames.
///
/// Errors: as [`crate::compile::compile`], and `Config` when a hop takes more frames than are kept of a camera.
pub fn check_mode(model: &Model, mode: Mode, hop: usize) -> Result<()> {
    for stream in &model.manifest.streams {
        let Some(file) = stream.files.first().filter(|_| mode != Mode::Dense) else { continue };
        let compiled = Graph::read(model, stream, file)
            .and_then(|graph| graph.stepped(stream, mode, hop, model.manifest.continuous.columns));
        compiled.map_err(|e| e.context(format_args!("stream `{}`", stream.name)))?;
    }
    Ok(())
}

/// How a camera's ring must hand out frames for a network.
pub fn rhythm(model: &Model, network: &dyn Network, hop: usize) -> Rhythm {
    let streams = model.manifest.streams.iter().enumerate();
    let reach = streams.map(|(i, s)| Stream { frames: network.frames(i), ..s.clone() }.reach());
    Rhythm { window: reach.max().unwrap_or(1), hop, carried: network.reach().carried }
}

/// What a mode's scores look at, all streams together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Reach {
    /// Whether states are carried on from hop to hop without an end, so that a hop takes its own frames only.
    pub carried: bool,
    /// Frames that must have come since the beginning or a cut before a score depends on nothing from before it; 0
    /// where each score is of one window.
    pub warm_after: usize,
    /// How many frames further back than a dense window's scores these look.
    pub lag: f32,
    /// Multiply-adds of a hop, and of a dense window; 0 where the graph was not compiled.
    pub macs: u64,
    pub macs_dense: u64,
    /// What a camera's states take.
    pub state_bytes: usize,
}

/// Where a camera's hops stand: what each one's scores may be taken for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    last: Option<u64>,
    /// Frames in hops since the beginning or the last cut, and since the states were zero.
    since_cut: usize,
    since_zero: usize,
}

impl Progress {
    /// A hop up to frame `last` will be run: whether its frames follow those of the hop before.
    pub fn hop(&mut self, last: u64, hop: usize) -> bool {
        let follows = self.last.is_some_and(|before| before + hop as u64 == last);
        self.last = Some(last);
        self.since_cut += hop;
        self.since_zero += hop;
        follows
    }

    /// The last frame of the hop before, where none was lost since.
    pub fn last(&self) -> Option<u64> {
        self.last
    }

    /// A hop up to frame `last` was left out as nothing moved: states that are carried go on from there, while a window
    /// has to be computed whole.
    pub fn rest(&mut self, last: u64, reach: &Reach) {
        if reach.carried {
            self.last = Some(last);
        }
    }

    pub fn cut(&mut self) {
        self.last = None;
        self.since_cut = 0;
    }

    /// Whether the last hop's scores still see what lay before the beginning or a cut.
    pub fn is_warming(&self, reach: &Reach) -> bool {
        self.since_cut < reach.warm_after
    }

    /// Whether there are not even as many frames as a window has behind the last hop's scores.
    pub fn is_cold(&self, reach: &Reach, window: usize) -> bool {
        reach.carried && self.since_zero < window
    }
}

/// Tried in this order where the user gives none: the fastest first.
pub const ORDER: [&str; 5] = ["tensorrt", "cuda", "openvino", "cpu", "tract"];

/// The backend of that name.
pub fn backend(name: &str) -> Result<Box<dyn Backend>> {
    if name == "tract" {
        return Ok(Box::new(tract::Tract));
    }
    if let Some(provider) = onnxruntime::OnnxRuntime::by_name(name) {
        return Ok(Box::new(provider));
    }
    let hint = nearest(name, ORDER.into_iter()).map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
    Err(Error::config(format!("`{name}` is no backend; there are {}{hint}", ORDER.join(", "))))
}

/// Loads the model on the first backend of `order` that can; an empty order is [`ORDER`].
pub fn load(model: &Model, order: &[String]) -> Result<(Box<dyn Network>, &'static str)> {
    load_with(model, order, &LoadOptions::default())
}

/// As [`load`], with options.
///
/// Errors: `Config` at the first backend that says so, as what was asked for can't be had of any; else the kind of the last
/// backend's error, and the message has every backend's reason.
pub fn load_with(model: &Model, order: &[String], options: &LoadOptions) -> Result<(Box<dyn Network>, &'static str)> {
    let names: Vec<&str> = if order.is_empty() { ORDER.to_vec() } else { order.iter().map(String::as_str).collect() };
    let mut reasons: Vec<(String, Error)> = Vec::new();
    for name in names {
        let backend = backend(name)?;
        let began = Instant::now();
        match backend.load(model, options) {
            Ok(network) => {
                for (name, e) in &reasons {
                    // What nobody asked for by name is not missed.
                    let level = if order.is_empty() { log::Level::Debug } else { log::Level::Warn };
                    log::log!(level, "backend {name}: {e}");
                }
                log::debug!("{name} loaded {} in {:.1} s", model.manifest.name, began.elapsed().as_secs_f32());
                return Ok((network, backend.name()));
            }
            Err(e) if e.kind() == Kind::Config => return Err(e.context(&model.manifest.name)),
            Err(e) => reasons.push((name.to_owned(), e)),
        }
    }
    let kind = reasons.last().map_or(Kind::Config, |(_, e)| e.kind());
    let reasons: Vec<String> = reasons.iter().map(|(name, e)| format!("{name}: {e}")).collect();
    Err(Error::new(kind, format!("no backend can run {}. {}", model.manifest.name, reasons.join("; "))))
}

/// What there is of each backend on this machine.
pub fn available() -> Vec<Availability> {
    let mut all = onnxruntime::availability();
    all.push(tract::availability());
    all
}

/// The file of a stream for a backend that prefers these precisions in this order.
fn file<'s>(stream: &'s Stream, preferred: &[Precision], options: &LoadOptions) -> Result<&'s File> {
    let preferred = options.precision.as_ref().map_or(preferred, std::slice::from_ref);
    stream.file(preferred).ok_or_else(|| {
        let names = |all: Vec<Precision>| all.iter().map(|p| p.name()).collect::<Vec<_>>().join(", ");
        Error::unavailable(format!(
            "there is no {} file of it (it comes in {})",
            names(preferred.to_vec()),
            names(stream.files.iter().map(|f| f.precision).collect())
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hop_follows_the_one_before_it_and_nothing_else() {
        let mut progress = Progress::default();
        assert!(!progress.hop(63, 8));
        assert!(progress.hop(71, 8));
        // A recording's last frames, fewer than a hop.
        assert!(!progress.hop(74, 8));
        progress.cut();
        assert!(!progress.hop(82, 8));
    }

    #[test]
    fn scores_warm_up_behind_a_cut_and_are_none_before_a_window_has_come() {
        let reach = Reach { carried: true, warm_after: 108, ..Reach::default() };
        let mut progress = Progress::default();
        let mut told = Vec::new();
        for n in 1..=16u64 {
            if n == 15 {
                progress.cut();
            }
            progress.hop(n * 8 - 1, 8);
            told.push((progress.is_cold(&reach, 64), progress.is_warming(&reach)));
        }
        assert!(told[..7].iter().all(|t| *t == (true, true)));
        assert!(told[7..13].iter().all(|t| *t == (false, true)));
        assert_eq!(told[13], (false, false));
        // States are there still, and the cut is in their reach.
        assert_eq!(told[14..], [(false, true), (false, true)]);
        // A score of one window has nothing to warm.
        let dense = Reach::default();
        assert!(!Progress::default().is_warming(&dense) && !Progress::default().is_cold(&dense, 64));
    }
}
