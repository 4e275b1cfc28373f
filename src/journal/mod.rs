//! The journal: every event, one JSON line each, in the order of their sequence numbers, on the disk before anyone else
//! hears of it.
//!
//! One daemon writes a journal (a lock sees to that); any number of [`Reader`]s may read it meanwhile, and the sinks of
//! the daemon [follow](Follower) it, each by its [`Cursor`]. The folder holds
//!
//! | file | what |
//! | --- | --- |
//! | `events.jsonl` | what is written now |
//! | `events-000000000123.jsonl` | a file that was full or a day old, by the number of its first event |
//! | `events.jsonl.torn` | half a line that a power cut left |
//! | `events.reserve` | room for what waits in memory, should the daemon end while the disk is full |
//! | `events.lock` | held by the daemon |
//! | `cursor-NAME.json` | how far a sink has come |
//!
//! # What is promised
//!
//! - With `fsync = "event"` an event is synced before [`Journal::append`] returns, with `"second"` within a second; in
//!   both, sinks see it only then.
//! - Numbers have no hole, over restarts and rotations, but for what is counted: events that the bound of a full disk
//!   dropped, and damaged lines. No number is given twice.
//! - A full disk stops nothing: events get their numbers, wait in memory, at most [`MOST_WAITING`], are seen by sinks at
//!   once with the flag `volatile`, and are written in order as soon as there is room, or when the daemon is stopped into
//!   the room that was kept. A kill or a power cut while the disk is full loses what waits; its numbers stay given.
//! - Files are removed whole, the oldest first, and only when every sink has read them; `max_mb` alone goes before that,
//!   and what a sink then misses is counted, logged and told to it.

mod cursor;
mod files;
mod follow;
mod reader;
mod reserve;
mod shared;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use jiff::Timestamp;
use serde::Deserialize;

pub(crate) use self::{
    cursor::write_whole,
    reserve::{Room, room},
};
pub use self::{
    cursor::{Acknowledged, Cursor},
    follow::{Follower, Item},
    reader::Reader,
    shared::{CursorStats, LATE, MOST_WAITING, Shared, Stats},
};
use self::{
    files::{Damage, create, rotated, rotated_name, sync_folder},
    reserve::Reserve,
    shared::State,
};
use crate::{
    error::{Error, Result},
    event::Event,
};

const EVENTS: &str = "events.jsonl";
const LOCK: &str = "events.lock";
const TORN: &str = "events.jsonl.torn";

/// How much is written at once when events have waited.
const PIECE: usize = 64 << 10;

/// `[journal]` in a config.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The folder; empty where none is given.
    pub path: PathBuf,
    pub fsync: Fsync,
    /// A file is rotated when it is so large or so old.
    pub file_mb: u64,
    pub file_hours: u64,
    /// Rotated files are removed when they are so old, or all files so large, and every sink has read them.
    pub keep_days: u64,
    pub keep_mb: u64,
    /// All files are never larger than this, whoever has yet to read them.
    pub max_mb: u64,
}

/// When what was written is synced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fsync {
    /// At each event.
    #[default]
    Event,
    /// Once a second, for a flash card's sake: a power cut or kill loses up to a second of events, which no one has seen.
    Second,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            path: PathBuf::new(),
            fsync: Fsync::Event,
            file_mb: 16,
            file_hours: 24,
            keep_days: 30,
            keep_mb: 256,
            max_mb: 1024,
        }
    }
}

impl Config {
    /// The defaults, in a folder.
    pub fn in_folder(path: &Path) -> Self {
        Config { path: path.into(), ..Config::default() }
    }

    /// What is wrong with it, if something is.
    pub fn fault(&self) -> Option<String> {
        if self.file_mb == 0 || self.file_hours == 0 || self.keep_mb == 0 {
            return Some("file_mb, file_hours and keep_mb are at least 1".into());
        }
        if self.max_mb < 2 * self.file_mb {
            return Some(format!(
                "max_mb = {} is too small: it is at least twice file_mb, which is {}",
                self.max_mb, self.file_mb
            ));
        }
        None
    }
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    file_bytes: u64,
    file_age: Duration,
    keep_bytes: u64,
    keep_age: Duration,
    max_bytes: u64,
}

impl From<&Config> for Limits {
    fn from(config: &Config) -> Self {
        let mb = |n: u64| n.saturating_mul(1 << 20);
        let hours = |n: u64| Duration::from_secs(n.saturating_mul(3600));
        Limits {
            file_bytes: mb(config.file_mb),
            file_age: hours(config.file_hours),
            keep_bytes: mb(config.keep_mb),
            keep_age: hours(config.keep_days.saturating_mul(24)),
            max_bytes: mb(config.max_mb),
        }
    }
}

