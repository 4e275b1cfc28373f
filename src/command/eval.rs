//! `actiond eval`: accuracy on a folder of labelled clips. Every accuracy figure of this project comes from here.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::{
    cadence::FPS,
    clip::{self, Clip, clip_scores, fused, ranked},
    command::{
        say, say_json,
        timeline::{self, Seen, Truth},
    },
    config::Mode,
    decide::{self, Decider, HopScores, Phase},
    error::{Error, Result},
    inference::{self, LoadOptions, Reach},
    model::{By, Model, Precision},
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
DIR holds one folder a label, named as the model's labels are (case, `_` and `-` do not matter), with clips in it.
A clip's score for a label is that of the whole video; for labels that the manifest decides by their peak it is the
highest of any window, since averaged over a long clip a short action drowns.

Where a timeline lies beside a clip (`door.tsv` beside `door.mp4`: a heading, then label, start_s and end_s separated by
tabs), the clip's events are decided as `run` would and held against it: how many of the actions were found, how many
events were of something else, and how long after an action's true start its event came (video time alone: what the
computing takes is `bench`'s). Such clips may also lie in DIR itself.

Examples: actiond eval models/default clips/ --json --png confusion.png
          actiond eval models/default demo/")]
pub struct Args {
    /// The model's folder.
    model: PathBuf,
    /// The folder of labelled clips.
    dir: PathBuf,
    /// Backend to use; may be given several times, tried in order.
    #[arg(long)]
    backend: Vec<String>,
    /// Precision of the model's files to use instead of the one that the backend is best at.
    #[arg(long)]
    precision: Option<Precision>,
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// Frames from one hop to the next; the model's own where it is left out.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    hop: Option<u16>,
    /// Where to draw the confusion matrix.
    #[arg(long, value_name = "FILE")]
    png: Option<PathBuf>,
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
    clips: usize,
    /// Fractions of the clips, by stream and `fused`.
    top1: BTreeMap<String, f64>,
    top5: BTreeMap<String, f64>,
    labels: Vec<String>,
    /// `confusion[true][answered]`, fused.
    confusion: Vec<Vec<u32>>,
    /// Of the clips that have a timeline.
    events: Option<Events>,
    /// Each clip with its true label and what was answered, best first.
    answers: Vec<Answer>,
    /// Files that could not be read, and why.
    unread: Vec<Unread>,
    /// Folders that are no label of the model.
    unknown: Vec<String>,
}

/// Events against the timelines.
#[derive(Debug, Default, Serialize)]
struct Events {
    clips: usize,
    actions: usize,
    found: usize,
    /// Events of what was not there.
    extra: usize,
    /// From an action's true start to the last frame of the hop that told of it.
    delay_s: Option<Delay>,
}

#[derive(Debug, Serialize)]
struct Delay {
    mean: f64,
    p50: f64,
    p90: f64,
}

#[derive(Serialize)]
struct Answer {
    clip: PathBuf,
    label: String,
    top: Vec<(String, f32)>,
}

#[derive(Serialize)]
struct Unread {
    clip: PathBuf,
    why: String,
}

