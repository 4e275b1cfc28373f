//! `actiond compile`: a model's graphs for a mode that computes only what is new, what that saves, and how far the
//! numbers are from those that the mode stands for.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{say, say_json};
use crate::{
    compile::{self, Packed, Program},
    config::Mode,
    error::{Error, Result},
    inference::{self, Hop, Lane, LoadOptions, Tensor, request},
    input,
    model::{Dtype, File, Model, Precision, Stream},
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
`run`, `infer`, `eval` and `bench` compile on their own when they are given a --mode; this writes the graphs for a look
at them or for another runtime, and measures them against what the mode stands for.

Example: actiond compile models/default --mode continuous --hop 8")]
pub struct Args {
    /// The model's folder.
    model: PathBuf,
    #[arg(long, value_enum)]
    mode: Mode,
    /// Frames from one hop to the next; the model's own where it is left out.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    hop: Option<u16>,
    /// Where to write the graphs; a folder `MODE-HOP` in build/ where it is left out.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Backend to measure on; may be given several times, tried in order.
    #[arg(long)]
    backend: Vec<String>,
    /// Precision of the model's files to use instead of the one that the backend is best at.
    #[arg(long)]
    precision: Option<Precision>,
    /// Print one JSON document and nothing else.
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    model: String,
    backend: &'static str,
    mode: &'static str,
    hop: usize,
    streams: BTreeMap<String, Compiled>,
}

#[derive(Serialize)]
struct Compiled {
    precision: &'static str,
    /// Multiply-adds of the dense window and of a hop, in thousands of millions.
    gmac_dense: f64,
    gmac_per_hop: f64,
    /// What a camera's states take.
    state_mb: f64,
    states: usize,
    /// Frames that a hop takes: its own, and what the first convolution reaches back to.
    frames: usize,
    /// Frames before a score depends on nothing from before the beginning or a cut.
    warm_after: usize,
    /// Frames that scores look further back than a dense window's.
    lag: f32,
    /// Largest difference of a logit to what the mode stands for, computed plainly on the same backend.
    max_abs_diff: f32,
    files: Vec<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    if args.mode == Mode::Dense {
        return Err(Error::config("mode dense runs the graphs as they are; compile for window, carried or continuous"));
    }
    let model = Model::load(&args.model)?;
    let hop = model.hop(args.hop.map(usize::from))?;
    let out = args
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from("build").join(format!("{}-{}-{hop}", model.manifest.name, args.mode.name())));
    fs::create_dir_all(&out).map_err(|e| Error::config(format!("cannot make {}", out.display())).caused_by(e))?;
    let options = LoadOptions { precision: args.precision, mode: args.mode, hop, ..LoadOptions::default() };
    // Which backend takes it, and in which precision.
    let (network, backend) = inference::load_with(&model, &args.backend, &options)?;
    let precisions = network.precision().to_vec();
    drop(network);
    let mut report =
        Report { model: model.manifest.name.clone(), backend, mode: args.mode.name(), hop, streams: BTreeMap::new() };
    for (stream, precision) in model.manifest.streams.iter().zip(precisions) {
        let file = stream.file(&[precision]).ok_or_else(|| Error::internal("a file that was loaded is not there"))?;
        let compiled = one(&model, stream, file, args.mode, hop, backend, &out);
        let compiled = compiled.map_err(|e| e.context(format_args!("stream `{}`", stream.name)))?;
        report.streams.insert(stream.name.clone(), compiled);
    }
    if args.json {
        return say_json(&report);
    }
    let mut lines = vec![format!("{} in mode {}, a hop of {hop} frames, on {backend}\n", report.model, report.mode)];
    for (name, c) in &report.streams {
        lines.push(format!(
            "  {name} ({}): {:.3} GMAC a dense window, {:.3} a hop: {:.2} times less",
            c.precision,
            c.gmac_dense,
            c.gmac_per_hop,
            c.gmac_dense / c.gmac_per_hop
        ));
        lines.push(format!(
            "    {} states, {:.2} MB a camera; a hop takes {} frames; warm after {}; looks {} frames further back",
            c.states, c.state_mb, c.frames, c.warm_after, c.lag
        ));
        lines.push(format!("    differs from what it stands for by {:.1e} at the most", c.max_abs_diff));
        lines.extend(c.files.iter().map(|f| format!("    {}", f.display())));
    }
    say(&lines.join("\n"))
}