/// The writer.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    fsync: Fsync,
    limits: Limits,
    file: File,
    /// Held as long as the journal is.
    _lock: File,
    /// Bytes of whole lines; what lies behind is half a line of an append that failed.
    length: u64,
    /// Number of the first event in the file, and when the file was begun.
    first: u64,
    begun: SystemTime,
    rotated: Vec<Whole>,
    next: u64,
    /// Something may lie behind `length`.
    dirty: bool,
    line: Vec<u8>,
    shared: Arc<Shared>,
    reserve: Reserve,
    /// Said that files which some sink has yet to read are kept beyond their time.
    told_kept: bool,
}

/// A rotated file.
#[derive(Debug)]
struct Whole {
    path: PathBuf,
    first: u64,
    last: u64,
    bytes: u64,
    ended: SystemTime,
}

impl Journal {
    /// Opens a folder's journal for writing, or begins one. Half a line at its end, left by a power cut or a kill, is
    /// moved to `events.jsonl.torn`: it was never acknowledged.
    ///
    /// Errors: `Unavailable` when another process writes it or the disk does not let us; `Config` when what is there is
    /// not a journal.
    pub fn open(config: &Config) -> Result<Self> {
        Journal::open_with(&config.path, config.fsync, Limits::from(config))
    }

    fn open_with(folder: &Path, fsync: Fsync, limits: Limits) -> Result<Self> {
        let cannot = |what: &str, e: io::Error| {
            Error::unavailable(format!("cannot {what} the journal {}", folder.display())).caused_by(e)
        };
        fs::create_dir_all(folder).map_err(|e| cannot("create", e))?;
        let lock = files::lock(folder)?;
        let file = create(folder).map_err(|e| cannot("open", e))?;
        let whole = rotated(folder).map_err(|e| cannot("read", e))?;
        let damage = |path: &Path| {
            let path = path.to_owned();
            move |e| match e {
                Damage::Io(e) => cannot("read", e),
                Damage::Foreign(what) => Error::config(format!("{}: {what}", path.display())),
            }
        };
        let live = folder.join(EVENTS);
        let tail = files::tail(&file, !whole.is_empty()).map_err(damage(&live))?;
        // A file that was just begun tells no number: the one before does.
        let mut last = tail.last.unwrap_or(0);
        if let (None, Some(before)) = (tail.last, whole.last()) {
            let file = File::open(&before.path).map_err(|e| cannot("read", e))?;
            let before = files::tail(&file, true).map_err(damage(&before.path))?.last.unwrap_or(before.first);
            last = last.max(before);
        }
        // A damaged line had a number that someone may have seen, and sinks may have seen some that were in memory only:
        // none is given again.
        let reserve = Reserve::open(folder);
        let newest = (last + tail.damaged).max(cursor::highest(folder)).max(reserve.number());
        let first = files::first(&file, newest).map_err(|e| cannot("read", e))?.unwrap_or(newest + 1);
        let ends: Vec<u64> = whole.iter().skip(1).map(|f| f.first - 1).chain([first - 1]).collect();
        let whole = whole.into_iter().zip(ends).filter_map(|(f, last)| {
            let metadata = fs::metadata(&f.path).ok()?;
            let ended = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            Some(Whole { path: f.path, first: f.first, last: last.max(f.first), bytes: metadata.len(), ended })
        });
        let mut journal = Journal {
            folder: folder.to_owned(),
            fsync,
            limits,
            _lock: lock,
            length: tail.length,
            first,
            begun: begun(&file),
            rotated: whole.collect(),
            next: newest + 1,
            dirty: false,
            line: Vec::new(),
            shared: Shared::new(folder.to_owned(), newest, recent(&tail.lines)),
            reserve,
            told_kept: false,
            file,
        };
        if tail.damaged > 0 {
            log::warn!("{}: the last {} lines are damaged", live.display(), tail.damaged);
        }
        if !tail.torn.is_empty() {
            journal.put_aside(&tail.torn).map_err(|e| cannot("read", e))?;
        }
        journal.count();
        Ok(journal)
    }

    /// What sinks and metrics see of it.
    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Gives the event its number and writes it. When this returns it is on the disk; with `fsync = "second"` it will be
    /// within a second, and where the disk is full as soon as that is not: then it is flagged `volatile`.
    pub fn append(&mut self, event: &mut Event) {
        if self.shared.lock().waiting.len() >= MOST_WAITING {
            // There may be room again: nothing is dropped before that is tried.
            self.flush();
        }
        event.seq = self.next;
        self.next += 1;
        let (full, waiting) = {
            let mut state = self.shared.lock();
            state.newest = event.seq;
            state.aged(Instant::now(), event.seq);
            state.wait(event.clone());
            (state.full, state.waiting.len())
        };
        // What a second brings is bounded as well.
        if self.fsync == Fsync::Event || waiting >= MOST_WAITING / 2 && !full {
            self.flush();
        } else if full {
            self.reserve.keep_number(event.seq);
            self.shared.tell();
        }
        if let Some(waiting) = self.shared.lock().waiting.back().filter(|waiting| waiting.seq == event.seq) {
            event.flags.clone_from(&waiting.flags);
        }
    }

