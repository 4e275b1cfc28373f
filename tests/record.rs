//! Recordings of scores and frames, and what is made of them: the real binary on the demo clip.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use serde_json::Value;
use tempfile::TempDir;

const ACTIOND: &str = env!("CARGO_BIN_EXE_actiond");

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn actiond(arguments: &[&str]) -> Output {
    Command::new(ACTIOND).args(arguments).current_dir(root()).output().unwrap()
}

fn good(arguments: &[&str]) -> String {
    let output = actiond(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The demo clip twice, once as a recording and once as if it were a camera, watched and recorded: journal and scores.
fn recorded() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("actiond.toml");
        let demo = root().join("demo/demo.mp4");
        let camera = |id: &str, more: &str| format!("[[camera]]\nid = \"{id}\"\nsource = {demo:?}\n{more}\n");
        let cameras = camera("file", "") + &camera("live", "realtime = true\nskip_still = true");
        fs::write(&config, cameras + "[events]\nstart = 0.41\n[events.label.falling]\nstart = 0.3\nend = 0.2\n")
            .unwrap();
        let (journal, scores) = (folder.path().join("journal"), folder.path().join("scores"));
        good(&["run", text(&config), "--until-end", "--journal", text(&journal), "--record", text(&scores)]);
        folder
    });
    folder.path()
}

fn journal(folder: &Path) -> Vec<String> {
    fs::read_to_string(folder.join("events.jsonl")).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn the_same_settings_give_the_same_journal_to_the_byte() {
    let folder = recorded();
    let again = tempfile::tempdir().unwrap();
    good(&["replay", text(&folder.join("scores")), "--journal", text(again.path())]);
    let before = journal(&folder.join("journal"));
    // Both cameras, and every phase: seq and delay_ms are the same as well, as the journal was a new one.
    for part in ["\"camera\":\"file\"", "\"camera\":\"live\"", "\"phase\":\"end\""] {
        assert!(before.iter().filter(|l| l.contains(part)).count() >= 10, "{part} in {before:#?}");
    }
    assert_eq!(journal(again.path()), before);
}

#[test]
fn other_thresholds_give_other_events_and_json_is_one_document() {
    let folder = recorded();
    let count = |events: &[Value]| events.iter().filter(|e| e["phase"] == "start").count();
    let replay = |more: &[&str]| -> Vec<Value> {
        let scores = folder.join("scores");
        serde_json::from_str(&good(&[&["replay", text(&scores), "--json"], more].concat())).unwrap()
    };
    let as_recorded = replay(&[]);
    let lines = journal(&folder.join("journal"));
    assert_eq!(as_recorded, lines.iter().map(|l| serde_json::from_str::<Value>(l).unwrap()).collect::<Vec<_>>());
    let other = folder.join("other.toml");
    fs::write(&other, "[events]\nstart = 0.95\nend = 0.9\nignore = [\"walking\"]\n").unwrap();
    let stricter = replay(&["--config", text(&other)]);
    assert!(count(&stricter) > 0 && count(&stricter) < count(&as_recorded));
    assert!(stricter.iter().all(|e| e["label"] != "walking" && e["peak"].as_f64() >= Some(0.9)));
    // What is wrong in it is told as it is for a run.
    fs::write(&other, "[events]\nignore = [\"waking\"]\n").unwrap();
    let output = actiond(&["replay", text(&folder.join("scores")), "--config", text(&other)]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("did you mean `walking`?"));
}

#[test]
fn a_torn_recording_gives_what_is_whole() {
    let folder = recorded();
    let scores = fs::read_dir(folder.join("scores")).unwrap().next().unwrap().unwrap().path();
    let bytes = fs::read(&scores).unwrap();
    let torn = folder.join("torn.rec");
    fs::write(&torn, &bytes[..bytes.len() * 2 / 3 + 5]).unwrap();
    let output = actiond(&["replay", text(&torn), "--json"]);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("torn"));
    let events: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let lines = journal(&folder.join("journal"));
    assert!(events.len() > 10 && events.len() < lines.len());
    for (event, line) in events.iter().zip(lines) {
        assert_eq!(*event, serde_json::from_str::<Value>(&line).unwrap());
    }
    // Neither a file of something else nor a damaged one is taken for a recording.
    let demo = root().join("demo/demo.tsv");
    assert_eq!(actiond(&["replay", text(&demo)]).status.code(), Some(2));
    let mut damaged = bytes;
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(&torn, damaged).unwrap();
    let output = actiond(&["replay", text(&torn)]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("damaged at byte"));
}

