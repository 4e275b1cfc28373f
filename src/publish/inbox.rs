//! What a sink has to deliver: events pulled from the journal, from the sink's cursor on.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    error::{Error, Result},
    event::{Event, Flag},
    journal::{Acknowledged, Cursor, Follower, Item, Shared},
};

/// How long nothing is asked of the journal after a file of it could not be read.
const UNREADABLE: Duration = Duration::from_secs(2);

/// An event that is to be delivered. It is flagged `late` where it is older than a minute.
#[derive(Debug)]
pub struct Delivery {
    pub event: Event,
    pub late: bool,
}

impl Delivery {
    pub fn json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(&self.event).map_err(|e| Error::internal("an event has no JSON").caused_by(e))
    }
}

/// How a sink is doing.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    pub name: String,
    /// The far end answers.
    pub connected: bool,
    /// Events acknowledged since the start.
    pub delivered: u64,
    /// Events that were gone from the journal before they could be delivered.
    pub lost: u64,
    /// Events that the far end has refused for good.
    pub refused: u64,
    /// Times that the far end failed.
    pub failures: u64,
}

/// When a sink has to come to its end.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ending(pub Option<Instant>);

/// A sink's view of the journal.
///
/// Order: [`Inbox::next`] gives one stream, in the order of the numbers. [`Inbox::next_fresh`] and [`Inbox::next_late`]
/// give two: what is younger than a minute, and what is older; each in the order of the numbers, and no event twice while
/// the connection lasts. An event that turns a minute old before its turn has come goes over to the late ones, behind
/// all that are there. The cursor knows of both exactly: see [`Acknowledged`].
#[derive(Debug)]
pub struct Inbox {
    journal: Arc<Shared>,
    cursor: Cursor,
    changes: watch::Receiver<u64>,
    ending: watch::Receiver<Ending>,
    fresh: Follower,
    backlog: Follower,
    /// The backlog ends with this number.
    split: u64,
    /// Handed out, acknowledged or not.
    given: Acknowledged,
    /// Until then the journal is left alone.
    paused: Option<Instant>,
    stats: Arc<Mutex<Stats>>,
}

impl Inbox {
    pub(super) fn new(
        name: &str,
        journal: Arc<Shared>,
        ending: watch::Receiver<Ending>,
        stats: Arc<Mutex<Stats>>,
    ) -> Self {
        let cursor = journal.cursor(name);
        let from = cursor.acknowledged().up_to;
        let given = cursor.acknowledged().clone();
        let (fresh, backlog, changes) = (journal.follow(from), journal.follow(from), journal.changes());
        Inbox { journal, cursor, changes, ending, fresh, backlog, split: from, given, paused: None, stats }
    }

    /// Begins with what the cursor says: what was given and not acknowledged is given again.
    pub(super) fn begin(&mut self, lanes: bool) {
        self.given = self.cursor.acknowledged().clone();
        let from = self.given.up_to;
        self.split = if lanes { self.journal.late().max(from) } else { from };
        self.backlog = self.journal.follow(from);
        self.fresh = self.journal.follow(self.split);
    }

    /// The next event, whatever its age; waits for one. `None` when it is time to end and none is left.
    pub async fn next(&mut self) -> Option<Delivery> {
        loop {
            let next = self.guarded(|inbox| inbox.take_fresh(false));
            if next.is_some() {
                return next;
            }
            if self.ending().is_some() {
                return None;
            }
            self.woken().await;
        }
    }

    /// The next event that is not late yet, if there is one now.
    pub fn next_fresh(&mut self) -> Option<Delivery> {
        self.guarded(|inbox| inbox.take_fresh(true))
    }

    /// The next late event, if there is one.
    pub fn next_late(&mut self) -> Option<Delivery> {
        self.guarded(Inbox::take_late)
    }

    /// The far end has this event.
    pub fn acknowledge(&mut self, seq: u64) {
        self.cursor.acknowledge(seq);
        self.count(|stats| stats.delivered += 1);
    }

    /// The far end will never take this event: it is counted, and delivery goes on.
    pub fn refused(&mut self, seq: u64) {
        self.cursor.acknowledge(seq);
        self.count(|stats| stats.refused += 1);
    }

