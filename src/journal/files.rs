//! The files of a journal: their names, their ends, and the lock.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{EVENTS, LOCK};
use crate::{
    error::{Error, Result},
    event::VERSION,
};

/// How every line begins that this program ever wrote.
const BEGINNING: &[u8] = b"{\"v\":";

/// No event is numbered higher; a thousand a second would take 140,000 years. A file that says more is damaged, and must
/// not leave us without numbers to go on with.
const MOST: u64 = 1 << 52;

/// Whether this can be an event's number.
pub(super) fn is_number(seq: u64) -> bool {
    (1..=MOST).contains(&seq)
}

/// A file that was rotated.
#[derive(Debug, Clone)]
pub(super) struct Rotated {
    pub path: PathBuf,
    /// The number of its first event, which is in its name.
    pub first: u64,
}

/// The rotated files of a folder, in order.
pub(super) fn rotated(folder: &Path) -> io::Result<Vec<Rotated>> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let digits = name.strip_prefix("events-").and_then(|n| n.strip_suffix(".jsonl"));
        if let Some(first) = digits.and_then(|d| d.parse().ok()).filter(|first| is_number(*first)) {
            files.push(Rotated { path, first });
        }
    }
    files.sort_by_key(|f| f.first);
    Ok(files)
}

/// The name of a file whose first event has this number: names sort as the numbers do.
pub(super) fn rotated_name(first: u64) -> String {
    format!("events-{first:012}.jsonl")
}

/// Opens the file that is written, or begins it.
pub(super) fn create(folder: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).read(true).append(true).open(folder.join(EVENTS))?;
    // Else a power cut could take a synced file by taking its name.
    sync_folder(folder)?;
    Ok(file)
}

pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// What a line must have to be counted.
#[derive(Deserialize)]
struct Stub {
    v: u32,
    seq: u64,
}

pub(super) enum Damage {
    Io(io::Error),
    Foreign(String),
}

/// How a file ends.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// Bytes of whole lines.
    pub length: u64,
    /// Number of the last line that can be read.
    pub last: Option<u64>,
    /// Lines behind it that can't.
    pub damaged: u64,
    /// Half a line behind them.
    pub torn: Vec<u8>,
    /// The last whole lines, as many as had to be read.
    pub lines: Vec<u8>,
}

/// Reads a file from its end until there is a line that can be read: journals are long.
///
/// Errors: `Foreign` when it is not a journal of ours, unless it is `known` to be one.
pub(super) fn tail(file: &File, known: bool) -> Result<Tail, Damage> {
    let end = file.metadata().map_err(Damage::Io)?.len();
    let (mut tail, mut from) = (Vec::new(), end);
    loop {
        let piece = (1 << 16).max(tail.len() as u64 * 3).min(from);
        from -= piece;
        let mut longer = vec![0; piece as usize];
        file.read_exact_at(&mut longer, from).map_err(Damage::Io)?;
        longer.append(&mut tail);
        tail = longer;
        let whole = tail.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        // The first line of the piece may be the end of one, unless the piece begins with the file.
        let begin = match from {
            0 => 0,
            _ => tail.iter().position(|b| *b == b'\n').map_or(whole, |i| i + 1).min(whole),
        };
        let (mut damaged, mut last) = (0, None);
        for line in tail[begin..whole].split_inclusive(|b| *b == b'\n').rev() {
            match serde_json::from_slice::<Stub>(line) {
                Ok(stub) if stub.v != VERSION => {
                    return Err(Damage::Foreign(format!(
                        "its events are of version {}, this actiond writes version {VERSION}; use the newer one, or another journal",
                        stub.v
                    )));
                }
                Ok(stub) if is_number(stub.seq) => {
                    last = Some(stub.seq);
                    break;
                }
                _ => damaged += 1,
            }
        }
        if last.is_none() && from > 0 {
            continue;
        }
        let torn = tail.split_off(whole);
        let ours = BEGINNING.starts_with(&torn) || torn.starts_with(BEGINNING) || torn.iter().all(|b| *b == 0);
        if last.is_none() && !known && (damaged > 0 || !ours) {
            return Err(Damage::Foreign("this is not a journal, and is left as it is; choose another folder".into()));
        }
        let length = end - torn.len() as u64;
        return Ok(Tail { length, last, damaged, torn, lines: tail.split_off(begin) });
    }
}

/// The number of a file's first line that can be read and is not beyond `newest`.
pub(super) fn first(file: &File, newest: u64) -> io::Result<Option<u64>> {
    let mut start = vec![0; 1 << 16];
    let read = file.read_at(&mut start, 0)?;
    let lines = start[..read].split_inclusive(|b| *b == b'\n');
    let mut numbers = lines.filter_map(|line| serde_json::from_slice::<Stub>(line).ok()).map(|stub| stub.seq);
    Ok(numbers.find(|&seq| is_number(seq) && seq <= newest))
}

/// Takes the journal for this process.
pub(super) fn lock(folder: &Path) -> Result<File> {
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