#[test]
fn tuned_thresholds_find_what_bad_ones_miss() {
    let folder = recorded();
    let bad = folder.join("bad.toml");
    // Nothing is found like this, and one label is found where it is not.
    fs::write(&bad, "[events]\nstart = 1.0\nend = 0.99\n[events.label.pushing]\nstart = 0.02\nend = 0.01\n").unwrap();
    let truth = root().join("demo/demo.tsv");
    let scores = folder.join("scores");
    let arguments = ["tune", text(&scores), "--truth", text(&truth), "--camera", "file", "--config", text(&bad)];
    let report = good(&arguments);
    let (table, snippet) = report.split_once("To put into the config:\n").unwrap_or_else(|| panic!("{report}"));
    assert!(table.contains("as proposed: 12 hits, 0 misses, 0 such events"), "{report}");
    // What it proposes does what it says, when it is pasted.
    let pasted = folder.join("pasted.toml");
    fs::write(&pasted, format!("[events]\nstart = 1.0\nend = 0.99\n{snippet}")).unwrap();
    let compared =
        good(&["tune", text(&scores), "--truth", text(&truth), "--camera", "file", "--config", text(&pasted)]);
    assert!(compared.contains("now: 12 hits, 0 misses, 0 events"), "{compared}");
    assert!(compared.contains("Nothing that was tried does better"), "{compared}");
    // Two cameras: it asks which.
    let output = actiond(&["tune", text(&scores), "--truth", text(&truth)]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("file, live"));
}

#[test]
fn recorded_frames_play_back_and_give_the_same_events() {
    let folder = tempfile::tempdir().unwrap();
    // The first seconds of the demo, of which every picture is a frame.
    let clip = folder.path().join("clip.y4m");
    let demo = root().join("demo/demo.mp4");
    let made = Command::new("ffmpeg")
        .args(["-v", "error", "-y", "-t", "16", "-i", text(&demo), "-pix_fmt", "yuv420p", "-r", "25"])
        .arg(&clip)
        .status()
        .unwrap();
    assert!(made.success());
    let run = |source: &Path, name: &str, more: &[&str]| {
        let journal_folder = folder.path().join(name);
        let arguments = ["run", "--source", text(source), "--until-end", "--journal", text(&journal_folder)];
        good(&[&arguments, more].concat());
        let when = |line: &String| {
            let e: Value = serde_json::from_str(line).unwrap();
            [e["label"].clone(), e["phase"].clone(), e["score"].clone(), e["start_s"].clone(), e["end_s"].clone()]
        };
        journal(&journal_folder).iter().map(when).collect::<Vec<_>>()
    };
    let scores = folder.path().join("scores");
    let first = run(&clip, "first", &["--record", text(&scores), "--record-frames"]);
    let frames = fs::read_dir(&scores).unwrap().map(|e| e.unwrap().path()).find(|p| p.is_dir()).unwrap();
    let files: Vec<PathBuf> = fs::read_dir(frames).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    assert!(first.len() >= 4, "{first:?}");
    assert_eq!(run(&files[0], "second", &[]), first);
}

