//! `actiond replay`: decides recorded scores anew, with the same settings or others, in seconds.

use std::path::PathBuf;

use super::{events::Printer, timeline};
use crate::{
    config,
    decide::Phase,
    error::{Error, Result},
    event::Event,
    journal::{self, Journal},
    record::{self, Reader},
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  actiond run actiond.toml --record scores
  actiond replay scores
  actiond replay scores --config other.toml --json | jq '.[].label'")]
pub struct Args {
    /// The folder that `run --record` wrote, or one file of it.
    recording: PathBuf,
    /// Decide by the [events] of this config in place of those that were recorded.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write the events to the journal in this folder as well.
    #[arg(long, value_name = "DIR")]
    journal: Option<PathBuf>,
    /// Compare the events with what truly happened: a table of label, start_s, end_s.
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    timeline: Option<PathBuf>,
    /// Print JSON and nothing else: one array with every phase of each event.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let events = args.config.as_deref().map(config::events).transpose()?;
    let truths = args.timeline.as_deref().map(timeline::read).transpose()?;
    let recordings = record::find_all(&args.recording)?;
    let mut journal = args.journal.as_deref().map(|p| Journal::open(&journal::Config::in_folder(p))).transpose()?;
    let mut printer = Printer::new();
    let (mut ended, mut all): (Vec<Event>, Vec<Event>) = (Vec::new(), Vec::new());
    let mut number = 0;
    for recording in &recordings {
        let mut reader = Reader::open(recording)?;
        let replayed = record::replay(&mut reader, events.as_ref(), &mut |event| {
            number += 1;
            event.seq = number;
            if let Some(journal) = &mut journal {
                journal.append(event);
                if journal.shared().stats().full {
                    return Err(Error::unavailable("the disk is full: not every event is in the journal"));
                }
            }
            match args.json {
                true => all.push(event.clone()),
                false => printer.print(event),
            }
            if event.phase == Phase::End && truths.is_some() {
                ended.push(event.clone());
            }
            Ok(())
        })?;
        log::info!(
            "{}: {} hops of {} camera{}, {} gaps",
            recording.display(),
            replayed.hops,
            replayed.cameras,
            if replayed.cameras == 1 { "" } else { "s" },
            replayed.gaps
        );
    }
    if let Some(truths) = truths {
        super::say(&format!("\n{}", timeline::compare(&truths, &ended)))?;
    }
    if args.json { super::say_json(&all) } else { Ok(()) }
}
