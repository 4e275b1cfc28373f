//! What a model is: its manifest (`model.toml`), its labels and its files, checked. No code per architecture: how many
//! frames a stream takes, how far apart, of what, at which size, is data.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    config,
    error::{Error, Result},
    ring::WINDOW,
};

/// Elements of one state, at most: 1 GiB of floats, far above what any real network carries.
const MOST_STATE: usize = 1 << 28;

/// A stream's weight, at most.
const MOST_WEIGHT: f32 = 1e6;

/// A model whose manifest is consistent and whose files are all there and unchanged.
#[derive(Debug, Clone)]
pub struct Model {
    /// The folder of `model.toml`; the paths of the manifest are relative to it.
    pub folder: PathBuf,
    pub manifest: Manifest,
    /// One a class, in the order of the logits.
    pub labels: Vec<String>,
}

/// `model.toml` as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub name: String,
    pub version: String,
    pub architecture: String,
    pub licence: String,
    pub source: String,
    /// Ticks a second that the model was trained on; the daemon's clock of frames is 25.
    pub fps: u32,
    /// File with one label a line.
    pub labels: PathBuf,
    /// The label that stands for no action; never an event.
    pub background: Option<String>,
    /// Frames from one hop to the next that it was made for. A network with a memory takes no other.
    pub hop: Option<usize>,
    /// Steps, spread evenly over a whole clip, whose predictions are averaged for it, as the paper does with its
    /// Two-Stream (25); every hop where it is left out.
    pub samples: Option<usize>,
    pub fusion: Fusion,
    #[serde(rename = "stream")]
    pub streams: Vec<Stream>,
    #[serde(default)]
    pub decision: Decision,
    #[serde(default)]
    pub continuous: Continuous,
}

/// What mode `continuous` does with this model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Continuous {
    /// How many of the last columns of logits a hop's score is the mean of; as many as a window has where it is left out.
    pub columns: Option<usize>,
}

/// How the streams' logits become one score a label.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fusion {
    pub rule: Rule,
    /// Weight of each stream by its name; equal where it is left out.
    #[serde(default)]
    pub weights: BTreeMap<String, f32>,
    /// Weights for single labels, by label and stream name; only with averaged probabilities.
    #[serde(default)]
    pub label: BTreeMap<String, BTreeMap<String, f32>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// Weighted mean of the streams' softmax, as the paper averages predictions.
    Probabilities,
    /// Softmax of the weighted sum of logits, as DeepMind's published code does.
    Logits,
}

/// One network: what it is fed and where its graph is.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stream {
    pub name: String,
    pub kind: StreamKind,
    /// Frames along the time axis of the input.
    pub frames: usize,
    /// Ticks from one of those frames to the next; the window is `(frames - 1) * step + 1` ticks long.
    #[serde(default = "one")]
    pub step: usize,
    /// Flow frames stacked as channels at each position of the time axis (Two-Stream: 10); they end at its frame.
    #[serde(default = "one")]
    pub stack: usize,
    /// Width, height of the input.
    pub size: [usize; 2],
    pub fit: Fit,
    pub layout: Layout,
    /// Name of the graph's input and of its logits output.
    pub input: String,
    pub output: String,
    #[serde(default)]
    pub dtype: Dtype,
    /// What the smallest and largest value (0 and 255 for RGB, -bound and +bound for flow) become in an f32 input.
    #[serde(default = "minus_one_to_one")]
    pub range: [f32; 2],
    /// Flow is clipped to this many pixels of this stream's picture, which become the ends of `range`; the paper's 20 at
    /// 224.
    #[serde(default = "twenty")]
    pub bound: f32,
    #[serde(default)]
    pub flow: FlowMethod,
    /// Recurrent state, carried from step to step: zero at first.
    #[serde(default)]
    pub state: Vec<State>,
    #[serde(rename = "file")]
    pub files: Vec<File>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum StreamKind {
    /// 3 channels.
    #[serde(rename = "rgb")]
    Rgb,
    /// 2 channels a stacked frame: dx, dy.
    #[serde(rename = "flow")]
    Flow,
    /// RGB's 3 channels, then flow's.
    #[serde(rename = "rgb+flow")]
    RgbFlow,
}

