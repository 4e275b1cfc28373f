//! Events reach everyone who wants them, exactly in order, whatever fails: the daemon against a real broker, through a
//! proxy that misbehaves, killed, on a full disk. Where mosquitto is not installed these tests say so and are skipped.

#[path = "common/onnx.rs"]
#[allow(dead_code)]
mod onnx;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use actiond::{event::Event, journal::Reader};
use serde_json::Value;

const ACTIOND: &str = env!("CARGO_BIN_EXE_actiond");

// --- A model, a recording, a config ---------------------------------------------------------------------------------

/// Bright for two seconds, dark for two, and so on; made a day ago, as far as its file tells.
fn blinking(path: &Path, seconds: u32) {
    let filter = format!(
        "color=black:s=32x32:r=25:d={seconds},drawbox=x=0:y=0:w=32:h=32:color=white:t=fill:enable='lt(mod(t,4),2)'"
    );
    let made = Command::new("ffmpeg")
        .args(["-v", "error", "-y", "-f", "lavfi", "-i", &filter, "-pix_fmt", "yuv420p"])
        .arg(path)
        .output()
        .unwrap();
    assert!(made.status.success(), "ffmpeg: {}", String::from_utf8_lossy(&made.stderr));
    let yesterday = SystemTime::now() - Duration::from_secs(24 * 3600);
    fs::File::options().append(true).open(path).unwrap().set_modified(yesterday).unwrap();
}

