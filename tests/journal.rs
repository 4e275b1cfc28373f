//! The journal under violence: writers that are killed, a disk that is full, two writers at once.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use actiond::{
    event::{self, Event, Flag, Phase, Top},
    journal::{Config, Item, Journal, MOST_WAITING, Reader},
};

/// Where this is set, the test binary is a writer that works until it is killed.
const WRITER: &str = "ACTIOND_TEST_JOURNAL_WRITER";

fn event(frame: u64) -> Event {
    let start = "2026-11-24T01:02:03.456Z".parse().unwrap();
    Event {
        v: event::VERSION,
        id: event::id(start, "test", "door", "walking", frame),
        seq: 0,
        device: "test".into(),
        camera: "door".into(),
        phase: Phase::Start,
        label: "walking".into(),
        score: 0.8,
        peak: 0.9,
        top: (0..5).map(|i| Top { label: format!("label {i}"), score: 0.1 }).collect(),
        streams: [("rgb".into(), 0.7), ("flow".into(), 0.9)].into(),
        start,
        end: None,
        start_s: frame as f64 / 25.0,
        end_s: None,
        first_frame: frame,
        last_frame: frame + 40,
        model: "test@1".into(),
        backend: "tract".into(),
        precision: "f32".into(),
        mode: "dense".into(),
        hop: 8,
        delay_ms: 100,
        flags: Vec::new(),
    }
}

fn open(folder: &Path) -> actiond::error::Result<Journal> {
    Journal::open(&Config::in_folder(folder))
}

fn read(folder: &Path) -> Vec<Event> {
    let mut reader = Reader::new(folder, 0);
    std::iter::from_fn(|| reader.next_event().unwrap()).collect()
}

/// Not a test of its own: the process that `a_killed_writer_...` kills.
#[test]
fn writer() {
    let Some(folder) = env::var_os(WRITER) else { return };
    let mut journal = open(Path::new(&folder)).unwrap();
    let mut out = std::io::stdout();
    for frame in 0.. {
        let mut event = event(frame);
        journal.append(&mut event);
        // Past libtest's capture, and whole lines only.
        out.write_all(format!("acknowledged {} {}\n", event.seq, event.first_frame).as_bytes()).unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn a_killed_writer_loses_nothing_that_it_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal");
    let mut expected: Vec<(u64, u64)> = Vec::new();
    let mut random = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    for round in 0..20 {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "writer", "--nocapture", "--test-threads=1"])
            .env(WRITER, &journal)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let told = thread::spawn(move || {
            let mut acknowledged = Vec::new();
            for line in lines.map_while(Result::ok) {
                let Some((_, numbers)) = line.split_once("acknowledged ") else { continue };
                let mut numbers = numbers.split(' ').map_while(|n| n.parse::<u64>().ok());
                if let (Some(seq), Some(frame)) = (numbers.next(), numbers.next()) {
                    acknowledged.push((seq, frame));
                }
            }
            acknowledged
        });
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        thread::sleep(Duration::from_millis(u64::from(random >> 16) % 120 + 5));
        child.kill().unwrap();
        child.wait().unwrap();
        let acknowledged = told.join().unwrap();

        let events = read(&journal);
        for (i, event) in events.iter().enumerate() {
            assert_eq!(event.seq, i as u64 + 1, "round {round}");
        }
        for (seq, frame) in expected.iter().chain(&acknowledged) {
            assert_eq!(events[*seq as usize - 1].first_frame, *frame, "round {round}: number {seq}");
        }
        // At most the one that was being written when it was killed is there without having been acknowledged.
        let known = events.len() - expected.len() - acknowledged.len();
        assert!(known <= 1, "round {round}: {known} unknown events");
        // The kill may leave half a line only by chance; a power cut does so often. On a busy machine the first writers
        // may have been killed before they made a file.
        let path = journal.join("events.jsonl");
        if round % 2 == 1 && path.exists() {
            let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
            file.write_all(b"{\"v\":1,\"id\":\"01KAT1").unwrap();
        }
        expected = events.iter().map(|e| (e.seq, e.first_frame)).collect();
    }
    assert!(expected.len() > 20, "only {} events were written", expected.len());
}

