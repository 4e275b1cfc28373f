//! MQTT 3.1.1, which every broker speaks.
//!
//! | topic, below `<topic>/<device>` | what |
//! | --- | --- |
//! | `status` | retained: `online`, or `offline`, which is also the will |
//! | `<camera>/event` | QoS 1: each event, in the order of the journal |
//! | `<camera>/event/late` | QoS 1: events that are older than a minute when they are sent, oldest first; no siren listens here |
//! | `<camera>/state` | retained: the label of the newest action that is going on, or `none` |
//! | `<camera>/watching`, and `/set` | retained: `ON`, or `OFF` while the camera is paused; and where to switch it |
//! | `<camera>/action/<label>` | retained: `ON` or `OFF`, for each label of `binary_sensors` |
//! | `diagnostics`, `<camera>/diagnostics` | retained: JSON with rates, backend, mode, temperature |
//!
//! # What is promised
//!
//! At least once: the cursor moves on the PubAck of the very packet. Repeats have the same `id`, `seq` and `phase`. Each
//! of the two event topics is in order, and within a camera's late ones nothing is left out. When a broker comes back,
//! what happens now goes out at once, and the backlog between it: the backlog has half of the window, so that there is
//! always room. A PubAck that does not come within [`ANSWER`] ends the connection, and the next one sends again what is
//! not acknowledged; a connection that is half open is noticed by it, or by the keepalive where nothing happens.
//!
//! Whether a broker's access list let a message through can't be seen in MQTT 3.1.1: it acknowledges either way.
//!
//! # The library
//!
//! rumqttc has had no release since November 2025, open bugs that end in a livelock when a session is lost, and an old
//! rustls-webpki; paho is C. This is rumqttc's maintained fork, whose `publish_tracked` tells of a packet's own PubAck.
//! Of its sessions nothing is used: each connection has a new client, a clean session, and begins at the journal's
//! cursor, which is the only memory there is.

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event as Happening, EventLoop, LastWill, MqttOptions, Outgoing,
    Packet, Publish, PublishOptions, QoS, StateError, TlsConfiguration, Transport, mqttbytes,
};
use rustls::ClientConfig;
use serde::Deserialize;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

use super::{Board, Daemon, Delivery, Inbox, Sink, Switches, home_assistant::HomeAssistant, relative_to, tls};
use crate::{
    error::{Error, Result},
    event::Event,
    secret::Secret,
};

/// How long a PubAck may take, and the answer to a connection.
const ANSWER: Duration = Duration::from_secs(10);

/// Seconds between two signs of life; a connection that gives none is noticed within twice that.
const KEEP_ALIVE: u16 = 10;

/// Messages that wait for their PubAck; late ones get half of it.
const WINDOW: usize = 16;

/// A larger message can't be read: it ends the connection. No command is near this, but whoever may write to a broker may
/// write anything.
const LARGEST: usize = 2 << 20;

/// A longer payload is no command, and does not wait in memory.
const LONGEST_COMMAND: usize = 64;

/// How long commands are not listened to after a message that could not be read: a retained one comes at each connection.
const DEAF: Duration = Duration::from_secs(30);

/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// `[mqtt]` of a config.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `mqtt://broker:1883` or `mqtts://broker:8883`.
    pub url: String,
    /// Before the device in every topic.
    #[serde(default = "default_topic")]
    topic: String,
    username: Option<String>,
    password: Option<Secret>,
    password_file: Option<PathBuf>,
    /// The CA that signed the broker's certificate, where the system does not know it.
    ca: Option<PathBuf>,
    /// What this device shows to a broker that asks for it.
    client_cert: Option<PathBuf>,
    client_key: Option<PathBuf>,
    /// Announce the cameras to Home Assistant.
    #[serde(default)]
    pub home_assistant: bool,
    /// Labels that get a topic of their own for each camera, and a binary sensor in Home Assistant.
    #[serde(default)]
    pub binary_sensors: Vec<String>,
}