/// How a picture of any shape becomes one of the model's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// The paper's: short side scaled to 256/224 of the model's size, the centre cut out.
    Crop,
    /// The whole picture (or the camera's region), squeezed to the model's shape.
    Squeeze,
    /// The whole picture, its shape kept, on black.
    Letterbox,
}

/// Order of the input's axes: N batch, T time, C channels, H height, W width. Without T there is one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Layout {
    #[serde(rename = "NCTHW")]
    Ncthw,
    #[serde(rename = "NTCHW")]
    Ntchw,
    #[serde(rename = "NTHWC")]
    Nthwc,
    #[serde(rename = "NCHW")]
    Nchw,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    #[default]
    F32,
    U8,
}

/// How flow is estimated; a model should be fed the flow that it was trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowMethod {
    pub algorithm: Algorithm,
    #[serde(default)]
    pub preset: Preset,
    /// Finest level of DIS's pyramid that is estimated, 0 being full size; the preset's own where it is left out.
    pub finest_scale: Option<u8>,
    /// Pixels from one of DIS's patches of 8 x 8 to the next; the preset's own where it is left out.
    pub patch_stride: Option<u8>,
    /// Steps of gradient descent on each patch; the preset's own where it is left out.
    pub descents: Option<u8>,
    /// Iterations of DIS's variational refinement; the preset's own where it is left out.
    pub refinement: Option<u8>,
    /// Flow is estimated on a picture this many times the stream's size, and averaged down.
    #[serde(default = "one")]
    pub upscale: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
pub enum Algorithm {
    /// Dense inverse search (Kroeger et al., ECCV 2016).
    #[serde(rename = "dis")]
    Dis,
    /// The paper's: dual TV-L1 (Zach et al., DAGM 2007); far from real time on a CPU.
    #[serde(rename = "tv-l1")]
    TvL1,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    Ultrafast,
    #[default]
    Fast,
    Medium,
}

impl Default for FlowMethod {
    fn default() -> Self {
        FlowMethod {
            algorithm: Algorithm::Dis,
            preset: Preset::Fast,
            finest_scale: Some(1),
            // Nearly as near to TV-L1 as with the preset's own 4, 16 and 5, in half the time (docs/performance.md).
            patch_stride: Some(5),
            descents: Some(5),
            refinement: Some(1),
            upscale: 1,
        }
    }
}

/// A tensor that a network gives at each step and takes at the next.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    pub input: String,
    pub output: String,
    pub shape: Vec<usize>,
}

/// A stream's graph in one precision.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub precision: Precision,
    pub path: PathBuf,
    pub sha256: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    F32,
    F16,
    Int8,
}

impl Precision {
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::F16 => "f16",
            Precision::Int8 => "int8",
        }
    }
}

/// Decision settings: for all labels, and what differs for single ones. The config's `[events]` is the same table and
/// wins over the manifest's `[decision]`, setting by setting; see [`LabelDecision`] for what each means.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    pub start: Option<f32>,
    pub end: Option<f32>,
    pub by: Option<By>,
    pub smooth_hops: Option<usize>,
    pub min_hops: Option<usize>,
    pub onset: Option<u32>,
    pub offset: Option<u32>,
    /// Labels that never become events.
    #[serde(default)]
    pub ignore: Vec<String>,
    #[serde(default)]
    pub label: BTreeMap<String, LabelDecision>,
}

