//! Whole clips: decoded once, scored at every hop and as one video. `infer` and `eval` share it.

use std::{fmt, path::Path};

use crate::{
    decide,
    error::{Error, Kind, Result},
    frame::Frame,
    inference::{self, Hop, Lane, Network, Progress, Reach},
    input,
    intake::{Intake, Output},
    model::{By, Layout, Model, Rule},
    scale::{self, Region},
    source::{self, Uri},
};

/// The most input pixels that are scored in one pass, which holds all its activations: 20 s at the paper's 224x224.
const LARGEST_WHOLE: usize = 512 * 224 * 224;

/// How a whole clip was scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// In one pass over all its frames, convolutionally in time: the paper's test of I3D.
    Whole,
    /// By the mean of its hops' predictions, and how many those were.
    Hops(usize),
    /// By the mean of so many steps' predictions, spread evenly: the paper's test of its Two-Stream.
    Samples(usize),
    /// By what a network with a memory says at its last hop, and how many there were.
    LastHop(usize),
}

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Whole => "whole",
            Protocol::Hops(_) => "hops",
            Protocol::Samples(_) => "samples",
            Protocol::LastHop(_) => "last-hop",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Protocol::Whole => f.write_str("scored in one pass"),
            Protocol::Hops(1) => f.write_str("scored as one window"),
            Protocol::Hops(n) => write!(f, "the mean of {n} hops"),
            Protocol::Samples(n) => write!(f, "the mean of {n} samples"),
            Protocol::LastHop(n) => write!(f, "the last of {n} hops"),
        }
    }
}

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

    /// The paper's test of each architecture, as far as the graphs and the clip's length allow: see [`Protocol`]. A clip
    /// shorter than the window is looped to its length. Where the manifest's fusion averages probabilities, so do hops
    /// and samples, and the answer is the logarithm of their mean.
    pub fn whole_video(&self, model: &Model, network: &mut dyn Network, hop: usize) -> Result<(Logits, Protocol)> {
        let streams = &model.manifest.streams;
        let n = self.frames.len();
        let fits = n >= window(model) && streams.iter().all(|s| n * s.size[0] * s.size[1] <= LARGEST_WHOLE);
        let convolutional = streams.iter().all(|s| s.step == 1 && s.layout != Layout::Nchw && s.state.is_empty());
        let any_length = (0..streams.len()).all(|s| network.any_length(s));
        if convolutional && any_length && fits {
            return Ok((self.score(model, network, n as i64, n, false, true)?, Protocol::Whole));
        }
        let (mut windows, protocol) = match model.manifest.samples {
            Some(samples) if !network.reach().carried => {
                let ends = spread(window(model), n, samples);
                let windows = self.windows_at(model, network, hop, &ends)?;
                (windows, Protocol::Samples(ends.len()))
            }
            _ => {
                let windows = self.windows(model, network, hop)?;
                let count = windows.len();
                (windows, if model.has_memory() { Protocol::LastHop(count) } else { Protocol::Hops(count) })
            }
        };
        if convolutional && any_length && n > window(model) {
            log::warn!("{n} frames are too many for one pass at this size; the scores are {protocol}");
        }
        // What a network with a memory says last it says of the whole clip.
        if let Protocol::LastHop(_) = protocol {
            return Ok((windows.pop().unwrap_or_default(), protocol));
        }
        let mean = |stream: usize| mean(windows.iter().map(|w| w[stream].as_slice()), model.manifest.fusion.rule);
        Ok(((0..streams.len()).map(mean).collect(), protocol))
    }

    /// The logits of every hop from the first full window to the clip's end; see [`Clip::ends`].
    pub fn windows(&self, model: &Model, network: &mut dyn Network, hop: usize) -> Result<Vec<Logits>> {
        let ends = self.ends(model, hop, &network.reach());
        self.windows_at(model, network, hop, &ends)
    }

    /// The logits of the hops that end there.
    ///
    /// In a mode that carries states, the clip is taken to be a piece of a longer video in which nothing moved before it,
    /// and nothing moves behind it: its first picture stands still for as long as the scores look back, and its last one
    /// until the scores, which may look further back than a window's, have seen it.
    fn windows_at(&self, model: &Model, network: &mut dyn Network, hop: usize, ends: &[usize]) -> Result<Vec<Logits>> {
        network.reset(Lane(0));
        // In a mode that carries states a hop may take more frames than the window has.
        let window = inference::rhythm(model, network, hop).window.max(1);
        let reach = network.reach();
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
    /// a mode of windows, at the clip's end (but a network with a memory takes no hop of another length); a clip shorter
    /// than a window is looped then. In a mode that carries states
    /// as many frames later as its scores look further back.
    pub fn ends(&self, model: &Model, hop: usize, reach: &Reach) -> Vec<usize> {
        let n = self.frames.len();
        if !reach.carried {
            let mut ends: Vec<usize> = (window(model)..=n).step_by(hop).collect();
            if ends.last() != Some(&n) && (!model.has_memory() || ends.is_empty()) {
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

/// Up to `count` ends of windows of `window` frames, spread evenly over a clip of `n` from its first window to its last.
fn spread(window: usize, n: usize, count: usize) -> Vec<usize> {
    let last = n.saturating_sub(window);
    let count = count.min(last + 1);
    // A single one lies in the middle.
    let at = |i: usize| if count == 1 { last / 2 } else { (i * last + (count - 1) / 2) / (count - 1) };
    (0..count).map(|i| (window + at(i)).min(n)).collect()
}

/// The mean of some windows' logits, or the logarithm of the mean of their probabilities.
fn mean<'l>(windows: impl ExactSizeIterator<Item = &'l [f32]>, rule: Rule) -> Vec<f32> {
    let count = windows.len() as f32;
    let mut sum: Vec<f32> = Vec::new();
    for logits in windows {
        let mut values = logits.to_vec();
        // A single window's logits stay what they are.
        if rule == Rule::Probabilities && count > 1.0 {
            decide::softmax(&mut values);
        }
        sum.resize(values.len(), 0.0);
        sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
    sum.iter_mut().for_each(|sum| *sum /= count);
    if rule == Rule::Probabilities && count > 1.0 {
        sum.iter_mut().for_each(|p| *p = p.max(f32::MIN_POSITIVE).ln());
    }
    sum
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_spread_from_the_first_window_to_the_last() {
        assert_eq!(spread(10, 250, 25), (0..25).map(|i| 10 + i * 10).collect::<Vec<_>>());
        assert_eq!(spread(1, 5, 3), [1, 3, 5]);
        // No two of them are the same, in a short clip as well.
        assert_eq!(spread(10, 12, 25), [10, 11, 12]);
        assert_eq!(spread(10, 30, 1), [20]);
        // Shorter than a window: it is looped.
        assert_eq!(spread(10, 4, 25), [4]);
        for (window, n, count) in [(1, 1, 1), (64, 1000, 7), (3, 77, 25)] {
            let ends = spread(window, n, count);
            assert_eq!((ends[0], ends[ends.len() - 1], ends.len()), (window, n, count));
            let gaps = ends.windows(2).map(|w| w[1] - w[0]);
            assert!(gaps.clone().max().unwrap_or(0) <= gaps.min().unwrap_or(0) + 1, "{ends:?}");
        }
    }

    #[test]
    fn predictions_are_averaged_as_the_fusion_does_it() {
        let hops: [&[f32]; 2] = [&[4.0, 0.0], &[0.0, 2.0]];
        assert_eq!(mean(hops.into_iter(), Rule::Logits), [2.0, 1.0]);
        let probability = |a: f32, b: f32| 1.0 / (1.0 + (b - a).exp());
        let expected = (probability(4.0, 0.0) + probability(0.0, 2.0)) / 2.0;
        let mut found = mean(hops.into_iter(), Rule::Probabilities);
        assert!((found[0].exp() - expected).abs() < 1e-6, "{found:?}");
        // What is fused next is their softmax: the same probabilities.
        decide::softmax(&mut found);
        assert!((found[0] - expected).abs() < 1e-6, "{found:?}");
        // Of one window there is nothing to average.
        assert_eq!(mean([hops[0]].into_iter(), Rule::Probabilities), [4.0, 0.0]);
    }
}
