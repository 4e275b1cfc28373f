//! From the journal to whoever wants to know: MQTT, webhooks, commands. A sink pulls events by its own cursor, which moves
//! only when the far end has acknowledged; a far end that is down costs disk and nothing else.
//!
//! All network runs on one thread, on a small tokio runtime; nothing is computed there. Each sink has a task: it
//! connects, delivers until something fails, waits (longer each time, up to half a minute, with some jitter so that many
//! devices do not come back in the same moment), and begins again at its cursor.

mod board;
mod command;
mod home_assistant;
mod inbox;
mod mqtt;
mod tls;
mod webhook;

use std::{
    path::Path,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use self::inbox::Ending;
pub use self::{
    board::{Board, Switches, slug},
    home_assistant::Facts,
    inbox::{Delivery, Inbox, Stats},
};
use crate::{
    error::{Error, Result},
    event::{self, Event, Phase},
    journal::Shared,
};

/// Waits after a failure: doubled each time, up to the second one.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// A connection that lasted for so long had worked.
const HELD: Duration = Duration::from_secs(10);

/// What a sink gets beyond its time to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// How long a test of a sink may take.
const TEST: Duration = Duration::from_secs(15);

/// `[mqtt]`, `[[webhook]]` and `[[command]]` of a config.
#[derive(Debug, Clone, Default)]
pub struct Config {
    pub mqtt: Option<mqtt::Config>,
    pub webhook: Vec<webhook::Config>,
    pub command: Vec<command::Config>,
}

impl Config {
    pub fn is_empty(&self) -> bool {
        self.mqtt.is_none() && self.webhook.is_empty() && self.command.is_empty()
    }

    /// Relative paths start from the config's folder.
    pub fn relative_to(&mut self, folder: &Path) {
        self.mqtt.iter_mut().for_each(|m| m.relative_to(folder));
        self.webhook.iter_mut().for_each(|w| w.relative_to(folder));
    }

    /// Whether Home Assistant is to know.
    pub fn announces(&self) -> bool {
        self.mqtt.as_ref().is_some_and(|m| m.home_assistant)
    }

    /// What one sink alone can't see: the model's labels, and that no two sinks are the same, as they would share a cursor.
    ///
    /// Errors: `Config`.
    pub fn check(&self, labels: &[String]) -> Result<()> {
        if let Some(label) = self.watched().iter().find(|label| !labels.contains(label)) {
            return Err(Error::config(format!(
                "[mqtt]: binary_sensors: the model has no label `{label}`; it has {}",
                labels.join(", ")
            )));
        }
        let names: Vec<String> =
            self.webhook.iter().map(|w| w.name()).chain(self.command.iter().map(|c| c.name())).collect();
        if names.iter().enumerate().any(|(i, name)| names[..i].contains(name)) {
            return Err(Error::config("two [[webhook]] have the same url, or two [[command]] the same argv"));
        }
        Ok(())
    }

    /// Labels that have a topic of their own.
    pub fn watched(&self) -> &[String] {
        self.mqtt.as_ref().map_or(&[], |m| &m.binary_sensors)
    }
}

pub use self::{
    command::Config as CommandConfig,
    mqtt::{Asked, Config as MqttConfig, asked},
    webhook::Config as WebhookConfig,
};

/// A far end.
// One crate, one runtime: nobody else needs to know that the futures can be sent.
#[expect(async_fn_in_trait)]
pub trait Sink {
    /// The cursor's name: the same after a restart, and of no other sink.
    fn name(&self) -> &str;

    /// Where events go, for a person; no secrets.
    fn target(&self) -> String;

    /// Whether it takes fresh and late events as two streams.
    fn lanes(&self) -> bool {
        false
    }

    /// Connects and delivers what is in the inbox, acknowledging an event to it when the far end has done so. Returns
    /// when it is time to end and all is delivered, or time is over.
    ///
    /// Errors: whatever they are, the session begins again later.
    async fn session(&mut self, inbox: &mut Inbox) -> Result<()>;

    /// Delivers one event, and returns what the far end said when it acknowledged.
    async fn test(&mut self, event: &Event) -> Result<String>;
}

/// What the sinks need of the daemon.
pub struct Daemon {
    pub device: String,
    pub journal: Arc<Shared>,
    pub board: Arc<Board>,
    pub switches: Arc<Switches>,
    pub facts: Facts,
}

/// The running sinks.
#[derive(Debug)]
pub struct Publisher {
    thread: JoinHandle<()>,
    ending: watch::Sender<Ending>,
    journal: Arc<Shared>,
    stats: Vec<Arc<Mutex<Stats>>>,
}

impl Publisher {
    /// Opens each sink's cursor and starts the thread that they run on.
    ///
    /// Errors: `Config` when a file that a sink needs (a password, a certificate) can't be used.
    pub fn start(config: &Config, daemon: Daemon) -> Result<Publisher> {
        let (ending, endings) = watch::channel(Ending::default());
        let mut stats = Vec::new();
        let mut inbox = |name: &str| {
            stats.push(Arc::new(Mutex::new(Stats { name: name.into(), ..Stats::default() })));
            Inbox::new(name, daemon.journal.clone(), endings.clone(), stats[stats.len() - 1].clone())
        };
        let mut mqtt = Vec::new();
        if let Some(config) = &config.mqtt {
            let sink = mqtt::Mqtt::new(config, &daemon.device)?.of_daemon(&daemon);
            let inbox = inbox(sink.name());
            mqtt.push((sink, inbox));
        }
        let (mut webhooks, mut commands) = (Vec::new(), Vec::new());
        for config in &config.webhook {
            let sink = webhook::Webhook::new(config)?;
            let inbox = inbox(sink.name());
            webhooks.push((sink, inbox));
        }
        for config in &config.command {
            let sink = command::Command::new(config);
            let inbox = inbox(sink.name());
            commands.push((sink, inbox));
        }
        let work = move |runtime: tokio::runtime::Runtime| {
            runtime.block_on(tokio::task::LocalSet::new().run_until(async move {
                let mut tasks = tokio::task::JoinSet::new();
                mqtt.into_iter().for_each(|(sink, inbox)| drop(tasks.spawn_local(supervise(sink, inbox))));
                webhooks.into_iter().for_each(|(sink, inbox)| drop(tasks.spawn_local(supervise(sink, inbox))));
                commands.into_iter().for_each(|(sink, inbox)| drop(tasks.spawn_local(supervise(sink, inbox))));
                while let Some(ended) = tasks.join_next().await {
                    if let Err(e) = ended {
                        log::error!("a sink has ended: {e}");
                    }
                }
            }));
        };
        let runtime = runtime()?;
        let thread = thread::Builder::new()
            .name("network".into())
            .spawn(move || work(runtime))
            .map_err(|e| Error::internal("cannot start a thread").caused_by(e))?;
        Ok(Publisher { thread, ending, journal: daemon.journal, stats })
    }

    /// How each sink is doing, as it goes on.
    pub fn stats(&self) -> Vec<Arc<Mutex<Stats>>> {
        self.stats.clone()
    }

    /// Delivers what there is, for so long at the most, and ends. What is left is delivered after the next start.
    pub fn finish(self, patience: Duration) {
        if self.journal.stats().cursors.iter().any(|cursor| cursor.unread > 0) {
            log::info!("delivering what is left, for up to {} s", patience.as_secs());
        }
        self.ending.send_replace(Ending(Some(Instant::now() + patience)));
        if self.thread.join().is_err() {
            log::error!("the network thread panicked");
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::internal("cannot start the network runtime").caused_by(e))
}

/// Runs a sink's sessions until it is time to end.
async fn supervise(mut sink: impl Sink, mut inbox: Inbox) {
    let mut endings = inbox.endings();
    let mut pause = BACKOFF.0;
    let mut told = String::new();
    loop {
        inbox.begin(sink.lanes());
        let (before, began) = (inbox.delivered(), Instant::now());
        let session = tokio::select! {
            session = sink.session(&mut inbox) => Some(session),
            () = over(endings.clone()) => None,
        };
        let was_connected = inbox.count(|stats| std::mem::take(&mut stats.connected));
        let e = match session {
            None | Some(Ok(())) => break,
            Some(Err(e)) => e,
        };
        inbox.count(|stats| stats.failures += 1);
        inbox.save();
        // A connection that held is as good as an event, of which there may be none for days.
        if inbox.delivered() > before || was_connected && began.elapsed() > HELD {
            (pause, told) = (BACKOFF.0, String::new());
        }
        // A broker that is away for a day fills no log: the same words once.
        let words = e.to_string();
        if words != told {
            log::warn!("{}: {words}; trying again, events wait in the journal", sink.target());
            told = words;
        }
        let jittered = pause.mul_f64(0.5 + fastrand::f64());
        pause = (pause * 2).min(BACKOFF.1);
        match inbox.ending() {
            None => drop(timeout(jittered, endings.wait_for(|ending| ending.0.is_some())).await),
            // There is no time to be patient.
            Some(end) if Instant::now() < end => sleep(jittered.min(BACKOFF.0)).await,
            Some(_) => break,
        }
    }
    inbox.save();
    let open = inbox.open();
    if open > 0 {
        log::warn!(
            "{}: {open} events are not delivered; they are in the journal and go out after the next start",
            sink.target()
        );
    }
}

/// Waits until all time for the end is over.
async fn over(mut endings: watch::Receiver<Ending>) {
    let end = endings.wait_for(|ending| ending.0.is_some()).await.ok().and_then(|ending| ending.0);
    sleep(end.map_or(Duration::ZERO, |end| end.saturating_duration_since(Instant::now())) + GOODBYE).await;
}

/// Sends a test event through each sink. Returns their targets, and what happened.
pub fn test(config: &Config, device: &str) -> Result<Vec<(String, Result<String>)>> {
    let event = test_event(device);
    let mut results = Vec::new();
    runtime()?.block_on(async {
        if let Some(config) = &config.mqtt {
            results.push(match mqtt::Mqtt::new(config, device) {
                Ok(sink) => test_one(sink, &event).await,
                Err(e) => (config.url.clone(), Err(e)),
            });
        }
        for config in &config.webhook {
            results.push(match webhook::Webhook::new(config) {
                Ok(sink) => test_one(sink, &event).await,
                Err(e) => ("webhook".into(), Err(e)),
            });
        }
        for config in &config.command {
            results.push(test_one(command::Command::new(config), &event).await);
        }
    });
    Ok(results)
}

async fn test_one(mut sink: impl Sink, event: &Event) -> (String, Result<String>) {
    let result = match timeout(TEST, sink.test(event)).await {
        Ok(result) => result,
        Err(_) => Err(Error::unavailable(format!("no acknowledgement within {} s", TEST.as_secs()))),
    };
    (sink.target(), result)
}

/// An event that looks like one, and says that it is none: camera `check`, label `test`, number 0.
fn test_event(device: &str) -> Event {
    let now = jiff::Timestamp::now();
    Event {
        v: event::VERSION,
        id: event::id(now, device, "check", "test", 0),
        seq: 0,
        device: device.into(),
        camera: "check".into(),
        phase: Phase::Start,
        label: "test".into(),
        score: 1.0,
        peak: 1.0,
        top: Vec::new(),
        streams: Default::default(),
        start: now,
        end: None,
        start_s: 0.0,
        end_s: None,
        first_frame: 0,
        last_frame: 0,
        model: "test".into(),
        backend: "test".into(),
        precision: "test".into(),
        mode: "test".into(),
        hop: 0,
        delay_ms: 0,
        flags: Vec::new(),
    }
}

/// A short name for a cursor file: readable, and of this target alone.
fn cursor_name(kind: &str, readable: &str, whole: &str) -> String {
    use sha2::{Digest, Sha256};
    let hash: String = Sha256::digest(whole).iter().take(4).map(|b| format!("{b:02x}")).collect();
    let readable: String = slug(readable).chars().take(40).collect();
    format!("{kind}-{readable}-{hash}")
}

/// A path of a config starts from the config's folder.
fn relative_to(path: &mut Option<std::path::PathBuf>, folder: &Path) {
    if let Some(path) = path {
        *path = folder.join(&path);
    }
}
