//! Reading a journal's files, while they are written or not, in this process or another.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{
    EVENTS,
    files::{Rotated, rotated},
};
use crate::{
    error::{Error, Result},
    event::{Event, VERSION},
};

/// No event comes near this; without a bound a file that is not a journal could fill the memory as one line.
pub(super) const LONGEST_LINE: u64 = 1 << 20;

/// Reads a journal from its beginning, file by file, and follows it when it is rotated.
#[derive(Debug)]
pub struct Reader {
    folder: PathBuf,
    file: Option<Open>,
    from: u64,
    /// The number of the last event that was read.
    after: u64,
    pub(super) line: Vec<u8>,
}

#[derive(Debug)]
struct Open {
    path: PathBuf,
    file: BufReader<File>,
    inode: u64,
    /// Where the next line begins, and where the last one did.
    offset: u64,
    last: u64,
    line_number: u64,
    /// Within a line that is longer than any of ours.
    overlong: bool,
    /// Nothing is written to it any more.
    closed: bool,
}

impl Reader {
    /// A reader of the events from number `from` on. The journal need not be there yet.
    pub fn new(folder: &Path, from: u64) -> Self {
        Reader { folder: folder.to_owned(), file: None, from, after: 0, line: Vec::new() }
    }

    /// Whether there is a journal in a folder.
    pub fn there(folder: &Path) -> bool {
        folder.join(EVENTS).is_file() || rotated(folder).is_ok_and(|files| !files.is_empty())
    }

    /// The next event; `None` when there is none yet, which may change: ask again later. Lines that can't be read are
    /// passed over with a warning; half a line at the end is one that is being written.
    ///
    /// Errors: `Unavailable` when a file can't be read.
    pub fn next_event(&mut self) -> Result<Option<Event>> {
        loop {
            match self.next_line() {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(e) => {
                    let path = self.file.as_ref().map_or(&self.folder, |f| &f.path);
                    return Err(Error::unavailable(format!("cannot read {}", path.display())).caused_by(e));
                }
            }
            let place = || self.file.as_ref().map(|f| format!("{}:{}", f.path.display(), f.line_number));
            match serde_json::from_slice::<Event>(&self.line) {
                Ok(event) if event.v != VERSION => {
                    log::warn!("{}: an event of version {}, passed over", place().unwrap_or_default(), event.v);
                }
                Ok(event) => {
                    self.after = event.seq;
                    if event.seq >= self.from {
                        return Ok(Some(event));
                    }
                }
                Err(e) => log::warn!("{}: damaged, passed over ({e})", place().unwrap_or_default()),
            }
        }
    }

    /// Reads the next whole line; false when there is none.
    fn next_line(&mut self) -> io::Result<bool> {
        loop {
            let Some(open) = &mut self.file else {
                match self.first()? {
                    Some(first) => self.file = Some(first),
                    None => return Ok(false),
                }
                continue;
            };
            self.line.clear();
            let read = open.file.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut self.line)? as u64;
            if self.line.ends_with(b"\n") {
                open.last = open.offset;
                open.offset += read;
                open.line_number += 1;
                if std::mem::take(&mut open.overlong) {
                    continue;
                }
                return Ok(true);
            }
            if read == LONGEST_LINE {
                if !open.overlong {
                    let number = open.line_number + 1;
                    log::warn!("{}:{number}: too long for an event, passed over", open.path.display());
                }
                open.overlong = true;
                open.offset += read;
                continue;
            }
            // The end for now. The writer may rotate the file, or take back half a line or a line that it could not
            // sync, and an administrator may put another file in the place of this one.
            let live = fs::metadata(self.folder.join(EVENTS)).ok().map(|m| m.ino());
            if live == Some(open.inode) {
                let length = open.file.get_ref().metadata()?.len();
                if length < open.offset {
                    open.offset = open.last;
                    open.line_number = open.line_number.saturating_sub(1);
                    if length < open.last {
                        self.file = None;
                        continue;
                    }
                }
                open.file.seek(SeekFrom::Start(open.offset))?;
                return Ok(false);
            }
            if !std::mem::replace(&mut open.closed, true) {
                // A line may have come between the end that we saw and the rotation.
                open.file.seek(SeekFrom::Start(open.offset))?;
                continue;
            }
            match self.following()? {
                Some(next) => self.file = Some(next),
                None => return Ok(false),
            }
        }
    }

    /// The file that the first wanted event is in.
    fn first(&self) -> io::Result<Option<Open>> {
        let from = self.from.max(self.after.saturating_add(1));
        self.open_first_of(|files| files.iter().rposition(|f| f.first <= from).unwrap_or(0))
    }

    /// The file behind the one that is open.
    fn following(&self) -> io::Result<Option<Open>> {
        let inode = self.file.as_ref().map(|f| f.inode);
        self.open_first_of(|files| {
            match files.iter().position(|f| fs::metadata(&f.path).ok().map(|m| m.ino()) == inode) {
                Some(ours) => ours + 1,
                // It was removed: what comes behind is told by the numbers.
                None => files.iter().position(|f| f.first > self.after).unwrap_or(files.len()),
            }
        })
    }

    /// Opens the first of the rotated files from a place on that is there, or the file that is written now.
    fn open_first_of(&self, place: impl Fn(&[Rotated]) -> usize) -> io::Result<Option<Open>> {
        loop {
            let files = rotated(&self.folder)?;
            let paths = files.iter().skip(place(&files)).map(|f| f.path.clone());
            let mut opened = None;
            for path in paths.chain([self.folder.join(EVENTS)]) {
                match File::open(&path) {
                    Ok(file) => {
                        opened = Some((path, file));
                        break;
                    }
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(e),
                }
            }
            let Some((path, file)) = opened else { return Ok(None) };
            // Between the list and the opening the file that was written may have been rotated: this is the one behind it
            // then, and that one would be passed over.
            if path.ends_with(EVENTS) && rotated(&self.folder)?.last().map(|f| f.first) != files.last().map(|f| f.first)
            {
                continue;
            }
            let inode = file.metadata()?.ino();
            let file = BufReader::new(file);
            let (offset, last, line_number) = (0, 0, 0);
            return Ok(Some(Open { path, file, inode, offset, last, line_number, overlong: false, closed: false }));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;
    use crate::{
        event::sample,
        journal::{Config, Journal, files::rotated_name},
    };

    #[test]
    fn no_file_is_passed_over_that_is_rotated_while_a_reader_looks_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(&Config::in_folder(folder.path())).unwrap();
        (0..2).for_each(|_| journal.append(&mut sample(0)));
        let (journal, looks) = (RefCell::new(journal), Cell::new(0));
        // The place is asked for between the list of the files and the opening of one.
        let opened = Reader::new(folder.path(), 1).open_first_of(|files| {
            if looks.replace(looks.get() + 1) == 0 {
                journal.borrow_mut().rotate();
                journal.borrow_mut().append(&mut sample(0));
            }
            files.iter().rposition(|f| f.first <= 1).unwrap_or(0)
        });
        assert_eq!(opened.unwrap().unwrap().path, folder.path().join(rotated_name(1)));
        assert_eq!(looks.get(), 2);
    }
}
