//! One camera's thread: opens its source, feeds its intake, fills its ring, and opens the source again when it fails.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use jiff::Timestamp;

use crate::{
    cadence::FPS,
    config,
    error::{Error, Kind, Result},
    fault::{Fault, Watch},
    intake::{Counts, Intake, Output},
    ring::{Bell, Rhythm, Ring},
    scale::ViewSpec,
    source::{self, Pace, Source},
    time::Shutdown,
};

/// Waits between two attempts to open a source: doubled each time, up to the second one. A source that answers again is
/// back within that.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));

/// What the recognizer and the log may know of a camera while its thread works.
#[derive(Debug)]
pub struct Camera {
    pub id: String,
    pub ring: Ring,
    /// Wall time of frame 0, for a recording: when it was made. A camera's frames are dated when they arrive.
    pub epoch: Option<Timestamp>,
    status: Mutex<Status>,
}

#[derive(Debug, Default)]
pub struct Status {
    pub counts: Counts,
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
            status: Mutex::default(),
        })
    }

    pub fn status<T>(&self, look: impl FnOnce(&mut Status) -> T) -> T {
        look(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Works until the recording has ended, the camera can't ever work, or shutdown.
    pub fn work(&self, camera: &config::Camera, specs: &[ViewSpec], shutdown: &Shutdown) {
        if let Err(e) = self.try_work(camera, specs, shutdown) {
            log::error!("camera {}: {e}", self.id);
            self.status(|s| s.failed = Some(e));
        }
        self.ring.close();
    }

    fn try_work(&self, camera: &config::Camera, specs: &[ViewSpec], shutdown: &Shutdown) -> Result<()> {
        let mut intake = Intake::new(specs, camera.region)?;
        let mut pause = BACKOFF.0;
        let mut last_picture: Option<Instant> = None;
        let mut told = String::new();
        let mut pace = Pace::Live;
        while !shutdown.is_set() {
            let played = source::open(&camera.source, &camera.options).and_then(|source| {
                pace = source.pace();
                self.ring.set_pace(pace);
                self.play(camera, source, &mut intake, &mut last_picture, &mut pause, &mut told, shutdown)
            });
            let e = match played {
                Ok(()) => return Ok(()),
                Err(e) => e,
            };
            // A file ends for good even where it plays as if it were a camera.
            let recording = pace == Pace::Recorded || camera.source.path().is_some();
            match e.kind() {
                Kind::EndOfStream if recording => return Ok(()),
                Kind::Config | Kind::Internal | Kind::Model => return Err(e),
                Kind::Unavailable if recording => return Err(e),
                Kind::EndOfStream | Kind::Unavailable => {}
            }
            // A camera that is away for a night fills no log: the same words once.
            let words = e.to_string();
            if words != told {
                log::warn!("camera {}: {words}; trying again until it answers", self.id);
                told = words;
            }
            self.status(|s| s.reopened += 1);
            if shutdown.wait_timeout(pause) {
                break;
            }
            pause = (pause * 2).min(BACKOFF.1);
        }
        Ok(())
    }

    /// One connection, from opening to its end.
    #[allow(clippy::too_many_arguments)]
    fn play(
        &self,
        camera: &config::Camera,
        mut source: Box<dyn Source>,
        intake: &mut Intake,
        last_picture: &mut Option<Instant>,
        pause: &mut Duration,
        told: &mut String,
        shutdown: &Shutdown,
    ) -> Result<()> {
        let mut first = true;
        let mut open = true;
        // A recording shows what was recorded; nobody can wipe its lens.
        let mut watch = (source.pace() == Pace::Live).then(Watch::default);
        while !shutdown.is_set() && open {
            let picture = source.next()?;
            let mut emit = |output: Output| match output {
                Output::Frame(frame) => open &= self.ring.push(frame),
                Output::Cut { lost } => self.ring.cut(lost),
            };
            if first {
                first = false;
                if let Some(last) = *last_picture {
                    intake.reopened((last.elapsed().as_secs_f64() * FPS as f64) as u64);
                }
                if !told.is_empty() {
                    log::info!("camera {}: back", self.id);
                    told.clear();
                }
                *pause = BACKOFF.0;
                log::info!("camera {}: {}x{} from {}", self.id, picture.width, picture.height, camera.source);
            }
            match watch.as_mut().and_then(|w| w.look(&picture)) {
                Some(Some(fault)) => log::warn!("camera {}: {fault}", self.id),
                Some(None) => log::info!("camera {}: the picture is good again", self.id),
                None => {}
            }
            intake.take(&picture, &mut emit)?;
            *last_picture = Some(Instant::now());
            self.status(|s| {
                s.counts = intake.counts();
                s.fault = watch.as_ref().and_then(Watch::fault);
            });
        }
        Ok(())
    }
}

/// When a recording began, as well as its file tells: the time it was last written. The same file gives the same times,
/// and with them the same event ids, at every run.
fn recorded_at(path: &Path) -> Timestamp {
    let written = std::fs::metadata(path).and_then(|m| m.modified()).ok();
    Timestamp::try_from(written.unwrap_or_else(SystemTime::now)).unwrap_or(Timestamp::UNIX_EPOCH)
}
