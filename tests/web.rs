//! Metrics and health over HTTP: the real binary, asked over raw sockets by those who ask well and those who do not.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

const ACTIOND: &str = env!("CARGO_BIN_EXE_actiond");

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A daemon that watches a moving test picture.
struct Daemon {
    process: Child,
    address: String,
    log: mpsc::Receiver<String>,
    _folder: tempfile::TempDir,
}

impl Daemon {
    fn start(web: &str) -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("actiond.toml");
        let text = format!(
            "[[camera]]\nid = \"door\"\n\
             source = \"gst:videotestsrc is-live=true pattern=ball ! video/x-raw,width=160,height=120,framerate=25/1\"\n\
             [journal]\npath = \"journal\"\n[web]\n{web}\n"
        );
        fs::write(&config, text).unwrap();
        let mut process = Command::new(ACTIOND)
            .arg("run")
            .arg(&config)
            .current_dir(root())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (tell, log) = mpsc::channel();
        let lines = BufReader::new(process.stderr.take().unwrap()).lines();
        thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(tell.send(line))));
        let mut daemon = Daemon { process, address: String::new(), log, _folder: folder };
        let line = daemon.wait_for("/metrics and /health");
        daemon.address = line.split("http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
        let until = Instant::now() + Duration::from_secs(120);
        while !daemon.get("/health", "Authorization: Bearer opensesame42\r\n").starts_with("HTTP/1.1 200 ") {
            assert!(Instant::now() < until, "no picture");
            thread::sleep(Duration::from_millis(100));
        }
        daemon
    }

    fn wait_for(&self, words: &str) -> String {
        let until = Instant::now() + Duration::from_secs(120);
        let mut all = Vec::new();
        loop {
            match self.log.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(words) => return line,
                Ok(line) => all.push(line),
                Err(_) => panic!("no `{words}` in {all:#?}"),
            }
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Sends bytes and reads until the far end closes; what cannot be sent or read any more was refused.
    fn send(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn get(&self, path: &str, more: &str) -> String {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{more}\r\n").as_bytes())
    }

    fn metrics(&self) -> String {
        let answer = self.get("/metrics", "");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A metric's number, by its name and labels.
fn number(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
}

#[test]
fn what_the_daemon_does_can_be_read() {
    let daemon = Daemon::start("listen = \"127.0.0.1:0\"");
    let until = Instant::now() + Duration::from_secs(120);
    while number(&daemon.metrics(), "actiond_hops_total{camera=\"door\"}") < 3.0 {
        assert!(Instant::now() < until, "{}", daemon.metrics());
        thread::sleep(Duration::from_millis(200));
    }
    let metrics = daemon.metrics();
    assert!(metrics.ends_with("# EOF\n"));
    // Each family once, with its help and its type before its samples, and names as Prometheus has them.
    let mut families = Vec::new();
    for line in metrics.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram", "info"].contains(&kind), "{line}");
            assert!(!families.contains(&name), "{name} twice");
            assert!(!name.ends_with("_total") && name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
            families.push(name);
        } else if !line.starts_with('#') {
            assert!(line.starts_with(families.last().unwrap()), "{line} is not of {:?}", families.last());
        }
    }
    for name in [
        "actiond_pictures_total{camera=\"door\"}",
        "actiond_frames_total{camera=\"door\"}",
        "actiond_hop_stage_seconds_count{stage=\"inference\",stream=\"rgb\"}",
        "actiond_hop_stage_seconds_count{stage=\"inference\",stream=\"flow\"}",
        "actiond_hop_stage_seconds_count{stage=\"decide\"}",
        "actiond_picture_stage_seconds_count{camera=\"door\",stage=\"flow\"}",
        "actiond_picture_stage_seconds_count{camera=\"door\",stage=\"scale\"}",
        "actiond_hop_delay_seconds_count",
        "actiond_camera_up{camera=\"door\"}",
        "process_resident_memory_bytes",
        "process_threads",
        "process_open_fds",
    ] {
        assert!(number(&metrics, name) > 0.0, "{name}");
    }
    for name in [
        "actiond_dropped_total{camera=\"door\",edge=\"source\"}",
        "actiond_dropped_total{camera=\"door\",edge=\"rate\"}",
        "actiond_dropped_total{camera=\"door\",edge=\"recognizer\"}",
        "actiond_reconnects_total{camera=\"door\"}",
        "actiond_gaps_total{camera=\"door\"}",
        "actiond_overload_rung",
        "actiond_journal_bytes",
    ] {
        assert!(number(&metrics, name) >= 0.0, "{name}");
    }
    let engine = metrics.lines().find(|l| l.starts_with("actiond_engine_info{")).unwrap();
    for label in ["backend=\"", "precision=\"", "mode=\"window\"", "hop=\"8\"", "model=\"actiond-compact-i3d@1\""] {
        assert!(engine.contains(label), "{engine}");
    }
    let health = daemon.get("/health", "");
    assert!(health.starts_with("HTTP/1.1 200 ") && health.contains(r#"{"status":"ok""#), "{health}");
    assert!(health.contains(r#"{"id":"door","state":"live"}"#), "{health}");
}

#[test]
fn who_has_no_business_here_gets_nothing() {
    let daemon = Daemon::start("listen = \"127.0.0.1:0\"");
    // A page that makes a browser ask under its own name.
    for host in ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.0.0.5", "[::2]"] {
        let answer =
            daemon.send(format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 403 ") && !answer.contains("actiond_"), "{host}: {answer}");
    }
    for host in ["127.0.0.1:8642", "LOCALHOST", "[::1]:1"] {
        let answer =
            daemon.send(format!("GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 200 "), "{host}: {answer}");
    }
    assert!(daemon.get("/secret", "").starts_with("HTTP/1.1 404 "));

    let daemon = Daemon::start("listen = \"127.0.0.1:0\"\ntoken = \"opensesame42\"");
    for (header, status) in [
        ("", "401"),
        ("Authorization: Bearer opensesame4\r\n", "401"),
        ("Authorization: Bearer opensesame42x\r\n", "401"),
        ("Authorization: Bearer\r\n", "401"),
        ("Authorization: Basic opensesame42\r\n", "401"),
        ("Authorization: Bearer opensesame42\r\n", "200"),
        ("authorization: bearer opensesame42\r\n", "200"),
    ] {
        for path in ["/metrics", "/health"] {
            let answer = daemon.get(path, header);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{header}: {answer}");
            assert!(!answer.contains("opensesame42"));
        }
    }
}

#[test]
fn beyond_this_machine_only_with_a_token() {
    let run = |more: &[&str]| {
        let output = Command::new(ACTIOND).arg("run").args(more).current_dir(root()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, stderr) = run(&["--source", "usb:77", "--web", "0.0.0.0:0"]);
    assert!(code == Some(2) && stderr.contains("needs a token"), "{stderr}");
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("actiond.toml");
    fs::write(&config, "[[camera]]\nid = \"door\"\nsource = \"usb:77\"\n[web]\nlisten = \"0.0.0.0:0\"\n").unwrap();
    let (code, stderr) = run(&[config.to_str().unwrap()]);
    assert!(code == Some(2) && stderr.contains("actiond.toml:5:10: [web] 0.0.0.0:0 can be reached"), "{stderr}");
}

/// Numbers that are the same at every run.
fn random(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize
}

#[test]
fn a_thousand_odd_requests_and_those_who_never_finish_take_nothing_from_others() {
    let daemon = Daemon::start("listen = \"127.0.0.1:0\"");
    // Slow loris: some say a little and wait, some say nothing, some send on without an end.
    let mut lingering: Vec<TcpStream> = (0..40)
        .map(|i| {
            let mut stream = daemon.connect();
            if i % 4 != 0 {
                stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: local").unwrap();
            }
            stream
        })
        .collect();
    let mut state = 7;
    let huge = format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "y".repeat(1 << 20));
    let many = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "A: b\r\n".repeat(5000));
    let fixed: Vec<Vec<u8>> = [
        huge.as_str(),
        &many,
        &format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "a".repeat(100_000)),
        "DELETE /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        "POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\nabc",
        "POST /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n",
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        "GET /metrics HTTP/9.9\r\n\r\n",
        "GET /metrics\r\n\r\n",
        "GET http://localhost/../../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        "GET /%00%ff HTTP/1.0\r\n\r\n",
        "CONNECT localhost:22 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: \u{0}\r\n\r\n",
        "\r\n\r\n\r\n",
    ]
    .iter()
    .map(|t| t.as_bytes().to_vec())
    .collect();
    let good = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    for n in 0..1000 {
        let bytes = match n % 4 {
            // As they are, a good one with bytes changed, garbage, and half of one, after which the far end leaves.
            0 => fixed[n / 4 % fixed.len()].clone(),
            1 => {
                let mut bytes = good.to_vec();
                for _ in 0..=random(&mut state) % 4 {
                    let at = random(&mut state) % bytes.len();
                    bytes[at] = random(&mut state) as u8;
                }
                bytes
            }
            2 => (0..random(&mut state) % 3000).map(|_| random(&mut state) as u8).collect(),
            _ => good[..random(&mut state) % good.len()].to_vec(),
        };
        let mut stream = daemon.connect();
        let _ = stream.write_all(&bytes);
        // A few wait to be thrown out; most leave first.
        if n % 50 == 0 {
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
        }
        drop(stream);
        if n % 20 == 0 {
            for stream in &mut lingering {
                let _ = stream.write_all(b"x");
            }
            // Others are served meanwhile, and soon.
            let began = Instant::now();
            assert!(daemon.get("/health", "").starts_with("HTTP/1.1 200 "), "request {n}");
            assert!(began.elapsed() < Duration::from_secs(20), "request {n}: {:?}", began.elapsed());
        }
    }
    // Who never finished is gone: the far end has closed.
    for mut stream in lingering {
        let _ = stream.read_to_end(&mut Vec::new());
    }
    // More than there is room for, all idle: the next is served all the same.
    let idle: Vec<TcpStream> = (0..300).map(|_| daemon.connect()).collect();
    let metrics = daemon.metrics();
    assert!(number(&metrics, "process_open_fds") < 150.0);
    drop(idle);
    // Nothing of it disturbed the recognizer.
    let hops = number(&daemon.metrics(), "actiond_hops_total{camera=\"door\"}");
    assert!(hops > 0.0);
    while let Ok(line) = daemon.log.try_recv() {
        assert!(!line.contains("panic"), "{line}");
    }
    assert!(Path::new(&format!("/proc/{}", daemon.process.id())).exists());
}