pub fn run(args: &Args) -> Result<()> {
    // Before the hours that scoring may take.
    args.png.as_deref().map_or(Ok(()), can_be_drawn)?;
    let model = Model::load(&args.model)?;
    let (clips, unknown) = collect(&args.dir, &model)?;
    for folder in &unknown {
        log::warn!(
            "{}: `{folder}` is not a label of {}; its clips are left out",
            args.dir.display(),
            model.manifest.name
        );
    }
    if clips.is_empty() {
        return Err(Error::config(format!(
            "{}: no clip with a timeline is in it, and no folder is named as one of the model's labels ({})",
            args.dir.display(),
            model.labels.join(", ")
        )));
    }
    let hop = model.hop(args.hop.map(usize::from))?;
    let options = LoadOptions { precision: args.precision, mode: args.mode, hop, ..LoadOptions::default() };
    let (mut network, backend) = inference::load_with(&model, &args.backend, &options)?;
    let by = decide::by_label(&model, &Default::default())?;
    let names: Vec<String> = model.stream_names().iter().map(|n| n.to_string()).chain(["fused".into()]).collect();
    let mut right = vec![[0u32; 2]; names.len()];
    let mut report = Report {
        model: model.manifest.name.clone(),
        backend,
        mode: args.mode.name(),
        clips: 0,
        top1: BTreeMap::new(),
        top5: BTreeMap::new(),
        labels: model.labels.clone(),
        confusion: vec![vec![0; model.labels.len()]; model.labels.len()],
        events: None,
        answers: Vec::new(),
        unread: Vec::new(),
        unknown,
    };
    let (mut timed, mut delays) = (Events::default(), Vec::new());
    let bar = ProgressBar::new(clips.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} clips, {eta} to go  {msg}") {
        bar.set_style(style);
    }
    for (path, label) in clips {
        bar.set_message(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        let scored = score(&path, label, &model, network.as_mut(), &by, hop);
        bar.inc(1);
        let Scored { scores: scored, truths, seen } = match scored {
            Ok(scored) => scored,
            Err(e) => {
                bar.suspend(|| log::warn!("{e}"));
                report.unread.push(Unread { clip: path, why: e.to_string() });
                continue;
            }
        };
        if !truths.is_empty() {
            timed.add(&truths, &seen, &mut delays);
        }
        let Some(label) = label else { continue };
        report.clips += 1;
        for (scores, right) in scored.iter().zip(&mut right) {
            let order = ranked(scores);
            right[0] += u32::from(order[0] == label);
            right[1] += u32::from(order.iter().take(5).any(|&l| l == label));
        }
        let scores = &scored[scored.len() - 1];
        let order = ranked(scores);
        report.confusion[label][order[0]] += 1;
        let top = order.iter().take(5).map(|&l| (model.labels[l].clone(), scores[l])).collect();
        report.answers.push(Answer { clip: path, label: model.labels[label].clone(), top });
    }
    bar.finish_and_clear();
    if timed.clips > 0 {
        timed.delay_s = Delay::of(delays);
        report.events = Some(timed);
    }
    if report.clips == 0 && report.events.is_none() {
        return Err(Error::config(format!(
            "{}: none of the {} clips could be read",
            args.dir.display(),
            report.unread.len()
        )));
    }
    for (name, [one, five]) in names.iter().zip(&right).filter(|_| report.clips > 0) {
        report.top1.insert(name.clone(), f64::from(*one) / report.clips as f64);
        report.top5.insert(name.clone(), f64::from(*five) / report.clips as f64);
    }
    // First what was measured: a picture that can't be written takes nothing with it.
    match args.json {
        true => say_json(&report)?,
        false => say(&table(&report, &names))?,
    }
    args.png.as_deref().map_or(Ok(()), |png| confusion_png(&report, png))
}

/// Whether a picture can be put there, as far as one sees without writing it.
fn can_be_drawn(path: &Path) -> Result<()> {
    let known = image::ImageFormat::from_path(path).is_ok_and(|format| format.writing_enabled());
    if !known {
        return Err(Error::config(format!(
            "--png {}: no picture is written under such a name; let it end in .png",
            path.display()
        )));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(Error::config(format!(
            "--png {}: there is no folder {}; make it first",
            path.display(),
            folder.display()
        )));
    }
    if path.is_dir() {
        return Err(Error::config(format!("--png {}: that is a folder; name a file in it", path.display())));
    }
    Ok(())
}

impl Events {
    fn add(&mut self, truths: &[Truth], seen: &[(Seen, f64)], delays: &mut Vec<f64>) {
        let events: Vec<Seen> = seen.iter().map(|(seen, _)| seen.clone()).collect();
        let matched = timeline::matched(truths, &events);
        self.clips += 1;
        self.actions += truths.len();
        self.extra += matched.extra.len();
        for (truth, event) in truths.iter().zip(matched.found) {
            if let Some(event) = event {
                self.found += 1;
                delays.push(seen[event].1 - truth.start_s);
            }
        }
    }
}

