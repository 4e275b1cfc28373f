//! How far a sink has come: a cursor moves only when the far end acknowledged, and is kept over restarts.
//!
//! A cursor is a number up to which everything was acknowledged, and a few ranges ahead of it: where a backlog drains
//! while new events go out at once, both are known exactly. Its file is replaced as a whole and synced, at most once in
//! two seconds or a hundred events, for the flash cards' sake: what was acknowledged within that before a kill is sent
//! once more.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    Shared,
    files::{is_number, sync_folder},
};

const SAVED_EVERY: Duration = Duration::from_secs(2);

/// Or after so many events, where they are many: a fraction of what the journal itself writes then.
const SAVED_AFTER: u64 = 100;

/// More ranges than this are not remembered: the last ones are sent once more after a restart.
const MOST_RANGES: usize = 64;

/// What was acknowledged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledged {
    /// Everything up to this number.
    pub up_to: u64,
    /// Ranges behind it, first and last number, in order.
    #[serde(default)]
    pub ahead: Vec<(u64, u64)>,
}

impl Acknowledged {
    pub fn has(&self, seq: u64) -> bool {
        seq <= self.up_to || self.ahead.iter().any(|&(first, last)| (first..=last).contains(&seq))
    }

    /// Adds the numbers from `first` to `last`.
    pub fn add(&mut self, first: u64, last: u64) {
        let (mut first, mut last) = (first.max(self.up_to + 1), last);
        if last < first {
            return;
        }
        self.ahead.retain(|&(f, l)| {
            let touches = f <= last.saturating_add(1) && first <= l.saturating_add(1);
            if touches {
                (first, last) = (first.min(f), last.max(l));
            }
            !touches
        });
        // A range that grew may touch one that was passed by.
        let at = self.ahead.partition_point(|&(f, _)| f < first);
        self.ahead.insert(at, (first, last));
        if self.ahead[0].0 <= self.up_to + 1 {
            self.up_to = self.ahead.remove(0).1;
        }
    }

    /// The first number from `seq` on that was not acknowledged.
    pub fn first_open(&self, seq: u64) -> u64 {
        let seq = seq.max(self.up_to + 1);
        self.ahead.iter().fold(seq, |seq, &(first, last)| if (first..=last).contains(&seq) { last + 1 } else { seq })
    }

    /// How many of the numbers up to `last` are open.
    pub fn open_up_to(&self, last: u64) -> u64 {
        let ahead = self.ahead.iter().map(|&(f, l)| (l.min(last) + 1).saturating_sub(f)).sum::<u64>();
        last.saturating_sub(self.up_to).saturating_sub(ahead)
    }
}

/// A sink's place in the journal.
#[derive(Debug)]
pub struct Cursor {
    name: String,
    path: PathBuf,
    shared: Arc<Shared>,
    acknowledged: Acknowledged,
    changed: bool,
    /// Events acknowledged since it was saved.
    unsaved: u64,
    saved: Option<Instant>,
    /// Said that it can't be saved.
    complained: bool,
}

impl Cursor {
    /// The cursor of this name; one that is not there yet begins behind everything that there is.
    pub(super) fn open(name: &str, shared: Arc<Shared>) -> Cursor {
        let path = shared.folder.join(file_name(name));
        let (acknowledged, is_new) = match read(&path) {
            Ok(acknowledged) => (acknowledged, false),
            Err(e) if e.kind() == io::ErrorKind::NotFound => (Acknowledged::default(), true),
            Err(e) => {
                log::error!("{}: {e}; {name} begins with what comes now", path.display());
                (Acknowledged::default(), true)
            }
        };
        let acknowledged = match is_new {
            true => Acknowledged { up_to: shared.newest(), ahead: Vec::new() },
            false => acknowledged,
        };
        let (changed, saved, complained) = (is_new, None, false);
        let name = name.into();
        let mut cursor = Cursor { name, path, shared, acknowledged, changed, unsaved: 0, saved, complained };
        cursor.shared.register(&cursor.name, &cursor.acknowledged);
        cursor.save();
        cursor
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn acknowledged(&self) -> &Acknowledged {
        &self.acknowledged
    }

    /// The far end has this event.
    pub fn acknowledge(&mut self, seq: u64) {
        self.pass(seq, seq);
    }

    /// These events are dealt with: acknowledged, or lost.
    pub fn pass(&mut self, first: u64, last: u64) {
        self.acknowledged.add(first, last);
        self.changed = true;
        self.unsaved += 1;
        self.shared.moved(&self.name, &self.acknowledged);
    }

    /// When it wants to be saved; none where it has not moved.
    pub fn save_due(&self) -> Option<Instant> {
        let after = if self.unsaved < SAVED_AFTER { SAVED_EVERY } else { Duration::ZERO };
        self.changed.then(|| self.saved.map_or_else(Instant::now, |saved| saved + after))
    }

    /// Writes it to its file if it has moved. Where that fails it is said once and tried again later.
    pub fn save(&mut self) {
        if !self.changed {
            return;
        }
        (self.saved, self.unsaved) = (Some(Instant::now()), 0);
        match write(&self.path, &self.acknowledged) {
            Ok(()) => {
                self.changed = false;
                self.complained = false;
                self.shared.saved(&self.name, self.acknowledged.up_to);
            }
            Err(e) if self.complained => log::debug!("{}: {e}", self.path.display()),
            Err(e) => {
                self.complained = true;
                log::warn!(
                    "cannot write {}: {e}; after a restart {} would get some events once more",
                    self.path.display(),
                    self.name
                );
            }
        }
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.save();
    }
}

fn file_name(name: &str) -> String {
    format!("cursor-{name}.json")
}

fn read(path: &Path) -> io::Result<Acknowledged> {
    let read: Acknowledged = serde_json::from_slice(&fs::read(path)?)?;
    if read.up_to > 0 && !is_number(read.up_to) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("no event has the number {}", read.up_to)));
    }
    // Whoever wrote it: added one by one they are in order and do not touch.
    let mut clean = Acknowledged { up_to: read.up_to, ahead: Vec::new() };
    read.ahead.iter().filter(|(f, l)| f <= l && is_number(*l)).take(MOST_RANGES).for_each(|&(f, l)| clean.add(f, l));
    Ok(clean)
}

