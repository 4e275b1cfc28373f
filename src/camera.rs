//! A source's thread: opens it, feeds the intake of each camera that looks at it, fills their rings, and opens it again
//! when it fails.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use jiff::Timestamp;

use crate::{
    cadence::FPS,
    config,
    error::{Error, Kind, Result},
    fault::{Fault, Watch},
    frame::Picture,
    intake::{Counts, Intake, Output},
    mask::Masker,
    metrics::{Timing, timing},
    recognize::Tally,
    record::frames::Frames,
    ring::{Bell, Rhythm, Ring},
    scale::ViewSpec,
    source::{self, Pace, Source},
    time::Shutdown,
};

/// From one attempt to open a source to the next: doubled each time, up to the second one. A source that answers again is
/// back within that.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));

/// How often a paused camera looks whether it goes on.
const PAUSED: Duration = Duration::from_millis(200);

/// Wait after an answer that no waiting should change: a camera that has refused a password some times closes its door
/// for half an hour.
const REFUSED: Duration = Duration::from_secs(30);

/// What the recognizer and the log may know of a camera while its thread works.
#[derive(Debug)]
pub struct Camera {
    pub id: String,
    pub ring: Ring,
    /// Wall time of frame 0, for a recording: when it was made. A camera's frames are dated when they arrive.
    pub epoch: Option<Timestamp>,
    pub stages: Stages,
    status: Mutex<Status>,
    paused: AtomicBool,
}

/// What its pictures took.
#[derive(Debug)]
pub struct Stages {
    /// Read and decoded; of recordings only, as a camera's picture is waited for.
    pub read: Timing,
    pub scale: Timing,
    pub flow: Timing,
}

#[derive(Debug, Default)]
pub struct Status {
    pub counts: Counts,
    /// What became of its frames.
    pub tally: Tally,
    /// When its last picture came.
    pub seen: Option<Instant>,
    /// Times that the source was opened again.
    pub reopened: u64,
    /// What is wrong with its picture although pictures come.
    pub fault: Option<Fault>,
    /// Why the camera gave up, if it did.
    pub failed: Option<Error>,
}

impl Camera {
    pub fn new(camera: &config::Camera, rhythm: Rhythm, bell: Arc<Bell>) -> Arc<Self> {
        let recording = camera.source.path().filter(|_| !camera.options.realtime);
        Arc::new(Camera {
            id: camera.id.clone(),
            ring: Ring::new(Pace::Live, rhythm, bell),
            epoch: recording.map(recorded_at),
            stages: Stages { read: timing(), scale: timing(), flow: timing() },
            status: Mutex::default(),
            paused: AtomicBool::new(false),
        })
    }

    /// While a camera is paused its source is closed and nothing of it is decoded.
    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }

    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    pub fn status<T>(&self, look: impl FnOnce(&mut Status) -> T) -> T {
        look(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn fail(&self, e: Error) {
        log::error!("camera {}: {e}", self.id);
        self.status(|s| s.failed = Some(e));
        self.ring.close();
    }
}

/// A source and the cameras that look at it, each at its own region: it is opened and decoded once for all of them.
pub struct Feed<'a> {
    members: Vec<(Arc<Camera>, &'a config::Camera)>,
}

/// A camera of a feed while it works.
struct Member<'a> {
    camera: &'a Camera,
    intake: Intake,
}

/// How a connection came to its end.
enum Played {
    Over,
    /// All its cameras are paused.
    Paused,
}

/// What a feed knows from one connection to the next.
#[derive(Default)]
struct Connection {
    last_picture: Option<Instant>,
    pause: Duration,
    told: String,
    pace: Option<Pace>,
}

