//! No password in any output: the real binary, with passwords wherever one can stand.

use std::{
    fs,
    io::Read,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

#[path = "common/rtsp.rs"]
#[allow(dead_code)]
mod rtsp;

const ACTIOND: &str = env!("CARGO_BIN_EXE_actiond");
const PASSWORD: &str = "hunter2secret";

/// Runs it until it ends, or has said all of `words`, which it must within `seconds`, and then until it has stopped.
fn actiond(folder: &Path, seconds: u64, words: &[&str], arguments: &[&str]) -> Output {
    let mut process = Command::new(ACTIOND)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        // All that it ever says.
        .env("RUST_LOG", "trace")
        .env("DOOR_PASSWORD", PASSWORD)
        .stdout(fs::File::create(folder.join("stdout")).unwrap())
        .stderr(fs::File::create(folder.join("stderr")).unwrap())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    let ends = |process: &mut Child, seconds: u64, words: &[&str]| {
        for _ in 0..seconds * 5 {
            if process.try_wait().unwrap().is_some() {
                return true;
            }
            if !words.is_empty() {
                let said = String::from_utf8_lossy(&read("stderr")).into_owned();
                if words.iter().all(|word| said.contains(word)) {
                    return true;
                }
            }
            thread::sleep(Duration::from_millis(200));
        }
        false
    };
    let in_time = ends(&mut process, seconds, words);
    if process.try_wait().unwrap().is_none() {
        // SIGTERM, so that it says all that it says at the end.
        Command::new("kill").arg(process.id().to_string()).status().unwrap();
    }
    let stopped = ends(&mut process, 60, &[]);
    if !stopped {
        let _ = process.kill();
    }
    let status = process.wait().unwrap();
    let output = Output { status, stdout: read("stdout"), stderr: read("stderr") };
    let end: String = {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        text.lines().rev().take(40).map(|line| format!("{line}\n")).collect()
    };
    assert!(in_time, "it has not said {words:?}, or not ended, within {seconds} s; its last words, last first:\n{end}");
    assert!(stopped, "it does not stop; its last words, last first:\n{end}");
    output
}

fn hidden(folder: &Path, output: &Output) -> String {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    for line in text.lines() {
        assert!(!line.contains("hunter2"), "{line}");
    }
    // Nor in what it wrote.
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_none_or(|e| e != "toml" && e != "secret") {
                let mut bytes = Vec::new();
                fs::File::open(&path).unwrap().read_to_end(&mut bytes).unwrap();
                assert!(!bytes.windows(7).any(|w| w == b"hunter2"), "{}", path.display());
            }
        }
    }
    text
}

fn write(folder: &Path, cameras: &[String]) -> PathBuf {
    let config = folder.join("actiond.toml");
    let each = cameras.iter().enumerate().map(|(i, c)| format!("[[camera]]\nid = \"c{i}\"\n{c}\n"));
    fs::write(&config, each.collect::<String>() + "[web]\nlisten = \"127.0.0.1:0\"\ntoken = \"hunter2token\"\n")
        .unwrap();
    config
}

#[test]
fn no_password_is_in_any_output() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // A port where nobody answers, one where somebody does who is no camera, and a camera.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap();
    let server = rtsp::Server::start(&[]);
    let at = |path: &str| server.address(path).replace("rtsp://", &format!("rtsp://user:{PASSWORD}@"));
    fs::write(folder.join("door.secret"), at("nothing-here") + "\n").unwrap();
    let cameras = [
        format!("source = \"{}\"", at("nothing")),
        format!("source = \"rtsp://user:{PASSWORD}@127.0.0.1:1/stream\""),
        format!("source = \"rtsp://user:${{DOOR_PASSWORD}}@{silent}/stream\""),
        format!("source = \"http://user:{PASSWORD}@127.0.0.1:1/x?pwd={PASSWORD}\""),
        format!("source = \"rtsp://127.0.0.1:1/user=admin_password={PASSWORD}_channel=1\""),
        "source_file = \"door.secret\"".into(),
        format!("source = \"gst:rtspsrc location=rtsp://127.0.0.1:1/ user-id=me user-pw={PASSWORD} ! decodebin\""),
    ];
    let config = write(folder, &cameras);
    let scores = folder.join("scores");
    let journal = folder.join("journal");
    let source = format!("rtsp://me:{PASSWORD}@127.0.0.1:1/other");
    let output = actiond(
        folder,
        120,
        // Each of them was tried, and the one on the command line.
        &[
            "camera c0: ",
            "camera c1: ",
            "camera c2: ",
            "camera c3: ",
            "camera c4: ",
            "camera c5: ",
            "camera c6: ",
            "me:***@",
        ],
        &[
            "run",
            config.to_str().unwrap(),
            "--source",
            &source,
            "--record",
            scores.to_str().unwrap(),
            "--journal",
            journal.to_str().unwrap(),
        ],
    );
    let text = hidden(folder, &output);
    // It did try them, and it warned.
    assert!(text.contains("trying again"), "{text}");
    assert!(text.contains("list of processes"), "{text}");
    assert!(text.contains("every user of this machine can read it"), "{text}");
    let text = hidden(folder, &actiond(folder, 120, &[], &["check", config.to_str().unwrap()]));
    assert!(text.contains("good."), "{text}");
    hidden(folder, &actiond(folder, 120, &[], &["doctor"]));
}

#[test]
fn mistakes_beside_a_password_do_not_show_it() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for camera in [
        format!("source = \"rtspp://user:{PASSWORD}@host/x\""),
        format!("source = \"rtsp:/user:{PASSWORD}@host/x\""),
        format!("source = \"user:{PASSWORD}@host/x\""),
        format!("source = [\"rtsp://user:{PASSWORD}@host/x\"]"),
        format!("region = \"rtsp://user:{PASSWORD}@host/x\"\nsource = \"usb:0\""),
        format!("source = \"rtsp://user:{PASSWORD}@\""),
        format!("source = \"rtsp://user:{PASSWORD}@host/x\"\nsource_file = \"x\""),
        "source = \"rtsp://u:${NOT_SET}@host/x\"".into(),
        "source_file = \"nowhere\"".into(),
        String::new(),
    ] {
        let config = write(folder, std::slice::from_ref(&camera));
        let output = actiond(folder, 120, &[], &["check", config.to_str().unwrap()]);
        let text = hidden(folder, &output);
        assert_eq!(output.status.code(), Some(2), "{camera}: {text}");
        assert!(text.contains("actiond.toml:"), "{camera}: {text}");
    }
}

#[test]
fn a_config_that_only_its_owner_can_read_needs_no_warning() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let config = write(folder, &[format!("source = \"rtsp://user:{PASSWORD}@host/x\"")]);
    for (mode, warned) in [(0o644, true), (0o600, false), (0o640, false)] {
        fs::set_permissions(&config, fs::Permissions::from_mode(mode)).unwrap();
        let text = hidden(folder, &actiond(folder, 120, &[], &["check", config.to_str().unwrap()]));
        assert_eq!(text.contains("every user"), warned, "{mode:o}: {text}");
    }
}