    /// Once a second: syncs, tries again where the disk was full, rotates, and removes what is old.
    pub fn tick(&mut self) {
        self.flush();
        self.reserve.fill();
        let age = self.begun.elapsed().unwrap_or_default();
        if self.length > 0 && age >= self.limits.file_age {
            self.rotate();
        }
        self.remove_old();
    }

    /// The number that the next event gets.
    pub fn next_seq(&self) -> u64 {
        self.next
    }

    fn path(&self) -> PathBuf {
        self.folder.join(EVENTS)
    }

    /// Writes what waits, in order.
    fn flush(&mut self) {
        loop {
            let (mut count, mut last) = (0, 0);
            self.line.clear();
            for event in &self.shared.lock().waiting {
                if self.line.len() >= PIECE {
                    break;
                }
                let before = self.line.len();
                match serde_json::to_writer(&mut self.line, event) {
                    Ok(()) => self.line.push(b'\n'),
                    // Nothing in an event can fail so.
                    Err(e) => {
                        log::error!("event {} has no JSON: {e}", event.seq);
                        self.line.truncate(before);
                    }
                }
                (count, last) = (count + 1, event.seq);
            }
            if count == 0 {
                return;
            }
            if self.length > 0 && self.length + self.line.len() as u64 > self.limits.file_bytes {
                self.rotate();
            }
            if let Err(e) = self.write() {
                return self.failed(&e);
            }
            self.length += self.line.len() as u64;
            let over = {
                let mut state = self.shared.lock();
                state.waiting.drain(..count);
                state.written = last;
                state.events += count as u64;
                state.waiting.is_empty() && std::mem::take(&mut state.full)
            };
            if over {
                log::warn!("{}: there is room again; what waited in memory is written", self.folder.display());
            }
            self.count();
            self.shared.tell();
        }
    }

    fn failed(&mut self, e: &io::Error) {
        self.dirty = true;
        self.cut();
        let (was, waiting, newest) = {
            let mut state = self.shared.lock();
            state.cuts += 1;
            let was = state.full;
            state.is_full();
            (was, state.waiting.len(), state.newest)
        };
        self.reserve.keep_number(newest);
        // Once, not per event: metrics have it as long as it lasts.
        if !was {
            log::error!(
                "cannot write to the journal {}: {e}; recognition goes on, up to {MOST_WAITING} events wait in memory \
                 and go to the sinks from there, flagged `volatile`; make room",
                self.path().display()
            );
        }
        log::debug!("{waiting} events wait for room");
        self.shared.tell();
    }

    fn write(&mut self) -> io::Result<()> {
        if self.dirty && !self.cut() {
            return Err(io::Error::other("half a line of a failed write can't be removed"));
        }
        if self.file.metadata()?.nlink() == 0 {
            log::error!("{} was removed; beginning it again", self.path().display());
            self.begin()?;
            self.first = self.shared.lock().written + 1;
        }
        // The file is in append mode, and a line this short goes in one call unless the disk is full.
        self.file.write_all(&self.line)?;
        self.file.sync_data()
    }

    /// Cuts off what an append that failed may have left. Returns whether that went well.
    fn cut(&mut self) -> bool {
        self.dirty = self.file.set_len(self.length).is_err();
        !self.dirty
    }

    /// Opens the file that is written from now on.
    fn begin(&mut self) -> io::Result<()> {
        self.file = create(&self.folder)?;
        self.length = self.file.metadata()?.len();
        self.begun = SystemTime::now();
        Ok(())
    }

