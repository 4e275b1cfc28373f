//! The journal: every event, one JSON line each, in the order of their sequence numbers, on the disk before anyone else
//! hears of it.
//!
//! One daemon writes a journal (a lock sees to that); any number of [`Reader`]s may read it meanwhile. The folder holds
//! `events.jsonl`, its `events.lock`, and `events.jsonl.torn` once a power cut has left half a line.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{
    error::{Error, Result},
    event::{Event, VERSION},
};

const EVENTS: &str = "events.jsonl";
const LOCK: &str = "events.lock";
const TORN: &str = "events.jsonl.torn";

/// How every line begins that this program ever wrote.
const BEGINNING: &[u8] = b"{\"v\":";

/// No event comes near this; without a bound a file that is not a journal could fill the memory as one line.
const LONGEST_LINE: u64 = 1 << 20;

/// The writer.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    file: File,
    /// Held as long as the journal is.
    _lock: File,
    /// Bytes of whole lines; what lies behind is half a line of an append that failed.
    length: u64,
    next: u64,
    /// Something may lie behind `length`.
    dirty: bool,
    line: Vec<u8>,
}

/// What a line must have to be counted.
#[derive(Deserialize)]
struct Stub {
    v: u32,
    seq: u64,
}

impl Journal {
    /// Opens a folder's journal for writing, or begins one. Half a line at its end, left by a power cut or a kill, is
    /// moved to `events.jsonl.torn`: it was never acknowledged.
    ///
    /// Errors: `Unavailable` when another process writes it or the disk does not let us; `Config` when what is there is
    /// not a journal.
    pub fn open(folder: &Path) -> Result<Self> {
        let cannot = |what: &str, e: io::Error| {
            Error::unavailable(format!("cannot {what} the journal {}", folder.display())).caused_by(e)
        };
        fs::create_dir_all(folder).map_err(|e| cannot("create", e))?;
        let lock = lock(folder)?;
        let mut journal = Journal {
            folder: folder.to_owned(),
            file: create(folder).map_err(|e| cannot("open", e))?,
            _lock: lock,
            length: 0,
            next: 1,
            dirty: false,
            line: Vec::new(),
        };
        journal.repair().map_err(|e| match e {
            Damage::Io(e) => cannot("read", e),
            Damage::Foreign(what) => Error::config(format!("{}: {what}", journal.path().display())),
        })?;
        Ok(journal)
    }

    /// Gives the event its number and writes it; when this returns, it is on the disk.
    ///
    /// Errors: `Unavailable` when the disk is full or fails. The event has no number then and the journal is as it was;
    /// the next append tries again.
    pub fn append(&mut self, event: &mut Event) -> Result<()> {
        event.seq = self.next;
        self.line.clear();
        let written = serde_json::to_writer(&mut self.line, event).map_err(io::Error::from).and_then(|()| {
            self.line.push(b'\n');
            self.write()
        });
        match written {
            Ok(()) => {
                self.length += self.line.len() as u64;
                self.next += 1;
                Ok(())
            }
            Err(e) => {
                event.seq = 0;
                self.dirty = true;
                self.cut();
                Err(Error::unavailable(format!("cannot write to the journal {}", self.path().display())).caused_by(e))
            }
        }
    }

    /// The number that the next event gets.
    pub fn next_seq(&self) -> u64 {
        self.next
    }

    fn path(&self) -> PathBuf {
        self.folder.join(EVENTS)
    }

