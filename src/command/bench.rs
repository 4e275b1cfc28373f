//! `actiond bench`: what this machine does with a model, measured on the parts that `run` uses.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    thread,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{run, say, say_json};
use crate::{
    camera::{Camera, Feed},
    clip, compile,
    config::{self, Mode},
    decide::{self, Decider, HopScores},
    error::{Error, Kind, Result},
    event::Event,
    inference::{self, Hop, Lane, LoadOptions, Network, Progress},
    input,
    intake::{Intake, Output},
    model::{Decision, Model, Precision},
    recognize::{Identity, Recognizer, Sink},
    ring::{Bell, Ring, Step},
    scale::{self, Region},
    source::{self, Pace, Uri},
    time::Shutdown,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
First the stages on a clip, as fast as it goes: decoding with nothing else to do, then scaling, flow, each stream's
inference and the decision on one camera's video. Then live: the clip played at its own pace as 1, 2, ... cameras at once, each with its own decoder, until the
machine no longer keeps up. A camera count is sustained when no picture is dropped and no hop left out.

Example: actiond bench models/default --hop 8")]
pub struct Args {
    /// The model's folder.
    model: PathBuf,
    /// The clip to play: at least --seconds and a window long, for the live part.
    #[arg(long, value_name = "FILE", default_value = "demo/demo.mp4")]
    source: PathBuf,
    #[arg(long, value_enum, default_value = "dense")]
    mode: Mode,
    /// Frames from one hop to the next; the model's own where it is left out.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    hop: Option<u16>,
    /// Backend to use; may be given several times, tried in order.
    #[arg(long)]
    backend: Vec<String>,
    /// How long each of the two parts' runs measures, s.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(3..=3600))]
    seconds: u64,
    /// Leave out the second part.
    #[arg(long)]
    no_live: bool,
    /// Print one JSON document and nothing else.
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    model: String,
    backend: &'static str,
    precision: String,
    mode: &'static str,
    hop: usize,
    stages: Stages,
    /// Input tensors, streams and decision of one hop.
    hop_ms: Percentiles,
    hops_per_s: f64,
    /// Multiply-adds of a hop and of a dense window, all streams, in thousands of millions, read from the graphs; null
    /// where the compiler can't read one.
    gmac_per_hop: Option<f64>,
    gmac_dense: Option<f64>,
    /// Multiply-adds a second while the streams run.
    gmac_per_s: Option<f64>,
    /// What one camera's states take.
    state_mb: f64,
    /// Null where the live part was left out.
    cameras_sustained: Option<usize>,
    /// Of one camera with its network; the live part comes after.
    peak_rss_mb: f64,
}

#[derive(Serialize)]
struct Stages {
    /// A picture each. Decoders work ahead in threads of their own, so this is measured apart: from one picture to the
    /// next when nothing else is done.
    decode: Percentiles,
    scale: Percentiles,
    flow: Percentiles,
    /// A hop each, by stream.
    inference: BTreeMap<String, Percentiles>,
    decide: Percentiles,
}

#[derive(Serialize)]
struct Percentiles {
    p50_ms: f64,
    p99_ms: f64,
}

impl Percentiles {
    /// Nearest rank.
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        let at = |p: f64| {
            let rank = ((times.len() as f64 * p).ceil() as usize).saturating_sub(1);
            times.get(rank).map_or(0.0, |t| t.as_secs_f64() * 1e3)
        };
        Percentiles { p50_ms: at(0.5), p99_ms: at(0.99) }
    }
}

/// Times of each stage, one a picture or one a hop.
#[derive(Default)]
struct Times {
    decode: Vec<Duration>,
    scale: Vec<Duration>,
    flow: Vec<Duration>,
    inference: Vec<Vec<Duration>>,
    decide: Vec<Duration>,
    hop: Vec<Duration>,
}

