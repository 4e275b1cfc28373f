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
            return self.score(model, network, n as i64, n, false, true);
        }
        let mut windows = self.windows(model, network, hop)?;
        let count = windows.len() as f32;
        let mut answer = windows.pop().unwrap_or_default();
        for (i, (stream, logits)) in streams.iter().zip(&mut answer).enumerate() {
            // What a network with a memory says last it says of the whole clip.
            if stream.state.is_empty() {
                for earlier in &windows {
                    logits.iter_mut().zip(&earlier[i]).for_each(|(sum, l)| *sum += l);
                }
                logits.iter_mut().for_each(|sum| *sum /= count);
            }
        }
        Ok(answer)
    }

    /// The logits of every hop from the first full window to the clip's end; see [`Clip::ends`].
    ///
    /// In a mode that carries states, the clip is taken to be a piece of a longer video in which nothing moved before it,
    /// and nothing moves behind it: its first picture stands still for as long as the scores look back, and its last one
    /// until the scores, which may look further back than a window's, have seen it.
    pub fn windows(&self, model: &Model, network: &mut dyn Network, hop: usize) -> Result<Vec<Logits>> {
        network.reset(Lane(0));
        let window = window(model).max(1);
        let reach = network.reach();
        let ends = self.ends(model, hop, &reach);
        let mut progress = Progress::default();
        let mut all = Vec::with_capacity(ends.len());
        // Hops whose scores are of what came before the clip.
        let ahead = if reach.carried { reach.warm_after.next_multiple_of(hop) } else { 0 };
        let before: Vec<usize> = if reach.carried { (hop..ahead + ends[0]).step_by(hop).collect() } else { Vec::new() };
        let skipped = before.len();
        for end in before.into_iter().chain(ends.iter().map(|end| ahead + end)) {
            let follows = progress.hop(end as u64 - 1, hop);
            all.push(self.score(model, network, end as i64 - ahead as i64, window, follows, false)?);
        }
        Ok(all.split_off(skipped))
    }

    /// One past the last frame of each hop that has a score: every `hop` frames from the first full window on, and, in
    /// a mode of windows, at the clip's end; a clip shorter than a window is looped then. In a mode that carries states
    /// as many frames later as its scores look further back.
    pub fn ends(&self, model: &Model, hop: usize, reach: &Reach) -> Vec<usize> {
        let n = self.frames.len();
        if !reach.carried {
            let mut ends: Vec<usize> = (window(model)..=n).step_by(hop).collect();
            if ends.last() != Some(&n) {
                ends.push(n);
            }
            return ends;
        }
        let lag = reach.lag.round() as usize;
        let first = (window(model) + lag).next_multiple_of(hop);
        (first..=(n + lag).max(first)).step_by(hop).collect()
    }

    /// Scores the frames before `end`, which lies outside the clip where a mode looks at what was before or comes after.
    fn score(
        &self,
        model: &Model,
        network: &mut dyn Network,
        end: i64,
        length: usize,
        follows: bool,
        whole: bool,
    ) -> Result<Logits> {
        let (_, view_of_stream) = scale::views(&model.manifest);
        let streams = &model.manifest.streams;
        let n = self.frames.len();
        let mut hop = Hop::of(network, streams.len());
        hop.follows = follows;
        if whole {
            hop.frames = vec![length; streams.len()];
        }
        if network.reach().carried {
            // Before the first frame and behind the last one nothing moves.
            let still = |frame: &Frame| {
                let mut still = frame.clone();
                still.views.iter_mut().for_each(|v| v.flow.fill(0.0));
                still
            };
            let (first, last) = (still(&self.frames[0]), still(&self.frames[n - 1]));
            let frame = |i: usize| match end - length as i64 + i as i64 {
                t if t < 0 => &first,
                t => self.frames.get(t as usize).unwrap_or(&last),
            };
            input::fill_hop(streams, &view_of_stream, length, frame, &mut hop);
        } else {
            let end = end.max(0) as usize;
            let start = end.saturating_sub(length);
            let real = end - start;
            input::fill_hop(streams, &view_of_stream, length, |i| &self.frames[start + i % real], &mut hop);
        }
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