#[test]
fn what_is_masked_is_in_no_recorded_picture() {
    let folder = tempfile::tempdir().unwrap();
    let demo = root().join("demo/demo.mp4");
    let clip = folder.path().join("clip.mp4");
    let made = Command::new("ffmpeg")
        .args(["-v", "error", "-y", "-t", "3", "-i", text(&demo), "-c", "copy"])
        .arg(&clip)
        .status()
        .unwrap();
    assert!(made.success());
    let config = folder.path().join("actiond.toml");
    let masks = "mask = [[0.0, 0.0, 0.25, 1.0], [[0.75, 0.0], [1.0, 0.0], [1.0, 1.0], [0.75, 1.0]]]";
    // Two cameras of one source, one of them without: neither has the other's.
    let cameras = format!(
        "[[camera]]\nid = \"masked\"\nsource = {clip:?}\n{masks}\n[[camera]]\nid = \"open\"\nsource = {clip:?}\n"
    );
    fs::write(&config, cameras).unwrap();
    let (journal, scores) = (folder.path().join("journal"), folder.path().join("scores"));
    let arguments = ["run", text(&config), "--until-end", "--journal", text(&journal), "--record", text(&scores)];
    good(&[arguments.as_slice(), &["--record-frames"]].concat());
    let frames = fs::read_dir(&scores).unwrap().map(|e| e.unwrap().path()).find(|p| p.is_dir()).unwrap();
    // Whether the outer quarters of all pictures are black.
    let black = |camera: &str| {
        let bytes = fs::read(frames.join(format!("{camera}-0000000000.y4m"))).unwrap();
        let header = bytes.iter().position(|b| *b == b'\n').unwrap() + 1;
        let words = String::from_utf8_lossy(&bytes[..header]).into_owned();
        let size = |key: char| words.split(' ').find_map(|w| w.strip_prefix(key)?.parse::<usize>().ok()).unwrap();
        let (width, height) = (size('W'), size('H'));
        let pictures = bytes[header..].chunks_exact(6 + width * height * 3 / 2);
        assert!(pictures.len() >= 70, "{} pictures", pictures.len());
        let outer = |x: usize| x < width / 4 || x >= width - width / 4;
        pictures.flat_map(|p| p[6..6 + width * height].iter().enumerate()).all(|(i, y)| !outer(i % width) || *y == 16)
    };
    assert!(black("masked"));
    assert!(!black("open"));
}

/// A small file system, in a mount namespace of its own so that nothing is left behind.
#[test]
fn a_full_disk_ends_the_recording_and_not_the_recognition() {
    for (size, more, shared, message) in [
        ("size=3m", vec!["--record-frames"], false, "recording frames stops here, recognition goes on"),
        // What is recorded must leave the journal its room.
        ("size=3m", vec!["--record-frames"], true, "recording frames stops here, recognition goes on"),
        ("size=16k", vec![], false, ".rec: recording stops here, recognition goes on"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk");
        fs::create_dir(&disk).unwrap();
        let kept = folder.path().join("kept");
        let at = |place: &Path| place.join("journal");
        let journal_folder = if shared { at(&disk) } else { at(folder.path()) };
        let script = "mount -t tmpfs -o \"$1\" none \"$2\" || exit 77; disk=$2 kept=$3; shift 3; \"$@\"; rc=$?; \
                      cp -r \"$disk\" \"$kept\"; exit $rc";
        let demo = root().join("demo/demo.mp4");
        let scores = disk.join("scores");
        let output = Command::new("unshare")
            .args(["--mount", "--map-root-user", "sh", "-c", script, "sh", size, text(&disk), text(&kept)])
            .args([ACTIOND, "run", "--source", text(&demo), "--until-end", "--journal", text(&journal_folder)])
            .args(["--record", text(&scores)])
            .args(more)
            .current_dir(root())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        if output.status.code() == Some(77) || stderr.contains("unshare") {
            eprintln!("not tested, no mount namespaces here: {stderr}");
            return;
        }
        assert!(output.status.success(), "{stderr}");
        assert_eq!(stderr.matches(message).count(), 1, "{stderr}");
        assert!(!stderr.contains("cannot write to the journal"), "{stderr}");
        // All of the demo's actions.
        let lines = journal(&if shared { at(&kept) } else { at(folder.path()) });
        assert!(lines.iter().filter(|l| l.contains("\"phase\":\"end\"")).count() >= 12);
        // What was recorded until then is whole.
        let events: Vec<Value> =
            serde_json::from_str(&good(&["replay", text(&kept.join("scores")), "--json"])).unwrap();
        assert!(!events.is_empty());
        for (event, line) in events.iter().zip(lines) {
            assert_eq!(*event, serde_json::from_str::<Value>(&line).unwrap());
        }
    }
}
