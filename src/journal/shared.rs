//! What the writer, the sinks and a metrics page know of a journal at the same time. Its lock is held for moments only,
//! never while something is synced.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{Acknowledged, Cursor, Follower};
use crate::event::{Event, Flag};

/// Events that wait in memory while the disk is full; about a megabyte. The oldest are dropped beyond it.
pub const MOST_WAITING: usize = 1000;

/// What is older than this when it is delivered is late.
pub const LATE: Duration = Duration::from_secs(60);

/// A journal as its readers in this process have it.
#[derive(Debug)]
pub struct Shared {
    pub(super) folder: PathBuf,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

/// What a metrics page shows. Counts are since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes and number of the journal's files, and events written to them.
    pub bytes: u64,
    pub files: u64,
    pub written: u64,
    /// Number of the newest event.
    pub newest: u64,
    /// The disk is full or fails: recognition goes on, events wait in memory.
    pub full: bool,
    /// Events that wait in memory now, and those that were dropped as too many waited.
    pub waiting: u64,
    pub dropped: u64,
    /// Events that the hard size limit removed before a sink had read them.
    pub removed_unread: u64,
    pub cursors: Vec<CursorStats>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CursorStats {
    pub name: String,
    pub acknowledged: u64,
    /// Events that the sink has yet to acknowledge.
    pub unread: u64,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Up to this number events are in the files, synced.
    pub written: u64,
    pub newest: u64,
    pub full: bool,
    /// Behind `written`: not in the files yet. Seen by sinks only where they can't be written.
    pub waiting: VecDeque<Event>,
    pub cuts: u64,
    pub bytes: u64,
    pub files: u64,
    pub events: u64,
    pub dropped: u64,
    pub removed_unread: u64,
    cursors: Vec<(String, Acknowledged, u64)>,
    /// When numbers were given, oldest first; those of the last minute.
    ages: VecDeque<(Instant, u64)>,
    /// Up to this number events are late.
    late: u64,
}

/// What there is behind a number.
pub(super) struct Beyond {
    pub written: u64,
    /// The first that waits and may be seen.
    pub waiting: Option<Box<Event>>,
    pub cuts: u64,
}

impl Shared {
    pub(super) fn new(folder: PathBuf, newest: u64, recent: Vec<(Instant, u64)>) -> Arc<Self> {
        let late = recent.first().map_or(newest, |&(_, first)| first - 1);
        let ages = recent.into();
        let state = State { written: newest, newest, ages, late, ..State::default() };
        Arc::new(Shared { folder, state: Mutex::new(state), changed: watch::Sender::new(newest) })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing between two of its changes can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn stats(&self) -> Stats {
        let state = self.lock();
        let cursor = |(name, a, _): &(String, Acknowledged, u64)| CursorStats {
            name: name.clone(),
            acknowledged: a.up_to,
            unread: a.open_up_to(state.newest),
        };
        Stats {
            bytes: state.bytes,
            files: state.files,
            written: state.events,
            newest: state.newest,
            full: state.full,
            waiting: state.waiting.len() as u64,
            dropped: state.dropped,
            removed_unread: state.removed_unread,
            cursors: state.cursors.iter().map(cursor).collect(),
        }
    }

    /// Opens a sink's cursor; from now on no file is removed that it still has to read.
    pub fn cursor(self: &Arc<Self>, name: &str) -> Cursor {
        Cursor::open(name, self.clone())
    }

    /// Follows the events behind number `after`.
    pub fn follow(self: &Arc<Self>, after: u64) -> Follower {
        Follower::new(self.clone(), after)
    }

    /// Told of every event that can be read.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The number of the newest event.
    pub fn newest(&self) -> u64 {
        self.lock().newest
    }

    /// The newest event that is late.
    pub fn late(&self) -> u64 {
        self.lock().late_at(Instant::now())
    }

    /// A minute goes by.
    #[cfg(test)]
    pub(crate) fn let_a_minute_pass(&self) {
        self.lock().late_at(Instant::now() + LATE);
    }

    pub(super) fn tell(&self) {
        let newest = self.newest();
        self.changed.send_replace(newest);
    }

    pub(super) fn beyond(&self, seq: u64) -> Beyond {
        let state = self.lock();
        let waiting = state.waiting.iter().find(|e| e.seq > seq && state.full);
        Beyond { written: state.written, waiting: waiting.cloned().map(Box::new), cuts: state.cuts }
    }

    pub(super) fn register(&self, name: &str, acknowledged: &Acknowledged) {
        let mut state = self.lock();
        state.cursors.retain(|(n, ..)| n != name);
        state.cursors.push((name.into(), acknowledged.clone(), acknowledged.up_to));
    }

    pub(super) fn moved(&self, name: &str, acknowledged: &Acknowledged) {
        if let Some((_, a, _)) = self.lock().cursors.iter_mut().find(|(n, ..)| n == name) {
            a.clone_from(acknowledged);
        }
    }

    pub(super) fn saved(&self, name: &str, up_to: u64) {
        if let Some((_, _, saved)) = self.lock().cursors.iter_mut().find(|(n, ..)| n == name) {
            *saved = up_to;
        }
    }
}

impl State {
    /// Every sink has read up to this number, and remembers it after a restart.
    pub fn read_by_all(&self) -> u64 {
        self.cursors.iter().map(|(_, _, saved)| *saved).min().unwrap_or(u64::MAX)
    }

