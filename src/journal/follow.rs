//! Following a journal in the process that writes it: only what is synced is seen, and while there is no room for
//! more, what waits in memory.

use std::sync::Arc;

use super::{Reader, Shared, shared::Beyond};
use crate::{error::Result, event::Event};

/// What comes next.
#[derive(Debug, PartialEq)]
pub enum Item {
    Event(Box<Event>),
    /// These events are gone: the hard size limit, the bound of what waits while the disk is full, damage, or somebody
    /// who removed a file.
    Gap {
        first: u64,
        last: u64,
    },
}

/// A place in the journal that moves on with every event that is taken.
#[derive(Debug)]
pub struct Follower {
    shared: Arc<Shared>,
    reader: Reader,
    /// The number that was taken last.
    at: u64,
    /// Read, but not to be seen yet.
    held: Option<Box<Event>>,
    /// How often lines had been taken back when the reader began.
    cuts: u64,
}

impl Follower {
    pub(super) fn new(shared: Arc<Shared>, after: u64) -> Self {
        let reader = Reader::new(&shared.folder, after + 1);
        let cuts = shared.beyond(after).cuts;
        Follower { shared, reader, at: after, held: None, cuts }
    }

    /// The number that was taken last.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The next event, or what is missing before it; `None` when there is none yet.
    ///
    /// Errors: `Unavailable` when a file can't be read.
    pub fn next_item(&mut self) -> Result<Option<Item>> {
        loop {
            let Beyond { written, waiting, cuts } = self.shared.beyond(self.at);
            if cuts != self.cuts {
                // What the reader has read ahead may have been taken back, and written again otherwise.
                self.cuts = cuts;
                self.reader = Reader::new(&self.shared.folder, self.at + 1);
                self.held = None;
            }
            if self.at >= written {
                return Ok(waiting.map(|event| self.take(event)));
            }
            let read = match self.held.take() {
                Some(held) => Some(held),
                None => self.read()?,
            };
            match read {
                Some(event) if event.seq <= self.at => {}
                // Were it held, nothing that comes until then would be seen.
                Some(event) if event.seq > self.shared.newest() => {
                    log::warn!("an event says that it is number {}, which was never given: passed over", event.seq);
                }
                Some(event) if event.seq <= written => return Ok(Some(self.take(event))),
                // What was to be between is not there.
                beyond => {
                    self.held = beyond;
                    let first = self.at + 1;
                    self.at = written;
                    return Ok(Some(Item::Gap { first, last: written }));
                }
            }
        }
    }

    fn read(&mut self) -> Result<Option<Box<Event>>> {
        if let Some(event) = self.reader.next_event()? {
            return Ok(Some(Box::new(event)));
        }
        // Only while no file is being rotated "nothing" means that there is nothing.
        let _standing = self.shared.lock();
        Ok(self.reader.next_event()?.map(Box::new))
    }

    fn take(&mut self, event: Box<Event>) -> Item {
        if event.seq > self.at + 1 {
            let first = self.at + 1;
            self.at = event.seq - 1;
            self.held = Some(event);
            return Item::Gap { first, last: self.at };
        }
        self.at = event.seq;
        Item::Event(event)
    }
}