fn default_topic() -> String {
    "actiond".into()
}

/// Where a broker is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Address {
    secure: bool,
    host: String,
    port: u16,
}

impl Config {
    pub fn relative_to(&mut self, folder: &Path) {
        for path in [&mut self.password_file, &mut self.ca, &mut self.client_cert, &mut self.client_key] {
            relative_to(path, folder);
        }
    }

    /// What is wrong with it, if something is.
    pub fn fault(&self) -> Option<String> {
        let address = match address(&self.url) {
            Ok(address) => address,
            Err(fault) => return Some(fault),
        };
        let tls = self.ca.is_some() || self.client_cert.is_some() || self.client_key.is_some();
        if tls && !address.secure {
            Some("ca, client_cert and client_key are for mqtts://, and url is mqtt://".into())
        } else if self.client_cert.is_some() != self.client_key.is_some() {
            Some("client_cert and client_key go together; one of them is missing".into())
        } else if self.password.is_some() && self.password_file.is_some() {
            Some("give password or password_file, not both".into())
        } else if self.username.is_none() && (self.password.is_some() || self.password_file.is_some()) {
            Some("there is a password and no username".into())
        } else if self.topic.is_empty()
            || self.topic.split('/').any(str::is_empty)
            || self.topic.contains(['#', '+', '\0'])
        {
            Some(format!("topic = {:?} can't be the beginning of a topic: no `#` or `+`, no `/` at an end", self.topic))
        } else {
            None
        }
    }
}

fn address(url: &str) -> Result<Address, String> {
    let should = "it should look like mqtt://10.0.0.2:1883 or mqtts://broker.example.org:8883";
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(format!("url is no broker's address: {should}"));
    };
    let secure = match scheme {
        "mqtt" => false,
        "mqtts" => true,
        _ => return Err(format!("url begins with {scheme}://: {should}")),
    };
    if rest.contains('@') {
        return Err("url has a login in it: username and password (or password_file) are keys of their own".into());
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            (host, port.parse().map_err(|_| format!("url has no port number behind the colon: {should}"))?)
        }
        _ => (rest, if secure { 8883 } else { 1883 }),
    };
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() || host.contains('/') {
        return Err(format!("url has no host: {should}"));
    }
    Ok(Address { secure, host: host.into(), port })
}

pub struct Mqtt {
    url: String,
    address: Address,
    login: Option<(String, Option<Secret>)>,
    tls: Option<Arc<ClientConfig>>,
    device: String,
    /// `<topic>/<device>`
    base: String,
    /// A message came that could not be read.
    flooded: Arc<AtomicBool>,
    /// None where only a connection is tested.
    part: Option<Part>,
}

/// What belongs to the running daemon.
struct Part {
    board: Arc<Board>,
    switches: Arc<Switches>,
    home_assistant: HomeAssistant,
}

impl Mqtt {
    /// Errors: `Config` when a file that it names can't be used.
    pub fn new(config: &Config, device: &str) -> Result<Self> {
        let address = address(&config.url).map_err(Error::config)?;
        let password = match &config.password_file {
            Some(path) => Some(Secret::from_file(path).map_err(|e| e.context("[mqtt]"))?),
            None => config.password.clone(),
        };
        let identity = config.client_cert.as_deref().zip(config.client_key.as_deref());
        let tls = match address.secure {
            true => Some(Arc::new(tls::client(config.ca.as_deref(), identity).map_err(|e| e.context("[mqtt]"))?)),
            false => None,
        };
        Ok(Mqtt {
            url: config.url.clone(),
            address,
            login: config.username.clone().map(|username| (username, password)),
            tls,
            device: device.into(),
            base: format!("{}/{device}", config.topic),
            flooded: Arc::default(),
            part: None,
        })
    }

    pub(super) fn of_daemon(mut self, daemon: &Daemon) -> Self {
        self.part = Some(Part {
            board: daemon.board.clone(),
            switches: daemon.switches.clone(),
            home_assistant: HomeAssistant::new(&daemon.facts, &self.device, &self.base),
        });
        self
    }