/// A place for a daemon.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let place = Place { folder: tempfile::tempdir().unwrap() };
        onnx::write_brightness(&place.path("model"));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn config(&self, rest: &str) {
        let journal = if rest.contains("[journal]") { "" } else { "[journal]\npath = \"journal\"\n" };
        let head = "[device]\nid = \"dock\"\n[model]\npath = \"model\"\nbackend = [\"tract\"]\n";
        fs::write(self.path("actiond.toml"), format!("{head}{journal}{rest}")).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Daemon {
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let child = Command::new(ACTIOND)
            .arg("run")
            .arg(self.path("actiond.toml"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Daemon(child)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn journal(&self) -> Vec<Event> {
        let mut reader = Reader::new(&self.path("journal"), 0);
        std::iter::from_fn(|| reader.next_event().unwrap()).collect()
    }

    fn check(&self) -> (bool, String) {
        let output =
            Command::new(ACTIOND).arg("check").arg("--publish").arg(self.path("actiond.toml")).output().unwrap();
        let said = [&output.stdout[..], &output.stderr[..]].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }
}

fn cameras(count: usize, source: &str, more: &str) -> String {
    (0..count).map(|i| format!("[[camera]]\nid = \"c{i}\"\nsource = \"{source}\"\n{more}\n")).collect()
}

fn mqtt(port: u16, more: &str) -> String {
    format!("[mqtt]\nurl = \"mqtt://127.0.0.1:{port}\"\n{more}\n")
}

struct Daemon(Child);

impl Daemon {
    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args(["-s", name]).arg(self.0.id().to_string()).status().unwrap().success());
    }

    fn ends(mut self) -> bool {
        let ended = wait_for(60, || self.0.try_wait().unwrap().is_some());
        assert!(ended, "the daemon does not end");
        self.0.wait().unwrap().success()
    }

    fn stop(self) {
        self.signal("TERM");
        assert!(self.ends());
    }

    /// Kilobytes in memory.
    fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for(seconds: u64, mut done: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(seconds) {
        if done() {
            return true;
        }
        thread::sleep(Duration::from_millis(50));
    }
    done()
}

// --- A broker and its subscribers -----------------------------------------------------------------------------------

fn mosquitto() -> Option<&'static str> {
    let there = ["mosquitto", "/usr/sbin/mosquitto"]
        .into_iter()
        .find(|p| Command::new(p).arg("-h").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok());
    if there.is_none() {
        eprintln!("skipped: mosquitto is not installed (scripts/setup --tests does that)");
    }
    there
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

struct Broker {
    folder: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

impl Broker {
    /// None where it is not installed.
    fn new() -> Option<Broker> {
        let port = free_port();
        let settings = format!("listener {port} 127.0.0.1\nallow_anonymous true\n");
        Broker::with(port, |_| settings)
    }

    fn with(port: u16, settings: impl FnOnce(&Path) -> String) -> Option<Broker> {
        mosquitto()?;
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        let more = format!(
            "user root\npersistence true\npersistence_location {}/\nautosave_interval 1\nmax_queued_messages 0\n",
            data.display()
        );
        let settings = settings(folder.path());
        fs::write(folder.path().join("conf"), settings + &more).unwrap();
        let mut broker = Broker { folder, port, child: None };
        broker.start();
        Some(broker)
    }

    fn start(&mut self) {
        let log = fs::File::create(self.folder.path().join("log")).unwrap();
        let mut command = Command::new(mosquitto().unwrap());
        command.arg("-c").arg(self.folder.path().join("conf")).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        assert!(wait_for(10, || TcpStream::connect(("127.0.0.1", self.port)).is_ok()), "mosquitto does not listen");
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            let _ = child.wait();
        }
    }

    fn wipe(&self) {
        let data = self.folder.path().join("data");
        fs::remove_dir_all(&data).unwrap();
        fs::create_dir(&data).unwrap();
    }

    fn publish(&self, topic: &str, payload: &str) {
        let sent = Command::new("mosquitto_pub")
            .args(["-p", &self.port.to_string(), "-q", "1", "-t", topic, "-m", payload])
            .status();
        assert!(sent.unwrap().success());
    }

    /// What is retained on a topic now.
    fn retained(&self, topic: &str) -> Option<String> {
        let output = Command::new("mosquitto_sub")
            .args(["-p", &self.port.to_string(), "-t", topic, "-C", "1", "-W", "1"])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (!text.is_empty()).then(|| text.trim_end().to_owned())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.stop();
    }
}

/// `mosquitto_sub`, writing what comes into a file, which it continues.
struct Subscriber {
    child: Child,
    file: PathBuf,
}

impl Subscriber {
    fn start(broker: &Broker, file: PathBuf, arguments: &[&str]) -> Subscriber {
        let out = fs::File::options().create(true).append(true).open(&file).unwrap();
        let mut child = Command::new("stdbuf")
            .args([
                "-oL",
                "mosquitto_sub",
                "-d",
                "-p",
                &broker.port.to_string(),
                "-q",
                "1",
                "-t",
                "#",
                "-F",
                "|%r %t %p",
            ])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // What it says of itself comes between; only messages begin with our sign.
        // It cuts long topics in the middle of a character.
        let lines = BufReader::new(child.stdout.take().unwrap()).split(b'\n').map_while(Result::ok);
        let mut lines = lines.map(|line| String::from_utf8_lossy(&line).into_owned());
        assert!(lines.any(|l| l.starts_with("Subscribed")), "mosquitto_sub does not subscribe");
        thread::spawn(move || {
            let mut out = out;
            for line in lines.filter(|l| l.starts_with('|')) {
                writeln!(out, "{}", &line[1..]).unwrap();
            }
        });
        Subscriber { child, file }
    }

    fn messages(&self) -> Vec<Message> {
        messages(&self.file)
    }
}

impl Drop for Subscriber {
    /// In good order: what it has acknowledged it has printed.
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
        thread::sleep(Duration::from_millis(100));
    }
}

/// A subscriber with a session that outlives its connections. It acknowledges what it has written down, which
/// `mosquitto_sub` does not when it is told to end.
struct Comer {
    stop: Arc<AtomicU32>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Comer {
    fn start(broker: &Broker, file: PathBuf) -> Comer {
        let mut out = fs::File::options().create(true).append(true).open(file).unwrap();
        let mut options = rumqttc::MqttOptions::new("comes-and-goes", ("127.0.0.1", broker.port));
        options.set_clean_session(false).set_ack_mode(rumqttc::AckMode::Manual);
        let (client, mut connection) = rumqttc::Client::builder(options).capacity(1000).build();
        client.subscribe("#", rumqttc::QoS::AtLeastOnce).unwrap();
        let (stop, subscribed) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (stopped, ready) = (stop.clone(), subscribed.clone());
        let thread = thread::spawn(move || {
            while stopped.load(Ordering::SeqCst) == 0 {
                let Ok(happening) = connection.recv_timeout(Duration::from_millis(50)) else { continue };
                if let Ok(rumqttc::Event::Incoming(rumqttc::Packet::SubAck(_))) = happening {
                    ready.store(1, Ordering::SeqCst);
                }
                if let Ok(rumqttc::Event::Incoming(rumqttc::Packet::Publish(message))) = happening {
                    let (topic, payload) =
                        (String::from_utf8_lossy(&message.topic), String::from_utf8_lossy(&message.payload));
                    writeln!(out, "{} {topic} {payload}", u8::from(message.retain)).unwrap();
                    client.ack(&message).unwrap();
                }
            }
        });
        assert!(wait_for(10, || subscribed.load(Ordering::SeqCst) == 1));
        Comer { stop, thread: Some(thread) }
    }
}

impl Drop for Comer {
    fn drop(&mut self) {
        self.stop.store(1, Ordering::SeqCst);
        let _ = self.thread.take().unwrap().join();
    }
}

#[derive(Debug, Clone)]
struct Message {
    retained: bool,
    topic: String,
    payload: String,
}

fn messages(file: &Path) -> Vec<Message> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let message = |line: &str| {
        let mut parts = line.splitn(3, ' ');
        let mut part = || parts.next().unwrap_or_default().to_owned();
        Message { retained: part() == "1", topic: part(), payload: part() }
    };
    whole.lines().map(message).collect()
}

/// The events among messages: late or not, and what they are.
fn events(messages: &[Message]) -> Vec<(bool, Event)> {
    let event = |m: &Message| {
        let late = m.topic.ends_with("/event/late");
        (late || m.topic.ends_with("/event")).then(|| (late, serde_json::from_str(&m.payload).unwrap()))
    };
    messages.iter().filter_map(event).collect()
}

fn numbers(events: &[Event]) -> Vec<u64> {
    events.iter().map(|e| e.seq).collect()
}

/// Everything that the journal has came, in order within each of the two topics, and repeats are the same event.
fn assert_whole(got: &[(bool, Event)], journal: &[Event], who: &str) -> usize {
    let mut first: BTreeMap<u64, &Event> = BTreeMap::new();
    let (mut repeats, mut newest) = (0, [0, 0]);
    for (late, event) in got {
        assert_eq!(*late, event.flags.contains(&actiond::event::Flag::Late), "{who}: {event:?}");
        match first.get(&event.seq) {
            Some(before) => {
                repeats += 1;
                assert_eq!((&before.id, before.phase), (&event.id, event.phase), "{who}: number {} is two", event.seq);
            }
            None => {
                let newest = &mut newest[usize::from(*late)];
                assert!(event.seq > *newest, "{who}: {} came behind {newest}, late: {late}", event.seq);
                *newest = event.seq;
                first.insert(event.seq, event);
            }
        }
    }
    let missing: Vec<u64> = journal.iter().map(|e| e.seq).filter(|seq| !first.contains_key(seq)).collect();
    assert!(missing.is_empty(), "{who}: {} of {} are missing: {missing:?}", missing.len(), journal.len());
    for event in journal {
        assert_eq!(first[&event.seq].id, event.id, "{who}");
    }
    repeats
}

fn assert_gapless(journal: &[Event]) {
    assert_eq!(numbers(journal), (1..=journal.len() as u64).collect::<Vec<_>>());
}

// --- A proxy that misbehaves ----------------------------------------------------------------------------------------

const PASS: u32 = 0;
/// Whoever connects is thrown out.
const REFUSE: u32 = 1;
/// No PubAck comes through to the client, until it connects anew.
const SWALLOW: u32 = 2;
/// Nothing comes through, and nobody is told: a cable that was pulled.
const SILENT: u32 = 3;

#[derive(Clone)]
struct Proxy {
    port: u16,
    mode: Arc<AtomicU32>,
    connections: Arc<AtomicUsize>,
    swallowed: Arc<AtomicUsize>,
}

impl Proxy {
    fn start(target: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy {
            port: listener.local_addr().unwrap().port(),
            mode: Arc::default(),
            connections: Arc::default(),
            swallowed: Arc::default(),
        };
        let shared = proxy.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // Only the connection before swallows: this one would wait for what it sends at once.
                let _ = shared.mode.compare_exchange(SWALLOW, PASS, Ordering::SeqCst, Ordering::SeqCst);
                shared.connections.fetch_add(1, Ordering::SeqCst);
                if shared.mode.load(Ordering::SeqCst) == REFUSE {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else { continue };
                let (client2, server2) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let (up, down) = (shared.clone(), shared.clone());
                thread::spawn(move || up.copy(client, server, false));
                thread::spawn(move || down.copy(server2, client2, true));
            }
        });
        proxy
    }

    fn set(&self, mode: u32) {
        self.mode.store(mode, Ordering::SeqCst);
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Packet by packet, from the broker to the client or back.
    fn copy(&self, from: TcpStream, mut to: TcpStream, to_client: bool) {
        let mut reader = BufReader::new(from);
        while let Some(packet) = packet(&mut reader) {
            match self.mode.load(Ordering::SeqCst) {
                SILENT => continue,
                SWALLOW if to_client && packet[0] >> 4 == 4 => {
                    self.swallowed.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
                _ => {}
            }
            if to.write_all(&packet).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    }
}

/// One MQTT packet: type, length in groups of seven bits, content.
fn packet(reader: &mut impl Read) -> Option<Vec<u8>> {
    let mut byte = || {
        let mut byte = [0];
        reader.read_exact(&mut byte).ok().map(|()| byte[0])
    };
    let mut packet = vec![byte()?];
    let (mut length, mut shift) = (0usize, 0);
    loop {
        let next = byte()?;
        packet.push(next);
        length |= usize::from(next & 127) << shift;
        shift += 7;
        if next & 128 == 0 {
            break;
        }
    }
    let start = packet.len();
    packet.resize(start + length, 0);
    reader.read_exact(&mut packet[start..]).ok()?;
    Some(packet)
}

// --- MQTT -----------------------------------------------------------------------------------------------------------

#[test]
fn a_broker_that_was_down_gets_what_it_missed_late_and_in_order_beside_what_happens_now() {
    let Some(broker) = Broker::new() else { return };
    let place = Place::new();
    blinking(&place.path("clip.y4m"), 60);
    // Nobody listens there.
    place.config(&(cameras(1, "clip.y4m", "") + &mqtt(free_port(), "")));
    assert!(place.run(&["--until-end"]).ends());
    let missed = place.journal().len() as u64;
    assert!(missed > 40, "{missed} events\n{}", place.log());
    let log = place.log();
    assert_eq!(log.matches("trying again, events wait in the journal").count(), 1, "{log}");
    assert!(log.contains(&format!("{missed} events are not delivered")), "{log}");
    // Half of them once more, without the broker: two backlogs become one.
    place.config(&(cameras(1, "clip.y4m", "") + &mqtt(broker.port, "")));
    let subscriber = Subscriber::start(&broker, place.path("stays"), &[]);
    assert!(place.run(&["--until-end"]).ends());
    let journal = place.journal();
    assert_gapless(&journal);
    assert_eq!(journal.len() as u64, 2 * missed);
    assert!(wait_for(5, || events(&subscriber.messages()).len() == journal.len()), "{}", place.log());
    let got = events(&subscriber.messages());
    assert_eq!(assert_whole(&got, &journal, "the subscriber"), 0, "repeats");
    let of = |late| got.iter().filter(|(l, _)| *l == late).map(|(_, e)| e.seq).collect::<Vec<_>>();
    assert_eq!(of(true), (1..=missed).collect::<Vec<_>>());
    assert_eq!(of(false), (missed + 1..=2 * missed).collect::<Vec<_>>());
    // The two statuses, and the state at the end.
    assert_eq!(broker.retained("actiond/dock/status").as_deref(), Some("offline"));
    assert_eq!(broker.retained("actiond/dock/c0/state").as_deref(), Some("none"));
    let status = |m: &&Message| m.topic == "actiond/dock/status";
    let statuses: Vec<String> = subscriber.messages().iter().filter(status).map(|m| m.payload.clone()).collect();
    assert_eq!(statuses, ["online", "offline"]);
}

#[test]
fn a_broker_that_restarts_empty_acknowledgements_that_vanish_a_connection_that_is_half_open() {
    let Some(mut broker) = Broker::new() else { return };
    let place = Place::new();
    let proxy = Proxy::start(broker.port);
    blinking(&place.path("clip.y4m"), 45);
    place.config(&(cameras(4, "clip.y4m", "realtime = true") + &mqtt(proxy.port, "")));
    let mut subscriber = Subscriber::start(&broker, place.path("stays"), &[]);
    let daemon = place.run(&["--until-end"]);
    let seen = |s: &Subscriber| events(&s.messages()).len();
    assert!(wait_for(20, || seen(&subscriber) > 8), "{}", place.log());
    let memory = daemon.memory();

    // Stopped for seconds, its memory wiped.
    proxy.set(REFUSE);
    broker.stop();
    thread::sleep(Duration::from_secs(3));
    broker.wipe();
    drop(subscriber);
    broker.start();
    subscriber = Subscriber::start(&broker, place.path("stays"), &[]);
    proxy.set(PASS);
    let before = seen(&subscriber);
    assert!(wait_for(10, || seen(&subscriber) > before + 8), "{}", place.log());
    assert_eq!(broker.retained("actiond/dock/status").as_deref(), Some("online"), "it is told again");

    // Its PubAcks vanish: the same events come again, over a new connection.
    let (connections, before) = (proxy.connections(), seen(&subscriber));
    proxy.set(SWALLOW);
    assert!(wait_for(16, || proxy.connections() > connections), "{}", place.log());
    assert!(proxy.swallowed.load(Ordering::SeqCst) > 0 && seen(&subscriber) > before);

    // A pulled cable.
    assert!(wait_for(10, || seen(&subscriber) > before + 20), "{}", place.log());
    let connections = proxy.connections();
    proxy.set(SILENT);
    assert!(wait_for(16, || proxy.connections() > connections), "{}", place.log());
    proxy.set(PASS);

    let grown = daemon.memory().saturating_sub(memory);
    assert!(grown < 20_000, "{grown} KB more than before");
    assert!(daemon.ends(), "{}", place.log());
    let journal = place.journal();
    assert_gapless(&journal);
    assert!(journal.len() > 100, "{} events", journal.len());
    assert!(wait_for(5, || events(&subscriber.messages()).iter().any(|(_, e)| e.seq == journal.len() as u64)));
    let repeats = assert_whole(&events(&subscriber.messages()), &journal, "the subscriber");
    assert!(repeats > 0, "what was swallowed has to come again");
    eprintln!("{} events, {repeats} of them twice", journal.len());
}

/// As often as `ACTIOND_KILLS` says; `scripts/soak kill9 N` sets it.
#[test]
fn killed_at_random_moments() {
    let Some(broker) = Broker::new() else { return };
    let kills: u32 = std::env::var("ACTIOND_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(10);
    let place = Place::new();
    // So that many kills do not make a journal of many hundred thousand events, which is read whole each time.
    blinking(&place.path("long.y4m"), if kills > 20 { 300 } else { 1200 });
    place.config(&(cameras(2, "long.y4m", "") + &mqtt(broker.port, "")));
    let stays = Subscriber::start(&broker, place.path("stays"), &[]);
    let goes = place.path("goes");
    let mut comes = Some(Comer::start(&broker, goes.clone()));
    let mut random = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos();
    let (mut before, mut grew) = (Vec::new(), 0);
    for kill in 0..kills {
        let daemon = place.run(&[]);
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        thread::sleep(Duration::from_millis(u64::from(random >> 16) % 1300 + 200));
        daemon.signal("KILL");
        drop(daemon);
        // Readable, whole, and what was there is there.
        let journal = place.journal();
        assert_gapless(&journal);
        assert!(journal.starts_with(&before), "kill {kill}");
        // On a busy machine the first may be killed before it made a journal, which `events` then says.
        if !journal.is_empty() || place.path("journal/events.jsonl").exists() {
            let read =
                Command::new(ACTIOND).args(["events", "--json", "--journal"]).arg(place.path("journal")).output();
            let read: Vec<Event> = serde_json::from_slice(&read.unwrap().stdout).unwrap();
            assert_eq!(numbers(&read), numbers(&journal));
        }
        grew += u32::from(journal.len() > before.len());
        before = journal;
        comes = match comes.take() {
            Some(here) => {
                drop(here);
                None
            }
            None => Some(Comer::start(&broker, goes.clone())),
        };
    }
    assert!(grew > kills / 2, "only {grew} of {kills} runs wrote anything\n{}", place.log());
    let _comes = comes.unwrap_or_else(|| Comer::start(&broker, goes.clone()));
    // One that ends by itself, and delivers what is left.
    blinking(&place.path("long.y4m"), 8);
    assert!(place.run(&["--until-end"]).ends(), "{}", place.log());
    let journal = place.journal();
    assert_gapless(&journal);
    for (who, file) in [("the one that stays", &stays.file), ("the one that comes and goes", &goes)] {
        let last = journal.len() as u64;
        assert!(wait_for(10, || events(&messages(file)).iter().any(|(_, e)| e.seq == last)), "{who}");
        let got = events(&messages(file));
        let repeats = assert_whole(&got, &journal, who);
        let late = got.iter().filter(|(late, _)| *late).count();
        eprintln!("{who}: {kills} kills, {} events, {late} of them late, {repeats} repeats", journal.len());
    }
}

#[test]
fn a_full_disk_keeps_nothing_from_the_subscriber() {
    let Some(broker) = Broker::new() else { return };
    let place = Place::new();
    let disk = place.path("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(&disk).output();
    if !mounted.is_ok_and(|m| m.status.success()) {
        eprintln!("skipped: only root may mount a small disk");
        return;
    }
    let _mount = Mount(disk.clone());
    blinking(&place.path("clip.y4m"), 24);
    place.config(
        &(cameras(4, "clip.y4m", "realtime = true") + "[journal]\npath = \"disk/journal\"\n" + &mqtt(broker.port, "")),
    );
    let subscriber = Subscriber::start(&broker, place.path("stays"), &[]);
    let daemon = place.run(&["--until-end"]);
    let got = || events(&subscriber.messages());
    let is_volatile = |e: &Event| e.flags.contains(&actiond::event::Flag::Volatile);
    assert!(wait_for(15, || got().len() > 4), "{}", place.log());
    let ballast = disk.join("ballast");
    fs::write(&ballast, vec![0; 1 << 20]).unwrap_err();
    // They come all the same, and say so.
    assert!(wait_for(10, || got().iter().filter(|(_, e)| is_volatile(e)).count() > 8), "{}", place.log());
    fs::remove_file(&ballast).unwrap();
    assert!(wait_for(5, || place.log().contains("there is room again")), "{}", place.log());
    assert!(daemon.ends());
    let mut reader = Reader::new(&disk.join("journal"), 0);
    let journal: Vec<Event> = std::iter::from_fn(|| reader.next_event().unwrap()).collect();
    assert_gapless(&journal);
    assert!(wait_for(5, || got().len() >= journal.len()));
    assert_whole(&got(), &journal, "the subscriber");
    let waited = journal.iter().filter(|e| is_volatile(e)).count();
    assert!(waited > 8 && waited < journal.len() - 4, "{waited} of {}", journal.len());
    // Told once, not per event.
    assert_eq!(place.log().matches("cannot write to the journal").count(), 1, "{}", place.log());
}

struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn tls_and_logins_and_what_is_said_when_they_are_wrong() {
    fn openssl(folder: &Path, arguments: &[&str]) {
        let made = Command::new("openssl").args(arguments).current_dir(folder).output().unwrap();
        assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
    }
    /// A CA, and a certificate of it for localhost.
    fn authority(folder: &Path, name: &str) {
        let (ca, key, cert) = (format!("{name}-ca.pem"), format!("{name}-key.pem"), format!("{name}-cert.pem"));
        let (ca_key, request) = (format!("{name}-ca-key.pem"), format!("{name}.csr"));
        let new = ["req", "-newkey", "rsa:2048", "-nodes", "-subj"];
        let root = ["-x509", "-days", "2", "-keyout", &ca_key, "-out", &ca];
        openssl(folder, &[&new[..], &[&format!("/CN=CA {name}")[..]], &root].concat());
        openssl(folder, &[&new[..], &["/CN=localhost", "-keyout", &key, "-out", &request]].concat());
        let san = folder.join("san");
        fs::write(&san, "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n").unwrap();
        let sign = ["x509", "-req", "-days", "2", "-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial", "-extfile", "san"];
        openssl(folder, &[&sign[..], &["-in", &request, "-out", &cert]].concat());
    }
    let (plain, secure, mutual) = (free_port(), free_port(), free_port());
    let broker = Broker::with(plain, |folder| {
        authority(folder, "good");
        authority(folder, "other");
        let passwords = folder.join("passwords");
        let made =
            Command::new("mosquitto_passwd").arg("-c").arg("-b").arg(&passwords).args(["dock", "hunter2"]).status();
        assert!(made.unwrap().success());
        let at = |name: &str| folder.join(name).display().to_string();
        let (ca, cert, key) = (at("good-ca.pem"), at("good-cert.pem"), at("good-key.pem"));
        let login = format!("allow_anonymous false\npassword_file {}\n", passwords.display());
        let tls = format!("cafile {ca}\ncertfile {cert}\nkeyfile {key}\n");
        format!(
            "per_listener_settings true\nlistener {plain} 127.0.0.1\n{login}listener {secure} 127.0.0.1\n{tls}{login}\
             listener {mutual} 127.0.0.1\n{tls}require_certificate true\nallow_anonymous true\n"
        )
    });
    let Some(broker) = broker else { return };
    let file = |name: &str| broker.folder.path().join(name).display().to_string();
    let place = Place::new();
    fs::write(place.path("password"), "hunter2\n").unwrap();
    fs::write(place.path("wrong"), "hunter3\n").unwrap();
    let camera = cameras(1, "clip.y4m", "");
    let login = |password: &str| format!("username = \"dock\"\npassword_file = \"{password}\"\n");
    let trust = |ca: &str| format!("ca = \"{}\"\n", file(ca));
    let shown = format!("client_cert = \"{}\"\nclient_key = \"{}\"\n", file("other-cert.pem"), file("other-key.pem"));
    let own = format!("client_cert = \"{}\"\nclient_key = \"{}\"\n", file("good-cert.pem"), file("good-key.pem"));
    let cases = [
        (format!("mqtt://localhost:{plain}"), login("password"), None),
        (format!("mqtt://localhost:{plain}"), login("wrong"), Some("refused the login: check username and password")),
        (format!("mqtt://localhost:{plain}"), String::new(), Some("refused the login")),
        (format!("mqtts://localhost:{secure}"), login("password") + &trust("good-ca.pem"), None),
        (format!("mqtts://localhost:{secure}"), login("wrong") + &trust("good-ca.pem"), Some("refused the login")),
        (
            format!("mqtts://localhost:{secure}"),
            login("password") + &trust("other-ca.pem"),
            Some("name a file with it as `ca`"),
        ),
        (format!("mqtts://localhost:{secure}"), login("password"), Some("name a file with it as `ca`")),
        (format!("mqtts://127.0.0.1:{secure}"), login("password") + &trust("good-ca.pem"), Some("for another name")),
        (format!("mqtts://localhost:{mutual}"), trust("good-ca.pem") + &own, None),
        (format!("mqtts://localhost:{mutual}"), trust("good-ca.pem"), Some("ask for client_cert")),
        (
            format!("mqtts://localhost:{mutual}"),
            trust("good-ca.pem") + &shown,
            Some("UnknownCA; the broker does not like client_cert"),
        ),
        (format!("mqtt://localhost:{}", free_port()), String::new(), Some("Connection refused")),
        (format!("mqtts://localhost:{secure}"), trust("none.pem"), Some("none.pem")),
    ];
    for (url, more, expected) in cases {
        place.config(&format!("{camera}[mqtt]\nurl = \"{url}\"\n{more}"));
        let (good, said) = place.check();
        assert!(!said.contains("hunter"), "{said}");
        match expected {
            None => assert!(good && said.contains("acknowledged on actiond/dock/check/event"), "{url} {more}: {said}"),
            Some(words) => {
                assert!(!good && said.contains(words), "{url} {more}: {said}");
                assert!(said.contains("1 of 1 sinks did not acknowledge"), "{said}");
            }
        }
    }
}

// --- Home Assistant -------------------------------------------------------------------------------------------------

#[test]
fn home_assistant_finds_cameras_pauses_them_and_loses_those_that_left() {
    let Some(broker) = Broker::new() else { return };
    let place = Place::new();
    let camera = |id: &str| {
        let caps = "video/x-raw,width=32,height=32,framerate=25/1";
        let pipeline = format!("gst:videotestsrc is-live=true pattern=white ! {caps} ! videoconvert");
        format!("[[camera]]\nid = \"{id}\"\nsource = \"{pipeline}\"\n")
    };
    let sink = mqtt(broker.port, "home_assistant = true\nbinary_sensors = [\"label 0\"]");
    place.config(&(camera("door") + &camera("yard") + &sink));
    let subscriber = Subscriber::start(&broker, place.path("stays"), &[]);
    let daemon = place.run(&[]);
    const TOPIC: &str = "homeassistant/device/actiond_dock/config";
    let announcements = || -> Vec<Value> {
        let of = |m: &Message| (m.topic == TOPIC).then(|| serde_json::from_str(&m.payload).unwrap());
        subscriber.messages().iter().filter_map(of).collect()
    };
    let latest = |topic: &str| subscriber.messages().iter().rfind(|m| m.topic == topic).map(|m| m.payload.clone());
    let becomes = |topic: &str, value: &str| {
        let there = wait_for(10, || latest(topic).as_deref() == Some(value));
        assert!(there, "{topic} is {:?}, not {value}\n{}", latest(topic), place.log());
    };
    becomes("actiond/dock/yard/watching", "ON");
    becomes("actiond/dock/door/action/label_0", "ON");
    becomes("actiond/dock/door/state", "label 0");
    let announced = announcements();
    assert_eq!(announced.len(), 1);
    let components = announced[0]["cmps"].as_object().unwrap();
    let platforms: Vec<&str> = components.values().map(|c| c["p"].as_str().unwrap()).collect();
    let count = |platform: &str| platforms.iter().filter(|p| **p == platform).count();
    assert_eq!(["event", "switch", "binary_sensor"].map(count), [2, 2, 2]);
    assert_eq!(components["door_event"]["event_types"], serde_json::json!(["label 0", "label 1"]));
    assert!(wait_for(15, || latest("actiond/dock/diagnostics").is_some()), "{}", place.log());
    let diagnostics: Value = serde_json::from_str(&latest("actiond/dock/diagnostics").unwrap()).unwrap();
    assert_eq!((diagnostics["backend"].as_str(), diagnostics["hops_per_s"].is_f64()), (Some("tract"), true));

    // It comes back: all is said again, after a moment that is not the same for all devices.
    broker.publish("homeassistant/status", "online");
    assert!(wait_for(6, || announcements().len() == 2), "{}", place.log());
    assert_eq!(announcements()[1], announced[0]);

    // One is paused; the source they share goes on until the other is paused too.
    broker.publish("actiond/dock/door/watching/set", "OFF");
    becomes("actiond/dock/door/watching", "OFF");
    // What was going on has ended: nobody looks.
    becomes("actiond/dock/door/state", "none");
    becomes("actiond/dock/door/action/label_0", "OFF");
    assert_eq!(latest("actiond/dock/yard/state").as_deref(), Some("label 0"));
    broker.publish("actiond/dock/yard/watching/set", "OFF");
    assert!(wait_for(5, || place.log().contains("paused, its source is closed")), "{}", place.log());
    for nonsense in ["", "on", "{}", "OFFF"] {
        broker.publish("actiond/dock/yard/watching/set", &format!("{nonsense} "));
    }
    broker.publish("actiond/dock/nobody/watching/set", "ON");
    daemon.stop();

    // Over a restart, and with a broker that remembers nothing. A camera has left meanwhile.
    place.config(&(camera("door") + &sink));
    let before = announcements().len();
    let daemon = place.run(&[]);
    assert!(wait_for(10, || announcements().len() == before + 2), "{}", place.log());
    let (removing, after) = (&announcements()[before], &announcements()[before + 1]);
    assert_eq!(removing["cmps"]["yard_event"], serde_json::json!({"p": "event"}));
    assert!(after["cmps"]["yard_event"].is_null() && after["cmps"]["door_event"].is_object());
    let opened = place.log().matches("32x32 from").count();
    thread::sleep(Duration::from_millis(700));
    assert_eq!(place.log().matches("32x32 from").count(), opened, "a paused camera is not opened");
    broker.publish("actiond/dock/door/watching/set", "ON");
    becomes("actiond/dock/door/watching", "ON");
    assert!(wait_for(5, || place.log().matches("32x32 from").count() == opened + 1), "{}", place.log());
    // A will, where there is no goodbye.
    daemon.signal("KILL");
    becomes("actiond/dock/status", "offline");
    assert!(!subscriber.messages().iter().any(|m| m.retained && m.topic.contains("/event")));
}

// --- Whatever may be written to a broker ----------------------------------------------------------------------------

/// Sends what it is given and waits until the broker has it.
fn flood(broker: &Broker, messages: Vec<(String, bool, Vec<u8>)>) {
    let mut options = rumqttc::MqttOptions::new("flood", ("127.0.0.1", broker.port));
    options.set_max_packet_size(1 << 20, 8 << 20).set_inflight(20);
    let (client, mut connection) = rumqttc::Client::builder(options).capacity(10).build();
    let count = messages.len();
    let sender = thread::spawn(move || {
        for (topic, retained, payload) in messages {
            let options = rumqttc::PublishOptions::at_least_once().retain(retained);
            client.publish(topic, payload, options).unwrap();
        }
        client
    });
    let (mut acknowledged, began) = (0, Instant::now());
    while acknowledged < count {
        let happening = connection.recv_timeout(Duration::from_secs(60)).expect("the broker answers").unwrap();
        acknowledged += usize::from(matches!(happening, rumqttc::Event::Incoming(rumqttc::Packet::PubAck(_))));
        assert!(began.elapsed() < Duration::from_secs(300), "{acknowledged} of {count}");
    }
    sender.join().unwrap();
}

/// In its long form, `scripts/soak garbage`, with ten times as many messages, and until commands are listened to again.
#[test]
fn whatever_is_written_to_the_topics_that_it_listens_to_events_and_commands_go_on() {
    let Some(broker) = Broker::new() else { return };
    let long = std::env::var("ACTIOND_GARBAGE").is_ok();
    let place = Place::new();
    blinking(&place.path("clip.y4m"), 240);
    let caps = "video/x-raw,width=32,height=32,framerate=25/1";
    let door =
        format!("[[camera]]\nid = \"door\"\nsource = \"gst:videotestsrc is-live=true ! {caps} ! videoconvert\"\n");
    place.config(&(cameras(1, "clip.y4m", "realtime = true") + &door + &mqtt(broker.port, "home_assistant = true")));
    // Of the flood it takes nothing.
    let flooded = ["-T", "actiond/dock/+/watching/set", "-T", "homeassistant/status", "-T", "actiond/dock/junk/#"];
    let subscriber = Subscriber::start(&broker, place.path("stays"), &flooded);
    let mut daemon = place.run(&[]);
    const SET: &str = "actiond/dock/door/watching/set";
    let latest = |topic: &str| subscriber.messages().iter().rfind(|m| m.topic == topic).map(|m| m.payload.clone());
    let seen = || events(&subscriber.messages()).iter().map(|(_, e)| e.seq).max().unwrap_or(0);
    let more_events = |what: &str| {
        let before = seen();
        assert!(wait_for(30, || seen() > before + 1), "{what}: no event behind {before}\n{}", last_of(&place.log()));
    };
    let commanded = |value: &str| {
        // What comes in the middle of a flood may be passed over, so it is said again, as a person would.
        let done = (0..20).any(|_| {
            broker.publish(SET, value);
            wait_for(3, || latest("actiond/dock/door/watching").as_deref() == Some(value))
        });
        assert!(done, "the switch is not {value}\n{}", last_of(&place.log()));
    };
    more_events("before");
    commanded("OFF");
    commanded("ON");

    let mut random = onnx::Random(41);
    let count = if long { 20_000 } else { 2000 };
    let mut message = |number: usize| {
        let level = match random.below(4) {
            0 => "door".to_owned(),
            1 => "c0".to_owned(),
            2 => (0..1 + random.below(60)).map(|_| char::from(b'a' + random.below(26) as u8)).collect(),
            _ => ["\u{202e}", "%s%n", "..", "$SYS", " ", "\u{1f3a5}"][random.below(6)].repeat(1 + random.below(5000)),
        };
        let topic = match random.below(10) {
            0 => "homeassistant/status".to_owned(),
            1 => format!("actiond/dock/junk/{level}"),
            _ => format!("actiond/dock/{level}/watching/set"),
        };
        let payload: Vec<u8> = match random.below(6) {
            _ if number.is_multiple_of(200) => (0..1 << 20).map(|i| (i * 7) as u8).collect(),
            0 => Vec::new(),
            1 => ["on", "OFF ", "\"ON\"", "OFFON", "{\"state\":\"OFF\"}", "true"][random.below(6)].into(),
            2 => vec![0xff; 1 + random.below(3)],
            3 => (0..random.below(50_000)).map(|_| random.bits() as u8).collect(),
            _ => (0..4 + random.below(100)).map(|_| random.bits() as u8).collect(),
        };
        (topic, random.below(4) == 0, payload)
    };
    // What holds the largest message stays.
    flood(&broker, (0..4).map(|_| message(0)).collect());
    more_events("at first");
    let memory = daemon.memory();
    flood(&broker, (1..=count).map(message).collect());
    more_events("behind the flood");
    assert!(daemon.0.try_wait().unwrap().is_none(), "{}", last_of(&place.log()));
    commanded("OFF");
    commanded("ON");
    let announced =
        |messages: &[Message]| messages.iter().filter(|m| m.topic.starts_with("homeassistant/device")).count();
    let before = announced(&subscriber.messages());
    let again = (0..10).any(|_| {
        broker.publish("homeassistant/status", "online");
        wait_for(5, || announced(&subscriber.messages()) > before)
    });
    assert!(again, "{}", last_of(&place.log()));
    let grown = daemon.memory().saturating_sub(memory);
    assert!(grown < 20_000, "{grown} KB more than before");
    eprintln!("{count} messages: {grown} KB more in memory, {} KB of log", place.log().len() / 1000);

    // One that is too large to be read, kept by the broker: it would end each connection that listens.
    flood(&broker, vec![(SET.into(), true, vec![b'x'; 3 << 20])]);
    let told = "commands are not listened to";
    assert!(wait_for(30, || place.log().contains(told)), "{}", last_of(&place.log()));
    more_events("beside a message that can't be read");
    flood(&broker, vec![(SET.into(), true, Vec::new())]);
    if long {
        commanded("OFF");
        commanded("ON");
    }
    let log = place.log();
    assert!(!log.contains("panicked") && log.lines().all(|line| line.len() < 1000), "{}", last_of(&log));
    daemon.stop();
    assert_gapless(&place.journal());
}

fn last_of(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

// --- Webhook and command --------------------------------------------------------------------------------------------

/// An HTTP server that answers as it is told; keeps what it got.
struct Server {
    port: u16,
    answers: Arc<Mutex<Vec<&'static str>>>,
    got: Arc<Mutex<Vec<(String, Event)>>>,
}

impl Server {
    /// Answers in this order, then always 200. An empty answer closes the connection.
    fn start(answers: &[&'static str]) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (answers, got) = (Arc::new(Mutex::new(answers.to_vec())), Arc::<Mutex<Vec<_>>>::default());
        let (todo, keep) = (answers.clone(), got.clone());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut stream = stream;
                loop {
                    let (mut head, mut length) = (String::new(), 0);
                    loop {
                        let mut line = String::new();
                        if reader.read_line(&mut line).unwrap_or(0) == 0 {
                            break;
                        }
                        let lower = line.to_ascii_lowercase();
                        if let Some(n) = lower.strip_prefix("content-length:") {
                            length = n.trim().parse().unwrap();
                        }
                        head += &lower;
                        if line == "\r\n" {
                            break;
                        }
                    }
                    let mut body = vec![0; length];
                    if head.is_empty() || reader.read_exact(&mut body).is_err() {
                        break;
                    }
                    keep.lock().unwrap().push((head, serde_json::from_slice(&body).unwrap()));
                    let mut todo = todo.lock().unwrap();
                    let answer = if todo.is_empty() { "200 OK" } else { todo.remove(0) };
                    if answer.is_empty() {
                        break;
                    }
                    write!(stream, "HTTP/1.1 {answer}\r\nContent-Length: 4\r\n\r\nwell").unwrap();
                }
            }
        });
        Server { port, answers, got }
    }
}

#[test]
fn a_webhook_gets_every_event_in_order_until_it_has_said_yes() {
    let server = Server::start(&["503 Busy", "", "200 OK", "422 No", "404 Not Found"]);
    let place = Place::new();
    blinking(&place.path("clip.y4m"), 20);
    fs::write(place.path("token"), "t0ken\n").unwrap();
    let hook = format!(
        "[[webhook]]\nurl = \"http://127.0.0.1:{}/s3cret\"\ntoken_file = \"token\"\nheaders = {{ X-Site = \"north\" }}\n",
        server.port
    );
    place.config(&(cameras(1, "clip.y4m", "") + &hook));
    assert!(place.run(&["--until-end"]).ends());
    let got = server.got.lock().unwrap().clone();
    let journal = place.journal();
    assert_gapless(&journal);
    let numbers: Vec<u64> = got.iter().map(|(_, e)| e.seq).collect();
    // The second was refused for good, the third asked for later.
    let expected: Vec<u64> = [1, 1, 1, 2, 3].into_iter().chain(3..=journal.len() as u64).collect();
    assert_eq!(numbers, expected, "{}", place.log());
    assert!(server.answers.lock().unwrap().is_empty());
    let key = |head: &str| head.lines().find_map(|l| l.strip_prefix("idempotency-key: ")).unwrap().to_owned();
    assert!(key(&got[0].0) == key(&got[1].0) && key(&got[0].0) != key(&got[3].0), "{got:?}");
    for (head, _) in &got {
        assert!(head.starts_with("post /s3cret http/1.1"), "{head}");
        assert!(head.contains("authorization: bearer t0ken") && head.contains("x-site: north"), "{head}");
    }
    let log = place.log();
    assert!(log.contains("event 2 is left out: the answer was 422") && log.contains("404 Not Found"), "{log}");
    assert!(!log.contains("s3cret") && !log.contains("t0ken"), "{log}");
    let (good, said) = place.check();
    assert!(good && said.contains("answered 200 OK") && !said.contains("s3cret"), "{said}");
    assert_eq!(server.got.lock().unwrap().last().unwrap().1.label, "test");
}

#[test]
fn a_command_gets_a_line_for_each_event_and_is_started_again() {
    let place = Place::new();
    blinking(&place.path("clip.y4m"), 16);
    let (lines, starts) = (place.path("lines"), place.path("starts"));
    // The first one ends without having read anything.
    let script = format!(
        "echo x >> {s}; [ $(wc -l < {s}) = 1 ] && exit 3; exec cat >> {l}",
        s = starts.display(),
        l = lines.display()
    );
    fs::write(place.path("script"), script).unwrap();
    let command = format!("[[command]]\nargv = [\"sh\", \"{}\"]\n", place.path("script").display());
    place.config(&(cameras(2, "clip.y4m", "realtime = true") + &command));
    assert!(place.run(&["--until-end"]).ends());
    let text = fs::read_to_string(&lines).unwrap();
    let got: Vec<Event> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let journal = place.journal();
    assert!(!journal.is_empty() && got == journal, "{} of {}\n{}", got.len(), journal.len(), place.log());
    assert_eq!(fs::read_to_string(&starts).unwrap().lines().count(), 2);
    assert!(place.log().contains("it has ended (exit status: 3); trying again"), "{}", place.log());
    place.config(&(cameras(1, "clip.y4m", "") + "[[command]]\nargv = [\"/nowhere/at all\"]\n"));
    let (good, said) = place.check();
    assert!(!good && said.contains("cannot start /nowhere/at all: No such file"), "{said}");
}
