//! One file a subcommand: its arguments beside the code that it runs.

pub mod bench;
pub mod check;
pub mod compile;
pub mod doctor;
pub mod eval;
pub mod events;
pub mod infer;
mod reload;
pub mod replay;
pub mod run;
mod timeline;
pub mod tune;

use std::io::{self, Write};

use serde::Serialize;

use crate::error::{Error, Result};

/// Prints a line or more to stdout; a reader that has seen enough (`| head`) is no error.
fn say(text: &str) -> Result<()> {
    match writeln!(io::stdout().lock(), "{}", text.trim_end_matches('\n')) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Error::internal("cannot print").caused_by(e)),
        _ => Ok(()),
    }
}

/// What `--json` prints: one document on one line.
fn say_json(document: &impl Serialize) -> Result<()> {
    say(&serde_json::to_string(document).map_err(|e| Error::internal("cannot write JSON").caused_by(e))?)
}
