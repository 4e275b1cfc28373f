//! `actiond events`: reads the journal, follows it, filters it, and prints it for a person or a program.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, IsTerminal, Stdout, Write},
    path::PathBuf,
    thread,
    time::Duration,
};

use jiff::{SignedDuration, Span, Timestamp, Zoned, civil, tz::TimeZone};

use crate::{
    config::DEFAULT_JOURNAL,
    error::{Error, Result},
    event::{Event, Phase},
    journal::Reader,
};

/// How often a followed journal is looked at.
const POLL: Duration = Duration::from_millis(200);

/// Events of the past that are shown before following, unless `--since` says from when on.
const BEFORE_FOLLOWING: usize = 10;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  actiond events --since 2h
  actiond events --follow --label falling
  actiond events --since 2026-11-24 --json | jq '.[].label'")]
pub struct Args {
    /// Folder of the journal.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_JOURNAL)]
    journal: PathBuf,
    /// Go on and print events as they come. Begins with the last ten; with --since, with all since then.
    #[arg(long, short)]
    follow: bool,
    /// Only events of this camera; may be given several times.
    #[arg(long)]
    camera: Vec<String>,
    /// Only events of this label; may be given several times.
    #[arg(long)]
    label: Vec<String>,
    /// Only what was still going on then or came later: 90s, 10m, 2h, 3d, 1w ago, a date, or a time as in the events.
    #[arg(long, value_name = "T", value_parser = |text: &str| since(text, &Zoned::now()))]
    since: Option<Timestamp>,
    /// Print JSON and nothing else: one array with every phase of each event; with --follow, one object a line.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if !args.follow && !Reader::there(&args.journal) {
        return Err(Error::config(format!(
            "there is no journal in {}; `actiond run` writes one, and --journal says where it is",
            args.journal.display()
        )));
    }
    let mut reader = Reader::new(&args.journal, 0);
    let printed = match (args.follow, args.json) {
        (true, _) => follow(args, &mut reader),
        (false, true) => document(args, &mut reader, &mut io::stdout().lock()),
        (false, false) => table(args, &mut reader, &mut Printer::new()),
    };
    match printed {
        Err(Stop::Reading(e)) => Err(e),
        // `actiond events | head` has seen what it wanted.
        Err(Stop::Writing(e)) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(Stop::Writing(e)) => Err(Error::unavailable("cannot print").caused_by(e)),
        Ok(()) => Ok(()),
    }
}

enum Stop {
    Reading(Error),
    Writing(io::Error),
}

impl From<Error> for Stop {
    fn from(e: Error) -> Self {
        Stop::Reading(e)
    }
}

impl From<io::Error> for Stop {
    fn from(e: io::Error) -> Self {
        Stop::Writing(e)
    }
}

impl Args {
    fn wants(&self, event: &Event) -> bool {
        let among = |names: &[String], name: &String| names.is_empty() || names.contains(name);
        among(&self.camera, &event.camera)
            && among(&self.label, &event.label)
            && self.since.is_none_or(|since| event.seen_until() >= since)
    }
}

/// One JSON array.
fn document(args: &Args, reader: &mut Reader, out: &mut impl Write) -> Result<(), Stop> {
    let mut before = "[\n";
    while let Some(event) = reader.next_event()? {
        if args.wants(&event) {
            write!(out, "{before}{}", json(&event)?)?;
            before = ",\n";
        }
    }
    // An empty array where there was nothing.
    writeln!(out, "{}", if before == "[\n" { "[]" } else { "\n]" })?;
    Ok(out.flush()?)
}

/// One line an event: its last phase stands where its first was.
fn table<W: Write>(args: &Args, reader: &mut Reader, printer: &mut Printer<W>) -> Result<(), Stop> {
    let mut events: Vec<Event> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    while let Some(event) = reader.next_event()? {
        if !args.wants(&event) {
            continue;
        }
        match places.get(&event.id) {
            Some(&place) => events[place] = event,
            None => {
                places.insert(event.id.clone(), events.len());
                events.push(event);
            }
        }
    }
    for event in &events {
        printer.write(event)?;
    }
    Ok(())
}

