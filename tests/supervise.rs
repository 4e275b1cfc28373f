//! The real binary under a service manager: a socket that hears what systemd would, and signals.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(90);

struct Daemon {
    process: Child,
    socket: UnixDatagram,
    folder: tempfile::TempDir,
    source: String,
}

impl Daemon {
    /// Watches the demo as a camera.
    fn start() -> Daemon {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).display();
        Daemon::watching(&format!("{root}/demo/demo.mp4"))
    }

    fn watching(source: &str) -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let process = Command::new("true").stdin(Stdio::null()).spawn().unwrap();
        let mut daemon = Daemon { process, socket, folder, source: source.into() };
        daemon.process.wait().unwrap();
        daemon.write("[events]\nstart = 0.5\n");
        daemon.process = Command::new(env!("CARGO_BIN_EXE_actiond"))
            .arg("run")
            .arg(daemon.folder.path().join("actiond.toml"))
            .arg("--record")
            .arg(daemon.folder.path().join("scores"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "3000000")
            .env("RUST_LOG", "info")
            .stdout(Stdio::null())
            .stderr(fs::File::create(daemon.folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        daemon
    }

    fn write(&self, rest: &str) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).display();
        let config = format!(
            "[model]\npath = \"{root}/models/default\"\n[journal]\npath = \"journal\"\n\
             [[camera]]\nid = \"door\"\nsource = \"{}\"\nrealtime = true\n{rest}",
            self.source
        );
        fs::write(self.folder.path().join("actiond.toml"), config).unwrap();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// What the manager hears until it has heard `last`.
    fn hears(&self, last: &str) -> Vec<String> {
        let (began, mut all) = (Instant::now(), Vec::new());
        let mut buffer = [0; 4096];
        while began.elapsed() < PATIENCE {
            let Ok(n) = self.socket.recv(&mut buffer) else { continue };
            all.extend(String::from_utf8_lossy(&buffer[..n]).lines().map(String::from));
            if all.iter().any(|line| line == last) {
                return all;
            }
        }
        panic!("no {last} among {all:?}\n{}", self.log());
    }

    /// Hears what is told meanwhile: nobody may be kept waiting by a manager that does not listen.
    fn listen(&self, time: Duration) {
        let began = Instant::now();
        let mut buffer = [0; 4096];
        while began.elapsed() < time {
            self.socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            let _ = self.socket.recv(&mut buffer);
        }
        self.socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    }

    /// Ends it in order.
    fn stop(&mut self) {
        self.signal("-TERM");
        self.hears("STOPPING=1");
        assert!(self.process.wait().unwrap().success(), "{}", self.log());
    }

    fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    fn says(&self, text: &str) {
        let began = Instant::now();
        while !self.log().contains(text) {
            assert!(began.elapsed() < PATIENCE, "no `{text}` in\n{}", self.log());
            self.listen(Duration::from_millis(50));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn it_is_ready_when_the_model_has_answered_alive_while_it_works_and_stops_in_order() {
    let mut daemon = Daemon::start();
    let before = daemon.hears("READY=1");
    // The model is loaded and cameras are waited for with patience.
    assert!(before.iter().any(|line| line.starts_with("EXTEND_TIMEOUT_USEC=")), "{before:?}");
    assert!(before.contains(&"STATUS=loading the model".to_owned()), "{before:?}");
    for _ in 0..3 {
        daemon.hears("WATCHDOG=1");
    }
    daemon.stop();
}

/// Its recordings have ended, and it waits for a signal: that is no reason to restart it, which would play them again.
#[test]
fn a_daemon_with_nothing_left_to_do_is_alive() {
    let folder = tempfile::tempdir().unwrap();
    let clip = folder.path().join("clip.y4m");
    let mut frames = b"YUV4MPEG2 W64 H64 F25:1 C420jpeg\n".to_vec();
    (0..80u8).for_each(|i| frames.extend([b"FRAME\n".as_slice(), &[i; 64 * 64 * 3 / 2]].concat()));
    fs::write(&clip, frames).unwrap();
    let mut daemon = Daemon::watching(clip.to_str().unwrap());
    daemon.says("every recording has ended; waiting for a signal");
    daemon.listen(Duration::from_secs(2));
    for _ in 0..3 {
        daemon.hears("WATCHDOG=1");
    }
    daemon.stop();
}

#[test]
fn a_hangup_reads_the_config_again_and_says_what_waits_for_a_restart() {
    let mut daemon = Daemon::start();
    daemon.hears("READY=1");
    daemon.write("[events]\nstart = 2.0\n");
    daemon.signal("-HUP");
    daemon.says("start 2 is not within 0..1; going on with the settings as they were");
    assert!(!daemon.log().contains("holds from now on"), "{}", daemon.log());
    // From now on nothing is sure enough.
    daemon.write("hop = 3\n[events]\nstart = 0.99999\nend = 0.9999\n");
    daemon.signal("-HUP");
    daemon.says("unknown field `hop`");
    daemon.write("skip_still = true\n[events]\nstart = 0.99999\nend = 0.9999\n");
    daemon.signal("-HUP");
    daemon.says("its [events] holds from now on");
    daemon.says("what changed in [camera] is taken up by a restart only");
    daemon.listen(Duration::from_secs(2));
    let journal = daemon.folder.path().join("journal/events.jsonl");
    let starts = || fs::read_to_string(&journal).unwrap_or_default().matches("\"phase\":\"start\"").count();
    let before = starts();
    // Ten seconds of the demo hold two actions.
    daemon.listen(Duration::from_secs(10));
    assert_eq!(starts(), before, "{}", daemon.log());
    daemon.write("skip_still = true\n[events]\nstart = 0.3\nend = 0.2\n");
    daemon.signal("-HUP");
    daemon.listen(Duration::from_secs(6));
    assert!(starts() > before, "{}", daemon.log());
    daemon.stop();
    // The settings that held are recorded with the scores.
    let again = daemon.folder.path().join("again");
    let replayed = Command::new(env!("CARGO_BIN_EXE_actiond"))
        .arg("replay")
        .arg(daemon.folder.path().join("scores"))
        .arg("--journal")
        .arg(&again)
        .output()
        .unwrap();
    assert!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stderr));
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    assert_eq!(read(&again.join("events.jsonl")), read(&journal));
}
