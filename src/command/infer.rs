//! `actiond infer`: one clip, its logits and best labels.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Serialize;

use crate::{
    clip::{Clip, fused, ranked},
    config::Mode,
    error::Result,
    inference::{self, LoadOptions},
    model::{Model, Precision, Rule},
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: actiond infer models/default clip.mp4 --backend tract --json")]
pub struct Args {
    /// The model's folder.
    model: PathBuf,
    /// The clip: any file that GStreamer decodes, a .y4m, or a folder of images.
    clip: PathBuf,
    /// Backend to use; may be given several times, tried in order.
    #[arg(long)]
    backend: Vec<String>,
    /// Precision of the model's files to use instead of the one that the backend is best at.
    #[arg(long)]
    precision: Option<Precision>,
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// Frames from one hop to the next, where the clip is scored hop by hop; the model's own where it is left out.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    hop: Option<u16>,
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
    frames: usize,
    /// `whole`, `hops`, `samples` or `last-hop`.
    protocol: &'static str,
    streams: BTreeMap<String, Scored>,
    fused: Scored,
}

#[derive(Serialize)]
struct Scored {
    logits: Vec<f32>,
    top: Vec<Top>,
}

#[derive(Serialize)]
struct Top {
    label: String,
    score: f32,
}

pub fn run(args: &Args) -> Result<()> {
    let model = Model::load(&args.model)?;
    let hop = model.hop(args.hop.map(usize::from))?;
    // Before the clip is decoded.
    inference::check_mode(&model, args.mode, hop)?;
    let clip = Clip::read(&args.clip, &model)?;
    let options = LoadOptions { precision: args.precision, mode: args.mode, hop, ..LoadOptions::default() };
    let (mut network, backend) = inference::load_with(&model, &args.backend, &options)?;
    let (logits, protocol) = clip.whole_video(&model, network.as_mut(), hop)?;
    let scores = fused(&model, &logits)?;
    let top = |probabilities: &[f32]| {
        let best = ranked(probabilities).into_iter().take(5);
        best.map(|l| Top { label: model.labels[l].clone(), score: probabilities[l] }).collect()
    };
    let fused_logits = match model.manifest.fusion.rule {
        Rule::Logits => crate::decide::fused_logits(&model.manifest.fusion, &model.stream_names(), &logits),
        // Averaged probabilities have no logits of their own: their logarithm has the same softmax.
        Rule::Probabilities => scores.fused.iter().map(|p| p.max(f32::MIN_POSITIVE).ln()).collect(),
    };
    let streams = model.manifest.streams.iter().zip(&logits).zip(&scores.streams);
    let report = Report {
        model: model.manifest.name.clone(),
        backend,
        mode: args.mode.name(),
        frames: clip.frames.len(),
        protocol: protocol.name(),
        streams: streams.map(|((s, l), p)| (s.name.clone(), Scored { logits: l.clone(), top: top(p) })).collect(),
        fused: Scored { logits: fused_logits, top: top(&scores.fused) },
    };
    if args.json {
        return super::say_json(&report);
    }
    let (frames, model) = (report.frames, &report.model);
    let mut lines =
        vec![format!("{}: {frames} frames at 25 fps, {protocol}, {model} on {backend}", args.clip.display())];
    for (name, scored) in report.streams.iter().map(|(n, s)| (n.as_str(), s)).chain([("fused", &report.fused)]) {
        let line: Vec<String> = scored.top.iter().map(|t| format!("{} {:.1} %", t.label, t.score * 100.0)).collect();
        lines.push(format!("  {name:<6} {}", line.join("   ")));
    }
    super::say(&lines.join("\n"))
}
