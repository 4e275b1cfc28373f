//! Room that is kept for a full disk: a file which is removed when a daemon ends while events still wait, so that they
//! can be written. Until then it holds the highest number that was given, in place, which takes no room: numbers of
//! events that a kill loses must not be given again.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::files::is_number;

const RESERVE: &str = "events.reserve";

/// What [`MOST_WAITING`](super::MOST_WAITING) events take.
const SIZE: u64 = 1 << 20;

/// A number as it stands at the file's beginning.
const DIGITS: usize = 20;

/// What a file system holds and what is free of it, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub size: u64,
    pub free: u64,
}

pub(crate) fn room(folder: &Path) -> io::Result<Room> {
    let disk = rustix::fs::statvfs(folder)?;
    Ok(Room { size: disk.f_blocks.saturating_mul(disk.f_frsize), free: disk.f_bavail.saturating_mul(disk.f_frsize) })
}

#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    file: Option<File>,
}

impl Reserve {
    pub fn open(folder: &Path) -> Self {
        let mut reserve = Reserve { path: folder.join(RESERVE), file: None };
        reserve.fill();
        reserve
    }

    /// Makes the file where there is none and room for it: it must not be what fills the disk.
    pub fn fill(&mut self) {
        if self.file.is_some() {
            return;
        }
        let filled = || {
            let missing = SIZE.saturating_sub(fs::metadata(&self.path).map_or(0, |m| m.len()));
            let folder = self.path.parent().unwrap_or(Path::new("."));
            if missing > 0 && room(folder)?.free < 4 * SIZE {
                return Ok(None);
            }
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&self.path)?;
            // Zeros, not a hole in the file: that would keep nothing.
            file.write_all_at(&vec![0; missing as usize], SIZE - missing)?;
            file.sync_all()?;
            Ok(Some(file))
        };
        match filled() {
            Ok(file) => self.file = file,
            Err::<_, io::Error>(e) => log::debug!("{}: {e}", self.path.display()),
        }
    }

    /// The highest number that was given while the disk was full; 0 where there was none.
    pub fn number(&self) -> u64 {
        let mut digits = [0; DIGITS];
        let read = self.file.as_ref().and_then(|file| file.read_exact_at(&mut digits, 0).ok());
        let number = read.and_then(|()| std::str::from_utf8(&digits).ok()?.parse().ok());
        number.filter(|number| is_number(*number)).unwrap_or(0)
    }

    pub fn keep_number(&self, number: u64) {
        let Some(file) = &self.file else { return };
        let kept = file.write_all_at(format!("{number:0DIGITS$}").as_bytes(), 0).and_then(|()| file.sync_data());
        if let Err(e) = kept {
            log::debug!("{}: {e}", self.path.display());
        }
    }

    /// Gives the room back to the disk. Returns whether there was some.
    pub fn release(&mut self) -> bool {
        self.file.take().is_some_and(|_| fs::remove_file(&self.path).is_ok())
    }
}