    /// How many of these numbers some sink has yet to read.
    pub fn unread(&self, first: u64, last: u64) -> u64 {
        let of = |a: &Acknowledged| a.open_up_to(last) - a.open_up_to(first.saturating_sub(1)).min(a.open_up_to(last));
        self.cursors.iter().map(|(_, a, _)| of(a)).max().unwrap_or(0)
    }

    /// Keeps an event until it can be written.
    pub fn wait(&mut self, mut event: Event) {
        if self.full {
            flag(&mut event);
        }
        self.waiting.push_back(event);
        if self.waiting.len() > MOST_WAITING {
            self.waiting.pop_front();
            self.dropped += 1;
        }
    }

    /// It has turned out that what waits can't be written.
    pub fn is_full(&mut self) {
        self.full = true;
        self.waiting.iter_mut().for_each(flag);
    }

    /// A number was given now.
    pub fn aged(&mut self, now: Instant, seq: u64) {
        match self.ages.back_mut() {
            // One entry a second is enough, so that their number has a bound.
            Some((then, last)) if now.saturating_duration_since(*then) < Duration::from_secs(1) => *last = seq,
            _ => self.ages.push_back((now, seq)),
        }
        self.late_at(now);
    }

    fn late_at(&mut self, now: Instant) -> u64 {
        while let Some(&(then, last)) = self.ages.front() {
            if now.saturating_duration_since(then) < LATE {
                break;
            }
            self.late = last;
            self.ages.pop_front();
        }
        self.late
    }
}

fn flag(event: &mut Event) {
    if !event.flags.contains(&Flag::Volatile) {
        event.flags.push(Flag::Volatile);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_late_a_minute_after_it_was_numbered() {
        let began = Instant::now();
        let after = |s: u64| began + Duration::from_secs(s);
        let shared = Shared::new("x".into(), 7, Vec::new());
        let mut state = shared.lock();
        assert_eq!(state.late_at(began), 7, "what was there before is old");
        for (at, seq) in [(0, 8), (0, 9), (30, 10), (59, 11), (60, 12)] {
            state.aged(after(at), seq);
        }
        for (at, late) in [(60, 9), (89, 9), (90, 10), (118, 10), (119, 11), (120, 12), (9999, 12)] {
            assert_eq!(state.late_at(after(at)), late, "{at} s");
        }
        (0..100_000).for_each(|i| state.aged(after(10_000) + Duration::from_millis(i), 13 + i));
        assert!(state.ages.len() <= 62, "{}", state.ages.len());
    }

    #[test]
    fn what_was_written_shortly_before_the_start_is_not_late_yet() {
        let now = Instant::now();
        let ago = |s| now.checked_sub(Duration::from_secs(s)).unwrap();
        let shared = Shared::new("x".into(), 9, vec![(ago(50), 8), (ago(5), 9)]);
        assert_eq!(shared.lock().late_at(now), 7);
        assert_eq!(shared.lock().late_at(now + Duration::from_secs(11)), 8);
    }
}
