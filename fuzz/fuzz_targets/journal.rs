//! Any bytes as a journal: what is whole in it is given, it is repaired or left alone, and goes on.
#![no_main]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use actiond::{
    error::Kind,
    event::{Event, VERSION},
    journal::{Config, Item, Journal, Reader},
};

/// Between the file that is written, one that was rotated, and a cursor. No journal of ours has it in it.
const BETWEEN: u8 = 0x1e;

fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        // In memory: a journal syncs at each event.
        let shared = Path::new("/dev/shm");
        let all = if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() };
        all.join(format!("actiond-fuzz-journal-{}", std::process::id()))
    })
}

fn events() -> Vec<Event> {
    let mut reader = Reader::new(folder(), 0);
    std::iter::from_fn(|| reader.next_event().expect("the disk is there")).collect()
}

/// The events of whole lines, as anyone may read them.
fn whole(bytes: &[u8]) -> impl Iterator<Item = Event> {
    let lines = bytes.split_inclusive(|b| *b == b'\n').filter(|l| l.ends_with(b"\n"));
    lines.filter_map(|l| serde_json::from_slice::<Event>(l).ok()).filter(|e| e.v == VERSION)
}

fn files() -> Vec<(PathBuf, Vec<u8>)> {
    let paths = ["events.jsonl", "events-000000000001.jsonl", "cursor-x.json"].map(|name| folder().join(name));
    paths.into_iter().filter_map(|path| fs::read(&path).ok().map(|bytes| (path, bytes))).collect()
}

actiond_fuzz::fuzz_target!(|bytes: &[u8]| {
    actiond_fuzz::bounded();
    let _ = fs::remove_dir_all(folder());
    fs::create_dir_all(folder()).expect("a folder");
    let mut parts = bytes.splitn(3, |b| *b == BETWEEN);
    let (live, rotated, cursor) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    fs::write(folder().join("events.jsonl"), live).expect("room");
    rotated.iter().for_each(|b| fs::write(folder().join("events-000000000001.jsonl"), b).expect("room"));
    cursor.iter().for_each(|b| fs::write(folder().join("cursor-x.json"), b).expect("room"));

    let there: Vec<Event> = rotated.into_iter().flat_map(whole).chain(whole(live)).collect();
    assert_eq!(events(), there);
    let before = files();
    let mut journal = match Journal::open(&Config::in_folder(folder())) {
        Ok(journal) => journal,
        Err(e) => {
            assert_eq!(e.kind(), Kind::Config, "{e}");
            assert_eq!(files(), before, "what is not ours is left as it is");
            return;
        }
    };
    assert_eq!(events(), there, "a repair takes nothing that is whole");

    // A sink that begins anywhere sees numbers that grow; and what is appended, unless a number is in the place of another.
    let next = journal.next_seq();
    let in_order = there.is_sorted_by(|a, b| a.seq < b.seq) && there.iter().all(|e| (1..next).contains(&e.seq));
    let mut appended = Vec::new();
    for _ in 0..2 {
        let mut event = sample();
        journal.append(&mut event);
        appended.push(event);
    }
    assert_eq!(appended.iter().map(|e| e.seq).collect::<Vec<_>>(), [next, next + 1]);
    let shared = journal.shared();
    for from in [0, next - 1, shared.cursor("x").acknowledged().up_to] {
        let mut follower = shared.follow(from);
        let (mut at, mut got) = (from, Vec::new());
        while let Some(item) = follower.next_item().expect("the disk is there") {
            let (first, last) = match &item {
                Item::Event(event) => (event.seq, event.seq),
                Item::Gap { first, last } => (*first, *last),
            };
            assert!(first == at + 1 && last >= first, "{item:?} behind {at}");
            at = last;
            got.extend(if let Item::Event(event) = item { Some(*event) } else { None });
        }
        assert_eq!(at.max(from), (next + 1).max(from));
        let expected = &appended[appended.iter().filter(|e| e.seq <= from).count()..];
        assert!(!in_order || got.ends_with(expected), "{expected:?} is not at the end of {got:?}");
    }
    drop(journal);

    let journal = Journal::open(&Config::in_folder(folder())).expect("it was repaired");
    assert_eq!(journal.next_seq(), next + 2);
    assert_eq!(events(), [there, appended].concat());
});

fn sample() -> Event {
    let json = include_str!("../seeds/journal/one.jsonl");
    serde_json::from_str(json).expect("an event")
}