impl Delay {
    fn of(mut delays: Vec<f64>) -> Option<Delay> {
        delays.sort_by(f64::total_cmp);
        let last = delays.len().checked_sub(1)?;
        // Nearest rank.
        let at = |p: f64| delays[((delays.len() as f64 * p).ceil() as usize).saturating_sub(1).min(last)];
        Some(Delay { mean: delays.iter().sum::<f64>() / delays.len() as f64, p50: at(0.5), p90: at(0.9) })
    }
}

/// What a clip came to.
struct Scored {
    /// Of each stream, then fused.
    scores: Vec<Vec<f32>>,
    /// The clip's timeline, if it has one.
    truths: Vec<Truth>,
    /// Its events, each with the time (s) of the last frame of the hop that told of it; only where there is a timeline.
    seen: Vec<(Seen, f64)>,
}

fn score(
    path: &Path,
    label: Option<usize>,
    model: &Model,
    network: &mut dyn inference::Network,
    by: &[By],
    hop: usize,
) -> Result<Scored> {
    let beside = path.with_extension(TIMELINE);
    let truths = if beside.is_file() { timeline::read(&beside)? } else { Vec::new() };
    let clip = Clip::read(path, model)?;
    if label.is_some() && truths.is_empty() && !by.contains(&By::Peak) {
        let video = fused(model, &clip.whole_video(model, network, hop)?.0)?;
        let scores = video.streams.into_iter().chain([video.fused]).collect();
        return Ok(Scored { scores, truths, seen: Vec::new() });
    }
    let logits = clip.windows(model, network, hop)?;
    let windows = logits.iter().map(|l| fused(model, l)).collect::<Result<Vec<decide::Scores>>>()?;
    let mut scores: Vec<Vec<Vec<f32>>> = vec![Vec::new(); model.manifest.streams.len() + 1];
    for window in &windows {
        for (all, one) in scores.iter_mut().zip(window.streams.iter().chain([&window.fused])) {
            all.push(one.clone());
        }
    }
    let reach = network.reach();
    let seen = match truths.is_empty() {
        true => Vec::new(),
        false => events(model, hop, &clip, &windows, &reach)?,
    };
    Ok(Scored { scores: scores.iter().map(|w| clip_scores(w, by)).collect(), truths, seen })
}

/// Decides a clip's windows as `run` does: events, each with the time at which it was told of.
fn events(
    model: &Model,
    hop: usize,
    clip: &Clip,
    windows: &[decide::Scores],
    reach: &Reach,
) -> Result<Vec<(Seen, f64)>> {
    let seconds = |frame: u64| frame as f64 / FPS as f64;
    let mut decider = Decider::new(model, &Default::default(), hop)?.looking_back(reach.lag);
    let mut open = vec![None; model.labels.len()];
    let mut seen = Vec::new();
    let mut take = |changes: &[decide::Change], last: u64| {
        for change in changes {
            match (change.phase, change.end_frame) {
                (Phase::Start, _) => open[change.label] = Some(seconds(last)),
                (Phase::End, Some(end)) => {
                    let label = model.labels[change.label].clone();
                    let (start_s, end_s) = (seconds(change.start_frame), seconds(end));
                    let told = open[change.label].take().unwrap_or(start_s);
                    seen.push((Seen { label, start_s, end_s, peak: change.peak }, told));
                }
                _ => {}
            }
        }
    };
    let window = clip::window(model);
    let pieces = clip.pieces();
    let (mut piece, mut last) = (0, 0);
    for (scores, end) in windows.iter().zip(clip.ends(model, hop, reach)) {
        if end.piece != piece {
            // A jump back lost nothing that can be counted, and is a gap as well.
            let frames = &pieces[piece].frames;
            decider.gap((pieces[end.piece].number - pieces[piece].number).saturating_sub(frames.len() as u64).max(1));
            piece = end.piece;
        }
        let number = |frame: usize| pieces[piece].number + frame as u64;
        let (first_frame, last_frame) = (number(end.end.saturating_sub(window)), number(end.end) - 1);
        take(decider.step(&HopScores { first_frame, last_frame, scores }), last_frame);
        last = last_frame;
    }
    take(decider.finish(last), last);
    Ok(seen)
}

