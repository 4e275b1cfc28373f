//! The end of time, the [`Shutdown`] that every thread looks at; and the wall clock, which is set now and then.

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
    low_level,
};

use crate::error::{Error, Result};

/// What the shell gives for a process that was interrupted.
const INTERRUPTED: i32 = 130;

/// Longer than the slowest camera, its pipeline and the last deliveries together may take to end.
const LAST: Duration = Duration::from_secs(30);

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
    /// does not want to wait for a camera that hangs. After half a minute the process ends by itself, with 1, whatever
    /// hangs: an event is in the journal before anything else sees it, so nothing is lost.
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
            if signals.forever().next().is_some() {
                log::info!("stopping; a second signal stops at once");
                setter.set();
                thread::sleep(LAST);
                log::error!("something does not stop within {} s, and is left as it is", LAST.as_secs());
                low_level::exit(1);
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

/// More than this between two looks is no drift: the clock was set.
const SET: SignedDuration = SignedDuration::from_millis(500);

/// The wall clock, and by how much it has been set: by the network's time on a board without a battery, or by a person.
/// What lasts is measured with it in mind, so that an event never ends before it began.
#[derive(Debug)]
pub struct Wall {
    last: (Instant, Timestamp),
    set_by: SignedDuration,
}

impl Default for Wall {
    fn default() -> Self {
        Wall { last: (Instant::now(), Timestamp::now()), set_by: SignedDuration::ZERO }
    }
}

impl Wall {
    /// The time, and by how much the clock was set forward since this was made, in all.
    pub fn now(&mut self) -> (Timestamp, SignedDuration) {
        self.at(Instant::now(), Timestamp::now())
    }

    fn at(&mut self, steady: Instant, wall: Timestamp) -> (Timestamp, SignedDuration) {
        let passed =
            SignedDuration::try_from(steady.saturating_duration_since(self.last.0)).unwrap_or(SignedDuration::MAX);
        let moved = wall.duration_since(self.last.1).saturating_sub(passed);
        if moved.abs() > SET {
            self.set_by = self.set_by.saturating_add(moved);
            log::warn!("the clock was set by {:+.1} s; times of what is open go on as they were", moved.as_secs_f64());
        }
        self.last = (steady, wall);
        (wall, self.set_by)
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
    fn a_clock_that_is_set_is_told_from_one_that_drifts() {
        let mut wall = Wall::default();
        let (mut steady, mut now) = wall.last;
        // Slewed by a tenth for a minute: no jump.
        for _ in 0..60 {
            steady += Duration::from_secs(1);
            now += SignedDuration::from_millis(1100);
            assert_eq!(wall.at(steady, now), (now, SignedDuration::ZERO));
        }
        now += SignedDuration::from_hours(1);
        assert_eq!(wall.at(steady, now), (now, SignedDuration::from_hours(1)));
        steady += Duration::from_secs(10);
        now += SignedDuration::from_secs(10) - SignedDuration::from_hours(3);
        assert_eq!(wall.at(steady, now), (now, SignedDuration::from_hours(-2)));
        assert_eq!(wall.at(steady, Timestamp::MIN).0, Timestamp::MIN);
        assert_eq!(wall.at(steady, Timestamp::MAX).0, Timestamp::MAX);
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
