//! `actiond run`: the daemon. The only wiring of threads: one a source, one for all network, one that keeps the journal,
//! and the recognizer on this one.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::{check, events::Printer, reload, timeline};
use crate::{
    camera::{Camera, Feed},
    config::{self, Mode, Plan},
    decide::{Decider, Phase},
    error::{Error, Result},
    event::Event,
    inference::{self, Lane},
    journal::Journal,
    metrics::{Metrics, Watched},
    model::{Decision, Model},
    publish::{self, Board, Facts, Publisher, Switches},
    recognize::{Identity, Recognizer, Sink},
    record::{Header, Recorder},
    ring::Bell,
    scale::{self, ViewSpec},
    source,
    supervise::Supervisor,
    tell::{self, About, Given},
    time::Shutdown,
    web,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  actiond run actiond.toml
  actiond run --source rtsp://user@camera.local/stream
  actiond run --source clip.mp4 --until-end")]
pub struct Args {
    /// The config file.
    config: Option<PathBuf>,
    /// A camera or recording beside those of the config: rtsp://..., usb:0, csi:0, a file, gst:PIPELINE, replay:PATH.
    #[arg(long, value_name = "URI")]
    source: Vec<String>,
    /// The model's folder.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Backend to use; may be given several times, tried in order.
    #[arg(long)]
    backend: Vec<String>,
    /// How a hop is computed; `window` where the model allows it, else `dense`.
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// Frames from one hop to the next; the model's own where it is left out.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    hop: Option<u16>,
    /// Folder of the journal.
    #[arg(long, value_name = "DIR")]
    journal: Option<PathBuf>,
    /// Answer /metrics and /health here, e.g. 127.0.0.1:8642; beyond this machine only with a token, in a config's [web].
    #[arg(long, value_name = "ADDR", value_parser = |text: &str| web::address(text).map_err(|e| e.to_string()))]
    web: Option<std::net::SocketAddr>,
    /// Keep all scores in this folder, for `actiond replay` and `actiond tune`: 55 MB a day and camera, with 13 labels.
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
    /// Keep each frame's picture as well, as y4m files that `--source FILE` plays: 9 MB a second, shrunk to 640x360.
    #[arg(long, requires = "record")]
    record_frames: bool,
    /// Play files at their own pace, as if they were cameras: the newest picture wins.
    #[arg(long)]
    realtime: bool,
    /// Leave out flow and streams while nothing moves, for every camera (`--skip-still=false` computes every hop).
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    skip_still: Option<bool>,
    /// Stop when every recording has ended.
    #[arg(long)]
    until_end: bool,
    /// Compare the events at the end with what truly happened: a table of label, start_s, end_s.
    #[arg(long, value_name = "FILE", requires = "until_end")]
    timeline: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    let mut plan = plan(args)?;
    let truths = args.timeline.as_deref().map(timeline::read).transpose()?;
    let model = Model::load(&plan.model)?;
    let hop = model.hop(plan.hop)?;
    let shutdown = Shutdown::on_signals()?;
    let bell = Arc::new(Bell::default());
    let (specs, _) = scale::views(&model.manifest);

    let deciders = plan.cameras.iter().map(|_| Decider::new(&model, &plan.events, hop));
    let deciders = deciders.collect::<Result<Vec<_>>>()?;
    let journal = Arc::new(Mutex::new(Journal::open(&plan.journal)?));
    let metrics = Arc::new(Metrics::new());
    let server = plan.web.as_ref().map(|web| web::Server::start(web, metrics.clone())).transpose()?;
    if let Some(server) = &server {
        log::info!("http://{}/metrics and /health", server.address());
    }
    let mode = plan.mode.unwrap_or_else(|| {
        let (mode, why) = inference::natural_mode(&model, hop);
        if let Some(why) = why {
            log::info!("dense windows, computed whole: {why}");
        }
        mode
    });
    let identity = Identity { device: plan.device.clone(), mode, hop };
    let backends = plan.backends.clone();
    let mut recognizer = Recognizer::new(&model, &backends, identity)?;
    if let Some(path) = &args.config {
        recognizer.retuned_by(reload::on_hangup(path, &model, hop)?);
    }
    let header = Header::new(&plan.device, &model, mode, hop, recognizer.lag(), &plan.events)?;
    if let Some(folder) = args.record.as_ref().filter(|_| args.record_frames) {
        let folder = folder.join(format!("frames-{}", header.started.strftime("%Y%m%dT%H%M%S%.6fZ")));
        plan.cameras.iter_mut().for_each(|c| c.frames = Some(folder.clone()));
    }
    let mut handles: Vec<Arc<Camera>> = Vec::new();
    for (camera, decider) in plan.cameras.iter().zip(deciders) {
        let camera = Camera::new(camera, recognizer.rhythm(), bell.clone());
        recognizer.add(camera.clone(), decider);
        handles.push(camera);
    }
    log::info!(
        "{} on {} ({}), mode {}, a hop of {} frames; journal in {}",
        model.manifest.name,
        recognizer.backend(),
        recognizer.precision(),
        mode.name(),
        hop,
        plan.journal.path.display()
    );

    let record = |folder: &PathBuf| {
        let sources: Vec<String> = plan.cameras.iter().map(|c| c.source.to_string()).collect();
        let recorder = Recorder::create(folder, &header, &handles, &sources)?;
        log::info!("scores are recorded to {}", recorder.path().display());
        Ok(recorder)
    };
    let recorder = args.record.as_ref().map(record).transpose()?;
    metrics.watch(Watched {
        cameras: handles.clone(),
        spent: recognizer.spent(),
        standing: recognizer.standing(),
        about: About::new(&plan.device, &model, mode, hop),
        journal: lock(&journal).shared(),
    });
    let board = Arc::new(Board::new(plan.cameras.iter().map(|c| c.id.as_str()), plan.publish.watched()));
    let publisher = publisher(&plan, &model, &journal, &board, &handles)?;
    if let Some(publisher) = &publisher {
        metrics.watch_sinks(publisher.stats());
    }
    let keeper = Keeper::start(journal.clone(), board.clone(), handles.clone(), metrics.clone(), mode)?;
    let mut output = Output {
        journal,
        board,
        recorder,
        metrics,
        printer: Printer::new(),
        ended: truths.as_ref().map(|_| Vec::new()),
    };
    let feeds = Feed::shared(&handles, &plan.cameras);
    let result = watch(&feeds, &specs, &mut recognizer, &bell, &shutdown, &mut output, || {
        let failed_all = handles.iter().all(|c| c.status(|s| s.failed.is_some()));
        if !args.until_end && !failed_all && !shutdown.is_set() {
            log::info!("every recording has ended; waiting for a signal (--until-end stops here)");
            return true;
        }
        false
    });
    Supervisor::stopping();
    // What the recognizer has closed at its end is still to be delivered.
    keeper.stop();
    if let Some(publisher) = publisher {
        publisher.finish(if args.until_end { LAST_DELIVERY } else { DELIVERY });
    }
    for (camera, tally) in handles.iter().zip(recognizer.tally()) {
        let (c, reopened) = camera.status(|s| (s.counts, s.reopened));
        log::info!(
            "camera {}: {} pictures in, {} dropped at the source, {} dropped to 25 fps; {} frames, {} of them repeats; \
             {} hops, {} more left out as nothing moved, {} frames in none; {} hops left out and {} made without a stream as the machine could not keep up; \
             opened again {} times",
            camera.id,
            c.pictures,
            c.dropped_at_source,
            c.dropped_to_rate,
            c.frames,
            c.repeated,
            tally.hops,
            tally.skipped,
            tally.lost,
            tally.left_out,
            tally.partial,
            reopened
        );
    }
    result?;
    if let Some(truths) = truths {
        super::say(&format!("\n{}", timeline::compare(&truths, &output.ended.unwrap_or_default())))?;
    }
    // The others went on; now the first that could not work decides the exit code.
    match handles.iter().find_map(|c| c.status(|s| s.failed.take())) {
        Some(e) => Err(Error::new(e.kind(), "not every camera could be watched (see above)")),
        None => Ok(()),
    }
}

/// Runs the sources' threads, and the recognizer on this one, until every camera has ended or shutdown; `stays` is asked
/// then whether to wait for a signal, while the threads are still there.
#[allow(clippy::too_many_arguments)]
pub(super) fn watch(
    feeds: &[Feed],
    specs: &[ViewSpec],
    recognizer: &mut Recognizer,
    bell: &Bell,
    shutdown: &Shutdown,
    sink: &mut dyn Sink,
    stays: impl FnOnce() -> bool,
) -> Result<()> {
    thread::scope(|scope| {
        for feed in feeds {
            let spawned = thread::Builder::new()
                .name(format!("camera {}", feed.name()))
                .spawn_scoped(scope, move || feed.work(specs, shutdown));
            if let Err(e) = spawned {
                feed.fail(&Error::internal("cannot start a thread").caused_by(e));
            }
        }
        let result = recognizer.run(bell, shutdown, sink);
        // A recognizer that failed must not leave recordings waiting for room.
        feeds.iter().for_each(Feed::close);
        if result.is_ok() && stays() {
            // There is nothing to do, but it does not hang.
            while !shutdown.wait_timeout(Duration::from_secs(1)) {
                recognizer.idle(sink);
            }
        }
        shutdown.set();
        result
    })
}

fn plan(args: &Args) -> Result<Plan> {
    let mut plan = match &args.config {
        Some(path) => check::load(path)?,
        None => Plan::new(),
    };
    for source in &args.source {
        if source::redact(source) != *source {
            log::warn!(
                "other users of this machine can see the password of --source in the list of processes; put the address \
                 into a config: source = \"rtsp://user:${{VARIABLE}}@host/path\", or source_file = \"PATH\""
            );
        }
        let camera = config::camera_from_argument(source, &plan.cameras)?;
        plan.cameras.push(camera);
    }
    if plan.cameras.is_empty() {
        return Err(Error::config(
            "nothing to watch: give a config file, or --source with a camera's address or a file",
        ));
    }
    if let Some(model) = &args.model {
        plan.model = model.clone();
    }
    if !args.backend.is_empty() {
        plan.backends = args.backend.clone();
    }
    plan.mode = args.mode.or(plan.mode);
    plan.hop = args.hop.map(usize::from).or(plan.hop);
    if let Some(journal) = &args.journal {
        plan.journal.path = journal.clone();
    }
    if let Some(listen) = args.web {
        let token = plan.web.take().and_then(|web| web.token);
        let web = web::Settings { listen, token };
        web.check()?;
        plan.web = Some(web);
    }
    if args.realtime {
        plan.cameras.iter_mut().for_each(|c| c.options.realtime = true);
    }
    if let Some(skip_still) = args.skip_still {
        plan.cameras.iter_mut().for_each(|c| c.skip_still = skip_still);
    }
    Ok(plan)
}

/// How long the sinks may go on delivering when the daemon is stopped, and when its recordings have ended.
const DELIVERY: Duration = Duration::from_secs(3);
const LAST_DELIVERY: Duration = Duration::from_secs(10);

/// How often diagnostics are measured.
const DIAGNOSTICS: Duration = Duration::from_secs(30);

fn lock(journal: &Mutex<Journal>) -> std::sync::MutexGuard<'_, Journal> {
    // A journal that a panic has left is repaired by its next write.
    journal.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the thread for all network, where there is a sink.
fn publisher(
    plan: &Plan,
    model: &Model,
    journal: &Mutex<Journal>,
    board: &Arc<Board>,
    cameras: &[Arc<Camera>],
) -> Result<Option<Publisher>> {
    plan.publish.check(&model.labels)?;
    let remote = plan.publish.mqtt.is_some();
    let switches = Arc::new(Switches::new(cameras, &plan.journal.path, board.clone(), remote));
    if plan.publish.is_empty() {
        return Ok(None);
    }
    let facts = Facts {
        announce: plan.publish.announces(),
        cameras: plan.cameras.iter().map(|c| c.id.clone()).collect(),
        // Those that are ignored as well: a reload may change that.
        labels: model.labels.clone(),
        watched: plan.publish.watched().to_vec(),
        model: format!("{}@{}", model.manifest.name, model.manifest.version),
        has_temperature: temperature().is_some(),
        folder: plan.journal.path.clone(),
    };
    let daemon = publish::Daemon {
        device: plan.device.clone(),
        journal: lock(journal).shared(),
        board: board.clone(),
        switches,
        facts,
    };
    Publisher::start(&plan.publish, daemon).map(Some)
}

/// The thread that keeps the journal, once a second, and measures for the diagnostics.
struct Keeper {
    stop: Shutdown,
    thread: thread::JoinHandle<()>,
}

impl Keeper {
    fn start(
        journal: Arc<Mutex<Journal>>,
        board: Arc<Board>,
        cameras: Vec<Arc<Camera>>,
        metrics: Arc<Metrics>,
        mode: Mode,
    ) -> Result<Keeper> {
        let stop = Shutdown::new();
        let stopped = stop.clone();
        let work = move || {
            let counts = || cameras.iter().map(|c| c.status(|s| (s.counts.pictures, s.tally.hops))).collect::<Vec<_>>();
            let (mut since, mut before) = (Instant::now(), counts());
            // The first are there soon.
            let mut due = since + DIAGNOSTICS / 6;
            while !stopped.wait_timeout(Duration::from_secs(1)) {
                lock(&journal).tick();
                if Instant::now() < due {
                    continue;
                }
                let (now, seconds) = (counts(), since.elapsed().as_secs_f64());
                let rate = |now: u64, before: u64| ((now - before) as f64 / seconds * 10.0).round() / 10.0;
                for ((camera, now), before) in cameras.iter().zip(&now).zip(&before) {
                    let value = serde_json::json!({ "fps": rate(now.0, before.0) });
                    board.set(&format!("{}/diagnostics", camera.id), value.to_string());
                }
                let hops = |counts: &[(u64, u64)]| counts.iter().map(|c| c.1).sum();
                let mut value =
                    serde_json::json!({ "hops_per_s": rate(hops(&now), hops(&before)), "mode": mode.name() });
                if let Some(engine) = metrics.computes() {
                    value["backend"] = engine.backend.into();
                    value["precision"] = engine.precision.into();
                }
                if let Some(celsius) = temperature() {
                    value["temperature_c"] = celsius.into();
                }
                board.set("diagnostics", value.to_string());
                (since, before) = (Instant::now(), now);
                due = since + DIAGNOSTICS;
            }
            lock(&journal).tick();
        };
        let thread = thread::Builder::new()
            .name("journal".into())
            .spawn(work)
            .map_err(|e| Error::internal("cannot start a thread").caused_by(e))?;
        Ok(Keeper { stop, thread })
    }

    fn stop(self) {
        self.stop.set();
        if self.thread.join().is_err() {
            log::error!("the journal's thread panicked");
        }
    }
}

/// The board's hottest place, in degrees; none where there is no sensor.
fn temperature() -> Option<f64> {
    let zones = fs::read_dir("/sys/class/thermal").ok()?.flatten();
    let read = |zone: fs::DirEntry| fs::read_to_string(zone.path().join("temp")).ok()?.trim().parse::<f64>().ok();
    let celsius = zones.filter_map(read).map(|milli| milli / 1000.0).filter(|c| (-40.0..150.0).contains(c));
    celsius.reduce(f64::max)
}

/// The journal first, then the terminal.
struct Output {
    journal: Arc<Mutex<Journal>>,
    board: Arc<Board>,
    recorder: Option<Recorder>,
    metrics: Arc<Metrics>,
    printer: Printer,
    /// What has ended, where it is held against a timeline at the end.
    ended: Option<Vec<Event>>,
}

impl Sink for Output {
    fn event(&mut self, event: &mut Event) -> Result<()> {
        lock(&self.journal).append(event);
        self.board.event(event);
        self.metrics.event(event);
        self.printer.print(event);
        if let Some(ended) = self.ended.as_mut().filter(|_| event.phase == Phase::End) {
            ended.push(event.clone());
        }
        Ok(())
    }

    fn given(&mut self, camera: Lane, engine: &tell::Engine, given: &Given) {
        self.metrics.engine(engine);
        if let Some(recorder) = &mut self.recorder {
            recorder.given(camera, engine, given);
        }
    }

    fn retuned(&mut self, events: &Decision) {
        if let Some(recorder) = &mut self.recorder {
            recorder.retuned(events);
        }
    }

    fn beat(&mut self) {
        self.metrics.beat();
    }
}
