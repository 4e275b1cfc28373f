//! Whole clips: decoded once, scored at every hop and as one video. `infer` and `eval` share it.

use std::path::Path;

use crate::{
    decide,
    error::{Error, Kind, Result},
    frame::Frame,
    inference::{Hop, Lane, Network, Progress, Reach},
    input,
    intake::{Intake, Output},
    model::{By, Layout, Model},
    scale::{self, Region},
    source::{self, Uri},
};

/// A clip of more frames than this is scored window by window only: a whole-video pass holds all its activations.
pub const LONGEST_WHOLE: usize = 512;

/// The frames of a clip, all of them.
pub struct Clip {
    pub frames: Vec<Frame>,
}

/// Raw logits, one vector a stream.
pub type Logits = Vec<Vec<f32>>;

impl Clip {
    /// Decodes, scales and computes flow for a whole file.
    pub fn read(path: &Path, model: &Model) -> Result<Clip> {
        let (specs, _) = scale::views(&model.manifest);
        let mut intake = Intake::new(&specs, Region::WHOLE)?;
        let uri = Uri::file(path);
        let mut source = source::open(&uri, &source::Options::default())?;
        let mut frames = Vec::new();
        loop {
            let picture = match source.next() {
                Ok(picture) => picture,
                Err(e) if e.kind() == Kind::EndOfStream => break,
                // What could be decoded of a damaged file still counts.
                Err(e) if !frames.is_empty() => {
                    log::warn!("{}: {e}; going on with its first {} frames", path.display(), frames.len());
                    break;
                }
                Err(e) => return Err(e),
            };
            intake.take(&picture, &mut |output| {
                if let Output::Frame(frame) = output {
                    frames.push(frame.clone());
                }
            })?;
        }
        if frames.is_empty() {
            return Err(Error::config(format!("{}: no pictures in it", path.display())));
        }
        Ok(Clip { frames })
    }

    /// The paper's test: the whole video convolutionally where the graphs allow it, else the hops' mean. A clip shorter
    /// than the window is looped to its length.
    pub fn whole_video(&self, model: &Model, network: &mut dyn Network, hop: usize) -> Result<Logits> {
        let streams = &model.manifest.streams;
        let fits = |frames: usize| (window(model)..=LONGEST_WHOLE).contains(&frames);
        let convolutional = streams.iter().all(|s| s.step == 1 && s.layout != Layout::Nchw && s.state.is_empty());
        let any_length = (0..streams.len()).all(|s| network.any_length(s));
        if convolutional && any_length && fits(self.frames.len()) {
            let n = self.frames.len();
            return self.score(model, network, n, n, false, true);
        }
        let windows = self.windows(model, network, hop)?;
        let mut sum = windows[0].clone();
        for logits in &windows[1..] {
            for (s, l) in sum.iter_mut().flatten().zip(logits.iter().flatten()) {
                *s += l;
            }
        }
        sum.iter_mut().flatten().for_each(|s| *s /= windows.len() as f32);
        Ok(sum)
    }

    /// The logits of every hop, as the daemon sees it; see [`Clip::ends`] for where each one ends.
    pub fn windows(&self, model: &Model, network: &mut dyn Network, hop: usize) -> Result<Vec<Logits>> {
        network.reset(Lane(0));
        let window = window(model).max(1);
        let reach = network.reach();
        let ends = self.ends(model, hop, &reach);
        let mut progress = Progress::default();
        let mut all = Vec::with_capacity(ends.len());
        // What states carry begins with the clip, though there is no score before the first window is full.
        let before = if reach.carried { (hop..ends[0]).step_by(hop).collect() } else { Vec::new() };
        let skipped = before.len();
        for end in before.into_iter().chain(ends) {
            let follows = progress.hop(end as u64 - 1, hop);
            all.push(self.score(model, network, end, window, follows, false)?);
        }
        Ok(all.split_off(skipped))
    }

    /// One past the last frame of each hop that has a score: every `hop` frames from the first full window on, and, in
    /// a mode of windows, at the clip's end. A clip shorter than a window is looped.
    pub fn ends(&self, model: &Model, hop: usize, reach: &Reach) -> Vec<usize> {
        let n = self.frames.len();
        let first = if reach.carried { window(model).next_multiple_of(hop) } else { window(model) };
        let mut ends: Vec<usize> = (first..=n).step_by(hop).collect();
        if reach.carried {
            if ends.is_empty() {
                ends.push(first);
            }
        } else if ends.last() != Some(&n) {
            ends.push(n);
        }
        ends
    }

    fn score(
        &self,
        model: &Model,
        network: &mut dyn Network,
        end: usize,
        length: usize,
        follows: bool,
        whole: bool,
    ) -> Result<Logits> {
        let (_, view_of_stream) = scale::views(&model.manifest);
        let streams = &model.manifest.streams;
        let n = self.frames.len();
        let start = end.saturating_sub(length);
        // A carried hop sees what came before it; a window that the clip does not fill is the clip, over and over.
        let length = if network.reach().carried { end - start } else { length };
        let real = end.min(n) - start.min(n - 1);
        let mut hop = Hop::of(network, streams.len());
        if whole {
            hop.frames = vec![length; streams.len()];
        }
        hop.follows = follows;
        let frame = |i: usize| if end > n { &self.frames[(start + i) % n] } else { &self.frames[start + i % real] };
        input::fill_hop(streams, &view_of_stream, length, frame, &mut hop);
        Ok(network.step(Lane(0), &hop)?.logits.clone())
    }
}

/// Frames that the model's longest stream reaches over.
pub fn window(model: &Model) -> usize {
    model.manifest.streams.iter().map(|s| s.reach()).max().unwrap_or(1)
}

/// One score a label for a whole clip, from its windows: the highest for labels that are decided by their peak, the mean
/// for others. Averaged over a long clip, a short action drowns.
pub fn clip_scores(windows: &[Vec<f32>], by: &[By]) -> Vec<f32> {
    by.iter()
        .enumerate()
        .map(|(label, by)| {
            let scores = windows.iter().map(|w| w[label]);
            match by {
                By::Peak => scores.fold(0.0, f32::max),
                By::Mean => scores.sum::<f32>() / windows.len() as f32,
            }
        })
        .collect()
}

/// Softmax, and the labels in the order of their scores.
pub fn ranked(scores: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order
}

/// Fused probabilities of one hop's logits.
pub fn fused(model: &Model, logits: &Logits) -> Result<decide::Scores> {
    let names: Vec<&str> = model.manifest.streams.iter().map(|s| s.name.as_str()).collect();
    let slices: Vec<&[f32]> = logits.iter().map(Vec::as_slice).collect();
    let mut scores = decide::Scores::default();
    decide::fuse(&model.manifest.fusion, &names, &model.labels, &slices, &mut scores)?;
    Ok(scores)
}