/// Compiles, writes and measures one stream's graph.
fn one(
    model: &Model,
    stream: &Stream,
    file: &File,
    mode: Mode,
    hop: usize,
    backend: &str,
    out: &Path,
) -> Result<Compiled> {
    let bytes = model.read(file)?;
    let request = request(&bytes, stream, mode, hop, model.manifest.continuous.columns)?;
    let program = compile::compile(&request)?;
    let named = |what: &str| out.join(format!("{}.{}.{what}.onnx", stream.name, file.precision.name()));
    let mut files = Vec::new();
    for (what, graph) in [("hop", Some(&program.graph)), ("prime", program.prime.as_ref())] {
        let Some(graph) = graph else { continue };
        let path = named(what);
        fs::write(&path, graph).map_err(|e| Error::config(format!("cannot write {}", path.display())).caused_by(e))?;
        files.push(path);
    }
    // As many frames as it takes to be warm, and one hop more.
    let columns = match mode {
        Mode::Window => stream.frames,
        _ => (program.warm_after + request.hop).next_multiple_of(request.hop).max(stream.frames),
    };
    let reference = compile::reference(&request, &program, columns)?;
    let max_abs_diff = difference(model, stream, file, &program, &reference, columns, mode, hop, backend)?;
    Ok(Compiled {
        precision: file.precision.name(),
        gmac_dense: program.macs_dense as f64 / 1e9,
        gmac_per_hop: program.macs as f64 / 1e9,
        state_mb: program.state_bytes() as f64 / 1e6,
        states: program.states.len(),
        frames: program.frames,
        warm_after: program.warm_after,
        lag: program.lag,
        max_abs_diff,
        files,
    })
}

/// Runs noise through the hops and through the plain graph; the largest difference of their last scores.
#[allow(clippy::too_many_arguments)]
fn difference(
    model: &Model,
    stream: &Stream,
    file: &File,
    program: &Program,
    reference: &[u8],
    columns: usize,
    mode: Mode,
    hop: usize,
    backend: &str,
) -> Result<f32> {
    let folder = std::env::temp_dir().join(format!("actiond-compile-{}", std::process::id()));
    fs::create_dir_all(&folder).map_err(|e| Error::config(format!("cannot make {}", folder.display())).caused_by(e))?;
    let result = (|| {
        let path = folder.join("reference.onnx");
        fs::write(&path, reference)
            .map_err(|e| Error::config(format!("cannot write {}", path.display())).caused_by(e))?;
        let sha256 = Sha256::digest(reference).iter().map(|b| format!("{b:02x}")).collect();
        let plain = File { path: "reference.onnx".into(), sha256, ..file.clone() };
        // One stream each: the same as the model's, and one whose graph takes the whole clip.
        let mut live = model.clone();
        live.manifest.streams = vec![stream.clone()];
        let mut whole = live.clone();
        whole.folder = folder.clone();
        whole.manifest.streams = vec![Stream { frames: columns, files: vec![plain], ..stream.clone() }];
        let names = [backend.to_owned()];
        let options = LoadOptions { precision: Some(file.precision), mode, hop, ..LoadOptions::default() };
        let (mut live, _) = inference::load_with(&live, &names, &options)?;
        let plain = LoadOptions { mode: Mode::Dense, ..options };
        let (mut whole, _) = inference::load_with(&whole, &names, &plain)?;
        let hop = hop / stream.step;
        let clip = Noise { stream, frames: columns + if mode == Mode::Window { 3 * hop } else { 0 } };
        let mut scores = Vec::new();
        let first = if mode == Mode::Window { stream.frames } else { hop };
        for end in (first..=clip.frames).step_by(hop) {
            let hop = clip.cut(end, program.frames, end > first, live.packed(0));
            scores = live.step(Lane(0), &hop)?.logits[0].clone();
        }
        let expected = &whole.step(Lane(0), &clip.cut(clip.frames, columns, false, None))?.logits[0];
        // `max` passes over what is no number, and would call it a difference of nothing.
        if let Some(bad) = scores.iter().chain(expected).find(|score| !score.is_finite()) {
            return Err(Error::model(format!(
                "{}: a score of it is {bad} on noise in its input's range, so nothing can be measured; its weights are \
                 damaged or overflow: export it again",
                file.path.display()
            )));
        }
        Ok(scores.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max))
    })();
    let _ = fs::remove_dir_all(&folder);
    result
}

/// A clip of noise, the same every time: every value is made from its place.
struct Noise<'a> {
    stream: &'a Stream,
    frames: usize,
}

impl Noise<'_> {
    /// The `columns` frames before `end`; before the first is the first.
    fn cut(&self, end: usize, columns: usize, follows: bool, packed: Option<Packed>) -> Hop {
        let shape = self.stream.shape(columns);
        let axis = inference::time_axis(self.stream.layout).unwrap_or(0);
        let inner: usize = shape[axis + 1..].iter().product();
        let outer: usize = shape[..axis].iter().product();
        let mut values = Vec::with_capacity(outer * columns * inner);
        for o in 0..outer {
            for t in 0..columns {
                let frame = (end + t).saturating_sub(columns);
                values.extend((0..inner).map(|i| {
                    // A mixer of bits (Steele's), on the value's place in the clip.
                    let mut z = ((frame * outer + o) * inner + i) as u64;
                    z = z.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                    (z >> 56) as u8
                }));
            }
        }
        let [low, high] = self.stream.range;
        let floats = || values.iter().map(|&v| low + (high - low) * v as f32 / 255.0).collect::<Vec<f32>>();
        let input = match (packed, self.stream.dtype) {
            (Some(packed), _) => input::pack(&floats(), packed, self.stream, columns),
            (None, Dtype::U8) => Tensor::U8(values),
            (None, Dtype::F32) => Tensor::F32(floats()),
        };
        Hop { frames: vec![columns], packed: vec![packed], inputs: vec![input], follows }
    }
}