/// Decision settings of a label, each optional; see `decide.rs` for what they do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LabelDecision {
    /// An event opens when the score reaches this.
    pub start: Option<f32>,
    /// An event closes when the score falls below this.
    pub end: Option<f32>,
    /// Whether the score is the hop's own (peak) or the mean of the last `smooth_hops`.
    pub by: Option<By>,
    pub smooth_hops: Option<usize>,
    /// Hops in a row that the score must hold before an event opens.
    pub min_hops: Option<usize>,
    /// Ticks before the end of the first window that was over `start`, at which the action is taken to have begun.
    pub onset: Option<u32>,
    /// Ticks before the end of the first window that was under `end`, at which the action is taken to have ended.
    pub offset: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    Peak,
    Mean,
}

impl Decision {
    /// The settings for all labels, in the form of a label's.
    pub fn for_all(&self) -> LabelDecision {
        LabelDecision {
            start: self.start,
            end: self.end,
            by: self.by,
            smooth_hops: self.smooth_hops,
            min_hops: self.min_hops,
            onset: self.onset,
            offset: self.offset,
        }
    }
}

fn one() -> usize {
    1
}

fn twenty() -> f32 {
    20.0
}

fn minus_one_to_one() -> [f32; 2] {
    [-1.0, 1.0]
}

impl Stream {
    pub fn channels(&self) -> usize {
        match self.kind {
            StreamKind::Rgb => 3,
            StreamKind::Flow => 2 * self.stack,
            StreamKind::RgbFlow => 3 + 2 * self.stack,
        }
    }

    /// The input's shape for `frames` positions of the time axis.
    pub fn shape(&self, frames: usize) -> Vec<usize> {
        let [w, h] = self.size;
        let c = self.channels();
        match self.layout {
            Layout::Ncthw => vec![1, c, frames, h, w],
            Layout::Ntchw => vec![1, frames, c, h, w],
            Layout::Nthwc => vec![1, frames, h, w, c],
            Layout::Nchw => vec![1, c, h, w],
        }
    }

    /// Ticks from the first frame that this stream sees (its oldest stacked flow included) to its last.
    pub fn reach(&self) -> usize {
        // A manifest can hold any number; `Model::load` refuses what reaches too far.
        self.frames.saturating_sub(1).saturating_mul(self.step).saturating_add(self.stack)
    }

    /// The file to use for a backend that prefers these precisions in this order.
    pub fn file(&self, preferred: &[Precision]) -> Option<&File> {
        preferred.iter().find_map(|p| self.files.iter().find(|f| f.precision == *p))
    }
}

