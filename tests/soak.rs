//! Video for hours, as fast as this machine takes it: nothing grows. The real binary on the shipped model and the demo
//! clip, again and again. `ACTIOND_HOURS` of video in place of a few minutes, in `ACTIOND_MODE` in place of the default.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// What a process holds.
#[derive(Debug, Clone, Copy)]
struct Holds {
    kilobytes: usize,
    threads: usize,
    descriptors: usize,
}

fn holds(process: u32) -> Option<Holds> {
    let of = |name: &str| format!("/proc/{process}/{name}");
    let status = fs::read_to_string(of("status")).ok()?;
    let line = status.lines().find(|l| l.starts_with("VmRSS"))?;
    Some(Holds {
        kilobytes: line.split_whitespace().nth(1)?.parse().ok()?,
        threads: fs::read_dir(of("task")).ok()?.count(),
        descriptors: fs::read_dir(of("fd")).ok()?.count(),
    })
}

#[test]
fn hours_of_video_leave_nothing_behind() {
    let hours: f64 = std::env::var("ACTIOND_HOURS").map_or(0.05, |h| h.parse().unwrap());
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let clip = folder.path().join("long.mp4");
    // The demo is a minute.
    let made = Command::new("ffmpeg")
        .args(["-v", "error", "-y", "-stream_loop", "-1", "-i"])
        .arg(root.join("demo/demo.mp4"))
        .args(["-t", &format!("{:.0}", hours * 3600.0), "-c", "copy"])
        .arg(&clip)
        .status();
    assert!(made.unwrap().success());
    let log = folder.path().join("log");
    let mut process = Command::new(env!("CARGO_BIN_EXE_actiond"))
        .arg("run")
        .args(std::env::var("ACTIOND_MODE").map(|mode| format!("--mode={mode}")).ok())
        .args(["--until-end", "--source"])
        .arg(&clip)
        .arg("--journal")
        .arg(folder.path().join("journal"))
        .current_dir(root)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let mut seen: Vec<Holds> = Vec::new();
    let status = loop {
        if let Some(status) = process.try_wait().unwrap() {
            break status;
        }
        // A process that has just ended holds nothing any more.
        seen.extend(holds(process.id()).filter(|h| h.descriptors > 0 && h.kilobytes > 0));
        thread::sleep(Duration::from_millis(200));
    };
    let took = began.elapsed().as_secs_f64();
    let log = fs::read_to_string(&log).unwrap();
    assert!(status.success(), "{log}");
    // What is still being loaded is in the first third.
    let third = seen.len() / 3;
    assert!(third > 5, "{} looks in {took:.0} s", seen.len());
    let most = |seen: &[Holds], of: fn(&Holds) -> usize| seen.iter().map(of).max().unwrap();
    // While it ends, sinks and sources go one by one: that is none of this.
    let (before, after) = (&seen[third..2 * third], &seen[2 * third..]);
    let grown: Vec<(&str, usize, usize)> = [
        ("kB", (|h| h.kilobytes) as fn(&Holds) -> usize),
        ("threads", |h| h.threads),
        ("descriptors", |h| h.descriptors),
    ]
    .into_iter()
    .map(|(name, of)| (name, most(before, of), most(after, of)))
    .collect();
    eprintln!(
        "{:.2} h of video in {took:.0} s ({:.1}x); second third, then last: {grown:?}",
        hours,
        hours * 3600.0 / took
    );
    for (name, before, after) in grown {
        // The allocator's own: a page here and there.
        let slack = if name == "kB" { before / 50 } else { 0 };
        assert!(after <= before + slack, "{name}: {before}, then {after}\n{log}");
    }
}