    /// The far end answers.
    pub fn connected(&mut self) {
        self.count(|stats| stats.connected = true);
    }

    pub(super) fn count<T>(&self, change: impl FnOnce(&mut Stats) -> T) -> T {
        change(&mut self.stats.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn delivered(&self) -> u64 {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).delivered
    }

    /// Events that are not acknowledged yet.
    pub fn open(&self) -> u64 {
        self.cursor.acknowledged().open_up_to(self.journal.newest())
    }

    /// Until when the sink may go on, once it is time to end.
    pub fn ending(&self) -> Option<Instant> {
        self.ending.borrow().0
    }

    pub(super) fn endings(&self) -> watch::Receiver<Ending> {
        self.ending.clone()
    }

    /// Waits until there may be something to do: an event, the end, the cursor's time to be saved.
    pub async fn woken(&mut self) {
        let soonest = match (self.cursor.save_due(), self.paused) {
            (Some(due), Some(paused)) => Some(paused.min(due.into())),
            (due, paused) => due.map(Instant::from).or(paused),
        };
        let wait = async {
            match soonest {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = wait => {}
            // Where the other side is gone, the process is ending.
            _ = self.changes.changed() => {}
            _ = self.ending.changed() => {}
        }
        self.save_if_due();
    }

    fn save_if_due(&mut self) {
        if self.cursor.save_due().is_some_and(|due| due <= std::time::Instant::now()) {
            self.cursor.save();
        }
    }

    pub(super) fn save(&mut self) {
        self.cursor.save();
    }

    /// A journal that can't be read is no reason to leave the far end.
    fn guarded(&mut self, take: impl FnOnce(&mut Self) -> Result<Option<Delivery>>) -> Option<Delivery> {
        self.save_if_due();
        if self.paused.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        self.paused = None;
        match take(self) {
            Ok(next) => next,
            Err(e) => {
                log::error!("{e}");
                self.paused = Some(Instant::now() + UNREADABLE);
                None
            }
        }
    }

    fn take_fresh(&mut self, lanes: bool) -> Result<Option<Delivery>> {
        while let Some(item) = self.fresh.next_item()? {
            match item {
                Item::Gap { first, last } => self.missing(first, last),
                Item::Event(event) if self.given.has(event.seq) => {}
                Item::Event(event) => {
                    let late = event.seq <= self.journal.late();
                    if late && lanes {
                        self.split = event.seq;
                        continue;
                    }
                    return Ok(Some(self.give(*event, late)));
                }
            }
        }
        Ok(None)
    }

    fn take_late(&mut self) -> Result<Option<Delivery>> {
        while self.backlog.at() < self.split
            && let Some(item) = self.backlog.next_item()?
        {
            match item {
                Item::Gap { first, last } => self.missing(first, last),
                Item::Event(event) if self.given.has(event.seq) => {}
                Item::Event(event) => return Ok(Some(self.give(*event, true))),
            }
        }
        Ok(None)
    }

    fn give(&mut self, mut event: Event, late: bool) -> Delivery {
        self.given.add(event.seq, event.seq);
        if late && !event.flags.contains(&Flag::Late) {
            event.flags.insert(0, Flag::Late);
        }
        Delivery { event, late }
    }

    /// These are gone from the journal, unless both streams came by: then it is known.
    fn missing(&mut self, first: u64, last: u64) {
        let before = |a: &Acknowledged| a.open_up_to(last) - a.open_up_to(first - 1).min(a.open_up_to(last));
        let lost = before(self.cursor.acknowledged());
        self.cursor.pass(first, last);
        self.given.add(first, last);
        if lost > 0 {
            self.count(|stats| stats.lost += lost);
            log::error!(
                "{}: {lost} events, {first} to {last}, were gone from the journal before they could be sent",
                self.cursor.name()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::sample,
        journal::{Config, Journal},
    };

    struct Set {
        _folder: tempfile::TempDir,
        journal: Journal,
        inbox: Inbox,
        _ending: watch::Sender<Ending>,
    }

    /// An inbox with `old` events that are late already; its cursor is at the beginning.
    fn set(old: u64) -> Set {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::in_folder(folder.path());
        let mut journal = Journal::open(&config).unwrap();
        drop(journal.shared().cursor("x"));
        (0..old).for_each(|_| journal.append(&mut sample(0)));
        drop(journal);
        // Sample events are from long ago: what was there before the start is late.
        let journal = Journal::open(&config).unwrap();
        let (ending, receiver) = watch::channel(Ending::default());
        let mut inbox = Inbox::new("x", journal.shared(), receiver, Arc::default());
        inbox.begin(true);
        Set { _folder: folder, journal, inbox, _ending: ending }
    }

    fn fresh(set: &mut Set) -> Option<u64> {
        set.inbox.next_fresh().map(|d| {
            assert!(!d.late && !d.event.flags.contains(&Flag::Late));
            d.event.seq
        })
    }

    fn late(set: &mut Set) -> Option<u64> {
        set.inbox.next_late().map(|d| {
            assert!(d.late && d.event.flags.contains(&Flag::Late));
            d.event.seq
        })
    }

    #[test]
    fn what_happens_now_goes_before_the_backlog_and_both_are_in_order() {
        let mut set = set(5);
        set.journal.append(&mut sample(0));
        assert_eq!(fresh(&mut set), Some(6));
        assert_eq!((late(&mut set), late(&mut set)), (Some(1), Some(2)));
        set.journal.append(&mut sample(0));
        assert_eq!((fresh(&mut set), fresh(&mut set)), (Some(7), None));
        set.inbox.acknowledge(1);
        set.inbox.acknowledge(6);
        set.inbox.acknowledge(7);
        let expected = Acknowledged { up_to: 1, ahead: vec![(6, 7)] };
        assert_eq!(set.inbox.cursor.acknowledged(), &expected);
        assert_eq!(set.inbox.open(), 4);
        // A new connection: what was not acknowledged comes again, and nothing else.
        set.inbox.begin(true);
        assert_eq!(fresh(&mut set), None);
        let rest: Vec<_> = std::iter::from_fn(|| late(&mut set)).collect();
        assert_eq!(rest, [2, 3, 4, 5]);
        rest.iter().for_each(|&seq| set.inbox.acknowledge(seq));
        assert_eq!(set.inbox.cursor.acknowledged(), &Acknowledged { up_to: 7, ahead: vec![] });
    }

    #[test]
    fn what_turns_late_before_its_turn_goes_over_behind_the_late_ones() {
        let mut set = set(2);
        (0..3).for_each(|_| set.journal.append(&mut sample(0)));
        assert_eq!((fresh(&mut set), late(&mut set)), (Some(3), Some(1)));
        set.journal.shared().let_a_minute_pass();
        set.journal.append(&mut sample(0));
        assert_eq!((fresh(&mut set), fresh(&mut set)), (Some(6), None));
        let rest: Vec<_> = std::iter::from_fn(|| late(&mut set)).collect();
        assert_eq!(rest, [2, 4, 5], "3 is on its way, if it does not come back it is late next time");
        [1, 2, 4, 5, 6].iter().for_each(|&seq| set.inbox.acknowledge(seq));
        set.inbox.begin(true);
        assert_eq!((fresh(&mut set), late(&mut set), late(&mut set)), (None, Some(3), None));
    }

    #[test]
    fn one_stream_is_in_order_whatever_the_age() {
        let mut set = set(2);
        set.inbox.begin(false);
        set.journal.append(&mut sample(0));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let seen: Vec<_> = (0..3).map(|_| runtime.block_on(set.inbox.next()).unwrap()).collect();
        assert_eq!(seen.iter().map(|d| (d.event.seq, d.late)).collect::<Vec<_>>(), [(1, true), (2, true), (3, false)]);
    }

    #[test]
    fn what_is_gone_is_counted_once_and_passed() {
        let mut set = set(3);
        std::fs::remove_file(set._folder.path().join("events.jsonl")).unwrap();
        set.journal.append(&mut sample(0));
        assert_eq!(fresh(&mut set), Some(4));
        assert_eq!(late(&mut set), None);
        set.inbox.acknowledge(4);
        assert_eq!(set.inbox.stats.lock().unwrap().lost, 3);
        assert_eq!(set.inbox.cursor.acknowledged().up_to, 4);
    }
}
