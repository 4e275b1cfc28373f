//! The wall clock is set by an hour while the daemon runs, forward and back: the real binary under libfaketime, which
//! leaves the steady clock alone, as NTP does.

#[path = "common/onnx.rs"]
#[allow(dead_code)]
mod onnx;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use actiond::{
    event::{Event, Flag, Phase},
    journal::Reader,
};

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn libfaketime() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?.flatten().map(|e| e.path().join("faketime/libfaketime.so.1"));
    let found = folders.into_iter().find(|p| p.exists());
    if found.is_none() {
        eprintln!("skipped: libfaketime is not installed (scripts/setup --tests does that)");
    }
    found
}

fn journal(folder: &Path) -> Vec<Event> {
    let mut reader = Reader::new(&folder.join("journal"), 0);
    std::iter::from_fn(|| reader.next_event().unwrap()).collect()
}

#[test]
fn a_clock_that_jumps_by_an_hour_changes_no_order_and_no_duration() {
    let Some(library) = libfaketime() else { return };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    onnx::write_brightness(&folder.join("model"));
    // White for three seconds, black for three, as a camera shows it. Events of one label follow those of the other, and
    // each jump is within one.
    let filter = "color=black:s=32x32:r=25:d=30,drawbox=x=0:y=0:w=32:h=32:color=white:t=fill:enable='lt(mod(t,6),3)'";
    let made = Command::new("ffmpeg")
        .args(["-v", "error", "-y", "-f", "lavfi", "-i", filter, "-pix_fmt", "yuv420p"])
        .arg(folder.join("blinking.y4m"))
        .status();
    assert!(made.unwrap().success());
    let said = folder.join("said.jsonl");
    let config = format!(
        "[model]\npath = \"model\"\nbackend = [\"tract\"]\n[journal]\npath = \"journal\"\nfsync = \"second\"\n\
         [[command]]\nargv = [\"sh\", \"-c\", \"cat >> {}\"]\n\
         [[camera]]\nid = \"door\"\nsource = \"blinking.y4m\"\nrealtime = true\n",
        said.display()
    );
    fs::write(folder.join("actiond.toml"), config).unwrap();
    let offset = folder.join("offset");
    let set = |text: &str| {
        // Read at any moment: never half of it.
        fs::write(folder.join("new"), text).unwrap();
        fs::rename(folder.join("new"), &offset).unwrap();
    };
    set("+0");
    let process = Command::new(env!("CARGO_BIN_EXE_actiond"))
        .args(["run", "--until-end"])
        .arg(folder.join("actiond.toml"))
        .env("LD_PRELOAD", library)
        .envs([("FAKETIME_DONT_FAKE_MONOTONIC", "1"), ("FAKETIME_NO_CACHE", "1")])
        .env("FAKETIME_TIMESTAMP_FILE", &offset)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(folder.join("log")).unwrap())
        .spawn();
    let mut process = Process(process.unwrap());
    let log = || fs::read_to_string(folder.join("log")).unwrap();
    let began = Instant::now();
    // The hour comes while the second event is open, and goes twice while a later one is.
    for (events, text) in [(3, "+3600"), (9, "-3600")] {
        while journal(folder).iter().filter(|e| e.phase != Phase::Update).count() < events {
            assert!(began.elapsed() < Duration::from_secs(90), "{}", log());
            thread::sleep(Duration::from_millis(50));
        }
        thread::sleep(Duration::from_millis(700));
        set(text);
    }
    while process.0.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < Duration::from_secs(120), "{}", log());
        thread::sleep(Duration::from_millis(50));
    }
    assert!(process.0.wait().unwrap().success(), "{}", log());
    let told = log().lines().filter(|l| l.contains("the clock was set by")).count();
    assert_eq!(told, 2, "{}", log());

    let events = journal(folder);
    assert_eq!(events.iter().map(|e| e.seq).collect::<Vec<_>>(), (1..=events.len() as u64).collect::<Vec<_>>());
    let ended: Vec<&Event> = events.iter().filter(|e| e.phase == Phase::End).collect();
    assert_eq!(ended.len(), 10, "{events:?}");
    for event in &ended {
        let frames = event.end_s.unwrap() - event.start_s;
        let lasted = event.end.unwrap().duration_since(event.start).as_secs_f64();
        assert!((lasted - frames).abs() < 0.5, "{lasted} s of {frames}: {event:?}");
    }
    // The first is of now, there is one of an hour later and one of an hour ago.
    let apart = |e: &Event| e.start.duration_since(ended[0].start).as_secs_f64();
    assert!(ended.iter().any(|e| apart(e) > 3500.0) && ended.iter().any(|e| apart(e) < -3500.0), "{ended:?}");
    assert!(events.iter().all(|e| e.delay_ms < 2000), "{events:?}");
    // Sinks get the same, in order, and nothing of it is late.
    let got: Vec<Event> =
        fs::read_to_string(&said).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(got.iter().map(|e| e.seq).collect::<Vec<_>>(), events.iter().map(|e| e.seq).collect::<Vec<_>>());
    assert!(got.iter().all(|e| !e.flags.contains(&Flag::Late)), "{got:?}");
}