    fn write(&mut self) -> io::Result<()> {
        if self.dirty && !self.cut() {
            return Err(io::Error::other("half a line of a failed write can't be removed"));
        }
        if self.file.metadata()?.nlink() == 0 {
            log::error!("{} was removed; beginning it again", self.path().display());
            self.file = create(&self.folder)?;
            self.length = self.file.metadata()?.len();
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

    /// Finds the last number, and cuts off half a line.
    fn repair(&mut self) -> Result<(), Damage> {
        let length = self.file.metadata().map_err(Damage::Io)?.len();
        let (mut tail, mut from) = (Vec::new(), length);
        // From the end back in growing pieces, until there is a line that can be read: journals are long.
        loop {
            let piece = (1 << 16).max(tail.len() as u64 * 3).min(from);
            from -= piece;
            let mut longer = vec![0; piece as usize];
            self.file.read_exact_at(&mut longer, from).map_err(Damage::Io)?;
            longer.append(&mut tail);
            tail = longer;
            let whole = tail.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
            // The first line of the piece may be the end of one, unless the piece begins with the file.
            let begin = match from {
                0 => 0,
                _ => tail.iter().position(|b| *b == b'\n').map_or(whole, |i| i + 1).min(whole),
            };
            let lines = tail[begin..whole].split_inclusive(|b| *b == b'\n');
            let mut damaged = 0;
            let mut last = None;
            for line in lines.rev() {
                match serde_json::from_slice::<Stub>(line) {
                    Ok(stub) if stub.v != VERSION => {
                        return Err(Damage::Foreign(format!(
                            "its events are of version {}, this actiond writes version {VERSION}; use the newer one, or another journal",
                            stub.v
                        )));
                    }
                    Ok(stub) => {
                        last = Some(stub.seq);
                        break;
                    }
                    Err(_) => damaged += 1,
                }
            }
            if last.is_none() && from > 0 {
                continue;
            }
            let torn = &tail[whole..];
            let ours = BEGINNING.starts_with(torn) || torn.starts_with(BEGINNING) || torn.iter().all(|b| *b == 0);
            if last.is_none() && (damaged > 0 || !ours) {
                return Err(Damage::Foreign(
                    "this is not a journal, and is left as it is; choose another folder".into(),
                ));
            }
            if damaged > 0 {
                log::warn!("{}: the last {damaged} lines are damaged", self.path().display());
            }
            self.length = length - torn.len() as u64;
            // A damaged line had a number that someone may have seen: it is not given again.
            self.next = last.unwrap_or(0) + damaged + 1;
            if !torn.is_empty() {
                self.keep(torn).map_err(Damage::Io)?;
                self.file.set_len(self.length).and_then(|()| self.file.sync_all()).map_err(Damage::Io)?;
                log::warn!(
                    "{}: its last line was torn ({} bytes, never acknowledged); it is in {TORN} now",
                    self.path().display(),
                    torn.len()
                );
            }
            return Ok(());
        }
    }

    /// Puts torn bytes aside, so that nothing that was ever written is thrown away.
    fn keep(&self, torn: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(self.folder.join(TORN))?;
        match file.write_all(&[torn, b"\n"].concat()) {
            // On a full disk the repair is worth more than the remains.
            Err(e) if e.kind() == io::ErrorKind::StorageFull => Ok(()),
            result => result,
        }
    }
}

enum Damage {
    Io(io::Error),
    Foreign(String),
}

fn create(folder: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).read(true).append(true).open(folder.join(EVENTS))?;
    // Else a power cut could take a synced file by taking its name.
    File::open(folder)?.sync_all()?;
    Ok(file)
}

fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let cannot = |e| Error::unavailable(format!("cannot lock the journal {}", folder.display())).caused_by(e);
    // A file of its own, as the journal's may be replaced.
    let mut options = OpenOptions::new();
    let mut file = options.create(true).truncate(false).read(true).write(true).open(&path).map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let who = match file.read_to_string(&mut holder) {
                Ok(n) if n > 0 => format!("process {}", holder.trim()),
                _ => "another process".into(),
            };
            return Err(Error::unavailable(format!(
                "the journal {} is in use by {who}; stop that one, or give this one another journal",
                folder.display()
            )));
        }
        Err(TryLockError::Error(e)) => return Err(cannot(e)),
    }
    // Only for the sentence above: a full disk must not keep the daemon from starting.
    let noted = file.set_len(0).and_then(|()| file.write_all(std::process::id().to_string().as_bytes()));
    if let Err(e) = noted {
        log::debug!("{}: {e}", path.display());
    }
    Ok(file)
}

/// Reads a journal from its beginning, while it is written or not.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    file: Option<BufReader<File>>,
    /// Where the next line begins, and where the last one did.
    offset: u64,
    last: u64,
    line_number: u64,
    /// Within a line that is longer than any of ours.
    overlong: bool,
    from: u64,
    line: Vec<u8>,
}

impl Reader {
    /// A reader of the events from number `from` on. The journal need not be there yet.
    pub fn new(folder: &Path, from: u64) -> Self {
        Reader {
            path: folder.join(EVENTS),
            file: None,
            offset: 0,
            last: 0,
            line_number: 0,
            overlong: false,
            from,
            line: Vec::new(),
        }
    }

    /// Whether there is a journal in a folder.
    pub fn there(folder: &Path) -> bool {
        folder.join(EVENTS).is_file()
    }

    /// The next event; `None` when there is none yet, which may change: ask again later. Lines that can't be read are
    /// passed over with a warning; half a line at the end is one that is being written.
    ///
    /// Errors: `Unavailable` when the file can't be read.
    pub fn next_event(&mut self) -> Result<Option<Event>> {
        let cannot = |path: &Path, e| Error::unavailable(format!("cannot read {}", path.display())).caused_by(e);
        loop {
            match self.next_line() {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(e) => return Err(cannot(&self.path, e)),
            }
            match serde_json::from_slice::<Event>(&self.line) {
                Ok(event) if event.v != VERSION => {
                    log::warn!(
                        "{}:{}: an event of version {}, passed over",
                        self.path.display(),
                        self.line_number,
                        event.v
                    );
                }
                Ok(event) if event.seq < self.from => {}
                Ok(event) => return Ok(Some(event)),
                Err(e) => {
                    log::warn!("{}:{}: damaged, passed over ({e})", self.path.display(), self.line_number);
                }
            }
        }
    }