#[test]
fn a_full_disk_loses_nothing_and_what_waited_is_written_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(folder.path()).output();
    if !mounted.is_ok_and(|m| m.status.success()) {
        eprintln!("skipped: only root may mount a small disk");
        return;
    }
    let mount = Mount(folder.path());
    let dir = mount.0.join("journal");
    let mut journal = open(&dir).unwrap();
    let shared = journal.shared();
    let mut follower = shared.follow(0);
    let mut written = 0;
    for round in 0..3 {
        // Until it is full, and twenty events more.
        let mut volatile = 0;
        for frame in 0..1000 {
            let mut event = event(frame);
            journal.append(&mut event);
            written += 1;
            assert_eq!(event.seq, written);
            volatile += u64::from(event.flags == [Flag::Volatile]);
            if volatile == 20 {
                break;
            }
        }
        assert_eq!(volatile, 20, "64 KiB hold no 1000 events");
        let stats = shared.stats();
        assert_eq!((stats.full, stats.waiting, stats.newest), (true, 20, written), "round {round}");
        assert_eq!(numbers(&read(&dir)), (1..=written - 20).collect::<Vec<_>>());
        assert!(fs::read(dir.join("events.jsonl")).unwrap().ends_with(b"\n"), "round {round}: half a line");
        // Whoever follows has them all the same.
        while let Some(item) = follower.next_item().unwrap() {
            assert!(matches!(item, Item::Event(_)), "{item:?}");
        }
        assert_eq!(follower.at(), written);
        // More disk, for so long as the test fills it again.
        let more = format!("remount,size={}k", 64 * (round + 2));
        assert!(Command::new("mount").args(["-o", &more]).arg(mount.0).status().unwrap().success());
        journal.tick();
        let stats = shared.stats();
        assert_eq!((stats.full, stats.waiting, stats.dropped), (false, 0, 0), "round {round}");
        assert_eq!(numbers(&read(&dir)), (1..=written).collect::<Vec<_>>());
    }
    assert_eq!(follower.next_item().unwrap(), None, "nothing comes twice");
    // A daemon that starts on a full disk can still read where the sequence is.
    let ballast = mount.0.join("ballast");
    fs::write(&ballast, vec![0; 1 << 20]).unwrap_err();
    drop(journal);
    let mut journal = open(&dir).unwrap();
    assert_eq!(journal.next_seq(), written + 1);
    // What the bound drops is counted, and is a hole in the numbers.
    (0..MOST_WAITING as u64 + 7).for_each(|frame| journal.append(&mut event(frame)));
    let dropped = journal.shared().stats().dropped;
    assert!((1..=7).contains(&dropped), "{dropped}");
    fs::remove_file(&ballast).unwrap();
    assert!(Command::new("mount").args(["-o", "remount,size=4m"]).arg(mount.0).status().unwrap().success());
    journal.append(&mut event(0));
    let events = numbers(&read(&dir));
    assert_eq!(events.len() as u64, written + MOST_WAITING as u64 + 8 - dropped);
    assert!(events.windows(2).filter(|w| w[1] != w[0] + 1).count() == 1, "one hole");
}

#[test]
fn what_waits_for_room_when_the_daemon_ends_is_written_and_no_number_is_given_twice() {
    let folder = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=6m", "tmpfs"]).arg(folder.path()).output();
    if !mounted.is_ok_and(|m| m.status.success()) {
        eprintln!("skipped: only root may mount a small disk");
        return;
    }
    let mount = Mount(folder.path());
    let dir = mount.0.join("journal");
    let ballast = mount.0.join("ballast");
    let fill = || fs::write(&ballast, vec![0; 6 << 20]).unwrap_err();
    // It is stopped.
    let mut journal = open(&dir).unwrap();
    journal.append(&mut event(0));
    fill();
    (1..400).for_each(|frame| journal.append(&mut event(frame)));
    assert!(journal.shared().stats().waiting > 300);
    drop(journal);
    assert_eq!(numbers(&read(&dir)), (1..=400).collect::<Vec<_>>());
    // It is killed.
    fs::remove_file(&ballast).unwrap();
    drop(open(&dir).unwrap());
    fill();
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "writer", "--nocapture", "--test-threads=1"])
        .env(WRITER, &dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let number = |line: String| line.split_once("acknowledged ")?.1.split(' ').next()?.parse::<u64>().ok();
    let given: Vec<u64> = lines.filter_map(number).take(100).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(given.last(), Some(&500));
    assert!(numbers(&read(&dir)).len() < 500, "nothing waited in memory");
    assert!(open(&dir).unwrap().next_seq() > 500);
}

fn numbers(events: &[Event]) -> Vec<u64> {
    events.iter().map(|e| e.seq).collect()
}

struct Mount<'a>(&'a Path);

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[test]
fn a_second_process_does_not_write_into_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(folder.path()).unwrap();
    journal.append(&mut event(0));
    let second = Command::new(env::current_exe().unwrap())
        .args(["--exact", "writer", "--nocapture", "--test-threads=1"])
        .env(WRITER, folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned() + &String::from_utf8_lossy(&second.stdout);
    assert!(!second.status.success() && said.contains("is in use by process"), "{said}");
    journal.append(&mut event(1));
    assert_eq!(read(folder.path()).len(), 2);
}

#[test]
fn a_reader_beside_a_writer_sees_every_event_once_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let mut reader = Reader::new(&path, 0);
    let writing = path.clone();
    let writer = thread::spawn(move || {
        let mut journal = open(&writing).unwrap();
        (0..300).for_each(|frame| journal.append(&mut event(frame)));
    });
    let mut seen = Vec::new();
    while seen.len() < 300 {
        match reader.next_event().unwrap() {
            Some(event) => seen.push(event.seq),
            None if writer.is_finished() => {
                seen.extend(std::iter::from_fn(|| reader.next_event().unwrap()).map(|e| e.seq));
                break;
            }
            None => thread::sleep(Duration::from_millis(1)),
        }
    }
    writer.join().unwrap();
    assert_eq!(seen, (1..=300).collect::<Vec<_>>());
}