const TIMELINE: &str = "tsv";

/// Clips with the numbers of their labels; without one where only a timeline tells what is in it.
type Labelled = Vec<(PathBuf, Option<usize>)>;

/// The clips, and the folders that are no label.
fn collect(dir: &Path, model: &Model) -> Result<(Labelled, Vec<String>)> {
    let listed = |path: &Path| -> Result<Vec<PathBuf>> {
        let entries =
            fs::read_dir(path).map_err(|e| Error::config(format!("cannot read {}", path.display())).caused_by(e))?;
        let mut paths: Vec<PathBuf> = entries.filter_map(|e| e.ok()).map(|e| e.path()).collect();
        paths.retain(|p| !p.file_name().unwrap_or_default().to_string_lossy().starts_with('.'));
        paths.sort();
        Ok(paths)
    };
    let plain = |name: &str| name.to_lowercase().replace(['_', '-'], " ");
    let (mut clips, mut unknown): (Labelled, _) = (Vec::new(), Vec::new());
    let clip = |path: &PathBuf| path.extension().is_none_or(|e| e != TIMELINE);
    let (folders, files): (Vec<PathBuf>, Vec<PathBuf>) = listed(dir)?.into_iter().partition(|p| p.is_dir());
    clips.extend(files.into_iter().filter(|p| clip(p) && p.with_extension(TIMELINE).is_file()).map(|p| (p, None)));
    for folder in folders {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match model.labels.iter().position(|l| plain(l) == plain(&name)) {
            Some(label) => clips.extend(listed(&folder)?.into_iter().filter(clip).map(|path| (path, Some(label)))),
            None => unknown.push(name),
        }
    }
    Ok((clips, unknown))
}

fn table(report: &Report, names: &[String]) -> String {
    let mut lines = Vec::new();
    if report.clips > 0 {
        lines.push(format!("{} clips, {} on {}\n", report.clips, report.model, report.backend));
        lines.push(format!("  {:<8} {:>7} {:>7}", "", "top-1", "top-5"));
        for name in names {
            let (one, five) = (report.top1[name] * 100.0, report.top5[name] * 100.0);
            lines.push(format!("  {name:<8} {one:>5.1} % {five:>5.1} %"));
        }
        lines.push("\n  fused, by label".into());
    }
    for (label, row) in report.labels.iter().zip(&report.confusion) {
        let total: u32 = row.iter().sum();
        if total == 0 {
            continue;
        }
        let own = report.labels.iter().position(|l| l == label).map_or(0, |i| row[i]);
        let mut others: Vec<(u32, &String)> =
            row.iter().copied().zip(&report.labels).filter(|(n, l)| *n > 0 && *l != label).collect();
        others.sort_by(|a, b| b.cmp(a));
        let others: Vec<String> = others.iter().map(|(n, l)| format!("{l} {n}")).collect();
        lines.push(format!("  {label:<16} {own:>4} of {total:<4} {}", others.join(", ")));
    }
    if let Some(events) = &report.events {
        lines.push(format!(
            "\n  events: {} of {} actions found in {} clips with a timeline, {} of what was not there",
            events.found, events.actions, events.clips, events.extra
        ));
        if let Some(delay) = &events.delay_s {
            lines.push(format!(
                "  told {:.2} s after an action's start in the mean, {:.2} s at p50, {:.2} s at p90",
                delay.mean, delay.p50, delay.p90
            ));
        }
    }
    lines.extend(report.unread.iter().map(|u| format!("\n  not read: {}: {}", u.clip.display(), u.why)));
    lines.join("\n")
}

/// A cell in pixels, and the room for the labels beside and above.
const CELL: usize = 40;