    /// Gives the file its own name and begins the next one. Where that can't be done the file grows on.
    fn rotate(&mut self) {
        if self.dirty && !self.cut() {
            return;
        }
        let (path, live) = (self.folder.join(rotated_name(self.first)), self.path());
        let (bytes, first) = (self.length, self.first);
        let result = {
            // Under the lock: a follower must not look between the two names.
            let mut state = self.shared.lock();
            let renamed = match path.exists() {
                true => Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} is there", path.display()))),
                false => fs::rename(&live, &path),
            };
            let begun = renamed.and_then(|()| {
                let file = OpenOptions::new().create(true).read(true).append(true).open(&live);
                file.inspect_err(|_| drop(fs::rename(&path, &live)))
            });
            begun.map(|file| {
                state.files += 1;
                (file, state.written)
            })
        };
        match result {
            Ok((file, last)) => {
                (self.file, self.length, self.begun, self.first) = (file, 0, SystemTime::now(), last + 1);
                self.rotated.push(Whole { path, first, last, bytes, ended: self.begun });
                if let Err(e) = sync_folder(&self.folder) {
                    log::warn!("cannot sync {}: {e}", self.folder.display());
                }
                self.remove_old();
            }
            Err(e) => log::debug!("cannot rotate {}: {e}", live.display()),
        }
    }

    /// Removes the oldest files that are too many.
    fn remove_old(&mut self) {
        while let Some(oldest) = self.rotated.first() {
            // The last number is in it while the file behind it is empty.
            if self.rotated.len() == 1 && self.length == 0 {
                break;
            }
            let bytes = self.length + self.rotated.iter().map(|f| f.bytes).sum::<u64>();
            let must = bytes > self.limits.max_bytes;
            let age = oldest.ended.elapsed().unwrap_or_default();
            if !must && age < self.limits.keep_age && bytes <= self.limits.keep_bytes {
                break;
            }
            let (read, unread) = {
                let state = self.shared.lock();
                (oldest.last <= state.read_by_all(), state.unread(oldest.first, oldest.last))
            };
            if !read && !must {
                if !std::mem::replace(&mut self.told_kept, true) {
                    log::warn!(
                        "{} and later files are kept beyond their time, as a sink has yet to read them (up to {} MB)",
                        oldest.path.display(),
                        self.limits.max_bytes >> 20
                    );
                }
                break;
            }
            if let Err(e) = fs::remove_file(&oldest.path)
                && e.kind() != io::ErrorKind::NotFound
            {
                log::warn!("cannot remove {}: {e}", oldest.path.display());
                break;
            }
            if unread > 0 {
                self.shared.lock().removed_unread += unread;
                log::error!(
                    "{}: removed as the journal would be larger than {} MB; a sink had yet to read {unread} of its events",
                    oldest.path.display(),
                    self.limits.max_bytes >> 20
                );
            }
            self.told_kept = false;
            self.rotated.remove(0);
        }
        self.count();
    }

    /// Tells what there is on the disk.
    fn count(&self) {
        let mut state: std::sync::MutexGuard<'_, State> = self.shared.lock();
        state.files = 1 + self.rotated.len() as u64;
        state.bytes = self.length + self.rotated.iter().map(|f| f.bytes).sum::<u64>();
    }

    /// Cuts off half a line, and keeps it beside, so that nothing that was ever written is thrown away.
    fn put_aside(&mut self, torn: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(self.folder.join(TORN))?;
        match file.write_all(&[torn, b"\n"].concat()) {
            // On a full disk the repair is worth more than the remains.
            Err(e) if e.kind() == io::ErrorKind::StorageFull => {}
            result => result?,
        }
        self.file.set_len(self.length)?;
        self.file.sync_all()?;
        log::warn!(
            "{}: its last line was torn ({} bytes, never acknowledged); it is in {TORN} now",
            self.path().display(),
            torn.len()
        );
        Ok(())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.flush();
        let waiting = |journal: &Journal| {
            let state = journal.shared.lock();
            Some((state.waiting.len(), state.waiting.front()?.seq, state.waiting.back()?.seq))
        };
        if waiting(self).is_some() && self.reserve.release() {
            self.flush();
        }
        if let Some((count, first, last)) = waiting(self) {
            log::error!(
                "{}: {count} events, {first} to {last}, waited in memory for room on the disk and are lost",
                self.path().display()
            );
        }
    }
}

/// When a file was begun, as well as the file system knows.
fn begun(file: &File) -> SystemTime {
    let metadata = file.metadata();
    metadata.and_then(|m| m.created().or_else(|_| m.modified())).unwrap_or_else(|_| SystemTime::now())
}

/// The events at the end of a file that are not late yet, and when they were there.
fn recent(lines: &[u8]) -> Vec<(Instant, u64)> {
    let (now, wall) = (Instant::now(), Timestamp::now());
    let mut recent = Vec::new();
    for line in lines.split_inclusive(|b| *b == b'\n').rev() {
        let Ok(event) = serde_json::from_slice::<Event>(line) else { break };
        if !files::is_number(event.seq) {
            break;
        }
        let age = wall.duration_since(event.seen_until()).unsigned_abs();
        match now.checked_sub(age).filter(|_| age < LATE) {
            Some(then) => recent.push((then, event.seq)),
            None => break,
        }
    }
    recent.reverse();
    recent
}

#[cfg(test)]
mod tests {
    use super::reader::LONGEST_LINE;
    use super::*;
    use crate::event::{Flag, sample};

    fn fill(folder: &Path, count: u64) -> Journal {
        let mut journal = Journal::open(&Config::in_folder(folder)).unwrap();
        for _ in 0..count {
            journal.append(&mut sample(0));
        }
        journal
    }

    fn numbers(reader: &mut Reader) -> Vec<u64> {
        std::iter::from_fn(|| reader.next_event().unwrap()).map(|e| e.seq).collect()
    }

    fn followed(follower: &mut Follower) -> Vec<u64> {
        let mut seen = Vec::new();
        while let Some(item) = follower.next_item().unwrap() {
            match item {
                Item::Event(event) => seen.push(event.seq),
                Item::Gap { .. } => panic!("{item:?}"),
            }
        }
        seen
    }

    fn all(folder: &Path) -> Vec<u64> {
        numbers(&mut Reader::new(folder, 0))
    }

    fn add(folder: &Path, bytes: &[u8]) {
        OpenOptions::new().append(true).open(folder.join(EVENTS)).unwrap().write_all(bytes).unwrap();
    }

