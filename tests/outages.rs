//! Many cameras on one machine, each of which dies and returns at random: the real binary, a real RTSP server, and
//! between them, for each camera, a line that breaks as networks and cameras do. `ACTIOND_DEATHS` is how often each dies.

#[path = "common/onnx.rs"]
#[allow(dead_code)]
mod onnx;
#[path = "common/rtsp.rs"]
#[allow(dead_code)]
mod rtsp;

use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rtsp::Server;

const CAMERAS: usize = 16;

/// What is promised: a camera is back this soon after its source is, with a second for a machine that is busy with tests.
const BACK: Duration = Duration::from_secs(6);
/// A camera of ten pictures a second shows nothing new for this long only when it is away.
const STEADY: Duration = Duration::from_secs(3);

/// What becomes of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Works,
    /// The camera's program has ended: connections are closed, none is taken.
    Refuses,
    /// Its power is gone: nobody says anything any more on what was open, none is taken.
    Silent,
    /// It stands still, and goes on where it was.
    Frozen,
    /// It sends what is no video.
    Garbage,
}

const DEATHS: [Line; 4] = [Line::Refuses, Line::Silent, Line::Frozen, Line::Garbage];

/// A port in place of the camera's.
struct Proxy {
    port: u16,
    line: Arc<Mutex<Line>>,
    ended: Arc<AtomicBool>,
}

