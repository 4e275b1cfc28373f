//! Whole clips: decoded once, scored at every hop and as one video. `infer` and `eval` share it.

use std::{fmt, ops::Range, path::Path};

use crate::{
    cadence::FPS,
    decide,
    error::{Error, Kind, Result},
    frame::Frame,
    inference::{self, Hop, Lane, Network, Progress, Reach},
    input,
    intake::{Intake, Output},
    model::{By, Layout, Model, Rule},
    scale::{self, Region},
    source::{self, Uri},
    time::Shutdown,
};

/// The most input pixels that are scored in one pass, which holds all its activations: 20 s at the paper's 224x224.
const LARGEST_WHOLE: usize = 512 * 224 * 224;

/// How a whole clip was scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// In one pass over all its frames, convolutionally in time: the paper's test of I3D. Where it has cuts, in one pass
    /// for each of so many pieces.
    Whole(usize),
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
            Protocol::Whole(_) => "whole",
            Protocol::Hops(_) => "hops",
            Protocol::Samples(_) => "samples",
            Protocol::LastHop(_) => "last-hop",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Protocol::Whole(1) => f.write_str("scored in one pass"),
            Protocol::Whole(n) => write!(f, "scored in {n} passes, one for each piece between its cuts"),
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
    /// Where its time jumps, in the order of the frames.
    pub cuts: Vec<Cut>,
}

/// A cut in a clip: no motion is seen across it, and no window reaches over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Index of the first frame behind it.
    pub at: usize,
    /// Ticks that never came.
    pub lost: u64,
}

/// Frames between two cuts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub frames: Range<usize>,
    /// The number of its first frame, as a camera's ring counts: with the ticks that never came.
    pub number: u64,
}

/// Where a hop of a clip ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    pub piece: usize,
    /// One past the hop's last frame, counted from the piece's first.
    pub end: usize,
}

/// Raw logits, one vector a stream.
pub type Logits = Vec<Vec<f32>>;

impl Clip {
    /// Decodes, scales and computes flow for a whole file.
    ///
    /// Errors: `Config` for a clip whose frames would take more than most of the memory that is left.
    pub fn read(path: &Path, model: &Model) -> Result<Clip> {
        Clip::read_within(path, model, memory_left() / 4 * 3)
    }

    fn read_within(path: &Path, model: &Model, most: usize) -> Result<Clip> {
        let (specs, _) = scale::views(&model.manifest);
        let mut intake = Intake::new(&specs, Region::WHOLE)?;
        let uri = Uri::file(path);
        let mut source = source::open(&uri, &source::Options::default(), &Shutdown::new())?;
        let mut clip = Clip { frames: Vec::new(), cuts: Vec::new() };
        let mut held = 0;
        loop {
            let picture = match source.next() {
                Ok(picture) => picture,
                Err(e) if e.kind() == Kind::EndOfStream => break,
                // What could be decoded of a damaged file still counts.
                Err(e) if !clip.frames.is_empty() => {
                    log::warn!("{}: {e}; going on with its first {} frames", path.display(), clip.frames.len());
                    break;
                }
                Err(e) => return Err(e),
            };
            intake.take(&picture, &mut |output| match output {
                Output::Frame(frame) => {
                    held += frame.views.iter().map(|v| v.rgb.len() + size_of_val(v.flow.as_slice())).sum::<usize>();
                    clip.frames.push(frame.clone());
                }
                Output::Cut { lost } => clip.cuts.push(Cut { at: clip.frames.len(), lost }),
            })?;
            if held > most {
                return Err(Error::config(format!(
                    "{}: too long for this machine's memory, where its first {:.0} s have taken {} MB: cut it into shorter \
                     clips (ffmpeg -i IN -f segment -segment_time 60 -reset_timestamps 1 OUT%03d.mp4), or watch it with run",
                    path.display(),
                    clip.frames.len() as f64 / FPS as f64,
                    held >> 20
                )));
            }
        }
        if clip.frames.is_empty() {
            return Err(Error::config(format!("{}: no pictures in it", path.display())));
        }
        Ok(clip)
    }

    /// The clip between its cuts: one piece where it has none.
    pub fn pieces(&self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let (mut from, mut lost) = (0, 0);
        for cut in &self.cuts {
            pieces.push(Piece { frames: from..cut.at, number: from as u64 + lost });
            (from, lost) = (cut.at, lost + cut.lost);
        }
        pieces.push(Piece { frames: from..self.frames.len(), number: from as u64 + lost });
        pieces.retain(|p| !p.frames.is_empty());
        pieces
    }