pub fn run(args: &Args) -> Result<()> {
    if !args.source.is_file() {
        return Err(Error::config(format!("{}: there is no such clip; give one with --source", args.source.display())));
    }
    let model = Model::load(&args.model)?;
    let hop = model.hop(args.hop.map(usize::from))?;
    if !args.no_live {
        lasts(&args.source, live_length(args, &model))?;
    }
    let options = LoadOptions { mode: args.mode, hop, ..LoadOptions::default() };
    let (mut network, backend) = inference::load_with(&model, &args.backend, &options)?;
    let mut precision: Vec<&str> = network.precision().iter().map(|p| p.name()).collect();
    precision.dedup();
    let precision = precision.join("+");
    quiet();
    let mut times = stages(&model, network.as_mut(), &args.source, hop, Duration::from_secs(args.seconds))?;
    let hops_per_s = times.hop.len() as f64 / times.hop.iter().sum::<Duration>().as_secs_f64();
    let peak_rss_mb = peak_rss_mb();
    let reach = network.reach();
    let macs_dense = gmac_dense(&model, network.precision(), hop);
    let gmac = |macs: u64| (macs > 0).then_some(macs as f64 / 1e9);
    let gmac_per_hop = if args.mode == Mode::Dense { macs_dense } else { gmac(reach.macs) };
    drop(network);
    times.decode = decode(&args.source)?;

    let of_streams = times.inference.iter().flatten().sum::<Duration>().as_secs_f64();
    let inference_s = of_streams / times.hop.len().max(1) as f64;
    let per_camera = load(&times, hop);
    let cameras_sustained = match args.no_live {
        true => None,
        false => Some(sustained(args, &model, &[backend.to_owned()], per_camera)?),
    };
    let names = model.stream_names();
    let report = Report {
        model: model.manifest.name.clone(),
        backend,
        precision,
        mode: args.mode.name(),
        hop,
        stages: Stages {
            decode: Percentiles::of(times.decode),
            scale: Percentiles::of(times.scale),
            flow: Percentiles::of(times.flow),
            inference: names
                .iter()
                .map(|n| n.to_string())
                .zip(times.inference.into_iter().map(Percentiles::of))
                .collect(),
            decide: Percentiles::of(times.decide),
        },
        hop_ms: Percentiles::of(times.hop),
        hops_per_s,
        gmac_per_hop,
        gmac_dense: macs_dense,
        gmac_per_s: gmac_per_hop.map(|g| g / inference_s),
        state_mb: reach.state_bytes as f64 / 1e6,
        cameras_sustained,
        peak_rss_mb,
    };
    if args.json {
        return say_json(&report);
    }
    say(&table(&report, &names))
}

/// Multiply-adds of a dense window of all streams, in thousands of millions.
fn gmac_dense(model: &Model, precisions: &[Precision], hop: usize) -> Option<f64> {
    let streams = model.manifest.streams.iter().zip(precisions);
    let macs = streams.map(|(stream, &precision)| {
        let bytes = model.read(stream.file(&[precision])?).ok()?;
        let request = inference::request(&bytes, stream, Mode::Window, hop, None).ok()?;
        compile::macs(&request).ok()
    });
    macs.sum::<Option<u64>>().map(|macs| macs as f64 / 1e9)
}

/// Plays the clip over and over through the parts that a camera and the recognizer are made of, on one thread.
fn stages(model: &Model, network: &mut dyn Network, clip: &Path, hop: usize, length: Duration) -> Result<Times> {
    let (specs, view_of_stream) = scale::views(&model.manifest);
    let streams = &model.manifest.streams;
    let names = model.stream_names();
    let mut intake = Intake::new(&specs, Region::WHOLE)?;
    let ring = Ring::new(Pace::Live, inference::rhythm(model, network, hop), Arc::new(Bell::default()));
    let mut decider = Decider::new(model, &Decision::default(), hop)?;
    let mut scores = decide::Scores::default();
    let mut input = Hop::of(network, streams.len());
    let mut progress = Progress::default();
    let mut times = Times { inference: vec![Vec::new(); streams.len()], ..Times::default() };
    let bar = ProgressBar::new(length.as_millis() as u64);
    if let Ok(style) = ProgressStyle::with_template("stages   {bar:30} {percent} %  {msg}") {
        bar.set_style(style);
    }
    let mut began = Instant::now();
    let mut warm = false;
    while !warm || began.elapsed() < length {
        let mut source = source::open(&Uri::file(clip), &source::Options::default(), &Shutdown::new())?;
        let pictures = intake.counts().pictures;
        intake.reopened(0);
        loop {
            let picture = match source.next() {
                Ok(picture) => picture,
                Err(e) if e.kind() == Kind::EndOfStream => break,
                Err(e) => return Err(e),
            };
            intake.take(&picture, &mut |output| match output {
                Output::Frame(frame) => {
                    ring.push(frame);
                }
                Output::Cut { lost } => ring.cut(lost),
            })?;
            times.scale.push(intake.spent().scale);
            times.flow.push(intake.spent().flow);
            loop {
                let before = Instant::now();
                let step = ring.take(|window| {
                    input::fill_hop(streams, &view_of_stream, window.len(), |i| window.frame(i), &mut input);
                });
                let span = match step {
                    None | Some(Step::Ended) => break,
                    Some(Step::Gap { lost }) => {
                        decider.gap(lost);
                        progress.cut();
                        network.cut(Lane(0));
                        continue;
                    }
                    Some(Step::Hop(span)) => span,
                };
                input.follows = progress.hop(span.last, hop);
                let logits = &network.step(Lane(0), &input)?.logits;
                let inferred = Instant::now();
                let logits: Vec<&[f32]> = logits.iter().map(Vec::as_slice).collect();
                decide::fuse(&model.manifest.fusion, &names, &model.labels, &logits, &mut scores)?;
                decider.step(&HopScores { first_frame: span.first, last_frame: span.last, scores: &scores });
                times.decide.push(inferred.elapsed());
                times.hop.push(before.elapsed());
                for (all, &one) in times.inference.iter_mut().zip(network.spent()) {
                    all.push(one);
                }
                if !warm && times.hop.len() == 4 {
                    // Caches, thread pools and the decoder are warm now: only from here on it counts.
                    times = Times { inference: vec![Vec::new(); streams.len()], ..Times::default() };
                    (warm, began) = (true, Instant::now());
                }
            }
            if warm {
                bar.set_position(began.elapsed().as_millis() as u64);
                if began.elapsed() > length && !times.hop.is_empty() {
                    break;
                }
            }
        }
        if intake.counts().pictures == pictures {
            return Err(Error::config(format!("{}: no pictures in it", clip.display())));
        }
        if !warm && times.hop.is_empty() {
            return Err(Error::config(format!(
                "{}: too short to measure with; it takes a clip of {} frames at 25 fps and more",
                clip.display(),
                clip::window(model) + 4 * hop
            )));
        }
    }
    bar.finish_and_clear();
    Ok(times)
}