impl Model {
    /// Reads `folder/model.toml`, checks it, and checks that every file it names is there and has its sha256.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = if folder.is_file() { folder.to_owned() } else { folder.join("model.toml") };
        let folder = path.parent().unwrap_or(Path::new(".")).to_owned();
        let text = fs::read_to_string(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::model(format!(
                "{}: no such model; a model is a folder with a model.toml and its ONNX files",
                path.display()
            )),
            _ => Error::model(format!("cannot read {}", path.display())).caused_by(e),
        })?;
        let manifest: Manifest = config::parse_toml(&text, &path.display().to_string()).map_err(as_model)?;
        let labels = read_labels(&folder.join(&manifest.labels))?;
        let model = Model { folder, manifest, labels };
        model.check().map_err(|e| e.context(path.display()))?;
        for file in model.manifest.streams.iter().flat_map(|s| &s.files) {
            check_sha256(&model.folder.join(&file.path), &file.sha256)?;
        }
        Ok(model)
    }

    /// The bytes of one of the streams' files: those that the manifest describes, even where the model was installed
    /// anew since it was loaded.
    pub fn read(&self, file: &File) -> Result<Vec<u8>> {
        let path = self.folder.join(&file.path);
        let bytes =
            fs::read(&path).map_err(|e| Error::model(format!("cannot read {}", path.display())).caused_by(e))?;
        compare_sha256(&path, &Sha256::digest(&bytes), &file.sha256)?;
        Ok(bytes)
    }

    /// Frames from one hop to the next: those that are asked for, or what the model was made for, or 8.
    ///
    /// Errors: `Config` where a network with a memory is asked for another hop than its own: time would run faster or
    /// slower for it than in its training.
    pub fn hop(&self, asked: Option<usize>) -> Result<usize> {
        let own = self.manifest.hop.unwrap_or(config::DEFAULT_HOP);
        match asked {
            Some(hop) if hop != own && self.has_memory() => Err(Error::config(format!(
                "{} remembers from hop to hop and was made for hops of {own} frames, not {hop}; leave `hop` out",
                self.manifest.name
            ))),
            asked => Ok(asked.unwrap_or(own)),
        }
    }

    /// Whether a network carries a state of its own from step to step, as an LSTM does.
    pub fn has_memory(&self) -> bool {
        self.manifest.streams.iter().any(|s| !s.state.is_empty())
    }

    pub fn stream_names(&self) -> Vec<&str> {
        self.manifest.streams.iter().map(|s| s.name.as_str()).collect()
    }

    /// Checks that the manifest is consistent, and fits the labels. [`Model::load`] has done so.
    pub fn check(&self) -> Result<()> {
        let m = &self.manifest;
        let wrong = |what: String| Err(Error::model(what));
        if m.fps != 25 {
            return wrong(format!("fps is {}; the daemon's frames come at 25", m.fps));
        }
        if m.streams.is_empty() {
            return wrong("no [[stream]]".into());
        }
        for (i, s) in m.streams.iter().enumerate() {
            let wrong = |what: String| wrong(format!("stream `{}`: {what}", s.name));
            if m.streams[..i].iter().any(|other| other.name == s.name) {
                return wrong("a second stream of this name".into());
            }
            if s.frames == 0 || s.step == 0 || s.stack == 0 {
                return wrong("frames, step and stack must be at least 1".into());
            }
            if s.reach() > WINDOW {
                return wrong(format!("reaches over {} frames; the window holds {WINDOW}", s.reach()));
            }
            if s.layout == Layout::Nchw && s.frames != 1 {
                return wrong(format!("layout NCHW has no time axis, yet frames is {}", s.frames));
            }
            if s.size.iter().any(|&n| n == 0 || n > 1024) {
                return wrong(format!("size {:?} is not within 1..1024", s.size));
            }
            if !(s.bound.is_finite() && s.bound > 0.0) {
                return wrong(format!("bound {} is not a positive number of pixels", s.bound));
            }
            if s.flow.patch_stride.is_some_and(|n| !(1..=8).contains(&n)) {
                return wrong("flow.patch_stride is not within 1..8, the size of a patch".into());
            }
            if s.flow.descents == Some(0) {
                return wrong("flow.descents is 0: no patch would be moved".into());
            }
            if !(1..=4).contains(&s.flow.upscale) {
                return wrong(format!("flow.upscale {} is not within 1..4", s.flow.upscale));
            }
            if s.dtype == Dtype::U8 && s.kind != StreamKind::Rgb {
                return wrong("only an RGB stream can take u8".into());
            }
            if !s.range.iter().all(|v| v.is_finite()) || s.range[0] == s.range[1] {
                return wrong(format!("range {:?} is not two different numbers", s.range));
            }
            for state in &s.state {
                let elements = state.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
                if elements.is_none_or(|n| n == 0 || n > MOST_STATE) {
                    return wrong(format!("state `{}` of shape {:?} is empty or too large", state.input, state.shape));
                }
            }
            if s.files.is_empty() {
                return wrong("no [[stream.file]]".into());
            }
            for (i, file) in s.files.iter().enumerate() {
                if s.files[..i].iter().any(|other| other.precision == file.precision) {
                    return wrong(format!("a second file of precision {}", file.precision.name()));
                }
            }
        }
        if m.hop.is_some_and(|hop| !(1..=WINDOW).contains(&hop)) {
            return wrong(format!("hop is not within 1..{WINDOW}"));
        }
        if m.samples.is_some_and(|n| !(1..=10_000).contains(&n)) {
            return wrong("samples is not within 1..10000".into());
        }
        if m.samples.is_some() && self.has_memory() {
            return wrong("samples: a network with a state must see every hop; leave it out".into());
        }
        if m.continuous.columns.is_some_and(|k| !(1..=1024).contains(&k)) {
            return wrong("continuous: columns is not within 1..1024".into());
        }
        let stream_names: Vec<&str> = m.streams.iter().map(|s| s.name.as_str()).collect();
        let weights = m.fusion.weights.iter().chain(m.fusion.label.values().flatten());
        for (name, weight) in weights {
            if !stream_names.contains(&name.as_str()) {
                return wrong(format!("fusion: there is no stream `{name}`"));
            }
            // Larger ones would add up to infinity, by which every score is no number.
            if !(0.0..=MOST_WEIGHT).contains(weight) {
                return wrong(format!("fusion: weight {weight} of `{name}` is not a number from 0 to {MOST_WEIGHT}"));
            }
        }
        let weight = |name: &&str| m.fusion.weights.get(*name).copied().unwrap_or(1.0);
        if stream_names.iter().map(weight).sum::<f32>() == 0.0 {
            return wrong("fusion: all weights are 0".into());
        }
        if m.fusion.rule == Rule::Logits && !m.fusion.label.is_empty() {
            return wrong("fusion: weights for single labels need the rule `probabilities`".into());
        }
        let named = m.decision.label.keys().chain(&m.decision.ignore).chain(m.fusion.label.keys()).chain(&m.background);
        for label in named {
            if !self.labels.contains(label) {
                return wrong(format!("`{label}` is not in {}", m.labels.display()));
            }
        }
        Ok(())
    }
}