    /// Connects, and waits until the broker has said yes.
    async fn connect(&self, client_id: String, will: Option<LastWill>) -> Result<Link> {
        let mut options = MqttOptions::new(client_id, (self.address.host.clone(), self.address.port));
        options.set_keep_alive(KEEP_ALIVE).set_clean_session(true).set_inflight(2 * WINDOW as u16);
        options.set_max_packet_size(LARGEST, 1 << 20);
        if let Some(will) = will {
            options.set_last_will(will);
        }
        match &self.login {
            Some((username, Some(password))) => {
                options.set_credentials(username.clone(), password.expose().as_bytes().to_vec());
            }
            Some((username, None)) => {
                options.set_username(username.clone());
            }
            None => {}
        }
        if let Some(tls) = &self.tls {
            options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls.clone())));
        }
        let (client, mut events) = AsyncClient::builder(options).capacity(4 * WINDOW).build();
        let mut network = events.network_options();
        network.set_connection_timeout(ANSWER.as_secs());
        network.set_tcp_nodelay(true);
        events.set_network_options(network);
        let (said_yes, yes) = oneshot::channel();
        let (messages, received) = mpsc::channel(64);
        let driver = Driver(tokio::spawn(drive(events, said_yes, messages, self.flooded.clone())));
        let mut link = Link { client, driver, received, waiting: VecDeque::new() };
        match timeout(ANSWER + Duration::from_secs(1), yes).await {
            Ok(Ok(())) => Ok(link),
            Ok(Err(_)) => Err(link.why().await),
            Err(_) => Err(Error::unavailable(format!("no answer from the broker within {} s", ANSWER.as_secs()))),
        }
    }

    /// Asks for commands.
    async fn listen(&self, part: &Part, link: &mut Link) -> Result<()> {
        let birth = part.home_assistant.is_on().then(|| HomeAssistant::STATUS.to_owned());
        for topic in [self.topic("+/watching/set")].into_iter().chain(birth) {
            if link.client.subscribe(topic, QoS::AtLeastOnce).await.is_err() {
                return Err(link.why().await);
            }
        }
        Ok(())
    }

    fn topic(&self, below: &str) -> String {
        format!("{}/{below}", self.base)
    }

    /// Does what a message asks for, but for announcing, which is the session's.
    fn received(&self, part: &Part, message: &Publish) -> bool {
        match asked(&self.base, &message.topic, &message.payload, message.retain) {
            Asked::Announce => return true,
            Asked::Switch { camera, payload } => part.switches.command(camera, payload),
            Asked::Retained => log::warn!("a retained switch command is passed over"),
            Asked::Nothing => {}
        }
        false
    }
}

/// What a message asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked<'a> {
    /// Home Assistant has come: the cameras are to be announced.
    Announce,
    /// What a camera's switch was told: see [`Switches::command`].
    Switch {
        camera: &'a str,
        payload: &'a [u8],
    },
    /// The same, kept by the broker: from who knows when.
    Retained,
    Nothing,
}

/// Whoever may write to the broker says what these bytes are. `base` is the device's topic.
pub fn asked<'a>(base: &str, topic: &'a [u8], payload: &'a [u8], retained: bool) -> Asked<'a> {
    let Ok(topic) = std::str::from_utf8(topic) else { return Asked::Nothing };
    if topic == HomeAssistant::STATUS {
        // A retained one is from before we came: what it asks for was sent already.
        return if payload == b"online" && !retained { Asked::Announce } else { Asked::Nothing };
    }
    let camera = topic.strip_prefix(base).and_then(|t| t.strip_prefix('/')?.strip_suffix("/watching/set"));
    match camera {
        Some(_) if retained => Asked::Retained,
        Some(camera) => Asked::Switch { camera, payload },
        None => Asked::Nothing,
    }
}

