//! `actiond run`: the daemon. The only wiring of threads: one a source, and the recognizer on this one.

use std::{path::PathBuf, sync::Arc, thread};

use super::{check, events::Printer, timeline};
use crate::{
    camera::{Camera, Feed},
    config::{self, Mode, Plan},
    decide::{Decider, Phase},
    error::{Error, Result},
    event::Event,
    inference,
    journal::Journal,
    model::Model,
    recognize::{Identity, Recognizer, Sink},
    ring::Bell,
    scale::{self, ViewSpec},
    time::Shutdown,
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
    let plan = plan(args)?;
    let truths = args.timeline.as_deref().map(timeline::read).transpose()?;
    let model = Model::load(&plan.model)?;
    let hop = model.hop(plan.hop)?;
    let shutdown = Shutdown::on_signals()?;
    let bell = Arc::new(Bell::default());
    let (specs, _) = scale::views(&model.manifest);

    let deciders = plan.cameras.iter().map(|_| Decider::new(&model, &plan.events, hop));
    let deciders = deciders.collect::<Result<Vec<_>>>()?;
    let mut output = Output { journal: Journal::open(&plan.journal)?, printer: Printer::new(), ended: Vec::new() };
    let mode = plan.mode.unwrap_or_else(|| {
        let (mode, why) = inference::natural_mode(&model, hop);
        if let Some(why) = why {
            log::info!("dense windows, computed whole: {why}");
        }
        mode
    });
    let identity = Identity { device: plan.device.clone(), mode, hop };
    let mut recognizer = Recognizer::new(&model, &plan.backends, identity)?;
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

    let feeds = Feed::shared(&handles, &plan.cameras);
    let result = watch(&feeds, &specs, &mut recognizer, &bell, &shutdown, &mut output, || {
        let failed_all = handles.iter().all(|c| c.status(|s| s.failed.is_some()));
        if !args.until_end && !failed_all && !shutdown.is_set() {
            log::info!("every recording has ended; waiting for a signal (--until-end stops here)");
            shutdown.wait();
        }
    });
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
        super::say(&format!("\n{}", timeline::compare(&truths, &output.ended)))?;
    }
    // The others went on; now the first that could not work decides the exit code.
    match handles.iter().find_map(|c| c.status(|s| s.failed.take())) {
        Some(e) => Err(Error::new(e.kind(), "not every camera could be watched (see above)")),
        None => Ok(()),
    }
}

/// Runs the sources' threads, and the recognizer on this one, until every camera has ended or shutdown; `ended` runs
/// while the threads are still there.
#[allow(clippy::too_many_arguments)]
pub(super) fn watch(
    feeds: &[Feed],
    specs: &[ViewSpec],
    recognizer: &mut Recognizer,
    bell: &Bell,
    shutdown: &Shutdown,
    sink: &mut dyn Sink,
    ended: impl FnOnce(),
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
        if result.is_ok() {
            ended();
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
    if args.realtime {
        plan.cameras.iter_mut().for_each(|c| c.options.realtime = true);
    }
    if let Some(skip_still) = args.skip_still {
        plan.cameras.iter_mut().for_each(|c| c.skip_still = skip_still);
    }
    Ok(plan)
}

/// The journal first, then the terminal.
struct Output {
    journal: Journal,
    printer: Printer,
    ended: Vec<Event>,
}

impl Sink for Output {
    fn event(&mut self, event: &mut Event) -> Result<()> {
        self.journal.append(event);
        self.printer.print(event);
        if event.phase == Phase::End {
            self.ended.push(event.clone());
        }
        Ok(())
    }
}
