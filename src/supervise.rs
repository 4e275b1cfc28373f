//! What a service manager is told by the protocol of `sd_notify(3)`: that the daemon works, that it still does, and that
//! something takes long. Without one (no `NOTIFY_SOCKET`), nothing is told to nobody.

use std::{
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use sd_notify::NotifyState;

/// How much longer the manager is asked to wait each time, and how often it is asked.
const MORE: Duration = Duration::from_secs(30);
const OFTEN: Duration = Duration::from_secs(5);
/// Nothing takes longer than this, not an engine for the slowest board: what does hangs.
const LONGEST: Duration = Duration::from_secs(3600);

/// Told from the recognizer's own loop, so that a loop that hangs is found out.
#[derive(Debug)]
pub struct Supervisor {
    /// How long the manager waits for a sign of life.
    watchdog: Option<Duration>,
    told: Option<Instant>,
    ready: bool,
}

impl Default for Supervisor {
    fn default() -> Self {
        Supervisor { watchdog: sd_notify::watchdog_enabled(), told: None, ready: false }
    }
}

impl Supervisor {
    /// A sign of life, as often as it is wanted. Until there was a first hop, the manager is asked to wait for it: a
    /// camera that is away is no fault of the daemon, which starting it again would mend.
    pub fn alive(&mut self) {
        let often = self.watchdog.map_or(OFTEN, |watchdog| (watchdog / 3).min(OFTEN));
        if self.told.is_some_and(|told| told.elapsed() < often) {
            return;
        }
        self.told = Some(Instant::now());
        if self.watchdog.is_some() {
            tell(&[NotifyState::Watchdog]);
        }
        if !self.ready {
            tell(&[more(MORE), NotifyState::Status("waiting for the cameras")]);
        }
    }

    /// Frames flow and the model has answered.
    pub fn ready(&mut self, status: impl FnOnce() -> String) {
        if !self.ready {
            self.ready = true;
            tell(&[NotifyState::Ready, NotifyState::Status(&status())]);
        }
    }

    /// What the daemon does now, in a line of `systemctl status`.
    pub fn status(&self, text: &str) {
        tell(&[NotifyState::Status(text)]);
    }

    /// Does something that may take minutes, as building an engine does, while the manager is asked to be patient.
    pub fn patiently<T>(&mut self, status: &str, work: impl FnOnce() -> T) -> T {
        let watchdog = self.watchdog;
        let done = thread::scope(|scope| {
            let (done, waits) = mpsc::channel::<()>();
            let pulse = move || {
                let began = Instant::now();
                while began.elapsed() < LONGEST {
                    tell(&[more(MORE), NotifyState::Status(status)]);
                    if watchdog.is_some() {
                        // The loop that should tell of itself is the one that waits: it has until the next pulse.
                        tell(&[NotifyState::Watchdog]);
                    }
                    let often = watchdog.map_or(OFTEN, |watchdog| (watchdog / 3).min(OFTEN));
                    if waits.recv_timeout(often) != Err(RecvTimeoutError::Timeout) {
                        break;
                    }
                }
            };
            // Without a thread for it there is no patience, and that is all.
            let _ = thread::Builder::new().name("supervisor".into()).spawn_scoped(scope, pulse);
            let result = work();
            drop(done);
            result
        });
        self.told = None;
        done
    }

    /// What is open is closed and written now; that takes a moment.
    pub fn stopping() {
        tell(&[NotifyState::Stopping]);
    }
}

fn more(time: Duration) -> NotifyState<'static> {
    NotifyState::ExtendTimeoutUsec(time.as_micros() as u32)
}

fn tell(states: &[NotifyState]) {
    if let Err(e) = sd_notify::notify(states) {
        log::debug!("the service manager can't be told: {e}");
    }
}