fn read_labels(path: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(path)
        .map_err(|e| Error::model(format!("cannot read the labels {}", path.display())).caused_by(e))?;
    let labels: Vec<String> = text.lines().map(|l| l.trim().to_owned()).filter(|l| !l.is_empty()).collect();
    if labels.is_empty() {
        return Err(Error::model(format!("{}: no labels in it", path.display())));
    }
    if let Some(twice) = labels.iter().enumerate().find(|(i, l)| labels[..*i].contains(l)) {
        return Err(Error::model(format!("{}: label `{}` stands twice", path.display(), twice.1)));
    }
    Ok(labels)
}

fn check_sha256(path: &Path, expected: &str) -> Result<()> {
    let cannot = |e| Error::model(format!("cannot read {}", path.display())).caused_by(e);
    let mut file = fs::File::open(path).map_err(cannot)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).map_err(cannot)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    compare_sha256(path, &hash.finalize(), expected)
}

fn compare_sha256(path: &Path, found: &[u8], expected: &str) -> Result<()> {
    let found: String = found.iter().map(|b| format!("{b:02x}")).collect();
    if !found.eq_ignore_ascii_case(expected) {
        return Err(Error::model(format!(
            "{} is not the file that its manifest describes (sha256 {found}, expected {expected}); install the model again",
            path.display()
        )));
    }
    Ok(())
}