fn write(path: &Path, acknowledged: &Acknowledged) -> io::Result<()> {
    let mut kept = acknowledged.clone();
    kept.ahead.truncate(MOST_RANGES);
    write_whole(path, &serde_json::to_vec(&kept)?)
}

/// Replaces a file as a whole: after a power cut it is the old one or the new one.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let part = path.with_extension("part");
    let written = File::create(&part).and_then(|mut file| {
        file.write_all(content)?;
        file.write_all(b"\n")?;
        file.sync_all()
    });
    if let Err(e) = written {
        let _ = fs::remove_file(&part);
        return Err(e);
    }
    fs::rename(&part, path)?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// The highest number that any cursor in a folder has come to, those of sinks that are configured no more among them.
pub(super) fn highest(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let ours = entries.filter(|path| {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        name.starts_with("cursor-") && name.ends_with(".json")
    });
    let of = |a: Acknowledged| a.ahead.last().map_or(a.up_to, |&(_, last)| last.max(a.up_to));
    ours.filter_map(|path| read(&path).ok()).map(of).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join_and_the_first_becomes_the_cursor() {
        let mut a = Acknowledged { up_to: 10, ahead: Vec::new() };
        for (first, last, up_to, ahead) in [
            (20, 22, 10, vec![(20, 22)]),
            (23, 23, 10, vec![(20, 23)]),
            (30, 30, 10, vec![(20, 23), (30, 30)]),
            (12, 12, 10, vec![(12, 12), (20, 23), (30, 30)]),
            (11, 11, 12, vec![(20, 23), (30, 30)]),
            (5, 11, 12, vec![(20, 23), (30, 30)]),
            (22, 29, 12, vec![(20, 30)]),
            (13, 19, 30, vec![]),
            (31, 31, 31, vec![]),
        ] {
            a.add(first, last);
            assert_eq!((a.up_to, &a.ahead), (up_to, &ahead), "after {first} to {last}");
        }
    }

    /// Against a plain set, in an order from a fixed seed.
    #[test]
    fn whatever_the_order_it_is_the_set_that_was_added() {
        let mut state = 7u64;
        let mut random = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        for _ in 0..200 {
            let (mut a, mut set) = (Acknowledged { up_to: 3, ahead: Vec::new() }, [false; 60]);
            set[..=3].fill(true);
            for _ in 0..20 {
                let first = random(50);
                let last = first + random(6);
                a.add(first, last);
                set[first as usize..=last as usize].fill(true);
                for (seq, &there) in set.iter().enumerate().skip(1) {
                    assert_eq!(a.has(seq as u64), there, "{seq} in {a:?}");
                }
                assert!(!a.has(a.up_to + 1) && a.ahead.windows(2).all(|w| w[0].1 + 1 < w[1].0), "{a:?}");
                let open = set.iter().skip(1).filter(|there| !**there).count() as u64;
                assert_eq!(a.open_up_to(59), open, "{a:?}");
                assert!(!a.has(a.first_open(1)) && (1..a.first_open(20)).skip(19).all(|seq| a.has(seq)), "{a:?}");
            }
        }
    }

    #[test]
    fn a_cursor_file_of_anything_is_no_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cursor-x.json");
        for text in [
            "",
            "{}",
            "[]",
            "{\"up_to\":-1}",
            "{\"up_to\":3,\"ahead\":[[9,2],[18446744073709551615,18446744073709551615]]}",
        ] {
            fs::write(&path, text).unwrap();
            if let Ok(mut read) = read(&path) {
                read.add(5, 6);
                assert!(read.has(5), "{text}");
            }
            highest(folder.path());
        }
    }
}