fn follow(args: &Args, reader: &mut Reader) -> Result<(), Stop> {
    let mut printer = Printer::new();
    let mut print = |event: &Event| -> Result<(), Stop> {
        match (args.json, event.phase) {
            (true, _) => writeln!(io::stdout(), "{}", json(event)?)?,
            (false, Phase::Update) => {}
            (false, _) => printer.write(event)?,
        }
        Ok(())
    };
    let mut past = VecDeque::new();
    while let Some(event) = reader.next_event()? {
        if args.wants(&event) && (args.json || event.phase != Phase::Update) {
            past.push_back(event);
            if args.since.is_none() && past.len() > BEFORE_FOLLOWING {
                past.pop_front();
            }
        }
    }
    past.iter().try_for_each(&mut print)?;
    drop(past);
    loop {
        while let Some(event) = reader.next_event()? {
            if args.wants(&event) {
                print(&event)?;
            }
        }
        thread::sleep(POLL);
    }
}

fn json(event: &Event) -> Result<String, Stop> {
    serde_json::to_string(event).map_err(|e| Stop::Reading(Error::internal("JSON").caused_by(e)))
}

/// Prints events for a person, one line each, the date once a day.
#[derive(Debug)]
pub struct Printer<W = Stdout> {
    out: W,
    colour: bool,
    zone: TimeZone,
    day: Option<civil::Date>,
}

impl Printer {
    /// To standard output; in colour if that is a terminal and `NO_COLOR` is not set.
    pub fn new() -> Self {
        let out = io::stdout();
        let colour = out.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Printer { out, colour, zone: TimeZone::system(), day: None }
    }
}

impl Default for Printer {
    fn default() -> Self {
        Printer::new()
    }
}

impl<W: Write> Printer<W> {
    /// Prints an event as it comes: ▶ when it starts, ■ when it ends, nothing in between. What can't be printed is not
    /// printed: the daemon goes on when nobody looks any more.
    pub fn print(&mut self, event: &Event) {
        if event.phase != Phase::Update {
            let _ = self.write(event);
        }
    }

    /// Prints an event as it stands.
    fn write(&mut self, event: &Event) -> io::Result<()> {
        let style = |code: &'static str| if self.colour { code } else { "" };
        let (bold, dim, green, plain) = (style("\x1b[1m"), style("\x1b[2m"), style("\x1b[32m"), style("\x1b[0m"));
        let local = event.start.to_zoned(self.zone.clone());
        if self.day != Some(local.date()) {
            self.day = Some(local.date());
            writeln!(self.out, "{dim}── {} ──{plain}", local.strftime("%A, %-d %B %Y"))?;
        }
        // Padded here, as the codes for colours would count.
        let label = format!("{:<16}", printable(&event.label));
        let mark = match event.phase {
            Phase::End => format!("■ {:>8}", duration(event.duration())),
            Phase::Start | Phase::Update => format!("{green}▶{plain} {:>8}", "open"),
        };
        writeln!(
            self.out,
            "{dim}{}{plain}  {:<12} {bold}{label}{plain} {mark}  {} {:.2}",
            local.strftime("%H:%M:%S"),
            printable(&event.camera),
            bar(event.peak),
            event.peak
        )?;
        self.out.flush()
    }
}

/// Names from a journal are somebody's input: no control characters of theirs reach the terminal.
fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A share of 10 cells, in eighths of a cell.
fn bar(share: f32) -> String {
    const CELLS: usize = 10;
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (share.clamp(0.0, 1.0) * (CELLS * 8) as f32).round() as usize;
    let text = "█".repeat(eighths / 8) + EIGHTHS[eighths % 8];
    format!("{text:<CELLS$}")
}