/// Runs the client's loop until the connection fails or is closed.
async fn drive(
    mut events: EventLoop,
    said_yes: oneshot::Sender<()>,
    messages: mpsc::Sender<Publish>,
    flooded: Arc<AtomicBool>,
) -> Option<ConnectionError> {
    let mut said_yes = Some(said_yes);
    loop {
        match events.poll().await {
            Ok(Happening::Incoming(Packet::ConnAck(_))) => {
                if let Some(said_yes) = said_yes.take() {
                    let _ = said_yes.send(());
                }
            }
            // Who floods us with commands is not served: this loop must go on.
            Ok(Happening::Incoming(Packet::Publish(message))) if message.payload.len() <= LONGEST_COMMAND => {
                drop(messages.try_send(message));
            }
            Ok(Happening::Outgoing(Outgoing::Disconnect)) => return None,
            Ok(_) => {}
            Err(e) => {
                flooded.fetch_or(is_too_large(&e).is_some(), Ordering::Relaxed);
                return Some(e);
            }
        }
    }
}

/// How large the message was that ended a connection, if one did.
fn is_too_large(e: &ConnectionError) -> Option<usize> {
    match e {
        ConnectionError::MqttState(StateError::Deserialization(mqttbytes::Error::PayloadSizeLimitExceeded(size))) => {
            Some(*size)
        }
        _ => None,
    }
}