/// Draws the confusion matrix: a row a true label, a column an answer, darker where more of the row's clips went.
fn confusion_png(report: &Report, path: &Path) -> Result<()> {
    let n = report.labels.len();
    let margin = report.labels.iter().map(|l| l.chars().count()).max().unwrap_or(0) * 8 + 12;
    let size = (margin + n * CELL + 8) as u32;
    let mut picture = image::RgbImage::from_pixel(size, size, image::Rgb([255; 3]));
    for (t, row) in report.confusion.iter().enumerate() {
        let total: u32 = row.iter().sum();
        for (a, &count) in row.iter().enumerate() {
            let share = if total == 0 { 0.0 } else { count as f32 / total as f32 };
            let shade = |full: f32| (245.0 + (full - 245.0) * share) as u8;
            let colour = image::Rgb([shade(8.0), shade(48.0), shade(107.0)]);
            for y in 1..CELL {
                for x in 1..CELL {
                    picture.put_pixel((margin + a * CELL + x) as u32, (margin + t * CELL + y) as u32, colour);
                }
            }
            if count > 0 {
                let text = count.to_string();
                let ink = if share > 0.5 { image::Rgb([255; 3]) } else { image::Rgb([0; 3]) };
                let x = margin + a * CELL + (CELL - text.len() * 8) / 2;
                write(&mut picture, &text, x, margin + t * CELL + CELL / 2 - 4, false, ink);
            }
        }
    }
    let black = image::Rgb([0; 3]);
    for (i, label) in report.labels.iter().enumerate() {
        write(&mut picture, label, 6, margin + i * CELL + CELL / 2 - 4, false, black);
        write(&mut picture, label, margin + i * CELL + CELL / 2 - 4, margin - 6, true, black);
    }
    let cannot = || Error::unavailable(format!("cannot write {}", path.display()));
    // In memory first: what a full disk leaves in a buffer would be lost without a word.
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::ImageFormat::from_path(path)
        .and_then(|format| picture.write_to(&mut bytes, format))
        .map_err(|e| cannot().caused_by(e))?;
    fs::write(path, bytes.into_inner()).map_err(|e| cannot().caused_by(e))
}

/// Writes text in an 8x8 font, to the right from (x, y), or upwards.
fn write(picture: &mut image::RgbImage, text: &str, x: usize, y: usize, upwards: bool, ink: image::Rgb<u8>) {
    use font8x8::UnicodeFonts;
    for (i, glyph) in text.chars().map(|c| font8x8::BASIC_FONTS.get(c).unwrap_or([0; 8])).enumerate() {
        for (row, bits) in glyph.iter().enumerate() {
            for column in (0..8).filter(|c| bits >> c & 1 == 1) {
                let (px, py) = match upwards {
                    false => (x + i * 8 + column, y + row),
                    true => (x + row, y.saturating_sub(i * 8 + column)),
                };
                if px < picture.width() as usize && py < picture.height() as usize {
                    picture.put_pixel(px as u32, py as u32, ink);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_label_is_scored_by_its_best_window_and_others_by_their_mean() {
        let windows = [vec![0.1, 0.9], vec![0.9, 0.1], vec![0.2, 0.8]];
        let scores = clip_scores(&windows, &[By::Peak, By::Mean]);
        assert!((scores[0] - 0.9).abs() < 1e-6 && (scores[1] - 0.6).abs() < 1e-6);
    }

    #[test]
    fn the_confusion_matrix_is_drawn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.png");
        let report = Report {
            model: "m".into(),
            mode: "dense",
            backend: "tract",
            clips: 3,
            top1: BTreeMap::new(),
            top5: BTreeMap::new(),
            labels: vec!["walking".into(), "falling".into()],
            confusion: vec![vec![2, 0], vec![1, 0]],
            events: None,
            answers: Vec::new(),
            unread: Vec::new(),
            unknown: Vec::new(),
        };
        confusion_png(&report, &path).unwrap();
        let picture = image::open(&path).unwrap().to_rgb8();
        let margin = 7 * 8 + 12;
        let corner =
            |t: usize, a: usize| picture.get_pixel((margin + a * CELL + 2) as u32, (margin + t * CELL + 2) as u32).0;
        assert_eq!(corner(0, 0), [8, 48, 107]);
        assert_eq!(corner(0, 1), [245, 245, 245]);
        assert_eq!(ranked(&[0.1, 0.7, 0.2]), [1, 2, 0]);
    }
}