fn duration(d: SignedDuration) -> String {
    let s = d.as_secs();
    match s {
        ..60 => format!("{:.1} s", d.as_secs_f64()),
        60..3600 => format!("{}:{:02} min", s / 60, s % 60),
        _ => format!("{}:{:02} h", s / 3600, s / 60 % 60),
    }
}

/// Reads the time of `--since`: so long ago, a date (its midnight, here), a time of day of a date, or RFC 3339.
fn since(text: &str, now: &Zoned) -> Result<Timestamp, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    if let (Ok(n), unit) = (text[..split].parse::<i64>(), text[split..].trim()) {
        let span = Span::new();
        let span = match unit {
            "s" | "sec" => Some(span.try_seconds(n)),
            "m" | "min" => Some(span.try_minutes(n)),
            "h" => Some(span.try_hours(n)),
            "d" => Some(span.try_days(n)),
            "w" => Some(span.try_weeks(n)),
            _ => None,
        };
        if let Some(span) = span {
            let then = span.and_then(|span| now.checked_sub(span)).map_err(|e| e.to_string())?;
            return Ok(then.timestamp());
        }
    }
    let here = |time: civil::DateTime| time.to_zoned(now.time_zone().clone()).ok().map(|z| z.timestamp());
    // In this order: a DateTime is also read from a text with an offset, which it would leave out.
    let time = text.parse::<Timestamp>().ok().or_else(|| text.parse::<civil::DateTime>().ok().and_then(here));
    time.ok_or_else(|| "expected how long ago (90s, 10m, 2h, 3d, 1w), a date, or a time as 2026-11-24T01:02:03Z".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::sample,
        journal::{Config, Journal},
    };

    fn printed(events: &[Event], colour: bool) -> String {
        let mut printer = Printer { out: Vec::new(), colour, zone: TimeZone::UTC, day: None };
        events.iter().for_each(|e| printer.print(e));
        String::from_utf8(printer.out).unwrap()
    }

    fn ended(mut event: Event, seconds: i64) -> Event {
        event.phase = Phase::End;
        event.end = Some(event.start + SignedDuration::from_secs(seconds));
        event
    }

    fn args(journal: &std::path::Path) -> Args {
        Args { journal: journal.into(), follow: false, camera: vec![], label: vec![], since: None, json: false }
    }

    /// Two actions, each with all its phases; the second is another camera's and still open.
    fn journal() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(&Config::in_folder(folder.path())).unwrap();
        let mut falling = sample(0);
        falling.label = "falling".into();
        falling.camera = "yard".into();
        falling.id = "2".into();
        falling.start += SignedDuration::from_hours(24);
        let mut update = sample(0);
        update.phase = Phase::Update;
        for mut event in [sample(0), update, falling, ended(sample(0), 75)] {
            journal.append(&mut event);
        }
        folder
    }

    fn table_of(args: &Args) -> String {
        let mut printer = Printer { out: Vec::new(), colour: false, zone: TimeZone::UTC, day: None };
        assert!(table(args, &mut Reader::new(&args.journal, 0), &mut printer).is_ok());
        String::from_utf8(printer.out).unwrap()
    }

    #[test]
    fn events_as_they_come() {
        let mut update = sample(2);
        update.phase = Phase::Update;
        assert_eq!(
            printed(&[sample(1), update, ended(sample(3), 12)], false),
            "── Tuesday, 24 November 2026 ──\n\
             01:02:03  door         walking          ▶     open  █████████  0.90\n\
             01:02:03  door         walking          ■   12.0 s  █████████  0.90\n"
        );
    }

    #[test]
    fn colours_only_where_they_are_wanted_and_none_from_outside() {
        assert!(printed(&[sample(1)], true).contains("\x1b[1mwalking"));
        let mut evil = sample(1);
        evil.label = "\x1b[31mred".into();
        assert!(!printed(&[evil], false).contains('\x1b'));
    }

    #[test]
    fn the_table_joins_phases_and_keeps_the_order_of_starts() {
        let folder = journal();
        assert_eq!(
            table_of(&args(folder.path())),
            "── Tuesday, 24 November 2026 ──\n\
             01:02:03  door         walking          ■ 1:15 min  █████████  0.90\n\
             ── Wednesday, 25 November 2026 ──\n\
             01:02:03  yard         falling          ▶     open  █████████  0.90\n"
        );
    }

    #[test]
    fn filters() {
        let folder = journal();
        let all = args(folder.path());
        let falls = Args { label: vec!["falling".into(), "kicking".into()], ..args(folder.path()) };
        assert_eq!(table_of(&falls).lines().count(), 2);
        let door = Args { camera: vec!["door".into()], ..args(folder.path()) };
        assert!(table_of(&door).contains("walking") && !table_of(&door).contains("falling"));
        let at = |time: &str| Args { since: Some(time.parse().unwrap()), ..args(folder.path()) };
        // Still going on then, though it began before.
        assert!(table_of(&at("2026-11-24T01:03:00Z")).contains("walking"));
        assert!(!table_of(&at("2026-11-24T01:04:00Z")).contains("walking"));
        assert!(table_of(&all).contains("falling"));
    }

    #[test]
    fn json_is_one_document_with_every_phase() {
        let folder = journal();
        let document_of = |args: &Args| {
            let mut out = Vec::new();
            assert!(document(args, &mut Reader::new(folder.path(), 0), &mut out).is_ok());
            serde_json::from_slice::<Vec<Event>>(&out).unwrap()
        };
        let phases: Vec<Phase> = document_of(&args(folder.path())).iter().map(|e| e.phase).collect();
        assert_eq!(phases, [Phase::Start, Phase::Update, Phase::Start, Phase::End]);
        assert!(document_of(&Args { camera: vec!["none".into()], ..args(folder.path()) }).is_empty());
    }

    #[test]
    fn no_journal_is_a_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let e = run(&args(folder.path())).unwrap_err();
        assert!(e.to_string().starts_with("there is no journal in ") && e.exit_code() == 2, "{e}");
    }

    #[test]
    fn since_takes_what_people_type() {
        let now: Zoned = "2026-11-24T12:00:00+01:00[+01:00]".parse().unwrap();
        for (text, expected) in [
            ("90s", "2026-11-24T10:58:30Z"),
            ("10m", "2026-11-24T10:50:00Z"),
            ("2h", "2026-11-24T09:00:00Z"),
            ("3d", "2026-11-21T11:00:00Z"),
            ("1w", "2026-11-17T11:00:00Z"),
            ("2026-11-20", "2026-11-19T23:00:00Z"),
            ("2026-11-20 08:30", "2026-11-20T07:30:00Z"),
            ("2026-11-20T08:30:00Z", "2026-11-20T08:30:00Z"),
            ("2026-11-20T08:30:00.5+02:00", "2026-11-20T06:30:00.5Z"),
        ] {
            assert_eq!(since(text, &now).unwrap().to_string(), expected, "{text}");
        }
        for text in ["", "10", "10x", "yesterday", "99999999999999999999d", "9999999999d", "2026-13-01"] {
            assert!(since(text, &now).is_err(), "{text}");
        }
    }

    #[test]
    fn bars_and_durations_are_of_one_width() {
        assert_eq!(bar(0.0), " ".repeat(10));
        assert_eq!(bar(1.0), "█".repeat(10));
        assert_eq!(bar(0.55), "█████▌    ");
        assert_eq!(bar(7.0).chars().count(), 10);
        let of = |ms| duration(SignedDuration::from_millis(ms));
        assert_eq!((of(1640).as_str(), of(75_000).as_str(), of(7_260_000).as_str()), ("1.6 s", "1:15 min", "2:01 h"));
    }
}