impl Proxy {
    fn start(server: u16) -> Proxy {
        let mut listener = Some(TcpListener::bind("127.0.0.1:0").unwrap());
        let port = listener.as_ref().unwrap().local_addr().unwrap().port();
        let (line, ended) = (Arc::new(Mutex::new(Line::Works)), Arc::new(AtomicBool::new(false)));
        let (state, stop) = (line.clone(), ended.clone());
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                match *state.lock().unwrap() {
                    Line::Refuses | Line::Silent => listener = None,
                    _ if listener.is_none() => listener = TcpListener::bind(("127.0.0.1", port)).ok(),
                    _ => {}
                }
                if let Some(listener) = &listener {
                    listener.set_nonblocking(true).unwrap();
                    while let Ok((client, _)) = listener.accept() {
                        client.set_nonblocking(false).unwrap();
                        connect(client, server, state.clone());
                    }
                }
                thread::sleep(Duration::from_millis(10));
            }
        });
        Proxy { port, line, ended }
    }

    fn set(&self, line: Line) {
        *self.line.lock().unwrap() = line;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Line::Refuses);
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// Carries one connection until its line breaks.
fn connect(client: TcpStream, server: u16, line: Arc<Mutex<Line>>) {
    let Ok(camera) = TcpStream::connect(("127.0.0.1", server)) else { return };
    // A connection that was open when the power went never speaks again, also when the power is back.
    let dead = Arc::new(AtomicBool::new(false));
    for (mut from, mut to, is_camera) in
        [(client.try_clone().unwrap(), camera.try_clone().unwrap(), false), (camera, client, true)]
    {
        let (line, dead) = (line.clone(), dead.clone());
        thread::spawn(move || {
            from.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            let mut buffer = [0; 16384];
            let mut random = fastrand::Rng::new();
            loop {
                let now = *line.lock().unwrap();
                if now == Line::Silent {
                    dead.store(true, Ordering::Relaxed);
                }
                let dead = dead.load(Ordering::Relaxed);
                if now == Line::Refuses {
                    break;
                }
                if now == Line::Frozen && !dead {
                    thread::sleep(Duration::from_millis(20));
                    continue;
                }
                match from.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(_) if dead => {}
                    Ok(n) => {
                        if now == Line::Garbage && is_camera {
                            random.fill(&mut buffer[..n]);
                        }
                        if to.write_all(&buffer[..n]).is_err() {
                            break;
                        }
                    }
                    Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(_) => break,
                }
            }
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
}

struct Daemon {
    process: Child,
    web: u16,
}

impl Daemon {
    /// Watches these, as cameras `c00` and so on, and returns when it can be asked of all; its log is `log` in the folder.
    fn start(folder: &Path, sources: &[String]) -> Daemon {
        onnx::write_brightness(&folder.join("model"));
        let web = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let camera = |(i, source): (usize, &String)| format!("[[camera]]\nid = \"c{i:02}\"\nsource = \"{source}\"\n");
        let text = format!(
            "[model]\npath = \"model\"\nbackend = [\"tract\"]\n[journal]\npath = \"journal\"\n\
             [web]\nlisten = \"127.0.0.1:{web}\"\n{}",
            sources.iter().enumerate().map(camera).collect::<String>()
        );
        fs::write(folder.join("actiond.toml"), text).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_actiond"))
            .arg("run")
            .arg(folder.join("actiond.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("log")).unwrap())
            .spawn()
            .unwrap();
        let (daemon, began) = (Daemon { process, web }, Instant::now());
        // The page is there before the cameras are.
        while TcpStream::connect(("127.0.0.1", web)).is_err()
            || numbers(&daemon.metrics(), "actiond_pictures_total").len() < sources.len()
        {
            assert!(began.elapsed() < Duration::from_secs(60), "{}", fs::read_to_string(folder.join("log")).unwrap());
            thread::sleep(Duration::from_millis(50));
        }
        daemon
    }

    fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.web)).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Threads, descriptors, and kilobytes in memory.
    fn holds(&self) -> [usize; 3] {
        let of = |name: &str| format!("/proc/{}/{name}", self.process.id());
        let status = fs::read_to_string(of("status")).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
        let memory = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        [fs::read_dir(of("task")).unwrap().count(), fs::read_dir(of("fd")).unwrap().count(), memory]
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A number of each camera.
fn numbers(metrics: &str, name: &str) -> BTreeMap<String, u64> {
    let of = |line: &str| {
        let (camera, value) = line.strip_prefix(name)?.strip_prefix("{camera=\"")?.split_once("\"} ")?;
        Some((camera.to_owned(), value.parse().ok()?))
    };
    metrics.lines().filter_map(of).collect()
}

/// A camera as the test sees it.
struct Watched {
    proxy: Proxy,
    deaths: usize,
    line: Line,
    /// When its line becomes another one.
    next: Instant,
    /// Since when its line works.
    works_since: Instant,
    /// It gave a picture since then.
    back: bool,
    pictures: u64,
    fresh: Instant,
    reconnects: u64,
}

#[test]
fn sixteen_cameras_die_and_return_and_none_disturbs_another() {
    let deaths: usize = std::env::var("ACTIOND_DEATHS").map_or(2, |n| n.parse().unwrap());
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&[]);
    let proxies: Vec<Proxy> = (0..CAMERAS).map(|_| Proxy::start(server.port)).collect();
    let sources: Vec<String> = proxies.iter().map(|p| format!("rtsp://127.0.0.1:{}/small", p.port)).collect();
    let (mut daemon, log) = (Daemon::start(folder.path(), &sources), folder.path().join("log"));
    let now = Instant::now();
    let watched = |(i, proxy)| {
        let next = now + Duration::from_millis(random.u64(6000..12000));
        let watched = Watched {
            proxy,
            deaths: 0,
            line: Line::Works,
            next,
            works_since: now,
            back: false,
            pictures: 0,
            fresh: now,
            reconnects: 0,
        };
        (format!("c{i:02}"), watched)
    };
    let mut cameras: BTreeMap<String, Watched> = proxies.into_iter().enumerate().map(watched).collect();
    let began = Instant::now();
    let (mut slowest, mut back_after, mut at_first) = (Duration::ZERO, Vec::new(), None);
    let said = |what: String| -> ! { panic!("{what}\n{}", fs::read_to_string(&log).unwrap()) };
    loop {
        let metrics = daemon.metrics();
        let (pictures, reconnects) =
            (numbers(&metrics, "actiond_pictures_total"), numbers(&metrics, "actiond_reconnects_total"));
        let now = Instant::now();
        for (id, c) in &mut cameras {
            let (new, opened) = (pictures[id], reconnects[id]);
            let worked_for = now.duration_since(c.works_since);
            if c.line == Line::Works && !c.back {
                if new > c.pictures {
                    (c.back, c.fresh) = (true, now);
                    if c.deaths > 0 {
                        back_after.push(worked_for);
                    }
                } else if worked_for > BACK {
                    said(format!("{id} is not back after {worked_for:?}"));
                }
            } else if c.line == Line::Works {
                // Nobody else's death is noticed here.
                if new > c.pictures {
                    slowest = slowest.max(now - c.fresh);
                    c.fresh = now;
                } else if now - c.fresh > STEADY && worked_for > BACK {
                    said(format!("{id}, whose line works, gives nothing since {:?}", now - c.fresh));
                }
                if opened > c.reconnects && worked_for > BACK {
                    said(format!("{id} is opened anew, and nothing was wrong with it"));
                }
            }
            (c.pictures, c.reconnects) = (new, opened);
            if now < c.next {
                continue;
            }
            if c.line != Line::Works {
                c.line = Line::Works;
                (c.works_since, c.back) = (now, false);
                c.next = now + BACK + Duration::from_millis(random.u64(500..4000));
            } else if c.deaths < deaths {
                c.deaths += 1;
                c.line = DEATHS[random.usize(..DEATHS.len())];
                // From a hiccup to a restart.
                c.next = now + Duration::from_millis(random.u64(200..8000));
            }
            c.proxy.set(c.line);
        }
        // With all of them there for the first time, and at the end.
        if at_first.is_none() && cameras.values().all(|c| c.back && c.deaths == 0) {
            at_first = Some(daemon.holds());
        }
        let over = |c: &Watched| c.deaths == deaths && c.back && now - c.works_since > BACK;
        if cameras.values().all(over) {
            break;
        }
        if daemon.process.try_wait().unwrap().is_some() {
            said("it has ended".into());
        }
        thread::sleep(Duration::from_millis(100));
    }
    back_after.sort();
    assert_eq!(back_after.len(), CAMERAS * deaths);
    let (first, last) = (at_first.expect("all were there at first"), daemon.holds());
    eprintln!(
        "{} deaths in {:.0} s: back after {:.1} s as a rule, {:.1} s at most; the others gave pictures every {:.1} s at \
         least; threads {} then {}, descriptors {} then {}, memory {} then {} MB",
        back_after.len(),
        began.elapsed().as_secs_f64(),
        back_after[back_after.len() / 2].as_secs_f64(),
        back_after[back_after.len() - 1].as_secs_f64(),
        slowest.as_secs_f64(),
        first[0],
        last[0],
        first[1],
        last[1],
        first[2] / 1000,
        last[2] / 1000
    );
    // A few of a pipeline's threads come and go; what each death left behind would be hundreds.
    assert!(last[0] <= first[0] + 2 * CAMERAS && last[1] <= first[1] + 4 * CAMERAS, "{first:?}, {last:?}");
    let log = fs::read_to_string(&log).unwrap();
    assert!(!log.contains("panicked"), "{log}");
    assert!(!log.contains("does not close"), "{log}");
}

/// What has worked is never given up, also when it answers that it wants another password: somebody will set it right.
#[test]
fn a_camera_that_refuses_after_it_has_worked_is_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(&[]);
    let port = server.port;
    let daemon = Daemon::start(folder.path(), &[server.address("small")]);
    let log = || fs::read_to_string(folder.path().join("log")).unwrap();
    let pictures = || numbers(&daemon.metrics(), "actiond_pictures_total")["c00"];
    let wait = |seconds: u64, what: &str, done: &dyn Fn() -> bool| {
        let began = Instant::now();
        while !done() {
            assert!(began.elapsed() < Duration::from_secs(seconds), "{what}: {}", log());
            thread::sleep(Duration::from_millis(100));
        }
    };
    wait(30, "no picture", &|| pictures() > 0);
    server.kill();
    let mut other = Server::start_on(port, &["--user", "other", "--password", "words"]);
    wait(30, "not refused", &|| log().contains("refuses the user name or the password"));
    let before = pictures();
    other.kill();
    let _server = Server::start_on(port, &[]);
    // Once in half a minute: more often, and a camera closes its door.
    wait(60, "not asked again", &|| pictures() > before);
}