struct Driver(JoinHandle<Option<ConnectionError>>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What was sent and is not acknowledged.
struct Waiting {
    what: Sent,
    since: Instant,
    /// Resolves with the packet's own PubAck.
    notice: Pin<Box<dyn Future<Output = bool> + Send>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Event {
        seq: u64,
        late: bool,
    },
    Value,
    /// The announcement as it is to stay.
    Announcement,
}

/// A connection that stands.
struct Link {
    client: AsyncClient,
    driver: Driver,
    received: mpsc::Receiver<Publish>,
    /// In the order in which it was sent, in which brokers acknowledge.
    waiting: VecDeque<Waiting>,
}

impl Link {
    async fn send(&mut self, what: Sent, topic: String, payload: Vec<u8>) -> Result<()> {
        let options = PublishOptions::at_least_once();
        let options = options.retain(!matches!(what, Sent::Event { .. }));
        match self.client.publish_tracked(topic, payload, options).await {
            Ok(notice) => {
                let notice = Box::pin(async move { notice.wait_async().await.is_ok() });
                self.waiting.push_back(Waiting { what, since: Instant::now(), notice });
                Ok(())
            }
            Err(_) => Err(self.why().await),
        }
    }

    fn late(&self) -> usize {
        self.waiting.iter().filter(|w| matches!(w.what, Sent::Event { late: true, .. })).count()
    }

    /// Why the connection has ended.
    async fn why(&mut self) -> Error {
        match timeout(GOODBYE, &mut self.driver.0).await {
            Ok(Ok(Some(e))) => explained(e),
            Ok(Ok(None)) => Error::unavailable("the connection was closed"),
            Ok(Err(e)) => Error::internal("the connection's task has ended").caused_by(e),
            Err(_) => Error::unavailable("the connection does not take messages any more"),
        }
    }

    /// Waits for the next acknowledgement.
    async fn acknowledged(&mut self) -> Result<Sent> {
        match acknowledged(&mut self.waiting).await? {
            Some(what) => Ok(what),
            None => Err(self.why().await),
        }
    }

    async fn close(mut self) {
        if self.client.disconnect().await.is_ok() {
            let _ = timeout(GOODBYE, &mut self.driver.0).await;
        }
    }
}

/// Waits for the acknowledgement of what was sent first; `None` when the connection has ended instead.
async fn acknowledged(waiting: &mut VecDeque<Waiting>) -> Result<Option<Sent>> {
    let Some(first) = waiting.front_mut() else { return std::future::pending().await };
    let until = first.since + ANSWER;
    let acknowledged = tokio::select! {
        acknowledged = &mut first.notice => acknowledged,
        () = sleep_until(until) => {
            let silent = format!("the broker has not acknowledged a message for {} s", ANSWER.as_secs());
            return Err(Error::unavailable(silent));
        }
    };
    Ok(acknowledged.then(|| waiting.pop_front().map(|first| first.what)).flatten())
}

/// What a person can do about it.
fn explained(e: ConnectionError) -> Error {
    if let Some(size) = is_too_large(&e) {
        return Error::unavailable(format!(
            "a message of {size} bytes came where commands or Home Assistant's status come; commands are not listened to \
             for {} s (a retained one comes again until it is removed: mosquitto_pub -r -n -t TOPIC)",
            DEAF.as_secs()
        ));
    }
    match e {
        ConnectionError::ConnectionRefused(
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized,
        ) => Error::unavailable("the broker refused the login: check username and password of [mqtt]"),
        ConnectionError::ConnectionRefused(code) => {
            Error::unavailable(format!("the broker refused the connection ({code:?})"))
        }
        ConnectionError::NetworkTimeout => Error::unavailable("no answer from the broker"),
        e => {
            let text = e.to_string();
            let layers = ["Mqtt state: ", "Mqtt serialization/deserialization error: ", "IO: ", "I/O: "];
            let text = layers.iter().fold(text.as_str(), |text, layer| text.strip_prefix(layer).unwrap_or(text));
            let hint = if text.contains("UnknownIssuer") || text.contains("BadSignature") {
                "; no known CA signed the broker's certificate: name a file with it as `ca` in [mqtt]"
            } else if text.contains("not valid for name") {
                "; the broker's certificate is for another name than url has"
            } else if text.contains("CertificateRequired") || text.contains("HandshakeFailure") {
                "; does the broker ask for client_cert and client_key?"
            } else if text.contains("received fatal alert") {
                "; the broker does not like client_cert"
            } else {
                ""
            };
            Error::unavailable(format!("{text}{hint}"))
        }
    }
}

impl Sink for Mqtt {
    fn name(&self) -> &str {
        "mqtt"
    }

    fn target(&self) -> String {
        self.url.clone()
    }

    fn lanes(&self) -> bool {
        true
    }

    async fn session(&mut self, inbox: &mut Inbox) -> Result<()> {
        let Some(part) = &self.part else { return Err(Error::internal("an MQTT sink without a daemon")) };
        let status = self.topic("status");
        let will = LastWill::new(status.clone(), "offline", QoS::AtLeastOnce, true);
        let mut link = self.connect(format!("actiond-{}", self.device), Some(will)).await?;
        // Events first: no stranger's message must keep them from the others.
        let mut listen = self.flooded.swap(false, Ordering::Relaxed).then(|| Instant::now() + DEAF);
        if listen.is_none() {
            self.listen(part, &mut link).await?;
        }
        link.send(Sent::Value, status.clone(), b"online".to_vec()).await?;
        for (what, topic, payload) in part.home_assistant.announcements() {
            let what = if what { Sent::Announcement } else { Sent::Value };
            link.send(what, topic, payload).await?;
        }
        inbox.connected();
        log::info!("{}: connected, {} events to send", self.url, inbox.open());
        let mut published = BTreeMap::new();
        let mut news: VecDeque<(String, String)> = VecDeque::new();
        let mut changes = part.board.changes();
        let mut birth: Option<Instant> = None;
        loop {
            while link.waiting.len() < WINDOW {
                let fresh = inbox.next_fresh();
                let next = if fresh.is_none() && link.late() < WINDOW / 2 { inbox.next_late() } else { fresh };
                if let Some(delivery) = next {
                    let (what, topic, payload) = self.message(&delivery)?;
                    link.send(what, topic, payload).await?;
                    continue;
                }
                if news.is_empty() {
                    changes.mark_unchanged();
                    news.extend(part.board.news(&mut published));
                }
                let Some((topic, value)) = news.pop_front() else { break };
                link.send(Sent::Value, self.topic(&topic), value.into_bytes()).await?;
            }
            if let Some(end) = inbox.ending()
                && (link.waiting.is_empty() || end <= Instant::now())
            {
                link.waiting.clear();
                link.send(Sent::Value, status, b"offline".to_vec()).await?;
                let _ = timeout(GOODBYE, link.acknowledged()).await;
                link.close().await;
                return Ok(());
            }
            let later = [birth, listen, inbox.ending()].into_iter().flatten().min();
            tokio::select! {
                acknowledged = acknowledged(&mut link.waiting) => match acknowledged? {
                    Some(Sent::Event { seq, .. }) => inbox.acknowledge(seq),
                    Some(Sent::Announcement) => part.home_assistant.announced(),
                    Some(Sent::Value) => {}
                    None => return Err(link.why().await),
                },
                ended = &mut link.driver.0 => {
                    return Err(ended.ok().flatten().map_or_else(|| Error::unavailable("the connection was closed"), explained));
                }
                Some(message) = link.received.recv() => {
                    if self.received(part, &message) {
                        // Not all devices of a house at once.
                        birth.get_or_insert(Instant::now() + Duration::from_millis(fastrand::u64(500..3000)));
                    }
                }
                () = inbox.woken() => {}
                Ok(()) = changes.changed() => {}
                () = at(later) => {
                    if listen.take_if(|listen| *listen <= Instant::now()).is_some() {
                        self.listen(part, &mut link).await?;
                    }
                    if birth.take_if(|birth| *birth <= Instant::now()).is_some() {
                        log::info!("Home Assistant is online: announcing the cameras again");
                        for (_, topic, payload) in part.home_assistant.announcements() {
                            link.send(Sent::Value, topic, payload).await?;
                        }
                        link.send(Sent::Value, status.clone(), b"online".to_vec()).await?;
                        published.clear();
                    }
                }
            }
        }
    }

    async fn test(&mut self, event: &Event) -> Result<String> {
        // Another name than the daemon's, which the broker would disconnect.
        let id = format!("actiond-{}-check-{}", self.device, std::process::id());
        let mut link = self.connect(id, None).await?;
        let delivery = Delivery { event: event.clone(), late: false };
        let (what, topic, payload) = self.message(&delivery)?;
        link.send(what, topic.clone(), payload).await?;
        link.acknowledged().await?;
        link.close().await;
        Ok(format!("acknowledged on {topic}"))
    }
}

impl Mqtt {
    fn message(&self, delivery: &Delivery) -> Result<(Sent, String, Vec<u8>)> {
        let event = &delivery.event;
        let below = format!("{}/event{}", event.camera, if delivery.late { "/late" } else { "" });
        let payload = match self.part.as_ref().is_some_and(|p| p.home_assistant.is_on()) {
            true => HomeAssistant::payload(event)?,
            false => delivery.json()?,
        };
        Ok((Sent::Event { seq: event.seq, late: delivery.late }, self.topic(&below), payload))
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn addresses() {
        let of = |secure, host: &str, port| Ok(Address { secure, host: host.into(), port });
        assert_eq!(address("mqtt://broker"), of(false, "broker", 1883));
        assert_eq!(address("mqtts://broker/"), of(true, "broker", 8883));
        assert_eq!(address("mqtt://10.0.0.2:1884"), of(false, "10.0.0.2", 1884));
        assert_eq!(address("mqtt://[::1]:1884"), of(false, "::1", 1884));
        assert_eq!(address("mqtts://[fe80::1]"), of(true, "fe80::1", 8883));
        for (url, word) in [
            ("broker:1883", "no broker's address"),
            ("http://x", "begins with http://"),
            ("mqtt://", "no host"),
            ("mqtt://:1883", "no host"),
            ("mqtt://x:port", "no port number"),
            ("mqtt://u:hunter2@x", "keys of their own"),
        ] {
            let fault = address(url).unwrap_err();
            assert!(fault.contains(word) && !fault.contains("hunter2"), "{url}: {fault}");
        }
    }

    #[test]
    fn faults_are_found_before_anything_is_opened() {
        let good = "url = \"mqtts://x\"\nusername = \"u\"\n";
        assert_eq!(config(good).fault(), None);
        for (more, word) in [
            ("password = \"a\"\npassword_file = \"b\"", "not both"),
            ("client_cert = \"a\"", "go together"),
            ("topic = \"a/#\"", "topic"),
            ("topic = \"a/\"", "topic"),
        ] {
            assert!(config(&format!("{good}{more}")).fault().unwrap().contains(word), "{more}");
        }
        assert!(config("url = \"mqtt://x\"\nca = \"a\"").fault().unwrap().contains("mqtts://"));
        assert!(config("url = \"mqtt://x\"\npassword = \"a\"").fault().unwrap().contains("no username"));
        assert!(!format!("{:?}", config("url = \"mqtt://x\"\npassword = \"hunter2\"")).contains("hunter2"));
    }

    #[test]
    fn only_what_is_meant_for_us_and_is_not_old_asks_for_something() {
        let base = "actiond/dock.3";
        let of = |topic: &'static str, payload: &'static str, retained| {
            asked(base, topic.as_bytes(), payload.as_bytes(), retained)
        };
        assert_eq!(of("homeassistant/status", "online", false), Asked::Announce);
        let switch = |camera, payload: &'static str| Asked::Switch { camera, payload: payload.as_bytes() };
        assert_eq!(of("actiond/dock.3/door/watching/set", "OFF", false), switch("door", "OFF"));
        assert_eq!(of("actiond/dock.3/door/watching/set", "OFF", true), Asked::Retained);
        for (topic, payload, retained) in [
            ("homeassistant/status", "online", true),
            ("homeassistant/status", "offline", false),
            ("actiond/dock.3/door/watching", "OFF", false),
            ("actiond/dock.3/watching/set", "OFF", false),
            ("actiond/dock.33/door/watching/set", "OFF", false),
            ("x/actiond/dock.3/door/watching/set", "OFF", false),
            ("", "", true),
        ] {
            assert_eq!(of(topic, payload, retained), Asked::Nothing, "{topic}");
        }
        assert_eq!(asked(base, b"actiond/dock.3/\xff/watching/set", b"ON", false), Asked::Nothing);
    }

    /// What the fuzzer starts from, as files: `cargo test --release --lib seeds_for -- --ignored` writes them anew. A byte
    /// for whether the message is retained, its topic, a zero, its payload.
    #[test]
    #[ignore = "writes fuzz/seeds/mqtt"]
    fn seeds_for_the_fuzzer_are_written() {
        let to = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/mqtt");
        std::fs::create_dir_all(&to).unwrap();
        for (name, retained, topic, payload) in [
            ("off", 0, "actiond/dock/door/watching/set", "OFF"),
            ("on", 0, "actiond/dock/yard.2/watching/set", "ON"),
            ("retained", 1, "actiond/dock/door/watching/set", "OFF"),
            ("nobody", 0, "actiond/dock/nobody/watching/set", "ON"),
            ("birth", 0, "homeassistant/status", "online"),
            ("death", 0, "homeassistant/status", "offline"),
        ] {
            std::fs::write(to.join(name), [&[retained][..], topic.as_bytes(), &[0], payload.as_bytes()].concat())
                .unwrap();
        }
    }

    #[test]
    fn topics() {
        let mqtt = Mqtt::new(&config("url = \"mqtt://x\""), "dock-3").unwrap();
        let mut delivery = Delivery { event: crate::event::sample(1), late: false };
        let (_, topic, payload) = mqtt.message(&delivery).unwrap();
        assert_eq!(topic, "actiond/dock-3/door/event");
        assert_eq!(payload, serde_json::to_vec(&delivery.event).unwrap());
        delivery.late = true;
        assert_eq!(mqtt.message(&delivery).unwrap().1, "actiond/dock-3/door/event/late");
    }
}