    #[test]
    fn numbers_go_on_where_they_ended() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b");
        drop(fill(&deep, 3));
        let mut journal = fill(&deep, 2);
        let mut event = sample(0);
        journal.append(&mut event);
        assert_eq!((event.seq, journal.next_seq()), (6, 7));
        assert_eq!(all(&deep), [1, 2, 3, 4, 5, 6]);
        assert_eq!(numbers(&mut Reader::new(&deep, 5)), [5, 6]);
    }

    #[test]
    fn an_event_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let mut event = sample(0);
        Journal::open(&Config::in_folder(folder.path())).unwrap().append(&mut event);
        assert_eq!(Reader::new(folder.path(), 0).next_event().unwrap(), Some(event));
    }

    #[test]
    fn a_line_torn_anywhere_is_put_aside_and_the_sequence_goes_on() {
        let line = serde_json::to_vec(&sample(3)).unwrap();
        for torn in
            [1, 3, 5, 20, line.len() / 2, line.len()].map(|n| line[..n].to_vec()).into_iter().chain([vec![0; 4096]])
        {
            for before in [0, 2] {
                let folder = tempfile::tempdir().unwrap();
                drop(fill(folder.path(), before));
                add(folder.path(), &torn);
                drop(fill(folder.path(), 1));
                assert_eq!(all(folder.path()), (1..=before + 1).collect::<Vec<_>>(), "{} bytes", torn.len());
                assert_eq!(fs::read(folder.path().join(TORN)).unwrap(), [&torn[..], b"\n"].concat());
            }
        }
    }

    #[test]
    fn a_damaged_line_is_passed_over_and_its_number_not_given_again() {
        let folder = tempfile::tempdir().unwrap();
        drop(fill(folder.path(), 5));
        let path = folder.path().join(EVENTS);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"seq\":3,", "\"seq\":\u{0},").replace("\"seq\":5,", "\"seq\":?,")).unwrap();
        assert_eq!(all(folder.path()), [1, 2, 4]);
        drop(fill(folder.path(), 1));
        assert_eq!(all(folder.path()), [1, 2, 4, 6]);
    }

    #[test]
    fn a_long_tail_without_a_good_line_is_read_back_to_the_last_one() {
        let folder = tempfile::tempdir().unwrap();
        drop(fill(folder.path(), 2));
        add(folder.path(), &[vec![b'x'; 300_000], b"\n".to_vec(), vec![b'{'; 70_000]].concat());
        // What is torn there is not ours, but the journal is: a line of it can be read.
        drop(fill(folder.path(), 1));
        assert_eq!(all(folder.path()), [1, 2, 4]);
    }

    /// One digit that flips may make a number of any size; it must neither be counted on from, nor hide what is behind it.
    #[test]
    fn a_damaged_number_hides_no_event_and_leaves_room_to_go_on() {
        for (damaged, number) in [(3, 0), (3, u64::MAX), (3, 1 << 60), (2, 9), (2, 0), (2, u64::MAX)] {
            let folder = tempfile::tempdir().unwrap();
            drop(fill(folder.path(), 3));
            let path = folder.path().join(EVENTS);
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, text.replace(&format!("\"seq\":{damaged},"), &format!("\"seq\":{number},"))).unwrap();
            let journal = fill(folder.path(), 2);
            assert_eq!(journal.next_seq(), 6, "{number}");
            let mut follower = journal.shared().follow(0);
            let items: Vec<Item> = std::iter::from_fn(|| follower.next_item().unwrap()).collect();
            let seen: Vec<u64> =
                items.iter().filter_map(|i| if let Item::Event(e) = i { Some(e.seq) } else { None }).collect();
            assert_eq!(seen, (1..=5).filter(|seq| *seq != damaged).collect::<Vec<_>>(), "{number}");
            assert!(items.contains(&Item::Gap { first: damaged, last: damaged }), "{items:?}");
        }
    }

    #[test]
    fn names_and_cursors_with_numbers_that_no_event_has_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        drop(fill(folder.path(), 2));
        for first in [0, u64::MAX] {
            fs::write(folder.path().join(rotated_name(first)), "").unwrap();
        }
        for up_to in [u64::MAX, 1 << 60] {
            let cursor = folder.path().join("cursor-x.json");
            fs::write(cursor, format!("{{\"up_to\":{up_to},\"ahead\":[[{up_to},{up_to}]]}}")).unwrap();
            let journal = Journal::open(&Config::in_folder(folder.path())).unwrap();
            assert_eq!(journal.next_seq(), 3);
            assert_eq!(journal.shared().cursor("x").acknowledged().up_to, 2);
        }
    }

    /// What the fuzzer starts from: `cargo test --release --lib seeds_for -- --ignored` writes it anew. Between the file
    /// that is written, one that was rotated and a cursor there is a byte that no journal has.
    #[test]
    #[ignore = "writes fuzz/seeds/journal"]
    fn seeds_for_the_fuzzer_are_written() {
        let to = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/journal");
        fs::create_dir_all(&to).unwrap();
        let lines = |numbers: std::ops::RangeInclusive<u64>| {
            let line = |seq| serde_json::to_string(&sample(seq)).unwrap() + "\n";
            numbers.map(line).collect::<String>()
        };
        let torn = lines(1..=2)[..700].to_owned();
        let cursor = r#"{"up_to":3,"ahead":[[5,5]]}"#;
        for (name, text) in [
            ("one.jsonl", lines(1..=1)),
            ("three.jsonl", lines(1..=3)),
            ("torn.jsonl", torn),
            ("rotated.jsonl", lines(3..=5) + "\x1e" + &lines(1..=2) + "\x1e" + cursor),
            ("begun.jsonl", format!("\x1e{}", lines(1..=2))),
        ] {
            fs::write(to.join(name), text).unwrap();
        }
    }

    #[test]
    fn what_is_not_a_journal_is_refused_and_left_alone() {
        for foreign in ["hello", "{\"a\": 1}\n", "1,2,3\n4,5,6\n", "{\"v\":2,\"seq\":1}\n"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(EVENTS);
            fs::write(&path, foreign).unwrap();
            let e = Journal::open(&Config::in_folder(folder.path())).unwrap_err();
            assert_eq!(e.exit_code(), 2, "{e}");
            assert!(e.to_string().contains(EVENTS) && e.to_string().contains("another"), "{e}");
            assert_eq!(fs::read_to_string(&path).unwrap(), foreign);
        }
    }

    #[test]
    fn a_second_writer_is_told_who_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = fill(folder.path(), 1);
        let e = Journal::open(&Config::in_folder(folder.path())).unwrap_err().to_string();
        assert!(e.contains(&folder.path().display().to_string()), "{e}");
        assert!(e.contains(&format!("process {}", std::process::id())), "{e}");
        drop(first);
        assert_eq!(fill(folder.path(), 0).next_seq(), 2);
    }

    #[test]
    fn a_failed_write_leaves_neither_half_a_line_nor_a_hole_and_is_made_good() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = fill(folder.path(), 2);
        let shared = journal.shared();
        let mut follower = shared.follow(0);
        assert_eq!(followed(&mut follower), [1, 2]);
        // A file that can't be written stands for a disk that can't.
        let good = std::mem::replace(&mut journal.file, File::open(folder.path().join(EVENTS)).unwrap());
        add(folder.path(), b"{\"v\":1,\"half");
        for seq in [3, 4] {
            let mut event = sample(0);
            journal.append(&mut event);
            assert_eq!((event.seq, &event.flags[..]), (seq, &[Flag::Volatile][..]));
        }
        // Sinks have them at once, others when they are written.
        assert_eq!(followed(&mut follower), [3, 4]);
        assert_eq!(all(folder.path()), [1, 2]);
        assert_eq!((shared.stats().full, shared.stats().waiting), (true, 2));
        journal.file = good;
        journal.tick();
        assert_eq!((shared.stats().full, shared.stats().waiting), (false, 0));
        journal.append(&mut sample(0));
        assert_eq!(all(folder.path()), [1, 2, 3, 4, 5]);
        assert_eq!(followed(&mut follower), [5]);
        assert_eq!(followed(&mut shared.follow(2)), [3, 4, 5]);
        let text = fs::read_to_string(folder.path().join(EVENTS)).unwrap();
        assert!(!text.contains("half"), "{text}");
        assert_eq!(text.matches("volatile").count(), 2);
    }

    #[test]
    fn what_waits_has_a_bound_and_what_it_drops_is_counted_and_told() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = fill(folder.path(), 1);
        let shared = journal.shared();
        let mut follower = shared.follow(1);
        let good = std::mem::replace(&mut journal.file, File::open(folder.path().join(EVENTS)).unwrap());
        for _ in 0..MOST_WAITING + 5 {
            journal.append(&mut sample(0));
        }
        let stats = shared.stats();
        assert_eq!((stats.waiting, stats.dropped), (MOST_WAITING as u64, 5));
        assert_eq!(follower.next_item().unwrap(), Some(Item::Gap { first: 2, last: 6 }));
        let rest: Vec<u64> = (7..=MOST_WAITING as u64 + 6).collect();
        assert_eq!(followed(&mut follower), rest);
        journal.file = good;
        journal.append(&mut sample(0));
        let whole: Vec<u64> = [1].into_iter().chain(7..=MOST_WAITING as u64 + 7).collect();
        assert_eq!(all(folder.path()), whole);
        let mut again = shared.follow(0);
        assert_eq!(again.next_item().unwrap().map(|i| matches!(i, Item::Event(e) if e.seq == 1)), Some(true));
        assert_eq!(again.next_item().unwrap(), Some(Item::Gap { first: 2, last: 6 }));
        assert_eq!(followed(&mut again), whole[1..]);
    }

    #[test]
    fn synced_each_second_it_is_seen_only_then() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { fsync: Fsync::Second, ..Config::in_folder(folder.path()) };
        let mut journal = Journal::open(&config).unwrap();
        let mut follower = journal.shared().follow(0);
        journal.append(&mut sample(0));
        journal.append(&mut sample(0));
        assert!(followed(&mut follower).is_empty() && all(folder.path()).is_empty());
        journal.tick();
        assert_eq!(followed(&mut follower), [1, 2]);
        journal.append(&mut sample(0));
        drop(journal);
        assert_eq!(all(folder.path()), [1, 2, 3]);
        let mut journal = Journal::open(&config).unwrap();
        (0..5 * MOST_WAITING).for_each(|_| journal.append(&mut sample(0)));
        journal.tick();
        assert_eq!(journal.shared().stats().dropped, 0);
        assert_eq!(all(folder.path()).len(), 3 + 5 * MOST_WAITING);
    }

    /// Files of about three events, and limits that do not bite unless a test says so.
    fn small(folder: &Path, change: impl FnOnce(&mut Limits)) -> Journal {
        let line = serde_json::to_vec(&sample(1)).unwrap().len() as u64 + 1;
        let mut limits = Limits { file_bytes: 3 * line + 10, ..Limits::from(&Config::default()) };
        change(&mut limits);
        Journal::open_with(folder, Fsync::Event, limits).unwrap()
    }

    fn files_of(folder: &Path) -> Vec<u64> {
        rotated(folder).unwrap().iter().map(|f| f.first).collect()
    }

    #[test]
    fn files_are_rotated_and_read_as_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut reader = Reader::new(folder.path(), 0);
        let mut journal = small(folder.path(), |_| {});
        let mut follower = journal.shared().follow(0);
        for seq in 1..=10 {
            journal.append(&mut sample(0));
            assert_eq!(numbers(&mut reader), [seq]);
            assert_eq!(followed(&mut follower), [seq]);
        }
        assert_eq!(files_of(folder.path()), [1, 4, 7]);
        assert!(folder.path().join("events-000000000004.jsonl").is_file());
        assert_eq!(all(folder.path()), (1..=10).collect::<Vec<_>>());
        for from in 1..=10 {
            let expected: Vec<u64> = (from..=10).collect();
            assert_eq!(numbers(&mut Reader::new(folder.path(), from)), expected);
            assert_eq!(followed(&mut journal.shared().follow(from - 1)), expected);
        }
        let stats = journal.shared().stats();
        assert_eq!((stats.files, stats.written, stats.newest), (4, 10, 10));
        let bytes: u64 = fs::read_dir(folder.path())
            .unwrap()
            .map(|e| e.unwrap())
            .filter(|e| e.file_name().to_string_lossy().ends_with(".jsonl"))
            .map(|e| e.metadata().unwrap().len())
            .sum();
        assert_eq!(stats.bytes, bytes);
        drop(journal);
        let mut journal = small(folder.path(), |_| {});
        journal.append(&mut sample(0));
        assert_eq!(all(folder.path()), (1..=11).collect::<Vec<_>>());
        assert_eq!(followed(&mut follower), Vec::<u64>::new(), "it follows the journal that is closed");
    }

    #[test]
    fn numbers_go_on_when_the_file_is_empty_after_a_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = small(folder.path(), |l| l.file_age = Duration::ZERO);
        for _ in 0..2 {
            journal.append(&mut sample(0));
            journal.tick();
        }
        journal.tick();
        drop(journal);
        assert_eq!((files_of(folder.path()), fs::metadata(folder.path().join(EVENTS)).unwrap().len()), (vec![1, 2], 0));
        assert_eq!(fill(folder.path(), 1).next_seq(), 4);
        // A kill between the two steps of a rotation.
        fs::rename(folder.path().join(EVENTS), folder.path().join(rotated_name(3))).unwrap();
        assert_eq!(all(folder.path()), [1, 2, 3]);
        assert_eq!(fill(folder.path(), 1).next_seq(), 5);
        assert_eq!(all(folder.path()), [1, 2, 3, 4]);
    }

    #[test]
    fn old_files_go_when_every_sink_has_read_them() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = small(folder.path(), |l| l.keep_bytes = 0);
        let shared = journal.shared();
        let (mut quick, mut slow) = (shared.cursor("quick"), shared.cursor("slow"));
        for seq in 1..=7 {
            journal.append(&mut sample(0));
            quick.acknowledge(seq);
            quick.save();
        }
        journal.tick();
        assert_eq!(files_of(folder.path()), [1, 4]);
        (1..=3).for_each(|seq| slow.acknowledge(seq));
        journal.tick();
        assert_eq!(files_of(folder.path()), [1, 4], "what was not saved could be asked for again");
        slow.save();
        journal.tick();
        assert_eq!(files_of(folder.path()), [4]);
        let unread = |name: &str| shared.stats().cursors.iter().find(|c| c.name == name).unwrap().unread;
        assert_eq!((unread("quick"), unread("slow"), shared.stats().removed_unread), (0, 4, 0));
        // A reader whose file is gone goes on with the next one.
        assert_eq!(all(folder.path()), [4, 5, 6, 7]);
    }

    #[test]
    fn the_hard_limit_removes_what_is_unread_and_tells_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = small(folder.path(), |l| l.max_bytes = 2 * l.file_bytes);
        let shared = journal.shared();
        let mut cursor = shared.cursor("away");
        let mut follower = shared.follow(cursor.acknowledged().up_to);
        journal.append(&mut sample(0));
        assert_eq!(followed(&mut follower), [1]);
        cursor.acknowledge(1);
        cursor.save();
        (2..=10).for_each(|_| journal.append(&mut sample(0)));
        journal.tick();
        assert_eq!(files_of(folder.path()), [7]);
        assert_eq!((shared.stats().removed_unread, shared.stats().files), (5, 2));
        let mut late = shared.follow(1);
        assert_eq!(late.next_item().unwrap(), Some(Item::Gap { first: 2, last: 6 }));
        assert_eq!(followed(&mut late), [7, 8, 9, 10]);
        // One that had the file open reads it to its end.
        let seen: Vec<_> = std::iter::from_fn(|| follower.next_item().unwrap()).take(3).collect();
        assert!(
            matches!(&seen[..], [Item::Event(a), Item::Event(b), Item::Gap { first: 4, last: 6 }] if (a.seq, b.seq) == (2, 3)),
            "{seen:?}"
        );
    }

    #[test]
    fn a_new_cursor_begins_with_what_comes_and_goes_on_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let journal = fill(folder.path(), 3);
        let mut cursor = journal.shared().cursor("mqtt");
        assert_eq!(cursor.acknowledged().up_to, 3);
        cursor.acknowledge(9);
        cursor.acknowledge(4);
        drop(cursor);
        let expected = Acknowledged { up_to: 4, ahead: vec![(9, 9)] };
        assert_eq!(journal.shared().cursor("mqtt").acknowledged(), &expected);
        drop(journal);
        // Number 9 was seen by somebody, though it is not in the files.
        assert_eq!(fill(folder.path(), 0).next_seq(), 10);
    }

    #[test]
    fn a_bad_config_is_told() {
        assert_eq!(Config::default().fault(), None);
        assert!(Config { max_mb: 20, ..Config::default() }.fault().unwrap().contains("at least twice file_mb"));
        assert!(Config { file_mb: 0, ..Config::default() }.fault().is_some());
    }

    #[test]
    fn a_removed_file_is_begun_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = fill(folder.path(), 2);
        let mut reader = Reader::new(folder.path(), 0);
        assert_eq!(numbers(&mut reader), [1, 2]);
        fs::remove_file(folder.path().join(EVENTS)).unwrap();
        journal.append(&mut sample(0));
        assert_eq!(numbers(&mut reader), [3]);
    }

    #[test]
    fn a_reader_waits_for_the_file_and_for_the_rest_of_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let mut reader = Reader::new(folder.path(), 0);
        assert!(numbers(&mut reader).is_empty());
        drop(fill(folder.path(), 1));
        assert_eq!(numbers(&mut reader), [1]);
        let line = serde_json::to_string(&sample(2)).unwrap() + "\n";
        add(folder.path(), &line.as_bytes()[..50]);
        assert!(numbers(&mut reader).is_empty());
        add(folder.path(), &line.as_bytes()[50..]);
        assert_eq!(numbers(&mut reader), [2]);
    }

    #[test]
    fn a_reader_sees_what_stands_where_a_line_was_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = fill(folder.path(), 2);
        let before = journal.file.metadata().unwrap().len();
        let mut reader = Reader::new(folder.path(), 0);
        journal.append(&mut sample(0));
        assert_eq!(numbers(&mut reader), [1, 2, 3]);
        journal.file.set_len(before).unwrap();
        assert!(numbers(&mut reader).is_empty());
        let mut other = sample(3);
        other.label = "falling".into();
        add(folder.path(), format!("{}\n", serde_json::to_string(&other).unwrap()).as_bytes());
        assert_eq!(reader.next_event().unwrap(), Some(other));
    }

    #[test]
    fn a_file_of_one_endless_line_does_not_fill_the_memory() {
        let folder = tempfile::tempdir().unwrap();
        drop(fill(folder.path(), 1));
        add(folder.path(), &vec![b'x'; 5 << 20]);
        let mut reader = Reader::new(folder.path(), 0);
        assert_eq!(numbers(&mut reader), [1]);
        assert!(reader.line.capacity() as u64 <= 2 * LONGEST_LINE);
        add(folder.path(), b"\n");
        add(folder.path(), (serde_json::to_string(&sample(3)).unwrap() + "\n").as_bytes());
        assert_eq!(numbers(&mut reader), [3]);
    }

    #[test]
    fn no_byte_of_a_journal_can_make_it_panic() {
        let folder = tempfile::tempdir().unwrap();
        drop(fill(folder.path(), 2));
        let path = folder.path().join(EVENTS);
        let good = fs::read(&path).unwrap();
        for i in 0..good.len() {
            let mut bytes = good.clone();
            bytes[i] ^= 0x21;
            fs::write(&path, &bytes).unwrap();
            assert!(all(folder.path()).len() <= 2);
            if i % 16 == 0 {
                drop(Journal::open(&Config::in_folder(folder.path())));
            }
        }
    }
}