impl<'a> Feed<'a> {
    /// Cameras that name the same source, to be played and masked in the same way, share one feed.
    pub fn shared(cameras: &[Arc<Camera>], configs: &'a [config::Camera]) -> Vec<Feed<'a>> {
        let mut feeds: Vec<Feed> = Vec::new();
        for (camera, config) in cameras.iter().zip(configs) {
            let same = |f: &&mut Feed| {
                let (_, first) = f.members[0];
                (&first.source, &first.options, &first.mask) == (&config.source, &config.options, &config.mask)
            };
            match feeds.iter_mut().find(same) {
                Some(feed) => feed.members.push((camera.clone(), config)),
                None => feeds.push(Feed { members: vec![(camera.clone(), config)] }),
            }
        }
        feeds
    }

    /// A feed for each camera.
    pub fn apart(cameras: &[Arc<Camera>], configs: &'a [config::Camera]) -> Vec<Feed<'a>> {
        let feed = |(camera, config): (&Arc<Camera>, _)| Feed { members: vec![(camera.clone(), config)] };
        cameras.iter().zip(configs).map(feed).collect()
    }

    pub fn cameras(&self) -> impl Iterator<Item = &Camera> {
        self.members.iter().map(|(camera, _)| camera.as_ref())
    }

    /// The cameras' ids.
    pub fn name(&self) -> String {
        self.cameras().map(|c| c.id.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// No more frames will come: what waits for room in a ring goes on.
    pub fn close(&self) {
        self.cameras().for_each(|c| c.ring.close());
    }

    /// Gives up.
    pub fn fail(&self, e: &Error) {
        log::error!("camera {}: {e}", self.name());
        for camera in self.cameras() {
            camera.status(|s| s.failed = Some(Error::new(e.kind(), e.to_string())));
        }
        self.close();
    }

    /// Works until the recording has ended, the source can't ever work, no camera of it goes on, or shutdown.
    pub fn work(&self, specs: &[ViewSpec], shutdown: &Shutdown) {
        let mut members = Vec::new();
        for (camera, config) in &self.members {
            let frames = config.frames.clone().map(|f| Frames::new(f, &camera.id, specs, config.region));
            match Intake::new(specs, config.region).map(|i| i.telling_still(config.skip_still).recording(frames)) {
                Ok(intake) => members.push(Member { camera, intake }),
                Err(e) => camera.fail(e),
            }
        }
        match self.try_work(&mut members, shutdown) {
            Ok(()) => self.close(),
            Err(e) => self.fail(&e),
        }
    }

    fn try_work(&self, members: &mut Vec<Member>, shutdown: &Shutdown) -> Result<()> {
        let (_, config) = self.members[0];
        let mut connection = Connection { pause: BACKOFF.0, ..Connection::default() };
        while !shutdown.is_set() && !members.is_empty() {
            if members.iter().all(|m| m.camera.is_paused()) {
                shutdown.wait_timeout(PAUSED);
                continue;
            }
            let began = Instant::now();
            let played = source::open(&config.source, &config.options, shutdown).and_then(|source| {
                let pace = source.pace();
                connection.pace = Some(pace);
                members.iter().for_each(|m| m.camera.ring.set_pace(pace));
                self.play(source, members, &mut connection, shutdown)
            });
            let e = match played {
                Ok(Played::Paused) => {
                    log::info!("camera {}: paused, its source is closed", self.name());
                    continue;
                }
                Ok(Played::Over) => return Ok(()),
                Err(e) => e,
            };
            // A file ends for good even where it plays as if it were a camera.
            let recording = connection.pace == Some(Pace::Recorded) || config.source.path().is_some();
            // What has worked will work again, whatever a camera answers while it starts.
            let worked = connection.last_picture.is_some();
            let pause = match e.kind() {
                Kind::EndOfStream if recording || shutdown.is_set() => return Ok(()),
                _ if recording => return Err(e),
                Kind::Config | Kind::Model | Kind::Internal if !worked => return Err(e),
                Kind::Config | Kind::Model => REFUSED,
                // From one attempt to the next: who has waited for an answer that did not come has waited already.
                Kind::EndOfStream | Kind::Unavailable | Kind::Internal => {
                    connection.pause.saturating_sub(began.elapsed()).max(BACKOFF.0)
                }
            };
            // A camera that is away for a night fills no log: the same words once.
            let words = e.to_string();
            if words != connection.told {
                log::warn!("camera {}: {words}; trying again until it answers", self.name());
                connection.told = words;
            }
            if shutdown.wait_timeout(pause) {
                break;
            }
            connection.pause = (connection.pause * 2).min(BACKOFF.1);
        }
        Ok(())
    }

    /// One connection, from opening to its end.
    fn play(
        &self,
        mut source: Box<dyn Source>,
        members: &mut Vec<Member>,
        connection: &mut Connection,
        shutdown: &Shutdown,
    ) -> Result<Played> {
        let mut first = true;
        // A recording shows what was recorded; nobody can wipe its lens.
        let mut watch = (source.pace() == Pace::Live).then(Watch::default);
        let mut masker = Masker::new(&self.members[0].1.mask);
        // A recording would begin anew: it stands still instead.
        let closes = self.members[0].1.source.path().is_none();
        while !shutdown.is_set() && !members.is_empty() {
            if members.iter().all(|m| m.camera.is_paused()) {
                if closes {
                    return Ok(Played::Paused);
                }
                shutdown.wait_timeout(PAUSED);
                continue;
            }
            let began = Instant::now();
            let picture = masker.apply(&source.next()?);
            if connection.pace == Some(Pace::Recorded) {
                self.cameras().for_each(|c| c.stages.read.observe(began.elapsed().as_secs_f64()));
            }
            if first {
                first = false;
                if let Some(last) = connection.last_picture {
                    let lost = (last.elapsed().as_secs_f64() * FPS as f64) as u64;
                    members.iter_mut().for_each(|m| m.intake.reopened(lost));
                }
                if !connection.told.is_empty() {
                    if connection.last_picture.is_some() {
                        members.iter().for_each(|m| m.camera.status(|s| s.reopened += 1));
                    }
                    log::info!("camera {}: back", self.name());
                    connection.told.clear();
                }
                connection.pause = BACKOFF.0;
                let source = &self.members[0].1.source;
                log::info!("camera {}: {}x{} from {source}", self.name(), picture.width, picture.height);
            }
            match watch.as_mut().and_then(|w| w.look(&picture)) {
                Some(Some(fault)) => log::warn!("camera {}: {fault}", self.name()),
                Some(None) => log::info!("camera {}: the picture is good again", self.name()),
                None => {}
            }
            let fault = watch.as_ref().and_then(Watch::fault);
            // A recording waits for the slowest of its cameras: each ring makes this thread wait in its turn.
            members.retain_mut(|m| m.camera.is_paused() || m.take(&picture, fault));
            connection.last_picture = Some(Instant::now());
        }
        Ok(Played::Over)
    }
}

impl Member<'_> {
    /// Whether the camera goes on.
    fn take(&mut self, picture: &Picture, fault: Option<Fault>) -> bool {
        let camera = self.camera;
        let mut open = true;
        let frames = self.intake.counts().frames;
        let taken = self.intake.take(picture, &mut |output| match output {
            Output::Frame(frame) => open &= camera.ring.push(frame),
            Output::Cut { lost } => camera.ring.cut(lost),
        });
        let counts = self.intake.counts();
        if counts.frames > frames {
            let spent = self.intake.spent();
            camera.stages.scale.observe(spent.scale.as_secs_f64());
            if !spent.flow.is_zero() {
                camera.stages.flow.observe(spent.flow.as_secs_f64());
            }
        }
        camera.status(|s| {
            s.counts = counts;
            s.seen = Some(Instant::now());
            s.fault = fault;
        });
        // The other cameras may have no trouble with this picture.
        taken.map_err(|e| camera.fail(e)).is_ok() && open
    }
}

/// When a recording began, as well as its file tells: the time it was last written. The same file gives the same times,
/// and with them the same event ids, at every run.
fn recorded_at(path: &Path) -> Timestamp {
    let written = std::fs::metadata(path).and_then(|m| m.modified()).ok();
    Timestamp::try_from(written.unwrap_or_else(SystemTime::now)).unwrap_or(Timestamp::UNIX_EPOCH)
}