    /// The paper's test of each architecture, as far as the graphs and the clip's length allow: see [`Protocol`]. A clip
    /// shorter than the window is looped to its length. Where the manifest's fusion averages probabilities, so do hops
    /// and samples, and the answer is the logarithm of their mean.
    ///
    /// Nothing reaches over a cut: one pass is one for each piece, and their logits are averaged by the pieces' lengths, as
    /// a pass averages those of its columns. Where a piece is shorter than the window there is no such pass.
    pub fn whole_video(&self, model: &Model, network: &mut dyn Network, hop: usize) -> Result<(Logits, Protocol)> {
        let streams = &model.manifest.streams;
        let n = self.frames.len();
        let pieces = self.pieces();
        let small = |n: usize| streams.iter().all(|s| n * s.size[0] * s.size[1] <= LARGEST_WHOLE);
        let fits = pieces.iter().all(|p| p.frames.len() >= window(model) && small(p.frames.len()));
        let convolutional = streams.iter().all(|s| s.step == 1 && s.layout != Layout::Nchw && s.state.is_empty());
        let any_length = (0..streams.len()).all(|s| network.any_length(s));
        if convolutional && any_length && fits {
            let mut all: Vec<Logits> = Vec::new();
            for piece in &pieces {
                let frames = &self.frames[piece.frames.clone()];
                all.push(score(frames, model, network, frames.len() as i64, frames.len(), false, true)?);
            }
            let weights: Vec<f32> = pieces.iter().map(|p| p.frames.len() as f32 / n as f32).collect();
            let weighted = |stream: usize| {
                let mut sum = vec![0.0; all[0][stream].len()];
                for (logits, weight) in all.iter().zip(&weights) {
                    sum.iter_mut().zip(&logits[stream]).for_each(|(sum, logit)| *sum += weight * logit);
                }
                sum
            };
            return Ok(((0..streams.len()).map(weighted).collect(), Protocol::Whole(pieces.len())));
        }
        let (mut windows, protocol) = match model.manifest.samples {
            Some(samples) if !network.reach().carried => {
                let ends = spread(window(model), &pieces, samples);
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
        // What a network with a memory says last it says of the whole clip, or of all since a cut.
        if let Protocol::LastHop(_) = protocol {
            let ends = self.ends(model, hop, &network.reach());
            let is_last = |i: usize| ends.get(i + 1).is_none_or(|next| next.piece != ends[i].piece);
            windows = windows.into_iter().enumerate().filter(|(i, _)| is_last(*i)).map(|(_, w)| w).collect();
        }
        let mean = |stream: usize| mean(windows.iter().map(|w| w[stream].as_slice()), model.manifest.fusion.rule);
        Ok(((0..streams.len()).map(mean).collect(), protocol))
    }

    /// The logits of every hop from each piece's first full window to its end; see [`Clip::ends`].
    pub fn windows(&self, model: &Model, network: &mut dyn Network, hop: usize) -> Result<Vec<Logits>> {
        let ends = self.ends(model, hop, &network.reach());
        self.windows_at(model, network, hop, &ends)
    }

    /// The logits of the hops that end there.
    ///
    /// In a mode that carries states, a piece is taken to be one of a longer video in which nothing moved before it, and
    /// nothing moves behind it: its first picture stands still for as long as the scores look back, and its last one
    /// until the scores, which may look further back than a window's, have seen it.
    fn windows_at(&self, model: &Model, network: &mut dyn Network, hop: usize, ends: &[End]) -> Result<Vec<Logits>> {
        // In a mode that carries states a hop may take more frames than the window has.
        let window = inference::rhythm(model, network, hop).window.max(1);
        let reach = network.reach();
        let pieces = self.pieces();
        // Hops whose scores are of what came before the piece.
        let ahead = if reach.carried { reach.warm_after.next_multiple_of(hop) } else { 0 };
        let mut all = Vec::with_capacity(ends.len());
        for ends in ends.chunk_by(|a, b| a.piece == b.piece) {
            let frames = &self.frames[pieces[ends[0].piece].frames.clone()];
            network.reset(Lane(0));
            let mut progress = Progress::default();
            let first = ahead + ends[0].end;
            let before = (hop..first).step_by(hop).filter(|_| reach.carried);
            for end in before.chain(ends.iter().map(|end| ahead + end.end)) {
                let follows = progress.hop(end as u64 - 1, hop);
                let logits = score(frames, model, network, end as i64 - ahead as i64, window, follows, false)?;
                if end >= first {
                    all.push(logits);
                }
            }
        }
        Ok(all)
    }

    /// The end of each hop that has a score: in each piece every `hop` frames from the first full window on, and, in a mode
    /// of windows, at the piece's end (but a network with a memory takes no hop of another length); a piece shorter than a
    /// window is looped then. In a mode that carries states as many frames later as its scores look further back.
    pub fn ends(&self, model: &Model, hop: usize, reach: &Reach) -> Vec<End> {
        let mut all = Vec::new();
        for (piece, Piece { frames, .. }) in self.pieces().into_iter().enumerate() {
            let ends = ends(frames.len(), window(model), hop, reach, model.has_memory());
            all.extend(ends.into_iter().map(|end| End { piece, end }));
        }
        all
    }
}

/// One past the last frame of each hop over `n` frames without a cut.
fn ends(n: usize, window: usize, hop: usize, reach: &Reach, has_memory: bool) -> Vec<usize> {
    if !reach.carried {
        let mut ends: Vec<usize> = (window..=n).step_by(hop).collect();
        if ends.last() != Some(&n) && (!has_memory || ends.is_empty()) {
            ends.push(n);
        }
        return ends;
    }
    let lag = reach.lag.round() as usize;
    let first = (window + lag).next_multiple_of(hop);
    (first..=(n + lag).max(first)).step_by(hop).collect()
}

/// Scores the frames before `end`, which lies outside of them where a mode looks at what was before or comes after.
fn score(
    frames: &[Frame],
    model: &Model,
    network: &mut dyn Network,
    end: i64,
    length: usize,
    follows: bool,
    whole: bool,
) -> Result<Logits> {
    let (_, view_of_stream) = scale::views(&model.manifest);
    let streams = &model.manifest.streams;
    let n = frames.len();
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
        let (first, last) = (still(&frames[0]), still(&frames[n - 1]));
        let frame = |i: usize| match end - length as i64 + i as i64 {
            t if t < 0 => &first,
            t => frames.get(t as usize).unwrap_or(&last),
        };
        input::fill_hop(streams, &view_of_stream, length, frame, &mut hop);
    } else {
        let end = end.max(0) as usize;
        let start = end.saturating_sub(length);
        let real = end - start;
        input::fill_hop(streams, &view_of_stream, length, |i| &frames[start + i % real], &mut hop);
    }
    Ok(network.step(Lane(0), &hop)?.logits.clone())
}

/// Bytes of memory that may still be taken, as the kernel tells; any number where it does not.
fn memory_left() -> usize {
    let told = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes = told.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB"));
    kilobytes.and_then(|n| n.parse::<usize>().ok()).map_or(usize::MAX, |n| n.saturating_mul(1024))
}

/// Up to `count` ends of windows of `window` frames, spread evenly over all that lie within a piece, from the first to
/// the last.
fn spread(window: usize, pieces: &[Piece], count: usize) -> Vec<End> {
    let mut all = Vec::new();
    for (piece, Piece { frames, .. }) in pieces.iter().enumerate() {
        // A piece that is shorter has one, and is looped.
        all.extend((window.min(frames.len())..=frames.len()).map(|end| End { piece, end }));
    }
    let last = all.len().saturating_sub(1);
    let count = count.min(all.len());
    // A single one lies in the middle.
    let at = |i: usize| if count == 1 { last / 2 } else { (i * last + (count - 1) / 2) / (count - 1) };
    (0..count).map(|i| all[at(i)]).collect()
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
        let of = |frames: Range<usize>| Piece { number: frames.start as u64, frames };
        let spread = |window: usize, n: usize, count: usize| -> Vec<usize> {
            super::spread(window, &[of(0..n)], count).iter().map(|e| e.end).collect()
        };
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
    fn no_window_reaches_over_a_cut_and_frames_are_numbered_with_what_was_lost() {
        let frame = |number| Frame { number, still: 0, views: Vec::new() };
        let cuts = vec![Cut { at: 20, lost: 250 }, Cut { at: 24, lost: 0 }];
        let clip = Clip { frames: (0..40).map(frame).collect(), cuts };
        let pieces = clip.pieces();
        let seen: Vec<_> = pieces.iter().map(|p| (p.frames.clone(), p.number)).collect();
        assert_eq!(seen, [(0..20, 0), (20..24, 270), (24..40, 274)]);
        // 5 windows of 16, one of what is shorter, and one.
        let all: Vec<_> = spread(16, &pieces, 25).iter().map(|e| (e.piece, e.end)).collect();
        assert_eq!(all, [(0, 16), (0, 17), (0, 18), (0, 19), (0, 20), (1, 4), (2, 16)]);
        assert_eq!(ends(20, 16, 3, &Reach::default(), false), [16, 19, 20]);
    }

    #[test]
    fn a_clip_that_memory_does_not_hold_is_refused() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let model = Model::load(&here.join("models/default")).unwrap();
        let e = Clip::read_within(&here.join("demo/demo.mp4"), &model, 1 << 20).err().unwrap();
        assert!(e.kind() == Kind::Config && e.to_string().contains("demo.mp4: too long"), "{e}");
        assert!(memory_left() > 1 << 20);
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