    /// Reads the next whole line; false when there is none.
    fn next_line(&mut self) -> io::Result<bool> {
        loop {
            let Some(file) = &mut self.file else {
                match File::open(&self.path) {
                    Ok(file) => self.file = Some(BufReader::new(file)),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
                    Err(e) => return Err(e),
                }
                (self.offset, self.last, self.line_number) = (0, 0, 0);
                continue;
            };
            self.line.clear();
            let read = file.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut self.line)? as u64;
            if self.line.ends_with(b"\n") {
                self.last = self.offset;
                self.offset += read;
                self.line_number += 1;
                if std::mem::take(&mut self.overlong) {
                    continue;
                }
                return Ok(true);
            }
            if read == LONGEST_LINE {
                if !self.overlong {
                    log::warn!("{}:{}: too long for an event, passed over", self.path.display(), self.line_number + 1);
                }
                self.overlong = true;
                self.offset += read;
                continue;
            }
            // The end for now. The writer may take back half a line or a line that it could not sync, and an
            // administrator may put another file in the place of this one.
            let (open, named) = (file.get_ref().metadata()?, fs::metadata(&self.path));
            if named.is_ok_and(|named| named.ino() != open.ino()) {
                self.file = None;
                continue;
            }
            if open.len() < self.offset {
                self.offset = self.last;
                self.line_number = self.line_number.saturating_sub(1);
                if open.len() < self.last {
                    self.file = None;
                    continue;
                }
            }
            file.seek(SeekFrom::Start(self.offset))?;
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::sample;

    fn fill(folder: &Path, count: u64) -> Journal {
        let mut journal = Journal::open(folder).unwrap();
        for _ in 0..count {
            journal.append(&mut sample(0)).unwrap();
        }
        journal
    }

    fn numbers(reader: &mut Reader) -> Vec<u64> {
        std::iter::from_fn(|| reader.next_event().unwrap()).map(|e| e.seq).collect()
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
        journal.append(&mut event).unwrap();
        assert_eq!((event.seq, journal.next_seq()), (6, 7));
        assert_eq!(all(&deep), [1, 2, 3, 4, 5, 6]);
        assert_eq!(numbers(&mut Reader::new(&deep, 5)), [5, 6]);
    }

    #[test]
    fn an_event_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let mut event = sample(0);
        Journal::open(folder.path()).unwrap().append(&mut event).unwrap();
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

    #[test]
    fn what_is_not_a_journal_is_refused_and_left_alone() {
        for foreign in ["hello", "{\"a\": 1}\n", "1,2,3\n4,5,6\n", "{\"v\":2,\"seq\":1}\n"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(EVENTS);
            fs::write(&path, foreign).unwrap();
            let e = Journal::open(folder.path()).unwrap_err();
            assert_eq!(e.exit_code(), 2, "{e}");
            assert!(e.to_string().contains(EVENTS) && e.to_string().contains("another"), "{e}");
            assert_eq!(fs::read_to_string(&path).unwrap(), foreign);
        }
    }

    #[test]
    fn a_second_writer_is_told_who_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = fill(folder.path(), 1);
        let e = Journal::open(folder.path()).unwrap_err().to_string();
        assert!(e.contains(&folder.path().display().to_string()), "{e}");
        assert!(e.contains(&format!("process {}", std::process::id())), "{e}");
        drop(first);
        assert_eq!(fill(folder.path(), 0).next_seq(), 2);
    }

    #[test]
    fn a_failed_write_leaves_neither_half_a_line_nor_a_hole() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = fill(folder.path(), 2);
        // A file that can't be written stands for a disk that can't.
        let good = std::mem::replace(&mut journal.file, File::open(folder.path().join(EVENTS)).unwrap());
        add(folder.path(), b"{\"v\":1,\"half");
        let mut event = sample(0);
        let e = journal.append(&mut event).unwrap_err();
        assert_eq!((e.kind(), event.seq), (crate::error::Kind::Unavailable, 0));
        assert!(journal.append(&mut event).is_err());
        journal.file = good;
        journal.append(&mut event).unwrap();
        assert_eq!(event.seq, 3);
        assert_eq!(all(folder.path()), [1, 2, 3]);
        assert!(!fs::read_to_string(folder.path().join(EVENTS)).unwrap().contains("half"));
    }

    #[test]
    fn a_removed_file_is_begun_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = fill(folder.path(), 2);
        let mut reader = Reader::new(folder.path(), 0);
        assert_eq!(numbers(&mut reader), [1, 2]);
        fs::remove_file(folder.path().join(EVENTS)).unwrap();
        journal.append(&mut sample(0)).unwrap();
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
        journal.append(&mut sample(0)).unwrap();
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
                drop(Journal::open(folder.path()));
            }
        }
    }
}
