//! Time and its end: a [`Clock`] that tests can turn, and the [`Shutdown`] that every thread looks at.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
    iterator::Signals,
};

use crate::error::{Error, Result};

/// What the shell gives for a process that was interrupted.
const INTERRUPTED: i32 = 130;

/// Where "now" comes from. Dates come from the wall clock, which can be set and jump; durations and timeouts from the
/// monotonic one, which can't.
#[derive(Debug, Clone)]
pub enum Clock {
    Real,
    /// Stands still until it is told to go on.
    Simulated(Arc<Simulated>),
}

#[derive(Debug)]
pub struct Simulated {
    origin: Instant,
    /// Wall time, and monotonic time since the clock was made.
    now: Mutex<(Timestamp, Duration)>,
}

impl Clock {
    pub fn simulated(start: Timestamp) -> Self {
        Clock::Simulated(Arc::new(Simulated { origin: Instant::now(), now: Mutex::new((start, Duration::ZERO)) }))
    }

    /// The date: may jump either way.
    pub fn wall(&self) -> Timestamp {
        match self {
            Clock::Real => Timestamp::now(),
            Clock::Simulated(s) => lock(&s.now).0,
        }
    }

    /// Never goes back.
    pub fn monotonic(&self) -> Instant {
        match self {
            Clock::Real => Instant::now(),
            Clock::Simulated(s) => s.origin + lock(&s.now).1,
        }
    }

    /// Lets time pass: sleeps, or turns the simulated clock.
    pub fn advance(&self, by: Duration) {
        match self {
            Clock::Real => thread::sleep(by),
            Clock::Simulated(s) => {
                let mut now = lock(&s.now);
                // Past year 9999 the date stands still; durations go on.
                now.0 = SignedDuration::try_from(by).ok().and_then(|by| now.0.checked_add(by).ok()).unwrap_or(now.0);
                now.1 += by;
            }
        }
    }

    /// Sets the date of a simulated clock, as an administrator or NTP sets the real one. Nothing happens to a real one.
    pub fn set_wall(&self, to: Timestamp) {
        if let Clock::Simulated(s) = self {
            lock(&s.now).0 = to;
        }
    }
}

/// Tells all threads that it is time to stop. Clones are handles to the same thing; once set it stays set.
#[derive(Debug, Clone, Default)]
pub struct Shutdown(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// Read once a frame by every thread; the lock is for those that sleep.
    set: AtomicBool,
    lock: Mutex<()>,
    condition: Condvar,
}

impl Shutdown {
    pub fn new() -> Self {
        Self::default()
    }

    /// One that SIGINT and SIGTERM set. A second signal ends the process at once, with exit code 130: who asks twice
    /// does not want to wait for a camera that hangs.
    pub fn on_signals() -> Result<Self> {
        let cannot = |e| Error::internal("cannot watch for signals").caused_by(e);
        let shutdown = Shutdown::new();
        let again = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the exit is armed only by the signal before.
            flag::register_conditional_shutdown(signal, INTERRUPTED, again.clone()).map_err(cannot)?;
            flag::register(signal, again.clone()).map_err(cannot)?;
        }
        let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(cannot)?;
        let setter = shutdown.clone();
        let work = move || {
            for _ in signals.forever() {
                log::info!("stopping; a second signal stops at once");
                setter.set();
            }
        };
        thread::Builder::new().name("signals".into()).spawn(work).map_err(cannot)?;
        Ok(shutdown)
    }

    pub fn set(&self) {
        // Under the lock: a thread that has looked and is about to sleep must not miss it.
        let _held = lock(&self.0.lock);
        self.0.set.store(true, Ordering::Release);
        self.0.condition.notify_all();
    }

    pub fn is_set(&self) -> bool {
        self.0.set.load(Ordering::Acquire)
    }

    /// Sleeps until it is set.
    pub fn wait(&self) {
        let held = lock(&self.0.lock);
        drop(self.0.condition.wait_while(held, |_| !self.is_set()).unwrap_or_else(PoisonError::into_inner));
    }

    /// Sleeps until it is set, or for `timeout`. Returns whether it is set.
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        let held = lock(&self.0.lock);
        let waited = self.0.condition.wait_timeout_while(held, timeout, |_| !self.is_set());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        self.is_set()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these locks guard is written in one go: a thread that panicked has left nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_may_jump_and_durations_do_not_notice() {
        let clock = Clock::simulated("2026-11-24T01:02:03Z".parse().unwrap());
        let (wall, monotonic) = (clock.wall(), clock.monotonic());
        clock.advance(Duration::from_secs(5));
        clock.set_wall("2026-11-24T00:02:03Z".parse().unwrap());
        assert_eq!(clock.monotonic() - monotonic, Duration::from_secs(5));
        assert_eq!(clock.wall().duration_since(wall), SignedDuration::from_hours(-1));
        let same = clock.clone();
        same.advance(Duration::from_secs(1));
        assert_eq!(clock.monotonic() - monotonic, Duration::from_secs(6));
    }

    #[test]
    fn a_wait_ends_when_another_thread_sets_it() {
        let shutdown = Shutdown::new();
        assert!(!shutdown.wait_timeout(Duration::from_millis(1)));
        let setter = shutdown.clone();
        let thread = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            setter.set();
        });
        let began = Instant::now();
        assert!(shutdown.wait_timeout(Duration::from_secs(60)));
        assert!(began.elapsed() < Duration::from_secs(30));
        thread.join().unwrap();
        shutdown.wait();
        assert!(shutdown.is_set());
    }

    #[test]
    fn setting_it_twice_is_setting_it_once() {
        let shutdown = Shutdown::new();
        shutdown.set();
        shutdown.set();
        assert!(shutdown.is_set() && shutdown.wait_timeout(Duration::ZERO));
    }
}