/// A manifest's typing error is the model's fault, not the config's.
fn as_model(e: Error) -> Error {
    Error::model(e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    const MANIFEST: &str = r#"
name = "walk"
version = "1"
architecture = "two-stream-i3d"
licence = "MIT"
source = "a test"
fps = 25
labels = "labels.txt"
background = "nothing"

[fusion]
rule = "probabilities"
weights = { rgb = 0.4, flow = 0.6 }
label.falling = { rgb = 0.0, flow = 1.0 }

[[stream]]
name = "rgb"
kind = "rgb"
frames = 16
step = 4
size = [64, 48]
fit = "crop"
layout = "NTHWC"
input = "pictures"
output = "logits"
dtype = "u8"

[[stream.file]]
precision = "f32"
path = "rgb.onnx"
sha256 = "BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD"

[[stream.file]]
precision = "int8"
path = "rgb.int8.onnx"
sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

[[stream]]
name = "flow"
kind = "rgb+flow"
frames = 1
stack = 10
size = [32, 32]
fit = "squeeze"
layout = "NCHW"
input = "input"
output = "logits"
range = [0.0, 1.0]
bound = 10.0
state = [{ input = "h", output = "h2", shape = [1, 8] }]

[[stream.file]]
precision = "f32"
path = "flow.onnx"
sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

[decision]
start = 0.6
ignore = ["walking"]
[decision.label.falling]
by = "peak"
"#;

    /// A model folder with this manifest, whose files all hold "abc".
    fn folder(manifest: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("model.toml", manifest);
        write("labels.txt", "walking\nfalling\n\n  nothing  \n");
        for name in ["rgb.onnx", "rgb.int8.onnx", "flow.onnx"] {
            write(name, "abc");
        }
        folder
    }

    fn refused(folder: &Path) -> String {
        let e = Model::load(folder).unwrap_err();
        assert_eq!(e.kind(), Kind::Model, "{e}");
        e.to_string()
    }

    #[test]
    fn a_good_manifest_says_it_all() {
        let folder = folder(MANIFEST);
        let model = Model::load(folder.path()).unwrap();
        assert_eq!(model.labels, ["walking", "falling", "nothing"]);
        let [rgb, flow] = &model.manifest.streams[..] else { panic!("two streams") };
        assert_eq!(rgb.shape(16), [1, 16, 48, 64, 3]);
        assert_eq!((rgb.reach(), rgb.dtype), (61, Dtype::U8));
        assert_eq!(flow.shape(1), [1, 23, 32, 32]);
        assert_eq!((flow.reach(), flow.state[0].shape.as_slice()), (10, &[1, 8][..]));
        assert_eq!((rgb.range, flow.range, flow.bound), ([-1.0, 1.0], [0.0, 1.0], 10.0));
        // The manifest's own path does as well as its folder's.
        assert!(Model::load(&folder.path().join("model.toml")).is_ok());
    }

    #[test]
    fn a_stream_gives_the_first_preferred_precision_that_it_comes_in() {
        let folder = folder(MANIFEST);
        let model = Model::load(folder.path()).unwrap();
        let file = |stream: usize, preferred: &[Precision]| {
            model.manifest.streams[stream].file(preferred).map(|f| f.path.display().to_string())
        };
        use Precision::{F16, F32, Int8};
        assert_eq!(file(0, &[Int8, F16, F32]).as_deref(), Some("rgb.int8.onnx"));
        assert_eq!(file(0, &[F16, F32]).as_deref(), Some("rgb.onnx"));
        assert_eq!(file(1, &[Int8, F16, F32]).as_deref(), Some("flow.onnx"));
        assert_eq!(file(1, &[Int8]), None);
    }

    #[test]
    fn a_network_with_a_memory_takes_its_own_hop_only() {
        let hop = |manifest: &str, asked| Model::load(folder(manifest).path()).unwrap().hop(asked);
        let five = MANIFEST.replacen("fps = 25", "fps = 25\nhop = 5", 1);
        assert_eq!(hop(&five, None).unwrap(), 5);
        assert_eq!(hop(&five, Some(5)).unwrap(), 5);
        assert_eq!(hop(MANIFEST, None).unwrap(), 8);
        let e = hop(&five, Some(8)).unwrap_err();
        assert_eq!(e.kind(), Kind::Config);
        assert!(e.to_string().contains("was made for hops of 5 frames, not 8"), "{e}");
        let forgetful = five.replacen("state = [{ input = \"h\", output = \"h2\", shape = [1, 8] }]", "", 1);
        assert_ne!(forgetful, five);
        assert_eq!(hop(&forgetful, Some(8)).unwrap(), 8);
        assert_eq!(hop(&forgetful, None).unwrap(), 5);
    }

    #[test]
    fn what_is_wrong_with_a_manifest_is_one_sentence_that_names_it() {
        for (from, to, sentence) in [
            ("fps = 25", "fps = 30", "fps is 30; the daemon's frames come at 25"),
            ("fps = 25", "fps = 25\nhop = 65", "hop is not within 1..64"),
            ("fps = 25", "fps = 25\nsamples = 0", "samples is not within 1..10000"),
            ("fps = 25", "fps = 25\nsamples = 25", "samples: a network with a state must see every hop"),
            ("name = \"flow\"", "name = \"rgb\"", "stream `rgb`: a second stream of this name"),
            ("frames = 16", "frames = 0", "stream `rgb`: frames, step and stack must be at least 1"),
            ("frames = 16", "frames = 17", "stream `rgb`: reaches over 65 frames; the window holds 64"),
            ("frames = 16", "frames = 9223372036854775807", "stream `rgb`: reaches over"),
            ("frames = 1\n", "frames = 2\n", "stream `flow`: layout NCHW has no time axis, yet frames is 2"),
            ("[64, 48]", "[64, 0]", "stream `rgb`: size [64, 0] is not within 1..1024"),
            ("[64, 48]", "[64, 5000]", "stream `rgb`: size [64, 5000] is not within 1..1024"),
            ("bound = 10.0", "bound = 0.0", "stream `flow`: bound 0 is not a positive number"),
            ("bound = 10.0", "bound = nan", "stream `flow`: bound NaN is not a positive number"),
            (
                "range = [0.0, 1.0]",
                "range = [1.0, 1.0]",
                "stream `flow`: range [1.0, 1.0] is not two different numbers",
            ),
            (
                "range = [0.0, 1.0]",
                "range = [0.0, inf]",
                "stream `flow`: range [0.0, inf] is not two different numbers",
            ),
            ("range = [0.0, 1.0]", "dtype = \"u8\"", "stream `flow`: only an RGB stream can take u8"),
            ("shape = [1, 8]", "shape = [1, 0]", "state `h` of shape [1, 0] is empty or too large"),
            ("shape = [1, 8]", "shape = [4294967296, 4294967296]", "is empty or too large"),
            ("bound = 10.0", "flow = { algorithm = \"dis\", upscale = 9 }", "flow.upscale 9 is not within 1..4"),
            (
                "bound = 10.0",
                "flow = { algorithm = \"dis\", patch_stride = 9 }",
                "flow.patch_stride is not within 1..8",
            ),
            (
                "bound = 10.0",
                "flow = { algorithm = \"dis\", patch_stride = 0 }",
                "flow.patch_stride is not within 1..8",
            ),
            ("bound = 10.0", "flow = { algorithm = \"dis\", descents = 0 }", "flow.descents is 0"),
            ("precision = \"int8\"", "precision = \"f32\"", "stream `rgb`: a second file of precision f32"),
            ("{ rgb = 0.4, flow", "{ rbg = 0.4, flow", "fusion: there is no stream `rbg`"),
            ("rgb = 0.4", "rgb = -1.0", "fusion: weight -1 of `rgb` is not a number from 0 to 1000000"),
            ("rgb = 0.4", "rgb = 3e38", "is not a number from 0 to 1000000"),
            ("rgb = 0.4, flow = 0.6", "rgb = 0, flow = 0.0", "fusion: all weights are 0"),
            ("\"probabilities\"", "\"logits\"", "weights for single labels need the rule `probabilities`"),
            ("label.falling = {", "label.felling = {", "`felling` is not in labels.txt"),
            ("[decision.label.falling]", "[decision.label.dancing]", "`dancing` is not in labels.txt"),
            ("ignore = [\"walking\"]", "ignore = [\"waking\"]", "`waking` is not in labels.txt"),
            ("background = \"nothing\"", "background = \"none\"", "`none` is not in labels.txt"),
            ("labels = \"labels.txt\"", "labels = \"names.txt\"", "cannot read the labels"),
            ("path = \"flow.onnx\"", "path = \"lost.onnx\"", "lost.onnx: No such file"),
            ("sha256 = \"BA78", "sha256 = \"AA78", "rgb.onnx is not the file that its manifest describes"),
        ] {
            assert!(MANIFEST.contains(from), "{from}");
            let text = refused(folder(&MANIFEST.replacen(from, to, 1)).path());
            assert!(text.contains(sentence), "{from} -> {to}: {text}");
            assert_eq!(text.lines().count(), 1, "{from} -> {to}: {text}");
        }
    }

    #[test]
    fn typing_errors_say_file_line_and_column() {
        for (from, to, sentence) in [
            ("stack = 10", "stak = 10", "stak"),
            ("precision = \"f32\"", "precision = \"f64\"", "f64"),
            ("layout = \"NCHW\"", "layout = \"NCWH\"", "NCWH"),
            ("kind = \"rgb\"", "kind = \"depth\"", "depth"),
            ("frames = 16", "frames = \"16\"", "16"),
            ("frames = 16", "frames = -16", "-16"),
            ("input = \"input\"\n", "", "input"),
            ("[fusion]", "[fusion", ""),
        ] {
            assert!(MANIFEST.contains(from), "{from}");
            let text = refused(folder(&MANIFEST.replacen(from, to, 1)).path());
            assert!(text.contains("model.toml:") && text.contains(sentence), "{from} -> {to}: {text}");
        }
    }

    #[test]
    fn no_folder_no_manifest_no_labels_and_labels_twice() {
        let folder = folder(MANIFEST);
        let at = |name: &str| folder.path().join(name);
        assert!(refused(&at("nowhere")).contains("no such model; a model is a folder with a model.toml"));
        fs::write(at("labels.txt"), "walking\nfalling\nnothing\nwalking\n").unwrap();
        assert!(refused(folder.path()).contains("label `walking` stands twice"));
        fs::write(at("labels.txt"), "\n \n").unwrap();
        assert!(refused(folder.path()).contains("no labels in it"));
        fs::write(at("model.toml"), [0xff, 0xfe, 0x00]).unwrap();
        assert!(refused(folder.path()).contains("cannot read"));
        fs::remove_file(at("model.toml")).unwrap();
        assert!(refused(folder.path()).contains("no such model"));
    }

    #[test]
    fn a_file_that_was_replaced_after_the_model_was_loaded_is_not_read() {
        let folder = folder(MANIFEST);
        let model = Model::load(folder.path()).unwrap();
        let file = &model.manifest.streams[0].files[0];
        assert_eq!(model.read(file).unwrap(), b"abc");
        fs::write(folder.path().join(&file.path), "abd").unwrap();
        let text = model.read(file).unwrap_err().to_string();
        assert!(text.contains("rgb.onnx is not the file that its manifest describes"), "{text}");
    }

    #[test]
    fn a_manifest_with_any_bit_flipped_is_read_or_refused() {
        let mut seed = 1u64;
        let mut below = |n: usize| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize % n
        };
        let folder = folder(MANIFEST);
        for _ in 0..200 {
            let mut bytes = MANIFEST.as_bytes().to_vec();
            bytes[below(MANIFEST.len())] ^= 1 << below(8);
            fs::write(folder.path().join("model.toml"), bytes).unwrap();
            match Model::load(folder.path()) {
                Ok(model) => model.manifest.streams.iter().for_each(|s| assert!(s.reach() <= WINDOW)),
                Err(e) => assert_eq!(e.kind(), Kind::Model, "{e}"),
            }
        }
    }
}