/// How long the live part plays the clip: the first window has to fill before there is a hop.
fn live_length(args: &Args, model: &Model) -> Duration {
    Duration::from_secs(args.seconds) + Duration::from_millis(clip::window(model) as u64 * 40)
}

/// Looks whether a clip is as long as that: a camera that ends early is no load for the rest of the time, and a machine would
/// be said to sustain more than it does.
fn lasts(clip: &Path, length: Duration) -> Result<()> {
    let mut source = source::open(&Uri::file(clip), &source::Options::default(), &Shutdown::new())?;
    let mut last = Duration::ZERO;
    while last < length {
        match source.next() {
            Ok(picture) => last = picture.time,
            Err(e) if e.kind() == Kind::EndOfStream => {
                return Err(Error::config(format!(
                    "{}: lasts {:.1} s, and the live part plays {:.1} s of it (--seconds and a window): give a longer clip \
                     with --source, fewer --seconds, or --no-live",
                    clip.display(),
                    last.as_secs_f64(),
                    length.as_secs_f64()
                )));
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// From one picture of the clip to the next, with nothing else to do: at most a minute of 25 fps.
fn decode(clip: &Path) -> Result<Vec<Duration>> {
    let mut source = source::open(&Uri::file(clip), &source::Options::default(), &Shutdown::new())?;
    let mut times = Vec::new();
    while times.len() < 1500 {
        let before = Instant::now();
        match source.next() {
            Ok(_) => times.push(before.elapsed()),
            Err(e) if e.kind() == Kind::EndOfStream => break,
            Err(e) => return Err(e),
        }
    }
    Ok(times)
}

/// What cameras tell of themselves is no news here; who asked for more than that gets it.
fn quiet() {
    if log::max_level() <= log::LevelFilter::Info {
        log::set_max_level(log::LevelFilter::Error);
    }
}

/// Seconds of work that a second of one camera's video makes, in the mean.
fn load(times: &Times, hop: usize) -> f64 {
    let mean = |times: &[Duration]| times.iter().sum::<Duration>().as_secs_f64() / times.len().max(1) as f64;
    let picture = mean(&times.decode) + mean(&times.scale) + mean(&times.flow);
    25.0 * picture + 25.0 / hop as f64 * mean(&times.hop)
}

/// How many cameras at once the machine keeps up with: tried live, the first guess from the stages.
fn sustained(args: &Args, model: &Model, backend: &[String], per_camera: f64) -> Result<usize> {
    const MOST: usize = 64;
    let cores = thread::available_parallelism().map_or(1, usize::from) as f64;
    let mut guess = ((cores / per_camera) as usize).clamp(1, MOST);
    let (mut good, mut bad) = (0, MOST + 1);
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("live     {spinner} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    while bad - good > 1 {
        bar.set_message(format!("{guess} camera{} for {} s", if guess == 1 { "" } else { "s" }, args.seconds));
        if keeps_up(args, model, backend, guess)? {
            good = guess;
        } else {
            bad = guess;
        }
        guess = if bad > MOST { (good + 1).max(good * 5 / 4) } else { good.midpoint(bad).max(good + 1) }.min(MOST);
    }
    bar.finish_and_clear();
    Ok(good)
}

/// Plays the clip as `cameras` cameras at its own pace; whether nothing was dropped and no hop left out.
fn keeps_up(args: &Args, model: &Model, backend: &[String], cameras: usize) -> Result<bool> {
    struct Nowhere;
    impl Sink for Nowhere {
        fn event(&mut self, _: &mut Event) -> Result<()> {
            Ok(())
        }
    }
    let hop = model.hop(args.hop.map(usize::from))?;
    let (specs, _) = scale::views(&model.manifest);
    let bell = Arc::new(Bell::default());
    let mut configs = Vec::new();
    for i in 0..cameras {
        configs.push(config::Camera {
            id: format!("{i}"),
            source: Uri::file(&args.source),
            options: source::Options { realtime: true, ..source::Options::default() },
            region: Region::WHOLE,
            mask: Vec::new(),
            frames: None,
            skip_still: false,
        });
    }
    let identity = Identity { device: "bench".into(), mode: args.mode, hop };
    let mut recognizer = Recognizer::new(model, backend, identity)?;
    let mut handles: Vec<Arc<Camera>> = Vec::new();
    for config in &configs {
        let camera = Camera::new(config, recognizer.rhythm(), bell.clone());
        recognizer.add(camera.clone(), Decider::new(model, &Decision::default(), hop)?);
        handles.push(camera);
    }
    let shutdown = Shutdown::new();
    let stop = shutdown.clone();
    let length = live_length(args, model);
    let timer = thread::spawn(move || {
        stop.wait_timeout(length);
        stop.set();
    });
    // Cameras of their own, each with its decoder.
    let feeds = Feed::apart(&handles, &configs);
    run::watch(&feeds, &specs, &mut recognizer, &bell, &shutdown, &mut Nowhere, || false)?;
    // Joined after the shutdown that it waits for.
    let _ = timer.join();
    let standing = *recognizer.standing().lock().unwrap_or_else(PoisonError::into_inner);
    let mut all = standing.times == 0;
    for (camera, tally) in handles.iter().zip(recognizer.tally()) {
        let (counts, failed) = camera.status(|s| (s.counts, s.failed.take()));
        if let Some(e) = failed {
            return Err(e);
        }
        all &=
            counts.dropped_at_source == 0 && tally.lost == 0 && tally.left_out + tally.partial == 0 && tally.hops > 0;
    }
    Ok(all)
}

/// The most memory that the process has held, MB; 0 where the kernel does not tell.
fn peak_rss_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib: f64 = line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0.0);
    kib * 1024.0 / 1e6
}

fn table(report: &Report, streams: &[&str]) -> String {
    let mut lines = vec![format!(
        "{} on {} ({}), mode {}, a hop of {} frames\n",
        report.model, report.backend, report.precision, report.mode, report.hop
    )];
    lines.push(format!("  {:<18} {:>9} {:>9}", "ms", "p50", "p99"));
    let mut row = |name: &str, p: &Percentiles| lines.push(format!("  {name:<18} {:>9.2} {:>9.2}", p.p50_ms, p.p99_ms));
    row("decode, a picture", &report.stages.decode);
    row("scale", &report.stages.scale);
    row("flow", &report.stages.flow);
    for stream in streams {
        row(&format!("{stream}, a hop"), &report.stages.inference[*stream]);
    }
    row("decide", &report.stages.decide);
    row("whole hop", &report.hop_ms);
    lines.push(format!("\n  {:.1} hops/s", report.hops_per_s));
    if let (Some(hop), Some(dense), Some(rate)) = (report.gmac_per_hop, report.gmac_dense, report.gmac_per_s) {
        lines.push(format!(
            "  {hop:.3} GMAC a hop, {:.2} times less than a dense window's {dense:.3}; {rate:.0} GMAC/s",
            dense / hop
        ));
    }
    if report.state_mb > 0.0 {
        lines.push(format!("  {:.2} MB of states a camera", report.state_mb));
    }
    if let Some(cameras) = report.cameras_sustained {
        lines.push(format!("  {cameras} cameras sustained live"));
    }
    lines.push(format!("  {:.0} MB of memory at the most, with one camera", report.peak_rss_mb));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let times = (1..=100).map(Duration::from_millis).collect();
        let p = Percentiles::of(times);
        assert_eq!((p.p50_ms, p.p99_ms), (50.0, 99.0));
        let one = Percentiles::of(vec![Duration::from_millis(3)]);
        assert_eq!((one.p50_ms, one.p99_ms), (3.0, 3.0));
        assert_eq!(Percentiles::of(Vec::new()).p50_ms, 0.0);
    }

    #[test]
    fn a_camera_costs_its_pictures_and_its_hops() {
        let ms = |n| vec![Duration::from_millis(n)];
        let times = Times { decode: ms(1), scale: ms(2), flow: ms(1), hop: ms(40), ..Times::default() };
        // 25 pictures of 4 ms and 25 / 10 hops of 40 ms.
        assert!((load(&times, 10) - 0.2).abs() < 1e-9);
    }
}
